//! Sending requests, cancelling them, receiving blocks; peers that choke us or fall silent.

use std::time::Instant;

use crate::metainfo::Block;
use crate::swarm::peer::{Ask, Peer};
use crate::swarm::pieces::{BlockId, Partial, Receipt, Slot, State};
use crate::swarm::{Action, DisconnectReason, PeerKey, Swarm};
use crate::wire::Message;

/// Blocks that we never asked for, before a peer is disconnected: late answers to old requests are not an attack.
const MAX_UNSOLICITED: u32 = 500;

impl Swarm {
    /// Records a block that came. `Some`: it is wanted, and the driver keeps its bytes, over any that it kept of the same
    /// block before. `None`: the bytes are of no use.
    pub fn block(&mut self, now: Instant, key: PeerKey, piece: u32, begin: u32, length: u32) -> Option<Block> {
        let wanted = self.received(now, key, piece, begin, length);
        if self.peers.get(&key).is_some_and(|peer| peer.wants_refill(now, self.phase)) {
            self.refill(now, key);
        }
        wanted
    }

    fn received(&mut self, now: Instant, key: PeerKey, piece: u32, begin: u32, length: u32) -> Option<Block> {
        let peer = self.peers.get_mut(&key)?;
        let Some((id, block)) = self.pieces.block(piece, begin, length) else {
            self.disconnect(now, key, DisconnectReason::Protocol("a block that we cannot have asked for"));
            return None;
        };
        peer.last_received = now;
        peer.opening = false;
        if let Some(ask) = peer.take_ask(id) {
            let delay = now.saturating_duration_since(ask.sent);
            peer.pipeline.arrived(now, length, delay, ask.fresh, self.phase);
        } else if peer.cancelled.remove(&id).is_some() {
            peer.pipeline.strayed(now, length);
            peer.exhausted_at = None;
        } else {
            peer.unsolicited += 1;
            self.wasted += u64::from(length);
            if peer.unsolicited > MAX_UNSOLICITED {
                self.disconnect(now, key, DisconnectReason::Protocol("blocks that nobody asked for"));
            }
            return None;
        }
        peer.last_progress = now;
        let contributor = peer.contributor(key);
        let foreign = self.pieces.partial(piece).is_some_and(|partial| partial.solo && partial.owner != Some(key));
        let receipt = if foreign { Receipt::Useless } else { self.pieces.receive(id, contributor) };
        let Receipt::Wanted { others, full } = receipt else {
            self.wasted += u64::from(length);
            return None;
        };
        peer.down.add(now, length.into());
        peer.downloaded += u64::from(length);
        self.count_download(now, length);
        for other in others.into_iter().flatten() {
            self.cancel(now, other, id);
        }
        if full {
            self.actions.push_back(Action::Check { piece: block.piece, digests: self.blame.suspects(piece) });
        }
        Some(block)
    }

