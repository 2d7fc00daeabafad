//! Paths that the host names, resolved inside the image's root: no link leads out of it, not one of /proc's either, and
//! nothing is opened that could wait.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind, Result};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path};

use crate::sys;

/// What a directory gets that nobody described.
const DIRECTORY_MODE: u32 = 0o755;

pub fn root() -> Result<File> {
    OpenOptions::new().read(true).custom_flags(sys::O_DIRECTORY).open("/")
}

/// What is at an absolute path, links followed: a directory, a regular file, or something else, for reading.
pub fn open(root: &File, path: &str) -> Result<File> {
    let flags = sys::O_RDONLY | sys::O_NONBLOCK | sys::O_NOCTTY;
    sys::open_inside(root, OsStr::new(path), flags, sys::RESOLVE_IN_ROOT)
}

/// The directory at an absolute path, made where it is missing, as `mkdir -p` does.
pub fn make_directory(root: &File, path: &str) -> Result<File> {
    let mut done = Path::new("/").to_path_buf();
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => {
                let parent = open_directory(root, &done)?;
                done.push(name);
                match sys::make_directory_at(&parent, name, DIRECTORY_MODE) {
                    // Whatever it is, opening tells.
                    Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                        // A read-only file system says so although the directory is there.
                        open_directory(root, &done).map_err(|_| error)?;
                    }
                    _ => {}
                }
            }
            Component::ParentDir => return Err(Error::new(ErrorKind::InvalidInput, "a path with ..")),
            _ => {}
        }
    }
    open_directory(root, &done)
}

fn open_directory(root: &File, path: &Path) -> Result<File> {
    sys::open_inside(root, path.as_os_str(), sys::O_RDONLY | sys::O_DIRECTORY, sys::RESOLVE_IN_ROOT)
}
