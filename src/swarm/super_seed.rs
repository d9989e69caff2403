//! Super-seeding (BEP 16): the first seed of a torrent serves each piece once and lets the others spread it.
//!
//! We state that we have nothing, and offer each peer a few pieces as if we had just got them. A peer is offered
//! another piece when a piece that it was offered appears at another peer, because only then has it passed something
//! on; or as soon as it has the piece, while there is no other peer to pass it on to. When the others together have
//! every piece, super-seeding ends and we are an ordinary seed. So hardly any piece of the first copy is sent twice.
//! That matters if our upload is the bottleneck of the swarm; otherwise it only slows things down.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fixedbitset::FixedBitSet;
use rand::RngExt;
use rand::rngs::SmallRng;

use super::availability::Availability;
use super::event::PeerKey;
use super::policy::Policy;

/// The pieces offered to one peer.
#[derive(Debug)]
struct Offers {
    /// All of them: the peer may request these.
    all: FixedBitSet,
    /// Those that have not appeared at another peer, and since when the peer itself has them.
    open: Vec<(u32, Option<Instant>)>,
    /// Bytes of the open ones that the peer was sent.
    sent: BTreeMap<u32, u32>,
}

#[derive(Debug)]
pub(super) struct SuperSeed {
    policy: Arc<Policy>,
    peers: BTreeMap<PeerKey, Offers>,
    /// Number of open offers of each piece.
    offered: Vec<u16>,
}

impl SuperSeed {
    pub(super) fn new(pieces: u32, policy: Arc<Policy>) -> Self {
        Self { policy, peers: BTreeMap::new(), offered: vec![0; pieces as usize] }
    }

    fn count(&self) -> u32 {
        // One entry a piece, and piece numbers are 32 bits wide.
        self.offered.len() as u32
    }

    /// Returns whether this peer may request that piece.
    pub(super) fn grants(&self, key: PeerKey, piece: u32) -> bool {
        self.peers.get(&key).is_some_and(|offers| offers.all.contains(piece as usize))
    }

    /// Adds a peer.
    pub(super) fn connected(&mut self, key: PeerKey) {
        let all = FixedBitSet::with_capacity(self.offered.len());
        self.peers.insert(key, Offers { all, open: Vec::new(), sent: BTreeMap::new() });
    }

    /// Removes a peer: the pieces that it was offered and never passed on may be offered to others.
    pub(super) fn disconnected(&mut self, key: PeerKey) {
        for (piece, _) in self.peers.remove(&key).into_iter().flat_map(|offers| offers.open) {
            self.offered[piece as usize] -= 1;
        }
    }

    /// Records that a peer has a piece: peers that were offered it before have passed it on. Returns those that may be
    /// offered another one.
    pub(super) fn appeared(&mut self, now: Instant, key: PeerKey, piece: u32) -> Vec<PeerKey> {
        let alone = self.peers.len() == 1;
        let mut ready = Vec::new();
        for (other, offers) in &mut self.peers {
            let Some(at) = offers.open.iter().position(|(open, _)| *open == piece) else { continue };
            if *other == key && !alone {
                offers.open[at].1.get_or_insert(now);
            } else {
                offers.open.swap_remove(at);
                offers.sent.remove(&piece);
                ready.push(*other);
            }
        }
        ready
    }

    /// Records that a peer was sent bytes of a piece of `len` bytes. Returns whether that makes it complete: some clients
    /// (rqbit) do not announce a piece to a peer that has it.
    pub(super) fn sent(&mut self, key: PeerKey, piece: u32, bytes: u32, len: u32) -> bool {
        let Some(offers) = self.peers.get_mut(&key) else { return false };
        if !offers.open.iter().any(|(open, _)| *open == piece) {
            return false;
        }
        let sent = offers.sent.entry(piece).or_default();
        *sent = sent.saturating_add(bytes);
        let complete = *sent >= len;
        if complete {
            offers.sent.remove(&piece);
        }
        complete
    }

    /// Closes the offers that have been open for too long. Returns the peers that may be offered another piece.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<PeerKey> {
        // A peer that does not pass a piece on to peers of ours may serve peers that are not connected to us.
        let limit = if self.peers.len() == 1 { Duration::ZERO } else { self.policy.snub_timeout() };
        let open_offers = self.policy.open_offers as usize;
        let mut ready = Vec::new();
        for (key, offers) in &mut self.peers {
            let expired =
                |since: &Option<Instant>| since.is_some_and(|since| now.saturating_duration_since(since) >= limit);
            let before = offers.open.len();
            offers.open.retain(|(_, since)| !expired(since));
            if offers.open.len() < before || before < open_offers {
                ready.push(*key);
            }
        }
        ready
    }

    /// Returns whether the other peers together have every piece.
    pub(super) fn is_spread(&self, availability: &Availability) -> bool {
        availability.seeds() > 0 || (0..self.count()).all(|piece| availability.of(piece) > 0)
    }

    /// Chooses a piece to offer to a peer, of those that it lacks the one that is rarest and least offered. `None` if
    /// it has enough offers.
    pub(super) fn next_offer(
        &mut self,
        rng: &mut SmallRng,
        key: PeerKey,
        availability: &Availability,
        has: impl Fn(u32) -> bool,
    ) -> Option<u32> {
        let (count, open_offers) = (self.count(), self.policy.open_offers as usize);
        // A torrent of empty files has no pieces.
        let offers = self.peers.get_mut(&key).filter(|offers| count > 0 && offers.open.len() < open_offers)?;
        // From a random piece on, so that peers do not get equally rare pieces in the same order.
        let start = rng.random_range(0..count);
        let lacks = |piece: &u32| !has(*piece) && !offers.all.contains(*piece as usize);
        let cost = |piece: &u32| u32::from(availability.of(*piece)) + u32::from(self.offered[*piece as usize]);
        let piece = (start..count).chain(0..start).filter(lacks).min_by_key(cost)?;
        offers.all.insert(piece as usize);
        offers.open.push((piece, None));
        self.offered[piece as usize] = self.offered[piece as usize].saturating_add(1);
        Some(piece)
    }

    /// Returns each peer and the pieces that it was not offered.
    pub(super) fn into_withheld(self) -> impl Iterator<Item = (PeerKey, Vec<u32>)> {
        let count = self.count();
        self.peers
            .into_iter()
            .map(move |(key, offers)| (key, (0..count).filter(|piece| !offers.all.contains(*piece as usize)).collect()))
    }
}
