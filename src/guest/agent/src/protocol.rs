//! What host and agent say to each other; the host's twin is `src/guest/protocol.ts`. Pure.
//!
//! Stream 0 is control, JSON in frames of kind 1:
//!
//! ```text
//!   host   {"type":"hello","version":2,"nonce":"..."}       opens a session, ends the one before it
//!   agent  {"type":"hello","version":2,"nonce":"...","ready":true}
//!   agent  {"type":"ready"}                                 the image's process is started, unless the hello said so
//!   host   {"type":"ping","id":7}                           or another request below; any number at a time
//!   agent  {"type":"done","id":7,...}                       or {"type":"refused","id":7,"reason":"...","code":"ENOENT"}
//!   agent  {"type":"broken","reason":"..."}                 the host broke the protocol: the session is over
//! ```
//!
//! A session is known by the nonce of its hello: what was left in the channel by an earlier one is before that hello, or
//! answers another nonce, and is ignored. The agent's hello names the host's version where that is an older one (1 has
//! no streams), its own otherwise.
//!
//! Requests beside ping, sync, memory, shutdown {grace_ms} and awaken {epoch_ns, entropy}:
//!
//! ```text
//!   exec        {stream, command[], env{}?, cwd?, user?, tty?: {rows, cols}, timeout_ms?}
//!               done once it runs; refused where it cannot: then the stream never was. User and cwd are the image's
//!               where they are not said, env is merged over the image's. After timeout_ms its processes get SIGKILL.
//!   read_files  {stream, path}   done once path is open. The archive's names begin with path's last component; those of
//!               / with "./". Mount points below are followed where a volume is mounted, else they are empty directories.
//!   write_files {stream, path}   done once path, made where it is missing, is open. Names are relative to it.
//!   mount       {serial, path, readonly}   waits for the disk; done too where it is mounted there already
//!   unmount     {path, lazy}     refused with holders: [{pid, command}] and code EBUSY; done too where nothing is mounted
//!   grow        {path, size_bytes?}        done {size_bytes} of the disk; waits until the disk is that big (without
//!               size_bytes: bigger than the file system), for a bounded time
//!   load        {}               done {load_milli: [1, 5, 15 minutes], processes, total_kib, available_kib}
//! ```
//!
//! `code` is there where one system call failed with it: ENOENT, ENOTDIR, EISDIR, ELOOP, EACCES, EROFS, EBUSY, ENOSPC,
//! EXDEV, EINVAL, or any other errno's name or number; and EAGAIN where another request for the same mount is not done.
//!
//! Streams: the host chooses an id above 0, and not one that a stream has at that time. It may send at once; what it
//! sends to a stream that is refused or over is ignored.
//!
//! ```text
//!   kind 1   control   host   {"type":"signal","signal":"INT"}   a name without SIG, or a number in digits
//!                             {"type":"resize","rows":r,"cols":c}   {"type":"cancel"}
//!                      agent  the last frame of the stream, for an exec {"type":"exit","code":n} or
//!                             {"type":"exit","signal":"KILL"}, with "timeout":true where timeout_ms ended it;
//!                             for files {"type":"ended"} or {"type":"failed","reason":"...","code":"..."}
//!   kind 2   data      stdin, stdout (all output of a tty), an archive
//!   kind 3   stderr    agent only
//!   kind 4   end       of the sender's data. The agent sends one, for stdout and stderr together, before its last frame
//!   kind 5   credit    u32, little endian: so many more bytes of kinds 2 and 3 the sender of this frame takes
//! ```
//!
//! Each direction of a stream starts with 262144 bytes of credit. Data beyond the credit, data behind an end, and a credit frame
//! of another length break the protocol. The end of a tty's input is its end-of-file character. Signals that a keyboard
//! makes (INT, QUIT, TSTP) go to a tty's foreground processes; all others, and all without a tty, to the process group of
//! the command. Cancel is SIGHUP, and SIGKILL a moment later, to every process of the command's session; a new hello and
//! the end of the connection cancel all streams. What a command left in the background outlives it, but its output is
//! not waited for: the stream ends once what was written when the command ended is sent.

use crate::frame::{self, KIND_CONTROL, KIND_CREDIT, KIND_END};
use crate::json::{self, Json};
use crate::signals;
use crate::sys::{Ended, Window};
use crate::verb::{self, Verb};

pub const VERSION: i64 = 2;
const NONCE_MAX_CHARS: usize = 64;
const REASON_MAX_CHARS: usize = 500;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    Hello {
        version: i64,
        nonce: String,
    },
    Request {
        id: i64,
        verb: Verb,
    },
    /// A request that is understood as far as its id.
    Unclear {
        id: i64,
        reason: String,
    },
}

