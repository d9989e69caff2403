//! How reads were answered: counts for people.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Reads of one torrent in this session.
#[derive(Debug, Default)]
pub(super) struct Reads {
    pub(super) memory: AtomicU64,
    pub(super) disk: AtomicU64,
    pub(super) missed: AtomicU64,
}

/// How reads were answered, in numbers.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct ReadCounts {
    /// From memory alone.
    pub memory: u64,
    /// With the help of the disk.
    pub disk: u64,
    /// Had to wait for the swarm.
    pub missed: u64,
}

impl Reads {
    pub(super) fn count(of: &AtomicU64) {
        of.fetch_add(1, Relaxed);
    }

    pub(super) fn counts(&self) -> ReadCounts {
        let [memory, disk, missed] = [&self.memory, &self.disk, &self.missed].map(|count| count.load(Relaxed));
        ReadCounts { memory, disk, missed }
    }
}
