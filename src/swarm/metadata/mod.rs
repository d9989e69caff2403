//! The metadata of a magnet link, fetched from peers (BEP 9) before there is a swarm.

mod fetch;
mod probe;
mod resolver;

use super::event::PeerKey;

pub use resolver::{MetadataProgress, Resolver, ResolverAction, ResolverConfig, ResolverEvent};

/// An instruction to the resolver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum FetchAction {
    /// Request that piece from this peer.
    Request(PeerKey, u32),
    /// Close the connection to this peer: it sent bytes that are not the torrent's metadata.
    Ban(PeerKey),
}
