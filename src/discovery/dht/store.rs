//! Peers that other nodes announced to us, and the tokens that permit an announce (BEP 5). Pure.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rand::Rng;
use rand::seq::IteratorRandom;
use sha1::{Digest, Sha1};

use super::address::{self, Family};
use super::krpc::NodeId;
use crate::metainfo::InfoHash;

/// Torrents stored. If there are more, the one farthest from our id is dropped, because other nodes are closer to it.
const MAX_TORRENTS: usize = 500;
/// Peers stored per torrent: several times what one reply holds.
const MAX_PEERS: usize = 100;
/// Peers in one reply: together with nodes and token it stays under 1,000 bytes.
const MAX_PEERS_IN_REPLY: usize = 32;
/// Lifetime of an announce. Peers announce every 15 minutes or so; one that missed two is gone.
const PEER_LIFETIME: Duration = Duration::from_secs(35 * 60);

/// The stored peers by torrent.
#[derive(Debug)]
pub(super) struct Store {
    own: NodeId,
    torrents: HashMap<InfoHash, HashMap<SocketAddr, Instant>>,
}

impl Store {
    pub fn new(own: NodeId) -> Self {
        Self { own, torrents: HashMap::new() }
    }

    /// Stores a peer that announced itself with a valid token.
    pub fn put(&mut self, now: Instant, info_hash: InfoHash, peer: SocketAddr) {
        if !self.torrents.contains_key(&info_hash) && self.torrents.len() >= MAX_TORRENTS {
            self.expire(now);
            let own = self.own;
            let farthest =
                self.torrents.keys().copied().max_by(|one, other| own.compare(&(*one).into(), &(*other).into()));
            match farthest.filter(|_| self.torrents.len() >= MAX_TORRENTS) {
                Some(farthest) if own.compare(&info_hash.into(), &farthest.into()).is_ge() => return,
                Some(farthest) => drop(self.torrents.remove(&farthest)),
                None => {}
            }
        }
        let peers = self.torrents.entry(info_hash).or_default();
        if peers.len() >= MAX_PEERS && !peers.contains_key(&peer) {
            peers.retain(|_, announced| now.saturating_duration_since(*announced) < PEER_LIFETIME);
            let oldest = peers.iter().min_by_key(|(_, announced)| **announced).map(|(peer, _)| *peer);
            if let Some(oldest) = oldest.filter(|_| peers.len() >= MAX_PEERS) {
                peers.remove(&oldest);
            }
        }
        peers.insert(peer, now);
    }

    /// Returns random peers of the asker's address family. Peers in the local network are returned only to askers in
    /// it.
    pub fn get(&self, now: Instant, info_hash: InfoHash, asker: SocketAddr, rng: &mut impl Rng) -> Vec<SocketAddr> {
        let Some(peers) = self.torrents.get(&info_hash) else { return Vec::new() };
        let fresh = peers.iter().filter(|(_, announced)| now.saturating_duration_since(**announced) < PEER_LIFETIME);
        let fit = fresh
            .map(|(peer, _)| *peer)
            .filter(|peer| Family::of(*peer) == Family::of(asker) && address::is_plausible(*peer, asker));
        fit.sample(rng, MAX_PEERS_IN_REPLY)
    }

    /// Removes expired peers.
    pub fn expire(&mut self, now: Instant) {
        self.torrents.retain(|_, peers| {
            peers.retain(|_, announced| now.saturating_duration_since(*announced) < PEER_LIFETIME);
            !peers.is_empty()
        });
    }
}

/// Issues and checks tokens. A token proves that the sender of an announce receives datagrams at its source address.
/// Tokens are derived from a secret, so none needs to be stored; each is valid for five to ten minutes.
#[derive(Debug)]
pub(super) struct Tokens {
    secrets: [[u8; 16]; 2],
    changed: Instant,
}

/// Lifetime of a secret. A token stays valid while its secret is the current or the previous one.
const SECRET_LIFETIME: Duration = Duration::from_secs(5 * 60);

impl Tokens {
    pub fn new(now: Instant, rng: &mut impl Rng) -> Self {
        let mut secrets = [[0; 16]; 2];
        secrets.iter_mut().for_each(|secret| rng.fill_bytes(secret));
        Self { secrets, changed: now }
    }

