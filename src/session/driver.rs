//! The task that owns one torrent's `Swarm`.
//!
//! One loop: wait for anything, hear all that is there, do what the swarm says, flush what was said to each peer. It
//! never waits for a peer or a disk: outboxes are tried, hashing and disk work go to the blocking pool.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use crate::discovery::{AnnouncedPort, Dht, Transferred};
use crate::metainfo::{Metainfo, PieceIndex, Verdict};
use crate::net::{self, Connection, Dialer, Handshaken, Incoming, Limits, OutboxFull, Transport};
use crate::store::{self, Cache, Place, TorrentSpec, TorrentStore};
use crate::swarm::{self, Action, Direction, Event, Goodbye, PeerKey, Stats, Swarm};
use crate::webseed::WebSeed;
use crate::wire::{Handshake, Message, Request};

use super::extensions::{self, Extensions};
use super::holepunch::Introductions;
use super::partial::Partials;
use super::seeding::Seeding;
use super::sources::Sources;
use super::torrent::{Command, Progress};
use super::{Session, SessionError, Torrent, TorrentOptions};

/// Batches of messages from all peers that may wait for the task; a batch is at most one receive buffer.
const INBOX: usize = 64;

/// Commands from readers that may wait for the task.
const COMMANDS: usize = 4096;

/// Things heard before the swarm's wishes are carried out.
const HEAR_AT_ONCE: usize = 32;

/// Messages that wait for a peer's outbox; a peer that is so far behind is let go.
const MAX_UNSENT: usize = 4096;

/// Connections of one torrent, and half-open ones.
const MAX_PEERS: usize = 100;
const MAX_CONNECTING: usize = 16;

/// With fewer, trackers are asked for more before their interval is over, as far as they allow.
const FEW_PEERS: usize = 10;

/// Bytes of pieces under way.
const MAX_PARTIAL: u64 = 32 << 20;

/// How long trackers may take to hear that we leave.
const STOP_LIMIT: Duration = Duration::from_secs(2);

