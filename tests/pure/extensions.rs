//! Peer exchange, metadata and hole punching among simulated swarms, each over twenty seeds.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fixedbitset::FixedBitSet;
use rand::RngExt;
use torrentfs::metainfo::{InfoHash, InfoSource, Lengths, RawInfo};
use torrentfs::swarm::{
    Action, Config, Direction, DisconnectReason, Event, NewPeer, PeerKey, PeerSource, Policy, Swarm,
};
use torrentfs::wire::{
    ExtensionHandshake, Holepunch, METADATA_PIECE_LEN, Message, MetadataMessage, PeerId, Pex, PexFlags, UT_HOLEPUNCH,
    UT_METADATA, UT_PEX,
};

use crate::simulation::overlay::{Overlay, Sent};
use crate::simulation::{config, seed};

/// Our message ids of the extensions, as the extension handshake announces them.
const PEX: u8 = 2;
const HOLEPUNCH: u8 = 3;
/// Interval of peer exchange (BEP 11), and the most addresses of a kind in a message.
const PEX_INTERVAL: Duration = Duration::from_secs(60);
const MAX_ADDRESSES: usize = 50;

/// Runs a simulation with twenty seeds, and names the one that fails.
fn for_each_seed(simulate: impl Fn(u64)) {
    let first = seed(1);
    for seed in first..first + 20 {
        println!("seed {seed}");
        simulate(seed);
    }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Returns the messages that a swarm sends now.
fn sent(swarm: &mut Swarm) -> Vec<Message> {
    let actions = std::iter::from_fn(|| swarm.poll());
    actions.filter_map(|action| if let Action::Send(_, message) = action { Some(message) } else { None }).collect()
}

#[test]
fn a_connection_starts_with_our_pieces_then_our_extensions_then_our_dht_port() {
    let (now, lengths) = (Instant::now(), Lengths::new(1 << 20, 1 << 18).unwrap());
    let mut swarm =
        Swarm::new(Config { metadata: metadata(0, 500).into(), ..config(lengths, 1) }, FixedBitSet::new(), now);
    let addr = Overlay::public(1);
    let new = NewPeer::new(PeerKey(1), addr, Direction::Incoming, PeerId([1; 20]));
    swarm.handle(now, Event::Connected(NewPeer { our_port: 7_000, our_dht_port: Some(7_001), ..new }));
    let messages = sent(&mut swarm);
    let [Message::HaveNone, Message::Extended { id: 0, payload }, Message::Port(7_001)] = &messages[..] else {
        panic!("{messages:?}");
    };
    let ours = ExtensionHandshake::decode(payload).unwrap();
    assert_eq!((ours.port, ours.metadata_size, ours.your_ip), (Some(7_000), Some(500), Some(addr.ip())));
    assert_eq!(ours.extensions.keys().collect::<Vec<_>>(), [UT_HOLEPUNCH, UT_METADATA, UT_PEX]);
    assert!(!ours.upload_only);
    // Without the extension protocol there is no handshake for it, and without a DHT node no port. Without the fast
    // extension a keep-alive states that no bitfield follows.
    let new = NewPeer::new(PeerKey(2), Overlay::public(2), Direction::Incoming, PeerId([2; 20]));
    swarm.handle(now, Event::Connected(NewPeer { extended: false, fast: false, ..new }));
    assert_eq!(sent(&mut swarm), [Message::KeepAlive]);
    swarm.handle(now, Event::Message(PeerKey(2), Message::Port(9)));
    assert_eq!(swarm.poll(), Some(Action::AddDhtNode(SocketAddr::new(Overlay::public(2).ip(), 9))));
}

#[test]
fn a_peer_is_reported_with_its_source_and_its_client() {
    let (now, lengths) = (Instant::now(), Lengths::new(1 << 20, 1 << 18).unwrap());
    let mut swarm = Swarm::new(config(lengths, 1), FixedBitSet::new(), now);
    let found = |source| Event::PeersFound { addrs: vec![Overlay::public(1)], source };
    swarm.handle(now, found(PeerSource::Lsd));
    swarm.handle(now, found(PeerSource::Dht));
    for (key, direction) in [(1, Direction::Outgoing), (2, Direction::Incoming)] {
        let addr = Overlay::public(key as usize);
        swarm.handle(now, Event::Connected(NewPeer::new(PeerKey(key), addr, direction, PeerId([key as u8; 20]))));
    }
    let theirs = ExtensionHandshake { client: Some("a client 1.0".into()), ..ExtensionHandshake::default() };
    swarm.handle(now, Event::Message(PeerKey(2), Message::Extended { id: 0, payload: theirs.encode() }));
    let peers = swarm.snapshot(now).peers;
    let reported: Vec<_> = peers.iter().map(|peer| (peer.source, peer.client.as_deref())).collect();
    assert_eq!(reported, [(PeerSource::Lsd, None), (PeerSource::Incoming, Some("a client 1.0"))]);
}

/// Returns the peer exchange messages in the order sent.
fn exchanges(overlay: &Overlay) -> Vec<(&Sent, Pex)> {
    let of_pex = |sent: &Sent| match &sent.message {
        Message::Extended { id: PEX, payload } => Some(Pex::decode(payload).expect("a valid message")),
        _ => None,
    };
    overlay.sent.iter().filter_map(|sent| Some((sent, of_pex(sent)?))).collect()
}

/// Checks every rule of BEP 11 that concerns the sender.
fn check_exchanges(overlay: &Overlay) {
    let mut last: BTreeMap<(usize, PeerKey), Duration> = BTreeMap::new();
    let mut named: BTreeMap<(usize, PeerKey), BTreeSet<SocketAddr>> = BTreeMap::new();
    for (sent, pex) in exchanges(overlay) {
        let (connection, to) = ((sent.from, sent.key), overlay.hosts[sent.to].addr);
        if let Some(before) = last.insert(connection, sent.at) {
            assert!(sent.at - before >= PEX_INTERVAL, "{:?} after the message before", sent.at - before);
        }
        assert!(pex.added.len() <= MAX_ADDRESSES && pex.dropped.len() <= MAX_ADDRESSES);
        let named = named.entry(connection).or_default();
        for (addr, _) in pex.added {
            assert_ne!(addr, to, "a peer was told its own address");
            assert!(is_private(to) || !is_private(addr), "{to} was told of {addr}");
            assert!(named.insert(addr), "{addr} was named twice");
        }
        assert!(pex.dropped.iter().all(|addr| named.remove(addr)), "dropped without having been named");
    }
}

fn is_private(addr: SocketAddr) -> bool {
    matches!(addr, SocketAddr::V4(addr) if addr.ip().is_private())
}

#[test]
fn peer_exchange_spreads_addresses_within_its_rates() {
    for_each_seed(|seed| {
        let mut overlay = Overlay::new(seed);
        // More peers than one message can name. Each knows one that joined before it.
        let hosts: Range<usize> = 0..56;
        for host in hosts.clone() {
            overlay.add_swarm(Overlay::public(host), |_| {});
            if host > 0 {
                let known = overlay.rng.random_range(0..host);
                overlay.introduce(host, vec![Overlay::public(known)]);
            }
        }
        // Two more in a private network, whose addresses must not reach the others.
        let private: Vec<usize> =
            (1..=2).map(|n| overlay.add_swarm(SocketAddr::from(([10, 0, 0, n], 6_881)), |_| {})).collect();
        overlay.introduce(private[0], vec![Overlay::public(0)]);
        overlay.introduce(private[1], vec![Overlay::public(0)]);
        let everybody = |overlay: &Overlay| hosts.clone().all(|host| overlay.degree(host) >= hosts.len() - 1);
        let took = overlay.run_until(seconds(900), everybody);
        println!("everybody knows everybody after {took:?}");
        assert!(overlay.link(private[0], private[1]).is_none(), "a public host named one private host to another");
        // Some leave, which the others learn.
        let gone: Vec<usize> = hosts.clone().filter(|host| host % 5 == 1).collect();
        gone.iter().for_each(|host| overlay.kill(*host));
        overlay.run(seconds(130));
        let dropped: BTreeSet<SocketAddr> = exchanges(&overlay).into_iter().flat_map(|(_, pex)| pex.dropped).collect();
        assert!(gone.iter().all(|host| dropped.contains(&Overlay::public(*host))));
        check_exchanges(&overlay);
    });
}

#[test]
fn a_private_torrent_exchanges_nothing() {
    let mut overlay = Overlay::new(1);
    for host in 0..5 {
        // A peer that supports the exchange gets no addresses, either.
        overlay.add_swarm(Overlay::public(host), |config| config.pex = host == 4);
        overlay.introduce(host, vec![Overlay::public(0)]);
    }
    overlay.run(seconds(300));
    assert_eq!(overlay.degree(0), 4);
    assert!((1..5).all(|host| overlay.degree(host) == 1) && exchanges(&overlay).is_empty());
    let announced = overlay.sent.iter().filter(|sent| sent.from != 4).filter_map(|sent| match &sent.message {
        Message::Extended { id: 0, payload } => ExtensionHandshake::decode(payload).ok(),
        _ => None,
    });
    assert!(announced.into_iter().all(|handshake| handshake.extensions.keys().all(|name| name == "ut_metadata")));
}

#[test]
fn a_flood_of_addresses_is_mostly_ignored() {
    for_each_seed(|seed| {
        let mut overlay = Overlay::new(seed);
        let victim = overlay.add_swarm(Overlay::public(0), |_| {});
        let flooder = overlay.add_swarm(Overlay::public(1), |_| {});
        overlay.introduce(flooder, vec![Overlay::public(0)]);
        overlay.run(seconds(5));
        let before = overlay.now;
        for n in 0..300 {
            let addrs = (0..10).map(|at| (Overlay::public(100 + n * 10 + at), PexFlags::default()));
            let pex = Pex { added: addrs.collect(), dropped: Vec::new() };
            overlay.forge(flooder, victim, Message::Extended { id: PEX, payload: pex.encode() });
            let pause = overlay.rng.random_range(500..1_500);
            overlay.run(Duration::from_millis(pause));
        }
        let used = overlay.hosts[victim].dialed.len() as u64;
        let most = ((overlay.now - before).as_secs() / 30 + 1) * 10;
        assert!(used > 0 && used <= most, "{used} addresses used, of at most {most}");
        assert!(overlay.link(flooder, victim).is_some());
    });
}

/// Metadata of four pieces; a wrong one for another `salt`.
fn metadata(salt: u8, len: u32) -> Bytes {
    (0..len).map(|n| (n * 7 + n / 251) as u8 ^ salt).collect::<Vec<u8>>().into()
}

#[test]
fn metadata_arrives_from_liars_and_honest_peers() {
    for_each_seed(|seed| {
        let mut overlay = Overlay::new(seed);
        let len = 3 * METADATA_PIECE_LEN + 1_000;
        let truth = metadata(0, len);
        let resolver = overlay.add_resolver(Overlay::public(0), InfoHash::of(&truth), Policy::default());
        // One honest peer, or both, can be found by peer exchange alone.
        let hidden = if overlay.rng.random() { 1..2 } else { 1..3 };
        let (mut liars, mut known) = (Vec::new(), Vec::new());
        for host in 1..=12 {
            let addr = Overlay::public(host);
            let content = match host {
                1 | 2 => truth.clone(),
                // Peers without metadata.
                3 | 4 => Bytes::new(),
                // Liars, of which some lie about the length, too.
                _ => {
                    let longer = overlay.rng.random_range(0..3);
                    liars.push(addr);
                    metadata(host as u8, len + longer * 900)
                }
            };
            overlay.add_swarm(addr, |config| config.metadata = content.into());
            if hidden.contains(&host) {
                continue;
            }
            known.push(addr);
        }
        hidden.clone().for_each(|host| overlay.introduce(host, vec![Overlay::public(3)]));
        overlay.run(seconds(5));
        overlay.introduce(resolver, known);
        let took = overlay.run_until(seconds(600), |overlay| overlay.hosts[resolver].resolved.is_some());
        assert_eq!(overlay.hosts[resolver].resolved.as_ref(), Some(&truth));
        println!("resolved after {took:?}");
        let mut banned = overlay.hosts[resolver].closed.iter().filter(|(_, reason)| *reason == DisconnectReason::Liar);
        assert!(banned.all(|(addr, _)| liars.contains(addr)), "an honest peer was banned");
    });
}

/// Has the metadata as long as the disk works.
struct Disk(Arc<AtomicBool>, Bytes);

impl InfoSource for Disk {
    fn read(&self) -> std::io::Result<Vec<u8>> {
        if self.0.load(Relaxed) { Ok(self.1.to_vec()) } else { Err(std::io::ErrorKind::NotFound.into()) }
    }
}

#[test]
fn metadata_that_is_not_in_memory_is_loaded_for_peers() {
    let (now, lengths) = (Instant::now(), Lengths::new(1 << 20, 1 << 18).unwrap());
    let content = metadata(0, METADATA_PIECE_LEN + 500);
    let (info, works) = (RawInfo::new(content.clone()), Arc::new(AtomicBool::new(true)));
    info.store_in(Arc::new(Disk(works.clone(), content.clone())));
    info.release();
    let mut swarm = Swarm::new(Config { metadata: info.clone(), ..config(lengths, 1) }, FixedBitSet::new(), now);
    let keys = [PeerKey(1), PeerKey(2)];
    for key in keys {
        let addr = Overlay::public(key.0 as usize);
        let new = NewPeer::new(key, addr, Direction::Incoming, PeerId([key.0 as u8; 20]));
        swarm.handle(now, Event::Connected(new));
        let theirs =
            ExtensionHandshake { extensions: [(UT_METADATA.into(), 7)].into(), ..ExtensionHandshake::default() };
        swarm.handle(now, Event::Message(key, Message::Extended { id: 0, payload: theirs.encode() }));
    }
    let ours = sent(&mut swarm).into_iter().find_map(|message| match message {
        Message::Extended { id: 0, payload } => ExtensionHandshake::decode(&payload).ok(),
        _ => None,
    });
    let ours = ours.unwrap();
    assert_eq!(ours.metadata_size, Some(METADATA_PIECE_LEN + 500), "its length is known without it");
    let request = |swarm: &mut Swarm, key, piece| {
        let payload = MetadataMessage::Request { piece }.encode();
        swarm.handle(now, Event::Message(key, Message::Extended { id: ours.extensions[UT_METADATA], payload }));
    };
    let answers = |swarm: &mut Swarm| -> Vec<MetadataMessage> {
        let payloads = sent(swarm).into_iter().filter_map(|message| match message {
            Message::Extended { id: 7, payload } => MetadataMessage::decode(&payload).unwrap(),
            _ => None,
        });
        payloads.collect()
    };

    keys.into_iter().for_each(|key| request(&mut swarm, key, 1));
    let actions: Vec<Action> = std::iter::from_fn(|| swarm.poll()).collect();
    assert!(!actions.is_empty() && actions.iter().all(|action| *action == Action::LoadMetadata), "{actions:?}");
    info.load().unwrap();
    swarm.handle(now, Event::MetadataLoaded);
    let data = MetadataMessage::Data {
        piece: 1,
        total: Some(METADATA_PIECE_LEN + 500),
        data: content.slice(METADATA_PIECE_LEN as usize..),
    };
    assert_eq!(answers(&mut swarm), [data.clone(), data]);

    info.release();
    works.store(false, Relaxed);
    keys.into_iter().for_each(|key| request(&mut swarm, key, 0));
    assert!(info.load().is_err());
    swarm.handle(now, Event::MetadataLoaded);
    assert_eq!(answers(&mut swarm), [MetadataMessage::Reject { piece: 0 }, MetadataMessage::Reject { piece: 0 }]);
    swarm.handle(now, Event::MetadataLoaded);
    assert_eq!(answers(&mut swarm), []);
}

#[test]
fn two_hosts_behind_nats_meet_by_hole_punching() {
    for_each_seed(|seed| {
        // Hosts that can be dialed and can relay, and two that cannot be dialed.
        let mut overlay = Overlay::new(seed);
        for host in 0..6 {
            overlay.add_swarm(Overlay::public(host), |_| {});
            overlay.introduce(host, vec![Overlay::public(0)]);
        }
        let hidden = [6, 7].map(|n| {
            let host = overlay.add_swarm(Overlay::public(n), |_| {});
            overlay.set_nat(host);
            host
        });
        for host in hidden {
            let pause = overlay.rng.random_range(0..60_000);
            overlay.run(Duration::from_millis(pause));
            overlay.introduce(host, vec![Overlay::public(0)]);
        }
        let met = |overlay: &Overlay| {
            overlay.link(hidden[0], hidden[1]).is_some() && overlay.link(hidden[1], hidden[0]).is_some()
        };
        let took = overlay.run_until(seconds(600), met);
        println!("they met after {took:?}");
        overlay.run(seconds(60));
        assert!(met(&overlay), "one connection stays");
        // One of them asked a relay that is connected to both, which told the other one to dial.
        let punches = overlay.sent.iter().filter_map(|sent| match &sent.message {
            Message::Extended { id: HOLEPUNCH, payload } => Some((sent, Holepunch::decode(payload).unwrap())),
            _ => None,
        });
        let met = punches.clone().any(|(asked, message)| {
            let other = if asked.from == hidden[0] { hidden[1] } else { hidden[0] };
            message == Holepunch::Rendezvous(overlay.hosts[other].addr)
                && punches.clone().any(|(told, message)| {
                    (told.from, told.to) == (asked.to, other)
                        && message == Holepunch::Connect(overlay.hosts[asked.from].addr)
                })
        });
        assert!(met, "they met without a relay");
        check_exchanges(&overlay);
    });
}

#[test]
fn two_hosts_behind_nats_do_not_meet_without_a_relay() {
    let mut overlay = Overlay::new(1);
    let hidden = [0, 1].map(|n| {
        let host = overlay.add_swarm(Overlay::public(n), |_| {});
        overlay.set_nat(host);
        host
    });
    overlay.introduce(hidden[0], vec![Overlay::public(1)]);
    overlay.run(seconds(600));
    assert!(overlay.hosts[hidden[0]].dials > 3, "it was dialed again and again");
    assert!(overlay.link(hidden[0], hidden[1]).is_none());
}
