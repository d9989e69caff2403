//! Connection ids of the UDP protocol (BEP 15). An id proves that its sender receives datagrams at its address. Pure.
//!
//! The tracker stores no ids: an id is a keyed hash of the address and of the minute in which it was issued. With a forged
//! source address, an attacker can make the tracker send nothing but the 16 bytes that answer a connect request of 16.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;

/// Seconds during which an address gets the same id.
const WINDOW: u32 = 60;
/// Number of earlier windows whose ids are still valid. An id is thus valid for two to three minutes; BEP 15 asks for two.
const VALID_WINDOWS: u32 = 2;

/// Issues and verifies connection ids.
#[derive(Debug, Default)]
pub(super) struct ConnectionIds {
    /// SipHash with a random key.
    key: RandomState,
}

impl ConnectionIds {
    fn id(&self, from: IpAddr, window: u32) -> u64 {
        self.key.hash_one((from, window))
    }

    /// Returns the id for an address.
    pub fn issue(&self, from: IpAddr, now: u32) -> u64 {
        self.id(from, now / WINDOW)
    }

    /// Returns whether an id was issued to this address and is still valid.
    pub fn is_valid(&self, id: u64, from: IpAddr, now: u32) -> bool {
        let window = now / WINDOW;
        (window.saturating_sub(VALID_WINDOWS)..=window).rev().any(|window| self.id(from, window) == id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_valid_for_two_minutes_and_one_address() {
        let ids = ConnectionIds::default();
        let from = IpAddr::from([10, 0, 0, 1]);
        for now in 1000..1120 {
            let id = ids.issue(from, now);
            assert!((now..=now + 120).all(|later| ids.is_valid(id, from, later)));
            assert!(!ids.is_valid(id, from, now + 180));
            assert!(!ids.is_valid(id, [10, 0, 0, 2].into(), now));
            assert!(!ids.is_valid(id ^ 1, from, now));
            assert!(!ConnectionIds::default().is_valid(id, from, now));
        }
    }
}
