//! Processes, and what connects them to this one.

use std::fs::File;
use std::io::Result;
use std::mem;
use std::os::raw::{c_int, c_uint};
use std::os::unix::io::{AsRawFd, FromRawFd};
use std::ptr;

use super::{check, owned};
use crate::user::Identity;

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Exited(i32),
    Signaled(i32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// It has ended and is not reaped yet: until then its pid and its process group are nobody else's.
    Child(i32),
    /// There are children, and all of them live.
    NoneYet,
    /// No child is left: in a pid 1, no other process at all.
    NoChildren,
}

/// The next child that has ended (waitid(2)), without waiting and without reaping it.
pub fn ended_child() -> Waiting {
    let pid = unsafe {
        let mut info: libc::siginfo_t = mem::zeroed();
        let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        match libc::waitid(libc::P_ALL, 0, &mut info, flags) {
            0 => info.si_pid(),
            _ => return Waiting::NoChildren,
        }
    };
    if pid == 0 {
        Waiting::NoneYet
    } else {
        Waiting::Child(pid)
    }
}

/// waitpid(2) of a child that has ended.
pub fn reap(pid: i32) -> Option<Ended> {
    let mut status = 0;
    let reaped = unsafe { libc::waitpid(pid, &mut status, libc::WNOHANG) };
    match reaped {
        reaped if reaped != pid => None,
        _ if libc::WIFSIGNALED(status) => Some(Ended::Signaled(libc::WTERMSIG(status))),
        _ => Some(Ended::Exited(libc::WEXITSTATUS(status))),
    }
}

/// kill(2); -1 is every process but this one, another negative number a process group. False where there
/// is nobody.
pub fn kill(pid: i32, signal: c_int) -> bool {
    unsafe { libc::kill(pid, signal) == 0 }
}

/// A pipe(2): the end that is read, and the end that is written. Neither is inherited by what is executed.
pub fn pipe() -> Result<(File, File)> {
    let mut ends = [0; 2];
    check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) })?;
    Ok((File::from(owned(ends[0])?), File::from(owned(ends[1])?)))
}

/// Reads and writes of this descriptor, and of those that share its description, never wait.
pub fn make_nonblocking(file: &File) -> Result<()> {
    let flags = check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) })?;
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) }).map(drop)
}

/// Bytes that can be read at once (FIONREAD).
pub fn readable_bytes(file: &File) -> usize {
    let mut count: c_int = 0;
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::FIONREAD as _, &mut count) };
    usize::try_from(count).ok().filter(|_| result == 0).unwrap_or(0)
}

/// Size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    pub rows: u16,
    pub cols: u16,
}

/// A pseudoterminal (pty(7)): our end, and the one that a process has as its terminal.
pub fn open_terminal(window: Window) -> Result<(File, File)> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    unsafe {
        // Non-blocking from the start: what stands at this path is the image's affair.
        let path = b"/dev/pts/ptmx\0".as_ptr().cast();
        let ours = File::from(owned(libc::open(path, flags | libc::O_NONBLOCK))?);
        let unlocked: c_int = 0;
        check(libc::ioctl(ours.as_raw_fd(), libc::TIOCSPTLCK as _, &unlocked))?;
        // By the descriptor (since Linux 4.13), so that no path leads elsewhere.
        let theirs = owned(libc::ioctl(ours.as_raw_fd(), libc::TIOCGPTPEER as _, flags))?;
        resize_terminal(&ours, window)?;
        Ok((ours, File::from(theirs)))
    }
}

/// Tells the terminal's foreground processes too (SIGWINCH).
pub fn resize_terminal(terminal: &File, window: Window) -> Result<()> {
    let size = libc::winsize { ws_row: window.rows, ws_col: window.cols, ws_xpixel: 0, ws_ypixel: 0 };
    check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ as _, &size) }).map(drop)
}

/// The process group in the foreground of a terminal, asked at our end.
pub fn foreground(terminal: &File) -> Option<i32> {
    let group = unsafe { libc::tcgetpgrp(terminal.as_raw_fd()) };
    (group > 0).then_some(group)
}

/// Forks. The child has these standard streams, `status` and no other descriptor, a session of its own, no signal
/// blocked, and, where `terminal` says so, its standard input as its controlling terminal. It runs `body` and ends.
pub fn fork(stdio: [&File; 3], status: &File, terminal: bool, body: impl FnOnce(File) -> i32) -> Result<i32> {
    let wanted = [stdio[0], stdio[1], stdio[2], status].map(|it| it.as_raw_fd());
    // This process has one thread, so the child may do anything that it could.
    let pid = check(unsafe { libc::fork() })?;
    if pid > 0 {
        return Ok(pid);
    }
    let code = match settle_in(wanted, terminal) {
        Ok(status) => body(status),
        Err(_) => i32::from(u8::MAX),
    };
    unsafe { libc::_exit(code) };
}

const STATUS: c_int = 3;

fn settle_in(wanted: [c_int; 4], terminal: bool) -> Result<File> {
    unsafe {
        // Out of the way of the numbers that they get.
        let mut high = [0; 4];
        for (to, from) in high.iter_mut().zip(wanted) {
            *to = check(libc::fcntl(from, libc::F_DUPFD, STATUS + 1))?;
        }
        for (number, from) in high.iter().enumerate() {
            check(libc::dup2(*from, number as c_int))?;
        }
        check(libc::fcntl(STATUS, libc::F_SETFD, libc::FD_CLOEXEC))?;
        close_above(STATUS);
        let mut none: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&mut none);
        check(libc::sigprocmask(libc::SIG_SETMASK, &none, ptr::null_mut()))?;
        check(libc::setsid())?;
        // How it is called among the processes that hold something.
        libc::prctl(libc::PR_SET_NAME, b"dataplane-agent\0".as_ptr());
        if terminal {
            check(libc::ioctl(0, libc::TIOCSCTTY as _, 0))?;
        }
        Ok(File::from_raw_fd(STATUS))
    }
}

/// close_range(2) since Linux 5.9; one by one before.
fn close_above(last: c_int) {
    unsafe {
        if libc::syscall(libc::SYS_close_range, (last + 1) as c_uint, c_uint::MAX, 0 as c_uint) == 0 {
            return;
        }
        let open = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
        let numbers: Vec<c_int> = open.filter_map(|it| it.file_name().to_str()?.parse().ok()).collect();
        for number in numbers.into_iter().filter(|it| *it > last) {
            libc::close(number);
        }
    }
}

/// This process is that user from now on, who owns its standard streams, so that /dev/stdout can be opened again.
pub fn become_user(identity: &Identity) -> Result<()> {
    let Identity { uid, gid, groups, .. } = identity;
    unsafe {
        for stream in 0..3 {
            libc::fchown(stream, *uid, u32::MAX);
        }
        check(libc::setgroups(groups.len(), groups.as_ptr()))?;
        check(libc::setgid(*gid))?;
        check(libc::setuid(*uid)).map(drop)
    }
}

/// The terminal's end-of-file character (termios(3)), which a program may have changed or switched off.
pub fn end_of_file(terminal: &File) -> Option<u8> {
    unsafe {
        let mut modes: libc::termios = mem::zeroed();
        check(libc::tcgetattr(terminal.as_raw_fd(), &mut modes)).ok()?;
        Some(modes.c_cc[libc::VEOF]).filter(|it| *it != 0)
    }
}
