//! The number of peers that have each piece, and the missing pieces ordered by it.
//!
//! The *enrolled* pieces (those that background fetching may start) are in one array, rarest first, in random order
//! within one count. Counts change by one, and a piece moves to the neighbouring bucket by one swap: a `have` needs no
//! scan. Seeds are only counted, so a seed that connects or leaves costs nothing.
//!
//! While there is no peer it *sleeps* and takes no memory: of a thousand torrents most have no peers.

use rand::RngExt;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;

/// The `place` of a piece that is not enrolled.
const ABSENT: u32 = u32::MAX;

#[derive(Debug, Default)]
pub(super) struct Availability {
    /// Number of peers that have each piece, not counting seeds. Empty while it sleeps, like everything else.
    counts: Vec<u16>,
    /// Enrolled pieces by ascending count.
    order: Vec<u32>,
    /// The index of each piece in `order`, or `ABSENT`.
    place: Vec<u32>,
    /// `ends[c]` is the end of the bucket of count `c` in `order`; it begins where the one before ends.
    ends: Vec<u32>,
    /// Number of peers that have every piece.
    seeds: u32,
}

impl Availability {
    /// Returns the state when the first peer connects: `pieces` of `total` are enrolled, and no peer has any yet.
    pub(super) fn awake(total: u32, pieces: impl Iterator<Item = u32>, rng: &mut SmallRng) -> Self {
        let mut order: Vec<u32> = pieces.collect();
        order.shuffle(rng);
        let mut place = vec![ABSENT; total as usize];
        for (at, piece) in order.iter().enumerate() {
            place[*piece as usize] = at as u32;
        }
        let ends = vec![order.len() as u32];
        Self { counts: vec![0; total as usize], order, place, ends, seeds: 0 }
    }

    /// Returns whether it sleeps: nothing is counted, and no piece is or can be enrolled.
    pub(super) fn sleeps(&self) -> bool {
        self.counts.is_empty()
    }

    /// Returns the enrolled pieces, rarest first.
    pub(super) fn rarest(&self) -> &[u32] {
        &self.order
    }

    pub(super) fn is_enrolled(&self, piece: u32) -> bool {
        self.place.get(piece as usize).is_some_and(|place| *place != ABSENT)
    }

    /// Returns the number of peers that have a piece, not counting seeds.
    pub(super) fn of(&self, piece: u32) -> u16 {
        self.counts.get(piece as usize).copied().unwrap_or(0)
    }

    pub(super) fn seeds(&self) -> u32 {
        self.seeds
    }

    pub(super) fn seed_came(&mut self) {
        self.seeds += 1;
    }

    pub(super) fn seed_left(&mut self) {
        self.seeds -= 1;
    }

    /// Records that one more peer has `piece`.
    pub(super) fn raise(&mut self, piece: u32, rng: &mut SmallRng) {
        let count = &mut self.counts[piece as usize];
        let from = usize::from(*count);
        *count += 1;
        if self.is_enrolled(piece) {
            self.reach(from + 1);
            self.ends[from] -= 1;
            self.put(piece, self.ends[from]);
            self.mix(piece, rng);
        }
    }

    /// Records that one peer fewer has `piece`.
    pub(super) fn lower(&mut self, piece: u32, rng: &mut SmallRng) {
        let count = &mut self.counts[piece as usize];
        let from = usize::from(*count);
        *count -= 1;
        if self.is_enrolled(piece) {
            self.put(piece, self.ends[from - 1]);
            self.ends[from - 1] += 1;
            self.mix(piece, rng);
        }
    }

    /// Enrolls a piece.
    pub(super) fn enroll(&mut self, piece: u32, rng: &mut SmallRng) {
        debug_assert!(!self.is_enrolled(piece));
        if self.sleeps() {
            return;
        }
        let count = usize::from(self.counts[piece as usize]);
        self.reach(count);
        self.place[piece as usize] = self.order.len() as u32;
        self.order.push(piece);
        // Each bucket with a higher count moves by one: its first piece goes to its end.
        for bucket in (count + 1..self.ends.len()).rev() {
            self.put(piece, self.ends[bucket - 1]);
            self.ends[bucket] += 1;
        }
        self.ends[count] += 1;
        self.mix(piece, rng);
    }

