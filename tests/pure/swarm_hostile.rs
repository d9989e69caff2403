//! Random sequences of events, valid or not: no panic, all invariants after each step, and a bounded number of actions.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fixedbitset::FixedBitSet;
use proptest::prelude::*;
use torrentfs::metainfo::{InfoHash, Lengths};
use torrentfs::swarm::{
    Action, Config, Direction, Event, NewPeer, PeerKey, PeerSource, PickOrder, Policy, ReaderId, Swarm, WantId,
};
use torrentfs::wire::{
    ExtensionHandshake, Holepunch, Message, MetadataMessage, PeerId, Pex, PexFlags, Request, UT_HOLEPUNCH, UT_METADATA,
    UT_PEX,
};

const PIECES: u32 = 11;
const PIECE: u64 = 3 * 16_384;
/// The last piece and its last block are short.
const TOTAL: u64 = 10 * PIECE + 20_000;
/// Where relays send us.
const RENDEZVOUS: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

#[derive(Clone, Debug)]
enum Step {
    Wait(u32),
    Found(u16),
    Failed(u8),
    Connect {
        peer: u64,
        port: u16,
        id: u8,
        fast: bool,
        outgoing: bool,
        serves: bool,
    },
    Gone(u64),
    Says(u64, Message),
    /// The peer answers its oldest request correctly.
    Serve(u64, u8),
    /// The peer sends a block that may not have been requested.
    Block(u64, Request),
    Checked {
        good: bool,
        lie: bool,
    },
    Uploaded(bool),
    Evicted(u32),
    Room(u64),
    /// The peer's extension handshake.
    Hello(u64, ExtensionHandshake),
    Open(u64, u64, u64),
    Read(u64, u64, u64),
    Want(u64, u64, u64, u64),
    Unwant(u64),
    Close(u64),
}

fn request() -> impl Strategy<Value = Request> {
    let begin = prop_oneof![40 => (0u32..3).prop_map(|block| block * 16_384), 1 => any::<u32>()];
    let length = prop_oneof![40 => Just(16_384u32), 4 => Just(20_000 - 16_384), 1 => any::<u32>()];
    (piece(), begin, length).prop_map(|(piece, begin, length)| Request { piece, begin, length })
}

fn piece() -> impl Strategy<Value = u32> {
    prop_oneof![99 => 0..PIECES, 1 => any::<u32>()]
}

fn message() -> impl Strategy<Value = Message> {
    prop_oneof![
        1 => Just(Message::KeepAlive),
        1 => Just(Message::Choke),
        8 => Just(Message::Unchoke),
        8 => Just(Message::Interested),
        8 => Just(Message::NotInterested),
        8 => piece().prop_map(Message::Have),
        1 => any::<[u8; 2]>().prop_map(|[a, b]| Message::Bitfield(Bytes::from(vec![a, b & 0xe0]))),
        1 => any::<Vec<u8>>().prop_map(|bits| Message::Bitfield(bits.into())),
        8 => request().prop_map(Message::Request),
        8 => request().prop_map(Message::Cancel),
        1 => any::<u16>().prop_map(Message::Port),
        8 => piece().prop_map(Message::Suggest),
        3 => Just(Message::HaveAll),
        1 => Just(Message::HaveNone),
        8 => request().prop_map(Message::Reject),
        8 => piece().prop_map(Message::AllowedFast),
        1 => (any::<u8>(), any::<Vec<u8>>()).prop_map(|(id, bytes)| Message::Extended { id, payload: bytes.into() }),
        3 => (0u32..3).prop_map(|piece| Message::Extended { id: 1, payload: MetadataMessage::Request { piece }.encode() }),
        3 => proptest::collection::vec((addr(), any::<bool>()), 0..4).prop_map(|added| {
            let added = added.into_iter().map(|(addr, holepunch)| (addr, PexFlags { holepunch, ..PexFlags::default() }));
            let pex = Pex { added: added.collect(), dropped: Vec::new() };
            Message::Extended { id: 2, payload: pex.encode() }
        }),
        3 => addr().prop_map(|addr| Message::Extended { id: 3, payload: Holepunch::Rendezvous(addr).encode() }),
        2 => addr().prop_map(|addr| {
            // Of no address book, so that the connection attempts of the other addresses can be counted.
            let addr = SocketAddr::new(RENDEZVOUS, addr.port());
            Message::Extended { id: 3, payload: Holepunch::Connect(addr).encode() }
        }),
    ]
}

fn addr() -> impl Strategy<Value = SocketAddr> {
    (0u16..40).prop_map(|port| SocketAddr::from(([127, 0, 0, 1], port)))
}

