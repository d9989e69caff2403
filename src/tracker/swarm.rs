//! The peers of one torrent in one address family. Pure.
//!
//! A peer is 12 bytes (IPv4) or 24 (IPv6) in one vector, seeds first. Up to [`FEW`] of them are searched from end to
//! end; beyond that an index stands beside the vector. Picking some at random costs what is picked, not what is there.

use std::collections::HashMap;
use std::ops::Range;

use rand::{Rng, RngExt};

use super::hosts::{Host, host_of};

/// Peers that are searched faster than they are hashed.
const FEW: usize = 48;

/// An address as it is in compact replies: 4 or 16 bytes of IP address, 2 of port.
pub(super) type Compact<const N: usize> = [u8; N];

#[derive(Clone, Copy, Debug, PartialEq)]
struct Peer<const N: usize> {
    addr: Compact<N>,
    /// In the table's seconds.
    seen: u32,
}

/// What stands beside the vector of a large swarm.
#[derive(Debug, Default)]
struct Index<const N: usize> {
    places: HashMap<Compact<N>, u32>,
    /// Peers of each host.
    hosts: HashMap<Host, u32>,
}

/// What a peer was before it announced.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Before {
    Unknown,
    Leecher,
    Seed,
}

#[derive(Debug, Default)]
pub(super) struct Peers<const N: usize> {
    list: Vec<Peer<N>>,
    /// So many of the first are seeds.
    seeds: u32,
    index: Option<Box<Index<N>>>,
}

impl<const N: usize> Peers<N> {
    /// Nobody.
    pub const NONE: &Self = &Self { list: Vec::new(), seeds: 0, index: None };

    pub fn len(&self) -> usize {
        self.list.len()
    }

    pub fn seeds(&self) -> usize {
        self.seeds as usize
    }

    /// Address, whether it is a seed, when it was last seen.
    pub fn iter(&self) -> impl Iterator<Item = (&Compact<N>, bool, u32)> {
        self.list.iter().enumerate().map(|(at, peer)| (&peer.addr, at < self.seeds(), peer.seen))
    }

    fn find(&self, addr: &Compact<N>) -> Option<usize> {
        match &self.index {
            Some(index) => index.places.get(addr).map(|at| *at as usize),
            None => self.list.iter().position(|peer| peer.addr == *addr),
        }
    }

    /// Notes a peer. One that is not known yet is asked about first: `room` is told how many its host has here.
    /// Returns where it stands, if it does, and what it was.
    pub fn enter(
        &mut self,
        addr: Compact<N>,
        seed: bool,
        now: u32,
        room: impl FnOnce(u32) -> bool,
    ) -> (Option<usize>, Before) {
        let Some(at) = self.find(&addr) else {
            return (room(self.of_host(host_of(&addr))).then(|| self.insert(addr, seed, now)), Before::Unknown);
        };
        self.list[at].seen = now;
        let was_seed = at < self.seeds();
        let at = match (was_seed, seed) {
            (false, true) => self.promote(at),
            (true, false) => self.demote(at),
            _ => at,
        };
        (Some(at), if was_seed { Before::Seed } else { Before::Leecher })
    }

    /// Strikes a peer off.
    pub fn leave(&mut self, addr: &Compact<N>) -> Before {
        let Some(at) = self.find(addr) else { return Before::Unknown };
        let before = if at < self.seeds() { Before::Seed } else { Before::Leecher };
        self.remove(at);
        before
    }

    fn of_host(&self, host: Host) -> u32 {
        match &self.index {
            Some(index) => index.hosts.get(&host).copied().unwrap_or(0),
            None => self.list.iter().filter(|peer| host_of(&peer.addr) == host).count() as u32,
        }
    }

    fn insert(&mut self, addr: Compact<N>, seed: bool, seen: u32) -> usize {
        if self.list.len() == self.list.capacity() {
            // By a quarter, not twofold: most of the memory is here.
            self.list.reserve_exact(self.list.len() / 4 + 1);
        }
        let at = self.list.len();
        self.list.push(Peer { addr, seen });
        if let Some(index) = &mut self.index {
            index.places.insert(addr, at as u32);
            *index.hosts.entry(host_of(&addr)).or_default() += 1;
        } else if self.list.len() > FEW {
            let mut index = Index::default();
            for (at, peer) in self.list.iter().enumerate() {
                index.places.insert(peer.addr, at as u32);
                *index.hosts.entry(host_of(&peer.addr)).or_default() += 1;
            }
            self.index = Some(Box::new(index));
        }
        if seed { self.promote(at) } else { at }
    }

    /// A leecher becomes a seed.
    fn promote(&mut self, at: usize) -> usize {
        let to = self.seeds();
        self.swap(at, to);
        self.seeds += 1;
        to
    }

    /// The reverse.
    fn demote(&mut self, at: usize) -> usize {
        let to = self.seeds() - 1;
        self.swap(at, to);
        self.seeds -= 1;
        to
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.list.swap(a, b);
        self.place(a);
        self.place(b);
    }

    /// Tells the index where a peer stands.
    fn place(&mut self, at: usize) {
        if let Some(index) = &mut self.index {
            index.places.insert(self.list[at].addr, at as u32);
        }
    }

    fn remove(&mut self, at: usize) {
        let at = if at < self.seeds() { self.demote(at) } else { at };
        let gone = self.list.swap_remove(at);
        if let Some(index) = &mut self.index {
            index.places.remove(&gone.addr);
            let host = host_of(&gone.addr);
            if let Some(count) = index.hosts.get_mut(&host) {
                *count -= 1;
                if *count == 0 {
                    index.hosts.remove(&host);
                }
            }
            if at < self.list.len() {
                self.place(at);
            }
            // Half, so that it is not made and unmade all the time.
            if self.list.len() < FEW / 2 {
                self.index = None;
            }
        }
    }

