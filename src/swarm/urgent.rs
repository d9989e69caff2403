//! What readers need: piece by piece, earliest deadline first, each block to the peer that would deliver it soonest.
//!
//! A block is not given to the next best peer that has room if one without room would still be sooner: it is left for
//! that one, whose queue counts as longer by it for the blocks that follow. So a slow peer never holds up a piece that
//! a fast one could finish, and helps with the later pieces of the window instead.

use std::time::Instant;

use super::pieces::{BlockId, Slot, State};
use super::readers::{Need, Urgent};
use super::{PeerKey, Swarm};
use crate::metainfo::BLOCK_LEN;

/// Blocks left for a better peer in one pass: bounds its cost.
const MAX_DEFERRED: usize = 256;
/// Seconds added to the delivery time of a peer that stopped answering.
const SNUBBED: f64 = 20.0;
/// Pieces by which blocked reads may pass the limit of partial pieces.
const SPARE: u32 = 4;

/// Bytes that keep a peer from running dry. More is not asked for what may never be read: the next seek would wait
/// behind it.
const DRY: f64 = 2.0 * BLOCK_LEN as f64;

/// Seconds of queue at a peer for what is due: it is asked for at once, for what is left for later costs one more round
/// trip, and a peer whose bandwidth comes in portions delivers what it was asked for by then.
const HASTE: f64 = 0.25;

/// Seconds that a reader waits for a block from the one peer that is to deliver the piece alone.
const SOLO_PATIENCE: f64 = 3.0;

/// How many times sooner a second peer must be for a late block to be asked of it, too.
const CLEARLY: f64 = 2.0;

/// A block that is later than its peer usually is.
struct Late {
    key: PeerKey,
    id: BlockId,
    /// Seconds since it was asked for.
    age: f64,
    /// Seconds until it would come as things are.
    eta: f64,
}

/// One peer in one pass.
struct Lane {
    key: PeerKey,
    /// Bytes that may still be asked of it.
    room: f64,
    /// Of them, those until it would not run dry before it can be asked again.
    dry: f64,
    /// More than `room`: bytes that may be asked of it for what is due first.
    haste: f64,
    /// Seconds until a block asked for now would be here.
    eta: f64,
    /// Seconds that one block more adds.
    block: f64,
}

impl Swarm {
    /// Asks for what readers need, as far as the peers have room.
    pub(super) fn serve_readers(&mut self, now: Instant) {
        if self.urgent.is_empty() {
            return;
        }
        let mut lanes = self.lanes(now);
        let mut deferred = 0;
        // Once the background is held back no longer, it would take what the window is refused.
        let moment = self.readers.just_blocked(now);
        let mut urgent = std::mem::take(&mut self.urgent);
        urgent.retain(|urgent| {
            let unsure = urgent.need == Need::Unsure && moment;
            let room = match urgent.need {
                Need::Due | Need::Next => |lane: &Lane| lane.room.max(lane.haste),
                Need::Unsure if moment => |lane: &Lane| lane.room.min(lane.dry),
                Need::Blocked | Need::Soon | Need::Unsure | Need::Left => |lane: &Lane| lane.room,
            };
            deferred >= MAX_DEFERRED
                || !lanes.iter().any(|lane| room(lane) > 0.0)
                || unsure && self.blocked.iter().any(|piece| self.is_short(*piece))
                || self.serve_piece(now, *urgent, room, &mut lanes, &mut deferred)
        });
        self.urgent = urgent;
        for lane in lanes {
            if let Some(peer) = self.peers.get_mut(&lane.key).filter(|_| lane.room <= 0.0) {
                peer.pipeline.refilled(true);
            }
        }
    }

    /// It has blocks that nobody is asked for.
    pub(super) fn is_short(&self, piece: u32) -> bool {
        match self.pieces.state(piece) {
            State::Missing => true,
            State::Partial => self.pieces.open().contains(&piece),
            State::Checking | State::Have => false,
        }
    }

    fn lanes(&self, now: Instant) -> Vec<Lane> {
        let able = self.peers.iter().filter(|(_, peer)| peer.may_ask(now));
        able.map(|(key, peer)| {
            let queued = peer.pipeline.outstanding() as f64;
            let len = f64::from(BLOCK_LEN);
            let block = peer.pipeline.eta(2.0 * len) - peer.pipeline.eta(len);
            let snubbed = if peer.pipeline.snubbed { SNUBBED } else { 0.0 };
            let eta = peer.eta(now, queued + len) + snubbed;
            let room = peer.room(now, self.slack);
            Lane { key: *key, room, dry: DRY - queued, haste: peer.room_in_haste(HASTE), eta, block }
        })
        .collect()
    }

