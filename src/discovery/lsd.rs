//! Local service discovery: peers in the local network, found by multicast (BEP 14).
//!
//! An [`Lsd`] is one task of the session; an [`LsdTorrent`] is one torrent registered in it. A torrent is announced at
//! registration and every five minutes, several torrents in one datagram, with a second between two datagrams. A
//! received announce yields the sender's address with the announced port, and only for torrents that are registered.
//!
//! The task sends on the kernel's multicast interface (that of the default route) and receives there and on loopback,
//! or does both on one bound address only. On a machine without multicast it logs a debug line and finds nothing.
//!
//! Bounds: datagrams of 1,400 bytes, of which 32 torrents are read; 20 datagrams in 10 s from one address; 256
//! addresses.
//!
//! Not implemented: announces on every interface of a machine that has several. The caller must not register private
//! torrents (BEP 27).

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use socket2::{Domain, InterfaceIndexOrAddress, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::sleep_until;

use crate::metainfo::InfoHash;
use crate::route::Bind;
use crate::util::lock;

/// Multicast group on IPv4 (BEP 14).
const GROUP_V4: Ipv4Addr = Ipv4Addr::new(239, 192, 152, 143);
/// Multicast group on IPv6 (BEP 14).
const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff15, 0, 0, 0, 0, 0, 0xefc0, 0x988f);
/// UDP port of both groups (BEP 14).
const PORT: u16 = 6771;
/// Longest datagram sent or read, in bytes: it must cross the network unfragmented.
const MAX_DATAGRAM: usize = 1400;
/// Torrents in one datagram of ours. At 52 bytes each they stay under `MAX_DATAGRAM`.
const MAX_HASHES: usize = 24;
/// Torrents read from one datagram.
const MAX_HASHES_READ: usize = 32;
/// Interval at which a torrent is announced (BEP 14).
const INTERVAL: Duration = Duration::from_secs(5 * 60);
/// Minimum interval for a torrent with a blocked read and no peer for it, the shortest that BEP 14 permits.
const WANTED_INTERVAL: Duration = Duration::from_secs(60);
/// Delay before the first datagram, so that torrents added together share it.
const FIRST_DELAY: Duration = Duration::from_millis(50);
/// Time between two datagrams, which bounds the multicast traffic of many torrents.
const SPACING: Duration = Duration::from_secs(1);
/// Datagrams read per address and period: more than an honest program sends.
const MAX_DATAGRAMS: u32 = 20;
/// Period in which the datagrams of an address are counted.
const COUNTING_PERIOD: Duration = Duration::from_secs(10);
/// Addresses counted at a time. Bounds the memory that a flood can use.
const MAX_SOURCES: usize = 256;
/// Hop limit of announces: the groups have organisation scope.
const HOPS: u32 = 4;

/// The content of an announce.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Announce {
    /// Port on which the sender accepts peers.
    port: u16,
    hashes: Vec<InfoHash>,
    /// Value by which a sender recognizes its own announces.
    cookie: Option<String>,
}

impl Announce {
    fn encode(&self, host: &str) -> String {
        let mut text = format!("BT-SEARCH * HTTP/1.1\r\nHost: {host}\r\nPort: {}\r\n", self.port);
        for hash in &self.hashes {
            text += &format!("Infohash: {hash}\r\n");
        }
        if let Some(cookie) = &self.cookie {
            text += &format!("cookie: {cookie}\r\n");
        }
        text + "\r\n\r\n"
    }

    /// Decodes an announce. Returns `None` for other text and for an announce without a port. Headers may have any case
    /// and order; unknown ones are ignored.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let text = str::from_utf8(bytes.get(..MAX_DATAGRAM.min(bytes.len()))?).ok()?;
        let mut lines = text.split("\r\n");
        let mut request = lines.next()?.split(' ');
        if request.next() != Some("BT-SEARCH") || !request.nth(1)?.starts_with("HTTP/") {
            return None;
        }
        let (mut port, mut hashes, mut cookie) = (None, Vec::new(), None);
        for line in lines.take_while(|line| !line.is_empty()) {
            let (name, value) = line.split_once(':')?;
            let value = value.trim();
            match name.to_ascii_lowercase().as_str() {
                "port" => port = value.parse().ok().filter(|port| *port != 0),
                "infohash" if hashes.len() < MAX_HASHES_READ => hashes.extend(value.parse::<InfoHash>()),
                "cookie" => cookie = Some(value.to_owned()),
                _ => {}
            }
        }
        Some(Self { port: port?, hashes, cookie })
    }
}

/// Local discovery of a session. Dropping it ends its task.
#[derive(Debug)]
pub struct Lsd {
    shared: Arc<Shared>,
    /// Dropped together with this value, which ends the task.
    _stop: oneshot::Sender<()>,
}

