//! How long a complete torrent is served to others.

use std::time::{Duration, Instant};

/// When serving ends; without either, never. A torrent that is not complete is served as long as it is fetched.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SeedLimits {
    /// Bytes given over bytes fetched, or over the torrent's size if it was there from the start. Of this session.
    pub ratio: Option<f64>,
    /// How long it has been complete.
    pub time: Option<Duration>,
}

impl SeedLimits {
    /// Whether a torrent of `size` bytes that has been complete for so long has been given enough.
    pub fn reached(&self, complete_for: Duration, up: u64, down: u64, size: u64) -> bool {
        let fetched = if down == 0 { size } else { down };
        self.time.is_some_and(|time| complete_for >= time)
            || self.ratio.is_some_and(|ratio| up as f64 >= ratio * fetched as f64)
    }
}

/// One torrent's way to its limits.
#[derive(Debug)]
pub(super) struct Seeding {
    limits: SeedLimits,
    complete: Option<Instant>,
    over: bool,
}

impl Seeding {
    pub(super) fn new(limits: SeedLimits) -> Self {
        Self { limits, complete: None, over: false }
    }

    /// Looks at a torrent of `size` bytes. `Some`: from now on it is, or is no longer, to be served.
    pub(super) fn look(&mut self, now: Instant, complete: bool, up: u64, down: u64, size: u64) -> Option<bool> {
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
    fn ends_at_the_ratio_or_the_time_and_begins_again_when_something_is_missing() {
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        let mut seeding = Seeding::new(SeedLimits { ratio: Some(2.0), time: None });
        assert_eq!(seeding.look(at(0), false, 500, 100, 1000), None, "still fetching");
        assert_eq!(seeding.look(at(1), true, 199, 100, 1000), None);
        assert_eq!(seeding.look(at(2), true, 200, 100, 1000), Some(false));
        assert_eq!(seeding.look(at(3), true, 300, 100, 1000), None, "said once");
        assert_eq!(seeding.look(at(4), false, 300, 100, 1000), Some(true), "a piece was evicted");

        let mut seeding = Seeding::new(SeedLimits { ratio: Some(1.0), time: Some(Duration::from_secs(10)) });
        assert_eq!(seeding.look(at(0), true, 999, 0, 1000), None, "it was all there: of its size");
        assert_eq!(seeding.look(at(10), true, 999, 0, 1000), Some(false));
        assert_eq!(Seeding::new(SeedLimits::default()).look(at(999), true, u64::MAX, 1, 1), None);
    }
}
