//! Why a session or a torrent cannot start.

use crate::http::RequestError;
use crate::metainfo::InfoHash;
use crate::store::StoreError;

/// Why a session or a torrent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The listening port cannot be opened.
    #[error("cannot listen for peers on {what}: {source}; choose another with --port or --bind")]
    Listen {
        /// The address and port asked for.
        what: String,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// The piece cache cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The HTTP client for trackers cannot be set up.
    #[error("cannot set up the HTTP client for trackers: {0}")]
    Http(#[from] RequestError),
    /// The torrent is in the session already.
    #[error("{0} is already added")]
    Twice(InfoHash),
    /// Pieces are missing, and [`TorrentOptions::whole`](super::TorrentOptions::whole) is set. Holds the pieces that
    /// are there, so that the caller can name the files.
    #[error("pieces are missing")]
    Incomplete(fixedbitset::FixedBitSet),
    /// The session is ending.
    #[error("the session is ending")]
    Ending,
}
