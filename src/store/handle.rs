//! The store's interface to one torrent.

use std::io;
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
use crate::metainfo::{BlockIndex, InfoHash, PieceIndex, Verdict};
use crate::util::lock;

/// The pieces of one open torrent. Once closed, it returns no piece and accepts none.
///
/// If it is dropped without [`Self::close`], its pieces stay on the disk and are hashed before they are served again.
pub struct TorrentStore {
    pub(super) cache: Arc<Cache>,
    pub(super) torrent: Arc<Torrent>,
}

/// The bytes of a piece whose hash was checked. Only [`TorrentStore::verify`] creates one (invariant 1).
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

/// The result of a read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lookup {
    /// All requested bytes were copied.
    Hit,
    /// The piece is probably present, but reading it could wait for the disk.
    WouldBlock,
    /// The piece is missing. The content of the output buffer is unspecified.
    Missing,
}

/// Why a piece is not verified.
#[derive(Debug)]
pub enum VerifyError {
    /// Its bytes are wrong.
    Bad {
        /// Blocks proven wrong; empty if one hash covers the whole piece.
        blocks: Vec<BlockIndex>,
    },
    /// Its hash cannot be read.
    Hashes(io::Error),
}

/// The tiers that a read may access.
#[derive(Clone, Copy, PartialEq, Eq)]
enum DiskAccess {
    /// Only memory and the page cache.
    Cached,
    /// The disk, too.
    Blocking,
}

impl TorrentStore {
    /// Opens a torrent with the pieces that are already in the cache or in its own place. Blocking: reads the state,
    /// examines the files, and hashes all pieces if asked to or if there is data without a state. `evicted` may be
    /// called before this returns.
    pub fn open(cache: &Arc<Cache>, spec: TorrentSpec, evicted: EvictionSink) -> Result<Arc<Self>, StoreError> {
        let torrent = load::open(cache, spec, evicted)?;
        Ok(Arc::new(Self { cache: Arc::clone(cache), torrent }))
    }

    /// Returns the pieces in memory or on the disk.
    pub fn have(&self) -> FixedBitSet {
        let mut pieces = FixedBitSet::with_capacity(self.torrent.lengths.pieces() as usize);
        pieces.extend(self.torrent.lengths.iter().filter(|piece| self.has(*piece)).map(PieceIndex::index));
        pieces
    }

    /// Returns whether a piece is in memory or on the disk. Takes no lock.
    pub fn has(&self, piece: PieceIndex) -> bool {
        !self.is_closed() && self.torrent.pieces.word(piece).is_present()
    }

    /// Returns a piece from the memory tier. Never waits. Counts as a use.
    pub fn memory(&self, piece: PieceIndex) -> Option<Bytes> {
        let bytes = self.cache.memory.get((self.torrent.pieces.id, piece), true)?;
        self.torrent.pieces.touch(piece, &self.cache.clock);
        Some(bytes)
    }

    /// Copies bytes of a piece, from `begin` on, out of memory or the page cache. Never waits for the disk. Counts as a
    /// use. A range that is not within the piece is `Missing`.
    pub fn read_now(&self, piece: PieceIndex, begin: u32, out: &mut [u8]) -> Lookup {
        self.read_piece(piece, begin, out, DiskAccess::Cached, true).unwrap_or(Lookup::Missing)
    }

    /// Copies bytes of a piece as [`Self::read_now`] does, but waits for the disk: the result is `Hit` or `Missing`. A
    /// piece that the disk fails to return is evicted, and the fault is reported. The only error is
    /// [`StoreError::Range`].
    pub fn read(&self, piece: PieceIndex, begin: u32, out: &mut [u8]) -> Result<Lookup, StoreError> {
        self.read_piece(piece, begin, out, DiskAccess::Blocking, true)
    }

    /// Copies bytes as [`Self::read`] does, but does not count as a use: requests from peers must not decide what
    /// stays.
    pub fn peek(&self, piece: PieceIndex, begin: u32, out: &mut [u8]) -> Result<Lookup, StoreError> {
        self.read_piece(piece, begin, out, DiskAccess::Blocking, false)
    }

    /// Copies bytes as [`Self::read_now`] does, but does not count as a use.
    pub fn peek_now(&self, piece: PieceIndex, begin: u32, out: &mut [u8]) -> Lookup {
        self.read_piece(piece, begin, out, DiskAccess::Cached, false).unwrap_or(Lookup::Missing)
    }

    /// Hashes a whole piece. Do not call it on an async thread.
    pub fn verify(&self, piece: PieceIndex, bytes: Bytes) -> Result<VerifiedPiece, VerifyError> {
        if bytes.len() != self.torrent.lengths.len_of(piece) as usize {
            return Err(VerifyError::Bad { blocks: Vec::new() });
        }
        match self.torrent.hashes.check(piece, &bytes).map_err(VerifyError::Hashes)? {
            Verdict::Good => Ok(VerifiedPiece { torrent: self.torrent.pieces.id, piece, bytes }),
            Verdict::Bad { blocks } => Err(VerifyError::Bad { blocks }),
        }
    }

