//! Open file handles, their read-ahead windows, and blocked reads: which pieces are urgent, and in which order.
//!
//! A reader's *window* is the bytes after its position that it will need soon, clipped to its file. It doubles while
//! reads are sequential and collapses on a seek. The kernel reads ahead and out of order, so a read a little before or
//! after the position is no seek.
//!
//! A piece that a blocked read waits for was due when that read blocked. But of blocked reads close together most are
//! kernel read-ahead, so all but the first are due when the reader will get there at the rate at which it consumed so
//! far; the same holds for the pieces of a window. Kernel read-ahead at a place that its handle has left comes after all
//! windows.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::metainfo::Lengths;
use crate::swarm::policy::{Need, Phase, Policy};
use crate::swarm::rate::Meter;
use crate::swarm::{ReaderId, WantId};

/// Pieces that one blocked read or one window may hold: bounds the cost of a pass.
const MAX_PIECES: usize = 2_048;

/// One open file handle.
#[derive(Debug)]
struct Reader {
    file: Range<u64>,
    position: u64,
    /// Bytes after `position`.
    window: u64,
    /// Position at which the window last grew.
    grown_at: u64,
    consumed: Meter,
    /// It has read something.
    opened: bool,
    /// It has not read on since its last seek.
    sought: bool,
}

impl Reader {
    /// Returns whether a read there is no seek.
    fn is_near(&self, start: u64, near: u64) -> bool {
        let before = self.position.saturating_sub(near);
        (before..=self.position.saturating_add(self.window.max(near))).contains(&start)
    }
}

/// One blocked read.
#[derive(Debug)]
struct Want {
    reader: ReaderId,
    bytes: Range<u64>,
    since: Instant,
    /// It was a seek itself.
    sought: bool,
    /// When its handle sought away from it.
    left: Option<Instant>,
}

/// A piece that a reader needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::swarm) struct Urgent {
    pub(in crate::swarm) piece: u32,
    pub(in crate::swarm) need: Need,
}

/// Every open file handle and blocked read of a torrent.
#[derive(Debug)]
pub(in crate::swarm) struct Readers {
    policy: Arc<Policy>,
    lengths: Lengths,
    /// Bytes that all windows together may hold, because partial pieces are bounded.
    budget: u64,
    readers: BTreeMap<ReaderId, Reader>,
    wants: BTreeMap<WantId, Want>,
    last_read: Option<Instant>,
    /// When a read last blocked where it had sought.
    last_sought: Option<Instant>,
}

impl Readers {
    pub(in crate::swarm) fn new(lengths: Lengths, max_partial: u64, policy: Arc<Policy>) -> Self {
        let mut readers = Self {
            policy,
            lengths,
            budget: 0,
            readers: BTreeMap::new(),
            wants: BTreeMap::new(),
            last_read: None,
            last_sought: None,
        };
        readers.set_budget(max_partial);
        readers
    }

    /// Sets the bytes of partial pieces allowed. Windows leave a quarter of them to blocked reads.
    pub(in crate::swarm) fn set_budget(&mut self, max_partial: u64) {
        self.budget = (max_partial / 4 * 3).max(self.lengths.full_pieces(2));
    }

    /// Returns the bytes of a window after a seek: one piece, and more than the piece that comes next.
    fn first_window(&self) -> u64 {
        self.policy.min_read_ahead().max(self.lengths.full_pieces(1))
    }

