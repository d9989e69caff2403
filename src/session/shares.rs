//! What the torrents of a session share, and who goes first: connections, memory for pieces under way, and the line.
//!
//! Torrents that are read come first. A part of the connections is theirs alone; when all are taken, the others let go
//! of some, one a second each. Of the memory for pieces each of them has an equal part, and the others what is left. And
//! while a reader waits for what is on its way, no other torrent begins a piece in the background.
//!
//! The memory of a session, then: all pieces, kept or under way, have `CacheConfig::memory` together; only where that is
//! less than [`MAX_PARTIAL`], or more than a few torrents are read ([`LEAST_PARTIAL`]), those under way may have more. To
//! that come 128 KiB for each connection that is fast, 1 MiB for what waits for the task of each torrent that receives
//! (`net::connection`, `driver::start`), and, for each torrent at rest, its metainfo and 30 KiB.
//!
//! All of it is counted without a lock. Torrents look at the same moment and then take, so that a limit may be passed by
//! what a few of them take in one turn; and that of memory by what has been begun before others were read.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::util::align_to_tick;

/// Connections of a session, those being made included; and how many of them are for torrents that are read.
const CONNECTIONS: usize = 500;
const RESERVED: usize = 100;
/// Connections of one torrent.
pub(super) const MAX_PEERS: usize = 100;
/// Connections that a torrent keeps though another is in need, and that one that is read may always have.
const FEW_PEERS: usize = 4;
/// Bytes of pieces under way in one torrent; and what one that is read has at least.
pub(super) const MAX_PARTIAL: u64 = 32 << 20;
const LEAST_PARTIAL: u64 = 2 << 20;
/// For so long the word of a reader that waits holds.
const WAITING: Duration = Duration::from_secs(2);

/// The counts of a session.
#[derive(Debug)]
pub(super) struct Shares {
    /// Bytes that the pieces under way in all torrents may have.
    memory: u64,
    connections: AtomicUsize,
    partial: AtomicU64,
    /// Torrents that are read.
    reading: AtomicUsize,
    begin: Instant,
    /// Until when some reader waits, in milliseconds since `begin`.
    waiting: AtomicU64,
}

impl Shares {
    /// `memory`: what all pieces in memory may take. If that is little, one torrent is to be as fast nevertheless.
    pub(super) fn new(memory: u64) -> Self {
        Self {
            memory: memory.max(MAX_PARTIAL),
            connections: AtomicUsize::new(0),
            partial: AtomicU64::new(0),
            reading: AtomicUsize::new(0),
            begin: Instant::now(),
            waiting: AtomicU64::new(0),
        }
    }

    fn since(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.begin).as_millis()).unwrap_or(u64::MAX)
    }
}

/// What one torrent has of them; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Share {
    shares: Arc<Shares>,
    connections: usize,
    partial: u64,
    reading: bool,
}

/// What a torrent may have now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Allowed {
    /// Connections, those that it has included.
    pub(super) peers: usize,
    /// It is to let go of one of them.
    pub(super) shed: bool,
    /// Bytes of pieces under way.
    pub(super) partial: u64,
    /// Of these, what background fetching may have.
    pub(super) background: u64,
}

impl Share {
    pub(super) fn new(shares: Arc<Shares>) -> Self {
        Self { shares, connections: 0, partial: 0, reading: false }
    }

    /// What the torrent has now.
    pub(super) fn set(&mut self, connections: usize, partial: u64, reading: bool) {
        // Wrapping: the sums are exact, whoever comes first.
        if connections != self.connections {
            self.shares.connections.fetch_add(connections.wrapping_sub(self.connections), Relaxed);
            self.connections = connections;
        }
        if partial != self.partial {
            self.shares.partial.fetch_add(partial.wrapping_sub(self.partial), Relaxed);
            self.partial = partial;
        }
        if reading != self.reading {
            let change = if reading { 1 } else { usize::MAX };
            self.shares.reading.fetch_add(change, Relaxed);
            self.reading = reading;
        }
    }

    /// Whether it was read when it was last set.
    pub(super) fn is_read(&self) -> bool {
        self.reading
    }

    /// A reader of this torrent waits for what is on its way.
    pub(super) fn wait(&self, now: Instant) {
        let until = self.shares.since(now + WAITING);
        self.shares.waiting.fetch_max(until, Relaxed);
    }

