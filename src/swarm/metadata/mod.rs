//! The metadata of a magnet link, fetched from peers (BEP 9) before there is a swarm.

mod fetch;
mod resolver;

pub use resolver::{MetadataProgress, Resolver, ResolverAction, ResolverConfig, ResolverEvent};
