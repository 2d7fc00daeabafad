//! Files relative to an open directory.

use std::ffi::{CStr, OsStr, OsString};
use std::fs::File;
use std::io::{Error, Result};
use std::mem;
use std::os::raw::{c_int, c_long};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::io::{AsRawFd, IntoRawFd};
use std::ptr;

use super::{c_string, check, owned};

pub use libc::{EXT4_SUPER_MAGIC, O_PATH, RESOLVE_BENEATH, RESOLVE_IN_ROOT, RESOLVE_NO_XDEV};

/// PATH_MAX: more than a link can hold.
const LINK_MAX: usize = 4096;

/// openat2(2), since Linux 5.6: `how` says what a path may do that leads out of the directory. Links of /proc never count.
pub fn open_inside(directory: &File, path: &OsStr, flags: c_int, how: u64) -> Result<File> {
    open_with(directory, path, flags, how, 0)
}

/// A new file, for writing, that nobody else can open yet.
pub fn create_file_at(directory: &File, name: &OsStr) -> Result<File> {
    open_with(directory, name, libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL, RESOLVE_BENEATH, 0o600)
}

fn open_with(directory: &File, path: &OsStr, flags: c_int, how: u64, mode: u64) -> Result<File> {
    let path = c_string(path)?;
    unsafe {
        let mut open: libc::open_how = mem::zeroed();
        open.flags = (flags | libc::O_CLOEXEC) as u64;
        open.mode = mode;
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

/// `mode` with its type: a FIFO or a device.
pub fn make_node_at(directory: &File, name: &OsStr, mode: u32, (major, minor): (u32, u32)) -> Result<()> {
    let name = c_string(name)?;
    let device = libc::makedev(major, minor);
    check(unsafe { libc::mknodat(directory.as_raw_fd(), name.as_ptr(), mode, device) }).map(drop)
}

pub fn make_link_at(directory: &File, name: &OsStr, to: &OsStr) -> Result<()> {
    let (name, to) = (c_string(name)?, c_string(to)?);
    check(unsafe { libc::symlinkat(to.as_ptr(), directory.as_raw_fd(), name.as_ptr()) }).map(drop)
}

/// Another name of a file; of a symbolic link itself where it is one.
pub fn link_at((from, old): (&File, &OsStr), (to, new): (&File, &OsStr)) -> Result<()> {
    let (old, new) = (c_string(old)?, c_string(new)?);
    check(unsafe { libc::linkat(from.as_raw_fd(), old.as_ptr(), to.as_raw_fd(), new.as_ptr(), 0) }).map(drop)
}

/// In one directory; what had the new name is gone.
pub fn rename_at(directory: &File, old: &OsStr, new: &OsStr) -> Result<()> {
    let (old, new) = (c_string(old)?, c_string(new)?);
    let fd = directory.as_raw_fd();
    check(unsafe { libc::renameat(fd, old.as_ptr(), fd, new.as_ptr()) }).map(drop)
}

/// Anything but a directory.
pub fn remove_at(directory: &File, name: &OsStr) -> Result<()> {
    let name = c_string(name)?;
    check(unsafe { libc::unlinkat(directory.as_raw_fd(), name.as_ptr(), 0) }).map(drop)
}

/// Of an open file, whatever it is.
pub fn own(file: &File, uid: u32, gid: u32) -> Result<()> {
    check(unsafe { libc::fchown(file.as_raw_fd(), uid, gid) }).map(drop)
}

/// Of a name, a link itself where it is one.
pub fn own_at(directory: &File, name: &OsStr, uid: u32, gid: u32) -> Result<()> {
    let name = c_string(name)?;
    let flags = libc::AT_SYMLINK_NOFOLLOW;
    check(unsafe { libc::fchownat(directory.as_raw_fd(), name.as_ptr(), uid, gid, flags) }).map(drop)
}

fn times(mtime: i64) -> [libc::timespec; 2] {
    [libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT }, libc::timespec { tv_sec: mtime, tv_nsec: 0 }]
}

/// Sets the time of the last change, in seconds.
pub fn stamp(file: &File, mtime: i64) -> Result<()> {
    check(unsafe { libc::futimens(file.as_raw_fd(), times(mtime).as_ptr()) }).map(drop)
}

/// Of a name, a link itself where it is one.
pub fn stamp_at(directory: &File, name: &OsStr, mtime: i64) -> Result<()> {
    let name = c_string(name)?;
    let flags = libc::AT_SYMLINK_NOFOLLOW;
    check(unsafe { libc::utimensat(directory.as_raw_fd(), name.as_ptr(), times(mtime).as_ptr(), flags) }).map(drop)
}

/// What a symbolic link says that was opened as itself (O_PATH and O_NOFOLLOW).
pub fn read_link(link: &File) -> Result<OsString> {
    let mut buffer = vec![0_u8; LINK_MAX];
    let empty = b"\0".as_ptr().cast();
    let count = unsafe { libc::readlinkat(link.as_raw_fd(), empty, buffer.as_mut_ptr().cast(), buffer.len()) };
    buffer.truncate(usize::try_from(count).map_err(|_| Error::last_os_error())?);
    Ok(OsString::from_vec(buffer))
}

/// The kind of file system that a file is on, as statfs(2) numbers them.
pub fn file_system(file: &File) -> Result<i64> {
    unsafe {
        let mut info: libc::statfs = mem::zeroed();
        check(libc::fstatfs(file.as_raw_fd(), &mut info))?;
        Ok(info.f_type)
    }
}

pub fn device_parts(device: u64) -> (u32, u32) {
    (libc::major(device), libc::minor(device))
}

/// New files get the mode that they are made with.
pub fn clear_mode_mask() {
    unsafe { libc::umask(0) };
}

/// The names in a directory, one by one, however many there are.
pub struct Names(ptr::NonNull<libc::DIR>);

impl Names {
    pub fn of(directory: &File) -> Result<Names> {
        let own = directory.try_clone()?.into_raw_fd();
        let stream = ptr::NonNull::new(unsafe { libc::fdopendir(own) });
        stream.map(Names).ok_or_else(|| {
            let error = Error::last_os_error();
            unsafe { libc::close(own) };
            error
        })
    }
}

impl Iterator for Names {
    type Item = Result<OsString>;

    fn next(&mut self) -> Option<Result<OsString>> {
        loop {
            let name = unsafe {
                *libc::__errno_location() = 0;
                let entry = libc::readdir64(self.0.as_ptr());
                if entry.is_null() {
                    let error = Error::last_os_error();
                    return (error.raw_os_error() != Some(0)).then_some(Err(error));
                }
                CStr::from_ptr((*entry).d_name.as_ptr()).to_bytes()
            };
            if name != b"." && name != b".." {
                return Some(Ok(OsStr::from_bytes(name).to_os_string()));
            }
        }
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        unsafe { libc::closedir(self.0.as_ptr()) };
    }
}