fn hello() -> impl Strategy<Value = ExtensionHandshake> {
    let number = || proptest::option::of(0u8..3);
    let extensions = (number(), number(), number()).prop_map(|(metadata, pex, holepunch)| {
        let all = [(UT_METADATA, metadata), (UT_PEX, pex), (UT_HOLEPUNCH, holepunch)];
        all.into_iter().filter_map(|(name, number)| Some((name.to_owned(), number?))).collect()
    });
    let (port, reqq) = (proptest::option::of(1u16..40), proptest::option::of(any::<u32>()));
    (extensions, port, reqq, prop::bool::weighted(0.1)).prop_map(|(extensions, port, request_queue, upload_only)| {
        ExtensionHandshake { extensions, port, request_queue, upload_only, ..ExtensionHandshake::default() }
    })
}

fn step() -> impl Strategy<Value = Step> {
    let peer = || 0u64..6;
    let offset = || prop_oneof![9 => 0..TOTAL, 1 => any::<u64>()];
    prop_oneof![
        3 => (0u32..2_000).prop_map(Step::Wait),
        1 => (2_000u32..200_000).prop_map(Step::Wait),
        1 => (0u16..20).prop_map(Step::Found),
        1 => any::<u8>().prop_map(Step::Failed),
        3 => (peer(), 1u16..40, 0u8..40, prop::bool::weighted(0.8), any::<bool>(), any::<bool>())
            .prop_map(|(peer, port, id, fast, outgoing, serves)| {
                Step::Connect { peer, port, id, fast, outgoing, serves }
            }),
        1 => peer().prop_map(Step::Gone),
        20 => (peer(), message()).prop_map(|(peer, message)| Step::Says(peer, message)),
        25 => (peer(), any::<u8>()).prop_map(|(peer, count)| Step::Serve(peer, count % 8)),
        2 => (peer(), request()).prop_map(|(peer, request)| Step::Block(peer, request)),
        6 => (prop::bool::weighted(0.7), any::<bool>()).prop_map(|(good, lie)| Step::Checked { good, lie }),
        10 => any::<bool>().prop_map(Step::Uploaded),
        2 => (0..PIECES).prop_map(Step::Evicted),
        1 => prop_oneof![Just(0), 0..TOTAL, Just(u64::MAX)].prop_map(Step::Room),
        3 => (peer(), hello()).prop_map(|(peer, theirs)| Step::Hello(peer, theirs)),
        1 => (0u64..3, offset(), offset()).prop_map(|(reader, start, end)| Step::Open(reader, start, end)),
        3 => (0u64..3, offset(), offset()).prop_map(|(reader, start, end)| Step::Read(reader, start, end)),
        3 => (0u64..4, 0u64..3, offset(), offset())
            .prop_map(|(want, reader, start, end)| Step::Want(want, reader, start, end)),
        2 => (0u64..4).prop_map(Step::Unwant),
        1 => (0u64..3).prop_map(Step::Close),
    ]
}

/// A driver that records the actions it has to answer.
struct Driver {
    swarm: Swarm,
    now: Instant,
    lengths: Lengths,
    /// The current connection of each peer number in the steps.
    keys: [u64; 6],
    connections: u64,
    requests: Vec<(PeerKey, Request)>,
    checks: Vec<(u32, bool)>,
    uploads: Vec<(PeerKey, Request)>,
    calls: Vec<SocketAddr>,
    completed: bool,
}

fn config() -> Config {
    Config {
        info_hash: InfoHash([7; 20]),
        lengths: Lengths::new(TOTAL, PIECE).expect("sizes of a torrent"),
        metadata: Bytes::from(vec![1; 20_000]).into(),
        seed: 1,
        our_id: PeerId([0; 20]),
        on_demand: false,
        upload: true,
        partial_seed: false,
        pex: true,
        super_seed: false,
        max_peers: 5,
        max_partial: TOTAL,
        order: PickOrder::RarestFirst,
        policy: Arc::default(),
    }
}

impl Driver {
    fn new(config: Config, have: FixedBitSet) -> Self {
        let (now, completed, lengths) = (Instant::now(), have.is_full(), config.lengths);
        Self {
            swarm: Swarm::new(config, have, now),
            now,
            lengths,
            keys: [0; 6],
            connections: 0,
            requests: Vec::new(),
            checks: Vec::new(),
            uploads: Vec::new(),
            calls: Vec::new(),
            completed,
        }
    }

