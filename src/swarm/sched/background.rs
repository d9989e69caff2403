//! Requests for what no reader needs: peer by peer, a piece for each.
//!
//! A peer first continues its own piece, then one that another peer left behind, then begins a new one, the rarest that
//! it has. One piece per peer makes it clear who sent a bad one. Only when no more pieces may be begun do peers share.

use std::time::Instant;

use rand::RngExt;

use crate::metainfo::BLOCK_LEN;
use crate::swarm::peer::Peer;
use crate::swarm::pieces::{BlockId, Slot};
use crate::swarm::policy::Need;
use crate::swarm::{PeerKey, PickOrder, Swarm};

/// The rarest pieces tried for one that the peer has: bounds the cost of a search.
const RAREST_TRIED: usize = 256;
/// Pieces tried after that, from a random one on: bounds the cost of a search in a torrent of millions of pieces.
const ANY_TRIED: usize = 65_536;

/// Result of a search for a piece to begin.
enum Found {
    Piece(u32),
    /// There is none until a block becomes free.
    Nothing,
    /// There may be one later: a limit is reached, or the search was cut short.
    NotNow,
}

impl Swarm {
    /// Fills a peer's pipeline with background requests.
    pub(in crate::swarm) fn fill_background(&mut self, now: Instant, key: PeerKey) {
        let Some(peer) = self.peers.get(&key) else { return };
        if self.config.on_demand || !peer.may_ask(now) || !peer.wants_refill(now, self.phase) {
            return;
        }
        // The pieces that a peer allows while it chokes us are for our first ones: many peers get the same few.
        if peer.choking_us && self.pieces.have_count() >= self.config.policy.random_first {
            return;
        }
        if self.config.policy.queue_allowance(Need::Background, self.phase).is_none() {
            return;
        }
        let mut room = peer.room(now, Need::Background, self.phase);
        while room > 0.0 {
            let Some(piece) = self.next_piece(now, key) else { break };
            let (Some(partial), Some(peer)) = (self.pieces.partial(piece), self.peers.get_mut(&key)) else { break };
            let most = (room / f64::from(BLOCK_LEN)).ceil() as usize;
            let ids = partial.free_blocks().map(|block| BlockId { piece, block });
            let ids: Vec<BlockId> = ids.filter(|id| !peer.asks.may_still_answer(now, *id)).take(most).collect();
            if ids.len() < most {
                peer.current = None;
            }
            for id in ids {
                room -= f64::from(BLOCK_LEN);
                self.ask(now, key, id);
            }
        }
        if room > 0.0 {
            self.end_game(now, key);
        }
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.pipeline.refilled(room <= 0.0);
        }
    }

    /// Returns a partial piece with a block that this peer may be asked for, begun now if necessary.
    fn next_piece(&mut self, now: Instant, key: PeerKey) -> Option<u32> {
        let peer = self.peers.get(&key)?;
        if peer.wanted == 0 || peer.exhausted_at == Some(self.pieces.freed) {
            return None;
        }
        if let Some(piece) = peer.current.filter(|piece| self.is_for(now, key, *piece)) {
            return Some(piece);
        }
        // A piece that no peer is fetching.
        let mut shared = None;
        let mut orphan = None;
        for piece in self.pieces.open() {
            if !self.is_for(now, key, *piece) {
                continue;
            }
            let owner = self.pieces.partial(*piece).and_then(|partial| partial.owner).filter(|owner| *owner != key);
            let busy =
                owner.and_then(|owner| self.peers.get(&owner)).is_some_and(|owner| owner.current == Some(*piece));
            if !busy {
                orphan = Some(*piece);
                break;
            }
            shared = shared.or(Some(*piece));
        }
        if let Some(piece) = orphan {
            self.adopt(key, piece);
            return Some(piece);
        }
        match self.new_piece(now, key) {
            Found::Piece(piece) => {
                let solo = self.blame.suspects(piece);
                self.pieces.begin(piece, Some(key), solo);
                self.adopt(key, piece);
                Some(piece)
            }
            // It stays the other peer's piece.
            _ if shared.is_some() => shared,
            Found::NotNow => None,
            Found::Nothing => {
                let freed = self.pieces.freed;
                self.peers.get_mut(&key)?.exhausted_at = Some(freed);
                None
            }
        }
    }

    /// Makes a partial piece the one that this peer fetches.
    fn adopt(&mut self, key: PeerKey, piece: u32) {
        if let Some(partial) = self.pieces.partial_mut(piece) {
            partial.owner = Some(key);
        }
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.current = Some(piece);
        }
    }

    /// Returns whether this peer may be asked, in the background, for a free block of this partial piece.
    fn is_for(&self, now: Instant, key: PeerKey, piece: u32) -> bool {
        let (Some(partial), Some(peer)) = (self.pieces.partial(piece), self.peers.get(&key)) else { return false };
        self.pieces.open().contains(&piece)
            && self.needed.binary_search(&piece).is_err()
            && (!partial.solo || partial.owner == Some(key))
            && peer.serves(now, piece)
            && (peer.asks.withdrawn(now) == 0
                || partial.free_blocks().any(|block| !peer.asks.may_still_answer(now, BlockId { piece, block })))
    }

    /// Returns whether no piece may be begun because of the bytes that partial pieces take. The first one always may, if
    /// there is room for it, however long it is.
    fn is_limited(&self) -> bool {
        let len = self.config.lengths.full_pieces(1);
        let partial = self.pieces.partial_bytes();
        // Half of the partial pieces are left to readers.
        let limit = if self.needed.is_empty() { self.config.max_partial } else { self.config.max_partial / 2 };
        partial > 0 && partial + len > limit || partial + len > self.room
    }

    /// Finds a missing piece to begin with this peer.
    fn new_piece(&mut self, now: Instant, key: PeerKey) -> Found {
        if self.queued {
            return Found::NotNow;
        }
        if self.is_limited() {
            self.starved |= self.pieces.partial_bytes() == 0;
            return Found::NotNow;
        }
        let Some(peer) = self.peers.get_mut(&key) else { return Found::NotNow };
        let missing = self.pieces.availability.rarest();
        if missing.is_empty() {
            return Found::Nothing;
        }
        while let Some(piece) = peer.suggested.pop_front() {
            let free = self.pieces.is_to_begin(piece) && self.needed.binary_search(&piece).is_err();
            if free && peer.serves(now, piece) {
                return Found::Piece(piece);
            }
        }
        let Some(peer) = self.peers.get(&key) else { return Found::NotNow };
        // Alone with a suspect piece, a peer that stopped answering would hold it up for good.
        let stuck = peer.pipeline.snubbed && self.peers.values().any(|other| !other.pipeline.snubbed);
        let fits = |piece: &&u32| {
            peer.serves(now, **piece)
                && self.needed.binary_search(piece).is_err()
                && !(stuck && self.blame.suspects(**piece))
        };
        if self.config.order == PickOrder::InOrder {
            return missing.iter().filter(fits).min().map_or(Found::Nothing, |piece| Found::Piece(*piece));
        }
        let from = self.rng.random_range(0..self.pieces.count());
        let (first, last) = (self.pieces.preferred().range(from..), self.pieces.preferred().range(..from));
        let preferred = first.chain(last).take(RAREST_TRIED).filter(fits);
        if let Some(piece) = preferred.min_by_key(|piece| self.pieces.availability.of(**piece)) {
            return Found::Piece(*piece);
        }
        let from = self.rng.random_range(0..missing.len());
        let (before, after) = missing.split_at(from);
        let random_first = self.config.policy.random_first as usize;
        let begun = self.pieces.have_count() as usize + self.pieces.partials().take(random_first).count();
        let tried = if begun < random_first { 0 } else { RAREST_TRIED };
        let rarest = missing.iter().take(tried).find(fits);
        let found = rarest.or_else(|| after.iter().chain(before).take(ANY_TRIED).find(fits));
        match found {
            Some(piece) => Found::Piece(*piece),
            None if missing.len() > ANY_TRIED => Found::NotNow,
            None => Found::Nothing,
        }
    }

    /// Once every missing block is requested, or every one of the only piece that there is memory for, asks an idle peer for
    /// blocks that another would deliver later.
    fn end_game(&mut self, now: Instant, key: PeerKey) {
        let Some(peer) = self.peers.get(&key) else { return };
        let last = self.pieces.availability.rarest().is_empty();
        let only = || self.pieces.partials().take(2).count() == 1 && self.is_limited();
        let over = self.pieces.open().is_empty() && (last || only());
        if !over || !peer.asks.is_empty() || peer.wanted == 0 || peer.pipeline.snubbed {
            return;
        }
        let mine = peer.pipeline.eta(f64::from(BLOCK_LEN));
        let others = self.peers.iter().filter(|(other, _)| **other != key);
        let mut later: Vec<(f64, &Peer)> = others
            .map(|(_, other)| (other.eta(now, other.pipeline.outstanding() as f64), other))
            .filter(|(eta, other)| *eta > mine && !other.asks.is_empty())
            .collect();
        later.sort_by(|(a, _), (b, _)| b.total_cmp(a));
        let once = |id: &BlockId| {
            let partial = self.pieces.partial(id.piece).filter(|partial| !partial.solo);
            partial.is_some_and(|partial| partial.slots[id.block as usize] == Slot::Asked(1))
        };
        let most = (self.config.policy.first_window / u64::from(BLOCK_LEN)) as usize;
        let ids: Vec<BlockId> = later
            .iter()
            .flat_map(|(_, other)| other.asks.iter().map(|ask| ask.id))
            .filter(|id| once(id) && peer.serves(now, id.piece) && !peer.asks.may_still_answer(now, *id))
            .take(most)
            .collect();
        for id in ids {
            self.ask(now, key, id);
        }
    }
}
