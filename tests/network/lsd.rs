//! Local discovery on loopback: between two instances of ours, and with libtorrent.

use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{Process, can_run, free_port};
use tokio::sync::mpsc;
use tokio::time::timeout;
use torrentfs::internals::discovery::{Lsd, LsdTorrent};
use torrentfs::internals::route::Bind;
use torrentfs::metainfo::InfoHash;

/// Time limit of a discovery. Generous, because the machine may be busy.
const LIMIT: Duration = Duration::from_secs(180);

fn ours(host: u8) -> Lsd {
    Lsd::start(&Bind::Address([127, 0, 0, host].into()))
}

fn hash(n: u8) -> InfoHash {
    InfoHash([n; 20])
}

fn register(lsd: &Lsd, info_hash: InfoHash, port: u16) -> (LsdTorrent, mpsc::Receiver<Vec<SocketAddr>>) {
    let (peers, found) = mpsc::channel(8);
    (lsd.register(info_hash, port, peers), found)
}

async fn finds(found: &mut mpsc::Receiver<Vec<SocketAddr>>, peer: &str) -> bool {
    let peer: SocketAddr = peer.parse().unwrap();
    let search = async {
        while let Some(batch) = found.recv().await {
            if batch.contains(&peer) {
                return true;
            }
        }
        false
    };
    timeout(LIMIT, search).await.unwrap_or(false)
}

#[tokio::test]
async fn two_instances_of_ours_find_each_other() {
    let (one, other) = (ours(31), ours(32));
    let (_torrent, mut found) = register(&one, hash(1), 1031);
    let (_unlike, mut nothing) = register(&one, hash(9), 1031);
    let (_torrent_too, _found) = register(&other, hash(1), 1032);
    assert!(finds(&mut found, "127.0.0.32:1032").await);
    // It finds neither the peers of another torrent nor itself.
    assert!(nothing.try_recv().is_err());
    assert!(found.try_recv().is_err());
    // Dropping the handle ends the task, which closes the channels.
    drop(one);
    assert!(timeout(LIMIT, found.recv()).await.unwrap().is_none());
}

#[tokio::test]
async fn many_torrents_are_announced_in_few_datagrams() {
    let (one, other) = (ours(33), ours(34));
    let started = Instant::now();
    let mut found: Vec<_> = (100..140).map(|n| register(&one, hash(n), 1033)).collect();
    let _announced: Vec<_> = (100..140).map(|n| register(&other, hash(n), 1034)).collect();
    for (_, found) in &mut found {
        assert!(finds(found, "127.0.0.34:1034").await);
    }
    // One datagram a second is sent: with one torrent in each this would take forty.
    assert!(started.elapsed() < Duration::from_secs(35), "{:?}", started.elapsed());
}

fn libtorrent(host: u8, info_hash: InfoHash) -> (Process, BufReader<std::process::ChildStdout>, SocketAddr) {
    let ip = IpAddr::from([127, 0, 0, host]);
    let addr = SocketAddr::new(ip, free_port());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/dht.py");
    let mut process = Process::start(
        Command::new("/usr/bin/python3")
            .arg(script)
            .args(["lsd", &ip.to_string(), &addr.port().to_string(), "-", &info_hash.to_string()])
            .stdout(Stdio::piped())
            .stderr(Stdio::null()),
    );
    let mut output = BufReader::new(process.0.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert_eq!(line.trim(), "READY");
    (process, output, addr)
}

#[tokio::test]
async fn we_and_libtorrent_find_each_other() {
    if !can_run(&["libtorrent"]) {
        return;
    }
    let lsd = ours(35);
    let (_torrent, mut found) = register(&lsd, hash(3), 1035);
    let (process, output, addr) = libtorrent(36, hash(3));
    assert!(finds(&mut found, &addr.to_string()).await);
    // libtorrent is running now and receives the announce of a second instance.
    let second = ours(37);
    let (_torrent_too, _found) = register(&second, hash(3), 1037);
    let heard = tokio::task::spawn_blocking(move || {
        let mut lines = output.lines().map_while(Result::ok);
        lines.any(|line| line.starts_with("LSD") && line.contains("127.0.0.37:1037"))
    });
    assert!(timeout(LIMIT, heard).await.is_ok_and(|heard| heard.unwrap()));
    drop(process);
}

/// Runs `inside_a_namespace` in a network namespace with one network.
#[test]
fn unbound_discovery_uses_both_ip_versions() {
    if !can_run(&["unshare", "ip"]) {
        return;
    }
    let setup = "ip link set lo up && ip link add net0 type veth peer name net1 && ip link set net1 up && ip link set net0 up \
                 && ip addr add 10.9.9.1/24 dev net0 && ip addr add fd00:9::1/64 dev net0 nodad \
                 && ip route add default dev net0 && exec \"$0\" --ignored --exact --nocapture lsd::inside_a_namespace";
    let this = std::env::current_exe().unwrap();
    let output = Command::new("unshare").args(["-rn", "sh", "-c", setup]).arg(this).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "{output:?}");
}

#[tokio::test]
#[ignore = "run by another test, in a network namespace"]
async fn inside_a_namespace() {
    let (one, other) = (Lsd::start(&Bind::Anywhere), Lsd::start(&Bind::Anywhere));
    let (_torrent, mut found) = register(&one, hash(4), 1041);
    let (_torrent_too, _found) = register(&other, hash(4), 1042);
    let mut missing = vec!["10.9.9.1", "an IPv6 address"];
    while !missing.is_empty() {
        let peers = timeout(LIMIT, found.recv()).await.unwrap_or_else(|_| panic!("nothing from {missing:?}")).unwrap();
        for peer in peers {
            assert_eq!(peer.port(), 1042);
            missing
                .retain(|wanted| if peer.is_ipv6() { wanted.contains('.') } else { *wanted != peer.ip().to_string() });
        }
    }
}
