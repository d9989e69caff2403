//! One open file handle: where a read looks, and how it waits.

use std::ops::Range;
use std::pin::pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use tokio::sync::OnceCell;

use crate::metainfo::{FileIndex, Lengths, PieceIndex};
use crate::store::{Lookup, TorrentStore};
use crate::swarm::{Event, ReaderId, WantId};
use crate::util::lock;

use super::reads::Reads;
use super::torrent::{Command, Torrent};

/// How long after a failed read one more read of the same piece fails at once. If a read-ahead fails, the kernel
/// immediately reads the page that is needed now, and that must not take the time limit once more.
const REPEATED_READ: Duration = Duration::from_secs(1);

/// Why a read has no bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// No block of the pieces that it needs arrived within the time limit.
    #[error("no block of piece {piece} arrived within {} ({sources})", humantime::format_duration(*.limit))]
    TimedOut {
        /// The first piece that is missing.
        piece: PieceIndex,
        /// The limit.
        limit: Duration,
        /// The peers that there were to fetch from, and why there may have been none.
        sources: String,
    },
    /// The torrent is being removed or the program ends.
    #[error("the torrent is closed")]
    Closed,
}

/// A part of a file, within the file by construction: reads past its end are cut off here and nowhere else.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Span(Range<u64>);

impl Span {
    /// Returns the part of `file`, given as bytes of the torrent, from `offset` bytes after its start on.
    fn new(file: &Range<u64>, offset: u64, len: u32) -> Self {
        let start = file.start.saturating_add(offset).min(file.end);
        Self(start..start.saturating_add(u64::from(len)).min(file.end))
    }

    /// Returns the length in bytes: less than requested only at the end of the file.
    pub fn len(&self) -> u32 {
        // No longer than the length that it was made with.
        (self.0.end - self.0.start) as u32
    }

    /// Returns whether it starts at or behind the end of the file.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// One open file. Readers of one torrent are independent: each has its own window.
pub struct Reader {
    torrent: Arc<Torrent>,
    id: ReaderId,
    index: FileIndex,
    /// The file, as bytes of the torrent.
    file: Range<u64>,
    /// The last piece that was reported to the swarm, which needs to know of a read only when it enters another piece.
    reported: AtomicU32,
    /// Set once the swarm's `Open` is in the queue. If the queue is full, the first read that waits puts it there, so
    /// that neither that read's `Want` nor the `Close` of a handle that is closed at once can overtake it.
    opened: OnceCell<()>,
    /// Pieces for which reads have just failed, one entry per read, and when.
    timed_out: Mutex<Vec<(PieceIndex, Instant)>>,
}

impl Torrent {
    /// Opens a file for reading; `None` if the index is not one of this torrent's.
    pub fn open(self: &Arc<Self>, file: FileIndex) -> Option<Reader> {
        let bytes = self.metainfo.layout.file(file)?.range();
        Some(Reader::new(self.clone(), ReaderId(self.next_id()), file, bytes))
    }
}

impl Reader {
    fn new(torrent: Arc<Torrent>, id: ReaderId, index: FileIndex, file: Range<u64>) -> Self {
        let (reported, opened, timed_out) = (AtomicU32::new(u32::MAX), OnceCell::new(), Mutex::default());
        let reader = Self { torrent, id, index, file, reported, opened, timed_out };
        if reader.torrent.try_send(reader.open_event()) {
            let _ = reader.opened.set(());
        }
        reader
    }

    fn open_event(&self) -> Event {
        Event::Open { reader: self.id, bytes: self.file.clone() }
    }

    /// Returns the file's length in bytes.
    #[allow(clippy::len_without_is_empty, reason = "a length on disk, not a collection")]
    pub fn len(&self) -> u64 {
        self.file.end - self.file.start
    }

    /// Returns the torrent and which of its files this is.
    #[cfg(feature = "fs")]
    pub(crate) fn file(&self) -> (&Arc<Torrent>, FileIndex) {
        (&self.torrent, self.index)
    }

    /// Returns the part of the file that a read at `offset` covers.
    pub fn span(&self, offset: u64, len: u32) -> Span {
        Span::new(&self.file, offset, len)
    }

