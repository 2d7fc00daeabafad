//! How much may be on its way in each direction of a stream. Pure.

/// What each direction of a stream starts with, and the most that is held of what the host sent.
pub const CREDIT: u32 = 256 * 1024;
/// Credit is given back in such pieces: the other side never waits for it, since that much less is still most of it.
const GRANT: u32 = CREDIT / 8;

/// What we may still send.
#[derive(Debug)]
pub struct Outgoing(u64);

impl Outgoing {
    pub fn new() -> Outgoing {
        Outgoing(CREDIT.into())
    }

    pub fn left(&self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }

    /// At most what is left.
    pub fn use_up(&mut self, bytes: usize) {
        self.0 = self.0.checked_sub(bytes as u64).expect("no more is sent than there is credit");
    }

    pub fn grant(&mut self, bytes: u32) {
        self.0 = self.0.saturating_add(bytes.into());
    }
}

/// What the host may still send.
#[derive(Debug)]
pub struct Incoming {
    open: u32,
    taken: u32,
}

/// The host sent more than it may.
#[derive(Debug, PartialEq, Eq)]
pub struct Overrun;

impl Incoming {
    pub fn new() -> Incoming {
        Incoming { open: CREDIT, taken: 0 }
    }

    pub fn accept(&mut self, bytes: usize) -> Result<(), Overrun> {
        let bytes = u32::try_from(bytes).map_err(|_| Overrun)?;
        self.open = self.open.checked_sub(bytes).ok_or(Overrun)?;
        Ok(())
    }

    /// So many of the accepted bytes are held no longer. Gives what is to be granted, where that is worth a frame.
    pub fn take(&mut self, bytes: usize) -> Option<u32> {
        self.taken += bytes as u32;
        if self.taken < GRANT {
            return None;
        }
        let granted = self.taken;
        self.taken = 0;
        self.open += granted;
        Some(granted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    #[test]
    fn a_sender_that_keeps_to_its_credit_is_never_refused_and_never_stuck() {
        for seed in 0..500 {
            let random = &mut Random::new(seed);
            let (mut host, mut agent) = (Outgoing::new(), Incoming::new());
            let (mut held, mut sent) = (0, 0);
            while sent < 8 * CREDIT as usize {
                if random.below(2) == 0 {
                    let bytes = random.below(70_000).min(host.left());
                    host.use_up(bytes);
                    assert_eq!(agent.accept(bytes), Ok(()), "seed {seed}");
                    held += bytes;
                    sent += bytes;
                } else {
                    let bytes = random.below(held + 1);
                    held -= bytes;
                    agent.take(bytes).into_iter().for_each(|it| host.grant(it));
                }
                assert!(held <= CREDIT as usize, "seed {seed}");
                // Nothing held: the host may send, so that no two sides wait for each other.
                assert!(held > 0 || host.left() > 0, "seed {seed}");
            }
        }
    }

    #[test]
    fn a_sender_that_does_not_is() {
        let mut agent = Incoming::new();
        assert_eq!(agent.accept(CREDIT as usize), Ok(()));
        assert_eq!(agent.accept(0), Ok(()));
        assert_eq!(agent.accept(1), Err(Overrun));
        assert_eq!(agent.take(CREDIT as usize), Some(CREDIT));
        assert_eq!(agent.accept(CREDIT as usize + 1), Err(Overrun));
        assert_eq!(agent.accept(usize::MAX), Err(Overrun));
    }

    #[test]
    fn any_credit_is_good() {
        let mut credit = Outgoing::new();
        for _ in 0..10 {
            credit.grant(u32::MAX);
        }
        assert_eq!(credit.left(), 10 * u32::MAX as usize + CREDIT as usize);
    }
}