    /// Enrolls these pieces and no others. Counts stay.
    pub(super) fn enroll_only(&mut self, mut pieces: Vec<u32>, rng: &mut SmallRng) {
        if self.sleeps() {
            return;
        }
        pieces.shuffle(rng);
        pieces.sort_by_key(|piece| self.counts[*piece as usize]);
        self.place.fill(ABSENT);
        for (at, piece) in pieces.iter().enumerate() {
            self.place[*piece as usize] = at as u32;
        }
        let most = pieces.last().map_or(0, |piece| self.counts[*piece as usize]);
        let end = |count: u16| pieces.partition_point(|piece| self.counts[*piece as usize] <= count) as u32;
        self.ends = (0..=most).map(end).collect();
        self.order = pieces;
    }

    /// Removes a piece from the enrolled ones.
    pub(super) fn withdraw(&mut self, piece: u32) {
        debug_assert!(self.is_enrolled(piece));
        let count = usize::from(self.counts[piece as usize]);
        for bucket in count..self.ends.len() {
            self.ends[bucket] -= 1;
            self.put(piece, self.ends[bucket]);
        }
        self.order.pop();
        self.place[piece as usize] = ABSENT;
    }

    /// Creates the bucket for `count` if there is none.
    fn reach(&mut self, count: usize) {
        let end = self.order.len() as u32;
        while self.ends.len() <= count {
            self.ends.push(end);
        }
    }

    /// Swaps `piece` with the piece at the index `at`.
    fn put(&mut self, piece: u32, at: u32) {
        let from = self.place[piece as usize];
        let other = self.order[at as usize];
        self.order.swap(from as usize, at as usize);
        self.place[other as usize] = from;
        self.place[piece as usize] = at;
    }

    /// Moves `piece` to a random index in its bucket, so that ties stay random.
    fn mix(&mut self, piece: u32, rng: &mut SmallRng) {
        let count = usize::from(self.counts[piece as usize]);
        let start = if count == 0 { 0 } else { self.ends[count - 1] };
        let at = rng.random_range(start..self.ends[count]);
        self.put(piece, at);
    }

    /// Checks the structure against itself and `count_of` against a recount; for tests.
    pub(super) fn check(&self, enrolled: impl Fn(u32) -> bool, count_of: impl Fn(u32) -> usize) {
        for piece in 0..self.counts.len() as u32 {
            assert_eq!(self.is_enrolled(piece), enrolled(piece), "piece {piece} enrolled");
            assert_eq!(usize::from(self.counts[piece as usize]), count_of(piece), "count of piece {piece}");
        }
        let mut start = 0;
        for (count, end) in self.ends.iter().enumerate() {
            for at in start..*end {
                let piece = self.order[at as usize];
                assert_eq!(usize::from(self.counts[piece as usize]), count);
                assert_eq!(self.place[piece as usize], at);
            }
            start = *end;
        }
        assert_eq!(start as usize, self.order.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::SeedableRng;

    proptest! {
        #[test]
        fn agrees_with_a_recount(steps in prop::collection::vec((0u8..5, 0u32..12), 0..300), seed: u64) {
            let rng = &mut SmallRng::seed_from_u64(seed);
            let mut availability = Availability::awake(12, (0..12).filter(|piece| piece % 3 != 0), rng);
            let mut counts = [0usize; 12];
            let mut enrolled: Vec<bool> = (0..12).map(|piece| piece % 3 != 0).collect();
            for (step, piece) in steps {
                let at = piece as usize;
                match step {
                    4 => {
                        (0..).zip(&mut enrolled).for_each(|(other, enrolled)| *enrolled = other % (piece + 1) == 0);
                        let all = (0..12u32).filter(|other| enrolled[*other as usize]).collect();
                        availability.enroll_only(all, rng);
                    }
                    0 => { availability.raise(piece, rng); counts[at] += 1; }
                    1 if counts[at] > 0 => { availability.lower(piece, rng); counts[at] -= 1; }
                    2 if enrolled[at] => { availability.withdraw(piece); enrolled[at] = false; }
                    3 if !enrolled[at] => { availability.enroll(piece, rng); enrolled[at] = true; }
                    _ => {}
                }
                availability.check(|piece| enrolled[piece as usize], |piece| counts[piece as usize]);
            }
        }
    }
}
