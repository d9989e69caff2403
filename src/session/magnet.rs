//! Fetching the metadata of a magnet link: the I/O of a [`Resolver`].

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use super::context::Context;
use super::error::SessionError;
use super::registry::{Call, IncomingConnections};
use super::sources::{Finders, Found, Sources, tracker_fault};
use crate::discovery::Transferred;
use crate::metainfo::{InfoHash, MAX_PIECES, Magnet, Metainfo, MetainfoError};
use crate::net::{Connection, DialError, Handshaken, Incoming};
use crate::swarm::{
    Direction, DisconnectReason, MetadataProgress, NewPeer, PeerKey, PeerSource, Resolver, ResolverAction,
    ResolverConfig, ResolverEvent,
};

/// Maximum number of messages from peers, and of dialed connections, waiting to be handled.
const QUEUE: usize = 64;
/// The bytes left that trackers are told: the size is unknown, and 0 would make us a seed.
const ASSUMED_LEFT: u64 = 16 << 10;
/// Interval of the resolver's timer.
const TICK: Duration = Duration::from_secs(1);

/// Why there is no metadata.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    /// No peer sent it in time.
    #[error("no metadata within {}: {why}", humantime::format_duration(*.limit))]
    TimedOut {
        /// The time limit.
        limit: Duration,
        /// How far the search has come, and what stopped it.
        why: String,
    },
    /// It matches the info hash, but is not a torrent that can be used.
    #[error(transparent)]
    Metainfo(#[from] MetainfoError),
    /// The torrent is in the session already, or the session is ending.
    #[error(transparent)]
    Session(#[from] SessionError),
}

/// Fetches the metadata that a magnet link names. Returns the torrent, and the addresses of peers found on the way.
pub(super) async fn resolve(
    context: &Context,
    magnet: &Magnet,
    peers: Vec<SocketAddr>,
    limit: Duration,
    progress: &watch::Sender<MetadataProgress>,
) -> Result<(Metainfo, Vec<SocketAddr>), MetadataError> {
    let (_registration, incoming) = context.registry.add_resolver(magnet.info_hash)?;
    let (finders, found) = Finders::channel();
    let transferred = Arc::new(Transferred::default());
    transferred.left.store(ASSUMED_LEFT, Ordering::Relaxed);
    let tiers = magnet.trackers.iter().map(|url| vec![url.clone()]).collect();
    // Whether the torrent is private is not known yet. The author of a link wants it to be found.
    let sources = Sources::start(context, magnet.info_hash, tiers, false, transferred, finders);
    let (info_hash, our_id, pex) = (magnet.info_hash, context.peer_id, context.config.pex);
    let (inbox_tx, inbox) = mpsc::channel(QUEUE);
    let (dialed_tx, dialed) = mpsc::channel(QUEUE);
    let mut driver = ResolverDriver {
        context,
        info_hash,
        resolver: Resolver::new(ResolverConfig {
            info_hash,
            our_id,
            pex,
            seed: rand::random(),
            policy: Arc::default(),
        }),
        peers: HashMap::new(),
        next_peer: 0,
        inbox: inbox_tx,
        dialed: dialed_tx,
    };
    let inputs = Inputs { inbox, dialed, incoming, found };
    // The time that the process sleeps does not count.
    let expired = context.clock.sleep_until(context.clock.after(limit));
    let done = tokio::select! {
        info = driver.run(peers, inputs, progress) => Some(info),
        () = expired => None,
    };
    let info = done.ok_or_else(|| {
        let why = describe(&driver.resolver.progress(), tracker_fault(&sources.announcer));
        MetadataError::TimedOut { limit, why }
    })?;
    Ok((magnet.metainfo(&info)?, driver.resolver.into_addresses()))
}

/// Describes how far the search has come.
fn describe(progress: &MetadataProgress, fault: Option<String>) -> String {
    let MetadataProgress { found, answered, peers, received, pieces } = *progress;
    if pieces > 0 {
        return format!("{received} of {pieces} pieces received, from {peers} peers");
    }
    if answered > 0 {
        return format!("none of {answered} peers has it");
    }
    if found > 0 {
        return format!("none of {found} peers answers");
    }
    fault.map_or_else(|| "no peers found".to_owned(), |fault| format!("no peers found; {fault}"))
}

/// Everything that the driver waits for.
struct Inputs {
    inbox: mpsc::Receiver<(PeerKey, Incoming)>,
    dialed: mpsc::Receiver<(SocketAddr, Result<Handshaken, DialError>)>,
    incoming: IncomingConnections,
    found: Found,
}

/// Does for a resolver everything that is I/O.
struct ResolverDriver<'a> {
    context: &'a Context,
    info_hash: InfoHash,
    resolver: Resolver,
    peers: HashMap<PeerKey, (SocketAddr, Connection)>,
    next_peer: u64,
    inbox: mpsc::Sender<(PeerKey, Incoming)>,
    dialed: mpsc::Sender<(SocketAddr, Result<Handshaken, DialError>)>,
}

