//! From an info hash to a torrent: metadata from peers (BEP 9), before there is a swarm.
//!
//! Calls peers as trackers and other peers name them, asks those that have the metadata for it and takes the first
//! that hashes to what was asked for. The peers found on the way are kept for the torrent.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use super::extensions::{METADATA, PEX, greeting, may_name};
use super::sources::{Finders, Found, Sources};
use super::{Door, Session, SessionError, lock};
use crate::discovery::Transferred;
use crate::metainfo::{MAX_PIECES, Magnet, Metainfo, MetainfoError};
use crate::net::{Connection, DialError, Handshaken, Incoming};
use crate::swarm::{MetadataAction, MetadataFetch, PeerKey};
use crate::wire::{ExtensionHandshake, Message, MetadataMessage, Pex, UT_METADATA};

/// Peers connected at a time, and being called.
const MAX_PEERS: usize = 50;
const MAX_CALLING: usize = 25;
/// Addresses kept.
const MAX_ADDRS: usize = 2000;
/// A peer that has said nothing of metadata for so long makes place.
const MUTE: Duration = Duration::from_secs(15);
/// An address that failed is called again after this.
const AGAIN: Duration = Duration::from_secs(15);
/// Bytes that we say are left: unknown, but not nothing.
const SOME: u64 = 16 << 10;

/// How far the fetching of metadata has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MetadataProgress {
    /// Addresses found.
    pub found: usize,
    /// Peers connected.
    pub peers: usize,
    /// Pieces of 16 KiB that are here.
    pub had: usize,
    /// Of how many; 0: not known yet.
    pub pieces: usize,
}

/// Why there is no metadata.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    /// Nobody gave it in time.
    #[error("no metadata within {}: {why}", humantime::format_duration(*.limit))]
    TimedOut {
        /// The time given.
        limit: Duration,
        /// How far it came.
        why: String,
    },
    /// It is what the info hash names, and yet no torrent that can be used.
    #[error(transparent)]
    Metainfo(#[from] MetainfoError),
    /// The torrent is here already, or the session is ending.
    #[error(transparent)]
    Session(#[from] SessionError),
}

impl Session {
    /// Fetches the metadata that a magnet link names: the torrent, and peers found on the way. Dropping the future ends
    /// it.
    pub async fn resolve(
        &self,
        magnet: &Magnet,
        peers: Vec<SocketAddr>,
        limit: Duration,
        progress: &watch::Sender<MetadataProgress>,
    ) -> Result<(Metainfo, Vec<SocketAddr>), MetadataError> {
        let (door, callers) = mpsc::channel(16);
        let _door = {
            let mut doors = lock(&self.doors.torrents);
            if doors.get(&magnet.info_hash).is_some_and(|door| door.is_torrent) {
                return Err(SessionError::Twice(magnet.info_hash).into());
            }
            doors.insert(magnet.info_hash, Door { callers: door.clone(), is_torrent: false });
            OpenDoor { session: self, magnet, callers: door }
        };
        let (finders, found) = Finders::channel();
        let transferred = Arc::new(Transferred::default());
        transferred.left.store(SOME, Ordering::Relaxed);
        let tiers = magnet.trackers.iter().map(|url| vec![url.clone()]).collect();
        // Whether it is private is not known yet. Who publishes a link means it to be found.
        let looking = Sources::start(self, magnet.info_hash, tiers, false, transferred, finders);
        let (inbox_tx, inbox) = mpsc::channel(64);
        let (called_tx, called) = mpsc::channel(64);
        let mut resolver = Resolver {
            session: self,
            magnet,
            fetch: MetadataFetch::new(magnet.info_hash),
            waiting: VecDeque::new(),
            known: HashSet::new(),
            good: Vec::new(),
            peers: HashMap::new(),
            calling: 0,
            next_peer: 0,
            inbox: inbox_tx,
            called: called_tx,
        };
        resolver.found(peers);
        let inputs = Inputs { inbox, called, callers, found };
        let done = tokio::time::timeout(limit, resolver.run(inputs, progress)).await;
        let info = done.map_err(|_| MetadataError::TimedOut { limit, why: resolver.why(&looking) })?;
        Ok((magnet.metainfo(&info)?, resolver.addresses()))
    }
}

/// Takes the door away again, however it ends; unless another has taken it over.
struct OpenDoor<'a> {
    session: &'a Session,
    magnet: &'a Magnet,
    callers: mpsc::Sender<Box<Handshaken>>,
}