    /// Reads at most `len` bytes at `offset`: less only at the end of the file. Waits until they are here.
    pub async fn read(&self, offset: u64, len: u32) -> Result<Bytes, ReadError> {
        let span = self.span(offset, len);
        match self.read_now(&span) {
            Some(bytes) => Ok(bytes),
            None => self.wait(&span).await,
        }
    }

    /// Answers from memory or the page cache, or not at all; never waits.
    pub fn read_now(&self, Span(bytes): &Span) -> Option<Bytes> {
        self.report_position(bytes);
        let mut from_disk = false;
        let data = self.gather_now(bytes, &mut from_disk)?;
        let Reads { memory, disk, .. } = &self.torrent.reads;
        Reads::count(if from_disk { disk } else { memory });
        Some(data)
    }

    /// Waits until every piece that the read touches is here. Fails if none of their blocks arrives within the time
    /// limit.
    pub async fn wait(&self, Span(bytes): &Span) -> Result<Bytes, ReadError> {
        let Reads { disk, missed, .. } = &self.torrent.reads;
        let here = self.lengths().pieces_in(bytes).all(|piece| self.torrent.store.has(piece));
        Reads::count(if here { disk } else { missed });
        let mut waited = !here;
        let want = Want::start(self, bytes).await;
        loop {
            for piece in self.lengths().pieces_in(bytes) {
                self.wait_for(piece, bytes, &want).await?;
            }
            // Pieces that have just arrived are in memory.
            if std::mem::take(&mut waited)
                && let Some(data) = self.gather_now(bytes, &mut false)
            {
                return Ok(data);
            }
            // A piece may be on disk only, which is not for an async thread, or have been evicted since.
            let (store, lengths, range) = (self.torrent.store.clone(), *self.lengths(), bytes.clone());
            let read = tokio::task::spawn_blocking(move || {
                let mut failed = None;
                let data =
                    gather(&store, &lengths, &range, |store, piece, begin, out| match store.read(piece, begin, out) {
                        Ok(lookup) => lookup == Lookup::Hit,
                        Err(error) => {
                            failed = Some(error.to_string());
                            false
                        }
                    });
                (data, failed)
            });
            match read.await {
                Ok((Some(data), _)) => return Ok(data),
                Ok((None, error)) => {
                    // A failed disk read has made the piece missing: it is fetched again.
                    if let Some(error) = error {
                        tracing::debug!("{error}");
                    }
                    waited = true;
                }
                Err(_) => return Err(ReadError::Closed),
            }
        }
    }

    /// Reads from memory or the page cache. Sets `from_disk` if memory was not enough.
    fn gather_now(&self, bytes: &Range<u64>, from_disk: &mut bool) -> Option<Bytes> {
        gather(&self.torrent.store, self.lengths(), bytes, |store, piece, begin, out| {
            *from_disk = true;
            store.read_now(piece, begin, out) == Lookup::Hit
        })
    }

