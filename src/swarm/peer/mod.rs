//! The protocol state of one connection: choking and interest, the pieces of the peer, the requests of both sides, its
//! extensions.

pub(super) mod extensions;
pub(super) mod holepunch;
pub(super) mod metadata;
pub(super) mod pex;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

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

/// Number of requests that a peer is assumed to queue if it does not state it (BEP 10 `reqq`; libtorrent's default).
const REQQ: usize = 250;
/// Maximum number of requests outstanding at one peer, whatever it states.
const MAX_REQQ: usize = 2_000;
/// Maximum number of pieces remembered of each kind (suggested, allowed fast, rejected).
const MAX_HINTS: usize = 64;
/// Maximum number of cancelled requests remembered.
const MAX_CANCELLED: usize = 4_000;

/// The pieces of a peer.
#[derive(Debug)]
pub(super) enum Holding {
    All,
    Some(FixedBitSet),
}

/// One request of ours.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ask {
    pub(super) id: BlockId,
    pub(super) sent: Instant,
    /// It was sent to an empty pipeline, so that its delay is the base latency.
    pub(super) fresh: bool,
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
    /// The peer has not sent a core message yet: have-all and have-none may only come first (BEP 6).
    pub(super) opening: bool,

    pub(super) choking_us: bool,
    /// When the peer last choked us.
    pub(super) choked: Instant,
    pub(super) we_interested: bool,
    pub(super) we_choke: bool,
    pub(super) interested_in_us: bool,
    /// The peer will fetch nothing more (BEP 21).
    pub(super) upload_only: bool,

    /// Our requests, in the order sent.
    pub(super) asks: VecDeque<Ask>,
    /// Requests that were cancelled or voided by a choke and may still be answered, and since when.
    pub(super) cancelled: BTreeMap<BlockId, Instant>,
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
    /// Pieces of rejected requests, and when they were rejected.
    refused: VecDeque<(u32, Instant)>,
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
    /// When the last block arrived, or the first request was sent to an empty pipeline, whichever is later.
    pub(super) last_progress: Instant,
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
            opening: true,
            choking_us: true,
            choked: now,
            we_interested: false,
            we_choke: true,
            interested_in_us: false,
            upload_only: false,
            asks: VecDeque::new(),
            cancelled: BTreeMap::new(),
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
            && !self
                .refused
                .iter()
                .any(|(refused, when)| *refused == piece && now < *when + self.policy().reject_pause())
    }

    /// Returns whether a cancelled request for this block may still be answered, so that it must not be requested
    /// again.
    pub(super) fn may_still_answer(&self, now: Instant, id: BlockId) -> bool {
        !self.cancelled.is_empty()
            && self.cancelled.get(&id).is_some_and(|since| now < *since + self.policy().silence_timeout)
    }

    /// Returns whether no answer to a cancelled request can arrive before that to a new one.
    pub(super) fn is_clean(&self, now: Instant) -> bool {
        !self.cancelled.values().any(|since| now < *since + self.policy().doubt_timeout())
    }

    pub(super) fn record_cancel(&mut self, now: Instant, id: BlockId) {
        if self.cancelled.len() >= MAX_CANCELLED {
            let grace = self.policy().silence_timeout;
            self.cancelled.retain(|_, since| now < *since + grace);
        }
        if self.cancelled.len() < MAX_CANCELLED {
            self.cancelled.insert(id, now);
        }
    }

    /// Returns whether as many requests are outstanding as the peer queues.
    pub(super) fn is_full(&self) -> bool {
        self.asks.len() >= self.reqq
    }

    /// Returns the bytes that may be requested now for a need.
    pub(super) fn room(&self, now: Instant, need: Need, phase: Phase) -> f64 {
        let queue_left = (self.reqq - self.asks.len().min(self.reqq)) as f64 * f64::from(BLOCK_LEN);
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
        let silence = match self.asks.is_empty() {
            true => 0.0,
            false => now.saturating_duration_since(self.last_progress).as_secs_f64(),
        };
        let stalled = silence > self.pipeline.eta(owed);
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

    /// Returns the bytes of cancelled requests whose blocks may still come. With the fast extension each is answered by
    /// its block or a reject.
    fn stray_bytes(&self, now: Instant) -> f64 {
        if self.cancelled.is_empty() {
            return 0.0;
        }
        let grace = if self.fast { self.policy().silence_timeout } else { self.policy().doubt_timeout() };
        let strays = self.cancelled.values().filter(|since| now < **since + grace).count();
        strays as f64 * f64::from(BLOCK_LEN)
    }

    /// Returns whether enough of the pipeline is empty for another batch of requests.
    pub(super) fn wants_refill(&self, now: Instant, phase: Phase) -> bool {
        self.may_ask(now) && self.asks.len() <= self.reqq * 3 / 4 && self.pipeline.wants_refill(now, phase)
    }

    /// Removes the outstanding request for a block. Fast, because answers mostly come in order.
    pub(super) fn take_ask(&mut self, id: BlockId) -> Option<Ask> {
        let at = self.asks.iter().position(|ask| ask.id == id)?;
        self.asks.remove(at)
    }

    /// Records that the peer rejected a request for a piece.
    pub(super) fn refuse(&mut self, now: Instant, piece: u32) {
        let pause = self.policy().reject_pause();
        self.refused.retain(|(_, when)| now < *when + pause);
        if !self.refused.iter().any(|(refused, _)| *refused == piece) {
            self.refused.push_back((piece, now));
        }
        if self.refused.len() > MAX_HINTS {
            self.refused.pop_front();
            self.paused = Some(now + pause);
        }
        self.allowed.retain(|allowed| *allowed != piece);
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

    /// Lets pieces be requested again whose rejects are old enough.
    pub(super) fn end_pause(&mut self, now: Instant) {
        let pause = self.policy().reject_pause();
        let over = |when: Instant| now >= when + pause;
        if self.paused.is_some_and(|until| now >= until) || self.refused.front().is_some_and(|(_, when)| over(*when)) {
            self.paused = None;
            self.refused.retain(|(_, when)| !over(*when));
            self.exhausted_at = None;
        }
    }

    /// Lets blocks be requested again whose cancelled requests were not answered for long enough.
    pub(super) fn forget_cancels(&mut self, now: Instant) {
        let (before, grace) = (self.cancelled.len(), self.policy().silence_timeout);
        self.cancelled.retain(|_, since| now < *since + grace);
        if self.cancelled.len() != before {
            self.exhausted_at = None;
        }
    }
}

impl Peer {
    pub(super) fn check(&self) {
        self.uploads.check();
        assert!(self.asks.len() <= MAX_REQQ && self.cancelled.len() <= MAX_CANCELLED);
        assert!(
            self.allowed.len() <= MAX_HINTS && self.suggested.len() <= MAX_HINTS && self.refused.len() <= MAX_HINTS
        );
    }
}
