//! The state of every piece, and the blocks of unfinished pieces.
//!
//! A piece is in exactly one state. While there are peers, exactly the `Missing` pieces that are not skipped are
//! enrolled in the availability order. Exactly the `Partial` and `Checking` pieces have an entry in `partials`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use fixedbitset::FixedBitSet;
use rand::rngs::SmallRng;

use super::availability::Availability;
use super::event::PeerKey;
use crate::metainfo::{Block, Lengths};
use crate::wire::{PeerId, Request};

/// One block, within the torrent by construction: made by [`Pieces::block`] or from the slots of a partial piece.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct BlockId {
    pub(super) piece: u32,
    pub(super) block: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// No block is here or requested.
    Missing,
    /// Some blocks are requested or here.
    Partial,
    /// All blocks are here, and its hash is being computed.
    Checking,
    /// The piece is in the store.
    Have,
}

/// One block of a partial piece.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Slot {
    /// Not requested.
    Free,
    /// Requested from so many peers.
    Asked(u16),
    /// Here; the sender is an index into the contributors.
    Received(u16),
}

/// The sender of a block. Outlives the connection, so that a liar is found after it has left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Contributor {
    pub(super) peer: PeerKey,
    pub(super) addr: SocketAddr,
    pub(super) id: PeerId,
}

#[derive(Debug)]
pub(super) struct Partial {
    pub(super) slots: Vec<Slot>,
    /// Number of slots that are `Free`.
    pub(super) free: u32,
    /// Number of slots that are `Received`.
    pub(super) received: u32,
    /// No slot before this one is `Free`.
    hint: u32,
    pub(super) contributors: Vec<Contributor>,
    /// The peer that fetches the piece in the background; with `solo`, the only one that may.
    pub(super) owner: Option<PeerKey>,
    /// The piece failed its hash before: only the owner may deliver it, so that a liar is identified.
    pub(super) solo: bool,
}

impl Partial {
    /// Returns the free blocks, lowest first.
    pub(super) fn free_blocks(&self) -> impl Iterator<Item = u32> + '_ {
        let from = self.hint as usize;
        let slots = if self.free == 0 { &[] } else { &self.slots[from..] };
        slots.iter().zip(from as u32..).filter(|(slot, _)| **slot == Slot::Free).map(|(_, block)| block)
    }
}

/// The outcome of a block that arrived.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Receipt {
    /// The block is not wanted, or not any more.
    Useless,
    /// The block is wanted. So many `others` were requested to send it, too; with `full` the piece is now `Checking`.
    Wanted { others: u16, full: bool },
}

#[derive(Debug)]
pub(super) struct Pieces {
    pub(super) lengths: Lengths,
    state: Vec<State>,
    partials: BTreeMap<u32, Partial>,
    /// Partial pieces with a free block.
    open: BTreeSet<u32>,
    pub(super) availability: Availability,
    /// Pieces that background fetching skips.
    skipped: FixedBitSet,
    /// Pieces that background fetching prefers.
    high: FixedBitSet,
    /// Those of `high` that are missing.
    preferred: BTreeSet<u32>,
    have: u32,
    /// Number of pieces that are missing and not skipped.
    to_begin: u32,
    /// Bytes of the partial and checking pieces.
    partial_bytes: u64,
    /// Incremented when a block becomes free: a peer for which there was nothing to fetch need not look again before.
    pub(super) freed: u64,
}

impl Pieces {
    pub(super) fn new(lengths: Lengths, have: &FixedBitSet) -> Self {
        let has = |piece: u32| have.contains(piece as usize);
        let state: Vec<State> =
            (0..lengths.pieces()).map(|piece| if has(piece) { State::Have } else { State::Missing }).collect();
        let have = state.iter().filter(|state| **state == State::Have).count() as u32;
        Self {
            lengths,
            availability: Availability::default(),
            have,
            to_begin: lengths.pieces() - have,
            state,
            skipped: FixedBitSet::new(),
            high: FixedBitSet::new(),
            preferred: BTreeSet::new(),
            partials: BTreeMap::new(),
            open: BTreeSet::new(),
            partial_bytes: 0,
            freed: 0,
        }
    }

    pub(super) fn count(&self) -> u32 {
        self.lengths.pieces()
    }

    pub(super) fn state(&self, piece: u32) -> State {
        self.state[piece as usize]
    }

