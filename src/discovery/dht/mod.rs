//! The DHT: peers without a tracker (BEP 5), over IPv4 and IPv6 (BEP 32).
//!
//! A [`Dht`] is the session's node, one task with a UDP port of its own. A [`DhtSearch`] is one torrent in it: peers
//! are passed on as answers come, not at the end of a search, and we are announced to the nodes closest to the torrent
//! as soon as they have given us their tokens.
//!
//! - `krpc`: messages between bytes and values. `address`: compact addresses, and which are believed.
//! - `table`: the routing table. `lookup`: one search. `store`: what others announced to us. `limits`: how much we say.
//! - `node`: joins them; sans-io, with time as an argument. `state`: the file that remembers nodes.
//! - `task`: sockets, host names, the clock.
//!
//! Our own, and not `librqbit-dht` 9.1, whose source says why: it knows only nodes that others name (neither
//! a bootstrap node itself nor a peer's `port` message gets in, for nodes cannot be added), announces only to nodes
//! that share 16 bits with the torrent and stores only for itself likewise (so nothing in a network of less than some
//! 100,000 nodes), needs `implied_port` in an announce, never forgets a peer (when 1,000 are stored it stores no more),
//! answers with all of them in one datagram, and answers without limit.
//!
//! Bounds: 8 nodes in each of 160 buckets and one an address (a /64) of the internet; 100 queries of ours a second;
//! 20 kB of answers a second to all, 60 queries in 10 s from one address; 500 torrents of 100 peers stored, half an
//! hour long; tokens are computed, not remembered. Addresses of this machine and its network are believed of a node
//! there, not of one on the internet.
//!
//! Not here: ids bound to addresses (BEP 42; ours is random, and new at each start), storing of other things (BEP 44),
//! counting of seeds (BEP 33), read-only nodes (BEP 43) but for leaving others' alone. That private torrents stay out
//! is the caller's to see to (BEP 27).

mod address;
mod krpc;
mod limits;
mod lookup;
mod node;
mod state;
mod store;
mod table;
mod task;

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, Weak};

use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::metainfo::InfoHash;
use crate::route::Bind;
use crate::util::lock;

/// Nodes by which a newcomer gets in, for [`DhtConfig::bootstrap`].
pub const DHT_BOOTSTRAP: [&str; 4] = [
    "dht.libtorrent.org:25401",
    "dht.transmissionbt.com:6881",
    "router.bittorrent.com:6881",
    "router.utorrent.com:6881",
];

/// Nodes named by torrents and peers that wait for the task to take them; more are dropped.
const MAX_WAITING: usize = 256;

/// How to take part.
#[derive(Clone, Debug, Default)]
pub struct DhtConfig {
    /// The UDP port; 0, or one that is in use: any that is free.
    pub port: u16,
    /// Where its datagrams leave and come in.
    pub bind: Bind,
    /// `host:port` of nodes to start from; see [`DHT_BOOTSTRAP`]. Names are looked up behind the scenes.
    pub bootstrap: Vec<String>,
    /// Where nodes are remembered from one run to the next.
    pub state_dir: Option<PathBuf>,
}

/// What is known of the DHT at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DhtStatus {
    /// Nodes known to do their duty, over IPv4.
    pub nodes_v4: usize,
    /// The same over IPv6.
    pub nodes_v6: usize,
    /// Torrents looked for.
    pub searches: usize,
}

/// The session's node. Dropping it ends its task, and every search; [`Dht::stop`] waits for that.
#[derive(Debug)]
pub struct Dht {
    shared: Arc<Shared>,
    port: u16,
    /// Until it is stopped.
    running: Mutex<Option<(oneshot::Sender<()>, JoinHandle<()>)>>,
}

/// A torrent that is looked for in the DHT. Dropping it ends the search; what was announced lapses by itself.
#[derive(Debug)]
pub struct DhtSearch {
    wanted: Arc<Mutex<bool>>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    wake: Notify,
    inbox: Mutex<Inbox>,
    status: Mutex<DhtStatus>,
}

/// What the task has yet to take.
#[derive(Debug, Default)]
struct Inbox {
    searches: Vec<NewSearch>,
    /// Bounded by `MAX_WAITING`, as are the next.
    nodes: VecDeque<SocketAddr>,
    hosts: VecDeque<String>,
}

#[derive(Debug)]
struct NewSearch {
    info_hash: InfoHash,
    announce: Option<u16>,
    peers: mpsc::Sender<Vec<SocketAddr>>,
    /// Gone when the search is dropped; true when more peers are wanted.
    wanted: Weak<Mutex<bool>>,
}

impl Dht {
    /// Opens the port and starts the task on the current tokio runtime. It fails only where not one socket can be had.
    pub fn start(config: DhtConfig) -> io::Result<Self> {
        let sockets = task::Sockets::bind(config.port, &config.bind)?;
        let port = sockets.port();
        let shared = Arc::new(Shared::default());
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(task::Driver::new(sockets, config, shared.clone()).run(stopped));
        Ok(Self { shared, port, running: Mutex::new(Some((stop, task))) })
    }

    /// The UDP port, for the `port` message to peers.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Looks for peers of a torrent as long as the result lives: at once, soon again while none is found, then every
    /// 15 minutes. `announce`: the port on which we take peers; `None` does not announce us. Each peer goes to `peers`
    /// once a round, in batches; while nobody takes them they wait, bounded.
    pub fn search(
        &self,
        info_hash: InfoHash,
        announce: Option<u16>,
        peers: mpsc::Sender<Vec<SocketAddr>>,
    ) -> DhtSearch {
        let wanted = Arc::new(Mutex::new(false));
        let new = NewSearch { info_hash, announce, peers, wanted: Arc::downgrade(&wanted) };
        lock(&self.shared.inbox).searches.push(new);
        self.shared.wake.notify_one();
        DhtSearch { wanted, shared: self.shared.clone() }
    }

    /// A node that may be there: the address of a peer with the port of its `port` message.
    pub fn add_node(&self, addr: SocketAddr) {
        let mut inbox = lock(&self.shared.inbox);
        if inbox.nodes.len() < MAX_WAITING {
            inbox.nodes.push_back(addr);
        }
        drop(inbox);
        self.shared.wake.notify_one();
    }

    /// A node that may be there, as a torrent's `nodes` name it: a host name or an address, and a port.
    pub fn add_host(&self, host: &str, port: u16) {
        if let Ok(ip) = host.parse() {
            return self.add_node(SocketAddr::new(ip, port));
        }
        let mut inbox = lock(&self.shared.inbox);
        if inbox.hosts.len() < MAX_WAITING {
            inbox.hosts.push_back(format!("{host}:{port}"));
        }
        drop(inbox);
        self.shared.wake.notify_one();
    }

    /// What is known, not older than a few seconds.
    pub fn status(&self) -> DhtStatus {
        *lock(&self.shared.status)
    }

    /// Remembers the nodes for the next run and ends the task. A second call returns at once.
    pub async fn stop(&self) {
        let running = lock(&self.running).take();
        // The task is gone already if this fails.
        if let Some((stop, task)) = running
            && stop.send(()).is_ok()
        {
            let _ = task.await;
        }
    }
}

impl DhtSearch {
    /// Few peers are left: looks again before the time, though not more often than once a minute. May be called often.
    pub fn want_peers(&self) {
        *lock(&self.wanted) = true;
        self.shared.wake.notify_one();
    }
}

impl Drop for DhtSearch {
    fn drop(&mut self) {
        // The task notices that `wanted` is gone.
        self.shared.wake.notify_one();
    }
}
