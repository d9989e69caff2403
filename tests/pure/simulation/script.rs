//! Seeds that follow a script instead of a swarm: other clients, with their queues and their faults.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use fixedbitset::FixedBitSet;
use rand::RngExt;
use torrentfs::swarm::{Event, PeerKey};
use torrentfs::wire::{ExtensionHandshake, Message, Request, bitfield_to_wire};

use super::libtorrent::{Libtorrent, Sending};
use super::link::{Link, Transfer};
use super::{Nature, Next, World};

/// Blocks that it hands to its socket before the first of them has left.
const IN_FLIGHT: usize = 4;

/// How a peer behaves. The default is a good seed with the fast extension.
#[derive(Clone, Debug)]
pub struct Script {
    pub fast: bool,
    /// Requests that it queues. One that comes when the queue is full is lost; with `rejects` it is rejected.
    pub queue: usize,
    /// The time after the connection when its extension handshake names the length of its queue.
    pub hello: Option<Duration>,
    /// With the fast extension, each request that it will not answer is rejected.
    pub rejects: bool,
    /// The part of the requests that are lost.
    pub drops: f64,
    /// Mean times without a choke and of a choke. It forgets its queue when it chokes.
    pub chokes: Option<(Duration, Duration)>,
    /// Mean times of running and of being stopped.
    pub stops: Option<(Duration, Duration)>,
    /// Mean time between two times that it closes its connections.
    pub closes: Option<Duration>,
    /// It sends blocks as libtorrent does. Otherwise it sends them in the order of the requests, a few at a time.
    pub libtorrent: Option<Libtorrent>,
}

impl Script {
    /// Returns a seed that sends blocks as libtorrent does.
    pub fn libtorrent(settings: Libtorrent) -> Self {
        Self { queue: 5_000, libtorrent: Some(settings), ..Self::default() }
    }
}

impl Default for Script {
    fn default() -> Self {
        Self {
            fast: true,
            queue: 500,
            hello: Some(Duration::ZERO),
            rejects: true,
            drops: 0.0,
            chokes: None,
            stops: None,
            closes: None,
            libtorrent: None,
        }
    }
}

/// A scripted peer at work.
#[derive(Default)]
pub struct Scripted {
    script: Script,
    choking: bool,
    /// When it last changed that, and how long it has been unchoking before.
    changed: Duration,
    unchoked: Duration,
    stopped: bool,
    /// Events that came while it was stopped.
    waiting: Vec<Event>,
    /// Turns that it would have taken meanwhile.
    due: Vec<Turn>,
    connections: BTreeMap<PeerKey, Connection>,
    hashes: Hashes,
}

#[derive(Default)]
pub(super) struct Connection {
    interested: bool,
    pub(super) queue: VecDeque<Request>,
    in_flight: Vec<Request>,
    pub(super) sending: Sending,
}

/// The pieces that a seed in seed mode has hashed, and those that it hashes.
#[derive(Default)]
pub(super) struct Hashes {
    pub(super) verified: BTreeSet<u32>,
    pub(super) verifying: BTreeSet<u32>,
}

/// An action that a script takes by itself.
#[derive(Clone, Copy, Debug)]
pub enum Turn {
    Hello(PeerKey),
    Choke(bool),
    Stop(bool),
    Close,
    /// A piece is hashed.
    Hashed(PeerKey, u32),
    /// A block is read.
    ReadDone(PeerKey, Request),
    /// The other side acknowledges what it has got.
    Acked(PeerKey),
}

impl Scripted {
    pub fn is_fast(&self) -> bool {
        self.script.fast
    }

    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Returns the settings and state of a connection if it sends blocks as libtorrent does.
    pub(super) fn libtorrent(&mut self, key: PeerKey) -> Option<(&Libtorrent, &mut Hashes, &mut Connection)> {
        Some((self.script.libtorrent.as_ref()?, &mut self.hashes, self.connections.get_mut(&key)?))
    }
}

