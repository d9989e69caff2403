//! Measures announces per second over UDP and HTTP, and memory, of our tracker and of opentracker. Both get the same load
//! from the same load generator, in alternating rounds; the results are medians.
//!
//! ```text
//! cargo bench --bench tracker                             both, with a million peers in a thousand swarms
//! cargo bench --bench tracker -- --peers 10000 --seconds 1
//! cargo bench --bench tracker -- --at 127.0.0.1:6969      a tracker that already runs on this machine
//! ```

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use socket2::{Domain, Socket, Type};

/// Rounds per protocol and tracker, whose median is printed.
const ROUNDS: usize = 3;
/// Number of loopback addresses that peers announce from.
const HOSTS: u32 = 128;
/// Threads that send announces over UDP.
const UDP_THREADS: u32 = 2;
/// Unanswered announces per socket. Those of all sockets together fit a tracker's receive buffer.
const WINDOW: u32 = 4;
/// Sockets that a thread uses at the same time.
const SOCKETS_AT_A_TIME: usize = 16;
/// Threads that send announces over HTTP, each with one connection at a time.
const HTTP_THREADS: u32 = 8;
/// The same for simulated clients with a longer round-trip time.
const FAR_THREADS: u32 = 96;
/// Simulated round-trip time: the delay between connecting and sending the request.
const FAR_DELAY: Duration = Duration::from_millis(1);
/// Time after which a datagram without a response counts as lost.
const REPLY_TIMEOUT: Duration = Duration::from_millis(200);

/// The simulated peers, which are numbered.
#[derive(Clone, Copy)]
struct Population {
    peers: u32,
    torrents: u32,
}

#[derive(Clone, Copy)]
struct Peer {
    torrent: u32,
    port: u16,
    seed: bool,
}

impl Population {
    /// Returns the `nth` peer of a host.
    fn peer(self, nth: u32) -> Peer {
        let (torrent, port) = (nth % self.torrents, nth / self.torrents + 1);
        Peer { torrent, port: port as u16, seed: nth % 10 < 3 }
    }

    /// Returns the number of peers per host.
    fn peers_per_host(self) -> u32 {
        self.peers / HOSTS
    }
}

fn info_hash(torrent: u32) -> [u8; 20] {
    let mut hash = [0; 20];
    for (n, part) in hash.chunks_mut(4).enumerate() {
        part.copy_from_slice(&(torrent + 1).wrapping_mul(0x9E37_79B9 + 2 * n as u32).to_be_bytes());
    }
    hash
}

fn host(nth: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x7f01_0001 + nth)
}

/// A UDP client at one address, with its connection id.
struct Client {
    socket: UdpSocket,
    id: [u8; 8],
    host: u32,
}

impl Client {
    fn new(tracker: SocketAddr, host: u32) -> io::Result<Self> {
        let socket = UdpSocket::bind((self::host(host), 0))?;
        socket.connect(tracker)?;
        socket.set_read_timeout(Some(REPLY_TIMEOUT))?;
        let mut reply = [0; 16];
        for _ in 0..50 {
            socket.send(b"\x00\x00\x04\x17\x27\x10\x19\x80\0\0\0\0load")?;
            if socket.recv(&mut reply).is_ok_and(|len| len == 16) {
                let mut id = [0; 8];
                id.copy_from_slice(&reply[8..]);
                return Ok(Self { socket, id, host });
            }
        }
        Err(io::Error::other("no answer to a connect request"))
    }

    fn announce(&self, peer: Peer) -> io::Result<()> {
        let mut out = [0; 98];
        out[..8].copy_from_slice(&self.id);
        out[11] = 1;
        out[12..16].copy_from_slice(b"load");
        out[16..36].copy_from_slice(&info_hash(peer.torrent));
        out[36..56].copy_from_slice(b"-LD0001-............");
        out[71] = u8::from(!peer.seed);
        out[83] = 2;
        out[92..96].copy_from_slice(&50u32.to_be_bytes());
        out[96..].copy_from_slice(&peer.port.to_be_bytes());
        self.socket.send(&out).map(drop)
    }
}

