//! The task that runs the node: host names, the clock, the state file.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use tokio::net::lookup_host;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet, spawn_blocking};
use tokio::time::{sleep_until, timeout};

use super::address::Family;
use super::node::{Node, SearchId};
use super::shared::{DhtConfig, DhtStatus, NewSearch, Shared, Wanted};
use super::sockets::{self, Sockets};
use super::state;
use crate::util::lock;

/// Peers per torrent that wait until the session takes them. More are dropped; a later round finds them again.
const MAX_PENDING: usize = 500;
/// Time limit for resolving a host name.
const DNS_TIMEOUT: Duration = Duration::from_secs(10);
/// Concurrent name lookups.
const MAX_LOOKUPS: usize = 16;
/// Addresses used per host name.
const MAX_ADDRESSES: usize = 8;
/// Wait before the bootstrap nodes are asked again while no node answers; it doubles each time.
const FIRST_BOOTSTRAP_RETRY: Duration = Duration::from_secs(2);
/// Longest wait before the bootstrap nodes are asked again, so that we join within seconds of having a network, or of the
/// start of a node that is the only one. Four datagrams in that time burden nobody.
const MAX_BOOTSTRAP_RETRY: Duration = Duration::from_secs(10);
/// Time without any node after which a warning is logged.
const NO_NODES_WARNING: Duration = Duration::from_secs(30);
/// Interval at which nodes are saved.
const SAVE_INTERVAL: Duration = Duration::from_secs(10 * 60);

/// The receiver of a search's peers.
struct Subscriber {
    peers: mpsc::Sender<Vec<SocketAddr>>,
    wanted: Weak<Mutex<Wanted>>,
    pending: Vec<SocketAddr>,
}

/// The task's state.
pub(super) struct Task {
    sockets: Sockets,
    node: Node,
    shared: Arc<Shared>,
    searches: HashMap<SearchId, Subscriber>,
    /// A search was added, dropped or wants more peers.
    woken: bool,
    /// Name lookups in progress.
    names: JoinSet<(String, io::Result<Vec<SocketAddr>>)>,
    bootstrap: Vec<String>,
    bootstrap_at: Instant,
    bootstrap_wait: Duration,
    started: Instant,
    /// The warning that no node answers was logged.
    warned: bool,
    file: Option<PathBuf>,
    save_at: Instant,
    saving: Option<JoinHandle<()>>,
}

impl Task {
    pub fn new(sockets: Sockets, config: DhtConfig, shared: Arc<Shared>) -> Self {
        let now = Instant::now();
        let node = Node::new(now, &sockets.families(), rand::random());
        Self {
            sockets,
            node,
            shared,
            searches: HashMap::new(),
            woken: true,
            names: JoinSet::new(),
            bootstrap: config.bootstrap,
            bootstrap_at: now,
            bootstrap_wait: FIRST_BOOTSTRAP_RETRY,
            started: now,
            warned: false,
            file: config.state_dir.map(|dir| dir.join("dht.nodes")),
            save_at: now + SAVE_INTERVAL,
            saving: None,
        }
    }

    pub async fn run(mut self, mut stopped: oneshot::Receiver<()>) {
        self.restore().await;
        self.sockets.writable().await;
        let mut buffers = sockets::buffers();
        loop {
            let now = Instant::now();
            self.take_inbox(now);
            self.start_bootstrap(now);
            let wakeup = self.node.poll(now);
            while let Some((to, bytes)) = self.node.outgoing() {
                self.sockets.send(to, &bytes);
            }
            self.deliver_peers();
            self.publish(now);
            self.start_save(now);
            tokio::select! {
                (from, datagram) = self.sockets.receive(&mut buffers) => {
                    self.node.handle(Instant::now(), from, &datagram);
                }
                () = self.shared.wake.notified() => self.woken = true,
                // A task of the set panics or is aborted only together with the whole program.
                Some(Ok((name, found))) = self.names.join_next() => self.on_resolved(&name, found),
                () = sleep_until(wakeup.into()) => {}
                // Stopped or dropped.
                _ = &mut stopped => break,
            }
        }
        if let Some(saving) = self.saving.take() {
            let _ = saving.await;
        }
        self.save_at = Instant::now();
        self.start_save(self.save_at);
        if let Some(saving) = self.saving.take() {
            let _ = saving.await;
        }
    }

