//! The bytes of pieces that are not complete yet. No reader sees them (invariant 1).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use crate::metainfo::{Block, Lengths, PieceIndex};
use crate::session::block_times::BlockTimes;
use crate::store::{Cache, PieceBuf};

/// One buffer per partial piece; the swarm bounds their number (`Config::max_partial`).
pub(super) struct Partials {
    lengths: Lengths,
    cache: Arc<Cache>,
    buffers: HashMap<PieceIndex, PieceBuf>,
    times: Arc<BlockTimes>,
}

impl Partials {
    pub(super) fn new(lengths: Lengths, cache: Arc<Cache>, times: Arc<BlockTimes>) -> Self {
        Self { lengths, cache, buffers: HashMap::new(), times }
    }

    /// Stores a block that the swarm wants.
    pub(super) fn insert(&mut self, now: Instant, block: Block, data: &[u8]) {
        let buffer = self.buffers.entry(block.piece).or_insert_with(|| {
            let len = self.lengths.len_of(block.piece) as usize;
            self.cache.buffer(len)
        });
        let begin = self.lengths.begin_of(block) as usize;
        if let Some(place) = buffer.get_mut(begin..begin + data.len()) {
            place.copy_from_slice(data);
        }
        self.times.arrived(now, block.piece);
    }

    /// Takes the bytes of a piece away to be checked.
    pub(super) fn take(&mut self, piece: PieceIndex) -> Option<PieceBuf> {
        self.buffers.remove(&piece)
    }

    /// Forgets a piece that is abandoned or checked.
    pub(super) fn remove(&mut self, piece: PieceIndex) {
        self.buffers.remove(&piece);
        self.times.remove(piece);
    }
}
