//! `torrentfs tracker` with real clients: libtorrent, aria2, transmission and our own mount find each other through it, over
//! HTTP and UDP, IPv4 and IPv6. Also its output, its lists and its state file.

#![allow(clippy::await_holding_lock, reason = "each test has a thread and a runtime of its own")]

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use crate::support::tracker::{TrackerServer, publish};
use crate::support::*;
use tokio::sync::mpsc;
use torrentfs::internals::discovery::{Announce, Announcer, Scrape, TrackerClient, Transferred};
use torrentfs::internals::route::Route;
use torrentfs::metainfo::{InfoHash, Metainfo};
use torrentfs::wire::PeerId;

const LONG: Duration = Duration::from_secs(180);

fn info_hash(torrent: &Path) -> InfoHash {
    Metainfo::parse(&fs::read(torrent).unwrap()).unwrap().info_hash
}

fn escaped(info_hash: InfoHash) -> String {
    info_hash.0.iter().map(|byte| format!("%{byte:02x}")).collect()
}

/// Every client finds the seeder through our tracker alone, downloads the file, and is counted.
fn clients_meet(scheme: &str) {
    if !can_run(&["mktorrent", "libtorrent", "aria2c", "transmission-cli"]) {
        return;
    }
    let _turn = turn();
    let lab = Lab::new();
    let tracker = TrackerServer::start(&["--interval", "2min"]);
    let data = noise(3_000_001, 51);
    let torrent = publish(&lab, &format!("{scheme}://{}/announce", tracker.addr), &data);
    let file = torrent.to_str().unwrap();
    let _seeder = lab.libtorrent("seed", 2, 0, &lab.path("payload"), &torrent);
    wait_until("the seeder is known", LONG, || tracker.peers() == (1, 0));

    // Transmission does not connect to loopback addresses, so the mount has to connect to it.
    let (save, config) = (lab.path("transmission"), lab.path("config"));
    let start = || {
        Process::start(
            Command::new("transmission-cli")
                .args(["-M", "-v", "-U", "-D", "-p", &free_port().to_string(), "-g", config.to_str().unwrap(), "-w"])
                .args([save.to_str().unwrap(), file])
                .stdout(Stdio::null())
                .stderr(Stdio::null()),
        )
    };
    let transmission = start_until_known(start, || tracker.peers() == (1, 1));
    let mount = lab.mount("m", &torrent, &[]);
    assert!(mount.read("film.bin") == data, "{}", mount.log());
    wait_until("transmission is complete", LONG, || fs::read(save.join("film.bin")).is_ok_and(|got| got == data));
    wait_until("all are counted as complete", LONG, || tracker.peers() == (3, 0));
    mount.stop();
    wait_until("the tracker is told that we leave", LONG, || tracker.peers() == (2, 0));
    drop(transmission);

    let save = lab.path("libtorrent");
    fs::create_dir_all(&save).unwrap();
    let mut leecher = lab.libtorrent("leech", 3, 0, &save, &torrent);
    leecher.done();
    assert!(fs::read(save.join("film.bin")).unwrap() == data);
    wait_until("libtorrent is counted as complete", LONG, || tracker.peers().0 == 3);
    drop(leecher);
    assert_eq!(tracker.metric("completed_total"), 3);

    // aria2 supports UDP trackers only with its DHT enabled, which finds nobody here.
    let save = lab.path("aria2");
    let mut aria2 = Process::start(
        Command::new("aria2c")
            .args(["--no-conf=true", "--enable-dht=true", "--enable-dht6=false", "--bt-enable-lpd=false", "-q"])
            .args(["--enable-peer-exchange=false", "--seed-time=0", &format!("--listen-port={}", free_port())])
            .arg(format!("--dht-file-path={}", lab.path("dht.dat").display()))
            .arg(format!("--dht-listen-port={}", free_port()))
            .args(["-d", save.to_str().unwrap(), file]),
    );
    assert!(aria2.wait(LONG).expect("aria2 ends").success());
    assert!(fs::read(save.join("film.bin")).unwrap() == data);
    let protocol = if scheme == "udp" { "udp" } else { "http" };
    assert!(tracker.metric(&format!("announces_total{{protocol=\"{protocol}\"}}")) >= 8);
    let other = if scheme == "udp" { "http" } else { "udp" };
    assert_eq!(tracker.metric(&format!("announces_total{{protocol=\"{other}\"}}")), 0);
    assert_eq!(tracker.metric("malformed_total{protocol=\"http\"}"), 0);
    assert_eq!(tracker.metric("malformed_total{protocol=\"udp\"}"), 0);
    tracker.stop();
}

