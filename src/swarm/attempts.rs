//! The connection attempts under way, and by them which address to dial next.
//!
//! Most addresses of a swarm do not answer. So nothing may depend on their order in a list: the groups of addresses take
//! turns, then networks, then chance decides. The group and the network with the fewest attempts under way come first,
//! which leads away from those that do not answer, because their attempts take longest.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::event::PeerSource;
use crate::util::is_lan;

/// Addresses with something in common that makes them good or bad together. The first come first if all else is equal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Group {
    /// Named by the user.
    Manual,
    /// In our own network.
    Lan,
    /// Blocks have come from there.
    Proven,
    Source(PeerSource),
}

impl Group {
    pub(super) fn of(addr: SocketAddr, source: PeerSource, proven: bool) -> Self {
        match source {
            PeerSource::Manual => Self::Manual,
            _ if is_lan(addr.ip()) => Self::Lan,
            _ if proven => Self::Proven,
            source => Self::Source(source),
        }
    }

    /// Returns whether its addresses are likely to answer. Other addresses come after all of these that wait, except for one
    /// in five: anybody can claim to be in our network, and peers move.
    pub(super) fn is_preferred(self) -> bool {
        !matches!(self, Self::Source(_))
    }

    /// Returns what an attempt under way counts.
    fn weight(self) -> u32 {
        if self.is_preferred() { 1 } else { 4 }
    }
}

/// Addresses that fail together: an IPv4 /16 or an IPv6 /32, about those of one provider in one region.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Network {
    V4([u8; 2]),
    V6([u16; 2]),
}

impl Network {
    fn of(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(ip) => Self::V4([ip.octets()[0], ip.octets()[1]]),
            IpAddr::V6(ip) => Self::V6([ip.segments()[0], ip.segments()[1]]),
        }
    }
}

/// The place of an address in the order of dialing; the least comes first.
pub(super) type Rank = (u32, Group, u32, u32);

/// The attempts under way.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    begun: BTreeSet<(Instant, SocketAddr)>,
    groups: BTreeMap<Group, u32>,
    networks: BTreeMap<Network, u32>,
}

impl Attempts {
    pub(super) fn len(&self) -> usize {
        self.begun.len()
    }

    /// Returns whether an attempt at an address of this group is under way.
    pub(super) fn has(&self, group: Group) -> bool {
        self.groups.contains_key(&group)
    }

    /// Returns the number of attempts that began less than `moment` ago.
    pub(super) fn fresh(&self, now: Instant, moment: Duration) -> usize {
        self.begun.iter().rev().take_while(|(begun, _)| *begun + moment > now).count()
    }

    /// Returns when the next attempt stops being fresh.
    pub(super) fn next_stale(&self, now: Instant, moment: Duration) -> Option<Instant> {
        let mut stale_at = self.begun.iter().rev().map(|(begun, _)| *begun + moment).take_while(|at| *at > now);
        // The times descend.
        let latest = stale_at.next()?;
        Some(stale_at.last().unwrap_or(latest))
    }

    /// Returns the rank of an address that failed so many times in a row, and has this number by chance.
    pub(super) fn rank(&self, addr: SocketAddr, group: Group, failures: u32, chance: u32) -> Rank {
        let in_group = self.groups.get(&group).copied().unwrap_or(0) * group.weight();
        // An address that has failed comes after all that were never tried.
        let tried = u32::from(failures > 0 && !group.is_preferred()) << 31;
        let in_network = self.networks.get(&Network::of(addr.ip())).copied().unwrap_or(0);
        (tried | in_group, group, failures.saturating_mul(1 << 10).saturating_add(in_network), chance)
    }

    pub(super) fn begin(&mut self, now: Instant, addr: SocketAddr, group: Group) {
        if self.begun.insert((now, addr)) {
            *self.groups.entry(group).or_default() += 1;
            *self.networks.entry(Network::of(addr.ip())).or_default() += 1;
        }
    }

    pub(super) fn end(&mut self, begun: Instant, addr: SocketAddr, group: Group) {
        if self.begun.remove(&(begun, addr)) {
            decrement(&mut self.groups, group);
            decrement(&mut self.networks, Network::of(addr.ip()));
        }
    }

    /// Checks that these and no others are under way.
    pub(super) fn check(&self, begun: impl Iterator<Item = (Instant, SocketAddr, Group)>) {
        let mut expected = Self::default();
        begun.for_each(|(begun, addr, group)| expected.begin(begun, addr, group));
        assert_eq!(self.begun, expected.begun);
        assert_eq!(self.groups, expected.groups);
        assert_eq!(self.networks, expected.networks);
    }
}

fn decrement<K: Ord>(counts: &mut BTreeMap<K, u32>, key: K) {
    if let Some(count) = counts.get_mut(&key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(&key);
        }
    }
}
