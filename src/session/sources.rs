//! Where a torrent's peers come from: its trackers, the DHT, the local network. (Peers name others, too: `extensions`.)

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::Session;
use super::origins::PeerSource;
use crate::discovery::{Announce, Announcer, DhtSearch, LsdTorrent, Transferred};
use crate::metainfo::InfoHash;

/// Batches of addresses of one kind that wait for the torrent's task.
const WAITING: usize = 16;

/// Where those who look for peers send what they find: each its own way, so that it is known who found whom.
pub(super) struct Finders {
    trackers: mpsc::Sender<Vec<SocketAddr>>,
    dht: mpsc::Sender<Vec<SocketAddr>>,
    lsd: mpsc::Sender<Vec<SocketAddr>>,
}

/// The other end.
pub(super) struct Found {
    trackers: mpsc::Receiver<Vec<SocketAddr>>,
    dht: mpsc::Receiver<Vec<SocketAddr>>,
    lsd: mpsc::Receiver<Vec<SocketAddr>>,
}

impl Finders {
    pub(super) fn channel() -> (Self, Found) {
        let [trackers, dht, lsd] = [(); 3].map(|()| mpsc::channel(WAITING));
        let found = Found { trackers: trackers.1, dht: dht.1, lsd: lsd.1 };
        (Self { trackers: trackers.0, dht: dht.0, lsd: lsd.0 }, found)
    }
}

impl Found {
    /// The next addresses, and who found them; `None`: nobody looks any more. Nothing is lost when it is dropped.
    pub(super) async fn recv(&mut self) -> Option<(PeerSource, Vec<SocketAddr>)> {
        tokio::select! {
            Some(addrs) = self.trackers.recv() => Some((PeerSource::Tracker, addrs)),
            Some(addrs) = self.dht.recv() => Some((PeerSource::Dht, addrs)),
            Some(addrs) = self.lsd.recv() => Some((PeerSource::Lsd, addrs)),
            else => None,
        }
    }
}

/// Everything that looks for peers of one torrent. Dropping it ends all of it; [`Sources::stop`] takes leave first.
pub(super) struct Sources {
    pub(super) announcer: Arc<Announcer>,
    dht: Option<DhtSearch>,
    _lsd: Option<LsdTorrent>,
}

impl Sources {
    /// Begins to look; what is found goes to `finders`. A private torrent's peers are its trackers' alone (BEP 27).
    pub(super) fn start(
        session: &Session,
        info_hash: InfoHash,
        tiers: Vec<Vec<String>>,
        private: bool,
        transferred: Arc<Transferred>,
        finders: Finders,
    ) -> Self {
        let announce =
            Announce { info_hash, peer_id: session.peer_id, port: session.announced.clone(), tiers, key: session.key };
        let open = !private;
        let dht = session.dht.as_ref().filter(|_| open).map(|dht| {
            // Whom nobody can call need not be announced.
            dht.search(info_hash, (session.port != 0).then_some(session.port), finders.dht)
        });
        let lsd = session
            .lsd
            .as_ref()
            .filter(|_| open && session.port != 0)
            .map(|lsd| lsd.register(info_hash, session.port, finders.lsd));
        let announcer = Arc::new(Announcer::spawn(announce, transferred, session.trackers.clone(), finders.trackers));
        Self { announcer, dht, _lsd: lsd }
    }

    /// Few peers are left; somebody reads, if it is `urgent`. May be called often.
    pub(super) fn want_peers(&self, urgent: bool) {
        self.announcer.want_peers(urgent);
        if let Some(dht) = &self.dht {
            dht.want_peers();
        }
    }

    /// Takes leave of the trackers, within `limit`.
    pub(super) async fn stop(&self, limit: Duration) {
        self.announcer.stop(limit).await;
    }

    /// Why there may be no peers, in words.
    pub(super) fn fault(&self) -> Option<String> {
        self.announcer.status().into_iter().find_map(|tracker| {
            let error = tracker.last?.err()?;
            Some(format!("{}: {error}", tracker.url))
        })
    }
}
