//! Why the store refuses or fails.

use std::path::{Path, PathBuf};

use crate::metainfo::{InfoHash, PieceIndex};

/// Why a cache cannot be opened or a torrent not be added or read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has the directory.
    #[error("cache {} is in use by {holder}: stop that one, or choose another directory with --cache-dir", dir.display())]
    InUse {
        /// The cache directory.
        dir: PathBuf,
        /// Who has it, in message.
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
    AlreadyOpen(InfoHash),
    /// Another process makes the same files.
    #[error("{holder} is at work on this torrent in {}: let it finish, or end it first", dir.display())]
    Busy {
        /// Where the files are made.
        dir: PathBuf,
        /// Who does it, in message.
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
    Shared(PathBuf),
    /// A path that would leave the cache.
    #[error("file path {path:?} of the torrent is not a plain relative path; get a sound .torrent file")]
    UnsafePath {
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

pub(super) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { action, path, source }
}