    fn settle(&mut self) {
        self.swarm.check_invariants();
        let mut actions = 0;
        while let Some(action) = self.swarm.poll() {
            actions += 1;
            assert!(actions < 2_000, "too many actions for one event");
            match action {
                Action::Connect(addr) if addr.ip() == RENDEZVOUS => {
                    self.swarm.handle(self.now, Event::ConnectFailed(addr));
                }
                Action::Connect(addr) => self.calls.push(addr),
                Action::Send(peer, Message::Request(request)) => {
                    assert!(self.lengths.block(request.piece, request.begin, request.length).is_some());
                    assert!(!self.requests.contains(&(peer, request)), "requested twice from the same peer");
                    self.requests.push((peer, request));
                }
                Action::Send(peer, Message::Cancel(request)) => {
                    self.requests.retain(|ask| *ask != (peer, request));
                }
                Action::Disconnect(peer, _) => {
                    self.requests.retain(|(from, _)| *from != peer);
                    self.uploads.retain(|(to, _)| *to != peer);
                }
                Action::Upload(peer, request) => self.uploads.push((peer, request)),
                Action::Check { piece, digests } => self.checks.push((piece.get(), digests)),
                Action::Completed => assert!(!std::mem::replace(&mut self.completed, true), "completed twice"),
                Action::Pin(pins) => {
                    assert!(pins.iter().all(|pin| pin.start < pin.end && pin.end <= PIECES));
                    assert!(pins.windows(2).all(|pins| pins[0].end < pins[1].start), "{pins:?}");
                }
                Action::Send(..)
                | Action::Ban(_)
                | Action::Drop(_)
                | Action::AddDhtNode(_)
                | Action::FindPeers
                | Action::LoadMetadata
                | Action::RefuseWebSeed(..) => {}
                Action::Hold(_) | Action::Release(_) => {}
            }
        }
        assert!(self.uploads.len() <= 6 * 16 && self.calls.len() <= 8);
    }

    fn event(&mut self, event: Event) {
        self.swarm.handle(self.now, event);
        self.settle();
    }

    fn step(&mut self, step: Step) {
        let key = |driver: &Self, peer: u64| PeerKey(driver.keys[peer as usize]);
        match step {
            Step::Wait(millis) => {
                self.now += Duration::from_millis(millis.into());
                self.event(Event::Tick);
            }
            Step::Found(port) => {
                let (addrs, source) = (vec![SocketAddr::from(([127, 0, 0, 1], port))], PeerSource::Dht);
                self.event(Event::PeersFound { addrs, source });
            }
            Step::Failed(at) if !self.calls.is_empty() => {
                let addr = self.calls.remove(usize::from(at) % self.calls.len());
                self.event(Event::ConnectFailed(addr));
            }
            Step::Connect { peer, port, id, fast, outgoing, serves } => {
                let old = key(self, peer);
                self.requests.retain(|(from, _)| *from != old);
                self.uploads.retain(|(to, _)| *to != old);
                self.event(Event::Disconnected(old));
                self.connections += 1;
                self.keys[peer as usize] = self.connections;
                let addr = SocketAddr::from(([127, 0, 0, 1], port));
                self.calls.retain(|call| !outgoing || *call != addr);
                let direction = if outgoing { Direction::Outgoing } else { Direction::Incoming };
                let peer = PeerKey(self.connections);
                let new = NewPeer { fast, ..NewPeer::new(peer, addr, direction, PeerId([id; 20])) };
                self.event(Event::Connected(new));
                if serves {
                    self.event(Event::Message(peer, Message::Bitfield(Bytes::from_static(&[0xff, 0xe0]))));
                    self.event(Event::Message(peer, Message::Unchoke));
                }
            }
            Step::Gone(peer) => {
                let peer = key(self, peer);
                self.requests.retain(|(from, _)| *from != peer);
                self.uploads.retain(|(to, _)| *to != peer);
                self.event(Event::Disconnected(peer));
            }
            Step::Says(peer, message) => {
                let peer = key(self, peer);
                match &message {
                    Message::Reject(request) => self.requests.retain(|ask| *ask != (peer, *request)),
                    // A choke drops the peer's requests, which may be sent again.
                    Message::Choke => self.requests.retain(|(from, _)| *from != peer),
                    _ => {}
                }
                self.event(Event::Message(peer, message));
            }
            Step::Serve(peer, count) => {
                let peer = key(self, peer);
                for _ in 0..=count {
                    // The oldest request of that peer, or else the newest of any peer.
                    let own = self.requests.iter().position(|(from, _)| *from == peer);
                    let Some(at) = own.or_else(|| self.requests.len().checked_sub(1)) else { return };
                    let (peer, request) = self.requests.remove(at);
                    self.now += Duration::from_millis(3);
                    self.swarm.block(self.now, peer, request.piece, request.begin, request.length);
                    self.settle();
                }
            }
            Step::Block(peer, Request { piece, begin, length }) => {
                let peer = key(self, peer);
                self.requests.retain(|ask| *ask != (peer, Request { piece, begin, length }));
                self.swarm.block(self.now, peer, piece, begin, length);
                self.settle();
            }
            Step::Checked { good, lie } if !self.checks.is_empty() => {
                let (number, wants_digests) = self.checks.remove(0);
                let piece = self.lengths.piece(number).expect("asked to check it");
                let blocks = u64::from(self.lengths.blocks_in(piece));
                let digests = if !good || wants_digests { (0..blocks).collect() } else { Vec::new() };
                let bad_blocks = self.lengths.blocks(piece).take(usize::from(lie && !good)).map(|b| b.index).collect();
                self.event(Event::Checked { piece, good, bad_blocks, digests });
            }
            Step::Uploaded(sent) if !self.uploads.is_empty() => {
                let (peer, request) = self.uploads.remove(0);
                self.event(Event::Uploaded { peer, request, sent });
            }
            Step::Failed(_) | Step::Checked { .. } | Step::Uploaded(_) => {}
            Step::Evicted(piece) => {
                if let Some(piece) = self.lengths.piece(piece) {
                    self.event(Event::Evicted(piece));
                }
            }
            Step::Room(bytes) => self.event(Event::Room(bytes)),
            Step::Hello(peer, theirs) => {
                let message = Message::Extended { id: 0, payload: theirs.encode() };
                self.event(Event::Message(key(self, peer), message));
            }
            Step::Open(reader, start, end) => self.event(Event::Open { reader: ReaderId(reader), bytes: start..end }),
            Step::Read(reader, start, end) => self.event(Event::Read { reader: ReaderId(reader), bytes: start..end }),
            Step::Want(want, reader, start, end) => {
                self.event(Event::Want { want: WantId(want), reader: ReaderId(reader), bytes: start..end });
            }
            Step::Unwant(want) => self.event(Event::Unwant(WantId(want))),
            Step::Close(reader) => self.event(Event::Close(ReaderId(reader))),
        }
    }
}

