//! Where a torrent's peers come from: its trackers, the DHT, the local network. (Peers name others, too: `extensions`.)

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::Session;
use crate::discovery::{Announce, Announcer, DhtSearch, LsdTorrent, Transferred};
use crate::metainfo::InfoHash;

/// Everything that looks for peers of one torrent. Dropping it ends all of it; [`Sources::stop`] takes leave first.
pub(super) struct Sources {
    pub(super) announcer: Arc<Announcer>,
    dht: Option<DhtSearch>,
    _lsd: Option<LsdTorrent>,
}

impl Sources {
    /// Begins to look; what is found goes to `found`. A private torrent's peers are its trackers' alone (BEP 27).
    pub(super) fn start(
        session: &Session,
        info_hash: InfoHash,
        tiers: Vec<Vec<String>>,
        private: bool,
        transferred: Arc<Transferred>,
        found: mpsc::Sender<Vec<SocketAddr>>,
    ) -> Self {
        let announce =
            Announce { info_hash, peer_id: session.peer_id, port: session.announced.clone(), tiers, key: session.key };
        let open = !private;
        let dht = session.dht.as_ref().filter(|_| open).map(|dht| {
            // Whom nobody can call need not be announced.
            dht.search(info_hash, (session.port != 0).then_some(session.port), found.clone())
        });
        let lsd = session
            .lsd
            .as_ref()
            .filter(|_| open && session.port != 0)
            .map(|lsd| lsd.register(info_hash, session.port, found.clone()));
        let announcer = Arc::new(Announcer::spawn(announce, transferred, session.trackers.clone(), found));
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
