//! The state of a torrent's pieces: one atomic word per piece, read without a lock. The words are allocated with the
//! first piece; until then every piece is missing. Of a thousand torrents most are never read.
//!
//! A word holds the piece's [`State`], whether it is pinned, and a generation that grows each time the piece leaves the
//! disk or is distrusted. A reader of the disk checks the word again after it has read: an unchanged generation means that
//! no hole was punched in between and no change by another program was noticed, even if the piece is back or was hashed
//! again.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst, fence};
use std::sync::{Arc, Mutex, OnceLock};

use super::spec::{EvictionSink, LossSink};
use crate::metainfo::{Lengths, PieceIndex};
use crate::util::lock;

/// The state of a piece (invariant 2).
///
/// ```text
/// Missing ─put─▶ Memory ─written─▶ Disk ─evict─▶ Evicting ─punched─▶ Missing
///                  ├─ written, its file was touched meanwhile ─▶ Unverified
///                  └─ no room in memory, disk failed ─▶ Missing
/// (found at start, or its file was touched) Unverified ─hash matched─▶ Disk     Unverified ─hash differs, evict─▶ Evicting
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// It is nowhere.
    Missing,
    /// It is in the memory tier only.
    Memory,
    /// It is on the disk and verified, and perhaps in memory too.
    Disk,
    /// It is on the disk, but must be hashed before it is served.
    Unverified,
    /// It is evicted, but its hole is not punched yet. Until then it cannot be put.
    Evicting,
}

/// Bits of a word that hold the state.
const STATE: u32 = 0b111;
/// Bit of a word that marks a pinned piece.
const PINNED: u32 = 0b1000;
/// Lowest bit of the generation, which takes up the rest of a word.
const GENERATION: u32 = 0b1_0000;

/// The word of a piece at one moment.
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
        let distrusted = matches!(state, State::Evicting | State::Unverified);
        if distrusted { Self(next.0.wrapping_add(GENERATION)) } else { next }
    }
}

pub(super) struct Pieces {
    /// Number of the torrent, unique in its cache.
    pub id: u32,
    pub lengths: Lengths,
    table: OnceLock<Table>,
    pins: Mutex<Pins>,
    sink: EvictionSink,
}

/// Reasons why pieces are pinned.
#[derive(Default)]
struct Pins {
    /// Readers need these pieces soon.
    windows: Vec<Range<u32>>,
    /// The kernel reads the files of these pieces itself.
    holds: Vec<Hold>,
    next_hold: u64,
}

struct Hold {
    id: HoldId,
    pieces: Range<u32>,
    lost: Arc<LossSink>,
}

/// Identifies a hold on pieces of one torrent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct HoldId(u64);

impl Pins {
    fn contains(&self, piece: u32) -> bool {
        let mut holds = self.holds.iter().map(|hold| &hold.pieces);
        self.windows.iter().any(|range| range.contains(&piece)) || holds.any(|range| range.contains(&piece))
    }
}

/// Values by piece. The index of another torrent may be out of range; that piece counts as missing.
struct Table {
    words: Box<[AtomicU32]>,
    /// Last use of each piece, by the cache's counter of uses.
    used: Box<[AtomicU64]>,
}

impl Pieces {
    pub fn new(id: u32, lengths: Lengths, sink: EvictionSink) -> Self {
        Self { id, lengths, table: OnceLock::new(), pins: Mutex::default(), sink }
    }

    /// Returns the table, which it allocates for the first change. A thread that learns of the change, by a lock or a
    /// channel, also sees the table.
    fn table(&self) -> &Table {
        self.table.get_or_init(|| Table {
            words: self.lengths.iter().map(|_| AtomicU32::new(0)).collect(),
            used: self.lengths.iter().map(|_| AtomicU64::new(0)).collect(),
        })
    }

    pub fn word(&self, piece: PieceIndex) -> Word {
        let word = self.table.get().and_then(|table| table.words.get(piece.index()));
        Word(word.map_or(0, |word| word.load(SeqCst)))
    }

    /// Returns whether bytes that were read from the disk since `before` was loaded are those of the piece.
    pub fn undisturbed(&self, piece: PieceIndex, before: Word) -> bool {
        fence(SeqCst);
        let now = self.word(piece);
        now.state() == before.state() && now.generation() == before.generation()
    }

