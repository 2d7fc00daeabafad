//! A worker is a fork of this program that does what may wait, so that init never does: looking up a command and
//! becoming it, an archive, a mount. It tells how it went over a pipe, its status:
//!
//! ```text
//!   nothing, then closed       it has become the command (the pipe is closed by execve), or it died
//!   S                          it works, and the rest comes later
//!   D and a JSON object        done, with figures
//!   F and a JSON object        not done: a refusal
//! ```

use std::fs::File;
use std::io::{ErrorKind, Read, Result, Write};
use std::os::unix::io::{AsRawFd, RawFd};

use crate::json::{self, Json};
use crate::protocol::Refusal;
use crate::sys;

/// More than any worker says. One that was taken over and says more is not listened to.
const SAID_MAX: usize = 64 * 1024;

pub type Figures = Vec<(&'static str, Json)>;

/// The worker's end of its status.
pub struct Teller(File);

impl Teller {
    pub fn started(&mut self) {
        let _ = self.0.write_all(b"S");
    }

    fn tell(&mut self, outcome: std::result::Result<Figures, Refusal>) -> i32 {
        let (tag, text) = match &outcome {
            Ok(figures) => (b'D', Json::object(figures).to_string().into_bytes()),
            Err(refusal) => (b'F', refusal.encode()),
        };
        let _ = self.0.write_all(&[&[tag], &text[..]].concat());
        i32::from(outcome.is_err())
    }
}

/// What is known of a worker.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    /// It has become a command, or died: how it ended says which.
    Nothing,
    Started,
    Done(Json),
    Refused(Refusal),
}

/// Init's end of a worker's status.
pub struct Status {
    file: Option<File>,
    said: Vec<u8>,
}

impl Status {
    pub fn fd(&self) -> Option<RawFd> {
        self.file.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Takes what there is. True once there is no more to come.
    pub fn read(&mut self) -> bool {
        let mut buffer = [0; 4096];
        while let Some(file) = &mut self.file {
            match file.read(&mut buffer) {
                Ok(count) if count > 0 && self.said.len() < SAID_MAX => self.said.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
                _ => self.file = None,
            }
        }
        true
    }

    pub fn is_closed(&self) -> bool {
        self.file.is_none()
    }

    pub fn said(&self) -> Said {
        let rest = self.said.strip_prefix(b"S").unwrap_or(&self.said);
        match rest.split_first() {
            Some((b'D', text)) => Said::Done(json::parse(text).unwrap_or(Json::Null)),
            Some((_, text)) => Said::Refused(Refusal::decode(text)),
            None if self.said.is_empty() => Said::Nothing,
            None => Said::Started,
        }
    }
}

/// Forks a worker with these standard streams. Gives its pid.
pub fn start(
    stdio: [&File; 3],
    terminal: bool,
    body: impl FnOnce(&mut Teller) -> std::result::Result<Figures, Refusal>,
) -> Result<(i32, Status)> {
    let (ours, theirs) = sys::pipe()?;
    sys::make_nonblocking(&ours)?;
    let pid = sys::fork(stdio, &theirs, terminal, |status| {
        let mut teller = Teller(status);
        let outcome = body(&mut teller);
        teller.tell(outcome)
    })?;
    Ok((pid, Status { file: Some(ours), said: Vec::new() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(said: &[u8]) -> Said {
        Status { file: None, said: said.to_vec() }.said()
    }

    #[test]
    fn what_was_said() {
        assert_eq!(status(b""), Said::Nothing);
        assert_eq!(status(b"S"), Said::Started);
        assert_eq!(status(b"D{\"a\":1}"), Said::Done(Json::object(&[("a", Json::Int(1))])));
        let refusal = Refusal { reason: "no".into(), code: Some("EBUSY".into()), holders: vec![(7, "sh".into())] };
        assert_eq!(status(&[b"SF", &refusal.encode()[..]].concat()), Said::Refused(refusal.clone()));
        assert_eq!(status(&[b"F", &refusal.encode()[..]].concat()), Said::Refused(refusal));
        assert!(matches!(status(b"S\xff"), Said::Refused(_)));
        assert!(matches!(status(b"F{"), Said::Refused(_)));
    }
}
