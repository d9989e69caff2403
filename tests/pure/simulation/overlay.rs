//! A network of swarms and resolvers in virtual time that exchange messages but no blocks: addresses, metadata, hole
//! punching.
//!
//! A host may be behind a NAT, which lets a connection in only from an address that the host has dialed in the last
//! few seconds. A dial is repeated for a while, as a system repeats the first packet of a connection.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fixedbitset::FixedBitSet;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use torrentfs::metainfo::{BLOCK_LEN, InfoHash, Lengths};
use torrentfs::swarm::{
    Action, Config, Direction, DisconnectReason, Event, NewPeer, PeerKey, PeerSource, Policy, Resolver, ResolverAction,
    ResolverConfig, ResolverEvent, Swarm,
};
use torrentfs::wire::{Message, PeerId};

/// Number of times that the first packet of a connection is sent, and the time between two of them.
const DIAL_PACKETS: u32 = 4;
const DIAL_INTERVAL: Duration = Duration::from_secs(1);
/// Latency of every message. The same for all, so that the messages of a connection stay in order.
const LATENCY: Duration = Duration::from_millis(40);
/// How long a NAT lets packets in from an address that was dialed.
const NAT_MAPPING: Duration = Duration::from_secs(10);

/// The state machine of a host.
enum Machine {
    Swarm(Box<Swarm>),
    Resolver(Box<Resolver>),
}

pub struct Host {
    machine: Machine,
    pub addr: SocketAddr,
    pub id: PeerId,
    nat: bool,
    /// It sends nothing but its extension handshake.
    silent: bool,
    alive: bool,
    /// The other host, and its key of the connection.
    links: BTreeMap<PeerKey, (usize, PeerKey)>,
    /// When each address was last dialed.
    pub dialed: BTreeMap<SocketAddr, Duration>,
    /// Number of dials.
    pub dials: usize,
    /// Connections that this host closed.
    pub closed: Vec<(SocketAddr, DisconnectReason)>,
    /// The metadata that a resolver found.
    pub resolved: Option<Bytes>,
    wakeup: Option<Duration>,
}

/// A message that was sent.
pub struct Sent {
    pub at: Duration,
    pub from: usize,
    pub to: usize,
    /// The sender's key of the connection.
    pub key: PeerKey,
    pub message: Message,
}

/// An input of a host.
enum Input {
    Tick,
    Found(Vec<SocketAddr>),
    DialFailed(SocketAddr),
    Connected(NewPeer),
    Gone(PeerKey),
    Message(PeerKey, Message),
    ExtensionSent(PeerKey),
}

/// A future event.
enum Next {
    Wake,
    /// A packet of a dial arrives at its address.
    Dial {
        from: usize,
        addr: SocketAddr,
        packet: u32,
    },
    Deliver(PeerKey, Message),
    Gone(PeerKey),
}

pub struct Overlay {
    pub now: Duration,
    start: Instant,
    pub hosts: Vec<Host>,
    events: BTreeMap<u64, (usize, Next)>,
    order: BinaryHeap<Reverse<(Duration, u64)>>,
    count: u64,
    keys: u64,
    pub sent: Vec<Sent>,
    pub rng: SmallRng,
}

impl Overlay {
    pub fn new(seed: u64) -> Self {
        Self {
            now: Duration::ZERO,
            start: Instant::now(),
            hosts: Vec::new(),
            events: BTreeMap::new(),
            order: BinaryHeap::new(),
            count: 0,
            keys: 0,
            sent: Vec::new(),
            rng: SmallRng::seed_from_u64(seed),
        }
    }

    /// Returns a public address, different for each `n`.
    pub fn public(n: usize) -> SocketAddr {
        SocketAddr::from(([1 + (n % 9) as u8, 2, (n / 250) as u8, 1 + (n % 250) as u8], 6_881))
    }

    /// Adds a swarm that lacks some pieces, but fetches none because nobody reads.
    pub fn add_swarm(&mut self, addr: SocketAddr, change: impl FnOnce(&mut Config)) -> usize {
        let lengths = Lengths::new(4 * u64::from(BLOCK_LEN), BLOCK_LEN.into()).expect("sizes of a torrent");
        let mut config = Config { on_demand: true, ..super::config(lengths, self.rng.random()) };
        config.our_id = PeerId(self.rng.random());
        change(&mut config);
        let mut have = FixedBitSet::with_capacity(4);
        have.insert(self.rng.random_range(0..4));
        let id = config.our_id;
        let swarm = Swarm::new(config, have, self.start + self.now);
        self.add(addr, id, Machine::Swarm(Box::new(swarm)))
    }

    /// Adds a resolver.
    pub fn add_resolver(&mut self, addr: SocketAddr, info_hash: InfoHash, policy: Policy) -> usize {
        let id = PeerId(self.rng.random());
        let resolver =
            Resolver::new(ResolverConfig { info_hash, our_id: id, pex: true, seed: 1, policy: Arc::new(policy) });
        self.add(addr, id, Machine::Resolver(Box::new(resolver)))
    }

