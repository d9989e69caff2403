//! Peers coming and going: whom to call, whom to keep.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::peer::{Holding, Peer};
use super::{Action, Direction, Goodbye, PeerKey, Swarm};
use crate::wire::{Message, PeerId, allowed_fast_set, bitfield_to_wire};

/// Silence of ours before a keep-alive (BEP 3 peers hang up after two minutes).
const KEEP_ALIVE: Duration = Duration::from_secs(100);
/// Silence of theirs before we hang up.
const IDLE: Duration = Duration::from_secs(180);
/// Connections younger than this may be two calls that crossed.
const CROSSED: Duration = Duration::from_secs(30);
/// How long a peer may be of no use to either side, once all places are taken.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pieces that a peer may request while choked (BEP 6).
const ALLOWED_FAST: u8 = 10;

impl Swarm {
    pub(super) fn connected(
        &mut self,
        now: Instant,
        key: PeerKey,
        addr: SocketAddr,
        direction: Direction,
        id: PeerId,
        fast: bool,
    ) {
        let refuse = |swarm: &mut Self, why| swarm.actions.push_back(Action::Disconnect(key, why));
        if direction == Direction::Outgoing {
            self.addresses.connected(addr);
        }
        if id == self.config.our_id {
            if direction == Direction::Outgoing {
                self.addresses.is_us(addr);
            }
            return refuse(self, Goodbye::Duplicate);
        }
        let goodbye = if self.addresses.is_banned(addr) || self.addresses.is_banned_id(addr.ip(), id) {
            Some(Goodbye::Liar)
        } else if self.peers.contains_key(&key) || !self.wins(now, id, direction) {
            Some(Goodbye::Duplicate)
        } else if self.peers.len() >= self.config.max_peers.min(self.places) {
            Some(Goodbye::Crowded)
        } else if self.paused {
            Some(Goodbye::Paused)
        } else {
            None
        };
        if let Some(goodbye) = goodbye {
            self.addresses.left(now, addr, false, false);
            return refuse(self, goodbye);
        }
        if self.peers.is_empty() {
            self.pieces.wake(&mut self.rng);
        }
        self.peers
            .insert(key, Peer::new(now, addr, direction, id, fast, self.pieces.count(), self.config.policy.clone()));
        self.greet(now, key);
    }

    /// Whether a new connection to this peer is to be kept, which ends an older one to the same.
    ///
    /// When two clients call each other at once, both must drop the same connection, or none is left: the one whose
    /// caller has the larger id stays. Otherwise the older stays.
    fn wins(&mut self, now: Instant, id: PeerId, direction: Direction) -> bool {
        let Some((old, peer)) = self.peers.iter().find(|(_, peer)| peer.id == id) else { return true };
        let crossed = peer.direction != direction && now.saturating_duration_since(peer.connected) < CROSSED;
        let ours_stays = self.config.our_id.0 > id.0;
        let wins = crossed && ours_stays == (direction == Direction::Outgoing);
        let old = *old;
        if wins {
            self.disconnect(now, old, Goodbye::Duplicate);
        }
        wins
    }

    /// What we say first.
    fn greet(&mut self, now: Instant, key: PeerKey) {
        let Some(peer) = self.peers.get(&key) else { return };
        let (fast, addr) = (peer.fast, peer.addr);
        if self.super_seed.is_some() {
            if fast {
                self.send(now, key, Message::HaveNone);
            }
            return self.super_seed_to(now, key);
        }
        let opening = match self.pieces.had() {
            0 if fast => Some(Message::HaveNone),
            0 => None,
            _ if fast && self.pieces.complete() => Some(Message::HaveAll),
            _ => Some(Message::Bitfield(bitfield_to_wire(&self.pieces.bitfield()))),
        };
        if let Some(opening) = opening {
            self.send(now, key, opening);
        }
        // The set follows from the first three bytes of the address: of several peers there, one gets it, or they would
        // all fetch the same few pieces.
        let network = |addr: &SocketAddr| match addr.ip().to_canonical() {
            IpAddr::V4(ip) => Some((ip, ip.to_bits() >> 8)),
            IpAddr::V6(_) => None,
        };
        let Some((ip, ours)) = network(&addr) else { return };
        let same = |peer: &Peer| !peer.granted.is_empty() && network(&peer.addr).is_some_and(|(_, net)| net == ours);
        if fast && self.config.upload && !self.peers.values().any(same) {
            let set = allowed_fast_set(ip, &self.config.info_hash, self.pieces.count(), ALLOWED_FAST);
            let granted: Vec<u32> = set.into_iter().filter(|piece| self.pieces.has(*piece)).collect();
            for piece in &granted {
                self.send(now, key, Message::AllowedFast(*piece));
            }
            if let Some(peer) = self.peers.get_mut(&key) {
                peer.granted = granted;
            }
        }
    }

