//! Who is in which swarm. Pure: time, in seconds, and chance are arguments.
//!
//! The swarms are dealt out to parts with a lock each, so that threads seldom wait for each other. Locks are taken in
//! the order part, then hosts.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rand::Rng;

use super::hosts::{Host, Hosts, host_of};
use super::swarm::{Before, Compact, Peers};
use super::{Counts, Limits};
use crate::metainfo::InfoHash;

/// Parts of the table. Not a power of two: a map's memory doubles at one, and so a million torrents, the usual limit, fill
/// the maps of the parts to three quarters, not to half.
pub(super) const PARTS: usize = 80;

/// Why a peer announces.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Event {
    /// It is there (`started`, or nothing said).
    Present,
    /// It has just got the last piece.
    Completed,
    /// It leaves the swarm.
    Stopped,
}

/// One announce, as the table needs it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Announce {
    pub info_hash: InfoHash,
    pub addr: SocketAddr,
    pub seed: bool,
    pub event: Event,
    /// Peers it would like.
    pub want: usize,
    /// Those of the other address family are of use, too, where there are not enough of its own.
    pub both_families: bool,
}

/// What an announce is answered with. Kept by the caller and filled anew each time.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Answer {
    pub seeders: usize,
    pub leechers: usize,
    /// Compact addresses, 6 bytes each.
    pub v4: Vec<u8>,
    /// The same, 18 bytes each.
    pub v6: Vec<u8>,
    /// There was no room for this peer: it is served, but not given to others.
    pub left_out: bool,
}

/// What a scrape is answered with.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Scraped {
    pub seeders: usize,
    pub leechers: usize,
    pub completed: u32,
}

/// No room for another torrent.
#[derive(Debug, PartialEq)]
pub(super) struct Full;

/// Most torrents have few peers, and those of one family alone: this lies in the map itself, and is small.
#[derive(Debug, Default)]
pub(super) struct Torrent {
    v4: Option<Box<Peers<6>>>,
    v6: Option<Box<Peers<18>>>,
    /// So often a download was completed.
    pub completed: u32,
}

impl Torrent {
    pub fn v4(&self) -> &Peers<6> {
        self.v4.as_deref().unwrap_or(Peers::NONE)
    }

    pub fn v6(&self) -> &Peers<18> {
        self.v6.as_deref().unwrap_or(Peers::NONE)
    }

    fn counts(&self) -> (usize, usize) {
        let (v4, v6) = (self.v4(), self.v6());
        (v4.seeds() + v6.seeds(), v4.len() + v6.len())
    }

    pub fn scraped(&self) -> Scraped {
        let (seeders, peers) = self.counts();
        Scraped { seeders, leechers: peers - seeders, completed: self.completed }
    }

    fn is_empty(&self) -> bool {
        self.counts().1 == 0
    }
}

#[derive(Debug, Default)]
struct Part {
    torrents: HashMap<InfoHash, Torrent>,
    /// When the memories of past swarms were last dropped for want of room.
    cleared: Option<u32>,
}

/// The swarms. Bounded by its [`Limits`].
#[derive(Debug)]
pub(super) struct Table {
    limits: Limits,
    parts: Box<[Mutex<Part>]>,
    hosts: Hosts,
    torrents: AtomicUsize,
    seeds: AtomicUsize,
    peers: AtomicUsize,
    completed: AtomicU64,
    /// Odd, and nobody's knowledge: which part a torrent is in cannot be aimed at.
    mix: u64,
}

impl Table {
    pub fn new(limits: Limits, rng: &mut impl Rng) -> Self {
        Self {
            limits,
            parts: (0..PARTS).map(|_| Mutex::default()).collect(),
            hosts: Hosts::new(limits.host_peers),
            torrents: AtomicUsize::new(0),
            seeds: AtomicUsize::new(0),
            peers: AtomicUsize::new(0),
            completed: AtomicU64::new(0),
            mix: rng.next_u64() | 1,
        }
    }