impl World {
    /// Adds a seed behind a link that follows a script.
    pub fn add_scripted(&mut self, link: Link, script: Script) -> usize {
        let node = self.add_seed_behind(link);
        if let Some((good, _)) = script.chokes {
            self.later(node, good, Turn::Choke(true));
        }
        if let Some((good, _)) = script.stops {
            self.later(node, good, Turn::Stop(true));
        }
        if let Some(mean) = script.closes {
            self.later(node, mean, Turn::Close);
        }
        self.nodes[node].script = Some(Scripted { script, ..Scripted::default() });
        node
    }

    /// Stops a scripted peer for good, as SIGSTOP does, or lets it go on.
    pub fn stop(&mut self, node: usize, stop: bool) {
        self.turn(node, Turn::Stop(stop));
    }

    /// Returns for how long a scripted peer has not been choking.
    pub fn time_unchoked(&self, node: usize) -> Duration {
        let scripted = self.nodes[node].script.as_ref().expect("a scripted peer");
        scripted.unchoked + if scripted.choking { Duration::ZERO } else { self.now - scripted.changed }
    }

    /// Schedules a turn after a time that is exponentially distributed.
    fn later(&mut self, node: usize, mean: Duration, turn: Turn) {
        let time = mean.mul_f64(-self.rng.random_range(1e-6..1.0f64).ln());
        self.at(self.now + time, node, Next::Turn(turn));
    }

    pub(super) fn scripted(&mut self, node: usize) -> &mut Scripted {
        self.nodes[node].script.as_mut().expect("a scripted peer")
    }

    pub(super) fn turn(&mut self, node: usize, turn: Turn) {
        let script = self.scripted(node).script.clone();
        match turn {
            Turn::Hashed(..) | Turn::ReadDone(..) if self.scripted(node).stopped => self.scripted(node).due.push(turn),
            Turn::Hashed(key, piece) => self.hashed(node, key, piece),
            Turn::ReadDone(key, request) => self.read_done(node, key, request),
            Turn::Acked(key) => self.acknowledged_late(node, key),
            Turn::Hello(key) => {
                let theirs =
                    ExtensionHandshake { request_queue: Some(script.queue as u32), ..ExtensionHandshake::default() };
                self.post(node, key, Message::Extended { id: 0, payload: theirs.encode() });
            }
            Turn::Choke(choke) => {
                let stopped = self.scripted(node).stopped;
                if !stopped {
                    self.choke(node, choke);
                }
                if let Some((good, bad)) = script.chokes {
                    self.later(node, if choke && !stopped { bad } else { good }, Turn::Choke(!choke || stopped));
                }
            }
            Turn::Stop(stop) => {
                self.scripted(node).stopped = stop;
                if !stop {
                    for event in std::mem::take(&mut self.scripted(node).waiting) {
                        self.scripted_event(node, event);
                    }
                    for turn in std::mem::take(&mut self.scripted(node).due) {
                        self.turn(node, turn);
                    }
                }
                if let Some((good, bad)) = script.stops {
                    self.later(node, if stop { bad } else { good }, Turn::Stop(!stop));
                }
            }
            Turn::Close => {
                if !self.scripted(node).stopped {
                    for key in std::mem::take(&mut self.scripted(node).connections).into_keys() {
                        if let Some((other, theirs)) = self.nodes[node].links.remove(&key) {
                            let at = self.arrival(node, other);
                            self.at(at, other, Next::Gone(theirs));
                        }
                    }
                }
                if let Some(mean) = script.closes {
                    self.later(node, mean, Turn::Close);
                }
            }
        }
    }

    fn choke(&mut self, node: usize, choke: bool) {
        let (now, unchoked) = (self.now, self.time_unchoked(node));
        let scripted = self.scripted(node);
        (scripted.choking, scripted.changed, scripted.unchoked) = (choke, now, unchoked);
        let rejects = self.scripted(node).script.fast && self.scripted(node).script.rejects;
        let keys: Vec<PeerKey> = self.scripted(node).connections.keys().copied().collect();
        for key in keys {
            let Some(connection) = self.scripted(node).connections.get_mut(&key) else { continue };
            let (interested, forgotten) = (connection.interested, std::mem::take(&mut connection.queue));
            match choke {
                true => {
                    self.post(node, key, Message::Choke);
                    for request in forgotten.into_iter().filter(|_| rejects) {
                        self.post(node, key, Message::Reject(request));
                    }
                }
                false if interested => self.post(node, key, Message::Unchoke),
                false => {}
            }
        }
    }

