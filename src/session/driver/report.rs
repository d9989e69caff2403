//! The torrent at one moment, as far as its task knows it.

use super::Driver;
use crate::session::report::{PeerReport, Report};

impl Driver {
    pub(super) fn report(&self) -> Report {
        let mut swarm = self.swarm.snapshot(self.now());
        let peers = std::mem::take(&mut swarm.peers).into_iter().filter_map(|snapshot| {
            let peer = self.peers.get(&snapshot.key)?;
            Some(PeerReport {
                transport: peer.transport,
                encrypted: peer.encrypted,
                url: self.web_seeds.get(&peer.addr).map(|seed| seed.url().to_string()),
                swarm: snapshot,
            })
        });
        Report { peers: peers.collect(), swarm, room: self.store.room() }
    }
}
