//! The driver: owns each torrent's `Swarm` and turns its actions into I/O.
//!
//! A [`Session`] has one listening port, one cache, one pair of rate limits and one lot of connections and memory
//! ([`shares`]) for all its torrents. A torrent with which nothing happens sleeps. Each torrent has
//! one task ([`driver`]) that owns its `Swarm`: everything that happens to the torrent reaches it through bounded
//! channels, and it never waits on a peer or on a disk (invariant 5). Readers ([`reader`]) look in the store first and
//! speak to the task only when they enter another piece or miss.
//!
//! It does not know the wire format (`net` does), nor what to ask of whom (`swarm` does).

mod driver;
mod extensions;
mod holepunch;
mod metadata;
mod origins;
mod partial;
mod priorities;
mod reader;
mod reads;
mod report;
mod seeding;
mod shares;
mod sources;
mod stream;
mod torrent;
mod verify;
mod webseeds;
mod work;

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::discovery::{AnnouncedPort, Dht, DhtConfig, DhtStatus, Lsd, TrackerClient};
use crate::http::{HttpClient, RequestError};
use crate::metainfo::{InfoHash, Metainfo};
use crate::net::{self, Dialer, Handshaken, Host, Limits, Listener, PortChoice};
use crate::portmap::{PortMapConfig, PortMapStatus, PortMapper};
use crate::route::{Bind, Route};
use crate::store::{Cache, Place, StoreError};
use crate::util::lock;
use crate::wire::{Handshake, PeerId};

pub use metadata::{MetadataError, MetadataProgress};
pub use origins::PeerSource;
pub use priorities::Priority;
pub use reader::{ReadError, Reader};
pub use reads::ReadCounts;
pub use report::{PeerReport, Report};
pub use seeding::SeedLimits;
pub use stream::FileStream;
pub use torrent::Torrent;
pub use verify::{CheckProgress, Verification};

use shares::Shares;

/// What a session is started with.
pub struct SessionConfig {
    /// Where pieces are kept.
    pub cache: Arc<Cache>,
    /// How peers are reached, and how they reach us.
    pub net: net::Config,
    /// Bytes a second each way.
    pub limits: Arc<Limits>,
    /// Serve others.
    pub upload: bool,
    /// Until when complete torrents are served.
    pub seed: SeedLimits,
    /// Exchange addresses with peers (BEP 11), but for private torrents.
    pub pex: bool,
    /// Look for peers in the DHT, from these nodes on (`host:port`); `None`: do not.
    pub dht: Option<Vec<String>>,
    /// Look for peers in the local network (BEP 14).
    pub lsd: bool,
    /// Have the home router pass calls on to us.
    pub port_mapping: Option<PortMapping>,
    /// A read without progress for this long fails; `None`: it waits for ever.
    pub read_timeout: Option<Duration>,
}

impl SessionConfig {
    /// The customary port on every address, no limits, and no peers but those that trackers and peers name.
    pub fn new(cache: Arc<Cache>) -> Self {
        Self {
            cache,
            net: net::Config::default(),
            limits: Arc::new(Limits::new(0, 0)),
            upload: true,
            seed: SeedLimits::default(),
            pex: true,
            dht: None,
            lsd: false,
            port_mapping: None,
            read_timeout: None,
        }
    }
}

/// Which router passes calls on to us. By default that of this network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortMapping {
    /// The router that speaks NAT-PMP or PCP; `None`: that of the default route.
    pub gateway: Option<Ipv4Addr>,
    /// Where routers that speak UPnP are searched for; `None`: by multicast.
    pub search: Option<SocketAddr>,
}

