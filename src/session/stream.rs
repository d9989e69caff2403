//! A file of a torrent as a byte stream, for users of the crate that expect `AsyncRead` and `AsyncSeek`.
//!
//! Owns a position and at most one read in progress. Bytes come from [`Reader`]; nothing is buffered here beyond the
//! chunk that the read in progress returned.

use std::fmt;
use std::future::Future;
use std::io::{self, SeekFrom};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncSeek, ReadBuf};

use super::reader::{ReadError, Reader};

/// Bytes of one read: as much as the kernel asks a mount for at a time, so that bytes that are here do not wait for a
/// piece behind them.
const CHUNK: u32 = 64 << 10;

type ReadInProgress = Pin<Box<dyn Future<Output = Result<Bytes, ReadError>> + Send>>;

/// A file of a torrent as a byte stream; made by [`Reader::into_stream`].
///
/// Reads wait until their bytes have been downloaded and verified, and fail with [`ReadError`] wrapped in an
/// [`io::Error`]. Seeking costs nothing: the swarm is told with the next read.
pub struct FileStream {
    reader: Arc<Reader>,
    /// Offset in the file of the first byte of `ready`.
    position: u64,
    /// Bytes read and not yet passed on.
    ready: Bytes,
    in_progress: Option<ReadInProgress>,
}

impl Reader {
    /// Turns the file into a stream of bytes that can be read and sought with tokio's extension traits.
    pub fn into_stream(self) -> FileStream {
        FileStream::new(self)
    }
}

impl FileStream {
    fn new(reader: Reader) -> Self {
        Self { reader: Arc::new(reader), position: 0, ready: Bytes::new(), in_progress: None }
    }

    /// Reads until `ready` holds at least one byte, unless the position is at or behind the end of the file.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ReadError>> {
        while self.ready.is_empty() && self.position < self.reader.len() {
            let read = match &mut self.in_progress {
                Some(read) => read,
                None => {
                    let span = self.reader.span(self.position, CHUNK);
                    if let Some(bytes) = self.reader.read_now(&span) {
                        self.ready = bytes;
                        break;
                    }
                    let reader = self.reader.clone();
                    self.in_progress.insert(Box::pin(async move { reader.wait(&span).await }))
                }
            };
            let outcome = ready!(read.as_mut().poll(cx));
            self.in_progress = None;
            self.ready = outcome?;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for FileStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_ready(cx)).map_err(io::Error::other)?;
        let len = this.ready.len().min(buf.remaining());
        buf.put_slice(&this.ready[..len]);
        this.ready.advance(len);
        this.position += len as u64;
        Poll::Ready(Ok(()))
    }
}

impl AsyncSeek for FileStream {
    fn start_seek(self: Pin<&mut Self>, to: SeekFrom) -> io::Result<()> {
        let this = self.get_mut();
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::Current(by) => this.position.checked_add_signed(by),
            SeekFrom::End(by) => this.reader.len().checked_add_signed(by),
        };
        let position = position.ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, "cannot seek to before the start of the file")
        })?;
        if position != this.position {
            this.position = position;
            this.ready.clear();
            this.in_progress = None;
        }
        Ok(())
    }

    fn poll_complete(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<u64>> {
        Poll::Ready(Ok(self.position))
    }
}

impl fmt::Debug for FileStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileStream").field("position", &self.position).field("len", &self.reader.len()).finish()
    }
}
