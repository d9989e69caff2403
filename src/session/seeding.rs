//! How long a complete torrent is served to others.

use std::time::{Duration, Instant};

/// When serving ends: at the first limit that is reached, or never without any. A torrent that is not complete is
/// always served.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SeedLimits {
    /// Maximum ratio of bytes uploaded to bytes downloaded in this session, or to the torrent's size if nothing was
    /// downloaded.
    pub ratio: Option<f64>,
    /// Maximum time since the torrent became complete.
    pub time: Option<Duration>,
}

impl SeedLimits {
    /// Returns whether a limit is reached by a torrent of `size` bytes that has been complete for `complete_for`.
    pub fn reached(&self, complete_for: Duration, up: u64, down: u64, size: u64) -> bool {
        let fetched = if down == 0 { size } else { down };
        self.time.is_some_and(|time| complete_for >= time)
            || self.ratio.is_some_and(|ratio| up as f64 >= ratio * fetched as f64)
    }
}

/// The progress of one torrent towards its limits.
#[derive(Debug)]
pub(super) struct Seeding {
    limits: SeedLimits,
    /// Since when the torrent has been complete.
    complete: Option<Instant>,
    /// A limit is reached.
    over: bool,
}

impl Seeding {
    pub(super) fn new(limits: SeedLimits) -> Self {
        Self { limits, complete: None, over: false }
    }

    /// Updates the state of a torrent of `size` bytes. Returns whether it has to be served, if that has changed.
    pub(super) fn update(&mut self, now: Instant, complete: bool, up: u64, down: u64, size: u64) -> Option<bool> {
        self.complete = if complete { Some(self.complete.unwrap_or(now)) } else { None };
        let over = self
            .complete
            .is_some_and(|since| self.limits.reached(now.saturating_duration_since(since), up, down, size));
        (std::mem::replace(&mut self.over, over) != over).then_some(!over)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serving_ends_at_a_limit_and_resumes_when_a_piece_is_missing() {
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        let mut seeding = Seeding::new(SeedLimits { ratio: Some(2.0), time: None });
        assert_eq!(seeding.update(at(0), false, 500, 100, 1000), None, "still fetching");
        assert_eq!(seeding.update(at(1), true, 199, 100, 1000), None);
        assert_eq!(seeding.update(at(2), true, 200, 100, 1000), Some(false));
        assert_eq!(seeding.update(at(3), true, 300, 100, 1000), None, "reported once");
        assert_eq!(seeding.update(at(4), false, 300, 100, 1000), Some(true), "a piece was evicted");

        let mut seeding = Seeding::new(SeedLimits { ratio: Some(1.0), time: Some(Duration::from_secs(10)) });
        assert_eq!(seeding.update(at(0), true, 999, 0, 1000), None, "nothing was downloaded: the size counts");
        assert_eq!(seeding.update(at(10), true, 999, 0, 1000), Some(false));
        assert_eq!(Seeding::new(SeedLimits::default()).update(at(999), true, u64::MAX, 1, 1), None);
    }
}
