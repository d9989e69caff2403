//! Changes that the user makes at run time: on demand, pause, priorities.
//!
//! On demand and priorities concern background fetching only: pieces that a reader needs are fetched in any case. A
//! paused swarm fetches nothing at all.

use std::time::Instant;

use fixedbitset::FixedBitSet;

use super::action::DisconnectReason;
use super::event::PeerKey;
use super::machine::Swarm;

impl Swarm {
    /// Fetches only what readers need from now on, or everything again. Requests that are under way stay.
    pub(super) fn set_on_demand(&mut self, on_demand: bool) {
        self.config.on_demand = on_demand;
        self.work = true;
    }

    /// Disconnects every peer and dials none, or resumes.
    pub(super) fn pause(&mut self, now: Instant, paused: bool) {
        self.paused = paused;
        let keys: Vec<PeerKey> = self.peers.keys().copied().collect();
        for key in keys.into_iter().filter(|_| paused) {
            self.disconnect(now, key, DisconnectReason::Paused);
        }
    }

    /// Returns whether the swarm is paused.
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// Makes background fetching skip the pieces in `skip`, and fetch those in `high` before the rest.
    pub(super) fn prioritize(&mut self, skip: FixedBitSet, high: &FixedBitSet) {
        self.pieces.prioritize(skip, high, &mut self.rng);
        self.work = true;
    }
}
