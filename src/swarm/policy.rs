//! Every tuning constant of a swarm, and the one decision that most of them serve: how long a queue a peer may have.
//!
//! [`Policy::queue_allowance`] answers in time, `Pipeline::room` turns the answer into bytes, and nothing in `sched` has a
//! limit of its own. Limits that protect memory, CPU, other hosts or the protocol stay with the code that they protect, and
//! so do the intervals that a BEP names (choking, peer exchange).
//!
//! # The sweep
//!
//! The effect of halving and doubling each constant over the simulated links of `tests/pure/simulation/workload.rs` and
//! the whole swarms of `swarms.rs` beside it: the three results that change most, if by more than 3 % and more than they
//! vary from seed to seed. Each is the mean of four seeds. Results are times, except `copy` and `fill`, which are shares
//! of the links' rate, and `super-seed copies`; `hostile` has silent peers and a liar. A constant without an effect was
//! removed or made to follow from another: `silence_timeout`, `near_distance` and `blocked_tick` each replace several.
//! `cargo bench --bench policy -- 4` repeats the sweep.
//!
//! | constant | half | double |
//! |---|---|---|
//! | `filling_queue` | small far fill -4 %, far fill -4 % | swarm crowd +3 % |
//! | `reading_queue` | small far 4MiB +10 %, small far start +6 %, small few 4MiB +5 % | bursts seek p90 +47 %, small seek p90 +21 %, small far jump +10 % |
//! | `due_queue` | bursts first +25 %, home 4MiB +13 %, home start +13 % | far seek p90 +8 %, busy first +7 %, unsteady first +7 % |
//! | `first_window` | crowd seek p90 -18 %, small far first +13 %, bursts first +12 % | hostile first +75 %, small crowd first +26 %, crowd 4MiB +15 % |
//! | `rate_headroom` | far fill -29 %, small far fill -28 %, small first +17 % | far seek p90 +33 %, small seek p90 +28 %, small far worst jump +23 % |
//! | `refill_level` | far fill -29 %, small far fill -29 %, small seek p90 +16 % | bursts first +9 %, small crowd seek p50 +8 %, unsteady 4MiB +4 % |
//! | `rate_span` | crowd seek p50 +11 %, small far worst jump +9 %, small far start -8 % | small crowd worst jump -17 %, swarm slow crowd -8 %, crowd worst jump -8 % |
//! | `min_rate_span` | bursts seek p90 +36 %, unsteady worst jump +14 %, unsteady seek p50 -6 % | small first +29 %, small start +23 %, small few first +18 % |
//! | `unknown_rate` | hostile first +90 %, hostile start +13 %, hostile 4MiB +11 % | small first +27 %, hostile first -27 %, unsteady seek p90 -11 % |
//! | `unknown_latency` | small first +20 %, small start +19 %, crowd seek p90 -12 % | hostile first +25 %, small start -11 %, home first +9 % |
//! | `hedge_advantage` | bursts seek p90 +25 %, crowd seek p90 -25 %, unsteady seek p90 -11 % | crowd first +39 %, crowd 4MiB +39 %, crowd start +39 % |
//! | `silence_timeout` | far seek p90 +24 %, crowd 4MiB +19 %, crowd start +19 % | small far worst jump +9 %, small crowd jump -3 % |
//! | `near_distance` | small far worst jump +20 %, crowd seek p90 -17 %, small far jump +17 % | bursts seek p90 +39 %, small crowd worst jump -25 %, small crowd jump -14 % |
//! | `blocked_moment` | crowd seek p90 -19 %, small first +17 %, unsteady seek p90 -12 % | small far jump +10 % |
//! | `random_first` | unsteady seek p90 -8 %, unsteady seek p50 -6 % | unsteady seek p50 -9 % |
//! | `blocked_tick` | unsteady seek p90 -14 %, small start +6 % | bursts first +22 %, bursts seek p90 +9 %, small first +6 % |
//! | `upload_slots` | swarm slow crowd -20 %, swarm fast seed -8 % | swarm slow crowd +33 %, swarm crowd +20 %, swarm fast seed +6 % |
//! | `open_offers` | – | swarm super-seed time +4 % |
//! | `dial_limit` | crowd seek p90 -19 %, crowd 4MiB +18 %, crowd start +18 % | small crowd worst jump -6 %, small crowd start -5 % |
//! | `metadata_pipeline` | swarm metadata +91 % | swarm metadata -45 % |
//! | `metadata_late` | swarm metadata, silent peers -47 % | swarm metadata, silent peers +71 % |

