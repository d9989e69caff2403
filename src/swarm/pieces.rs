//! Every piece's state, and the blocks of those under way.
//!
//! A piece is in exactly one state. `Missing` pieces that are not to be skipped, and only they, are enrolled in the
//! availability order, while there are peers; `Partial` and `Checking` ones, and only they, have an entry in `partials`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use fixedbitset::FixedBitSet;
use rand::rngs::SmallRng;

use super::availability::Availability;
use super::event::PeerKey;
use crate::metainfo::{BLOCK_LEN, Block, Lengths};
use crate::wire::{PeerId, Request};

/// One block, within the torrent by construction: from [`Pieces::block`] or a walk over a partial's slots.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct BlockId {
    pub(super) piece: u32,
    pub(super) block: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// Nothing of it is here.
    Missing,
    /// Some blocks are asked for or here.
    Partial,
    /// All blocks are here; its hash is being computed.
    Checking,
    /// In the store.
    Have,
}

/// One block of a partial piece.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Slot {
    /// To be asked for.
    Free,
    /// Asked of one peer, or of two.
    Asked(PeerKey, Option<PeerKey>),
    /// Here, from this one of the partial's contributors.
    Received(u16),
}

/// Who sent a block; outlives the connection, so that a liar is found after it has left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Contributor {
    pub(super) peer: PeerKey,
    pub(super) addr: SocketAddr,
    pub(super) id: PeerId,
}

#[derive(Debug)]
pub(super) struct Partial {
    pub(super) slots: Vec<Slot>,
    /// Slots that are `Free`.
    pub(super) free: u32,
    /// Slots that are `Received`.
    pub(super) received: u32,
    /// No slot before this one is `Free`.
    hint: u32,
    pub(super) contributors: Vec<Contributor>,
    /// The peer that fetches it in the background; with `solo`, the only one that may.
    pub(super) owner: Option<PeerKey>,
    /// It failed its hash before: one peer alone is to deliver it, so that it is clear who lies.
    pub(super) solo: bool,
}

impl Partial {
    /// The free blocks, lowest first.
    pub(super) fn free_blocks(&self) -> impl Iterator<Item = u32> + '_ {
        let from = self.hint as usize;
        let slots = if self.free == 0 { &[] } else { &self.slots[from..] };
        slots.iter().zip(from as u32..).filter(|(slot, _)| **slot == Slot::Free).map(|(_, block)| block)
    }
}

/// What became of a block that came.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Receipt {
    /// Not wanted (any more).
    Useless,
    /// Wanted. `others` were asked for it as well; with `full` the piece is now `Checking`.
    Wanted { others: [Option<PeerKey>; 2], full: bool },
}

#[derive(Debug)]
pub(super) struct Pieces {
    pub(super) lengths: Lengths,
    state: Vec<State>,
    partials: BTreeMap<u32, Partial>,
    /// Partial pieces with a free block.
    open: BTreeSet<u32>,
    pub(super) availability: Availability,
    /// Not for background fetching.
    skipped: FixedBitSet,
    /// For it before all others.
    high: FixedBitSet,
    /// Of them, those to be begun.
    urged: BTreeSet<u32>,
    have: u32,
    /// How many are missing and not to be skipped.
    to_begin: u32,
    /// Bytes of the partial and checking pieces.
    partial_bytes: u64,
    /// Counts the times that a block became free: a peer for which there was nothing need not look again before.
    pub(super) freed: u64,
}

