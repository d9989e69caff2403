//! The metadata of a magnet link, fetched from peers (BEP 9) before there is a swarm.

mod fetch;
mod probe;
mod resolver;

use std::time::Duration;

use super::event::PeerKey;

pub use resolver::{MetadataProgress, Resolver, ResolverAction, ResolverConfig, ResolverEvent};

/// How long a peer may owe a piece before it is paused.
const LOST: Duration = Duration::from_secs(20);
/// How long nothing is requested from a peer that refused, sent the wrong thing or did not answer.
const PAUSE: Duration = Duration::from_secs(10);

/// An instruction to the resolver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum FetchAction {
    /// Request that piece from this peer.
    Request(PeerKey, u32),
    /// Close the connection to this peer: it sent bytes that are not the torrent's metadata.
    Ban(PeerKey),
}
