//! Sending requests, cancelling them, receiving blocks; peers that choke us or fall silent.

use std::time::{Duration, Instant};

use crate::metainfo::Block;
use crate::swarm::peer::Peer;
use crate::swarm::peer::requests::Answer;
use crate::swarm::pieces::{BlockId, Partial, Receipt, State};
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
        let asked = match peer.asks.answered(now, id) {
            Answer::Owed(ask) => {
                let delay = now.saturating_duration_since(ask.sent);
                peer.pipeline.arrived(now, length, delay, ask.fresh, self.phase);
                true
            }
            Answer::Withdrawn => {
                peer.pipeline.strayed(now, length);
                peer.exhausted_at = None;
                false
            }
            Answer::Unknown => {
                peer.unsolicited += 1;
                self.wasted += u64::from(length);
                if peer.unsolicited > MAX_UNSOLICITED {
                    self.disconnect(now, key, DisconnectReason::Protocol("blocks that nobody asked for"));
                }
                return None;
            }
        };
        peer.has_sent_block(now);
        peer.has_served(piece);
        let contributor = peer.contributor(key);
        let foreign = self.pieces.partial(piece).is_some_and(|partial| partial.solo && partial.owner != Some(key));
        let receipt = if foreign { Receipt::Useless } else { self.pieces.receive(id, contributor, asked) };
        let Receipt::Wanted { others, full } = receipt else {
            self.wasted += u64::from(length);
            return None;
        };
        peer.down.add(now, length.into());
        peer.downloaded += u64::from(length);
        self.count_download(now, length);
        if others > 0 {
            self.cancel_all(now, |other| other == id);
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
        self.pieces.ask(id);
        if peer.asks.is_empty() {
            peer.last_progress = now;
            peer.asked_anew = Duration::ZERO;
        }
        let clean = peer.pipeline.outstanding() > request.length.into() || peer.asks.withdrawn(now) == 0;
        let fresh = peer.pipeline.requested(now, request.length, clean);
        peer.asks.push(now, id, fresh);
        self.send(now, key, Message::Request(request));
    }

    /// Cancels a request. The block may come all the same, and is then kept if it is still wanted.
    pub(in crate::swarm) fn cancel(&mut self, now: Instant, key: PeerKey, id: BlockId) {
        let Some(until) = self.peers.get(&key).map(|peer| peer.cancelled_until(now, id)) else { return };
        if self.withdraw(now, key, id, until) {
            let request = self.pieces.request(id);
            self.send(now, key, Message::Cancel(request));
        }
    }

    /// Cancels the requests for some blocks at every peer.
    fn cancel_all(&mut self, now: Instant, chosen: impl Fn(BlockId) -> bool) {
        let asks =
            |peer: &Peer| -> Vec<BlockId> { peer.asks.iter().map(|ask| ask.id).filter(|id| chosen(*id)).collect() };
        let asked: Vec<(PeerKey, Vec<BlockId>)> = self.peers.iter().map(|(key, peer)| (*key, asks(peer))).collect();
        for (key, ids) in asked {
            ids.into_iter().for_each(|id| self.cancel(now, key, id));
        }
    }

    /// Gives up a request that the peer has dropped, as it seems. Its block may be requested from any peer at once, also
    /// from this one. The cancel is in case that it has not.
    fn lose(&mut self, now: Instant, key: PeerKey, id: BlockId) {
        if self.withdraw(now, key, id, now) {
            let request = self.pieces.request(id);
            self.send(now, key, Message::Cancel(request));
        }
    }

    /// Withdraws a request, whose answer may come until then. Returns false if there was none.
    fn withdraw(&mut self, now: Instant, key: PeerKey, id: BlockId, until: Instant) -> bool {
        let Some(peer) = self.peers.get_mut(&key) else { return false };
        let overdue = peer.overdue(now);
        if !peer.asks.withdraw(now, id, until) {
            return false;
        }
        peer.pipeline.dropped(now, self.pieces.block_len(id));
        if !overdue.is_zero() && peer.asks.is_empty() {
            peer.doubt(now, overdue);
        }
        peer.exhausted_at = None;
        self.pieces.unask(id);
        true
    }

    /// Handles a choke: no request is promised an answer any more, except for pieces that they allow while choking. With
    /// the fast extension each request is still answered, and most of the first ones with their block, so these stay for
    /// a moment, unless a read is blocked on them.
    pub(in crate::swarm) fn choked(&mut self, now: Instant, key: PeerKey) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        peer.current = None;
        peer.choked = now;
        peer.last_progress = now;
        if !peer.fast {
            self.void_all(now, key);
        }
        self.abandon_all_solo(now, key);
        self.work = true;
    }

    /// Handles the end of a choke: a request from before it would have been answered or rejected by now.
    pub(in crate::swarm) fn unchoked_us(&mut self, now: Instant, key: PeerKey) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        let before = peer.asks.iter().filter(|ask| ask.sent <= peer.choked && !peer.allows(ask.id.piece));
        let forgotten: Vec<BlockId> = before.map(|ask| ask.id).collect();
        if !forgotten.is_empty() {
            // Its silence was the choke.
            peer.last_progress = now;
        }
        for id in forgotten {
            self.lose(now, key, id);
        }
    }

    /// Frees the blocks that a choking peer was asked for, so that others are asked.
    fn void_all(&mut self, now: Instant, key: PeerKey) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        // It has to be silent for other reasons to be in doubt.
        peer.last_progress = now;
        let gone: Vec<BlockId> = peer.asks.iter().map(|ask| ask.id).filter(|id| !peer.allows(id.piece)).collect();
        for id in gone {
            self.withdraw(now, key, id, now);
        }
    }

    /// Gives up a partial piece.
    pub(in crate::swarm) fn give_up(&mut self, now: Instant, piece: u32) {
        if self.pieces.partial(piece).is_none() {
            return;
        }
        self.cancel_all(now, |id| id.piece == piece);
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

    /// Gives up what silent and choking peers were asked for and what was passed over, and hedges blocked reads.
    pub(in crate::swarm) fn tick_requests(&mut self, now: Instant) {
        self.set_phase(now);
        let policy = self.config.policy.clone();
        let is_blocked = |id: BlockId| self.blocked.binary_search(&id.piece).is_ok();
        let (mut silent, mut choking, mut dropped) = (Vec::new(), Vec::new(), Vec::new());
        let alone = self.peers.values().filter(|peer| peer.may_ask(now)).nth(1).is_none();
        for (key, peer) in self.peers.iter().filter(|(_, peer)| !peer.asks.is_empty()) {
            let limit = if self.readers.any_blocked() { policy.dead_timeout() } else { policy.snub_timeout() };
            if peer.is_silent(now, limit) || peer.silence(now) >= policy.snub_timeout() {
                silent.push(*key);
            } else if alone
                && self.readers.any_blocked()
                && peer.overdue(now) >= peer.asked_anew + policy.repeat_timeout()
            {
                // There is no other peer to ask: if it dropped all requests, only a new one makes it answer.
                dropped.extend(peer.asks.iter().next().map(|ask| (*key, ask.id)));
            }
            if peer.choking_us && now.saturating_duration_since(peer.choked) >= policy.doubt_timeout() {
                choking.push(*key);
            }
            let least = if peer.asks.all_answered() { policy.dead_timeout() } else { policy.blocked_tick };
            let latency = peer.pipeline.latency().max(least);
            let grace = |id| if is_blocked(id) { latency } else { latency.max(policy.doubt_timeout()) };
            dropped.extend(peer.asks.passed_over(now, grace).into_iter().map(|id| (*key, id)));
        }
        for key in silent {
            self.fell_silent(now, key);
        }
        for key in choking {
            self.void_all(now, key);
        }
        for (key, id) in dropped {
            if let Some(peer) = self.peers.get_mut(&key) {
                peer.asked_anew = peer.silence(now);
            }
            self.lose(now, key, id);
        }
        for peer in self.peers.values_mut() {
            peer.end_pauses(now);
        }
        self.hedge(now);
    }

    /// Gives up all that a silent peer was asked for.
    pub(in crate::swarm) fn fell_silent(&mut self, now: Instant, key: PeerKey) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        peer.doubt(now, peer.silence(now));
        peer.current = None;
        peer.last_progress = now;
        peer.asked_anew = Duration::ZERO;
        let asks: Vec<BlockId> = peer.asks.iter().map(|ask| ask.id).collect();
        for id in asks {
            self.lose(now, key, id);
        }
        self.abandon_all_solo(now, key);
    }
}
