//! What the filesystem reads through: a torrent that can be opened, and an open file of it.

use std::future::Future;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::metainfo::{FileIndex, Metainfo};
use crate::session::{self, Torrent};

/// One torrent, as the filesystem needs it.
pub trait Content: Send + Sync + 'static {
    /// An open file.
    type Reader: Reader;

    /// What the torrent is. Never changes.
    fn metainfo(&self) -> &Metainfo;

    /// Opens a regular file: one reader for each open handle, dropped when the handle is closed; `None` if the index is
    /// not one of this torrent's. Runs on a FUSE thread.
    fn open(self: &Arc<Self>, file: FileIndex) -> Option<Self::Reader>;

    /// How many of these pieces are had (hash checked and stored). Runs on a FUSE thread: never waits.
    fn had(&self, pieces: Range<u32>) -> u32;
}

/// One open file handle. Offsets are bytes from the start of the file, and the filesystem asks only for bytes within it:
/// `offset + len` is at most the file's length and `len` is not 0.
///
/// Bytes are handed out only from pieces whose hash was checked, and always exactly `len` of them.
pub trait Reader: Send + Sync + 'static {
    /// Answers now, from memory or a local disk, or with `None`. Runs on a FUSE thread: never waits for the network.
    fn read_now(&self, offset: u64, len: u32) -> Option<Bytes>;

    /// Waits for the bytes. Ends by its own deadline; dropping the future gives the wait up.
    fn read(&self, offset: u64, len: u32) -> impl Future<Output = Result<Bytes, ReadError>> + Send;
}

/// Why a read was given up. The reader sees EIO; this is for the log.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The torrent could not give the bytes.
    #[error(transparent)]
    Torrent(session::ReadError),
    /// The torrent or the mount is closing.
    #[error("the filesystem is shutting down")]
    Closed,
    /// A reader broke its promise; the kernel would fill what is missing with zeros.
    #[error("got {got} bytes where {wanted} were asked for")]
    Length {
        /// Bytes asked for.
        wanted: u32,
        /// Bytes given.
        got: usize,
    },
}

impl Content for Torrent {
    type Reader = session::Reader;

    fn metainfo(&self) -> &Metainfo {
        Torrent::metainfo(self)
    }

    fn open(self: &Arc<Self>, file: FileIndex) -> Option<session::Reader> {
        Torrent::open(self, file)
    }

    fn had(&self, pieces: Range<u32>) -> u32 {
        let lengths = self.metainfo().layout.lengths();
        pieces.filter_map(|piece| lengths.piece(piece)).filter(|piece| self.store().has(*piece)).count() as u32
    }
}

impl Reader for session::Reader {
    fn read_now(&self, offset: u64, len: u32) -> Option<Bytes> {
        session::Reader::read_now(self, offset, len)
    }

    async fn read(&self, offset: u64, len: u32) -> Result<Bytes, ReadError> {
        session::Reader::read(self, offset, len).await.map_err(|error| match error {
            session::ReadError::Closed => ReadError::Closed,
            error => ReadError::Torrent(error),
        })
    }
}