use std::time::Duration;

/// Why a block is wanted, the most urgent first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Need {
    /// The first missing piece, in file order, that a file handle's reads are blocked on.
    Due,
    /// Another piece that a read is blocked on.
    Blocked,
    /// The next piece of a reader that is not blocked, if it starts near its position.
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

/// The activity of readers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// Nobody has read for [`Policy::silence_timeout`].
    Filling,
    /// The same, and a read of another torrent is blocked on blocks that are on their way.
    Yielding,
    /// A reader is active.
    Reading,
    /// A read blocked where it had sought less than [`Policy::seeking_moment`] ago, so the next seek may come soon.
    Seeking,
    /// A read blocked less than [`Policy::blocked_moment`] ago.
    JustBlocked,
}

/// The tuning of a swarm. The defaults are for streaming over the internet from peers of unknown speed.
#[derive(Clone, PartialEq, Debug)]
pub struct Policy {
    /// Queue at each peer while nobody reads: enough that a peer with bursts of bandwidth stays busy. With a longer one,
    /// peers of a flash crowd hold more unfinished pieces, which they cannot pass on.
    pub filling_queue: Duration,
    /// Queue at each peer while somebody reads. The next seek waits behind it, so it is as short as full use of a peer
    /// allows.
    pub reading_queue: Duration,
    /// Queue at a peer for blocks that a reader waits for now. A block that is held back costs another round trip, and a
    /// peer that grants bandwidth in bursts sends this much at once.
    pub due_queue: Duration,
    /// Bytes that may be outstanding at a peer that has sent nothing yet. With fewer, it is known later; with more, a slow
    /// peer holds up a reader that trusts it before it is known.
    pub first_window: u64,
    /// Window in terms of the measured rate while blocks come back soon, so that a rate that our own window limits is
    /// found by growth. More stands in the way of the next seek.
    pub rate_headroom: f64,
    /// Part of the window below which the next batch of requests goes out: batches save work.
    pub refill_level: f64,

    /// Time over which a peer's rate is averaged. Peers send in bursts of up to this length.
    pub rate_span: Duration,
    /// The least time that a new rate is averaged over, so that a first burst is not taken for the rate.
    pub min_rate_span: Duration,
    /// Bytes a second assumed of a peer that has sent nothing yet: less than most, so that known peers come first.
    pub unknown_rate: u64,
    /// Latency assumed of a peer that has sent nothing yet: a typical round trip.
    pub unknown_latency: Duration,

    /// How many times sooner a second peer must deliver a block of a blocked read before it is asked as well. Where all
    /// peers are late alike, asking twice would only halve what they deliver.
    pub hedge_advantage: f64,
    /// Time of silence after which nothing more is expected of a peer or a reader: no answer to a lost request comes any more,
    /// and a torrent does not count as being read. Ten seconds outlast a pause of a player and of most lines.
    /// Follow from it: `snub_timeout`, `dead_timeout`, `repeat_timeout`, `reject_pause`, `doubt_timeout`, `abandoned_moment`,
    /// `useless_timeout`, `base_validity`, `dial_moment`.
    pub silence_timeout: Duration,

