//! One byte stream to the host: a virtio-serial port, which stays open while hosts come and go, or a vsock connection.
//! Nothing here ever waits.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::io::{AsRawFd, RawFd};
use std::path::Path;

use crate::frame::{Decoder, Frame};
use crate::sys;

pub const PORT_NAME: &str = "agent.0";
pub const VSOCK_PORT: u32 = 1024;
const READ_BYTES: usize = 16 * 1024;
/// Reads in one turn; the rest waits until the other links and the children had theirs.
const READS_PER_TURN: usize = 8;
/// A host that asks and does not listen is not read from until it has taken its answers.
const OUT_MAX: usize = 256 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Port,
    Connection,
}

/// How a turn left the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Nothing more to do until the kernel says so.
    Idle,
    /// There may be more to read at once.
    More,
    /// A connection that ended. A port never does.
    Gone,
}

pub struct Link {
    file: File,
    kind: Kind,
    decoder: Decoder,
    pub out: Vec<u8>,
    /// The session's nonce, once there was a hello.
    pub session: Option<String>,
}

impl Link {
    pub fn new(file: File, kind: Kind) -> Link {
        Link { file, kind, decoder: Decoder::default(), out: Vec::new(), session: None }
    }

    pub fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Everything about the host that was there is forgotten.
    fn reset(&mut self) {
        self.decoder = Decoder::default();
        self.out.clear();
        self.session = None;
    }

    /// Reads frames, as many as one turn allows. What there is to say goes to `out`, and from there with `flush`.
    pub fn read(&mut self, frames: &mut Vec<Frame>) -> Turn {
        let mut buffer = [0; READ_BYTES];
        for _ in 0..READS_PER_TURN {
            if self.out.len() > OUT_MAX {
                return Turn::Idle;
            }
            match (&self.file).read(&mut buffer) {
                // A port whose host left; its next one begins with a hello.
                Ok(0) => {
                    self.reset();
                    return self.over();
                }
                Ok(count) => frames.extend(self.decoder.push(&buffer[..count])),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Turn::Idle,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return self.over(),
            }
        }
        Turn::More
    }

    fn over(&self) -> Turn {
        match self.kind {
            Kind::Port => Turn::Idle,
            Kind::Connection => Turn::Gone,
        }
    }

    pub fn flush(&mut self) {
        while !self.out.is_empty() {
            match (&self.file).write(&self.out) {
                Ok(count) if count > 0 => drop(self.out.drain(..count)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                _ => return,
            }
        }
    }
}

/// The port of the agent's name, where there is one (QEMU).
pub fn open_port() -> Option<File> {
    let ports = fs::read_dir("/sys/class/virtio-ports").ok()?;
    let mut names = ports.flatten().map(|it| it.file_name()).filter(|port| {
        let name = fs::read_to_string(Path::new("/sys/class/virtio-ports").join(port).join("name"));
        name.map_or(false, |it| it.trim_end() == PORT_NAME)
    });
    let device = Path::new("/dev").join(names.next()?);
    OpenOptions::new().read(true).write(true).custom_flags(sys::O_NONBLOCK).open(device).ok()
}
