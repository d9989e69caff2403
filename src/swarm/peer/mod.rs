//! The protocol state of one connection: choking and interest, the pieces of the peer, the requests of both sides, its
//! extensions.

pub(super) mod extensions;
pub(super) mod holepunch;
pub(super) mod metadata;
pub(super) mod pex;
pub(super) mod requests;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fixedbitset::FixedBitSet;

use super::event::{Direction, NewPeer, PeerKey, PeerSource};
use super::pieces::{BlockId, Contributor};
use super::policy::{Need, Phase, Policy};
use super::rate::Meter;
use super::sched::pipeline::Pipeline;
use super::uploads::Uploads;
use crate::metainfo::BLOCK_LEN;
use crate::util::is_lan;
use crate::wire::{PeerId, PexFlags};

use extensions::Extensions;
use requests::Requests;

/// Number of requests that a peer is assumed to queue if it does not state it (BEP 10 `reqq`; libtorrent's default).
const REQQ: usize = 250;
/// Maximum number of requests outstanding at one peer, whatever it states.
const MAX_REQQ: usize = 2_000;
/// Maximum number of pieces remembered of each kind (suggested, allowed fast, rejected).
const MAX_HINTS: usize = 64;

/// The pieces of a peer.
#[derive(Debug)]
pub(super) enum Holding {
    All,
    Some(FixedBitSet),
}

/// A piece of a rejected request.
#[derive(Clone, Copy, Debug)]
struct Refused {
    piece: u32,
    /// When it was rejected.
    since: Instant,
    /// How long the piece is not requested. Longer with each reject until a block of it comes.
    pause: Duration,
    over: bool,
}

#[derive(Debug)]
pub(super) struct Peer {
    pub(super) addr: SocketAddr,
    /// The peer is in our own network.
    pub(super) in_lan: bool,
    pub(super) direction: Direction,
    pub(super) source: PeerSource,
    pub(super) id: PeerId,
    pub(super) fast: bool,
    utp: bool,
    encrypted: bool,
    pub(super) extensions: Extensions,
    pub(super) holding: Holding,
    /// Number of pieces that the peer has.
    pub(super) has_count: u32,
    /// Number of those pieces that we lack.
    pub(super) wanted: u32,
    /// How often the peer has stated that it lacks a piece that it had before.
    pub(super) losses: u32,

    pub(super) choking_us: bool,
    /// When the peer last choked us.
    pub(super) choked: Instant,
    pub(super) we_interested: bool,
    pub(super) we_choke: bool,
    pub(super) interested_in_us: bool,
    /// The peer will fetch nothing more (BEP 21).
    pub(super) upload_only: bool,

    /// Our requests.
    pub(super) asks: Requests,
    pub(super) pipeline: Pipeline,
    reqq: usize,
    /// The piece that the peer fetches in the background.
    pub(super) current: Option<u32>,
    /// `Pieces::freed` when the peer last had nothing to fetch.
    pub(super) exhausted_at: Option<u64>,
    /// Pieces that we may request while choked (BEP 6).
    pub(super) allowed: Vec<u32>,
    /// Pieces that the peer may request while choked (BEP 6).
    pub(super) granted: Vec<u32>,
    /// Pieces that the peer suggests (BEP 6).
    pub(super) suggested: VecDeque<u32>,
    /// Pieces of rejected requests.
    refused: VecDeque<Refused>,
    /// Nothing is requested before this, because the peer has rejected too many requests.
    paused: Option<Instant>,
    /// Number of blocks that we never requested.
    pub(super) unsolicited: u32,

    pub(super) uploads: Uploads,

    pub(super) down: Meter,
    pub(super) up: Meter,
    pub(super) downloaded: u64,
    pub(super) uploaded: u64,
    pub(super) connected: Instant,
    pub(super) last_received: Instant,
    pub(super) last_sent: Instant,
    /// When the peer last answered, or the first request was sent to an empty pipeline, or the peer had a reason to send
    /// nothing, whichever is latest.
    pub(super) last_progress: Instant,
    /// When it last answered a request.
    last_answer: Option<Instant>,
    /// When the peer was found silent although it owed us blocks, and how long it had been. Until it answers it is asked for
    /// one block at a time, and not before it had as long again.
    doubt: Option<(Instant, Duration)>,
    /// How long it had been silent when one of its requests was last repeated.
    pub(super) asked_anew: Duration,
}