    pub fn counts(&self) -> Counts {
        let (peers, seeders) = (self.peers.load(Relaxed), self.seeds.load(Relaxed));
        let (torrents, completed) = (self.torrents.load(Relaxed), self.completed.load(Relaxed));
        Counts { torrents, seeders, leechers: peers.saturating_sub(seeders), completed }
    }

    fn part(&self, nth: usize) -> MutexGuard<'_, Part> {
        self.parts[nth].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn part_of(&self, info_hash: &InfoHash) -> MutexGuard<'_, Part> {
        let [a, b, c, d, e, f, g, h, ..] = info_hash.0;
        let mixed = u64::from_be_bytes([a, b, c, d, e, f, g, h]).wrapping_mul(self.mix);
        self.part((mixed >> 32) as usize % PARTS)
    }

    /// Notes the peer and gives it others, at random: no seeds to a seed, nobody to one who leaves.
    pub fn announce(&self, now: u32, announce: &Announce, rng: &mut impl Rng, answer: &mut Answer) -> Result<(), Full> {
        *answer =
            Answer { v4: std::mem::take(&mut answer.v4), v6: std::mem::take(&mut answer.v6), ..Answer::default() };
        answer.v4.clear();
        answer.v6.clear();
        let mut part = self.part_of(&announce.info_hash);
        if announce.event == Event::Stopped {
            if let Some(torrent) = part.torrents.get_mut(&announce.info_hash) {
                self.leave(torrent, announce.addr);
                (answer.seeders, answer.leechers) = (torrent.scraped().seeders, torrent.scraped().leechers);
                if torrent.is_empty() && torrent.completed == 0 {
                    self.drop_torrent(&mut part, &announce.info_hash);
                }
            }
            return Ok(());
        }
        let torrent = self.torrent(&mut part, now, announce.info_hash)?;
        let (at, before) = self.enter(torrent, announce.addr, announce.seed, now);
        answer.left_out = at.is_none();
        // Twice in a row it is told for one download.
        if announce.event == Event::Completed && announce.seed && at.is_some() && before != Before::Seed {
            torrent.completed = torrent.completed.saturating_add(1);
            self.completed.fetch_add(1, Relaxed);
        }
        let Scraped { seeders, leechers, .. } = torrent.scraped();
        (answer.seeders, answer.leechers) = (seeders, leechers);
        let (want, seed) = (announce.want.min(self.limits.answer), announce.seed);
        let (v4, v6) = (torrent.v4(), torrent.v6());
        if announce.addr.is_ipv4() {
            let got = v4.pick(at, seed, want, rng, &mut answer.v4);
            if announce.both_families {
                v6.pick(None, seed, want - got, rng, &mut answer.v6);
            }
        } else {
            let got = v6.pick(at, seed, want, rng, &mut answer.v6);
            if announce.both_families {
                v4.pick(None, seed, want - got, rng, &mut answer.v4);
            }
        }
        if torrent.is_empty() && torrent.completed == 0 {
            // Made for a peer for whom there was no room.
            self.drop_torrent(&mut part, &announce.info_hash);
        }
        Ok(())
    }

    /// The counts of a torrent; zeros if it is not known.
    pub fn scrape(&self, info_hash: &InfoHash) -> Scraped {
        self.part_of(info_hash).torrents.get(info_hash).map(Torrent::scraped).unwrap_or_default()
    }

    /// Finds a torrent, or makes room for it.
    fn torrent<'a>(&self, part: &'a mut Part, now: u32, info_hash: InfoHash) -> Result<&'a mut Torrent, Full> {
        if !part.torrents.contains_key(&info_hash) && self.torrents.load(Relaxed) >= self.limits.torrents {
            // Not at each announce, for it goes over all of the part.
            if part.cleared.is_some_and(|cleared| now < cleared.saturating_add(10)) {
                return Err(Full);
            }
            part.cleared = Some(now);
            let there = part.torrents.len();
            part.torrents.retain(|_, torrent| !torrent.is_empty());
            let freed = there - part.torrents.len();
            self.torrents.fetch_sub(freed, Relaxed);
            if freed == 0 {
                return Err(Full);
            }
        }
        Ok(match part.torrents.entry(info_hash) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                self.torrents.fetch_add(1, Relaxed);
                entry.insert(Torrent::default())
            }
        })
    }

    fn drop_torrent(&self, part: &mut Part, info_hash: &InfoHash) {
        if part.torrents.remove(info_hash).is_some() {
            self.torrents.fetch_sub(1, Relaxed);
        }
    }

    fn enter(&self, torrent: &mut Torrent, addr: SocketAddr, seed: bool, now: u32) -> (Option<usize>, Before) {
        match compact(addr) {
            Family::V4(addr) => self.enter_family(torrent.v4.get_or_insert_default(), addr, seed, now),
            Family::V6(addr) => self.enter_family(torrent.v6.get_or_insert_default(), addr, seed, now),
        }
    }

    fn enter_family<const N: usize>(
        &self,
        peers: &mut Peers<N>,
        addr: Compact<N>,
        seed: bool,
        now: u32,
    ) -> (Option<usize>, Before) {
        let room = |of_host: u32| {
            of_host < self.limits.host_peers_of_torrent
                && self.peers.load(Relaxed) < self.limits.peers
                && self.hosts.add(host_of(&addr))
        };
        let (at, before) = peers.enter(addr, seed, now, room);
        if at.is_some() {
            self.peers.fetch_add(usize::from(before == Before::Unknown), Relaxed);
            match (before == Before::Seed, seed) {
                (false, true) => _ = self.seeds.fetch_add(1, Relaxed),
                (true, false) => _ = self.seeds.fetch_sub(1, Relaxed),
                _ => {}
            }
        }
        (at, before)
    }

    fn leave(&self, torrent: &mut Torrent, addr: SocketAddr) {
        fn strike<const N: usize>(peers: &mut Option<Box<Peers<N>>>, addr: &Compact<N>) -> (Before, Host) {
            (peers.as_mut().map_or(Before::Unknown, |peers| peers.leave(addr)), host_of(addr))
        }
        let (before, host) = match compact(addr) {
            Family::V4(addr) => strike(&mut torrent.v4, &addr),
            Family::V6(addr) => strike(&mut torrent.v6, &addr),
        };
        if before != Before::Unknown {
            self.hosts.remove(host);
            self.peers.fetch_sub(1, Relaxed);
            self.seeds.fetch_sub(usize::from(before == Before::Seed), Relaxed);
        }
    }

    /// Forgets the silent in one part, and swarms of which nothing is left.
    pub fn sweep(&self, nth: usize, now: u32) {
        let before = now.saturating_sub(self.limits.silence());
        let mut part = self.part(nth);
        let there = part.torrents.len();
        part.torrents.retain(|_, torrent| {
            self.expire(torrent, before);
            !torrent.is_empty() || torrent.completed > 0
        });
        self.torrents.fetch_sub(there - part.torrents.len(), Relaxed);
        if part.torrents.len() < part.torrents.capacity() / 4 {
            part.torrents.shrink_to_fit();
        }
    }

    /// Drops every torrent of one part that is not wanted any more.
    pub fn retain(&self, nth: usize, wanted: impl Fn(&InfoHash) -> bool) {
        let mut part = self.part(nth);
        let there = part.torrents.len();
        part.torrents.retain(|info_hash, torrent| {
            let keep = wanted(info_hash);
            if !keep {
                self.expire(torrent, u32::MAX);
            }
            keep
        });
        self.torrents.fetch_sub(there - part.torrents.len(), Relaxed);
    }

    fn expire(&self, torrent: &mut Torrent, before: u32) {
        let (seeds, peers) = torrent.counts();
        self.expire_family(&mut torrent.v4, before);
        self.expire_family(&mut torrent.v6, before);
        let (seeds_left, left) = torrent.counts();
        self.seeds.fetch_sub(seeds - seeds_left, Relaxed);
        self.peers.fetch_sub(peers - left, Relaxed);
    }

    fn expire_family<const N: usize>(&self, family: &mut Option<Box<Peers<N>>>, before: u32) {
        if let Some(peers) = family {
            peers.expire(before, |addr| self.hosts.remove(host_of(addr)));
            if peers.len() == 0 {
                *family = None;
            }
        }
    }

    /// Shows every torrent of one part.
    pub fn visit(&self, nth: usize, mut seen: impl FnMut(&InfoHash, &Torrent)) {
        self.part(nth).torrents.iter().for_each(|(info_hash, torrent)| seen(info_hash, torrent));
    }

    /// Takes in what was saved: a torrent and its past. False: there is no room.
    pub fn restore(&self, info_hash: InfoHash, completed: u32) -> bool {
        let mut part = self.part_of(&info_hash);
        let Ok(torrent) = self.torrent(&mut part, 0, info_hash) else { return false };
        torrent.completed = torrent.completed.saturating_add(completed);
        self.completed.fetch_add(completed.into(), Relaxed);
        true
    }

    /// The same for one of its peers, last seen at `seen`.
    pub fn restore_peer(&self, info_hash: &InfoHash, addr: SocketAddr, seed: bool, seen: u32) {
        if let Some(torrent) = self.part_of(info_hash).torrents.get_mut(info_hash) {
            self.enter(torrent, addr, seed, seen);
        }
    }
}