    fn add(&mut self, addr: SocketAddr, id: PeerId, machine: Machine) -> usize {
        self.hosts.push(Host {
            machine,
            addr,
            id,
            nat: false,
            silent: false,
            alive: true,
            links: BTreeMap::new(),
            dialed: BTreeMap::new(),
            dials: 0,
            closed: Vec::new(),
            resolved: None,
            wakeup: None,
        });
        let host = self.hosts.len() - 1;
        self.set_alarm(host);
        host
    }

    /// Puts a host behind a NAT.
    pub fn set_nat(&mut self, host: usize) {
        self.hosts[host].nat = true;
    }

    /// Makes a host send nothing but its extension handshake.
    pub fn silence(&mut self, host: usize) {
        self.hosts[host].silent = true;
    }

    /// Tells a host of others' addresses.
    pub fn introduce(&mut self, host: usize, addrs: Vec<SocketAddr>) {
        self.input(host, Input::Found(addrs));
    }

    /// Switches a host off.
    pub fn kill(&mut self, host: usize) {
        self.hosts[host].alive = false;
        for (_, (other, key)) in std::mem::take(&mut self.hosts[host].links) {
            self.at(self.now, other, Next::Gone(key));
        }
    }

    /// Returns the connection from one host to another.
    pub fn link(&self, from: usize, to: usize) -> Option<PeerKey> {
        self.hosts[from].links.iter().find(|(_, (other, _))| *other == to).map(|(key, _)| *key)
    }

    /// Returns the number of hosts that a host is connected to.
    pub fn degree(&self, host: usize) -> usize {
        self.hosts[host].links.len()
    }

    /// Sends a message that the host's own machine would not send.
    pub fn forge(&mut self, from: usize, to: usize, message: Message) {
        let key = self.link(from, to).expect("connected");
        self.send(from, key, message);
    }

    fn at(&mut self, when: Duration, host: usize, next: Next) {
        self.count += 1;
        self.events.insert(self.count, (host, next));
        self.order.push(Reverse((when, self.count)));
    }