#[test]
fn clients_meet_over_http() {
    clients_meet("http");
}

#[test]
fn clients_meet_over_udp() {
    clients_meet("udp");
}

/// Starts a peer that only announces.
fn peer(info_hash: InfoHash, url: &str, port: u16, left: u64) -> (Announcer, mpsc::Receiver<Vec<SocketAddr>>) {
    let announce = Announce {
        info_hash,
        peer_id: PeerId([port as u8; 20]),
        port: port.into(),
        tiers: vec![vec![url.to_owned()]],
        key: port.into(),
    };
    let transferred = Transferred { left: left.into(), ..Transferred::default() };
    let (sender, peers) = mpsc::channel(4);
    let client = TrackerClient::new(Route::default()).unwrap();
    (Announcer::spawn(announce, Arc::new(transferred), client, sender), peers)
}

// Two threads, because the test blocks one of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_announcer_finds_peers_and_scrapes_over_ipv4_and_ipv6() {
    if TcpListener::bind("[::1]:0").is_err() {
        assert!(std::env::var_os("CI").is_none(), "no IPv6 on this machine");
        eprintln!("skipped: no IPv6 on this machine");
        return;
    }
    let _turn = turn();
    let hash = InfoHash([0x5a; 20]);
    let tracker = TrackerServer::start_at("[::1]:0", &["--listen", "127.0.0.1:0"]);
    tracker.wait_for_output("listening on 127.0.0.1:");
    let line = tracker.output.lock().unwrap().clone();
    let v4 = line.split("listening on 127.0.0.1:").nth(1).unwrap().split(',').next().unwrap().to_owned();
    let urls = [format!("http://{}/announce", tracker.addr), format!("udp://{}/announce", tracker.addr)];
    let (seed, _peers) = peer(hash, &urls[0], 7001, 0);
    wait_until("the seeder is known", LONG, || tracker.peers() == (1, 0));
    let (leecher, mut peers) = peer(hash, &urls[1], 7002, 5);
    assert_eq!(peers.recv().await.unwrap(), ["[::1]:7001".parse().unwrap()]);
    // An HTTP answer over IPv4 has IPv6 peers, too.
    let (other, mut peers) = peer(hash, &format!("http://127.0.0.1:{v4}/announce"), 7003, 5);
    let mut found = peers.recv().await.unwrap();
    found.sort();
    assert_eq!(found, ["[::1]:7001".parse().unwrap(), "[::1]:7002".parse().unwrap()]);
    for announcer in [&seed, &leecher, &other] {
        let scraped = announcer.scrape(LONG).await;
        let expected = Scrape { seeders: Some(1), leechers: Some(2), downloads: Some(0) };
        assert_eq!((scraped.len(), &scraped[0].counts), (1, &Ok(expected)));
    }
    for announcer in [seed, leecher, other] {
        announcer.stop(LONG).await;
    }
    wait_until("all peers have left", LONG, || tracker.peers() == (0, 0));
    tracker.stop();
}

#[test]
fn udp_answers_come_from_the_address_that_was_asked() {
    let _turn = turn();
    let tracker = TrackerServer::start_at("0.0.0.0:0", &[]);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(LONG)).unwrap();
    socket.connect(("127.0.0.42", tracker.addr.port())).unwrap();
    socket.send(b"\x00\x00\x04\x17\x27\x10\x19\x80\0\0\0\0test").unwrap();
    assert_eq!(socket.recv(&mut [0; 100]).unwrap(), 16);
    tracker.stop();
}

fn announce(tracker: &TrackerServer, info_hash: InfoHash, port: u16, rest: &str) -> String {
    let hash = escaped(info_hash);
    tracker.get(&format!("/announce?info_hash={hash}&peer_id=-XX0001-aaaaaaaaaaaa&port={port}&left=1{rest}"))
}

