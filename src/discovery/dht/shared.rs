//! The configuration of the node, and the state that its handles and its task share.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, Weak};

use bytes::Bytes;
use tokio::net::UdpSocket;
use tokio::sync::{Notify, mpsc};

use crate::metainfo::InfoHash;
use crate::route::Bind;

/// Nodes from torrents and peers that wait until the task takes them. More are dropped; a few suffice to join.
pub(super) const MAX_QUEUED_NODES: usize = 256;

/// Configuration of the DHT node.
#[derive(Clone, Debug, Default)]
pub struct DhtConfig {
    /// UDP port; if it is 0 or taken, any free port is used.
    pub port: u16,
    /// Address or interface of the socket.
    pub bind: Bind,
    /// Bootstrap nodes as `host:port`; see [`DHT_BOOTSTRAP`](super::DHT_BOOTSTRAP). Host names are resolved in the background.
    pub bootstrap: Vec<String>,
    /// Directory of the file that keeps nodes between runs.
    pub state_dir: Option<PathBuf>,
}

/// A UDP socket of which another protocol has its part.
#[derive(Debug)]
pub struct SharedSocket {
    /// The socket, to send from.
    pub socket: Arc<UdpSocket>,
    /// Datagrams that begin with `d`, and their senders.
    pub received: mpsc::Receiver<(SocketAddr, Bytes)>,
}

/// The current state of the DHT node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DhtStatus {
    /// Good nodes over IPv4: those that answer our queries.
    pub nodes_v4: usize,
    /// Good nodes over IPv6.
    pub nodes_v6: usize,
    /// Number of torrents being searched for.
    pub searches: usize,
}

#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) wake: Notify,
    pub(super) inbox: Mutex<Inbox>,
    pub(super) status: Mutex<DhtStatus>,
}

/// Calls that the task has not handled yet.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    pub(super) searches: Vec<NewSearch>,
    /// Has at most `MAX_QUEUED_NODES` entries, as has `hosts`.
    pub(super) nodes: VecDeque<SocketAddr>,
    pub(super) hosts: VecDeque<String>,
}

#[derive(Debug)]
pub(super) struct NewSearch {
    pub(super) info_hash: InfoHash,
    pub(super) announce: Option<u16>,
    pub(super) peers: mpsc::Sender<Vec<SocketAddr>>,
    /// Set when more peers are wanted; dropped together with the search.
    pub(super) wanted: Weak<Mutex<Wanted>>,
}

/// Whether a search wants more peers than it has found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Wanted {
    #[default]
    No,
    Soon,
    /// A read is blocked without them.
    Now,
}
