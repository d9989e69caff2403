//! Requests for what readers need: piece by piece, earliest deadline first, each block from the peer that would deliver
//! it soonest.
//!
//! A block is not given to the next best peer that has room if one without room would still be sooner. It is left for
//! that peer, whose queue then counts as longer by one block for the blocks that follow. So a slow peer never holds up a
//! piece that a fast one could finish, and helps with the later pieces of the window instead.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::metainfo::BLOCK_LEN;
use crate::swarm::pieces::{BlockId, State};
use crate::swarm::policy::{Need, Phase};
use crate::swarm::sched::readers::Urgent;
use crate::swarm::{PeerKey, Swarm};

/// Blocks left for a better peer in one pass: bounds its cost.
const MAX_DEFERRED: usize = 256;
/// Pieces by which blocked reads may exceed the limit on partial pieces, so that one is never stuck behind windows.
const SPARE_PIECES: u32 = 4;

/// A block of a blocked read that some peers owe.
struct Owed {
    /// Seconds until the first of them is expected to deliver it.
    eta: f64,
    /// How long one of them has been silent since it was asked.
    silence: Duration,
}

/// One peer in one pass.
struct Candidate {
    key: PeerKey,
    /// Bytes that may still be requested from it for the current need.
    room: f64,
    /// Seconds until a block requested now would be here.
    eta: f64,
    /// Seconds that one block more adds to `eta`.
    block: f64,
    /// It has sent something, so that the times are more than a guess.
    known: bool,
}

impl Swarm {
    /// Requests what readers need, as far as the peers have room.
    pub(in crate::swarm) fn serve_readers(&mut self, now: Instant) {
        if self.urgent.is_empty() {
            return;
        }
        let mut candidates = self.candidates(now);
        let (mut deferred, mut need) = (0, None);
        let mut urgent = std::mem::take(&mut self.urgent);
        urgent.retain(|urgent| {
            if need.replace(urgent.need) != Some(urgent.need) {
                self.set_rooms(now, urgent.need, &mut candidates);
            }
            let waits = urgent.need == Need::Speculative && self.phase == Phase::JustBlocked;
            deferred >= MAX_DEFERRED
                || !candidates.iter().any(|candidate| candidate.room > 0.0)
                || waits && self.blocked.iter().any(|piece| self.has_free_blocks(*piece))
                || self.serve_piece(now, *urgent, &mut candidates, &mut deferred)
        });
        self.urgent = urgent;
        for Candidate { key, .. } in candidates {
            let phase = self.phase;
            if let Some(peer) = self.peers.get_mut(&key).filter(|peer| peer.room(now, Need::Soon, phase) <= 0.0) {
                peer.pipeline.refilled(true);
            }
        }
    }

    /// Returns whether some blocks of the piece are requested from nobody.
    pub(in crate::swarm) fn has_free_blocks(&self, piece: u32) -> bool {
        match self.pieces.state(piece) {
            State::Missing => true,
            State::Partial => self.pieces.open().contains(&piece),
            State::Checking | State::Have => false,
        }
    }

    /// Returns every peer that may be asked for something, with no room yet.
    fn candidates(&self, now: Instant) -> Vec<Candidate> {
        let able = self.peers.iter().filter(|(_, peer)| peer.may_ask(now));
        able.map(|(key, peer)| {
            let eta = peer.eta(now, peer.pipeline.outstanding() as f64 + f64::from(BLOCK_LEN));
            Candidate { key: *key, room: 0.0, eta, block: peer.block_time(), known: peer.pipeline.rate_is_known() }
        })
        .collect()
    }

    /// Sets the room of each candidate for a need.
    fn set_rooms(&self, now: Instant, need: Need, candidates: &mut [Candidate]) {
        for candidate in candidates {
            let room = |peer: &crate::swarm::peer::Peer| peer.room(now, need, self.phase);
            candidate.room = self.peers.get(&candidate.key).map_or(0.0, room);
        }
    }

