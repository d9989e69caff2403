//! Asking for blocks, taking requests back, receiving.

use std::time::{Duration, Instant};

use super::peer::Peer;
use super::pieces::{BlockId, Receipt, Slot, State};
use super::{Action, DisconnectReason, PeerKey, Swarm};
use crate::metainfo::Block;
use crate::wire::Message;

/// A peer that owes us blocks and sends none for so long is asked for one block at a time.
const SNUB: Duration = Duration::from_secs(20);
/// How long a peer that chokes us has for answering what it was asked before.
const CHOKED: Duration = Duration::from_secs(2);
/// Blocks that we never asked for, before a peer is let go.
const MAX_UNSOLICITED: u32 = 500;

impl Swarm {
    /// A block came. `Some`: it is wanted, and the driver keeps its bytes (over any that it kept of the same block
    /// before). `None`: they are of no use.
    pub fn block(&mut self, now: Instant, key: PeerKey, piece: u32, begin: u32, length: u32) -> Option<Block> {
        let wanted = self.received(now, key, piece, begin, length);
        if self.peers.get(&key).is_some_and(|peer| peer.wants_refill(now, self.slack)) {
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
        peer.last_heard = now;
        peer.opening = false;
        if let Some(ask) = peer.take_ask(id) {
            let delay = now.saturating_duration_since(ask.sent);
            peer.pipeline.arrived(now, length, delay, ask.fresh, self.slack);
        } else if peer.doubts.remove(&id).is_some() {
            peer.pipeline.strayed(length);
            peer.barren = None;
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

    pub(super) fn ask(&mut self, now: Instant, key: PeerKey, id: BlockId) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        let request = self.pieces.request(id);
        self.pieces.ask(id, key);
        if peer.asks.is_empty() {
            peer.last_progress = now;
        }
        let clean = peer.pipeline.outstanding() > request.length.into() || peer.is_clean(now);
        let fresh = peer.pipeline.asked(now, request.length, clean);
        peer.asks.push_back(super::peer::Ask { id, sent: now, fresh });
        self.send(now, key, Message::Request(request));
    }

    /// Takes a request back. The block may come all the same, and is then kept if it is still wanted.
    pub(super) fn cancel(&mut self, now: Instant, key: PeerKey, id: BlockId) {
        if self.void(now, key, id) {
            let request = self.pieces.request(id);
            self.send(now, key, Message::Cancel(request));
        }
    }

    /// A request no longer counts. False if there was none.
    fn void(&mut self, now: Instant, key: PeerKey, id: BlockId) -> bool {
        let Some(peer) = self.peers.get_mut(&key) else { return false };
        if peer.take_ask(id).is_none() {
            return false;
        }
        peer.pipeline.dropped(now, self.pieces.block_len(id));
        peer.doubt(now, id);
        self.pieces.unask(id, key);
        true
    }

    /// They choked us: nothing that we asked for is promised any more, but for what they allow. With the fast extension
    /// each request is still answered, and most of those at the front with their block; so that is waited for a moment.
    pub(super) fn choked(&mut self, now: Instant, key: PeerKey) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        peer.current = None;
        peer.choked = now;
        if !peer.fast {
            self.void_all(now, key);
        }
        self.abandon_all_solo(now, key);
    }

    /// What a choking peer was asked for is to be asked of others.
    fn void_all(&mut self, now: Instant, key: PeerKey) {
        let Some(peer) = self.peers.get(&key) else { return };
        let gone: Vec<BlockId> =
            peer.asks.iter().map(|ask| ask.id).filter(|id| !peer.allowed.contains(&id.piece)).collect();
        for id in gone {
            self.void(now, key, id);
        }
    }

    /// A partial piece is given up.
    pub(super) fn give_up(&mut self, now: Instant, piece: u32) {
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

    /// A piece that only `key` may deliver is begun anew with somebody else.
    pub(super) fn abandon_solo(&mut self, now: Instant, key: PeerKey, piece: u32) {
        let ours = |partial: &super::pieces::Partial| partial.solo && partial.owner == Some(key);
        if self.pieces.state(piece) == State::Partial && self.pieces.partial(piece).is_some_and(ours) {
            self.give_up(now, piece);
        }
    }

    /// The same for all its pieces: it chokes us, left or fell silent.
    pub(super) fn abandon_all_solo(&mut self, now: Instant, key: PeerKey) {
        if self.blame.is_clear() {
            return;
        }
        let solo = |partial: &super::pieces::Partial| partial.solo && partial.owner == Some(key);
        let pieces: Vec<u32> =
            self.pieces.partials().filter(|(_, partial)| solo(partial)).map(|(piece, _)| piece).collect();
        for piece in pieces {
            self.abandon_solo(now, key, piece);
        }
    }

    /// Gives a peer work: first what readers need, then the background.
    pub(super) fn refill(&mut self, now: Instant, key: PeerKey) {
        self.serve_readers(now);
        self.fill_background(now, key);
    }

    pub(super) fn refill_all(&mut self, now: Instant) {
        self.serve_readers(now);
        let due: Vec<PeerKey> =
            self.peers.iter().filter(|(_, peer)| peer.wants_refill(now, self.slack)).map(|(key, _)| *key).collect();
        for key in due {
            self.fill_background(now, key);
        }
    }

    /// A read waits: what else is queued at the peers that can serve it makes room. But not what lies a little before a
    /// reader: where the kernel's requests come out of order, those for it come next.
    pub(super) fn blocked_read(&mut self, now: Instant) {
        self.refresh(now);
        let short: Vec<u32> = self.blocked.iter().copied().filter(|piece| self.is_short(*piece)).collect();
        if short.is_empty() {
            return;
        }
        let mut in_the_way = Vec::new();
        for (key, peer) in &self.peers {
            if short.iter().any(|piece| peer.serves(now, *piece)) {
                let other = |id: &BlockId| !self.pins.iter().any(|pin| pin.contains(&id.piece));
                in_the_way.extend(peer.asks.iter().map(|ask| ask.id).filter(other).map(|id| (*key, id)));
            }
        }
        for (key, id) in in_the_way {
            self.cancel(now, key, id);
        }
    }

    /// The silent are snubbed, the late are passed by.
    pub(super) fn tick_requests(&mut self, now: Instant) {
        self.set_slack(now);
        let silent: Vec<PeerKey> = self
            .peers
            .iter()
            .filter(|(_, peer)| !peer.asks.is_empty() && now.saturating_duration_since(peer.last_progress) >= SNUB)
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
            peer.choking_us && !peer.asks.is_empty() && now.saturating_duration_since(peer.choked) >= CHOKED
        };
        let choking: Vec<PeerKey> =
            self.peers.iter().filter(|(_, peer)| unanswered(peer)).map(|(key, _)| *key).collect();
        for key in choking {
            self.void_all(now, key);
        }
        for peer in self.peers.values_mut() {
            peer.end_pause(now);
            peer.forget_doubts(now);
        }
        self.pass_the_late(now);
    }
}
