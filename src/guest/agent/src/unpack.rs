//! Unpacks a tar archive into a directory of the image. Neither a name in the archive nor a link in the image leads out
//! of it: every path is resolved by the kernel beneath the directory (openat2(2)); a link on the way counts as long as it
//! stays inside. Nothing is written through a name that is there: what is not a directory is made beside it, complete,
//! and then takes its place, so that a cut archive leaves the old file, never half of a new one.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use crate::archive::Archive;
use crate::place;
use crate::protocol::Refusal;
use crate::sys;
use crate::tar::{Kind, Member};

/// What a directory gets that the archive does not describe.
const DIRECTORY_MODE: u32 = 0o755;
const COPY_BYTES: usize = 64 * 1024;
/// Bytes of names of directories whose time is set at the end, since filling them changes it; of those that come then it
/// is set at once.
const DELAYED_MAX: usize = 4 * 1024 * 1024;

pub struct Unpacker {
    directory: File,
    /// What a path may do that leads out of the directory: for / there is no outside.
    how: u64,
    /// The parent of the last member: most have the same one.
    parent: Option<(Vec<u8>, File)>,
    delayed: Vec<(Vec<u8>, i64)>,
    delayed_bytes: usize,
    temporary: OsString,
}

impl Unpacker {
    /// Makes the directory where it is missing.
    pub fn open(root: &File, path: &str) -> Result<Unpacker, Refusal> {
        let at = |error| Refusal::of(path, &error);
        let directory = place::make_directory(root, path).map_err(at)?;
        let identity = |file: &File| file.metadata().map(|it| (it.dev(), it.ino()));
        let is_root = identity(&directory).map_err(at)? == identity(root).map_err(at)?;
        let how = if is_root { sys::RESOLVE_IN_ROOT } else { sys::RESOLVE_BENEATH };
        let temporary = OsString::from(format!(".dataplane-{}", std::process::id()));
        Ok(Unpacker { directory, how, parent: None, delayed: Vec::new(), delayed_bytes: 0, temporary })
    }

    /// What was unpacked before a failure stays.
    pub fn unpack<R: Read>(mut self, input: R) -> Result<(), Refusal> {
        let mut archive = Archive::new(input);
        while let Some(member) = archive.next().map_err(Refusal::new)? {
            let (parent, name) = split(&member.name)?;
            // The directory itself is as the image has it.
            if let Some(name) = name {
                self.put(&member, &parent, &name, &mut archive).map_err(|error| refusal(&member.name, &error))?;
            }
        }
        for (path, mtime) in std::mem::take(&mut self.delayed) {
            let directory = self.open_directory(&path).map_err(|error| refusal(&path, &error))?;
            sys::stamp(&directory, mtime).map_err(|error| refusal(&path, &error))?;
        }
        archive.drain();
        Ok(())
    }