    /// Changes the state if `ready` accepts the current word. Returns the word before the change.
    pub fn change(&self, piece: PieceIndex, to: State, ready: impl Fn(Word) -> bool) -> Option<Word> {
        let word = self.table().words.get(piece.index())?;
        let next = |now| ready(Word(now)).then(|| Word(now).with(to).0);
        word.fetch_update(SeqCst, SeqCst, next).ok().map(Word)
    }

    /// Changes the state if it is `from`. Returns whether it was.
    pub fn advance(&self, piece: PieceIndex, from: State, to: State) -> bool {
        self.change(piece, to, |word| word.state() == from).is_some()
    }

    /// Records that a piece in memory was written to the disk since `before` was loaded. If one of its files was distrusted
    /// meanwhile, what is there may not be what was written.
    pub fn written(&self, piece: PieceIndex, before: Word) {
        let same = |now: Word| now.state() == State::Memory && now.generation() == before.generation();
        if self.change(piece, State::Disk, same).is_none() {
            self.advance(piece, State::Memory, State::Unverified);
        }
    }

    /// Makes a piece on the disk unverified, and disturbs whoever reads it; with `writing`, also whoever is just writing it.
    /// Returns whether it was verified.
    pub fn distrust(&self, piece: PieceIndex, writing: bool) -> bool {
        if writing && let Some(word) = self.table.get().and_then(|table| table.words.get(piece.index())) {
            let disturbed = |now: u32| (Word(now).state() == State::Memory).then(|| now.wrapping_add(GENERATION));
            if word.fetch_update(SeqCst, SeqCst, disturbed).is_ok() {
                return false;
            }
        }
        let on_disk = |word: Word| matches!(word.state(), State::Disk | State::Unverified);
        self.change(piece, State::Unverified, on_disk).is_some_and(|before| before.state() == State::Disk)
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

    /// Records a use. The counter only grows if another piece was used last, so a long read of one piece writes
    /// nothing.
    pub fn touch(&self, piece: PieceIndex, clock: &AtomicU64) {
        if self.last_use(piece) != clock.load(Relaxed) {
            self.set_last_use(piece, clock.fetch_add(1, Relaxed) + 1);
        }
    }

    /// Replaces the set of pieces that are pinned for readers. A piece that is unpinned counts as used now.
    pub fn pin(&self, ranges: Vec<Range<u32>>, clock: &AtomicU64) {
        let ranges: Vec<_> = ranges.iter().map(|range| self.clip(range)).filter(|range| !range.is_empty()).collect();
        let mut pins = lock(&self.pins);
        if pins.windows == ranges {
            return;
        }
        self.set_pinned(&ranges);
        let before = std::mem::replace(&mut pins.windows, ranges);
        self.clear_pinned(&pins, &before, clock);
    }

    /// Pins pieces until [`Self::release`]. Calls `lost` with each of them that leaves the disk all the same, because its
    /// bytes are wrong.
    pub fn hold(&self, pieces: Range<u32>, lost: LossSink) -> HoldId {
        let pieces = self.clip(&pieces);
        let mut pins = lock(&self.pins);
        self.set_pinned(std::slice::from_ref(&pieces));
        let id = HoldId(pins.next_hold);
        pins.next_hold += 1;
        pins.holds.push(Hold { id, pieces, lost: Arc::new(lost) });
        id
    }

    /// Ends a hold. A piece that is unpinned counts as used now.
    pub fn release(&self, id: HoldId, clock: &AtomicU64) {
        let mut pins = lock(&self.pins);
        let Some(at) = pins.holds.iter().position(|hold| hold.id == id) else { return };
        let released = pins.holds.swap_remove(at);
        self.clear_pinned(&pins, &[released.pieces], clock);
    }

    fn clip(&self, range: &Range<u32>) -> Range<u32> {
        range.start..range.end.min(self.lengths.pieces())
    }

    fn set_pinned(&self, ranges: &[Range<u32>]) {
        let words = &self.table().words;
        for piece in ranges.iter().cloned().flatten() {
            words[piece as usize].fetch_or(PINNED, SeqCst);
        }
    }

    /// Unpins pieces that were pinned, unless there is still a reason.
    fn clear_pinned(&self, pins: &Pins, ranges: &[Range<u32>], clock: &AtomicU64) {
        let words = &self.table().words;
        for piece in ranges.iter().cloned().flatten().filter(|piece| !pins.contains(*piece)) {
            if let Some(piece) = self.lengths.piece(piece) {
                self.touch(piece, clock);
            }
            words[piece as usize].fetch_and(!PINNED, SeqCst);
        }
    }

    /// Notifies the owner, and those who hold it, that a piece is gone. Call it without holding a lock.
    pub fn notify_evicted(&self, piece: PieceIndex) {
        (self.sink)(piece);
        let held = |hold: &&Hold| hold.pieces.contains(&piece.get());
        let lost: Vec<_> = lock(&self.pins).holds.iter().filter(held).map(|hold| hold.lost.clone()).collect();
        lost.iter().for_each(|lost| lost());
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "a pinned set may consist of one range")]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_word_are_independent() {
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
        assert!(!pieces.word(piece).pinned() && pieces.undisturbed(piece, before), "pinning does not disturb readers");
        assert_eq!(pieces.last_use(piece), 9, "unpinned after piece 2");
        for (from, to) in
            [(State::Disk, State::Evicting), (State::Evicting, State::Missing), (State::Missing, State::Disk)]
        {
            assert!(pieces.advance(piece, from, to));
            assert!(!pieces.advance(piece, from, to));
        }
        assert!(!pieces.undisturbed(piece, before), "it was evicted and put again");
        let before = pieces.word(piece);
        assert!(pieces.distrust(piece, true) && !pieces.distrust(piece, true));
        assert!(pieces.advance(piece, State::Unverified, State::Disk) && !pieces.undisturbed(piece, before));
        let written = pieces.lengths.piece(2).unwrap();
        for (distrusted, state) in [(false, State::Disk), (true, State::Unverified)] {
            pieces.advance(written, pieces.word(written).state(), State::Memory);
            let before = pieces.word(written);
            assert!(!pieces.distrust(written, distrusted));
            pieces.written(written, before);
            assert_eq!(pieces.word(written).state(), state);
        }
        let missing = pieces.lengths.piece(4).unwrap();
        assert!(!pieces.distrust(missing, true) && pieces.word(missing).state() == State::Missing);
    }

