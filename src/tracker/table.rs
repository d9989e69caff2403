//! Who is in which swarm. Pure.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::time::Instant;

use rand::Rng;
use rand::seq::IteratorRandom;

use super::Limits;
use crate::metainfo::InfoHash;
use crate::wire::PeerId;

/// One announce, as the table needs it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Announce {
    pub info_hash: InfoHash,
    pub addr: SocketAddr,
    pub id: PeerId,
    pub seed: bool,
    /// It leaves the swarm.
    pub stopped: bool,
    /// Peers it would like.
    pub want: usize,
}

/// What an announce is answered with.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Swarm {
    pub seeders: usize,
    pub leechers: usize,
    pub peers: Vec<(SocketAddr, PeerId)>,
}

/// No room for another torrent.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error("this tracker is full, try another")]
pub(super) struct Full;

struct Peer {
    id: PeerId,
    seed: bool,
    seen: Instant,
}

/// The swarms. Bounded by its [`Limits`].
pub(super) struct Table {
    limits: Limits,
    torrents: HashMap<InfoHash, HashMap<SocketAddr, Peer>>,
    swept: Option<Instant>,
}

impl Table {
    pub fn new(limits: Limits) -> Self {
        Self { limits, torrents: HashMap::new(), swept: None }
    }

    /// Notes the peer and gives it others, at random: no seeds to a seed, nobody to one who leaves.
    pub fn announce(&mut self, now: Instant, announce: &Announce, rng: &mut impl Rng) -> Result<Swarm, Full> {
        self.sweep(now);
        let room = self.torrents.len() < self.limits.torrents;
        let peers = match self.torrents.entry(announce.info_hash) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(_) if announce.stopped => return Ok(Swarm::default()),
            Entry::Vacant(_) if !room => return Err(Full),
            Entry::Vacant(entry) => entry.insert(HashMap::new()),
        };
        let limits = self.limits;
        peers.retain(|_, peer| !expired(limits, now, peer));
        if announce.stopped {
            peers.remove(&announce.addr);
        } else if peers.len() < limits.peers || peers.contains_key(&announce.addr) {
            peers.insert(announce.addr, Peer { id: announce.id, seed: announce.seed, seen: now });
        }
        let seeders = peers.values().filter(|peer| peer.seed).count();
        let want = if announce.stopped { 0 } else { announce.want.min(limits.answer) };
        let useful = peers.iter().filter(|(addr, peer)| **addr != announce.addr && !(announce.seed && peer.seed));
        let chosen = useful.map(|(addr, peer)| (*addr, peer.id)).sample(rng, want);
        Ok(Swarm { seeders, leechers: peers.len() - seeders, peers: chosen })
    }

    /// Forgets the silent everywhere, once an interval, or at once if there is no room.
    fn sweep(&mut self, now: Instant) {
        let full = self.torrents.len() >= self.limits.torrents;
        // Even when full not at each announce, for it goes over all.
        let pause = if full { self.limits.interval / 20 } else { self.limits.interval };
        if self.swept.is_some_and(|swept| now < swept + pause) {
            return;
        }
        self.swept = Some(now);
        let limits = self.limits;
        self.torrents.retain(|_, peers| {
            peers.retain(|_, peer| !expired(limits, now, peer));
            !peers.is_empty()
        });
    }
}

