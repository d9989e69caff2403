//! The task that owns one torrent's `Swarm`.
//!
//! One loop: wait for anything, hear all that is there, do what the swarm says, flush what was said to each peer. It
//! never waits for a peer or a disk: outboxes are tried, hashing and disk work go to the blocking pool.

mod start;

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use crate::discovery::{AnnouncedPort, Dht, Transferred};
use crate::metainfo::{Metainfo, PieceIndex, Verdict};
use crate::net::{self, Connection, Dialer, Handshaken, Incoming, Limits, OutboxFull, Transport};
use crate::store::{Cache, TorrentStore};
use crate::swarm::{Action, Direction, Event, Goodbye, PeerKey, Stats, Swarm};
use crate::webseed::WebSeed;
use crate::wire::{Handshake, Message, Request};

use super::extensions::{self, Extensions};
use super::holepunch::Introductions;
use super::origins::{Origins, PeerSource};
use super::partial::Partials;
use super::seeding::Seeding;
use super::shares::{Allowed, Share};
use super::sources::{Found, Sources};
use super::torrent::{Command, Progress};

pub(super) use start::start;

/// Things heard before the swarm's wishes are carried out.
const HEAR_AT_ONCE: usize = 32;

/// Messages that wait for a peer's outbox; a peer that is so far behind is let go.
const MAX_UNSENT: usize = 4096;

/// With fewer, trackers are asked for more before their interval is over, as far as they allow.
const FEW_PEERS: usize = 10;

/// How often it is looked what else there is to do: while there are peers or readers; and at most while there are none,
/// after four times as long each time.
const LOOK: Duration = Duration::from_secs(1);
const IDLE_LOOK: Duration = Duration::from_secs(5 * 60);

/// How long trackers may take to hear that we leave.
const STOP_LIMIT: Duration = Duration::from_secs(2);

/// What work done elsewhere gives back to the task.
#[derive(Debug)]
pub(super) enum Done {
    /// In a box, as callers are: each torrent has a place for 32 of these and of those.
    Called(SocketAddr, Result<Box<Handshaken>, net::DialError>),
    Checked {
        piece: PieceIndex,
        verdict: Verdict,
        digests: Vec<u64>,
    },
    /// A block for an upload, read in the blocking pool.
    Read {
        peer: PeerKey,
        request: Request,
        data: Option<Bytes>,
    },
}

fn left(store: &TorrentStore, metainfo: &Metainfo) -> u64 {
    let lengths = metainfo.layout.lengths();
    let have: u64 = lengths.iter().filter(|piece| store.has(*piece)).map(|p| u64::from(lengths.len_of(p))).sum();
    lengths.total() - have
}

/// Everything the task listens to.
struct Inputs {
    inbox: mpsc::Receiver<(PeerKey, Incoming)>,
    done: mpsc::Receiver<Done>,
    commands: mpsc::Receiver<Command>,
    callers: mpsc::Receiver<Box<Handshaken>>,
    found: Found,
    /// Unbounded, for the store must not wait while it evicts; it holds each piece once at most between two turns.
    evicted: mpsc::UnboundedReceiver<PieceIndex>,
}

pub(super) struct Peer {
    pub(super) connection: Connection,
    pub(super) addr: SocketAddr,
    pub(super) transport: Transport,
    pub(super) encrypted: bool,
    pub(super) source: PeerSource,
    /// Said in this turn, sent at its end in one go; what its outbox has no place for waits here for a later turn.
    pub(super) outgoing: Vec<Message>,
    pub(super) extensions: Extensions,
}