    async fn restore(&mut self) {
        let Some(file) = self.file.clone() else { return };
        let shown = file.display().to_string();
        // `load` cannot panic.
        match spawn_blocking(move || state::load(&file)).await.unwrap_or(Ok(None)) {
            Ok(Some(nodes)) => nodes.into_iter().for_each(|node| self.node.restore(node)),
            Ok(None) => tracing::warn!("{shown} is not a list of DHT nodes; it will be replaced"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!("cannot read {shown}: {error}; starting without known DHT nodes"),
        }
    }

    fn take_inbox(&mut self, now: Instant) {
        let mut inbox = lock(&self.shared.inbox);
        let searches = std::mem::take(&mut inbox.searches);
        let nodes = std::mem::take(&mut inbox.nodes);
        let room = MAX_LOOKUPS.saturating_sub(self.names.len()).min(inbox.hosts.len());
        let hosts: Vec<String> = inbox.hosts.drain(..room).collect();
        drop(inbox);
        nodes.into_iter().for_each(|addr| self.node.add_contact(now, addr));
        hosts.into_iter().for_each(|host| self.look_up(host));
        for NewSearch { info_hash, announce, peers, wanted } in searches {
            let id = self.node.search(now, info_hash, announce);
            self.searches.insert(id, Subscriber { peers, wanted, pending: Vec::new() });
        }
        // Only after a wake-up: with a thousand torrents this is too slow for each datagram.
        if !std::mem::take(&mut self.woken) {
            return;
        }
        self.searches.retain(|id, search| {
            let wanted = search.wanted.upgrade().filter(|_| !search.peers.is_closed());
            match &wanted {
                Some(wanted) => match std::mem::take(&mut *lock(wanted)) {
                    Wanted::No => {}
                    wanted => self.node.want_peers(*id, wanted == Wanted::Now),
                },
                None => self.node.remove_search(*id),
            }
            wanted.is_some()
        });
    }

    fn start_bootstrap(&mut self, now: Instant) {
        if now < self.bootstrap_at {
            return;
        }
        self.bootstrap_at = now + self.bootstrap_wait;
        self.bootstrap_wait = (self.bootstrap_wait * 2).min(MAX_BOOTSTRAP_RETRY);
        if self.has_no_nodes(now) {
            for name in self.bootstrap.clone() {
                match name.parse() {
                    Ok(addr) => self.node.add_contact(now, addr),
                    Err(_) => self.look_up(name),
                }
            }
        } else {
            self.bootstrap_wait = FIRST_BOOTSTRAP_RETRY;
        }
    }

    fn has_no_nodes(&self, now: Instant) -> bool {
        Family::BOTH.into_iter().all(|family| self.node.good(now, family) == 0)
    }

    fn look_up(&mut self, name: String) {
        self.names.spawn(async move {
            let found = match timeout(DNS_TIMEOUT, lookup_host(&name)).await {
                Ok(found) => found.map(|found| found.take(MAX_ADDRESSES).collect()),
                Err(_) => Err(io::ErrorKind::TimedOut.into()),
            };
            (name, found)
        });
    }

    fn on_resolved(&mut self, name: &str, found: io::Result<Vec<SocketAddr>>) {
        match found {
            Ok(found) => found.into_iter().for_each(|addr| self.node.add_contact(Instant::now(), addr)),
            Err(error) => tracing::debug!("DHT node {name}: {error}"),
        }
    }

    fn deliver_peers(&mut self) {
        for (id, peer) in self.node.found() {
            if let Some(search) = self.searches.get_mut(&id).filter(|search| search.pending.len() < MAX_PENDING) {
                search.pending.push(peer);
            }
        }
        for search in self.searches.values_mut().filter(|search| !search.pending.is_empty()) {
            // A full channel is tried again at the next wake-up, in a few seconds at the latest.
            if let Ok(room) = search.peers.try_reserve() {
                room.send(std::mem::take(&mut search.pending));
            }
        }
    }

    fn publish(&mut self, now: Instant) {
        let [nodes_v4, nodes_v6] = Family::BOTH.map(|family| self.node.good(now, family));
        *lock(&self.shared.status) = DhtStatus { nodes_v4, nodes_v6, searches: self.searches.len() };
        let has_no_nodes = nodes_v4 + nodes_v6 == 0;
        if has_no_nodes && !self.warned && now >= self.started + NO_NODES_WARNING && !self.bootstrap.is_empty() {
            self.warned = true;
            let names = self.bootstrap.join(", ");
            tracing::warn!(
                "no DHT node answers (asked {names}): check whether UDP is blocked, or name other nodes with --dht-bootstrap"
            );
        } else if !has_no_nodes && self.warned {
            self.warned = false;
            tracing::info!("the DHT answers again");
        }
    }

    /// Saves the nodes if it is time to. Without good nodes the file is kept: there may be no network now.
    fn start_save(&mut self, now: Instant) {
        if now < self.save_at {
            return;
        }
        self.save_at = now + SAVE_INTERVAL;
        let nodes = self.node.worth_saving(now);
        if let Some(file) = self.file.clone().filter(|_| !nodes.is_empty()) {
            self.saving = Some(spawn_blocking(move || {
                let made = file.parent().map_or(Ok(()), std::fs::create_dir_all);
                if let Err(error) = made.and_then(|()| state::save(&file, &nodes)) {
                    tracing::warn!("cannot save DHT nodes to {}: {error}", file.display());
                }
            }));
        }
    }
}
