//! One torrent's side of the cache: its pieces, its files, and when they may be believed after a restart.
//!
//! # What is believed, and why
//!
//! A state file is *closed* when it was written at a clean close, after the data was synced. The first change of the
//! data afterwards takes that mark away, on the disk, before the data changes ([`Torrent::change_data`]). So:
//!
//! - closed, and a file's size and times are as recorded: its proven pieces are had. Nothing changed since the sync.
//! - otherwise (killed, power lost, touched by somebody): the state is a hint. Its pieces are [`State::Unverified`] and
//!   each is hashed when it is first read; what fails is missing. A hint may claim a piece that was evicted and punched
//!   after it was written, or whose bytes never reached the disk: the hash says so, and no wrong byte is served.
//!
//! That is why neither writing nor eviction waits for a sync, and why their order against the state file does not
//! matter: a state that could be wrong is never trusted.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use fixedbitset::FixedBitSet;

use super::files::{Files, Handles, Stamp};
use super::health::DiskError;
use super::memory::Memory;
use super::pieces::{Pieces, State};
use super::state::{self, Saved};
use super::waiters::Waiters;
use crate::metainfo::{FileIndex, InfoHash, Lengths, PieceHashes, PieceIndex};
use crate::util::lock;

/// Between two hints of the state, at least; and [`HINT_SHARE`] times what writing one took.
const HINT_EVERY: Duration = Duration::from_secs(1);
const HINT_SHARE: u32 = 50;

pub(super) struct Torrent {
    pub info_hash: InfoHash,
    pub lengths: Lengths,
    pub hashes: PieceHashes,
    pub pieces: Arc<Pieces>,
    pub files: Files,
    pub waiters: Arc<Waiters>,
    /// Only one reader hashes unproven pieces at a time: the others then find them verified.
    pub verifying: Mutex<()>,
    /// Where its state is kept; `None`: nowhere.
    pub home: Option<PathBuf>,
    /// Counted against the cache's limit, and dropped piece by piece to keep to it.
    pub evictable: bool,
    /// Nothing is to be known of it after it is closed.
    pub remove_state: AtomicBool,
    /// Keeps other processes from the same download.
    pub lock_file: Mutex<Option<File>>,
    pub file_changes: Mutex<FileChanges>,
    /// Whoever changes the data reads; closing writes `true`.
    closed: RwLock<bool>,
    /// The state file bears the mark of a clean close.
    clean: Mutex<bool>,
    /// The latest use of any piece that the state file tells of, if it does.
    saved_last_use: AtomicU64,
    changed: AtomicBool,
    /// Told when a piece has left for good.
    evicted: (Mutex<()>, Condvar),
}

/// What the state file says of the files, and which of them changed.
#[derive(Default)]
pub(super) struct FileChanges {
    pub stamps: Vec<Stamp>,
    /// Written or punched since the last sync.
    unsynced: BTreeSet<FileIndex>,
    /// Written since the last [`Torrent::start_writeback`].
    dirty: BTreeSet<FileIndex>,
    /// Changed in this session: their stamps are to be taken anew. Those of the others stay as they were, so that a
    /// change by somebody else meanwhile shows.
    touched: BTreeSet<FileIndex>,
    hint_due: Option<Instant>,
}

/// How a state file is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Save {
    /// Not synced: for a process that is killed.
    Hint,
    /// Data and state synced.
    Synced,
    /// Data and state synced, and nothing will change any more.
    Closed,
}

