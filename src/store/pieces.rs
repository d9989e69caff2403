//! What is had of one torrent: one word a piece, read without a lock. Until the first piece comes there are no message, and
//! every piece is missing: of a thousand torrents most are never read.
//!
//! A word copies the piece's [`State`], whether it is pinned, and a generation that grows each time the piece leaves the
//! disk. A reader that took bytes from the disk looks at the word again afterwards: the same generation means that no
//! hole was punched in between, even if the piece went and came back meanwhile.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst, fence};
use std::sync::{Mutex, OnceLock};

use super::spec::EvictionSink;
use crate::metainfo::{Lengths, PieceIndex};
use crate::util::lock;

/// Where a piece is. Exactly one of these (invariant 2).
///
/// ```text
/// Missing ─put─▶ Memory ─written─▶ Disk ─evict─▶ Leaving ─punched─▶ Missing
///                  └─ no room in memory, disk failed ─▶ Missing
/// (found at start, or its file was touched) Unverified ─hash matched─▶ Disk     Unverified ─hash differs, evict─▶ Leaving
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// Nowhere.
    Missing,
    /// In the memory tier only.
    Memory,
    /// On the disk, checked; perhaps in memory too.
    Disk,
    /// On the disk as a state file or a stranger says; to be hashed before its first byte is served.
    Unverified,
    /// Not had any more, but its hole is not punched yet: it cannot be put until then.
    Evicting,
}

const STATE: u32 = 0b111;
const PINNED: u32 = 0b1000;
const GENERATION: u32 = 0b1_0000;

/// A piece's word at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Word(u32);

impl Word {
    pub fn state(self) -> State {
        match self.0 & STATE {
            1 => State::Memory,
            2 => State::Disk,
            3 => State::Unverified,
            4 => State::Evicting,
            _ => State::Missing,
        }
    }

    pub fn pinned(self) -> bool {
        self.0 & PINNED != 0
    }

    pub fn is_present(self) -> bool {
        matches!(self.state(), State::Memory | State::Disk | State::Unverified)
    }

    fn generation(self) -> u32 {
        self.0 / GENERATION
    }

    fn with(self, state: State) -> Self {
        let next = Self(self.0 & !STATE | state as u32);
        if state == State::Evicting { Self(next.0.wrapping_add(GENERATION)) } else { next }
    }
}

pub(super) struct Pieces {
    /// Tells the torrents of one cache apart.
    pub id: u32,
    pub lengths: Lengths,
    table: OnceLock<Table>,
    pins: Mutex<Vec<Range<u32>>>,
    sink: EvictionSink,
}

/// By piece. An index of another torrent may be out of range: that piece is simply missing.
struct Table {
    message: Box<[AtomicU32]>,
    /// When each was last used, by the cache's clock of uses.
    used: Box<[AtomicU64]>,
}

impl Pieces {
    pub fn new(id: u32, lengths: Lengths, sink: EvictionSink) -> Self {
        Self { id, lengths, table: OnceLock::new(), pins: Mutex::default(), sink }
    }

    /// For a change. Whoever is told of that change (by a lock or a channel, as all are) finds the table from then on.
    fn table(&self) -> &Table {
        self.table.get_or_init(|| Table {
            message: self.lengths.iter().map(|_| AtomicU32::new(0)).collect(),
            used: self.lengths.iter().map(|_| AtomicU64::new(0)).collect(),
        })
    }

    pub fn word(&self, piece: PieceIndex) -> Word {
        let word = self.table.get().and_then(|table| table.message.get(piece.index()));
        Word(word.map_or(0, |word| word.load(SeqCst)))
    }

    /// Whether bytes read from the disk since `before` was seen are those of the piece.
    pub fn undisturbed(&self, piece: PieceIndex, before: Word) -> bool {
        fence(SeqCst);
        let now = self.word(piece);
        now.state() == before.state() && now.generation() == before.generation()
    }