    /// Bytes around a reader's position within which a read is no seek, because the kernel reads ahead and out of order in
    /// several threads. Follow from it: `min_read_ahead`, `next_distance`, `min_read_rate`.
    pub near_distance: u64,
    /// Time for which a newly blocked read suppresses background requests and read-ahead that may never be read: about what
    /// one takes.
    pub blocked_moment: Duration,

    /// Pieces that are picked at random before rarest-first begins: they come quickly and differ from other peers'.
    pub random_first: u32,

    /// Time between two looks at late blocks while a read is blocked. Follow from it: `busy_tick`, `idle_tick`.
    pub blocked_tick: Duration,

    /// Number of peers served at a time while we send little: enough that some of them return the favour.
    pub upload_slots: u32,
    /// Pieces that a super-seed offers to a peer before one of them appears at another peer: the next one is known before
    /// the current one is complete.
    pub open_offers: u32,

    /// Addresses dialed in one moment (`dial_moment`), less those that answer in it. Most addresses of a tracker do not
    /// answer, so with fewer a reader waits for the first that does. libtorrent dials as many a second; a burst of more
    /// fills the connection tables of some home routers. Follows from it: `dial_slots`.
    pub dial_limit: u32,

    /// Metadata pieces requested from one peer at a time: bridges the round trip without overloading a peer.
    pub metadata_pipeline: u32,
    /// Time after which a metadata piece is requested from another peer, too.
    pub metadata_late: Duration,
}

impl Policy {
    /// Returns how much queue, in time at its own rate, a peer may have for a need beyond what its latency covers. `None`:
    /// nothing is requested for it. Zero: just enough that the peer does not idle.
    pub(super) fn queue_allowance(&self, need: Need, phase: Phase) -> Option<Duration> {
        match (need, phase) {
            (Need::Due | Need::Next, _) => Some(self.due_queue),
            (Need::Background, Phase::JustBlocked | Phase::Yielding) => None,
            (Need::Speculative, Phase::JustBlocked) | (Need::Background, Phase::Seeking) => Some(Duration::ZERO),
            (_, Phase::Filling) => Some(self.filling_queue),
            (_, Phase::Seeking) => Some(self.seeking_queue()),
            (_, Phase::Reading | Phase::JustBlocked | Phase::Yielding) => Some(self.reading_queue),
        }
    }

    /// Queue at each peer while somebody seeks: the next seek waits behind it.
    pub(super) fn seeking_queue(&self) -> Duration {
        self.reading_queue / 2
    }

    /// Time after a seek in which another one is likely.
    pub(super) fn seeking_moment(&self) -> Duration {
        self.silence_timeout / 2
    }

    /// Time of silence after which a peer that owes us blocks is asked for one block at a time.
    pub(super) fn snub_timeout(&self) -> Duration {
        2 * self.silence_timeout
    }

    /// Time of silence after which a peer that owes us blocks counts as dead for a read that is blocked: all other peers are
    /// asked instead, and it is asked for one block at a time.
    pub(super) fn dead_timeout(&self) -> Duration {
        self.silence_timeout / 10
    }

    /// Time of silence after which a request is repeated, because it may be lost, if a read is blocked and no other peer can
    /// be asked.
    pub(super) fn repeat_timeout(&self) -> Duration {
        self.silence_timeout / 40
    }

    /// Time before a piece is requested again from a peer that rejected it for the first time. It may only have too many
    /// requests.
    pub(super) fn first_reject_pause(&self) -> Duration {
        self.silence_timeout / 100
    }

    /// The longest time before a piece is requested again from a peer that rejected it. The pause doubles with each reject.
    pub(super) fn reject_pause(&self) -> Duration {
        self.silence_timeout / 2
    }

    /// The longest time for an answer that may well not come: from a peer that choked us, to a cancelled request, to one
    /// that was passed over and that no read is blocked on, and from the one peer that must deliver a suspect piece.
    pub(super) fn doubt_timeout(&self) -> Duration {
        self.silence_timeout / 5
    }

