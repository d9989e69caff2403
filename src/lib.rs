//! torrentfs: a FUSE filesystem that streams torrents.
//!
//! # The way of a read
//!
//! ```text
//! kernel ─ read(ino, offset, size) ─▶ fs ─▶ layout: which pieces ─▶ store: in memory? on disk? ─▶ reply
//!                                     │                                    │ no
//!                                     └ reader position ─▶ swarm: this piece is wanted NOW, the next ones soon
//!                                                           │
//!                   peers ◀─ request ─ picker ◀─────────────┘
//!                     └─ blocks ─▶ partial piece ─▶ hash ─▶ store ─▶ wake the waiting reads ─▶ reply
//! ```
//!
//! # Map
//!
//! Imports point down this list, never up: each module imports exactly those of the last column, and no files import each
//! other (`tests/pure/layers.rs` checks it).
//!
//! | module | owns | knows nothing of | imports |
//! |---|---|---|---|
//! | [`cli`] | arguments to calls, errors to words; one file a subcommand | how anything works | control, discovery, fs, http, library, metainfo, net, payload, route, session, store, sys, tracker, web |
//! | [`web`] | everything served over HTTP: API, status page, files, metrics; and the client of the API | FUSE, peer connections | control, metainfo, session, sys |
//! | [`control`] | the status that a running mount reports, and the orders it accepts | HTTP, FUSE, peer connections | discovery, library, metainfo, net, session, swarm, wire |
//! | [`library`] | the torrents of a mount, as they come and go; watched directories | the command line | discovery, fs, metainfo, payload, session, store, sys, util |
//! | [`fs`] | the tree of inodes, the answering of reads, the FUSE mount | peers, trackers | metainfo, session, sys |
//! | [`session`] | torrents at work: sockets, disk and timers for each torrent's `Swarm` | the peer protocol | discovery, http, metainfo, net, portmap, route, store, swarm, util, webseed, wire |
//! | [`webseed`] | HTTP servers as peers that have everything (BEP 19, 17) | picking, choking | http, metainfo, net, util, wire |
//! | [`net`] | connections, the listener, rate limits: dumb pipes of messages | picking, choking | metainfo, route, util, wire |
//! | [`discovery`] | trackers, the DHT, local discovery: they yield peer addresses | everything else | http, metainfo, route, util, wire |
//! | [`portmap`] | our port at the home router (UPnP, NAT-PMP, PCP) | everything else | util |
//! | [`tracker`] | a BitTorrent tracker over HTTP and UDP: keeps and returns the peers of each swarm | everything else | metainfo, sys, util, wire |
//! | [`http`] | bounded HTTP requests: limits, redirects, access to the local network, masked URLs | what an answer means | metainfo, route, util |
//! | [`route`] | by which way everything leaves: proxy, address, interface | everything else | nothing |
//! | [`store`] | the LRU piece cache: memory tier, disk tier, what survives a restart; files that lie with the user | the network, FUSE | metainfo, sys, util |
//! | [`swarm`] | sans-io: the peer protocol with its extensions, scheduling of requests, choker | tokio, sockets, files, the clock | metainfo, util, wire |
//! | [`wire`] | sans-io: handshake and message codecs | as above | metainfo, util |
//! | [`payload`] | a user's own files: walked and hashed for new torrents, checked against old ones | torrents at work | metainfo, sys |
//! | [`metainfo`] | bencode guard, `.torrent`, piece ↔ file layout | as above | nothing |
//! | `sys` | system calls that the standard library has not: the only `unsafe` code | everything else | nothing |
//! | `util` | locks, classes of addresses, text for display, timers that fire together | everything else | nothing |
//!
//! Who uses the program reads `README.md`. Beside `src/`: `mount-helper/` (the program that mount(8) runs, and what the
//! packages install for systemd), `tests/` (the layers, simulated swarms in virtual time, real
//! mounts, real peers, trouble), `benches/`, `fuzz/`.
//!
//! # Invariants
//!
//! 1. Bytes reach a reader only from a piece whose hash was checked. There is no exception and no switch.
//! 2. A piece is in exactly one state: missing, partial, checking, have. One enum, not several bitfields.
//! 3. A piece is in the store before its waiters wake; a waiter looks in the store again after it registers.
//! 4. Every FUSE request is answered: with data, with an error by its deadline, or at shutdown. Never a short reply
//!    before the end of file, never a dropped one.
//! 5. The task that owns a [`Swarm`](swarm::Swarm) never waits on a peer or on a disk; a FUSE thread never waits on either.
//!    Every queue is bounded; a full queue to a peer drops that peer, not the engine.
//! 6. Pieces in a reader's window are pinned. Background fetching stops at the cache's capacity and never evicts a
//!    pinned piece.
//! 7. BitTorrent has no "un-have": a request for an evicted piece is rejected (fast extension) or left choked, and a
//!    peer is never blamed for our eviction.
//! 8. What a peer, tracker or file sent is bounded before it is believed: depth, length, count, rate.
//! 9. The user's own files are opened for reading alone; what is in the way of a download is overwritten only if asked.
//!
//! # Glossary
//!
//! - **metainfo**: the content of a `.torrent` file. **info hash**: SHA-1 of its raw `info` value; the torrent's name
//!   on the network.
//! - **piece**: the unit that is hashed and cached (16 KiB to some MiB). **block**: the unit that is requested (16 KiB).
//! - **partial**: a piece of which some blocks have arrived; its bytes are seen by no reader.
//! - **choke / unchoke**: a peer refuses / serves our requests. **interested**: we want something it has.
//! - **reader**: one open file handle; it has a **window** of pieces that it will need soon.
//! - **urgent**: wanted by a reader, by a deadline. **background**: the rest, rarest first.
//! - **end-game**: when all that is missing is already requested, it is requested from more than one peer.

