//! The parts of a session that every torrent uses: settings, sockets, finders of peers, shared limits.

use std::sync::Arc;

use crate::discovery::{AnnouncedPort, Dht, Lsd, TrackerClient};
use crate::net::Dialer;
use crate::wire::PeerId;

use super::awake::AwakeClock;
use super::config::SessionConfig;
use super::queue::Queue;
use super::registry::Registry;
use super::shares::Shares;

/// The parts of a session that its torrents and resolvers share.
pub(super) struct Context {
    pub(super) config: SessionConfig,
    pub(super) peer_id: PeerId,
    /// The port on which we listen for peers; 0: none (through a proxy).
    pub(super) port: u16,
    /// The `key` of announces, by which trackers recognize us if our address changes.
    pub(super) key: u32,
    pub(super) trackers: TrackerClient,
    pub(super) dht: Option<Arc<Dht>>,
    pub(super) lsd: Option<Lsd>,
    /// The port at which others can reach us; 0: they cannot.
    pub(super) announced: AnnouncedPort,
    /// The port that trackers are told. Many refuse 0, so through a proxy it is one at which nobody answers.
    pub(super) tracker_port: AnnouncedPort,
    pub(super) registry: Arc<Registry>,
    /// The clock of every limit for readers and peers.
    pub(super) clock: Arc<AwakeClock>,
    pub(super) dialer: Arc<Dialer>,
    /// Connections and memory, divided among the torrents.
    pub(super) shares: Arc<Shares>,
    /// The turns of background fetching.
    pub(super) queue: Arc<Queue>,
}
