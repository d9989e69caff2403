//! Changes at run time: on demand, pause and priorities by the user, turns by the queue of the session.
//!
//! On demand, priorities and turns concern background fetching only: pieces that a reader needs are fetched in any case.
//! A paused swarm fetches nothing at all.

use std::time::Instant;

use fixedbitset::FixedBitSet;

use super::action::DisconnectReason;
use super::event::PeerKey;
use super::machine::Swarm;

/// The pieces that background fetching has to get.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum BackgroundNeed {
    /// None: everything wanted is here, or only reads are served.
    Nothing,
    /// Some.
    Normal,
    /// Some of high priority.
    High,
}

impl Swarm {
    /// Fetches only what readers need from now on, or everything again. Requests that are under way stay.
    pub(super) fn set_on_demand(&mut self, on_demand: bool) {
        self.config.on_demand = on_demand;
        self.work = true;
    }

    /// Lets background fetching begin pieces, or only finish those that are begun: their blocks occupy memory.
    pub(super) fn set_turn(&mut self, turn: bool) {
        self.queued = !turn;
        self.work |= turn;
    }

    /// Returns whether background fetching waits for its turn.
    pub fn is_queued(&self) -> bool {
        self.queued
    }

    /// Returns what background fetching would do in its turn.
    pub fn background_need(&self) -> BackgroundNeed {
        let rest = self.pieces.to_begin() > 0 || self.pieces.partials().next().is_some();
        match self.pieces.preferred().is_empty() {
            _ if self.config.on_demand || self.paused || !rest => BackgroundNeed::Nothing,
            true => BackgroundNeed::Normal,
            false => BackgroundNeed::High,
        }
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
