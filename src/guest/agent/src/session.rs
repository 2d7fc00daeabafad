//! The processes of a session (setsid(2)): all that a command started, but what made a session of its own.

use std::fs;

use crate::sys;

/// To the leader's group, and to every other process of its session. Only while the leader is not reaped.
pub fn signal(leader: i32, signal: i32) {
    // Before it has made its session there is nothing but itself.
    if !sys::kill(-leader, signal) {
        sys::kill(leader, signal);
    }
    for pid in outside_group(leader) {
        sys::kill(pid, signal);
    }
}

/// Nobody where the image has put /proc away: then its process group has to do.
fn outside_group(leader: i32) -> Vec<i32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|it| it.file_name().to_str()?.parse::<i32>().ok());
    let stat = |pid: i32| fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
    pids.filter(|pid| matches!(place(&stat(*pid)), Some((group, session)) if session == leader && group != leader))
        .collect()
}

/// Group and session: the fifth and sixth field of proc(5)'s stat. The second is a name that may hold anything, in
/// parentheses.
fn place(stat: &[u8]) -> Option<(i32, i32)> {
    let behind = stat.iter().rposition(|&b| b == b')')? + 1;
    let mut fields = std::str::from_utf8(&stat[behind..]).ok()?.split_whitespace().skip(2);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::place;

    #[test]
    fn stat_lines() {
        assert_eq!(place(b"7 (sh) S 1 7 5 0 -1"), Some((7, 5)));
        assert_eq!(place(b"7 (a) S 1 2 3 4) S 1 7 6 0 -1"), Some((7, 6)));
        assert_eq!(place(b"7 (\xff) S 1 7 5"), Some((7, 5)));
        assert_eq!(place(b""), None);
        assert_eq!(place(b"7 (sh) S 1 7"), None);
    }
}
