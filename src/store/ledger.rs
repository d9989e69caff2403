//! Accounting of the disk tier over all torrents, and the choice of pieces to evict.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use super::pieces::{State, Word};
use super::torrent::Torrent;
use crate::metainfo::{InfoHash, PieceIndex};

/// Number of pieces that one scan over all of them selects. A scan costs a few ns per piece, too much for each
/// eviction.
const SCAN_LEN: usize = 256;

/// A torrent in the directory that is not open.
#[derive(Clone, Copy, Debug)]
pub(super) struct InactiveTorrent {
    pub bytes: u64,
    pub last_use: u64,
}

/// A piece to evict, already in [`State::Evicting`].
pub(super) type Victim = (Arc<Torrent>, PieceIndex);

#[derive(Default)]
pub(super) struct Ledger {
    /// Bytes of the open torrents' pieces that are on the disk or being written. Only torrents in the cache count, not
    /// the user's directories.
    pub active_bytes: u64,
    pub inactive: HashMap<InfoHash, InactiveTorrent>,
    /// Open torrents.
    pub torrents: Vec<Arc<Torrent>>,
    /// Info hashes of torrents that are open or being opened.
    pub open_hashes: HashSet<InfoHash>,
    /// The least recently used pieces of the last scan, oldest first. A piece that was used since is skipped. Every
    /// piece that was not selected was used later than all of these. (A piece that was unpinned since counts as used
    /// then.)
    queue: VecDeque<(u64, u32, PieceIndex)>,
    pub next_id: u32,
    pub closed: bool,
}

impl Ledger {
    /// Creates the ledger of a directory that holds these torrents.
    pub fn new(inactive: HashMap<InfoHash, InactiveTorrent>) -> Self {
        Self { inactive, ..Self::default() }
    }

    pub fn bytes(&self) -> u64 {
        self.active_bytes + self.inactive.values().map(|inactive| inactive.bytes).sum::<u64>()
    }

    /// Returns the least recently used inactive torrent.
    pub fn oldest_inactive(&self) -> Option<InfoHash> {
        self.inactive.iter().min_by_key(|(_, inactive)| inactive.last_use).map(|(info_hash, _)| *info_hash)
    }

    /// Starts the eviction of the least recently used piece that is not pinned. The caller finishes it.
    pub fn evict(&mut self) -> Option<Victim> {
        loop {
            if self.queue.is_empty() {
                self.refill();
            }
            let (used, id, piece) = self.queue.pop_front()?;
            let Some(torrent) = self.torrents.iter().find(|torrent| torrent.pieces.id == id).cloned() else { continue };
            if torrent.pieces.last_use(piece) == used && self.begin_eviction(&torrent, piece, evictable) {
                return Some((torrent, piece));
            }
        }
    }

    /// Starts the eviction of a piece, if `ready` allows it for the piece's word. The caller finishes it if this
    /// returns true.
    pub fn begin_eviction(&mut self, torrent: &Torrent, piece: PieceIndex, ready: impl Fn(Word) -> bool) -> bool {
        let begun = torrent.pieces.change(piece, State::Evicting, ready).is_some();
        if begun && torrent.evictable {
            self.active_bytes = self.active_bytes.saturating_sub(torrent.lengths.len_of(piece).into());
        }
        begun
    }

    fn refill(&mut self) {
        let mut all: Vec<(u64, u32, PieceIndex)> = Vec::new();
        for torrent in self.torrents.iter().filter(|torrent| torrent.evictable) {
            let pieces = &torrent.pieces;
            let candidates = pieces.lengths.iter().filter(|piece| evictable(pieces.word(*piece)));
            for piece in candidates {
                all.push((pieces.last_use(piece), pieces.id, piece));
                if all.len() == 2 * SCAN_LEN {
                    all.select_nth_unstable(SCAN_LEN);
                    all.truncate(SCAN_LEN);
                }
            }
        }
        all.sort_unstable();
        all.truncate(SCAN_LEN);
        self.queue = all.into();
    }
}

/// Returns whether a piece is on the disk and not pinned.
fn evictable(word: Word) -> bool {
    on_disk(word) && !word.pinned()
}

pub(super) fn on_disk(word: Word) -> bool {
    matches!(word.state(), State::Disk | State::Unverified)
}
