//! Whom we serve: some slots for those who serve us best (or, once complete, for those who take most), one for a peer
//! that has not shown yet what it can do. Re-decided every ten seconds, the optimistic slot every thirty; a free slot
//! is given at once, for ten seconds are long at the start of a swarm.
//!
//! The faster we give, the more slots there are, so that each slot's share grows with the square root of the rate: few
//! peers with a good share each keep tit for tat worth their while, and no bandwidth is left unused. Of equals those in
//! our own network come first: what they get costs nobody's uplink.

use std::time::{Duration, Instant};

use rand::seq::IndexedRandom;

use super::{Action, PeerKey, Swarm};
use crate::wire::Message;

/// Peers unchoked for what they give, at least and at most.
const MIN_SLOTS: usize = 4;
const MAX_SLOTS: usize = 50;
const ROUND: Duration = Duration::from_secs(10);
const OPTIMISTIC_ROUND: Duration = Duration::from_secs(30);
/// A peer that owes us blocks for so long has snubbed us, and only the optimistic slot serves it.
const SNUBBED: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Choker {
    next_round: Instant,
    next_optimistic: Instant,
    optimistic: Option<PeerKey>,
    /// Without the optimistic one.
    slots: usize,
}

/// For so many bytes a second given in sum: each slot gets at least 30 KB/s times their number. More slots would leave
/// each peer longer without a whole piece to pass on (simulated: with 4 KB/s a flash crowd takes a fifth longer).
fn slots(up_rate: f64) -> usize {
    ((up_rate / 30e3).sqrt() as usize).clamp(MIN_SLOTS, MAX_SLOTS)
}

impl Choker {
    pub(super) fn new(now: Instant) -> Self {
        Self { next_round: now + ROUND, next_optimistic: now, optimistic: None, slots: MIN_SLOTS }
    }
}

impl Swarm {
    /// Runs the rounds that are due.
    pub(super) fn tick_choker(&mut self, now: Instant) {
        if !self.config.upload || now < self.choker.next_round {
            return;
        }
        self.choker.next_round = now + ROUND;
        self.choker.slots = slots(self.up_rate(now));
        let slots = self.choker.slots;
        let seeding = self.pieces.complete();
        let mut ranked: Vec<(PeerKey, bool, f64)> = Vec::new();
        for (key, peer) in &self.peers {
            let snubbed = !peer.asks.is_empty() && now.saturating_duration_since(peer.last_progress) >= SNUBBED;
            if peer.interested_in_us && (seeding || !snubbed) {
                let rate = if seeding { peer.up.rate(now) } else { peer.down.rate(now) };
                ranked.push((*key, peer.is_near, rate));
            }
        }
        ranked.sort_by(|a, b| b.1.cmp(&a.1).then(b.2.total_cmp(&a.2)));
        let mut served: Vec<PeerKey> = ranked.iter().take(slots).map(|(key, ..)| *key).collect();

        let keeps =
            |key: &PeerKey| self.peers.get(key).is_some_and(|peer| peer.interested_in_us) && !served.contains(key);
        if now >= self.choker.next_optimistic || !self.choker.optimistic.as_ref().is_some_and(keeps) {
            let others: Vec<PeerKey> = self
                .peers
                .iter()
                .filter(|(key, peer)| peer.interested_in_us && !served.contains(key))
                // Another one than the last, if there is another.
                .filter(|(key, _)| self.choker.optimistic != Some(**key) || self.peers.len() <= slots + 1)
                .map(|(key, _)| *key)
                .collect();
            self.choker.optimistic = others.choose(&mut self.rng).copied();
            self.choker.next_optimistic = now + OPTIMISTIC_ROUND;
        }
        served.extend(self.choker.optimistic);

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

    /// Gives free slots to whoever waits.
    pub(super) fn fill_slots(&mut self, now: Instant) {
        if !self.config.upload {
            return;
        }
        let mut free = (self.choker.slots + 1).saturating_sub(self.unchoked);
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

    /// Begins to serve, or ends it: then all are choked.
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

    /// Chokes a peer. What it had asked for is void, which the fast extension wants said for each request.
    pub(super) fn choke(&mut self, now: Instant, key: PeerKey) {
        let Some(peer) = self.peers.get_mut(&key).filter(|peer| !peer.we_choke) else { return };
        peer.we_choke = true;
        self.unchoked -= 1;
        let granted = std::mem::take(&mut peer.granted);
        let (fast, gone) = (peer.fast, peer.uploads.clear(|request| granted.contains(&request.piece)));
        peer.granted = granted;
        self.send(now, key, Message::Choke);
        if fast {
            for request in gone {
                self.send(now, key, Message::Reject(request));
            }
        }
    }

    /// A queue of requests grew or a block left: hands on what may be.
    pub(super) fn pump_uploads(&mut self, key: PeerKey) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        while let Some(request) = peer.uploads.next() {
            self.actions.push_back(Action::Upload(key, request));
        }
    }
}
