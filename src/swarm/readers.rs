//! Open file handles, their windows, and the blocked reads: what is urgent, and in which order.
//!
//! A reader's *window* is what it will need soon: the bytes after its position, clipped to its file. It doubles while
//! reads are sequential and collapses on a seek. The kernel reads ahead and out of order, so a read a little before or
//! after the position is no seek. What a blocked read waits for was due when it began to wait; but of blocked reads that
//! lie close together, most are the kernel's for later, so all but the lowest are due when the reader will be there, at
//! the rate at which it consumed so far. So is a piece of a window. And what the kernel sent ahead of a place that its
//! reader has left comes after all windows.

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

/// So much later are reads due that the kernel sent ahead and whose handle has sought away since: nobody waits for them any
/// more. They still come, for that is a guess.
const LEFT: Duration = Duration::from_secs(3);

/// Bytes that a reader may be through with before long.
const MOMENT_AHEAD: u64 = 512 << 10;

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

impl Reader {
    /// A read there is no seek.
    fn is_near(&self, start: u64) -> bool {
        let before = self.position.saturating_sub(REORDER);
        (before..=self.position.saturating_add(self.window.max(REORDER))).contains(&start)
    }
}

#[derive(Debug)]
struct Want {
    reader: ReaderId,
    bytes: Range<u64>,
    since: Instant,
    /// It was a seek itself.
    sought: bool,
}

/// A piece that a reader needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Urgent {
    pub(super) piece: u32,
    pub(super) need: Need,
}

/// How much, the most urgent first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Need {
    /// Of those that a handle's reads wait for, the first in the file.
    Due,
    /// A read waits for it.
    Blocked,
    /// What a reader that waits for nothing gets to in a moment.
    Next,
    /// Of a window.
    Soon,
    /// Of the window of a reader that waits where it just sought. Whether it will read on is not known: for a moment it
    /// comes only when all blocks that reads wait for are asked for.
    Unsure,
    /// Sent ahead by the kernel, where the reader has sought away from.
    Left,
}

