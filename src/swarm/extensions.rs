//! The extension protocol (BEP 10) of the swarm: its handshake, metadata (BEP 9), peer exchange (BEP 11) and hole
//! punching (BEP 55).
//!
//! Every message is answered or used at once, within the limits in `peer`. Without [`Config::pex`](super::Config::pex),
//! as for private torrents, neither peer exchange nor hole punching takes place.
//!
//! Hole punching lets two peers behind routers connect: both dial each other at the same time, on behalf of a relay
//! that both are connected to. If a peer cannot be dialed, we ask the peer that named it to relay. A connection
//! attempt that a relay asks for is made once, and the result is a connection like any other, or nothing.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Instant;

use bytes::Bytes;

use super::action::Action;
use super::event::{NewPeer, PeerKey, PeerSource};
use super::machine::Swarm;
use super::peer::Peer;
use super::peer::extensions::{HOLEPUNCH, METADATA, PEX, our_handshake};
use super::peer::pex::may_share;
use crate::wire::{ExtensionHandshake, Holepunch, Message, MetadataMessage, Pex, PexFlags, PunchError};

/// Number of extension messages to a peer that have not left the socket, up to which the next piece of the metadata is
/// sent: some 64 KiB bridge the way to the socket.
const MAX_UNSENT: usize = 4;

impl Swarm {
    /// Sends our extension handshake.
    pub(super) fn send_extension_handshake(&mut self, now: Instant, peer: &NewPeer) {
        let metadata_size = match self.config.metadata.len() {
            0 => None,
            // It fits: a torrent file is at most 96 MiB.
            len => Some(len as u32),
        };
        // Not while super-seeding: a peer that says that it has nothing and wants nothing is of no use, and libtorrent
        // closes the connection.
        let upload_only = (self.config.partial_seed || self.pieces.complete()) && self.super_seed.is_none();
        let payload = our_handshake(peer.addr.ip(), peer.our_port, metadata_size, self.config.pex, upload_only);
        self.send(now, peer.key, Message::Extended { id: 0, payload });
    }

    /// Handles an extension message; `id` is our number of the extension. Malformed messages are ignored.
    pub(super) fn extended(&mut self, now: Instant, key: PeerKey, id: u8, payload: &Bytes) {
        let done = match id {
            0 => ExtensionHandshake::decode(payload).map(|theirs| self.extension_handshake(now, key, &theirs)),
            METADATA => MetadataMessage::decode(payload).map(|message| self.serve_metadata(now, key, message)),
            PEX if self.config.pex => Pex::decode(payload).map(|pex| self.peers_named(now, key, &pex)),
            HOLEPUNCH if self.config.pex => Holepunch::decode(payload).map(|message| self.punch(now, key, message)),
            _ => return,
        };
        if let Err(error) = done {
            tracing::debug!(?key, id, "ignoring an extension message: {error}");
        }
    }