/// What a torrent is added with.
#[derive(Clone, Debug, Default)]
pub struct TorrentOptions {
    /// Fetch only what readers need.
    pub on_demand: bool,
    /// Peers by hand, beside those that trackers give.
    pub peers: Vec<SocketAddr>,
    /// Peers that were found already, while the metadata was fetched.
    pub found: Vec<SocketAddr>,
    /// Complete and perhaps the only one: give each piece once and let the others spread it (BEP 16).
    pub super_seed: bool,
    /// Where its files are.
    pub place: Place,
    /// Do not start unless every piece is there.
    pub whole: bool,
    /// Hash everything that is there before the torrent is used.
    pub verify: bool,
    /// Told while all of it is hashed.
    pub progress: Option<CheckProgress>,
}

/// Why a session or a torrent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The listening port.
    #[error("cannot listen for peers on {what}: {source}; choose another with --port or --bind")]
    Listen {
        /// The address and port asked for.
        what: String,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// The piece cache.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The client for HTTP trackers.
    #[error("cannot talk to trackers: {0}")]
    Http(#[from] RequestError),
    /// The same torrent is here already.
    #[error("{0} is already added")]
    Twice(InfoHash),
    /// It was to be all there ([`TorrentOptions::whole`]): the pieces that are. Whoever asked for that has better words.
    #[error("pieces are missing")]
    Incomplete(fixedbitset::FixedBitSet),
    /// The session is ending.
    #[error("the session is ending")]
    Ending,
}

/// Where the listener sends a caller: to the torrent that it asked for.
struct Doors {
    peer_id: PeerId,
    /// We have a DHT node, whose port we tell those who have one.
    dht: bool,
    torrents: Mutex<HashMap<InfoHash, Door>>,
}

/// Whom callers of one info hash are for.
struct Door {
    callers: mpsc::Sender<Box<Handshaken>>,
    /// A torrent's. Else only its metadata is looked for: whoever comes next takes the door over.
    is_torrent: bool,
}

impl Doors {
    /// What we say first.
    fn handshake(&self, info_hash: InfoHash) -> Handshake {
        let mut ours = Handshake::new(info_hash, self.peer_id);
        if self.dht {
            ours.reserved = ours.reserved.with_dht();
        }
        ours
    }
}

impl Host for Doors {
    fn find(&self, matches: &dyn Fn(&InfoHash) -> bool) -> Option<Handshake> {
        lock(&self.torrents).keys().find(|hash| matches(hash)).map(|hash| self.handshake(*hash))
    }

    fn accept(&self, caller: Handshaken) {
        // A torrent that is too busy to take a caller loses one, no more.
        if let Some(door) = lock(&self.torrents).get(&caller.theirs.info_hash) {
            let _ = door.callers.try_send(Box::new(caller));
        }
    }
}

/// All torrents of one process.
pub struct Session {
    config: SessionConfig,
    peer_id: PeerId,
    port: u16,
    /// Tells trackers that it is us, should our address change.
    key: u32,
    trackers: TrackerClient,
    dht: Option<Arc<Dht>>,
    lsd: Option<Lsd>,
    /// What others are told to call.
    announced: AnnouncedPort,
    mapper: Option<PortMapper>,
    doors: Arc<Doors>,
    dialer: Arc<Dialer>,
    /// What its torrents share beyond the cache and the rates.
    shares: Arc<Shares>,
    _listener: Listener,
}

impl Session {
    /// Opens the listening port. Must be called within a tokio runtime.
    pub fn start(config: SessionConfig) -> Result<Self, SessionError> {
        let (dialer, sockets) = config.net.open().map_err(|source| {
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
            tracing::warn!("no uTP, for UDP port {port} cannot be had: {error}; peers are reached over TCP alone");
        }
        let trackers = TrackerClient::new(config.net.route.clone())?;
        let peer_id = PeerId::generate(&mut rand::rng());
        // A proxy carries no UDP.
        let Route { proxy, bind } = &config.net.route;
        let direct = proxy.is_none();
        let dht = config.dht.as_ref().filter(|_| direct).and_then(|bootstrap| {
            let started = Dht::start(DhtConfig {
                port,
                bind: bind.clone(),
                bootstrap: bootstrap.clone(),
                state_dir: Some(config.cache.dir().to_owned()),
            });
            started
                .inspect_err(|error| tracing::warn!("no DHT, for no UDP port can be had: {error}"))
                .ok()
                .map(Arc::new)
        });
        let lsd = (config.lsd && direct).then(|| Lsd::start(bind));
        let doors = Arc::new(Doors { peer_id, dht: dht.is_some(), torrents: Mutex::default() });
        let listener = Listener::start(sockets, &config.net, doors.clone());
        let dialer = Arc::new(dialer);
        let mapper = config.port_mapping.as_ref().and_then(|mapping| {
            // From loopback or an IPv6 address there is nothing to map.
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
        let shares = Arc::new(Shares::new(config.cache.usage().memory_limit));
        let announced = AnnouncedPort::from(port);
        if let Some(mapper) = &mapper {
            tokio::spawn(follow(mapper.status(), port, announced.clone()));
        }
        Ok(Self {
            mapper,
            announced,
            config,
            peer_id,
            port,
            key: rand::random(),
            trackers,
            dht,
            lsd,
            doors,
            dialer,
            shares,
            _listener: listener,
        })
    }

    /// For requests over HTTP, by the session's way.
    pub fn http(&self) -> &HttpClient {
        self.trackers.http()
    }

    /// What is known of the DHT; `None`: it is not used.
    pub fn dht(&self) -> Option<DhtStatus> {
        self.dht.as_ref().map(|dht| dht.status())
    }

    /// The port that peers call; 0: nobody can (through a proxy).
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The rate limits; they may be changed while running.
    pub fn limits(&self) -> &Arc<Limits> {
        &self.config.limits
    }

    /// Adds a torrent: opens its part of the cache and starts its task.
    pub async fn add(&self, metainfo: Metainfo, options: TorrentOptions) -> Result<Arc<Torrent>, SessionError> {
        let info_hash = metainfo.info_hash;
        let (door, callers) = mpsc::channel(16);
        {
            let mut doors = lock(&self.doors.torrents);
            if doors.get(&info_hash).is_some_and(|door| door.is_torrent) {
                return Err(SessionError::Twice(info_hash));
            }
            doors.insert(info_hash, Door { callers: door, is_torrent: true });
        }
        let added = driver::start(self, Arc::new(metainfo), options, callers).await;
        if added.is_err() {
            lock(&self.doors.torrents).remove(&info_hash);
        }
        added
    }

    /// Ends a torrent: its reads fail, its trackers are told, its state is saved. Takes 2 s at most for the trackers.
    pub async fn remove(&self, torrent: &Torrent) {
        lock(&self.doors.torrents).remove(&torrent.metainfo().info_hash);
        torrent.stop().await;
    }

    /// The same for many at the same time; no longer for the trackers.
    pub async fn remove_all(&self, torrents: &[Arc<Torrent>]) {
        {
            let mut doors = lock(&self.doors.torrents);
            torrents.iter().for_each(|torrent| drop(doors.remove(&torrent.metainfo().info_hash)));
        }
        let mut stopping = JoinSet::new();
        for torrent in torrents {
            let torrent = torrent.clone();
            stopping.spawn(async move { torrent.stop().await });
        }
        stopping.join_all().await;
    }
}

impl Session {
    /// Remembers the DHT's nodes for the next run, and has the router forget us (1 s at most). Torrents are to be
    /// removed before.
    pub async fn stop(&self) {
        let dht = async {
            if let Some(dht) = &self.dht {
                dht.stop().await;
            }
        };
        let mapper = async {
            if let Some(mapper) = &self.mapper {
                mapper.stop().await;
            }
        };
        tokio::join!(dht, mapper);
    }
}

/// Others are told the port at which the router takes calls for us. Ends with the mapper.
async fn follow(mut status: watch::Receiver<PortMapStatus>, ours: u16, announced: AnnouncedPort) {
    while status.changed().await.is_ok() {
        let port = status.borrow_and_update().mapping().map_or(ours, |mapping| mapping.tcp_port);
        announced.set(port);
    }
}
