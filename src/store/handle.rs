//! What the rest of the house copies of one torrent.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};

use bytes::Bytes;
use fixedbitset::FixedBitSet;

use super::cache::Cache;
use super::error::StoreError;
use super::files::Cached;
use super::load;
use super::pieces::{State, Word};
use super::spec::{EvictionSink, TorrentSpec};
use super::torrent::{Save, Torrent};
use crate::metainfo::{BlockIndex, PieceIndex, Verdict};
use crate::util::lock;

/// The pieces of one torrent. Closed, it has nothing and takes nothing.
///
/// Dropped without [`Self::close`] its pieces stay on the disk, to be hashed before they are served again.
pub struct TorrentStore {
    cache: Arc<Cache>,
    torrent: Arc<Torrent>,
}

/// The bytes of a piece whose hash was checked. Only [`TorrentStore::verify`] makes one (invariant 1).
pub struct VerifiedPiece {
    torrent: u32,
    piece: PieceIndex,
    bytes: Bytes,
}

impl std::fmt::Debug for VerifiedPiece {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "VerifiedPiece({})", self.piece)
    }
}

impl VerifiedPiece {
    /// Which piece.
    pub fn piece(&self) -> PieceIndex {
        self.piece
    }

    /// Its bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
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
pub struct BadPiece {
    /// Blocks proven wrong; empty where one hash covers the whole piece.
    pub blocks: Vec<BlockIndex>,
    /// The bytes, to find out who sent them.
    pub bytes: Bytes,
}

/// Whether a read may wait for the disk.
#[derive(Clone, Copy, PartialEq, Eq)]
enum DiskAccess {
    /// Only memory and the page cache.
    Cached,
    /// The disk, too.
    Blocking,
}

impl TorrentStore {
    /// Takes up a torrent with what the cache's directory, or its own place, has of it. Blocking: reads its state, looks at
    /// its files, and hashes them all if asked to or if there is data without a state. `evicted` may be called before this
    /// returns.
    pub fn open(cache: &Arc<Cache>, spec: TorrentSpec, evicted: EvictionSink) -> Result<Arc<Self>, StoreError> {
        let torrent = load::open(cache, spec, evicted)?;
        Ok(Arc::new(Self { cache: Arc::clone(cache), torrent }))
    }

    /// Every piece that is had, in memory or on the disk.
    pub fn have(&self) -> FixedBitSet {
        let mut had = FixedBitSet::with_capacity(self.torrent.lengths.pieces() as usize);
        had.extend(self.torrent.lengths.iter().filter(|piece| self.has(*piece)).map(PieceIndex::index));
        had
    }

    /// Whether a piece is had. Takes no lock.
    pub fn has(&self, piece: PieceIndex) -> bool {
        !self.is_closed() && self.torrent.pieces.word(piece).is_present()
    }

    /// A piece from the memory tier. Never waits; counts as use.
    pub fn memory(&self, piece: PieceIndex) -> Option<Bytes> {
        let bytes = self.cache.memory.get((self.torrent.pieces.id, piece), true)?;
        self.torrent.pieces.touch(piece, &self.cache.clock);
        Some(bytes)
    }

    /// Copies bytes of a piece, from `begin` on, out of memory or the page cache. Never waits for the disk; counts as
    /// use. A range that is not within the piece is `Missing`.
    pub fn read_now(&self, piece: PieceIndex, begin: u32, out: &mut [u8]) -> Lookup {
        self.read_piece(piece, begin, out, DiskAccess::Cached, true).unwrap_or(Lookup::Missing)
    }

    /// As [`Self::read_now`], waiting for the disk: `Hit` or `Missing`. A piece that the disk cannot give back is
    /// evicted, and the fault reported. The error is only ever [`StoreError::Range`].
    pub fn read(&self, piece: PieceIndex, begin: u32, out: &mut [u8]) -> Result<Lookup, StoreError> {
        self.read_piece(piece, begin, out, DiskAccess::Blocking, true)
    }

    /// As [`Self::read`], but counts as no use: what peers ask for must not decide what stays.
    pub fn peek(&self, piece: PieceIndex, begin: u32, out: &mut [u8]) -> Result<Lookup, StoreError> {
        self.read_piece(piece, begin, out, DiskAccess::Blocking, false)
    }

    /// As [`Self::read_now`], but counts as no use.
    pub fn peek_now(&self, piece: PieceIndex, begin: u32, out: &mut [u8]) -> Lookup {
        self.read_piece(piece, begin, out, DiskAccess::Cached, false).unwrap_or(Lookup::Missing)
    }

