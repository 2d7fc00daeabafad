//! What the host wants booted: the guest's side of `src/guest/GuestConfig.ts`, which says how the disk is laid out. Pure.
//! The parser is strict: a field that it does not know would be a wish that it does not fulfil.

use crate::json::{self, Json};

pub const CONFIG_MAGIC: &[u8; 8] = b"CHDCONF1";
pub const REPORT_MAGIC: &[u8; 8] = b"CHDREPT1";
/// The report's place: the last bytes of the config disk.
pub const REPORT_BYTES: usize = 4096;
pub const HEADER_BYTES: usize = 12;
/// More than any disk that the host writes can hold.
const CONFIG_MAX: usize = 4 * 1024 * 1024;
/// A failure's sentence is cut to what fits the report in any encoding.
const MESSAGE_MAX_CHARS: usize = 500;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub hostname: String,
    pub argv: Vec<String>,
    pub env: Vec<(String, String)>,
    pub working_dir: String,
    pub user: String,
    pub layers: Vec<String>,
    pub overlay: String,
    pub network: Option<Network>,
    pub volumes: Vec<Volume>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    pub mac: String,
    pub ip: [u8; 4],
    pub prefix: u32,
    pub gateway: [u8; 4],
    pub dns: Vec<[u8; 4]>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    pub serial: String,
    pub mount_path: String,
    pub readonly: bool,
}

/// How long the JSON behind the header is.
pub fn length(header: &[u8]) -> Result<usize, String> {
    if header.len() < HEADER_BYTES || &header[..8] != CONFIG_MAGIC {
        return Err("the config disk holds no config".to_string());
    }
    let length = u32::from_le_bytes([header[8], header[9], header[10], header[11]]) as usize;
    if length > CONFIG_MAX {
        return Err(format!("the config claims {length} bytes"));
    }
    Ok(length)
}

pub fn decode(text: &[u8]) -> Result<Config, String> {
    let value = json::parse(text).map_err(|error| format!("the config is not JSON: {error}"))?;
    from_json(&value).map_err(|field| format!("the config's {field}"))
}

fn from_json(value: &Json) -> Result<Config, String> {
    let mut it = Fields::of(value, "value")?;
    if it.take("version")? != &Json::Int(1) {
        return Err("version is not 1".to_string());
    }
    let config = Config {
        hostname: text(it.take("hostname")?, "hostname")?,
        argv: list(it.take("argv")?, "argv", |item| text(item, "argv"))?,
        env: env(it.take("env")?)?,
        working_dir: text(it.take("working_dir")?, "working_dir")?,
        user: text(it.take("user")?, "user")?,
        layers: list(it.take("layers")?, "layers", |item| text(item, "layers"))?,
        overlay: text(it.take("overlay")?, "overlay")?,
        network: match it.take("network")? {
            Json::Null => None,
            value => Some(network(value)?),
        },
        volumes: list(it.take("volumes")?, "volumes", volume)?,
    };
    it.end()?;
    Ok(config)
}

fn network(value: &Json) -> Result<Network, String> {
    let mut it = Fields::of(value, "network")?;
    let network = Network {
        mac: text(it.take("mac")?, "mac")?,
        ip: ipv4(it.take("ip")?)?,
        prefix: match it.take("prefix")? {
            Json::Int(prefix @ 1..=32) => *prefix as u32,
            _ => return Err("prefix is not 1 to 32".to_string()),
        },
        gateway: ipv4(it.take("gateway")?)?,
        dns: list(it.take("dns")?, "dns", ipv4)?,
    };
    it.end()?;
    Ok(network)
}

fn volume(value: &Json) -> Result<Volume, String> {
    let mut it = Fields::of(value, "volumes")?;
    let volume = Volume {
        serial: text(it.take("serial")?, "serial")?,
        mount_path: text(it.take("mount_path")?, "mount_path")?,
        readonly: match it.take("readonly")? {
            Json::Bool(readonly) => *readonly,
            _ => return Err("readonly is neither true nor false".to_string()),
        },
    };
    it.end()?;
    Ok(volume)
}

fn env(value: &Json) -> Result<Vec<(String, String)>, String> {
    match value {
        Json::Object(members) => members.iter().map(|(name, value)| Ok((name.clone(), text(value, "env")?))).collect(),
        _ => Err("env is no object".to_string()),
    }
}

fn text(value: &Json, field: &str) -> Result<String, String> {
    value.as_text().map(str::to_string).ok_or_else(|| format!("{field} is no string"))
}

fn list<A>(value: &Json, field: &str, item: impl Fn(&Json) -> Result<A, String>) -> Result<Vec<A>, String> {
    match value {
        Json::List(items) => items.iter().map(item).collect(),
        _ => Err(format!("{field} is no list")),
    }
}

fn ipv4(value: &Json) -> Result<[u8; 4], String> {
    let address = value.as_text().and_then(|text| text.parse::<std::net::Ipv4Addr>().ok());
    address.map(|it| it.octets()).ok_or_else(|| format!("{value} is no IPv4 address"))
}

