//! One byte stream to the host: a virtio-serial port, which stays open while hosts come and go, or a vsock connection.
//! Nothing here ever waits.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::io::{AsRawFd, RawFd};
use std::path::Path;

use crate::frame::{Decoder, Frame};
use crate::sys;

pub const PORT_NAME: &str = "agent.0";
pub const VSOCK_PORT: u32 = 1024;
const READ_BYTES: usize = 16 * 1024;
/// Reads in one turn; the rest waits until the other links and the children had theirs.
const READS_PER_TURN: usize = 8;
/// A host that asks and does not listen is not read from until it has taken its answers.
const OUT_MAX: usize = 256 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Port,
    Connection,
}

/// How a turn left the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Nothing more to do until the kernel says so.
    Idle,
    /// There may be more to read at once.
    More,
    /// The host has left; what came before is to be answered first. A port waits for the next one.
    Left,
}

pub struct Link {
    file: File,
    kind: Kind,
    decoder: Decoder,
    pub out: Vec<u8>,
    /// So much of `out` is written already.
    written: usize,
    /// The session's nonce, once there was a hello.
    pub session: Option<String>,
}

impl Link {
    pub fn new(file: File, kind: Kind) -> Link {
        Link { file, kind, decoder: Decoder::default(), out: Vec::new(), written: 0, session: None }
    }

    pub fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Everything about the host that was there is forgotten; the next one begins with a hello.
    pub fn reset(&mut self) {
        self.decoder = Decoder::default();
        self.forget_unsent();
        self.session = None;
    }

    pub fn forget_unsent(&mut self) {
        self.out.clear();
        self.written = 0;
    }

    /// Bytes that the host has not taken yet.
    pub fn unsent(&self) -> usize {
        self.out.len() - self.written
    }

    /// Reads frames, as many as one turn allows. What there is to say goes to `out`, and from there with `flush`.
    pub fn read(&mut self, frames: &mut Vec<Frame>) -> Turn {
        let mut buffer = [0; READ_BYTES];
        for _ in 0..READS_PER_TURN {
            if self.unsent() > OUT_MAX {
                return Turn::Idle;
            }
            match (&self.file).read(&mut buffer) {
                Ok(0) => return Turn::Left,
                Ok(count) => frames.extend(self.decoder.push(&buffer[..count])),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Turn::Idle,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Turn::Left,
            }
        }
        Turn::More
    }

    pub fn is_port(&self) -> bool {
        self.kind == Kind::Port
    }

    pub fn flush(&mut self) {
        while self.unsent() > 0 {
            match (&self.file).write(&self.out[self.written..]) {
                Ok(count) if count > 0 => self.written += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                _ => break,
            }
        }
        // Moved to the front rarely, so that a slow host does not cost a copy for each of its reads.
        if self.unsent() == 0 || self.written > OUT_MAX {
            self.out.drain(..self.written);
            self.written = 0;
        }
    }
}

/// The links that there are, by the token under which init's epoll knows them.
#[derive(Default)]
pub struct Links(Vec<(u64, Link)>);

impl Links {
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn add(&mut self, token: u64, link: Link) {
        self.0.push((token, link));
    }

    pub fn get(&mut self, token: u64) -> Option<&mut Link> {
        self.0.iter_mut().find(|(it, _)| *it == token).map(|(_, link)| link)
    }

    pub fn remove(&mut self, token: u64) {
        self.0.retain(|(it, _)| *it != token);
    }
}

/// The port of the agent's name, where there is one (QEMU).
pub fn open_port() -> Option<File> {
    let ports = fs::read_dir("/sys/class/virtio-ports").ok()?;
    let mut names = ports.flatten().map(|it| it.file_name()).filter(|port| {
        let name = fs::read_to_string(Path::new("/sys/class/virtio-ports").join(port).join("name"));
        name.map_or(false, |it| it.trim_end() == PORT_NAME)
    });
    let device = Path::new("/dev").join(names.next()?);
    OpenOptions::new().read(true).write(true).custom_flags(sys::O_NONBLOCK).open(device).ok()
}