impl ResolverDriver<'_> {
    /// Runs until the metadata is there.
    async fn run(
        &mut self,
        peers: Vec<SocketAddr>,
        mut inputs: Inputs,
        progress: &watch::Sender<MetadataProgress>,
    ) -> Bytes {
        let mut timer = tokio::time::interval(TICK);
        let mut done = self.dispatch(ResolverEvent::PeersFound { addrs: peers, source: PeerSource::Manual });
        loop {
            if let Some(info) = done {
                return info;
            }
            let now = self.resolver.progress();
            progress.send_if_modified(|shown| std::mem::replace(shown, now) != now);
            done = tokio::select! {
                Some((key, incoming)) = inputs.inbox.recv() => self.incoming(key, incoming),
                Some((addr, dialed)) = inputs.dialed.recv() => match dialed {
                    Ok(peer) => self.connected(peer, Direction::Outgoing),
                    Err(error) => {
                        tracing::debug!(%addr, "cannot connect: {error}");
                        self.dispatch(ResolverEvent::ConnectFailed(addr))
                    }
                },
                Some(call) = inputs.incoming.recv() => match call {
                    Call::Connected(peer) => self.connected(*peer, Direction::Incoming),
                    Call::Refused(addr) => self.dispatch(ResolverEvent::Refused(addr)),
                },
                Some((source, addrs)) = inputs.found.recv() => {
                    self.dispatch(ResolverEvent::PeersFound { addrs, source })
                }
                _ = timer.tick() => self.dispatch(ResolverEvent::Tick),
            };
        }
    }

    /// Passes an event to the resolver and carries out its actions. Returns the metadata if it is complete.
    fn dispatch(&mut self, event: ResolverEvent) -> Option<Bytes> {
        self.resolver.handle(self.context.clock.now(), event);
        while let Some(action) = self.resolver.poll() {
            match action {
                ResolverAction::Connect(addr) => self.dial(addr),
                ResolverAction::Send(key, message) => {
                    if let Some((_, connection)) = self.peers.get(&key) {
                        // To the resolver, a peer whose outbox is full is one that does not answer.
                        let _ = connection.outbox().send(vec![message]);
                    }
                }
                ResolverAction::Disconnect(key, reason) => {
                    let Some((addr, _)) = self.peers.remove(&key) else { continue };
                    match reason {
                        DisconnectReason::Liar => {
                            tracing::warn!(%addr, "peer disconnected: it sent metadata of another torrent");
                        }
                        reason => tracing::debug!(?key, %addr, ?reason, "peer disconnected"),
                    }
                }
                ResolverAction::Resolved(info) => return Some(info),
            }
        }
        None
    }

    fn dial(&self, addr: SocketAddr) {
        let (dialed, dialer) = (self.dialed.clone(), self.context.dialer.clone());
        let ours = self.context.registry.handshake(self.info_hash);
        tokio::spawn(async move {
            let outcome = dialer.connect(addr, &ours).await;
            let _ = dialed.send((addr, outcome)).await;
        });
    }

    fn connected(&mut self, peer: Handshaken, direction: Direction) -> Option<Bytes> {
        let (addr, theirs) = (peer.addr, peer.theirs);
        let key = PeerKey(self.next_peer);
        self.next_peer += 1;
        let new = NewPeer {
            fast: theirs.reserved.fast(),
            extended: theirs.reserved.extended(),
            our_port: self.context.announced.get(),
            ..NewPeer::new(key, addr, direction, theirs.peer_id)
        };
        let limits = self.context.config.limits.clone();
        let connection = Connection::start(peer, MAX_PIECES, limits, key, self.inbox.clone());
        self.peers.insert(key, (addr, connection));
        self.dispatch(ResolverEvent::Connected(new))
    }

    fn incoming(&mut self, key: PeerKey, incoming: Incoming) -> Option<Bytes> {
        // The peer may have been disconnected since.
        if !self.peers.contains_key(&key) {
            return None;
        }
        match incoming {
            Incoming::Messages(messages) => {
                messages.into_iter().find_map(|message| self.dispatch(ResolverEvent::Message(key, message)))
            }
            Incoming::Sent(_) | Incoming::ExtensionsSent(_) => None,
            Incoming::Closed(why) => {
                tracing::debug!(?key, "connection lost: {why}");
                self.peers.remove(&key);
                self.dispatch(ResolverEvent::Disconnected(key))
            }
        }
    }
}
