//! The peers of one torrent in one address family. Pure.
//!
//! The peers are in one vector, seeds first, of 12 (IPv4) or 24 (IPv6) bytes each. Up to [`MAX_UNINDEXED`] peers are
//! searched linearly; larger swarms have an index. The cost of picking random peers depends on the number picked, not on the
//! size of the swarm.

use std::collections::HashMap;
use std::ops::Range;

use rand::{Rng, RngExt};

use super::hosts::{Host, host_of};

/// Largest number of peers without an index. Up to here, a linear search is as fast as hashing.
const MAX_UNINDEXED: usize = 48;

/// A compact address: 4 or 16 bytes of IP address, 2 bytes of port.
pub(super) type CompactAddr<const N: usize> = [u8; N];

#[derive(Clone, Copy, Debug, PartialEq)]
struct Peer<const N: usize> {
    addr: CompactAddr<N>,
    /// Table time of the last announce.
    seen: u32,
}

/// Index of a large swarm.
#[derive(Debug, Default)]
struct Index<const N: usize> {
    /// Position of each peer in the vector.
    positions: HashMap<CompactAddr<N>, u32>,
    /// Number of peers per host.
    hosts: HashMap<Host, u32>,
}

/// Role of a peer before an announce.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum PreviousRole {
    Unknown,
    Leecher,
    Seed,
}

/// The peers of one torrent in one address family.
#[derive(Debug, Default)]
pub(super) struct Peers<const N: usize> {
    list: Vec<Peer<N>>,
    /// Number of seeds, which come first in the list.
    seeds: u32,
    index: Option<Box<Index<N>>>,
}

impl<const N: usize> Peers<N> {
    /// An empty swarm.
    pub const NONE: &Self = &Self { list: Vec::new(), seeds: 0, index: None };

    /// Returns the number of peers, seeds included.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Returns the number of seeds.
    pub fn seeds(&self) -> usize {
        self.seeds as usize
    }

    /// Iterates over the peers: address, whether it is a seed, and table time of the last announce.
    pub fn iter(&self) -> impl Iterator<Item = (&CompactAddr<N>, bool, u32)> {
        self.list.iter().enumerate().map(|(at, peer)| (&peer.addr, at < self.seeds(), peer.seen))
    }

    fn find(&self, addr: &CompactAddr<N>) -> Option<usize> {
        match &self.index {
            Some(index) => index.positions.get(addr).map(|at| *at as usize),
            None => self.list.iter().position(|peer| peer.addr == *addr),
        }
    }

    /// Records an announce. For a new peer, `admit` decides whether to add it, given the number of peers of the same host
    /// in this swarm. Returns the peer's position, if it is in the swarm, and its previous role.
    pub fn record(
        &mut self,
        addr: CompactAddr<N>,
        seed: bool,
        now: u32,
        admit: impl FnOnce(u32) -> bool,
    ) -> (Option<usize>, PreviousRole) {
        let Some(at) = self.find(&addr) else {
            return (
                admit(self.count_of_host(host_of(&addr))).then(|| self.insert(addr, seed, now)),
                PreviousRole::Unknown,
            );
        };
        self.list[at].seen = now;
        let was_seed = at < self.seeds();
        let at = match (was_seed, seed) {
            (false, true) => self.promote(at),
            (true, false) => self.demote(at),
            _ => at,
        };
        (Some(at), if was_seed { PreviousRole::Seed } else { PreviousRole::Leecher })
    }

    /// Removes a peer, and returns its previous role.
    pub fn remove(&mut self, addr: &CompactAddr<N>) -> PreviousRole {
        let Some(at) = self.find(addr) else { return PreviousRole::Unknown };
        let before = if at < self.seeds() { PreviousRole::Seed } else { PreviousRole::Leecher };
        self.remove_at(at);
        before
    }

    fn count_of_host(&self, host: Host) -> u32 {
        match &self.index {
            Some(index) => index.hosts.get(&host).copied().unwrap_or(0),
            None => self.list.iter().filter(|peer| host_of(&peer.addr) == host).count() as u32,
        }
    }

    fn insert(&mut self, addr: CompactAddr<N>, seed: bool, seen: u32) -> usize {
        if self.list.len() == self.list.capacity() {
            // Grows by a quarter instead of doubling, because this vector takes most of the memory.
            self.list.reserve_exact(self.list.len() / 4 + 1);
        }
        let at = self.list.len();
        self.list.push(Peer { addr, seen });
        if let Some(index) = &mut self.index {
            index.positions.insert(addr, at as u32);
            *index.hosts.entry(host_of(&addr)).or_default() += 1;
        } else if self.list.len() > MAX_UNINDEXED {
            let mut index = Index::default();
            for (at, peer) in self.list.iter().enumerate() {
                index.positions.insert(peer.addr, at as u32);
                *index.hosts.entry(host_of(&peer.addr)).or_default() += 1;
            }
            self.index = Some(Box::new(index));
        }
        if seed { self.promote(at) } else { at }
    }