    pub(super) fn scripted_event(&mut self, node: usize, event: Event) {
        let pieces = self.lengths.pieces() as usize;
        if self.scripted(node).stopped {
            return self.scripted(node).waiting.push(event);
        }
        let (script, choking) = (self.scripted(node).script.clone(), self.scripted(node).choking);
        if let Event::Message(key, _) = event {
            self.acknowledged(node, key);
        }
        match event {
            Event::Connected(new) => {
                self.scripted(node).connections.insert(new.key, Connection::default());
                let mut all = FixedBitSet::with_capacity(pieces);
                all.insert_range(..);
                let all = Message::Bitfield(bitfield_to_wire(&all));
                self.post(node, new.key, if script.fast { Message::HaveAll } else { all });
                if let Some(after) = script.hello {
                    self.at(self.now + after, node, Next::Turn(Turn::Hello(new.key)));
                }
            }
            Event::Disconnected(key) => drop(self.scripted(node).connections.remove(&key)),
            Event::Message(key, Message::Interested) => {
                if let Some(connection) = self.scripted(node).connections.get_mut(&key) {
                    connection.interested = true;
                    if !choking {
                        self.post(node, key, Message::Unchoke);
                    }
                }
            }
            Event::Message(key, Message::Request(request)) => {
                let silent = self.nodes[node].nature == Nature::Silent;
                let lost = silent || script.drops > 0.0 && self.rng.random_bool(script.drops);
                let Some(connection) = self.scripted(node).connections.get_mut(&key) else { return };
                if !lost && !choking && connection.queue.len() + connection.in_flight.len() < script.queue.max(1) {
                    connection.queue.push_back(request);
                    if script.libtorrent.is_some() {
                        self.fill_send_buffer(node, key);
                    } else {
                        self.send_scripted(node, key);
                    }
                } else if !silent && script.fast && script.rejects {
                    self.post(node, key, Message::Reject(request));
                }
            }
            Event::Message(key, Message::Cancel(request)) => {
                let Some(connection) = self.scripted(node).connections.get_mut(&key) else { return };
                let before = connection.queue.len();
                connection.queue.retain(|other| *other != request);
                if connection.queue.len() < before && script.fast && script.rejects {
                    self.post(node, key, Message::Reject(request));
                }
            }
            Event::Uploaded { peer, request, .. } if script.libtorrent.is_some() => {
                self.left_socket(node, peer, request);
            }
            Event::Uploaded { peer, request, .. } => {
                if let Some(connection) = self.scripted(node).connections.get_mut(&peer) {
                    connection.in_flight.retain(|other| *other != request);
                    self.send_scripted(node, peer);
                }
            }
            _ => {}
        }
    }

    fn send_scripted(&mut self, node: usize, key: PeerKey) {
        while let Some(connection) = self.scripted(node).connections.get_mut(&key)
            && connection.in_flight.len() < IN_FLIGHT
            && let Some(request) = connection.queue.pop_front()
        {
            connection.in_flight.push(request);
            let left = self.send_through_link(node, key, request).left;
            self.at(left, node, Next::Sent(key, request));
        }
    }

    /// Hands a block to the socket.
    pub(super) fn send_through_link(&mut self, node: usize, key: PeerKey, request: Request) -> Transfer {
        let (now, lies) = (self.now, self.nodes[node].nature == Nature::Liar);
        let link = self.nodes[node].link.as_mut().expect("a link");
        let transfer = link.send_block(now, request.length, &mut self.rng);
        if let Some((other, theirs)) = self.nodes[node].links.get(&key).copied() {
            self.at(transfer.arrives, other, Next::Block(theirs, request, lies));
        }
        transfer
    }
}
