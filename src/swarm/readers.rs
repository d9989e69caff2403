//! Open file handles, their windows, and the blocked reads: what is urgent, and in which order.
//!
//! A reader's *window* is what it will need soon: the bytes after its position, clipped to its file. It doubles while
//! reads are sequential and collapses on a seek. The kernel reads ahead and out of order, so a read a little before or
//! after the position is no seek. What a blocked read waits for was due when it began to wait; but of blocked reads that
//! lie close together, most are the kernel's for later, so all but the lowest are due when the reader will be there, at
//! the rate at which it consumed so far. So is a piece of a window.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::{Duration, Instant};

use super::rate::Meter;
use super::{ReaderId, WantId};
use crate::metainfo::Lengths;

/// Bytes: the window after a seek; more if pieces are longer.
const FIRST_WINDOW: u64 = 1 << 20;
/// Bytes: the largest window.
const MAX_WINDOW: u64 = 32 << 20;
/// Bytes that a window may always grow to, however slow its reader.
const SMALL_WINDOW: u64 = 8 << 20;
/// Seconds of consumption that a window holds at most.
const AHEAD: f64 = 20.0;
/// Bytes around the position within which a read is no seek.
const REORDER: u64 = 2 << 20;
/// Bytes a second that a reader is assumed to consume at least.
const SLOWEST: f64 = 256e3;
/// Pieces that one blocked read or one window may hold.
const MAX_PIECES: usize = 2_048;
/// A read this recent means that somebody is waiting: queues at peers stay short.
const ACTIVE: Duration = Duration::from_secs(10);

/// How long a blocked read keeps background requests back.
const MOMENT: Duration = Duration::from_millis(300);

#[derive(Debug)]
struct Reader {
    file: Range<u64>,
    position: u64,
    /// Bytes after `position`.
    window: u64,
    /// Where the window grew last.
    grown_at: u64,
    consumed: Meter,
    /// It has read at all.
    opened: bool,
    /// It has not read on since its last seek.
    sought: bool,
}

#[derive(Debug)]
struct Want {
    reader: ReaderId,
    bytes: Range<u64>,
    since: Instant,
}

/// A piece that a reader needs, the most urgent first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Urgent {
    pub(super) piece: u32,
    /// A read waits for it.
    pub(super) blocked: bool,
    /// Of the window of a reader that waits where it just sought. Whether it will read on is not known: for a moment it
    /// comes only when all blocks that reads wait for are asked for.
    pub(super) unsure: bool,
}

#[derive(Debug)]
pub(super) struct Readers {
    lengths: Lengths,
    /// Bytes that windows may hold together: partial pieces are bounded.
    budget: u64,
    readers: BTreeMap<ReaderId, Reader>,
    wants: BTreeMap<WantId, Want>,
    last_read: Option<Instant>,
}

impl Readers {
    pub(super) fn new(lengths: Lengths, max_partial: u64) -> Self {
        let mut readers =
            Self { lengths, budget: 0, readers: BTreeMap::new(), wants: BTreeMap::new(), last_read: None };
        readers.set_budget(max_partial);
        readers
    }

    /// Windows leave a part of the partial pieces to blocked reads.
    pub(super) fn set_budget(&mut self, max_partial: u64) {
        self.budget = (max_partial / 4 * 3).max(2 * u64::from(self.lengths.piece_len()));
    }

    fn first_window(&self) -> u64 {
        FIRST_WINDOW.max(u64::from(self.lengths.piece_len()))
    }

    pub(super) fn open(&mut self, now: Instant, id: ReaderId, file: Range<u64>) {
        let file = file.start.min(self.lengths.total())..file.end.min(self.lengths.total());
        let reader = Reader {
            position: file.start,
            grown_at: file.start,
            file,
            window: 0,
            consumed: Meter::new(now),
            opened: false,
            sought: true,
        };
        self.readers.insert(id, reader);
    }

    pub(super) fn close(&mut self, id: ReaderId) {
        self.readers.remove(&id);
    }

    pub(super) fn read(&mut self, now: Instant, id: ReaderId, bytes: &Range<u64>) {
        self.last_read = Some(now);
        let (first, budget) = (self.first_window(), self.budget);
        let Some(reader) = self.readers.get_mut(&id) else { return };
        let (start, end) = (bytes.start.max(reader.file.start), bytes.end.min(reader.file.end));
        if start >= end {
            return;
        }
        let near = reader.position.saturating_sub(REORDER)..=reader.position.saturating_add(reader.window.max(REORDER));
        if !reader.opened || !near.contains(&start) {
            reader.opened = true;
            reader.sought = true;
            reader.window = first;
            reader.position = end;
            reader.grown_at = end;
            reader.consumed = Meter::new(now);
            return;
        }
        reader.sought &= reader.position.abs_diff(end) == 0;
        if end > reader.position {
            reader.consumed.add(now, end - reader.position);
            reader.position = end;
        }
        if reader.position - reader.grown_at >= reader.window / 4 {
            let ahead = (reader.consumed.rate(now) * AHEAD) as u64;
            let most = MAX_WINDOW.min(ahead.max(SMALL_WINDOW)).min(budget).max(first);
            reader.window = (reader.window * 2).min(most);
            reader.grown_at = reader.position;
        }
    }