impl Peer {
    pub(super) fn new(now: Instant, peer: &NewPeer, source: PeerSource, pieces: u32, policy: Arc<Policy>) -> Self {
        Self {
            addr: peer.addr,
            in_lan: is_lan(peer.addr.ip()),
            direction: peer.direction,
            source,
            id: peer.id,
            fast: peer.fast,
            utp: peer.utp,
            encrypted: peer.encrypted,
            extensions: Extensions::new(now),
            holding: Holding::Some(FixedBitSet::with_capacity(pieces as usize)),
            has_count: 0,
            wanted: 0,
            losses: 0,
            choking_us: true,
            choked: now,
            we_interested: false,
            we_choke: true,
            interested_in_us: false,
            upload_only: false,
            asks: Requests::new(peer.fast),
            pipeline: Pipeline::new(now, policy),
            reqq: REQQ,
            current: None,
            exhausted_at: None,
            allowed: Vec::new(),
            granted: Vec::new(),
            suggested: VecDeque::new(),
            refused: VecDeque::new(),
            paused: None,
            unsolicited: 0,
            uploads: Uploads::default(),
            down: Meter::new(now),
            up: Meter::new(now),
            downloaded: 0,
            uploaded: 0,
            connected: now,
            last_received: now,
            last_sent: now,
            last_progress: now,
            last_answer: None,
            doubt: None,
            asked_anew: Duration::ZERO,
        }
    }

    pub(super) fn contributor(&self, peer: PeerKey) -> Contributor {
        Contributor { peer, addr: self.addr, id: self.id }
    }

    fn policy(&self) -> &Policy {
        self.pipeline.policy()
    }

    pub(super) fn has(&self, piece: u32) -> bool {
        match &self.holding {
            Holding::All => true,
            Holding::Some(bits) => bits.contains(piece as usize),
        }
    }

    pub(super) fn is_seed(&self) -> bool {
        matches!(self.holding, Holding::All)
    }

    /// Returns the address at which others can dial this peer, if it is known.
    pub(super) fn dial_addr(&self) -> Option<SocketAddr> {
        match (self.source, self.direction) {
            // Its address is a placeholder.
            (PeerSource::WebSeed, _) => None,
            (_, Direction::Outgoing) => Some(self.addr),
            (_, Direction::Incoming) => Some(SocketAddr::new(self.addr.ip(), self.extensions.listen_port?)),
        }
    }

    /// Returns what peer exchange says about this peer.
    pub(super) fn pex_flags(&self) -> PexFlags {
        PexFlags {
            seed: self.is_seed(),
            utp: self.utp,
            encryption: self.encrypted,
            holepunch: self.extensions.holepunch != 0,
            reachable: self.direction == Direction::Outgoing,
        }
    }

    pub(super) fn set_reqq(&mut self, reqq: u32) {
        self.reqq = (reqq as usize).clamp(1, MAX_REQQ);
    }

    /// Returns whether any block may be requested from the peer.
    pub(super) fn may_ask(&self, now: Instant) -> bool {
        (!self.choking_us || !self.allowed.is_empty()) && self.paused.is_none_or(|until| now >= until)
    }

    /// Returns whether the peer has a piece, would serve it now and has not just rejected it.
    pub(super) fn serves(&self, now: Instant, piece: u32) -> bool {
        self.has(piece)
            && (!self.choking_us || self.allowed.contains(&piece))
            && !self.refused.iter().any(|refused| refused.piece == piece && now < refused.since + refused.pause)
    }

    /// Returns whether a piece may be requested even while the peer chokes us.
    pub(super) fn allows(&self, piece: u32) -> bool {
        self.allowed.contains(&piece)
    }

    /// Returns whether the answers to our requests for a piece are in doubt, because the peer has choked us.
    pub(super) fn has_choked(&self, piece: u32) -> bool {
        self.choking_us && !self.allows(piece)
    }