    /// Hashes a whole piece: not for an async thread.
    pub fn verify(&self, piece: PieceIndex, bytes: Bytes) -> Result<VerifiedPiece, BadPiece> {
        if bytes.len() != self.torrent.lengths.len_of(piece) as usize {
            return Err(BadPiece { blocks: Vec::new(), bytes });
        }
        match self.torrent.hashes.check(piece, &bytes) {
            Verdict::Good => Ok(VerifiedPiece { torrent: self.torrent.pieces.id, piece, bytes }),
            Verdict::Bad { blocks } => Err(BadPiece { blocks, bytes }),
        }
    }

    /// Takes a piece in: visible in memory, then its waiters wake, then it is written to the disk if that takes it.
    /// Blocking. When it returns the piece may be gone again (no memory, and no disk): look with [`Self::has`].
    pub fn put(&self, verified: VerifiedPiece) {
        let VerifiedPiece { torrent: id, piece, bytes } = verified;
        let (cache, torrent) = (&*self.cache, &*self.torrent);
        let pieces = &torrent.pieces;
        debug_assert_eq!(id, pieces.id, "a piece of another torrent");
        while id == pieces.id && !torrent.is_closed() {
            match pieces.word(piece).state() {
                State::Memory | State::Disk => break,
                // Better than what is there.
                State::Unverified => cache.discard(torrent, piece),
                State::Evicting => torrent.wait_until_evicted(piece),
                State::Missing => {
                    let (inserted, lost) = cache.memory.insert_writing(pieces, piece, bytes.clone());
                    Cache::notify_lost(lost);
                    if !inserted {
                        // Another put of the same piece is a step ahead.
                        std::thread::yield_now();
                        continue;
                    }
                    pieces.touch(piece, &cache.clock);
                    if !pieces.advance(piece, State::Missing, State::Memory) {
                        cache.memory.remove((id, piece));
                        continue;
                    }
                    torrent.waiters.wake(piece);
                    cache.write_behind(torrent, piece, &bytes, true);
                    break;
                }
            }
        }
    }

    /// A future that is ready when the piece is had, or may be, or the torrent is closed. It registers at once, so a
    /// look after this call misses nothing (invariant 3); after it is ready, look again. Dropping it unregisters.
    pub fn wait(&self, piece: PieceIndex) -> impl Future<Output = ()> + Send + 'static + use<> {
        self.torrent.waiters.wait(piece, &|| self.has(piece))
    }

    /// Replaces the pinned set: these pieces, and only these, are not evicted.
    pub fn pin(&self, ranges: Vec<Range<u32>>) {
        self.torrent.pieces.pin(ranges, &self.cache.clock);
    }

    /// Bytes that background fetching may still add without evicting anything in use; 0 while the disk is at fault.
    pub fn room(&self) -> u64 {
        self.cache.room(&self.torrent)
    }

    /// The cache it is in.
    pub fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    /// Whether it was closed, or its cache was.
    pub fn is_closed(&self) -> bool {
        self.torrent.is_closed()
    }

    /// Has the disk keep the data and the state. Blocking.
    pub fn flush(&self) {
        self.cache.ok_or_report(self.torrent.save(&self.cache.handles, &self.cache.clock, Save::Synced));
    }

    /// Whether every piece is in its files, checked: as opposed to in memory alone, or yet to be hashed.
    pub fn is_all_on_disk(&self) -> bool {
        let pieces = &self.torrent.pieces;
        !self.is_closed() && pieces.lengths.iter().all(|piece| pieces.word(piece).state() == State::Disk)
    }

    /// Once it is closed nothing is to be left of it but its files: its state goes, and the files are not synced.
    pub fn remove_state_on_close(&self) {
        self.torrent.remove_state.store(!self.torrent.evictable, SeqCst);
    }

    /// Wakes all who wait and takes nothing more; syncs the data and says so in the state. Blocking.
    pub fn close(&self) {
        self.cache.close_torrent(&self.torrent);
    }

    /// Hashes a piece that is on the disk again; `Some(false)`: it was not as it should be, and is had no more. `None`:
    /// it is not on the disk, or moved on meanwhile. Blocking; counts as no use.
    pub fn recheck(&self, piece: PieceIndex) -> Option<bool> {
        let (cache, torrent) = (&*self.cache, &*self.torrent);
        let word = torrent.pieces.word(piece);
        if self.is_closed() || !matches!(word.state(), State::Disk | State::Unverified) {
            return None;
        }
        let mut buffer = cache.buffer(torrent.lengths.len_of(piece) as usize);
        if !self.read_disk(piece, word, 0, &mut buffer) {
            // Unreadable, and so given up; or it was evicted by then.
            return (!self.has(piece)).then_some(false);
        }
        if torrent.hashes.check(piece, &buffer) == Verdict::Good {
            let same = |now: Word| now.state() == State::Unverified && torrent.pieces.undisturbed(piece, word);
            if torrent.pieces.change(piece, State::Disk, same).is_some() {
                torrent.set_changed();
            }
            return Some(true);
        }
        if !torrent.pieces.undisturbed(piece, word) {
            return None;
        }
        cache.discard(torrent, piece);
        Some(false)
    }

