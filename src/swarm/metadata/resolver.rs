//! From an info hash to the torrent's metadata: finds peers, asks those that have the metadata for it, and takes the
//! first that matches the hash.
//!
//! Sans-io, and driven like [`Swarm`](crate::swarm::Swarm). Everything is bounded: connections, connection attempts,
//! addresses. The addresses found on the way are kept for the torrent's swarm.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::FetchAction;
use super::fetch::MetadataFetch;
use crate::metainfo::InfoHash;
use crate::swarm::action::DisconnectReason;
use crate::swarm::addresses::Addresses;
use crate::swarm::event::{Direction, NewPeer, PeerKey, PeerSource};
use crate::swarm::peer::extensions::{METADATA, PEX, our_handshake};
use crate::swarm::peer::pex::{PeerExchange, may_share};
use crate::swarm::policy::Policy;
use crate::wire::{ExtensionHandshake, Message, MetadataMessage, PeerId, Pex, UT_METADATA};

/// Maximum number of connections: enough to find the few peers that answer quickly.
const MAX_PEERS: usize = 50;

/// Settings of a resolver.
#[derive(Clone, Debug)]
pub struct ResolverConfig {
    /// The info hash that the metadata must have.
    pub info_hash: InfoHash,
    /// Our own id: a peer with the same id is ourselves.
    pub our_id: PeerId,
    /// Take addresses from peers (BEP 11). None are sent, because the torrent may turn out to be private.
    pub pex: bool,
    /// Seed of the random order of dialing.
    pub seed: u64,
    /// How many addresses are dialed and pieces requested at a time.
    pub policy: Arc<Policy>,
}

/// Something that happened, reported by the driver.
#[derive(Debug)]
pub enum ResolverEvent {
    /// Time has passed. Due once a second.
    Tick,
    /// Peers' addresses to try.
    PeersFound {
        /// The addresses.
        addrs: Vec<SocketAddr>,
        /// Where they came from.
        source: PeerSource,
    },
    /// A peer called us and was refused, because it did not use the encryption that is required; port 0: its own is not
    /// known.
    Refused(SocketAddr),
    /// `ResolverAction::Connect` failed.
    ConnectFailed(SocketAddr),
    /// A connection was made, by whichever side.
    Connected(NewPeer),
    /// The connection is gone, by whichever side.
    Disconnected(PeerKey),
    /// A message.
    Message(PeerKey, Message),
}

/// An instruction to the driver.
#[derive(Debug, PartialEq)]
pub enum ResolverAction {
    /// Open a connection; answer with `Connected` or `ConnectFailed`.
    Connect(SocketAddr),
    /// Send one message.
    Send(PeerKey, Message),
    /// Close the connection; no `Disconnected` follows.
    Disconnect(PeerKey, DisconnectReason),
    /// The metadata, with the right hash. Nothing more has to be done.
    Resolved(Bytes),
}

/// The progress of a resolver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MetadataProgress {
    /// Addresses found.
    pub found: usize,
    /// Addresses at which a peer has answered.
    pub answered: usize,
    /// Connections.
    pub peers: usize,
    /// Metadata pieces of 16 KiB received.
    pub received: usize,
    /// Metadata pieces in all; 0 if not known yet.
    pub pieces: usize,
}

#[derive(Debug)]
struct Peer {
    addr: SocketAddr,
    since: Instant,
    /// Its number of `ut_metadata`; 0: not stated, or not supported.
    metadata: u8,
    exchange: PeerExchange,
}

/// Fetches the metadata of one torrent. See the module's documentation.
#[derive(Debug)]
pub struct Resolver {
    config: ResolverConfig,
    fetch: MetadataFetch,
    addresses: Addresses,
    /// Addresses at which a peer answered, in order.
    answered: Vec<SocketAddr>,
    peers: BTreeMap<PeerKey, Peer>,
    actions: VecDeque<ResolverAction>,
}

impl Resolver {
    /// Returns a resolver that knows nothing but the info hash.
    pub fn new(config: ResolverConfig) -> Self {
        Self {
            fetch: MetadataFetch::new(config.info_hash, config.policy.clone()),
            addresses: Addresses::new(config.seed),
            config,
            answered: Vec::new(),
            peers: BTreeMap::new(),
            actions: VecDeque::new(),
        }
    }

