//! Local service discovery: peers in the same network, found by multicast (BEP 14).
//!
//! An [`Lsd`] is the session's, one task; an [`LsdTorrent`] is one torrent in it. A torrent is announced when it comes
//! and every five minutes, several in one datagram; between two datagrams is a second. What is heard counts only for
//! torrents that are registered: the sender's address and the port that it names.
//!
//! It speaks on the network interface that the kernel takes for multicast (that of the default route), and listens
//! there and on loopback; or it does both at one address only. A machine without multicast is an ordinary machine: one
//! line in the log for debugging, and nothing is found.
//!
//! Bounds: a datagram of 1,400 bytes, of which 32 torrents are taken; 20 datagrams in 10 s from one address; 256
//! addresses.
//!
//! Not here: announces on every interface of a machine that has several. That private torrents stay out (BEP 27) is
//! the caller's to see to.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use socket2::{Domain, InterfaceIndexOrAddress, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::sleep_until;

use crate::metainfo::InfoHash;
use crate::route::Bind;
use crate::util::lock;

const GROUP_V4: Ipv4Addr = Ipv4Addr::new(239, 192, 152, 143);
const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff15, 0, 0, 0, 0, 0, 0xefc0, 0x988f);
const PORT: u16 = 6771;
/// More is not read, and not sent: it must cross the network in one piece.
const MAX_DATAGRAM: usize = 1400;
/// Torrents in a datagram: at 52 bytes each with the rest they stay under the limit.
const MAX_HASHES: usize = 24;
/// Torrents taken from one.
const MAX_HEARD: usize = 32;
/// How often a torrent is announced.
const INTERVAL: Duration = Duration::from_secs(5 * 60);
/// Between two datagrams, and before the first: torrents that come together go together.
const GAP: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// So many datagrams from one address in so much time are read.
const RATE: (u32, Duration) = (20, Duration::from_secs(10));
/// Addresses counted.
const MAX_SOURCES: usize = 256;
/// How far an announce goes: the groups reach over an organisation.
const HOPS: u32 = 4;

/// What an announce says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Announce {
    /// Where the sender takes peers.
    port: u16,
    hashes: Vec<InfoHash>,
    /// By which a sender knows its own.
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

    /// `None`: not an announce, or one without a port. Headers in any case and order; unknown ones are passed over.
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
                "infohash" if hashes.len() < MAX_HEARD => hashes.extend(value.parse::<InfoHash>()),
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
    /// Dropped with it, which the task notices.
    _stop: oneshot::Sender<()>,
}

/// A torrent that is announced and listened for. Dropping it ends that.
#[derive(Debug)]
pub struct LsdTorrent {
    _alive: Arc<()>,
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
    /// Gone when the torrent is dropped.
    alive: Weak<()>,
    announced: Option<Instant>,
}

impl Shared {
    /// Nothing panics while it holds the lock.
    fn torrents(&self) -> MutexGuard<'_, Vec<Torrent>> {
        let mut torrents = lock(&self.torrents);
        torrents.retain(|torrent| torrent.alive.strong_count() > 0 && !torrent.peers.is_closed());
        torrents
    }
}

impl Lsd {
    /// Starts the task on the current tokio runtime: at that address or interface alone, else on every family that the
    /// machine has. It never fails: where there is no multicast nothing is found.
    pub fn start(bind: &Bind) -> Self {
        let shared = Arc::new(Shared::default());
        let (stop, stopped) = oneshot::channel();
        tokio::spawn(Driver::new(bind, shared.clone()).run(stopped));
        Self { shared, _stop: stop }
    }

    /// Announces a torrent, whose peers are taken on `port`, and passes on who else has it: one address at a time, and
    /// none while `peers` is full.
    pub fn register(&self, info_hash: InfoHash, port: u16, peers: mpsc::Sender<Vec<SocketAddr>>) -> LsdTorrent {
        let alive = Arc::new(());
        let torrent = Torrent { info_hash, port, peers, alive: Arc::downgrade(&alive), announced: None };
        self.shared.torrents().push(torrent);
        self.shared.wake.notify_one();
        LsdTorrent { _alive: alive }
    }
}

/// A socket in the group of a family, and where to send.
#[derive(Debug)]
struct Group {
    socket: UdpSocket,
    to: SocketAddr,
}

impl Group {
    /// The group as it stands in the `Host` header.
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
                socket.join_multicast_v4_n(&GROUP_V4, &InterfaceIndexOrAddress::Index(number_of(name)?))?;
            }
            Bind::Anywhere | Bind::Address(IpAddr::V6(_)) => {
                socket.join_multicast_v4(&GROUP_V4, &Ipv4Addr::UNSPECIFIED)?;
                // Other programs of this machine announce there; without such an interface nobody does.
                let _ = socket.join_multicast_v4(&GROUP_V4, &Ipv4Addr::LOCALHOST);
            }
        }
        socket.set_multicast_loop_v4(true)?;
        socket.set_multicast_ttl_v4(HOPS)?;
        Ok(Self { socket: UdpSocket::from_std(socket.into())?, to })
    }

    fn v6(bind: &Bind) -> io::Result<Self> {
        let interface = match bind {
            Bind::Address(IpAddr::V6(ip)) => interface_of(*ip)?,
            Bind::Interface(name) => number_of(name)?,
            // The one that the kernel takes.
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

/// Bound to the group, so that it hears nothing that is sent to this machine alone.
fn open(group: SocketAddr, bind: &Bind) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(group), Type::DGRAM, Some(Protocol::UDP))?;
    if group.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // Every BitTorrent program on the machine listens there.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    bind.tie(&socket)?;
    socket.bind(&group.into())?;
    Ok(socket)
}