/// Announces over UDP. `next` returns the number of the next peer for a client, until it has none. Returns the numbers of
/// answered and lost announces.
fn announce_over_udp(
    tracker: SocketAddr,
    next: impl Fn(u32, &mut StdRng, u32) -> Option<u32> + Sync,
    all: Population,
) -> (u64, u64) {
    let (answered, lost) = (AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        for thread in 0..UDP_THREADS {
            let (answered, lost, next) = (&answered, &lost, &next);
            scope.spawn(move || {
                let mine = (0..HOSTS).filter(|host| host % UDP_THREADS == thread);
                let clients: Vec<_> = mine.map(|host| Client::new(tracker, host).unwrap()).collect();
                let mut rng = StdRng::seed_from_u64(thread.into());
                let mut reply = [0; 2048];
                let mut sent_before = vec![0u32; clients.len()];
                'all: loop {
                    let mut any = false;
                    for (group, counts) in
                        clients.chunks(SOCKETS_AT_A_TIME).zip(sent_before.chunks_mut(SOCKETS_AT_A_TIME))
                    {
                        let mut out = [0; SOCKETS_AT_A_TIME];
                        for ((client, count), out) in group.iter().zip(counts).zip(&mut out) {
                            for _ in 0..WINDOW {
                                let Some(peer) = next(client.host, &mut rng, *count) else { break };
                                *count += 1;
                                *out += u32::from(client.announce(all.peer(peer)).is_ok());
                            }
                            any |= *out > 0;
                        }
                        for (client, out) in group.iter().zip(out) {
                            for left in (0..out).rev() {
                                match client.socket.recv(&mut reply) {
                                    Ok(len) if len >= 20 && reply[3] == 1 => _ = answered.fetch_add(1, Relaxed),
                                    Ok(_) => panic!("refused: {}", reply[8..].escape_ascii()),
                                    Err(_) => {
                                        lost.fetch_add(u64::from(left) + 1, Relaxed);
                                        break;
                                    }
                                }
                            }
                        }
                    }
                    if !any {
                        break 'all;
                    }
                }
            });
        }
    });
    (answered.into_inner(), lost.into_inner())
}

/// Announces every peer once.
fn fill(tracker: SocketAddr, all: Population) -> u64 {
    let (answered, lost) =
        announce_over_udp(tracker, |_, _, count| (count < all.peers_per_host()).then_some(count), all);
    assert!(lost * 1000 <= answered, "{lost} of {answered} announces were lost");
    answered
}

/// Announces random known peers again for `time`. Returns the number of answered announces, and their rate per second.
fn udp_rate(tracker: SocketAddr, all: Population, time: Duration) -> (u64, f64) {
    let begin = Instant::now();
    let next = |_, rng: &mut StdRng, _| (begin.elapsed() < time).then(|| rng.random_range(0..all.peers_per_host()));
    let (answered, _) = announce_over_udp(tracker, next, all);
    (answered, answered as f64 / begin.elapsed().as_secs_f64())
}

fn http_rate(tracker: SocketAddr, all: Population, time: Duration) -> (u64, f64) {
    http_load(tracker, all, time, HTTP_THREADS, Duration::ZERO)
}

fn far_http_rate(tracker: SocketAddr, all: Population, time: Duration) -> (u64, f64) {
    http_load(tracker, all, time, FAR_THREADS, FAR_DELAY)
}

