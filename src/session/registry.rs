//! The torrents of a session by info hash: which one an incoming connection is for.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::sync::mpsc;

use super::error::SessionError;
use crate::metainfo::InfoHash;
use crate::net::{Handshaken, Host};
use crate::util::lock;
use crate::wire::{Handshake, PeerId};

/// Maximum number of incoming connections waiting for a torrent's task; if it is busier than that, further ones are
/// dropped.
const INCOMING: usize = 16;

/// A peer that called us.
#[derive(Debug)]
pub(super) enum Call {
    /// Its connection; boxed to keep the channel small.
    Connected(Box<Handshaken>),
    /// It was refused, because it did not use the encryption that is required, and may be dialed here; port 0: unknown.
    Refused(SocketAddr),
}

/// The incoming connections of one torrent.
pub(super) type IncomingConnections = mpsc::Receiver<Call>;

/// Where the listener delivers incoming connections.
pub(super) struct Registry {
    peer_id: PeerId,
    /// We have a DHT node.
    dht: bool,
    entries: Mutex<HashMap<InfoHash, Entry>>,
}

struct Entry {
    incoming: mpsc::Sender<Call>,
    /// The torrent itself, rather than a search for its metadata, which a torrent replaces.
    is_torrent: bool,
}

impl Registry {
    pub(super) fn new(peer_id: PeerId, dht: bool) -> Self {
        Self { peer_id, dht, entries: Mutex::default() }
    }

    /// Returns our handshake for a torrent.
    pub(super) fn handshake(&self, info_hash: InfoHash) -> Handshake {
        let mut ours = Handshake::new(info_hash, self.peer_id);
        if self.dht {
            ours.reserved = ours.reserved.with_dht();
        }
        ours
    }

    /// Registers a torrent, and returns its incoming connections.
    pub(super) fn add_torrent(&self, info_hash: InfoHash) -> Result<IncomingConnections, SessionError> {
        self.add(info_hash, true).map(|(_, incoming)| incoming)
    }

    /// Registers a search for metadata, and returns its incoming connections. It is registered until the returned
    /// registration is dropped or a torrent replaces it.
    pub(super) fn add_resolver(
        self: &Arc<Self>,
        info_hash: InfoHash,
    ) -> Result<(Registration, IncomingConnections), SessionError> {
        let (sender, incoming) = self.add(info_hash, false)?;
        Ok((Registration { registry: self.clone(), info_hash, incoming: sender }, incoming))
    }

    fn add(
        &self,
        info_hash: InfoHash,
        is_torrent: bool,
    ) -> Result<(mpsc::Sender<Call>, IncomingConnections), SessionError> {
        let (sender, incoming) = mpsc::channel(INCOMING);
        let mut entries = lock(&self.entries);
        if entries.get(&info_hash).is_some_and(|entry| entry.is_torrent) {
            return Err(SessionError::Twice(info_hash));
        }
        entries.insert(info_hash, Entry { incoming: sender.clone(), is_torrent });
        Ok((sender, incoming))
    }

    /// Removes torrents: further incoming connections for them are refused.
    pub(super) fn remove(&self, info_hashes: impl IntoIterator<Item = InfoHash>) {
        let mut entries = lock(&self.entries);
        info_hashes.into_iter().for_each(|info_hash| drop(entries.remove(&info_hash)));
    }
}

impl Host for Registry {
    fn find(&self, matches: &dyn Fn(&InfoHash) -> bool) -> Option<Handshake> {
        lock(&self.entries).keys().find(|hash| matches(hash)).map(|hash| self.handshake(*hash))
    }

    fn accept(&self, peer: Handshaken) {
        if let Some(entry) = lock(&self.entries).get(&peer.theirs.info_hash) {
            let _ = entry.incoming.try_send(Call::Connected(Box::new(peer)));
        }
    }

    fn refuse(&self, info_hash: InfoHash, addr: SocketAddr) {
        if let Some(entry) = lock(&self.entries).get(&info_hash) {
            let _ = entry.incoming.try_send(Call::Refused(addr));
        }
    }
}

/// The registration of a search for metadata.
pub(super) struct Registration {
    registry: Arc<Registry>,
    info_hash: InfoHash,
    incoming: mpsc::Sender<Call>,
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut entries = lock(&self.registry.entries);
        // Another search or the torrent itself may have replaced it.
        if entries.get(&self.info_hash).is_some_and(|entry| entry.incoming.same_channel(&self.incoming)) {
            entries.remove(&self.info_hash);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torrent_replaces_a_search_for_its_metadata() {
        let registry = Arc::new(Registry::new(PeerId([0; 20]), false));
        let hash = InfoHash([1; 20]);
        let is_known = || registry.find(&|other| *other == hash).is_some();
        let (search, _incoming) = registry.add_resolver(hash).unwrap();
        let (later_search, _incoming) = registry.add_resolver(hash).unwrap();
        drop(search);
        assert!(is_known(), "the later search is still registered");
        let _incoming = registry.add_torrent(hash).unwrap();
        drop(later_search);
        assert!(is_known());
        assert!(matches!(registry.add_torrent(hash), Err(SessionError::Twice(_))));
        assert!(matches!(registry.add_resolver(hash), Err(SessionError::Twice(_))));
        registry.remove([hash]);
        assert!(!is_known());
        drop(registry.add_resolver(hash).unwrap());
        assert!(!is_known());
    }
}