    /// Time for which reads at a place that their handle has left come last: long enough for a player to fill its buffer at
    /// the new place. Longer, and somebody does wait for them.
    pub(super) fn abandoned_moment(&self) -> Duration {
        self.silence_timeout
    }

    /// Time that a peer, or an attempt to fetch metadata, may take a place that others wait for without being of use.
    pub(super) fn useless_timeout(&self) -> Duration {
        6 * self.silence_timeout
    }

    /// Time in which an address that can be reached usually answers: after it, an attempt no longer keeps others from
    /// beginning.
    pub(super) fn dial_moment(&self) -> Duration {
        self.silence_timeout / 10
    }

    /// Attempts that may have begun in the last [`Policy::dial_moment`] while `old` others are under way. Old ones cost a
    /// router an entry each in its table, of which cheap ones have a thousand for all, so their number has a limit. Some
    /// attempts remain for the addresses of a source that answers late.
    pub(super) fn dial_slots(&self, old: usize) -> usize {
        let (limit, most) = (self.dial_limit as usize, 4 * self.dial_limit as usize);
        (limit * most.saturating_sub(old)).div_ceil(most.max(1))
    }

    /// Time for which a measured base latency of so many seconds is valid. To measure it again idles the peer for some three
    /// latencies, so it lasts for at least three hundred: that costs one per cent.
    pub(super) fn base_validity(&self, latency: f64) -> Duration {
        self.silence_timeout.max(Duration::from_secs_f64((300.0 * latency).clamp(0.0, 600.0)))
    }

    /// Time before the base latency is measured again, if another request spoilt the measurement.
    pub(super) fn repeat_probe_after(&self) -> Duration {
        self.silence_timeout / 10
    }

    /// Bytes a second for each peer served, times their number, below which no further peer is served: with more slots each
    /// peer would wait longer for a whole piece to pass on. An eighth of what is assumed of a peer.
    pub(super) fn slot_rate(&self) -> u64 {
        self.unknown_rate / 8
    }

    /// Least bytes read ahead of a reader.
    pub(super) fn min_read_ahead(&self) -> u64 {
        self.near_distance / 2
    }

    /// Bytes from a reader's position within which the start of the next piece makes that piece due.
    pub(super) fn next_distance(&self) -> u64 {
        self.near_distance / 4
    }

    /// Least bytes a second that a reader is assumed to consume: those of a slow film.
    pub(super) fn min_read_rate(&self) -> f64 {
        self.near_distance as f64 / 8.0
    }

    /// Time between two looks at the swarm while blocks are outstanding and no read is blocked.
    pub(super) fn busy_tick(&self) -> Duration {
        8 * self.blocked_tick
    }

    /// Time between two looks at the swarm while nothing is outstanding.
    pub(super) fn idle_tick(&self) -> Duration {
        40 * self.blocked_tick
    }
}

impl Default for Policy {
    fn default() -> Self {
        const BLOCK: u64 = crate::metainfo::BLOCK_LEN as u64;
        Self {
            filling_queue: Duration::from_millis(200),
            reading_queue: Duration::from_millis(50),
            due_queue: Duration::from_millis(250),
            first_window: 3 * BLOCK,
            rate_headroom: 1.25,
            refill_level: 0.75,

            rate_span: Duration::from_millis(400),
            min_rate_span: Duration::from_millis(100),
            unknown_rate: 200_000,
            unknown_latency: Duration::from_millis(100),

            hedge_advantage: 2.0,
            silence_timeout: Duration::from_secs(10),

            near_distance: 2 << 20,
            blocked_moment: Duration::from_millis(300),

            random_first: 4,

            blocked_tick: Duration::from_millis(25),

            upload_slots: 4,
            open_offers: 2,

            dial_limit: 30,

            metadata_pipeline: 4,
            metadata_late: Duration::from_secs(3),
        }
    }
}
