//! Every tuning constant of a swarm, and the one decision that most of them serve: how long a queue a peer may have.
//!
//! Limits that protect memory, CPU or the protocol (the longest bitfield, the most addresses) are not tuning: they stay
//! with the code that they protect.

use std::time::Duration;

/// Why a block is wanted, the most urgent first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Need {
    /// The first missing piece, in file order, that a file handle's reads are blocked on.
    Due,
    /// Another piece that a read is blocked on.
    Blocked,
    /// The next piece of a reader that is not blocked, if it starts within [`Policy::next_distance`].
    Next,
    /// Another piece in a read-ahead window.
    Soon,
    /// A piece in the window of a reader that is blocked where it just sought. It may never read on, so for a moment these
    /// pieces come after every block that a read is blocked on.
    Speculative,
    /// A piece that a read is blocked on at a place that its handle has left: kernel read-ahead that nobody waits for.
    Abandoned,
    /// No reader needs it.
    Background,
}

impl Need {
    /// A read is blocked on it.
    pub(super) fn is_blocked(self) -> bool {
        self <= Self::Blocked
    }

    /// A reader waits for it now, or will in a moment.
    pub(super) fn is_due(self) -> bool {
        matches!(self, Self::Due | Self::Next)
    }
}

/// The activity of the swarm's readers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// Nobody has read for [`Policy::reader_timeout`].
    Filling,
    /// A reader is active.
    Reading,
    /// A read blocked less than [`Policy::blocked_moment`] ago.
    JustBlocked,
}

/// The tuning of a swarm. The defaults are for streaming over the internet from peers of unknown speed.
#[derive(Clone, PartialEq, Debug)]
pub struct Policy {
    /// Queue at each peer while nobody reads. One second keeps a peer busy that grants bandwidth in bursts.
    pub filling_queue: Duration,
    /// Queue at each peer while somebody reads. A seek waits behind it, so it is as short as full use of a peer allows.
    pub reading_queue: Duration,
    /// Queue at a peer for blocks that a reader waits for now. A block that is held back costs another round trip, and a
    /// peer that grants bandwidth in bursts sends this much at once.
    pub due_queue: Duration,
    /// Bytes requested from a peer whose rate is unknown.
    pub first_window: u64,
    /// Bytes that may be outstanding at any peer: fewer make a slow peer pause between two requests.
    pub min_window: u64,
    /// Bytes outstanding at a peer for speculative pieces just after a seek: they keep it from idling, and the next seek
    /// waits behind no more.
    pub speculative_window: u64,
    /// How far above the measured rate the window may be: a rate that our own window limits is found by growth.
    pub rate_headroom: f64,
    /// Part of the window below which the next batch of requests goes out.
    pub refill_level: f64,

    /// Time over which a peer's rate is averaged. Peers send in bursts of up to this length.
    pub rate_span: Duration,
    /// The least time that a new rate is averaged over, so that a first burst is not taken for the rate.
    pub min_rate_span: Duration,
    /// Bytes a second assumed of a peer that has sent nothing yet.
    pub unknown_rate: u64,
    /// Latency assumed of a peer that has sent nothing yet.
    pub unknown_latency: Duration,
    /// How long a measured base latency is valid.
    pub probe_interval: Duration,
    /// How many of its own lengths a base latency is valid: a probe idles the peer for two, which must not cost much.
    pub probe_latencies: f64,
    /// How long the base latency of a peer's first requests is valid: they were sent together and delay each other.
    pub first_probe_interval: Duration,
    /// Time until a spoilt probe is repeated.
    pub probe_retry: Duration,

    /// A block is late after its peer's mean delay plus so many mean deviations.
    pub late_deviations: f64,
    /// The least time after which a block is late.
    pub min_late: Duration,
    /// How many times sooner a second peer must deliver a late block before it is asked as well: where all peers are late
    /// alike, asking twice would only halve what they deliver.
    pub hedge_advantage: f64,
    /// A peer has stalled when it is silent for so many times as long as everything it owes should take.
    pub stall_factor: f64,
    /// A peer that owes blocks and sends none for so long is snubbed: asked for one block at a time.
    pub snub_timeout: Duration,
    /// How long a reader waits for a block from the one peer that must deliver a suspect piece alone.
    pub solo_timeout: Duration,
    /// How long a peer that choked us has to answer the requests it had.
    pub choke_grace: Duration,
    /// How long the answer to a cancelled request may take; until then the block is not requested from that peer again.
    pub cancel_grace: Duration,
    /// How long a cancelled request's block may be ahead of a new one, and spoil a measurement of latency.
    pub stray_grace: Duration,
    /// How long a rejected piece is not requested from that peer again.
    pub reject_pause: Duration,

