//! How much we say, and to whom. Pure.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::address;

/// A bucket of tokens.
#[derive(Debug)]
pub(super) struct Bucket {
    /// Tokens a second.
    rate: f64,
    /// Tokens at most.
    burst: f64,
    level: f64,
    at: Instant,
}

impl Bucket {
    pub fn new(now: Instant, rate: f64, burst: f64) -> Self {
        Self { rate, burst, level: burst, at: now }
    }

    /// Whether so many are there.
    pub fn has(&mut self, now: Instant, count: f64) -> bool {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * self.rate;
        (self.level, self.at) = ((self.level + gained).min(self.burst), now.max(self.at));
        self.level >= count
    }

    /// Takes so many, if they are there.
    pub fn take(&mut self, now: Instant, count: f64) -> bool {
        let enough = self.has(now, count);
        if enough {
            self.level -= count;
        }
        enough
    }

    /// How long until one is there, if none is taken.
    pub fn wait(&self) -> Duration {
        Duration::from_secs_f64(((1.0 - self.level) / self.rate).max(0.001))
    }
}

/// Addresses counted at a time.
const MAX_SOURCES: usize = 1024;
/// So many queries of one address in so much time are answered.
const QUERIES: (u32, Duration) = (60, Duration::from_secs(10));

/// Counts the queries of each address.
#[derive(Debug, Default)]
pub(super) struct Sources(HashMap<IpAddr, (Instant, u32)>);

impl Sources {
    /// Whether a query from there is to be answered.
    pub fn admit(&mut self, now: Instant, ip: IpAddr) -> bool {
        let is_over = |since: Instant| now.saturating_duration_since(since) >= QUERIES.1;
        let ip = address::subscriber(ip);
        if !self.0.contains_key(&ip) && self.0.len() >= MAX_SOURCES {
            self.0.retain(|_, (since, _)| !is_over(*since));
            if self.0.len() >= MAX_SOURCES {
                // A flood from many addresses at once, forged no doubt. What we say to all together has a limit too.
                self.0.clear();
            }
        }
        let (since, count) = self.0.entry(ip).or_insert((now, 0));
        if is_over(*since) {
            (*since, *count) = (now, 0);
        }
        *count = count.saturating_add(1);
        *count <= QUERIES.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_runs_dry_and_fills_again() {
        let now = Instant::now();
        let mut bucket = Bucket::new(now, 10.0, 5.0);
        assert_eq!((0..10).filter(|_| bucket.take(now, 1.0)).count(), 5);
        assert!(bucket.wait() <= Duration::from_millis(100));
        assert!(!bucket.take(now + Duration::from_millis(50), 1.0));
        assert!(bucket.take(now + Duration::from_millis(101), 1.0));
        assert!(!bucket.take(now + Duration::from_secs(3600), 6.0));
    }

    #[test]
    fn who_asks_too_much_is_not_heard_for_a_while() {
        let (mut sources, now) = (Sources::default(), Instant::now());
        let ip = IpAddr::from([8, 8, 8, 8]);
        assert_eq!((0..200).filter(|_| sources.admit(now, ip)).count(), QUERIES.0 as usize);
        assert!(sources.admit(now, IpAddr::from([8, 8, 8, 9])));
        assert!(sources.admit(now + QUERIES.1, ip));
        for n in 0..5000_u32 {
            sources.admit(now, IpAddr::from(n.to_be_bytes()));
            assert!(sources.0.len() <= MAX_SOURCES);
        }
    }
}