impl Torrent {
    pub fn new(
        info_hash: InfoHash,
        hashes: PieceHashes,
        pieces: Arc<Pieces>,
        files: Files,
        home: Option<PathBuf>,
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
            lock_file: Mutex::default(),
            file_changes: Mutex::new(FileChanges {
                stamps: vec![Stamp::default(); files.layout.files().len()],
                ..FileChanges::default()
            }),
            files,
            home,
            closed: RwLock::new(false),
            clean: Mutex::new(closed),
            saved_last_use: AtomicU64::new(0),
            changed: AtomicBool::new(false),
            evicted: Default::default(),
        }
    }

    pub fn state_path(&self) -> Option<PathBuf> {
        self.home.as_ref().map(|home| home.join("state"))
    }

    /// Takes no lock.
    pub fn is_closed(&self) -> bool {
        self.waiters.is_closed()
    }

    /// Runs what changes the data of a piece: not after closing, and not before the state file is marked as in use.
    fn change_data(
        &self,
        piece: PieceIndex,
        change: impl FnOnce() -> Result<(), DiskError>,
    ) -> Result<bool, DiskError> {
        let closed = self.closed.read().unwrap_or_else(PoisonError::into_inner);
        if *closed {
            return Ok(false);
        }
        self.mark_in_use()?;
        {
            let mut changes = lock(&self.file_changes);
            for file in self.files.of_piece(piece) {
                changes.unsynced.insert(file);
                changes.dirty.insert(file);
                changes.touched.insert(file);
            }
        }
        let changed = change();
        self.changed.store(true, SeqCst);
        changed.map(|()| true)
    }

    pub fn mark_in_use(&self) -> Result<(), DiskError> {
        let mut clean = lock(&self.clean);
        if *clean {
            let Some(path) = self.state_path() else { return Ok(()) };
            state::reopen(&path).map_err(DiskError::new("update", path))?;
            *clean = false;
        }
        Ok(())
    }

    /// Writes a piece that is in memory to its files, and moves its word on. False: the torrent is closed.
    pub fn write(&self, handles: &Handles, piece: PieceIndex, bytes: &[u8]) -> Result<bool, DiskError> {
        self.change_data(piece, || {
            let start = self.lengths.offset_of(piece);
            let written = self.files.write(handles, start, bytes);
            match &written {
                Ok(()) => drop(self.pieces.advance(piece, State::Memory, State::Disk)),
                // Part of it may have found room: give that back. The piece is not on the disk either way.
                Err(_) => drop(self.files.punch(handles, self.lengths.range_of(piece))),
            }
            written
        })
    }

    /// Ends what `State::Evicting` began: the piece goes from memory and from the disk, and its owner is told.
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

    /// Frees what is on the disk of a piece that is not had.
    pub fn free(&self, handles: &Handles, piece: PieceIndex) -> Result<(), DiskError> {
        if !self.files.root.is_own() {
            return Ok(());
        }
        let range = self.lengths.range_of(piece);
        self.change_data(piece, || self.files.punch(handles, range)).map(drop)
    }

    /// Waits until the piece has left: a hole still to be punched would eat what is put now.
    pub fn wait_until_evicted(&self, piece: PieceIndex) {
        let mut turn = lock(&self.evicted.0);
        while self.pieces.word(piece).state() == State::Evicting {
            turn = self.evicted.1.wait(turn).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Reads a whole piece off the disk and checks its hash.
    pub fn check_on_disk(&self, handles: &Handles, piece: PieceIndex, buffer: &mut [u8]) -> Result<bool, DiskError> {
        self.files.read(handles, self.lengths.offset_of(piece), buffer)?;
        Ok(self.hashes.check(piece, buffer) == crate::metainfo::Verdict::Good)
    }

    /// Notes something new to say in the state file.
    pub fn set_changed(&self) {
        self.changed.store(true, SeqCst);
    }

    /// Writes the state as a hint if there is something new to say and the last was long enough ago.
    pub fn save_hint(&self, handles: &Handles, clock: &AtomicU64, now: Instant) -> Result<(), DiskError> {
        if !self.changed.load(SeqCst) || lock(&self.file_changes).hint_due.is_some_and(|due| now < due) {
            return Ok(());
        }
        let began = Instant::now();
        let saved = self.save(handles, clock, Save::Hint);
        lock(&self.file_changes).hint_due = Some(now + HINT_EVERY.max(began.elapsed() * HINT_SHARE));
        saved
    }

    /// Writes the state file.
    pub fn save(&self, handles: &Handles, clock: &AtomicU64, how: Save) -> Result<(), DiskError> {
        let Some(path) = self.state_path() else { return Ok(()) };
        let mut clean = lock(&self.clean);
        let changed = self.changed.load(SeqCst);
        let same_uses = || !changed && self.last_use() == self.saved_last_use.load(Relaxed);
        if *clean && (how != Save::Closed || same_uses()) {
            return Ok(()); // it says all there is to say, but perhaps for the order of uses
        }
        if !*clean && !changed && self.bytes_on_disk() == 0 && !path.exists() {
            return Ok(()); // there is nothing to say
        }
        // Before the pieces are looked at: what changes from here on is for the next time.
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
        // First: a look may find that a file is a stranger's, and then its pieces are not verified.
        let stamps = if closed {
            let mut changes = lock(&self.file_changes);
            for file in std::mem::take(&mut changes.touched) {
                changes.stamps[file.index()] = self.files.stamp(file);
            }
            changes.stamps.clone()
        } else {
            Vec::new()
        };
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

    /// Has the kernel begin to write what was put lately, so that closing is short.
    pub fn start_writeback(&self, handles: &Handles) {
        let dirty = std::mem::take(&mut lock(&self.file_changes).dirty);
        dirty.into_iter().for_each(|file| self.files.start_writeback(handles, file));
    }

    /// The latest use of any piece.
    pub fn last_use(&self) -> u64 {
        self.lengths.iter().map(|piece| self.pieces.last_use(piece)).max().unwrap_or(0)
    }

    /// The uses are as the state file has them.
    pub fn mark_last_use_saved(&self) {
        self.saved_last_use.store(self.last_use(), Relaxed);
    }

    /// Bytes of the pieces on the disk.
    pub fn bytes_on_disk(&self) -> u64 {
        let on_disk = |piece: &PieceIndex| matches!(self.pieces.word(*piece).state(), State::Disk | State::Unverified);
        self.lengths.iter().filter(on_disk).map(|piece| u64::from(self.lengths.len_of(piece))).sum()
    }

    /// Nothing changes any more and all who wait go. False: it was closed before.
    pub fn begin_close(&self) -> bool {
        self.waiters.close();
        let mut closed = self.closed.write().unwrap_or_else(PoisonError::into_inner);
        !std::mem::replace(&mut *closed, true)
    }
}
