//! Files relative to an open directory.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Result;
use std::mem;
use std::os::raw::{c_int, c_long};
use std::os::unix::io::AsRawFd;

use super::{c_string, check, owned};

pub use libc::{RESOLVE_BENEATH, RESOLVE_IN_ROOT};

/// openat2(2), since Linux 5.6: `how` says what a path may do that leads out of the directory. Links of /proc never count.
pub fn open_inside(directory: &File, path: &OsStr, flags: c_int, how: u64) -> Result<File> {
    let path = c_string(path)?;
    unsafe {
        let mut open: libc::open_how = mem::zeroed();
        open.flags = (flags | libc::O_CLOEXEC) as u64;
        open.resolve = how | libc::RESOLVE_NO_MAGICLINKS;
        let size = mem::size_of::<libc::open_how>();
        let result: c_long = libc::syscall(libc::SYS_openat2, directory.as_raw_fd(), path.as_ptr(), &open, size);
        owned(result as c_int).map(File::from)
    }
}

pub fn make_directory_at(directory: &File, name: &OsStr, mode: u32) -> Result<()> {
    let name = c_string(name)?;
    check(unsafe { libc::mkdirat(directory.as_raw_fd(), name.as_ptr(), mode) }).map(drop)
}
