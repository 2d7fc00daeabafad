//! Requests that take their time and need no stream: each is a worker of its own, and its answer comes when it has told
//! how it went.

use std::fs::File;

use crate::json::Json;
use crate::protocol::{self, Refusal};
use crate::sys::{self, Epoll};
use crate::worker::{self, Figures, Said, Status, Teller};

/// At once, over all links.
const TASKS_MAX: usize = 16;
/// Tokens of tasks are from here on.
pub const FIRST_TOKEN: u64 = 1 << 62;

struct Task {
    number: u64,
    status: Status,
    /// None once the session that asked is over.
    link: Option<u64>,
    request: i64,
    /// What it changes, where that matters to init: two tasks never change the same.
    about: Option<About>,
}

/// A change of the mounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum About {
    Mount(crate::config::Volume),
    Unmount(String),
    Grow(String),
}

impl About {
    fn path(&self) -> &str {
        match self {
            About::Mount(volume) => &volume.mount_path,
            About::Unmount(path) | About::Grow(path) => path,
        }
    }

    fn same_disk(&self, other: &About) -> bool {
        matches!((self, other), (About::Mount(one), About::Mount(two)) if one.serial == two.serial)
    }
}

/// Whoever asks again later finds it done.
pub fn in_the_way() -> Refusal {
    let reason = "another request for this path or disk is not done yet".to_string();
    Refusal { reason, code: Some("EAGAIN".to_string()), holders: Vec::new() }
}

/// A task that has told how it went.
pub struct Told {
    pub link: Option<u64>,
    pub request: i64,
    pub about: Option<About>,
    pub outcome: Result<Json, Refusal>,
}

impl Told {
    pub fn answer(&self, out: &mut Vec<u8>) {
        match &self.outcome {
            Ok(Json::Object(figures)) => {
                let figures: Vec<(&str, Json)> = figures.iter().map(|(name, it)| (&name[..], it.clone())).collect();
                protocol::done(self.request, &figures, out);
            }
            Ok(_) => protocol::done(self.request, &[], out),
            Err(why) => protocol::refused(self.request, why, out),
        }
    }
}

pub struct Tasks {
    list: Vec<Task>,
    next: u64,
    null: File,
}

impl Tasks {
    pub fn new(null: File) -> Tasks {
        Tasks { list: Vec::new(), next: 0, null }
    }

    pub fn start(
        &mut self,
        epoll: &Epoll,
        (link, request): (u64, i64),
        about: Option<About>,
        body: impl FnOnce(&mut Teller) -> Result<Figures, Refusal>,
    ) -> Result<(), Refusal> {
        if self.list.len() >= TASKS_MAX {
            return Err(Refusal::new("too many requests at a time"));
        }
        let same = |it: &About| about.as_ref().map_or(false, |own| it.path() == own.path() || it.same_disk(own));
        if self.list.iter().filter_map(|it| it.about.as_ref()).any(same) {
            return Err(in_the_way());
        }
        let why = |error: std::io::Error| Refusal::of("fork", &error);
        let (_, status) = worker::start([&self.null; 3], false, body).map_err(why)?;
        let fd = status.fd().ok_or_else(|| Refusal::new("no status"))?;
        epoll.add(fd, FIRST_TOKEN + self.next, sys::EPOLLIN | sys::EPOLLET).map_err(why)?;
        self.list.push(Task { number: self.next, status, link: Some(link), request, about });
        self.next += 1;
        Ok(())
    }

    /// Whether what is mounted at the path is about to change.
    pub fn changes(&self, path: &str) -> bool {
        self.list.iter().filter_map(|it| it.about.as_ref()).any(|it| it.path() == path)
    }

    pub fn wake(&mut self, token: u64) -> Option<Told> {
        let at = self.list.iter().position(|it| FIRST_TOKEN + it.number == token)?;
        if !self.list[at].status.read() {
            return None;
        }
        let Task { status, link, request, about, .. } = self.list.swap_remove(at);
        let outcome = match status.said() {
            Said::Done(figures) => Ok(figures),
            Said::Refused(why) => Err(why),
            Said::Nothing | Said::Started => Err(Refusal::new("its worker died")),
        };
        Some(Told { link, request, about, outcome })
    }

    /// The session on this link is over. What it asked for is done, but not answered.
    pub fn detach(&mut self, link: u64) {
        self.list.iter_mut().filter(|it| it.link == Some(link)).for_each(|it| it.link = None);
    }
}
