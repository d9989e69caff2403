//! Errors of the store.

use std::path::{Path, PathBuf};

use crate::metainfo::{InfoHash, PieceIndex};

/// Why a cache cannot be opened, or a torrent cannot be opened or read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process uses the directory.
    #[error("cache {} is in use by {holder}: stop that process, or choose another directory with --cache-dir", dir.display())]
    InUse {
        /// The cache directory.
        dir: PathBuf,
        /// Description of that process.
        holder: String,
    },
    /// Root was given the cache of another user.
    #[error(
        "cache {} belongs to user {user}, who could redirect what root writes there: choose another directory with --cache-dir, or run as that user",
        dir.display()
    )]
    Owner {
        /// The directory.
        dir: PathBuf,
        /// ID of its owner.
        user: u32,
    },
    /// A directory or file of the cache cannot be created or read.
    #[error("cannot {action} {}: {source}; check its permissions, or choose another directory with --cache-dir", path.display())]
    Io {
        /// The failed action.
        action: &'static str,
        /// The path.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The torrent is already open in this cache.
    #[error("torrent {0} is already open; add it only once")]
    AlreadyOpen(InfoHash),
    /// Another process downloads the same files.
    #[error("{holder} is already downloading this torrent to {}: wait for it or stop it first", dir.display())]
    Busy {
        /// The download directory.
        dir: PathBuf,
        /// Description of that process.
        holder: String,
    },
    /// Something that is not the torrent's has the name of one of its files; it may be replaced on request.
    #[error("{} {why}; move it away, choose another directory, or overwrite it with --force", path.display())]
    Foreign {
        /// The path.
        path: PathBuf,
        /// The reason.
        why: &'static str,
    },
    /// Something that is not the torrent's has the name of one of its files, and must not be replaced.
    #[error("{} {why}; move it away or choose another directory", path.display())]
    InTheWay {
        /// The path.
        path: PathBuf,
        /// The reason.
        why: &'static str,
    },
    /// A shared cache was asked to store a torrent.
    #[error("cache {} was opened for sharing and cannot store torrents", .0.display())]
    Shared(PathBuf),
    /// A file path of the torrent would leave the cache.
    #[error("file path {path:?} of the torrent is not a plain relative path; get a valid .torrent file")]
    UnsafePath {
        /// The path.
        path: PathBuf,
    },
    /// A byte range is not within its piece, which is a bug in the caller.
    #[error("bytes {begin}+{len} are not within piece {piece}")]
    Range {
        /// The piece.
        piece: PieceIndex,
        /// Offset of the range in the piece.
        begin: u32,
        /// Length of the range in bytes.
        len: usize,
    },
    /// The cache is closed.
    #[error("the cache is closed")]
    Closed,
}

pub(super) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { action, path, source }
}
