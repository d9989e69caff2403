//! A BitTorrent tracker: keeps the peers of each swarm and answers announces and scrapes, over HTTP (BEP 3, 7, 23, 24, 48)
//! and UDP (BEP 15) on one port.
//!
//! Pure, with time and randomness as arguments:
//! - `table`: the swarms, in shards (`shards`) with a lock each; `peers`: the peers of one torrent in one address family;
//!   `hosts`: the number of peers per host.
//! - `request`, `query`, `response`: HTTP, from header bytes to typed requests and from results to bencode.
//! - `datagram`, `connection_id`: the UDP protocol, and the connection ids that prove a client's address.
//! - `page`: the status page and the Prometheus metrics; `counters`: the numbers in them.
//!
//! Around them:
//! - `service`: request handling that both protocols share. `listen`, `http`, `udp`: sockets; `workers`: the threads that
//!   serve them.
//! - `state`: the file that keeps the swarms across a restart. `allow`: the list of served torrents. `maintenance`: periodic
//!   work.
//! - `config`, `error`: configuration, and why a start fails.
//!
//! Invariants:
//! - The numbers of torrents, peers, peers per host, peers per response and connections are bounded, and so is the lifetime
//!   of a connection. Memory is bounded with them: 55 to 150 bytes per peer in swarms of ten and more, 220 bytes for a
//!   swarm of one peer.
//! - A peer's address is the source address of its request, never one that the request names. Over UDP it counts only after
//!   the client has proved that it receives datagrams there.
//! - A peer that is silent for two intervals is forgotten.
//! - No UDP response exceeds the minimum MTU of IPv6, and none to an unproven address is longer than its request.
//! - The cost of picking peers depends on the number picked, not on the size of the swarm.
//!
//! HTTP is parsed with `httparse` and served without a framework: a connection carries one small request and one small
//! response, and a framework's overhead would exceed the cost of both.
//!
//! Not here: TLS (use a reverse proxy, see [`Config::trusted_proxies`]), peer ids in responses, accounts and ratios.

mod allow;
mod config;
mod connection_id;
mod counters;
mod datagram;
mod error;
mod hosts;
mod http;
mod listen;
mod maintenance;
mod page;
mod peers;
mod query;
mod request;
mod response;
mod service;
mod shards;
mod state;
mod table;
mod udp;
mod workers;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::JoinSet;

use crate::sys::datagrams::enable_packet_info;
use http::SlowConnections;
use maintenance::Maintenance;
use service::Service;
use workers::Workers;

pub use allow::AllowError;
pub use config::{Config, DEFAULT_PORT, Limits};
pub use error::StartError;
pub use table::Counts;

/// Maximum number of threads per socket. More threads only contend for the socket.
const MAX_THREADS: usize = 4;

/// A running tracker. [`Tracker::stop`] waits for requests in progress and saves the state; dropping it does neither.
pub struct Tracker {
    addresses: Vec<SocketAddr>,
    maintenance: Arc<Maintenance>,
    slow: Arc<SlowConnections>,
    workers: Workers,
    tasks: JoinSet<()>,
}

impl std::fmt::Debug for Tracker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tracker").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

impl Tracker {
    /// Binds the sockets, reads the lists and the saved state, and starts to serve.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let (tcp, udp, addresses) = listen::bind(&config.listen)?;
        let service = Arc::new(Service::new(config.limits, config.trusted_proxies, config.show_torrents));
        let maintenance = Arc::new(Maintenance::new(service.clone(), config.allow, config.torrents, config.state));
        let loading = maintenance.clone();
        tokio::task::spawn_blocking(move || loading.load()).await.map_err(io::Error::other)??;