    pub(in crate::swarm) fn open(&mut self, now: Instant, id: ReaderId, file: Range<u64>) {
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

    pub(in crate::swarm) fn close(&mut self, id: ReaderId) {
        self.readers.remove(&id);
    }

    /// Records a read, which moves its handle's window. Returns whether it was a seek.
    pub(in crate::swarm) fn read(&mut self, now: Instant, id: ReaderId, bytes: &Range<u64>) -> bool {
        self.last_read = Some(now);
        let (first, budget) = (self.first_window(), self.budget);
        let Policy { near_distance, silence_timeout, .. } = *self.policy;
        let Some(reader) = self.readers.get_mut(&id) else { return false };
        let (start, end) = (bytes.start.max(reader.file.start), bytes.end.min(reader.file.end));
        if start >= end {
            return false;
        }
        if !reader.opened || !reader.is_near(start, near_distance) {
            reader.opened = true;
            reader.sought = true;
            reader.window = first;
            reader.position = end;
            reader.grown_at = end;
            reader.consumed = Meter::new(now);
            let near = reader.position.saturating_sub(near_distance)..=end.saturating_add(first.max(near_distance));
            for want in self.wants.values_mut().filter(|want| want.reader == id && !near.contains(&want.bytes.start)) {
                want.left.get_or_insert(now);
            }
            return true;
        }
        reader.sought &= reader.position.abs_diff(end) == 0;
        if end > reader.position {
            reader.consumed.add(now, end - reader.position);
            reader.position = end;
        }
        if reader.position - reader.grown_at >= reader.window / 4 {
            // As long as the reader consumes it while it counts as active, twice; a slow one may have a third of all.
            let ahead = (reader.consumed.rate(now) * 2.0 * silence_timeout.as_secs_f64()) as u64;
            let most = ahead.max(budget / 3).min(budget).max(first);
            reader.window = (reader.window * 2).min(most);
            reader.grown_at = reader.position;
        }
        false
    }

    /// Records that a read blocks, or blocks again.
    pub(in crate::swarm) fn want(&mut self, now: Instant, want: WantId, reader: ReaderId, bytes: Range<u64>) {
        let sought = self.read(now, reader, &bytes) || self.wants.get(&want).is_some_and(|want| want.sought);
        let left = self.wants.get(&want).and_then(|want| want.left);
        if sought {
            self.last_sought = Some(now);
        }
        self.wants.insert(want, Want { reader, bytes, since: now, sought, left });
    }

    /// Forgets a blocked read. Returns false if it was not known.
    pub(in crate::swarm) fn unwant(&mut self, want: WantId) -> bool {
        self.wants.remove(&want).is_some()
    }

    pub(in crate::swarm) fn any_blocked(&self) -> bool {
        !self.wants.is_empty()
    }

    /// Returns the phase that follows from the reads alone.
    pub(in crate::swarm) fn phase(&self, now: Instant) -> Phase {
        let moment = self.policy.blocked_moment;
        if self.wants.values().any(|want| now.saturating_duration_since(want.since) < moment) {
            Phase::JustBlocked
        } else if self.last_sought.is_some_and(|at| now.saturating_duration_since(at) < self.policy.silence_timeout) {
            Phase::Seeking
        } else if self.is_active(now) {
            Phase::Reading
        } else {
            Phase::Filling
        }
    }

    /// Returns whether a read is blocked, or one happened a moment ago.
    pub(in crate::swarm) fn is_active(&self, now: Instant) -> bool {
        let timeout = self.policy.silence_timeout;
        self.any_blocked() || self.last_read.is_some_and(|at| now.saturating_duration_since(at) < timeout)
    }

    /// Returns the windows of the readers that have read something.
    pub(in crate::swarm) fn windows(&self) -> impl Iterator<Item = Range<u64>> {
        self.readers.values().filter(|reader| reader.opened).map(|reader| self.window(reader))
    }

    /// Returns the bytes that blocked reads wait for, and for how long each has been waiting.
    pub(in crate::swarm) fn waits(&self, now: Instant) -> impl Iterator<Item = (Range<u64>, Duration)> {
        self.wants.values().map(move |want| (want.bytes.clone(), now.saturating_duration_since(want.since)))
    }

    fn window(&self, reader: &Reader) -> Range<u64> {
        let end = reader.position.saturating_add(reader.window).min(reader.file.end);
        reader.position.min(end)..end
    }

    /// Returns the pieces that readers need and for which `lacks` holds, by deadline: those of blocked reads, then those
    /// of windows, the speculative ones last, then the abandoned ones.
    pub(in crate::swarm) fn urgent(&self, now: Instant, lacks: impl Fn(u32) -> bool) -> Vec<Urgent> {
        let mut list = Vec::new();
        let mut seen = BTreeSet::new();
        let (abandoned, awaited): (Vec<Urgent>, Vec<Urgent>) =
            self.awaited(now, &lacks).into_iter().partition(|urgent| urgent.need == Need::Abandoned);
        list.extend(awaited.into_iter().filter(|urgent| seen.insert(urgent.piece)));
        let mut soon = Vec::new();
        let mut budget = self.budget;
        let waiting: BTreeSet<ReaderId> =
            self.wants.values().filter(|want| self.is_waited_for(want)).map(|want| want.reader).collect();
        for (id, reader) in &self.readers {
            let waits = waiting.contains(id);
            let mut next = !waits;
            let rate = self.read_rate(now, Some(reader));
            for piece in self.lengths.pieces_in(&self.window(reader)).take(MAX_PIECES) {
                if lacks(piece.get()) && !seen.contains(&piece.get()) {
                    let ahead = self.lengths.offset_of(piece).saturating_sub(reader.position);
                    let need = match std::mem::take(&mut next) {
                        true if ahead < self.policy.next_distance() => Need::Next,
                        _ if waits && reader.sought => Need::Speculative,
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
        list.extend(abandoned.into_iter().filter(|urgent| seen.insert(urgent.piece)));
        list
    }

    /// Returns the bytes a second that a reader consumes, or what a slow film takes if that is more.
    fn read_rate(&self, now: Instant, reader: Option<&Reader>) -> f64 {
        reader.map_or(0.0, |reader| reader.consumed.rate(now)).max(self.policy.min_read_rate())
    }

    /// Returns the lacking pieces of blocked reads, in the order in which they were or will be due.
    fn awaited(&self, now: Instant, lacks: impl Fn(u32) -> bool) -> Vec<Urgent> {
        let near = self.policy.near_distance;
        let mut wants: Vec<&Want> = self.wants.values().collect();
        wants.sort_unstable_by_key(|want| (want.reader, want.bytes.start));
        let mut awaited = Vec::new();
        for run in wants.chunk_by(|a, b| a.reader == b.reader && b.bytes.start <= a.bytes.end.saturating_add(near)) {
            let since = run.iter().map(|want| want.since).min().unwrap_or(now);
            let rate = self.read_rate(now, self.readers.get(&run[0].reader));
            // In case that a thread of the program waits there after all, and another thread sought.
            let is_recent = |want: &Want| want.left.is_some_and(|left| now < left + self.policy.abandoned_moment());
            let abandoned = run.iter().all(|want| !self.is_waited_for(want) && is_recent(want));
            let mut need = if abandoned { Need::Abandoned } else { Need::Due };
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

    /// Returns whether somebody waits for a blocked read. Nobody does for kernel read-ahead at a place that its handle has
    /// left.
    fn is_waited_for(&self, want: &Want) -> bool {
        let is_near = |reader: &Reader| reader.is_near(want.bytes.start, self.policy.near_distance);
        want.sought || self.readers.get(&want.reader).is_none_or(is_near)
    }

    /// Returns the pieces that must stay in the cache: windows, a little behind each, and what blocked reads wait for.
    /// The ranges are sorted and do not touch.
    pub(in crate::swarm) fn pins(&self) -> Vec<Range<u32>> {
        let behind = |reader: &Reader| reader.position.saturating_sub(self.policy.near_distance);
        let windows = self
            .readers
            .values()
            .filter(|reader| reader.opened)
            .map(|reader| behind(reader).max(reader.file.start)..self.window(reader).end);
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
        (Readers::new(Lengths::new(400 * PIECE, PIECE).unwrap(), 40 << 20, Arc::default()), Instant::now())
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
        assert_eq!(window(&readers, 1), 65_536..65_536 + (1 << 20));
        let mut at = 65_536;
        while at < 16 << 20 {
            // Kernel read-ahead, pairs swapped.
            readers.read(now, ReaderId(1), &(at + 65_536..at + 131_072));
            readers.read(now, ReaderId(1), &(at..at + 65_536));
            at += 131_072;
        }
        assert_eq!(window(&readers, 1), at..at + readers.budget);
        let far = 290 * PIECE;
        readers.read(now, ReaderId(1), &(far..far + 1));
        assert_eq!(window(&readers, 1), far + 1..far + 1 + (1 << 20));
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
        assert_eq!(pieces(&readers)[..5], [100, 1, 2, 3, 4], "the second may not read on after its seek");
        assert!(
            readers
                .urgent(now, |_| true)
                .iter()
                .all(|urgent| (urgent.need == Need::Speculative) == (urgent.piece > 100))
        );
        readers.read(now, ReaderId(2), &(101 * PIECE..101 * PIECE + 1));
        assert_eq!(pieces(&readers)[..3], [100, 1, 101], "two handles have two windows, both due at once");
        assert_eq!(readers.pins(), [0..5, 93..106]);
        readers.close(ReaderId(1));
        readers.close(ReaderId(2));
        assert!(readers.unwant(WantId(1)) && !readers.unwant(WantId(1)));
        assert!(readers.urgent(now, |_| true).is_empty() && readers.pins().is_empty());
    }

    #[test]
    fn read_ahead_at_a_place_that_was_left_comes_last() {
        let (mut readers, now) = readers();
        readers.open(now, ReaderId(1), 0..400 * PIECE);
        readers.read(now, ReaderId(1), &(0..PIECE));
        readers.want(now, WantId(1), ReaderId(1), PIECE..2 * PIECE);
        readers.want(now, WantId(2), ReaderId(1), 2 * PIECE..3 * PIECE);
        readers.want(now, WantId(3), ReaderId(1), 200 * PIECE..200 * PIECE + 1);
        let needs = |readers: &Readers, after| -> Vec<(u32, Need)> {
            readers.urgent(now + after, |_| true).iter().map(|urgent| (urgent.piece, urgent.need)).collect()
        };
        let window = (200..205).map(|piece| (piece, if piece == 200 { Need::Due } else { Need::Speculative }));
        let mut expected: Vec<(u32, Need)> = window.collect();
        expected.extend([(1, Need::Abandoned), (2, Need::Abandoned)]);
        assert_eq!(needs(&readers, Duration::ZERO), expected);
        assert_eq!(
            needs(&readers, readers.policy.abandoned_moment())[..3],
            [(1, Need::Due), (200, Need::Due), (2, Need::Blocked)],
            "only for a while"
        );
        // Somebody waits for a read that was a seek itself.
        readers.want(now, WantId(4), ReaderId(1), 300 * PIECE..300 * PIECE + 1);
        assert_eq!(needs(&readers, Duration::ZERO)[..2], [(200, Need::Due), (300, Need::Due)]);
        // A reader whose seeks were answered is not blocked, and reads on from its position.
        (3..=4).for_each(|want| assert!(readers.unwant(WantId(want))));
        assert_eq!(needs(&readers, Duration::ZERO)[..2], [(300, Need::Next), (301, Need::Soon)]);
    }

    #[test]
    fn kernel_read_ahead_out_of_order_is_due_in_file_order() {
        let (mut readers, now) = readers();
        readers.open(now, ReaderId(1), 0..400 * PIECE);
        readers.open(now, ReaderId(2), 0..400 * PIECE);
        for (want, piece) in [(1, 3), (2, 1), (3, 4), (4, 2)] {
            readers.want(now, WantId(want), ReaderId(1), piece * PIECE..(piece + 1) * PIECE);
        }
        readers.want(now + Duration::from_millis(1), WantId(5), ReaderId(1), 200 * PIECE..200 * PIECE + 1);
        readers.want(now + Duration::from_millis(2), WantId(6), ReaderId(2), 100 * PIECE..100 * PIECE + 1);
        let urgent = readers.urgent(now, |_| true);
        let pieces: Vec<u32> =
            urgent.iter().filter(|urgent| urgent.need.is_blocked()).map(|urgent| urgent.piece).collect();
        assert_eq!(pieces, [1, 200, 100, 2, 3, 4], "reads blocked elsewhere are due sooner than read-ahead");
    }
}
