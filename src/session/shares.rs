//! How the torrents of a session share connections, memory for unfinished pieces, and bandwidth.
//!
//! Torrents that are being read come first. Some connections are reserved for them; when all are taken, each other
//! torrent closes one connection per second. Others are reserved from torrents that wait for their turn to download. Each
//! torrent that is being read gets an equal part of the memory for unfinished pieces, and the others get the rest. While a
//! reader waits for blocks that are on their way, the swarms of the torrents that nobody reads yield: what that means is up
//! to their policy.
//!
//! So the memory of a session is: all pieces, finished or not, have `CacheConfig::memory` together; only if that is
//! less than [`MAX_PARTIAL`], or if more than a few torrents are being read ([`MIN_PARTIAL`]), unfinished pieces may
//! take more. In addition: 128 KiB for each fast connection, 1 MiB of messages waiting for the task of each torrent
//! that receives (`net::connection`, `driver::start`), and for each idle torrent its metainfo and 30 KiB.
//!
//! Everything is counted without a lock. Torrents read a count and then take, so a limit may be exceeded by what a few
//! of them take in one turn, and the memory limit by pieces that were started before other torrents were read.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::util::align_to_tick;

/// Maximum number of connections of a session, those being made included: well below the usual limit of 1,024 open
/// files.
const CONNECTIONS: usize = 500;
/// Connections reserved for torrents that are being read.
const RESERVED: usize = 100;
/// Connections that torrents waiting for their turn leave to those that download or seed: they need peers only to
/// serve them, and for the first blocks of a read.
const RESERVED_FROM_QUEUED: usize = 200;
/// Maximum number of connections of one torrent: enough to find fast peers.
pub(super) const MAX_PEERS: usize = 100;
/// Connections that no torrent has to close for another, and that a torrent being read may always have.
const MIN_PEERS: usize = 4;
/// Maximum bytes of unfinished pieces in one torrent: enough for a window and a piece per fast peer.
pub(super) const MAX_PARTIAL: u64 = 32 << 20;
/// Bytes of unfinished pieces that a torrent being read may always have.
const MIN_PARTIAL: u64 = 2 << 20;
/// How long a report that a reader waits holds: it is repeated every second, and must not lapse between two reports.
const WAITING: Duration = Duration::from_secs(2);

/// The counts of a session.
#[derive(Debug)]
pub(super) struct Shares {
    /// Maximum bytes of unfinished pieces in all torrents.
    memory: u64,
    connections: AtomicUsize,
    partial: AtomicU64,
    /// Number of torrents being read.
    reading: AtomicUsize,
    begin: Instant,
    /// Until when background fetching is suppressed, in milliseconds since `begin`.
    waiting: AtomicU64,
}

impl Shares {
    /// `memory` is the limit of all pieces in memory, in bytes. Even if it is low, a single torrent gets `MAX_PARTIAL`.
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

/// The share of one torrent: what it uses of the common limits. Dropping it returns them.
#[derive(Debug)]
pub(super) struct Share {
    shares: Arc<Shares>,
    connections: usize,
    partial: u64,
    reading: bool,
    queued: bool,
}

/// The limits of one torrent at this moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Allowed {
    /// Maximum number of connections, including those that it has.
    pub(super) peers: usize,
    /// It has to close one of them.
    pub(super) shed: bool,
    /// Maximum bytes of unfinished pieces.
    pub(super) partial: u64,
    /// The part of these that background fetching may use.
    pub(super) background: u64,
    /// A reader of another torrent waits for blocks that are on their way, and nobody reads this one.
    pub(super) yielding: bool,
}

impl Share {
    pub(super) fn new(shares: Arc<Shares>) -> Self {
        Self { shares, connections: 0, partial: 0, reading: false, queued: false }
    }

