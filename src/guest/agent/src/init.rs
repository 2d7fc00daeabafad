//! Pid 1 once the image's process runs: one thread, one epoll, nothing that waits. Children are reaped, the host is
//! answered, and the first of these ends the machine:
//!
//! ```text
//!   running ──process ends──────────────────────────────────────────► exited | signaled
//!      │
//!      └─host asks, power button, a signal to pid 1──► stopping ──────► stopped
//!                                       SIGTERM, grace, SIGKILL
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::io::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::config::Report;
use crate::disks;
use crate::frame::Frame;
use crate::json::Json;
use crate::link::{self, Kind, Link, Turn};
use crate::protocol::{self, Message, Verb};
use crate::sys::{self, Ended, Epoll, Reaped};

/// Where nobody says how long: the power button, or a signal from inside.
const GRACE_DEFAULT: Duration = Duration::from_secs(10);
/// vsock connections at a time. A host needs one.
const LINKS_MAX: usize = 8;
/// Syncs that run at a time, over all links.
const SYNCS_MAX: usize = 4;
/// For what the image's process left behind: SIGTERM, this long, SIGKILL, this long again.
const ORPHAN_GRACE: Duration = Duration::from_secs(2);

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
    links: Vec<(u64, Link)>,
    next_token: u64,
    /// Syncs that run: pid, link and request that wait for it.
    syncs: Vec<(i32, u64, i64)>,
    stopping: Option<Instant>,
}

impl Init {
    /// Before the image's process is started, so that no signal of it is missed.
    pub fn new(uevents: File) -> std::io::Result<Init> {
        let epoll = Epoll::new()?;
        let signals =
            sys::signal_fd(&[sys::SIGCHLD, sys::SIGTERM, sys::SIGINT, sys::SIGPWR, sys::SIGUSR1, sys::SIGUSR2])?;
        epoll.add(signals.as_raw_fd(), SIGNALS, sys::EPOLLIN)?;
        let mut init = Init {
            epoll,
            signals,
            buttons: Vec::new(),
            uevents: None,
            listener: None,
            links: Vec::new(),
            next_token: FIRST_LINK,
            syncs: Vec::new(),
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
            self.links.push((token, link));
        }
    }

    /// Until the image's process has ended. Gives how.
    pub fn run(&mut self, main: i32) -> Report {
        let mut again: Vec<u64> = Vec::new();
        loop {
            if let Some(ended) = self.reap(main) {
                return match ended {
                    _ if self.stopping.is_some() => Report::Stopped,
                    Ended::Exited(code) => Report::Exited(code),
                    Ended::Signaled(signal) => Report::Signaled(signal),
                };
            }
            let timeout = if again.is_empty() { self.kill_overdue(main) } else { Some(Duration::ZERO) };
            let mut tokens = self.epoll.wait(timeout).unwrap_or_default();
            tokens.append(&mut again);
            for token in tokens {
                match token {
                    SIGNALS => self.read_signals(main),
                    LISTENER => self.accept(),
                    BUTTON => self.read_buttons(main),
                    UEVENTS => self.look_for_port(),
                    token => {
                        if self.serve(token, main) == Turn::More {
                            again.push(token);
                        }
                    }
                }
            }
        }
    }

    /// How long until the grace is over; where it is, the process is killed, and again until it is gone.
    fn kill_overdue(&mut self, main: i32) -> Option<Duration> {
        let deadline = self.stopping?;
        let left = deadline.saturating_duration_since(Instant::now());
        if !left.is_zero() {
            return Some(left);
        }
        sys::kill(main, sys::SIGKILL);
        Some(Duration::from_secs(1))
    }

