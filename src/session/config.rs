//! Settings of a session and of each torrent in it.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::queue::ACTIVE_DOWNLOADS;
use super::seeding::SeedLimits;
use super::verify::CheckProgress;
use crate::net::{self, Limits};
use crate::store::{Cache, Place};

/// Settings of a session.
pub struct SessionConfig {
    /// The piece cache.
    pub cache: Arc<Cache>,
    /// How peers are reached, and how they reach us.
    pub net: net::Config,
    /// The rate limits.
    pub limits: Arc<Limits>,
    /// Serve others.
    pub upload: bool,
    /// Maximum number of torrents that download in the background at a time; `None`: no limit.
    pub active_downloads: Option<usize>,
    /// Until when complete torrents are served.
    pub seed: SeedLimits,
    /// Exchange addresses with peers (BEP 11), except for private torrents.
    pub pex: bool,
    /// Look for peers in the DHT, joining it at these nodes (`host:port`); `None`: do not.
    pub dht: Option<Vec<String>>,
    /// Look for peers in the local network (BEP 14).
    pub lsd: bool,
    /// Have the router forward our port.
    pub port_mapping: Option<PortMapping>,
    /// How long a read may go without progress before it fails; `None`: for ever.
    pub read_timeout: Option<Duration>,
}

impl SessionConfig {
    /// Returns the defaults: the customary port on every address, no rate limits, and no other sources of peers than
    /// trackers and peer exchange.
    pub fn new(cache: Arc<Cache>) -> Self {
        Self {
            cache,
            net: net::Config::default(),
            limits: Arc::new(Limits::new(0, 0)),
            upload: true,
            active_downloads: Some(ACTIVE_DOWNLOADS),
            seed: SeedLimits::default(),
            pex: true,
            dht: None,
            lsd: false,
            port_mapping: None,
            read_timeout: None,
        }
    }
}

/// The router that forwards our port; by default the one of this network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortMapping {
    /// The router that speaks NAT-PMP or PCP; `None`: the default gateway.
    pub gateway: Option<Ipv4Addr>,
    /// Where routers that speak UPnP are searched for; `None`: by multicast.
    pub search: Option<SocketAddr>,
}

/// Settings of a torrent.
#[derive(Clone, Debug, Default)]
pub struct TorrentOptions {
    /// Fetch only what readers need.
    pub on_demand: bool,
    /// When the user added the torrent; `None`: now. The oldest torrents are downloaded first.
    pub since: Option<SystemTime>,
    /// Peers named by the user.
    pub peers: Vec<SocketAddr>,
    /// Peers found while the metadata was fetched.
    pub found: Vec<SocketAddr>,
    /// Complete and perhaps the only seed: serve each piece once and let the others spread it (BEP 16).
    pub super_seed: bool,
    /// Where the files are.
    pub place: Place,
    /// Fail unless every piece is there.
    pub whole: bool,
    /// Hash everything that is there before the torrent is used.
    pub verify: bool,
    /// Receives the progress of that hashing.
    pub progress: Option<CheckProgress>,
}