/// A registered torrent. Dropping it ends its announces and its search.
#[derive(Debug)]
pub struct LsdTorrent {
    /// More peers are wanted now.
    wanted: Arc<AtomicBool>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    wake: Notify,
    torrents: Mutex<Vec<Torrent>>,
}

#[derive(Debug)]
struct Torrent {
    info_hash: InfoHash,
    port: u16,
    peers: mpsc::Sender<Vec<SocketAddr>>,
    /// Whether more peers are wanted now; expires when the [`LsdTorrent`] is dropped.
    wanted: Weak<AtomicBool>,
    announced: Option<Instant>,
}

impl Shared {
    /// Locks the list and removes the torrents that were dropped.
    fn torrents(&self) -> MutexGuard<'_, Vec<Torrent>> {
        let mut torrents = lock(&self.torrents);
        torrents.retain(|torrent| torrent.wanted.strong_count() > 0 && !torrent.peers.is_closed());
        torrents
    }
}

impl Lsd {
    /// Starts the task on the current tokio runtime: on one address or interface if `bind` names one, else on every
    /// address family of the machine. Never fails: without multicast it finds nothing.
    pub fn start(bind: &Bind) -> Self {
        let shared = Arc::new(Shared::default());
        let (stop, stopped) = oneshot::channel();
        tokio::spawn(Task::new(bind, shared.clone()).run(stopped));
        Self { shared, _stop: stop }
    }

    /// Announces a torrent whose peers connect to `port`, and sends the addresses of other peers to `peers`, one at a
    /// time. An address is dropped while the channel is full.
    pub fn register(&self, info_hash: InfoHash, port: u16, peers: mpsc::Sender<Vec<SocketAddr>>) -> LsdTorrent {
        let wanted = Arc::default();
        let torrent = Torrent { info_hash, port, peers, wanted: Arc::downgrade(&wanted), announced: None };
        self.shared.torrents().push(torrent);
        self.shared.wake.notify_one();
        LsdTorrent { wanted, shared: self.shared.clone() }
    }
}

impl LsdTorrent {
    /// Announces the torrent again, though at most once a minute: others that have it then connect to us. May be called
    /// often.
    pub fn want_peers(&self) {
        if !self.wanted.swap(true, Ordering::Relaxed) {
            self.shared.wake.notify_one();
        }
    }
}

impl Torrent {
    /// Returns when the torrent is to be announced.
    fn due(&self, now: Instant) -> Instant {
        let wanted = self.wanted.upgrade().is_some_and(|wanted| wanted.load(Ordering::Relaxed));
        self.announced.map_or(now, |at| at + if wanted { WANTED_INTERVAL } else { INTERVAL })
    }
}

/// A socket in the multicast group of one address family.
#[derive(Debug)]
struct Group {
    socket: UdpSocket,
    to: SocketAddr,
}

impl Group {
    /// Returns the group as written in the `Host` header.
    fn host(&self) -> String {
        SocketAddr::new(self.to.ip(), PORT).to_string()
    }

    fn v4(bind: &Bind) -> io::Result<Self> {
        let to = SocketAddr::from((GROUP_V4, PORT));
        let socket = open(to, bind)?;
        match bind {
            Bind::Address(IpAddr::V4(ip)) => {
                socket.join_multicast_v4(&GROUP_V4, ip)?;
                socket.set_multicast_if_v4(ip)?;
            }
            Bind::Interface(name) => {
                socket.join_multicast_v4_n(&GROUP_V4, &InterfaceIndexOrAddress::Index(interface_index(name)?))?;
            }
            Bind::Anywhere | Bind::Address(IpAddr::V6(_)) => {
                socket.join_multicast_v4(&GROUP_V4, &Ipv4Addr::UNSPECIFIED)?;
                // Programs on this machine may announce on loopback. Where it has no multicast, this fails and nobody
                // does.
                let _ = socket.join_multicast_v4(&GROUP_V4, &Ipv4Addr::LOCALHOST);
            }
        }
        socket.set_multicast_loop_v4(true)?;
        socket.set_multicast_ttl_v4(HOPS)?;
        Ok(Self { socket: UdpSocket::from_std(socket.into())?, to })
    }

    fn v6(bind: &Bind) -> io::Result<Self> {
        let interface = match bind {
            Bind::Address(IpAddr::V6(ip)) => interface_with(*ip)?,
            Bind::Interface(name) => interface_index(name)?,
            // The kernel's choice.
            Bind::Anywhere | Bind::Address(IpAddr::V4(_)) => 0,
        };
        let socket = open((GROUP_V6, PORT).into(), bind)?;
        socket.join_multicast_v6(&GROUP_V6, interface)?;
        socket.set_multicast_if_v6(interface)?;
        socket.set_multicast_loop_v6(true)?;
        socket.set_multicast_hops_v6(HOPS)?;
        let to = SocketAddrV6::new(GROUP_V6, PORT, 0, interface).into();
        Ok(Self { socket: UdpSocket::from_std(socket.into())?, to })
    }
}