fn http_load(tracker: SocketAddr, all: Population, time: Duration, threads: u32, pause: Duration) -> (u64, f64) {
    let (begin, answered) = (Instant::now(), AtomicU64::new(0));
    thread::scope(|scope| {
        for thread in 0..threads {
            let answered = &answered;
            scope.spawn(move || {
                let mut rng = StdRng::seed_from_u64(thread.into());
                let mut reply = Vec::new();
                while begin.elapsed() < time {
                    let (from, peer) =
                        (rng.random_range(0..HOSTS), all.peer(rng.random_range(0..all.peers_per_host())));
                    reply.clear();
                    if announce_over_http(tracker, from, peer, pause, &mut reply).is_ok() {
                        assert!(contains(&reply, b"5:peers"), "refused: {}", reply.escape_ascii());
                        answered.fetch_add(1, Relaxed);
                    }
                }
            });
        }
    });
    let answered = answered.into_inner();
    (answered, answered as f64 / begin.elapsed().as_secs_f64())
}

fn announce_over_http(
    tracker: SocketAddr,
    from: u32,
    peer: Peer,
    pause: Duration,
    reply: &mut Vec<u8>,
) -> io::Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((host(from), 0)).into())?;
    socket.connect(&tracker.into())?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut escaped = String::new();
    for byte in info_hash(peer.torrent) {
        escaped.push_str(&format!("%{byte:02x}"));
    }
    let left = u8::from(!peer.seed);
    let request = format!(
        "GET /announce?info_hash={escaped}&peer_id=-LD0001-............&port={}&uploaded=0&downloaded=0&left={left}\
         &compact=1&numwant=50&key=00000000 HTTP/1.1\r\nHost: t\r\nUser-Agent: load\r\nConnection: close\r\n\r\n",
        peer.port
    );
    if !pause.is_zero() {
        thread::sleep(pause);
    }
    stream.write_all(request.as_bytes())?;
    stream.read_to_end(reply).map(drop)
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// A tracker process under load. Dropping it kills the process.
struct Running {
    name: &'static str,
    addr: SocketAddr,
    process: Option<Child>,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

impl Running {
    fn start(name: &'static str, command: &mut Command, addr: SocketAddr) -> io::Result<Self> {
        let process = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let running = Self { name, addr, process: Some(process) };
        for _ in 0..500 {
            if TcpStream::connect(addr).is_ok() {
                return Ok(running);
            }
            thread::sleep(Duration::from_millis(20));
        }
        Err(io::Error::other(format!("{name} does not listen")))
    }

    fn ours() -> io::Result<Self> {
        let addr = free_addr();
        let many = u32::MAX.to_string();
        let mut command = Command::new(env!("CARGO_BIN_EXE_torrentfs"));
        command.args(["tracker", "--listen", &addr.to_string()]);
        // All peers share a few addresses here.
        command.args(["--max-host-peers", &many, "--max-host-peers-of-torrent", &many, "--max-peers", "4000000"]);
        Self::start("torrentfs", &mut command, addr)
    }

    fn opentracker(dir: &Path, torrents: u32) -> io::Result<Self> {
        let (addr, list) = (free_addr(), dir.join("allowed.txt"));
        let hex = |torrent| info_hash(torrent).map(|byte| format!("{byte:02X}")).concat();
        fs::write(&list, (0..torrents).map(|torrent| hex(torrent) + "\n").collect::<String>())?;
        let port = addr.port().to_string();
        let mut command = Command::new("opentracker");
        command.args(["-i", "127.0.0.1", "-p", &port, "-P", &port, "-d", "/", "-u", "nobody", "-w"]).arg(&list);
        let running = Self::start("opentracker", &mut command, addr)?;
        // opentracker reads its list in the background.
        for _ in 0..500 {
            let mut reply = Vec::new();
            let last = Peer { torrent: torrents - 1, port: 1, seed: true };
            if announce_over_http(addr, 0, last, Duration::ZERO, &mut reply).is_ok() && contains(&reply, b"5:peers") {
                return Ok(running);
            }
            thread::sleep(Duration::from_millis(20));
        }
        Err(io::Error::other("opentracker does not load its list"))
    }

