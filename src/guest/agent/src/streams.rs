//! All streams of all sessions: where they begin, whose turn it is, and where they end.
//!
//! The descriptors of a stream are edge-triggered in init's epoll, each with a token of its own. What they give goes out
//! frame by frame, one stream after the other, while the link takes it.

use std::fs::File;
use std::io;
use std::rc::Rc;
use std::time::Instant;

use crate::config::Config;
use crate::exec;
use crate::frame::{Frame, KIND_CONTROL, KIND_CREDIT, KIND_DATA, KIND_END};
use crate::link::{Link, Links};
use crate::proc::Proc;
use crate::protocol::{self, Refusal};
use crate::stream::{Asked, Ends, Role, Stream, Work, TURN_BYTES};
use crate::sys::{self, Ended, Epoll};
use crate::transfer;
use crate::verb::Exec;
use crate::worker::{self, Teller};

/// At once, in one session.
const STREAMS_MAX: usize = 64;
/// At once, with those whose session is over and whose processes are about to die.
const PROCESSES_MAX: usize = 192;
/// No more than this waits for a link to take it, so that an answer comes through soon.
const UNSENT_MAX: usize = 64 * 1024;
/// Tokens of streams are from here on.
pub const FIRST_TOKEN: u64 = 1 << 32;
const ROLES: [Role; 5] = [Role::Input, Role::Stdout, Role::Stderr, Role::Terminal, Role::Status];

pub struct Streams {
    /// By their number, which is in their tokens.
    list: Vec<(u64, Stream)>,
    next: u64,
    turn: usize,
    null: File,
    proc: Rc<Proc>,
}

impl Streams {
    pub fn new(null: File, proc: Rc<Proc>) -> Streams {
        Streams { list: Vec::new(), next: 0, turn: 0, null, proc }
    }

    fn find(&mut self, link: u64, id: u32) -> Option<&mut Stream> {
        self.list.iter_mut().map(|(_, it)| it).find(|it| it.link == Some(link) && it.id == id)
    }

    fn admit(&mut self, asked: Asked) -> Result<(), Refusal> {
        self.list.retain(|(_, it)| !it.is_over());
        let of_session = self.list.iter().filter(|(_, it)| it.link == Some(asked.link)).count();
        if self.find(asked.link, asked.stream).is_some() {
            return Err(Refusal::new(format!("stream {} is in use", asked.stream)));
        }
        if of_session >= STREAMS_MAX || self.list.len() >= PROCESSES_MAX {
            return Err(Refusal::new("too many streams at a time"));
        }
        Ok(())
    }

    /// Starts a command; the answer comes once it is known whether it runs.
    pub fn exec(&mut self, epoll: &Epoll, asked: Asked, order: &Exec, config: &Config) -> Result<(), Refusal> {
        self.admit(asked)?;
        let why = |error: io::Error| Refusal::of("exec", &error);
        let (ends, theirs) = match order.tty {
            Some(window) => {
                terminal_ends(sys::open_terminal(window).map_err(|it| Refusal::of("terminal", &it))?).map_err(why)?
            }
            None => pipe_ends().map_err(why)?,
        };
        let stdio = [&theirs[0], &theirs[1], &theirs[2]];
        let started =
            worker::start(stdio, order.tty.is_some(), |_| exec::become_command(order, config)).map_err(why)?;
        let mut stream = Stream::new(asked, Work::Exec, ends, started, self.proc.clone());
        stream.set_timeout(order.timeout);
        self.add(epoll, stream).map_err(why)
    }

    /// Starts an archive out of the image; the answer comes once its path is open.
    pub fn read_files(&mut self, epoll: &Epoll, asked: Asked, path: &str) -> Result<(), Refusal> {
        self.admit(asked)?;
        let why = |error: io::Error| Refusal::of("read", &error);
        let (ours, theirs) = sys::pipe().map_err(why)?;
        sys::make_nonblocking(&ours).map_err(why)?;
        let body = |teller: &mut Teller| transfer::read_files(path, teller);
        let started = worker::start([&self.null, &theirs, &self.null], false, body).map_err(why)?;
        let ends = Ends { stdout: Some(Rc::new(ours)), ..Ends::default() };
        self.add(epoll, Stream::new(asked, Work::Archive, ends, started, self.proc.clone())).map_err(why)
    }

    /// Starts an archive into the image; the answer comes once its path is open.
    pub fn write_files(&mut self, epoll: &Epoll, asked: Asked, path: &str) -> Result<(), Refusal> {
        self.admit(asked)?;
        let why = |error: io::Error| Refusal::of("write", &error);
        let (theirs, ours) = sys::pipe().map_err(why)?;
        sys::make_nonblocking(&ours).map_err(why)?;
        let body = |teller: &mut Teller| transfer::write_files(path, teller);
        let started = worker::start([&theirs, &self.null, &self.null], false, body).map_err(why)?;
        let ends = Ends { input: Some(Rc::new(ours)), ..Ends::default() };
        self.add(epoll, Stream::new(asked, Work::Archive, ends, started, self.proc.clone())).map_err(why)
    }

