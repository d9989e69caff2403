//! Hole punching (BEP 55): our mount as the relay of two peers, and our mount behind a relay.

use std::net::SocketAddr;

use crate::extension_peer::PeerListener;
use crate::support::*;
use torrentfs::metainfo::Metainfo;
use torrentfs::wire::{Holepunch, Pex, PexFlags, PunchError, UT_HOLEPUNCH, UT_PEX};

/// Publishes a file and stops its tracker. Returns the lab, the data, the torrent and its metainfo.
fn lab(seed: u64) -> (Lab, Vec<u8>, std::path::PathBuf, Metainfo) {
    let mut lab = Lab::new();
    let data = noise(1 << 20, seed);
    let torrent = lab.publish("film.bin", &data, 16);
    lab.stop_tracker();
    let metainfo = Metainfo::parse(&std::fs::read(&torrent).unwrap()).unwrap();
    (lab, data, torrent, metainfo)
}

#[test]
fn we_relay_a_rendezvous_between_two_peers() {
    if !can_run(&["opentracker", "mktorrent", "libtorrent"]) {
        return;
    }
    let _turn = turn();
    let (lab, _, torrent, metainfo) = lab(1);
    let listeners = [PeerListener::new("127.0.0.8"), PeerListener::new("127.0.0.9"), PeerListener::new("127.0.0.10")];
    let peers = listeners.each_ref().map(|listener| listener.addr.to_string());
    let mount = lab.mount("m", &torrent, &["--peer", &peers[0], "--peer", &peers[1], "--peer", &peers[2]]);
    let mut initiator = listeners[0].accept(&metainfo, &[(UT_HOLEPUNCH, 5)]);
    let mut target = listeners[1].accept(&metainfo, &[(UT_HOLEPUNCH, 6)]);
    let mut unable = listeners[2].accept(&metainfo, &[]);
    let id = initiator.receive_handshake().extensions[UT_HOLEPUNCH];
    target.receive_handshake();
    unable.receive_handshake();
    let mut ask = |addr: SocketAddr| {
        initiator.send_extended(id, Holepunch::Rendezvous(addr).encode());
        Holepunch::decode(&initiator.receive(5).unwrap()).unwrap()
    };
    // The three handshakes are handled in any order: ask until the target's has been.
    wait_until("the target is known", std::time::Duration::from_secs(60), || {
        ask(listeners[1].addr) == Holepunch::Connect(listeners[1].addr)
    });
    assert_eq!(Holepunch::decode(&target.receive(6).unwrap()), Ok(Holepunch::Connect(listeners[0].addr)));
    for (addr, why) in [
        (listeners[0].addr, PunchError::NoSelf),
        (listeners[2].addr, PunchError::NoSupport),
        ("127.0.0.77:77".parse().unwrap(), PunchError::NotConnected),
        ("127.0.0.77:0".parse().unwrap(), PunchError::NoSuchPeer),
    ] {
        assert_eq!(ask(addr), Holepunch::Failed(addr, why));
    }
    mount.stop();
}

/// For a peer that does not accept connections, we ask the relay that named it for a rendezvous, and connect when told to.
#[test]
fn a_relay_connects_us_to_a_peer() {
    if !can_run(&["opentracker", "mktorrent", "libtorrent"]) {
        return;
    }
    let _turn = turn();
    let (lab, data, torrent, metainfo) = lab(2);
    let seeder = lab.libtorrent("seed", 2, 0, &lab.path("payload"), &torrent);
    let listener = PeerListener::new("127.0.0.9");
    let mount = lab.mount("m", &torrent, &["--peer", &listener.addr.to_string(), "--read-timeout", "60s"]);
    let mut relay = listener.accept(&metainfo, &[(UT_PEX, 4), (UT_HOLEPUNCH, 5)]);
    let handshake = relay.receive_handshake();
    let hidden: SocketAddr = format!("127.0.0.1:{}", free_port()).parse().unwrap();
    let flags = PexFlags { holepunch: true, ..PexFlags::default() };
    relay.send_extended(
        handshake.extensions[UT_PEX],
        Pex { added: vec![(hidden, flags)], dropped: Vec::new() }.encode(),
    );
    assert_eq!(Holepunch::decode(&relay.receive(5).unwrap()), Ok(Holepunch::Rendezvous(hidden)));
    // As with a peer behind a router: it is reached at another port than the one that was tried.
    let reachable = seeder.addr.parse().unwrap();
    relay.send_extended(handshake.extensions[UT_HOLEPUNCH], Holepunch::Connect(reachable).encode());
    assert!(mount.read("film.bin") == data);
    mount.stop();
}