    fn put<R: Read>(&mut self, member: &Member, path: &[u8], name: &OsStr, body: &mut Archive<R>) -> io::Result<()> {
        let parent = self.parent_of(path)?;
        if member.kind == Kind::Directory {
            let path = [path, b"/", name.as_bytes()].concat();
            return self.put_directory(member, &parent, path, name);
        }
        if member.kind == Kind::Symlink {
            // It may lead elsewhere from now on.
            self.parent = None;
        }
        let made = match self.make(member, &parent, body) {
            // What an agent that was killed left behind.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                sys::remove_at(&parent, &self.temporary).and_then(|()| self.make(member, &parent, body))
            }
            made => made,
        };
        let placed = made.and_then(|()| sys::rename_at(&parent, &self.temporary, name));
        // Where both names are of one file, renaming does nothing.
        if placed.is_err() || member.kind == Kind::HardLink {
            let _ = sys::remove_at(&parent, &self.temporary);
        }
        placed
    }

    /// Under the temporary name, complete.
    fn make<R: Read>(&mut self, member: &Member, parent: &File, body: &mut Archive<R>) -> io::Result<()> {
        let name = &self.temporary.clone();
        let special = match member.kind {
            Kind::File => {
                let file = sys::create_file_at(parent, name)?;
                copy(body, &file)?;
                sys::own(&file, member.uid, member.gid)?;
                file.set_permissions(Permissions::from_mode(member.mode))?;
                return sys::stamp(&file, member.mtime);
            }
            Kind::HardLink => {
                let (path, old) =
                    split(&member.link).map_err(|it| io::Error::new(ErrorKind::InvalidData, it.reason))?;
                let old = old.ok_or_else(|| io::Error::new(ErrorKind::InvalidData, "a link to nothing"))?;
                return sys::link_at((&self.open_directory(&path)?, &old), (parent, name));
            }
            Kind::Symlink => return self.make_symlink(member, parent),
            Kind::Fifo => libc::S_IFIFO,
            Kind::CharacterDevice => libc::S_IFCHR,
            Kind::BlockDevice => libc::S_IFBLK,
            Kind::Directory => return Err(io::Error::from(ErrorKind::InvalidInput)),
        };
        sys::make_node_at(parent, name, special | member.mode, member.device)?;
        sys::own_at(parent, name, member.uid, member.gid)?;
        sys::stamp_at(parent, name, member.mtime)
    }

    /// It may say anything, since nothing follows it out.
    fn make_symlink(&self, member: &Member, parent: &File) -> io::Result<()> {
        sys::make_link_at(parent, &self.temporary, OsStr::from_bytes(&member.link))?;
        sys::own_at(parent, &self.temporary, member.uid, member.gid)?;
        sys::stamp_at(parent, &self.temporary, member.mtime)
    }

    fn put_directory(&mut self, member: &Member, parent: &File, path: Vec<u8>, name: &OsStr) -> io::Result<()> {
        if let Err(error) = sys::make_directory_at(parent, name, DIRECTORY_MODE) {
            if error.kind() != ErrorKind::AlreadyExists {
                return Err(error);
            }
            let itself = sys::open_inside(parent, name, sys::O_PATH | sys::O_NOFOLLOW, sys::RESOLVE_BENEATH)?;
            let kind = itself.metadata()?.file_type();
            // A link to a directory inside stands for it, as in images whose /bin is one, and keeps what it is.
            if kind.is_symlink() && self.open_directory(&path).is_ok() {
                return Ok(());
            }
            if !kind.is_dir() {
                self.parent = None;
                sys::remove_at(parent, name)?;
                sys::make_directory_at(parent, name, DIRECTORY_MODE)?;
            }
        }
        let flags = sys::O_RDONLY | sys::O_DIRECTORY | sys::O_NOFOLLOW;
        let directory = sys::open_inside(parent, name, flags, sys::RESOLVE_BENEATH)?;
        sys::own(&directory, member.uid, member.gid)?;
        directory.set_permissions(Permissions::from_mode(member.mode))?;
        if self.delayed_bytes + path.len() > DELAYED_MAX {
            return sys::stamp(&directory, member.mtime);
        }
        self.delayed_bytes += path.len();
        self.delayed.push((path, member.mtime));
        Ok(())
    }

    /// The directory at a path, made where it is missing.
    fn parent_of(&mut self, path: &[u8]) -> io::Result<File> {
        if let Some((known, file)) = &self.parent {
            if known == path {
                return file.try_clone();
            }
        }
        let directory = self.make_directories(path)?;
        self.parent = Some((path.to_vec(), directory.try_clone()?));
        Ok(directory)
    }

    fn make_directories(&self, path: &[u8]) -> io::Result<File> {
        match self.open_directory(path) {
            Err(error) if error.kind() == ErrorKind::NotFound && !path.is_empty() => {}
            result => return result,
        }
        let mut done = Vec::new();
        for name in path.split(|&b| b == b'/').filter(|it| !it.is_empty()) {
            let parent = self.open_directory(&done)?;
            match sys::make_directory_at(&parent, OsStr::from_bytes(name), DIRECTORY_MODE) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            done.push(b'/');
            done.extend_from_slice(name);
        }
        self.open_directory(&done)
    }

    /// Relative to the directory, links followed as far as they stay inside.
    fn open_directory(&self, path: &[u8]) -> io::Result<File> {
        let path = path.strip_prefix(b"/").unwrap_or(path);
        let path = if path.is_empty() { b"." } else { path };
        sys::open_inside(&self.directory, OsStr::from_bytes(path), sys::O_RDONLY | sys::O_DIRECTORY, self.how)
    }
}

fn copy<R: Read>(body: &mut Archive<R>, mut file: &File) -> io::Result<()> {
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        match body.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => file.write_all(&buffer[..count])?,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The parent's path, each name behind a slash, and the last name; without one it is the directory itself.
fn split(path: &[u8]) -> Result<(Vec<u8>, Option<OsString>), Refusal> {
    let mut names: Vec<&[u8]> = path.split(|&b| b == b'/').filter(|it| !it.is_empty() && *it != b".").collect();
    if names.contains(&&b".."[..]) || path.contains(&0) {
        return Err(Refusal::new(format!("{}: a name that leads out of the directory", shown(path))));
    }
    let last = names.pop().map(|it| OsString::from_vec(it.to_vec()));
    let parent = names.iter().flat_map(|name| [b"/", *name].concat()).collect();
    Ok((parent, last))
}

fn refusal(name: &[u8], error: &io::Error) -> Refusal {
    match error.raw_os_error() {
        Some(libc::EXDEV) => Refusal::of(&format!("{}: a link leads out of the directory", shown(name)), error),
        _ => Refusal::of(&shown(name), error),
    }
}

fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

#[cfg(test)]
#[path = "unpack_tests.rs"]
mod tests;
