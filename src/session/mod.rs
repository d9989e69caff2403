//! Torrents at work: sockets, disk and timers for the pure state machines in [`swarm`](crate::swarm).
//!
//! A [`Session`] has one listening port, one cache, one pair of rate limits, and one budget of connections and memory
//! ([`shares`]) for all its torrents. Each torrent has one task ([`driver`]) that owns its `Swarm`: every event reaches
//! it through bounded channels, and it never waits on a peer or a disk (invariant 5). An idle torrent sleeps. Readers
//! ([`reader`]) look in the store first, and send a message to the task only when they enter another piece or have to
//! wait.
//!
//! It knows neither the wire format (see `net` and `wire`), nor the peer protocol or what to request from which peer
//! (see `swarm`).
//!
//! | file | owns |
//! |---|---|
//! | `driver` | one torrent's task |
//! | `magnet` | the search for the metadata of a magnet link |
//! | `reader`, `stream` | an open file: reads, and how they wait |
//! | `local_file`, `local_files` | a complete file that the kernel reads itself |
//! | `torrent` | the handle to a torrent |
//! | `sources` | finders of peers |
//! | `context`, `registry`, `shares`, `queue` | what all torrents have in common |
//! | `awake` | the clock, which stands still while the process sleeps |
//! | `verify`, `seeding`, `priorities`, `reads`, `report`, `block_times` | one aspect of a torrent each |
//! | `config`, `error` | settings and errors |

mod awake;
mod block_times;
mod config;
mod context;
mod driver;
mod error;
mod local_file;
mod local_files;
mod magnet;
mod priorities;
mod queue;
mod reader;
mod reads;
mod registry;
mod report;
mod seeding;
mod shares;
mod sources;
mod stream;
mod torrent;
mod verify;

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::discovery::{AnnouncedPort, Dht, DhtConfig, DhtStatus, Lsd, SharedSocket, TrackerClient};
use crate::http::HttpClient;
use crate::metainfo::{Magnet, Metainfo};
use crate::net::{Bencoded, Limits, Listener, PortChoice};
use crate::portmap::{PortMapConfig, PortMapStatus, PortMapper};
use crate::route::{Bind, Route};
use crate::wire::PeerId;

pub use crate::swarm::{MetadataProgress, PeerSource};
pub use config::{PortMapping, SessionConfig, TorrentOptions};
pub use error::SessionError;
pub use local_file::LocalFile;
pub use magnet::MetadataError;
pub use priorities::Priority;
pub use queue::ACTIVE_DOWNLOADS;
pub use reader::{ReadError, Reader, Span};
pub use reads::ReadCounts;
pub use report::{PeerReport, Report, WebSeedReport};
pub use seeding::SeedLimits;
pub use stream::FileStream;
pub use torrent::Torrent;
pub use verify::{CheckProgress, Verification};

use awake::{AwakeClock, Heartbeat};
use context::Context;
use queue::Queue;
use registry::Registry;
use shares::Shares;

/// Ports that trackers accept: neither reserved for the system nor customary for file sharing, which some refuse.
const PLAUSIBLE_PORTS: std::ops::RangeInclusive<u16> = 49_152..=64_999;

/// All torrents of one process.
pub struct Session {
    context: Context,
    mapper: Option<PortMapper>,
    _listener: Listener,
    _heartbeat: Heartbeat,
}

impl Session {
    /// Opens the listening port. Must be called within a tokio runtime.
    pub fn start(config: SessionConfig) -> Result<Self, SessionError> {
        let (dialer, mut sockets) = config.net.open().map_err(|source| {
            let port = match config.net.port {
                PortChoice::Exactly(port) => format!("port {port}"),
                PortChoice::Customary => "any port".into(),
            };
            let what = match &config.net.route.bind {
                Bind::Anywhere => port,
                bind => format!("{bind}, {port}"),
            };
            SessionError::Listen { what, source }
        })?;
        let port = sockets.port();
        if let Some(error) = sockets.utp_missing() {
            tracing::warn!("cannot open UDP port {port}: {error}; peers are reached over TCP only, without uTP");
        }
        let trackers = TrackerClient::new(config.net.route.clone())?;
        let peer_id = PeerId::generate(&mut rand::rng());
        // A proxy carries no UDP.
        let Route { proxy, bind } = &config.net.route;
        let direct = proxy.is_none();
        let dht = config.dht.as_ref().filter(|_| direct).and_then(|bootstrap| {
            let shared = sockets.take_bencoded().into_iter();
            let shared: Vec<SharedSocket> =
                shared.map(|Bencoded { socket, received }| SharedSocket { socket, received }).collect();
            let config = DhtConfig {
                port,
                bind: bind.clone(),
                bootstrap: bootstrap.clone(),
                state_dir: Some(config.cache.dir().to_owned()),
            };
            // Without uTP it has the UDP port for itself.
            let started = if shared.is_empty() { Dht::start(config) } else { Dht::start_on(shared, config) };
            started
                .inspect_err(|error| tracing::warn!("cannot open a UDP port for the DHT: {error}; it is not used"))
                .ok()
                .map(Arc::new)
        });
        let lsd = (config.lsd && direct).then(|| Lsd::start(bind));
        let mapper = config.port_mapping.as_ref().and_then(|mapping| {
            // There is nothing to map from a loopback or an IPv6 address.
            let bind = match bind.address() {
                Some(IpAddr::V4(ip)) if !ip.is_loopback() || mapping.gateway.is_some() => Some(ip),
                Some(_) => return None,
                None => None,
            };
            let PortMapping { gateway, search } = *mapping;
            let port = NonZeroU16::new(port)?;
            let config = PortMapConfig { bind, gateway, ..PortMapConfig::new(port) };
            Some(PortMapper::spawn(PortMapConfig { search: search.unwrap_or(config.search), ..config }))
        });
        let registry = Arc::new(Registry::new(peer_id, dht.is_some()));
        let listener = Listener::start(sockets, &config.net, registry.clone());
        let announced = AnnouncedPort::from(port);
        let tracker_port = match (direct, config.net.port) {
            (true, _) => announced.clone(),
            // The user may have the proxy's machine forward it.
            (false, PortChoice::Exactly(port)) if port != 0 => port.into(),
            (false, _) => rand::random_range(PLAUSIBLE_PORTS).into(),
        };
        if let Some(mapper) = &mapper {
            tokio::spawn(follow_mapping(mapper.status(), port, announced.clone()));
        }
        let (clock, heartbeat) = AwakeClock::start();
        let context = Context {
            peer_id,
            port,
            key: rand::random(),
            trackers,
            dht,
            lsd,
            announced,
            tracker_port,
            registry,
            clock,
            dialer: Arc::new(dialer),
            queue: Arc::new(Queue::new(config.active_downloads)),
            shares: Arc::new(Shares::new(config.cache.usage().memory_limit)),
            config,
        };
        Ok(Self { context, mapper, _listener: listener, _heartbeat: heartbeat })
    }