pub(super) struct Driver {
    pub(super) swarm: Swarm,
    cache: Arc<Cache>,
    pub(super) store: Arc<TorrentStore>,
    pub(super) metainfo: Arc<Metainfo>,
    /// What we say first.
    ours: Handshake,
    /// Where others call us.
    port: AnnouncedPort,
    /// A private torrent's peers are its tracker's alone (BEP 27).
    pub(super) pex: bool,
    /// Others may be served at all.
    upload: bool,
    /// Nothing more is fetched, even if it is not all there (a partial seed, BEP 21).
    given: bool,
    dialer: Arc<Dialer>,
    pub(super) limits: Arc<Limits>,
    /// For peers' `port` messages; not of a private torrent.
    dht: Option<Arc<Dht>>,
    sources: Sources,
    transferred: Arc<Transferred>,
    pub(super) peers: HashMap<PeerKey, Peer>,
    pub(super) next_peer: u64,
    pub(super) introductions: Introductions,
    pub(super) origins: Origins,
    /// By the addresses that stand for them.
    pub(super) web_seeds: HashMap<SocketAddr, WebSeed>,
    seeding: Seeding,
    pub(super) partials: Partials,
    /// Port 0: every port of the address.
    banned: HashSet<SocketAddr>,
    /// Pieces being checked in the blocking pool.
    pub(super) working: usize,
    pub(super) inbox: mpsc::Sender<(PeerKey, Incoming)>,
    pub(super) done: mpsc::Sender<Done>,
    stats: watch::Sender<Stats>,
    /// When it is looked what else there is to do, and how long that took to come.
    look_at: Instant,
    look: Duration,
    share: Share,
    allowed: Allowed,
}

impl Driver {
    async fn run(&mut self, mut inputs: Inputs, closed: watch::Sender<bool>) {
        let mut stop = false;
        while !stop {
            self.flush();
            self.update_share();
            let wakeup = self.swarm.next_wakeup().map_or(self.look_at, |at| at.min(self.look_at));
            // Asked here, too: with messages always there the timer below would never be reached.
            if Instant::now() >= wakeup {
                self.tick();
            }
            tokio::select! {
                biased;
                // None: nobody holds the torrent any more.
                command = inputs.commands.recv() => stop |= command.is_none_or(|command| self.command(command)),
                Some(done) = inputs.done.recv() => self.finished(done),
                Some(piece) = inputs.evicted.recv() => self.hear(Event::Evicted(piece)),
                Some((source, addrs)) = inputs.found.recv() => {
                    self.update_allowed(Instant::now());
                    self.found(addrs, source);
                }
                Some(caller) = inputs.callers.recv() => self.connected(*caller, Direction::Incoming),
                Some((peer, incoming)) = inputs.inbox.recv() => self.incoming(peer, incoming),
                () = tokio::time::sleep_until(wakeup.into()) => {}
            }
            // What else is there already, so that one turn serves many messages.
            for _ in 0..HEAR_AT_ONCE {
                if let Ok(command) = inputs.commands.try_recv() {
                    stop |= self.command(command);
                } else if let Ok(done) = inputs.done.try_recv() {
                    self.finished(done);
                } else if let Ok((peer, incoming)) = inputs.inbox.try_recv() {
                    self.incoming(peer, incoming);
                } else if let Ok(piece) = inputs.evicted.try_recv() {
                    self.hear(Event::Evicted(piece));
                } else {
                    break;
                }
            }
        }
        self.stop(inputs, closed).await;
    }

    /// Blocked reads fail, peers go, pieces under way are finished, the state is saved.
    async fn stop(&mut self, mut inputs: Inputs, closed: watch::Sender<bool>) {
        closed.send_replace(true);
        self.peers.clear();
        inputs.inbox.close();
        self.update_transferred();
        let store = self.store.clone();
        let save = async {
            while self.working > 0 {
                match inputs.done.recv().await {
                    Some(Done::Checked { .. }) => self.working -= 1,
                    Some(_) => {}
                    None => break,
                }
            }
            let _ = tokio::task::spawn_blocking(move || store.close()).await;
        };
        tokio::join!(save, self.sources.stop(STOP_LIMIT));
        // Dropping `inputs.commands` tells whoever waits in `Torrent::stop`.
    }

    /// Tells the swarm, and does at once what it wants done: a wish must not be overtaken by a later event (a piece
    /// dropped and begun anew, above all).
    pub(super) fn hear(&mut self, event: Event) {
        self.swarm.handle(Instant::now(), event);
        self.act();
    }

