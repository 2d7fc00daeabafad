//! Pid 1 once the image's process runs: one thread, one epoll, nothing that waits. Children are reaped, the host is
//! answered, and the first of these ends the machine:
//!
//! ```text
//!   running ──process ends──────────────────────────────────────────► exited | signaled
//!      │
//!      └─host asks, power button, a signal to pid 1──► stopping ──────► stopped
//!                                       SIGTERM, grace, SIGKILL
//! ```

mod answer;

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::io::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::config::{Config, Report, Volume};
use crate::disks;
use crate::link::{self, Kind, Link, Links, Turn};
use crate::proc::Proc;
use crate::streams::{self, Streams};
use crate::sys::{self, Ended, Epoll, Waiting};
use crate::tasks::{self, Tasks};

/// Where nobody says how long: the power button, or a signal from inside.
const GRACE_DEFAULT: Duration = Duration::from_secs(10);
/// vsock connections at a time. A host needs one.
const LINKS_MAX: usize = 8;
/// For what the image's process left behind: SIGTERM, this long, SIGKILL, this long again.
const ORPHAN_GRACE: Duration = Duration::from_secs(2);

/// Between one SIGKILL and the next.
const KILL_AGAIN: Duration = Duration::from_secs(1);
/// Rounds of sending in one turn of one link; the rest waits until the others had theirs.
const PUMPS_PER_TURN: usize = 4;

const SIGNALS: u64 = 0;
const LISTENER: u64 = 1;
const BUTTON: u64 = 2;
const UEVENTS: u64 = 3;
const FIRST_LINK: u64 = 1_000;

/// linux/input.h: struct input_event on 64 bits, EV_KEY, KEY_POWER.
const INPUT_EVENT: usize = 24;
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;

pub struct Init {
    epoll: Epoll,
    signals: File,
    buttons: Vec<File>,
    /// Until the port is there: its driver learns of it from the VMM a while after it was loaded.
    uevents: Option<File>,
    listener: Option<OwnedFd>,
    links: Links,
    next_token: u64,
    /// Links that have more to do than one turn allows.
    again: Vec<u64>,
    streams: Streams,
    tasks: Tasks,
    proc: Rc<Proc>,
    random: File,
    /// What is mounted now, in that order.
    volumes: Vec<Volume>,
    config: Config,
    stopping: Option<Instant>,
}

impl Init {
    /// Before the image's process is started, so that no signal of it is missed.
    pub fn new(uevents: File, config: &Config) -> std::io::Result<Init> {
        let epoll = Epoll::new()?;
        let signals =
            sys::signal_fd(&[sys::SIGCHLD, sys::SIGTERM, sys::SIGINT, sys::SIGPWR, sys::SIGUSR1, sys::SIGUSR2])?;
        epoll.add(signals.as_raw_fd(), SIGNALS, sys::EPOLLIN)?;
        // Opened while /dev and /proc are what this program made them.
        let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
        let random = OpenOptions::new().write(true).open("/dev/urandom")?;
        let proc = Rc::new(Proc::open()?);
        let mut init = Init {
            epoll,
            signals,
            buttons: Vec::new(),
            uevents: None,
            listener: None,
            links: Links::default(),
            next_token: FIRST_LINK,
            again: Vec::new(),
            streams: Streams::new(null.try_clone()?, proc.clone()),
            tasks: Tasks::new(null),
            proc,
            random,
            volumes: config.volumes.clone(),
            config: config.clone(),
            stopping: None,
        };
        init.open_buttons();
        init.epoll.add(uevents.as_raw_fd(), UEVENTS, sys::EPOLLIN)?;
        init.uevents = Some(uevents);
        init.look_for_port();
        // Without a vsock driver in the kernel there is no such socket.
        init.listener = sys::listen_vsock(link::VSOCK_PORT, LINKS_MAX as i32).ok();
        if let Some(listener) = &init.listener {
            init.epoll.add(listener.as_raw_fd(), LISTENER, sys::EPOLLIN)?;
        }
        Ok(init)
    }

    fn open_buttons(&mut self) {
        let inputs = fs::read_dir("/dev/input").into_iter().flatten().flatten();
        let events = inputs.filter(|it| it.file_name().to_string_lossy().starts_with("event"));
        for input in events {
            let button = OpenOptions::new().read(true).custom_flags(sys::O_NONBLOCK).open(input.path());
            if let Ok(button) = button {
                if self.epoll.add(button.as_raw_fd(), BUTTON, sys::EPOLLIN).is_ok() {
                    self.buttons.push(button);
                }
            }
        }
    }

    fn look_for_port(&mut self) {
        if let Some(uevents) = &self.uevents {
            disks::drain(uevents);
        }
        if let Some(port) = link::open_port() {
            self.add_link(Link::new(port, Kind::Port));
            self.uevents = None;
        }
    }

    /// Edge-triggered: a port without a host counts as hung up all the time, and is woken when that changes.
    fn add_link(&mut self, link: Link) {
        let token = self.next_token;
        if self.epoll.add(link.fd(), token, sys::EPOLLIN | sys::EPOLLOUT | sys::EPOLLET).is_ok() {
            self.next_token += 1;
            self.links.add(token, link);
        }
    }

