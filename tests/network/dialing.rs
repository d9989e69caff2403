//! Trackers that are silent or list peers that do not answer, peers that are known from an earlier run, and the UDP port
//! that the DHT and uTP share. The simulations of `tests/pure/dialing.rs` have the exact limits.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};
use torrentfs::internals::session::{PeerSource, Session, SessionConfig, Torrent, TorrentOptions};
use torrentfs::internals::store::{Cache, CacheConfig, Place};
use torrentfs::metainfo::{FileIndex, FileKind, Metainfo, NewFile, NewTorrent, hash_pieces};

use crate::support::fake::{self, Behaviour, FakePeer};
use crate::support::{local, noise};

const PIECE: u32 = 64 << 10;
const LIMIT: Duration = Duration::from_secs(60);

/// A torrent with these trackers, one a tier.
fn torrent(private: bool, trackers: &[&str]) -> (Arc<Vec<u8>>, Metainfo) {
    let data = noise(8 * PIECE as usize, 21);
    let (hashes, len) = hash_pieces(&data[..], PIECE).unwrap();
    let file = NewFile { path: Vec::new(), len, kind: FileKind::Regular { executable: false } };
    let trackers = trackers.iter().map(|url| vec![(*url).to_owned()]).collect();
    let torrent = NewTorrent {
        name: "film.bin".into(),
        piece_len: PIECE,
        files: vec![file],
        private,
        trackers,
        ..NewTorrent::default()
    };
    (Arc::new(data), Metainfo::parse(&torrent.build(&hashes).unwrap()).unwrap())
}

fn session(dir: &Path, change: impl FnOnce(&mut SessionConfig)) -> Session {
    let cache = Cache::open(CacheConfig { dir: dir.into(), disk_limit: None, memory: 32 << 20 }).unwrap();
    let mut config = SessionConfig { net: local(), read_timeout: Some(LIMIT), ..SessionConfig::new(cache) };
    change(&mut config);
    Session::start(config).unwrap()
}

/// Reads a piece. Returns how long that takes.
async fn read(torrent: &Arc<Torrent>, data: &[u8], piece: u32) -> Result<Duration, String> {
    let (begin, at) = (Instant::now(), (piece * PIECE) as usize);
    let got = torrent.open(FileIndex(0)).unwrap().read(at as u64, PIECE).await.map_err(|error| error.to_string())?;
    assert!(*got == data[at..at + PIECE as usize]);
    Ok(begin.elapsed())
}

fn live_peers(metainfo: &Metainfo, data: &Arc<Vec<u8>>, count: u8) -> Vec<FakePeer> {
    (1..=count).map(|host| fake::peer(&format!("127.0.3.{host}"), metainfo, data, Behaviour::Honest)).collect()
}

/// A port at which every address of this machine swallows SYNs, because the listener's queue is full, and datagrams.
struct Swallower {
    port: u16,
    _listener: Socket,
    _udp: UdpSocket,
    _queued: Vec<TcpStream>,
}

fn swallower() -> Swallower {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)).into()).unwrap();
    listener.listen(0).unwrap();
    let port = listener.local_addr().unwrap().as_socket().unwrap().port();
    let connect = || TcpStream::connect_timeout(&([127, 0, 0, 1], port).into(), Duration::from_millis(500));
    let queued: Vec<TcpStream> = std::iter::from_fn(|| connect().ok()).take(50).collect();
    assert!(queued.len() < 50, "the kernel takes connections although the queue is full");
    let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
    Swallower { port, _listener: listener, _udp: udp, _queued: queued }
}

impl Swallower {
    fn addrs(&self, count: u8) -> Vec<SocketAddr> {
        (1..=count).map(|host| ([127, 0, 2, host], self.port).into()).collect()
    }
}

/// A tracker that answers after some time.
struct FakeTracker {
    url: String,
    asked: Arc<AtomicUsize>,
}

fn tracker(delay: Duration, peers: &[SocketAddr]) -> FakeTracker {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (url, asked) = (format!("http://{}/announce", listener.local_addr().unwrap()), Arc::new(AtomicUsize::new(0)));
    let mut body = format!("d8:intervali1800e12:min intervali900e5:peers{}:", 6 * peers.len()).into_bytes();
    for peer in peers {
        let SocketAddr::V4(peer) = peer else { panic!("an IPv4 address") };
        body.extend(peer.ip().octets());
        body.extend(peer.port().to_be_bytes());
    }
    body.push(b'e');
    let counter = asked.clone();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            counter.fetch_add(1, Ordering::Relaxed);
            let body = body.clone();
            thread::spawn(move || {
                let (mut request, mut buffer) = (Vec::new(), [0; 4096]);
                while !request.ends_with(b"\r\n\r\n") {
                    match stream.read(&mut buffer) {
                        Ok(0) | Err(_) => return,
                        Ok(len) => request.extend(&buffer[..len]),
                    }
                }
                thread::sleep(delay);
                let head = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
                let _ = stream.write_all(&[head.as_bytes(), &body].concat());
            });
        }
    });
    FakeTracker { url, asked }
}

/// A tracker that takes requests and never answers.
fn silent_tracker() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/announce", listener.local_addr().unwrap());
    (listener, url)
}