    /// Handles an event.
    pub fn handle(&mut self, now: Instant, event: ResolverEvent) {
        match event {
            ResolverEvent::Tick => self.tick(now),
            ResolverEvent::PeersFound { addrs, source } => self.found(now, addrs, source),
            ResolverEvent::Refused(addr) => self.addresses.refused(now, addr),
            ResolverEvent::ConnectFailed(addr) => self.addresses.failed(now, addr),
            ResolverEvent::Connected(peer) => self.connected(now, &peer),
            ResolverEvent::Disconnected(key) => self.remove(now, key),
            ResolverEvent::Message(key, message) => self.message(now, key, message),
        }
        self.request(now);
        self.dial_more(now);
    }

    /// Returns the next thing to do, until `None`.
    pub fn poll(&mut self) -> Option<ResolverAction> {
        self.actions.pop_front()
    }

    /// Returns how far the search has come.
    pub fn progress(&self) -> MetadataProgress {
        let (received, pieces) = self.fetch.progress();
        let (found, answered, peers) = (self.addresses.len(), self.answered.len(), self.peers.len());
        MetadataProgress { found, answered, peers, received, pieces }
    }

    /// Returns the addresses found, those at which a peer answered first.
    pub fn into_addresses(self) -> Vec<SocketAddr> {
        let rest = self.addresses.iter().filter(|addr| !self.answered.contains(addr));
        self.answered.iter().copied().chain(rest).collect()
    }

    fn found(&mut self, now: Instant, addrs: Vec<SocketAddr>, source: PeerSource) {
        addrs.into_iter().for_each(|addr| self.addresses.found(now, addr, source));
    }

    /// Dials as many addresses as there are free connection slots.
    fn dial_more(&mut self, now: Instant) {
        let (policy, attempts) = (&self.config.policy, self.addresses.attempts());
        let mut fresh = attempts.fresh(now, policy.dial_moment());
        let free = MAX_PEERS.saturating_sub(self.peers.len());
        let slots = policy.dial_slots(attempts.len() - fresh).min(free);
        while fresh < slots {
            let Some(addr) = self.addresses.next_to_dial(now, true) else { return };
            fresh += 1;
            self.actions.push_back(ResolverAction::Connect(addr));
        }
        if fresh < free
            && let Some(addr) = self.addresses.next_of_new_group(now, true)
        {
            self.actions.push_back(ResolverAction::Connect(addr));
        }
    }

    fn connected(&mut self, now: Instant, new: &NewPeer) {
        if new.direction == Direction::Outgoing {
            self.addresses.connected(new.addr);
            if !self.answered.contains(&new.addr) {
                self.answered.push(new.addr);
            }
        }
        let refused = if new.id == self.config.our_id || self.peers.contains_key(&new.key) {
            Some(DisconnectReason::Duplicate)
        } else if !new.extended {
            Some(DisconnectReason::Useless)
        } else if self.peers.len() >= MAX_PEERS {
            Some(DisconnectReason::Crowded)
        } else {
            None
        };
        if let Some(reason) = refused {
            if reason == DisconnectReason::Crowded {
                self.addresses.disconnected(now, new.addr, false, false);
            }
            return self.actions.push_back(ResolverAction::Disconnect(new.key, reason));
        }
        let peer = Peer { addr: new.addr, since: now, metadata: 0, exchange: PeerExchange::new(now) };
        self.peers.insert(new.key, peer);
        if new.fast {
            self.actions.push_back(ResolverAction::Send(new.key, Message::HaveNone));
        }
        let payload = our_handshake(new.addr.ip(), new.our_port, None, self.config.pex, false);
        self.actions.push_back(ResolverAction::Send(new.key, Message::Extended { id: 0, payload }));
        if !new.fast {
            // Without the fast extension, this excludes that a bitfield follows: rtorrent waits for it.
            self.actions.push_back(ResolverAction::Send(new.key, Message::KeepAlive));
        }
    }

