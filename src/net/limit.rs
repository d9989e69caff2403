//! Rate limits that can change at run time.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::util::lock;

/// Burst of a limit, as time at its rate: short enough to keep the rate smooth, long enough for a few messages.
const BURST: Duration = Duration::from_millis(100);

/// A token bucket in bytes. Callers are served in turn. A caller may take more than the bucket holds; the next one then
/// waits for the debt, so that a message larger than the bucket still passes.
#[derive(Debug)]
pub struct RateLimit {
    /// Bytes per second; 0 means unlimited.
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
    /// Creates a limit of `rate` bytes per second; 0 means unlimited.
    pub fn new(rate: u64) -> Self {
        Self {
            rate: AtomicU64::new(rate),
            bucket: Mutex::new(Bucket { level: 0.0, filled: Instant::now() }),
            changed: Notify::new(),
        }
    }

    /// Changes the rate, also for callers that are waiting.
    pub fn set(&self, rate: u64) {
        self.rate.store(rate, Ordering::Relaxed);
        self.changed.notify_waiters();
    }

    /// Returns the rate in bytes per second; 0 means unlimited.
    pub fn rate(&self) -> u64 {
        self.rate.load(Ordering::Relaxed)
    }

    /// Takes `bytes` tokens, after waiting until the bucket has no debt.
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

    /// Takes the tokens at once (`None`), or returns how long to wait before the next attempt.
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
        // At least the resolution of the timer, so that a tiny debt does not cause a busy loop.
        Some(Duration::from_secs_f64((-bucket.level / rate).clamp(0.001, 60.0)))
    }
}

/// The rate limits that all connections of a session share.
#[derive(Debug)]
pub struct Limits {
    /// Limit for everything read from peers.
    pub down: RateLimit,
    /// Limit for blocks sent to peers. Other messages are small and not limited.
    pub up: RateLimit,
}

impl Limits {
    /// Creates limits in bytes per second; 0 means unlimited.
    pub fn new(down: u64, up: u64) -> Self {
        Self { down: RateLimit::new(down), up: RateLimit::new(up) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_rate_holds_over_time() {
        let limit = RateLimit::new(1_000_000);
        let begin = Instant::now();
        for _ in 0..625 {
            limit.take(16_000).await;
        }
        let took = begin.elapsed().as_secs_f64();
        assert!((9.8..10.2).contains(&took), "10 MB at 1 MB/s took {took} s");
    }

    #[tokio::test(start_paused = true)]
    async fn lifting_the_limit_releases_waiting_callers() {
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
