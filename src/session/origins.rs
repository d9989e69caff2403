//! Who named which address first: to tell where a peer came from.

use std::net::SocketAddr;

use lru::LruCache;

/// Addresses remembered: twice what the swarm's address book holds.
const MAX_ORIGINS: usize = 4_000;

/// Where a peer came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PeerSource {
    /// A tracker named it.
    Tracker,
    /// The DHT.
    Dht,
    /// Another peer.
    Pex,
    /// It is in the local network.
    Lsd,
    /// It called us.
    Incoming,
    /// The user named it.
    Manual,
    /// It was found while the metadata of a magnet link was fetched.
    Magnet,
    /// A web seed, named by the torrent.
    WebSeed,
}

#[derive(Debug)]
pub(super) struct Origins(LruCache<SocketAddr, PeerSource>);

impl Origins {
    pub(super) fn new() -> Self {
        // With a capacity it would take the memory for all of them at once, for each torrent.
        Self(LruCache::unbounded())
    }

    /// These were named. The first word counts.
    pub(super) fn note(&mut self, addrs: &[SocketAddr], source: PeerSource) {
        for addr in addrs {
            let addr = canonical(*addr);
            if !self.0.contains(&addr) {
                self.0.put(addr, source);
            }
            if self.0.len() > MAX_ORIGINS {
                self.0.pop_lru();
            }
        }
    }

    /// Who named an address that was called. What nobody named, another peer sent to us.
    pub(super) fn of(&self, addr: SocketAddr) -> PeerSource {
        self.0.peek(&canonical(addr)).copied().unwrap_or(PeerSource::Pex)
    }
}

fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_word_counts_and_memory_is_bounded() {
        let addr = |port: u16| SocketAddr::from(([10, 0, 0, 1], port));
        let mut origins = Origins::new();
        origins.note(&[addr(1)], PeerSource::Dht);
        origins.note(&[addr(1), addr(2)], PeerSource::Tracker);
        assert_eq!(origins.of(addr(1)), PeerSource::Dht);
        assert_eq!(origins.of("[::ffff:10.0.0.1]:2".parse().unwrap()), PeerSource::Tracker);
        (3..9_000).for_each(|port| origins.note(&[addr(port)], PeerSource::Lsd));
        assert_eq!(origins.0.len(), MAX_ORIGINS);
    }
}