#[test]
fn peers_survive_a_restart() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let args = ["--state", state.to_str().unwrap()];
    let (one, other) = (InfoHash([1; 20]), InfoHash([2; 20]));
    let tracker = TrackerServer::start(&args);
    announce(&tracker, one, 0x1ae1, "");
    announce(&tracker, other, 0x1ae2, "&left=0&event=completed");
    tracker.stop();

    let tracker = TrackerServer::start(&args);
    tracker.wait_for_output("restored 2 torrents, 2 peers");
    assert!(announce(&tracker, one, 0x1ae3, "").ends_with(r"5:peers6:\x7f\x00\x00\x01\x1a\xe1e"));
    // A second tracker cannot use the same port. It fails with one line.
    let second = run(TORRENTFS, &["tracker", "--listen", &tracker.addr.to_string()]);
    let stderr = String::from_utf8(second.stderr).unwrap();
    assert_eq!(second.status.code(), Some(5));
    assert!(
        stderr.starts_with(&format!("torrentfs: cannot listen on {}", tracker.addr)) && stderr.lines().count() == 1
    );
    tracker.stop();

    fs::write(&state, [&fs::read(&state).unwrap()[..], b"more"].concat()).unwrap();
    let tracker = TrackerServer::start(&args);
    tracker.wait_for_output("is damaged; moved it to");
    assert!(announce(&tracker, one, 0x1ae3, "").ends_with("5:peers0:e"));
    tracker.stop();
    fs::write(&state, "my notes").unwrap();
    let refused = run(TORRENTFS, &["tracker", "--listen", "127.0.0.1:0", "--state", state.to_str().unwrap()]);
    let stderr = String::from_utf8(refused.stderr).unwrap();
    assert!(refused.status.code() == Some(5) && stderr.contains("it is not a state file of this tracker"), "{stderr}");
    assert_eq!(fs::read(&state).unwrap(), b"my notes");
}

#[test]
fn lists_of_torrents_are_enforced_and_reloaded() {
    if !can_run(&["mktorrent"]) {
        return;
    }
    let _turn = turn();
    let lab = Lab::new();
    let (list, torrents) = (lab.path("allowed"), lab.path("torrents"));
    fs::create_dir(&torrents).unwrap();
    let (one, other) = (InfoHash([1; 20]), InfoHash([2; 20]));
    fs::write(&list, format!("# mine\n{one}\n")).unwrap();
    let args = ["--allow", list.to_str().unwrap(), "--torrents", torrents.to_str().unwrap()];
    let tracker = TrackerServer::start(&args);
    tracker.wait_for_output("serving 1 listed torrent");
    let served = |info_hash| announce(&tracker, info_hash, 1, "").contains("5:peers");
    assert!(served(one) && !served(other));

    fs::write(&list, format!("{other}\n")).unwrap();
    tracker.process.signal("HUP");
    tracker.wait_for_output("reloaded the lists; serving 1 torrent");
    assert!(!served(one) && served(other));
    // A list with an error changes nothing.
    fs::write(&list, "nonsense\n").unwrap();
    tracker.process.signal("HUP");
    tracker.wait_for_output("line 1 of the list");
    assert!(served(other));
    fs::write(&list, format!("{other}\n")).unwrap();

    // The directory is watched without a signal.
    let torrent = publish(&lab, "http://127.0.0.1:1/announce", b"a film");
    let found = info_hash(&torrent);
    assert!(!served(found));
    fs::copy(&torrent, torrents.join("film.torrent")).unwrap();
    wait_until("a new torrent is served", LONG, || served(found));
    fs::remove_file(torrents.join("film.torrent")).unwrap();
    wait_until("a removed torrent is no longer served", LONG, || !served(found));
    assert!(served(other));
    tracker.stop();

    fs::write(&list, "nonsense\n").unwrap();
    let refused = run(TORRENTFS, &["tracker", "--listen", "127.0.0.1:0", "--allow", list.to_str().unwrap()]);
    let stderr = String::from_utf8(refused.stderr).unwrap();
    let expected = format!("torrentfs: line 1 of the list {} is not an info hash", list.display());
    assert!(refused.status.code() == Some(5) && stderr.starts_with(&expected), "{stderr}");
}

