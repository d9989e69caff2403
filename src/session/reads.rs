//! Counts of how reads were answered, for people.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counters of one torrent's reads in this session.
#[derive(Debug, Default)]
pub(super) struct Reads {
    pub(super) memory: AtomicU64,
    pub(super) disk: AtomicU64,
    pub(super) missed: AtomicU64,
}

/// How reads were answered.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct ReadCounts {
    /// Answered from memory.
    pub memory: u64,
    /// Answered at least in part from the disk.
    pub disk: u64,
    /// Answered after a wait for the swarm.
    pub missed: u64,
}

impl Reads {
    /// Increments one of the counters.
    pub(super) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Relaxed);
    }

    pub(super) fn counts(&self) -> ReadCounts {
        let [memory, disk, missed] = [&self.memory, &self.disk, &self.missed].map(|count| count.load(Relaxed));
        ReadCounts { memory, disk, missed }
    }
}
