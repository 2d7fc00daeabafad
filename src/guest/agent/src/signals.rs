//! Signals and errors by the names that signal(7) and errno(3) give them. Pure.

const SIGNALS: [(i32, &str); 31] = [
    (libc::SIGHUP, "HUP"),
    (libc::SIGINT, "INT"),
    (libc::SIGQUIT, "QUIT"),
    (libc::SIGILL, "ILL"),
    (libc::SIGTRAP, "TRAP"),
    (libc::SIGABRT, "ABRT"),
    (libc::SIGBUS, "BUS"),
    (libc::SIGFPE, "FPE"),
    (libc::SIGKILL, "KILL"),
    (libc::SIGUSR1, "USR1"),
    (libc::SIGSEGV, "SEGV"),
    (libc::SIGUSR2, "USR2"),
    (libc::SIGPIPE, "PIPE"),
    (libc::SIGALRM, "ALRM"),
    (libc::SIGTERM, "TERM"),
    (libc::SIGSTKFLT, "STKFLT"),
    (libc::SIGCHLD, "CHLD"),
    (libc::SIGCONT, "CONT"),
    (libc::SIGSTOP, "STOP"),
    (libc::SIGTSTP, "TSTP"),
    (libc::SIGTTIN, "TTIN"),
    (libc::SIGTTOU, "TTOU"),
    (libc::SIGURG, "URG"),
    (libc::SIGXCPU, "XCPU"),
    (libc::SIGXFSZ, "XFSZ"),
    (libc::SIGVTALRM, "VTALRM"),
    (libc::SIGPROF, "PROF"),
    (libc::SIGWINCH, "WINCH"),
    (libc::SIGIO, "IO"),
    (libc::SIGPWR, "PWR"),
    (libc::SIGSYS, "SYS"),
];
/// The last of the real-time signals.
const SIGNAL_MAX: i32 = 64;

const ERRORS: [(i32, &str); 18] = [
    (libc::EPERM, "EPERM"),
    (libc::ENOENT, "ENOENT"),
    (libc::EIO, "EIO"),
    (libc::ENOMEM, "ENOMEM"),
    (libc::EACCES, "EACCES"),
    (libc::EBUSY, "EBUSY"),
    (libc::EEXIST, "EEXIST"),
    (libc::EXDEV, "EXDEV"),
    (libc::ENOTDIR, "ENOTDIR"),
    (libc::EISDIR, "EISDIR"),
    (libc::EINVAL, "EINVAL"),
    (libc::EFBIG, "EFBIG"),
    (libc::ENOSPC, "ENOSPC"),
    (libc::EROFS, "EROFS"),
    (libc::ENAMETOOLONG, "ENAMETOOLONG"),
    (libc::ENOTEMPTY, "ENOTEMPTY"),
    (libc::ELOOP, "ELOOP"),
    (libc::EDQUOT, "EDQUOT"),
];

/// A name with or without SIG, or a number from 1 to 64 in digits.
pub fn number(name: &str) -> Option<i32> {
    let short = name.strip_prefix("SIG").unwrap_or(name);
    let named = SIGNALS.iter().find(|(_, it)| *it == short).map(|(number, _)| *number);
    named.or_else(|| name.parse().ok().filter(|it| (1..=SIGNAL_MAX).contains(it)))
}

/// Without SIG; digits where it has no name.
pub fn name(number: i32) -> String {
    let known = SIGNALS.iter().find(|(it, _)| *it == number);
    known.map_or_else(|| number.to_string(), |(_, name)| (*name).to_string())
}

pub fn error_name(number: i32) -> String {
    let known = ERRORS.iter().find(|(it, _)| *it == number);
    known.map_or_else(|| number.to_string(), |(_, name)| (*name).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_one() {
        for signal in 1..=SIGNAL_MAX {
            assert_eq!(number(&name(signal)), Some(signal));
        }
        assert_eq!((number("SIGTERM"), number("KILL"), number("34")), (Some(15), Some(9), Some(34)));
        for wrong in ["", "0", "65", "-9", "term", "SIG", "SIG9", "9 "] {
            assert_eq!(number(wrong), None, "{wrong}");
        }
    }
}
