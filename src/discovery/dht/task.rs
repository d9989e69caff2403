//! The task around the node: sockets, host names, the clock, the file.

use std::collections::HashMap;
use std::future::pending;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{UdpSocket, lookup_host};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet, spawn_blocking};
use tokio::time::{sleep_until, timeout};

use super::address::Family;
use super::krpc::MAX_DATAGRAM;
use super::node::{GoalId, Node};
use super::{DhtConfig, DhtStatus, NewSearch, Shared, lock, state};
use crate::route::Bind;

/// Peers of a torrent that wait for the session to take them; more are dropped, a later round finds them again.
const MAX_PENDING: usize = 500;
/// How long a host name may take.
const DNS_TIMEOUT: Duration = Duration::from_secs(10);
/// Host names looked up at a time.
const MAX_LOOKUPS: usize = 16;
/// Addresses of one name that are used.
const MAX_ADDRESSES: usize = 8;
/// While no node answers, the bootstrap nodes are asked again after this long, and twice as long each time.
const BOOTSTRAP: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));
/// No node for so long is worth a line.
const LONELY: Duration = Duration::from_secs(30);
/// Nodes are saved this often.
const SAVE: Duration = Duration::from_secs(10 * 60);

/// One port, on IPv4 and, where the machine has it, on IPv6.
#[derive(Debug)]
pub(super) struct Sockets {
    /// In the order of `Family`.
    sockets: [Option<UdpSocket>; 2],
    port: u16,
}

impl Sockets {
    /// `port`, if it is free, else any.
    pub fn bind(port: u16, bind: &Bind) -> io::Result<Self> {
        Self::bind_port(port, bind).or_else(|error| match error.kind() {
            io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied if port != 0 => Self::bind_port(0, bind),
            _ => Err(error),
        })
    }

    fn bind_port(port: u16, bind: &Bind) -> io::Result<Self> {
        let v4 = match bind.address() {
            Some(IpAddr::V6(_)) => None,
            Some(ip) => Some(open((ip, port).into(), bind)?),
            None => Some(open((Ipv4Addr::UNSPECIFIED, port).into(), bind)?),
        };
        let port = v4.as_ref().map_or(Ok(port), |socket| socket.local_addr().map(|addr| addr.port()))?;
        let v6 = match bind.address() {
            Some(IpAddr::V4(_)) => None,
            Some(ip) => Some(open((ip, port).into(), bind)?),
            // A machine without IPv6 is an ordinary machine.
            None => open((Ipv6Addr::UNSPECIFIED, port).into(), bind).ok(),
        };
        let port = v6.as_ref().map_or(Ok(port), |socket| socket.local_addr().map(|addr| addr.port()))?;
        Ok(Self { sockets: [v4, v6], port })
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    fn families(&self) -> Vec<Family> {
        Family::BOTH.into_iter().filter(|family| self.sockets[*family as usize].is_some()).collect()
    }

    /// Waits until the runtime knows that there is room to send; before that it refuses every datagram.
    async fn writable(&self) {
        for socket in self.sockets.iter().flatten() {
            let _ = socket.writable().await;
        }
    }

    /// A datagram that finds no room in the socket is lost, as the network may lose any.
    fn send(&self, to: SocketAddr, bytes: &[u8]) {
        if let Some(socket) = &self.sockets[Family::of(to) as usize]
            && let Err(error) = socket.try_send_to(bytes, to)
        {
            tracing::trace!(%to, "DHT datagram not sent: {error}");
        }
    }
}

fn open(addr: SocketAddr, bind: &Bind) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    bind.tie(&socket)?;
    socket.bind(&addr.into())?;
    UdpSocket::from_std(socket.into())
}

