//! A BitTorrent tracker: who is in which swarm, over HTTP (BEP 3, 7, 23, 24, 48) and UDP (BEP 15) on one port.
//!
//! Pure, with time and chance as arguments:
//! - `table`: the swarms, dealt out to parts with a lock each; `swarm`: the peers of one torrent in one address family;
//!   `hosts`: how many peers each host has.
//! - `request`, `query`, `answer`: HTTP, from a head to values and from values to bencode.
//! - `datagram`, `ticket`: UDP, and the connection ids that prove an address.
//! - `page`: what is told to people and to Prometheus; `counters`: what that is made of.
//!
//! Around them:
//! - `service`: what both protocols share, from a request to an answer. `listen`, `http`, `udp`: sockets; `workers`: the
//!   threads that wait on them.
//! - `state`: the file that brings the swarms over a restart. `allow`: which torrents are served. `house`: what is done
//!   now and then.
//!
//! Invariants: torrents, peers, peers of one host, peers in an answer, connections and their lifetimes are all bounded,
//! and memory with them: 55 to 150 bytes a peer in swarms of ten and more, 220 where each is alone. A peer is known by the
//! address its request came from, never by one that it claims; by UDP only after it has shown that it hears us there.
//! Who is silent for two intervals is forgotten. No answer is longer than a datagram should be, and none to an unproven
//! address is longer than its request. To pick peers costs what is picked, not what is there.
//!
//! HTTP is read with `httparse` and served without a framework: a connection carries one small request and one small
//! answer, and all else costs more than both.
//!
//! Not here: TLS (a reverse proxy has it: [`Config::trusted`]), peer ids in answers, accounts and ratios.

mod allow;
mod answer;
mod counters;
mod datagram;
mod hosts;
mod house;
mod http;
mod listen;
mod page;
mod query;
mod request;
mod service;
mod state;
mod swarm;
mod table;
mod ticket;
mod udp;
mod workers;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::JoinSet;

pub use allow::AllowError;
use house::House;
use http::Slow;
use service::Service;
use workers::Workers;

use crate::sys::datagrams::enable_packet_info;

/// Where trackers listen by custom.
pub const DEFAULT_PORT: u16 = 6969;
/// Threads on one socket; more only wait for each other.
const MAX_THREADS: usize = 4;

/// How much a tracker takes on.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Torrents known at a time.
    pub torrents: usize,
    /// Peers known at a time, in all swarms.
    pub peers: usize,
    /// Of these, peers at one IPv4 address or in one IPv6 network of 64 bits.
    pub host_peers: u32,
    /// The same in one swarm. Many may be behind one address translator, but not most.
    pub host_peers_of_torrent: u32,
    /// Peers in one answer.
    pub answer: usize,
    /// How often peers are asked to announce. Who is silent for twice as long is forgotten.
    pub interval: Duration,
    /// Slow connections at a time; for more the oldest make room.
    pub connections: usize,
    /// How long a connection may last, whatever it does.
    pub connection_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            torrents: 1_000_000,
            peers: 1_000_000,
            host_peers: 20_000,
            host_peers_of_torrent: 100,
            answer: 200,
            interval: Duration::from_secs(30 * 60),
            connections: 500,
            connection_time: Duration::from_secs(15),
        }
    }
}

impl Limits {
    /// After so many seconds without a word a peer is gone.
    fn silence(&self) -> u32 {
        u32::try_from(self.interval.as_secs().saturating_mul(2)).unwrap_or(u32::MAX)
    }
}

/// What a tracker is to do.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Where it listens, by TCP and UDP alike (port 0: any free one). None: on all addresses, at [`DEFAULT_PORT`].
    pub listen: Vec<SocketAddr>,
    /// How much it takes on.
    pub limits: Limits,
    /// A file of the info hashes that are served; without it and `torrents`, all are.
    pub allow: Option<PathBuf>,
    /// A directory of `.torrent` files that are served.
    pub torrents: Option<PathBuf>,
    /// Where the swarms are kept over a restart.
    pub state: Option<PathBuf>,
    /// Reverse proxies whose `X-Forwarded-For` is believed.
    pub trusted: Vec<IpAddr>,
    /// The status page may name torrents: the largest swarms.
    pub show_torrents: bool,
}