    /// Returns when the answer to a request that is cancelled now should be here: what the peer sends before it is on its
    /// way.
    pub(super) fn cancelled_until(&self, now: Instant, id: BlockId) -> Instant {
        if self.asks.all_answered() {
            return now + self.policy().doubt_timeout();
        }
        let before = self.asks.iter().take_while(|ask| ask.id != id).count() + self.asks.withdrawn(now);
        let eta = self.pipeline.eta((before + 1) as f64 * f64::from(BLOCK_LEN));
        now + Duration::from_secs_f64(eta.min(self.policy().doubt_timeout().as_secs_f64()))
    }

    /// Returns whether as many requests are outstanding as the peer queues.
    pub(super) fn is_full(&self, now: Instant) -> bool {
        self.asks.queued(now) >= self.reqq
    }

    /// Records that the peer sent a block.
    pub(super) fn has_sent_block(&mut self, now: Instant) {
        self.last_progress = now;
        self.has_answered(now);
    }

    /// Records that the peer answered a request, with a block or a reject.
    pub(super) fn has_answered(&mut self, now: Instant) {
        self.last_answer = Some(now);
        self.doubt = None;
        self.asked_anew = Duration::ZERO;
        self.pipeline.snubbed = false;
    }

    /// Returns whether the peer answered a request within the last `span`.
    pub(super) fn answered_within(&self, now: Instant, span: Duration) -> bool {
        self.last_answer.is_some_and(|at| now.saturating_duration_since(at) < span)
    }

    /// Returns how long the peer has owed us blocks and sent none.
    pub(super) fn silence(&self, now: Instant) -> Duration {
        if self.asks.is_empty() { Duration::ZERO } else { now.saturating_duration_since(self.last_progress) }
    }

    /// Returns how long the peer has been silent, if that is twice as long as all that it owes should take; else zero.
    pub(super) fn overdue(&self, now: Instant) -> Duration {
        let owed = self.pipeline.outstanding() as f64 + self.stray_bytes(now);
        let silence = self.silence(now);
        if silence.as_secs_f64() > 2.0 * self.pipeline.eta(owed) { silence } else { Duration::ZERO }
    }

    /// Returns whether the peer is overdue for so long that nothing more is expected of it; each time for twice as long.
    pub(super) fn is_silent(&self, now: Instant, limit: Duration) -> bool {
        self.overdue(now) >= self.doubt.map_or(limit, |(_, silence)| limit.max(2 * silence))
    }

    /// Returns whether a read cannot rely on the peer: it did not answer, or is about to be given up for that.
    pub(super) fn has_stopped(&self, now: Instant) -> bool {
        self.doubt.is_some() || self.overdue(now) >= self.policy().dead_timeout()
    }

    /// Expects nothing of a peer for as long as it has been silent, or for twice as long as the last time.
    pub(super) fn doubt(&mut self, now: Instant, silence: Duration) {
        let before = self.doubt.map_or(Duration::ZERO, |(_, silence)| 2 * silence);
        let most = self.policy().snub_timeout();
        self.doubt = Some((now, silence.max(before).min(most)));
        self.pipeline.snub();
    }

    /// Returns the seconds that another block takes, if the peer is given one more than it has room for.
    pub(super) fn block_time(&self) -> f64 {
        let len = f64::from(BLOCK_LEN);
        let time = self.pipeline.eta(2.0 * len) - self.pipeline.eta(len);
        // A peer in doubt gets one.
        self.doubt.map_or(time, |(_, silence)| time + silence.as_secs_f64())
    }

    /// Returns the bytes that may be requested now for a need.
    pub(super) fn room(&self, now: Instant, need: Need, phase: Phase) -> f64 {
        let queue_left = self.reqq.saturating_sub(self.asks.queued(now)) as f64 * f64::from(BLOCK_LEN);
        self.pipeline.room(now, need, phase).min(queue_left)
    }

    /// Returns the seconds until the next `bytes` of what it owes, and of what it would be asked for now, are here.
    /// Cancelled blocks that may still come are ahead of them. What a peer owes has been on its way since it last sent
    /// something, and may come all at once at the end of the time that it takes. A peer that lets that time pass has
    /// stalled: nothing is known about it but that it may stay silent for as long again.
    pub(super) fn eta(&self, now: Instant, bytes: f64) -> f64 {
        self.etas(now)(bytes)
    }

