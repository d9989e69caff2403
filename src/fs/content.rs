//! The interface between the filesystem and a torrent: a torrent whose files can be opened, and an open file.

use std::fs::File;
use std::future::Future;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::metainfo::{FileIndex, Metainfo};
use crate::session::{self, LocalFile, Span, Torrent};

/// A torrent, as the filesystem sees it.
pub trait Content: Send + Sync + 'static {
    /// An open file.
    type Reader: Reader;

    /// Returns the metainfo, which never changes.
    fn metainfo(&self) -> &Metainfo;

    /// Opens a regular file. Returns one reader per open handle, dropped when the handle is closed, or `None` if the
    /// torrent has no such file. Runs on a FUSE thread.
    fn open(self: &Arc<Self>, file: FileIndex) -> Option<Self::Reader>;

    /// Counts the pieces of a range that we have (hash checked and stored). Runs on a FUSE thread, so it never waits.
    fn have_count(&self, pieces: Range<u32>) -> u32;
}

/// An open file handle. It returns exactly the bytes of a span, and only from pieces whose hash was checked: the kernel
/// would fill a gap with zeros.
pub trait Reader: Send + Sync + 'static {
    /// A part of the file, within the file by construction.
    type Span: Send + Sync + 'static;

    /// Returns the part of the file that a read covers, `offset` in bytes from its start. It ends where the file does.
    fn span(&self, offset: u64, len: u32) -> Self::Span;

    /// Returns the bytes if they are in memory or on a local disk. Runs on a FUSE thread, so it never waits for the
    /// network.
    fn read_now(&self, span: &Self::Span) -> Option<Bytes>;

    /// Waits for the bytes, up to the reader's own deadline. Dropping the future cancels the read.
    fn wait(&self, span: &Self::Span) -> impl Future<Output = Result<Bytes, ReadError>> + Send;

    /// Whether the whole file is on a local disk and verified, so that [`Self::local_file`] is worth a try. Runs on a FUSE
    /// thread, so it never waits.
    fn is_on_disk(&self) -> bool {
        false
    }

    /// Starts to verify a file that would be on the disk, if it were verified. Runs on a FUSE thread, so it never waits.
    fn verify(&self) {}

    /// Returns the complete file on the disk, for the kernel to read, and its descriptor. Calls `lost` once its bytes are not
    /// those of the torrent any more. May wait for the disk.
    fn local_file(&self, lost: LossSink) -> Option<(LocalFile, Arc<File>)> {
        drop(lost);
        None
    }
}

/// Called when a file that the kernel reads itself is damaged. It must not block.
pub type LossSink = Box<dyn Fn() + Send + Sync>;

/// An error of a read. Programs get its [`errno`](Self::errno); the text is for the log.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The torrent could not provide the bytes.
    #[error(transparent)]
    Torrent(session::ReadError),
    /// The torrent or the mount is closing.
    #[error("the filesystem is shutting down")]
    Closed,
    /// A signal ends the program that reads.
    #[error("the program that reads is to end")]
    Interrupted,
}

impl ReadError {
    /// Returns the value of `errno` that programs get.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Interrupted => libc::EINTR,
            Self::Torrent(_) | Self::Closed => libc::EIO,
        }
    }
}

impl Content for Torrent {
    type Reader = session::Reader;

    fn metainfo(&self) -> &Metainfo {
        Torrent::metainfo(self)
    }

    fn open(self: &Arc<Self>, file: FileIndex) -> Option<session::Reader> {
        Torrent::open(self, file)
    }

    fn have_count(&self, pieces: Range<u32>) -> u32 {
        let lengths = self.metainfo().layout.lengths();
        pieces.filter_map(|piece| lengths.piece(piece)).filter(|piece| self.store().has(*piece)).count() as u32
    }
}

impl Reader for session::Reader {
    type Span = Span;

    fn span(&self, offset: u64, len: u32) -> Span {
        session::Reader::span(self, offset, len)
    }

    fn read_now(&self, span: &Span) -> Option<Bytes> {
        session::Reader::read_now(self, span)
    }

    async fn wait(&self, span: &Span) -> Result<Bytes, ReadError> {
        session::Reader::wait(self, span).await.map_err(|error| match error {
            session::ReadError::Closed => ReadError::Closed,
            error => ReadError::Torrent(error),
        })
    }

    fn is_on_disk(&self) -> bool {
        let (torrent, file) = self.file();
        torrent.is_file_on_disk(file)
    }

    fn verify(&self) {
        let (torrent, file) = self.file();
        torrent.verify_file(file);
    }

    fn local_file(&self, lost: LossSink) -> Option<(LocalFile, Arc<File>)> {
        let (torrent, file) = self.file();
        torrent.local_file(file, lost)
    }
}