    /// True when the task is to end.
    fn command(&mut self, command: Command) -> bool {
        match command {
            Command::Swarm(event) => {
                tracing::trace!(?event, "reader");
                self.hear(event);
            }
            Command::Progress(pieces, answer) => {
                let last_block = self.partials.last_block(pieces.into_iter());
                let _ = answer.send(Progress { last_block, sources: self.sources() });
            }
            Command::Report(answer) => drop(answer.send(self.report())),
            Command::Stop => return true,
        }
        false
    }

    /// What there is to fetch from, in words.
    fn sources(&self) -> String {
        let peers = match self.peers.len() {
            0 => "no peer connected".to_owned(),
            1 => "1 peer connected".to_owned(),
            n => format!("{n} peers connected"),
        };
        if self.swarm.is_paused() {
            return "the torrent is paused".into();
        }
        let fault = self.sources.fault().or_else(|| {
            self.web_seeds.values().find_map(|seed| Some(format!("web seed {}: {}", seed.url(), seed.fault()?)))
        });
        fault.map_or(peers.clone(), |error| format!("{peers}; {error}"))
    }

    fn incoming(&mut self, key: PeerKey, incoming: Incoming) {
        // What a peer said before it was let go.
        if !self.peers.contains_key(&key) {
            return;
        }
        match incoming {
            Incoming::Messages(messages) => messages.into_iter().for_each(|message| self.message(key, message)),
            Incoming::Sent(request) => self.hear(Event::Uploaded { peer: key, request, sent: true }),
            Incoming::Closed(why) => self.lost(key, &why),
        }
    }

    fn message(&mut self, key: PeerKey, message: Message) {
        let now = Instant::now();
        match message {
            Message::Piece { piece, begin, data } => {
                tracing::trace!(peer = key.0, piece, begin, "block came");
                if let Some(block) = self.swarm.block(now, key, piece, begin, data.len() as u32) {
                    self.partials.insert(now, &self.cache, block, &data);
                }
                self.act();
            }
            Message::Extended { id, payload } => self.extended(key, id, &payload),
            Message::Port(port) => {
                if let (Some(dht), Some(peer)) = (&self.dht, self.peers.get(&key)) {
                    dht.add_node(SocketAddr::new(peer.addr.ip(), port));
                }
                self.hear(Event::Message(key, message));
            }
            message => self.hear(Event::Message(key, message)),
        }
    }

    fn finished(&mut self, done: Done) {
        match done {
            Done::Called(_, Ok(handshaken)) => self.connected(*handshaken, Direction::Outgoing),
            Done::Called(addr, Err(error)) => {
                tracing::debug!(%addr, "cannot connect: {error}");
                self.hear(Event::ConnectFailed(addr));
                self.ask_for_rendezvous(addr);
            }
            Done::Checked { piece, verdict, digests } => {
                self.working -= 1;
                self.partials.remove(piece);
                let (good, bad_blocks) = match verdict {
                    Verdict::Good => (true, Vec::new()),
                    Verdict::Bad { blocks } => (false, blocks),
                };
                self.hear(Event::Checked { piece, good, bad_blocks, digests });
                // With the disk at fault and the memory full it may be gone already.
                if good && !self.store.has(piece) {
                    self.hear(Event::Evicted(piece));
                }
                self.update_room();
            }
            Done::Read { peer, request, data } => {
                self.upload(peer, request, data);
                self.act();
            }
        }
    }