/// Opens a socket bound to the group address, so that it receives no unicast datagrams.
fn open(group: SocketAddr, bind: &Bind) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(group), Type::DGRAM, Some(Protocol::UDP))?;
    if group.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // Every BitTorrent program on the machine listens on this port.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    bind.bind_device(&socket)?;
    socket.bind(&group.into())?;
    Ok(socket)
}

/// Returns the index of the interface with this name.
fn interface_index(name: &str) -> io::Result<u32> {
    let text = std::fs::read_to_string(format!("/sys/class/net/{name}/ifindex"))?;
    text.trim().parse().map_err(io::Error::other)
}

/// Returns the index of the interface with this address.
fn interface_with(ip: Ipv6Addr) -> io::Result<u32> {
    let digits = format!("{:032x}", ip.to_bits());
    let table = std::fs::read_to_string("/proc/net/if_inet6")?;
    let line = table.lines().find(|line| line.starts_with(&digits));
    let number = line.and_then(|line| u32::from_str_radix(line.split_ascii_whitespace().nth(1)?, 16).ok());
    number.ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
}

struct Task {
    groups: [Option<Group>; 2],
    shared: Arc<Shared>,
    cookie: String,
    /// Earliest time of the next datagram.
    next: Instant,
    /// Start of the counting period and number of datagrams, by sender.
    sources: HashMap<IpAddr, (Instant, u32)>,
}

impl Task {
    fn new(bind: &Bind, shared: Arc<Shared>) -> Self {
        let (v4, v6) = match bind.address() {
            Some(IpAddr::V4(_)) => (Some(Group::v4(bind)), None),
            Some(IpAddr::V6(_)) => (None, Some(Group::v6(bind))),
            None => (Some(Group::v4(bind)), Some(Group::v6(bind))),
        };
        let groups = [v4, v6].map(|group| {
            group?.inspect_err(|error| tracing::debug!("no local discovery over one of IPv4 and IPv6: {error}")).ok()
        });
        let cookie = format!("torrentfs-{:016x}", rand::random::<u64>());
        Self { groups, shared, cookie, next: Instant::now() + FIRST_DELAY, sources: HashMap::new() }
    }

    async fn run(mut self, mut stopped: oneshot::Receiver<()>) {
        for group in self.groups.iter().flatten() {
            // Before the runtime knows that the socket is writable, `try_send_to` refuses every datagram.
            let _ = group.socket.writable().await;
        }
        let mut buffers = [[0; MAX_DATAGRAM], [0; MAX_DATAGRAM]];
        loop {
            let wakeup = self.announce(Instant::now());
            let [v4, v6] = &self.groups;
            let [buffer4, buffer6] = &mut buffers;
            tokio::select! {
                (len, from) = receive(v4, buffer4) => self.handle_datagram(Instant::now(), from, &buffer4[..len]),
                (len, from) = receive(v6, buffer6) => self.handle_datagram(Instant::now(), from, &buffer6[..len]),
                () = self.shared.wake.notified() => self.next = self.next.max(Instant::now() + FIRST_DELAY),
                () = sleep_until(wakeup.into()) => {}
                // The sender is only ever dropped.
                _ = &mut stopped => return,
            }
        }
    }

    /// Sends one due datagram to each group and returns the time of the next.
    fn announce(&mut self, now: Instant) -> Instant {
        let mut torrents = self.shared.torrents();
        let due = |torrent: &Torrent| torrent.due(now);
        let Some(first) = torrents.iter().map(due).min() else { return now + INTERVAL };
        if first > now || self.next > now {
            return first.max(self.next);
        }
        let Some(port) = torrents.iter().find(|torrent| due(torrent) <= now).map(|torrent| torrent.port) else {
            return first;
        };
        let mut hashes = Vec::new();
        for torrent in torrents.iter_mut().filter(|torrent| torrent.port == port && due(torrent) <= now) {
            if hashes.len() < MAX_HASHES {
                torrent.announced = Some(now);
                if let Some(wanted) = torrent.wanted.upgrade() {
                    wanted.store(false, Ordering::Relaxed);
                }
                hashes.push(torrent.info_hash);
            }
        }
        drop(torrents);
        let announce = Announce { port, hashes, cookie: Some(self.cookie.clone()) };
        for group in self.groups.iter().flatten() {
            let text = announce.encode(&group.host());
            if let Err(error) = group.socket.try_send_to(text.as_bytes(), group.to) {
                tracing::debug!("local announce to {} not sent: {error}", group.to);
            }
        }
        self.next = now + SPACING;
        self.next
    }

