//! One stream of a session, and the worker behind it.
//!
//! ```text
//!   starting ──refused──────────────────────────────► gone (the stream never was)
//!      └─done─► running ──the worker ends──► draining ──all is sent──► end, last frame, gone
//!                  └─cancel, timeout, session over: SIGHUP, SIGKILL ──► the same, without its output
//! ```

use std::fs::File;
use std::os::unix::io::{AsRawFd, RawFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::credit::{Incoming, Outgoing, Overrun};
use crate::frame::{self, KIND_DATA, KIND_STDERR};
use crate::pipes::{Got, Input, Output};
use crate::proc::Proc;
use crate::protocol::{self, Refusal, Steer};
use crate::session;
use crate::sys::{self, Ended, Window};
use crate::worker::{Said, Status};

/// From SIGHUP to SIGKILL, and between one SIGKILL and the next.
const CANCEL_GRACE: Duration = Duration::from_secs(1);
/// For an archive to tidy up, on a slow disk too.
const ARCHIVE_GRACE: Duration = Duration::from_secs(10);
/// Payload of one frame: the size of a turn.
pub const TURN_BYTES: usize = 16 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    Exec,
    Archive,
}

/// The descriptor that has something to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Input,
    Stdout,
    Stderr,
    Terminal,
    Status,
}

/// Who asks for a stream.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    pub link: u64,
    pub request: i64,
    pub stream: u32,
}

/// What a stream is made of: our ends of the worker's standard streams.
#[derive(Default)]
pub struct Ends {
    pub input: Option<Rc<File>>,
    pub stdout: Option<Rc<File>>,
    pub stderr: Option<Rc<File>>,
    pub terminal: Option<Rc<File>>,
}

pub struct Stream {
    pub id: u32,
    /// None once the session is over: nobody hears of it any more.
    pub link: Option<u64>,
    pub pid: i32,
    work: Work,
    proc: Rc<Proc>,
    /// The request that started it, until that is answered.
    request: Option<i64>,
    status: Status,
    terminal: Option<Rc<File>>,
    input: Input,
    outputs: [Output; 2],
    /// Whose turn it is, of both outputs.
    next_output: usize,
    incoming: Incoming,
    outgoing: Outgoing,
    ended: Option<Ended>,
    timeout: Option<Instant>,
    timed_out: bool,
    /// Cancelled, and when to kill (again).
    kill_at: Option<Instant>,
    over: bool,
}

impl Stream {
    pub fn new(asked: Asked, work: Work, ends: Ends, worker: (i32, Status), proc: Rc<Proc>) -> Stream {
        let is_terminal = ends.terminal.is_some();
        Stream {
            id: asked.stream,
            link: Some(asked.link),
            pid: worker.0,
            work,
            proc,
            request: Some(asked.request),
            status: worker.1,
            terminal: ends.terminal,
            input: Input::new(ends.input, is_terminal),
            outputs: [Output::new(ends.stdout), Output::new(ends.stderr)],
            next_output: 0,
            incoming: Incoming::new(),
            outgoing: Outgoing::new(),
            ended: None,
            timeout: None,
            timed_out: false,
            kill_at: None,
            over: false,
        }
    }

    pub fn set_timeout(&mut self, timeout: Option<Duration>) {
        self.timeout = timeout.and_then(|it| Instant::now().checked_add(it));
    }

    /// In the order of the roles. A terminal is one descriptor for all.
    pub fn descriptors(&self) -> [Option<RawFd>; 5] {
        let pipe = |fd: Option<RawFd>| fd.filter(|_| self.terminal.is_none());
        [
            pipe(self.input.fd()),
            pipe(self.outputs[0].fd()),
            pipe(self.outputs[1].fd()),
            self.terminal.as_ref().map(|it| it.as_raw_fd()),
            self.status.fd(),
        ]
    }

    pub fn has_ended(&self) -> bool {
        self.ended.is_some()
    }

    pub fn is_over(&self) -> bool {
        self.over || (self.link.is_none() && self.ended.is_some())
    }

    /// The kernel says that this descriptor may go on.
    pub fn wake(&mut self, role: Role, out: Option<&mut Vec<u8>>) {
        match role {
            Role::Input => self.input.writable = true,
            Role::Stdout => self.outputs[0].readable = true,
            Role::Stderr => self.outputs[1].readable = true,
            Role::Terminal => {
                self.input.writable = true;
                self.outputs[0].readable = true;
            }
            Role::Status => {
                self.status.read();
            }
        }
        if let Some(out) = out {
            self.answer(out);
            self.feed(out);
        }
    }

    /// Answers the request that started the stream, once it is known how that went.
    fn answer(&mut self, out: &mut Vec<u8>) {
        let request = match self.request {
            Some(request) => request,
            None => return,
        };
        let refusal = match (self.work, self.status.said(), self.status.is_closed()) {
            (_, Said::Refused(refusal), true) => Some(refusal),
            (Work::Exec, Said::Nothing, true) | (Work::Archive, Said::Started | Said::Done(_), _) => None,
            (_, _, true) => Some(Refusal::new("its worker died")),
            _ => return,
        };
        self.request = None;
        match refusal {
            None => protocol::done(request, &[], out),
            Some(refusal) => {
                protocol::refused(request, &refusal, out);
                self.link = None;
            }
        }
    }

    fn feed(&mut self, out: &mut Vec<u8>) {
        let taken = self.input.feed();
        if let Some(bytes) = self.incoming.take(taken) {
            protocol::credit(self.id, bytes, out);
        }
    }

