//! What the user says while it runs: on demand or all, pause, which pieces first and which not at all.
//!
//! All of it concerns the background alone: what a reader needs is fetched whatever was said of its pieces. Only a
//! paused swarm fetches nothing at all.

use std::time::Instant;

use fixedbitset::FixedBitSet;

use super::action::DisconnectReason;
use super::event::PeerKey;
use super::machine::Swarm;

impl Swarm {
    /// Fetches only what readers need from now on, or all again. What is asked for already comes.
    pub(super) fn set_on_demand(&mut self, on_demand: bool) {
        self.config.on_demand = on_demand;
        self.work = true;
    }

    /// Lets everybody go and calls nobody, or begins again.
    pub(super) fn pause(&mut self, now: Instant, paused: bool) {
        self.paused = paused;
        let keys: Vec<PeerKey> = self.peers.keys().copied().collect();
        for key in keys.into_iter().filter(|_| paused) {
            self.disconnect(now, key, DisconnectReason::Paused);
        }
    }

    /// Nothing is fetched or given.
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// From now on the background leaves out the pieces in `skip`, and fetches those in `high` before the rest.
    pub(super) fn prioritize(&mut self, skip: FixedBitSet, high: &FixedBitSet) {
        self.pieces.prioritize(skip, high, &mut self.rng);
        self.work = true;
    }
}