    fn add(&mut self, epoll: &Epoll, mut stream: Stream) -> io::Result<()> {
        let watched = stream.descriptors().into_iter().enumerate().try_for_each(|(role, fd)| match fd {
            Some(fd) => epoll.add(fd, token(self.next, role), sys::EPOLLIN | sys::EPOLLOUT | sys::EPOLLET),
            None => Ok(()),
        });
        if watched.is_err() {
            // It is reaped like any other, and nobody hears of it.
            stream.detach();
        }
        self.list.push((self.next, stream));
        self.next += 1;
        watched
    }

    /// A descriptor has something to say. Gives the link that has to hear of it.
    pub fn wake(&mut self, token: u64, links: &mut Links) -> Option<u64> {
        let (number, role) = parts(token);
        let (_, stream) = self.list.iter_mut().find(|(it, _)| *it == number)?;
        let link = stream.link;
        stream.wake(role, link.and_then(|it| links.get(it)).map(|it| &mut it.out));
        link
    }

    /// A frame of the host's that belongs to a stream. An error breaks the protocol.
    pub fn take(&mut self, link: u64, frame: &Frame, out: &mut Vec<u8>) -> Result<(), &'static str> {
        let stream = match self.find(link, frame.stream) {
            // It may have ended a moment ago.
            None => return Ok(()),
            Some(stream) => stream,
        };
        match frame.kind {
            KIND_DATA => stream.take(&frame.payload, out)?,
            KIND_END => stream.take_end(out),
            KIND_CREDIT => stream.take_credit(&frame.payload)?,
            KIND_CONTROL => protocol::parse_steer(&frame.payload).into_iter().for_each(|it| stream.steer(it)),
            _ => {}
        }
        Ok(())
    }

    /// The session on this link is over.
    pub fn detach(&mut self, link: u64) {
        self.list.iter_mut().filter(|(_, it)| it.link == Some(link)).for_each(|(_, it)| it.detach());
    }

    /// Lets the streams of a link take turns until all have nothing to send, or the link has enough. True for the latter.
    pub fn pump(&mut self, link: u64, output: &mut Link) -> bool {
        let mut buffer = [0; TURN_BYTES];
        let mut quiet = 0;
        while quiet < self.list.len() {
            if output.unsent() >= UNSENT_MAX {
                return true;
            }
            self.turn = (self.turn + 1) % self.list.len();
            let (_, stream) = &mut self.list[self.turn];
            let sent = stream.link == Some(link) && stream.turn(&mut buffer, &mut output.out);
            quiet = if sent { 0 } else { quiet + 1 };
        }
        self.list.retain(|(_, it)| !it.is_over());
        false
    }

    fn of_worker(&mut self, pid: i32) -> Option<&mut Stream> {
        self.list.iter_mut().map(|(_, it)| it).find(|it| it.pid == pid && !it.has_ended())
    }

    pub fn before_reaping(&mut self, pid: i32) {
        self.of_worker(pid).into_iter().for_each(|it| it.before_reaping());
    }

    /// Gives the link that has to hear of it.
    pub fn worker_ended(&mut self, pid: i32, how: Ended) -> Option<u64> {
        let stream = self.of_worker(pid)?;
        stream.worker_ended(how);
        let link = stream.link;
        self.list.retain(|(_, it)| !it.is_over());
        link
    }

    /// Kills what is overdue, and gives when there is something to kill next.
    pub fn kill_overdue(&mut self, now: Instant) -> Option<Instant> {
        self.list.iter_mut().for_each(|(_, it)| it.kill_overdue(now));
        self.list.iter().filter_map(|(_, it)| it.deadline()).min()
    }
}

fn token(number: u64, role: usize) -> u64 {
    FIRST_TOKEN + number * ROLES.len() as u64 + role as u64
}

fn parts(token: u64) -> (u64, Role) {
    let (number, role) = ((token - FIRST_TOKEN) / ROLES.len() as u64, (token - FIRST_TOKEN) % ROLES.len() as u64);
    (number, ROLES[role as usize])
}

/// Three pipes: our ends, and the worker's.
fn pipe_ends() -> io::Result<(Ends, [File; 3])> {
    let (input_read, input_write) = sys::pipe()?;
    let (output_read, output_write) = sys::pipe()?;
    let (error_read, error_write) = sys::pipe()?;
    for ours in [&input_write, &output_read, &error_read] {
        sys::make_nonblocking(ours)?;
    }
    let ends = Ends {
        input: Some(Rc::new(input_write)),
        stdout: Some(Rc::new(output_read)),
        stderr: Some(Rc::new(error_read)),
        terminal: None,
    };
    Ok((ends, [input_read, output_write, error_write]))
}

/// One terminal for everything.
fn terminal_ends((ours, theirs): (File, File)) -> io::Result<(Ends, [File; 3])> {
    let ours = Rc::new(ours);
    let ends = Ends { input: Some(ours.clone()), stdout: Some(ours.clone()), stderr: None, terminal: Some(ours) };
    Ok((ends, [theirs.try_clone()?, theirs.try_clone()?, theirs]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_one_descriptor_of_one_stream() {
        for number in [0, 1, 7, 1 << 40] {
            for (at, role) in ROLES.iter().enumerate() {
                assert_eq!(parts(token(number, at)), (number, *role));
            }
        }
    }
}