    /// `at` or a little later: when the other torrents wake, too.
    pub(super) fn beat(&self, at: Instant) -> Instant {
        align_to_tick(self.shares.begin, at)
    }

    /// What it may have. Of what others have had before and have no more right to, it gets nothing at once.
    pub(super) fn allowed(&self, now: Instant) -> Allowed {
        let Shares { memory, connections, partial, reading, waiting, .. } = &*self.shares;
        let (all, reading) = (connections.load(Relaxed), reading.load(Relaxed).max(1));
        let limit = if self.reading { CONNECTIONS } else { CONNECTIONS - RESERVED };
        let mut peers = (self.connections + limit.saturating_sub(all)).min(MAX_PEERS);
        if self.reading {
            peers = peers.min((CONNECTIONS / reading).max(FEW_PEERS)).max(FEW_PEERS);
        }
        let shed = !self.reading && all >= CONNECTIONS && self.connections > FEW_PEERS;
        let most = (memory / reading as u64).clamp(LEAST_PARTIAL, MAX_PARTIAL);
        let held_back = !self.reading && waiting.load(Relaxed) > self.shares.since(now);
        let free = memory.saturating_sub(partial.load(Relaxed));
        let background = if held_back { 0 } else { self.partial + free };
        Allowed { peers, shed, partial: most, background }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set(0, 0, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMORY: u64 = 64 << 20;

    #[test]
    fn one_torrent_has_all_that_it_ever_had() {
        let (shares, now) = (Arc::new(Shares::new(1 << 20)), Instant::now());
        let mut only = Share::new(shares);
        for reading in [false, true] {
            only.set(MAX_PEERS, MAX_PARTIAL, reading);
            let expected = Allowed { peers: MAX_PEERS, shed: false, partial: MAX_PARTIAL, background: MAX_PARTIAL };
            assert_eq!(only.allowed(now), expected);
        }
        // Its own readers do not hold it back.
        only.wait(now);
        assert_eq!(only.allowed(now).background, MAX_PARTIAL);
    }

    #[test]
    fn connections_are_kept_for_those_who_are_read() {
        let (shares, now) = (Arc::new(Shares::new(MEMORY)), Instant::now());
        let mut idle: Vec<Share> = (0..5).map(|_| Share::new(shares.clone())).collect();
        for share in &mut idle {
            share.set(share.allowed(now).peers, 0, false);
        }
        assert_eq!(idle.iter().map(|share| share.connections).sum::<usize>(), CONNECTIONS - RESERVED);
        let mut read = Share::new(shares.clone());
        read.set(0, 0, true);
        let places = read.allowed(now).peers;
        assert_eq!(places, RESERVED);
        assert!(!idle[0].allowed(now).shed);
        read.set(places, 0, true);
        // Now all are taken: another one that is read gets its first few, and the idle ones make place.
        let mut second = Share::new(shares.clone());
        second.set(0, 0, true);
        assert_eq!(second.allowed(now).peers, FEW_PEERS);
        assert!(idle[0].allowed(now).shed && !idle[4].allowed(now).shed && !read.allowed(now).shed);
        drop(idle);
        assert_eq!(second.allowed(now).peers, MAX_PEERS);
        drop((read, second));
        assert_eq!((shares.connections.load(Relaxed), shares.reading.load(Relaxed)), (0, 0));
    }

    #[test]
    fn memory_is_shared_and_the_background_waits_for_readers() {
        let (shares, now) = (Arc::new(Shares::new(MEMORY)), Instant::now());
        let mut all: Vec<Share> = (0..10).map(|_| Share::new(shares.clone())).collect();
        all.iter_mut().for_each(|share| share.set(1, 0, true));
        assert_eq!(all[0].allowed(now).partial, MEMORY / 10);
        all.iter_mut().take(8).for_each(|share| share.set(1, 5 << 20, false));
        assert_eq!(all[0].allowed(now).partial, MAX_PARTIAL);
        assert_eq!(all[0].allowed(now).background, (5 << 20) + MEMORY - (40 << 20));
        all[9].wait(now);
        assert_eq!((all[0].allowed(now).background, all[8].allowed(now).background > 0), (0, true));
        assert!(all[0].allowed(now + WAITING * 2).background > 0);
    }
}
