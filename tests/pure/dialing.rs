//! Which addresses are dialed, when, and how many at a time, above all while a read is blocked.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::simulation::config;
use fixedbitset::FixedBitSet;
use torrentfs::metainfo::{InfoHash, Lengths};
use torrentfs::swarm::{
    Action, Direction, DisconnectReason, Event, NewPeer, PeerKey, PeerSource, ReaderId, Resolver, ResolverAction,
    ResolverConfig, ResolverEvent, Swarm, WantId,
};
use torrentfs::wire::{ExtensionHandshake, Message, PeerId};

const PIECES: u32 = 16;
const PIECE: u64 = 256 << 10;
const SECOND: Duration = Duration::from_secs(1);

struct Clocked {
    swarm: Swarm,
    now: Instant,
}

fn clocked(have: u32) -> Clocked {
    seeded(have, 1)
}

fn seeded(have: u32, seed: u64) -> Clocked {
    let lengths = Lengths::new(u64::from(PIECES) * PIECE, PIECE).unwrap();
    let mut bits = FixedBitSet::with_capacity(PIECES as usize);
    bits.insert_range(..have as usize);
    let now = Instant::now();
    let on_demand = torrentfs::swarm::Config { on_demand: true, ..config(lengths, seed) };
    Clocked { swarm: Swarm::new(on_demand, bits, now), now }
}

fn addr(host: u8) -> SocketAddr {
    ([192, 0, 2, host], 6881).into()
}

impl Clocked {
    /// Handles an event and returns what the swarm does.
    fn handle(&mut self, event: Event) -> Vec<Action> {
        self.swarm.handle(self.now, event);
        self.swarm.check_invariants();
        std::iter::from_fn(|| self.swarm.poll()).collect()
    }

    fn found(&mut self, addrs: &[SocketAddr]) -> Vec<Action> {
        self.handle(Event::PeersFound { addrs: addrs.to_vec(), source: PeerSource::Tracker })
    }

    fn want(&mut self, piece: u64) -> Vec<Action> {
        let (reader, bytes) = (ReaderId(1), 0..u64::from(PIECES) * PIECE);
        let mut actions = self.handle(Event::Open { reader, bytes });
        actions.extend(self.handle(Event::Want { want: WantId(1), reader, bytes: piece * PIECE..piece * PIECE + 1 }));
        actions
    }

    /// Lets time pass in steps and returns what the swarm does in each.
    fn pass(&mut self, time: Duration, step: Duration) -> Vec<Action> {
        let end = self.now + time;
        let mut actions = Vec::new();
        while self.now < end {
            self.now += step;
            actions.extend(self.handle(Event::Tick));
        }
        actions
    }

    fn fails(&mut self, addr: SocketAddr, times: usize) {
        for _ in 0..times {
            while !dialed(&self.handle(Event::Tick)).contains(&addr) {
                self.now += SECOND;
            }
            self.handle(Event::ConnectFailed(addr));
        }
    }
}

fn dialed(actions: &[Action]) -> Vec<SocketAddr> {
    actions.iter().filter_map(|action| if let Action::Connect(addr) = action { Some(*addr) } else { None }).collect()
}

#[test]
fn a_read_without_peers_dials_at_once_and_keeps_trying() {
    let mut clocked = clocked(0);
    assert_eq!(dialed(&clocked.found(&[addr(1)])), [addr(1)]);
    clocked.handle(Event::ConnectFailed(addr(1)));
    clocked.fails(addr(1), 4);
    assert!(dialed(&clocked.pass(30 * SECOND, SECOND)).is_empty(), "it waits after each failure");
    let actions = clocked.want(3);
    assert_eq!(dialed(&actions), [addr(1)]);
    assert!(actions.contains(&Action::FindPeers));
    // It comes back at some time, and is noticed within seconds.
    for _ in 0..10 {
        clocked.handle(Event::ConnectFailed(addr(1)));
        assert_eq!(dialed(&clocked.pass(6 * SECOND, SECOND)), [addr(1)]);
    }
    // An answered read leaves it alone again.
    clocked.handle(Event::Unwant(WantId(1)));
    clocked.handle(Event::ConnectFailed(addr(1)));
    let actions = clocked.pass(60 * SECOND, SECOND);
    assert!(dialed(&actions).is_empty() && !actions.contains(&Action::FindPeers));
}

