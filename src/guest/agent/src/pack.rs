//! A tar archive of what is at a path in the image: files, directories, links, FIFOs and devices with their owners, modes
//! and times of change. Sockets are left out, extended attributes too.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use crate::place;
use crate::protocol::Refusal;
use crate::sys::{self, Names};
use crate::tar::{self, Kind, Member, BLOCK};

/// Directories inside each other, each of which is open meanwhile.
const DEPTH_MAX: usize = 1024;
/// Files with several names that are remembered; what comes then is packed once for each name.
const LINKED_MAX: usize = 65_536;
const COPY_BYTES: usize = 64 * 1024;
/// The kernel's own files claim a size that says nothing; they are read whole before their header.
const VIRTUAL_CLAIM: u64 = 4096;
const VIRTUAL_MAX: u64 = 1024 * 1024;

pub struct Packer<W> {
    output: W,
    /// Device and inode of files with several names, and their first.
    linked: HashMap<(u64, u64), Vec<u8>>,
}

/// What is packed: an open file or directory, and the name that it gets.
pub struct Top {
    file: File,
    name: Vec<u8>,
}

impl Top {
    pub fn open(root: &File, path: &str) -> Result<Top, Refusal> {
        let at = |error| Refusal::of(path, &error);
        // Looked at before it is opened: opening a device can do something.
        let place = sys::open_inside(root, OsStr::new(path), sys::O_PATH, sys::RESOLVE_IN_ROOT).map_err(at)?;
        let kind = place.metadata().map_err(at)?.file_type();
        if !kind.is_file() && !kind.is_dir() {
            return Err(Refusal::new(format!("{path} is neither a file nor a directory")));
        }
        let file = place::open(root, path).map_err(at)?;
        let name = Path::new(path).file_name().unwrap_or_else(|| OsStr::new("."));
        Ok(Top { file, name: name.as_bytes().to_vec() })
    }
}

impl<W: Write> Packer<W> {
    pub fn new(output: W) -> Packer<W> {
        Packer { output, linked: HashMap::new() }
    }

    /// The whole archive.
    pub fn pack(mut self, top: Top) -> Result<(), Refusal> {
        self.add_open(top.file, top.name, 0)?;
        self.output
            .write_all(&[0; 2 * BLOCK])
            .and_then(|()| self.output.flush())
            .map_err(|it| Refusal::of("archive", &it))
    }

    fn add_open(&mut self, file: File, name: Vec<u8>, depth: usize) -> Result<(), Refusal> {
        match file.metadata() {
            Ok(it) if it.is_dir() => self.add_directory(&file, &it, &[&name, &b"/"[..]].concat(), depth),
            Ok(it) => self.add_file(file, &it, &name).map_err(|error| failure(&name, &error)),
            Err(error) => Err(failure(&name, &error)),
        }
    }

    fn add_directory(&mut self, directory: &File, about: &Metadata, name: &[u8], depth: usize) -> Result<(), Refusal> {
        let at = |error| failure(name, &error);
        self.put(&member(about, name, Kind::Directory)).map_err(at)?;
        if depth >= DEPTH_MAX {
            return Err(Refusal::new(format!("{}: directories too deep", shown(name))));
        }
        for entry in Names::of(directory).map_err(at)? {
            let entry = entry.map_err(at)?;
            let path = [name, entry.as_bytes()].concat();
            match self.add_entry(directory, about.dev(), &entry, path, depth) {
                // It went away meanwhile, which is nobody's fault.
                Err(refusal) if refusal.code.as_deref() == Some("ENOENT") => {}
                result => result?,
            }
        }
        Ok(())
    }

