//! One connection's protocol state: who chokes whom, what they have, what we asked of them, what they asked of us.

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

/// Requests that a peer is assumed to queue when it does not say (BEP 10 `reqq`; libtorrent's default).
const REQQ: usize = 250;
/// The most that we have outstanding at one peer, whatever it says.
const MAX_REQQ: usize = 2_000;
/// The most pieces remembered of each kind of hint (suggested, allowed fast, refused).
const MAX_HINTS: usize = 64;
/// The most cancelled requests remembered.
const MAX_DOUBTS: usize = 4_000;

/// What a peer has.
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
    /// It went into an empty pipeline: its delay is the base latency.
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
    /// How many pieces they have (all of a seed's).
    pub(super) has_count: u32,
    /// Of them, those that we lack.
    pub(super) wanted: u32,
    /// They may still send a bitfield (BEP 3: first or never).
    pub(super) opening: bool,

    pub(super) choking_us: bool,
    /// When they choked us last.
    pub(super) choked: Instant,
    pub(super) we_interested: bool,
    pub(super) we_choke: bool,
    pub(super) interested_in_us: bool,
    /// They said that they will fetch nothing more (BEP 21).
    pub(super) upload_only: bool,

    /// Our requests in the order sent.
    pub(super) asks: VecDeque<Ask>,
    /// Requests cancelled or choked away whose answer may still come, and since when.
    pub(super) doubts: BTreeMap<BlockId, Instant>,
    pub(super) pipeline: Pipeline,
    reqq: usize,
    /// The piece that it fetches in the background.
    pub(super) current: Option<u32>,
    /// `Pieces::freed` when there was nothing to fetch from it.
    pub(super) barren: Option<u64>,
    /// Pieces that they let us request while choked (BEP 6).
    pub(super) allowed: Vec<u32>,
    /// Pieces that we let them request while choked.
    pub(super) granted: Vec<u32>,
    /// Pieces that they suggest (BEP 6).
    pub(super) suggested: VecDeque<u32>,
    /// Pieces that they rejected, and when.
    refused: VecDeque<(u32, Instant)>,
    /// They rejected so much that nothing is asked before this.
    paused: Option<Instant>,
    /// Blocks that we never asked for.
    pub(super) unsolicited: u32,

    pub(super) uploads: Uploads,

    pub(super) down: Meter,
    pub(super) up: Meter,
    pub(super) downloaded: u64,
    pub(super) uploaded: u64,
    pub(super) connected: Instant,
    pub(super) last_heard: Instant,
    pub(super) last_sent: Instant,
    /// When a block came last, or when the first request of a busy spell went out.
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
            doubts: BTreeMap::new(),
            pipeline: Pipeline::new(now, policy),
            reqq: REQQ,
            current: None,
            barren: None,
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
            last_heard: now,
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

    /// Blocks that may be asked of it at all, whatever the piece.
    pub(super) fn may_ask(&self, now: Instant) -> bool {
        (!self.choking_us || !self.allowed.is_empty()) && self.paused.is_none_or(|until| now >= until)
    }

    /// It has the piece, would serve it now and did not just refuse it.
    pub(super) fn serves(&self, now: Instant, piece: u32) -> bool {
        self.has(piece)
            && (!self.choking_us || self.allowed.contains(&piece))
            && !self.refused.iter().any(|(refused, when)| *refused == piece && now < *when + self.policy().reject_pause)
    }

    /// The answer to an earlier request of this block may still come: not to be asked again.
    pub(super) fn in_doubt(&self, now: Instant, id: BlockId) -> bool {
        !self.doubts.is_empty() && self.doubts.get(&id).is_some_and(|since| now < *since + self.policy().cancel_grace)
    }

    /// No answer to a cancelled request can still be on its way ahead of a new one.
    pub(super) fn is_clean(&self, now: Instant) -> bool {
        !self.doubts.values().any(|since| now < *since + self.policy().stray_grace)
    }

    pub(super) fn doubt(&mut self, now: Instant, id: BlockId) {
        if self.doubts.len() >= MAX_DOUBTS {
            let grace = self.policy().cancel_grace;
            self.doubts.retain(|_, since| now < *since + grace);
        }
        if self.doubts.len() < MAX_DOUBTS {
            self.doubts.insert(id, now);
        }
    }

    /// As many requests are outstanding as they queue.
    pub(super) fn is_full(&self) -> bool {
        self.asks.len() >= self.reqq
    }

    /// Returns the bytes that may be requested now for a need.
    pub(super) fn room(&self, now: Instant, need: Need, phase: Phase) -> f64 {
        let queue_left = (self.reqq - self.asks.len().min(self.reqq)) as f64 * f64::from(BLOCK_LEN);
        self.pipeline.room(now, need, phase).min(queue_left)
    }

    /// Seconds until the next `bytes` of what it owes, and of what it would be asked for now, are here. What it owes has
    /// been on its way since it last sent something, and may come all at once at the end of the time that it takes. Only a
    /// peer that lets that time pass has stalled; nothing is known of it but that it may stay silent for as long again.
    pub(super) fn eta(&self, now: Instant, bytes: f64) -> f64 {
        let owed = self.pipeline.outstanding() as f64;
        let silence = match self.asks.is_empty() {
            true => 0.0,
            false => now.saturating_duration_since(self.last_progress).as_secs_f64(),
        };
        let eta = self.pipeline.eta(bytes);
        if silence > self.pipeline.late_after().max(self.policy().stall_factor * self.pipeline.eta(owed)) {
            return eta + silence;
        }
        let least = if bytes > owed { self.pipeline.eta(bytes - owed) } else { 0.0 };
        (eta - silence).max(least)
    }

    /// Enough of the pipeline has run empty for another batch.
    pub(super) fn wants_refill(&self, now: Instant, phase: Phase) -> bool {
        self.may_ask(now) && self.asks.len() <= self.reqq * 3 / 4 && self.pipeline.wants_refill(now, phase)
    }

    /// Takes the request for this block out of those outstanding; answers come mostly in order.
    pub(super) fn take_ask(&mut self, id: BlockId) -> Option<Ask> {
        let at = self.asks.iter().position(|ask| ask.id == id)?;
        self.asks.remove(at)
    }

    /// They rejected a request for this piece.
    pub(super) fn refuse(&mut self, now: Instant, piece: u32) {
        let pause = self.policy().reject_pause;
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

    /// What was refused may be asked again after a while.
    pub(super) fn end_pause(&mut self, now: Instant) {
        let pause = self.policy().reject_pause;
        let over = |when: Instant| now >= when + pause;
        if self.paused.is_some_and(|until| now >= until) || self.refused.front().is_some_and(|(_, when)| over(*when)) {
            self.paused = None;
            self.refused.retain(|(_, when)| !over(*when));
            self.barren = None;
        }
    }

    /// Cancelled requests that were never answered may be asked again after a while.
    pub(super) fn forget_doubts(&mut self, now: Instant) {
        let (before, grace) = (self.doubts.len(), self.policy().cancel_grace);
        self.doubts.retain(|_, since| now < *since + grace);
        if self.doubts.len() != before {
            self.barren = None;
        }
    }
}

impl Peer {
    pub(super) fn check(&self) {
        self.uploads.check();
        assert!(self.asks.len() <= MAX_REQQ && self.doubts.len() <= MAX_DOUBTS);
        assert!(
            self.allowed.len() <= MAX_HINTS && self.suggested.len() <= MAX_HINTS && self.refused.len() <= MAX_HINTS
        );
    }
}
