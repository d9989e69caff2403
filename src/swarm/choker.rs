//! Which peers get an upload slot: those that serve us best (or, once we are complete, those that take most), and one
//! peer that has not shown yet what it can do. The slots are assigned again every ten seconds, the optimistic one every
//! thirty.
//!
//! The number of slots grows with the upload rate, so that each slot's share of the rate grows with its square root:
//! a few peers with a good share each keep tit for tat worth their while, and no bandwidth is left unused. Among peers
//! with equal claims those in our own network come first, because serving them costs no uplink bandwidth.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;

use super::event::PeerKey;
use super::policy::Policy;

/// Maximum number of ordinary slots.
const MAX_SLOTS: usize = 50;
/// Interval at which the ordinary slots are assigned (BEP 3).
const ROUND: Duration = Duration::from_secs(10);
/// Interval at which the optimistic slot moves on (BEP 3).
const OPTIMISTIC_ROUND: Duration = Duration::from_secs(30);

/// A peer that is interested in our pieces.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) key: PeerKey,
    /// It is in our own network.
    pub(super) in_lan: bool,
    /// The rate by which it is ranked, in bytes per second.
    pub(super) rate: f64,
    /// It owes us blocks and is silent, so that only the optimistic slot serves it (BEP 3): it has snubbed us.
    pub(super) snubbed: bool,
}

#[derive(Debug)]
pub(super) struct Choker {
    policy: Arc<Policy>,
    next_round: Instant,
    next_optimistic: Instant,
    /// The peer in the optimistic slot.
    optimistic: Option<PeerKey>,
    /// Number of ordinary slots.
    slots: usize,
}

/// Returns the number of ordinary slots at an upload rate in bytes per second.
fn slots(policy: &Policy, up_rate: f64) -> usize {
    let slots = (up_rate / policy.slot_rate().max(1) as f64).sqrt() as usize;
    slots.max(policy.upload_slots as usize).min(MAX_SLOTS)
}

impl Choker {
    pub(super) fn new(now: Instant, policy: Arc<Policy>) -> Self {
        let slots = slots(&policy, 0.0);
        Self { policy, next_round: now + ROUND, next_optimistic: now, optimistic: None, slots }
    }

    /// Returns whether the slots have to be assigned again.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        now >= self.next_round
    }

    /// Returns the number of slots, the optimistic one included.
    pub(super) fn all_slots(&self) -> usize {
        self.slots + 1
    }

    /// Assigns the slots to some of the `candidates`, of `peers` connected peers, and returns those.
    pub(super) fn assign(
        &mut self,
        now: Instant,
        rng: &mut SmallRng,
        up_rate: f64,
        candidates: &[Candidate],
        peers: usize,
    ) -> Vec<PeerKey> {
        self.next_round = now + ROUND;
        self.slots = slots(&self.policy, up_rate);
        let mut ranked: Vec<&Candidate> = candidates.iter().filter(|candidate| !candidate.snubbed).collect();
        ranked.sort_by(|a, b| b.in_lan.cmp(&a.in_lan).then(b.rate.total_cmp(&a.rate)));
        let mut served: Vec<PeerKey> = ranked.iter().take(self.slots).map(|candidate| candidate.key).collect();

        let waiting: Vec<PeerKey> =
            candidates.iter().map(|candidate| candidate.key).filter(|key| !served.contains(key)).collect();
        let stays = self.optimistic.is_some_and(|key| waiting.contains(&key));
        if now >= self.next_optimistic || !stays {
            // A peer other than the last one, if there is another.
            let others: Vec<PeerKey> =
                waiting.into_iter().filter(|key| self.optimistic != Some(*key) || peers <= self.all_slots()).collect();
            self.optimistic = others.choose(rng).copied();
            self.next_optimistic = now + OPTIMISTIC_ROUND;
        }
        served.extend(self.optimistic);
        served
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn the_fastest_are_served_and_one_other() {
        let now = Instant::now();
        let (mut choker, mut rng) = (Choker::new(now, Arc::default()), SmallRng::seed_from_u64(1));
        assert!(!choker.is_due(now) && choker.is_due(now + ROUND));
        let ordinary = choker.slots;
        let candidates: Vec<Candidate> = (0..10u32)
            .map(|n| Candidate { key: PeerKey(n.into()), in_lan: n == 0, rate: n.into(), snubbed: n == 9 })
            .collect();
        let served = choker.assign(now, &mut rng, 0.0, &candidates, candidates.len());
        assert_eq!(served[..ordinary], [0, 8, 7, 6].map(PeerKey));
        assert_eq!(served.len(), choker.all_slots());
        let again = choker.assign(now + ROUND, &mut rng, 0.0, &candidates, candidates.len());
        assert_eq!(served, again, "the optimistic slot stays for three rounds");
        let moved = choker.assign(now + OPTIMISTIC_ROUND, &mut rng, 0.0, &candidates, candidates.len());
        assert_ne!(served[ordinary], moved[ordinary]);
    }

    #[test]
    fn slots_grow_with_the_square_root_of_the_rate() {
        let policy = Policy::default();
        assert_eq!([0.0, 2.5e6, 10e6, 1e12].map(|rate| slots(&policy, rate)), [4, 10, 20, MAX_SLOTS]);
    }
}
