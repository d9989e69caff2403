//! Super-seeding (BEP 16): the first seeder of a torrent gives each piece once, and lets the others spread it.
//!
//! We say that we have nothing, and offer each peer a few pieces as if they had just come. A peer is offered another
//! one when a piece that it was offered is seen at somebody else, for only then has it passed something on; or as soon
//! as it has the piece, while there is nobody else to pass it on to. When the others have every piece among them, this
//! ends and we are an ordinary seed. So the first copy leaves us with hardly any piece sent twice, which matters where
//! our upload is what the swarm waits for; otherwise it only slows things down.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use fixedbitset::FixedBitSet;
use rand::RngExt;

use super::{Goodbye, PeerKey, Swarm};
use crate::wire::Message;

/// Pieces offered to a peer that nobody else has been seen with yet.
const OFFERS: usize = 2;
/// A peer that has what it was offered and passes nothing on is offered the next after so long: its friends may not be
/// ours.
const PATIENCE: Duration = Duration::from_secs(20);
/// Pieces told one by one to each peer at the end; where there are more, peers come back and are told at once.
const MAX_TOLD: u32 = 20_000;

/// What was offered to one peer.
#[derive(Debug)]
struct Offers {
    /// All of it: what it may ask for.
    all: FixedBitSet,
    /// Not yet seen elsewhere, and since when the peer itself has it.
    open: Vec<(u32, Option<Instant>)>,
}

#[derive(Debug)]
pub(super) struct SuperSeed {
    peers: BTreeMap<PeerKey, Offers>,
    /// How many peers a piece was offered to.
    offered: Vec<u16>,
}

impl SuperSeed {
    pub(super) fn new(pieces: u32) -> Self {
        Self { peers: BTreeMap::new(), offered: vec![0; pieces as usize] }
    }

    /// Whether this peer may have that piece of us.
    pub(super) fn grants(&self, key: PeerKey, piece: u32) -> bool {
        self.peers.get(&key).is_some_and(|offers| offers.all.contains(piece as usize))
    }
}

impl Swarm {
    /// A peer came, and was told that we have nothing.
    pub(super) fn super_seed_to(&mut self, now: Instant, key: PeerKey) {
        let pieces = self.pieces.count() as usize;
        let Some(state) = &mut self.super_seed else { return };
        state.peers.insert(key, Offers { all: FixedBitSet::with_capacity(pieces), open: Vec::new() });
        self.offer(now, key);
    }

    /// It left: what it was offered and never passed on is anybody's again.
    pub(super) fn super_seed_lost(&mut self, key: PeerKey) {
        let Some(state) = &mut self.super_seed else { return };
        for (piece, _) in state.peers.remove(&key).into_iter().flat_map(|offers| offers.open) {
            state.offered[piece as usize] -= 1;
        }
    }

    /// A peer said that it has a piece: whoever was offered it before has passed it on.
    pub(super) fn super_seed_seen(&mut self, now: Instant, key: PeerKey, piece: u32) {
        let Some(state) = &mut self.super_seed else { return };
        let alone = state.peers.len() == 1;
        let mut served = Vec::new();
        for (other, offers) in &mut state.peers {
            let Some(at) = offers.open.iter().position(|(open, _)| *open == piece) else { continue };
            if *other == key && !alone {
                offers.open[at].1.get_or_insert(now);
            } else {
                offers.open.swap_remove(at);
                served.push(*other);
            }
        }
        served.into_iter().for_each(|other| self.offer(now, other));
    }

    /// Once a second or so.
    pub(super) fn tick_super_seed(&mut self, now: Instant) {
        let Some(state) = &mut self.super_seed else { return };
        let spread = |piece: &u32| self.pieces.availability.seeds() > 0 || self.pieces.availability.of(*piece) > 0;
        if (0..self.pieces.count()).all(|piece| spread(&piece)) {
            return self.end_super_seed(now);
        }
        let patience = if state.peers.len() == 1 { Duration::ZERO } else { PATIENCE };
        let mut idle = Vec::new();
        for (key, offers) in &mut state.peers {
            let tired =
                |since: &Option<Instant>| since.is_some_and(|since| now.saturating_duration_since(since) >= patience);
            let before = offers.open.len();
            offers.open.retain(|(_, since)| !tired(since));
            if offers.open.len() < before || before < OFFERS {
                idle.push(*key);
            }
        }
        idle.into_iter().for_each(|key| self.offer(now, key));
    }

    /// Offers a peer pieces that it lacks, those first that fewest have or were offered.
    fn offer(&mut self, now: Instant, key: PeerKey) {
        loop {
            let (Some(state), Some(peer)) = (&mut self.super_seed, self.peers.get(&key)) else { return };
            let Some(offers) = state.peers.get_mut(&key).filter(|offers| offers.open.len() < OFFERS) else { return };
            let count = self.pieces.count();
            // From a random place on, so that equals are taken in no order that peers could share.
            let start = self.rng.random_range(0..count);
            let lacks = |piece: &u32| !peer.has(*piece) && !offers.all.contains(*piece as usize);
            let cost = |piece: &u32| {
                u32::from(self.pieces.availability.of(*piece)) + u32::from(state.offered[*piece as usize])
            };
            let choice = (start..count).chain(0..start).filter(lacks).min_by_key(cost);
            let Some(piece) = choice else { return };
            offers.all.insert(piece as usize);
            offers.open.push((piece, None));
            state.offered[piece as usize] = state.offered[piece as usize].saturating_add(1);
            self.send(now, key, Message::Have(piece));
        }
    }

    /// The first copy is out: from now on an ordinary seed.
    fn end_super_seed(&mut self, now: Instant) {
        let Some(state) = self.super_seed.take() else { return };
        let count = self.pieces.count();
        for (key, offers) in state.peers {
            if count > MAX_TOLD {
                self.disconnect(now, key, Goodbye::Crowded);
                continue;
            }
            for piece in (0..count).filter(|piece| !offers.all.contains(*piece as usize)) {
                self.send(now, key, Message::Have(piece));
            }
        }
    }
}