    fn renew(&mut self, now: Instant, rng: &mut impl Rng) {
        while now.saturating_duration_since(self.changed) >= SECRET_LIFETIME {
            // After a long pause, both secrets have expired.
            let idle = now.saturating_duration_since(self.changed) >= 2 * SECRET_LIFETIME;
            self.changed = if idle { now } else { self.changed + SECRET_LIFETIME };
            self.secrets[1] = self.secrets[0];
            rng.fill_bytes(&mut self.secrets[0]);
            if idle {
                rng.fill_bytes(&mut self.secrets[1]);
            }
        }
    }

    fn of(secret: &[u8; 16], ip: IpAddr, info_hash: InfoHash) -> [u8; 8] {
        let hash = match ip {
            IpAddr::V4(ip) => Sha1::new().chain_update(ip.octets()),
            IpAddr::V6(ip) => Sha1::new().chain_update(ip.octets()),
        };
        let hash: [u8; 20] = hash.chain_update(info_hash.0).chain_update(secret).finalize().into();
        std::array::from_fn(|at| hash[at])
    }

    /// Returns a token for a node that asked for the peers of a torrent.
    pub fn issue(&mut self, now: Instant, ip: IpAddr, info_hash: InfoHash, rng: &mut impl Rng) -> [u8; 8] {
        self.renew(now, rng);
        Self::of(&self.secrets[0], ip, info_hash)
    }

    /// Returns whether a token was issued recently to this address for this torrent.
    pub fn check(&mut self, now: Instant, ip: IpAddr, info_hash: InfoHash, token: &[u8], rng: &mut impl Rng) -> bool {
        self.renew(now, rng);
        self.secrets.iter().any(|secret| Self::of(secret, ip, info_hash) == token)
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    fn hash(n: u32) -> InfoHash {
        let mut hash = [0; 20];
        hash[..4].copy_from_slice(&n.to_be_bytes());
        InfoHash(hash)
    }

    fn peer(n: u32) -> SocketAddr {
        (std::net::Ipv4Addr::from(0x0808_0000 + n), 1).into()
    }

    #[test]
    fn floods_are_bounded_and_close_torrents_kept() {
        let (mut store, now) = (Store::new(NodeId([0; 20])), Instant::now());
        let rng = &mut StdRng::seed_from_u64(1);
        (0..2000).rev().for_each(|n| store.put(now, hash(n), peer(n)));
        (0..2000).for_each(|n| store.put(now, hash(0), peer(n)));
        assert_eq!((store.torrents.len(), store.torrents[&hash(0)].len()), (MAX_TORRENTS, MAX_PEERS));
        assert_eq!(store.get(now, hash(0), peer(0), rng).len(), MAX_PEERS_IN_REPLY);
        assert_eq!(store.get(now, hash(1), peer(0), rng), [peer(1)]);
        assert!(store.get(now, hash(1999), peer(0), rng).is_empty());
        assert!(store.get(now + PEER_LIFETIME, hash(1), peer(0), rng).is_empty());
        store.expire(now + PEER_LIFETIME);
        assert!(store.torrents.is_empty());
    }

    #[test]
    fn askers_get_peers_of_their_own_family_and_network() {
        let (mut store, now) = (Store::new(NodeId([0; 20])), Instant::now());
        let rng = &mut StdRng::seed_from_u64(1);
        for peer in ["127.0.0.1:1", "[2001:db8::1]:1"] {
            store.put(now, hash(1), peer.parse().unwrap());
        }
        let mut get = |asker: &str| store.get(now, hash(1), asker.parse().unwrap(), rng).len();
        assert_eq!((get("127.0.0.2:1"), get("8.8.8.8:1"), get("[2001:db8::2]:1")), (1, 0, 1));
    }

    #[test]
    fn tokens_are_bound_to_address_torrent_and_time() {
        let (now, rng) = (Instant::now(), &mut StdRng::seed_from_u64(1));
        let mut tokens = Tokens::new(now, rng);
        let (ip, other) = (peer(1).ip(), peer(2).ip());
        let token = tokens.issue(now, ip, hash(1), rng);
        assert!(tokens.check(now, ip, hash(1), &token, rng));
        assert!(!tokens.check(now, other, hash(1), &token, rng) && !tokens.check(now, ip, hash(2), &token, rng));
        assert!(tokens.check(now + SECRET_LIFETIME, ip, hash(1), &token, rng));
        assert!(!tokens.check(now + 2 * SECRET_LIFETIME, ip, hash(1), &token, rng));
        let token = tokens.issue(now + 2 * SECRET_LIFETIME, ip, hash(1), rng);
        assert!(!tokens.check(now + 20 * SECRET_LIFETIME, ip, hash(1), &token, rng));
    }
}
