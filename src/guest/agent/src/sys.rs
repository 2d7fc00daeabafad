//! The system calls that std does not have, each behind a safe function: the one module with `unsafe` in it.
//!
//! Every `unsafe` block below passes pointers to values that live across the call (C strings, arrays, zeroed structs that
//! the kernel defines as plain data) and checks the result. File descriptors are owned or borrowed by type.

mod child;
mod disk;
mod place;

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::mem;
use std::os::raw::{c_char, c_int, c_short, c_ulong};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::io::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::ptr;
use std::time::Duration;

pub use place::{
    clear_mode_mask, create_file_at, device_parts, file_system, link_at, make_directory_at, make_link_at, make_node_at,
    open_inside, own, own_at, read_link, remove_at, rename_at, stamp, stamp_at, Names, EXT4_SUPER_MAGIC, O_PATH,
    RESOLVE_BENEATH, RESOLVE_IN_ROOT, RESOLVE_NO_XDEV,
};

use crate::user::Identity;

/// linux/random.h: _IOW('R', 3, int[2]) and _IO('R', 7).
const RNDADDENTROPY: c_ulong = 0x4008_5203;
const RNDRESEEDCRNG: c_ulong = 0x5207;
/// Most bytes that one call credits: the size of struct rand_pool_info's buffer below.
pub const ENTROPY_MAX: usize = 256;

pub use child::{
    become_user, end_of_file, ended_child, foreground, fork, kill, make_nonblocking, open_terminal, pipe,
    readable_bytes, reap, resize_terminal, Ended, Waiting, Window,
};
pub use disk::{device_number, grow_ext4, sync_file_system, unmount};
pub use libc::VMADDR_CID_HOST;
pub use libc::{
    EPOLLET, EPOLLIN, EPOLLOUT, MNT_DETACH, MS_MOVE, MS_NOATIME, MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_RDONLY, MS_REMOUNT,
    O_DIRECTORY, O_EXCL, O_NOCTTY, O_NOFOLLOW, O_NONBLOCK, O_RDONLY, SIGCHLD, SIGCONT, SIGHUP, SIGINT, SIGKILL, SIGPWR,
    SIGQUIT, SIGTERM, SIGTSTP, SIGUSR1, SIGUSR2,
};

fn check(result: c_int) -> Result<c_int> {
    if result < 0 {
        Err(Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn c_string(text: &OsStr) -> Result<CString> {
    CString::new(text.as_bytes()).map_err(|_| Error::from(ErrorKind::InvalidInput))
}

fn owned(fd: c_int) -> Result<OwnedFd> {
    let fd = check(fd)?;
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// mount(2).
pub fn mount(source: &str, target: &Path, kind: &str, flags: c_ulong, data: &str) -> Result<()> {
    let source = c_string(OsStr::new(source))?;
    let target = c_string(target.as_os_str())?;
    let kind = c_string(OsStr::new(kind))?;
    let data = c_string(OsStr::new(data))?;
    let result = unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, data.as_ptr().cast()) };
    check(result).map(drop)
}

/// finit_module(2) without parameters.
pub fn load_module(module: &File) -> Result<()> {
    let result = unsafe { libc::syscall(libc::SYS_finit_module, module.as_raw_fd(), b"\0".as_ptr(), 0) };
    check(result as c_int).map(drop)
}

pub fn chroot(path: &Path) -> Result<()> {
    let path = c_string(path.as_os_str())?;
    check(unsafe { libc::chroot(path.as_ptr()) }).map(drop)
}

pub fn change_directory(to: &File) -> Result<()> {
    check(unsafe { libc::fchdir(to.as_raw_fd()) }).map(drop)
}

pub fn set_hostname(name: &str) -> Result<()> {
    check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }).map(drop)
}

/// chown(2) of what a symbolic link points at.
pub fn change_owner(path: &Path, uid: u32, gid: u32) -> Result<()> {
    let path = c_string(path.as_os_str())?;
    check(unsafe { libc::chown(path.as_ptr(), uid, gid) }).map(drop)
}

/// Soft and hard limit of open files (RLIMIT_NOFILE), inherited by what this process starts.
pub fn limit_open_files(count: u64) -> Result<()> {
    let limit = libc::rlimit { rlim_cur: count, rlim_max: count };
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }).map(drop)
}