/// The members of one object: each asked for once, none left over.
struct Fields<'a> {
    of: &'a Json,
    taken: usize,
    name: &'a str,
}

impl<'a> Fields<'a> {
    fn of(value: &'a Json, name: &'a str) -> Result<Fields<'a>, String> {
        match value {
            Json::Object(_) => Ok(Fields { of: value, taken: 0, name }),
            _ => Err(format!("{name} is no object")),
        }
    }

    fn take(&mut self, field: &str) -> Result<&'a Json, String> {
        self.taken += 1;
        self.of.get(field).ok_or_else(|| format!("{field} is missing"))
    }

    fn end(self) -> Result<(), String> {
        match self.of {
            Json::Object(members) if members.len() == self.taken => Ok(()),
            _ => Err(format!("{} has a field that this init does not know", self.name)),
        }
    }
}

/// How the guest ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    Exited(i32),
    Signaled(i32),
    Stopped,
    Failed(String),
}

impl Report {
    /// The whole report area: magic, length, JSON, zeros.
    pub fn encode(&self) -> Vec<u8> {
        let kind = |kind: &str| ("kind", Json::text(kind));
        let json = match self {
            Report::Exited(code) => Json::object(&[kind("exited"), ("code", Json::Int((*code).into()))]),
            Report::Signaled(signal) => Json::object(&[kind("signaled"), ("signal", Json::Int((*signal).into()))]),
            Report::Stopped => Json::object(&[kind("stopped")]),
            Report::Failed(message) => {
                let message: String = message.chars().take(MESSAGE_MAX_CHARS).collect();
                Json::object(&[kind("failed"), ("message", Json::Text(message))])
            }
        };
        let json = json.to_string().into_bytes();
        let mut area = REPORT_MAGIC.to_vec();
        area.extend_from_slice(&(json.len() as u32).to_le_bytes());
        area.extend_from_slice(&json);
        area.resize(REPORT_BYTES, 0);
        area
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    const WHOLE: &str = r#"{"version":1,"hostname":"h","argv":["/bin/x","a b"],"env":{"A":"1","B":""},
        "working_dir":"/w","user":"1:2","layers":["l0","l1"],"overlay":"ov",
        "network":{"mac":"52:54:00:00:00:01","ip":"10.0.0.2","prefix":24,"gateway":"10.0.0.1","dns":["1.1.1.1"]},
        "volumes":[{"serial":"v","mount_path":"/data","readonly":true}]}"#;

    #[test]
    fn a_whole_config() {
        let config = decode(WHOLE.as_bytes()).unwrap();
        assert_eq!(config.argv, ["/bin/x", "a b"]);
        assert_eq!(config.env, [("A".to_string(), "1".to_string()), ("B".to_string(), String::new())]);
        let network = config.network.unwrap();
        assert_eq!((network.ip, network.prefix, network.dns), ([10, 0, 0, 2], 24, vec![[1, 1, 1, 1]]));
        assert_eq!(config.volumes[0], Volume { serial: "v".into(), mount_path: "/data".into(), readonly: true });
    }

    #[test]
    fn wishes_that_it_cannot_fulfil_are_refused() {
        for (from, to) in [
            ("\"version\":1", "\"version\":2"),
            ("\"hostname\":\"h\",", ""),
            ("\"user\":\"1:2\"", "\"user\":null"),
            ("\"prefix\":24", "\"prefix\":33"),
            ("10.0.0.2", "10.0.0.256"),
            ("\"readonly\":true", "\"readonly\":1"),
            ("\"readonly\":true", "\"readonly\":true,\"x\":1"),
            ("\"overlay\":\"ov\"", "\"overlay\":\"ov\",\"new\":1"),
        ] {
            assert!(WHOLE.contains(from));
            let refused = decode(WHOLE.replacen(from, to, 1).as_bytes());
            assert!(refused.is_err(), "{to}: {refused:?}");
        }
    }

    #[test]
    fn a_hostile_header_claims_nothing() {
        let mut header = CONFIG_MAGIC.to_vec();
        header.extend_from_slice(&[0xff; 4]);
        assert!(length(&header).is_err());
        assert!(length(b"CHDCONF2\0\0\0\0").is_err());
        assert!(length(b"CHD").is_err());
        assert_eq!(length(b"CHDCONF1\x02\x01\0\0"), Ok(258));
    }

    #[test]
    fn reports_fit_their_area() {
        for seed in 0..200 {
            let text: String = (0..seed).map(|i| Random::new(i).text()).collect();
            let area = Report::Failed(text + &"\u{1}😀".repeat(1_000)).encode();
            assert_eq!(area.len(), REPORT_BYTES);
            let length = u32::from_le_bytes([area[8], area[9], area[10], area[11]]) as usize;
            let json = json::parse(&area[12..12 + length]).unwrap();
            assert_eq!(json.get("kind"), Some(&Json::text("failed")));
        }
        assert!(Report::Exited(7).encode().starts_with(b"CHDREPT1\x1a\0\0\0{\"kind\":\"exited\",\"code\":7}\0"));
    }
}