/// None for what is no message at all: it is ignored, since there is nothing to answer.
pub fn parse(payload: &[u8]) -> Option<Message> {
    let value = json::parse(payload).ok()?;
    let kind = value.get("type")?.as_text()?;
    if kind == "hello" {
        let nonce = value.get("nonce")?.as_text()?;
        let version = value.get("version")?.as_int()?;
        let bounded = nonce.len() <= NONCE_MAX_CHARS;
        return bounded.then(|| Message::Hello { version, nonce: nonce.to_string() });
    }
    let id = value.get("id")?.as_int()?;
    Some(match verb::parse(kind, &value) {
        Ok(verb) => Message::Request { id, verb },
        Err(reason) => Message::Unclear { id, reason },
    })
}

/// What the host says of one stream, beside its data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Steer {
    Signal(i32),
    Resize(Window),
    Cancel,
}

/// None for what this agent does not know: it is ignored.
pub fn parse_steer(payload: &[u8]) -> Option<Steer> {
    let value = json::parse(payload).ok()?;
    match value.get("type")?.as_text()? {
        "signal" => signals::number(value.get("signal")?.as_text()?).map(Steer::Signal),
        "resize" => verb::window(&value).map(Steer::Resize),
        "cancel" => Some(Steer::Cancel),
        _ => None,
    }
}

/// Appends a control message to what is to be sent.
fn send(stream: u32, message: &Json, out: &mut Vec<u8>) {
    frame::encode(KIND_CONTROL, stream, message.to_string().as_bytes(), out);
}

/// Behind a zero byte, which ends whatever of an earlier session the host may hold half of.
pub fn hello(version: i64, nonce: &str, ready: bool, out: &mut Vec<u8>) {
    out.push(0);
    let fields = [
        ("type", Json::text("hello")),
        ("version", Json::Int(version)),
        ("nonce", Json::text(nonce)),
        ("ready", Json::Bool(ready)),
    ];
    send(0, &Json::object(&fields), out);
}

pub fn done(id: i64, figures: &[(&str, Json)], out: &mut Vec<u8>) {
    let fields = [("type", Json::text("done")), ("id", Json::Int(id))];
    send(0, &Json::object(&[&fields, figures].concat()), out);
}

pub fn refused(id: i64, why: &Refusal, out: &mut Vec<u8>) {
    let fields = [("type", Json::text("refused")), ("id", Json::Int(id))];
    send(0, &Json::object(&[&fields[..], &why.fields()].concat()), out);
}

pub fn broken(reason: &str, out: &mut Vec<u8>) {
    send(0, &Json::object(&[("type", Json::text("broken")), ("reason", Json::text(reason))]), out);
}

pub fn credit(stream: u32, bytes: u32, out: &mut Vec<u8>) {
    frame::encode(KIND_CREDIT, stream, &bytes.to_le_bytes(), out);
}

pub fn end(stream: u32, out: &mut Vec<u8>) {
    frame::encode(KIND_END, stream, &[], out);
}

/// The last frame of an exec.
pub fn exit(stream: u32, ended: Ended, timed_out: bool, out: &mut Vec<u8>) {
    let how = match ended {
        Ended::Exited(code) => ("code", Json::Int(code.into())),
        Ended::Signaled(signal) => ("signal", Json::Text(signals::name(signal))),
    };
    let mut fields = vec![("type", Json::text("exit")), how];
    if timed_out {
        fields.push(("timeout", Json::Bool(true)));
    }
    send(stream, &Json::object(&fields), out);
}

/// The last frame of an archive.
pub fn ended(stream: u32, why: Option<&Refusal>, out: &mut Vec<u8>) {
    let message = match why {
        None => Json::object(&[("type", Json::text("ended"))]),
        Some(why) => Json::object(&[&[("type", Json::text("failed"))][..], &why.fields()].concat()),
    };
    send(stream, &message, out);
}

/// Why something was not done: a sentence, the system call's error where it was one, who is in the way.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Refusal {
    pub reason: String,
    pub code: Option<String>,
    pub holders: Vec<(i32, String)>,
}

impl Refusal {
    pub fn new(reason: impl Into<String>) -> Refusal {
        Refusal { reason: reason.into(), ..Refusal::default() }
    }

    pub fn of(what: &str, error: &std::io::Error) -> Refusal {
        let code = error.raw_os_error().map(signals::error_name);
        Refusal { reason: format!("{what}: {error}"), code, holders: Vec::new() }
    }

