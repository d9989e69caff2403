//! Tests without a network and without a mount: simulated swarms, the parser, the structure of the source.

mod dialing;
mod extensions;
mod layers;
mod peers;
mod policy;
mod simulation;
mod source_graph;
mod stalls;
mod swarm;
mod swarm_hostile;
mod torrents;
