//! What init does for the host, frame by frame.

use std::fs::File;
use std::time::Duration;

use super::Init;
use crate::config::Volume;
use crate::figures;
use crate::frame::{Frame, KIND_CONTROL};
use crate::protocol::{self, Message, Refusal};
use crate::stream::Asked;
use crate::sys;
use crate::tasks::{self, About};
use crate::verb::Verb;
use crate::volumes;
use crate::worker::Figures;

impl Init {
    pub(super) fn answer(&mut self, token: u64, frame: &Frame, main: i32) {
        if frame.stream == 0 {
            if frame.kind == KIND_CONTROL {
                self.answer_control(token, &frame.payload, main);
            }
            return;
        }
        let broken = match self.links.get(token) {
            Some(link) if link.session.is_some() => self.streams.take(token, frame, &mut link.out).err(),
            _ => None,
        };
        if let Some(reason) = broken {
            self.close_session(token);
            self.say(token, |out| protocol::broken(reason, out));
        }
    }

    fn answer_control(&mut self, token: u64, payload: &[u8], main: i32) {
        match protocol::parse(payload) {
            Some(Message::Hello { version, nonce }) => self.open_session(token, version, nonce),
            // Before a hello there is no session that could ask.
            Some(_) if self.links.get(token).map_or(true, |it| it.session.is_none()) => {}
            Some(Message::Request { id, verb }) => self.perform(token, id, verb, main),
            Some(Message::Unclear { id, reason }) => self.refuse(token, id, &Refusal::new(reason)),
            None => {}
        }
    }

    /// The same nonce again is the same session: its hello may have been lost.
    fn open_session(&mut self, token: u64, version: i64, nonce: String) {
        let again = self.links.get(token).map_or(false, |it| it.session.as_deref() == Some(&nonce));
        if !again {
            self.close_session(token);
        }
        if let Some(link) = self.links.get(token) {
            if !again {
                link.forget_unsent();
            }
            // A host of another version reads ours in the hello, and leaves.
            let known = (1..=protocol::VERSION).contains(&version);
            protocol::hello(if known { version } else { protocol::VERSION }, &nonce, true, &mut link.out);
            link.session = known.then_some(nonce);
        }
    }

    /// Its commands are cancelled; what else it asked for is done, but not answered.
    pub(super) fn close_session(&mut self, token: u64) {
        self.streams.detach(token);
        self.tasks.detach(token);
        if let Some(link) = self.links.get(token) {
            link.session = None;
        }
    }

    fn refuse(&mut self, token: u64, id: i64, why: &Refusal) {
        self.say(token, |out| protocol::refused(id, why, out));
    }

    fn perform(&mut self, token: u64, id: i64, verb: Verb, main: i32) {
        let asked = |stream| Asked { link: token, request: id, stream };
        let done: Result<Option<Figures>, Refusal> = match verb {
            Verb::Ping => Ok(Some(Vec::new())),
            Verb::Memory => Ok(Some(figures::memory(&self.proc))),
            Verb::Load => Ok(Some(figures::load(&self.proc))),
            Verb::Shutdown { grace_ms } => {
                self.stop(main, Duration::from_millis(grace_ms));
                Ok(Some(Vec::new()))
            }
            Verb::Awaken { epoch_ns, entropy } => awaken(&self.random, epoch_ns, &entropy).map(|()| Some(Vec::new())),
            Verb::Exec { stream, order } => {
                self.streams.exec(&self.epoll, asked(stream), &order, &self.config).map(|()| None)
            }
            Verb::ReadFiles { stream, path } => {
                self.streams.read_files(&self.epoll, asked(stream), &path).map(|()| None)
            }
            Verb::WriteFiles { stream, path } => {
                self.streams.write_files(&self.epoll, asked(stream), &path).map(|()| None)
            }
            Verb::Sync => self.start_task((token, id), None, |_| {
                sys::sync();
                Ok(Vec::new())
            }),
            Verb::Mount(volume) => self.mount((token, id), volume),
            Verb::Unmount { path, lazy } => match self.volume_at(&path) {
                None if self.tasks.changes(&path) => Err(tasks::in_the_way()),
                None => Ok(Some(Vec::new())),
                Some(it) => self.start_task((token, id), Some(About::Unmount(path)), |_| volumes::unmount(&it, lazy)),
            },
            Verb::Grow { path, size_bytes } => match self.volume_at(&path) {
                None => Err(Refusal::new(format!("no volume is mounted at {path}"))),
                Some(it) => self.start_task((token, id), Some(About::Grow(path)), |_| volumes::grow(&it, size_bytes)),
            },
        };
        match done {
            Ok(Some(figures)) => self.say(token, |out| protocol::done(id, &figures, out)),
            // Later.
            Ok(None) => {}
            Err(why) => self.refuse(token, id, &why),
        }
    }

    fn volume_at(&self, path: &str) -> Option<Volume> {
        self.volumes.iter().find(|it| it.mount_path == path).cloned()
    }

    fn mount(&mut self, asked: (u64, i64), volume: Volume) -> Result<Option<Figures>, Refusal> {
        let same = |it: &&Volume| it.mount_path == volume.mount_path || it.serial == volume.serial;
        if let Some(other) = self.volumes.iter().find(same) {
            if other.mount_path != volume.mount_path || other.serial != volume.serial {
                return Err(Refusal::new(format!("volume {} is mounted at {}", other.serial, other.mount_path)));
            }
        }
        let it = volume.clone();
        self.start_task(asked, Some(About::Mount(volume)), |_| volumes::mount(&it))
    }

    /// A task is over: init remembers what is mounted now, and whoever asked hears of it.
    pub(super) fn finish_task(&mut self, token: u64) {
        let told = match self.tasks.wake(token) {
            Some(told) => told,
            None => return,
        };
        match (&told.about, told.outcome.is_ok()) {
            (Some(About::Mount(volume)), true) => {
                self.volumes.retain(|it| it.mount_path != volume.mount_path);
                self.volumes.push(volume.clone());
            }
            (Some(About::Unmount(path)), true) => self.volumes.retain(|it| it.mount_path != *path),
            _ => {}
        }
        told.link.into_iter().for_each(|link| self.say(link, |out| told.answer(out)));
    }

    fn start_task(
        &mut self,
        asked: (u64, i64),
        about: Option<About>,
        body: impl FnOnce(&mut crate::worker::Teller) -> Result<Figures, Refusal>,
    ) -> Result<Option<Figures>, Refusal> {
        self.tasks.start(&self.epoll, asked, about, body).map(|()| None)
    }
}

fn awaken(random: &File, epoch_ns: i64, entropy: &[u8]) -> Result<(), Refusal> {
    sys::set_clock(epoch_ns).map_err(|error| Refusal::of("clock", &error))?;
    sys::reseed(random, entropy).map_err(|error| Refusal::of("entropy", &error))
}
