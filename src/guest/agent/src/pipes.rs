//! The ends of a stream inside the guest: what takes the host's bytes and what gives bytes for the host. Nothing waits:
//! each end is tried where the kernel said that it may go on, until it says that it may not.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::io::{AsRawFd, RawFd};
use std::rc::Rc;

use crate::sys;

/// Where a terminal's end-of-file character is switched off: what it is on most (^D).
const END_OF_FILE: u8 = 4;

/// Written bytes are let go of in such pieces, where the worker never takes all that there is.
const COMPACT: usize = 64 * 1024;

/// Standard input of a worker.
pub struct Input {
    /// None once it is closed: what comes then is taken and forgotten.
    file: Option<Rc<File>>,
    terminal: bool,
    /// Bounded by the credit that the host has.
    held: Vec<u8>,
    /// So much of `held` is written already.
    written: usize,
    ending: bool,
    pub writable: bool,
}

impl Input {
    pub fn new(file: Option<Rc<File>>, terminal: bool) -> Input {
        Input { file, terminal, held: Vec::new(), written: 0, ending: false, writable: true }
    }

    pub fn fd(&self) -> Option<RawFd> {
        self.file.as_ref().map(|it| it.as_raw_fd())
    }

    pub fn push(&mut self, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
    }

    pub fn end(&mut self) {
        self.ending = true;
    }

    pub fn is_ending(&self) -> bool {
        self.ending
    }

    pub fn close(&mut self) {
        self.file = None;
    }

    /// Writes what can be written. Gives how many bytes are held no longer.
    pub fn feed(&mut self) -> usize {
        let before = self.held.len() - self.written;
        while self.written < self.held.len() {
            match self.write(self.written) {
                Some(count) => self.written += count,
                None => break,
            }
        }
        let left = self.held.len() - self.written;
        if left == 0 {
            self.held.clear();
            self.written = 0;
            self.finish();
        }
        // What is written is let go of before it is as much as may be held.
        if self.written >= COMPACT {
            self.held.drain(..self.written);
            self.written = 0;
        }
        before - left
    }

    fn write(&mut self, from: usize) -> Option<usize> {
        loop {
            let rest = &self.held[from..];
            let file = match &self.file {
                None => return Some(rest.len()),
                Some(_) if !self.writable => return None,
                Some(file) => file,
            };
            match (&**file).write(rest) {
                Ok(count) if count > 0 => return Some(count),
                Ok(_) => self.writable = false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.writable = false,
                // Nobody reads any more.
                Err(_) => self.file = None,
            }
        }
    }

    fn finish(&mut self) {
        if let (true, Some(file)) = (self.ending, &self.file) {
            if !self.terminal {
                self.file = None;
            } else if self.writable {
                let character = sys::end_of_file(file).unwrap_or(END_OF_FILE);
                match (&**file).write(&[character]) {
                    Err(error) if error.kind() == ErrorKind::WouldBlock => self.writable = false,
                    _ => self.file = None,
                }
            }
        }
    }
}

/// Standard output or error of a worker.
pub struct Output {
    file: Option<Rc<File>>,
    pub readable: bool,
    /// Set once the worker has ended: what it left behind may have the other end open for ever.
    left: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Got {
    Bytes(usize),
    /// None now, or none at all any more.
    Nothing,
}

/// What a terminal can hold; it does not say how much it does.
const TERMINAL_HOLDS: usize = 128 * 1024;

impl Output {
    pub fn new(file: Option<Rc<File>>) -> Output {
        Output { file, readable: true, left: None }
    }

    pub fn fd(&self) -> Option<RawFd> {
        self.file.as_ref().map(|it| it.as_raw_fd())
    }

    pub fn is_over(&self) -> bool {
        self.file.is_none()
    }

    pub fn close(&mut self) {
        self.file = None;
    }

    /// From now on there comes no more than is there.
    pub fn limit(&mut self, terminal: bool) {
        let there =
            self.file.as_ref().map_or(0, |file| if terminal { TERMINAL_HOLDS } else { sys::readable_bytes(file) });
        self.left = Some(there);
        self.readable = true;
    }

    pub fn read(&mut self, buffer: &mut [u8]) -> Got {
        let want = buffer.len().min(self.left.unwrap_or(usize::MAX));
        if want == 0 && self.left == Some(0) {
            self.file = None;
        }
        while let (Some(file), true, true) = (&self.file, self.readable, want > 0) {
            match (&**file).read(&mut buffer[..want]) {
                Ok(0) => self.file = None,
                Ok(count) => {
                    self.left = self.left.map(|left| left - count);
                    return Got::Bytes(count);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.readable = false;
                    if self.left.is_some() {
                        self.file = None;
                    }
                }
                Err(_) => self.file = None,
            }
        }
        Got::Nothing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends() -> (File, File) {
        let (read, write) = sys::pipe().unwrap();
        sys::make_nonblocking(&read).unwrap();
        sys::make_nonblocking(&write).unwrap();
        (read, write)
    }

    #[test]
    fn input_waits_for_a_slow_reader_and_forgets_for_one_that_left() {
        let (mut read, write) = ends();
        let mut input = Input::new(Some(Rc::new(write)), false);
        input.push(&[7; 200_000]);
        input.end();
        let taken = input.feed();
        assert!(taken > 0 && taken < 200_000);
        assert_eq!(input.feed(), 0);
        let mut buffer = vec![0; 200_000];
        assert_eq!(read.read(&mut buffer).unwrap(), taken);
        input.writable = true;
        let more = input.feed();
        drop(read);
        input.writable = true;
        assert_eq!(taken + more + input.feed(), 200_000);
        input.push(b"late");
        assert_eq!(input.feed(), 4);
    }

    #[test]
    fn input_that_is_never_taken_whole_does_not_pile_up() {
        let (mut read, write) = ends();
        let mut input = Input::new(Some(Rc::new(write)), false);
        input.push(&[1; 200_000]);
        let mut buffer = vec![0; 10_000];
        for _ in 0..100 {
            input.writable = true;
            let taken = input.feed();
            input.push(&vec![1; taken]);
            let count = read.read(&mut buffer).unwrap();
            assert!(count > 0 && input.held.len() <= 200_000 + COMPACT);
        }
    }

    #[test]
    fn the_end_of_input_comes_behind_the_last_byte() {
        let (mut read, write) = ends();
        let mut input = Input::new(Some(Rc::new(write)), false);
        input.push(b"abc");
        input.end();
        assert_eq!(input.feed(), 3);
        let mut text = String::new();
        assert_eq!(read.read_to_string(&mut text).unwrap(), 3);
    }

    #[test]
    fn a_worker_that_ended_gives_what_it_wrote_although_another_holds_its_output() {
        let (read, mut write) = ends();
        let mut output = Output::new(Some(Rc::new(read)));
        write.write_all(b"before").unwrap();
        output.limit(false);
        write.write_all(b"after").unwrap();
        let mut buffer = [0; 64];
        assert_eq!(output.read(&mut buffer), Got::Bytes(6));
        assert_eq!(output.read(&mut buffer), Got::Nothing);
        assert!(output.is_over());
    }

    #[test]
    fn output_without_a_writer_is_over() {
        let (read, write) = ends();
        let mut output = Output::new(Some(Rc::new(read)));
        assert_eq!(output.read(&mut [0; 8]), Got::Nothing);
        assert!(!output.is_over());
        drop(write);
        output.readable = true;
        assert_eq!(output.read(&mut [0; 8]), Got::Nothing);
        assert!(output.is_over());
    }
}
