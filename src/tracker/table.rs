//! The swarms of all torrents. Pure: time, in seconds, and randomness are arguments.
//!
//! The torrents are in shards with a lock each. The lock of a shard is taken before that of a host, never after.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::sync::MutexGuard;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use rand::Rng;

use super::config::Limits;
use super::hosts::{Host, Hosts, host_of};
use super::peers::{CompactAddr, Peers, PreviousRole};
use super::shards::Shards;
use crate::metainfo::InfoHash;

/// Current numbers of torrents, peers and completed downloads.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Number of torrents, including those without peers that are kept for their count of completed downloads.
    pub torrents: usize,
    /// Number of seeders.
    pub seeders: usize,
    /// Number of leechers.
    pub leechers: usize,
    /// Number of completed downloads reported to the tracker.
    pub completed: u64,
}

/// Event of an announce.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Event {
    /// `started`, or none: the peer is in the swarm.
    Present,
    /// The peer has just completed the download.
    Completed,
    /// The peer leaves the swarm.
    Stopped,
}

/// An announce.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Announce {
    pub info_hash: InfoHash,
    /// Its port is 0 if nobody can connect to the peer (it is behind a proxy).
    pub addr: SocketAddr,
    pub seed: bool,
    pub event: Event,
    /// Number of peers that the client asks for.
    pub want: usize,
    /// Whether peers of the other address family fill up the response.
    pub both_families: bool,
}

/// Result of an announce. The caller reuses it, which saves allocations.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct AnnounceResponse {
    pub seeders: usize,
    pub leechers: usize,
    /// CompactAddr IPv4 addresses, 6 bytes each.
    pub v4: Vec<u8>,
    /// CompactAddr IPv6 addresses, 18 bytes each.
    pub v6: Vec<u8>,
    /// Whether a limit kept the peer out of the table. It gets peers, but is not returned to others.
    pub unlisted: bool,
}

/// Result of a scrape for one torrent.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct ScrapeCounts {
    pub seeders: usize,
    pub leechers: usize,
    pub completed: u32,
}

/// Error: the table has no room for another torrent.
#[derive(Debug, PartialEq)]
pub(super) struct Full;

/// A torrent's peers. Small, because it is stored in the map itself, and most torrents have few peers, of one address family.
#[derive(Debug, Default)]
pub(super) struct Torrent {
    v4: Option<Box<Peers<6>>>,
    v6: Option<Box<Peers<18>>>,
    /// Number of completed downloads.
    pub completed: u32,
}

impl Torrent {
    /// Returns the IPv4 peers.
    pub fn v4(&self) -> &Peers<6> {
        self.v4.as_deref().unwrap_or(Peers::NONE)
    }

    /// Returns the IPv6 peers.
    pub fn v6(&self) -> &Peers<18> {
        self.v6.as_deref().unwrap_or(Peers::NONE)
    }

    /// Returns the numbers of seeds and of all peers.
    fn counts(&self) -> (usize, usize) {
        let (v4, v6) = (self.v4(), self.v6());
        (v4.seeds() + v6.seeds(), v4.len() + v6.len())
    }

    /// Returns the result of a scrape.
    pub fn scrape(&self) -> ScrapeCounts {
        let (seeders, peers) = self.counts();
        ScrapeCounts { seeders, leechers: peers - seeders, completed: self.completed }
    }

    fn is_empty(&self) -> bool {
        self.counts().1 == 0
    }
}

#[derive(Debug, Default)]
struct Shard {
    torrents: HashMap<InfoHash, Torrent>,
    /// When the torrents without peers were last dropped to make room.
    cleared: Option<u32>,
}

/// The swarms of all torrents, bounded by [`Limits`].
#[derive(Debug)]
pub(super) struct Table {
    limits: Limits,
    shards: Shards<Shard>,
    hosts: Hosts,
    torrents: AtomicUsize,
    seeds: AtomicUsize,
    peers: AtomicUsize,
    completed: AtomicU64,
    /// Random odd multiplier for [`Shards::lock_for`], so that nobody can choose info hashes that fall into one shard.
    multiplier: u64,
}

impl Table {
    pub fn new(limits: Limits, rng: &mut impl Rng) -> Self {
        Self {
            limits,
            shards: Shards::default(),
            hosts: Hosts::new(limits.host_peers),
            torrents: AtomicUsize::new(0),
            seeds: AtomicUsize::new(0),
            peers: AtomicUsize::new(0),
            completed: AtomicU64::new(0),
            multiplier: rng.next_u64() | 1,
        }
    }

