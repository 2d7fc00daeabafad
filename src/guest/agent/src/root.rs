//! The image's root: its layers under one writable overlay, with what a Linux program expects around it.
//!
//! ```text
//!   initrd:  /l/0 /l/1 ...  squashfs, read-only, bottom first
//!            /o             ext4, writable: upper, work
//!            /r             overlayfs of both, which becomes / (the initrd's mounts stay hidden below it)
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{symlink, DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::config::{Config, Network, Volume};
use crate::disks::Disks;
use crate::sys;

const MODULES: &str = "/modules";
const LAYERS: &str = "/l";
const OVERLAY: &str = "/o";
const ROOT: &str = "/r";
/// What Docker gives its containers; the kernel's own 1024 is too small for many servers.
const OPEN_FILES: u64 = 1024 * 1024;

fn context<'a>(what: &'a str) -> impl Fn(io::Error) -> String + 'a {
    move |error| format!("{what}: {error}")
}

/// The file systems that the initrd itself needs.
pub fn mount_initrd() -> Result<(), String> {
    for (kind, target) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
        make_directory(Path::new(target), 0o755).map_err(context(target))?;
        match sys::mount(kind, Path::new(target), kind, 0, "") {
            Err(error) if error.raw_os_error() != Some(libc::EBUSY) => return Err(format!("{target}: {error}")),
            _ => {}
        }
    }
    Ok(())
}

/// Memory that the VMM adds (virtio-mem, ACPI) is used at once, most of it so that it can be given back; without this the
/// kernel waits for somebody to say so. Before the drivers are loaded.
pub fn accept_memory() {
    let _ = fs::write("/sys/module/memory_hotplug/parameters/online_policy", "auto-movable");
    let _ = fs::write("/sys/devices/system/memory/auto_online_blocks", "online");
}

/// Loads the modules that the initrd lists, in that order: a file name a line, and behind it, for some, the id of the
/// virtio device without which it is not needed. One that is built in, absent, or whose device is not there is passed
/// over: what is really missing says so where it is used. Gives their memory back.
pub fn load_modules() {
    let order = fs::read_to_string(Path::new(MODULES).join("order")).unwrap_or_default();
    for line in order.lines() {
        let (name, device) = line.split_once(' ').map_or((line, None), |(name, device)| (name, Some(device)));
        let path = Path::new(MODULES).join(name);
        if device.map_or(true, has_virtio_device) {
            load_module(&path, name);
        }
        let _ = fs::remove_file(&path);
    }
}

fn load_module(path: &Path, name: &str) {
    let loaded = File::open(path).and_then(|module| sys::load_module(&module));
    let expected = [libc::EEXIST, libc::ENOENT, libc::ENODEV];
    if let Err(error) = loaded {
        if !expected.iter().any(|it| error.raw_os_error() == Some(*it)) {
            crate::say(&format!("module {name}: {error}"));
        }
    }
}

/// /sys gives the id as `0x0013`.
fn has_virtio_device(id: &str) -> bool {
    let devices = fs::read_dir("/sys/bus/virtio/devices").into_iter().flatten().flatten();
    let mut ids = devices.filter_map(|it| fs::read_to_string(it.path().join("device")).ok());
    let wanted = id.parse::<u32>().ok();
    ids.any(|it| u32::from_str_radix(it.trim_end().trim_start_matches("0x"), 16).ok() == wanted)
}

/// Puts the root together and moves into it. Gives a handle on the overlay's file system, for `settle`.
pub fn enter(config: &Config, disks: &mut Disks) -> Result<File, String> {
    for (index, serial) in config.layers.iter().enumerate() {
        let layer = PathBuf::from(format!("{LAYERS}/{index}"));
        let device = disks.find(serial)?;
        make_directories(&layer)
            .and_then(|()| mount_disk(&device, &layer, "squashfs", sys::MS_RDONLY | sys::MS_NODEV))
            .map_err(|error| format!("layer {serial}: {error}"))?;
    }
    let device = disks.find(&config.overlay)?;
    let over = Path::new(OVERLAY);
    make_directories(over)
        .and_then(|()| mount_disk(&device, over, "ext4", sys::MS_NOATIME))
        .map_err(context("overlay"))?;
    let overlay = open_directory(Path::new(OVERLAY)).map_err(context("overlay"))?;
    mount_overlay(config.layers.len()).map_err(context("root"))?;
    switch_root().map_err(context("root"))?;
    Ok(overlay)
}