    /// Moves the piece on if `ready` says so of its word, and returns the word it had.
    pub fn change(&self, piece: PieceIndex, to: State, ready: impl Fn(Word) -> bool) -> Option<Word> {
        let word = self.table().message.get(piece.index())?;
        let next = |now| ready(Word(now)).then(|| Word(now).with(to).0);
        word.fetch_update(SeqCst, SeqCst, next).ok().map(Word)
    }

    /// [`Self::change`] from one known state.
    pub fn advance(&self, piece: PieceIndex, from: State, to: State) -> bool {
        self.change(piece, to, |word| word.state() == from).is_some()
    }

    pub fn last_use(&self, piece: PieceIndex) -> u64 {
        let used = self.table.get().and_then(|table| table.used.get(piece.index()));
        used.map_or(0, |used| used.load(Relaxed))
    }

    pub fn set_last_use(&self, piece: PieceIndex, tick: u64) {
        if let Some(used) = self.table().used.get(piece.index()) {
            used.store(tick, Relaxed);
        }
    }

    /// Notes a use. The clock moves only when another piece was used last, so a long read of one costs no writes.
    pub fn touch(&self, piece: PieceIndex, clock: &AtomicU64) {
        if self.last_use(piece) != clock.load(Relaxed) {
            self.set_last_use(piece, clock.fetch_add(1, Relaxed) + 1);
        }
    }

    /// Replaces the pinned set. Having been pinned counts as use up to now.
    pub fn pin(&self, ranges: Vec<Range<u32>>, clock: &AtomicU64) {
        let clip = |range: &Range<u32>| range.start..range.end.min(self.lengths.pieces());
        let ranges: Vec<_> = ranges.iter().map(clip).filter(|range| !range.is_empty()).collect();
        let mut pins = lock(&self.pins);
        if *pins == ranges {
            return;
        }
        let message = &self.table().message;
        for piece in ranges.iter().cloned().flatten() {
            message[piece as usize].fetch_or(PINNED, SeqCst);
        }
        for piece in pins.iter().cloned().flatten() {
            if !ranges.iter().any(|range| range.contains(&piece)) {
                if let Some(piece) = self.lengths.piece(piece) {
                    self.touch(piece, clock);
                }
                message[piece as usize].fetch_and(!PINNED, SeqCst);
            }
        }
        *pins = ranges;
    }

    /// Tells the owner that a piece is had no more. Called without any lock held.
    pub fn notify_evicted(&self, piece: PieceIndex) {
        (self.sink)(piece);
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)] // a pinned set of one range is just that
mod tests {
    use super::*;

    #[test]
    fn a_word_keeps_its_parts_apart() {
        let pieces = Pieces::new(0, Lengths::new(50, 10).unwrap(), Box::new(|_| {}));
        let clock = AtomicU64::new(7);
        let piece = pieces.lengths.piece(3).unwrap();
        assert!(
            pieces.word(piece).state() == State::Missing && pieces.last_use(piece) == 0 && pieces.table.get().is_none()
        );
        pieces.pin(vec![2..9, 1..1], &clock);
        assert!(pieces.advance(piece, State::Missing, State::Disk));
        let before = pieces.word(piece);
        assert!(before.pinned() && before.is_present() && pieces.undisturbed(piece, before));
        pieces.pin(vec![0..1], &clock);
        assert!(!pieces.word(piece).pinned() && pieces.undisturbed(piece, before), "pinning is no disturbance");
        assert_eq!(pieces.last_use(piece), 9, "pinned until after piece 2 was");
        for (from, to) in
            [(State::Disk, State::Evicting), (State::Evicting, State::Missing), (State::Missing, State::Disk)]
        {
            assert!(pieces.advance(piece, from, to));
            assert!(!pieces.advance(piece, from, to));
        }
        assert!(!pieces.undisturbed(piece, before), "it went and came back");
    }
}