/// The number of the interface of this name.
fn number_of(name: &str) -> io::Result<u32> {
    let text = std::fs::read_to_string(format!("/sys/class/net/{name}/ifindex"))?;
    text.trim().parse().map_err(io::Error::other)
}

/// The number of the interface that has the address.
fn interface_of(ip: Ipv6Addr) -> io::Result<u32> {
    let digits = format!("{:032x}", ip.to_bits());
    let table = std::fs::read_to_string("/proc/net/if_inet6")?;
    let line = table.lines().find(|line| line.starts_with(&digits));
    let number = line.and_then(|line| u32::from_str_radix(line.split_ascii_whitespace().nth(1)?, 16).ok());
    number.ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
}

struct Driver {
    groups: [Option<Group>; 2],
    shared: Arc<Shared>,
    cookie: String,
    /// No datagram leaves before.
    next: Instant,
    /// Datagrams of each address since.
    sources: HashMap<IpAddr, (Instant, u32)>,
}

impl Driver {
    fn new(bind: &Bind, shared: Arc<Shared>) -> Self {
        let (v4, v6) = match bind.address() {
            Some(IpAddr::V4(_)) => (Some(Group::v4(bind)), None),
            Some(IpAddr::V6(_)) => (None, Some(Group::v6(bind))),
            None => (Some(Group::v4(bind)), Some(Group::v6(bind))),
        };
        let groups = [v4, v6].map(|group| {
            group?.inspect_err(|error| tracing::debug!("no local discovery in one of the IP versions: {error}")).ok()
        });
        let cookie = format!("torrentfs-{:016x}", rand::random::<u64>());
        Self { groups, shared, cookie, next: Instant::now() + GAP.0, sources: HashMap::new() }
    }

    async fn run(mut self, mut stopped: oneshot::Receiver<()>) {
        for group in self.groups.iter().flatten() {
            // Before the runtime knows that there is room to send it refuses every datagram.
            let _ = group.socket.writable().await;
        }
        let mut buffers = [[0; MAX_DATAGRAM], [0; MAX_DATAGRAM]];
        loop {
            let wakeup = self.announce(Instant::now());
            let [v4, v6] = &self.groups;
            let [buffer4, buffer6] = &mut buffers;
            tokio::select! {
                (len, from) = receive(v4, buffer4) => self.hear(Instant::now(), from, &buffer4[..len]),
                (len, from) = receive(v6, buffer6) => self.hear(Instant::now(), from, &buffer6[..len]),
                () = self.shared.wake.notified() => self.next = self.next.max(Instant::now() + GAP.0),
                () = sleep_until(wakeup.into()) => {}
                // Only ever dropped.
                _ = &mut stopped => return,
            }
        }
    }

    /// Sends what is due, one datagram to each group, and says when more will be.
    fn announce(&mut self, now: Instant) -> Instant {
        let mut torrents = self.shared.torrents();
        let due = |torrent: &Torrent| torrent.announced.map_or(now, |at| at + INTERVAL);
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
        self.next = now + GAP.1;
        self.next
    }

    fn hear(&mut self, now: Instant, from: SocketAddr, bytes: &[u8]) {
        if !self.admit(now, from.ip()) {
            return;
        }
        let Some(announce) = Announce::decode(bytes).filter(|announce| announce.cookie.as_ref() != Some(&self.cookie))
        else {
            return;
        };
        let mut peer = from;
        peer.set_port(announce.port);
        for torrent in self.shared.torrents().iter().filter(|torrent| announce.hashes.contains(&torrent.info_hash)) {
            // A full channel has peers enough; this one will announce itself again.
            let _ = torrent.peers.try_send(vec![peer]);
        }
    }

    fn admit(&mut self, now: Instant, ip: IpAddr) -> bool {
        let is_over = |since: Instant| now.saturating_duration_since(since) >= RATE.1;
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
        *count <= RATE.0
    }
}

async fn receive(group: &Option<Group>, buffer: &mut [u8]) -> (usize, SocketAddr) {
    let Some(group) = group else { return std::future::pending().await };
    loop {
        match group.socket.recv_from(buffer).await {
            Ok(received) => return received,
            Err(error) => {
                tracing::debug!("the socket of local discovery failed: {error}");
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
    fn as_the_specification_has_it() {
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
    fn the_fullest_datagram_is_short_enough() {
        let cookie = Some(format!("torrentfs-{:016x}", u64::MAX));
        let announce = Announce { port: 65535, hashes: vec![HASH; MAX_HASHES], cookie };
        let text = announce.encode("[ff15::efc0:988f]:6771");
        assert!(text.len() <= MAX_DATAGRAM, "{}", text.len());
        assert_eq!(Announce::decode(text.as_bytes()), Some(announce));
    }

    #[test]
    fn strict_in_what_matters() {
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
        assert!(Announce::decode(many.as_bytes()).is_none_or(|announce| announce.hashes.len() <= MAX_HEARD));
    }

    #[tokio::test]
    async fn who_shouts_is_not_heard_for_a_while() {
        let mut driver = Driver::new(&Bind::Address([127, 0, 0, 1].into()), Arc::default());
        let (now, ip) = (Instant::now(), IpAddr::from([10, 0, 0, 1]));
        assert_eq!((0..100).filter(|_| driver.admit(now, ip)).count(), RATE.0 as usize);
        assert!(driver.admit(now + RATE.1, ip));
        for n in 0..2000_u32 {
            driver.admit(now, IpAddr::from(n.to_be_bytes()));
        }
        assert!(driver.sources.len() <= MAX_SOURCES);
    }

    proptest! {
        #[test]
        fn strangers_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in ".*") {
            let _ = Announce::decode(&bytes);
            let _ = Announce::decode(format!("BT-SEARCH * HTTP/1.1\r\n{text}").as_bytes());
        }
    }
}
