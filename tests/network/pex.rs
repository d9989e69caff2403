//! Peer exchange (BEP 11): a mount that knows one peer finds the others through it, and tells it of them.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::*;
use crate::talker::Door;
use torrentfs::metainfo::Metainfo;
use torrentfs::wire::{ExtensionHandshake, Pex, PexFlags, UT_PEX};

const LIMIT: Duration = Duration::from_secs(90);

/// A peer that has nothing but the address of another one, which it names; what it hears of goes into the list.
fn introducer(metainfo: &Metainfo, names: SocketAddr) -> (SocketAddr, Arc<Mutex<Heard>>) {
    let door = Door::new("127.0.0.9");
    let (addr, metainfo, heard) = (door.addr, metainfo.clone(), Arc::new(Mutex::new(Heard::default())));
    let writes = heard.clone();
    std::thread::spawn(move || {
        let mut talker = door.answer(&metainfo, &[(UT_PEX, 7)]);
        let hello = talker.hello();
        // Their number of it, or one that means nothing to them.
        let number = hello.extensions.get(UT_PEX).copied().unwrap_or(2);
        let pex = Pex { added: vec![(names, PexFlags::default())], dropped: Vec::new() };
        talker.say(number, pex.encode());
        writes.lock().unwrap().hello = Some(hello);
        while let Some(payload) = talker.hear(7) {
            let named = Pex::decode(&payload).unwrap().added;
            writes.lock().unwrap().named.extend(named.into_iter().map(|(addr, _)| addr));
        }
    });
    (addr, heard)
}

#[derive(Default)]
struct Heard {
    /// Their extension handshake.
    hello: Option<ExtensionHandshake>,
    named: Vec<SocketAddr>,
}

#[test]
fn peers_are_named_both_ways() {
    if !can_run(&["opentracker", "mktorrent"]) {
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
    let (addr, heard) = introducer(&metainfo, seeder_addr);
    let mount = lab.mount("m", &torrent, &["--on-demand", "--peer", &addr.to_string()]);
    assert_eq!(read_at(&mount.path("film.bin"), 0, 100).unwrap(), &data[..100]);
    wait_until("the introducer hears of the seeder", LIMIT, || heard.lock().unwrap().named.contains(&seeder_addr));
    assert!(mount.read("film.bin") == data);
    mount.stop();

    let (addr, heard) = introducer(&metainfo, seeder_addr);
    let mount = lab.mount("off", &torrent, &["--no-pex", "--read-timeout", "2s", "--peer", &addr.to_string()]);
    assert!(read_at(&mount.path("film.bin"), 0, 100).is_err(), "found through the introducer");
    let heard = heard.lock().unwrap();
    assert!(!heard.hello.as_ref().unwrap().extensions.contains_key(UT_PEX) && heard.named.is_empty());
    mount.stop();
}

#[test]
fn private_torrents_know_no_exchange() {
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
    let (addr, heard) = introducer(&metainfo, seeder.addr.parse().unwrap());
    let mount = lab.mount("m", &torrent, &["--read-timeout", "2s", "--peer", &addr.to_string()]);
    assert!(read_at(&mount.path("film.bin"), 0, 100).is_err(), "a private torrent's peers are its tracker's");
    assert!(!heard.lock().unwrap().hello.as_ref().unwrap().extensions.contains_key(UT_PEX));
    mount.stop();
}

/// A leech that can hardly fetch anything itself knows the seeder, and tells.
#[test]
fn libtorrent_names_its_peers() {
    if !can_run(&["opentracker", "mktorrent"]) {
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