    pub(super) fn has(&self, piece: u32) -> bool {
        self.state(piece) == State::Have
    }

    pub(super) fn have_count(&self) -> u32 {
        self.have
    }

    pub(super) fn complete(&self) -> bool {
        self.have == self.count()
    }

    /// Returns the pieces that we have.
    pub(super) fn bitfield(&self) -> FixedBitSet {
        let mut bits = FixedBitSet::with_capacity(self.state.len());
        for (piece, state) in self.state.iter().enumerate() {
            bits.set(piece, *state == State::Have);
        }
        bits
    }

    pub(super) fn partial(&self, piece: u32) -> Option<&Partial> {
        self.partials.get(&piece)
    }

    pub(super) fn partial_mut(&mut self, piece: u32) -> Option<&mut Partial> {
        self.partials.get_mut(&piece)
    }

    /// Returns the partial and checking pieces.
    pub(super) fn partials(&self) -> impl Iterator<Item = (u32, &Partial)> {
        self.partials.iter().map(|(piece, partial)| (*piece, partial))
    }

    /// Returns the partial pieces with a free block.
    pub(super) fn open(&self) -> &BTreeSet<u32> {
        &self.open
    }

    pub(super) fn partial_bytes(&self) -> u64 {
        self.partial_bytes
    }

    /// Returns the length of a piece in bytes.
    pub(super) fn len_of(&self, piece: u32) -> u32 {
        self.lengths.piece(piece).map_or(0, |piece| self.lengths.len_of(piece))
    }

    /// Returns the number of blocks in a piece.
    pub(super) fn blocks_in(&self, piece: u32) -> u32 {
        self.lengths.piece(piece).map_or(0, |piece| self.lengths.blocks_in(piece))
    }

    /// Returns the request for a block.
    pub(super) fn request(&self, id: BlockId) -> Request {
        let block = self.lengths.piece(id.piece).and_then(|piece| self.lengths.block_of(piece, id.block));
        debug_assert!(block.is_some(), "no such block: {id:?}");
        let (begin, length) =
            block.map_or((0, 0), |block| (self.lengths.begin_of(block), self.lengths.block_len(block)));
        Request { piece: id.piece, begin, length }
    }

    /// Returns the length of a block in bytes.
    pub(super) fn block_len(&self, id: BlockId) -> u32 {
        self.request(id).length
    }

    /// Returns the block that a message names; `None` if there is no such block.
    pub(super) fn block(&self, piece: u32, begin: u32, length: u32) -> Option<(BlockId, Block)> {
        let block = self.lengths.block(piece, begin, length)?;
        Some((BlockId { piece, block: block.index.get() }, block))
    }

    /// Starts a piece: `Missing` → `Partial`.
    pub(super) fn begin(&mut self, piece: u32, owner: Option<PeerKey>, solo: bool) {
        debug_assert_eq!(self.state(piece), State::Missing);
        if self.availability.is_enrolled(piece) {
            self.availability.withdraw(piece);
        }
        self.preferred.remove(&piece);
        self.to_begin -= u32::from(self.is_to_begin(piece));
        self.state[piece as usize] = State::Partial;
        let blocks = self.blocks_in(piece);
        let partial = Partial {
            slots: vec![Slot::Free; blocks as usize],
            free: blocks,
            received: 0,
            hint: 0,
            contributors: Vec::new(),
            owner,
            solo,
        };
        self.partials.insert(piece, partial);
        self.open.insert(piece);
        self.partial_bytes += u64::from(self.len_of(piece));
    }

    /// Records that a block, which is free or requested from others, is requested from one more peer.
    pub(super) fn ask(&mut self, id: BlockId) {
        let Some(partial) = self.partials.get_mut(&id.piece) else { return };
        let slot = &mut partial.slots[id.block as usize];
        match *slot {
            Slot::Free => {
                *slot = Slot::Asked(1);
                partial.free -= 1;
                if partial.hint == id.block {
                    partial.hint += 1;
                }
                if partial.free == 0 {
                    self.open.remove(&id.piece);
                }
            }
            // Peers are counted in 16 bits.
            Slot::Asked(peers) => *slot = Slot::Asked(peers + 1),
            Slot::Received(_) => debug_assert!(false, "asked again: {id:?}"),
        }
    }