#[test]
fn a_peer_that_cannot_help_is_no_reason_to_wait() {
    for message in [Message::Unchoke, Message::Choke] {
        let mut clocked = clocked(0);
        clocked.found(&[addr(1), addr(2)]);
        clocked.handle(Event::ConnectFailed(addr(2)));
        clocked.handle(Event::Connected(NewPeer::new(PeerKey(1), addr(1), Direction::Outgoing, PeerId([1; 20]))));
        clocked.handle(Event::Message(PeerKey(1), Message::HaveAll));
        clocked.handle(Event::Message(PeerKey(1), Message::Unchoke));
        clocked.fails(addr(2), 4);
        clocked.pass(6 * SECOND, SECOND);
        clocked.handle(Event::Message(PeerKey(1), message.clone()));
        let actions = clocked.want(3);
        assert_eq!(dialed(&actions).is_empty(), message != Message::Choke, "{message:?}");
        // It is asked and sends nothing.
        let actions = clocked.pass(3 * SECOND, SECOND / 8);
        if message != Message::Choke {
            assert_eq!(dialed(&actions), [addr(2)], "{message:?}");
        }
    }
}

#[test]
fn a_lost_connection_is_replaced_at_once_while_a_read_is_blocked() {
    let mut clocked = clocked(0);
    clocked.found(&[addr(1)]);
    clocked.now += 5 * SECOND;
    clocked.handle(Event::Connected(NewPeer::new(PeerKey(1), addr(1), Direction::Outgoing, PeerId([1; 20]))));
    clocked.handle(Event::Message(PeerKey(1), Message::HaveAll));
    clocked.handle(Event::Message(PeerKey(1), Message::Unchoke));
    assert!(dialed(&clocked.want(3)).is_empty());
    clocked.now += SECOND;
    assert_eq!(dialed(&clocked.handle(Event::Disconnected(PeerKey(1)))), [addr(1)]);
}

#[test]
fn a_seed_that_had_called_us_is_dialed_when_a_piece_of_a_complete_torrent_is_bad() {
    let mut clocked = clocked(PIECES);
    let caller = SocketAddr::from(([192, 0, 2, 9], 50_000));
    clocked.handle(Event::Connected(NewPeer::new(PeerKey(1), caller, Direction::Incoming, PeerId([1; 20]))));
    let handshake = ExtensionHandshake { port: Some(6881), ..ExtensionHandshake::default() };
    clocked.handle(Event::Message(PeerKey(1), Message::Extended { id: 0, payload: handshake.encode() }));
    let actions = clocked.handle(Event::Message(PeerKey(1), Message::HaveAll));
    assert!(actions.contains(&Action::Disconnect(PeerKey(1), DisconnectReason::Useless)));
    assert!(dialed(&clocked.pass(60 * SECOND, SECOND)).is_empty(), "neither side wants anything");
    let bad = Lengths::new(u64::from(PIECES) * PIECE, PIECE).unwrap().piece(3).unwrap();
    let mut actions = clocked.handle(Event::Evicted(bad));
    actions.extend(clocked.want(3));
    assert_eq!(dialed(&actions), [addr(9)]);
}

/// Something that dials addresses.
enum Dialer {
    Swarm(Box<Clocked>),
    Resolver(Box<Resolver>, Instant),
}

impl Dialer {
    fn swarm_with_a_reader(seed: u64) -> Self {
        let mut clocked = seeded(0, seed);
        clocked.want(3);
        Self::Swarm(Box::new(clocked))
    }

    fn resolver(seed: u64) -> Self {
        let (info_hash, our_id) = (InfoHash([7; 20]), PeerId([0; 20]));
        let config = ResolverConfig { info_hash, our_id, pex: true, seed, policy: Arc::default() };
        Self::Resolver(Box::new(Resolver::new(config)), Instant::now())
    }

    fn now(&self) -> Instant {
        match self {
            Self::Swarm(clocked) => clocked.now,
            Self::Resolver(_, now) => *now,
        }
    }

    /// Handles one input at a time and returns the addresses to dial.
    fn handle(&mut self, at: Instant, input: Input) -> Vec<SocketAddr> {
        match self {
            Self::Swarm(clocked) => {
                clocked.now = at;
                dialed(&clocked.handle(match input {
                    Input::Tick => Event::Tick,
                    Input::Found(source, addrs) => Event::PeersFound { addrs, source },
                    Input::Failed(addr) => Event::ConnectFailed(addr),
                }))
            }
            Self::Resolver(resolver, now) => {
                *now = at;
                let event = match input {
                    Input::Tick => ResolverEvent::Tick,
                    Input::Found(source, addrs) => ResolverEvent::PeersFound { addrs, source },
                    Input::Failed(addr) => ResolverEvent::ConnectFailed(addr),
                };
                resolver.handle(at, event);
                let actions = std::iter::from_fn(|| resolver.poll());
                let dialed = |action| if let ResolverAction::Connect(addr) = action { Some(addr) } else { None };
                actions.filter_map(dialed).collect()
            }
        }
    }

