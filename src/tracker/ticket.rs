//! Connection ids of the UDP protocol (BEP 15): proof that who asks can hear us at the address that it gives. Pure.
//!
//! Nothing is kept: an id is a hash, under a key of this process's, of the address and of the minute in which it was
//! given. So a stranger who forges a sender's address gets nobody an answer but that of 16 bytes for 16.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;

/// Seconds for which ids are the same.
const WINDOW: u32 = 60;
/// Windows back in which an id is still good: for two minutes at least, for three at most.
const GOOD: u32 = 2;

/// Gives ids and knows them again.
#[derive(Debug, Default)]
pub(super) struct Tickets {
    /// SipHash with a random key.
    key: RandomState,
}

impl Tickets {
    fn of(&self, from: IpAddr, window: u32) -> u64 {
        self.key.hash_one((from, window))
    }

    pub fn give(&self, from: IpAddr, now: u32) -> u64 {
        self.of(from, now / WINDOW)
    }

    pub fn is_good(&self, id: u64, from: IpAddr, now: u32) -> bool {
        let window = now / WINDOW;
        (window.saturating_sub(GOOD)..=window).rev().any(|window| self.of(from, window) == id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_for_two_minutes_at_its_address_alone() {
        let tickets = Tickets::default();
        let from = IpAddr::from([10, 0, 0, 1]);
        for now in 1000..1120 {
            let id = tickets.give(from, now);
            assert!((now..=now + 120).all(|later| tickets.is_good(id, from, later)));
            assert!(!tickets.is_good(id, from, now + 180));
            assert!(!tickets.is_good(id, [10, 0, 0, 2].into(), now));
            assert!(!tickets.is_good(id ^ 1, from, now));
            assert!(!Tickets::default().is_good(id, from, now));
        }
    }
}