#![cfg_attr(
    not(feature = "internals"),
    allow(
        unused_imports,
        reason = "a module re-exports every type of its signatures, also those that no other module names"
    )
)]
#![cfg_attr(
    not(feature = "cli"),
    allow(dead_code, reason = "the command line uses more of the other modules than the public interface does")
)]

#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "web")]
mod control;
mod discovery;
#[cfg(feature = "fs")]
mod fs;
mod http;
#[cfg(feature = "fs")]
mod library;
pub mod metainfo;
mod net;
#[cfg(feature = "fs")]
mod payload;
mod portmap;
mod route;
mod session;
mod store;
pub mod swarm;
#[allow(unsafe_code)]
mod sys;
#[cfg(feature = "cli")]
mod tracker;
mod util;
#[cfg(feature = "web")]
mod web;
mod webseed;
pub mod wire;

pub use discovery::{AnnounceError, Answer, DhtStatus, Scrape, Scraped, TrackerStatus};
#[cfg(feature = "fs")]
pub use fs::{MountError, MountOptions, Mounted, UnmountError};
pub use metainfo::Metainfo;
pub use net::{Blocklist, Config as NetConfig, Encryption, Limits, PortChoice, RateLimit};
pub use route::{Bind, Proxy, Route};
pub use session::{
    CheckProgress, FileStream, MetadataError, MetadataProgress, PeerReport, PeerSource, PortMapping, Priority,
    ReadCounts, ReadError, Reader, Report, SeedLimits, Session, SessionConfig, SessionError, Torrent, TorrentOptions,
    Verification,
};
pub use store::{Cache, CacheConfig, Place, StoreError, Usage};

/// Every other module, for this repository's own tests, benchmarks and fuzz targets.
#[cfg(feature = "internals")]
#[doc(hidden)]
#[allow(missing_docs)]
pub mod internals {
    macro_rules! expose {
        ($($module:ident)*) => { $(pub mod $module { pub use crate::$module::*; })* };
    }
    expose!(control discovery fs http library net payload portmap route session store tracker web webseed);
}
