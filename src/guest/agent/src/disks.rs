//! Disks by serial, never by letter, and the config disk among them.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::config::{self, Config, Report};
use crate::sys;

/// From the kernel's handover to the last disk's appearance. All disks are there before the kernel starts, so only a slow
/// host or a missing disk makes it wait.
pub const BOOT_WAIT: Duration = Duration::from_secs(20);
pub const CONFIG_SERIAL: &str = "config";

pub struct Disks {
    uevents: File,
    deadline: Instant,
}

impl Disks {
    /// Waits so long in all. Before the drivers are loaded, so that no announcement is missed.
    pub fn watch(wait: Duration) -> Result<Disks, String> {
        let uevents = sys::uevents().map_err(|error| format!("no device events: {error}"))?;
        Ok(Disks { uevents, deadline: Instant::now() + wait })
    }

    /// The announcements, for whoever waits for other devices.
    pub fn into_uevents(self) -> File {
        self.uevents
    }

    /// The device with this serial, once the kernel has it.
    pub fn find(&mut self, serial: &str) -> Result<PathBuf, String> {
        loop {
            if let Some(device) = present(serial) {
                return Ok(device);
            }
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(format!("no disk with the serial {serial}"));
            }
            // Whatever was announced: look again.
            let _ = sys::wait_readable(&self.uevents, left);
            drain(&self.uevents);
        }
    }
}

/// Reads announcements away. What they say, /sys says better.
pub fn drain(mut uevents: &File) {
    while uevents.read(&mut [0; 4096]).is_ok() {}
}

/// The device with this serial, where the kernel has it.
pub fn present(serial: &str) -> Option<PathBuf> {
    let disks = fs::read_dir("/sys/block").ok()?;
    let mut names = disks.flatten().map(|it| it.file_name()).filter(|name| {
        let found = fs::read_to_string(Path::new("/sys/block").join(name).join("serial"));
        found.map_or(false, |it| it.trim_end() == serial)
    });
    names.next().map(|name| Path::new("/dev").join(name))
}

/// The config disk stays open: the report has its place there, whatever the image does to /dev.
pub struct ConfigDisk(File);

impl ConfigDisk {
    pub fn open(device: &Path) -> Result<ConfigDisk, String> {
        let disk = OpenOptions::new().read(true).write(true).open(device);
        disk.map(ConfigDisk).map_err(|error| format!("the config disk does not open: {error}"))
    }

    pub fn read(&mut self) -> Result<Config, String> {
        let unreadable = |error| format!("the config disk cannot be read: {error}");
        let mut header = [0; config::HEADER_BYTES];
        self.0.read_exact(&mut header).map_err(unreadable)?;
        let mut text = vec![0; config::length(&header)?];
        self.0.read_exact(&mut text).map_err(unreadable)?;
        config::decode(&text)
    }

    /// Durable when it returns.
    pub fn write(&mut self, report: &Report) -> Result<(), String> {
        let at = SeekFrom::End(-(config::REPORT_BYTES as i64));
        let written = self.0.seek(at).and_then(|_| self.0.write_all(&report.encode()));
        written.and_then(|()| self.0.sync_all()).map_err(|error| format!("the report cannot be written: {error}"))
    }
}
