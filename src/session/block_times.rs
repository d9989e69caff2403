//! When blocks of unfinished pieces arrived: written by the torrent's task, looked up by reads that are about to time
//! out.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Instant;

use crate::metainfo::PieceIndex;
use crate::util::lock;

/// The time of the last block of each unfinished piece.
#[derive(Debug, Default)]
pub(super) struct BlockTimes(Mutex<HashMap<PieceIndex, Instant>>);

impl BlockTimes {
    /// Records that a block of this piece arrived.
    pub(super) fn arrived(&self, now: Instant, piece: PieceIndex) {
        lock(&self.0).insert(piece, now);
    }

    /// Forgets a piece that is finished or abandoned.
    pub(super) fn remove(&self, piece: PieceIndex) {
        lock(&self.0).remove(&piece);
    }

    /// Returns when the last block of any of these pieces arrived.
    pub(super) fn last(&self, pieces: impl Iterator<Item = PieceIndex>) -> Option<Instant> {
        let times = lock(&self.0);
        pieces.filter_map(|piece| times.get(&piece).copied()).max()
    }
}
