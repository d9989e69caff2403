//! Hole punching (BEP 55): our mount between two peers, and our mount with a relay of its own.

use std::net::SocketAddr;

use crate::support::*;
use crate::talker::Door;
use torrentfs::metainfo::Metainfo;
use torrentfs::wire::{Holepunch, Pex, PexFlags, PunchError, UT_HOLEPUNCH, UT_PEX};

/// A lab without a tracker, its data, and what its torrent is.
fn lab(seed: u64) -> (Lab, Vec<u8>, std::path::PathBuf, Metainfo) {
    let mut lab = Lab::new();
    let data = noise(1 << 20, seed);
    let torrent = lab.publish("film.bin", &data, 16);
    lab.stop_tracker();
    let metainfo = Metainfo::parse(&std::fs::read(&torrent).unwrap()).unwrap();
    (lab, data, torrent, metainfo)
}

#[test]
fn we_bring_two_peers_together() {
    if !can_run(&["opentracker", "mktorrent"]) {
        return;
    }
    let _turn = turn();
    let (lab, _, torrent, metainfo) = lab(1);
    let doors = [Door::new("127.0.0.8"), Door::new("127.0.0.9"), Door::new("127.0.0.10")];
    let peers = doors.each_ref().map(|door| door.addr.to_string());
    let mount = lab.mount("m", &torrent, &["--peer", &peers[0], "--peer", &peers[1], "--peer", &peers[2]]);
    let mut asker = doors[0].answer(&metainfo, &[(UT_HOLEPUNCH, 5)]);
    let mut target = doors[1].answer(&metainfo, &[(UT_HOLEPUNCH, 6)]);
    let mut mute = doors[2].answer(&metainfo, &[]);
    let number = asker.hello().extensions[UT_HOLEPUNCH];
    target.hello();
    mute.hello();
    let mut ask = |addr: SocketAddr| {
        asker.say(number, Holepunch::Rendezvous(addr).encode());
        Holepunch::decode(&asker.hear(5).unwrap()).unwrap()
    };
    // What they can is told in the same breath as their handshake, but heard in turn: ask until it is known.
    wait_until("the target is known", std::time::Duration::from_secs(20), || {
        ask(doors[1].addr) == Holepunch::Connect(doors[1].addr)
    });
    assert_eq!(Holepunch::decode(&target.hear(6).unwrap()), Ok(Holepunch::Connect(doors[0].addr)));
    for (addr, why) in [
        (doors[0].addr, PunchError::NoSelf),
        (doors[2].addr, PunchError::NoSupport),
        ("127.0.0.77:77".parse().unwrap(), PunchError::NotConnected),
        ("127.0.0.77:0".parse().unwrap(), PunchError::NoSuchPeer),
    ] {
        assert_eq!(ask(addr), Holepunch::Failed(addr, why));
    }
    mount.stop();
}

/// A peer that cannot be called is asked for at the relay that named it, and called when the relay says so.
#[test]
fn a_relay_brings_us_to_a_peer() {
    if !can_run(&["opentracker", "mktorrent"]) {
        return;
    }
    let _turn = turn();
    let (lab, data, torrent, metainfo) = lab(2);
    let seeder = lab.libtorrent("seed", 2, 0, &lab.path("payload"), &torrent);
    let door = Door::new("127.0.0.9");
    let mount = lab.mount("m", &torrent, &["--peer", &door.addr.to_string(), "--read-timeout", "60s"]);
    let mut relay = door.answer(&metainfo, &[(UT_PEX, 4), (UT_HOLEPUNCH, 5)]);
    let hello = relay.hello();
    let hidden: SocketAddr = format!("127.0.0.1:{}", free_port()).parse().unwrap();
    let flags = PexFlags { holepunch: true, ..PexFlags::default() };
    relay.say(hello.extensions[UT_PEX], Pex { added: vec![(hidden, flags)], dropped: Vec::new() }.encode());
    assert_eq!(Holepunch::decode(&relay.hear(5).unwrap()), Ok(Holepunch::Rendezvous(hidden)));
    // As behind a router: it is at another port than the one that was tried.
    let there = seeder.addr.parse().unwrap();
    relay.say(hello.extensions[UT_HOLEPUNCH], Holepunch::Connect(there).encode());
    assert!(mount.read("film.bin") == data);
    mount.stop();
}
