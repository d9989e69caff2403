//! Announces over UDP and HTTP to opentracker; and which addresses a torrent's URLs may reach, in a network namespace.

#![allow(clippy::await_holding_lock, reason = "each test has a thread and a runtime of its own")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::*;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use torrentfs::internals::discovery::{Announce, AnnounceError, Announcer, Scrape, TrackerClient, Transferred};
use torrentfs::internals::http::{Purpose, RequestError};
use torrentfs::internals::route::{Bind, Route};
use torrentfs::metainfo::{InfoHash, Metainfo};
use torrentfs::wire::PeerId;

const LONG: Duration = Duration::from_secs(180);

/// Publishes a file and waits until the tracker knows it over UDP as well. `Lab` waits for the TCP port only.
fn publish(lab: &mut Lab, name: &str, data: &[u8]) -> PathBuf {
    let torrent = lab.publish(name, data, 16);
    let info_hash = Metainfo::parse(&fs::read(&torrent).unwrap()).unwrap().info_hash;
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (_, rest) = lab.announce.split_once("://").unwrap();
    socket.connect(rest.trim_end_matches("/announce")).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(1000))).unwrap();
    let mut reply = [0; 100];
    wait_until("the tracker knows the torrent", LONG, || {
        let _ = socket.send(b"\x00\x00\x04\x17\x27\x10\x19\x80\0\0\0\0test");
        let Ok(16) = socket.recv(&mut reply) else { return false };
        let id = reply[..16].to_vec();
        let mut announce = |event| {
            let head = [&id[8..], b"\0\0\0\x01test", &info_hash.0, &[b'-'; 20], &[0; 24], &[0, 0, 0, event]].concat();
            let _ = socket.send(&[head.as_slice(), &[0; 12], b"\0\x01"].concat());
            socket.recv(&mut reply).is_ok_and(|len| len >= 20)
        };
        // Joins and leaves, so that the tracker counts no peer.
        announce(2) && announce(3)
    });
    torrent
}

/// Starts a peer that only announces.
fn peer(
    lab: &Lab,
    torrent: &Path,
    client: &TrackerClient,
    (port, left): (u16, u64),
    tiers: &[&str],
) -> (Announcer, mpsc::Receiver<Vec<SocketAddr>>, Arc<Transferred>) {
    let metainfo = Metainfo::parse(&fs::read(torrent).unwrap()).unwrap();
    let (http, udp) = (lab.announce.clone(), lab.announce.replace("http://", "udp://"));
    let url = |kind: &&str| vec![kind.replace("HTTP", &http).replace("UDP", &udp)];
    let announce = Announce {
        info_hash: metainfo.info_hash,
        peer_id: PeerId([port as u8; 20]),
        port: port.into(),
        tiers: tiers.iter().map(url).collect(),
        key: 7,
    };
    let (sender, peers) = mpsc::channel(4);
    let transferred = Arc::new(Transferred { left: left.into(), ..Transferred::default() });
    (Announcer::spawn(announce, transferred.clone(), client.clone(), sender), peers, transferred)
}