    /// Returns the current totals.
    pub fn counts(&self) -> Counts {
        let (peers, seeders) = (self.peers.load(Relaxed), self.seeds.load(Relaxed));
        let (torrents, completed) = (self.torrents.load(Relaxed), self.completed.load(Relaxed));
        Counts { torrents, seeders, leechers: peers.saturating_sub(seeders), completed }
    }

    /// Locks the shard of a torrent.
    fn shard_of(&self, info_hash: &InfoHash) -> MutexGuard<'_, Shard> {
        let [a, b, c, d, e, f, g, h, ..] = info_hash.0;
        self.shards.lock_for(u64::from_be_bytes([a, b, c, d, e, f, g, h]), self.multiplier)
    }

    /// Records the peer, unless it cannot be reached, and returns random others: for a seed, leechers first; no peers for one
    /// that leaves.
    pub fn announce(
        &self,
        now: u32,
        announce: &Announce,
        rng: &mut impl Rng,
        response: &mut AnnounceResponse,
    ) -> Result<(), Full> {
        *response = AnnounceResponse {
            v4: std::mem::take(&mut response.v4),
            v6: std::mem::take(&mut response.v6),
            ..AnnounceResponse::default()
        };
        response.v4.clear();
        response.v6.clear();
        let mut shard = self.shard_of(&announce.info_hash);
        if announce.event == Event::Stopped {
            if let Some(torrent) = shard.torrents.get_mut(&announce.info_hash) {
                self.remove_peer(torrent, announce.addr);
                (response.seeders, response.leechers) = (torrent.scrape().seeders, torrent.scrape().leechers);
                if torrent.is_empty() && torrent.completed == 0 {
                    self.drop_torrent(&mut shard, &announce.info_hash);
                }
            }
            return Ok(());
        }
        let torrent = self.torrent(&mut shard, now, announce.info_hash)?;
        let reachable = announce.addr.port() != 0;
        let (at, previous) = match reachable {
            true => self.record(torrent, announce.addr, announce.seed, now),
            false => (None, PreviousRole::Unknown),
        };
        response.unlisted = reachable && at.is_none();
        // Some clients send `completed` twice for one download.
        if announce.event == Event::Completed && announce.seed && at.is_some() && previous != PreviousRole::Seed {
            torrent.completed = torrent.completed.saturating_add(1);
            self.completed.fetch_add(1, Relaxed);
        }
        let ScrapeCounts { seeders, leechers, .. } = torrent.scrape();
        (response.seeders, response.leechers) = (seeders, leechers);
        let (want, seed) = (announce.want.min(self.limits.response_peers), announce.seed);
        let (v4, v6) = (torrent.v4(), torrent.v6());
        if announce.addr.is_ipv4() {
            let got = v4.pick(at, seed, want, rng, &mut response.v4);
            if announce.both_families {
                v6.pick(None, seed, want - got, rng, &mut response.v6);
            }
        } else {
            let got = v6.pick(at, seed, want, rng, &mut response.v6);
            if announce.both_families {
                v4.pick(None, seed, want - got, rng, &mut response.v4);
            }
        }
        if torrent.is_empty() && torrent.completed == 0 {
            // The torrent was added for this peer, which is not in it.
            self.drop_torrent(&mut shard, &announce.info_hash);
        }
        Ok(())
    }

    /// Returns the counts of a torrent; zeros if it is unknown.
    pub fn scrape(&self, info_hash: &InfoHash) -> ScrapeCounts {
        self.shard_of(info_hash).torrents.get(info_hash).map(Torrent::scrape).unwrap_or_default()
    }

    /// Returns a torrent, and adds it if it is new.
    fn torrent<'a>(&self, shard: &'a mut Shard, now: u32, info_hash: InfoHash) -> Result<&'a mut Torrent, Full> {
        if !shard.torrents.contains_key(&info_hash) && self.torrents.load(Relaxed) >= self.limits.torrents {
            // Scans the whole shard, so at most every ten seconds.
            if shard.cleared.is_some_and(|cleared| now < cleared.saturating_add(10)) {
                return Err(Full);
            }
            shard.cleared = Some(now);
            let len_before = shard.torrents.len();
            shard.torrents.retain(|_, torrent| !torrent.is_empty());
            let freed = len_before - shard.torrents.len();
            self.torrents.fetch_sub(freed, Relaxed);
            if freed == 0 {
                return Err(Full);
            }
        }
        Ok(match shard.torrents.entry(info_hash) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                self.torrents.fetch_add(1, Relaxed);
                entry.insert(Torrent::default())
            }
        })
    }

    fn drop_torrent(&self, shard: &mut Shard, info_hash: &InfoHash) {
        if shard.torrents.remove(info_hash).is_some() {
            self.torrents.fetch_sub(1, Relaxed);
        }
    }

    /// Records a peer of a torrent. Returns its position, if it is in the swarm, and its previous role.
    fn record(&self, torrent: &mut Torrent, addr: SocketAddr, seed: bool, now: u32) -> (Option<usize>, PreviousRole) {
        match compact(addr) {
            Family::V4(addr) => self.record_in_family(torrent.v4.get_or_insert_default(), addr, seed, now),
            Family::V6(addr) => self.record_in_family(torrent.v6.get_or_insert_default(), addr, seed, now),
        }
    }

    fn record_in_family<const N: usize>(
        &self,
        peers: &mut Peers<N>,
        addr: CompactAddr<N>,
        seed: bool,
        now: u32,
    ) -> (Option<usize>, PreviousRole) {
        let admit = |of_host: u32| {
            of_host < self.limits.host_peers_of_torrent
                && self.peers.load(Relaxed) < self.limits.peers
                && self.hosts.try_add(host_of(&addr))
        };
        let (at, previous) = peers.record(addr, seed, now, admit);
        if at.is_some() {
            self.peers.fetch_add(usize::from(previous == PreviousRole::Unknown), Relaxed);
            match (previous == PreviousRole::Seed, seed) {
                (false, true) => _ = self.seeds.fetch_add(1, Relaxed),
                (true, false) => _ = self.seeds.fetch_sub(1, Relaxed),
                _ => {}
            }
        }
        (at, previous)
    }

    /// Removes a peer from a torrent.
    fn remove_peer(&self, torrent: &mut Torrent, addr: SocketAddr) {
        fn remove<const N: usize>(peers: &mut Option<Box<Peers<N>>>, addr: &CompactAddr<N>) -> (PreviousRole, Host) {
            (peers.as_mut().map_or(PreviousRole::Unknown, |peers| peers.remove(addr)), host_of(addr))
        }
        let (previous, host) = match compact(addr) {
            Family::V4(addr) => remove(&mut torrent.v4, &addr),
            Family::V6(addr) => remove(&mut torrent.v6, &addr),
        };
        if previous != PreviousRole::Unknown {
            self.hosts.remove(host);
            self.peers.fetch_sub(1, Relaxed);
            self.seeds.fetch_sub(usize::from(previous == PreviousRole::Seed), Relaxed);
        }
    }

    /// Removes the silent peers of one shard, and torrents without peers and completed downloads.
    pub fn sweep(&self, nth: usize, now: u32) {
        let before = now.saturating_sub(self.limits.peer_timeout());
        let mut shard = self.shards.lock(nth);
        let len_before = shard.torrents.len();
        shard.torrents.retain(|_, torrent| {
            self.expire(torrent, before);
            !torrent.is_empty() || torrent.completed > 0
        });
        self.torrents.fetch_sub(len_before - shard.torrents.len(), Relaxed);
        if shard.torrents.len() < shard.torrents.capacity() / 4 {
            shard.torrents.shrink_to_fit();
        }
    }

    /// Drops the torrents of one shard for which `wanted` returns false.
    pub fn retain(&self, nth: usize, wanted: impl Fn(&InfoHash) -> bool) {
        let mut shard = self.shards.lock(nth);
        let len_before = shard.torrents.len();
        shard.torrents.retain(|info_hash, torrent| {
            let keep = wanted(info_hash);
            if !keep {
                self.expire(torrent, u32::MAX);
            }
            keep
        });
        self.torrents.fetch_sub(len_before - shard.torrents.len(), Relaxed);
    }

    /// Removes the peers of a torrent whose last announce is earlier than `before`.
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

    /// Calls `visit` for every torrent of one shard.
    pub fn visit(&self, nth: usize, mut visit: impl FnMut(&InfoHash, &Torrent)) {
        self.shards.lock(nth).torrents.iter().for_each(|(info_hash, torrent)| visit(info_hash, torrent));
    }

    /// Restores a saved torrent and its completed downloads. Returns false if there is no room.
    pub fn restore(&self, info_hash: InfoHash, completed: u32) -> bool {
        let mut shard = self.shard_of(&info_hash);
        let Ok(torrent) = self.torrent(&mut shard, 0, info_hash) else { return false };
        torrent.completed = torrent.completed.saturating_add(completed);
        self.completed.fetch_add(completed.into(), Relaxed);
        true
    }

    /// Restores a peer of a torrent, with the table time of its last announce.
    pub fn restore_peer(&self, info_hash: &InfoHash, addr: SocketAddr, seed: bool, seen: u32) {
        if let Some(torrent) = self.shard_of(info_hash).torrents.get_mut(info_hash) {
            self.record(torrent, addr, seed, seen);
        }
    }
}

/// A compact address of either family.
enum Family {
    V4(CompactAddr<6>),
    V6(CompactAddr<18>),
}

/// Returns the compact form of an address.
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
mod tests;