    /// Asks for the free blocks of one piece, of peers that have `room` for it. False if none is left.
    fn serve_piece(
        &mut self,
        now: Instant,
        urgent: Urgent,
        room: fn(&Lane) -> f64,
        lanes: &mut [Lane],
        deferred: &mut usize,
    ) -> bool {
        let piece = urgent.piece;
        let state = self.pieces.state(piece);
        if !matches!(state, State::Missing | State::Partial) {
            return false;
        }
        let serves = |lane: &Lane| self.peers.get(&lane.key).is_some_and(|peer| peer.serves(now, piece));
        let mut able: Vec<usize> = (0..lanes.len()).filter(|at| serves(&lanes[*at])).collect();
        if !able.iter().any(|at| room(&lanes[*at]) > 0.0) {
            return true;
        }
        if state == State::Missing {
            if !self.make_place(now, urgent) {
                return true;
            }
            let solo = self.blame.suspects(piece);
            let soonest = able.iter().min_by(|a, b| lanes[**a].eta.total_cmp(&lanes[**b].eta));
            self.pieces.begin(piece, soonest.map(|at| lanes[*at].key).filter(|_| solo), solo);
        }
        let Some(partial) = self.pieces.partial(piece) else { return false };
        if partial.solo {
            able.retain(|at| Some(lanes[*at].key) == partial.owner);
        }
        let mut asks = Vec::new();
        let mut left = partial.free;
        for block in partial.free_blocks() {
            let id = BlockId { piece, block };
            let sure = |at: &&usize| self.peers.get(&lanes[**at].key).is_some_and(|peer| !peer.in_doubt(now, id));
            let best = able.iter().filter(sure).min_by(|a, b| lanes[**a].eta.total_cmp(&lanes[**b].eta));
            let Some(lane) = best.map(|at| &mut lanes[*at]) else { continue };
            lane.eta += lane.block;
            if room(lane) > 0.0 {
                lane.room -= f64::from(BLOCK_LEN);
                lane.dry -= f64::from(BLOCK_LEN);
                lane.haste -= f64::from(BLOCK_LEN);
                asks.push((lane.key, id));
                left -= 1;
            } else {
                *deferred += 1;
            }
            if *deferred >= MAX_DEFERRED || !able.iter().any(|at| room(&lanes[*at]) > 0.0) {
                break;
            }
        }
        for (key, id) in asks {
            self.ask(now, key, id);
        }
        left > 0
    }

    /// Whether another partial piece may be begun for a reader, if need be in the place of one that matters less.
    fn make_place(&mut self, now: Instant, urgent: Urgent) -> bool {
        let len = u64::from(self.pieces.len_of(urgent.piece));
        let fits = |swarm: &Self, more: u64| {
            swarm.pieces.partial_bytes() == 0 || swarm.pieces.partial_bytes() + len <= swarm.config.max_partial + more
        };
        if fits(self, 0) {
            return true;
        }
        let protected = if urgent.is_blocked() { &self.blocked } else { &self.needed };
        let least = self
            .pieces
            .partials()
            .filter(|(piece, _)| self.pieces.state(*piece) == State::Partial && protected.binary_search(piece).is_err())
            .min_by_key(|(_, partial)| partial.received);
        if let Some((piece, _)) = least {
            self.give_up(now, piece);
            return true;
        }
        urgent.is_blocked() && fits(self, self.config.lengths.full_pieces(SPARE))
    }

    /// Blocks that readers need and that are later than their peer usually is are asked of one peer more, if that one
    /// is clearly sooner: where all peers are late alike, asking twice would only halve what they deliver.
    pub(super) fn pass_the_late(&mut self, now: Instant) {
        if self.needed.is_empty() {
            return;
        }
        let mut late = Vec::new();
        for (key, peer) in &self.peers {
            let after = peer.pipeline.late_after();
            let mut ahead = 0.0;
            for ask in &peer.asks {
                ahead += f64::from(BLOCK_LEN);
                let blocked = self.blocked.binary_search(&ask.id.piece).is_ok();
                let age = now.saturating_duration_since(ask.sent).as_secs_f64();
                let limit = if blocked { after } else { 2.0 * after };
                if age > limit && (blocked || self.needed.binary_search(&ask.id.piece).is_ok()) {
                    late.push(Late { key: *key, id: ask.id, age, eta: peer.eta(now, ahead) });
                }
            }
        }
        let mut lanes = self.lanes(now);
        for Late { key, id, age, eta } in late {
            let Some(partial) = self.pieces.partial(id.piece) else { continue };
            if partial.solo {
                if age > SOLO_PATIENCE {
                    self.abandon_solo(now, key, id.piece);
                }
                continue;
            }
            if !matches!(partial.slots[id.block as usize], Slot::Asked(_, None)) {
                continue;
            }
            let other = |lane: &&mut Lane| {
                lane.key != key
                    && CLEARLY * lane.eta < eta
                    && self
                        .peers
                        .get(&lane.key)
                        .is_some_and(|peer| peer.serves(now, id.piece) && !peer.in_doubt(now, id) && !peer.is_full())
            };
            if let Some(lane) = lanes.iter_mut().filter(other).min_by(|a, b| a.eta.total_cmp(&b.eta)) {
                lane.eta += lane.block;
                let key = lane.key;
                self.ask(now, key, id);
            }
        }
    }
}
