//! The fixed facts and limits of a [`Swarm`](super::Swarm).

use std::sync::Arc;

use bytes::Bytes;

use super::policy::Policy;
use crate::metainfo::{InfoHash, Lengths, RawInfo};
use crate::wire::PeerId;

/// The order in which background fetching starts pieces.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum PickOrder {
    /// The pieces that the fewest peers have first, random among equals: keeps every piece alive and peers useful to
    /// each other.
    #[default]
    RarestFirst,
    /// By number. Worse for any swarm; the simulations measure the other order against it.
    InOrder,
}

/// Settings of a swarm.
#[derive(Clone, Debug)]
pub struct Config {
    /// The torrent's info hash; with a peer's address it gives the pieces served to that peer while choked (BEP 6).
    pub info_hash: InfoHash,
    /// The torrent's sizes.
    pub lengths: Lengths,
    /// The raw `info` value, served to peers (BEP 9). Empty: not served.
    pub metadata: RawInfo,
    /// Seed of the generator behind every random choice.
    pub seed: u64,
    /// Our own id: a peer with the same id is ourselves.
    pub our_id: PeerId,
    /// Fetch only what readers need.
    pub on_demand: bool,
    /// Serve others.
    pub upload: bool,
    /// Never fetch what is missing: a partial seed (BEP 21).
    pub partial_seed: bool,
    /// Exchange addresses with peers (BEP 11, BEP 55). Must be off for private torrents, whose peers come from their
    /// trackers only (BEP 27).
    pub pex: bool,
    /// Complete from the start and perhaps the only seed: serve each piece once and let the others spread it (BEP 16).
    pub super_seed: bool,
    /// Maximum number of connections.
    pub max_peers: usize,
    /// Maximum bytes of partial and checking pieces; what a blocked read waits for may exceed it by a few pieces.
    pub max_partial: u64,
    /// The order in which background fetching starts pieces.
    pub order: PickOrder,
    /// How requests are scheduled.
    pub policy: Arc<Policy>,
}

impl Config {
    /// Returns the settings of an ordinary torrent: everything is fetched, rarest pieces first, and served.
    pub fn new(info_hash: InfoHash, lengths: Lengths, our_id: PeerId, seed: u64) -> Self {
        Self {
            info_hash,
            lengths,
            metadata: Bytes::new().into(),
            seed,
            our_id,
            on_demand: false,
            upload: true,
            partial_seed: false,
            pex: true,
            super_seed: false,
            max_peers: 50,
            max_partial: 32 << 20,
            order: PickOrder::default(),
            policy: Arc::default(),
        }
    }
}
