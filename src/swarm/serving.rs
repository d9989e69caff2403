//! Serving others: upload slots assigned and withdrawn, requests accepted or rejected, super-seeding.

use std::time::Instant;

use rand::seq::IndexedRandom;

use super::action::{Action, DisconnectReason};
use super::choker::Candidate;
use super::event::PeerKey;
use super::machine::Swarm;
use super::uploads::MAX_LENGTH;
use crate::wire::{Message, Request};

/// Maximum number of pieces announced one by one to each peer at the end of super-seeding; in larger torrents peers are
/// disconnected instead, and learn what we have when they come back.
const MAX_ANNOUNCED: u32 = 20_000;

impl Swarm {
    /// Assigns the upload slots, if that is due.
    pub(super) fn tick_choker(&mut self, now: Instant) {
        if !self.config.upload || !self.choker.is_due(now) {
            return;
        }
        let seeding = self.pieces.complete();
        let mut candidates: Vec<Candidate> = Vec::new();
        for (key, peer) in self.peers.iter().filter(|(_, peer)| peer.interested_in_us) {
            let rate = if seeding { peer.up.rate(now) } else { peer.down.rate(now) };
            candidates.push(Candidate {
                key: *key,
                in_lan: peer.in_lan,
                rate,
                snubbed: peer.pipeline.snubbed && !seeding,
            });
        }
        let up_rate = self.up_rate(now);
        let served = self.choker.assign(now, &mut self.rng, up_rate, &candidates, self.peers.len());
        let keys: Vec<PeerKey> = self.peers.keys().copied().collect();
        for key in keys {
            if served.contains(&key) {
                self.unchoke(now, key);
            } else {
                self.choke(now, key);
            }
        }
        self.fill_slots(now);
    }

    /// Gives free slots to interested peers at once: the ten seconds of a round are long at the start of a swarm.
    pub(super) fn fill_slots(&mut self, now: Instant) {
        if !self.config.upload {
            return;
        }
        let mut free = self.choker.all_slots().saturating_sub(self.unchoked);
        while free > 0 {
            let waiting: Vec<PeerKey> = self
                .peers
                .iter()
                .filter(|(_, peer)| peer.we_choke && peer.interested_in_us)
                .map(|(key, _)| *key)
                .collect();
            let Some(key) = waiting.choose(&mut self.rng).copied() else { return };
            self.unchoke(now, key);
            free -= 1;
        }
    }

    /// Starts to serve others, or stops and chokes every peer.
    pub(super) fn serve(&mut self, now: Instant, serve: bool) {
        self.config.upload = serve;
        let keys: Vec<PeerKey> = self.peers.keys().copied().collect();
        for key in keys.into_iter().filter(|_| !serve) {
            if let Some(peer) = self.peers.get_mut(&key) {
                peer.granted.clear();
            }
            self.choke(now, key);
        }
        self.fill_slots(now);
    }

    fn unchoke(&mut self, now: Instant, key: PeerKey) {
        let Some(peer) = self.peers.get_mut(&key).filter(|peer| peer.we_choke) else { return };
        peer.we_choke = false;
        self.unchoked += 1;
        self.send(now, key, Message::Unchoke);
    }

    /// Chokes a peer. Its requests are void; under the fast extension each of them is rejected.
    pub(super) fn choke(&mut self, now: Instant, key: PeerKey) {
        let Some(peer) = self.peers.get_mut(&key).filter(|peer| !peer.we_choke) else { return };
        peer.we_choke = true;
        self.unchoked -= 1;
        let granted = std::mem::take(&mut peer.granted);
        let (fast, void) = (peer.fast, peer.uploads.clear(|request| granted.contains(&request.piece)));
        peer.granted = granted;
        self.send(now, key, Message::Choke);
        if fast {
            for request in void {
                self.send(now, key, Message::Reject(request));
            }
        }
        self.update_hold(key);
    }

