//! What host and agent say to each other on stream 0; the host's twin is `src/guest/protocol.ts`. Pure.
//!
//! ```text
//!   host   {"type":"hello","version":1,"nonce":"..."}       opens a session, ends the one before it
//!   agent  {"type":"hello","version":1,"nonce":"...","ready":true}
//!   agent  {"type":"ready"}                                 the image's process is started, unless the hello said so
//!   host   {"type":"ping","id":7}                           or shutdown, awaken, sync, memory; any number at a time
//!   agent  {"type":"done","id":7}                           or {"type":"refused","id":7,"reason":"..."}
//! ```
//!
//! A session is known by the nonce of its hello: what was left in the channel by an earlier one is before that hello, or
//! answers another nonce, and is ignored.

use crate::frame::{self, Frame, KIND_CONTROL};
use crate::json::{self, Json};
use crate::sys::ENTROPY_MAX;

pub const VERSION: i64 = 1;
const NONCE_MAX_CHARS: usize = 64;
/// A week: more is a mistake.
const GRACE_MAX_MS: i64 = 7 * 24 * 3600 * 1000;

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

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verb {
    Ping,
    Sync,
    Memory,
    Shutdown { grace_ms: u64 },
    Awaken { epoch_ns: i64, entropy: Vec<u8> },
}

/// None for what is no message at all: it is ignored, since there is nothing to answer.
pub fn parse(frame: &Frame) -> Option<Message> {
    if frame.kind != KIND_CONTROL || frame.stream != 0 {
        return None;
    }
    let value = json::parse(&frame.payload).ok()?;
    let kind = value.get("type")?.as_text()?;
    if kind == "hello" {
        let nonce = value.get("nonce")?.as_text()?;
        let version = value.get("version")?.as_int()?;
        let bounded = nonce.len() <= NONCE_MAX_CHARS;
        return bounded.then(|| Message::Hello { version, nonce: nonce.to_string() });
    }
    let id = value.get("id")?.as_int()?;
    Some(match verb(kind, &value) {
        Ok(verb) => Message::Request { id, verb },
        Err(reason) => Message::Unclear { id, reason },
    })
}

fn verb(kind: &str, value: &Json) -> Result<Verb, String> {
    match kind {
        "ping" => Ok(Verb::Ping),
        "sync" => Ok(Verb::Sync),
        "memory" => Ok(Verb::Memory),
        "shutdown" => match value.get("grace_ms") {
            Some(Json::Int(grace @ 0..=GRACE_MAX_MS)) => Ok(Verb::Shutdown { grace_ms: *grace as u64 }),
            _ => Err("grace_ms is no number of milliseconds".to_string()),
        },
        "awaken" => {
            let epoch = value.get("epoch_ns").and_then(Json::as_text).and_then(|it| it.parse().ok());
            let entropy = value.get("entropy").and_then(Json::as_text).and_then(hex);
            match (epoch, entropy) {
                (Some(epoch_ns @ 0..), Some(entropy)) => Ok(Verb::Awaken { epoch_ns, entropy }),
                _ => Err("epoch_ns is no time, or entropy no hexadecimal digits".to_string()),
            }
        }
        _ => Err(format!("{} is no verb of this agent", kind.chars().take(40).collect::<String>())),
    }
}

fn hex(text: &str) -> Option<Vec<u8>> {
    let bytes = text.as_bytes();
    let fits = bytes.len() % 2 == 0 && bytes.len() / 2 <= ENTROPY_MAX;
    if !fits || !bytes.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let pairs = bytes.chunks(2).map(|pair| std::str::from_utf8(pair).ok());
    pairs.map(|pair| u8::from_str_radix(pair?, 16).ok()).collect()
}

/// Appends a control message to what is to be sent.
fn send(message: &Json, out: &mut Vec<u8>) {
    let payload = message.to_string().into_bytes();
    frame::encode(&Frame { kind: KIND_CONTROL, stream: 0, payload }, out);
}

/// Behind a zero byte, which ends whatever of an earlier session the host may hold half of.
pub fn hello(nonce: &str, ready: bool, out: &mut Vec<u8>) {
    out.push(0);
    let fields = [
        ("type", Json::text("hello")),
        ("version", Json::Int(VERSION)),
        ("nonce", Json::text(nonce)),
        ("ready", Json::Bool(ready)),
    ];
    send(&Json::object(&fields), out);
}

pub fn done(id: i64, figures: &[(&str, Json)], out: &mut Vec<u8>) {
    let fields = [("type", Json::text("done")), ("id", Json::Int(id))];
    send(&Json::object(&[&fields, figures].concat()), out);
}

pub fn refused(id: i64, reason: &str, out: &mut Vec<u8>) {
    let reason: String = reason.chars().take(500).collect();
    let fields = [("type", Json::text("refused")), ("id", Json::Int(id)), ("reason", Json::Text(reason))];
    send(&Json::object(&fields), out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    fn control(text: &str) -> Option<Message> {
        parse(&Frame { kind: KIND_CONTROL, stream: 0, payload: text.as_bytes().to_vec() })
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
            let _ = parse(&Frame { kind: KIND_CONTROL, stream: 0, payload });
        }
    }
}