/// Why a tracker does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address is taken, not of this machine, or not allowed.
    #[error("cannot listen at {addr}: {source}; name another address or port with --listen")]
    Listen {
        /// Where.
        addr: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// It is not known what to serve.
    #[error(transparent)]
    Allow(#[from] AllowError),
    /// The state file cannot be used.
    #[error("cannot use the state file {}: {why}", path.display())]
    State {
        /// Its path.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// Such as a lack of threads.
    #[error("cannot start a tracker: {0}")]
    System(#[from] io::Error),
}

/// What a tracker knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Torrents, those included of which only the completed downloads are remembered.
    pub torrents: usize,
    /// Peers that have everything.
    pub seeders: usize,
    /// The others.
    pub leechers: usize,
    /// Downloads completed, as far as the tracker was told.
    pub completed: u64,
}

/// A tracker at work. Dropping it stops it too, only without waiting and saving; [`Tracker::stop`] does both.
pub struct Tracker {
    addresses: Vec<SocketAddr>,
    house: Arc<House>,
    slow: Arc<Slow>,
    workers: Workers,
    tasks: JoinSet<()>,
}

impl std::fmt::Debug for Tracker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tracker").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

impl Tracker {
    /// Listens, reads the lists and the saved state, and serves.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let (tcp, udp, addresses) = listen::bind(&config.listen)?;
        let service = Arc::new(Service::new(config.limits, config.trusted, config.show_torrents));
        let house = Arc::new(House::new(service.clone(), config.allow, config.torrents, config.state));
        let opened = house.clone();
        tokio::task::spawn_blocking(move || opened.open()).await.map_err(io::Error::other)??;

        let each = std::thread::available_parallelism().map_or(1, |cores| cores.get().min(MAX_THREADS));
        let (slow, mut workers) = (Arc::new(Slow::default()), Workers::default());
        for socket in udp {
            enable_packet_info(&socket)?;
            let service = service.clone();
            workers.start("tracker-udp", socket, each, move |socket, end| udp::serve(socket, end, &service))?;
        }
        for listener in tcp {
            let (service, slow, runtime) = (service.clone(), slow.clone(), Handle::current());
            workers.start("tracker-http", listener, each, move |listener, end| {
                http::serve(listener, end, &service, &slow, &runtime);
            })?;
        }
        let mut tasks = JoinSet::new();
        tasks.spawn(house.clone().keep());
        Ok(Self { addresses, house, slow, workers, tasks })
    }

    /// For every torrent, at one address: listens at `addr` and says where that is.
    pub async fn bind(addr: SocketAddr, limits: Limits) -> Result<(Self, SocketAddr), StartError> {
        let tracker = Self::start(Config { listen: vec![addr], limits, ..Config::default() }).await?;
        let addr = tracker.addresses.first().copied().unwrap_or(addr);
        Ok((tracker, addr))
    }

    /// Where it listens. Announces go to `http://ADDR/announce` and `udp://ADDR/announce`.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// How many torrents its lists have; `None`: it serves all.
    pub fn served(&self) -> Option<usize> {
        self.house.service.served()
    }

    /// What it knows.
    pub fn counts(&self) -> Counts {
        self.house.service.table.counts()
    }

    /// Reads the list and the directory of torrents again, and says how many are served (`None`: all). On an error the
    /// old ones stay in force.
    pub async fn reload(&self) -> Result<Option<usize>, AllowError> {
        let house = self.house.clone();
        // It is only cancelled with the runtime.
        tokio::task::spawn_blocking(move || house.reload()).await.unwrap_or(Ok(None))
    }

    /// Takes no more requests, waits for those under way, at most `limit`, and saves the state.
    pub async fn stop(self, limit: Duration) -> io::Result<()> {
        let Self { house, slow, workers, mut tasks, .. } = self;
        tasks.shutdown().await;
        // They fail only with the runtime.
        let _ = tokio::task::spawn_blocking(move || workers.join()).await;
        slow.finish(limit).await;
        tokio::task::spawn_blocking(move || house.save()).await.map_err(io::Error::other)?
    }
}

/// For `fuzz/` alone: a head is refused or answered, and so are the queries of an announce and of a scrape.
#[cfg(fuzzing)]
#[doc(hidden)]
pub fn fuzz_http(bytes: &[u8]) {
    let proxy = SocketAddr::from(([127, 0, 0, 1], 1));
    let service = Service::new(Limits::default(), vec![proxy.ip()], true);
    let (mut scratch, mut out) = (service::Scratch::default(), Vec::new());
    let parsed = match request::parse(bytes, proxy, &service.trusted) {
        Ok(None) => return,
        Ok(Some(request)) => Ok(request),
        Err(refused) => Err(refused),
    };
    service.http(parsed, &mut scratch, &mut out);
    assert!(out.starts_with(b"HTTP/1.1 "));
    if let Ok(query) = str::from_utf8(bytes) {
        for path in ["/announce", "/scrape"] {
            let request = request::Request { path, query, head_only: false, client: proxy.ip() };
            service.http(Ok(request), &mut scratch, &mut out);
            assert!(out.starts_with(b"HTTP/1.1 200 "));
        }
    }
}

/// For `fuzz/` alone: a datagram gets nothing, or no more than it may: before the address is proven less than was sent.
#[cfg(fuzzing)]
#[doc(hidden)]
pub fn fuzz_datagram(bytes: &[u8]) {
    let from = SocketAddr::from(([127, 0, 0, 1], 1));
    let service = Service::new(Limits::default(), Vec::new(), false);
    let (mut scratch, mut out) = (service::Scratch::default(), Vec::new());
    service.udp(bytes, from, &mut scratch, &mut out);
    assert!(out.len() <= bytes.len());
    // The same with a good connection id.
    out.clear();
    service.udp(&[&[0, 0, 4, 0x17, 0x27, 0x10, 0x19, 0x80][..], &[0; 8]].concat(), from, &mut scratch, &mut out);
    let proven = [&out[8..16], bytes.get(8..).unwrap_or_default()].concat();
    out.clear();
    service.udp(&proven, from, &mut scratch, &mut out);
    assert!(out.len() <= datagram::MAX_ANSWER);
}

/// For `fuzz/` alone: a state file.
#[cfg(fuzzing)]
#[doc(hidden)]
pub fn fuzz_state(bytes: &[u8]) {
    state::fuzz(bytes);
}

#[cfg(test)]
mod tests;