fn expired(limits: Limits, now: Instant, peer: &Peer) -> bool {
    now > peer.seen + 2 * limits.interval
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;
    use std::collections::HashSet;
    use std::time::Duration;

    const LIMITS: Limits = Limits {
        torrents: 2,
        peers: 8,
        answer: 3,
        interval: Duration::from_secs(60),
        connections: 1,
        connection_time: Duration::from_secs(1),
    };

    fn peer(torrent: u8, port: u16, seed: bool) -> Announce {
        Announce {
            info_hash: InfoHash([torrent; 20]),
            addr: ([127, 0, 0, 1], port).into(),
            id: PeerId([port as u8; 20]),
            seed,
            stopped: false,
            want: 50,
        }
    }

    struct Bench(Table, Instant, StdRng);

    impl Bench {
        fn new() -> Self {
            Self(Table::new(LIMITS), Instant::now(), StdRng::seed_from_u64(1))
        }

        fn announce(&mut self, announce: &Announce) -> Result<Swarm, Full> {
            self.0.announce(self.1, announce, &mut self.2)
        }

        fn ports(&mut self, announce: &Announce) -> HashSet<u16> {
            self.announce(announce).unwrap().peers.iter().map(|(addr, _)| addr.port()).collect()
        }
    }

    #[test]
    fn peers_meet_but_seeds_do_not() {
        let mut bench = Bench::new();
        assert!(bench.ports(&peer(1, 1, true)).is_empty());
        assert!(bench.ports(&peer(1, 2, true)).is_empty());
        assert_eq!(bench.ports(&peer(1, 3, false)), HashSet::from([1, 2]));
        assert_eq!(bench.ports(&peer(1, 1, true)), HashSet::from([3]));
        assert!(bench.ports(&peer(2, 4, false)).is_empty());
        let swarm = bench.announce(&peer(1, 3, false)).unwrap();
        assert_eq!((swarm.seeders, swarm.leechers), (2, 1));
    }

    #[test]
    fn a_leecher_becomes_a_seed_and_leaves() {
        let mut bench = Bench::new();
        bench.announce(&peer(1, 1, false)).unwrap();
        assert_eq!(bench.announce(&peer(1, 1, true)).unwrap().seeders, 1);
        let farewell = Announce { stopped: true, ..peer(1, 1, true) };
        assert_eq!(bench.announce(&farewell), Ok(Swarm::default()));
        assert!(bench.ports(&peer(1, 2, false)).is_empty());
        // A farewell to a swarm that is not known makes none.
        assert_eq!(bench.announce(&Announce { stopped: true, ..peer(9, 1, true) }), Ok(Swarm::default()));
        assert_eq!(bench.0.torrents.len(), 1);
    }

    #[test]
    fn answers_are_random_and_bounded() {
        let mut bench = Bench::new();
        for port in 1..=8 {
            bench.announce(&peer(1, port, false)).unwrap();
        }
        let mut met = HashSet::new();
        for _ in 0..100 {
            let ports = bench.ports(&peer(1, 1, false));
            assert_eq!(ports.len(), 3);
            met.extend(ports);
        }
        assert_eq!(met, (2..=8).collect());
        assert!(bench.ports(&Announce { want: 0, ..peer(1, 1, false) }).is_empty());
    }

    #[test]
    fn peers_are_bounded_but_all_are_served() {
        let mut bench = Bench::new();
        for port in 1..=20 {
            let swarm = bench.announce(&peer(1, port, false)).unwrap();
            assert!(swarm.leechers <= 8);
            assert_eq!(swarm.peers.len(), 3.min(usize::from(port) - 1));
        }
        // One who is known is still heard.
        assert_eq!(bench.announce(&peer(1, 1, true)).unwrap().seeders, 1);
    }

    #[test]
    fn torrents_are_bounded_and_the_silent_forgotten() {
        let mut bench = Bench::new();
        bench.announce(&peer(1, 1, false)).unwrap();
        bench.announce(&peer(2, 1, false)).unwrap();
        assert_eq!(bench.announce(&peer(3, 1, false)), Err(Full));
        bench.1 += 2 * LIMITS.interval;
        bench.announce(&peer(2, 2, false)).unwrap();
        bench.1 += Duration::from_secs(4);
        assert!(bench.announce(&peer(3, 1, false)).is_ok());
        assert!(bench.ports(&peer(2, 3, false)).contains(&2));
        assert!(!bench.ports(&peer(2, 3, false)).contains(&1));
    }
}
