//! The number of peers per host, so that no host can fill the tracker. Pure.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::MutexGuard;

#[cfg(test)]
use super::shards::SHARDS;
use super::shards::Shards;

/// An IPv4 address or an IPv6 /64 network, the smallest that a provider assigns to a customer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Host(u64);

/// Returns the host of a compact address.
pub(super) fn host_of<const N: usize>(addr: &[u8; N]) -> Host {
    Host(match *addr.as_slice() {
        [a, b, c, d, e, f, g, h, ..] => u64::from_be_bytes([a, b, c, d, e, f, g, h]),
        // No assigned IPv6 network has this prefix.
        [a, b, c, d, ..] => u64::from_be_bytes([0, 0, 0xff, 0xff, a, b, c, d]),
        _ => 0,
    })
}

/// Multiplier for [`Shards::lock_for`]: 2^64 divided by the golden ratio, which distributes consecutive addresses evenly.
const MULTIPLIER: u64 = 0x9E37_79B9_7F4A_7C15;

/// Number of peers per host, in all swarms together.
#[derive(Debug)]
pub(super) struct Hosts {
    limit: u32,
    counts: Shards<HashMap<Host, u32>>,
}

impl Hosts {
    /// Allows up to `limit` peers per host, at least one.
    pub fn new(limit: u32) -> Self {
        Self { limit: limit.max(1), counts: Shards::default() }
    }

    fn shard(&self, host: Host) -> MutexGuard<'_, HashMap<Host, u32>> {
        self.counts.lock_for(host.0, MULTIPLIER)
    }

    /// Counts one more peer, unless the host has reached the limit. Returns whether it did.
    pub fn try_add(&self, host: Host) -> bool {
        let mut shard = self.shard(host);
        let count = shard.entry(host).or_default();
        let room = *count < self.limit;
        *count += u32::from(room);
        room
    }

    /// Counts one peer less.
    pub fn remove(&self, host: Host) {
        let mut shard = self.shard(host);
        if let Entry::Occupied(mut entry) = shard.entry(host) {
            *entry.get_mut() = entry.get().saturating_sub(1);
            if *entry.get() == 0 {
                entry.remove();
                if shard.len() < shard.capacity() / 4 {
                    shard.shrink_to_fit();
                }
            }
        }
    }

    #[cfg(test)]
    pub fn total(&self) -> u32 {
        (0..SHARDS).map(|nth| self.counts.lock(nth).values().sum::<u32>()).sum()
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
    fn peers_per_host_are_bounded_and_hosts_without_peers_forgotten() {
        let hosts = Hosts::new(2);
        let (one, other) = (Host(1), Host(2));
        assert!(hosts.try_add(one) && hosts.try_add(one) && !hosts.try_add(one) && hosts.try_add(other));
        hosts.remove(one);
        assert!(hosts.try_add(one) && !hosts.try_add(one));
        assert_eq!(hosts.total(), 3);
        for _ in 0..3 {
            hosts.remove(one);
        }
        hosts.remove(other);
        assert_eq!(hosts.total(), 0);
        assert!((0..SHARDS).all(|nth| hosts.counts.lock(nth).is_empty()));
    }
}