impl Drop for OpenDoor<'_> {
    fn drop(&mut self) {
        let mut doors = lock(&self.session.doors.torrents);
        if doors.get(&self.magnet.info_hash).is_some_and(|door| door.callers.same_channel(&self.callers)) {
            doors.remove(&self.magnet.info_hash);
        }
    }
}

struct Inputs {
    inbox: mpsc::Receiver<(PeerKey, Incoming)>,
    called: mpsc::Receiver<(SocketAddr, Result<Handshaken, DialError>)>,
    callers: mpsc::Receiver<Box<Handshaken>>,
    found: Found,
}

struct Peer {
    connection: Connection,
    addr: SocketAddr,
    since: Instant,
    /// Their number of `ut_metadata`; 0: not said, or not had.
    metadata: u8,
}

struct Resolver<'a> {
    session: &'a Session,
    magnet: &'a Magnet,
    fetch: MetadataFetch,
    /// To be called, and when at the earliest.
    waiting: VecDeque<(Instant, SocketAddr)>,
    known: HashSet<SocketAddr>,
    /// Those that answered.
    good: Vec<SocketAddr>,
    peers: HashMap<PeerKey, Peer>,
    calling: usize,
    next_peer: u64,
    inbox: mpsc::Sender<(PeerKey, Incoming)>,
    called: mpsc::Sender<(SocketAddr, Result<Handshaken, DialError>)>,
}