    pub fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.order.peek().is_some_and(|Reverse((at, _))| *at <= end) {
            self.step();
        }
        self.now = end;
    }

    /// Runs until `done`, and returns the time; panics after `limit`.
    pub fn run_until(&mut self, limit: Duration, mut done: impl FnMut(&Self) -> bool) -> Duration {
        let end = self.now + limit;
        while !done(self) {
            assert!(self.now < end, "not done after {limit:?}");
            assert!(self.step(), "nothing is left to happen");
        }
        self.now
    }

    fn step(&mut self) -> bool {
        let Some(Reverse((at, count))) = self.order.pop() else { return false };
        let Some((host, next)) = self.events.remove(&count) else { return true };
        self.now = self.now.max(at);
        if !self.hosts[host].alive {
            return true;
        }
        match next {
            Next::Wake if self.hosts[host].wakeup == Some(at) => {
                self.hosts[host].wakeup = None;
                self.input(host, Input::Tick);
            }
            Next::Wake => {}
            Next::Dial { from, addr, packet } => self.dial_arrives(from, addr, packet),
            Next::Deliver(key, message) => {
                if self.hosts[host].links.contains_key(&key) {
                    self.input(host, Input::Message(key, message));
                }
            }
            Next::Gone(key) => {
                if self.hosts[host].links.remove(&key).is_some() {
                    self.input(host, Input::Gone(key));
                }
            }
        }
        true
    }

    fn dial_arrives(&mut self, from: usize, addr: SocketAddr, packet: u32) {
        let is_open = |to: &Host, dialer: SocketAddr| {
            !to.nat || to.dialed.get(&dialer).is_some_and(|at| *at + NAT_MAPPING > self.now)
        };
        let to = self.hosts.iter().position(|host| host.addr == addr && host.alive);
        let to = to.filter(|to| is_open(&self.hosts[*to], self.hosts[from].addr));
        let Some(to) = to else {
            if packet == DIAL_PACKETS {
                return self.input(from, Input::DialFailed(addr));
            }
            return self.at(self.now + DIAL_INTERVAL, from, Next::Dial { from, addr, packet: packet + 1 });
        };
        let (dialer, dialed) = (PeerKey(self.keys + 1), PeerKey(self.keys + 2));
        self.keys += 2;
        self.hosts[from].links.insert(dialer, (to, dialed));
        self.hosts[to].links.insert(dialed, (from, dialer));
        let new = |key, us: &Host, them: &Host, direction| NewPeer {
            utp: true,
            our_port: us.addr.port(),
            ..NewPeer::new(key, them.addr, direction, them.id)
        };
        let at_dialer = new(dialer, &self.hosts[from], &self.hosts[to], Direction::Outgoing);
        let at_dialed = new(dialed, &self.hosts[to], &self.hosts[from], Direction::Incoming);
        self.input(from, Input::Connected(at_dialer));
        self.input(to, Input::Connected(at_dialed));
    }

    fn input(&mut self, host: usize, input: Input) {
        let now = self.start + self.now;
        match &mut self.hosts[host].machine {
            Machine::Swarm(swarm) => swarm.handle(
                now,
                match input {
                    Input::Tick => Event::Tick,
                    Input::Found(addrs) => Event::PeersFound { addrs, source: PeerSource::Tracker },
                    Input::DialFailed(addr) => Event::ConnectFailed(addr),
                    Input::Connected(peer) => Event::Connected(peer),
                    Input::Gone(key) => Event::Disconnected(key),
                    Input::Message(key, message) => Event::Message(key, message),
                    Input::ExtensionSent(peer) => Event::ExtensionsSent { peer, count: 1 },
                },
            ),
            Machine::Resolver(resolver) => resolver.handle(
                now,
                match input {
                    Input::ExtensionSent(_) => return,
                    Input::Tick => ResolverEvent::Tick,
                    Input::Found(addrs) => ResolverEvent::PeersFound { addrs, source: PeerSource::Tracker },
                    Input::DialFailed(addr) => ResolverEvent::ConnectFailed(addr),
                    Input::Connected(peer) => ResolverEvent::Connected(peer),
                    Input::Gone(key) => ResolverEvent::Disconnected(key),
                    Input::Message(key, message) => ResolverEvent::Message(key, message),
                },
            ),
        }
        self.act(host);
    }

    fn act(&mut self, host: usize) {
        let mut actions = VecDeque::new();
        let Host { machine, resolved, .. } = &mut self.hosts[host];
        match machine {
            Machine::Swarm(swarm) => {
                // Not after each event: a walk over everything takes longer than most events.
                if self.count.is_multiple_of(64) {
                    swarm.check_invariants();
                }
                actions.extend(std::iter::from_fn(|| swarm.poll()));
            }
            Machine::Resolver(resolver) => {
                while let Some(action) = resolver.poll() {
                    match action {
                        ResolverAction::Connect(addr) => actions.push_back(Action::Connect(addr)),
                        ResolverAction::Send(key, message) => actions.push_back(Action::Send(key, message)),
                        ResolverAction::Disconnect(key, reason) => actions.push_back(Action::Disconnect(key, reason)),
                        ResolverAction::Resolved(info) => *resolved = Some(info),
                    }
                }
            }
        }
        let mut extensions_sent = Vec::new();
        for action in actions {
            match action {
                Action::Connect(addr) => {
                    self.hosts[host].dialed.insert(addr, self.now);
                    self.hosts[host].dials += 1;
                    let arrives = self.now + LATENCY;
                    self.at(arrives, host, Next::Dial { from: host, addr, packet: 1 });
                }
                Action::Send(key, message) => {
                    if matches!(message, Message::Extended { .. }) {
                        extensions_sent.push(key);
                    }
                    self.send(host, key, message);
                }
                Action::Disconnect(key, reason) => {
                    let Some((other, theirs)) = self.hosts[host].links.remove(&key) else { continue };
                    let addr = self.hosts[other].addr;
                    self.hosts[host].closed.push((addr, reason));
                    let arrives = self.now + LATENCY;
                    self.at(arrives, other, Next::Gone(theirs));
                }
                Action::Ban(_)
                | Action::AddDhtNode(_)
                | Action::FindPeers
                | Action::LoadMetadata
                | Action::RefuseWebSeed(..)
                | Action::Pin(_)
                | Action::Drop(_) => {}
                Action::Hold(_) | Action::Release(_) => {}
                Action::Upload(..) | Action::Check { .. } | Action::Completed => panic!("no block is requested here"),
            }
        }
        self.set_alarm(host);
        for key in extensions_sent {
            self.input(host, Input::ExtensionSent(key));
        }
    }

    fn send(&mut self, host: usize, key: PeerKey, message: Message) {
        if self.hosts[host].silent && !matches!(message, Message::Extended { id: 0, .. }) {
            return;
        }
        let Some((other, theirs)) = self.hosts[host].links.get(&key).copied() else { return };
        self.sent.push(Sent { at: self.now, from: host, to: other, key, message: message.clone() });
        let arrives = self.now + LATENCY;
        self.at(arrives, other, Next::Deliver(theirs, message));
    }

    fn set_alarm(&mut self, host: usize) {
        let wakeup = match &self.hosts[host].machine {
            Machine::Swarm(swarm) => swarm.next_wakeup().map(|at| at.saturating_duration_since(self.start)),
            Machine::Resolver(_) => Some(self.hosts[host].wakeup.unwrap_or(self.now + Duration::from_secs(1))),
        };
        let wakeup = wakeup.map(|at| at.max(self.now + Duration::from_micros(100)));
        if let Some(at) = wakeup
            && self.hosts[host].wakeup.is_none_or(|set| at < set)
        {
            self.hosts[host].wakeup = Some(at);
            self.at(at, host, Next::Wake);
        }
    }
}