    /// Returns the CPU time of all threads, in seconds. The kernel counts in hundredths of a second.
    fn cpu(&self) -> Option<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process.as_ref()?.id())).ok()?;
        let mut fields = stat.rsplit(')').next()?.split_whitespace().skip(11);
        let mut ticks = || fields.next()?.parse::<f64>().ok();
        Some((ticks()? + ticks()?) / 100.0)
    }

    /// Returns the current and the peak resident memory, in MiB.
    fn memory(&self) -> Option<(u64, u64)> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.as_ref()?.id())).ok()?;
        let field = |name: &str| -> Option<u64> {
            let line = status.lines().find(|line| line.starts_with(name))?;
            line.split_whitespace().nth(1)?.parse().ok()
        };
        Some((field("VmRSS")? / 1024, field("VmHWM")? / 1024))
    }
}

/// Returns a free loopback address.
fn free_addr() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

fn main() {
    let (mut all, mut seconds, mut at) = (Population { peers: 1_000_000, torrents: 1000 }, 3.0, None);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().unwrap_or_else(|| panic!("{arg} needs a value"));
        match arg.as_str() {
            "--peers" => all.peers = value().parse().unwrap(),
            "--torrents" => all.torrents = value().parse().unwrap(),
            "--seconds" => seconds = value().parse().unwrap(),
            "--at" => at = Some(value().parse::<SocketAddr>().unwrap()),
            // Passed by Cargo.
            "--bench" => {}
            other => panic!("unknown option {other}"),
        }
    }
    assert!(
        all.peers >= HOSTS && all.peers_per_host() / all.torrents.max(1) < 65_535,
        "a host has more peers in a torrent than ports: use more torrents"
    );
    let time = Duration::from_secs_f64(f64::clamp(seconds, 0.1, 60.0));
    let dir = tempfile::tempdir().unwrap();
    // opentracker reads its list as the user nobody.
    #[cfg(unix)]
    fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let trackers = match at {
        Some(addr) => {
            assert!(addr.ip().is_loopback(), "only trackers on this machine may be put under load");
            vec![Running { name: "tracker", addr, process: None }]
        }
        None => {
            let mut trackers = vec![Running::ours().unwrap()];
            match Running::opentracker(dir.path(), all.torrents) {
                Ok(other) => trackers.push(other),
                Err(error) => eprintln!("cannot compare with opentracker: {error}"),
            }
            trackers
        }
    };

    println!("{} peers in {} swarms", all.peers_per_host() * HOSTS, all.torrents);
    for tracker in &trackers {
        let begin = Instant::now();
        let answered = fill(tracker.addr, all);
        println!("{}: {:.0} new peers/s", tracker.name, answered as f64 / begin.elapsed().as_secs_f64());
        if let Some((now, peak)) = tracker.memory() {
            println!("{}: {now} MiB, peak {peak} MiB", tracker.name);
        }
    }
    type Measure = fn(SocketAddr, Population, Duration) -> (u64, f64);
    for (protocol, measure) in
        [("UDP", udp_rate as Measure), ("HTTP", http_rate), ("HTTP with 1 ms delay", far_http_rate)]
    {
        let mut rates = vec![Vec::new(); trackers.len()];
        let mut costs = vec![Vec::new(); trackers.len()];
        for _ in 0..ROUNDS {
            for (tracker, (rates, costs)) in trackers.iter().zip(rates.iter_mut().zip(&mut costs)) {
                let before = tracker.cpu();
                let (answered, rate) = measure(tracker.addr, all, time);
                rates.push(rate);
                if let (Some(before), Some(after)) = (before, tracker.cpu()) {
                    costs.push((after - before) * 1e6 / answered.max(1) as f64);
                }
            }
        }
        for (tracker, (rates, costs)) in trackers.iter().zip(rates.into_iter().zip(costs)) {
            let cost =
                if costs.is_empty() { String::new() } else { format!(", {:.1} us of CPU per announce", median(costs)) };
            println!("{} {protocol}: {:.0} announces/s{cost}", tracker.name, median(rates));
        }
    }
    for tracker in &trackers {
        if let Some((now, peak)) = tracker.memory() {
            println!("{}: {now} MiB, peak {peak} MiB", tracker.name);
        }
    }
}