    /// Bytes of read-ahead after a seek.
    pub min_read_ahead: u64,
    /// Bytes of read-ahead at most.
    pub max_read_ahead: u64,
    /// Bytes that a read-ahead window may grow to however slow its reader is.
    pub slow_read_ahead: u64,
    /// Read-ahead in time at the reader's own rate.
    pub read_ahead_time: Duration,
    /// Bytes around the position within which a read is no seek: the kernel reads out of order.
    pub reorder_distance: u64,
    /// Bytes a second that every reader is assumed to consume at least.
    pub min_read_rate: u64,
    /// How long after its last read a reader counts as active.
    pub reader_timeout: Duration,
    /// How long abandoned reads come last; after that they are treated as blocked, for abandonment is a guess.
    pub abandoned_delay: Duration,
    /// Bytes ahead of a reader within which its next piece counts as due.
    pub next_distance: u64,
    /// How long a newly blocked read suppresses background requests.
    pub blocked_moment: Duration,

    /// Pieces that are picked at random before rarest-first begins: they come quickly and differ from other peers'.
    pub random_first: u32,
    /// Blocks that an idle peer is asked for a second time in end-game.
    pub end_game_blocks: usize,

    /// Tick while a read is blocked: how soon a late block is noticed.
    pub blocked_tick: Duration,
    /// Tick while blocks are outstanding.
    pub busy_tick: Duration,
    /// Tick otherwise.
    pub idle_tick: Duration,
}

impl Policy {
    /// Returns how much queue, in time at its own rate, a peer may have for a need beyond what its latency covers. `None`:
    /// nothing is requested for it. Zero: just enough that the peer does not idle.
    pub(super) fn queue_allowance(&self, need: Need, phase: Phase) -> Option<Duration> {
        match (need, phase) {
            (Need::Due | Need::Next, _) => Some(self.due_queue),
            (Need::Background, Phase::JustBlocked) => None,
            (Need::Speculative, Phase::JustBlocked) => Some(Duration::ZERO),
            (_, Phase::Filling) => Some(self.filling_queue),
            (_, Phase::Reading | Phase::JustBlocked) => Some(self.reading_queue),
        }
    }
}

impl Default for Policy {
    fn default() -> Self {
        const BLOCK: u64 = crate::metainfo::BLOCK_LEN as u64;
        Self {
            filling_queue: Duration::from_secs(1),
            reading_queue: Duration::from_millis(50),
            due_queue: Duration::from_millis(250),
            first_window: 6 * BLOCK,
            min_window: 3 * BLOCK,
            speculative_window: 2 * BLOCK,
            rate_headroom: 1.25,
            refill_level: 0.75,

            rate_span: Duration::from_millis(400),
            min_rate_span: Duration::from_millis(100),
            unknown_rate: 1_000_000,
            unknown_latency: Duration::from_millis(100),
            probe_interval: Duration::from_secs(10),
            probe_latencies: 100.0,
            first_probe_interval: Duration::from_secs(3),
            probe_retry: Duration::from_secs(1),

            late_deviations: 4.0,
            min_late: Duration::from_millis(50),
            hedge_advantage: 2.0,
            stall_factor: 1.5,
            snub_timeout: Duration::from_secs(20),
            solo_timeout: Duration::from_secs(3),
            choke_grace: Duration::from_secs(2),
            cancel_grace: Duration::from_secs(10),
            stray_grace: Duration::from_secs(1),
            reject_pause: Duration::from_secs(5),

            min_read_ahead: 1 << 20,
            max_read_ahead: 32 << 20,
            slow_read_ahead: 8 << 20,
            read_ahead_time: Duration::from_secs(20),
            reorder_distance: 2 << 20,
            min_read_rate: 256_000,
            reader_timeout: Duration::from_secs(10),
            abandoned_delay: Duration::from_secs(3),
            next_distance: 512 << 10,
            blocked_moment: Duration::from_millis(300),

            random_first: 4,
            end_game_blocks: 4,

            blocked_tick: Duration::from_millis(25),
            busy_tick: Duration::from_millis(200),
            idle_tick: Duration::from_secs(1),
        }
    }
}