    /// Records what the torrent uses now, and whether it is being read or waits for its turn to download.
    pub(super) fn set(&mut self, connections: usize, partial: u64, reading: bool, queued: bool) {
        self.queued = queued;
        // Wrapping arithmetic keeps the sums exact in any order of updates.
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

    /// Returns whether the torrent was being read at the last `set`.
    pub(super) fn is_read(&self) -> bool {
        self.reading
    }

    /// Records that a reader of this torrent waits for blocks that are on their way.
    pub(super) fn set_waiting(&self, now: Instant) {
        let until = self.shares.since(now + WAITING);
        self.shares.waiting.fetch_max(until, Relaxed);
    }

    /// Returns `at` or a little later: the time at which the other torrents wake, too.
    pub(super) fn beat(&self, at: Instant) -> Instant {
        align_to_tick(self.shares.begin, at)
    }

    /// Returns what the torrent may use. It gets nothing that others still use, even if they have to give it back.
    pub(super) fn allowed(&self, now: Instant) -> Allowed {
        let Shares { memory, connections, partial, reading, waiting, .. } = &*self.shares;
        let (all, reading) = (connections.load(Relaxed), reading.load(Relaxed).max(1));
        let limit = match (self.reading, self.queued) {
            (true, _) => CONNECTIONS,
            (false, false) => CONNECTIONS - RESERVED,
            (false, true) => CONNECTIONS - RESERVED - RESERVED_FROM_QUEUED,
        };
        let mut peers = (self.connections + limit.saturating_sub(all)).min(MAX_PEERS);
        if self.reading {
            peers = peers.min((CONNECTIONS / reading).max(MIN_PEERS)).max(MIN_PEERS);
        }
        let crowded = if self.queued { CONNECTIONS - RESERVED } else { CONNECTIONS };
        let shed = !self.reading && all >= crowded && self.connections > MIN_PEERS;
        let most = (memory / reading as u64).clamp(MIN_PARTIAL, MAX_PARTIAL);
        let yielding = !self.reading && waiting.load(Relaxed) > self.shares.since(now);
        let free = memory.saturating_sub(partial.load(Relaxed));
        Allowed { peers, shed, partial: most, background: self.partial + free, yielding }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set(0, 0, false, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMORY: u64 = 64 << 20;

    #[test]
    fn a_single_torrent_gets_everything() {
        let (shares, now) = (Arc::new(Shares::new(1 << 20)), Instant::now());
        let mut only = Share::new(shares);
        for reading in [false, true] {
            only.set(MAX_PEERS, MAX_PARTIAL, reading, false);
            let (partial, background) = (MAX_PARTIAL, MAX_PARTIAL);
            let expected = Allowed { peers: MAX_PEERS, shed: false, partial, background, yielding: false };
            assert_eq!(only.allowed(now), expected);
        }
        // Its own readers do not suppress it.
        only.set_waiting(now);
        assert!(!only.allowed(now).yielding);
    }

    #[test]
    fn connections_are_reserved_for_torrents_being_read() {
        let (shares, now) = (Arc::new(Shares::new(MEMORY)), Instant::now());
        let mut idle: Vec<Share> = (0..5).map(|_| Share::new(shares.clone())).collect();
        for share in &mut idle {
            share.set(share.allowed(now).peers, 0, false, false);
        }
        assert_eq!(idle.iter().map(|share| share.connections).sum::<usize>(), CONNECTIONS - RESERVED);
        let mut read = Share::new(shares.clone());
        read.set(0, 0, true, false);
        let places = read.allowed(now).peers;
        assert_eq!(places, RESERVED);
        assert!(!idle[0].allowed(now).shed);
        read.set(places, 0, true, false);
        // Now all are taken: another torrent being read gets its first few, and the idle ones have to close some.
        let mut second = Share::new(shares.clone());
        second.set(0, 0, true, false);
        assert_eq!(second.allowed(now).peers, MIN_PEERS);
        assert!(idle[0].allowed(now).shed && !idle[4].allowed(now).shed && !read.allowed(now).shed);
        drop(idle);
        assert_eq!(second.allowed(now).peers, MAX_PEERS);
        drop((read, second));
        assert_eq!((shares.connections.load(Relaxed), shares.reading.load(Relaxed)), (0, 0));
    }

    #[test]
    fn torrents_that_wait_for_their_turn_leave_connections_to_those_that_download() {
        let (shares, now) = (Arc::new(Shares::new(MEMORY)), Instant::now());
        let mut queued: Vec<Share> = (0..50).map(|_| Share::new(shares.clone())).collect();
        for share in &mut queued {
            share.set(0, 0, false, true);
            share.set(share.allowed(now).peers, 0, false, true);
        }
        let free = CONNECTIONS - RESERVED - queued.iter().map(|share| share.connections).sum::<usize>();
        assert_eq!(free, RESERVED_FROM_QUEUED);
        let mut active = Share::new(shares.clone());
        assert_eq!(active.allowed(now).peers, MAX_PEERS);
        active.set(free - 1, 0, false, false);
        assert!(!queued[0].allowed(now).shed);
        active.set(free, 0, false, false);
        assert!(queued[0].allowed(now).shed && !active.allowed(now).shed);
        queued[0].set(MAX_PEERS, 0, true, true);
        assert!(!queued[0].allowed(now).shed, "a reader comes first");
    }

    #[test]
    fn memory_is_shared_and_torrents_yield_to_readers() {
        let (shares, now) = (Arc::new(Shares::new(MEMORY)), Instant::now());
        let mut all: Vec<Share> = (0..10).map(|_| Share::new(shares.clone())).collect();
        all.iter_mut().for_each(|share| share.set(1, 0, true, false));
        assert_eq!(all[0].allowed(now).partial, MEMORY / 10);
        all.iter_mut().take(8).for_each(|share| share.set(1, 5 << 20, false, false));
        assert_eq!(all[0].allowed(now).partial, MAX_PARTIAL);
        assert_eq!(all[0].allowed(now).background, (5 << 20) + MEMORY - (40 << 20));
        all[9].set_waiting(now);
        assert!(all[0].allowed(now).yielding && !all[8].allowed(now).yielding);
        assert!(!all[0].allowed(now + WAITING * 2).yielding);
    }
}
