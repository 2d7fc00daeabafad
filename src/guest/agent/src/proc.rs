//! proc(5), as this program opened it before the image's process could do anything to it: whatever is mounted over it or
//! in it later is not seen, and nothing here waits.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Result};

use crate::sys::{self, Names};

/// More than any of the files that are read here holds.
const READ_MAX: u64 = 64 * 1024;

pub struct Proc(File);

impl Proc {
    pub fn open() -> Result<Proc> {
        File::open("/proc").map(Proc)
    }

    /// Empty where it cannot be read.
    pub fn read(&self, path: &str) -> Vec<u8> {
        let mut content = Vec::new();
        let file = self.open_inside(path, sys::O_RDONLY | sys::O_NONBLOCK);
        let _ = file.and_then(|it| it.take(READ_MAX).read_to_end(&mut content));
        content
    }

    pub fn read_text(&self, path: &str) -> String {
        String::from_utf8_lossy(&self.read(path)).into_owned()
    }

    /// Of all processes.
    pub fn pids(&self) -> Vec<i32> {
        let names = self.open_inside(".", sys::O_RDONLY | sys::O_DIRECTORY).and_then(|it| Names::of(&it));
        names.into_iter().flatten().flatten().filter_map(|it| it.to_str()?.parse().ok()).collect()
    }

    fn open_inside(&self, path: &str, flags: i32) -> Result<File> {
        sys::open_inside(&self.0, OsStr::new(path), flags, sys::RESOLVE_BENEATH | sys::RESOLVE_NO_XDEV)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_reads() {
        let proc = Proc::open().unwrap();
        let own = std::process::id() as i32;
        assert!(proc.pids().contains(&own));
        // A second time too.
        assert!(proc.pids().contains(&own));
        assert!(proc.read_text(&format!("{own}/stat")).starts_with(&own.to_string()));
        assert!(proc.read("none").is_empty());
        assert!(proc.read("../etc/passwd").is_empty());
    }
}