    /// Requests a block from a peer.
    pub(in crate::swarm) fn ask(&mut self, now: Instant, key: PeerKey, id: BlockId) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        let request = self.pieces.request(id);
        self.pieces.ask(id, key);
        if peer.asks.is_empty() {
            peer.last_progress = now;
        }
        let clean = peer.pipeline.outstanding() > request.length.into() || peer.is_clean(now);
        let fresh = peer.pipeline.requested(now, request.length, clean);
        peer.asks.push_back(Ask { id, sent: now, fresh });
        self.send(now, key, Message::Request(request));
    }

    /// Cancels a request. The block may come all the same, and is then kept if it is still wanted.
    pub(in crate::swarm) fn cancel(&mut self, now: Instant, key: PeerKey, id: BlockId) {
        if self.void(now, key, id) {
            let request = self.pieces.request(id);
            self.send(now, key, Message::Cancel(request));
        }
    }

    /// Forgets a request. Returns false if there was none.
    fn void(&mut self, now: Instant, key: PeerKey, id: BlockId) -> bool {
        let Some(peer) = self.peers.get_mut(&key) else { return false };
        if peer.take_ask(id).is_none() {
            return false;
        }
        peer.pipeline.dropped(now, self.pieces.block_len(id));
        peer.record_cancel(now, id);
        self.pieces.unask(id, key);
        true
    }

    /// Handles a choke: no request is promised an answer any more, except for pieces that they allow while choking. With
    /// the fast extension each request is still answered, and most of the first ones with their block, so these stay for
    /// a moment.
    pub(in crate::swarm) fn choked(&mut self, now: Instant, key: PeerKey) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        peer.current = None;
        peer.choked = now;
        if !peer.fast {
            self.void_all(now, key);
        }
        self.abandon_all_solo(now, key);
    }

    /// Frees the blocks that a choking peer was asked for, so that others are asked.
    fn void_all(&mut self, now: Instant, key: PeerKey) {
        let Some(peer) = self.peers.get(&key) else { return };
        let gone: Vec<BlockId> =
            peer.asks.iter().map(|ask| ask.id).filter(|id| !peer.allowed.contains(&id.piece)).collect();
        for id in gone {
            self.void(now, key, id);
        }
    }

    /// Gives up a partial piece.
    pub(in crate::swarm) fn give_up(&mut self, now: Instant, piece: u32) {
        let Some(partial) = self.pieces.partial(piece) else { return };
        let mut asked = Vec::new();
        for (slot, block) in partial.slots.iter().zip(0..) {
            if let Slot::Asked(first, second) = *slot {
                asked.push((first, BlockId { piece, block }));
                asked.extend(second.map(|second| (second, BlockId { piece, block })));
            }
        }
        for (key, id) in asked {
            self.cancel(now, key, id);
        }
        self.pieces.abandon(piece, &mut self.rng);
        if let Some(piece) = self.config.lengths.piece(piece) {
            self.actions.push_back(Action::Drop(piece));
        }
    }

    /// Gives up a piece that only `key` may deliver, so that it begins anew with another peer.
    pub(in crate::swarm) fn abandon_solo(&mut self, now: Instant, key: PeerKey, piece: u32) {
        let ours = |partial: &Partial| partial.solo && partial.owner == Some(key);
        if self.pieces.state(piece) == State::Partial && self.pieces.partial(piece).is_some_and(ours) {
            self.give_up(now, piece);
        }
    }

    /// Does the same for all such pieces of a peer that chokes us, left or fell silent.
    pub(in crate::swarm) fn abandon_all_solo(&mut self, now: Instant, key: PeerKey) {
        if self.blame.is_clear() {
            return;
        }
        let solo = |partial: &Partial| partial.solo && partial.owner == Some(key);
        let pieces: Vec<u32> =
            self.pieces.partials().filter(|(_, partial)| solo(partial)).map(|(piece, _)| piece).collect();
        for piece in pieces {
            self.abandon_solo(now, key, piece);
        }
    }

    /// Gives a peer work: first what readers need, then the background.
    pub(in crate::swarm) fn refill(&mut self, now: Instant, key: PeerKey) {
        self.serve_readers(now);
        self.fill_background(now, key);
    }

    /// Gives every peer work that has room for it.
    pub(in crate::swarm) fn refill_all(&mut self, now: Instant) {
        self.serve_readers(now);
        let due: Vec<PeerKey> =
            self.peers.iter().filter(|(_, peer)| peer.wants_refill(now, self.phase)).map(|(key, _)| *key).collect();
        for key in due {
            self.fill_background(now, key);
        }
    }

    /// Cancels what the peers that can serve a newly blocked read have queued for nobody. Pieces a little before a reader
    /// are kept: the kernel reads out of order, and may want them next.
    pub(in crate::swarm) fn blocked_read(&mut self, now: Instant) {
        self.refresh(now);
        let lacking: Vec<u32> = self.blocked.iter().copied().filter(|piece| self.has_free_blocks(*piece)).collect();
        if lacking.is_empty() {
            return;
        }
        let mut cancelled = Vec::new();
        for (key, peer) in &self.peers {
            if lacking.iter().any(|piece| peer.serves(now, *piece)) {
                let other = |id: &BlockId| !self.pins.iter().any(|pin| pin.contains(&id.piece));
                cancelled.extend(peer.asks.iter().map(|ask| ask.id).filter(other).map(|id| (*key, id)));
            }
        }
        for (key, id) in cancelled {
            self.cancel(now, key, id);
        }
    }

    /// Snubs silent peers, frees what choking peers were asked for, and hedges blocked reads.
    pub(in crate::swarm) fn tick_requests(&mut self, now: Instant) {
        self.set_phase(now);
        let (snub_timeout, doubt_timeout) = (self.config.policy.snub_timeout(), self.config.policy.doubt_timeout());
        let silent: Vec<PeerKey> = self
            .peers
            .iter()
            .filter(|(_, peer)| {
                !peer.asks.is_empty() && now.saturating_duration_since(peer.last_progress) >= snub_timeout
            })
            .map(|(key, _)| *key)
            .collect();
        for key in silent {
            let Some(peer) = self.peers.get_mut(&key) else { continue };
            peer.pipeline.snub();
            peer.current = None;
            peer.last_progress = now;
            let asks: Vec<BlockId> = peer.asks.iter().map(|ask| ask.id).collect();
            for id in asks {
                self.cancel(now, key, id);
            }
            self.abandon_all_solo(now, key);
        }
        let unanswered = |peer: &Peer| {
            peer.choking_us && !peer.asks.is_empty() && now.saturating_duration_since(peer.choked) >= doubt_timeout
        };
        let choking: Vec<PeerKey> =
            self.peers.iter().filter(|(_, peer)| unanswered(peer)).map(|(key, _)| *key).collect();
        for key in choking {
            self.void_all(now, key);
        }
        for peer in self.peers.values_mut() {
            peer.end_pause(now);
            peer.forget_cancels(now);
        }
        self.hedge(now);
    }
}
