//! Connections to peers and web seeds: dialing, messages in and out, hanging up.

use std::collections::VecDeque;
use std::net::SocketAddr;

use super::{Done, Driver, Peer};
use crate::net::{Connection, Handshaken, Incoming, OutboxFull, Transport};
use crate::swarm::{Direction, DisconnectReason, Event, NewPeer, PeerKey};
use crate::webseed::WebSeed;
use crate::wire::Message;

/// Maximum number of messages waiting for a peer's outbox; a peer that is further behind is disconnected.
const MAX_UNSENT: usize = 4096;

impl Driver {
    /// Dials an address, which may stand for a web seed.
    pub(super) fn dial(&mut self, addr: SocketAddr) {
        if let Some(seed) = self.web_seeds.get(&addr).cloned() {
            return self.connect_web_seed(&seed);
        }
        let (done, dialer) = (self.done.clone(), self.dialer.clone());
        let (ours, hurried) = (self.handshake, self.hurried.subscribe());
        tokio::spawn(async move {
            tokio::select! {
                dialed = dialer.connect_in_turn(addr, &ours, hurried) => {
                    let _ = done.send(Done::Dialed(addr, dialed.map(Box::new))).await;
                }
                // The torrent has ended.
                () = done.closed() => {}
            }
        });
    }

    /// Connects to a web seed, which takes no time. Nothing is sent to its server before the first request.
    fn connect_web_seed(&mut self, seed: &WebSeed) {
        let (addr, key) = (seed.addr(), PeerKey(self.next_peer));
        match seed.connect(self.limits.clone(), key, self.inbox.clone()) {
            Ok(connection) => {
                self.next_peer += 1;
                tracing::debug!(?key, seed = %seed.url(), "web seed connected");
                let (transport, encrypted, outgoing) = (Transport::Tcp, false, Vec::new());
                let (held, backlog) = (false, VecDeque::new());
                self.peers.insert(key, Peer { connection, addr, transport, encrypted, outgoing, held, backlog });
                self.enqueue(Event::Connected(NewPeer::new(key, addr, Direction::Outgoing, seed.peer_id())));
            }
            Err(why) => {
                tracing::debug!(seed = %seed.url(), "web seed not used: {why}");
                self.enqueue(Event::ConnectFailed(addr));
            }
        }
    }

    /// Starts the tasks of a new connection and reports it to the swarm.
    pub(super) fn connected(&mut self, peer: Handshaken, direction: Direction) {
        let addr = peer.addr;
        if self.banned.contains(&addr) || self.banned.contains(&SocketAddr::new(addr.ip(), 0)) {
            // Banned while it was being dialed: the swarm still counts the attempt.
            if direction == Direction::Outgoing {
                self.dispatch(Event::ConnectFailed(addr));
            }
            return;
        }
        self.update_allowed(self.now());
        let key = PeerKey(self.next_peer);
        self.next_peer += 1;
        let (ours, theirs) = (self.handshake.reserved, peer.theirs.reserved);
        let (transport, encrypted) = (peer.stream.transport(), peer.stream.encrypted());
        let new = NewPeer {
            key,
            addr,
            direction,
            id: peer.theirs.peer_id,
            fast: ours.fast() && theirs.fast(),
            extended: ours.extended() && theirs.extended(),
            utp: transport == Transport::Utp,
            encrypted,
            our_port: self.announced.get(),
            our_dht_port: self.dht.as_ref().filter(|_| theirs.dht()).map(|dht| dht.port()),
        };
        tracing::debug!(stream = ?peer.stream, ?new, "peer connected");
        let pieces = self.metainfo.layout.lengths().pieces();
        let connection = Connection::start(peer, pieces, self.limits.clone(), key, self.inbox.clone());
        let (outgoing, held, backlog) = (Vec::new(), false, VecDeque::new());
        self.peers.insert(key, Peer { connection, addr, transport, encrypted, outgoing, held, backlog });
        self.dispatch(Event::Connected(new));
    }

    /// Handles what a connection reports.
    pub(super) fn incoming(&mut self, key: PeerKey, incoming: Incoming) {
        // The peer may have been disconnected since.
        if !self.peers.contains_key(&key) {
            return;
        }
        match incoming {
            Incoming::Messages(messages) => self.messages(key, messages),
            Incoming::Sent(requests) => {
                for request in requests {
                    self.dispatch(Event::Uploaded { peer: key, request, sent: true });
                }
            }
            Incoming::ExtensionsSent(count) => self.dispatch(Event::ExtensionsSent { peer: key, count }),
            Incoming::Closed(why) => self.lost(key, &why),
        }
    }