    /// Returns the HTTP client of the session, which uses its proxy, address or interface.
    pub(crate) fn http(&self) -> &HttpClient {
        self.context.trackers.http()
    }

    /// Returns the state of the DHT; `None` if it is not used.
    pub fn dht(&self) -> Option<DhtStatus> {
        self.context.dht.as_ref().map(|dht| dht.status())
    }

    /// Returns the port on which we listen for peers; 0 if there is none (through a proxy).
    pub fn port(&self) -> u16 {
        self.context.port
    }

    /// Returns the rate limits, which may be changed at any time.
    pub fn limits(&self) -> &Arc<Limits> {
        &self.context.config.limits
    }

    /// Returns the maximum number of torrents that download in the background at a time; `None`: no limit.
    pub fn active_downloads(&self) -> Option<usize> {
        self.context.queue.limit()
    }

    /// Changes the maximum number of torrents that download in the background at a time; `None`: no limit.
    pub fn set_active_downloads(&self, limit: Option<usize>) {
        self.context.queue.set_limit(limit);
    }

    /// Adds a torrent: opens its part of the cache and starts its task. The torrent ends when it is removed, or when its
    /// handle and every reader are dropped.
    pub async fn add(&self, metainfo: Metainfo, options: TorrentOptions) -> Result<Arc<Torrent>, SessionError> {
        let info_hash = metainfo.info_hash;
        let incoming = self.context.registry.add_torrent(info_hash)?;
        let added = driver::start::start(&self.context, Arc::new(metainfo), options, incoming).await;
        if added.is_err() {
            self.context.registry.remove([info_hash]);
        }
        added
    }

    /// Fetches the metadata that a magnet link names. Returns the torrent, and the addresses of peers found on the way.
    /// Dropping the future ends the search.
    pub async fn resolve(
        &self,
        magnet: &Magnet,
        peers: Vec<SocketAddr>,
        limit: Duration,
        progress: &watch::Sender<MetadataProgress>,
    ) -> Result<(Metainfo, Vec<SocketAddr>), MetadataError> {
        magnet::resolve(&self.context, magnet, peers, limit, progress).await
    }

    /// Ends a torrent: its reads fail, its trackers are told, its state is saved. Takes at most 2 s for the trackers.
    pub async fn remove(&self, torrent: &Torrent) {
        self.context.registry.remove([torrent.metainfo().info_hash]);
        torrent.stop().await;
    }

    /// Ends many torrents at once; takes no longer for the trackers than for one.
    pub async fn remove_all(&self, torrents: &[Arc<Torrent>]) {
        self.context.registry.remove(torrents.iter().map(|torrent| torrent.metainfo().info_hash));
        let mut stopping = JoinSet::new();
        for torrent in torrents {
            let torrent = torrent.clone();
            stopping.spawn(async move { torrent.stop().await });
        }
        stopping.join_all().await;
    }

    /// Saves the DHT's nodes for the next run, removes the port mapping from the router (1 s at most), and closes the
    /// cache: when this returns, its directory can be opened again, whoever still has a handle to a torrent. Torrents must
    /// be removed before, or their trackers are not told.
    pub async fn stop(&self) {
        let dht = async {
            if let Some(dht) = &self.context.dht {
                dht.stop().await;
            }
        };
        let mapper = async {
            if let Some(mapper) = &self.mapper {
                mapper.stop().await;
            }
        };
        tokio::join!(dht, mapper);
        let cache = self.context.config.cache.clone();
        let _ = tokio::task::spawn_blocking(move || cache.close()).await;
    }
}

/// Announces the port that the router forwards to us, or else our own. Ends with the mapper.
async fn follow_mapping(mut status: watch::Receiver<PortMapStatus>, ours: u16, announced: AnnouncedPort) {
    while status.changed().await.is_ok() {
        let port = status.borrow_and_update().mapping().map_or(ours, |mapping| mapping.tcp_port);
        announced.set(port);
    }
}
