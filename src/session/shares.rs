//! How the torrents of a session share connections, memory for unfinished pieces, and bandwidth.
//!
//! Torrents that are being read come first. Some connections are reserved for them; when all are taken, each other
//! torrent closes one connection per second. Others are reserved from torrents that wait for their turn to download. Each
//! torrent that is being read gets an equal part of the memory for unfinished pieces, and the others get the rest. While a
//! reader waits for blocks that are on their way, the swarms of the torrents that nobody reads yield: what that means is up
//! to their policy.
//!
//! A piece may be larger than what is left of that memory, or than all of it. So one torrent at a time may exceed the
//! limit by one piece. It passes this right on when it has finished a piece, or has received nothing for
//! [`OVERDRAFT_STALLED`].
//!
//! So the memory of a session is: all pieces, finished or not, have `CacheConfig::memory` together; only if that is
//! less than [`MAX_PARTIAL`], or if more than a few torrents are being read ([`MIN_PARTIAL`]), or for that one piece,
//! unfinished pieces may take more. In addition: 128 KiB for each fast connection, 1 MiB of messages waiting for the task of each torrent
//! that receives (`net::connection`, `driver::start`), and for each idle torrent its metainfo and 30 KiB.
//!
//! Everything but that right is counted without a lock. Torrents read a count and then take, so a limit may be exceeded by what a few
//! of them take in one turn, and the memory limit by pieces that were started before other torrents were read.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::util::{align_to_tick, lock};

/// Maximum number of connections of a session, including those being made that have just begun. With all others being made,
/// whose number `net::dial` limits, well below the usual limit of 1,024 open files.
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
/// How long the torrent that may exceed the memory limit may receive nothing before another may.
const OVERDRAFT_STALLED: Duration = Duration::from_secs(10);
/// How long a torrent that has passed that right on leaves it to others: longer than the second after which they ask.
const OVERDRAFT_PAUSE: Duration = Duration::from_secs(3);
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
    next_id: AtomicU64,
    overdraft: Mutex<Overdraft>,
}

/// The right to exceed the memory limit by one piece.
#[derive(Debug, Default)]
struct Overdraft {
    /// The torrent that has it.
    holder: Option<u64>,
    /// When the holder last received something.
    active: Option<Instant>,
    /// Another torrent wants it.
    contested: bool,
    /// The torrent that has passed it on, and when.
    before: Option<(u64, Instant)>,
}

impl Overdraft {
    /// Takes the right, unless another torrent has it or waits for it. Returns whether the torrent has it now.
    fn take(&mut self, now: Instant, id: u64) -> bool {
        let since = |then: Instant| now.saturating_duration_since(then);
        match self.holder {
            Some(holder) if holder == id => return true,
            Some(_) if self.active.is_some_and(|at| since(at) < OVERDRAFT_STALLED) => {
                self.contested = true;
                return false;
            }
            None if self.before.is_some_and(|(before, at)| before == id && since(at) < OVERDRAFT_PAUSE) => {
                return false;
            }
            _ => {}
        }
        *self = Self { holder: Some(id), active: Some(now), ..Self::default() };
        true
    }
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
            next_id: AtomicU64::new(0),
            overdraft: Mutex::default(),
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
    id: u64,
    /// Length of the torrent's pieces in bytes.
    piece: u64,
    connections: usize,
    partial: u64,
    reading: bool,
    queued: bool,
}