    /// Records that a block is no longer requested from one of the peers.
    pub(super) fn unask(&mut self, id: BlockId) {
        let Some(partial) = self.partials.get_mut(&id.piece) else { return };
        let slot = &mut partial.slots[id.block as usize];
        match *slot {
            Slot::Asked(1) => {
                *slot = Slot::Free;
                partial.free += 1;
                partial.hint = partial.hint.min(id.block);
                self.open.insert(id.piece);
                self.freed += 1;
            }
            Slot::Asked(peers) => *slot = Slot::Asked(peers - 1),
            Slot::Free | Slot::Received(_) => {}
        }
    }

    /// Records that a block arrived. `asked`: its sender is one of the peers that it is requested from.
    pub(super) fn receive(&mut self, id: BlockId, from: Contributor, asked: bool) -> Receipt {
        let Some(partial) = self.partials.get_mut(&id.piece) else { return Receipt::Useless };
        let slot = &mut partial.slots[id.block as usize];
        let others = match *slot {
            Slot::Received(_) => return Receipt::Useless,
            Slot::Free => {
                partial.free -= 1;
                if partial.free == 0 {
                    self.open.remove(&id.piece);
                }
                0
            }
            Slot::Asked(peers) => peers - u16::from(asked),
        };
        let known = partial.contributors.iter().position(|contributor| *contributor == from);
        let index = known.unwrap_or_else(|| {
            partial.contributors.push(from);
            partial.contributors.len() - 1
        });
        // A piece has at most 8,192 blocks, and each has at most one contributor.
        *slot = Slot::Received(index as u16);
        partial.received += 1;
        let full = partial.received as usize == partial.slots.len();
        if full {
            self.state[id.piece as usize] = State::Checking;
        }
        Receipt::Wanted { others, full }
    }

    /// Frees every block received from a contributor for which `distrusted` is true. Returns how many bytes they had.
    pub(super) fn distrust(&mut self, distrusted: impl Fn(&Contributor) -> bool) -> u64 {
        let mut bytes = 0;
        for (piece, partial) in &mut self.partials {
            if self.state[*piece as usize] != State::Partial || !partial.contributors.iter().any(&distrusted) {
                continue;
            }
            for (slot, block) in partial.slots.iter_mut().zip(0..) {
                if matches!(*slot, Slot::Received(by) if distrusted(&partial.contributors[usize::from(by)])) {
                    *slot = Slot::Free;
                    partial.free += 1;
                    partial.received -= 1;
                    partial.hint = partial.hint.min(block);
                    let block = self.lengths.piece(*piece).and_then(|piece| self.lengths.block_of(piece, block));
                    bytes += block.map_or(0, |block| u64::from(self.lengths.block_len(block)));
                    self.open.insert(*piece);
                    self.freed += 1;
                }
            }
        }
        bytes
    }

    /// Finishes a piece: `Checking` → `Have`. Returns its partial, which names the senders of its blocks.
    pub(super) fn finish(&mut self, piece: u32) -> Option<Partial> {
        debug_assert_eq!(self.state(piece), State::Checking);
        self.state[piece as usize] = State::Have;
        self.have += 1;
        self.forget(piece)
    }

    /// Abandons a piece: `Partial` or `Checking` → `Missing`. Cancelling requests is left to the caller.
    pub(super) fn abandon(&mut self, piece: u32, rng: &mut SmallRng) -> Option<Partial> {
        let partial = self.forget(piece)?;
        self.lose(piece, rng);
        Some(partial)
    }

    /// Drops a piece: `Have` → `Missing`. Returns false if we did not have it.
    pub(super) fn evict(&mut self, piece: u32, rng: &mut SmallRng) -> bool {
        if !self.has(piece) {
            return false;
        }
        self.have -= 1;
        self.lose(piece, rng);
        true
    }

    /// Makes a piece missing, and enrolls it unless it is skipped.
    fn lose(&mut self, piece: u32, rng: &mut SmallRng) {
        self.state[piece as usize] = State::Missing;
        self.freed += 1;
        if self.is_to_begin(piece) {
            self.to_begin += 1;
            self.availability.enroll(piece, rng);
            if self.high.contains(piece as usize) {
                self.preferred.insert(piece);
            }
        }
    }

    /// Returns whether background fetching may start a piece: it is missing and not skipped.
    pub(super) fn is_to_begin(&self, piece: u32) -> bool {
        self.state(piece) == State::Missing && !self.skipped.contains(piece as usize)
    }

    /// Returns the number of pieces that background fetching may start.
    pub(super) fn to_begin(&self) -> u32 {
        self.to_begin
    }