    fn connected(&mut self, peer: Handshaken, direction: Direction) {
        let addr = peer.addr;
        if self.banned.contains(&addr) || self.banned.contains(&SocketAddr::new(addr.ip(), 0)) {
            // A call under way when the ban came is to be counted as ended.
            if direction == Direction::Outgoing {
                self.hear(Event::ConnectFailed(addr));
            }
            return;
        }
        self.update_allowed(Instant::now());
        let key = PeerKey(self.next_peer);
        self.next_peer += 1;
        let theirs = peer.theirs;
        let ours = self.ours;
        let (fast, extended) =
            (ours.reserved.fast() && theirs.reserved.fast(), ours.reserved.extended() && theirs.reserved.extended());
        tracing::debug!(?key, %addr, ?direction, stream = ?peer.stream, fast, extended, "peer connected");
        let pieces = self.metainfo.layout.lengths().pieces();
        let (transport, encrypted) = (peer.stream.transport(), peer.stream.encrypted());
        let connection = Connection::start(peer, pieces, self.limits.clone(), key, self.inbox.clone());
        let extensions = Extensions::new(Instant::now(), direction);
        let source = match direction {
            Direction::Incoming => PeerSource::Incoming,
            Direction::Outgoing => self.origins.of(addr),
        };
        let peer = Peer { connection, addr, transport, encrypted, source, outgoing: Vec::new(), extensions };
        self.peers.insert(key, peer);
        self.hear(Event::Connected { peer: key, addr, direction, id: theirs.peer_id, fast, extended });
        // The swarm's first message (what we have) is the first after the handshake; ours comes behind it.
        let metadata = Some(self.metainfo.info.len() as u32);
        let payload =
            extensions::greeting(addr, self.port.get(), metadata, self.pex, self.given || self.swarm.complete());
        let dht = self.dht.as_ref().filter(|_| theirs.reserved.dht()).map(|dht| Message::Port(dht.port()));
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.outgoing.extend(extended.then_some(Message::Extended { id: 0, payload }));
            peer.outgoing.extend(dht);
        }
    }

    fn lost(&mut self, key: PeerKey, why: &str) {
        if let Some(peer) = self.peers.remove(&key) {
            tracing::debug!(?key, addr = %peer.addr, "peer gone: {why}");
            self.introductions.forget(key);
            self.hear(Event::Disconnected(key));
        }
    }

    fn tick(&mut self) {
        let now = Instant::now();
        self.hear(Event::Tick);
        if now >= self.look_at {
            // A thousand torrents at rest are not to wake all at once.
            self.look_at = match self.look {
                LOOK => now + LOOK,
                look => self.share.beat(now + look.mul_f64(rand::random_range(0.75..1.25))),
            };
            self.look = (self.look * 4).min(IDLE_LOOK);
            self.update_allowed(now);
            self.update_transferred();
            self.update_room();
            self.update_serving(now);
            self.exchange_peers(now);
            let peers = self.peers.values().filter(|peer| !self.web_seeds.contains_key(&peer.addr)).count();
            if peers < FEW_PEERS && !self.swarm.complete() && !self.swarm.is_paused() {
                self.sources.want_peers(self.swarm.is_read(now));
            }
        }
    }

    fn update_transferred(&mut self) {
        let stats = self.swarm.stats(Instant::now());
        self.transferred.uploaded.store(stats.uploaded, Ordering::Relaxed);
        self.transferred.downloaded.store(stats.downloaded, Ordering::Relaxed);
        if stats.have != self.stats.borrow().have {
            self.transferred.left.store(left(&self.store, &self.metainfo), Ordering::Relaxed);
        }
        self.stats.send_replace(stats);
    }

    fn update_serving(&mut self, now: Instant) {
        let (stats, size) = (self.stats.borrow().clone(), self.metainfo.layout.lengths().total());
        let change = self.seeding.look(now, self.swarm.complete(), stats.uploaded, stats.downloaded, size);
        if let Some(serve) = change.filter(|_| self.upload) {
            tracing::info!(name = %self.metainfo.name, serve, "the limit of seeding decides");
            self.hear(Event::Serve(serve));
        }
    }

    /// Tells the other torrents what this one has; and stays awake while there is anything.
    fn update_share(&mut self) {
        let now = Instant::now();
        let (connections, partial, is_read) =
            (self.swarm.connections(), self.swarm.partial_bytes(), self.swarm.is_read(now));
        if is_read && !self.share.is_read() {
            // Whoever begins to read may have nobody to read from.
            self.look_at = now;
        }
        self.share.set(connections, partial, is_read);
        if (connections > 0 || is_read || self.working > 0) && self.look != LOOK {
            self.look = LOOK;
            self.look_at = self.look_at.min(now + LOOK);
        }
    }

    /// Hears what the other torrents leave.
    fn update_allowed(&mut self, now: Instant) {
        if self.swarm.is_blocked() && self.stats.borrow().down_rate > 0 {
            self.share.wait(now);
        }
        let allowed = self.share.allowed(now);
        if allowed != self.allowed || allowed.shed {
            let Allowed { peers, shed, partial, .. } = allowed;
            self.allowed = allowed;
            self.hear(Event::Share { peers, shed, max_partial: partial });
        }
    }

    fn update_room(&mut self) {
        let room = self.store.room().min(self.allowed.background);
        // What the swarm counts on shrinks with each piece that comes; the room itself may not have.
        if room != self.swarm.room() {
            self.hear(Event::Room(room));
        }
    }

    /// Sends each peer what was said to it in this turn.
    fn flush(&mut self) {
        let mut full = Vec::new();
        for (key, peer) in &mut self.peers {
            if peer.outgoing.is_empty() {
                continue;
            }
            if let Err(OutboxFull(unsent)) = peer.connection.outbox().send(std::mem::take(&mut peer.outgoing)) {
                if unsent.len() > MAX_UNSENT {
                    full.push(*key);
                }
                peer.outgoing = unsent;
            }
        }
        if full.is_empty() {
            return;
        }
        for key in full {
            self.lost(key, "it does not take what it is sent");
        }
        // What came of the loss.
        self.flush();
    }

    /// Tells the swarm from within [`Self::perform`]: the loop there goes on to what comes of it.
    pub(super) fn tell(&mut self, event: Event) {
        self.swarm.handle(Instant::now(), event);
    }

    pub(super) fn act(&mut self) {
        while let Some(action) = self.swarm.poll() {
            self.perform(action);
        }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Connect(addr) => self.call(addr),
            Action::Send(key, message) => {
                tracing::trace!(peer = key.0, ?message, "send");
                if let Some(peer) = self.peers.get_mut(&key) {
                    peer.outgoing.push(message);
                }
            }
            Action::Disconnect(key, why) => {
                if let Some(peer) = self.peers.remove(&key) {
                    match why {
                        Goodbye::Liar => match self.web_seeds.get(&peer.addr) {
                            Some(seed) => {
                                tracing::warn!(seed = %seed.url(), "web seed banned: it sent data that failed its hash");
                            }
                            None => {
                                tracing::warn!(addr = %peer.addr, "peer banned: it sent data that failed its hash");
                            }
                        },
                        why => tracing::debug!(?key, addr = %peer.addr, ?why, "peer let go"),
                    }
                }
            }
            Action::Ban(addr) => {
                self.banned.insert(addr);
            }
            Action::Upload(key, request) => self.read_for_upload(key, request),
            Action::Check { piece, digests } => self.check(piece, digests),
            Action::Drop(piece) => self.partials.remove(piece),
            Action::Pin(ranges) => self.store.pin(ranges),
            Action::Completed => {
                tracing::info!(name = %self.metainfo.name, "complete");
                self.update_transferred();
                self.sources.announcer.completed();
            }
        }
    }

    /// Calls a peer that is calling us at this moment.
    pub(super) fn punch(&mut self, addr: SocketAddr) {
        self.call(addr);
    }

    fn call(&mut self, addr: SocketAddr) {
        if let Some(seed) = self.web_seeds.get(&addr).cloned() {
            return self.connect_seed(&seed);
        }
        let (done, dialer) = (self.done.clone(), self.dialer.clone());
        let ours = self.ours;
        tokio::spawn(async move {
            tokio::select! {
                called = dialer.connect(addr, &ours) => {
                    let _ = done.send(Done::Called(addr, called.map(Box::new))).await;
                }
                // The torrent has ended.
                () = done.closed() => {}
            }
        });
    }
}
