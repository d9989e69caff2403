//! Decides when freed memory goes back to the kernel.
//!
//! Data from peers passes through receive buffers, which are freed in the middle of the heap. The allocator keeps that
//! memory and returns only what is free at the end of the heap. Therefore it is told to trim: regularly while much data
//! arrives, and once after that, when connections and readers have gone. A trim takes about a millisecond.

/// Bytes that must arrive between two trims; for less a trim is not worth its time.
const MIN_BYTES: u64 = 32 << 20;
/// Rounds of maintenance without new data after which a transfer counts as over.
const QUIET_ROUNDS: u32 = 3;

/// Tracks the arrival of data over rounds of maintenance.
#[derive(Default)]
pub(super) struct HeapTrim {
    /// Total bytes at the last round.
    total: u64,
    /// Total bytes at the last trim.
    trimmed_at: u64,
    /// Rounds since data last arrived.
    quiet: u32,
}

impl HeapTrim {
    /// Records a round and the total bytes that have arrived so far. Returns whether to trim now.
    pub fn record_round(&mut self, total: u64) -> bool {
        self.quiet = if total == self.total { self.quiet.saturating_add(1) } else { 0 };
        self.total = total;
        let now = total - self.trimmed_at >= MIN_BYTES || self.quiet == QUIET_ROUNDS;
        if now {
            self.trimmed_at = total;
        }
        now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trim_is_due_while_data_arrives_and_when_that_ends() {
        let mut heap_trim = HeapTrim::default();
        let mut trims = |totals: &[u64]| totals.iter().map(|total| heap_trim.record_round(*total)).collect::<Vec<_>>();
        assert_eq!(trims(&[1, MIN_BYTES - 1, MIN_BYTES, MIN_BYTES + 1]), [false, false, true, false]);
        assert_eq!(trims(&[MIN_BYTES * 2, MIN_BYTES * 3, MIN_BYTES * 3 + 1]), [true, true, false]);
        assert_eq!(trims(&[MIN_BYTES * 3 + 1; 5]), [false, false, true, false, false]);
        assert_eq!(trims(&[MIN_BYTES * 3 + 2; 5]), [false, false, false, true, false]);
    }
}
