//! Rate limits for what we send. Pure.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::address;

/// A token bucket.
#[derive(Debug)]
pub(super) struct TokenBucket {
    /// Tokens gained per second.
    rate: f64,
    /// Maximum number of tokens.
    burst: f64,
    level: f64,
    at: Instant,
}

impl TokenBucket {
    pub fn new(now: Instant, rate: f64, burst: f64) -> Self {
        Self { rate, burst, level: burst, at: now }
    }

    /// Returns whether `count` tokens are available.
    pub fn has(&mut self, now: Instant, count: f64) -> bool {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * self.rate;
        (self.level, self.at) = ((self.level + gained).min(self.burst), now.max(self.at));
        self.level >= count
    }

    /// Takes `count` tokens, if they are available, and returns whether they were.
    pub fn take(&mut self, now: Instant, count: f64) -> bool {
        let enough = self.has(now, count);
        if enough {
            self.level -= count;
        }
        enough
    }

    /// Returns the time until one token is available, if none is taken before.
    pub fn wait(&self) -> Duration {
        Duration::from_secs_f64(((1.0 - self.level) / self.rate).max(0.001))
    }
}

/// Addresses counted at a time. Bounds the memory that a flood can use.
const MAX_SOURCES: usize = 1024;
/// Queries answered per address and period: more than an honest node sends.
const MAX_QUERIES: u32 = 60;
/// Period in which the queries of an address are counted.
const QUERY_PERIOD: Duration = Duration::from_secs(10);

/// Counts the queries from each address.
#[derive(Debug, Default)]
pub(super) struct QueryLimiter(HashMap<IpAddr, (Instant, u32)>);

impl QueryLimiter {
    /// Counts a query from `ip` and returns whether to answer it.
    pub fn allow(&mut self, now: Instant, ip: IpAddr) -> bool {
        let is_over = |since: Instant| now.saturating_duration_since(since) >= QUERY_PERIOD;
        let ip = address::subscriber(ip);
        if !self.0.contains_key(&ip) && self.0.len() >= MAX_SOURCES {
            self.0.retain(|_, (since, _)| !is_over(*since));
            if self.0.len() >= MAX_SOURCES {
                // This many addresses at once are a flood, probably with forged addresses. The overall reply limit
                // still holds.
                self.0.clear();
            }
        }
        let (since, count) = self.0.entry(ip).or_insert((now, 0));
        if is_over(*since) {
            (*since, *count) = (now, 0);
        }
        *count = count.saturating_add(1);
        *count <= MAX_QUERIES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_bucket_empties_and_refills() {
        let now = Instant::now();
        let mut bucket = TokenBucket::new(now, 10.0, 5.0);
        assert_eq!((0..10).filter(|_| bucket.take(now, 1.0)).count(), 5);
        assert!(bucket.wait() <= Duration::from_millis(100));
        assert!(!bucket.take(now + Duration::from_millis(50), 1.0));
        assert!(bucket.take(now + Duration::from_millis(101), 1.0));
        assert!(!bucket.take(now + Duration::from_secs(3600), 6.0));
    }

    #[test]
    fn an_address_with_too_many_queries_is_ignored_for_a_while() {
        let (mut limiter, now) = (QueryLimiter::default(), Instant::now());
        let ip = IpAddr::from([8, 8, 8, 8]);
        assert_eq!((0..200).filter(|_| limiter.allow(now, ip)).count(), MAX_QUERIES as usize);
        assert!(limiter.allow(now, IpAddr::from([8, 8, 8, 9])));
        assert!(limiter.allow(now + QUERY_PERIOD, ip));
        for n in 0..5000_u32 {
            limiter.allow(now, IpAddr::from(n.to_be_bytes()));
            assert!(limiter.0.len() <= MAX_SOURCES);
        }
    }
}
