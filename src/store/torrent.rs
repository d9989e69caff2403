//! One open torrent of the cache: its pieces, its files, and its state file.
//!
//! # Which pieces are trusted after a restart
//!
//! A state file is *closed* if it was written at a clean close, after the data was synced. The first change of the data
//! afterwards clears that mark on the disk before it changes the data ([`Torrent::change_data`]). Therefore:
//!
//! - If the state is closed, and a file's size and times are as recorded, its verified pieces are trusted: nothing has
//!   changed since the sync.
//! - Otherwise (a kill, a power failure, a change by another program) the state is only a hint. Its pieces are
//!   [`State::Unverified`], and each is hashed when it is first read; if that fails it is missing. A hint may claim a
//!   piece that was evicted and punched later, or whose bytes never reached the disk. The hash detects that, so no
//!   wrong byte is served. Nor does it know the pieces that were written later: those are found on the disk (see
//!   `recover.rs`).
//!
//! Therefore neither writing nor eviction waits for a sync, and their order relative to the state file does not matter:
//! a state that could be wrong is never trusted.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use fixedbitset::FixedBitSet;

use super::files::{Files, Handles};
use super::health::DiskError;
use super::lock::DirLock;
use super::memory::Memory;
use super::pieces::{Pieces, State, Word};
use super::state::{self, Saved};
use super::waiters::Waiters;
use crate::metainfo::{FileIndex, InfoHash, Lengths, PieceHashes, PieceIndex, Verdict};
use crate::util::lock;

/// Minimum time between two hints, to bound the writing. [`HINT_SHARE`] may extend it, so that writing hints takes at most
/// 2 % of the time.
const HINT_EVERY: Duration = Duration::from_secs(1);
/// Minimum time between two hints, in durations of the last one.
const HINT_SHARE: u32 = 50;

/// A torrent of the cache. Closing is final.
pub(super) struct Torrent {
    pub info_hash: InfoHash,
    pub lengths: Lengths,
    pub hashes: PieceHashes,
    pub pieces: Arc<Pieces>,
    pub files: Files,
    pub waiters: Arc<Waiters>,
    /// Held while an unverified piece is hashed: other readers of the piece wait, and then find it verified.
    pub verifying: Mutex<()>,
    /// The directory of its state; `None` if there is none.
    pub torrent_dir: Option<PathBuf>,
    /// Whether its pieces count against the cache's limit and may be evicted.
    pub evictable: bool,
    /// Whether closing removes the state.
    pub remove_state: AtomicBool,
    /// Excludes other processes from the same download.
    pub dir_lock: Mutex<Option<DirLock>>,
    /// Changes to the files, for the next state file.
    file_changes: Mutex<FileChanges>,
    /// Whether there ever were any.
    has_file_changes: AtomicBool,
    /// Read-locked while data changes; closing write-locks it and sets it.
    closed: RwLock<bool>,
    /// Whether the state file has the mark of a clean close.
    clean: Mutex<bool>,
    /// Latest use of any piece, as recorded in the state file.
    saved_last_use: AtomicU64,
    /// Whether the state file is out of date.
    changed: AtomicBool,
    /// Signalled when an eviction is finished.
    evicted: (Mutex<()>, Condvar),
}

/// Changes to the files since the state file was written.
#[derive(Default)]
struct FileChanges {
    /// Files written or punched since the last sync.
    unsynced: BTreeSet<FileIndex>,
    /// Files written since the last [`Torrent::start_writeback`].
    dirty: BTreeSet<FileIndex>,
    /// Earliest time of the next hint.
    hint_due: Option<Instant>,
}

/// How to write a state file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Save {
    /// Not synced; it serves a process that is killed.
    Hint,
    /// With data and state synced.
    Synced,
    /// With data and state synced, and no further changes.
    Closed,
}

impl Torrent {
    pub fn new(
        info_hash: InfoHash,
        hashes: PieceHashes,
        pieces: Arc<Pieces>,
        files: Files,
        torrent_dir: Option<PathBuf>,
        closed: bool,
    ) -> Self {
        Self {
            info_hash,
            lengths: pieces.lengths,
            hashes,
            pieces,
            waiters: Arc::default(),
            verifying: Mutex::default(),
            evictable: files.root.is_own(),
            remove_state: AtomicBool::new(false),
            dir_lock: Mutex::default(),
            file_changes: Mutex::default(),
            has_file_changes: AtomicBool::new(false),
            files,
            torrent_dir,
            closed: RwLock::new(false),
            clean: Mutex::new(closed),
            saved_last_use: AtomicU64::new(0),
            changed: AtomicBool::new(false),
            evicted: Default::default(),
        }
    }

    pub fn state_path(&self) -> Option<PathBuf> {
        self.torrent_dir.as_ref().map(|torrent_dir| torrent_dir.join("state"))
    }