impl Resolver<'_> {
    async fn run(&mut self, mut inputs: Inputs, progress: &watch::Sender<MetadataProgress>) -> Bytes {
        let mut second = tokio::time::interval(Duration::from_secs(1));
        loop {
            self.call();
            let (had, pieces) = self.fetch.progress();
            let now = MetadataProgress { found: self.known.len(), peers: self.peers.len(), had, pieces };
            progress.send_if_modified(|shown| std::mem::replace(shown, now) != now);
            tokio::select! {
                Some((key, incoming)) = inputs.inbox.recv() => {
                    if let Some(info) = self.incoming(key, incoming) {
                        return info;
                    }
                }
                Some((addr, called)) = inputs.called.recv() => {
                    self.calling -= 1;
                    match called {
                        Ok(peer) => {
                            self.good.push(addr);
                            self.connected(peer);
                        }
                        Err(error) => {
                            tracing::debug!(%addr, "cannot connect: {error}");
                            self.waiting.push_back((Instant::now() + AGAIN, addr));
                        }
                    }
                }
                Some(caller) = inputs.callers.recv() => self.connected(*caller),
                Some((_, addrs)) = inputs.found.recv() => self.found(addrs),
                _ = second.tick() => self.tick(),
            }
            self.ask();
        }
    }

    fn found(&mut self, addrs: Vec<SocketAddr>) {
        for addr in addrs {
            if self.known.len() < MAX_ADDRS && self.known.insert(addr) {
                self.waiting.push_front((Instant::now(), addr));
            }
        }
    }

    /// Calls who waits to be called, as far as there is place.
    fn call(&mut self) {
        let now = Instant::now();
        while self.calling < MAX_CALLING && self.calling + self.peers.len() < MAX_PEERS {
            let Some(next) = self.waiting.iter().position(|(at, _)| *at <= now) else { return };
            let Some((_, addr)) = self.waiting.remove(next) else { return };
            self.calling += 1;
            let (called, dialer) = (self.called.clone(), self.session.dialer.clone());
            let ours = self.session.doors.handshake(self.magnet.info_hash);
            tokio::spawn(async move {
                let outcome = dialer.connect(addr, &ours).await;
                let _ = called.send((addr, outcome)).await;
            });
        }
    }

    fn connected(&mut self, peer: Handshaken) {
        let (addr, theirs) = (peer.addr, peer.theirs);
        // Ourselves, a peer without extensions, or one too many.
        let useless = theirs.peer_id == self.session.peer_id || !theirs.reserved.extended();
        if useless || self.peers.len() >= MAX_PEERS {
            return;
        }
        let key = PeerKey(self.next_peer);
        self.next_peer += 1;
        let limits = self.session.config.limits.clone();
        let connection = Connection::start(peer, MAX_PIECES, limits, key, self.inbox.clone());
        // Of a torrent that is not known it is not known whether it is private, either: no peer is named to others.
        let hello = Message::Extended {
            id: 0,
            payload: greeting(addr, self.session.announced.get(), None, self.session.config.pex, false),
        };
        let nothing = theirs.reserved.fast().then_some(Message::HaveNone);
        let _ = connection.outbox().send(nothing.into_iter().chain([hello]).collect());
        self.peers.insert(key, Peer { connection, addr, since: Instant::now(), metadata: 0 });
    }

    /// `Some`: the metadata.
    fn incoming(&mut self, key: PeerKey, incoming: Incoming) -> Option<Bytes> {
        match incoming {
            Incoming::Messages(messages) => messages.into_iter().find_map(|message| self.message(key, message)),
            Incoming::Sent(_) => None,
            Incoming::Closed(why) => {
                tracing::debug!(?key, "peer gone: {why}");
                self.drop_peer(key);
                None
            }
        }
    }

    fn message(&mut self, key: PeerKey, message: Message) -> Option<Bytes> {
        let Message::Extended { id, payload } = message else { return None };
        let peer = self.peers.get_mut(&key)?;
        let now = Instant::now();
        match id {
            0 => {
                let theirs = ExtensionHandshake::decode(&payload).ok()?;
                peer.metadata = theirs.extensions.get(UT_METADATA).copied().unwrap_or(0);
                if let Some(size) = theirs.metadata_size.filter(|_| peer.metadata != 0) {
                    self.fetch.offered(now, key, size);
                }
                None
            }
            METADATA => match MetadataMessage::decode(&payload).ok()?? {
                MetadataMessage::Data { piece, total, data } => self.fetch.data(now, key, piece, total, data),
                MetadataMessage::Reject { piece } => {
                    self.fetch.rejected(now, key, piece);
                    None
                }
                MetadataMessage::Request { piece } => {
                    let payload = MetadataMessage::Reject { piece }.encode();
                    let _ = peer.connection.outbox().send(vec![Message::Extended { id: peer.metadata, payload }]);
                    None
                }
            },
            PEX if self.session.config.pex => {
                let from = peer.addr.ip();
                let named = Pex::decode(&payload).ok()?.added.into_iter().map(|(addr, _)| addr);
                self.found(named.filter(|addr| may_name(from, addr.ip())).collect());
                None
            }
            _ => None,
        }
    }

    /// Who says nothing of metadata makes place for others.
    fn tick(&mut self) {
        let now = Instant::now();
        self.fetch.tick(now);
        let crowded = self.peers.len() + self.calling >= MAX_PEERS;
        let mute = |peer: &Peer| peer.metadata == 0 && now.saturating_duration_since(peer.since) > MUTE;
        if crowded && let Some(key) = self.peers.iter().find(|(_, peer)| mute(peer)).map(|(key, _)| *key) {
            self.drop_peer(key);
        }
    }

    fn ask(&mut self) {
        while let Some(action) = self.fetch.poll() {
            match action {
                MetadataAction::Ask(key, piece) => {
                    let Some(peer) = self.peers.get(&key) else { continue };
                    let payload = MetadataMessage::Request { piece }.encode();
                    // A peer whose outbox is full is late, and another one is asked.
                    let _ = peer.connection.outbox().send(vec![Message::Extended { id: peer.metadata, payload }]);
                }
                MetadataAction::Ban(key) => {
                    if let Some(peer) = self.peers.remove(&key) {
                        tracing::warn!(addr = %peer.addr, "peer let go: it sent metadata of another torrent");
                        self.good.retain(|addr| *addr != peer.addr);
                    }
                }
            }
        }
    }

    fn drop_peer(&mut self, key: PeerKey) {
        if let Some(peer) = self.peers.remove(&key) {
            self.fetch.gone(Instant::now(), key);
            if self.good.contains(&peer.addr) {
                self.waiting.push_back((Instant::now() + AGAIN, peer.addr));
            }
        }
    }

    /// Those that answered first.
    fn addresses(self) -> Vec<SocketAddr> {
        let rest: Vec<SocketAddr> = self.known.iter().filter(|addr| !self.good.contains(addr)).copied().collect();
        self.good.into_iter().chain(rest).collect()
    }

    /// How far it came, in words.
    fn why(&self, looking: &Sources) -> String {
        let (had, pieces) = self.fetch.progress();
        if pieces > 0 {
            return format!("{had} of {pieces} pieces came, from {} peers", self.peers.len());
        }
        if !self.good.is_empty() {
            return format!("none of {} peers has it", self.good.len());
        }
        if !self.known.is_empty() {
            return format!("none of {} peers answers", self.known.len());
        }
        looking.fault().map_or_else(|| "no peers found".to_owned(), |fault| format!("no peers found; {fault}"))
    }
}
