//! A network of swarms in virtual time.
//!
//! Each node has an upload bandwidth and one first-in-first-out send queue. As in a socket's send buffer, blocks in the queue
//! cannot be withdrawn; small messages bypass it. Bandwidth may be granted in ticks, as libtorrent does. The content of a
//! piece is not simulated: a block only carries whether its sender lied.
//!
//! A node with a [`Link`] is behind that link instead: everything between it and others is delayed and queued there.

#![allow(dead_code, reason = "the tests and the benchmark of the policy each use a part of this")]

pub mod libtorrent;
pub mod link;
pub mod overlay;
pub mod script;
pub mod swarms;
pub mod sweep;
pub mod trace;
pub mod workload;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fixedbitset::FixedBitSet;
use link::Link;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use script::{Scripted, Turn};
use torrentfs::metainfo::{BLOCK_LEN, InfoHash, Lengths, PieceIndex};
use torrentfs::swarm::{
    Action, Config, Direction, DisconnectReason, Event, NewPeer, PeerKey, PeerSource, PickOrder, ReaderId, Swarm,
    WantId,
};
use torrentfs::wire::{Message, PeerId, Request};

/// Returns the seed of a simulation: `TORRENTFS_SEED`, or `default`. Prints it, so that a failure can be replayed.
pub fn seed(default: u64) -> u64 {
    let seed = std::env::var("TORRENTFS_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(default);
    println!("TORRENTFS_SEED={seed}");
    seed
}

/// Returns a time as a result.
fn seconds(time: Duration) -> f64 {
    time.as_secs_f64()
}

/// Behaviour of a node.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Nature {
    Honest,
    /// Sends wrong blocks.
    Liar,
    /// Unchokes, and never sends a block.
    Silent,
    /// Sends one byte a second, so a block would take hours.
    Dripping,
}

pub struct Node {
    pub swarm: Swarm,
    pub nature: Nature,
    addr: SocketAddr,
    id: PeerId,
    /// Upload bandwidth in bytes a second. May be infinite.
    up: f64,
    /// Interval at which bandwidth is granted.
    tick: Duration,
    link: Option<Link>,
    /// It follows a script; its swarm does nothing.
    script: Option<Scripted>,
    /// Blocks in the send buffer.
    queue: VecDeque<(PeerKey, Request)>,
    sending: bool,
    credit: f64,
    granted: Duration,
    links: BTreeMap<PeerKey, (usize, PeerKey)>,
    /// For each piece in progress, whether the sender of each block lied.
    buffers: BTreeMap<u32, Vec<bool>>,
    pub stored: BTreeSet<u32>,
    /// Pieces that the store can hold before it evicts the oldest. `None` means all.
    pub capacity: Option<usize>,
    recency: VecDeque<u32>,
    pins: Vec<std::ops::Range<u32>>,
    wants: BTreeMap<WantId, (std::ops::Range<u64>, Duration)>,
    /// Duration of each answered read.
    pub answered: BTreeMap<WantId, Duration>,
    pub completed: Option<Duration>,
    pub banned: BTreeSet<SocketAddr>,
    pub goodbyes: Vec<DisconnectReason>,
    pub received: u64,
    /// Requests cancelled.
    pub cancelled: usize,
    alive: bool,
    wakeup: Option<Duration>,
}

#[derive(Debug)]
enum Next {
    Wake,
    /// A message arrives.
    Deliver(PeerKey, Message),
    /// A block arrives. The flag says whether it is a lie.
    Block(PeerKey, Request, bool),
    /// A connection arrives.
    Call(usize, SocketAddr),
    /// The answer to a call through a link arrives.
    Opened(Event),
    /// A block has left the socket, into a link.
    Sent(PeerKey, Request),
    /// The send queue continues.
    Send,
    Checked(u32, bool, Vec<u64>),
    Gone(PeerKey),
    Turn(Turn),
}

pub struct World {
    pub now: Duration,
    start: Instant,
    pub nodes: Vec<Node>,
    events: BTreeMap<u64, (usize, Next)>,
    order: BinaryHeap<Reverse<(Duration, u64)>>,
    count: u64,
    keys: u64,
    wants: u64,
    pub latency: Duration,
    /// Time after which a connection to an address where nobody is fails.
    pub dial_timeout: Duration,
    pub lengths: Lengths,
    pub rng: SmallRng,
    pub check: bool,
    /// Prints every request, cancel, reject and block.
    pub trace: bool,
}

