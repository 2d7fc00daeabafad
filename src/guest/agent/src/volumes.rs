//! Volumes that come, go and grow while the image's process runs. All of it may wait, so a worker does it; it shares
//! init's mount namespace and root with every process of the image that did not make its own, so all of them see it.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::config::Volume;
use crate::disks::{self, Disks};
use crate::json::Json;
use crate::mounts::{self, Mount};
use crate::place;
use crate::protocol::Refusal;
use crate::root;
use crate::sys;
use crate::worker::Figures;

/// From the host's plugging it in to the disk's appearance.
const DISK_WAIT: Duration = Duration::from_secs(20);
/// From the host's growing it to the kernel's notice, where it is known how big it is to be.
const GROWTH_WAIT: Duration = Duration::from_secs(20);
/// Where it is not: it may have grown long ago, for all that is known.
const GROWTH_WAIT_UNKNOWN: Duration = Duration::from_secs(5);
/// Somebody who looks at the mount just then holds it for a moment, and nobody says when that is over.
const RELEASE_POLL: Duration = Duration::from_millis(10);
const RELEASE_POLLS: u32 = 20;
const SECTOR: u64 = 512;

pub fn mount(volume: &Volume) -> Result<Figures, Refusal> {
    let mut disks = Disks::watch(DISK_WAIT).map_err(Refusal::new)?;
    let disk = Disk::of(&disks.find(&volume.serial).map_err(Refusal::new)?)?;
    let at = |error| Refusal::of(&volume.mount_path, &error);
    let directory = place::make_directory(&place::root().map_err(at)?, &volume.mount_path).map_err(at)?;
    let known = mounts::mounts();
    if let Some(mount) = known.iter().find(|it| it.device == disk.number) {
        // Where it is the root of its own mount, the directory is the one that is mounted.
        let here = directory.metadata().map_or(false, |it| it.dev() == disk.number);
        return match (here, mount.readonly == volume.readonly) {
            (true, true) => Ok(Vec::new()),
            (true, false) => Err(Refusal::new("it is mounted already, and not as asked")),
            (false, _) => Err(busy(&format!("it is mounted at {} already", mount.point), Vec::new())),
        };
    }
    if let Some(other) = directory.metadata().ok().and_then(|it| top(&known, &volume.mount_path, it.dev())) {
        return Err(busy(&format!("something else is mounted at {}", other.point), Vec::new()));
    }
    sys::change_directory(&directory).map_err(at)?;
    root::mount_disk(&disk.device, Path::new("."), "ext4", root::volume_flags(volume)).map_err(at)?;
    Ok(Vec::new())
}

/// The mount at exactly this path. A link on the way makes it another one, which is found by its device.
fn top<'a>(known: &'a [Mount], path: &str, device: u64) -> Option<&'a Mount> {
    known.iter().rev().find(|it| it.point == path && it.device == device)
}

/// Done too where it is not mounted any more: the image may unmount what it likes.
pub fn unmount(volume: &Volume, lazy: bool) -> Result<Figures, Refusal> {
    let device = match disks::present(&volume.serial) {
        Some(device) => device,
        None => return unmount_lost(volume),
    };
    let disk = Disk::of(&device)?;
    let mounted: Vec<Mount> = mounts::mounts().into_iter().filter(|it| it.device == disk.number).collect();
    if let Some(mount) = mounted.first() {
        let directory = place::open(&place::root().map_err(|it| Refusal::of("/", &it))?, &mount.point);
        // A failure to write back is the disk's; what unmounting finds out about it, it says.
        let _ = directory.and_then(|it| sys::sync_file_system(&it));
    }
    if lazy {
        for mount in mounted.iter().rev() {
            sys::unmount(Path::new(&mount.point), sys::MNT_DETACH).map_err(|it| Refusal::of(&mount.point, &it))?;
        }
        return Ok(Vec::new());
    }
    match &mounted[..] {
        [] => Ok(Vec::new()),
        [mount] => unmount_quiesced(mount, &disk, volume),
        [_, other, ..] => Err(busy(&format!("it is mounted at {}, too", other.point), mounts::holders(disk.number))),
    }
}

fn unmount_quiesced(mount: &Mount, disk: &Disk, volume: &Volume) -> Result<Figures, Refusal> {
    let point = Path::new(&mount.point);
    match sys::unmount(point, 0) {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => return Err(in_use(mount, disk)),
        result => result.map_err(|error| Refusal::of(&mount.point, &error))?,
    }
    if disk.is_released() {
        return Ok(Vec::new());
    }
    // Out of our sight it is still mounted: in another namespace, or detached while it was in use. It stays whole.
    let holders = mounts::holders(disk.number);
    let again = root::mount_disk(&disk.device, point, "ext4", root::volume_flags(volume));
    again.map_err(|error| Refusal::of("it is still in use, and does not mount again", &error))?;
    Err(busy("it is in use where this agent does not see it mounted", holders))
}

fn in_use(mount: &Mount, disk: &Disk) -> Refusal {
    let holders = mounts::holders(disk.number);
    let below = format!("{}/", mount.point);
    match mounts::mounts().iter().find(|it| it.point.starts_with(&below)) {
        Some(other) => busy(&format!("{} is mounted below it", other.point), holders),
        None if holders.is_empty() => busy("the kernel uses it, for a loop device or for swap", holders),
        None => busy("it is in use", holders),
    }
}

