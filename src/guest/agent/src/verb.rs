//! What the host may ask for on stream 0, field by field. Pure. What is wrong with a request is said in a sentence.

use std::time::Duration;

use crate::config::Volume;
use crate::json::Json;
use crate::sys::{Window, ENTROPY_MAX};

/// A week: more is a mistake.
const TIME_MAX_MS: i64 = 7 * 24 * 3600 * 1000;
/// PATH_MAX of linux/limits.h, its closing NUL included.
const PATH_MAX: usize = 4096;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verb {
    Ping,
    Sync,
    Memory,
    Load,
    Shutdown { grace_ms: u64 },
    Awaken { epoch_ns: i64, entropy: Vec<u8> },
    Exec { stream: u32, order: Exec },
    ReadFiles { stream: u32, path: String },
    WriteFiles { stream: u32, path: String },
    Mount(Volume),
    Unmount { path: String, lazy: bool },
    Grow { path: String, size_bytes: Option<u64> },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exec {
    pub command: Vec<String>,
    pub env: Vec<(String, String)>,
    pub cwd: Option<String>,
    pub user: Option<String>,
    pub tty: Option<Window>,
    pub timeout: Option<Duration>,
}

pub fn parse(kind: &str, value: &Json) -> Result<Verb, String> {
    match kind {
        "ping" => Ok(Verb::Ping),
        "sync" => Ok(Verb::Sync),
        "memory" => Ok(Verb::Memory),
        "load" => Ok(Verb::Load),
        "shutdown" => match milliseconds(value, "grace_ms")? {
            Some(grace_ms) => Ok(Verb::Shutdown { grace_ms }),
            None => Err("grace_ms is missing".to_string()),
        },
        "awaken" => {
            let epoch = value.get("epoch_ns").and_then(Json::as_text).and_then(|it| it.parse().ok());
            let entropy = value.get("entropy").and_then(Json::as_text).and_then(hex);
            match (epoch, entropy) {
                (Some(epoch_ns @ 0..), Some(entropy)) => Ok(Verb::Awaken { epoch_ns, entropy }),
                _ => Err("epoch_ns is no time, or entropy no hexadecimal digits".to_string()),
            }
        }
        "exec" => Ok(Verb::Exec { stream: stream(value)?, order: exec(value)? }),
        "read_files" => Ok(Verb::ReadFiles { stream: stream(value)?, path: path(value)? }),
        "write_files" => Ok(Verb::WriteFiles { stream: stream(value)?, path: path(value)? }),
        "mount" => Ok(Verb::Mount(Volume {
            serial: text(value, "serial")?.ok_or("serial is missing")?,
            mount_path: mount_path(value)?,
            readonly: flag(value, "readonly")?,
        })),
        "unmount" => Ok(Verb::Unmount { path: mount_path(value)?, lazy: flag(value, "lazy")? }),
        "grow" => Ok(Verb::Grow {
            path: mount_path(value)?,
            size_bytes: match value.get("size_bytes") {
                None => None,
                Some(Json::Int(size @ 0..)) => Some(*size as u64),
                Some(_) => return Err("size_bytes is no number of bytes".to_string()),
            },
        }),
        _ => Err(format!("{} is no verb of this agent", kind.chars().take(40).collect::<String>())),
    }
}

fn exec(value: &Json) -> Result<Exec, String> {
    let command = match value.get("command") {
        Some(Json::List(items)) if !items.is_empty() => {
            items.iter().map(|it| it.as_text().map(str::to_string)).collect()
        }
        _ => None,
    };
    let env = match value.get("env") {
        None => Some(Vec::new()),
        Some(Json::Object(members)) => {
            members.iter().map(|(name, value)| Some((name.clone(), value.as_text()?.to_string()))).collect()
        }
        Some(_) => None,
    };
    let tty = match value.get("tty") {
        None | Some(Json::Null) => None,
        Some(size) => Some(window(size).ok_or("tty has no rows and cols from 1 to 65535")?),
    };
    Ok(Exec {
        command: command.ok_or("command is no list of strings, or empty")?,
        env: env.ok_or("env is no object of strings")?,
        cwd: text(value, "cwd")?,
        user: text(value, "user")?,
        tty,
        timeout: milliseconds(value, "timeout_ms")?.map(Duration::from_millis),
    })
}

/// `rows` and `cols` of an object.
pub fn window(value: &Json) -> Option<Window> {
    let side = |name: &str| value.get(name)?.as_int().and_then(|it| u16::try_from(it).ok()).filter(|it| *it > 0);
    Some(Window { rows: side("rows")?, cols: side("cols")? })
}

fn stream(value: &Json) -> Result<u32, String> {
    let id = value.get("stream").and_then(Json::as_int).and_then(|it| u32::try_from(it).ok());
    id.filter(|it| *it > 0).ok_or_else(|| "stream is no number above 0".to_string())
}

fn path(value: &Json) -> Result<String, String> {
    let path = text(value, "path")?.unwrap_or_default();
    let good = path.starts_with('/') && path.len() < PATH_MAX && !path.contains('\0');
    good.then_some(path).ok_or_else(|| "path is no absolute path".to_string())
}

/// In the one form in which init remembers it.
fn mount_path(value: &Json) -> Result<String, String> {
    let path = path(value)?;
    let names: Vec<&str> = path.split('/').filter(|it| !it.is_empty() && *it != ".").collect();
    if names.is_empty() || names.contains(&"..") {
        return Err(format!("nothing is mounted at {path}"));
    }
    Ok(format!("/{}", names.join("/")))
}

fn text(value: &Json, name: &str) -> Result<Option<String>, String> {
    match value.get(name) {
        None | Some(Json::Null) => Ok(None),
        Some(Json::Text(text)) => Ok(Some(text.clone())),
        Some(_) => Err(format!("{name} is no string")),
    }
}

fn flag(value: &Json, name: &str) -> Result<bool, String> {
    match value.get(name) {
        None => Ok(false),
        Some(Json::Bool(flag)) => Ok(*flag),
        Some(_) => Err(format!("{name} is neither true nor false")),
    }
}

fn milliseconds(value: &Json, name: &str) -> Result<Option<u64>, String> {
    match value.get(name) {
        None => Ok(None),
        Some(Json::Int(time @ 0..=TIME_MAX_MS)) => Ok(Some(*time as u64)),
        Some(_) => Err(format!("{name} is no number of milliseconds")),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json;

    fn asked(text: &str) -> Result<Verb, String> {
        let value = json::parse(text.as_bytes()).unwrap();
        let kind = value.get("type").and_then(Json::as_text).unwrap();
        parse(kind, &value)
    }

    #[test]
    fn an_exec_with_everything() {
        let order = Exec {
            command: vec!["sh".into(), "-c".into(), "x".into()],
            env: vec![("A".into(), "b".into())],
            cwd: Some("/w".into()),
            user: Some("web:logs".into()),
            tty: Some(Window { rows: 24, cols: 80 }),
            timeout: Some(Duration::from_millis(50)),
        };
        let text = r#"{"type":"exec","stream":4294967295,"command":["sh","-c","x"],"env":{"A":"b"},"cwd":"/w",
            "user":"web:logs","tty":{"rows":24,"cols":80},"timeout_ms":50}"#;
        assert_eq!(asked(text), Ok(Verb::Exec { stream: u32::MAX, order }));
    }

    #[test]
    fn the_least_that_is_asked() {
        let order = Exec { command: vec!["a".into()], env: vec![], cwd: None, user: None, tty: None, timeout: None };
        assert_eq!(asked(r#"{"type":"exec","stream":1,"command":["a"]}"#), Ok(Verb::Exec { stream: 1, order }));
        let volume = Volume { serial: "v".into(), mount_path: "/d".into(), readonly: false };
        assert_eq!(asked(r#"{"type":"mount","serial":"v","path":"//d/./"}"#), Ok(Verb::Mount(volume)));
        let grow = Verb::Grow { path: "/d".into(), size_bytes: None };
        assert_eq!(asked(r#"{"type":"grow","path":"/d"}"#), Ok(grow));
    }

    #[test]
    fn what_is_wrong_is_refused() {
        for text in [
            r#"{"type":"exec","stream":0,"command":["a"]}"#,
            r#"{"type":"exec","stream":4294967296,"command":["a"]}"#,
            r#"{"type":"exec","command":["a"]}"#,
            r#"{"type":"exec","stream":1,"command":[]}"#,
            r#"{"type":"exec","stream":1,"command":["a",1]}"#,
            r#"{"type":"exec","stream":1,"command":["a"],"env":{"A":1}}"#,
            r#"{"type":"exec","stream":1,"command":["a"],"tty":{"rows":0,"cols":1}}"#,
            r#"{"type":"exec","stream":1,"command":["a"],"tty":true}"#,
            r#"{"type":"exec","stream":1,"command":["a"],"timeout_ms":-1}"#,
            r#"{"type":"read_files","stream":1,"path":"etc"}"#,
            r#"{"type":"read_files","stream":1}"#,
            r#"{"type":"write_files","stream":1,"path":"/a\u0000b"}"#,
            r#"{"type":"mount","path":"/d"}"#,
            r#"{"type":"mount","serial":"v","path":"//."}"#,
            r#"{"type":"mount","serial":"v","path":"/d/../e"}"#,
            r#"{"type":"unmount","path":"/d","lazy":"yes"}"#,
            r#"{"type":"grow","path":"/d","size_bytes":-1}"#,
        ] {
            assert!(asked(text).is_err(), "{text}");
        }
    }
}
