//! One open file handle: where a read looks, and how it waits.

use std::ops::Range;
use std::pin::pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::{OnceCell, oneshot};
use tokio::time::Instant;

use crate::metainfo::{Lengths, PieceIndex};
use crate::store::{Lookup, TorrentStore};
use crate::swarm::{Event, ReaderId, WantId};

use super::reads::Reads;
use super::torrent::Command;
use super::{FileStream, Torrent, lock};

/// When a read-ahead fails, the kernel asks at once for the page that is needed now; so long after a failure, one
/// read more of the same piece fails with it and does not wait for the limit again.
const SAME_READ: Duration = Duration::from_secs(1);

/// Peers that were just connected give little until both sides know each other's rate: measured, a rate-limited libtorrent
/// sends half of what it may in the first second. A player that starts with the first bytes would stand still right
/// after them. So the first read of a torrent that waits for peers waits for this many bytes from its own first one on,
/// as any player does that buffers, but no longer than `CUSHION_LIMIT`. With fast peers that is some milliseconds.
const CUSHION: u64 = 512 << 10;
const CUSHION_LIMIT: Duration = Duration::from_millis(350);

/// Why a read has no bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Not a block of what it needs came for the whole of the time limit.
    #[error("nothing came for piece {piece} within {} ({sources})", humantime::format_duration(*.limit))]
    TimedOut {
        /// The first piece that is missing.
        piece: PieceIndex,
        /// The limit.
        limit: Duration,
        /// What there was to fetch from.
        sources: String,
    },
    /// The torrent is being removed or the program ends.
    #[error("the torrent is closed")]
    Closed,
}

/// One open file. Readers of one torrent are independent: each has its own window.
pub struct Reader {
    torrent: Arc<Torrent>,
    id: ReaderId,
    /// The file, counted in the torrent.
    file: Range<u64>,
    /// The last piece that the swarm was told of; it need hear of a read only when it enters another.
    told: AtomicU32,
    /// Set once the swarm's `Open` is in the queue. A busy task may take it only with the first read that waits, so that
    /// neither that read's `Want` nor the `Close` of a handle closed at once can come before it.
    opened: OnceCell<()>,
    /// Pieces given up a moment ago, and when: no more than reads failed in that moment.
    given_up: Mutex<Vec<(PieceIndex, Instant)>>,
}

impl Reader {
    pub(super) fn new(torrent: Arc<Torrent>, id: ReaderId, file: Range<u64>) -> Self {
        let (told, opened, given_up) = (AtomicU32::new(u32::MAX), OnceCell::new(), Mutex::default());
        let reader = Self { torrent, id, file, told, opened, given_up };
        if reader.torrent.hint(reader.open_event()) {
            let _ = reader.opened.set(());
        }
        reader
    }

    fn open_event(&self) -> Event {
        Event::Open { reader: self.id, bytes: self.file.clone() }
    }

    /// The file's length in bytes.
    #[allow(clippy::len_without_is_empty, reason = "a length on disk, not a collection")]
    pub fn len(&self) -> u64 {
        self.file.end - self.file.start
    }

    /// The file as a stream of bytes that can be read and sought with tokio's extension traits.
    pub fn into_stream(self) -> FileStream {
        FileStream::new(self)
    }

    /// Answers from memory or the page cache, or not at all. Never waits. Clipped at the end of the file.
    pub fn read_now(&self, offset: u64, len: u32) -> Option<Bytes> {
        let bytes = self.clip(offset, len);
        self.tell(&bytes);
        let mut of = &self.torrent.reads.memory;
        let read = gather(&self.torrent.store, self.lengths(), &bytes, |store, piece, begin, out| {
            of = &self.torrent.reads.disk;
            store.read_now(piece, begin, out) == Lookup::Hit
        });
        read.inspect(|_| Reads::count(of))
    }

    /// Waits until every piece that the read touches has come. Fails when none of its blocks came for the time limit.
    pub async fn read(&self, offset: u64, len: u32) -> Result<Bytes, ReadError> {
        let bytes = self.clip(offset, len);
        let Reads { disk, missed, .. } = &self.torrent.reads;
        let here = self.lengths().pieces_in(&bytes).all(|piece| self.torrent.store.has(piece));
        Reads::count(if here { disk } else { missed });
        let want = Want::start(self, &bytes).await;
        loop {
            for piece in self.lengths().pieces_in(&bytes) {
                self.wait_for(piece, &bytes, &want).await?;
            }
            if !here {
                self.torrent.flowing.get_or_init(|| self.wait_for_cushion(bytes.start)).await;
            }
            // The piece may have been evicted since, or the disk may hold it: not for an async thread.
            let (store, lengths, range) = (self.torrent.store.clone(), *self.lengths(), bytes.clone());
            let read = tokio::task::spawn_blocking(move || {
                let mut failed = None;
                let got =
                    gather(&store, &lengths, &range, |store, piece, begin, out| match store.read(piece, begin, out) {
                        Ok(lookup) => lookup == Lookup::Hit,
                        Err(error) => {
                            failed = Some(error.to_string());
                            false
                        }
                    });
                (got, failed)
            });
            match read.await {
                Ok((Some(bytes), _)) => return Ok(bytes),
                // A failed disk read has made the piece missing: it is fetched again.
                Ok((None, Some(error))) => tracing::debug!("{error}"),
                Ok((None, None)) => {}
                Err(_) => return Err(ReadError::Closed),
            }
        }
    }