    /// We hang up.
    pub(super) fn disconnect(&mut self, now: Instant, key: PeerKey, why: Goodbye) {
        if self.peers.contains_key(&key) {
            self.remove(now, key);
            self.actions.push_back(Action::Disconnect(key, why));
        }
    }

    /// The connection is gone.
    pub(super) fn remove(&mut self, now: Instant, key: PeerKey) {
        let Some(peer) = self.peers.remove(&key) else { return };
        for ask in &peer.asks {
            self.pieces.unask(ask.id, key);
        }
        match &peer.holding {
            Holding::All => self.pieces.availability.seed_left(),
            Holding::Some(bits) => {
                bits.ones().for_each(|piece| self.pieces.availability.lower(piece as u32, &mut self.rng));
            }
        }
        if self.peers.is_empty() {
            self.pieces.sleep();
        }
        self.abandon_all_solo(now, key);
        self.super_seed_lost(key);
        self.unchoked -= usize::from(!peer.we_choke);
        let useful = peer.pipeline.rate_is_known();
        if peer.direction == Direction::Outgoing {
            self.addresses.left(now, peer.addr, useful, peer.is_seed());
        }
        self.fill_slots(now);
        self.work = true;
    }

    /// Calls as many as there is place for.
    pub(super) fn call_more(&mut self, now: Instant) {
        // Complete and not serving: nobody is of use.
        if self.paused || self.pieces.complete() && !self.config.upload {
            return;
        }
        while self.addresses.calling() < self.config.max_connecting
            && self.connections() < self.config.max_peers.min(self.places)
        {
            let Some(addr) = self.addresses.call(now, !self.pieces.complete()) else { return };
            self.actions.push_back(Action::Connect(addr));
        }
    }

    /// What other torrents leave to this one.
    pub(super) fn share(&mut self, now: Instant, peers: usize, shed: bool, max_partial: u64) {
        self.places = peers;
        self.config.max_partial = max_partial;
        self.readers.set_budget(max_partial);
        if shed {
            // First who is of no use to either side, then who gives and takes least.
            let use_of = |peer: &Peer| peer.down.rate(now) + peer.up.rate(now);
            let idle = |peer: &Peer| peer.wanted == 0 && !peer.interested_in_us;
            let least =
                self.peers.iter().min_by(|(_, a), (_, b)| idle(b).cmp(&idle(a)).then(use_of(a).total_cmp(&use_of(b))));
            if let Some(key) = least.map(|(key, _)| *key) {
                self.disconnect(now, key, Goodbye::Crowded);
            }
        }
    }

    /// Keep-alives, and farewell to the silent and to those in the way.
    pub(super) fn tick_connections(&mut self, now: Instant) {
        let since = |then: Instant| now.saturating_duration_since(then);
        let silent: Vec<PeerKey> =
            self.peers.iter().filter(|(_, peer)| since(peer.last_heard) >= IDLE).map(|(key, _)| *key).collect();
        for key in silent {
            self.disconnect(now, key, Goodbye::Idle);
        }
        let quiet: Vec<PeerKey> =
            self.peers.iter().filter(|(_, peer)| since(peer.last_sent) >= KEEP_ALIVE).map(|(key, _)| *key).collect();
        for key in quiet {
            self.send(now, key, Message::KeepAlive);
        }
        if self.peers.len() >= self.config.max_peers && self.addresses.next_due().is_some_and(|due| due <= now) {
            let in_the_way = self
                .peers
                .iter()
                .find(|(_, peer)| peer.wanted == 0 && !peer.interested_in_us && since(peer.connected) >= PATIENCE);
            if let Some(key) = in_the_way.map(|(key, _)| *key) {
                self.disconnect(now, key, Goodbye::Crowded);
            }
        }
    }
}