    pub(super) fn want(&mut self, now: Instant, want: WantId, reader: ReaderId, bytes: Range<u64>) {
        self.last_read = Some(now);
        self.wants.insert(want, Want { reader, bytes, since: now });
    }

    /// False if it was not known.
    pub(super) fn unwant(&mut self, want: WantId) -> bool {
        self.wants.remove(&want).is_some()
    }

    pub(super) fn any_blocked(&self) -> bool {
        !self.wants.is_empty()
    }

    /// A read began to wait a moment ago: all else holds its breath.
    pub(super) fn just_blocked(&self, now: Instant) -> bool {
        self.wants.values().any(|want| now.saturating_duration_since(want.since) < MOMENT)
    }

    /// Somebody reads or did just now.
    pub(super) fn active(&self, now: Instant) -> bool {
        self.any_blocked() || self.last_read.is_some_and(|at| now.saturating_duration_since(at) < ACTIVE)
    }

    /// The windows of the readers that have read something.
    pub(super) fn windows(&self) -> impl Iterator<Item = Range<u64>> {
        self.readers.values().filter(|reader| reader.opened).map(|reader| self.window(reader))
    }

    /// What blocked reads want, and for how long they have been waiting.
    pub(super) fn waits(&self, now: Instant) -> impl Iterator<Item = (Range<u64>, Duration)> {
        self.wants.values().map(move |want| (want.bytes.clone(), now.saturating_duration_since(want.since)))
    }

    fn window(&self, reader: &Reader) -> Range<u64> {
        let end = reader.position.saturating_add(reader.window).min(reader.file.end);
        reader.position.min(end)..end
    }

    /// The pieces for which `lacks` holds that readers need, by deadline: those of blocked reads, then those of the
    /// windows, last of those that are unsure.
    pub(super) fn urgent(&self, now: Instant, lacks: impl Fn(u32) -> bool) -> Vec<Urgent> {
        let mut list = Vec::new();
        let mut seen = BTreeSet::new();
        for (_, piece) in self.awaited(now) {
            if lacks(piece) && seen.insert(piece) {
                list.push(Urgent { piece, blocked: true, unsure: false });
            }
        }
        let mut soon = Vec::new();
        let mut left = self.budget;
        let waiting: BTreeSet<ReaderId> = self.wants.values().map(|want| want.reader).collect();
        for (id, reader) in &self.readers {
            let unsure = reader.sought && waiting.contains(id);
            let rate = reader.consumed.rate(now).max(SLOWEST);
            for piece in self.lengths.pieces_in(&self.window(reader)).take(MAX_PIECES) {
                if lacks(piece.get()) && !seen.contains(&piece.get()) {
                    let ahead = self.lengths.offset_of(piece).saturating_sub(reader.position);
                    soon.push((unsure, (ahead as f64 / rate * 1e6) as u64, piece));
                }
            }
        }
        soon.sort_unstable();
        for (unsure, _, piece) in soon {
            if seen.insert(piece.get()) {
                left = match left.checked_sub(u64::from(self.lengths.len_of(piece))) {
                    Some(left) => left,
                    None => break,
                };
                list.push(Urgent { piece: piece.get(), blocked: false, unsure });
            }
        }
        list
    }

    /// The pieces of blocked reads and when they were or will be due, the earliest first.
    fn awaited(&self, now: Instant) -> Vec<(Instant, u32)> {
        let mut wants: Vec<&Want> = self.wants.values().collect();
        wants.sort_unstable_by_key(|want| (want.reader, want.bytes.start));
        let mut awaited = Vec::new();
        for run in wants.chunk_by(|a, b| a.reader == b.reader && b.bytes.start <= a.bytes.end.saturating_add(REORDER)) {
            let since = run.iter().map(|want| want.since).min().unwrap_or(now);
            let rate = self.readers.get(&run[0].reader).map_or(0.0, |reader| reader.consumed.rate(now)).max(SLOWEST);
            for want in run {
                for piece in self.lengths.pieces_in(&want.bytes).take(MAX_PIECES) {
                    let ahead = self.lengths.offset_of(piece).saturating_sub(run[0].bytes.start);
                    awaited.push((since + Duration::from_secs_f64(ahead as f64 / rate), piece.get()));
                }
            }
        }
        awaited.sort_unstable();
        awaited
    }

