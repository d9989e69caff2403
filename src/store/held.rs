//! Complete files that the kernel reads itself, without asking us for each read (FUSE passthrough).
//!
//! A file qualifies if every byte of it is on the disk in one plain file, in pieces whose hashes were checked, and if the file
//! looks as we left it. While it is held, its pieces are pinned.
//!
//! We see none of its reads, so nothing is compared after each. Instead its owner calls [`HeldFile::is_intact`] from time to
//! time, and before it hands the file to another reader. Once a piece turns out to be wrong, [`LossSink`] is called: whoever
//! reads the file then may get other bytes, or zeros, until the piece is here again.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use super::files::Inode;
use super::handle::TorrentStore;
use super::pieces::{HoldId, State};
use super::spec::LossSink;
use super::stamps::SETTLE_TIME;
use crate::metainfo::{FileIndex, PieceIndex};

/// How often a file that another program changed is hashed again before it counts as damaged: that program may still write to
/// it.
const ATTEMPTS: u32 = 5;

/// A complete file whose pieces stay on the disk for as long as this exists.
pub struct HeldFile {
    store: Arc<TorrentStore>,
    file: FileIndex,
    pieces: Range<u32>,
    hold: HoldId,
    inode: Inode,
}

impl TorrentStore {
    /// Returns whether every piece of a file is on the disk and verified. Takes no lock.
    pub fn is_file_on_disk(&self, file: FileIndex) -> bool {
        let pieces = &self.torrent.pieces;
        let mut of_file = self.torrent.files.layout.pieces_of(file);
        !self.is_closed() && of_file.all(|piece| pieces.word(piece).state() == State::Disk)
    }

    /// Returns the pieces of a file that would have to be hashed for it to qualify; none if it is not complete. Takes no lock.
    pub fn unverified_of(&self, file: FileIndex) -> Vec<PieceIndex> {
        let pieces = &self.torrent.pieces;
        let mut unverified = Vec::new();
        for piece in self.torrent.files.layout.pieces_of(file) {
            match pieces.word(piece).state() {
                State::Disk => {}
                State::Unverified => unverified.push(piece),
                State::Missing | State::Memory | State::Evicting => return Vec::new(),
            }
        }
        if self.is_closed() { Vec::new() } else { unverified }
    }

    /// Holds a file, and opens it. Returns `None` if it does not qualify. Calls `lost` when one of its pieces is not on the disk
    /// any more. Blocking.
    pub fn hold(self: &Arc<Self>, file: FileIndex, lost: LossSink) -> Option<(HeldFile, Arc<File>)> {
        let layout = &self.torrent.files.layout;
        layout.file(file).filter(|about| about.is_stored())?;
        let pieces = layout.pieces_of(file).numbers();
        // Held first, so that no piece is evicted between the look and the hold.
        let hold = self.torrent.pieces.hold(pieces.clone(), lost);
        let mut held = HeldFile { store: Arc::clone(self), file, pieces, hold, inode: (0, 0) };
        let (opened, inode) = held.open()?;
        held.inode = inode;
        Some((held, opened))
    }
}

impl HeldFile {
    /// Returns whether the file still is the one that was handed out, and its bytes are those of the torrent. If another
    /// program touched it, hashes its pieces again. Blocking.
    pub fn is_intact(&self) -> bool {
        for _ in 0..ATTEMPTS {
            match self.open() {
                Some((_, inode)) => return inode == self.inode,
                None => {
                    self.wait_until_settled();
                    if self.store.is_closed() || !self.recheck() {
                        return false;
                    }
                }
            }
        }
        false
    }

    /// Opens the file if it qualifies.
    fn open(&self) -> Option<(Arc<File>, Inode)> {
        let TorrentStore { cache, torrent } = &*self.store;
        let on_disk = || self.store.is_file_on_disk(self.file);
        let opened = on_disk().then(|| torrent.files.open_unchanged(&cache.handles, self.file))?;
        let opened = match opened {
            // A removed file is no fault of the disk.
            Err(error) if error.is_gone() => None,
            opened => cache.ok_or_report(opened).flatten(),
        };
        // A change that another thread has just noticed shows in the pieces.
        opened.filter(|_| on_disk())
    }

    /// Hashes the pieces that are not verified. Returns false if one is wrong or missing.
    fn recheck(&self) -> bool {
        let lengths = self.store.torrent.lengths;
        let mut pieces = self.pieces.clone().filter_map(|piece| lengths.piece(piece));
        pieces.all(|piece| match self.store.torrent.pieces.word(piece).state() {
            State::Disk => true,
            State::Unverified => self.store.recheck(piece) == Some(true),
            State::Missing | State::Memory | State::Evicting => false,
        })
    }

    fn wait_until_settled(&self) {
        let files = &self.store.torrent.files;
        // Twice as long as it takes, if nothing changes.
        for _ in 0..20 {
            if files.is_file_settled(self.file) || self.store.is_closed() {
                return;
            }
            std::thread::sleep(SETTLE_TIME / 10);
        }
    }
}

impl Drop for HeldFile {
    fn drop(&mut self) {
        self.store.torrent.pieces.release(self.hold, &self.store.cache.clock);
    }
}