    fn handle_datagram(&mut self, now: Instant, from: SocketAddr, bytes: &[u8]) {
        if !self.allow(now, from.ip()) {
            return;
        }
        let Some(announce) = Announce::decode(bytes).filter(|announce| announce.cookie.as_ref() != Some(&self.cookie))
        else {
            return;
        };
        let mut peer = from;
        peer.set_port(announce.port);
        for torrent in self.shared.torrents().iter().filter(|torrent| announce.hashes.contains(&torrent.info_hash)) {
            // If the channel is full the torrent has peers enough, and this peer will announce itself again.
            let _ = torrent.peers.try_send(vec![peer]);
        }
    }

    fn allow(&mut self, now: Instant, ip: IpAddr) -> bool {
        let is_over = |since: Instant| now.saturating_duration_since(since) >= COUNTING_PERIOD;
        if !self.sources.contains_key(&ip) && self.sources.len() >= MAX_SOURCES {
            self.sources.retain(|_, (since, _)| !is_over(*since));
            if self.sources.len() >= MAX_SOURCES {
                return false;
            }
        }
        let (since, count) = self.sources.entry(ip).or_insert((now, 0));
        if is_over(*since) {
            (*since, *count) = (now, 0);
        }
        *count = count.saturating_add(1);
        *count <= MAX_DATAGRAMS
    }
}

async fn receive(group: &Option<Group>, buffer: &mut [u8]) -> (usize, SocketAddr) {
    let Some(group) = group else { return std::future::pending().await };
    loop {
        match group.socket.recv_from(buffer).await {
            Ok(received) => return received,
            Err(error) => {
                tracing::debug!("cannot receive from the socket of local discovery: {error}");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HASH: InfoHash = InfoHash([0xab; 20]);

    #[test]
    fn announces_follow_the_specification() {
        let announce = Announce { port: 6881, hashes: vec![HASH], cookie: Some("me".into()) };
        let text = announce.encode("239.192.152.143:6771");
        let hex = "ab".repeat(20);
        let expected = format!(
            "BT-SEARCH * HTTP/1.1\r\nHost: 239.192.152.143:6771\r\nPort: 6881\r\nInfohash: {hex}\r\ncookie: me\r\n\r\n\r\n"
        );
        assert_eq!(text, expected);
        assert_eq!(Announce::decode(text.as_bytes()), Some(announce));
    }

    #[test]
    fn the_fullest_datagram_fits() {
        let cookie = Some(format!("torrentfs-{:016x}", u64::MAX));
        let announce = Announce { port: 65535, hashes: vec![HASH; MAX_HASHES], cookie };
        let text = announce.encode("[ff15::efc0:988f]:6771");
        assert!(text.len() <= MAX_DATAGRAM, "{}", text.len());
        assert_eq!(Announce::decode(text.as_bytes()), Some(announce));
    }

    #[test]
    fn malformed_announces_are_rejected() {
        let hex = "AB".repeat(20);
        let full = |port: &str| format!("BT-SEARCH * HTTP/1.1\r\nX-New: 1\r\nPORT:{port}\r\ninfohash:{hex}\r\n\r\n");
        assert_eq!(Announce::decode(full("7").as_bytes()).unwrap().hashes, [HASH]);
        for text in [full("0"), full("70000"), full("x"), full("7").replace("BT-", "M-"), full("7").replace(":7", " 7")]
        {
            assert_eq!(Announce::decode(text.as_bytes()), None, "{text}");
        }
        let bad_hash = full("7").replace("ABAB", "AB");
        assert!(Announce::decode(bad_hash.as_bytes()).unwrap().hashes.is_empty());
        let many = format!("BT-SEARCH * HTTP/1.1\r\nPort: 7\r\n{}\r\n", format!("Infohash: {hex}\r\n").repeat(26));
        assert!(Announce::decode(many.as_bytes()).is_none_or(|announce| announce.hashes.len() <= MAX_HASHES_READ));
    }

    #[tokio::test]
    async fn a_flooding_address_is_ignored_for_a_while() {
        let mut task = Task::new(&Bind::Address([127, 0, 0, 1].into()), Arc::default());
        let (now, ip) = (Instant::now(), IpAddr::from([10, 0, 0, 1]));
        assert_eq!((0..100).filter(|_| task.allow(now, ip)).count(), MAX_DATAGRAMS as usize);
        assert!(task.allow(now + COUNTING_PERIOD, ip));
        for n in 0..2000_u32 {
            task.allow(now, IpAddr::from(n.to_be_bytes()));
        }
        assert!(task.sources.len() <= MAX_SOURCES);
    }

    proptest! {
        #[test]
        fn arbitrary_text_does_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in ".*") {
            let _ = Announce::decode(&bytes);
            let _ = Announce::decode(format!("BT-SEARCH * HTTP/1.1\r\n{text}").as_bytes());
        }
    }
}
