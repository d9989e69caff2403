//! When memory that was freed goes back to the kernel.
//!
//! A burst (ten torrents read at a time) takes tens of MiB of buffers and frees them again, in the middle of the heap:
//! there the allocator keeps them, and gives back only what is free at its end. So it is told to look for holes, rarely,
//! for it holds everybody up meanwhile: when a burst is over, or one lasts. A stream by itself reuses its buffers, and
//! makes none.

/// Less than this is not worth the look.
const WORTH: u64 = 8 << 20;
/// Rounds of the keeper without more of it: the burst is over, and what went with it (connections, above all), too.
const QUIET: u32 = 3;
/// Rounds after which it is done while it goes on.
const PATIENCE: u32 = 60;

/// Counts rounds.
#[derive(Default)]
pub(super) struct Holes {
    /// Bytes freed until the last round, and until the last look.
    freed: u64,
    given_back: u64,
    /// Rounds since more was freed, and since so much was freed that a look is worth it.
    quiet: u32,
    waiting: u32,
}

impl Holes {
    /// One round; `freed` is what was freed in all. True: now is the time to look for holes.
    pub fn round(&mut self, freed: u64) -> bool {
        self.quiet = if freed == self.freed { self.quiet.saturating_add(1) } else { 0 };
        self.freed = freed;
        if freed - self.given_back < WORTH {
            return false;
        }
        self.waiting += 1;
        let now = self.quiet >= QUIET || self.waiting >= PATIENCE;
        if now {
            (self.given_back, self.waiting) = (freed, 0);
        }
        now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_follows_a_burst_and_is_rare_while_one_lasts() {
        let mut holes = Holes::default();
        assert!((0..1000).all(|_| !holes.round(WORTH - 1)), "not worth it");
        let looks =
            |holes: &mut Holes, freed: &[u64]| freed.iter().map(|freed| holes.round(*freed)).collect::<Vec<_>>();
        let burst = [WORTH, WORTH * 2, WORTH * 2, WORTH * 2, WORTH * 2, WORTH * 2, WORTH * 2];
        assert_eq!(looks(&mut holes, &burst), [false, false, false, false, true, false, false]);
        let lasting = (3..).map(|n| WORTH * n);
        let looks: Vec<bool> = lasting.take(600).map(|freed| holes.round(freed)).collect();
        assert_eq!(looks.iter().filter(|look| **look).count(), 600 / PATIENCE as usize);
    }
}