fn busy(reason: &str, holders: Vec<(i32, String)>) -> Refusal {
    Refusal { reason: reason.to_string(), code: Some("EBUSY".to_string()), holders }
}

/// The disk was pulled out from under it.
fn unmount_lost(volume: &Volume) -> Result<Figures, Refusal> {
    let path = Path::new(&volume.mount_path);
    match sys::unmount(path, sys::MNT_DETACH) {
        Err(error) if ![libc::EINVAL, libc::ENOENT].contains(&error.raw_os_error().unwrap_or(0)) => {
            Err(Refusal::of(&volume.mount_path, &error))
        }
        _ => Ok(Vec::new()),
    }
}

/// Gives the size of the disk that the file system has then.
pub fn grow(volume: &Volume, size_bytes: Option<u64>) -> Result<Figures, Refusal> {
    // Before the first look, so that no announcement is missed.
    let uevents = sys::uevents().map_err(|error| Refusal::of("device events", &error))?;
    let device = disks::present(&volume.serial).ok_or_else(|| Refusal::new("its disk is gone"))?;
    let disk = Disk::of(&device)?;
    let at = |error| Refusal::of(&volume.mount_path, &error);
    let directory = place::open(&place::root().map_err(at)?, &volume.mount_path).map_err(at)?;
    if directory.metadata().map_err(at)?.dev() != disk.number {
        return Err(Refusal::new(format!("the volume is not mounted at {}", volume.mount_path)));
    }
    let (blocks, block_bytes) = disk.file_system().map_err(at)?;
    let enough = |size: u64| size_bytes.map_or(size / block_bytes > blocks, |wanted| size >= wanted);
    let deadline = Instant::now() + if size_bytes.is_some() { GROWTH_WAIT } else { GROWTH_WAIT_UNKNOWN };
    let mut size = disk.size().map_err(at)?;
    while !enough(size) {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        let _ = sys::wait_readable(&uevents, left);
        disks::drain(&uevents);
        size = disk.size().map_err(at)?;
    }
    if size_bytes.map_or(false, |wanted| size < wanted) {
        return Err(Refusal::new(format!("its disk has {size} bytes only")));
    }
    if size / block_bytes > blocks {
        sys::grow_ext4(&directory, size / block_bytes).map_err(at)?;
    }
    Ok(vec![("size_bytes", Json::Int(size as i64))])
}

/// A disk as the kernel knows it.
struct Disk {
    device: PathBuf,
    number: u64,
}

impl Disk {
    fn of(device: &Path) -> Result<Disk, Refusal> {
        let text = fs::read_to_string(attribute(device, "dev")).map_err(|error| Refusal::of("disk", &error))?;
        let number = mounts::number(&text).ok_or_else(|| Refusal::new("a disk without a number"))?;
        Ok(Disk { device: device.to_path_buf(), number })
    }

    /// In bytes, as far as the kernel has noticed.
    fn size(&self) -> std::io::Result<u64> {
        let sectors = fs::read_to_string(attribute(&self.device, "size"))?;
        Ok(sectors.trim_end().parse::<u64>().unwrap_or(0) * SECTOR)
    }

    /// Nobody has it mounted, in whatever namespace: an exclusive opening says so.
    fn is_released(&self) -> bool {
        for _ in 0..RELEASE_POLLS {
            let flags = sys::O_EXCL | sys::O_NONBLOCK;
            match OpenOptions::new().read(true).custom_flags(flags).open(&self.device) {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => std::thread::sleep(RELEASE_POLL),
                _ => return true,
            }
        }
        false
    }

    /// Blocks, and bytes of a block, of the ext4 on it.
    fn file_system(&self) -> std::io::Result<(u64, u64)> {
        let mut superblock = [0; 1024];
        File::open(&self.device)?.read_exact_at(&mut superblock, 1024)?;
        ext4_size(&superblock).ok_or_else(|| std::io::Error::new(std::io::ErrorKind::InvalidData, "no ext4"))
    }
}

fn attribute(device: &Path, name: &str) -> PathBuf {
    Path::new("/sys/block").join(device.file_name().unwrap_or_default()).join(name)
}

/// Kernel documentation, filesystems/ext4/super.rst: s_magic, s_log_block_size, s_blocks_count_lo, and, with the feature
/// 64bit, s_blocks_count_hi.
fn ext4_size(superblock: &[u8; 1024]) -> Option<(u64, u64)> {
    let word =
        |at: usize| u32::from_le_bytes([superblock[at], superblock[at + 1], superblock[at + 2], superblock[at + 3]]);
    let (magic, log, wide) = (word(0x38) & 0xffff, word(0x18), word(0x60) & 0x80 != 0);
    let high = if wide { u64::from(word(0x150)) } else { 0 };
    (magic == 0xef53 && log <= 6).then(|| (high << 32 | u64::from(word(0x4)), 1024 << log))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn superblocks() {
        let mut block = [0; 1024];
        assert_eq!(ext4_size(&block), None);
        block[0x38..0x3a].copy_from_slice(&[0x53, 0xef]);
        block[0x18] = 2;
        block[0x4..0x8].copy_from_slice(&[1, 2, 0, 0]);
        block[0x150] = 1;
        assert_eq!(ext4_size(&block), Some((0x201, 4096)));
        block[0x60] = 0x80;
        assert_eq!(ext4_size(&block), Some((0x1_0000_0201, 4096)));
        block[0x18] = 7;
        assert_eq!(ext4_size(&block), None);
    }
}