    /// The host's bytes.
    pub fn take(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), &'static str> {
        if self.input.is_ending() {
            return Err("data behind the end of a stream");
        }
        self.incoming.accept(bytes.len()).map_err(|Overrun| "more data than there was credit for")?;
        self.input.push(bytes);
        self.feed(out);
        Ok(())
    }

    pub fn take_end(&mut self, out: &mut Vec<u8>) {
        self.input.end();
        self.feed(out);
    }

    pub fn take_credit(&mut self, payload: &[u8]) -> Result<(), &'static str> {
        match payload {
            [a, b, c, d] => self.outgoing.grant(u32::from_le_bytes([*a, *b, *c, *d])),
            _ => return Err("credit that is no number"),
        }
        Ok(())
    }

    pub fn steer(&mut self, steer: Steer) {
        match steer {
            Steer::Cancel => self.cancel(),
            Steer::Resize(window) => self.resize(window),
            Steer::Signal(signal) => self.signal(signal),
        }
    }

    fn resize(&mut self, window: Window) {
        if let Some(terminal) = &self.terminal {
            let _ = sys::resize_terminal(terminal, window);
        }
    }

    /// Until it is reaped, the pid and the group of that number are the command's.
    fn signal(&mut self, signal: i32) {
        if self.ended.is_some() || self.work == Work::Archive {
            return;
        }
        let typed = [sys::SIGINT, sys::SIGQUIT, sys::SIGTSTP].contains(&signal);
        let foreground = self.terminal.as_ref().filter(|_| typed).and_then(|it| sys::foreground(it));
        match (self.request, foreground) {
            // Its group may not be there yet.
            (Some(_), _) => sys::kill(self.pid, signal),
            (None, Some(group)) => sys::kill(-group, signal),
            (None, None) => sys::kill(-self.pid, signal),
        };
    }

    /// An archive ends by itself, and tidies up, when its other end is closed.
    pub fn cancel(&mut self) {
        if self.kill_at.is_some() {
            return;
        }
        let grace = if self.work == Work::Archive { ARCHIVE_GRACE } else { CANCEL_GRACE };
        self.kill_at = Some(Instant::now() + grace);
        self.input.close();
        self.outputs.iter_mut().for_each(Output::close);
        if self.ended.is_none() && self.work == Work::Exec {
            session::signal(&self.proc, self.pid, sys::SIGHUP);
            session::signal(&self.proc, self.pid, sys::SIGCONT);
        }
    }

    pub fn detach(&mut self) {
        self.link = None;
        self.cancel();
    }

    /// When there is something to do without anybody saying so.
    pub fn deadline(&self) -> Option<Instant> {
        let pending = self.ended.is_none();
        self.timeout.into_iter().chain(self.kill_at).min().filter(|_| pending)
    }

    pub fn kill_overdue(&mut self, now: Instant) {
        if self.ended.is_some() {
            return;
        }
        if self.timeout.map_or(false, |it| it <= now) {
            self.timeout = None;
            self.timed_out = true;
            session::signal(&self.proc, self.pid, sys::SIGKILL);
        }
        if self.kill_at.map_or(false, |it| it <= now) {
            self.kill_at = Some(now + CANCEL_GRACE);
            session::signal(&self.proc, self.pid, sys::SIGKILL);
        }
    }

    /// Before the worker is reaped, while its session is known by its pid.
    pub fn before_reaping(&mut self) {
        if self.kill_at.is_some() || self.timed_out {
            session::signal(&self.proc, self.pid, sys::SIGKILL);
        }
    }

    pub fn worker_ended(&mut self, how: Ended) {
        self.ended = Some(how);
        self.status.read();
        let terminal = self.terminal.is_some();
        self.outputs.iter_mut().for_each(|it| it.limit(terminal));
    }

    /// One frame, where there is one to send. False where there is not.
    pub fn turn(&mut self, buffer: &mut [u8; TURN_BYTES], out: &mut Vec<u8>) -> bool {
        self.answer(out);
        if self.request.is_some() || self.link.is_none() || self.over {
            return false;
        }
        for _ in 0..self.outputs.len() {
            let which = self.next_output;
            self.next_output = (which + 1) % self.outputs.len();
            if self.send_output(which, buffer, out) {
                return true;
            }
        }
        match self.ended {
            Some(how) if self.outputs.iter().all(Output::is_over) => {
                self.send_last(how, out);
                self.over = true;
                true
            }
            _ => false,
        }
    }

    fn send_output(&mut self, which: usize, buffer: &mut [u8; TURN_BYTES], out: &mut Vec<u8>) -> bool {
        // Without credit it may still turn out that there is nothing to send.
        let want = TURN_BYTES.min(self.outgoing.left());
        match self.outputs[which].read(&mut buffer[..want]) {
            Got::Nothing => false,
            Got::Bytes(count) => {
                self.outgoing.use_up(count);
                frame::encode([KIND_DATA, KIND_STDERR][which], self.id, &buffer[..count], out);
                true
            }
        }
    }

    fn send_last(&self, how: Ended, out: &mut Vec<u8>) {
        protocol::end(self.id, out);
        match (self.work, self.status.said()) {
            (Work::Exec, _) => protocol::exit(self.id, how, self.timed_out, out),
            (Work::Archive, _) if self.kill_at.is_some() => {
                protocol::ended(self.id, Some(&Refusal::new("cancelled")), out);
            }
            (Work::Archive, Said::Done(_)) => protocol::ended(self.id, None, out),
            (Work::Archive, Said::Refused(why)) => protocol::ended(self.id, Some(&why), out),
            (Work::Archive, _) => protocol::ended(self.id, Some(&Refusal::new("its worker died")), out),
        }
    }
}