/// Runs in a network namespace, where the sender's address can be forged.
#[test]
fn a_forged_sender_does_not_amplify() {
    if !can_run(&["unshare", "python3"]) {
        return;
    }
    let _turn = turn();
    // Sends raw packets with the sender 127.0.0.9, which receives the answers.
    let script = r#"
import fcntl, os, socket, struct, subprocess, sys
ask = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
fcntl.ioctl(ask, 0x8914, struct.pack('16sH22x', b'lo', 1))
tracker = subprocess.Popen([sys.argv[1], 'tracker', '--listen', '127.0.0.1:0'], stdout=subprocess.PIPE, text=True)
port = int(tracker.stdout.readline().split(':')[1].split(',')[0])
victim = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
victim.bind(('127.0.0.9', 0))
victim.settimeout(30)
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
def forge(payload):
    udp = struct.pack('!HHHH', victim.getsockname()[1], port, 8 + len(payload), 0) + payload
    ip = struct.pack('!BBHHHBBH4s4s', 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0,
                     socket.inet_aton('127.0.0.9'), socket.inet_aton('127.0.0.1'))
    raw.sendto(ip + udp, ('127.0.0.1', 0))
def announce(connection):
    return connection + b'\0\0\0\1anno' + b'a' * 20 + b'i' * 20 + bytes(24) + bytes(12) + b'\xff' * 4 + b'\x1a\xe1'
for n in range(200):
    forge(announce(os.urandom(8)))
    forge(os.urandom(8) + b'\0\0\0\2scra' + b'a' * 20 * 70)
# The last request is answered with as many bytes. None before it was answered.
forge(b'\0\0\x04\x17\x27\x10\x19\x80\0\0\0\0last')
reply = victim.recv(4096)
assert len(reply) == 16 and reply[4:8] == b'last', reply
# A sender that received its connection id may announce.
forge(announce(reply[8:]))
assert victim.recv(4096)[:8] == b'\0\0\0\1anno'
tracker.terminate()
assert tracker.wait(30) == 0
print('done')
"#;
    let output = Command::new("unshare")
        .args(["--map-root-user", "--net", "python3", "-c", script, TORRENTFS])
        .output()
        .unwrap();
    assert!(output.status.success() && output.stdout == b"done\n", "{output:?}");
}

#[test]
fn a_flood_does_not_exclude_honest_peers() {
    let _turn = turn();
    let tracker =
        TrackerServer::start(&["--max-torrents", "100", "--max-host-peers", "50", "--max-host-peers-of-torrent", "10"]);
    let ask = |from: &str, info_hash: InfoHash, port: u16| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&format!("{from}:0").parse::<SocketAddr>().unwrap().into()).unwrap();
        socket.connect(&tracker.addr.into()).unwrap();
        let mut stream = TcpStream::from(socket);
        let hash = escaped(info_hash);
        let path = format!("/announce?info_hash={hash}&peer_id=-XX0001-aaaaaaaaaaaa&port={port}&left=1");
        write!(stream, "GET {path} HTTP/1.1\r\n\r\n").unwrap();
        let mut reply = Vec::new();
        stream.read_to_end(&mut reply).unwrap();
        reply.escape_ascii().to_string()
    };
    // Connections that send nothing. `src/tracker/tests.rs` tests more than the limit.
    let silent: Vec<_> = (0..500).map(|_| TcpStream::connect(tracker.addr).unwrap()).collect();
    let hash = InfoHash([1; 20]);
    for port in 1..=300 {
        assert!(ask("127.0.0.66", hash, port).contains("5:peers"));
    }
    for torrent in 2..=250u8 {
        ask("127.0.0.66", InfoHash([torrent; 20]), 1);
    }
    let counts = (tracker.metric("torrents"), tracker.peers());
    assert_eq!(counts, (41, (0, 50)), "10 peers in one torrent, and one in each of 40 others");
    // Two honest peers find each other, in that swarm and in another one.
    for hash in [hash, InfoHash([0xfe; 20])] {
        assert!(ask("127.0.0.1", hash, 0x1ae1).contains("5:peers"));
        assert!(ask("127.0.0.2", hash, 0x1ae2).contains(r"\x7f\x00\x00\x01\x1a\xe1"));
    }
    drop(silent);
    tracker.stop();
}

#[test]
fn a_tracker_prints_its_urls_and_serves_a_page() {
    let _turn = turn();
    let tracker = TrackerServer::start(&[]);
    let at = tracker.addr;
    tracker.wait_for_output(&format!("announce URLs: http://{at}/announce, udp://{at}/announce"));
    tracker.wait_for_output("serving every torrent");
    let page = tracker.get("/");
    assert!(page.starts_with("HTTP/1.1 200 OK") && page.contains("<h1>BitTorrent tracker</h1>"), "{page}");
    assert!(tracker.get("/robots.txt").starts_with("HTTP/1.1 404"));
    // Ctrl-C ends it with success, too.
    let mut process = tracker.process;
    process.signal("INT");
    assert!(process.wait(LONG).expect("it ends").success());
}
