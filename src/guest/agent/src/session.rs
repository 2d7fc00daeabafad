//! The processes of a session (setsid(2)): all that a command started, but what made a session of its own.

use crate::proc::Proc;
use crate::sys;

/// To the leader's group, and to every other process of its session. Only while the leader is not reaped.
pub fn signal(proc: &Proc, leader: i32, signal: i32) {
    // Before it has made its session there is nothing but itself.
    if !sys::kill(-leader, signal) {
        sys::kill(leader, signal);
    }
    for pid in outside_group(proc, leader) {
        sys::kill(pid, signal);
    }
}

fn outside_group(proc: &Proc, leader: i32) -> Vec<i32> {
    let is_member = |pid: &i32| {
        let place = place(&proc.read(&format!("{pid}/stat")));
        place.map_or(false, |(group, session)| session == leader && group != leader)
    };
    proc.pids().into_iter().filter(is_member).collect()
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
