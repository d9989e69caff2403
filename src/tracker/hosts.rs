//! How many peers each host has, so that one alone does not fill the tracker. Pure.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// An IPv4 address, or an IPv6 network of 64 bits: what one customer has at least.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Host(u64);

/// The host of a compact address.
pub(super) fn host_of<const N: usize>(addr: &[u8; N]) -> Host {
    Host(match *addr.as_slice() {
        [a, b, c, d, e, f, g, h, ..] => u64::from_be_bytes([a, b, c, d, e, f, g, h]),
        // No network that exists begins so.
        [a, b, c, d, ..] => u64::from_be_bytes([0, 0, 0xff, 0xff, a, b, c, d]),
        _ => 0,
    })
}

/// As many as the table has, for the same reason.
const PARTS: usize = super::table::PARTS;

/// The peers of each host in all swarms.
#[derive(Debug)]
pub(super) struct Hosts {
    limit: u32,
    parts: Box<[Mutex<HashMap<Host, u32>>]>,
}

impl Hosts {
    /// For hosts with up to `limit` peers each.
    pub fn new(limit: u32) -> Self {
        Self { limit: limit.max(1), parts: (0..PARTS).map(|_| Mutex::default()).collect() }
    }

    fn part(&self, host: Host) -> MutexGuard<'_, HashMap<Host, u32>> {
        // The upper half depends on most of the host's bits.
        let mixed = host.0.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.parts[(mixed >> 32) as usize % PARTS].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one more, if there may be one more.
    pub fn add(&self, host: Host) -> bool {
        let mut part = self.part(host);
        let count = part.entry(host).or_default();
        let room = *count < self.limit;
        *count += u32::from(room);
        room
    }

    /// Counts one less.
    pub fn remove(&self, host: Host) {
        let mut part = self.part(host);
        if let Entry::Occupied(mut entry) = part.entry(host) {
            *entry.get_mut() = entry.get().saturating_sub(1);
            if *entry.get() == 0 {
                entry.remove();
                if part.len() < part.capacity() / 4 {
                    part.shrink_to_fit();
                }
            }
        }
    }

    #[cfg(test)]
    pub fn total(&self) -> u32 {
        self.parts.iter().map(|part| part.lock().unwrap().values().sum::<u32>()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_an_address_or_a_network() {
        let v6 = |last: u8, port: u8| {
            let mut addr = [0x20; 18];
            (addr[15], addr[17]) = (last, port);
            host_of(&addr)
        };
        assert_eq!(v6(1, 1), v6(2, 2));
        assert_eq!(host_of(&[1, 2, 3, 4, 5, 6]), host_of(&[1, 2, 3, 4, 7, 8]));
        assert_ne!(host_of(&[1, 2, 3, 4, 5, 6]), host_of(&[1, 2, 3, 5, 5, 6]));
    }

    #[test]
    fn bounded_and_forgotten() {
        let hosts = Hosts::new(2);
        let (one, other) = (Host(1), Host(2));
        assert!(hosts.add(one) && hosts.add(one) && !hosts.add(one) && hosts.add(other));
        hosts.remove(one);
        assert!(hosts.add(one) && !hosts.add(one));
        assert_eq!(hosts.total(), 3);
        for _ in 0..3 {
            hosts.remove(one);
        }
        hosts.remove(other);
        assert_eq!(hosts.total(), 0);
        assert!(hosts.parts.iter().all(|part| part.lock().unwrap().is_empty()));
    }
}
