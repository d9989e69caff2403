//! Connections: which addresses to dial, which connections to keep, and the first messages on each.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::action::{Action, DisconnectReason};
use super::event::{Direction, NewPeer, PeerKey, PeerSource};
use super::machine::Swarm;
use super::peer::{Holding, Peer};
use super::pieces::State;
use crate::wire::{Message, PeerId, allowed_fast_set, bitfield_to_wire};

/// How long we may send nothing before a keep-alive is due (BEP 3: peers hang up after two minutes).
const KEEP_ALIVE: Duration = Duration::from_secs(100);
/// Wait for the first keep-alive to a peer without the fast extension that we have sent nothing since the opening
/// messages. rtorrent looks at these, if it got all of them at once and encrypted, only when the next message comes.
const FIRST_KEEP_ALIVE: Duration = Duration::from_secs(1);
/// How long a peer may send nothing before we hang up: longer than two keep-alives of a punctual peer.
const IDLE: Duration = Duration::from_secs(180);
/// Age below which two connections to the same peer may have been opened at the same time, one by each side.
const CROSSED: Duration = Duration::from_secs(30);
/// Interval at which a blocked read without a peer has addresses dialed and others searched for: short for a reader, long
/// for the hosts that are dialed.
const SEARCH_INTERVAL: Duration = Duration::from_millis(500);
/// Number of pieces that a peer may request while choked (BEP 6).
const ALLOWED_FAST: u8 = 10;

impl Swarm {
    /// Accepts or refuses a new connection.
    pub(super) fn connected(&mut self, now: Instant, new: &NewPeer) {
        let NewPeer { key, addr, direction, id, .. } = *new;
        let source = match direction {
            Direction::Incoming => PeerSource::Incoming,
            Direction::Outgoing => self.addresses.source(addr),
        };
        if direction == Direction::Outgoing {
            self.addresses.connected(addr);
        }
        if id == self.config.our_id {
            if direction == Direction::Outgoing {
                self.addresses.mark_as_ours(addr);
            }
            return self.actions.push_back(Action::Disconnect(key, DisconnectReason::Duplicate));
        }
        let refused = if self.addresses.is_banned(addr) || self.addresses.is_banned_id(addr.ip(), id) {
            Some(DisconnectReason::Liar)
        } else if self.peers.contains_key(&key) || !self.replaces_duplicate(now, id, direction) {
            Some(DisconnectReason::Duplicate)
        } else if self.peers.len() >= self.config.max_peers.min(self.max_connections) {
            Some(DisconnectReason::Crowded)
        } else if self.paused {
            Some(DisconnectReason::Paused)
        } else {
            None
        };
        if let Some(reason) = refused {
            self.addresses.disconnected(now, addr, false, false);
            return self.actions.push_back(Action::Disconnect(key, reason));
        }
        if self.peers.is_empty() {
            self.pieces.wake(&mut self.rng);
        }
        self.peers.insert(key, Peer::new(now, new, source, self.pieces.count(), self.config.policy.clone()));
        self.send_pieces_held(now, key);
        if new.extended {
            self.send_extension_handshake(now, new);
        }
        if let Some(port) = new.our_dht_port {
            self.send(now, key, Message::Port(port));
        }
        if !new.fast && (self.super_seed.is_some() || self.pieces.have_count() == 0) {
            // rtorrent waits for a bitfield, or for a message that excludes one: neither of the last two does.
            self.send(now, key, Message::KeepAlive);
        }
    }

    /// Returns whether a new connection to the client `id` is kept, and if so closes an older one to it.
    ///
    /// If two clients connect to each other at once, both must drop the same connection, or none is left: the one
    /// opened by the client with the larger id stays. Otherwise the older one stays.
    fn replaces_duplicate(&mut self, now: Instant, id: PeerId, direction: Direction) -> bool {
        let Some((old, peer)) = self.peers.iter().find(|(_, peer)| peer.id == id) else { return true };
        let crossed = peer.direction != direction && now.saturating_duration_since(peer.connected) < CROSSED;
        let ours_stays = self.config.our_id.0 > id.0;
        let replaces = crossed && ours_stays == (direction == Direction::Outgoing);
        let old = *old;
        if replaces {
            self.disconnect(now, old, DisconnectReason::Duplicate);
        }
        replaces
    }