/// Bytes pass a terminal unchanged on their way out, and nothing that comes in is echoed (termios(3)).
pub fn make_plain(terminal: &File) -> Result<()> {
    unsafe {
        let mut modes: libc::termios = mem::zeroed();
        check(libc::tcgetattr(terminal.as_raw_fd(), &mut modes))?;
        modes.c_oflag &= !libc::OPOST;
        modes.c_lflag &= !(libc::ECHO | libc::ECHONL);
        check(libc::tcsetattr(terminal.as_raw_fd(), libc::TCSANOW, &modes)).map(drop)
    }
}

/// Blocks the signals and gives a descriptor that reads them (signalfd(2), non-blocking).
pub fn signal_fd(signals: &[c_int]) -> Result<File> {
    unsafe {
        let mut set: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&mut set);
        for &signal in signals {
            libc::sigaddset(&mut set, signal);
        }
        check(libc::sigprocmask(libc::SIG_BLOCK, &set, ptr::null_mut()))?;
        owned(libc::signalfd(-1, &set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC)).map(File::from)
    }
}

/// Size of one record that a signal descriptor gives; its first four bytes are the signal's number.
pub const SIGNAL_RECORD: usize = mem::size_of::<libc::signalfd_siginfo>();

pub struct Epoll(OwnedFd);

impl Epoll {
    pub fn new() -> Result<Epoll> {
        owned(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) }).map(Epoll)
    }

    pub fn add(&self, fd: RawFd, token: u64, events: c_int) -> Result<()> {
        let mut event = libc::epoll_event { events: events as u32, u64: token };
        check(unsafe { libc::epoll_ctl(self.0.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &mut event) }).map(drop)
    }

    /// Tokens of the descriptors that have something to say; none after the timeout. A closed descriptor leaves by itself.
    pub fn wait(&self, timeout: Option<Duration>) -> Result<Vec<u64>> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 16];
        let timeout = timeout.map_or(-1, milliseconds);
        let count =
            unsafe { libc::epoll_wait(self.0.as_raw_fd(), events.as_mut_ptr(), events.len() as c_int, timeout) };
        match check(count) {
            Ok(count) => Ok(events[..count as usize].iter().map(|it| it.u64).collect()),
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}

/// Rounded up, so that a wait that ended is a deadline that passed.
fn milliseconds(duration: Duration) -> c_int {
    c_int::try_from(duration.as_millis() + 1).unwrap_or(c_int::MAX)
}

/// Whether the descriptor can be read within the time.
pub fn wait_readable(file: &File, timeout: Duration) -> Result<bool> {
    let mut poll = libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    match check(unsafe { libc::poll(&mut poll, 1, milliseconds(timeout)) }) {
        Ok(count) => Ok(count > 0),
        Err(error) if error.kind() == ErrorKind::Interrupted => Ok(false),
        Err(error) => Err(error),
    }
}

/// The kernel's announcements of devices (netlink(7), NETLINK_KOBJECT_UEVENT).
pub fn uevents() -> Result<File> {
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    unsafe {
        let socket = owned(libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_KOBJECT_UEVENT))?;
        let mut address: libc::sockaddr_nl = mem::zeroed();
        address.nl_family = libc::AF_NETLINK as u16;
        address.nl_groups = 1;
        bind(&socket, &address)?;
        Ok(File::from(socket))
    }
}

fn bind<A>(socket: &OwnedFd, address: &A) -> Result<()> {
    let size = mem::size_of::<A>() as libc::socklen_t;
    check(unsafe { libc::bind(socket.as_raw_fd(), (address as *const A).cast(), size) }).map(drop)
}

/// Listens on a vsock port (vsock(7)); accepts without waiting.
pub fn listen_vsock(port: u32, backlog: c_int) -> Result<OwnedFd> {
    unsafe {
        let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        let socket = owned(libc::socket(libc::AF_VSOCK, kind, 0))?;
        let mut address: libc::sockaddr_vm = mem::zeroed();
        address.svm_family = libc::AF_VSOCK as u16;
        address.svm_port = port;
        address.svm_cid = libc::VMADDR_CID_ANY;
        bind(&socket, &address)?;
        check(libc::listen(socket.as_raw_fd(), backlog))?;
        Ok(socket)
    }
}

/// A connection, and the context id that it comes from.
pub fn accept_vsock(listener: &OwnedFd) -> Result<(File, u32)> {
    unsafe {
        let mut address: libc::sockaddr_vm = mem::zeroed();
        let mut size = mem::size_of::<libc::sockaddr_vm>() as libc::socklen_t;
        let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        let to: *mut libc::sockaddr_vm = &mut address;
        let connection = owned(libc::accept4(listener.as_raw_fd(), to.cast(), &mut size, flags))?;
        Ok((File::from(connection), address.svm_cid))
    }
}