    fn extension_handshake(&mut self, now: Instant, key: PeerKey, theirs: &ExtensionHandshake) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        peer.extensions.update(theirs);
        if let Some(reqq) = theirs.request_queue {
            peer.set_reqq(reqq);
        }
        if theirs.upload_only {
            self.set_upload_only(now, key);
        }
    }

    fn serve_metadata(&mut self, now: Instant, key: PeerKey, message: Option<MetadataMessage>) {
        let Some(MetadataMessage::Request { piece }) = message else { return };
        let Some(peer) = self.peers.get_mut(&key).filter(|peer| peer.extensions.metadata != 0) else { return };
        let id = peer.extensions.metadata;
        if !peer.extensions.metadata_uploads.accept(self.config.metadata.len(), piece) {
            self.send(now, key, Message::Extended { id, payload: MetadataMessage::Reject { piece }.encode() });
        }
        self.send_metadata(now, key);
    }

    /// Sends requested pieces of the metadata, a few at a time: a peer that does not read must not fill memory.
    fn send_metadata(&mut self, now: Instant, key: PeerKey) {
        let is_waiting = |peer: &Peer| peer.extensions.metadata_uploads.is_waiting();
        if !self.peers.get(&key).is_some_and(is_waiting) {
            return;
        }
        let Some(metadata) = self.config.metadata.resident() else {
            return self.actions.push_back(Action::LoadMetadata);
        };
        while let Some(peer) = self.peers.get_mut(&key).filter(|peer| peer.extensions.unsent < MAX_UNSENT) {
            let id = peer.extensions.metadata;
            let Some(data) = peer.extensions.metadata_uploads.next(&metadata) else { return };
            self.send(now, key, Message::Extended { id, payload: data.encode() });
        }
    }

    /// Answers the requests that waited for the metadata. It may be that it could not be read.
    pub(super) fn metadata_loaded(&mut self, now: Instant) {
        let available = self.config.metadata.resident().is_some();
        let keys: Vec<PeerKey> = self.peers.keys().copied().collect();
        for key in keys {
            if available {
                self.send_metadata(now, key);
                continue;
            }
            while let Some(peer) = self.peers.get_mut(&key)
                && let Some(piece) = peer.extensions.metadata_uploads.withdraw()
            {
                let id = peer.extensions.metadata;
                self.send(now, key, Message::Extended { id, payload: MetadataMessage::Reject { piece }.encode() });
            }
        }
    }

    /// Records that extension messages have left the socket.
    pub(super) fn extensions_sent(&mut self, now: Instant, key: PeerKey, count: usize) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        peer.extensions.unsent = peer.extensions.unsent.saturating_sub(count);
        self.send_metadata(now, key);
    }

    /// Takes over the addresses that a peer names, if it has not done so a moment ago.
    fn peers_named(&mut self, now: Instant, key: PeerKey, pex: &Pex) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        if !peer.extensions.exchange.may_receive(now) {
            return;
        }
        let (from, relays) = (peer.addr.ip(), peer.extensions.holepunch != 0);
        tracing::debug!(?key, "peer names {} others", pex.added.len());
        for (addr, flags) in pex.added.iter().filter(|(addr, _)| may_share(from, addr.ip())) {
            self.addresses.found(now, *addr, PeerSource::Pex);
            if relays && flags.holepunch {
                self.introductions.add(*addr, key);
            }
        }
    }

    /// Sends each peer the addresses of the others that it does not know from us, when that is due.
    pub(super) fn tick_exchange(&mut self, now: Instant) {
        if !self.config.pex {
            return;
        }
        let is_due = |peer: &Peer| peer.extensions.pex != 0 && peer.extensions.exchange.is_due(now);
        let due: Vec<PeerKey> = self.peers.iter().filter(|(_, peer)| is_due(peer)).map(|(key, _)| *key).collect();
        if due.is_empty() {
            return;
        }
        let contacts: BTreeMap<SocketAddr, PexFlags> =
            self.peers.values().filter_map(|peer| Some((peer.dial_addr()?, peer.pex_flags()))).collect();
        for key in due {
            let Some(peer) = self.peers.get_mut(&key) else { continue };
            let (own, to, id) = (peer.dial_addr(), peer.addr.ip(), peer.extensions.pex);
            if let Some(pex) = peer.extensions.exchange.next_message(now, to, own, &contacts) {
                self.send(now, key, Message::Extended { id, payload: pex.encode() });
            }
        }
    }

    /// Handles a failed connection attempt: the peer that named the address, if it can relay, is asked to.
    pub(super) fn connect_failed(&mut self, now: Instant, addr: SocketAddr) {
        self.addresses.failed(now, addr);
        if let Some(relay) = self.introductions.take(addr) {
            tracing::debug!(%addr, ?relay, "asking a peer to relay a connection");
            self.send_holepunch(now, relay, Holepunch::Rendezvous(addr));
        }
    }

    fn punch(&mut self, now: Instant, key: PeerKey, message: Holepunch) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        if peer.extensions.holepunch == 0 || !peer.extensions.punches.take(now) {
            return;
        }
        let from = peer.addr.ip();
        match message {
            Holepunch::Rendezvous(target) => self.relay(now, key, target),
            Holepunch::Connect(addr) => {
                let connected = self.peers.values().any(|peer| peer.addr == addr);
                let allowed = may_share(from, addr.ip()) && !self.addresses.is_banned(addr);
                if !connected && allowed && self.introductions.dials.take(now) {
                    tracing::debug!(%addr, relay = ?key, "dialing a peer that dials us at the same time");
                    self.actions.push_back(Action::Connect(addr));
                }
            }
            Holepunch::Failed(addr, why) => tracing::debug!(%addr, relay = ?key, ?why, "the peer cannot relay"),
        }
    }

    /// Makes the peer `key` and the peer at `target` dial each other, if we are connected to both.
    fn relay(&mut self, now: Instant, key: PeerKey, target: SocketAddr) {
        let Some(asker) = self.peers.get(&key).map(|asker| asker.addr) else { return };
        let other = self.peers.iter().find(|(_, peer)| peer.dial_addr() == Some(target));
        let verdict = match other {
            _ if target.port() == 0 => Err(PunchError::NoSuchPeer),
            Some((other, _)) if *other == key => Err(PunchError::NoSelf),
            Some((_, peer)) if peer.extensions.holepunch == 0 => Err(PunchError::NoSupport),
            Some((other, peer)) if may_share(peer.addr.ip(), asker.ip()) => Ok(*other),
            _ => Err(PunchError::NotConnected),
        };
        let answer = match verdict {
            Ok(other) => {
                self.send_holepunch(now, other, Holepunch::Connect(asker));
                Holepunch::Connect(target)
            }
            Err(why) => Holepunch::Failed(target, why),
        };
        self.send_holepunch(now, key, answer);
    }

    fn send_holepunch(&mut self, now: Instant, key: PeerKey, message: Holepunch) {
        let id = self.peers.get(&key).map_or(0, |peer| peer.extensions.holepunch);
        if id != 0 {
            self.send(now, key, Message::Extended { id, payload: message.encode() });
        }
    }
}
