//! Configuration and limits of a tracker.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// Customary port of BitTorrent trackers, for TCP and UDP.
pub const DEFAULT_PORT: u16 = 6969;

/// Bounds on a tracker's memory and connections.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Maximum number of torrents.
    pub torrents: usize,
    /// Maximum number of peers, in all swarms together.
    pub peers: usize,
    /// Maximum number of peers per host, which is an IPv4 address or an IPv6 /64 network.
    pub host_peers: u32,
    /// Maximum number of peers per host in one swarm. Several peers may share the address of a NAT, but not most of a
    /// swarm.
    pub host_peers_of_torrent: u32,
    /// Maximum number of peers in one response.
    pub response_peers: usize,
    /// Announce interval. A peer that sends no announce for twice as long is forgotten.
    pub interval: Duration,
    /// Maximum number of slow connections. The oldest is closed for each further one.
    pub connections: usize,
    /// Maximum lifetime of a connection.
    pub connection_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            torrents: 1_000_000,
            peers: 1_000_000,
            host_peers: 20_000,
            host_peers_of_torrent: 100,
            response_peers: 200,
            interval: Duration::from_secs(30 * 60),
            connections: 500,
            connection_time: Duration::from_secs(15),
        }
    }
}

impl Limits {
    /// Returns the seconds without an announce after which a peer is forgotten.
    pub(super) fn peer_timeout(&self) -> u32 {
        u32::try_from(self.interval.as_secs().saturating_mul(2)).unwrap_or(u32::MAX)
    }
}

/// Configuration of a tracker.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Addresses to listen on, over TCP and UDP. Port 0 picks a free port. If empty, all addresses at [`DEFAULT_PORT`].
    pub listen: Vec<SocketAddr>,
    /// Bounds on memory and connections.
    pub limits: Limits,
    /// File with the info hashes to serve. Without it and `torrents`, every torrent is served.
    pub allow: Option<PathBuf>,
    /// Directory with the `.torrent` files to serve.
    pub torrents: Option<PathBuf>,
    /// File that keeps the swarms across a restart.
    pub state: Option<PathBuf>,
    /// Reverse proxies whose `X-Forwarded-For` header is trusted.
    pub trusted_proxies: Vec<IpAddr>,
    /// Whether the status page lists the info hashes of the largest swarms.
    pub show_torrents: bool,
}
