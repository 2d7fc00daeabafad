//! What is mounted, and who holds it, as far as proc(5) shows it to this process.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::sys;

/// So many of the processes that hold a mount are named.
const HOLDERS_MAX: usize = 32;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// As stat(2) gives it.
    pub device: u64,
    pub point: String,
    pub readonly: bool,
}

/// In the order in which they were mounted.
pub fn mounts() -> Vec<Mount> {
    fs::read_to_string("/proc/self/mountinfo").map_or_else(|_| Vec::new(), |it| parse(&it))
}

/// Lines such as `36 35 253:16 / /data rw,relatime shared:1 - ext4 /dev/vdb rw`.
fn parse(mountinfo: &str) -> Vec<Mount> {
    let mount = |line: &str| {
        let fields: Vec<&str> = line.split(' ').collect();
        match fields[..] {
            [_, _, device, _, point, options, ..] => Some(Mount {
                device: number(device)?,
                point: unescape(point),
                readonly: options.split(',').any(|it| it == "ro"),
            }),
            _ => None,
        }
    };
    mountinfo.lines().filter_map(mount).collect()
}

/// `major:minor` in decimal.
pub fn number(text: &str) -> Option<u64> {
    let (major, minor) = text.trim_end().split_once(':')?;
    Some(sys::device_number(major.parse().ok()?, minor.parse().ok()?))
}

/// Spaces and the like are written as three octal digits behind a backslash.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, behind)) = rest.split_first() {
        let octal =
            behind.get(..3).and_then(|it| std::str::from_utf8(it).ok()).and_then(|it| u8::from_str_radix(it, 8).ok());
        match octal.filter(|_| first == b'\\') {
            Some(byte) => {
                bytes.push(byte);
                rest = &behind[3..];
            }
            None => {
                bytes.push(first);
                rest = behind;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Processes that have something open on the device, are in it, execute from it, or see it mounted in a mount namespace of
/// their own: pid and name.
pub fn holders(device: u64) -> Vec<(i32, String)> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|it| it.file_name().to_str()?.parse::<i32>().ok());
    let own = std::process::id() as i32;
    let holding = pids.filter(|pid| *pid != own && holds(Path::new(&format!("/proc/{pid}")), device));
    holding.take(HOLDERS_MAX).map(|pid| (pid, name(pid))).collect()
}

fn name(pid: i32) -> String {
    fs::read(format!("/proc/{pid}/comm"))
        .map_or_else(|_| String::new(), |it| String::from_utf8_lossy(&it).trim_end().to_string())
}

fn holds(process: &Path, device: u64) -> bool {
    // These links lead to the open file itself: nothing is opened, and nothing waits.
    let is_on = |path: &Path| fs::metadata(path).map_or(false, |it| it.dev() == device);
    let open = || fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    ["cwd", "root", "exe"].iter().any(|it| is_on(&process.join(it)))
        || open().any(|it| is_on(&it.path()))
        || maps(process, device)
        || sees(process, device)
}

/// Lines such as `7f00-7f01 r-xp 00000000 fe:10 12 /data/lib.so`, numbers in hexadecimal digits.
fn maps(process: &Path, device: u64) -> bool {
    let maps = fs::read_to_string(process.join("maps")).unwrap_or_default();
    let mapped = |line: &str| {
        let (major, minor) = line.split_whitespace().nth(3)?.split_once(':')?;
        Some(sys::device_number(u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?))
    };
    maps.lines().any(|line| mapped(line) == Some(device))
}

fn sees(process: &Path, device: u64) -> bool {
    let namespace = |process: &Path| fs::read_link(process.join("ns/mnt")).ok();
    let other = namespace(process).map_or(false, |it| Some(it) != namespace(Path::new("/proc/self")));
    let seen = || fs::read_to_string(process.join("mountinfo")).unwrap_or_default();
    other && parse(&seen()).iter().any(|it| it.device == device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo() {
        let text = "36 35 253:16 / /data rw,relatime shared:1 - ext4 /dev/vdb rw\n\
                    37 35 253:32 /sub /a\\040b\\134c ro,nosuid - ext4 /dev/vdc rw\n\
                    broken\n1 2 x:y / / rw - a b c\n";
        let mount = |minor, point: &str, readonly| Mount {
            device: sys::device_number(253, minor),
            point: point.into(),
            readonly,
        };
        assert_eq!(parse(text), [mount(16, "/data", false), mount(32, "/a b\\c", true)]);
        assert_eq!(unescape("\\04"), "\\04");
        assert_eq!(unescape("\\999"), "\\999");
    }

    #[test]
    fn this_process_holds_its_root_for_others_to_see() {
        let device = fs::metadata("/proc/self/exe").unwrap().dev();
        assert!(holds(Path::new("/proc/self"), device));
        assert!(!holds(Path::new("/proc/self"), u64::MAX));
    }
}