    /// Requests the free blocks of one piece from the candidates with room. Returns whether a free block is left.
    fn serve_piece(
        &mut self,
        now: Instant,
        urgent: Urgent,
        candidates: &mut [Candidate],
        deferred: &mut usize,
    ) -> bool {
        let piece = urgent.piece;
        let state = self.pieces.state(piece);
        if !matches!(state, State::Missing | State::Partial) {
            return false;
        }
        let serves = |at: &usize| self.peers.get(&candidates[*at].key).is_some_and(|peer| peer.serves(now, piece));
        let mut able: Vec<usize> = (0..candidates.len()).filter(serves).collect();
        if !able.iter().any(|at| candidates[*at].room > 0.0) {
            return true;
        }
        if state == State::Missing {
            if !self.make_place(now, urgent) {
                return true;
            }
            let solo = self.blame.suspects(piece);
            let owner = if solo { self.soonest_alone(now, piece).map(|(key, _)| key) } else { None };
            self.pieces.begin(piece, owner, solo);
        }
        let Some(partial) = self.pieces.partial(piece) else { return false };
        if partial.solo {
            able.retain(|at| Some(candidates[*at].key) == partial.owner);
        }
        let mut asks = Vec::new();
        let mut left = partial.free;
        for block in partial.free_blocks() {
            let id = BlockId { piece, block };
            // No block is left for a peer that may turn out to be slow.
            let sure = |at: &&usize| {
                let Candidate { key, room, known, .. } = &candidates[**at];
                (*room > 0.0 || *known) && self.peers.get(key).is_some_and(|peer| !peer.asks.may_still_answer(now, id))
            };
            let best = able.iter().filter(sure).min_by(|a, b| candidates[**a].eta.total_cmp(&candidates[**b].eta));
            let Some(candidate) = best.map(|at| &mut candidates[*at]) else { continue };
            candidate.eta += candidate.block;
            if candidate.room > 0.0 {
                candidate.room -= f64::from(BLOCK_LEN);
                asks.push((candidate.key, id));
                left -= 1;
            } else {
                *deferred += 1;
            }
            if *deferred >= MAX_DEFERRED || !able.iter().any(|at| candidates[*at].room > 0.0) {
                break;
            }
        }
        for (key, id) in asks {
            self.ask(now, key, id);
        }
        left > 0
    }

    /// Makes sure that another partial piece may be begun for a reader, if necessary in the place of one that matters
    /// less. Returns false if it may not.
    fn make_place(&mut self, now: Instant, urgent: Urgent) -> bool {
        let len = u64::from(self.pieces.len_of(urgent.piece));
        let fits = |swarm: &Self, more: u64| {
            swarm.pieces.partial_bytes() == 0 || swarm.pieces.partial_bytes() + len <= swarm.config.max_partial + more
        };
        if fits(self, 0) {
            return true;
        }
        let protected = if urgent.need.is_blocked() { &self.blocked } else { &self.needed };
        let least = self
            .pieces
            .partials()
            .filter(|(piece, _)| self.pieces.state(*piece) == State::Partial && protected.binary_search(piece).is_err())
            .min_by_key(|(_, partial)| partial.received);
        if let Some((piece, _)) = least {
            self.give_up(now, piece);
            return true;
        }
        urgent.need.is_blocked() && fits(self, self.config.lengths.full_pieces(SPARE_PIECES))
    }

    /// Returns the peer that would deliver a whole piece soonest, and in how many seconds.
    fn soonest_alone(&self, now: Instant, piece: u32) -> Option<(PeerKey, f64)> {
        let len = f64::from(self.pieces.len_of(piece));
        let able = self.peers.iter().filter(|(_, peer)| peer.may_ask(now) && peer.serves(now, piece));
        let etas = able.map(|(key, peer)| (*key, peer.eta(now, peer.pipeline.outstanding() as f64 + len)));
        etas.min_by(|(_, a), (_, b)| a.total_cmp(b))
    }