/// Inode tables that mkfs left for later stay so: writing them would fill a sparse file on the host with zeros.
pub fn mount_disk(device: &Path, target: &Path, kind: &str, flags: std::os::raw::c_ulong) -> io::Result<()> {
    let options = if kind == "ext4" { "noinit_itable" } else { "" };
    sys::mount(&device.to_string_lossy(), target, kind, flags, options)
}

/// The names of the layers are relative to the working directory, so that hundreds fit the 4096 bytes of mount(2).
fn mount_overlay(layers: usize) -> io::Result<()> {
    let (upper, work) = (Path::new(OVERLAY).join("upper"), Path::new(OVERLAY).join("work"));
    if !upper.exists() {
        make_directory(&upper, 0o755)?;
        // The root directory is the overlay's own: it takes over what the image says of it.
        if let Some(top) = layers.checked_sub(1) {
            let like = fs::metadata(format!("{LAYERS}/{top}"))?;
            sys::change_owner(&upper, like.uid(), like.gid())?;
            fs::set_permissions(&upper, fs::Permissions::from_mode(like.mode() & 0o7777))?;
        }
    }
    make_directories(&work)?;
    make_directories(Path::new(ROOT))?;
    if layers == 0 {
        return sys::mount(&upper.to_string_lossy(), Path::new(ROOT), "", libc::MS_BIND, "");
    }
    std::env::set_current_dir(LAYERS)?;
    let names: Vec<String> = (0..layers).rev().map(|it| it.to_string()).collect();
    let options = format!("lowerdir={},upperdir={OVERLAY}/upper,workdir={OVERLAY}/work", names.join(":"));
    sys::mount("overlay", Path::new(ROOT), "overlay", 0, &options)
}

fn switch_root() -> io::Result<()> {
    std::env::set_current_dir(ROOT)?;
    sys::mount(".", Path::new("/"), "", sys::MS_MOVE, "")?;
    sys::chroot(Path::new("."))?;
    std::env::set_current_dir("/")
}

/// The kernel's file systems, at the places where a container runtime mounts them.
pub fn mount_kernel() -> Result<(), String> {
    let plain = sys::MS_NOSUID | sys::MS_NOEXEC | sys::MS_NODEV;
    let tables = [
        ("proc", "/proc", plain, ""),
        ("sysfs", "/sys", plain, ""),
        ("devtmpfs", "/dev", sys::MS_NOSUID, "mode=755"),
        ("devpts", "/dev/pts", sys::MS_NOSUID | sys::MS_NOEXEC, "gid=5,mode=620,ptmxmode=666"),
        ("tmpfs", "/dev/shm", sys::MS_NOSUID | sys::MS_NODEV, "mode=1777"),
    ];
    for (kind, target, flags, data) in tables {
        make_real_directory(Path::new(target)).map_err(context(target))?;
        sys::mount(kind, Path::new(target), kind, flags, data).map_err(context(target))?;
    }
    // Not every kernel has these, and nothing here needs them.
    let _ = make_real_directory(Path::new("/dev/mqueue"));
    let _ = sys::mount("mqueue", Path::new("/dev/mqueue"), "mqueue", plain, "");
    let _ = sys::mount("cgroup2", Path::new("/sys/fs/cgroup"), "cgroup2", plain, "nsdelegate");
    let links = [("fd", "/dev/fd"), ("fd/0", "/dev/stdin"), ("fd/1", "/dev/stdout"), ("fd/2", "/dev/stderr")];
    for (to, link) in links {
        let _ = symlink(Path::new("/proc/self").join(to), link);
    }
    for (path, mode) in [("/tmp", 0o1777), ("/run", 0o755), ("/etc", 0o755)] {
        if make_directory(Path::new(path), mode).is_ok() {
            let _ = fs::set_permissions(path, fs::Permissions::from_mode(mode));
        }
    }
    Ok(())
}

