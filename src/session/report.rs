//! A torrent at one moment, for people.

use crate::net::Transport;
use crate::swarm::{PeerSnapshot, Snapshot};

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
    /// The connection as the swarm knows it.
    pub swarm: PeerSnapshot,
    /// The transport protocol.
    pub transport: Transport,
    /// The connection is encrypted.
    pub encrypted: bool,
    /// The URL of a web seed, without parts that may be secret.
    pub url: Option<String>,
}

/// A web seed in a torrent's list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebSeedReport {
    /// The URL, without parts that may be secret.
    pub url: String,
    /// Why it is not used, or not for all of the torrent; `None` if nothing is known against it.
    pub fault: Option<String>,
}