/// aria2 announces new pieces by another bitfield.
#[test]
fn a_second_bitfield_adds_pieces() {
    // A window with room for every block of the torrent.
    let policy = Arc::new(Policy { first_window: TOTAL, ..Policy::default() });
    let mut driver = Driver::new(Config { policy, ..config() }, FixedBitSet::with_capacity(PIECES as usize));
    let (peer, port, id) = (0, 100, 100);
    driver.step(Step::Connect { peer, port, id, fast: true, outgoing: false, serves: false });
    let key = PeerKey(driver.keys[0]);
    driver.step(Step::Says(peer, Message::Unchoke));
    for (bits, pieces) in [([0x80, 0], 0..1), ([0x80, 0], 0..0), ([0xff, 0xe0], 1..PIECES)] {
        driver.requests.clear();
        driver.step(Step::Says(peer, Message::Bitfield(Bytes::copy_from_slice(&bits))));
        let mut asked: Vec<u32> = driver.requests.iter().map(|(_, request)| request.piece).collect();
        assert!(driver.requests.iter().all(|(from, _)| *from == key));
        asked.dedup();
        assert_eq!(asked.is_empty(), pieces.is_empty(), "{bits:?}: {asked:?}");
        assert!(asked.iter().all(|piece| pieces.contains(piece)), "{bits:?}: {asked:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn any_events_keep_the_invariants(
        steps in prop::collection::vec(step(), 1..200),
        seed: u64,
        had: u16,
        on_demand: bool,
        small: bool,
        in_order: bool,
    ) {
        let mut have = FixedBitSet::with_capacity(PIECES as usize);
        (0..PIECES as usize).for_each(|piece| have.set(piece, had >> piece & 1 == 1 && piece % 3 != 0));
        let config = Config {
            seed,
            on_demand,
            max_partial: if small { 2 * PIECE } else { TOTAL },
            order: if in_order { PickOrder::InOrder } else { PickOrder::RarestFirst },
            ..config()
        };
        let mut driver = Driver::new(config, have);
        // Starts with three useful peers.
        let good = (0..3).map(|peer| Step::Connect {
            peer,
            port: 100 + peer as u16,
            id: 100 + peer as u8,
            fast: peer > 0,
            outgoing: false,
            serves: true,
        });
        for step in good.chain(steps) {
            driver.step(step);
        }
    }
}