enum Family {
    V4(Compact<6>),
    V6(Compact<18>),
}

fn compact(addr: SocketAddr) -> Family {
    let [high, low] = addr.port().to_be_bytes();
    match addr {
        SocketAddr::V4(addr) => {
            let [a, b, c, d] = addr.ip().octets();
            Family::V4([a, b, c, d, high, low])
        }
        SocketAddr::V6(addr) => {
            let mut out = [0; 18];
            out[..16].copy_from_slice(&addr.ip().octets());
            out[16..].copy_from_slice(&[high, low]);
            Family::V6(out)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;
    use std::collections::HashSet;
    use std::time::Duration;

    const NOW: u32 = 10_000;

    fn limits() -> Limits {
        Limits {
            torrents: 2,
            peers: 8,
            answer: 3,
            interval: Duration::from_secs(60),
            host_peers: 12,
            host_peers_of_torrent: 10,
            ..Limits::default()
        }
    }

    fn peer(torrent: u8, port: u16, seed: bool) -> Announce {
        Announce {
            info_hash: InfoHash([torrent; 20]),
            addr: ([127, 0, 0, 1], port).into(),
            seed,
            event: Event::Present,
            want: 50,
            both_families: true,
        }
    }

    struct Bench(Table, u32, StdRng);

    impl Bench {
        fn new(limits: Limits) -> Self {
            let mut rng = StdRng::seed_from_u64(1);
            Self(Table::new(limits, &mut rng), NOW, rng)
        }

        fn announce(&mut self, announce: &Announce) -> Result<Answer, Full> {
            let mut answer = Answer { v4: b"left over".to_vec(), ..Answer::default() };
            self.0.announce(self.1, announce, &mut self.2, &mut answer).map(|()| answer)
        }

        fn ports(&mut self, announce: &Announce) -> HashSet<u16> {
            let answer = self.announce(announce).unwrap();
            let port = |peer: &[u8]| u16::from_be_bytes(*peer.last_chunk().unwrap());
            answer.v4.chunks(6).map(port).chain(answer.v6.chunks(18).map(port)).collect()
        }

        fn sweep(&mut self) {
            (0..PARTS).for_each(|nth| self.0.sweep(nth, self.1));
            // What is counted is what is there.
            let (mut torrents, mut peers, mut seeders) = (0, 0, 0);
            for nth in 0..PARTS {
                self.0.visit(nth, |_, torrent| {
                    torrents += 1;
                    peers += torrent.counts().1;
                    seeders += torrent.counts().0;
                });
            }
            let counts = self.0.counts();
            assert_eq!((counts.torrents, counts.seeders + counts.leechers, counts.seeders), (torrents, peers, seeders));
            assert_eq!(self.0.hosts.total() as usize, peers);
        }
    }

    /// What a million torrents of one IPv6 peer each take is this and what the allocator adds, times a million: below
    /// 200 MiB (README).
    #[test]
    fn a_torrent_of_one_peer_is_small() {
        assert_eq!(size_of::<(InfoHash, Torrent)>(), 48);
        assert!(size_of::<Peers<6>>() <= 40 && size_of::<Peers<18>>() <= 40);
    }

    #[test]
    fn peers_meet_but_seeds_do_not() {
        let mut bench = Bench::new(limits());
        assert!(bench.ports(&peer(1, 1, true)).is_empty());
        assert!(bench.ports(&peer(1, 2, true)).is_empty());
        assert_eq!(bench.ports(&peer(1, 3, false)), HashSet::from([1, 2]));
        assert_eq!(bench.ports(&peer(1, 1, true)), HashSet::from([3]));
        assert!(bench.ports(&peer(2, 4, false)).is_empty());
        let answer = bench.announce(&peer(1, 3, false)).unwrap();
        assert_eq!((answer.seeders, answer.leechers), (2, 1));
        bench.sweep();
    }

    #[test]
    fn both_families_meet_if_they_like() {
        let mut bench = Bench::new(limits());
        let v6 = |port: u16| Announce { addr: ([0x2001, 0, 0, 0, 0, 0, 0, 1], port).into(), ..peer(1, 0, false) };
        bench.announce(&v6(1)).unwrap();
        assert_eq!(bench.ports(&peer(1, 2, false)), HashSet::from([1]));
        assert_eq!(bench.ports(&v6(3)), HashSet::from([1, 2]));
        assert_eq!(bench.ports(&Announce { both_families: false, ..v6(3) }), HashSet::from([1]));
        // One's own come first.
        bench.announce(&v6(4)).unwrap();
        bench.announce(&v6(5)).unwrap();
        assert_eq!(bench.ports(&v6(3)), HashSet::from([1, 4, 5]));
        assert_eq!(bench.announce(&v6(3)).unwrap().leechers, 5);
        bench.1 += 121;
        bench.sweep();
        assert_eq!(bench.0.counts(), Counts::default());
    }

    #[test]
    fn a_leecher_becomes_a_seed_and_leaves() {
        let mut bench = Bench::new(limits());
        bench.announce(&peer(1, 1, false)).unwrap();
        assert_eq!(bench.announce(&peer(1, 1, true)).unwrap().seeders, 1);
        let farewell = Announce { event: Event::Stopped, ..peer(1, 1, true) };
        assert_eq!(bench.announce(&farewell), Ok(Answer::default()));
        assert_eq!(bench.0.counts(), Counts::default());
        assert!(bench.ports(&peer(1, 2, false)).is_empty());
        // A farewell to a swarm that is not known makes none.
        assert_eq!(bench.announce(&Announce { event: Event::Stopped, ..peer(9, 1, true) }), Ok(Answer::default()));
        assert_eq!(bench.0.counts().torrents, 1);
    }

    #[test]
    fn a_completed_download_is_counted_once_and_remembered() {
        let mut bench = Bench::new(limits());
        let done = Announce { event: Event::Completed, ..peer(1, 1, true) };
        bench.announce(&peer(1, 1, false)).unwrap();
        bench.announce(&done).unwrap();
        bench.announce(&done).unwrap();
        // One who has not everything has completed nothing.
        bench.announce(&Announce { event: Event::Completed, ..peer(1, 2, false) }).unwrap();
        assert_eq!(bench.0.scrape(&InfoHash([1; 20])), Scraped { seeders: 1, leechers: 1, completed: 1 });
        assert_eq!(bench.0.scrape(&InfoHash([2; 20])), Scraped::default());
        bench.1 += 1000;
        bench.sweep();
        assert_eq!(bench.0.scrape(&InfoHash([1; 20])), Scraped { completed: 1, ..Scraped::default() });
        // Until the room is needed: some part holds this memory alone.
        bench.announce(&peer(2, 1, false)).unwrap();
        for n in 3..=255u16 {
            if bench.announce(&peer(n as u8, 1, false)).is_ok() && bench.0.scrape(&InfoHash([1; 20])).completed == 0 {
                return;
            }
            bench.1 += 10;
        }
        panic!("it holds its place for ever");
    }

    #[test]
    fn answers_are_bounded() {
        let mut bench = Bench::new(limits());
        for port in 1..=8 {
            bench.announce(&peer(1, port, false)).unwrap();
        }
        assert_eq!(bench.ports(&peer(1, 1, false)).len(), 3);
        assert!(bench.ports(&Announce { want: 0, ..peer(1, 1, false) }).is_empty());
    }

    #[test]
    fn peers_are_bounded_but_all_are_served() {
        let by_host = Limits { peers: 100, host_peers_of_torrent: 8, ..limits() };
        let by_host_in_all = Limits { peers: 100, host_peers: 8, ..limits() };
        for limits in [limits(), by_host, by_host_in_all] {
            let mut bench = Bench::new(limits);
            for port in 1..=20 {
                let answer = bench.announce(&peer(1, port, false)).unwrap();
                assert_eq!((answer.leechers, answer.left_out), (usize::from(port).min(8), port > 8));
                assert_eq!(answer.v4.len() / 6, 3.min(usize::from(port) - 1));
            }
            // One who is known is still heard, and who leaves makes room.
            assert_eq!(bench.announce(&peer(1, 1, true)).unwrap().seeders, 1);
            bench.announce(&Announce { event: Event::Stopped, ..peer(1, 1, true) }).unwrap();
            assert!(!bench.announce(&peer(1, 9, false)).unwrap().left_out);
            bench.sweep();
        }
    }

    #[test]
    fn one_host_does_not_keep_others_out() {
        let mut bench = Bench::new(Limits { peers: 100, host_peers_of_torrent: 2, host_peers: 3, ..limits() });
        for port in 1..100 {
            bench.announce(&peer(1, port, false)).unwrap();
        }
        let other = Announce { addr: ([10, 0, 0, 1], 1).into(), ..peer(1, 0, false) };
        assert_eq!(bench.announce(&other).unwrap().leechers, 3);
        assert!(!bench.announce(&peer(2, 1, false)).unwrap().left_out);
        // For its fourth in all there is no room, and no torrent is made for it alone.
        let mut more = bench;
        more.announce(&Announce { event: Event::Stopped, ..peer(1, 1, false) }).unwrap();
        more.announce(&peer(2, 2, false)).unwrap();
        assert!(more.announce(&peer(2, 3, false)).unwrap().left_out);
        more.sweep();
    }

    #[test]
    fn torrents_are_bounded_and_the_silent_forgotten() {
        let mut bench = Bench::new(limits());
        bench.announce(&peer(1, 1, false)).unwrap();
        bench.announce(&peer(2, 1, false)).unwrap();
        assert_eq!(bench.announce(&peer(3, 1, false)), Err(Full));
        bench.1 += 120;
        bench.announce(&peer(2, 2, false)).unwrap();
        bench.1 += 1;
        bench.sweep();
        assert!(bench.announce(&peer(3, 1, false)).is_ok());
        assert_eq!(bench.ports(&peer(2, 3, false)), HashSet::from([2]));
    }

    #[test]
    fn what_is_no_longer_wanted_goes() {
        let mut bench = Bench::new(limits());
        bench.announce(&peer(1, 1, false)).unwrap();
        bench.announce(&peer(2, 1, true)).unwrap();
        (0..PARTS).for_each(|nth| bench.0.retain(nth, |info_hash| info_hash.0[0] == 1));
        bench.sweep();
        assert_eq!(bench.0.counts(), Counts { torrents: 1, leechers: 1, ..Counts::default() });
    }
}