    /// Makes a leecher a seed. Returns its new position.
    fn promote(&mut self, at: usize) -> usize {
        let to = self.seeds();
        self.swap(at, to);
        self.seeds += 1;
        to
    }

    /// Makes a seed a leecher. Returns its new position.
    fn demote(&mut self, at: usize) -> usize {
        let to = self.seeds() - 1;
        self.swap(at, to);
        self.seeds -= 1;
        to
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.list.swap(a, b);
        self.update_index(a);
        self.update_index(b);
    }

    /// Updates the position of a peer in the index.
    fn update_index(&mut self, at: usize) {
        if let Some(index) = &mut self.index {
            index.positions.insert(self.list[at].addr, at as u32);
        }
    }

    fn remove_at(&mut self, at: usize) {
        let at = if at < self.seeds() { self.demote(at) } else { at };
        let gone = self.list.swap_remove(at);
        if let Some(index) = &mut self.index {
            index.positions.remove(&gone.addr);
            let host = host_of(&gone.addr);
            if let Some(count) = index.hosts.get_mut(&host) {
                *count -= 1;
                if *count == 0 {
                    index.hosts.remove(&host);
                }
            }
            if at < self.list.len() {
                self.update_index(at);
            }
            // At half the limit, so that the index is not built and dropped repeatedly.
            if self.list.len() < MAX_UNINDEXED / 2 {
                self.index = None;
            }
        }
    }

    /// Removes the peers whose last announce is earlier than `before`, and calls `removed` for each.
    pub fn expire(&mut self, before: u32, mut removed: impl FnMut(&CompactAddr<N>)) {
        // From the end, because a removal moves a peer that has been checked already into its position.
        for at in (0..self.list.len()).rev() {
            if self.list[at].seen < before {
                removed(&self.list[at].addr);
                self.remove_at(at);
            }
        }
        if self.list.len() < self.list.capacity() / 2 {
            self.list.shrink_to_fit();
            if let Some(index) = &mut self.index {
                index.positions.shrink_to_fit();
                index.hosts.shrink_to_fit();
            }
        }
    }

    /// Appends up to `want` random peers to `out`, each with equal probability, and returns their number. Excludes the peer
    /// at `own`, which announces. A seed gets leechers first, and seeds if there are not enough of them: a client that
    /// fetches the metadata of a magnet link may say that nothing is left, and needs seeds.
    pub fn pick(&self, own: Option<usize>, seed: bool, want: usize, rng: &mut impl Rng, out: &mut Vec<u8>) -> usize {
        if !seed {
            return self.pick_from(0..self.len(), own, want, rng, out);
        }
        let leechers = self.pick_from(self.seeds()..self.len(), own, want, rng, out);
        leechers + self.pick_from(0..self.seeds(), own, want - leechers, rng, out)
    }

    fn pick_from(
        &self,
        from: Range<usize>,
        own: Option<usize>,
        want: usize,
        rng: &mut impl Rng,
        out: &mut Vec<u8>,
    ) -> usize {
        let skip = own.filter(|at| from.contains(at));
        let available = from.len() - usize::from(skip.is_some());
        let count = want.min(available);
        let mut take = |nth: usize| {
            let at = from.start + nth;
            let at = if skip.is_some_and(|skip| at >= skip) { at + 1 } else { at };
            out.extend_from_slice(&self.list[at].addr);
        };
        if count == available {
            (0..available).for_each(take);
        } else {
            // One peer from each of `count` ranges. The ranges may differ in length by one, so a random offset rotates them
            // to give each peer the same probability.
            let offset = rng.random_range(0..available);
            for nth in 0..count {
                let (from, to) = (nth * available / count, (nth + 1) * available / count);
                let at = offset + rng.random_range(from..to);
                take(if at < available { at } else { at - available });
            }
        }
        count
    }

