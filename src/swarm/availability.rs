//! How many peers have each piece, and the missing pieces in order of it.
//!
//! The *enrolled* pieces (those that background fetching may start) stand in one array, rarest first, random within
//! one count. Counts move by one, and a piece moves to the neighbouring bucket by one swap: a `have` costs no scan.
//! Peers that have everything are only counted, so a seed's coming and going costs nothing.
//!
//! It *sleeps* while there is no peer, and then takes no memory: of a thousand torrents most have none.

use rand::RngExt;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;

/// `place` of a piece that is not enrolled.
const ABSENT: u32 = u32::MAX;

#[derive(Debug, Default)]
pub(super) struct Availability {
    /// Peers that have each piece, seeds left out. Empty while it sleeps, as all else is.
    counts: Vec<u16>,
    /// Enrolled pieces by ascending count.
    order: Vec<u32>,
    /// Each piece's place in `order`, or `ABSENT`.
    place: Vec<u32>,
    /// `ends[c]`: where the bucket of count `c` ends in `order`; it begins where the one before ends.
    ends: Vec<u32>,
    /// Peers that have every piece.
    seeds: u32,
}

impl Availability {
    /// The first peer comes: nobody has anything yet, `pieces` of `total` are enrolled.
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

    /// Nothing is counted, no piece is enrolled, and none can be.
    pub(super) fn sleeps(&self) -> bool {
        self.counts.is_empty()
    }

    /// Enrolled pieces, rarest first.
    pub(super) fn rarest(&self) -> &[u32] {
        &self.order
    }

    pub(super) fn is_enrolled(&self, piece: u32) -> bool {
        self.place.get(piece as usize).is_some_and(|place| *place != ABSENT)
    }

    /// Peers that have it, seeds left out.
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

    /// One more peer has `piece`.
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

    /// One fewer.
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

    /// The piece may be started from now on.
    pub(super) fn enroll(&mut self, piece: u32, rng: &mut SmallRng) {
        debug_assert!(!self.is_enrolled(piece));
        if self.sleeps() {
            return;
        }
        let count = usize::from(self.counts[piece as usize]);
        self.reach(count);
        self.place[piece as usize] = self.order.len() as u32;
        self.order.push(piece);
        // Every fuller bucket makes way by one: its first goes to its end.
        for bucket in (count + 1..self.ends.len()).rev() {
            self.put(piece, self.ends[bucket - 1]);
            self.ends[bucket] += 1;
        }
        self.ends[count] += 1;
        self.mix(piece, rng);
    }

    /// These, and only these, may be started from now on. Counts stay.
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

    /// The piece was started or had: it is no longer to be picked.
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

    /// Makes sure that a bucket for `count` exists.
    fn reach(&mut self, count: usize) {
        let end = self.order.len() as u32;
        while self.ends.len() <= count {
            self.ends.push(end);
        }
    }

    /// Swaps `piece` with whatever stands at `at`.
    fn put(&mut self, piece: u32, at: u32) {
        let from = self.place[piece as usize];
        let other = self.order[at as usize];
        self.order.swap(from as usize, at as usize);
        self.place[other as usize] = from;
        self.place[piece as usize] = at;
    }

    /// Gives `piece` a random place in its bucket, so that ties stay random.
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