    fn add_entry(
        &mut self,
        directory: &File,
        device: u64,
        entry: &OsString,
        path: Vec<u8>,
        depth: usize,
    ) -> Result<(), Refusal> {
        let at = |error| failure(&path, &error);
        let open =
            |flags| sys::open_inside(directory, entry, flags | sys::O_NOFOLLOW, sys::RESOLVE_BENEATH).map_err(at);
        let place = open(sys::O_PATH)?;
        let about = place.metadata().map_err(at)?;
        let kind = about.file_type();
        if kind.is_dir() {
            let inside = open(sys::O_RDONLY | sys::O_DIRECTORY)?;
            // A mount point: a volume is followed, the kernel's file systems are not.
            if about.dev() == device || sys::file_system(&inside).map_err(at)? == sys::EXT4_SUPER_MAGIC {
                return self.add_open(inside, path, depth + 1);
            }
            return self.put(&member(&about, &[&path, &b"/"[..]].concat(), Kind::Directory)).map_err(at);
        }
        if kind.is_file() {
            if let Some(first) = self.first_name(&about, &path) {
                let link = Member { link: first, ..member(&about, &path, Kind::HardLink) };
                return self.put(&link).map_err(at);
            }
            return self.add_open(open(sys::O_RDONLY | sys::O_NONBLOCK)?, path, depth);
        }
        let special = if kind.is_symlink() {
            let link = sys::read_link(&place).map_err(at)?.into_vec();
            Member { link, ..member(&about, &path, Kind::Symlink) }
        } else if kind.is_fifo() {
            member(&about, &path, Kind::Fifo)
        } else if kind.is_char_device() || kind.is_block_device() {
            let of = if kind.is_char_device() { Kind::CharacterDevice } else { Kind::BlockDevice };
            Member { device: sys::device_parts(about.rdev()), ..member(&about, &path, of) }
        } else {
            return Ok(());
        };
        self.put(&special).map_err(at)
    }

    /// The name under which this file is in the archive already.
    fn first_name(&mut self, about: &Metadata, path: &[u8]) -> Option<Vec<u8>> {
        let key = (about.dev(), about.ino());
        let known = self.linked.get(&key).cloned();
        if known.is_none() && about.nlink() > 1 && self.linked.len() < LINKED_MAX {
            self.linked.insert(key, path.to_vec());
        }
        known
    }

    fn add_file(&mut self, mut file: File, about: &Metadata, name: &[u8]) -> io::Result<()> {
        let header = member(about, name, Kind::File);
        if about.blocks() == 0 && about.len() <= VIRTUAL_CLAIM {
            let mut content = Vec::new();
            (&mut file).take(VIRTUAL_MAX).read_to_end(&mut content)?;
            self.put(&Member { size: content.len() as u64, ..header })?;
            self.output.write_all(&content)?;
            return self.pad(content.len() as u64);
        }
        self.put(&Member { size: about.len(), ..header })?;
        let mut left = about.len();
        let mut buffer = vec![0; COPY_BYTES];
        // What is appended meanwhile comes too late for the header.
        while left > 0 {
            let want = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            match file.read(&mut buffer[..want]) {
                Ok(0) => return Err(io::Error::new(ErrorKind::UnexpectedEof, "it became shorter while it was read")),
                Ok(count) => {
                    self.output.write_all(&buffer[..count])?;
                    left -= count as u64;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.pad(about.len())
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        self.output.write_all(&[0; BLOCK][..tar::padding(size) as usize])
    }

    fn put(&mut self, member: &Member) -> io::Result<()> {
        let mut header = Vec::new();
        tar::encode(member, &mut header);
        self.output.write_all(&header)
    }
}

fn member(about: &Metadata, name: &[u8], kind: Kind) -> Member {
    Member {
        name: name.to_vec(),
        kind,
        mode: about.mode() & 0o7777,
        uid: about.uid(),
        gid: about.gid(),
        size: 0,
        mtime: about.mtime(),
        link: Vec::new(),
        device: (0, 0),
    }
}

fn failure(name: &[u8], error: &io::Error) -> Refusal {
    Refusal::of(&shown(name), error)
}

fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}