    /// Passes messages to the swarm. From the one on that the peer is held they wait.
    fn messages(&mut self, key: PeerKey, messages: Vec<Message>) {
        for message in messages {
            match self.peers.get_mut(&key) {
                Some(peer) if peer.held || !peer.backlog.is_empty() => peer.backlog.push_back(message),
                Some(_) => self.message(key, message),
                None => return,
            }
        }
    }

    /// Stops reading from a peer.
    pub(super) fn hold(&mut self, key: PeerKey) {
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.held = true;
            peer.connection.hold(true);
        }
    }

    /// Reads from a peer again, once the messages that had come are handled.
    pub(super) fn release(&mut self, key: PeerKey) {
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.held = false;
            self.released.push(key);
        }
    }

    /// Handles the messages that had come before their connections were held.
    pub(super) fn handle_backlogs(&mut self) {
        while let Some(key) = self.released.pop() {
            while let Some(peer) = self.peers.get_mut(&key).filter(|peer| !peer.held) {
                let Some(message) = peer.backlog.pop_front() else {
                    peer.connection.hold(false);
                    break;
                };
                self.message(key, message);
            }
        }
    }

    fn message(&mut self, key: PeerKey, message: Message) {
        if let Message::Piece { piece, begin, data } = message {
            tracing::trace!(peer = key.0, piece, begin, "block received");
            let now = self.now();
            // A block is no longer than 128 KiB.
            if let Some(block) = self.swarm.block(now, key, piece, begin, data.len() as u32) {
                self.partials.insert(now, block, &data);
            }
            self.act();
        } else {
            self.dispatch(Event::Message(key, message));
        }
    }

    /// Adds a message to those that a peer is sent at the end of this turn.
    pub(super) fn queue_message(&mut self, key: PeerKey, message: Message) {
        if let Some(peer) = self.peers.get_mut(&key) {
            if peer.outgoing.is_empty() {
                self.unflushed.push(key);
            }
            peer.outgoing.push(message);
        }
    }

    /// Sends each peer its messages of this turn.
    pub(super) fn flush(&mut self) {
        let (mut full, mut later) = (Vec::new(), Vec::new());
        for key in std::mem::take(&mut self.unflushed) {
            let Some(peer) = self.peers.get_mut(&key) else { continue };
            if let Err(OutboxFull(unsent)) = peer.connection.outbox().send(std::mem::take(&mut peer.outgoing)) {
                if unsent.len() > MAX_UNSENT {
                    full.push(key);
                }
                peer.outgoing = unsent;
                later.push(key);
            }
        }
        self.unflushed = later;
        if full.is_empty() {
            return;
        }
        for key in full {
            self.lost(key, "it does not read what we send");
        }
        // The swarm may have reacted with messages to others.
        self.flush();
    }

    /// Looks for connections that died while the process slept, and for more peers: our own address may have changed.
    pub(super) fn woke(&mut self) {
        self.peers.values().for_each(|peer| peer.connection.probe());
        if !self.swarm.complete() && !self.swarm.is_paused() {
            self.want_peers();
        }
        self.dispatch(Event::Tick);
    }

    fn lost(&mut self, key: PeerKey, why: &str) {
        if let Some(peer) = self.peers.remove(&key) {
            tracing::debug!(?key, addr = %peer.addr, "connection lost: {why}");
            self.dispatch(Event::Disconnected(key));
            // A web seed ends its connection to offer fewer pieces, so it is used again at once.
            if let Some(seed) = self.web_seeds.get(&peer.addr).cloned() {
                self.connect_web_seed(&seed);
                self.act();
            }
        }
    }

    /// Closes a connection as the swarm decided.
    pub(super) fn disconnect(&mut self, key: PeerKey, reason: DisconnectReason) {
        let Some(peer) = self.peers.remove(&key) else { return };
        match reason {
            DisconnectReason::Liar => {
                tracing::warn!(addr = %peer.addr, "peer banned: it sent data that failed its hash");
            }
            _ => tracing::debug!(?key, addr = %peer.addr, ?reason, "peer disconnected"),
        }
    }
}
