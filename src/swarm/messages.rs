//! What a peer says and asks. Everything in it is checked before it is believed.

use std::net::SocketAddr;
use std::time::Instant;

use fixedbitset::FixedBitSet;

use super::action::{Action, DisconnectReason};
use super::event::PeerKey;
use super::machine::Swarm;
use super::peer::{Holding, Peer};
use crate::wire::{Message, Request, bitfield_from_wire};

impl Swarm {
    pub(super) fn message(&mut self, now: Instant, key: PeerKey, message: Message) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        peer.last_heard = now;
        let opening = match message {
            Message::Extended { .. } | Message::KeepAlive | Message::Port(_) => peer.opening,
            _ => std::mem::take(&mut peer.opening),
        };
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
            // Blocks come in through `block`.
            Message::Piece { .. } => {}
            Message::Choke => {
                peer.choking_us = true;
                self.choked(now, key);
            }
            Message::Unchoke => {
                peer.choking_us = false;
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
            // A bitfield may come at any time, though BEP 3 puts it first: aria2 tells in one of what it got since.
            Message::HaveAll | Message::HaveNone if !opening => {
                self.disconnect(
                    now,
                    key,
                    DisconnectReason::Protocol("have-all or have-none that is not the first message"),
                );
            }
            Message::Bitfield(bytes) => match bitfield_from_wire(&bytes, self.pieces.count()) {
                Ok(bits) => self.holds(now, key, bits),
                Err(_) => self.disconnect(now, key, DisconnectReason::Protocol("a bitfield of the wrong length")),
            },
            Message::HaveAll => {
                let mut bits = FixedBitSet::with_capacity(self.pieces.count() as usize);
                bits.insert_range(..);
                self.holds(now, key, bits);
            }
            Message::HaveNone => {}
            Message::Request(request) => self.requested(now, key, request),
            Message::Cancel(request) => self.request_cancelled(now, key, request),
            Message::Suggest(piece) if piece < self.pieces.count() => {
                peer.suggest(piece);
                peer.barren = None;
            }
            Message::AllowedFast(piece) if piece < self.pieces.count() => {
                peer.allow(piece);
                peer.barren = None;
                self.refill(now, key);
            }
            Message::Suggest(_) | Message::AllowedFast(_) => {
                self.disconnect(now, key, DisconnectReason::Protocol("a piece beyond the torrent"));
            }
            Message::Reject(request) => self.rejected(now, key, request),
        }
    }

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
        peer.barren = None;
        self.pieces.availability.raise(piece, &mut self.rng);
        if !self.pieces.has(piece) {
            peer.wanted += 1;
            self.tell_interest(now, key);
        }
        self.super_seed_seen(now, key, piece);
        self.became_seed(now, key);
        if self.peers.get(&key).is_some_and(|peer| peer.wants_refill(now, self.phase)) {
            self.refill(now, key);
        }
    }

    /// They have these, and what they said that they had before.
    fn holds(&mut self, now: Instant, key: PeerKey, mut bits: FixedBitSet) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        let Holding::Some(held) = &mut peer.holding else { return };
        bits.difference_with(held);
        if bits.is_clear() {
            return;
        }
        peer.barren = None;
        if bits.is_full() {
            peer.has_count = self.pieces.count();
            peer.wanted = self.pieces.count() - self.pieces.had();
            peer.holding = Holding::All;
            self.pieces.availability.seed_came();
            self.tell_interest(now, key);
            return self.leave_if_useless(now, key);
        }
        held.union_with(&bits);
        for piece in bits.ones() {
            peer.has_count += 1;
            peer.wanted += u32::from(!self.pieces.has(piece as u32));
            self.pieces.availability.raise(piece as u32, &mut self.rng);
        }
        if self.super_seed.is_some() {
            bits.ones().for_each(|piece| self.super_seed_seen(now, key, piece as u32));
        }
        self.tell_interest(now, key);
        self.became_seed(now, key);
        self.refill(now, key);
    }

    /// Counts a peer that now has everything as a seed.
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
        self.leave_if_useless(now, key);
    }

    /// They will fetch nothing more, though they may not have everything (BEP 21).
    pub(super) fn is_upload_only(&mut self, now: Instant, key: PeerKey) {
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.upload_only = true;
            self.leave_if_useless(now, key);
        }
    }

    /// Two that have everything have nothing to say to each other.
    pub(super) fn leave_if_useless(&mut self, now: Instant, key: PeerKey) {
        let nothing_more = |peer: &Peer| peer.is_seed() || peer.upload_only;
        if self.pieces.complete() && self.peers.get(&key).is_some_and(nothing_more) {
            self.disconnect(now, key, DisconnectReason::Useless);
        }
    }

    /// Says whether we want anything of them, if that changed.
    pub(super) fn tell_interest(&mut self, now: Instant, key: PeerKey) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        let interested = peer.wanted > 0;
        if interested != peer.we_interested {
            peer.we_interested = interested;
            self.send(now, key, if interested { Message::Interested } else { Message::NotInterested });
        }
    }

    fn rejected(&mut self, now: Instant, key: PeerKey, request: Request) {
        let Some((id, _)) = self.pieces.block(request.piece, request.begin, request.length) else {
            return self.disconnect(now, key, DisconnectReason::Protocol("a reject of what we cannot have asked for"));
        };
        let Some(peer) = self.peers.get_mut(&key) else { return };
        if peer.take_ask(id).is_some() {
            peer.pipeline.dropped(now, request.length);
            if !peer.choking_us || peer.allowed.contains(&id.piece) {
                peer.refuse(now, id.piece);
            }
            peer.barren = None;
            self.pieces.unask(id, key);
            self.abandon_solo(now, key, id.piece);
        } else if peer.doubts.remove(&id).is_some() {
            // Now it may be asked of them again.
            peer.barren = None;
        }
        self.refill(now, key);
    }
}

fn is_fast(message: &Message) -> bool {
    use Message::{AllowedFast, HaveAll, HaveNone, Reject, Suggest};
    matches!(message, AllowedFast(_) | HaveAll | HaveNone | Reject(_) | Suggest(_))
}
