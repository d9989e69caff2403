//! What the disk tier copies over all torrents, and who is to go next.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use super::pieces::{State, Word};
use super::torrent::Torrent;
use crate::metainfo::{InfoHash, PieceIndex};

/// How many pieces one look over all of them picks. The look costs a few ns a piece, so it is not done for each.
const BATCH: usize = 256;

/// A torrent in the directory that nobody has open.
#[derive(Clone, Copy, Debug)]
pub(super) struct InactiveTorrent {
    pub bytes: u64,
    pub last_use: u64,
}

/// A piece that is to leave, already in [`State::Evicting`].
pub(super) type Victim = (Arc<Torrent>, PieceIndex);

#[derive(Default)]
pub(super) struct Ledger {
    /// Bytes of the pieces of open torrents that are on the disk or on their way there. Only of those in the cache: what
    /// lies with the user is neither counted nor evicted.
    pub active_bytes: u64,
    pub inactive: HashMap<InfoHash, InactiveTorrent>,
    /// Open torrents.
    pub torrents: Vec<Arc<Torrent>>,
    /// Torrents open or being opened.
    pub open_hashes: HashSet<InfoHash>,
    /// The least recently used pieces of the last look, oldest first. One that was used since is passed over; whatever
    /// was not picked has been used later than all of these. (A piece unpinned since counts as used then.)
    queue: VecDeque<(u64, u32, PieceIndex)>,
    pub next_id: u32,
    pub closed: bool,
}

impl Ledger {
    /// The books of a directory that copies these.
    pub fn new(inactive: HashMap<InfoHash, InactiveTorrent>) -> Self {
        Self { inactive, ..Self::default() }
    }

    pub fn bytes(&self) -> u64 {
        self.active_bytes + self.inactive.values().map(|inactive| inactive.bytes).sum::<u64>()
    }

    /// The inactive torrent used longest ago.
    pub fn oldest_inactive(&self) -> Option<InfoHash> {
        self.inactive.iter().min_by_key(|(_, inactive)| inactive.last_use).map(|(info_hash, _)| *info_hash)
    }

    /// Takes the piece used longest ago that is not pinned off the books. The caller ends its leaving.
    pub fn evict(&mut self) -> Option<Victim> {
        loop {
            if self.queue.is_empty() {
                self.refill();
            }
            let (used, id, piece) = self.queue.pop_front()?;
            let Some(torrent) = self.torrents.iter().find(|torrent| torrent.pieces.id == id).cloned() else { continue };
            if torrent.pieces.last_use(piece) == used && self.take(&torrent, piece, evictable) {
                return Some((torrent, piece));
            }
        }
    }

    /// Takes a piece off the books if its word allows. True: the caller ends its leaving.
    pub fn take(&mut self, torrent: &Torrent, piece: PieceIndex, ready: impl Fn(Word) -> bool) -> bool {
        let taken = torrent.pieces.change(piece, State::Evicting, ready).is_some();
        if taken && torrent.evictable {
            self.active_bytes = self.active_bytes.saturating_sub(torrent.lengths.len_of(piece).into());
        }
        taken
    }

    fn refill(&mut self) {
        let mut all: Vec<(u64, u32, PieceIndex)> = Vec::new();
        for torrent in self.torrents.iter().filter(|torrent| torrent.evictable) {
            let pieces = &torrent.pieces;
            let candidates = pieces.lengths.iter().filter(|piece| evictable(pieces.word(*piece)));
            for piece in candidates {
                all.push((pieces.last_use(piece), pieces.id, piece));
                if all.len() == 2 * BATCH {
                    all.select_nth_unstable(BATCH);
                    all.truncate(BATCH);
                }
            }
        }
        all.sort_unstable();
        all.truncate(BATCH);
        self.queue = all.into();
    }
}

/// On the disk, and nobody's to keep.
fn evictable(word: Word) -> bool {
    on_disk(word) && !word.pinned()
}

pub(super) fn on_disk(word: Word) -> bool {
    matches!(word.state(), State::Disk | State::Unverified)
}