    /// Forgets who was not seen since `before`; `gone` is told of each.
    pub fn expire(&mut self, before: u32, mut gone: impl FnMut(&Compact<N>)) {
        // From the end: what comes into an emptied place was looked at already.
        for at in (0..self.list.len()).rev() {
            if self.list[at].seen < before {
                gone(&self.list[at].addr);
                self.remove(at);
            }
        }
        if self.list.len() < self.list.capacity() / 2 {
            self.list.shrink_to_fit();
            if let Some(index) = &mut self.index {
                index.places.shrink_to_fit();
                index.hosts.shrink_to_fit();
            }
        }
    }

    /// Appends up to `want` peers at random, each as likely as any other, but not the one at `asking`; no seeds to a
    /// seed. Returns how many.
    pub fn pick(&self, asking: Option<usize>, seed: bool, want: usize, rng: &mut impl Rng, out: &mut Vec<u8>) -> usize {
        let useful: Range<usize> = if seed { self.seeds()..self.len() } else { 0..self.len() };
        let skip = asking.filter(|at| useful.contains(at));
        let there = useful.len() - usize::from(skip.is_some());
        let count = want.min(there);
        let mut take = |nth: usize| {
            let at = useful.start + nth;
            let at = if skip.is_some_and(|skip| at >= skip) { at + 1 } else { at };
            out.extend_from_slice(&self.list[at].addr);
        };
        if count == there {
            (0..there).for_each(take);
        } else {
            // One out of each of `count` stretches, turned by a random angle so that unequal stretches favour nobody.
            let turn = rng.random_range(0..there);
            for nth in 0..count {
                let (from, to) = (nth * there / count, (nth + 1) * there / count);
                let at = turn + rng.random_range(from..to);
                take(if at < there { at } else { at - there });
            }
        }
        count
    }

    #[cfg(test)]
    fn check_invariant(&self) {
        assert!(self.seeds() <= self.len());
        let Some(index) = &self.index else { return assert!(self.len() <= FEW) };
        assert_eq!(index.places.len(), self.len());
        for (at, peer) in self.list.iter().enumerate() {
            assert_eq!(index.places[&peer.addr], at as u32);
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

    fn addr(n: u16) -> Compact<6> {
        [10, 0, 0, (n % 7) as u8, (n >> 8) as u8, n as u8]
    }

    fn full(seeds: u16, leechers: u16) -> Peers<6> {
        let mut peers = Peers::default();
        for n in 0..seeds + leechers {
            peers.enter(addr(n), n < seeds, 1, |_| true);
        }
        peers
    }

    fn picked(peers: &Peers<6>, asking: u16, seed: bool, want: usize, rng: &mut StdRng) -> Vec<u16> {
        let mut out = Vec::new();
        let at = peers.find(&addr(asking));
        let count = peers.pick(at, seed, want, rng, &mut out);
        let picked: Vec<u16> = out.chunks(6).map(|peer| u16::from_be_bytes([peer[4], peer[5]])).collect();
        assert_eq!(picked.len(), count);
        assert_eq!(picked.iter().collect::<HashSet<_>>().len(), count, "no one twice");
        assert!(!picked.contains(&asking));
        picked
    }

    #[test]
    fn everybody_is_picked_as_often_as_anybody() {
        // Counts that do not divide each other, and a swarm with an index.
        for (seeds, leechers, want) in [(3, 4, 4), (5, 70, 50), (100, 51, 7), (2, 2, 9)] {
            let peers = full(seeds, leechers);
            let there = usize::from(seeds + leechers) - 1;
            let rng = &mut StdRng::seed_from_u64(7);
            let (rounds, mut times) = (4000, BTreeMap::<u16, usize>::new());
            for _ in 0..rounds {
                let picked = picked(&peers, seeds, false, want, rng);
                assert_eq!(picked.len(), want.min(there));
                picked.iter().for_each(|peer| *times.entry(*peer).or_default() += 1);
            }
            let mean = (rounds * want.min(there) / there) as f64;
            assert_eq!(times.len(), there);
            for (peer, times) in times {
                assert!((times as f64 - mean).abs() <= 6.0 * mean.sqrt(), "{peer}: {times} of {mean}");
            }
        }
    }

    #[test]
    fn a_seed_is_given_no_seeds() {
        let peers = full(60, 5);
        let rng = &mut StdRng::seed_from_u64(7);
        let got: HashSet<u16> = picked(&peers, 3, true, 50, rng).into_iter().collect();
        assert_eq!(got, (60..65).collect());
        assert!(picked(&full(2, 0), 0, true, 50, rng).is_empty());
        assert!(picked(&peers, 3, false, 0, rng).is_empty());
    }

    proptest! {
        /// Against a map, through every change of role and size.
        #[test]
        fn as_a_map_would_have_it(steps in prop::collection::vec((0u8..10, 0u16..120, any::<bool>()), 0..600)) {
            let mut peers = Peers::<6>::default();
            let mut model = BTreeMap::<Compact<6>, (bool, u32)>::new();
            for (now, (what, n, seed)) in (1..).zip(steps) {
                let addr = addr(n);
                let was = match model.get(&addr) {
                    None => Before::Unknown,
                    Some((true, _)) => Before::Seed,
                    Some((false, _)) => Before::Leecher,
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
                        prop_assert_eq!(peers.leave(&addr), was);
                        model.remove(&addr);
                    }
                    _ => {
                        let host = model.keys().filter(|one| one[..4] == addr[..4]).count() as u32;
                        let (at, before) = peers.enter(addr, seed, now, |there| { assert_eq!(there, host); true });
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
