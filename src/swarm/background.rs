//! What nobody waits for: peer by peer, a piece for each.
//!
//! A peer first goes on with its own piece, then with one that another left behind, then begins a new one, the rarest
//! that it has. One piece a peer keeps the blame for a bad one clear; only when no more may be begun do peers share.

use std::time::Instant;

use rand::RngExt;

use super::pieces::{BlockId, Slot};
use super::{PeerKey, PickOrder, Swarm};
use crate::metainfo::BLOCK_LEN;

/// Our first pieces are random ones: quick to have, and different from everybody else's.
const RANDOM_FIRST: u32 = 4;
/// How many of the rarest pieces are tried for one that the peer has.
const RAREST_TRIED: usize = 256;
/// How many pieces are tried after that, from a random place on.
const ANY_TRIED: usize = 65_536;
/// Blocks asked for twice by one idle peer at a time, at the end.
const END_GAME: usize = 4;
/// Partial pieces looked through for it.
const END_GAME_PIECES: usize = 256;

/// What a search for a piece found.
enum Found {
    Piece(u32),
    /// There is none until something changes.
    Nothing,
    /// Not now: a limit is reached, or the search was cut short.
    NotNow,
}

impl Swarm {
    /// Fills a peer's pipeline with background requests.
    pub(super) fn fill_background(&mut self, now: Instant, key: PeerKey) {
        let Some(peer) = self.peers.get(&key) else { return };
        if self.config.on_demand || !peer.may_ask(now) || !peer.wants_refill(now, self.slack) {
            return;
        }
        // What a peer lets us have while it chokes us is to start us off; many get the same few pieces.
        if self.readers.just_blocked(now) || peer.choking_us && self.pieces.had() >= RANDOM_FIRST {
            return;
        }
        let mut room = peer.room(now, self.slack);
        while room > 0.0 {
            let Some(piece) = self.next_piece(now, key) else { break };
            let (Some(partial), Some(peer)) = (self.pieces.partial(piece), self.peers.get_mut(&key)) else { break };
            let most = (room / f64::from(BLOCK_LEN)).ceil() as usize;
            let ids = partial.free_blocks().map(|block| BlockId { piece, block });
            let ids: Vec<BlockId> = ids.filter(|id| !peer.in_doubt(now, *id)).take(most).collect();
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

    /// A partial piece with a block that this peer may be asked for.
    fn next_piece(&mut self, now: Instant, key: PeerKey) -> Option<u32> {
        let peer = self.peers.get(&key)?;
        if peer.wanted == 0 || peer.barren == Some(self.pieces.freed) {
            return None;
        }
        if let Some(piece) = peer.current.filter(|piece| self.is_for(now, key, *piece)) {
            return Some(piece);
        }
        // One that nobody is at.
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
            // The other's piece: it stays the other's.
            _ if shared.is_some() => shared,
            Found::NotNow => None,
            Found::Nothing => {
                let freed = self.pieces.freed;
                self.peers.get_mut(&key)?.barren = Some(freed);
                None
            }
        }
    }

    fn adopt(&mut self, key: PeerKey, piece: u32) {
        if let Some(partial) = self.pieces.partial_mut(piece) {
            partial.owner = Some(key);
        }
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.current = Some(piece);
        }
    }

    /// Whether this peer may be asked, in the background, for a free block of this partial piece.
    fn is_for(&self, now: Instant, key: PeerKey, piece: u32) -> bool {
        let (Some(partial), Some(peer)) = (self.pieces.partial(piece), self.peers.get(&key)) else { return false };
        self.pieces.open().contains(&piece)
            && self.needed.binary_search(&piece).is_err()
            && (!partial.solo || partial.owner == Some(key))
            && peer.serves(now, piece)
            && (peer.doubts.is_empty()
                || partial.free_blocks().any(|block| !peer.in_doubt(now, BlockId { piece, block })))
    }

    /// A missing piece to begin with this peer.
    fn new_piece(&mut self, now: Instant, key: PeerKey) -> Found {
        let len = self.config.lengths.full_pieces(1);
        let partial = self.pieces.partial_bytes();
        // Readers find half of the places free.
        let limit = if self.needed.is_empty() { self.config.max_partial } else { self.config.max_partial / 2 };
        if partial > 0 && partial + len > limit || partial + len > self.room {
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
        let peer = &*peer;
        let fits = |piece: &&u32| peer.serves(now, **piece) && self.needed.binary_search(piece).is_err();
        if self.config.order == PickOrder::InOrder {
            return missing.iter().filter(fits).min().map_or(Found::Nothing, |piece| Found::Piece(*piece));
        }
        let from = self.rng.random_range(0..self.pieces.count());
        let (first, last) = (self.pieces.urged().range(from..), self.pieces.urged().range(..from));
        let urged = first.chain(last).take(RAREST_TRIED).filter(fits);
        if let Some(piece) = urged.min_by_key(|piece| self.pieces.availability.of(**piece)) {
            return Found::Piece(*piece);
        }
        let from = self.rng.random_range(0..missing.len());
        let (before, after) = missing.split_at(from);
        let begun = self.pieces.had() as usize + self.pieces.partials().take(RANDOM_FIRST as usize).count();
        let tried = if begun < RANDOM_FIRST as usize { 0 } else { RAREST_TRIED };
        let rarest = missing.iter().take(tried).find(fits);
        let found = rarest.or_else(|| after.iter().chain(before).take(ANY_TRIED).find(fits));
        match found {
            Some(piece) => Found::Piece(*piece),
            None if missing.len() > ANY_TRIED => Found::NotNow,
            None => Found::Nothing,
        }
    }

    /// All that is missing is asked for: an idle peer is asked for what another would deliver later.
    fn end_game(&mut self, now: Instant, key: PeerKey) {
        let Some(peer) = self.peers.get(&key) else { return };
        let over = self.pieces.availability.rarest().is_empty() && self.pieces.open().is_empty();
        if !over || !peer.asks.is_empty() || peer.wanted == 0 || peer.pipeline.snubbed {
            return;
        }
        let mine = peer.pipeline.eta(f64::from(BLOCK_LEN));
        let later = |other: &PeerKey| {
            *other != key
                && self.peers.get(other).is_some_and(|other| other.eta(now, other.pipeline.outstanding() as f64) > mine)
        };
        let mut ids = Vec::new();
        for (piece, partial) in self.pieces.partials().take(END_GAME_PIECES) {
            if ids.len() >= END_GAME || partial.solo || !peer.serves(now, piece) {
                continue;
            }
            for (slot, block) in partial.slots.iter().zip(0..) {
                let id = BlockId { piece, block };
                let once = matches!(slot, Slot::Asked(other, None) if later(other));
                if once && ids.len() < END_GAME && !peer.in_doubt(now, id) {
                    ids.push(id);
                }
            }
        }
        for id in ids {
            self.ask(now, key, id);
        }
    }
}
