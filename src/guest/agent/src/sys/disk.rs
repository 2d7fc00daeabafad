//! Block devices and the file systems on them.

use std::fs::File;
use std::io::Result;
use std::os::raw::{c_int, c_ulong};
use std::os::unix::io::AsRawFd;
use std::path::Path;

use super::{c_string, check};

/// linux/fs/ext4/ext4.h: _IOW('f', 16, __u64).
const EXT4_IOC_RESIZE_FS: c_ulong = 0x4008_6610;

/// umount2(2), never through a link.
pub fn unmount(target: &Path, flags: c_int) -> Result<()> {
    let target = c_string(target.as_os_str())?;
    check(unsafe { libc::umount2(target.as_ptr(), flags | libc::UMOUNT_NOFOLLOW) }).map(drop)
}

/// Writes one file system back, and returns when that is done.
pub fn sync_file_system(on: &File) -> Result<()> {
    check(unsafe { libc::syncfs(on.as_raw_fd()) }).map(drop)
}

/// Grows a mounted ext4 to so many blocks. Returns when that is done.
pub fn grow_ext4(on: &File, blocks: u64) -> Result<()> {
    check(unsafe { libc::ioctl(on.as_raw_fd(), EXT4_IOC_RESIZE_FS as _, &blocks) }).map(drop)
}

/// The number under which stat(2) knows a device.
pub fn device_number(major: u32, minor: u32) -> u64 {
    libc::makedev(major, minor)
}