/// What Docker sets in its containers, and programs have come to expect.
pub fn set_limits() {
    let _ = sys::limit_open_files(OPEN_FILES);
    let _ = fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
    let _ = fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647");
}

/// Host name, and the three files that say who and where this machine is.
pub fn name_machine(config: &Config) -> Result<(), String> {
    let name = &config.hostname;
    sys::set_hostname(name).map_err(context("host name"))?;
    let own = config.network.as_ref().map_or_else(|| "127.0.1.1".to_string(), |it| dotted(&it.ip));
    let hosts = format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{own}\t{name}\n");
    put_file("/etc/hostname", &format!("{name}\n"))?;
    put_file("/etc/hosts", &hosts)?;
    match &config.network {
        Some(network) => put_file("/etc/resolv.conf", &resolv_conf(network)),
        None => Ok(()),
    }
}

fn resolv_conf(network: &Network) -> String {
    network.dns.iter().map(|it| format!("nameserver {}\n", dotted(it))).collect()
}

fn dotted(ip: &[u8; 4]) -> String {
    std::net::Ipv4Addr::from(*ip).to_string()
}

/// A plain file with this content, also where a link (to nowhere, often) or something else stands.
fn put_file(path: &str, content: &str) -> Result<(), String> {
    let plain = fs::symlink_metadata(path).map_or(false, |it| it.is_file());
    if plain && fs::read(path).map_or(false, |it| it == content.as_bytes()) {
        return Ok(());
    }
    if !plain {
        let _ = fs::remove_file(path).or_else(|_| fs::remove_dir_all(path));
    }
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(path);
    file.and_then(|mut it| it.write_all(content.as_bytes())).map_err(context(path))
}

pub fn volume_flags(volume: &Volume) -> std::os::raw::c_ulong {
    if volume.readonly {
        sys::MS_RDONLY
    } else {
        0
    }
}

pub fn mount_volume(volume: &Volume, disks: &mut Disks) -> Result<(), String> {
    let device = disks.find(&volume.serial)?;
    let at = Path::new(&volume.mount_path);
    make_directories(at)
        .and_then(|()| mount_disk(&device, at, "ext4", volume_flags(volume)))
        .map_err(|error| format!("volume {} at {}: {error}", volume.serial, volume.mount_path))
}

/// After the last process: volumes off, everything on disk, the overlay's file system read-only and thereby clean.
pub fn settle(volumes: &[Volume], overlay: Option<&File>) {
    for volume in volumes.iter().rev() {
        let path = Path::new(&volume.mount_path);
        let _ = sys::unmount(path, 0).or_else(|_| sys::unmount(path, sys::MNT_DETACH));
    }
    sys::sync();
    if let Some(overlay) = overlay {
        let flags = sys::MS_REMOUNT | sys::MS_RDONLY;
        let _ = sys::change_directory(overlay).and_then(|()| sys::mount("", Path::new("."), "", flags, ""));
    }
}

fn open_directory(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(sys::O_DIRECTORY).open(path)
}

pub fn make_directories(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(path)
}

/// An existing one is left as it is; then the result is an error of kind AlreadyExists only where it is no directory.
fn make_directory(path: &Path, mode: u32) -> io::Result<()> {
    match DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        result => result,
    }
}

/// A directory, where an image may have put a link or a file in its stead.
fn make_real_directory(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(it) if it.is_dir() => return Ok(()),
        Ok(_) => fs::remove_file(path)?,
        Err(_) => {}
    }
    make_directory(path, 0o755)
}
