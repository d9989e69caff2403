//! A smoothed rate, for display, the choker and readers' consumption. Requests are scheduled by `sched::pipeline`'s own.

use std::time::{Duration, Instant};

/// Seconds that a rate is averaged over: long enough for a steady display, short enough to follow a change.
const SPAN: f64 = 5.0;

/// Bytes a second, as an exponential mean over about [`SPAN`].
#[derive(Clone, Debug)]
pub(super) struct Meter {
    bytes: f64,
    since: Instant,
    at: Instant,
}

impl Meter {
    pub(super) fn new(now: Instant) -> Self {
        Self { bytes: 0.0, since: now, at: now }
    }

    pub(super) fn add(&mut self, now: Instant, bytes: u64) {
        let gap = now.saturating_duration_since(self.at);
        // The decay within a millisecond is not worth an exponential for every block.
        if gap > Duration::from_millis(1) {
            self.bytes *= (-gap.as_secs_f64() / SPAN).exp();
            self.at = now;
        }
        self.bytes += bytes as f64;
    }

    /// Returns the bytes a second now.
    pub(super) fn rate(&self, now: Instant) -> f64 {
        let gap = now.saturating_duration_since(self.at).as_secs_f64();
        let age = now.saturating_duration_since(self.since).as_secs_f64();
        // A new meter has seen less than its span.
        let span = (SPAN * (1.0 - (-age / SPAN).exp())).max(0.25);
        self.bytes * (-gap / SPAN).exp() / span
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_a_steady_rate_and_forgets_it() {
        let mut now = Instant::now();
        let mut meter = Meter::new(now);
        for _ in 0..2_000 {
            now += Duration::from_millis(10);
            meter.add(now, 1_000);
        }
        assert!((95_000.0..105_000.0).contains(&meter.rate(now)));
        assert!(meter.rate(now + Duration::from_secs(60)) < 10.0);
    }
}