    /// Takes every ended child; gives the end of the image's process.
    fn reap(&mut self, main: i32) -> Option<Ended> {
        let mut ended = None;
        while let Reaped::Child(pid, how) = sys::reap() {
            if pid == main {
                ended = Some(how);
            } else if let Some(at) = self.syncs.iter().position(|(it, _, _)| *it == pid) {
                let (_, token, id) = self.syncs.swap_remove(at);
                self.say(token, |out| protocol::done(id, &[], out));
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

    fn serve(&mut self, token: u64, main: i32) -> Turn {
        let mut frames = Vec::new();
        let turn = match self.link(token) {
            Some(link) => {
                link.flush();
                link.read(&mut frames)
            }
            None => return Turn::Idle,
        };
        for frame in &frames {
            self.answer(token, frame, main);
        }
        if turn == Turn::Gone {
            self.links.retain(|(it, _)| *it != token);
        } else {
            self.say(token, |_| ());
        }
        turn
    }

    fn link(&mut self, token: u64) -> Option<&mut Link> {
        self.links.iter_mut().find(|(it, _)| *it == token).map(|(_, link)| link)
    }

    /// Sends what `write` adds, if the link is still there.
    fn say(&mut self, token: u64, write: impl FnOnce(&mut Vec<u8>)) {
        if let Some(link) = self.link(token) {
            write(&mut link.out);
            link.flush();
        }
    }

    fn answer(&mut self, token: u64, frame: &Frame, main: i32) {
        match protocol::parse(frame) {
            Some(Message::Hello { version, nonce }) => self.open_session(token, version, nonce),
            // Before a hello there is no session that could ask.
            Some(_) if self.link(token).map_or(true, |it| it.session.is_none()) => {}
            Some(Message::Request { id, verb }) => self.perform(token, id, verb, main),
            Some(Message::Unclear { id, reason }) => self.say(token, |out| protocol::refused(id, &reason, out)),
            None => {}
        }
    }

    /// The same nonce again is the same session: its hello may have been lost.
    fn open_session(&mut self, token: u64, version: i64, nonce: String) {
        let again = self.link(token).map_or(false, |it| it.session.as_deref() == Some(&nonce));
        if !again {
            self.syncs.iter_mut().filter(|it| it.1 == token).for_each(|it| it.1 = u64::MAX);
        }
        if let Some(link) = self.link(token) {
            if !again {
                link.out.clear();
            }
            protocol::hello(&nonce, true, &mut link.out);
            // A host of another version reads ours in the hello, and leaves.
            link.session = (version == protocol::VERSION).then_some(nonce);
        }
    }

    fn perform(&mut self, token: u64, id: i64, verb: Verb, main: i32) {
        match verb {
            Verb::Ping => self.say(token, |out| protocol::done(id, &[], out)),
            Verb::Memory => {
                let figures = memory();
                self.say(token, |out| protocol::done(id, &figures, out));
            }
            Verb::Shutdown { grace_ms } => {
                self.stop(main, Duration::from_millis(grace_ms));
                self.say(token, |out| protocol::done(id, &[], out));
            }
            Verb::Awaken { epoch_ns, entropy } => match awaken(epoch_ns, &entropy) {
                Ok(()) => self.say(token, |out| protocol::done(id, &[], out)),
                Err(error) => self.say(token, |out| protocol::refused(id, &error, out)),
            },
            Verb::Sync => self.sync(token, id),
        }
    }

    fn sync(&mut self, token: u64, id: i64) {
        if self.syncs.len() >= SYNCS_MAX {
            return self.say(token, |out| protocol::refused(id, "too many syncs at a time", out));
        }
        match sys::sync_apart() {
            Ok(pid) => self.syncs.push((pid, token, id)),
            Err(error) => self.say(token, |out| protocol::refused(id, &error.to_string(), out)),
        }
    }
}

fn awaken(epoch_ns: i64, entropy: &[u8]) -> Result<(), String> {
    sys::set_clock(epoch_ns).map_err(|error| format!("clock: {error}"))?;
    let random = OpenOptions::new().write(true).open("/dev/urandom");
    let reseeded = random.and_then(|random| sys::reseed(&random, entropy));
    reseeded.map_err(|error| format!("entropy: {error}"))
}

/// From /proc/meminfo and /proc/loadavg, as far as they can be read.
fn memory() -> Vec<(&'static str, Json)> {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|it| it.trim_end_matches("kB").trim().parse().ok()).unwrap_or(0)
    };
    vec![("total_kib", Json::Int(kib("MemTotal:"))), ("available_kib", Json::Int(kib("MemAvailable:")))]
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
        match sys::reap() {
            Reaped::Child(..) => {}
            Reaped::NoneYet => return false,
            Reaped::NoChildren => return true,
        }
    }
}