    /// Pieces that must stay in the cache: windows, a little behind each, and what blocked reads wait for. Sorted and
    /// apart from each other.
    pub(super) fn pins(&self) -> Vec<Range<u32>> {
        let windows = self
            .readers
            .values()
            .filter(|reader| reader.opened)
            .map(|reader| reader.position.saturating_sub(REORDER).max(reader.file.start)..self.window(reader).end);
        let mut ranges: Vec<Range<u32>> = windows
            .chain(self.wants.values().map(|want| want.bytes.clone()))
            .filter_map(|bytes| {
                let mut pieces = self.lengths.pieces_in(&bytes);
                let first = pieces.next()?.get();
                Some(first..pieces.next_back().map_or(first, |last| last.get()) + 1)
            })
            .collect();
        ranges.sort_unstable_by_key(|range| range.start);
        ranges.dedup_by(|next, range| {
            let touches = next.start <= range.end;
            if touches {
                range.end = range.end.max(next.end);
            }
            touches
        });
        ranges
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: u64 = 256 << 10;

    fn readers() -> (Readers, Instant) {
        (Readers::new(Lengths::new(400 * PIECE, PIECE).unwrap(), 64 << 20), Instant::now())
    }

    fn window(readers: &Readers, id: u64) -> Range<u64> {
        readers.window(&readers.readers[&ReaderId(id)])
    }

    #[test]
    fn the_window_grows_with_sequential_reads_and_collapses_on_a_seek() {
        let (mut readers, now) = readers();
        readers.open(now, ReaderId(1), 0..300 * PIECE);
        assert!(readers.pins().is_empty());
        readers.read(now, ReaderId(1), &(0..65_536));
        assert_eq!(window(&readers, 1), 65_536..65_536 + FIRST_WINDOW);
        let mut at = 65_536;
        while at < 16 << 20 {
            // The kernel's read-ahead: pairs swapped.
            readers.read(now, ReaderId(1), &(at + 65_536..at + 131_072));
            readers.read(now, ReaderId(1), &(at..at + 65_536));
            at += 131_072;
        }
        assert_eq!(window(&readers, 1), at..at + MAX_WINDOW);
        let far = 290 * PIECE;
        readers.read(now, ReaderId(1), &(far..far + 1));
        assert_eq!(window(&readers, 1), far + 1..far + 1 + FIRST_WINDOW);
        readers.read(now, ReaderId(1), &(299 * PIECE..300 * PIECE));
        assert_eq!(window(&readers, 1), 300 * PIECE..300 * PIECE, "clipped to the file");
    }

    #[test]
    fn blocked_first_then_by_deadline() {
        let (mut readers, now) = readers();
        readers.open(now, ReaderId(1), 0..400 * PIECE);
        readers.open(now, ReaderId(2), 0..400 * PIECE);
        readers.read(now, ReaderId(1), &(0..PIECE));
        readers.read(now, ReaderId(2), &(100 * PIECE..101 * PIECE));
        readers.want(now, WantId(1), ReaderId(2), 101 * PIECE - 1..101 * PIECE);
        let pieces =
            |readers: &Readers| readers.urgent(now, |_| true).iter().map(|urgent| urgent.piece).collect::<Vec<_>>();
        assert_eq!(pieces(&readers)[..5], [100, 1, 2, 3, 4], "whether the second reads on after its seek is not known");
        assert!(readers.urgent(now, |_| true).iter().all(|urgent| urgent.unsure == (urgent.piece > 100)));
        readers.read(now, ReaderId(2), &(101 * PIECE..101 * PIECE + 1));
        assert_eq!(pieces(&readers)[..3], [100, 1, 101], "two handles are two windows, both due at once");
        assert_eq!(readers.pins(), [0..5, 93..106]);
        readers.close(ReaderId(1));
        readers.close(ReaderId(2));
        assert!(readers.unwant(WantId(1)) && !readers.unwant(WantId(1)));
        assert!(readers.urgent(now, |_| true).is_empty() && readers.pins().is_empty());
    }

    #[test]
    fn reads_that_the_kernel_sent_ahead_and_out_of_order_wait_in_the_order_of_the_file() {
        let (mut readers, now) = readers();
        readers.open(now, ReaderId(1), 0..400 * PIECE);
        readers.open(now, ReaderId(2), 0..400 * PIECE);
        for (want, piece) in [(1, 3), (2, 1), (3, 4), (4, 2)] {
            readers.want(now, WantId(want), ReaderId(1), piece * PIECE..(piece + 1) * PIECE);
        }
        readers.want(now + Duration::from_millis(1), WantId(5), ReaderId(1), 200 * PIECE..200 * PIECE + 1);
        readers.want(now + Duration::from_millis(2), WantId(6), ReaderId(2), 100 * PIECE..100 * PIECE + 1);
        let urgent = readers.urgent(now, |_| true);
        let pieces: Vec<u32> = urgent.iter().filter(|urgent| urgent.blocked).map(|urgent| urgent.piece).collect();
        assert_eq!(pieces, [1, 200, 100, 2, 3, 4], "what waits at other places is due sooner than what was sent ahead");
    }
}