    /// Stores a piece: makes it visible in memory, wakes its waiters, and then writes it to the disk if that accepts
    /// it. Blocking. Without room in memory and on the disk the piece may be gone when this returns; check with
    /// [`Self::has`].
    pub fn put(&self, verified: VerifiedPiece) {
        let VerifiedPiece { torrent: id, piece, bytes } = verified;
        let (cache, torrent) = (&*self.cache, &*self.torrent);
        let pieces = &torrent.pieces;
        debug_assert_eq!(id, pieces.id, "a piece of another torrent");
        while id == pieces.id && !torrent.is_closed() {
            match pieces.word(piece).state() {
                State::Memory | State::Disk => break,
                // The new bytes were verified, so they replace the unverified ones.
                State::Unverified => cache.discard(torrent, piece),
                State::Evicting => torrent.wait_until_evicted(piece),
                State::Missing => {
                    let (inserted, lost) = cache.memory.insert_writing(pieces, piece, bytes.clone());
                    Cache::notify_lost(lost);
                    if !inserted {
                        // Another put of the same piece has inserted it and is about to change its state.
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

    /// Returns a future that is ready when the piece may be present or the torrent is closed; then look again. It
    /// registers at once, so a look after this call misses nothing (invariant 3). Dropping it unregisters.
    pub fn wait(&self, piece: PieceIndex) -> impl Future<Output = ()> + Send + 'static + use<> {
        self.torrent.waiters.wait(piece, &|| self.has(piece))
    }

    /// Replaces the set of pinned pieces, which are not evicted.
    pub fn pin(&self, ranges: Vec<Range<u32>>) {
        self.torrent.pieces.pin(ranges, &self.cache.clock);
    }

    /// Returns the bytes that background fetching may add without evicting pieces of open torrents; 0 while the disk
    /// has a fault.
    pub fn room(&self) -> u64 {
        self.cache.room(&self.torrent)
    }

    /// Returns the torrent's info hash.
    pub fn info_hash(&self) -> InfoHash {
        self.torrent.info_hash
    }

    /// Returns the cache that the torrent is in.
    #[cfg(test)]
    pub fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    /// Returns whether the torrent or its cache was closed.
    pub fn is_closed(&self) -> bool {
        self.torrent.is_closed()
    }

    /// Syncs the data and the state to the disk. Blocking.
    #[cfg(any(test, feature = "internals"))]
    pub fn flush(&self) {
        self.cache.ok_or_report(self.torrent.save(&self.cache.handles, &self.cache.clock, Save::Synced));
    }

    /// Returns whether every piece is in its files and verified, not only in memory or still to be hashed.
    pub fn is_all_on_disk(&self) -> bool {
        let pieces = &self.torrent.pieces;
        !self.is_closed() && pieces.lengths.iter().all(|piece| pieces.word(piece).state() == State::Disk)
    }

    /// Makes closing remove the torrent's state, and not sync its files. Has no effect on a torrent in the cache.
    pub fn remove_state_on_close(&self) {
        self.torrent.remove_state.store(!self.torrent.evictable, SeqCst);
    }

    /// Wakes all waiters, accepts no more pieces, syncs the data and records the clean close. Blocking.
    pub fn close(&self) {
        self.cache.close_torrent(&self.torrent);
    }

    /// Hashes a piece on the disk again. Returns whether it is correct; a wrong one is dropped. Returns `None` if it is
    /// not on the disk or was evicted meanwhile. Blocking. Does not count as a use.
    pub fn recheck(&self, piece: PieceIndex) -> Option<bool> {
        let (cache, torrent) = (&*self.cache, &*self.torrent);
        let word = torrent.pieces.word(piece);
        if self.is_closed() || !matches!(word.state(), State::Disk | State::Unverified) {
            return None;
        }
        let mut buffer = cache.buffer(torrent.lengths.len_of(piece) as usize);
        if !self.fill_from_disk(piece, 0, &mut buffer) {
            // It was unreadable and therefore dropped, or evicted meanwhile.
            return (!self.has(piece)).then_some(false);
        }
        match torrent.hashes.check(piece, &buffer) {
            Ok(Verdict::Good) => {
                torrent.trust(piece, word);
                return Some(true);
            }
            Ok(Verdict::Bad { .. }) => {}
            Err(error) => {
                torrent.report_unreadable_hashes(piece, &error);
                return None;
            }
        }
        // Evicted meanwhile, and perhaps put again. If it is only distrusted, its bytes are wrong.
        let now = torrent.pieces.word(piece);
        if now.state() != State::Unverified && !torrent.pieces.undisturbed(piece, word) {
            return None;
        }
        cache.discard(torrent, piece);
        Some(false)
    }

    /// Hashes every unverified piece. Wrong ones are dropped. Blocking.
    pub fn check_unverified(&self) {
        let pieces = &self.torrent.pieces;
        for piece in pieces.lengths.iter().filter(|piece| pieces.word(*piece).state() == State::Unverified) {
            self.recheck(piece);
        }
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
        // Must come first: a present piece is one of this torrent's, so its length can be computed.
        if !self.has(piece) {
            return Ok(Lookup::Missing);
        }
        if u64::from(begin) + out.len() as u64 > self.torrent.lengths.len_of(piece).into() {
            return Err(StoreError::Range { piece, begin, len: out.len() });
        }
        // Each iteration means that the piece changed its state during the one before, which does not go on for ever.
        while !self.is_closed() {
            let word = pieces.word(piece);
            if let Some(bytes) = cache.memory.get((pieces.id, piece), count_use) {
                // `begin + out.len()` is within the piece, and the tier holds whole pieces.
                out.copy_from_slice(&bytes[begin as usize..begin as usize + out.len()]);
                return Ok(self.record_hit(piece, count_use));
            }
            match word.state() {
                State::Missing | State::Evicting => return Ok(Lookup::Missing),
                State::Memory => {
                    // It was put or evicted between the two looks.
                    if pieces.word(piece) == word && access == DiskAccess::Cached {
                        return Ok(Lookup::WouldBlock);
                    }
                    std::thread::yield_now();
                }
                State::Unverified if access == DiskAccess::Cached => return Ok(Lookup::WouldBlock),
                State::Unverified => {
                    if let Some(bytes) = self.verify_stored(piece) {
                        out.copy_from_slice(&bytes[begin as usize..begin as usize + out.len()]);
                        return Ok(self.record_hit(piece, count_use));
                    }
                }
                State::Disk if access == DiskAccess::Cached => {
                    let start = self.torrent.lengths.offset_in(piece, begin);
                    match self.torrent.files.read_cached(&cache.handles, start, out) {
                        Ok(Cached::Read) if pieces.undisturbed(piece, word) => {
                            return Ok(self.record_hit(piece, count_use));
                        }
                        Ok(Cached::Read) => {}
                        // The read that may wait will report the error.
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

    /// Reads bytes of a verified piece from the disk. Returns false if the piece was evicted or distrusted meanwhile, or
    /// could not be read.
    fn read_disk(&self, piece: PieceIndex, word: Word, begin: u32, out: &mut [u8]) -> bool {
        self.fill_from_disk(piece, begin, out) && self.torrent.pieces.undisturbed(piece, word)
    }

    /// Reads bytes from the disk, right or wrong. A piece that cannot be read is evicted.
    fn fill_from_disk(&self, piece: PieceIndex, begin: u32, out: &mut [u8]) -> bool {
        let start = self.torrent.lengths.offset_in(piece, begin);
        match self.torrent.files.read(&self.cache.handles, start, out) {
            Ok(()) => true,
            Err(error) => {
                if self.torrent.files.root.is_read_only() {
                    tracing::warn!("{error}; piece {piece} is no longer served");
                } else if error.is_gone() {
                    tracing::warn!("{error}; piece {piece} will be downloaded again");
                } else {
                    self.cache.ok_or_report::<()>(Err(error));
                }
                self.cache.discard(&self.torrent, piece);
                false
            }
        }
    }

    /// Hashes an unverified piece. Returns its bytes, or `None` if it is not unverified any more. A wrong one is evicted.
    fn verify_stored(&self, piece: PieceIndex) -> Option<Bytes> {
        let (cache, torrent) = (&*self.cache, &*self.torrent);
        let _turn = lock(&torrent.verifying);
        let word = torrent.pieces.word(piece);
        if word.state() != State::Unverified {
            return None;
        }
        let mut buffer = cache.buffer(torrent.lengths.len_of(piece) as usize);
        if !self.fill_from_disk(piece, 0, &mut buffer) {
            return None;
        }
        let verdict = torrent.hashes.check(piece, &buffer).inspect_err(|error| {
            // Nothing can be read of a piece without a hash. A reader must not wait for it without end.
            torrent.report_unreadable_hashes(piece, error);
            cache.discard(torrent, piece);
        });
        if verdict.ok()? != Verdict::Good {
            if torrent.pieces.word(piece).state() == State::Unverified {
                tracing::info!(
                    "piece {piece} of torrent {} has changed on the disk; it will be downloaded again",
                    torrent.info_hash
                );
                cache.discard(torrent, piece);
            }
            return None;
        }
        let bytes = buffer.freeze();
        if torrent.trust(piece, word) {
            Cache::notify_lost(cache.memory.insert_copy(&torrent.pieces, piece, bytes.clone()));
        }
        // These bytes are right, whatever has become of the piece on the disk.
        Some(bytes)
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
