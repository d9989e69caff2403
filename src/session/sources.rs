//! The finders of a torrent's peers: its trackers, the DHT, the local network. (Peer exchange is part of the swarm.)

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::context::Context;
use crate::discovery::{Announce, Announcer, DhtSearch, LsdTorrent, Transferred, Want};
use crate::metainfo::InfoHash;
use crate::swarm::PeerSource;

/// Maximum number of batches of addresses from one source waiting for the torrent's task.
const BATCHES: usize = 16;

/// Where finders send addresses; one channel per source, so that each address's source is known.
pub(super) struct Finders {
    trackers: mpsc::Sender<Vec<SocketAddr>>,
    dht: mpsc::Sender<Vec<SocketAddr>>,
    lsd: mpsc::Sender<Vec<SocketAddr>>,
}

/// The receiving end of [`Finders`].
pub(super) struct Found {
    trackers: mpsc::Receiver<Vec<SocketAddr>>,
    dht: mpsc::Receiver<Vec<SocketAddr>>,
    lsd: mpsc::Receiver<Vec<SocketAddr>>,
}

impl Finders {
    pub(super) fn channel() -> (Self, Found) {
        let [trackers, dht, lsd] = [(); 3].map(|()| mpsc::channel(BATCHES));
        let found = Found { trackers: trackers.1, dht: dht.1, lsd: lsd.1 };
        (Self { trackers: trackers.0, dht: dht.0, lsd: lsd.0 }, found)
    }
}

impl Found {
    /// Waits for the next addresses; `None`: every finder has ended. Cancel safe.
    pub(super) async fn recv(&mut self) -> Option<(PeerSource, Vec<SocketAddr>)> {
        tokio::select! {
            Some(addrs) = self.trackers.recv() => Some((PeerSource::Tracker, addrs)),
            Some(addrs) = self.dht.recv() => Some((PeerSource::Dht, addrs)),
            Some(addrs) = self.lsd.recv() => Some((PeerSource::Lsd, addrs)),
            else => None,
        }
    }
}

/// Everything that looks for peers of one torrent. Dropping it ends the search; [`Sources::stop`] also tells the
/// trackers.
pub(super) struct Sources {
    pub(super) announcer: Arc<Announcer>,
    dht: Option<DhtSearch>,
    lsd: Option<LsdTorrent>,
}

impl Sources {
    /// Starts to look for peers, and sends their addresses to `finders`. The peers of a private torrent come from its
    /// trackers only (BEP 27).
    pub(super) fn start(
        context: &Context,
        info_hash: InfoHash,
        tiers: Vec<Vec<String>>,
        private: bool,
        transferred: Arc<Transferred>,
        finders: Finders,
    ) -> Self {
        let Context { peer_id, port, key, .. } = *context;
        let announce = Announce { info_hash, peer_id, port: context.tracker_port.clone(), tiers, key };
        let dht = context.dht.as_ref().filter(|_| !private).map(|dht| {
            // Without a port nobody can connect to us, and there is nothing to announce.
            dht.search(info_hash, (port != 0).then_some(port), finders.dht)
        });
        let lsd = context.lsd.as_ref().filter(|_| !private && port != 0);
        let lsd = lsd.map(|lsd| lsd.register(info_hash, port, finders.lsd));
        let announcer = Arc::new(Announcer::spawn(announce, transferred, context.trackers.clone(), finders.trackers));
        Self { announcer, dht, lsd }
    }

    /// Asks all finders for more peers at once. May be called often.
    pub(super) fn want_peers(&self, want: Want) {
        let urgent = want >= Want::Read;
        self.announcer.want_peers(want);
        if let Some(dht) = &self.dht {
            dht.want_peers(urgent);
        }
        if let Some(lsd) = self.lsd.as_ref().filter(|_| urgent) {
            lsd.want_peers();
        }
    }

    /// Tells the trackers that we stop, and waits for them no longer than `limit`.
    pub(super) async fn stop(&self, limit: Duration) {
        self.announcer.stop(limit).await;
    }
}

/// Returns the error of the first tracker that failed, with its URL.
pub(super) fn tracker_fault(announcer: &Announcer) -> Option<String> {
    announcer.status().into_iter().find_map(|tracker| {
        let error = tracker.last?.err()?;
        Some(format!("{}: {error}", tracker.url))
    })
}
