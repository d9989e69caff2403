//! What a torrent's task tells of itself, when somebody asks.

use std::net::SocketAddr;
use std::time::Instant;

use super::driver::Driver;
use super::origins::PeerSource;
use super::torrent::Command;
use super::{Priority, Torrent};
use crate::metainfo::FileIndex;
use crate::net::Transport;
use crate::swarm::{Event, PeerSnapshot, Snapshot};

use tokio::sync::oneshot;

/// A torrent at one moment.
#[derive(Clone, Debug)]
pub struct Report {
    /// The swarm; its peers are in `peers`.
    pub swarm: Snapshot,
    /// Every connection, the oldest first.
    pub peers: Vec<PeerReport>,
    /// Bytes that background fetching may still add to the cache.
    pub room: u64,
}

/// One connection.
#[derive(Clone, Debug)]
pub struct PeerReport {
    /// What the swarm knows of it.
    pub swarm: PeerSnapshot,
    /// What it runs over.
    pub transport: Transport,
    /// Encrypted.
    pub encrypted: bool,
    /// Where it came from.
    pub source: PeerSource,
    /// What it calls itself in its extension handshake, made printable.
    pub client: Option<String>,
    /// Of a web seed: its URL, without what may be secret.
    pub url: Option<String>,
}

impl Torrent {
    /// What its task tells; `None`: it has ended.
    pub async fn report(&self) -> Option<Report> {
        let (answer, report) = oneshot::channel();
        self.commands.send(Command::Report(answer)).await.ok()?;
        report.await.ok()
    }

    /// Fetches only what is read from now on, or all again.
    pub async fn set_on_demand(&self, on_demand: bool) {
        let _ = self.commands.send(Command::Swarm(Event::OnDemand(on_demand))).await;
    }

    /// Lets every peer go and fetches nothing, not even for readers; or begins again.
    pub async fn set_paused(&self, paused: bool) {
        let _ = self.commands.send(Command::Swarm(Event::Pause(paused))).await;
    }

    /// The files that are not ordinary, in the torrent's order.
    pub fn priorities(&self) -> Vec<(FileIndex, Priority)> {
        super::lock(&self.priorities).iter().map(|(file, priority)| (*file, *priority)).collect()
    }
}

impl Driver {
    pub(super) fn report(&self) -> Report {
        let mut swarm = self.swarm.snapshot(Instant::now());
        let peers = std::mem::take(&mut swarm.peers).into_iter().filter_map(|known| {
            let peer = self.peers.get(&known.key)?;
            Some(PeerReport {
                transport: peer.transport,
                encrypted: peer.encrypted,
                source: peer.source,
                client: peer.extensions.client.clone(),
                url: self.web_seeds.get(&peer.addr).map(|seed| seed.url().to_string()),
                swarm: known,
            })
        });
        Report { peers: peers.collect(), swarm, room: self.store.room() }
    }

    /// Peers were named.
    pub(super) fn found(&mut self, addrs: Vec<SocketAddr>, source: PeerSource) {
        self.origins.note(&addrs, source);
        self.hear(Event::PeersFound(addrs));
    }
}
