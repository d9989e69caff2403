//! The piece cache: a memory tier and a disk tier, least recently used first out, shared by all torrents.
//!
//! Owns the bytes of every piece that is had, and the truth of which those are. Knows no network and no FUSE; only a
//! torrent's sizes, files and hashes.
//!
//! - **Only checked bytes come out** (invariant 1). The one way in is a [`VerifiedPiece`], which only
//!   [`TorrentStore::verify`] makes. What is found on the disk at a start is believed only after a clean close and if
//!   the files look untouched; else each piece is hashed before its first byte is served (see `torrent.rs`).
//! - **A piece is in exactly one state** (invariant 2): one atomic word a piece, see `pieces.rs`.
//! - **Visible, then woken** (invariant 3): [`TorrentStore::put`] shows the piece in memory, wakes those who wait, and
//!   then writes. [`TorrentStore::wait`] registers first and looks then.
//! - **A reader gets exact bytes or none.** Eviction changes the word, then punches; a reader of the disk looks at the
//!   word again after it has read. Punching is over before the piece can be put again.
//! - **No lock is held across I/O** by what a FUSE thread calls ([`TorrentStore::memory`], [`TorrentStore::read_now`],
//!   [`TorrentStore::has`], [`TorrentStore::wait`]).
//! - **Not everything lies in the cache.** A torrent may be downloaded to a directory of the user's, or be the user's own
//!   files, which are only ever read ([`Place`]). Neither is counted or evicted.
//! - **The limits.** Memory counts the pieces of the tier and all other buffers given out ([`Cache::buffer`]): for those,
//!   pieces of the tier that are on the disk, too, make way. Beyond that it is for their holders to bound them. Disk counts the bytes of the pieces had (the filesystem may use up to a block more at each end of a
//!   piece that is not aligned to it, and the state files). The limit is passed only by what is pinned.
//! - **A disk that is full or fails** is no error of a read or a put: pieces stay in memory only, the fault is logged
//!   once and shown in [`Usage::fault`], background room is 0, and writing is tried again every 30 s. What is pinned
//!   takes, on a full disk, the place of what was used longest ago.

use std::path::PathBuf;
use std::sync::Arc;

use crate::metainfo::{BlockIndex, InfoHash, Layout, Metainfo, PieceHashes, PieceIndex};
use crate::util::lock;

mod buffer;
mod cache;
mod download;
mod files;
mod handle;
mod health;
mod holes;
mod ledger;
mod memory;
mod metainfo;
mod pieces;
mod place;
mod start;
mod state;
mod torrent;
mod waiters;

#[cfg(test)]
mod tests;

#[cfg(fuzzing)]
#[doc(hidden)]
pub use state::fuzz_state;

pub use buffer::PieceBuf;
pub use cache::Cache;
pub use download::{Deliver, space_missing};
pub use handle::{TorrentStore, VerifiedPiece};
pub use place::Place;

/// Where and how much to cache.
#[derive(Clone, Debug)]
pub struct CacheConfig {
    /// Made with mode 0700 if it is not there.
    pub dir: PathBuf,
    /// Bytes of pieces on the disk, over all torrents; `None`: no limit.
    pub disk_limit: Option<u64>,
    /// Bytes of pieces in memory, those under way included, over all torrents.
    pub memory: u64,
}

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

/// How a read went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lookup {
    /// All bytes asked for were copied.
    Hit,
    /// It is (probably) had, but the disk must be waited for.
    WouldBlock,
    /// The piece is not had. The output buffer's content is unspecified.
    Missing,
}

/// A piece's bytes are not the torrent's.
#[derive(Debug)]
pub struct Bad {
    /// Blocks proven wrong; empty where one hash covers the whole piece.
    pub blocks: Vec<BlockIndex>,
    /// The bytes, to find out who sent them.
    pub bytes: bytes::Bytes,
}

/// What a cache holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of pieces on the disk, torrents that are not in use included.
    pub disk: u64,
    /// As configured.
    pub disk_limit: Option<u64>,
    /// Bytes of pieces in memory.
    pub memory: u64,
    /// As configured.
    pub memory_limit: u64,
    /// Bytes of all buffers in use: the pieces in memory, partial ones, and what is being served.
    pub buffers: u64,
    /// What is wrong with the disk, in words.
    pub fault: Option<String>,
}

/// Why a cache cannot be opened or a torrent not be added or read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has the directory.
    #[error("cache {} is in use by {holder}: stop that one, or choose another directory with --cache-dir", dir.display())]
    InUse {
        /// The cache directory.
        dir: PathBuf,
        /// Who has it, in words.
        holder: String,
    },
    /// A directory or file of the cache cannot be made or read.
    #[error("cannot {action} {}: {source}; make it accessible, or choose another directory with --cache-dir", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The torrent is in the cache's hands already.
    #[error("torrent {0} is open already; mount it once")]
    Already(InfoHash),
    /// Another process makes the same files.
    #[error("{holder} is at work on this torrent in {}: let it finish, or end it first", dir.display())]
    Busy {
        /// Where the files are made.
        dir: PathBuf,
        /// Who does it, in words.
        holder: String,
    },
    /// What is there is not the torrent's, and nobody said that it may go.
    #[error("{} {why}; move it away, choose another directory, or have it overwritten with --force", path.display())]
    Foreign {
        /// What is in the way.
        path: PathBuf,
        /// What it is.
        why: &'static str,
    },
    /// What is there is not the torrent's, and is not ours to remove.
    #[error("{} {why}; move it away or choose another directory", path.display())]
    InTheWay {
        /// What is in the way.
        path: PathBuf,
        /// What it is.
        why: &'static str,
    },
    /// A cache that keeps no pieces was asked to.
    #[error("cache {} was not opened to keep torrents in it", .0.display())]
    Beside(PathBuf),
    /// A path that would leave the cache.
    #[error("file path {path:?} of the torrent is not a plain relative path; get a sound .torrent file")]
    Unsafe {
        /// The path.
        path: PathBuf,
    },
    /// A range that is not within its piece: a mistake of the caller.
    #[error("bytes {begin}+{len} are not within piece {piece}")]
    Range {
        /// The piece.
        piece: PieceIndex,
        /// First byte.
        begin: u32,
        /// Bytes.
        len: usize,
    },
    /// The cache was closed.
    #[error("the cache is closed")]
    Closed,
}