    fn next_tick(&self) -> Instant {
        match self {
            Self::Swarm(clocked) => clocked.swarm.next_wakeup().unwrap_or(clocked.now + SECOND),
            Self::Resolver(_, now) => *now + SECOND,
        }
    }

    /// Finds these addresses at these times. The live ones answer after a tenth of a second, the others never. Returns how
    /// long the first answer takes.
    fn first_answer(&mut self, finds: &[(f64, PeerSource, Vec<SocketAddr>)]) -> f64 {
        let start = self.now();
        let mut inputs: Vec<Option<Input>> = Vec::new();
        let mut order = BinaryHeap::new();
        for (at, source, addrs) in finds {
            order.push(Reverse((start + Duration::from_secs_f64(*at), inputs.len())));
            inputs.push(Some(Input::Found(*source, addrs.clone())));
        }
        let mut dials: Vec<Instant> = Vec::new();
        loop {
            let tick = self.next_tick().max(self.now() + Duration::from_millis(1));
            let (at, input) = match order.peek() {
                Some(Reverse((at, _))) if *at <= tick => {
                    let Reverse((at, index)) = order.pop().expect("there is one");
                    (at, inputs[index].take().expect("handled once"))
                }
                _ => (tick, Input::Tick),
            };
            assert!(at < start + 200 * SECOND, "nobody was reached");
            for addr in self.handle(at, input) {
                if is_alive(addr) {
                    return (at - start).as_secs_f64() + 0.1;
                }
                dials.push(at);
                order.push(Reverse((at + GIVES_UP, inputs.len())));
                inputs.push(Some(Input::Failed(addr)));
            }
            let under_way = dials.iter().filter(|dial| **dial + GIVES_UP > at).count();
            let in_a_second = dials.iter().filter(|dial| **dial + SECOND > at).count();
            assert!(under_way <= 128 && in_a_second <= 40, "{under_way} under way, {in_a_second} in a second");
        }
    }
}

enum Input {
    Tick,
    Found(PeerSource, Vec<SocketAddr>),
    Failed(SocketAddr),
}

/// The time after which a dialer gives up an address that does not answer.
const GIVES_UP: Duration = Duration::from_secs(8);

fn dead(count: u16) -> Vec<SocketAddr> {
    (0..count).map(|n| ([90, n as u8, (n >> 8) as u8, 1], 6881).into()).collect()
}

fn alive(count: u8) -> Vec<SocketAddr> {
    (0..count).map(|n| ([200, n, 1, 1], 6881).into()).collect()
}

fn is_alive(addr: SocketAddr) -> bool {
    addr.ip().to_string().starts_with("200.")
}

/// Every dialer, with so many seeds.
fn dialers(seeds: u64) -> impl Iterator<Item = Dialer> {
    (1..=seeds).map(Dialer::swarm_with_a_reader).chain((1..=seeds).map(Dialer::resolver))
}

#[test]
fn dead_addresses_ahead_of_live_ones_delay_the_first_answer_by_little() {
    for late in [0.0, 10.0] {
        let list = [dead(200), alive(10)].concat();
        let times: Vec<f64> = dialers(20)
            .map(|mut dialer| dialer.first_answer(&[(late, PeerSource::Tracker, list.clone())]) - late)
            .collect();
        let (mean, worst) = (times.iter().sum::<f64>() / times.len() as f64, times.iter().copied().fold(0.0, f64::max));
        println!("mean {mean:.2} s, worst {worst:.2} s");
        assert!(mean < 1.0 && worst < 5.0, "{times:?}");
    }
}

#[test]
fn dead_addresses_of_one_source_do_not_delay_another() {
    let sources = [PeerSource::Dht, PeerSource::Pex, PeerSource::Lsd, PeerSource::Tracker];
    for (number, late) in [0.0, 0.3, 1.0, 4.0, 6.5, 20.0].into_iter().enumerate() {
        for mut dialer in dialers(4) {
            let (flood, other) = (sources[number % 4], sources[(number + 1) % 4]);
            let time = dialer
                .first_answer(&[(0.0, flood, dead(if late == 1.0 { 2_000 } else { 500 })), (late, other, alive(10))]);
            assert!(time - late < 0.11, "{other:?} after {late} s: {time}");
        }
    }
}

#[test]
fn addresses_known_to_be_good_come_first() {
    for mut dialer in dialers(20) {
        let remembered = [dead(20), alive(5)].concat();
        let tracker = dead(300)[20..].to_vec();
        let finds = [(0.0, PeerSource::Tracker, tracker), (0.0, PeerSource::Remembered, remembered)];
        let time = dialer.first_answer(&finds);
        assert!(time < 1.2, "within the first two batches: {time}");
    }
}
