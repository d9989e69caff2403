//! The core messages of peers (BEP 3, BEP 6). Every field is checked before it is used.

use std::net::SocketAddr;
use std::time::Instant;

use fixedbitset::FixedBitSet;

use super::action::{Action, DisconnectReason};
use super::event::PeerKey;
use super::machine::Swarm;
use super::peer::requests::Answer;
use super::peer::{Holding, Peer};
use crate::wire::{Message, Request, bitfield_from_wire};

/// How often a peer may state that it lacks a piece that it had before. Each time costs a walk over all pieces.
const MAX_LOSSES: u32 = 16;

impl Swarm {
    /// Handles a message.
    pub(super) fn message(&mut self, now: Instant, key: PeerKey, message: Message) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        peer.last_received = now;
        if !peer.fast && is_fast(&message) {
            return self.disconnect(
                now,
                key,
                DisconnectReason::Protocol("a message of the fast extension, which was not agreed on"),
            );
        }
        match message {
            Message::KeepAlive => {}
            Message::Extended { id, payload } => self.extended(now, key, id, &payload),
            Message::Port(port) => {
                let addr = SocketAddr::new(peer.addr.ip(), port);
                self.actions.push_back(Action::AddDhtNode(addr));
            }
            // Blocks arrive through `block`.
            Message::Piece { .. } => {}
            Message::Choke => {
                peer.choking_us = true;
                self.choked(now, key);
            }
            Message::Unchoke => {
                if std::mem::replace(&mut peer.choking_us, false) {
                    self.unchoked_us(now, key);
                }
                self.refill(now, key);
            }
            Message::Interested => {
                peer.interested_in_us = true;
                self.fill_slots(now);
            }
            Message::NotInterested => {
                peer.interested_in_us = false;
                self.choke(now, key);
                self.fill_slots(now);
            }
            Message::Have(piece) => self.have(now, key, piece),
            // These three may come at any time, although BEP 3 and BEP 6 put them first: aria2 sends a bitfield for the
            // pieces that it got since, and have-all when it is complete. Each replaces what the peer had before.
            Message::Bitfield(bytes) => match bitfield_from_wire(&bytes, self.pieces.count()) {
                Ok(bits) => self.have_only(now, key, bits),
                Err(_) => self.disconnect(now, key, DisconnectReason::Protocol("a bitfield of the wrong length")),
            },
            Message::HaveAll if peer.is_seed() => {}
            Message::HaveAll => {
                let mut bits = FixedBitSet::with_capacity(self.pieces.count() as usize);
                bits.insert_range(..);
                self.have_only(now, key, bits);
            }
            Message::HaveNone if peer.has_count == 0 => {}
            Message::HaveNone => {
                let bits = FixedBitSet::with_capacity(self.pieces.count() as usize);
                self.have_only(now, key, bits);
            }
            Message::Request(request) => self.requested(now, key, request),
            Message::Cancel(request) => self.request_cancelled(now, key, request),
            Message::Suggest(piece) if piece < self.pieces.count() => {
                peer.suggest(piece);
                peer.exhausted_at = None;
            }
            Message::AllowedFast(piece) if piece < self.pieces.count() => {
                peer.allow(piece);
                peer.exhausted_at = None;
                self.refill(now, key);
            }
            // Beyond the torrent. BEP 6 makes both mere hints, and some clients compute them from a wrong piece count.
            Message::Suggest(_) | Message::AllowedFast(_) => {}
            Message::Reject(request) => self.rejected(now, key, request),
        }
    }

    /// Records that a peer has a piece.
    fn have(&mut self, now: Instant, key: PeerKey, piece: u32) {
        if piece >= self.pieces.count() {
            return self.disconnect(now, key, DisconnectReason::Protocol("a piece beyond the torrent"));
        }
        let Some(peer) = self.peers.get_mut(&key) else { return };
        let Holding::Some(bits) = &mut peer.holding else { return };
        if bits.put(piece as usize) {
            return;
        }
        peer.has_count += 1;
        peer.exhausted_at = None;
        self.pieces.availability.raise(piece, &mut self.rng);
        if !self.pieces.has(piece) {
            peer.wanted += 1;
            self.update_interest(now, key);
        }
        self.super_seed_seen(now, key, piece);
        self.became_seed(now, key);
        if self.peers.get(&key).is_some_and(|peer| peer.wants_refill(now, self.phase)) {
            self.refill(now, key);
        }
    }

    /// Records that a peer has these pieces and no others.
    fn have_only(&mut self, now: Instant, key: PeerKey, bits: FixedBitSet) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        let lost = match &peer.holding {
            Holding::All => !bits.is_full(),
            Holding::Some(held) => !held.is_subset(&bits),
        };
        if lost {
            peer.losses += 1;
            if peer.losses > MAX_LOSSES {
                return self.disconnect(now, key, DisconnectReason::Protocol("it takes back its pieces too often"));
            }
            self.lost_all(key);
        }
        self.have_many(now, key, bits);
    }

    /// Forgets every piece of a peer. Its interest in us, and ours in it, is left to the caller.
    fn lost_all(&mut self, key: PeerKey) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        let none = Holding::Some(FixedBitSet::with_capacity(self.pieces.count() as usize));
        match std::mem::replace(&mut peer.holding, none) {
            Holding::All => self.pieces.availability.seed_left(),
            Holding::Some(held) => {
                held.ones().for_each(|piece| self.pieces.availability.lower(piece as u32, &mut self.rng));
            }
        }
        (peer.has_count, peer.wanted) = (0, 0);
    }

    /// Records that a peer has these pieces, in addition to those that it had before.
    fn have_many(&mut self, now: Instant, key: PeerKey, mut bits: FixedBitSet) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        let full = bits.is_full();
        let Holding::Some(held) = &mut peer.holding else { return };
        bits.difference_with(held);
        if bits.is_clear() {
            return self.update_interest(now, key);
        }
        peer.exhausted_at = None;
        if full {
            let held = held.clone();
            peer.has_count = self.pieces.count();
            peer.wanted = self.pieces.count() - self.pieces.have_count();
            peer.holding = Holding::All;
            held.ones().for_each(|piece| self.pieces.availability.lower(piece as u32, &mut self.rng));
            self.pieces.availability.seed_came();
        } else {
            held.union_with(&bits);
            for piece in bits.ones() {
                peer.has_count += 1;
                peer.wanted += u32::from(!self.pieces.has(piece as u32));
                self.pieces.availability.raise(piece as u32, &mut self.rng);
            }
        }
        if self.super_seed.is_some() {
            bits.ones().for_each(|piece| self.super_seed_seen(now, key, piece as u32));
        }
        self.update_interest(now, key);
        if full {
            self.disconnect_if_useless(now, key);
        }
        self.refill(now, key);
    }

    /// Counts a peer as a seed if it now has everything.
    fn became_seed(&mut self, now: Instant, key: PeerKey) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        if peer.has_count < self.pieces.count() || peer.is_seed() {
            return;
        }
        peer.holding = Holding::All;
        for piece in 0..self.pieces.count() {
            self.pieces.availability.lower(piece, &mut self.rng);
        }
        self.pieces.availability.seed_came();
        self.disconnect_if_useless(now, key);
    }

    /// Records that a peer will fetch nothing more, although it may not have everything (BEP 21).
    pub(super) fn set_upload_only(&mut self, now: Instant, key: PeerKey) {
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.upload_only = true;
            self.disconnect_if_useless(now, key);
        }
    }

    /// Closes the connection if neither side can want anything.
    pub(super) fn disconnect_if_useless(&mut self, now: Instant, key: PeerKey) {
        let wants_nothing = |peer: &Peer| peer.is_seed() || peer.upload_only;
        if self.pieces.complete() && self.peers.get(&key).is_some_and(wants_nothing) {
            self.disconnect(now, key, DisconnectReason::Useless);
        }
    }

    /// Sends whether we want any piece of a peer, if that has changed.
    pub(super) fn update_interest(&mut self, now: Instant, key: PeerKey) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        let interested = peer.wanted > 0;
        if interested != peer.we_interested {
            peer.we_interested = interested;
            self.send(now, key, if interested { Message::Interested } else { Message::NotInterested });
        }
    }

    /// Handles a peer's reject of a request.
    fn rejected(&mut self, now: Instant, key: PeerKey, request: Request) {
        let Some((id, _)) = self.pieces.block(request.piece, request.begin, request.length) else {
            return self.disconnect(now, key, DisconnectReason::Protocol("a reject of what we cannot have asked for"));
        };
        let Some(peer) = self.peers.get_mut(&key) else { return };
        match peer.asks.rejected(id) {
            Answer::Owed(_) => {
                peer.has_answered(now);
                peer.pipeline.dropped(now, request.length);
                if !peer.has_choked(id.piece) {
                    peer.refuse(now, id.piece);
                }
                peer.exhausted_at = None;
                let is_sending = peer.asks.iter().any(|ask| ask.id.piece == id.piece);
                self.pieces.unask(id);
                if !is_sending {
                    self.abandon_solo(now, key, id.piece);
                }
            }
            Answer::Withdrawn => {
                // Now the block may be requested from it again.
                peer.has_answered(now);
                peer.exhausted_at = None;
            }
            Answer::Unknown => {}
        }
        self.refill(now, key);
    }
}

fn is_fast(message: &Message) -> bool {
    use Message::{AllowedFast, HaveAll, HaveNone, Reject, Suggest};
    matches!(message, AllowedFast(_) | HaveAll | HaveNone | Reject(_) | Suggest(_))
}