    /// Returns [`eta`](Self::eta) as a function, for many numbers of bytes: cancelled requests are counted only once.
    pub(super) fn etas(&self, now: Instant) -> impl Fn(f64) -> f64 {
        let strays = self.stray_bytes(now);
        let owed = self.pipeline.outstanding() as f64 + strays;
        let doubt = match self.doubt {
            // It may stay silent, even if it was not asked for anything meanwhile.
            Some((at, silence)) if !self.asks.is_empty() || now < at + silence => silence,
            _ => Duration::ZERO,
        };
        let silence = self.silence(now).max(doubt).as_secs_f64();
        let stalled = !doubt.is_zero() || silence > self.pipeline.eta(owed);
        move |bytes| {
            let bytes = bytes + strays;
            let eta = self.pipeline.eta(bytes);
            if stalled {
                return eta + silence;
            }
            let least = if bytes > owed { self.pipeline.eta(bytes - owed) } else { 0.0 };
            (eta - silence).max(least)
        }
    }

    /// Returns the bytes of cancelled requests whose blocks may still come.
    fn stray_bytes(&self, now: Instant) -> f64 {
        self.asks.withdrawn(now) as f64 * f64::from(BLOCK_LEN)
    }

    /// Returns whether enough of the pipeline is empty for another batch of requests.
    pub(super) fn wants_refill(&self, now: Instant, phase: Phase) -> bool {
        self.may_ask(now) && self.asks.queued(now) <= self.reqq * 3 / 4 && self.pipeline.wants_refill(now, phase)
    }

    /// Records that the peer rejected a request for a piece. It may lack the piece, or have too many requests of ours.
    pub(super) fn refuse(&mut self, now: Instant, piece: u32) {
        let (first, longest) = (self.policy().first_reject_pause(), self.policy().reject_pause());
        match self.refused.iter_mut().find(|refused| refused.piece == piece) {
            // The rejects of one batch count once.
            Some(refused) if now < refused.since + refused.pause => {}
            Some(refused) => {
                *refused = Refused { since: now, pause: longest.min(2 * refused.pause), over: false, ..*refused };
            }
            None => self.refused.push_back(Refused { piece, since: now, pause: first, over: false }),
        }
        if self.refused.len() > MAX_HINTS
            && let Some(oldest) = self.refused.pop_front()
            && self.last_answer.is_none_or(|at| at < oldest.since)
        {
            self.paused = Some(now + longest);
        }
        self.allowed.retain(|allowed| *allowed != piece);
    }

    /// Records that a block of a piece came, so that its rejects were not for lack of it.
    pub(super) fn has_served(&mut self, piece: u32) {
        if !self.refused.is_empty() {
            self.refused.retain(|refused| refused.piece != piece);
            self.exhausted_at = None;
        }
    }

    pub(super) fn allow(&mut self, piece: u32) {
        if self.allowed.len() < MAX_HINTS && !self.allowed.contains(&piece) {
            self.allowed.push(piece);
        }
    }

    pub(super) fn suggest(&mut self, piece: u32) {
        if !self.suggested.contains(&piece) {
            self.suggested.push_back(piece);
        }
        if self.suggested.len() > MAX_HINTS {
            self.suggested.pop_front();
        }
    }

    /// Lets pieces be requested again whose rejects are old enough, and blocks whose cancelled requests are over.
    pub(super) fn end_pauses(&mut self, now: Instant) {
        let (silence_timeout, memory) = (self.policy().silence_timeout, self.policy().useless_timeout());
        if self.paused.is_some_and(|until| now >= until) {
            self.paused = None;
            self.exhausted_at = None;
        }
        if !self.refused.is_empty() {
            for refused in self.refused.iter_mut().filter(|one| !one.over && now >= one.since + one.pause) {
                refused.over = true;
                self.exhausted_at = None;
            }
            self.refused.retain(|refused| now < refused.since + silence_timeout);
        }
        if self.asks.expire(now, memory) {
            self.exhausted_at = None;
        }
    }
}

impl Peer {
    pub(super) fn check(&self) {
        self.uploads.check();
        self.asks.check(self.last_progress, MAX_REQQ);
        assert!(self.doubt.is_none() || self.pipeline.snubbed);
        assert!(
            self.allowed.len() <= MAX_HINTS && self.suggested.len() <= MAX_HINTS && self.refused.len() <= MAX_HINTS
        );
    }
}
