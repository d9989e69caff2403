//! Parameters for opening a torrent.

use std::sync::Arc;

use super::place::Place;
use crate::metainfo::{InfoHash, Layout, Metainfo, PieceHashes, PieceIndex};

/// Called with each piece that is gone, from the thread that caused it and without a lock held. It must not block.
pub type EvictionSink = Box<dyn Fn(PieceIndex) + Send + Sync>;

/// Called when a file that the kernel reads itself has lost a piece, from the thread that caused it and without a lock held.
/// It must not block.
pub type LossSink = Box<dyn Fn() + Send + Sync>;

/// Called while pieces are hashed, with the number done and the total: first with 0, then once per piece.
pub type Progress = Box<dyn Fn(u32, u32) + Send + Sync>;

/// A torrent to open.
pub struct TorrentSpec {
    /// Info hash; the name of its directory in the cache.
    pub info_hash: InfoHash,
    /// Pieces and files.
    pub layout: Arc<Layout>,
    /// Hashes that verify the pieces.
    pub hashes: PieceHashes,
    /// Whether to hash every piece on the disk before [`TorrentStore::open`](super::TorrentStore::open) returns.
    pub verify: bool,
    /// Place of the files.
    pub place: Place,
    /// Receives the progress of that hashing, which also happens if the state file is lost.
    pub progress: Option<Progress>,
}

impl From<&Metainfo> for TorrentSpec {
    fn from(metainfo: &Metainfo) -> Self {
        Self {
            info_hash: metainfo.info_hash,
            layout: metainfo.layout.clone(),
            hashes: metainfo.hashes.clone(),
            verify: false,
            place: Place::Cache,
            progress: None,
        }
    }
}
