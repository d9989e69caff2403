//! One torrent's swarm as a pure state machine: which peers to connect to, which blocks to request from which peer,
//! which peers to serve, and every message of the peer protocol.
//!
//! Sans-io. Time is an argument, randomness comes from an owned seeded generator; `handle(now, event)` changes the
//! state, `poll()` returns what the driver has to do. The machine never sees the bytes of a block: the driver holds the
//! data and reports which block came from which peer. So a test runs a hundred peers for an hour of virtual time in a
//! second.
//!
//! After each [`Swarm::handle`] and [`Swarm::block`] the driver calls [`Swarm::poll`] until it returns `None`. A
//! [`Resolver`], which fetches the metadata of a magnet link before there is a swarm, is driven in the same manner.
//!
//! ```
//! use std::time::Instant;
//!
//! use fixedbitset::FixedBitSet;
//! use torrentfs::metainfo::{InfoHash, Lengths};
//! use torrentfs::swarm::{Action, Config, Direction, Event, NewPeer, PeerKey, PeerSource, Swarm};
//! use torrentfs::wire::{Message, PeerId};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let now = Instant::now();
//! let config = Config::new(InfoHash([1; 20]), Lengths::new(1 << 20, 1 << 18)?, PeerId(*b"-TF0100-ours00000000"), 7);
//! let mut swarm = Swarm::new(config, FixedBitSet::new(), now);
//!
//! // A tracker returned an address: the swarm connects to it.
//! let addr = "192.0.2.7:6881".parse()?;
//! swarm.handle(now, Event::PeersFound { addrs: vec![addr], source: PeerSource::Tracker });
//! assert_eq!(swarm.poll(), Some(Action::Connect(addr)));
//!
//! // The peer has everything and unchokes us: the swarm requests blocks.
//! let peer = PeerKey(1);
//! let id = PeerId(*b"-XX0100-theirs000000");
//! swarm.handle(now, Event::Connected(NewPeer::new(peer, addr, Direction::Outgoing, id)));
//! swarm.handle(now, Event::Message(peer, Message::HaveAll));
//! swarm.handle(now, Event::Message(peer, Message::Unchoke));
//! let actions: Vec<Action> = std::iter::from_fn(|| swarm.poll()).collect();
//! assert!(actions.contains(&Action::Send(peer, Message::Interested)));
//! assert!(actions.iter().any(|action| matches!(action, Action::Send(_, Message::Request(_)))));
//! # Ok(())
//! # }
//! ```
//!
//! # Map
//!
//! Imports point down this list.
//!
//! | file | owns |
//! |---|---|
//! | `metadata` | before there is a swarm: the metadata of a magnet link |
//! | `messages`, `extensions` | the messages of peers, and our answers |
//! | `connections` | connections made, kept and closed; which address to dial |
//! | `sched` | readers, and which blocks to request from which peer |
//! | `serving` | upload slots, the requests of peers, super-seeding |
//! | `verdicts` | checked pieces, bans |
//! | `orders` | changes while it runs: on demand, pause, priorities, turns |
//! | `snapshot` | the state at one moment, for people |
//! | `machine` | [`Swarm`]: its state, events in, actions out, timers |
//! | `choker`, `super_seed` | the choice of the peers to serve |
//! | `peer`, `uploads`, `rate` | one connection |
//! | `pieces`, `availability` | each piece's state; the missing ones, rarest first |
//! | `policy` | [`Policy`]: every tuning constant, and how long a queue each need is allowed |
//! | `blame`, `addresses`, `attempts` | which peers lied; which addresses to dial, in which order, and which never again |
//! | `event`, `action`, `config`, `stats` | the interface |
//!
//! # Cost
//!
//! A received block costs a few map look-ups; requests go out in batches when a quarter of a peer's pipeline is empty.
//! Nothing here walks over all pieces or peers for one block. Torrents of millions of pieces cost 11 bytes per piece
//! (one while there is no peer), and one bit per piece for each peer that is not a seed.

mod action;
mod addresses;
mod attempts;
mod availability;
mod blame;
mod choker;
mod config;
mod connections;
mod event;
mod extensions;
mod machine;
mod messages;
mod metadata;
mod orders;
mod peer;
mod pieces;
mod policy;
mod rate;
mod sched;
mod serving;
mod snapshot;
mod stats;
mod super_seed;
mod uploads;
mod verdicts;

pub use action::{Action, DisconnectReason};
pub use config::{Config, PickOrder};
pub use event::{Direction, Event, NewPeer, PeerKey, PeerSource, ReaderId, WantId};
pub use machine::Swarm;
pub use metadata::{MetadataProgress, Resolver, ResolverAction, ResolverConfig, ResolverEvent};
pub use orders::BackgroundNeed;
pub use policy::Policy;
pub use snapshot::{AwaitedPiece, PartialSnapshot, PeerSnapshot, ReaderSnapshot, Snapshot, WaitSnapshot};
pub use stats::Stats;
