//! When memory that was freed goes back to the kernel.
//!
//! What comes from peers goes through receive buffers, which are freed in the middle of the heap: there the allocator
//! keeps them, and gives back only what is free at its end. So it is told to look for holes: from time to time while much
//! comes, and once more when that is over, and the connections and readers are gone. A look takes about a millisecond.

/// Less than this is not worth a look.
const WORTH: u64 = 32 << 20;
/// Rounds of the maintenance in which nothing more comes: it is over.
const QUIET: u32 = 3;

/// Counts rounds.
#[derive(Default)]
pub(super) struct HeapTrim {
    /// Bytes that had come at the last round, and at the last look.
    come: u64,
    looked_at: u64,
    /// Rounds since more came.
    quiet: u32,
}

impl HeapTrim {
    /// One round; `come` is what has come in all. True: now is the time to look for holes.
    pub fn is_due(&mut self, come: u64) -> bool {
        self.quiet = if come == self.come { self.quiet.saturating_add(1) } else { 0 };
        self.come = come;
        let now = come - self.looked_at >= WORTH || self.quiet == QUIET;
        if now {
            self.looked_at = come;
        }
        now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_comes_while_much_comes_and_when_it_is_over() {
        let mut heap_trim = HeapTrim::default();
        let mut looks = |come: &[u64]| come.iter().map(|come| heap_trim.is_due(*come)).collect::<Vec<_>>();
        assert_eq!(looks(&[1, WORTH - 1, WORTH, WORTH + 1]), [false, false, true, false]);
        assert_eq!(looks(&[WORTH * 2, WORTH * 3, WORTH * 3 + 1]), [true, true, false]);
        assert_eq!(looks(&[WORTH * 3 + 1; 5]), [false, false, true, false, false]);
        assert_eq!(looks(&[WORTH * 3 + 2; 5]), [false, false, false, true, false]);
    }
}
