//! A torrent's web seeds among its peers: the swarm calls them by addresses that stand for no host.

use std::net::SocketAddr;
use std::time::Instant;

use super::driver::{Driver, Peer};
use super::extensions::Extensions;
use super::origins::PeerSource;
use crate::net::Transport;
use crate::swarm::{Direction, Event, PeerKey};
use crate::webseed::WebSeed;

impl Driver {
    /// That address stands for a web seed: it means nothing to others.
    pub(super) fn is_web_seed(&self, addr: SocketAddr) -> bool {
        self.web_seeds.contains_key(&addr)
    }

    /// A web seed is connected as soon as it is called.
    pub(super) fn connect_seed(&mut self, seed: &WebSeed) {
        let (addr, key, direction) = (seed.addr(), PeerKey(self.next_peer), Direction::Outgoing);
        match seed.connect(self.limits.clone(), key, self.inbox.clone()) {
            Ok(connection) => {
                self.next_peer += 1;
                tracing::debug!(?key, seed = %seed.url(), "web seed connected");
                let extensions = Extensions::new(Instant::now(), direction);
                let outgoing = Vec::new();
                let (transport, source) = (Transport::Tcp, PeerSource::WebSeed);
                let peer = Peer { connection, addr, transport, encrypted: false, source, outgoing, extensions };
                self.peers.insert(key, peer);
                self.tell(Event::Connected {
                    peer: key,
                    addr,
                    direction,
                    id: seed.peer_id(),
                    fast: true,
                    extended: true,
                });
            }
            Err(why) => {
                tracing::debug!(seed = %seed.url(), "web seed left alone: {why}");
                self.tell(Event::ConnectFailed(addr));
            }
        }
    }
}