    #[cfg(test)]
    fn check_invariant(&self) {
        assert!(self.seeds() <= self.len());
        let Some(index) = &self.index else { return assert!(self.len() <= MAX_UNINDEXED) };
        assert_eq!(index.positions.len(), self.len());
        for (at, peer) in self.list.iter().enumerate() {
            assert_eq!(index.positions[&peer.addr], at as u32);
        }
        assert_eq!(index.hosts.values().sum::<u32>() as usize, self.len());
        assert!(index.hosts.iter().all(|(host, count)| {
            self.list.iter().filter(|peer| host_of(&peer.addr) == *host).count() == *count as usize
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;
    use std::collections::{BTreeMap, HashSet};

    fn addr(n: u16) -> CompactAddr<6> {
        [10, 0, 0, (n % 7) as u8, (n >> 8) as u8, n as u8]
    }

    fn full(seeds: u16, leechers: u16) -> Peers<6> {
        let mut peers = Peers::default();
        for n in 0..seeds + leechers {
            peers.record(addr(n), n < seeds, 1, |_| true);
        }
        peers
    }

    fn picked(peers: &Peers<6>, own: u16, seed: bool, want: usize, rng: &mut StdRng) -> Vec<u16> {
        let mut out = Vec::new();
        let at = peers.find(&addr(own));
        let count = peers.pick(at, seed, want, rng, &mut out);
        let picked: Vec<u16> = out.chunks(6).map(|peer| u16::from_be_bytes([peer[4], peer[5]])).collect();
        assert_eq!(picked.len(), count);
        assert_eq!(picked.iter().collect::<HashSet<_>>().len(), count, "no duplicates");
        assert!(!picked.contains(&own));
        picked
    }

    #[test]
    fn peers_are_picked_with_equal_probability() {
        // Numbers that do not divide each other, and swarms with an index.
        for (seeds, leechers, want) in [(3, 4, 4), (5, 70, 50), (100, 51, 7), (2, 2, 9)] {
            let peers = full(seeds, leechers);
            let others = usize::from(seeds + leechers) - 1;
            let rng = &mut StdRng::seed_from_u64(7);
            let (rounds, mut times) = (4000, BTreeMap::<u16, usize>::new());
            for _ in 0..rounds {
                let picked = picked(&peers, seeds, false, want, rng);
                assert_eq!(picked.len(), want.min(others));
                picked.iter().for_each(|peer| *times.entry(*peer).or_default() += 1);
            }
            let mean = (rounds * want.min(others) / others) as f64;
            assert_eq!(times.len(), others);
            for (peer, times) in times {
                assert!((times as f64 - mean).abs() <= 6.0 * mean.sqrt(), "{peer}: {times} of {mean}");
            }
        }
    }

    #[test]
    fn a_seed_gets_leechers_first_and_then_seeds() {
        let peers = full(60, 5);
        let rng = &mut StdRng::seed_from_u64(7);
        let got = picked(&peers, 3, true, 50, rng);
        assert_eq!(got[..5].iter().copied().collect::<HashSet<_>>(), (60..65).collect());
        assert!(got.len() == 50 && got[5..].iter().all(|peer| *peer < 60));
        assert_eq!(picked(&full(2, 90), 0, true, 50, rng).iter().filter(|peer| **peer < 2).count(), 0);
        assert_eq!(picked(&full(2, 0), 0, true, 50, rng), [1]);
        assert!(picked(&peers, 3, false, 0, rng).is_empty());
    }

    proptest! {
        /// Compares with a map as the model, through every change of role and size.
        #[test]
        fn behaves_like_a_map(steps in prop::collection::vec((0u8..10, 0u16..120, any::<bool>()), 0..600)) {
            let mut peers = Peers::<6>::default();
            let mut model = BTreeMap::<CompactAddr<6>, (bool, u32)>::new();
            for (now, (what, n, seed)) in (1..).zip(steps) {
                let addr = addr(n);
                let was = match model.get(&addr) {
                    None => PreviousRole::Unknown,
                    Some((true, _)) => PreviousRole::Seed,
                    Some((false, _)) => PreviousRole::Leecher,
                };
                match what {
                    0 => {
                        let before = now - now.min(200);
                        let mut gone = Vec::new();
                        peers.expire(before, |addr| gone.push(*addr));
                        gone.sort();
                        let silent = model.extract_if(.., |_, (_, seen)| *seen < before);
                        prop_assert_eq!(gone, silent.map(|(addr, _)| addr).collect::<Vec<_>>());
                    }
                    1 | 2 => {
                        prop_assert_eq!(peers.remove(&addr), was);
                        model.remove(&addr);
                    }
                    _ => {
                        let host = model.keys().filter(|one| one[..4] == addr[..4]).count() as u32;
                        let (at, before) = peers.record(addr, seed, now, |of_host| { assert_eq!(of_host, host); true });
                        prop_assert_eq!(before, was);
                        prop_assert_eq!(at, peers.find(&addr));
                        model.insert(addr, (seed, now));
                    }
                }
                peers.check_invariant();
                prop_assert_eq!(peers.seeds(), model.values().filter(|(seed, _)| *seed).count());
                let held: BTreeMap<_, _> = peers.iter().map(|(addr, seed, seen)| (*addr, (seed, seen))).collect();
                prop_assert_eq!(&held, &model);
            }
        }
    }
}