impl Pieces {
    pub(super) fn new(lengths: Lengths, had: &FixedBitSet) -> Self {
        let has = |piece: u32| had.contains(piece as usize);
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
            urged: BTreeSet::new(),
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

    pub(super) fn had(&self) -> u32 {
        self.have
    }

    pub(super) fn complete(&self) -> bool {
        self.have == self.count()
    }

    /// The pieces had, as a set.
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

    /// Partial and checking pieces.
    pub(super) fn partials(&self) -> impl Iterator<Item = (u32, &Partial)> {
        self.partials.iter().map(|(piece, partial)| (*piece, partial))
    }

    /// Partial pieces with a free block.
    pub(super) fn open(&self) -> &BTreeSet<u32> {
        &self.open
    }

    pub(super) fn partial_bytes(&self) -> u64 {
        self.partial_bytes
    }

    /// Bytes in this piece.
    pub(super) fn len_of(&self, piece: u32) -> u32 {
        self.lengths.piece(piece).map_or(0, |piece| self.lengths.len_of(piece))
    }

    /// Blocks in this piece.
    pub(super) fn blocks_in(&self, piece: u32) -> u32 {
        self.lengths.piece(piece).map_or(0, |piece| self.lengths.blocks_in(piece))
    }

    /// The block as asked for on the wire.
    pub(super) fn request(&self, id: BlockId) -> Request {
        let block = self.lengths.piece(id.piece).and_then(|piece| self.lengths.block_of(piece, id.block));
        debug_assert!(block.is_some(), "no such block: {id:?}");
        let (begin, length) =
            block.map_or((0, 0), |block| (self.lengths.begin_of(block), self.lengths.block_len(block)));
        Request { piece: id.piece, begin, length }
    }

    /// Bytes in this block.
    pub(super) fn block_len(&self, id: BlockId) -> u32 {
        self.request(id).length
    }

    /// Checks a block from the wire.
    pub(super) fn block(&self, piece: u32, begin: u32, length: u32) -> Option<(BlockId, Block)> {
        let block = self.lengths.block(piece, begin, length)?;
        Some((BlockId { piece, block: block.index.get() }, block))
    }

    /// `Missing` → `Partial`.
    pub(super) fn begin(&mut self, piece: u32, owner: Option<PeerKey>, solo: bool) {
        debug_assert_eq!(self.state(piece), State::Missing);
        if self.availability.is_enrolled(piece) {
            self.availability.withdraw(piece);
        }
        self.urged.remove(&piece);
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

    /// `peer` is asked for a block that is free, or asked of one other peer.
    pub(super) fn ask(&mut self, id: BlockId, peer: PeerKey) {
        let Some(partial) = self.partials.get_mut(&id.piece) else { return };
        let slot = &mut partial.slots[id.block as usize];
        match *slot {
            Slot::Free => {
                *slot = Slot::Asked(peer, None);
                partial.free -= 1;
                if partial.hint == id.block {
                    partial.hint += 1;
                }
                if partial.free == 0 {
                    self.open.remove(&id.piece);
                }
            }
            Slot::Asked(first, None) if first != peer => *slot = Slot::Asked(first, Some(peer)),
            _ => debug_assert!(false, "asked again: {id:?}"),
        }
    }

    /// `peer` will not send that block.
    pub(super) fn unask(&mut self, id: BlockId, peer: PeerKey) {
        let Some(partial) = self.partials.get_mut(&id.piece) else { return };
        let slot = &mut partial.slots[id.block as usize];
        *slot = match *slot {
            Slot::Asked(first, Some(second)) if first == peer => Slot::Asked(second, None),
            Slot::Asked(first, Some(second)) if second == peer => Slot::Asked(first, None),
            Slot::Asked(first, None) if first == peer => {
                partial.free += 1;
                partial.hint = partial.hint.min(id.block);
                self.open.insert(id.piece);
                self.freed += 1;
                Slot::Free
            }
            other => other,
        };
    }

    /// A block came from `from`.
    pub(super) fn receive(&mut self, id: BlockId, from: Contributor) -> Receipt {
        let Some(partial) = self.partials.get_mut(&id.piece) else { return Receipt::Useless };
        let slot = &mut partial.slots[id.block as usize];
        let others = match *slot {
            Slot::Received(_) => return Receipt::Useless,
            Slot::Free => {
                partial.free -= 1;
                if partial.free == 0 {
                    self.open.remove(&id.piece);
                }
                [None, None]
            }
            Slot::Asked(first, second) => {
                [Some(first).filter(|key| *key != from.peer), second.filter(|key| *key != from.peer)]
            }
        };
        let known = partial.contributors.iter().position(|contributor| *contributor == from);
        let index = known.unwrap_or_else(|| {
            partial.contributors.push(from);
            partial.contributors.len() - 1
        });
        // At most one contributor a block, and a piece has at most 8,192 blocks.
        *slot = Slot::Received(index as u16);
        partial.received += 1;
        let full = partial.received as usize == partial.slots.len();
        if full {
            self.state[id.piece as usize] = State::Checking;
        }
        Receipt::Wanted { others, full }
    }

    /// Takes back every block received from whom `distrusted` says. How many bytes that were.
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
                    bytes += u64::from(BLOCK_LEN);
                    self.open.insert(*piece);
                    self.freed += 1;
                }
            }
        }
        bytes
    }

    /// `Checking` → `Have`. Its partial, for the question of who sent what.
    pub(super) fn finish(&mut self, piece: u32) -> Option<Partial> {
        debug_assert_eq!(self.state(piece), State::Checking);
        self.state[piece as usize] = State::Have;
        self.have += 1;
        self.forget(piece)
    }

    /// `Partial` or `Checking` → `Missing`. Whoever was asked for its blocks is for the caller to tell.
    pub(super) fn abandon(&mut self, piece: u32, rng: &mut SmallRng) -> Option<Partial> {
        let partial = self.forget(piece)?;
        self.lose(piece, rng);
        Some(partial)
    }

    /// `Have` → `Missing`. False if it was not had.
    pub(super) fn evict(&mut self, piece: u32, rng: &mut SmallRng) -> bool {
        if !self.has(piece) {
            return false;
        }
        self.have -= 1;
        self.lose(piece, rng);
        true
    }

    /// It is missing, and may be begun unless it is to be skipped.
    fn lose(&mut self, piece: u32, rng: &mut SmallRng) {
        self.state[piece as usize] = State::Missing;
        self.freed += 1;
        if self.is_to_begin(piece) {
            self.to_begin += 1;
            self.availability.enroll(piece, rng);
            if self.high.contains(piece as usize) {
                self.urged.insert(piece);
            }
        }
    }

    /// Missing, and not to be skipped: background fetching may begin it.
    pub(super) fn is_to_begin(&self, piece: u32) -> bool {
        self.state(piece) == State::Missing && !self.skipped.contains(piece as usize)
    }

    /// How many of these there are.
    pub(super) fn to_begin(&self) -> u32 {
        self.to_begin
    }

    /// The first peer comes: from now on it is counted who has what.
    pub(super) fn wake(&mut self, rng: &mut SmallRng) {
        let missing = (0..self.count()).filter(|piece| self.is_to_begin(*piece));
        self.availability = Availability::awake(self.count(), missing, rng);
    }

    /// The last has left.
    pub(super) fn sleep(&mut self) {
        self.availability = Availability::default();
    }

    /// Pieces to be begun before all others.
    pub(super) fn urged(&self) -> &BTreeSet<u32> {
        &self.urged
    }

    /// Pieces that background fetching leaves out.
    pub(super) fn skipped(&self) -> &FixedBitSet {
        &self.skipped
    }

    /// Replaces what is known of the order in which pieces are wanted. Walks over all pieces.
    pub(super) fn prioritize(&mut self, skipped: FixedBitSet, high: &FixedBitSet, rng: &mut SmallRng) {
        self.skipped = skipped;
        self.high.clone_from(high);
        self.high.difference_with(&self.skipped);
        let enrolled: Vec<u32> = (0..self.count()).filter(|piece| self.is_to_begin(*piece)).collect();
        self.to_begin = enrolled.len() as u32;
        self.urged = enrolled.iter().copied().filter(|piece| self.high.contains(*piece as usize)).collect();
        self.availability.enroll_only(enrolled, rng);
        self.freed += 1;
    }

    fn forget(&mut self, piece: u32) -> Option<Partial> {
        let partial = self.partials.remove(&piece)?;
        self.open.remove(&piece);
        self.partial_bytes -= u64::from(self.len_of(piece));
        Some(partial)
    }

    /// Checks everything against a recount; for tests.
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
                    Slot::Asked(first, second) => assert_ne!(Some(first), second),
                    Slot::Received(by) => assert!(usize::from(by) < partial.contributors.len()),
                    Slot::Free => {}
                }
            }
        }
        assert_eq!(self.partial_bytes, bytes);
        assert_eq!(self.to_begin as usize, (0..self.count()).filter(|piece| self.is_to_begin(*piece)).count());
        let urged = |piece: &u32| self.is_to_begin(*piece) && self.high.contains(*piece as usize);
        assert_eq!(self.urged, (0..self.count()).filter(urged).collect());
        assert_eq!(self.have as usize, self.state.iter().filter(|state| **state == State::Have).count());
    }
}