/// What work done elsewhere gives back to the task.
#[derive(Debug)]
pub(super) enum Done {
    Called(SocketAddr, Result<Handshaken, net::DialError>),
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

/// Opens the torrent's part of the cache and starts its task.
pub(super) async fn start(
    session: &Session,
    metainfo: Arc<Metainfo>,
    options: TorrentOptions,
    callers: mpsc::Receiver<Handshaken>,
) -> Result<Arc<Torrent>, SessionError> {
    let (evicted_tx, evicted) = mpsc::unbounded_channel();
    let progress = options.progress.map(|tell| Box::new(tell) as store::Progress);
    // The user's own files: nothing is fetched, for there is nowhere to put it.
    let given = matches!(options.place, Place::Seed(_));
    let spec = TorrentSpec { verify: options.verify, place: options.place, progress, ..TorrentSpec::from(&*metainfo) };
    let cache = session.config.cache.clone();
    let opening = tokio::task::spawn_blocking(move || {
        cache.add(
            spec,
            Box::new(move |piece| {
                let _ = evicted_tx.send(piece);
            }),
        )
    });
    let store = opening.await.map_err(|_| SessionError::Ending)??;
    let have = store.have();
    if options.whole && !have.is_full() {
        return Err(SessionError::Incomplete(have));
    }

    let lengths = *metainfo.layout.lengths();
    let transferred = Arc::new(Transferred::default());
    let (found_tx, found) = mpsc::channel(16);
    let config = swarm::Config {
        lengths,
        seed: rand::random(),
        our_id: session.peer_id,
        info_hash: metainfo.info_hash,
        on_demand: options.on_demand || given,
        upload: session.config.upload,
        super_seed: options.super_seed,
        max_peers: MAX_PEERS,
        max_connecting: MAX_CONNECTING,
        max_partial: MAX_PARTIAL,
        order: swarm::PickOrder::RarestFirst,
    };
    transferred.left.store(left(&store, &metainfo), Ordering::Relaxed);
    let swarm = Swarm::new(config, have, Instant::now());
    let sources = Sources::start(
        session,
        metainfo.info_hash,
        metainfo.trackers.clone(),
        metainfo.private,
        transferred.clone(),
        found_tx,
    );
    if let Some(dht) = session.dht.as_ref().filter(|_| !metainfo.private) {
        metainfo.nodes.iter().for_each(|(host, port)| dht.add_host(host, *port));
    }

    let (inbox_tx, inbox) = mpsc::channel(INBOX);
    let (done_tx, done) = mpsc::channel(INBOX);
    let (commands_tx, commands) = mpsc::channel(COMMANDS);
    let (closed_tx, closed) = watch::channel(false);
    let (stats_tx, stats) = watch::channel(Stats::default());
    let announcer = sources.announcer.clone();
    let seeds = WebSeed::all(&metainfo, session.http());
    let mut driver = Driver {
        swarm,
        cache: session.config.cache.clone(),
        store: store.clone(),
        metainfo: metainfo.clone(),
        ours: session.doors.handshake(metainfo.info_hash),
        port: session.announced.clone(),
        pex: session.config.pex && !metainfo.private,
        upload: session.config.upload,
        given,
        dialer: session.dialer.clone(),
        limits: session.config.limits.clone(),
        dht: session.dht.clone().filter(|_| !metainfo.private),
        sources,
        transferred,
        peers: HashMap::new(),
        next_peer: 0,
        introductions: Introductions::new(Instant::now()),
        web_seeds: seeds.into_iter().map(|seed| (seed.addr(), seed)).collect(),
        seeding: Seeding::new(session.config.seed),
        partials: Partials::new(lengths),
        banned: HashSet::new(),
        working: 0,
        inbox: inbox_tx,
        done: done_tx,
        stats: stats_tx,
        stats_at: Instant::now(),
        room: u64::MAX,
    };
    driver.hear(Event::PeersFound(options.peers));
    // By addresses that stand for no host: the swarm calls them as it calls peers, and backs off alike.
    driver.hear(Event::PeersFound(driver.web_seeds.keys().copied().collect()));
    let inputs = Inputs { inbox, done, commands, callers, found, evicted };
    tokio::spawn(async move {
        driver.run(inputs, closed_tx).await;
    });
    Ok(Arc::new(Torrent {
        metainfo,
        store,
        commands: commands_tx,
        stats,
        announcer,
        closed,
        read_timeout: session.config.read_timeout,
        runtime: tokio::runtime::Handle::current(),
        next_id: AtomicU64::new(0),
        stopping: AtomicBool::new(false),
    }))
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
    callers: mpsc::Receiver<Handshaken>,
    found: mpsc::Receiver<Vec<SocketAddr>>,
    /// Unbounded, for the store must not wait while it evicts; it holds each piece once at most between two turns.
    evicted: mpsc::UnboundedReceiver<PieceIndex>,
}

pub(super) struct Peer {
    pub(super) connection: Connection,
    pub(super) addr: SocketAddr,
    pub(super) transport: Transport,
    pub(super) encrypted: bool,
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
    stats_at: Instant,
    room: u64,
}

impl Driver {
    async fn run(&mut self, mut inputs: Inputs, closed: watch::Sender<bool>) {
        let mut stop = false;
        while !stop {
            self.flush();
            let wakeup = self.swarm.next_wakeup().map_or(self.stats_at, |at| at.min(self.stats_at));
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
                Some(addrs) = inputs.found.recv() => self.hear(Event::PeersFound(addrs)),
                Some(caller) = inputs.callers.recv() => self.connected(caller, Direction::Incoming),
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
            Done::Called(_, Ok(handshaken)) => self.connected(handshaken, Direction::Outgoing),
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
        self.peers.insert(key, Peer { connection, addr, transport, encrypted, outgoing: Vec::new(), extensions });
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
        if now >= self.stats_at {
            self.stats_at = now + Duration::from_secs(1);
            self.update_transferred();
            self.update_room();
            self.update_serving(now);
            self.exchange_peers(now);
            let peers = self.peers.values().filter(|peer| !self.web_seeds.contains_key(&peer.addr)).count();
            if peers < FEW_PEERS && !self.swarm.complete() {
                self.sources.want_peers();
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

    fn update_room(&mut self) {
        let room = self.store.room();
        if room != self.room {
            self.room = room;
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
                    let _ = done.send(Done::Called(addr, called)).await;
                }
                // The torrent has ended.
                () = done.closed() => {}
            }
        });
    }
}