async fn receive(socket: &Option<UdpSocket>, buffer: &mut [u8]) -> (usize, SocketAddr) {
    let Some(socket) = socket else { return pending().await };
    loop {
        match socket.recv_from(buffer).await {
            Ok(received) => return received,
            Err(error) => {
                tracing::debug!("the DHT's socket failed: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// A torrent and who wants its peers.
struct Search {
    peers: mpsc::Sender<Vec<SocketAddr>>,
    wanted: Weak<Mutex<bool>>,
    pending: Vec<SocketAddr>,
}

/// See the module.
pub(super) struct Driver {
    sockets: Sockets,
    node: Node,
    shared: Arc<Shared>,
    searches: HashMap<GoalId, Search>,
    /// A search came, went or wants more.
    woken: bool,
    /// Names under way; each ends with what it stands for.
    names: JoinSet<(String, io::Result<Vec<SocketAddr>>)>,
    bootstrap: Vec<String>,
    bootstrap_at: Instant,
    bootstrap_wait: Duration,
    started: Instant,
    /// That no node answers has been said.
    complained: bool,
    file: Option<PathBuf>,
    save_at: Instant,
    saving: Option<JoinHandle<()>>,
}

impl Driver {
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
            bootstrap_wait: BOOTSTRAP.0,
            started: now,
            complained: false,
            file: config.state_dir.map(|dir| dir.join("dht.nodes")),
            save_at: now + SAVE,
            saving: None,
        }
    }

    pub async fn run(mut self, mut stopped: oneshot::Receiver<()>) {
        self.restore().await;
        self.sockets.writable().await;
        let mut buffers = [vec![0; MAX_DATAGRAM], vec![0; MAX_DATAGRAM]];
        loop {
            let now = Instant::now();
            self.take_inbox(now);
            self.start_bootstrap(now);
            let wakeup = self.node.poll(now);
            while let Some((to, bytes)) = self.node.outgoing() {
                self.sockets.send(to, &bytes);
            }
            self.pass_on();
            self.publish(now);
            self.start_save(now);
            let [v4, v6] = &self.sockets.sockets;
            let [buffer4, buffer6] = &mut buffers;
            tokio::select! {
                (len, from) = receive(v4, buffer4) => self.node.handle(Instant::now(), from, &buffer4[..len]),
                (len, from) = receive(v6, buffer6) => self.node.handle(Instant::now(), from, &buffer6[..len]),
                () = self.shared.wake.notified() => self.woken = true,
                // A task panics or is aborted only with the whole program.
                Some(Ok((name, found))) = self.names.join_next() => self.named(&name, found),
                () = sleep_until(wakeup.into()) => {}
                // Stopped, or dropped.
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
        // It cannot panic.
        match spawn_blocking(move || state::load(&file)).await.unwrap_or(Ok(None)) {
            Ok(Some(nodes)) => nodes.into_iter().for_each(|node| self.node.restore(node)),
            Ok(None) => tracing::warn!("{shown} is not a list of DHT nodes; starting without, and replacing it"),
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
            let goal = self.node.search(now, info_hash, announce);
            self.searches.insert(goal, Search { peers, wanted, pending: Vec::new() });
        }
        // With a thousand torrents not for each datagram.
        if !std::mem::take(&mut self.woken) {
            return;
        }
        self.searches.retain(|goal, search| {
            let wanted = search.wanted.upgrade().filter(|_| !search.peers.is_closed());
            match &wanted {
                Some(wanted) if std::mem::take(&mut *lock(wanted)) => self.node.want_peers(*goal),
                Some(_) => {}
                None => self.node.forget(*goal),
            }
            wanted.is_some()
        });
    }

    fn start_bootstrap(&mut self, now: Instant) {
        if now < self.bootstrap_at {
            return;
        }
        self.bootstrap_at = now + self.bootstrap_wait;
        self.bootstrap_wait = (self.bootstrap_wait * 2).min(BOOTSTRAP.1);
        if self.is_alone(now) {
            for name in self.bootstrap.clone() {
                match name.parse() {
                    Ok(addr) => self.node.add_contact(now, addr),
                    Err(_) => self.look_up(name),
                }
            }
        } else {
            self.bootstrap_wait = BOOTSTRAP.0;
        }
    }

    fn is_alone(&self, now: Instant) -> bool {
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

    fn named(&mut self, name: &str, found: io::Result<Vec<SocketAddr>>) {
        match found {
            Ok(found) => found.into_iter().for_each(|addr| self.node.add_contact(Instant::now(), addr)),
            Err(error) => tracing::debug!("DHT node {name}: {error}"),
        }
    }

    fn pass_on(&mut self) {
        for (goal, peer) in self.node.found() {
            if let Some(search) = self.searches.get_mut(&goal).filter(|search| search.pending.len() < MAX_PENDING) {
                search.pending.push(peer);
            }
        }
        for search in self.searches.values_mut().filter(|search| !search.pending.is_empty()) {
            // A full channel is tried again when the node wakes up, in some seconds at the latest.
            if let Ok(room) = search.peers.try_reserve() {
                room.send(std::mem::take(&mut search.pending));
            }
        }
    }

    fn publish(&mut self, now: Instant) {
        let [nodes_v4, nodes_v6] = Family::BOTH.map(|family| self.node.good(now, family));
        *lock(&self.shared.status) = DhtStatus { nodes_v4, nodes_v6, searches: self.searches.len() };
        let is_alone = nodes_v4 + nodes_v6 == 0;
        if is_alone && !self.complained && now >= self.started + LONELY && !self.bootstrap.is_empty() {
            self.complained = true;
            let names = self.bootstrap.join(", ");
            tracing::warn!(
                "no DHT node answers (asked {names}): is UDP blocked? other bootstrap nodes: --dht-bootstrap"
            );
        } else if !is_alone && self.complained {
            self.complained = false;
            tracing::info!("the DHT answers again");
        }
    }

    /// Without a node to save the file stays as it is: there may be no network today.
    fn start_save(&mut self, now: Instant) {
        if now < self.save_at {
            return;
        }
        self.save_at = now + SAVE;
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