impl Urgent {
    /// A read waits for it.
    pub(super) fn is_blocked(self) -> bool {
        self.need <= Need::Blocked
    }
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
        self.budget = (max_partial / 4 * 3).max(self.lengths.full_pieces(2));
    }

    fn first_window(&self) -> u64 {
        FIRST_WINDOW.max(self.lengths.full_pieces(1))
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

    /// A read moves its handle's window. True if it was a seek.
    pub(super) fn read(&mut self, now: Instant, id: ReaderId, bytes: &Range<u64>) -> bool {
        self.last_read = Some(now);
        let (first, budget) = (self.first_window(), self.budget);
        let Some(reader) = self.readers.get_mut(&id) else { return false };
        let (start, end) = (bytes.start.max(reader.file.start), bytes.end.min(reader.file.end));
        if start >= end {
            return false;
        }
        if !reader.opened || !reader.is_near(start) {
            reader.opened = true;
            reader.sought = true;
            reader.window = first;
            reader.position = end;
            reader.grown_at = end;
            reader.consumed = Meter::new(now);
            return true;
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
        false
    }

    /// A read waits, or does so anew.
    pub(super) fn want(&mut self, now: Instant, want: WantId, reader: ReaderId, bytes: Range<u64>) {
        let sought = self.read(now, reader, &bytes) || self.wants.get(&want).is_some_and(|want| want.sought);
        self.wants.insert(want, Want { reader, bytes, since: now, sought });
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
        let (left, awaited): (Vec<Urgent>, Vec<Urgent>) =
            self.awaited(now, &lacks).into_iter().partition(|urgent| urgent.need == Need::Left);
        list.extend(awaited.into_iter().filter(|urgent| seen.insert(urgent.piece)));
        let mut soon = Vec::new();
        let mut budget = self.budget;
        let waiting: BTreeSet<ReaderId> =
            self.wants.values().filter(|want| self.is_waited_for(want)).map(|want| want.reader).collect();
        for (id, reader) in &self.readers {
            let waits = waiting.contains(id);
            let mut next = !waits;
            let rate = reader.consumed.rate(now).max(SLOWEST);
            for piece in self.lengths.pieces_in(&self.window(reader)).take(MAX_PIECES) {
                if lacks(piece.get()) && !seen.contains(&piece.get()) {
                    let ahead = self.lengths.offset_of(piece).saturating_sub(reader.position);
                    let need = match std::mem::take(&mut next) {
                        true if ahead < MOMENT_AHEAD => Need::Next,
                        _ if waits && reader.sought => Need::Unsure,
                        _ => Need::Soon,
                    };
                    soon.push((need, (ahead as f64 / rate * 1e6) as u64, piece));
                }
            }
        }
        soon.sort_unstable();
        for (need, _, piece) in soon {
            if seen.insert(piece.get()) {
                budget = match budget.checked_sub(u64::from(self.lengths.len_of(piece))) {
                    Some(budget) => budget,
                    None => break,
                };
                list.push(Urgent { piece: piece.get(), need });
            }
        }
        list.extend(left.into_iter().filter(|urgent| seen.insert(urgent.piece)));
        list
    }

    /// The lacking pieces of blocked reads, in the order in which they were or will be due.
    fn awaited(&self, now: Instant, lacks: impl Fn(u32) -> bool) -> Vec<Urgent> {
        let mut wants: Vec<&Want> = self.wants.values().collect();
        wants.sort_unstable_by_key(|want| (want.reader, want.bytes.start));
        let mut awaited = Vec::new();
        for run in wants.chunk_by(|a, b| a.reader == b.reader && b.bytes.start <= a.bytes.end.saturating_add(REORDER)) {
            let since = run.iter().map(|want| want.since).min().unwrap_or(now);
            let reader = self.readers.get(&run[0].reader);
            let rate = reader.map_or(0.0, |reader| reader.consumed.rate(now)).max(SLOWEST);
            let left = now < since + LEFT && !run.iter().any(|want| self.is_waited_for(want));
            let mut need = if left { Need::Left } else { Need::Due };
            for want in run {
                let pieces = self.lengths.pieces_in(&want.bytes).take(MAX_PIECES);
                for piece in pieces.filter(|piece| lacks(piece.get())) {
                    let ahead = self.lengths.offset_of(piece).saturating_sub(run[0].bytes.start);
                    let due = since + Duration::from_secs_f64(ahead as f64 / rate);
                    awaited.push((due, Urgent { piece: piece.get(), need }));
                    need = need.max(Need::Blocked);
                }
            }
        }
        awaited.sort_unstable_by_key(|(due, urgent)| (*due, urgent.piece));
        awaited.into_iter().map(|(_, urgent)| urgent).collect()
    }

    /// Not only sent ahead by the kernel, at a place that its handle has left since.
    fn is_waited_for(&self, want: &Want) -> bool {
        want.sought || self.readers.get(&want.reader).is_none_or(|reader| reader.is_near(want.bytes.start))
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
            .map(|bytes| self.lengths.pieces_in(&bytes).numbers())
            .filter(|pieces| !pieces.is_empty())
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
        assert!(
            readers.urgent(now, |_| true).iter().all(|urgent| (urgent.need == Need::Unsure) == (urgent.piece > 100))
        );
        readers.read(now, ReaderId(2), &(101 * PIECE..101 * PIECE + 1));
        assert_eq!(pieces(&readers)[..3], [100, 1, 101], "two handles are two windows, both due at once");
        assert_eq!(readers.pins(), [0..5, 93..106]);
        readers.close(ReaderId(1));
        readers.close(ReaderId(2));
        assert!(readers.unwant(WantId(1)) && !readers.unwant(WantId(1)));
        assert!(readers.urgent(now, |_| true).is_empty() && readers.pins().is_empty());
    }

    #[test]
    fn what_the_kernel_sent_ahead_of_a_place_that_was_left_comes_last() {
        let (mut readers, now) = readers();
        readers.open(now, ReaderId(1), 0..400 * PIECE);
        readers.read(now, ReaderId(1), &(0..PIECE));
        readers.want(now, WantId(1), ReaderId(1), PIECE..2 * PIECE);
        readers.want(now, WantId(2), ReaderId(1), 2 * PIECE..3 * PIECE);
        readers.want(now, WantId(3), ReaderId(1), 200 * PIECE..200 * PIECE + 1);
        let needs = |readers: &Readers, after| -> Vec<(u32, Need)> {
            readers.urgent(now + after, |_| true).iter().map(|urgent| (urgent.piece, urgent.need)).collect()
        };
        let window = (200..205).map(|piece| (piece, if piece == 200 { Need::Due } else { Need::Unsure }));
        let mut expected: Vec<(u32, Need)> = window.collect();
        expected.extend([(1, Need::Left), (2, Need::Left)]);
        assert_eq!(needs(&readers, Duration::ZERO), expected);
        assert_eq!(needs(&readers, LEFT)[..3], [(1, Need::Due), (200, Need::Due), (2, Need::Blocked)], "not for ever");
        // A read that was a seek itself has somebody who waits for it.
        readers.want(now, WantId(4), ReaderId(1), 300 * PIECE..300 * PIECE + 1);
        assert_eq!(needs(&readers, Duration::ZERO)[..2], [(200, Need::Due), (300, Need::Due)]);
        // A reader whose seeks were answered waits for nothing, and gets on from where it is.
        (3..=4).for_each(|want| assert!(readers.unwant(WantId(want))));
        assert_eq!(needs(&readers, Duration::ZERO)[..2], [(300, Need::Next), (301, Need::Soon)]);
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
        let pieces: Vec<u32> = urgent.iter().filter(|urgent| urgent.is_blocked()).map(|urgent| urgent.piece).collect();
        assert_eq!(pieces, [1, 200, 100, 2, 3, 4], "what waits at other places is due sooner than what was sent ahead");
    }
}