        let threads = std::thread::available_parallelism().map_or(1, |cores| cores.get().min(MAX_THREADS));
        let (slow, mut workers) = (Arc::new(SlowConnections::default()), Workers::default());
        for socket in udp {
            enable_packet_info(&socket)?;
            let service = service.clone();
            workers.start("tracker-udp", socket, threads, move |socket, stop| udp::serve(socket, stop, &service))?;
        }
        for listener in tcp {
            let (service, slow, runtime) = (service.clone(), slow.clone(), Handle::current());
            workers.start("tracker-http", listener, threads, move |listener, stop| {
                http::serve(listener, stop, &service, &slow, &runtime);
            })?;
        }
        let mut tasks = JoinSet::new();
        tasks.spawn(maintenance.clone().run());
        Ok(Self { addresses, maintenance, slow, workers, tasks })
    }

    /// Starts a tracker for every torrent at one address, and returns it with the address that it bound.
    pub async fn bind(addr: SocketAddr, limits: Limits) -> Result<(Self, SocketAddr), StartError> {
        let tracker = Self::start(Config { listen: vec![addr], limits, ..Config::default() }).await?;
        let addr = tracker.addresses.first().copied().unwrap_or(addr);
        Ok((tracker, addr))
    }

    /// Returns the addresses it listens on. The announce URLs are `http://ADDR/announce` and `udp://ADDR/announce`.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Returns the number of torrents in its lists, or `None` if it serves every torrent.
    pub fn served_torrents(&self) -> Option<usize> {
        self.maintenance.service.served_torrents()
    }

    /// Returns the current numbers of torrents, peers and completed downloads.
    pub fn counts(&self) -> Counts {
        self.maintenance.service.table.counts()
    }

    /// Reads the list and the directory of torrents again, and returns how many are served (`None` if all). After an error
    /// the previous lists stay in force.
    pub async fn reload(&self) -> Result<Option<usize>, AllowError> {
        let maintenance = self.maintenance.clone();
        // The task is cancelled only with the runtime.
        tokio::task::spawn_blocking(move || maintenance.reload()).await.unwrap_or(Ok(None))
    }

    /// Stops to accept requests, waits at most `limit` for those in progress, and saves the state.
    pub async fn stop(self, limit: Duration) -> io::Result<()> {
        let Self { maintenance, slow, workers, mut tasks, .. } = self;
        tasks.shutdown().await;
        // An error means that the runtime shuts down.
        let _ = tokio::task::spawn_blocking(move || workers.join()).await;
        slow.finish(limit).await;
        tokio::task::spawn_blocking(move || maintenance.save()).await.map_err(io::Error::other)?
    }
}

/// Fuzz target: parses `bytes` as an HTTP header and as the queries of an announce and a scrape, and checks the responses.
#[cfg(fuzzing)]
#[doc(hidden)]
pub fn fuzz_http(bytes: &[u8]) {
    let proxy = SocketAddr::from(([127, 0, 0, 1], 1));
    let service = Service::new(Limits::default(), vec![proxy.ip()], true);
    let (mut scratch, mut out) = (service::Scratch::default(), Vec::new());
    let parsed = match request::parse(bytes, proxy, &service.trusted_proxies) {
        Ok(None) => return,
        Ok(Some(request)) => Ok(request),
        Err(error) => Err(error),
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

/// Fuzz target: handles `bytes` as a datagram, and checks the length of the response. Before the address is proven, it
/// must not exceed that of the request.
#[cfg(fuzzing)]
#[doc(hidden)]
pub fn fuzz_datagram(bytes: &[u8]) {
    let from = SocketAddr::from(([127, 0, 0, 1], 1));
    let service = Service::new(Limits::default(), Vec::new(), false);
    let (mut scratch, mut out) = (service::Scratch::default(), Vec::new());
    service.udp(bytes, from, &mut scratch, &mut out);
    assert!(out.len() <= bytes.len());
    // The same with a valid connection id.
    out.clear();
    service.udp(&[&[0, 0, 4, 0x17, 0x27, 0x10, 0x19, 0x80][..], &[0; 8]].concat(), from, &mut scratch, &mut out);
    let proven = [&out[8..16], bytes.get(8..).unwrap_or_default()].concat();
    out.clear();
    service.udp(&proven, from, &mut scratch, &mut out);
    assert!(out.len() <= datagram::MAX_RESPONSE);
}

/// Fuzz target: parses `bytes` as a state file.
#[cfg(fuzzing)]
#[doc(hidden)]
pub fn fuzz_state(bytes: &[u8]) {
    state::fuzz(bytes);
}

#[cfg(test)]
mod tests;