    /// Handles a peer's request.
    pub(super) fn requested(&mut self, now: Instant, key: PeerKey, request: Request) {
        let Request { piece, begin, length } = request;
        let fits = piece < self.pieces.count()
            && (1..=MAX_LENGTH).contains(&length)
            && begin.checked_add(length).is_some_and(|end| end <= self.pieces.len_of(piece));
        if !fits {
            let reason = DisconnectReason::Protocol("a request beyond a piece or of an absurd length");
            return self.disconnect(now, key, reason);
        }
        let Some(peer) = self.peers.get_mut(&key) else { return };
        let offered = self.super_seed.as_ref().is_none_or(|state| state.grants(key, piece));
        let served = offered && (!peer.we_choke || peer.granted.contains(&piece));
        // A piece that was evicted is rejected like one that we never had (invariant 7).
        if !(self.config.upload && served && self.pieces.has(piece)) {
            if peer.fast {
                self.send(now, key, Message::Reject(request));
            }
        } else if peer.uploads.push(request) {
            self.pump_uploads(key);
        } else {
            // The driver did not hold the peer. A request that is lost without a word would stall it for good.
            self.disconnect(now, key, DisconnectReason::Protocol("more requests than we queue"));
        }
    }

    /// Handles a peer's cancel.
    pub(super) fn request_cancelled(&mut self, now: Instant, key: PeerKey, request: Request) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        let (cancelled, fast) = (peer.uploads.cancel(request), peer.fast);
        if cancelled && fast {
            self.send(now, key, Message::Reject(request));
        }
        self.update_hold(key);
    }

    /// Hands the driver as many of a peer's requests as it may have at a time.
    fn pump_uploads(&mut self, key: PeerKey) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        while let Some(request) = peer.uploads.next() {
            self.actions.push_back(Action::Upload(key, request));
        }
        self.update_hold(key);
    }

    /// Has the driver stop reading from a peer whose queue is full, or read on.
    fn update_hold(&mut self, key: PeerKey) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        match peer.uploads.hold_change() {
            Some(true) => self.actions.push_back(Action::Hold(key)),
            Some(false) => self.actions.push_back(Action::Release(key)),
            None => {}
        }
    }

    /// Records that the driver has sent a block, or could not.
    pub(super) fn uploaded(&mut self, now: Instant, key: PeerKey, request: Request, sent: bool) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        if !peer.uploads.done(request) {
            return;
        }
        if sent {
            let length = u64::from(request.length);
            peer.last_sent = now;
            peer.up.add(now, length);
            peer.uploaded += length;
            self.count_upload(now, length);
            let len = self.pieces.len_of(request.piece);
            if self.super_seed.as_mut().is_some_and(|state| state.sent(key, request.piece, request.length, len)) {
                self.super_seed_seen(now, key, request.piece);
            }
        } else if peer.fast {
            self.send(now, key, Message::Reject(request));
        }
        self.pump_uploads(key);
    }

    /// Starts super-seeding to a new peer, which was told that we have nothing.
    pub(super) fn super_seed_to(&mut self, now: Instant, key: PeerKey) {
        if let Some(state) = &mut self.super_seed {
            state.connected(key);
            self.offer(now, key);
        }
    }

    /// Ends super-seeding to a peer that has left.
    pub(super) fn super_seed_lost(&mut self, key: PeerKey) {
        if let Some(state) = &mut self.super_seed {
            state.disconnected(key);
        }
    }

    /// Records for super-seeding that a peer has a piece.
    pub(super) fn super_seed_seen(&mut self, now: Instant, key: PeerKey, piece: u32) {
        if let Some(state) = &mut self.super_seed {
            let ready = state.appeared(now, key, piece);
            ready.into_iter().for_each(|other| self.offer(now, other));
        }
    }

    /// Offers more pieces to peers that do not pass theirs on, and ends super-seeding once the first copy is out.
    pub(super) fn tick_super_seed(&mut self, now: Instant) {
        let Some(state) = &mut self.super_seed else { return };
        if state.is_spread(&self.pieces.availability) {
            return self.end_super_seed(now);
        }
        let ready = state.expire(now);
        ready.into_iter().for_each(|key| self.offer(now, key));
    }

    /// Offers a peer as many pieces as it may be offered at a time.
    fn offer(&mut self, now: Instant, key: PeerKey) {
        while let (Some(state), Some(peer)) = (&mut self.super_seed, self.peers.get(&key)) {
            let next = state.next_offer(&mut self.rng, key, &self.pieces.availability, |piece| peer.has(piece));
            let Some(piece) = next else { return };
            self.send(now, key, Message::Have(piece));
        }
    }

    /// Becomes an ordinary seed.
    fn end_super_seed(&mut self, now: Instant) {
        let Some(state) = self.super_seed.take() else { return };
        for (key, withheld) in state.into_withheld() {
            if self.pieces.count() > MAX_ANNOUNCED {
                self.disconnect(now, key, DisconnectReason::Crowded);
                continue;
            }
            for piece in withheld {
                self.send(now, key, Message::Have(piece));
            }
        }
    }
}