    /// Forgets a connection that is gone. An address that answered is dialed again later.
    fn remove(&mut self, now: Instant, key: PeerKey) {
        let Some(peer) = self.peers.remove(&key) else { return };
        self.fetch.gone(now, key);
        self.addresses.disconnected(now, peer.addr, false, false);
    }

    fn message(&mut self, now: Instant, key: PeerKey, message: Message) {
        let Message::Extended { id, payload } = message else { return };
        let done = match id {
            0 => ExtensionHandshake::decode(&payload).map(|theirs| self.extension_handshake(now, key, &theirs)),
            METADATA => MetadataMessage::decode(&payload).map(|message| self.metadata_message(now, key, message)),
            PEX if self.config.pex => Pex::decode(&payload).map(|pex| self.peers_named(now, key, &pex)),
            _ => return,
        };
        if let Err(error) = done {
            tracing::debug!(?key, id, "ignoring an extension message: {error}");
        }
    }

    fn extension_handshake(&mut self, now: Instant, key: PeerKey, theirs: &ExtensionHandshake) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        peer.metadata = theirs.extensions.get(UT_METADATA).copied().unwrap_or(peer.metadata);
        if peer.metadata != 0 {
            self.fetch.offered(now, key, theirs.metadata_size);
        }
    }

    fn metadata_message(&mut self, now: Instant, key: PeerKey, message: Option<MetadataMessage>) {
        let Some(peer) = self.peers.get(&key) else { return };
        match message {
            Some(MetadataMessage::Data { piece, total, data }) => {
                let info = self.fetch.data(now, key, piece, total, data);
                self.actions.extend(info.map(ResolverAction::Resolved));
            }
            Some(MetadataMessage::Reject { piece }) => {
                let info = self.fetch.rejected(now, key, piece);
                self.actions.extend(info.map(ResolverAction::Resolved));
            }
            Some(MetadataMessage::Request { piece }) if peer.metadata != 0 => {
                self.send_metadata_message(key, peer.metadata, &MetadataMessage::Reject { piece });
            }
            Some(MetadataMessage::Request { .. }) | None => {}
        }
    }

    fn send_metadata_message(&mut self, key: PeerKey, id: u8, message: &MetadataMessage) {
        let message = Message::Extended { id, payload: message.encode() };
        self.actions.push_back(ResolverAction::Send(key, message));
    }

    fn peers_named(&mut self, now: Instant, key: PeerKey, pex: &Pex) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        if peer.exchange.may_receive(now) {
            let from = peer.addr.ip();
            let named = pex.added.iter().map(|(addr, _)| *addr);
            self.found(now, named.filter(|addr| may_share(from, addr.ip())).collect(), PeerSource::Pex);
        }
    }

    /// Dials again while there is no peer, because somebody waits for the metadata. Closes a connection without metadata to
    /// offer, if others wait for the slot.
    fn tick(&mut self, now: Instant) {
        let info = self.fetch.tick(now);
        self.actions.extend(info.map(ResolverAction::Resolved));
        if self.peers.is_empty() {
            self.addresses.hurry(now);
        }
        let crowded = self.peers.len() >= MAX_PEERS;
        let offer_timeout = self.config.policy.silence_timeout;
        let useless = |peer: &Peer| peer.metadata == 0 && now.saturating_duration_since(peer.since) > offer_timeout;
        if crowded && let Some(key) = self.peers.iter().find(|(_, peer)| useless(peer)).map(|(key, _)| *key) {
            self.remove(now, key);
            self.actions.push_back(ResolverAction::Disconnect(key, DisconnectReason::Crowded));
        }
    }

    /// Sends the requests that are due, and closes the connections of liars.
    fn request(&mut self, now: Instant) {
        while let Some(action) = self.fetch.poll() {
            match action {
                FetchAction::Request(key, piece) => {
                    let Some(peer) = self.peers.get(&key) else { continue };
                    self.send_metadata_message(key, peer.metadata, &MetadataMessage::Request { piece });
                }
                FetchAction::Ban(key) => {
                    if let Some(peer) = self.peers.remove(&key) {
                        self.fetch.gone(now, key);
                        self.answered.retain(|addr| *addr != peer.addr);
                        self.actions.push_back(ResolverAction::Disconnect(key, DisconnectReason::Liar));
                    }
                }
            }
        }
    }
}
