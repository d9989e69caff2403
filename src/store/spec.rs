//! What the store is told of a torrent.

use std::sync::Arc;

use super::place::Place;
use crate::metainfo::{InfoHash, Layout, Metainfo, PieceHashes, PieceIndex};

/// Called with each piece that is had no more, from whatever thread caused it, without a lock held. It must not block.
pub type EvictionSink = Box<dyn Fn(PieceIndex) + Send + Sync>;

/// Called during a check of all pieces: how many are done, and of how many. First with 0, then once with each number.
pub type Progress = Box<dyn Fn(u32, u32) + Send + Sync>;

/// What the store must know of a torrent.
pub struct TorrentSpec {
    /// Names its directory.
    pub info_hash: InfoHash,
    /// Its pieces and files.
    pub layout: Arc<Layout>,
    /// What checks its pieces.
    pub hashes: PieceHashes,
    /// Check every piece on the disk before [`Cache::add`] returns.
    pub verify: bool,
    /// Where its files are.
    pub place: Place,
    /// Told of the progress of that check; also when it is done because the state file is lost.
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