    /// Waits until the store has a piece. `bytes` are those of the whole read: a block of any of its pieces is
    /// progress.
    async fn wait_for(&self, piece: PieceIndex, bytes: &Range<u64>, want: &Want<'_>) -> Result<(), ReadError> {
        let store = &self.torrent.store;
        let mut closed = self.torrent.closed.clone();
        // The time that the process slept does not count.
        let clock = &self.torrent.clock;
        let limit = self.torrent.read_timeout;
        let repeated = self.just_timed_out(piece);
        let mut deadline = limit.map(|limit| if repeated { clock.now() } else { clock.after(limit) });
        loop {
            // Register first, look afterwards: a piece that arrives in between is not missed (invariant 3).
            let mut arrived = pin!(store.wait(piece));
            if store.has(piece) {
                return Ok(());
            }
            let expired = async {
                match deadline {
                    Some(deadline) => clock.sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = &mut arrived => {
                    // If it was evicted again before this task ran, the swarm has to fetch it once more.
                    if !store.has(piece) {
                        want.send().await;
                        deadline = limit.map(|limit| clock.after(limit));
                    }
                }
                () = async { drop(closed.wait_for(|closed| *closed).await) } => return Err(ReadError::Closed),
                () = expired => {
                    let limit = limit.unwrap_or_default();
                    let last_block = self.torrent.block_times.last(self.lengths().pieces_in(bytes));
                    let next = last_block.and_then(|at| at.checked_add(limit));
                    if next.is_none_or(|next| next <= clock.now()) {
                        if !repeated {
                            lock(&self.timed_out).push((piece, Instant::now()));
                        }
                        let sources = self.torrent.describe_sources();
                        return Err(ReadError::TimedOut { piece, limit, sources });
                    }
                    deadline = next;
                }
            }
        }
    }

    /// Returns whether a read of the piece has just failed; each failure makes one more read fail.
    fn just_timed_out(&self, piece: PieceIndex) -> bool {
        let mut timed_out = lock(&self.timed_out);
        timed_out.retain(|(_, at)| at.elapsed() < REPEATED_READ);
        let at = timed_out.iter().position(|(other, _)| *other == piece);
        at.map(|at| timed_out.swap_remove(at)).is_some()
    }

    /// Reports to the swarm where this handle reads, once per piece.
    fn report_position(&self, bytes: &Range<u64>) {
        if let Some(piece) = self.lengths().pieces_in(bytes).next_back()
            && self.reported.swap(piece.get(), Ordering::Relaxed) != piece.get()
        {
            self.torrent.try_send(Event::Read { reader: self.id, bytes: bytes.clone() });
        }
    }

    fn lengths(&self) -> &Lengths {
        self.torrent.metainfo.layout.lengths()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if !self.opened.initialized() {
            return;
        }
        self.torrent.send(Command::Swarm(Event::Close(self.id)));
    }
}

/// A blocked read, which the swarm knows of until this is dropped.
struct Want<'a> {
    reader: &'a Reader,
    id: WantId,
    bytes: Range<u64>,
}

impl<'a> Want<'a> {
    /// Returns once the event is in the queue, so that the event of `drop` cannot overtake it.
    async fn start(reader: &'a Reader, bytes: &Range<u64>) -> Self {
        let open = || async { drop(reader.torrent.commands.send(Command::Swarm(reader.open_event())).await) };
        reader.opened.get_or_init(open).await;
        let want = Self { reader, id: WantId(reader.torrent.next_id()), bytes: bytes.clone() };
        want.send().await;
        want
    }

    fn event(&self) -> Event {
        Event::Want { want: self.id, reader: self.reader.id, bytes: self.bytes.clone() }
    }

    async fn send(&self) {
        let _ = self.reader.torrent.commands.send(Command::Swarm(self.event())).await;
    }
}

impl Drop for Want<'_> {
    fn drop(&mut self) {
        self.reader.torrent.send(Command::Swarm(Event::Unwant(self.id)));
    }
}

/// Assembles a read from its pieces; `read` reads a part of one that is not in memory. A read of a single piece in
/// memory is answered without a copy.
fn gather(
    store: &TorrentStore,
    lengths: &Lengths,
    bytes: &Range<u64>,
    mut read: impl FnMut(&TorrentStore, PieceIndex, u32, &mut [u8]) -> bool,
) -> Option<Bytes> {
    let mut whole = BytesMut::new();
    for (piece, part) in lengths.parts(bytes) {
        let (from, to) = (part.start as usize, part.end as usize);
        let all = (bytes.end - bytes.start) as usize;
        if let Some(data) = store.memory(piece) {
            if to - from == all {
                return Some(data.slice(from..to));
            }
            whole.reserve(all - whole.len());
            whole.extend_from_slice(&data[from..to]);
        } else {
            let at = whole.len();
            whole.reserve(all - at);
            whole.resize(at + to - from, 0);
            if !read(store, piece, from as u32, &mut whole[at..]) {
                return None;
            }
        }
    }
    Some(whole.freeze())
}

#[cfg(test)]
mod tests {
    use super::Span;

    #[test]
    fn a_span_ends_where_the_file_does() {
        let span = |offset, len| Span::new(&(100..106), offset, len);
        assert_eq!(span(0, 4), Span(100..104));
        assert_eq!(span(4, 4), Span(104..106));
        assert_eq!([0, 4, 6, u64::MAX].map(|offset| span(offset, 4).len()), [4, 2, 0, 0]);
        assert!(span(6, 4).is_empty() && span(0, 0).is_empty() && !span(5, u32::MAX).is_empty());
    }
}