    /// Starts to count which pieces peers have, because the first peer has connected.
    pub(super) fn wake(&mut self, rng: &mut SmallRng) {
        let missing = (0..self.count()).filter(|piece| self.is_to_begin(*piece));
        self.availability = Availability::awake(self.count(), missing, rng);
    }

    /// Stops to count, because the last peer has left.
    pub(super) fn sleep(&mut self) {
        self.availability = Availability::default();
    }

    /// Returns the missing pieces that background fetching prefers.
    pub(super) fn preferred(&self) -> &BTreeSet<u32> {
        &self.preferred
    }

    /// Returns the pieces that background fetching skips.
    pub(super) fn skipped(&self) -> &FixedBitSet {
        &self.skipped
    }

    /// Replaces the pieces to skip and those to prefer. Walks over all pieces.
    pub(super) fn prioritize(&mut self, skipped: FixedBitSet, high: &FixedBitSet, rng: &mut SmallRng) {
        self.skipped = skipped;
        self.high.clone_from(high);
        self.high.difference_with(&self.skipped);
        let enrolled: Vec<u32> = (0..self.count()).filter(|piece| self.is_to_begin(*piece)).collect();
        self.to_begin = enrolled.len() as u32;
        self.preferred = enrolled.iter().copied().filter(|piece| self.high.contains(*piece as usize)).collect();
        self.availability.enroll_only(enrolled, rng);
        self.freed += 1;
    }

    fn forget(&mut self, piece: u32) -> Option<Partial> {
        let partial = self.partials.remove(&piece)?;
        self.open.remove(&piece);
        self.partial_bytes -= u64::from(self.len_of(piece));
        Some(partial)
    }

    /// Checks everything against a recount. For tests.
    pub(super) fn check(&self) {
        let mut bytes = 0;
        for piece in 0..self.count() {
            let state = self.state(piece);
            let under_way = matches!(state, State::Partial | State::Checking);
            assert_eq!(self.partials.contains_key(&piece), under_way, "piece {piece} is {state:?}");
            let Some(partial) = self.partials.get(&piece) else {
                assert!(!self.open.contains(&piece));
                continue;
            };
            bytes += u64::from(self.len_of(piece));
            let free = partial.slots.iter().filter(|slot| **slot == Slot::Free).count();
            let received = partial.slots.iter().filter(|slot| matches!(slot, Slot::Received(_))).count();
            assert_eq!(partial.free as usize, free);
            assert_eq!(partial.received as usize, received);
            assert_eq!(partial.free_blocks().count(), free, "hint of piece {piece}");
            assert_eq!(self.open.contains(&piece), state == State::Partial && free > 0);
            assert_eq!(state == State::Checking, received == partial.slots.len());
            for slot in &partial.slots {
                match *slot {
                    Slot::Asked(peers) => assert_ne!(peers, 0),
                    Slot::Received(by) => assert!(usize::from(by) < partial.contributors.len()),
                    Slot::Free => {}
                }
            }
        }
        assert_eq!(self.partial_bytes, bytes);
        assert_eq!(self.to_begin as usize, (0..self.count()).filter(|piece| self.is_to_begin(*piece)).count());
        let preferred = |piece: &u32| self.is_to_begin(*piece) && self.high.contains(*piece as usize);
        assert_eq!(self.preferred, (0..self.count()).filter(preferred).collect());
        assert_eq!(self.have as usize, self.state.iter().filter(|state| **state == State::Have).count());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distrusted_blocks_count_with_their_lengths() {
        // Two pieces: two and a half blocks, and one byte.
        let mut pieces = Pieces::new(Lengths::new(40_961, 40_960).unwrap(), &FixedBitSet::with_capacity(2));
        let by = |n: u8| Contributor {
            peer: PeerKey(n.into()),
            addr: SocketAddr::from(([127, 0, 0, n], 1)),
            id: PeerId([n; 20]),
        };
        pieces.begin(0, None, false);
        for (block, from) in [(0, 1), (2, 2)] {
            pieces.receive(BlockId { piece: 0, block }, by(from), true);
        }
        assert_eq!(pieces.distrust(|from| *from == by(2)), 8192);
        assert_eq!(pieces.distrust(|from| *from == by(2)), 0);
        pieces.check();
        assert_eq!(pieces.distrust(|_| true), 16_384);
    }
}