/// Adds a torrent and reads its first piece at once. Returns how long that takes.
async fn first_read(metainfo: &Metainfo, data: &[u8]) -> Duration {
    let dir = tempfile::tempdir().unwrap();
    let session = session(dir.path(), |_| {});
    let options = TorrentOptions { on_demand: true, ..TorrentOptions::default() };
    let torrent = session.add(metainfo.clone(), options).await.unwrap();
    let took = read(&torrent, data, 0).await.unwrap();
    session.remove(&torrent).await;
    took
}

/// One after the other in the order of the list they would take 100 s.
#[tokio::test(flavor = "multi_thread")]
async fn dead_addresses_of_a_late_tracker_delay_a_read_by_little() {
    let swallower = swallower();
    let (data, metainfo) = torrent(false, &[]);
    let live = live_peers(&metainfo, &data, 10);
    let listed: Vec<SocketAddr> = swallower.addrs(200).into_iter().chain(live.iter().map(|peer| peer.addr)).collect();
    let tracker = tracker(Duration::from_millis(500), &listed);
    let (_, metainfo) = torrent(false, &[&tracker.url]);
    let took = first_read(&metainfo, &data).await;
    println!("launch to first piece: {took:?}");
    assert!(took > Duration::from_millis(500) && took < Duration::from_secs(20), "{took:?}");
}

/// At the pace of a torrent that nobody reads, the last would be asked after 24 s.
#[tokio::test(flavor = "multi_thread")]
async fn silent_trackers_do_not_delay_the_others_while_a_read_waits() {
    let (data, metainfo) = torrent(false, &[]);
    let live = live_peers(&metainfo, &data, 1);
    let good = tracker(Duration::ZERO, &[live[0].addr]);
    let silent: Vec<(TcpListener, String)> = (0..8).map(|_| silent_tracker()).collect();
    let urls: Vec<&str> = silent.iter().map(|(_, url)| url.as_str()).chain([good.url.as_str()]).collect();
    let (_, metainfo) = torrent(false, &urls);
    let took = first_read(&metainfo, &data).await;
    println!("launch to first piece: {took:?}");
    assert!(took < Duration::from_secs(12), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_tracker_is_asked_when_the_peers_of_the_first_are_dead() {
    let swallower = swallower();
    let (data, metainfo) = torrent(false, &[]);
    let live = live_peers(&metainfo, &data, 1);
    let (dead, good) = (tracker(Duration::ZERO, &swallower.addrs(40)), tracker(Duration::ZERO, &[live[0].addr]));
    let (_, metainfo) = torrent(false, &[&dead.url, &good.url]);
    let took = first_read(&metainfo, &data).await;
    println!("launch to first piece: {took:?}");
    assert!(took < Duration::from_secs(12), "{took:?}");
    assert_eq!((dead.asked.load(Ordering::Relaxed), good.asked.load(Ordering::Relaxed)), (2, 2), "started and stopped");
}

#[tokio::test(flavor = "multi_thread")]
async fn good_peers_are_dialed_at_once_at_the_next_start() {
    for private in [false, true] {
        let (data, metainfo) = torrent(private, &[]);
        let live = live_peers(&metainfo, &data, 2);
        let dir = tempfile::tempdir().unwrap();
        let first = session(dir.path(), |_| {});
        let peers = live.iter().map(|peer| peer.addr).collect();
        let options = TorrentOptions { on_demand: true, peers, ..TorrentOptions::default() };
        let added = first.add(metainfo.clone(), options).await.unwrap();
        read(&added, &data, 0).await.unwrap();
        first.remove(&added).await;
        first.stop().await;
        drop((first, added));

        let second = session(dir.path(), |config| config.read_timeout = Some(Duration::from_secs(3)));
        let options = TorrentOptions { on_demand: true, ..TorrentOptions::default() };
        let added = second.add(metainfo, options).await.unwrap();
        let outcome = read(&added, &data, 5).await;
        assert_eq!(outcome.is_err(), private, "{outcome:?}");
        let report = added.report().await.unwrap();
        assert!(report.peers.iter().all(|peer| peer.swarm.source == PeerSource::Remembered));
        second.remove(&added).await;
        second.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dht_has_the_port_of_the_peer() {
    let (data, metainfo) = torrent(false, &[]);
    let [seeder_dir, dir] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let film = seeder_dir.path().join("film.bin");
    std::fs::write(&film, &data[..]).unwrap();
    let seeder = session(&seeder_dir.path().join("cache"), |config| config.dht = Some(Vec::new()));
    let options = TorrentOptions { place: Place::Seed(film), ..TorrentOptions::default() };
    let seeding = seeder.add(metainfo.clone(), options).await.unwrap();
    let node = format!("127.0.0.1:{}", seeder.port());
    let client = session(dir.path(), |config| config.dht = Some(vec![node]));
    let reading = client.add(metainfo, TorrentOptions { on_demand: true, ..TorrentOptions::default() }).await.unwrap();
    read(&reading, &data, 0).await.unwrap();
    for (session, torrent) in [(client, reading), (seeder, seeding)] {
        session.remove(&torrent).await;
        session.stop().await;
    }
}
