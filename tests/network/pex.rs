//! Peer exchange (BEP 11): a mount that knows one peer learns of the others from it, and sends it the peers it knows.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::extension_peer::PeerListener;
use crate::support::*;
use torrentfs::metainfo::Metainfo;
use torrentfs::wire::{ExtensionHandshake, Pex, PexFlags, UT_PEX};

const LIMIT: Duration = Duration::from_secs(90);

/// Starts a peer that has no piece and names one other peer. It records what it receives.
fn introducer(metainfo: &Metainfo, names: SocketAddr) -> (SocketAddr, Arc<Mutex<Received>>) {
    let listener = PeerListener::new("127.0.0.9");
    let (addr, metainfo, received) = (listener.addr, metainfo.clone(), Arc::new(Mutex::new(Received::default())));
    let writes = received.clone();
    std::thread::spawn(move || {
        let mut peer = listener.accept(&metainfo, &[(UT_PEX, 7)]);
        let handshake = peer.receive_handshake();
        // Their message id for PEX, or one that they do not use.
        let id = handshake.extensions.get(UT_PEX).copied().unwrap_or(2);
        let pex = Pex { added: vec![(names, PexFlags::default())], dropped: Vec::new() };
        peer.send_extended(id, pex.encode());
        writes.lock().unwrap().handshake = Some(handshake);
        while let Some(payload) = peer.receive(7) {
            let named = Pex::decode(&payload).unwrap().added;
            writes.lock().unwrap().named.extend(named.into_iter().map(|(addr, _)| addr));
        }
    });
    (addr, received)
}

#[derive(Default)]
struct Received {
    /// The mount's extension handshake.
    handshake: Option<ExtensionHandshake>,
    named: Vec<SocketAddr>,
}

#[test]
fn peers_are_exchanged_both_ways() {
    if !can_run(&["opentracker", "mktorrent", "libtorrent"]) {
        return;
    }
    let _turn = turn();
    let mut lab = Lab::new();
    let data = noise(4 << 20, 1);
    let torrent = lab.publish("film.bin", &data, 16);
    lab.stop_tracker();
    let metainfo = Metainfo::parse(&std::fs::read(&torrent).unwrap()).unwrap();
    let seeder = lab.libtorrent("seed", 2, 0, &lab.path("payload"), &torrent);
    let seeder_addr: SocketAddr = seeder.addr.parse().unwrap();
    let (addr, received) = introducer(&metainfo, seeder_addr);
    let mount = lab.mount("m", &torrent, &["--on-demand", "--peer", &addr.to_string()]);
    assert_eq!(read_at(&mount.path("film.bin"), 0, 100).unwrap(), &data[..100]);
    wait_until("the introducer hears of the seeder", LIMIT, || received.lock().unwrap().named.contains(&seeder_addr));
    assert!(mount.read("film.bin") == data);
    mount.stop();

    let (addr, received) = introducer(&metainfo, seeder_addr);
    let mount = lab.mount("off", &torrent, &["--no-pex", "--read-timeout", "2s", "--peer", &addr.to_string()]);
    assert!(read_at(&mount.path("film.bin"), 0, 100).is_err(), "found through the introducer");
    let received = received.lock().unwrap();
    assert!(!received.handshake.as_ref().unwrap().extensions.contains_key(UT_PEX) && received.named.is_empty());
    mount.stop();
}

#[test]
fn private_torrents_exchange_no_peers() {
    if !can_run(&["mktorrent"]) {
        return;
    }
    let _turn = turn();
    let lab = Lab::new();
    let data = noise(1 << 20, 2);
    std::fs::create_dir(lab.path("payload")).unwrap();
    std::fs::write(lab.path("payload/film.bin"), &data).unwrap();
    let base = lab.dir.path().display().to_string();
    sh(&format!("mktorrent -p -l 16 -a {} -o {base}/film.torrent {base}/payload/film.bin", lab.announce));
    let torrent = lab.path("film.torrent");
    let metainfo = Metainfo::parse(&std::fs::read(&torrent).unwrap()).unwrap();
    assert!(metainfo.private);
    let seeder = lab.libtorrent("seed", 2, 0, &lab.path("payload"), &torrent);
    let (addr, received) = introducer(&metainfo, seeder.addr.parse().unwrap());
    let mount = lab.mount("m", &torrent, &["--read-timeout", "2s", "--peer", &addr.to_string()]);
    assert!(
        read_at(&mount.path("film.bin"), 0, 100).is_err(),
        "a private torrent got a peer from another source than its tracker"
    );
    assert!(!received.lock().unwrap().handshake.as_ref().unwrap().extensions.contains_key(UT_PEX));
    mount.stop();
}

/// A leech that downloads at 1 kB/s knows the seeder and names it.
#[test]
fn peers_that_libtorrent_names_are_connected() {
    if !can_run(&["opentracker", "mktorrent", "libtorrent"]) {
        return;
    }
    let _turn = turn();
    let mut lab = Lab::new();
    let data = noise(4 << 20, 3);
    let torrent = lab.publish("film.bin", &data, 16);
    lab.stop_tracker();
    let seeder = lab.libtorrent("seed", 2, 0, &lab.path("payload"), &torrent);
    std::fs::create_dir(lab.path("leech")).unwrap();
    let settings = ["download_rate_limit=1000", &format!("peer={}", seeder.addr)];
    let leech = lab.libtorrent_with("leech", 3, 1000, &lab.path("leech"), &torrent, &settings);
    let mount = lab.mount("m", &torrent, &["--peer", &leech.addr, "--read-timeout", "90s"]);
    assert!(mount.read("film.bin") == data);
    mount.stop();
}