    #[test]
    fn a_held_piece_stays_pinned_whatever_readers_need() {
        let pieces = Pieces::new(0, Lengths::new(50, 10).unwrap(), Box::new(|_| {}));
        let clock = AtomicU64::new(7);
        let pinned = || (0..5).filter(|n| pieces.word(pieces.lengths.piece(*n).unwrap()).pinned()).collect::<Vec<_>>();
        let lost = Arc::new(AtomicU32::new(0));
        let sink = |step: u32| -> LossSink {
            let lost = lost.clone();
            Box::new(move || _ = lost.fetch_add(step, SeqCst))
        };
        pieces.pin(vec![0..2], &clock);
        let (one, other) = (pieces.hold(1..4, sink(1)), pieces.hold(3..99, sink(100)));
        assert_eq!(pinned(), [0, 1, 2, 3, 4]);
        pieces.pin(vec![2..3], &clock);
        assert_eq!(pinned(), [1, 2, 3, 4]);
        pieces.pin(Vec::new(), &clock);
        pieces.release(other, &clock);
        assert_eq!(pinned(), [1, 2, 3]);
        let third = pieces.hold(3..5, sink(100));
        for (piece, expected) in [(0, 0), (1, 1), (3, 102), (4, 202)] {
            pieces.notify_evicted(pieces.lengths.piece(piece).unwrap());
            assert_eq!(lost.load(SeqCst), expected, "piece {piece}");
        }
        let before = clock.load(Relaxed);
        pieces.release(one, &clock);
        pieces.release(one, &clock);
        assert_eq!((pinned(), pieces.last_use(pieces.lengths.piece(2).unwrap())), (vec![3, 4], before + 2));
        pieces.release(third, &clock);
        assert!(pinned().is_empty());
    }
}