    fn read_piece(
        &self,
        piece: PieceIndex,
        begin: u32,
        out: &mut [u8],
        access: DiskAccess,
        count_use: bool,
    ) -> Result<Lookup, StoreError> {
        let (cache, pieces) = (&*self.cache, &self.torrent.pieces);
        // First: a piece that is had is within the torrent, so its length can be asked for.
        if !self.has(piece) {
            return Ok(Lookup::Missing);
        }
        if u64::from(begin) + out.len() as u64 > self.torrent.lengths.len_of(piece).into() {
            return Err(StoreError::Range { piece, begin, len: out.len() });
        }
        // Each turn begins because the piece has just moved on; it does not do that for ever.
        while !self.is_closed() {
            let word = pieces.word(piece);
            if let Some(bytes) = cache.memory.get((pieces.id, piece), count_use) {
                // `begin + out.len()` is within the piece, and the tier copies whole pieces.
                out.copy_from_slice(&bytes[begin as usize..begin as usize + out.len()]);
                return Ok(self.record_hit(piece, count_use));
            }
            match word.state() {
                State::Missing | State::Evicting => return Ok(Lookup::Missing),
                State::Memory => {
                    // It was put, or went, between the two looks.
                    if pieces.word(piece) == word && access == DiskAccess::Cached {
                        return Ok(Lookup::WouldBlock);
                    }
                    std::thread::yield_now();
                }
                State::Unverified if access == DiskAccess::Cached => return Ok(Lookup::WouldBlock),
                State::Unverified => self.verify_stored(piece),
                State::Disk if access == DiskAccess::Cached => {
                    let start = self.torrent.lengths.offset_in(piece, begin);
                    match self.torrent.files.read_cached(&cache.handles, start, out) {
                        Ok(Cached::Read) if pieces.undisturbed(piece, word) => {
                            return Ok(self.record_hit(piece, count_use));
                        }
                        Ok(Cached::Read) => {}
                        // An error is for the read that may wait: it reports it.
                        Ok(Cached::WouldWait) | Err(_) => return Ok(Lookup::WouldBlock),
                    }
                }
                State::Disk => {
                    if self.read_disk(piece, word, begin, out) {
                        return Ok(self.record_hit(piece, count_use));
                    }
                }
            }
        }
        Ok(Lookup::Missing)
    }

    fn record_hit(&self, piece: PieceIndex, count_use: bool) -> Lookup {
        if count_use {
            self.torrent.pieces.touch(piece, &self.cache.clock);
        }
        Lookup::Hit
    }

    /// Reads from the disk. False: the piece moved on, by itself or because it could not be read.
    fn read_disk(&self, piece: PieceIndex, word: Word, begin: u32, out: &mut [u8]) -> bool {
        let start = self.torrent.lengths.offset_in(piece, begin);
        match self.torrent.files.read(&self.cache.handles, start, out) {
            Ok(()) => self.torrent.pieces.undisturbed(piece, word),
            Err(error) => {
                if self.torrent.files.root.is_read_only() {
                    tracing::warn!("{error}; piece {piece} is not served any more");
                } else if error.is_gone() {
                    tracing::warn!("{error}; fetching piece {piece} again");
                } else {
                    self.cache.ok_or_report::<()>(Err(error));
                }
                self.cache.discard(&self.torrent, piece);
                false
            }
        }
    }

    /// Hashes an unproven piece: afterwards it is proven, or has left.
    fn verify_stored(&self, piece: PieceIndex) {
        let (cache, torrent) = (&*self.cache, &*self.torrent);
        let _turn = lock(&torrent.verifying);
        let word = torrent.pieces.word(piece);
        if word.state() != State::Unverified {
            return;
        }
        let mut buffer = cache.buffer(torrent.lengths.len_of(piece) as usize);
        if !self.read_disk(piece, word, 0, &mut buffer) {
            return;
        }
        if torrent.hashes.check(piece, &buffer) == Verdict::Good {
            // Only if nobody evicted it meanwhile, and put it back.
            let same = |now: Word| now.state() == State::Unverified && torrent.pieces.undisturbed(piece, word);
            if torrent.pieces.change(piece, State::Disk, same).is_some() {
                torrent.set_changed();
                Cache::notify_lost(cache.memory.insert_copy(&torrent.pieces, piece, buffer.freeze()));
            }
        } else {
            tracing::info!("piece {piece} of {} is not what it was", torrent.info_hash);
            cache.discard(torrent, piece);
        }
    }
}

impl Drop for TorrentStore {
    fn drop(&mut self) {
        if self.torrent.begin_close() {
            self.cache.forget(&self.torrent);
        }
    }
}

impl std::fmt::Debug for TorrentStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TorrentStore({}, clock {})", self.torrent.info_hash, self.cache.clock.load(Relaxed))
    }
}