    /// Sends the first message, which states the pieces that we have, and grants some pieces to a choked peer.
    fn send_pieces_held(&mut self, now: Instant, key: PeerKey) {
        let Some(peer) = self.peers.get(&key) else { return };
        let (fast, addr) = (peer.fast, peer.addr);
        if self.super_seed.is_some() {
            if fast {
                self.send(now, key, Message::HaveNone);
            }
            return self.super_seed_to(now, key);
        }
        let first = match self.pieces.have_count() {
            0 if fast => Some(Message::HaveNone),
            0 => None,
            _ if fast && self.pieces.complete() => Some(Message::HaveAll),
            _ => Some(Message::Bitfield(bitfield_to_wire(&self.pieces.bitfield()))),
        };
        if let Some(first) = first {
            self.send(now, key, first);
        }
        // The set depends on the first three bytes of the address. Of several peers with the same bytes one gets it,
        // because otherwise all of them would fetch the same few pieces.
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

    /// Closes a connection.
    pub(super) fn disconnect(&mut self, now: Instant, key: PeerKey, reason: DisconnectReason) {
        if self.peers.contains_key(&key) {
            self.remove(now, key);
            self.actions.push_back(Action::Disconnect(key, reason));
        }
    }

    /// Forgets a connection that is gone.
    pub(super) fn remove(&mut self, now: Instant, key: PeerKey) {
        let Some(peer) = self.peers.remove(&key) else { return };
        for ask in peer.asks.iter() {
            self.pieces.unask(ask.id);
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
        self.introductions.forget(key);
        self.unchoked -= usize::from(!peer.we_choke);
        let useful = peer.pipeline.rate_is_known();
        match (peer.direction, peer.dial_addr()) {
            (Direction::Outgoing, _) => self.addresses.disconnected(now, peer.addr, useful, peer.is_seed()),
            // It may have been the only connection, and the peer may not call again.
            (Direction::Incoming, Some(addr)) if !self.addresses.is_banned_id(addr.ip(), peer.id) => {
                self.addresses.left(now, addr, useful, peer.is_seed());
            }
            (Direction::Incoming, _) => {}
        }
        self.fill_slots(now);
        self.work = true;
    }

    /// If a read is blocked on a piece that no peer serves: dials addresses although they wait after a failure, and has
    /// more of them searched for.
    pub(super) fn find_peers_for_readers(&mut self, now: Instant) {
        if self.blocked.is_empty() || now < self.next_search || self.paused {
            return;
        }
        // A peer that owes blocks and sends none is no peer that a read can rely on. Asked on every event, so that it must not
        // take a look at each peer.
        let is_served =
            |piece: &u32| self.peers.values().any(|peer| peer.serves(now, *piece) && !peer.has_stopped(now));
        if self.blocked.iter().all(|piece| self.pieces.state(*piece) == State::Checking || is_served(piece)) {
            return;
        }
        self.next_search = now + SEARCH_INTERVAL;
        self.addresses.hurry(now);
        self.actions.push_back(Action::FindPeers);
    }

    /// Dials as many addresses as there are free connection slots. An attempt that takes long holds up no other.
    pub(super) fn dial_more(&mut self, now: Instant) {
        self.next_dial = None;
        // Complete and not serving: no peer is useful.
        if self.paused || self.pieces.complete() && !self.config.upload {
            return;
        }
        let want_seeds = !self.pieces.complete();
        let (moment, attempts) = (self.config.policy.dial_moment(), self.addresses.attempts());
        let mut fresh = attempts.fresh(now, moment);
        let free = self.config.max_peers.min(self.max_connections).saturating_sub(self.peers.len());
        let slots = self.config.policy.dial_slots(attempts.len() - fresh).min(free);
        while fresh < slots {
            let Some(addr) = self.addresses.next_to_dial(now, want_seeds) else { return };
            fresh += 1;
            self.actions.push_back(Action::Connect(addr));
        }
        if fresh < free
            && let Some(addr) = self.addresses.next_of_new_group(now, want_seeds)
        {
            self.actions.push_back(Action::Connect(addr));
        }
        if fresh > 0 && self.addresses.next_due().is_some_and(|due| due <= now) {
            self.next_dial = self.addresses.attempts().next_stale(now, moment);
        }
    }

    /// Returns addresses that are likely to answer another time, the best first: those of peers that send much, then those
    /// of peers that have sent something and left.
    pub fn good_addresses(&self, now: Instant, limit: usize) -> Vec<SocketAddr> {
        let mut senders: Vec<&Peer> = self.peers.values().filter(|peer| peer.pipeline.rate_is_known()).collect();
        senders.sort_by(|a, b| b.down.rate(now).total_cmp(&a.down.rate(now)));
        let mut good: Vec<SocketAddr> = Vec::new();
        for addr in senders.into_iter().filter_map(Peer::dial_addr).chain(self.addresses.proven()) {
            if good.len() >= limit {
                break;
            }
            if !good.contains(&addr) && !self.addresses.is_banned(addr) {
                good.push(addr);
            }
        }
        good
    }

    /// Applies this torrent's share of what all torrents have together.
    pub(super) fn share(&mut self, now: Instant, peers: usize, shed: bool, max_partial: u64) {
        self.max_connections = peers;
        self.config.max_partial = max_partial;
        self.readers.set_budget(max_partial);
        if shed {
            // First a peer that is useless to both sides, then the one that sends and takes least.
            let use_of = |peer: &Peer| peer.down.rate(now) + peer.up.rate(now);
            let idle = |peer: &Peer| peer.wanted == 0 && !peer.interested_in_us;
            let least =
                self.peers.iter().min_by(|(_, a), (_, b)| idle(b).cmp(&idle(a)).then(use_of(a).total_cmp(&use_of(b))));
            if let Some(key) = least.map(|(key, _)| *key) {
                self.disconnect(now, key, DisconnectReason::Crowded);
            }
        }
    }

    /// Sends the keep-alives that are due, and closes connections that are silent or take a slot without being useful.
    pub(super) fn tick_connections(&mut self, now: Instant) {
        let since = |then: Instant| now.saturating_duration_since(then);
        // A peer that is held is not read; if it is dead, what we send it is not taken either.
        let silent = |peer: &Peer| since(peer.last_received) >= IDLE && !peer.uploads.is_held();
        let silent: Vec<PeerKey> = self.peers.iter().filter(|(_, peer)| silent(peer)).map(|(key, _)| *key).collect();
        for key in silent {
            self.disconnect(now, key, DisconnectReason::Idle);
        }
        let keep_alive = |peer: &Peer| match peer.fast || peer.last_sent > peer.connected {
            true => KEEP_ALIVE,
            false => FIRST_KEEP_ALIVE,
        };
        let quiet = self.peers.iter().filter(|(_, peer)| since(peer.last_sent) >= keep_alive(peer));
        let quiet: Vec<PeerKey> = quiet.map(|(key, _)| *key).collect();
        for key in quiet {
            self.send(now, key, Message::KeepAlive);
        }
        if self.peers.len() >= self.config.max_peers && self.addresses.next_due().is_some_and(|due| due <= now) {
            let useless_timeout = self.config.policy.useless_timeout();
            let useless = self.peers.iter().find(|(_, peer)| {
                peer.wanted == 0 && !peer.interested_in_us && since(peer.connected) >= useless_timeout
            });
            if let Some(key) = useless.map(|(key, _)| *key) {
                self.disconnect(now, key, DisconnectReason::Crowded);
            }
        }
    }
}
