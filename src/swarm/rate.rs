//! A smoothed rate for people and for the choker. What schedules requests is [`super::pipeline`].

use std::time::{Duration, Instant};

/// Bytes a second, an exponential mean over about `SPAN`.
#[derive(Clone, Debug)]
pub(super) struct Meter {
    bytes: f64,
    since: Instant,
    at: Instant,
}

const SPAN: f64 = 5.0;

impl Meter {
    pub(super) fn new(now: Instant) -> Self {
        Self { bytes: 0.0, since: now, at: now }
    }

    pub(super) fn add(&mut self, now: Instant, bytes: u64) {
        let gap = now.saturating_duration_since(self.at);
        // Within a millisecond the decay is nothing, and its exponential is not worth computing for every block.
        if gap > Duration::from_millis(1) {
            self.bytes *= (-gap.as_secs_f64() / SPAN).exp();
            self.at = now;
        }
        self.bytes += bytes as f64;
    }

    /// Bytes a second now.
    pub(super) fn rate(&self, now: Instant) -> f64 {
        let gap = now.saturating_duration_since(self.at).as_secs_f64();
        let age = now.saturating_duration_since(self.since).as_secs_f64();
        // A young meter has seen less than its span.
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