    /// Until the image's process has ended. Gives how.
    pub fn run(&mut self, main: i32) -> Report {
        loop {
            if let Some(ended) = self.reap(main) {
                return match ended {
                    _ if self.stopping.is_some() => Report::Stopped,
                    Ended::Exited(code) => Report::Exited(code),
                    Ended::Signaled(signal) => Report::Signaled(signal),
                };
            }
            let timeout = if self.again.is_empty() { self.kill_overdue(main) } else { Some(Duration::ZERO) };
            let mut tokens = self.epoll.wait(timeout).unwrap_or_default();
            tokens.append(&mut self.again);
            for token in tokens {
                match token {
                    SIGNALS => self.read_signals(main),
                    LISTENER => self.accept(),
                    BUTTON => self.read_buttons(main),
                    UEVENTS => self.look_for_port(),
                    token if token >= tasks::FIRST_TOKEN => self.finish_task(token),
                    token if token >= streams::FIRST_TOKEN => self.wake_stream(token),
                    token => self.serve(token, main),
                }
            }
        }
    }

    /// What is mounted when it has run.
    pub fn into_volumes(self) -> Vec<Volume> {
        self.volumes
    }

    /// How long until there is somebody to kill. Where the grace is over, the image's process is killed, and again until
    /// it is gone.
    fn kill_overdue(&mut self, main: i32) -> Option<Duration> {
        let now = Instant::now();
        if self.stopping.map_or(false, |it| it <= now) {
            sys::kill(main, sys::SIGKILL);
            self.stopping = Some(now + KILL_AGAIN);
        }
        let next = self.streams.kill_overdue(now).into_iter().chain(self.stopping).min();
        next.map(|it| it.saturating_duration_since(now))
    }

    /// Takes every ended child; gives the end of the image's process.
    fn reap(&mut self, main: i32) -> Option<Ended> {
        let mut ended = None;
        while let Waiting::Child(pid) = sys::ended_child() {
            self.streams.before_reaping(pid);
            let how = match sys::reap(pid) {
                Some(how) => how,
                None => return ended,
            };
            if pid == main {
                ended = Some(how);
            } else if let Some(token) = self.streams.worker_ended(pid, how) {
                self.send(token);
            }
        }
        ended
    }

    fn read_signals(&mut self, main: i32) {
        let mut record = [0; sys::SIGNAL_RECORD];
        while (&self.signals).read(&mut record).map_or(false, |count| count == record.len()) {
            let signal = i32::from_ne_bytes([record[0], record[1], record[2], record[3]]);
            // Children are reaped in each turn anyway. The others are how a poweroff program asks its init.
            if signal != sys::SIGCHLD {
                self.stop(main, GRACE_DEFAULT);
            }
        }
    }

    fn read_buttons(&mut self, main: i32) {
        let mut event = [0; INPUT_EVENT];
        let mut pressed = false;
        for button in &mut self.buttons {
            while button.read(&mut event).map_or(false, |count| count == event.len()) {
                let (kind, code) =
                    (u16::from_ne_bytes([event[16], event[17]]), u16::from_ne_bytes([event[18], event[19]]));
                pressed |= kind == EV_KEY && code == KEY_POWER && event[20] == 1;
            }
        }
        if pressed {
            self.stop(main, GRACE_DEFAULT);
        }
    }

    /// Asks the image's process to end. Asked twice, the earlier deadline holds.
    fn stop(&mut self, main: i32, grace: Duration) {
        let deadline = Instant::now() + grace;
        self.stopping = Some(self.stopping.map_or(deadline, |it| it.min(deadline)));
        sys::kill(main, sys::SIGTERM);
    }

    fn accept(&mut self) {
        let connection = self.listener.as_ref().and_then(|it| sys::accept_vsock(it).ok());
        if let Some((connection, from)) = connection {
            // One that is too many, or comes from inside the guest, is closed at once.
            if self.links.len() < LINKS_MAX && from == sys::VMADDR_CID_HOST {
                self.add_link(Link::new(connection, Kind::Connection));
            }
        }
    }

    fn serve(&mut self, token: u64, main: i32) {
        let mut frames = Vec::new();
        let turn = match self.links.get(token) {
            Some(link) => {
                link.flush();
                link.read(&mut frames)
            }
            None => return,
        };
        for frame in &frames {
            self.answer(token, frame, main);
        }
        match turn {
            Turn::Idle => self.send(token),
            Turn::More => {
                self.send(token);
                self.again.push(token);
            }
            Turn::Left => {
                self.close_session(token);
                match self.links.get(token) {
                    Some(link) if link.is_port() => link.reset(),
                    _ => self.links.remove(token),
                }
            }
        }
    }

    /// Sends what `write` adds, if the link is still there.
    fn say(&mut self, token: u64, write: impl FnOnce(&mut Vec<u8>)) {
        if let Some(link) = self.links.get(token) {
            write(&mut link.out);
            link.flush();
        }
    }

    /// Sends what the streams of a link have, as much as it takes and one turn allows.
    fn send(&mut self, token: u64) {
        if let Some(link) = self.links.get(token) {
            for _ in 0..PUMPS_PER_TURN {
                let enough = self.streams.pump(token, link);
                link.flush();
                // Either all is sent, or the kernel says when the link takes more.
                if !enough || link.unsent() > 0 {
                    return;
                }
            }
            self.again.push(token);
        }
    }

    fn wake_stream(&mut self, token: u64) {
        if let Some(link) = self.streams.wake(token, &mut self.links) {
            self.send(link);
        }
    }
}

/// Ends every other process: SIGTERM, a grace, SIGKILL. In a pid 1 no child left means nobody left.
pub fn end_others() {
    for signal in [sys::SIGTERM, sys::SIGKILL] {
        if nobody_left() {
            return;
        }
        sys::kill(-1, signal);
        let deadline = Instant::now() + ORPHAN_GRACE;
        // Without a descriptor for it the wait is a poll; the machine is about to be off.
        while !nobody_left() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn nobody_left() -> bool {
    loop {
        match sys::ended_child() {
            Waiting::Child(pid) => drop(sys::reap(pid)),
            Waiting::NoneYet => return false,
            Waiting::NoChildren => return true,
        }
    }
}
