//! The DHT: peers without a tracker (BEP 5), over IPv4 and IPv6 (BEP 32).
//!
//! A [`Dht`] is the session's node: one task, on the UDP port of uTP if there is one. A [`DhtSearch`] is the search for one
//! torrent's peers. Peers are passed on as replies arrive, not at the end of a lookup, and we announce ourselves to the
//! nodes closest to the torrent as soon as they have given us their tokens.
//!
//! - `krpc`: encoding and decoding of messages. `address`: address families and plausible addresses.
//! - `table`: the routing table. `lookup`: one iterative lookup. `store`: peers announced to us. `limits`: rate limits.
//! - `node`: combines them; sans-io, with time as an argument. `state`: the file of nodes from the last run.
//! - `task`: host names, the clock. `sockets`: its own or shared ones.
//!
//! We do not use `librqbit-dht` 9.1, for reasons visible in its source. It knows only nodes that other nodes returned,
//! so neither a bootstrap node itself nor the node of a peer's `port` message enters the table. It announces only to
//! nodes that share 16 bits with the torrent, and stores announces only under the same condition, so it does nothing in
//! a network of fewer than some 100,000 nodes. It requires `implied_port` in an announce, never expires a peer, stores
//! nothing more once it has 1,000, returns all of them in one datagram, and has no rate limit for replies.
//!
//! Bounds: 8 nodes in each of 160 buckets, and one node for each internet address (IPv6: /64); 100 queries a second; 20
//! kB of replies a second in total; replies to 60 queries in 10 s from one address; 500 torrents of 100 peers stored,
//! for half an hour; tokens are computed, not stored. A local address is accepted from a node in the local network, but
//! not from a node on the internet.
//!
//! Not implemented: ids bound to addresses (BEP 42; our id is random and new at each start), storage of other data (BEP
//! 44), seed counts (BEP 33), and being a read-only node (BEP 43; those of others are kept out of the table). The
//! caller must not search for private torrents (BEP 27).

mod address;
mod krpc;
mod limits;
mod lookup;
mod node;
mod shared;
mod sockets;
mod state;
mod store;
mod table;
mod task;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

pub use shared::{DhtConfig, DhtStatus, SharedSocket};

use crate::metainfo::InfoHash;
use crate::util::lock;
use shared::{MAX_QUEUED_NODES, NewSearch, Shared, Wanted};
use sockets::Sockets;

/// Well-known bootstrap nodes, for [`DhtConfig::bootstrap`].
pub const DHT_BOOTSTRAP: [&str; 4] = [
    "dht.libtorrent.org:25401",
    "dht.transmissionbt.com:6881",
    "router.bittorrent.com:6881",
    "router.utorrent.com:6881",
];

/// The session's DHT node. Dropping it ends its task and every search; [`Dht::stop`] waits for the end.
#[derive(Debug)]
pub struct Dht {
    shared: Arc<Shared>,
    port: u16,
    /// The stop signal and the handle of the task; `None` once it was stopped.
    running: Mutex<Option<(oneshot::Sender<()>, JoinHandle<()>)>>,
}

/// The search for one torrent. Dropping it ends the search; our announces then expire by themselves.
#[derive(Debug)]
pub struct DhtSearch {
    wanted: Arc<Mutex<Wanted>>,
    shared: Arc<Shared>,
}

impl Dht {
    /// Opens the port and starts the task on the current tokio runtime. Fails only if no socket can be opened.
    pub fn start(config: DhtConfig) -> io::Result<Self> {
        Ok(Self::run(Sockets::bind(config.port, &config.bind)?, config))
    }

    /// Does the same on these sockets of one port: one for IPv4, one for IPv6, or both.
    pub fn start_on(shared: Vec<SharedSocket>, config: DhtConfig) -> io::Result<Self> {
        Ok(Self::run(Sockets::share(shared)?, config))
    }

    fn run(sockets: Sockets, config: DhtConfig) -> Self {
        let port = sockets.port();
        let shared = Arc::new(Shared::default());
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(task::Task::new(sockets, config, shared.clone()).run(stopped));
        Self { shared, port, running: Mutex::new(Some((stop, task))) }
    }

    /// Returns the UDP port, for the `port` message to peers.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Searches for a torrent's peers until the result is dropped: at once, again soon while there are none, then every
    /// 15 minutes. If `announce` is a port, we are announced as a peer there. Each peer is sent to `peers` once a
    /// round, in batches; while the channel is full they wait, up to a bound.
    pub fn search(
        &self,
        info_hash: InfoHash,
        announce: Option<u16>,
        peers: mpsc::Sender<Vec<SocketAddr>>,
    ) -> DhtSearch {
        let wanted = Arc::default();
        let new = NewSearch { info_hash, announce, peers, wanted: Arc::downgrade(&wanted) };
        lock(&self.shared.inbox).searches.push(new);
        self.shared.wake.notify_one();
        DhtSearch { wanted, shared: self.shared.clone() }
    }

    /// Adds a possible node: the address of a peer with the port from its `port` message.
    pub fn add_node(&self, addr: SocketAddr) {
        let mut inbox = lock(&self.shared.inbox);
        if inbox.nodes.len() < MAX_QUEUED_NODES {
            inbox.nodes.push_back(addr);
        }
        drop(inbox);
        self.shared.wake.notify_one();
    }

    /// Adds a possible node from the `nodes` of a torrent: a host name or an address, and a port.
    pub fn add_host(&self, host: &str, port: u16) {
        if let Ok(ip) = host.parse() {
            return self.add_node(SocketAddr::new(ip, port));
        }
        let mut inbox = lock(&self.shared.inbox);
        if inbox.hosts.len() < MAX_QUEUED_NODES {
            inbox.hosts.push_back(format!("{host}:{port}"));
        }
        drop(inbox);
        self.shared.wake.notify_one();
    }

    /// Returns the state as of a few seconds ago at most.
    pub fn status(&self) -> DhtStatus {
        *lock(&self.shared.status)
    }

    /// Saves the nodes for the next run and ends the task. A second call returns at once.
    pub async fn stop(&self) {
        let running = lock(&self.running).take();
        // Sending fails only if the task has ended already.
        if let Some((stop, task)) = running
            && stop.send(()).is_ok()
        {
            let _ = task.await;
        }
    }
}

impl DhtSearch {
    /// Asks for more peers before the next regular round, though a round starts at most once a minute, and if `urgent`
    /// every ten seconds. May be called often.
    pub fn want_peers(&self, urgent: bool) {
        let mut wanted = lock(&self.wanted);
        *wanted = (*wanted).max(if urgent { Wanted::Now } else { Wanted::Soon });
        drop(wanted);
        self.shared.wake.notify_one();
    }
}

impl Drop for DhtSearch {
    fn drop(&mut self) {
        // Wake the task, which notices that `wanted` is gone.
        self.shared.wake.notify_one();
    }
}