pub fn config(lengths: Lengths, seed: u64) -> Config {
    Config {
        info_hash: InfoHash([7; 20]),
        lengths,
        metadata: Bytes::new().into(),
        seed,
        our_id: PeerId([0; 20]),
        on_demand: false,
        upload: true,
        partial_seed: false,
        pex: true,
        super_seed: false,
        max_peers: 100,
        max_partial: 64 << 20,
        order: PickOrder::RarestFirst,
        policy: Arc::default(),
    }
}

impl World {
    pub fn new(seed: u64, lengths: Lengths, latency: Duration) -> Self {
        Self {
            now: Duration::ZERO,
            start: Instant::now(),
            nodes: Vec::new(),
            events: BTreeMap::new(),
            order: BinaryHeap::new(),
            count: 0,
            keys: 0,
            wants: 0,
            latency,
            dial_timeout: Duration::ZERO,
            lengths,
            rng: SmallRng::seed_from_u64(seed),
            check: false,
            trace: false,
        }
    }

    pub fn clock(&self) -> Instant {
        self.start + self.now
    }

    pub fn addr(node: usize) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 1_000 + node as u16))
    }

    /// Adds a node with the pieces for which `has` is true.
    pub fn add(&mut self, up: f64, has: impl Fn(u32) -> bool, change: impl FnOnce(&mut Config)) -> usize {
        let node = self.nodes.len();
        let mut id = PeerId(self.rng.random());
        id.0[0] = node as u8;
        let mut config = Config { our_id: id, ..config(self.lengths, self.rng.random()) };
        change(&mut config);
        let mut have = FixedBitSet::with_capacity(self.lengths.pieces() as usize);
        let stored: BTreeSet<u32> = (0..self.lengths.pieces()).filter(|piece| has(*piece)).collect();
        stored.iter().for_each(|piece| have.insert(*piece as usize));
        self.nodes.push(Node {
            swarm: Swarm::new(config, have, self.clock()),
            nature: Nature::Honest,
            addr: Self::addr(node),
            id,
            up,
            tick: Duration::ZERO,
            link: None,
            script: None,
            queue: VecDeque::new(),
            sending: false,
            credit: 0.0,
            granted: Duration::ZERO,
            links: BTreeMap::new(),
            buffers: BTreeMap::new(),
            stored,
            capacity: None,
            recency: VecDeque::new(),
            pins: Vec::new(),
            wants: BTreeMap::new(),
            answered: BTreeMap::new(),
            completed: None,
            banned: BTreeSet::new(),
            goodbyes: Vec::new(),
            received: 0,
            cancelled: 0,
            alive: true,
            wakeup: None,
        });
        node
    }

    /// Adds a seed whose bandwidth is granted in ticks of 20 ms.
    pub fn add_seed(&mut self, up: f64) -> usize {
        let node = self.add(up, |_| true, |_| {});
        self.nodes[node].tick = Duration::from_millis(20);
        node
    }

    /// Adds a seed behind a link.
    pub fn add_seed_behind(&mut self, link: Link) -> usize {
        let node = self.add(f64::INFINITY, |_| true, |_| {});
        self.nodes[node].link = Some(link);
        node
    }

    /// Returns when a small message from one node arrives at another.
    fn arrival(&mut self, from: usize, to: usize) -> Duration {
        let now = self.now;
        match (&mut self.nodes[from].link, to) {
            (Some(link), _) => link.send(now, &mut self.rng),
            (None, to) => match &mut self.nodes[to].link {
                Some(link) => link.receive(now, &mut self.rng),
                None => now + self.latency,
            },
        }
    }

    /// Gives every node the addresses of all others.
    pub fn introduce(&mut self) {
        let all: Vec<SocketAddr> = self.nodes.iter().map(|node| node.addr).collect();
        for node in 0..self.nodes.len() {
            let others = all.iter().copied().filter(|addr| *addr != all[node]).collect();
            self.event(node, Event::PeersFound { addrs: others, source: PeerSource::Tracker });
        }
    }

    pub fn introduce_to(&mut self, node: usize, others: &[usize]) {
        let others = others.iter().map(|other| Self::addr(*other)).collect();
        self.event(node, Event::PeersFound { addrs: others, source: PeerSource::Tracker });
    }

    /// Switches a node off. The others notice at once.
    pub fn kill(&mut self, node: usize) {
        self.nodes[node].alive = false;
        for (_, (other, key)) in std::mem::take(&mut self.nodes[node].links) {
            self.at(self.now, other, Next::Gone(key));
        }
    }

    fn at(&mut self, when: Duration, node: usize, next: Next) {
        self.count += 1;
        self.events.insert(self.count, (node, next));
        self.order.push(Reverse((when, self.count)));
    }

    pub fn event(&mut self, node: usize, event: Event) {
        if self.nodes[node].script.is_some() {
            return self.scripted_event(node, event);
        }
        let clock = self.clock();
        self.nodes[node].swarm.handle(clock, event);
        self.act(node);
    }

    pub fn open(&mut self, node: usize, reader: u64, bytes: std::ops::Range<u64>) {
        self.event(node, Event::Open { reader: ReaderId(reader), bytes });
    }

    /// Starts a read, which is answered at once if its pieces are stored.
    pub fn read(&mut self, node: usize, reader: u64, bytes: std::ops::Range<u64>) -> WantId {
        self.wants += 1;
        let want = WantId(self.wants);
        let reader = ReaderId(reader);
        self.event(node, Event::Read { reader, bytes: bytes.clone() });
        if self.lengths.pieces_in(&bytes).all(|piece| self.nodes[node].stored.contains(&piece.get())) {
            self.nodes[node].answered.insert(want, Duration::ZERO);
        } else {
            self.nodes[node].wants.insert(want, (bytes.clone(), self.now));
            self.event(node, Event::Want { want, reader, bytes });
        }
        want
    }

    /// Reads, and waits for the answer. Returns how long it took. Panics after `limit`.
    pub fn read_now(&mut self, node: usize, reader: u64, bytes: std::ops::Range<u64>, limit: Duration) -> Duration {
        let want = self.read(node, reader, bytes.clone());
        let end = self.now + limit;
        while !self.nodes[node].answered.contains_key(&want) {
            assert!(self.now < end, "a read of {bytes:?} hangs");
            assert!(self.step(), "nothing is left to happen, and a read of {bytes:?} waits");
        }
        self.nodes[node].answered[&want]
    }

    pub fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.order.peek().is_some_and(|Reverse((at, _))| *at <= end) {
            self.step();
        }
        self.now = end;
    }

    /// Runs until `done`. Panics after `limit`.
    pub fn run_until(&mut self, limit: Duration, mut done: impl FnMut(&Self) -> bool) -> Duration {
        let end = self.now + limit;
        while !done(self) {
            assert!(self.now < end, "not done after {limit:?}");
            assert!(self.step(), "nothing is left to happen");
        }
        self.now
    }

    /// Handles one event. Returns false if there is none.
    fn step(&mut self) -> bool {
        let Some(Reverse((at, count))) = self.order.pop() else { return false };
        let Some((node, next)) = self.events.remove(&count) else { return true };
        self.now = self.now.max(at);
        if !self.nodes[node].alive {
            return true;
        }
        let clock = self.clock();
        match next {
            Next::Wake => {
                if self.nodes[node].wakeup != Some(at) {
                    return true;
                }
                self.nodes[node].wakeup = None;
                self.event(node, Event::Tick);
            }
            Next::Deliver(key, message) => {
                if let Some((other, _)) = self.nodes[node].links.get(&key).copied() {
                    self.trace(node, other, &message);
                    self.event(node, Event::Message(key, message));
                }
            }
            Next::Block(key, request, lie) => {
                if let Some((other, _)) = self.nodes[node].links.get(&key).copied() {
                    self.trace_block(other, 'C', request);
                }
                if !self.nodes[node].links.contains_key(&key) {
                    return true;
                }
                let Request { piece, begin, length } = request;
                self.nodes[node].received += u64::from(length);
                if self.nodes[node].swarm.block(clock, key, piece, begin, length).is_some() {
                    let index = self.lengths.piece(piece).expect("asked for");
                    let blocks = self.lengths.blocks_in(index) as usize;
                    let buffer = self.nodes[node].buffers.entry(piece).or_insert_with(|| vec![false; blocks]);
                    buffer[(begin / BLOCK_LEN) as usize] = lie;
                }
                self.act(node);
            }
            Next::Call(from, addr) if !self.nodes[from].alive => self.event(from, Event::ConnectFailed(addr)),
            Next::Call(from, addr) if self.nodes[node].script.as_ref().is_some_and(Scripted::is_stopped) => {
                // The kernel takes the connection, but nobody answers.
                self.at(self.now + Duration::from_secs(1), node, Next::Call(from, addr));
            }
            Next::Call(from, _) => {
                let is_fast = |node: &Node| node.script.as_ref().is_none_or(Scripted::is_fast);
                let fast = is_fast(&self.nodes[node]) && is_fast(&self.nodes[from]);
                let (caller, called) = (PeerKey(self.keys + 1), PeerKey(self.keys + 2));
                self.keys += 2;
                self.nodes[from].links.insert(caller, (node, called));
                self.nodes[node].links.insert(called, (from, caller));
                let hello = |key, other: &Node, direction| {
                    Event::Connected(NewPeer { fast, ..NewPeer::new(key, other.addr, direction, other.id) })
                };
                let at_caller = hello(caller, &self.nodes[node], Direction::Outgoing);
                let at_called = hello(called, &self.nodes[from], Direction::Incoming);
                if self.nodes[node].link.is_some() {
                    let at = self.arrival(node, from);
                    self.at(at, from, Next::Opened(at_caller));
                } else {
                    self.event(from, at_caller);
                }
                self.event(node, at_called);
            }
            Next::Opened(event) => self.event(node, event),
            Next::Sent(peer, request) => {
                self.trace_block(node, 'S', request);
                self.event(node, Event::Uploaded { peer, request, sent: true });
            }
            Next::Send => self.send_on(node),
            Next::Checked(piece, good, digests) => {
                let index = self.lengths.piece(piece).expect("checked");
                if good {
                    self.store(node, piece);
                }
                self.event(node, Event::Checked { piece: index, good, bad_blocks: Vec::new(), digests });
                self.answer(node);
            }
            Next::Gone(key) => {
                if self.nodes[node].links.remove(&key).is_some() {
                    self.event(node, Event::Disconnected(key));
                }
            }
            Next::Turn(turn) => self.turn(node, turn),
        }
        true
    }

    fn store(&mut self, node: usize, piece: u32) {
        let this = &mut self.nodes[node];
        this.stored.insert(piece);
        this.recency.push_back(piece);
        let Some(capacity) = this.capacity else { return };
        let mut evicted = Vec::new();
        while this.stored.len() > capacity {
            let free = |piece: &u32| !this.pins.iter().any(|pin| pin.contains(piece));
            let Some(at) = this.recency.iter().position(free) else { break };
            let Some(piece) = this.recency.remove(at) else { break };
            this.stored.remove(&piece);
            evicted.push(piece);
        }
        let left = self.lengths.full_pieces(capacity.saturating_sub(this.stored.len()) as u32);
        self.event(node, Event::Room(left));
        let lengths = self.lengths;
        for piece in evicted.into_iter().filter_map(|piece| lengths.piece(piece)) {
            self.event(node, Event::Evicted(piece));
        }
    }

    fn answer(&mut self, node: usize) {
        let this = &mut self.nodes[node];
        let has = |piece: PieceIndex| this.stored.contains(&piece.get());
        let done: Vec<WantId> = this
            .wants
            .iter()
            .filter(|(_, (bytes, _))| self.lengths.pieces_in(bytes).all(has))
            .map(|(want, _)| *want)
            .collect();
        for want in done {
            let (_, since) = self.nodes[node].wants.remove(&want).expect("just found");
            self.nodes[node].answered.insert(want, self.now - since);
            self.event(node, Event::Unwant(want));
        }
    }

    /// Sends a message from one node to the other end of a connection.
    fn post(&mut self, node: usize, key: PeerKey, message: Message) {
        if let Some((other, theirs)) = self.nodes[node].links.get(&key).copied() {
            let at = self.arrival(node, other);
            self.at(at, other, Next::Deliver(theirs, message));
        }
    }

    /// Performs the swarm's actions and sets its timer.
    fn act(&mut self, node: usize) {
        if self.check {
            self.nodes[node].swarm.check_invariants();
        }
        while let Some(action) = self.nodes[node].swarm.poll() {
            match action {
                Action::Connect(addr) => {
                    let other = self.nodes.iter().position(|other| other.addr == addr && other.alive);
                    match other {
                        Some(other) => {
                            // Through a link: both directions for TCP's handshake, then ours for BitTorrent's.
                            let link = self.nodes[other].link.as_ref();
                            let takes = link.map_or(self.latency, |link| 3 * link.delay);
                            self.at(self.now + takes, other, Next::Call(node, addr));
                        }
                        None => self.at(self.now + self.dial_timeout, node, Next::Opened(Event::ConnectFailed(addr))),
                    }
                }
                Action::Send(key, message) => {
                    self.nodes[node].cancelled += usize::from(matches!(message, Message::Cancel(_)));
                    self.post(node, key, message);
                }
                Action::Disconnect(key, why) => {
                    self.nodes[node].goodbyes.push(why);
                    if let Some((other, theirs)) = self.nodes[node].links.remove(&key) {
                        self.at(self.now + self.latency, other, Next::Gone(theirs));
                    }
                }
                Action::Ban(addr) => drop(self.nodes[node].banned.insert(addr)),
                Action::Upload(key, request) => {
                    let (now, nature) = (self.now, self.nodes[node].nature);
                    if matches!(nature, Nature::Silent | Nature::Dripping) {
                        continue;
                    }
                    if let Some(link) = &mut self.nodes[node].link {
                        let transfer = link.send_block(now, request.length, &mut self.rng);
                        self.at(transfer.sent, node, Next::Sent(key, request));
                        if let Some((other, theirs)) = self.nodes[node].links.get(&key).copied() {
                            self.at(transfer.arrives, other, Next::Block(theirs, request, nature == Nature::Liar));
                        }
                    } else {
                        self.nodes[node].queue.push_back((key, request));
                        if !self.nodes[node].sending {
                            self.nodes[node].sending = true;
                            self.at(self.now, node, Next::Send);
                        }
                    }
                }
                Action::Check { piece, .. } => {
                    let number = piece.get();
                    let blocks = self.lengths.blocks_in(piece) as usize;
                    let buffer = self.nodes[node].buffers.remove(&number).unwrap_or_default();
                    assert_eq!(buffer.len(), blocks, "checked with all blocks in");
                    let good = !buffer.contains(&true);
                    let digests = buffer.iter().map(|lie| if *lie { self.rng.random() } else { 1 }).collect();
                    self.at(self.now + Duration::from_micros(500), node, Next::Checked(number, good, digests));
                }
                Action::Drop(piece) => drop(self.nodes[node].buffers.remove(&piece.get())),
                Action::AddDhtNode(_) | Action::FindPeers | Action::LoadMetadata | Action::RefuseWebSeed(..) => {}
                Action::Hold(_) | Action::Release(_) => {}
                Action::Pin(pins) => self.nodes[node].pins = pins,
                Action::Completed => {
                    assert!(self.nodes[node].completed.is_none(), "completed twice");
                    self.nodes[node].completed = Some(self.now);
                }
            }
        }
        let wakeup = self.nodes[node].swarm.next_wakeup().map(|at| at.saturating_duration_since(self.start));
        let wakeup = wakeup.map(|at| at.max(self.now + Duration::from_micros(100)));
        if let Some(at) = wakeup
            && self.nodes[node].wakeup.is_none_or(|set| at < set)
        {
            self.nodes[node].wakeup = Some(at);
            self.at(at, node, Next::Wake);
        }
    }

    /// Sends the blocks that the bandwidth allows now.
    fn send_on(&mut self, node: usize) {
        let this = &mut self.nodes[node];
        let passed = (self.now - this.granted).as_secs_f64();
        this.granted = self.now;
        // Unused bandwidth is lost, except for that of a moment.
        let most = (this.up * 0.1).max(2.0 * f64::from(BLOCK_LEN));
        this.credit = (this.credit + this.up * passed).min(most);
        while let Some((key, request)) = self.nodes[node].queue.front().copied() {
            let length = f64::from(request.length);
            if self.nodes[node].credit < length {
                break;
            }
            self.nodes[node].queue.pop_front();
            let Some((other, theirs)) = self.nodes[node].links.get(&key).copied() else { continue };
            self.nodes[node].credit -= length;
            let lie = self.nodes[node].nature == Nature::Liar;
            assert!(lie || self.nodes[node].stored.contains(&request.piece) || self.nodes[node].capacity.is_some());
            self.at(self.now + self.latency, other, Next::Block(theirs, request, lie));
            self.event(node, Event::Uploaded { peer: key, request, sent: true });
        }
        let this = &mut self.nodes[node];
        this.sending = !this.queue.is_empty();
        if let Some((_, request)) = this.queue.front() {
            let missing = (f64::from(request.length) - this.credit) / this.up;
            let wait = Duration::from_secs_f64(missing).max(this.tick).max(Duration::from_micros(1));
            self.at(self.now + wait, node, Next::Send);
        }
    }
}