/// A socket on which netdevice(7) requests are made.
pub fn network_control() -> Result<OwnedFd> {
    owned(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })
}

fn interface_request(name: &str) -> Result<libc::ifreq> {
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(Error::from(ErrorKind::InvalidInput));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as c_char;
    }
    Ok(request)
}

fn address_of(ip: [u8; 4]) -> libc::sockaddr {
    unsafe {
        let mut address: libc::sockaddr_in = mem::zeroed();
        address.sin_family = libc::AF_INET as u16;
        address.sin_addr.s_addr = u32::from_ne_bytes(ip);
        mem::transmute(address)
    }
}

pub fn set_interface_address(control: &OwnedFd, name: &str, ip: [u8; 4], mask: [u8; 4]) -> Result<()> {
    let mut request = interface_request(name)?;
    for (operation, address) in [(libc::SIOCSIFADDR, ip), (libc::SIOCSIFNETMASK, mask)] {
        request.ifr_ifru.ifru_addr = address_of(address);
        check(unsafe { libc::ioctl(control.as_raw_fd(), operation as _, &request) })?;
    }
    Ok(())
}

pub fn set_interface_up(control: &OwnedFd, name: &str) -> Result<()> {
    let mut request = interface_request(name)?;
    unsafe {
        check(libc::ioctl(control.as_raw_fd(), libc::SIOCGIFFLAGS as _, &mut request))?;
        request.ifr_ifru.ifru_flags |= libc::IFF_UP as c_short;
        check(libc::ioctl(control.as_raw_fd(), libc::SIOCSIFFLAGS as _, &request)).map(drop)
    }
}

/// The default route, over a gateway that an interface reaches.
pub fn add_default_route(control: &OwnedFd, gateway: [u8; 4]) -> Result<()> {
    unsafe {
        let mut route: libc::rtentry = mem::zeroed();
        route.rt_dst = address_of([0; 4]);
        route.rt_genmask = address_of([0; 4]);
        route.rt_gateway = address_of(gateway);
        route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
        check(libc::ioctl(control.as_raw_fd(), libc::SIOCADDRT as _, &route)).map(drop)
    }
}

/// Sets the wall clock, in nanoseconds since the epoch.
pub fn set_clock(epoch_ns: i64) -> Result<()> {
    let time =
        libc::timespec { tv_sec: epoch_ns.div_euclid(1_000_000_000), tv_nsec: epoch_ns.rem_euclid(1_000_000_000) };
    check(unsafe { libc::clock_settime(libc::CLOCK_REALTIME, &time) }).map(drop)
}

/// Credits the bytes as entropy and makes the kernel's generator use them now (random(4)).
pub fn reseed(random: &File, entropy: &[u8]) -> Result<()> {
    #[repr(C)]
    struct PoolInfo {
        entropy_count: c_int,
        size: c_int,
        bytes: [u8; ENTROPY_MAX],
    }
    let used = entropy.len().min(ENTROPY_MAX);
    let mut info = PoolInfo { entropy_count: used as c_int * 8, size: used as c_int, bytes: [0; ENTROPY_MAX] };
    info.bytes[..used].copy_from_slice(&entropy[..used]);
    unsafe {
        check(libc::ioctl(random.as_raw_fd(), RNDADDENTROPY as _, &info))?;
        check(libc::ioctl(random.as_raw_fd(), RNDRESEEDCRNG as _)).map(drop)
    }
}

/// Writes all file systems back, and returns when that is done.
pub fn sync() {
    unsafe { libc::sync() };
}

/// Powers the machine off. Returns only where the kernel refuses.
pub fn power_off() {
    unsafe { libc::reboot(libc::RB_POWER_OFF) };
}

/// Makes the command start in a session of its own, as the given user, in the given directory, with no signal blocked.
pub fn enter(command: &mut Command, identity: &Identity, directory: &Path) -> Result<()> {
    let directory = c_string(directory.as_os_str())?;
    let Identity { uid, gid, groups, .. } = identity.clone();
    let start = move || -> Result<()> {
        unsafe {
            let mut none: libc::sigset_t = mem::zeroed();
            libc::sigemptyset(&mut none);
            check(libc::sigprocmask(libc::SIG_SETMASK, &none, ptr::null_mut()))?;
            check(libc::setsid())?;
            check(libc::chdir(directory.as_ptr()))?;
            check(libc::setgroups(groups.len(), groups.as_ptr()))?;
            check(libc::setgid(gid))?;
            check(libc::setuid(uid)).map(drop)
        }
    };
    unsafe { command.pre_exec(start) };
    Ok(())
}