    /// Whoever reads first waits, and who comes meanwhile waits with it. Ends early with the torrent: what was to be read is
    /// here.
    async fn wait_for_cushion(&self, start: u64) {
        let cushion = start..start.saturating_add(CUSHION).min(self.file.end);
        let mut closed = self.torrent.closed.clone();
        let filled = async {
            for piece in self.lengths().pieces_in(&cushion) {
                let had = pin!(self.torrent.store.wait(piece));
                if !self.torrent.store.has(piece) {
                    had.await;
                }
            }
        };
        tokio::select! {
            () = filled => {}
            () = tokio::time::sleep(CUSHION_LIMIT) => {}
            () = async { drop(closed.wait_for(|closed| *closed).await) } => {}
        }
    }

    async fn wait_for(&self, piece: PieceIndex, bytes: &Range<u64>, want: &Want<'_>) -> Result<(), ReadError> {
        let store = &self.torrent.store;
        let mut closed = self.torrent.closed.clone();
        let limit = self.torrent.read_timeout;
        let again = self.just_gave_up(piece);
        let mut deadline = limit.map(|limit| if again { Instant::now() } else { Instant::now() + limit });
        loop {
            // Register first, look afterwards: a piece that comes in between is not missed (invariant 3).
            let mut had = pin!(store.wait(piece));
            if store.has(piece) {
                return Ok(());
            }
            let expired = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = &mut had => {
                    // Evicted again before this task ran: the swarm hears that it is still wanted.
                    if !store.has(piece) {
                        want.renew().await;
                        deadline = limit.map(|limit| Instant::now() + limit);
                    }
                }
                () = async { drop(closed.wait_for(|closed| *closed).await) } => return Err(ReadError::Closed),
                () = expired => {
                    let limit = limit.unwrap_or_default();
                    let (answer, progress) = oneshot::channel();
                    let pieces = self.lengths().pieces_in(bytes).collect();
                    let _ = self.torrent.commands.send(Command::Progress(pieces, answer)).await;
                    let progress = progress.await.map_err(|_| ReadError::Closed)?;
                    let next = progress.last_block.map(|at| Instant::from_std(at) + limit);
                    if next.is_none_or(|next| next <= Instant::now()) {
                        if !again {
                            lock(&self.given_up).push((piece, Instant::now()));
                        }
                        return Err(ReadError::TimedOut { piece, limit, sources: progress.sources });
                    }
                    deadline = next;
                }
            }
        }
    }

    /// Whether a read of the piece failed just now; each failure answers one read more.
    fn just_gave_up(&self, piece: PieceIndex) -> bool {
        let mut given_up = lock(&self.given_up);
        given_up.retain(|(_, at)| at.elapsed() < SAME_READ);
        let at = given_up.iter().position(|(other, _)| *other == piece);
        at.map(|at| given_up.swap_remove(at)).is_some()
    }

    /// Tells the swarm where this handle reads, once a piece.
    fn tell(&self, bytes: &Range<u64>) {
        if let Some(piece) = self.lengths().pieces_in(bytes).next_back()
            && self.told.swap(piece.get(), Ordering::Relaxed) != piece.get()
        {
            self.torrent.hint(Event::Read { reader: self.id, bytes: bytes.clone() });
        }
    }

    fn clip(&self, offset: u64, len: u32) -> Range<u64> {
        let start = self.file.start.saturating_add(offset).min(self.file.end);
        start..start.saturating_add(u64::from(len)).min(self.file.end)
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
        self.torrent.tell(Command::Swarm(Event::Close(self.id)));
    }
}

/// A blocked read, known to the swarm for as long as this lives.
struct Want<'a> {
    reader: &'a Reader,
    id: WantId,
    bytes: Range<u64>,
}

impl<'a> Want<'a> {
    /// The event is in the queue before this is answered, so that the one of `drop` cannot pass it by.
    async fn start(reader: &'a Reader, bytes: &Range<u64>) -> Self {
        let open = || async { drop(reader.torrent.commands.send(Command::Swarm(reader.open_event())).await) };
        reader.opened.get_or_init(open).await;
        let want = Self { reader, id: WantId(reader.torrent.next_id()), bytes: bytes.clone() };
        want.renew().await;
        want
    }

    fn event(&self) -> Event {
        Event::Want { want: self.id, reader: self.reader.id, bytes: self.bytes.clone() }
    }

    async fn renew(&self) {
        let _ = self.reader.torrent.commands.send(Command::Swarm(self.event())).await;
    }
}

impl Drop for Want<'_> {
    fn drop(&mut self) {
        self.reader.torrent.tell(Command::Swarm(Event::Unwant(self.id)));
    }
}

/// Puts a read together from its pieces. One piece in memory is answered without a copy.
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