    fn fields(&self) -> Vec<(&'static str, Json)> {
        let reason: String = self.reason.chars().take(REASON_MAX_CHARS).collect();
        let mut fields = vec![("reason", Json::Text(reason))];
        fields.extend(self.code.iter().map(|code| ("code", Json::text(code))));
        if !self.holders.is_empty() {
            let holder = |(pid, command): &(i32, String)| {
                Json::object(&[("pid", Json::Int((*pid).into())), ("command", Json::text(command))])
            };
            fields.push(("holders", Json::List(self.holders.iter().map(holder).collect())));
        }
        fields
    }

    /// As one process of this program tells it to another.
    pub fn encode(&self) -> Vec<u8> {
        Json::object(&self.fields()).to_string().into_bytes()
    }

    pub fn decode(text: &[u8]) -> Refusal {
        let value = json::parse(text).unwrap_or(Json::Null);
        let holder = |it: &Json| {
            Some((i32::try_from(it.get("pid")?.as_int()?).ok()?, it.get("command")?.as_text()?.to_string()))
        };
        let holders = match value.get("holders") {
            Some(Json::List(items)) => items.iter().filter_map(holder).collect(),
            _ => Vec::new(),
        };
        let reason = value.get("reason").and_then(Json::as_text).unwrap_or("it ended without a word").to_string();
        Refusal { reason, code: value.get("code").and_then(Json::as_text).map(str::to_string), holders }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;
    use crate::sys::ENTROPY_MAX;

    fn control(text: &str) -> Option<Message> {
        parse(text.as_bytes())
    }

    #[test]
    fn messages() {
        let hello = Message::Hello { version: 1, nonce: "ab".into() };
        assert_eq!(control(r#"{"type":"hello","version":1,"nonce":"ab"}"#), Some(hello));
        let request = |id, verb| Some(Message::Request { id, verb });
        assert_eq!(control(r#"{"type":"ping","id":1}"#), request(1, Verb::Ping));
        assert_eq!(control(r#"{"type":"shutdown","id":2,"grace_ms":50}"#), request(2, Verb::Shutdown { grace_ms: 50 }));
        assert_eq!(
            control(r#"{"type":"awaken","id":3,"epoch_ns":"1700000000123456789","entropy":"00ff"}"#),
            request(3, Verb::Awaken { epoch_ns: 1_700_000_000_123_456_789, entropy: vec![0, 255] })
        );
    }

    #[test]
    fn what_has_an_id_is_answered_and_the_rest_ignored() {
        for text in [
            r#"{"type":"explode","id":9}"#,
            r#"{"type":"shutdown","id":9}"#,
            r#"{"type":"shutdown","id":9,"grace_ms":-1}"#,
            r#"{"type":"awaken","id":9,"epoch_ns":"x","entropy":""}"#,
            r#"{"type":"awaken","id":9,"epoch_ns":"-1","entropy":""}"#,
            r#"{"type":"awaken","id":9,"epoch_ns":"1","entropy":"0"}"#,
            r#"{"type":"awaken","id":9,"epoch_ns":"1","entropy":"0é"}"#,
        ] {
            assert!(matches!(control(text), Some(Message::Unclear { id: 9, .. })), "{text}");
        }
        for text in ["", "{}", "7", r#"{"type":"ping"}"#, r#"{"type":"hello","version":1}"#, r#"{"type":7,"id":1}"#] {
            assert_eq!(control(text), None, "{text}");
        }
    }

    #[test]
    fn too_much_is_refused() {
        let entropy = "0".repeat(2 * ENTROPY_MAX + 2);
        let text = format!(r#"{{"type":"awaken","id":9,"epoch_ns":"1","entropy":"{entropy}"}}"#);
        assert!(matches!(control(&text), Some(Message::Unclear { .. })));
        let nonce = "n".repeat(NONCE_MAX_CHARS + 1);
        assert_eq!(control(&format!(r#"{{"type":"hello","version":1,"nonce":"{nonce}"}}"#)), None);
    }

    #[test]
    fn garbage_never_panics() {
        let text = r#"{"type":"awaken","id":3,"epoch_ns":"1700000000123456789","entropy":"00ff"}"#;
        for seed in 0..5_000 {
            let random = &mut Random::new(seed);
            let mut payload = text.as_bytes().to_vec();
            for _ in 0..=random.below(3) {
                let at = random.below(payload.len());
                payload[at] = random.next() as u8;
            }
            let _ = parse(&payload);
            let _ = parse_steer(&payload);
        }
    }
}
