//! Rate limits that can change while running.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::util::lock;

/// How much may be taken at once after a pause, as time at the limit's rate.
const BURST: Duration = Duration::from_millis(100);

/// A token bucket in bytes. Takers are served in turn; what is taken may run into debt, which the next taker waits for,
/// so that a message larger than the bucket still passes.
#[derive(Debug)]
pub struct RateLimit {
    /// Bytes a second; 0: no limit.
    rate: AtomicU64,
    bucket: Mutex<Bucket>,
    changed: Notify,
}

#[derive(Debug)]
struct Bucket {
    level: f64,
    filled: Instant,
}

impl RateLimit {
    /// `rate` in bytes a second; 0: no limit.
    pub fn new(rate: u64) -> Self {
        Self {
            rate: AtomicU64::new(rate),
            bucket: Mutex::new(Bucket { level: 0.0, filled: Instant::now() }),
            changed: Notify::new(),
        }
    }

    /// Changes the limit; takers that wait feel it at once.
    pub fn set(&self, rate: u64) {
        self.rate.store(rate, Ordering::Relaxed);
        self.changed.notify_waiters();
    }

    /// Bytes a second; 0: no limit.
    pub fn rate(&self) -> u64 {
        self.rate.load(Ordering::Relaxed)
    }

    /// Takes `bytes`, waiting until the bucket is out of debt.
    pub async fn take(&self, bytes: usize) {
        loop {
            let changed = self.changed.notified();
            match self.try_take(bytes) {
                None => return,
                Some(wait) => tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = changed => {}
                },
            }
        }
    }

    /// Takes at once (`None`), or says how long until it may be tried again.
    fn try_take(&self, bytes: usize) -> Option<Duration> {
        let rate = self.rate() as f64;
        if rate == 0.0 {
            return None;
        }
        let mut bucket = lock(&self.bucket);
        let now = Instant::now();
        let gained = now.duration_since(bucket.filled).as_secs_f64() * rate;
        bucket.level = (bucket.level + gained).min(rate * BURST.as_secs_f64());
        bucket.filled = now;
        if bucket.level >= 0.0 {
            bucket.level -= bytes as f64;
            return None;
        }
        // At least the timer's grain, or a near-zero debt would spin.
        Some(Duration::from_secs_f64((-bucket.level / rate).clamp(0.001, 60.0)))
    }
}

/// The limits that every connection of a session shares.
#[derive(Debug)]
pub struct Limits {
    /// What is read from peers.
    pub down: RateLimit,
    /// Blocks sent to peers; the small messages pass freely.
    pub up: RateLimit,
}

impl Limits {
    /// Bytes a second each way; 0: no limit.
    pub fn new(down: u64, up: u64) -> Self {
        Self { down: RateLimit::new(down), up: RateLimit::new(up) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn holds_the_rate_over_time() {
        let limit = RateLimit::new(1_000_000);
        let begin = Instant::now();
        for _ in 0..625 {
            limit.take(16_000).await;
        }
        let took = begin.elapsed().as_secs_f64();
        assert!((9.8..10.2).contains(&took), "10 MB at 1 MB/s took {took} s");
    }

    #[tokio::test(start_paused = true)]
    async fn lifting_the_limit_frees_whoever_waits() {
        let limit = std::sync::Arc::new(RateLimit::new(1));
        limit.take(1_000_000).await;
        let waiting = tokio::spawn({
            let limit = limit.clone();
            async move { limit.take(1).await }
        });
        tokio::task::yield_now().await;
        limit.set(0);
        waiting.await.unwrap();
        assert_eq!(limit.rate(), 0);
    }
}
