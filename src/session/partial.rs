//! The bytes of pieces that are not whole yet. No reader sees them (invariant 1).

use std::collections::HashMap;
use std::time::Instant;

use crate::metainfo::{Block, Lengths, PieceIndex};
use crate::store::{Cache, PieceBuf};

/// One buffer a partial piece; the swarm bounds how many there are (`Config::max_partial`).
pub(super) struct Partials {
    lengths: Lengths,
    buffers: HashMap<PieceIndex, Partial>,
}

struct Partial {
    /// `None` while the piece is being checked.
    buffer: Option<PieceBuf>,
    last_block: Instant,
}

impl Partials {
    pub(super) fn new(lengths: Lengths) -> Self {
        Self { lengths, buffers: HashMap::new() }
    }

    /// Keeps a block that the swarm wanted.
    pub(super) fn insert(&mut self, now: Instant, cache: &Cache, block: Block, data: &[u8]) {
        let len = self.lengths.len_of(block.piece) as usize;
        let partial = self
            .buffers
            .entry(block.piece)
            .or_insert_with(|| Partial { buffer: Some(cache.buffer(len)), last_block: now });
        partial.last_block = now;
        let begin = self.lengths.begin_of(block) as usize;
        if let Some(buffer) = &mut partial.buffer
            && let Some(place) = buffer.get_mut(begin..begin + data.len())
        {
            place.copy_from_slice(data);
        }
    }

    /// Takes the bytes away to be checked; the piece stays known as under way until `remove`.
    pub(super) fn take(&mut self, piece: PieceIndex) -> Option<PieceBuf> {
        self.buffers.get_mut(&piece)?.buffer.take()
    }

    /// Forgets a piece: given up, or checked.
    pub(super) fn remove(&mut self, piece: PieceIndex) {
        self.buffers.remove(&piece);
    }

    /// When a block last came for any of these pieces.
    pub(super) fn last_block(&self, mut pieces: impl Iterator<Item = PieceIndex>) -> Option<Instant> {
        let mut last = None;
        pieces.by_ref().filter_map(|piece| self.buffers.get(&piece)).for_each(|p| last = last.max(Some(p.last_block)));
        last
    }
}