    /// Returns whether it is closed. Takes no lock.
    pub fn is_closed(&self) -> bool {
        self.waiters.is_closed()
    }

    /// Runs a change of a piece's data, after clearing the mark of a clean close. Returns false if the torrent is
    /// closed.
    fn change_data(
        &self,
        piece: PieceIndex,
        change: impl FnOnce() -> Result<(), DiskError>,
    ) -> Result<bool, DiskError> {
        let closed = self.closed.read().unwrap_or_else(PoisonError::into_inner);
        if *closed {
            return Ok(false);
        }
        self.clear_closed_mark()?;
        {
            let mut changes = lock(&self.file_changes);
            self.has_file_changes.store(true, SeqCst);
            for file in self.files.of_piece(piece) {
                changes.unsynced.insert(file);
                changes.dirty.insert(file);
            }
        }
        let changed = change();
        self.changed.store(true, SeqCst);
        changed.map(|()| true)
    }

    /// Clears the mark of a clean close in the state file, before the first change of the data.
    pub fn clear_closed_mark(&self) -> Result<(), DiskError> {
        let mut clean = lock(&self.clean);
        if *clean {
            let Some(path) = self.state_path() else { return Ok(()) };
            state::clear_closed_mark(&path).map_err(DiskError::new("update", path))?;
            *clean = false;
        }
        Ok(())
    }

    /// Writes a piece from memory to its files, and updates its state. Returns false if the torrent is closed.
    pub fn write(&self, handles: &Handles, piece: PieceIndex, bytes: &[u8]) -> Result<bool, DiskError> {
        self.change_data(piece, || {
            let start = self.lengths.offset_of(piece);
            let before = self.pieces.word(piece);
            let written = self.files.write(handles, start, bytes);
            match &written {
                Ok(()) => self.pieces.written(piece, before),
                // Part of the piece may have been written: free that. The piece is not on the disk either way.
                Err(_) => drop(self.files.punch(handles, self.lengths.range_of(piece))),
            }
            written
        })
    }

    /// Finishes an eviction: removes the piece from memory and from the disk, and notifies the owner.
    pub fn finish_eviction(&self, handles: &Handles, memory: &Memory, piece: PieceIndex) -> Result<(), DiskError> {
        memory.remove((self.pieces.id, piece));
        let punched = self.free(handles, piece);
        self.pieces.advance(piece, State::Evicting, State::Missing);
        {
            let _turn = lock(&self.evicted.0);
            self.evicted.1.notify_all();
        }
        self.pieces.notify_evicted(piece);
        punched.map(drop)
    }

    /// Frees the disk space of a missing piece.
    pub fn free(&self, handles: &Handles, piece: PieceIndex) -> Result<(), DiskError> {
        if !self.files.root.is_own() {
            return Ok(());
        }
        let range = self.lengths.range_of(piece);
        self.change_data(piece, || self.files.punch(handles, range)).map(drop)
    }