async fn wait_for_answer(announcer: &Announcer, tracker: usize) {
    let done = || matches!(announcer.status()[tracker].last, Some(Ok(_)));
    let wait = async {
        while !done() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(timeout(LONG, wait).await.is_ok(), "{:?}", announcer.status());
}

/// Returns the error of the first tracker.
async fn first_error(announcer: &Announcer) -> AnnounceError {
    let first = async {
        loop {
            if let Some(last) = announcer.status().remove(0).last {
                return last.unwrap_err();
            }
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LONG, first).await.expect("in time")
}

/// Waits for these counts: a tracker may answer before it counts.
async fn wait_scrape(lab: &Lab, expected: (u32, u32)) {
    let wait = async {
        while lab.scrape() != expected {
            sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(timeout(LONG, wait).await.is_ok(), "{:?} and not {expected:?}", lab.scrape());
}

/// Returns the ports of the peers in the first answer. opentracker includes the peer that announces.
async fn first_ports(peers: &mut mpsc::Receiver<Vec<SocketAddr>>) -> Vec<u16> {
    let peers = timeout(LONG, peers.recv()).await.expect("in time").expect("the announcer runs");
    assert!(peers.iter().all(|peer| peer.ip().is_loopback()), "{peers:?}");
    let mut ports: Vec<u16> = peers.iter().map(SocketAddr::port).collect();
    ports.sort_unstable();
    ports
}

#[tokio::test]
async fn opentracker_counts_peers_over_udp() {
    if !can_run(&["opentracker", "mktorrent", "libtorrent"]) {
        return;
    }
    let _turn = turn();
    let mut lab = Lab::new();
    let torrent = publish(&mut lab, "film.bin", b"a film");
    let client = TrackerClient::new(Route::default()).unwrap();

    let (seed, _seed_peers, _) = peer(&lab, &torrent, &client, (7001, 0), &["UDP"]);
    wait_for_answer(&seed, 0).await;
    assert_eq!(lab.scrape(), (1, 0));
    // Peers that announce over HTTP and over UDP find each other. A tier that cannot be reached is skipped.
    let (leecher, mut peers, _) = peer(&lab, &torrent, &client, (7002, 5), &["http://127.0.0.1:1/announce", "HTTP"]);
    assert_eq!(first_ports(&mut peers).await, [7001, 7002]);
    let (other, mut peers, transferred) =
        peer(&lab, &torrent, &client, (7003, 5), &["udp://127.0.0.1:1/announce", "UDP"]);
    assert_eq!(first_ports(&mut peers).await, [7001, 7002, 7003]);
    assert_eq!(lab.scrape(), (1, 2));

    // A tracker that cannot be reached is not scraped.
    for announcer in [&seed, &leecher, &other] {
        let scraped = announcer.scrape(LONG).await;
        let expected = Scrape { seeders: Some(1), leechers: Some(2), downloads: Some(0) };
        assert_eq!((scraped.len(), &scraped[0].counts), (1, &Ok(expected)));
    }
    // The download completes, then the peers leave.
    transferred.left.store(0, Ordering::Relaxed);
    other.completed();
    wait_scrape(&lab, (2, 1)).await;
    for announcer in [seed, other] {
        announcer.stop(LONG).await;
    }
    wait_scrape(&lab, (0, 1)).await;
    leecher.stop(LONG).await;
    wait_scrape(&lab, (0, 0)).await;
}

#[tokio::test]
async fn opentracker_refuses_an_unknown_torrent() {
    if !can_run(&["opentracker", "mktorrent", "libtorrent"]) {
        return;
    }
    let _turn = turn();
    let mut lab = Lab::new();
    let unknown = publish(&mut lab, "film.bin", b"a film");
    // The tracker of this torrent replaces the one before, which ends.
    publish(&mut lab, "other.bin", b"another film");
    let client = TrackerClient::new(Route::default()).unwrap();
    let (announcer, _peers, _) = peer(&lab, &unknown, &client, (7001, 5), &["UDP"]);
    let first_error = first_error(&announcer).await;
    assert_eq!(first_error.to_string(), "refused: no reason given");
    assert!(announcer.scrape(LONG).await.is_empty());
}

#[tokio::test]
async fn through_a_socks_proxy_the_tracker_sees_the_proxy() {
    if !can_run(&["opentracker", "mktorrent", "libtorrent", "microsocks"]) {
        return;
    }
    let _turn = turn();
    let mut lab = Lab::new();
    let torrent = publish(&mut lab, "film.bin", b"a film");
    let port = free_port();
    let _proxy = Process::start(
        Command::new("microsocks")
            .args(["-i", "127.0.0.1", "-p", &port.to_string(), "-u", "me", "-P", "secret", "-b", "127.0.0.77"])
            .stderr(std::process::Stdio::null()),
    );
    wait_until("the proxy listens", LONG, || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    let through = |user: &str| {
        let proxy = format!("socks5://{user}@127.0.0.1:{port}").parse().unwrap();
        TrackerClient::new(Route { proxy: Some(proxy), bind: Bind::Anywhere }).unwrap()
    };
    let (hidden, _peers, _) = peer(&lab, &torrent, &through("me:secret"), (7001, 0), &["UDP", "HTTP"]);
    wait_for_answer(&hidden, 1).await;
    assert_eq!(hidden.status()[0].last, Some(Err(AnnounceError::NotThroughProxy)));
    let (refused, _peers, _) = peer(&lab, &torrent, &through("me:wrong"), (7002, 0), &["HTTP"]);
    let first_error = first_error(&refused).await;
    assert!(matches!(first_error, AnnounceError::Request(RequestError::Connect(_))), "{first_error}");

    let client = TrackerClient::new(Route::default()).unwrap();
    let (_open, mut peers, _) = peer(&lab, &torrent, &client, (7003, 5), &["UDP"]);
    let mut seen = timeout(LONG, peers.recv()).await.unwrap().unwrap();
    seen.sort();
    assert_eq!(seen, ["127.0.0.1:7003".parse().unwrap(), "127.0.0.77:7001".parse().unwrap()]);
}

#[test]
fn a_mount_finds_its_peers_over_udp_alone() {
    if !can_run(&["opentracker", "mktorrent", "libtorrent"]) {
        return;
    }
    let _turn = turn();
    let mut lab = Lab::new();
    lab.announce = lab.announce.replace("http://", "udp://");
    let data = noise(3_000_001, 41);
    let torrent = publish(&mut lab, "film.bin", &data);
    let _seeder = lab.libtorrent("seed", 2, 0, &lab.path("payload"), &torrent);
    wait_until("the seeder is known", LONG, || lab.scrape().0 == 1);
    let mount = lab.mount("m", &torrent, &[]);
    assert!(mount.read("film.bin") == data, "{}", mount.log());
    wait_until("the tracker counts us as complete", LONG, || lab.scrape() == (2, 0));
    mount.stop();
    wait_until("the tracker is told that we leave", LONG, || lab.scrape() == (1, 0));
}

/// Runs `urls_of_strangers_do_not_lead_inside` with a network and a hosts file of its own: 203.0.113.1 (`world.test`)
/// stands for the internet, and `inside.test` is a foreign name that resolves to this machine.
#[test]
fn in_a_network_namespace() {
    if !can_run(&["unshare", "mount", "python3"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let hosts = dir.path().join("hosts");
    fs::write(&hosts, "127.0.0.1 localhost inside.test\n203.0.113.1 world.test\n").unwrap();
    // SIOCSIFFLAGS with IFF_UP, and SIOCSIFADDR: `ip` is not on every machine.
    let interface = "import fcntl, socket, struct\n\
        ask = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
        fcntl.ioctl(ask, 0x8914, struct.pack('16sH22x', b'lo', 1))\n\
        world = socket.inet_aton('203.0.113.1')\n\
        fcntl.ioctl(ask, 0x8916, struct.pack('16sHxx4s16x', b'lo:1', socket.AF_INET, world))";
    let script = "mount --bind \"$1\" /etc/hosts && python3 -c \"$3\" && \
        exec \"$2\" --exact --ignored --nocapture trackers::urls_of_strangers_do_not_lead_inside";
    let mut command = Command::new("unshare");
    for name in ["http_proxy", "https_proxy", "all_proxy"] {
        command.env_remove(name).env_remove(name.to_ascii_uppercase());
    }
    let output = command
        .args(["--map-root-user", "--net", "--mount", "sh", "-ec", script, "sh"])
        .args([&hosts, &std::env::current_exe().unwrap()])
        .arg(interface)
        .output()
        .unwrap();
    let output_text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && output_text.contains("1 passed"), "{output:?}");
}

/// Starts a server that logs each request and answers it with `head` and an empty body.
fn serve(host: &str, head: String) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind((host, 0)).unwrap();
    let addr = listener.local_addr().unwrap();
    let requests: Arc<Mutex<Vec<String>>> = Arc::default();
    let log = requests.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
            log.lock().unwrap().extend(lines.next());
            lines.take_while(|line| !line.is_empty()).for_each(drop);
            let _ = write!(stream, "HTTP/1.1 {head}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
        }
    });
    (addr, requests)
}

#[tokio::test]
#[ignore = "in_a_network_namespace runs it"]
async fn urls_of_strangers_do_not_lead_inside() {
    let client = TrackerClient::new(Route::default()).unwrap();
    let get = async |url: &str, purpose| {
        let got = client.http().get(url.parse().unwrap(), purpose).await;
        got.map(|(status, _)| status.as_u16())
    };
    let (inside, requests) = serve("127.0.0.1", "200 OK".into());
    let port = inside.port();
    let blocked = Err(RequestError::Redirect("into the local network"));
    // No redirect leads inside: by name or by address, to an announce path or to another one.
    for target in [format!("inside.test:{port}"), inside.to_string()] {
        for path in ["announce", "admin"] {
            let (world, _) = serve("203.0.113.1", format!("302 Found\r\nlocation: http://{target}/{path}"));
            for host in ["world.test", "203.0.113.1"] {
                let url = format!("http://{host}:{}/announce", world.port());
                assert_eq!(get(&url, Purpose::Announce).await, blocked, "{url} to {target}/{path}");
                assert_eq!(get(&url, Purpose::User).await, blocked);
            }
        }
    }
    let (world, _) = serve("203.0.113.1", "200 OK".into());
    let (onward, _) = serve("203.0.113.1", format!("302 Found\r\nlocation: http://world.test:{}/a?b", world.port()));
    assert_eq!(get(&format!("http://world.test:{}/x", onward.port()), Purpose::Announce).await, Ok(200));

    assert_eq!(get(&format!("http://inside.test:{port}/admin"), Purpose::Announce).await, Err(RequestError::Local));
    assert_eq!(get(&format!("http://inside.test:{port}/f?q"), Purpose::WebSeed).await, Err(RequestError::Local));
    assert!(requests.lock().unwrap().is_empty());
    assert_eq!(get(&format!("http://inside.test:{port}/announce?q"), Purpose::Announce).await, Ok(200));
    let (redirecting, _) = serve("127.0.0.1", format!("302 Found\r\nlocation: http://{inside}/announce"));
    assert_eq!(get(&format!("http://{redirecting}/announce"), Purpose::Announce).await, Ok(200));
    assert_eq!(requests.lock().unwrap().len(), 2);

    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    udp.set_nonblocking(true).unwrap();
    let announce = Announce {
        info_hash: InfoHash([1; 20]),
        peer_id: PeerId([2; 20]),
        port: 1.into(),
        tiers: vec![vec![format!("udp://inside.test:{}/admin", udp.local_addr().unwrap().port())]],
        key: 0,
    };
    let announcer = Announcer::spawn(announce, Arc::default(), client.clone(), mpsc::channel(1).0);
    assert_eq!(first_error(&announcer).await, AnnounceError::Request(RequestError::Local));
    assert!(udp.recv(&mut [0; 16]).is_err());
}