    /// Begins suspect pieces anew with another peer if the one that must deliver them alone is silent, or clearly slower.
    fn replace_solo(&mut self, now: Instant) {
        if self.blame.is_clear() {
            return;
        }
        let policy = self.config.policy.clone();
        let (mut stuck, mut silent) = (Vec::new(), Vec::new());
        for (piece, partial) in self.pieces.partials().filter(|(_, partial)| partial.solo) {
            if self.needed.binary_search(&piece).is_err() || self.pieces.state(piece) != State::Partial {
                continue;
            }
            let is_blocked = self.blocked.binary_search(&piece).is_ok();
            let Some((owner, peer)) = partial.owner.and_then(|key| Some((key, self.peers.get(&key)?))) else {
                continue;
            };
            let limit = if is_blocked { policy.dead_timeout() } else { policy.doubt_timeout() };
            let best = self.soonest_alone(now, piece).filter(|(key, _)| *key != owner);
            let free = f64::from(partial.free) * f64::from(BLOCK_LEN);
            let eta = peer.eta(now, peer.pipeline.outstanding() as f64 + free);
            if peer.is_silent(now, limit) {
                silent.push(owner);
            } else if best.is_some_and(|(_, other)| is_blocked && policy.hedge_advantage * other < eta)
                || !peer.may_ask(now)
                || !peer.serves(now, piece)
            {
                stuck.push((owner, piece));
            }
        }
        for owner in silent {
            self.fell_silent(now, owner);
        }
        for (owner, piece) in stuck {
            self.abandon_solo(now, owner, piece);
        }
    }

    /// Hedges blocked reads: requests blocks that some peers owe from one more that is clearly sooner, once all blocks of
    /// their piece are requested. All answers but one are wasted, so only reads that are blocked are worth it, and what
    /// they get to next: otherwise a slow peer would hold up one piece after another.
    ///
    /// A peer that has not answered a moment ago may have stopped without a word, so it is hedged with by one block at a
    /// time. While a read waits, a silent peer counts as dead after a moment: then every idle peer is tried.
    pub(in crate::swarm) fn hedge(&mut self, now: Instant) {
        self.replace_solo(now);
        if self.blocked.is_empty() {
            return;
        }
        let (hedge_advantage, moment) = (self.config.policy.hedge_advantage, self.config.policy.dead_timeout());
        let mut owed: BTreeMap<BlockId, Owed> = BTreeMap::new();
        for peer in self.peers.values().filter(|peer| !peer.asks.is_empty()) {
            let (etas, silence) = (peer.etas(now), peer.silence(now));
            let mut ahead = 0.0;
            for ask in peer.asks.iter() {
                ahead += f64::from(BLOCK_LEN);
                let is_asked = |piece| self.pieces.partial(piece).is_some_and(|part| part.free == 0 && !part.solo);
                if self.hedged.binary_search(&ask.id.piece).is_err() || !is_asked(ask.id.piece) {
                    continue;
                }
                let one = owed.entry(ask.id).or_insert(Owed { eta: f64::INFINITY, silence: Duration::ZERO });
                if !peer.has_choked(ask.id.piece) {
                    one.eta = one.eta.min(etas(ahead));
                }
                one.silence = one.silence.max(silence.min(now.saturating_duration_since(ask.sent)));
            }
        }
        if owed.is_empty() {
            return;
        }
        let mut owed: Vec<(BlockId, Owed)> = owed.into_iter().collect();
        let is_blocked = |id: &BlockId| self.blocked.binary_search(&id.piece).is_ok();
        owed.sort_by(|(a, x), (b, y)| is_blocked(b).cmp(&is_blocked(a)).then(y.eta.total_cmp(&x.eta)));
        let mut candidates = self.candidates(now);
        for (id, Owed { eta, silence }) in owed {
            let able = |candidate: &&mut Candidate| {
                let Some(peer) = self.peers.get(&candidate.key) else { return false };
                let is_idle = peer.asks.is_empty();
                let is_sooner = hedge_advantage * candidate.eta < eta || silence >= moment && is_idle;
                is_sooner
                    && (is_idle || peer.answered_within(now, moment))
                    && peer.serves(now, id.piece)
                    && !peer.asks.may_still_answer(now, id)
                    && !peer.is_full(now)
                    && !peer.asks.contains(id)
            };
            if let Some(candidate) = candidates.iter_mut().filter(able).min_by(|a, b| a.eta.total_cmp(&b.eta)) {
                candidate.eta += candidate.block;
                let key = candidate.key;
                self.ask(now, key, id);
            }
        }
    }
}
