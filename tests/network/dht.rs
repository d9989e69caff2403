//! The DHT on loopback: between two nodes of ours, and with libtorrent.

use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{Process, can_run, free_port};
use tokio::sync::mpsc;
use tokio::time::timeout;
use torrentfs::internals::discovery::{Dht, DhtConfig, DhtSearch};
use torrentfs::internals::route::Bind;
use torrentfs::metainfo::InfoHash;

const HASH: InfoHash = InfoHash([0x42; 20]);
/// Time limit of a search. Generous, because the machine may be busy.
const LIMIT: Duration = Duration::from_secs(180);

/// Starts a node of ours on 127.0.0.`host`.
fn ours(host: u8, bootstrap: &[SocketAddr]) -> (Dht, SocketAddr) {
    let ip = IpAddr::from([127, 0, 0, host]);
    let bootstrap = bootstrap.iter().map(SocketAddr::to_string).collect();
    let dht = Dht::start(DhtConfig { bind: Bind::Address(ip), bootstrap, ..DhtConfig::default() }).unwrap();
    let addr = SocketAddr::new(ip, dht.port());
    (dht, addr)
}

/// A search and the peers that it finds.
struct Search(#[allow(dead_code)] DhtSearch, mpsc::Receiver<Vec<SocketAddr>>);

fn search(dht: &Dht, announce: Option<u16>) -> Search {
    let (peers, found) = mpsc::channel(8);
    Search(dht.search(HASH, announce, peers), found)
}

impl Search {
    async fn finds(&mut self, peer: SocketAddr) -> bool {
        let found = async {
            while let Some(batch) = self.1.recv().await {
                if batch.contains(&peer) {
                    return true;
                }
            }
            false
        };
        timeout(LIMIT, found).await.unwrap_or(false)
    }
}

/// A libtorrent node, its output and its address.
struct Libtorrent(#[allow(dead_code)] Process, std::io::Lines<BufReader<std::process::ChildStdout>>, SocketAddr);

fn libtorrent(role: &str, ip: &str, bootstrap: Option<SocketAddr>) -> Libtorrent {
    let addr: SocketAddr = format!("{ip}:{}", free_port()).parse().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/dht.py");
    let bootstrap = bootstrap.map_or("-".to_owned(), |addr| addr.to_string());
    let mut process = Process::start(
        Command::new("/usr/bin/python3")
            .arg(script)
            .args([role, ip, &addr.port().to_string(), &bootstrap, &HASH.to_string()])
            .stdout(Stdio::piped())
            .stderr(Stdio::null()),
    );
    let mut lines = BufReader::new(process.0.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "READY");
    Libtorrent(process, lines, addr)
}

impl Libtorrent {
    /// Waits for a line of its output. Blocks for as long as the node prints nothing.
    fn prints(&mut self, line: &str) -> bool {
        let end = Instant::now() + LIMIT;
        self.1.by_ref().map_while(Result::ok).take_while(|_| Instant::now() < end).any(|printed| printed == line)
    }
}

#[tokio::test]
async fn two_nodes_of_ours_find_each_other() {
    let (one, at) = ours(1, &[]);
    let (other, _) = ours(2, &[at]);
    let (mut first, mut second) = (search(&one, Some(1001)), search(&other, Some(1002)));
    assert!(first.finds("127.0.0.2:1002".parse().unwrap()).await);
    assert!(second.finds("127.0.0.1:1001".parse().unwrap()).await);
    assert_eq!(one.status().nodes_v4, 1);
    other.stop().await;
}

#[tokio::test]
async fn two_nodes_of_ours_find_each_other_over_ipv6() {
    let Ok(one) = Dht::start(DhtConfig { bind: "::1".parse().unwrap(), ..DhtConfig::default() }) else {
        eprintln!("skipped: no IPv6 on this machine");
        return;
    };
    let bootstrap = vec![format!("[::1]:{}", one.port())];
    let other = Dht::start(DhtConfig { bind: "::1".parse().unwrap(), bootstrap, ..DhtConfig::default() }).unwrap();
    let _announced = search(&other, Some(1002));
    assert!(search(&one, None).finds("[::1]:1002".parse().unwrap()).await);
}

#[tokio::test]
async fn a_node_named_by_a_torrent_or_a_peer_suffices_to_join() {
    let (one, at) = ours(1, &[]);
    let _announced = search(&one, Some(1001));
    for by_name in [false, true] {
        let (other, _) = ours(2, &[]);
        let mut found = search(&other, Some(1002));
        match by_name {
            false => other.add_node(at),
            true => other.add_host("127.0.0.1", at.port()),
        }
        assert!(search(&one, None).finds("127.0.0.2:1002".parse().unwrap()).await);
        drop(other);
        // Dropping the handle ends the task, which closes the channel.
        assert!(timeout(LIMIT, async { while found.1.recv().await.is_some() {} }).await.is_ok());
    }
}

#[tokio::test]
async fn nodes_are_saved_and_loaded() {
    let (dir, ip) = (tempfile::tempdir().unwrap(), IpAddr::from([127, 0, 0, 2]));
    let (one, at) = ours(1, &[]);
    let _announced = search(&one, Some(1001));
    let state_dir = Some(dir.path().join("new/directory"));
    let config = DhtConfig { bind: Bind::Address(ip), state_dir, ..DhtConfig::default() };
    let first = Dht::start(DhtConfig { bootstrap: vec![at.to_string()], ..config.clone() }).unwrap();
    let end = Instant::now() + LIMIT;
    while first.status().nodes_v4 == 0 {
        assert!(Instant::now() < end);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    first.stop().await;
    let file = dir.path().join("new/directory/dht.nodes");
    assert!(file.exists());
    // Without a bootstrap node this time.
    let second = Dht::start(config.clone()).unwrap();
    let _announced = search(&second, Some(1003));
    assert!(search(&one, None).finds("127.0.0.2:1003".parse().unwrap()).await);
    second.stop().await;
    // A file in another format is ignored and overwritten.
    std::fs::write(&file, "{\"addr\":\"0.0.0.0:1\"}").unwrap();
    let third = Dht::start(DhtConfig { bootstrap: vec![at.to_string()], ..config }).unwrap();
    let _announced = search(&third, Some(1004));
    assert!(search(&one, None).finds("127.0.0.2:1004".parse().unwrap()).await);
    third.stop().await;
    assert!(std::fs::read(&file).unwrap().starts_with(b"tfdht01\n"));
}

#[tokio::test]
async fn an_unresolvable_bootstrap_name_delays_nothing() {
    let started = Instant::now();
    let bootstrap = vec!["no-such-host.invalid:6881".to_owned(), "not even a name".to_owned()];
    let bind = Bind::Address([127, 0, 0, 3].into());
    let dht = Dht::start(DhtConfig { bind, bootstrap, ..DhtConfig::default() }).unwrap();
    let (one, at) = ours(1, &[]);
    let _announced = search(&one, Some(1001));
    dht.add_node(at);
    let _announced_too = search(&dht, Some(1003));
    assert!(search(&one, None).finds("127.0.0.3:1003".parse().unwrap()).await);
    // The resolver gives up on a name after ten seconds, if nobody answers it.
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    dht.stop().await;
}

/// A libtorrent node is our only bootstrap node. It knows one peer, which is a libtorrent peer too.
#[tokio::test]
async fn a_libtorrent_peer_is_found_through_a_libtorrent_node() {
    if !can_run(&["libtorrent"]) {
        return;
    }
    let node = libtorrent("node", "127.0.0.11", None);
    let peer = libtorrent("peer", "127.0.0.12", Some(node.2));
    // A first search waits until the peer has announced itself; a second one measures.
    let (warm, _) = ours(13, &[node.2]);
    assert!(search(&warm, None).finds(peer.2).await);
    let started = Instant::now();
    let (cold, _) = ours(14, &[node.2]);
    assert!(search(&cold, None).finds(peer.2).await);
    eprintln!("from start to first peer: {:?}", started.elapsed());
    assert!(started.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn libtorrent_finds_a_peer_that_we_announced_to_it() {
    if !can_run(&["libtorrent"]) {
        return;
    }
    let node = libtorrent("node", "127.0.0.11", None);
    let (dht, _) = ours(15, &[node.2]);
    let _announced = search(&dht, Some(1015));
    let mut asker = libtorrent("ask", "127.0.0.16", Some(node.2));
    assert!(tokio::task::spawn_blocking(move || asker.prints("PEER 127.0.0.15:1015")).await.unwrap());
}

/// Our node is the bootstrap node and stores the peer that libtorrent announces to it.
#[tokio::test]
async fn libtorrent_finds_libtorrent_through_our_node() {
    if !can_run(&["libtorrent"]) {
        return;
    }
    let (dht, at) = ours(17, &[]);
    // On a thread of their own, so that our node can answer while the scripts start.
    let (asker, found) = tokio::task::spawn_blocking(move || {
        let peer = libtorrent("peer", "127.0.0.18", Some(at));
        let mut asker = libtorrent("ask", "127.0.0.19", Some(at));
        let found = asker.prints(&format!("PEER {}", peer.2));
        (asker, found)
    })
    .await
    .unwrap();
    assert!(found);
    drop(asker);
    assert!(dht.status().nodes_v4 >= 1);
}