/// The needs of a torrent at this moment.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Demand {
    /// It could begin a piece if it had room for it.
    pub(super) starved: bool,
    /// It receives blocks.
    pub(super) receives: bool,
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
    /// Returns the share of a torrent with pieces of `piece` bytes.
    pub(super) fn new(shares: Arc<Shares>, piece: u64) -> Self {
        let id = shares.next_id.fetch_add(1, Relaxed);
        Self { shares, id, piece, connections: 0, partial: 0, reading: false, queued: false }
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

    /// Records that the torrent has finished a piece. Returns whether it may use less now.
    pub(super) fn piece_done(&self, now: Instant) -> bool {
        let mut overdraft = lock(&self.shares.overdraft);
        let passes_on = overdraft.holder == Some(self.id) && overdraft.contested;
        if passes_on {
            *overdraft = Overdraft { before: Some((self.id, now)), ..Overdraft::default() };
        }
        passes_on
    }

    /// Returns the bytes that background fetching may use, of `left` that the limit leaves it.
    fn background(&self, now: Instant, left: u64, demand: Demand) -> u64 {
        let mut overdraft = lock(&self.shares.overdraft);
        if overdraft.holder == Some(self.id) {
            if left >= self.piece {
                *overdraft = Overdraft::default();
            } else if demand.receives {
                overdraft.active = Some(now);
            }
        }
        let wants = overdraft.holder == Some(self.id) || demand.starved;
        if left < self.piece && wants && overdraft.take(now, self.id) { self.piece } else { left }
    }

    /// Returns what the torrent may use. It gets nothing that others still use, even if they have to give it back.
    pub(super) fn allowed(&self, now: Instant, demand: Demand) -> Allowed {
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
        // The memory that the others leave, which may have exceeded the limit.
        let left = (memory + self.partial).saturating_sub(partial.load(Relaxed));
        let background = self.background(now, left, demand);
        Allowed { peers, shed, partial: most, background, yielding }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set(0, 0, false, false);
        let mut overdraft = lock(&self.shares.overdraft);
        if overdraft.holder == Some(self.id) {
            *overdraft = Overdraft::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMORY: u64 = 64 << 20;
    const PIECE: u64 = 1 << 20;
    const IDLE: Demand = Demand { starved: false, receives: false };
    const STARVED: Demand = Demand { starved: true, receives: false };
    const RECEIVES: Demand = Demand { starved: false, receives: true };

    #[test]
    fn a_single_torrent_gets_everything() {
        let (shares, now) = (Arc::new(Shares::new(1 << 20)), Instant::now());
        let mut only = Share::new(shares, PIECE);
        for reading in [false, true] {
            only.set(MAX_PEERS, MAX_PARTIAL, reading, false);
            let (partial, background) = (MAX_PARTIAL, MAX_PARTIAL);
            let expected = Allowed { peers: MAX_PEERS, shed: false, partial, background, yielding: false };
            assert_eq!(only.allowed(now, IDLE), expected);
        }
        // Its own readers do not suppress it.
        only.set_waiting(now);
        assert!(!only.allowed(now, IDLE).yielding);
    }

    #[test]
    fn connections_are_reserved_for_torrents_being_read() {
        let (shares, now) = (Arc::new(Shares::new(MEMORY)), Instant::now());
        let mut idle: Vec<Share> = (0..5).map(|_| Share::new(shares.clone(), PIECE)).collect();
        for share in &mut idle {
            share.set(share.allowed(now, IDLE).peers, 0, false, false);
        }
        assert_eq!(idle.iter().map(|share| share.connections).sum::<usize>(), CONNECTIONS - RESERVED);
        let mut read = Share::new(shares.clone(), PIECE);
        read.set(0, 0, true, false);
        let places = read.allowed(now, IDLE).peers;
        assert_eq!(places, RESERVED);
        assert!(!idle[0].allowed(now, IDLE).shed);
        read.set(places, 0, true, false);
        // Now all are taken: another torrent being read gets its first few, and the idle ones have to close some.
        let mut second = Share::new(shares.clone(), PIECE);
        second.set(0, 0, true, false);
        assert_eq!(second.allowed(now, IDLE).peers, MIN_PEERS);
        assert!(idle[0].allowed(now, IDLE).shed && !idle[4].allowed(now, IDLE).shed && !read.allowed(now, IDLE).shed);
        drop(idle);
        assert_eq!(second.allowed(now, IDLE).peers, MAX_PEERS);
        drop((read, second));
        assert_eq!((shares.connections.load(Relaxed), shares.reading.load(Relaxed)), (0, 0));
    }

    #[test]
    fn torrents_that_wait_for_their_turn_leave_connections_to_those_that_download() {
        let (shares, now) = (Arc::new(Shares::new(MEMORY)), Instant::now());
        let mut queued: Vec<Share> = (0..50).map(|_| Share::new(shares.clone(), PIECE)).collect();
        for share in &mut queued {
            share.set(0, 0, false, true);
            share.set(share.allowed(now, IDLE).peers, 0, false, true);
        }
        let free = CONNECTIONS - RESERVED - queued.iter().map(|share| share.connections).sum::<usize>();
        assert_eq!(free, RESERVED_FROM_QUEUED);
        let mut active = Share::new(shares.clone(), PIECE);
        assert_eq!(active.allowed(now, IDLE).peers, MAX_PEERS);
        active.set(free - 1, 0, false, false);
        assert!(!queued[0].allowed(now, IDLE).shed);
        active.set(free, 0, false, false);
        assert!(queued[0].allowed(now, IDLE).shed && !active.allowed(now, IDLE).shed);
        queued[0].set(MAX_PEERS, 0, true, true);
        assert!(!queued[0].allowed(now, IDLE).shed, "a reader comes first");
    }

    #[test]
    fn memory_is_shared_and_torrents_yield_to_readers() {
        let (shares, now) = (Arc::new(Shares::new(MEMORY)), Instant::now());
        let mut all: Vec<Share> = (0..10).map(|_| Share::new(shares.clone(), PIECE)).collect();
        all.iter_mut().for_each(|share| share.set(1, 0, true, false));
        assert_eq!(all[0].allowed(now, IDLE).partial, MEMORY / 10);
        all.iter_mut().take(8).for_each(|share| share.set(1, 5 << 20, false, false));
        assert_eq!(all[0].allowed(now, IDLE).partial, MAX_PARTIAL);
        assert_eq!(all[0].allowed(now, IDLE).background, (5 << 20) + MEMORY - (40 << 20));
        all[9].set_waiting(now);
        assert!(all[0].allowed(now, IDLE).yielding && !all[8].allowed(now, IDLE).yielding);
        assert!(!all[0].allowed(now + WAITING * 2, IDLE).yielding);
    }

    #[test]
    fn a_piece_larger_than_the_memory_is_fetched_in_one_torrent_at_a_time() {
        let (shares, mut now) = (Arc::new(Shares::new(0)), Instant::now());
        let large = 4 * MAX_PARTIAL;
        let mut all: Vec<Share> = (0..3).map(|_| Share::new(shares.clone(), large)).collect();
        assert_eq!(all[0].allowed(now, IDLE).background, MAX_PARTIAL, "not asked for");
        assert_eq!(all[0].allowed(now, STARVED).background, large);
        all[0].set(1, large, false, false);
        // It keeps the right while it receives and nobody else wants it.
        for _ in 0..100 {
            now += Duration::from_secs(1);
            assert_eq!(all[0].allowed(now, RECEIVES).background, large);
        }
        assert!(!all[0].piece_done(now));
        assert_eq!(all[0].allowed(now, RECEIVES).background, large);
        // Another wants it, and gets it with the next piece.
        let others = all[1].allowed(now, STARVED).background;
        assert_eq!((others, all[0].allowed(now, RECEIVES).background), (0, large));
        all[0].set(1, 0, false, false);
        assert!(all[0].piece_done(now));
        assert_eq!(all[0].allowed(now, STARVED).background, MAX_PARTIAL);
        assert_eq!(all[1].allowed(now, STARVED).background, large);
        assert_eq!(all[0].allowed(now, STARVED).background, MAX_PARTIAL, "refused");
        // One that receives nothing loses it.
        all[1].set(1, large, false, false);
        now += OVERDRAFT_STALLED;
        assert_eq!(all[2].allowed(now, STARVED).background, large);
        // One that leaves returns it.
        all.pop();
        assert_eq!(all[0].allowed(now, STARVED).background, large);
    }

    /// Torrents that wait for peers may hold all memory in unfinished pieces.
    #[test]
    fn a_torrent_advances_although_others_hold_all_memory() {
        let (shares, now) = (Arc::new(Shares::new(MEMORY)), Instant::now());
        let mut stalled = Share::new(shares.clone(), PIECE);
        stalled.set(0, MEMORY, false, false);
        let share = Share::new(shares, PIECE);
        assert_eq!(share.allowed(now, IDLE).background, 0);
        assert_eq!(share.allowed(now, STARVED).background, PIECE);
        // It returns the right when there is room for it.
        drop(stalled);
        assert_eq!(share.allowed(now, STARVED).background, MEMORY);
        assert_eq!(lock(&share.shares.overdraft).holder, None);
    }
}