    /// Waits until a piece's eviction is finished: otherwise the pending hole would destroy the new bytes.
    pub fn wait_until_evicted(&self, piece: PieceIndex) {
        let mut turn = lock(&self.evicted.0);
        while self.pieces.word(piece).state() == State::Evicting {
            turn = self.evicted.1.wait(turn).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Reads a whole piece from the disk and checks its hash.
    pub fn check_on_disk(&self, handles: &Handles, piece: PieceIndex, buffer: &mut [u8]) -> Result<bool, DiskError> {
        self.files.read(handles, self.lengths.offset_of(piece), buffer)?;
        let unreadable =
            DiskError::new("read piece hashes from a file in", self.torrent_dir.clone().unwrap_or_default());
        Ok(self.hashes.check(piece, buffer).map_err(unreadable)? == Verdict::Good)
    }

    /// Logs that a stored piece cannot be checked.
    pub fn report_unreadable_hashes(&self, piece: PieceIndex, error: &io::Error) {
        tracing::error!(
            "cannot read the hashes of torrent {} from the cache directory: {error}; piece {piece} cannot be checked and is not \
             served; check the disk",
            self.info_hash
        );
    }

    /// Trusts an unverified piece whose hash matched, unless it was disturbed since `word` was loaded, before its bytes were
    /// read. While another program changes its files, it stays unverified. Returns whether it is trusted now.
    pub fn trust(&self, piece: PieceIndex, word: Word) -> bool {
        let same = |now: Word| now.state() == State::Unverified && self.pieces.undisturbed(piece, word);
        let trusted = self.files.is_settled(piece) && self.pieces.change(piece, State::Disk, same).is_some();
        if trusted {
            self.mark_changed();
        }
        trusted
    }

    /// Records that the state file is out of date.
    pub fn mark_changed(&self) {
        self.changed.store(true, SeqCst);
    }

    /// Returns whether a round of maintenance has to look at the torrent: of thousands, nothing was done to most.
    pub fn needs_maintenance(&self) -> bool {
        self.changed.load(SeqCst) || self.has_file_changes.load(SeqCst)
    }

    /// Writes the state as a hint, if it is out of date and a hint is due.
    pub fn save_hint(&self, handles: &Handles, clock: &AtomicU64, now: Instant) -> Result<(), DiskError> {
        if !self.changed.load(SeqCst) || lock(&self.file_changes).hint_due.is_some_and(|due| now < due) {
            return Ok(());
        }
        let began = Instant::now();
        let saved = self.save(handles, clock, Save::Hint);
        lock(&self.file_changes).hint_due = Some(now + HINT_EVERY.max(began.elapsed() * HINT_SHARE));
        saved
    }

    /// Writes the state file, unless it is up to date.
    pub fn save(&self, handles: &Handles, clock: &AtomicU64, how: Save) -> Result<(), DiskError> {
        let Some(path) = self.state_path() else { return Ok(()) };
        let mut clean = lock(&self.clean);
        let changed = self.changed.load(SeqCst);
        let same_uses = || !changed && self.last_use() == self.saved_last_use.load(Relaxed);
        if *clean && (how != Save::Closed || same_uses()) {
            // It is up to date, except perhaps for the order of uses.
            return Ok(());
        }
        if !*clean && !changed && self.bytes_on_disk() == 0 && !path.exists() {
            // There is nothing to save.
            return Ok(());
        }
        // Before the pieces are examined, so that a later change is saved the next time.
        self.changed.store(false, SeqCst);
        if how != Save::Hint {
            let unsynced = std::mem::take(&mut lock(&self.file_changes).unsynced);
            if let Err(error) = self.files.sync(handles, unsynced.iter().copied()) {
                lock(&self.file_changes).unsynced.extend(unsynced);
                return Err(error);
            }
        }
        let saved = self.snapshot(clock, how == Save::Closed);
        let result = saved.save(&path, how != Save::Hint).map_err(DiskError::new("write", path));
        match &result {
            Ok(()) => *clean = saved.closed,
            Err(_) => self.changed.store(true, SeqCst),
        }
        result
    }

    fn snapshot(&self, clock: &AtomicU64, closed: bool) -> Saved {
        // Not as the files are now, but as we left them: so a change by another program that nobody noticed shows at the
        // next start.
        let files = self.files.layout.indexed_files().map(|(file, _)| self.files.expected_stamp(file));
        let stamps = if closed { files.collect() } else { Vec::new() };
        let pieces = self.lengths.pieces() as usize;
        let (mut have, mut verified) = (FixedBitSet::with_capacity(pieces), FixedBitSet::with_capacity(pieces));
        let (mut uses, mut last_use, mut bytes) = (Vec::new(), 0, 0);
        for piece in self.lengths.iter() {
            let state = self.pieces.word(piece).state();
            if matches!(state, State::Disk | State::Unverified) {
                have.insert(piece.index());
                verified.set(piece.index(), state == State::Disk);
                let used = self.pieces.last_use(piece);
                last_use = last_use.max(used);
                uses.push(used);
                bytes += u64::from(self.lengths.len_of(piece));
            }
        }
        let (info_hash, lengths, clock) = (self.info_hash, self.lengths, clock.load(Relaxed));
        Saved { closed, info_hash, lengths, clock, last_use, bytes, have, verified, uses, stamps }
    }

    /// Makes the kernel start writing recent changes, so that closing is short. Fails if it could not write earlier ones.
    pub fn start_writeback(&self, handles: &Handles) -> Result<(), DiskError> {
        let (dirty, unsynced) = {
            let mut changes = lock(&self.file_changes);
            (std::mem::take(&mut changes.dirty), changes.unsynced.clone())
        };
        dirty.into_iter().for_each(|file| self.files.start_writeback(handles, file));
        let mut result = Ok(());
        for file in unsynced {
            result = result.and(self.files.check_writeback(handles, file));
        }
        result
    }

    /// Returns the latest use of any piece.
    pub fn last_use(&self) -> u64 {
        self.lengths.iter().map(|piece| self.pieces.last_use(piece)).max().unwrap_or(0)
    }

    /// Records that the state file has the present uses.
    pub fn mark_last_use_saved(&self) {
        self.saved_last_use.store(self.last_use(), Relaxed);
    }

    /// Returns the bytes of the pieces on the disk.
    pub fn bytes_on_disk(&self) -> u64 {
        let on_disk = |piece: &PieceIndex| matches!(self.pieces.word(*piece).state(), State::Disk | State::Unverified);
        self.lengths.iter().filter(on_disk).map(|piece| u64::from(self.lengths.len_of(piece))).sum()
    }

    /// Wakes all waiters and forbids further changes. Returns false if it was closed before.
    pub fn begin_close(&self) -> bool {
        self.waiters.close();
        let mut closed = self.closed.write().unwrap_or_else(PoisonError::into_inner);
        !std::mem::replace(&mut *closed, true)
    }
}
