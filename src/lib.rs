//! torrentfs: a FUSE filesystem that streams torrents, and the engine behind it as a library.
//!
//! A [`Session`] runs torrents. Each [`Torrent`] opens its files as [`Reader`]s: a read waits until its bytes have been
//! downloaded and verified, and the swarm fetches them ahead of everything else.
//!
//! ```
//! use tokio::io::{AsyncReadExt, AsyncSeekExt};
//! use torrentfs::{Cache, CacheConfig, Metainfo, Session, SessionConfig, TorrentOptions};
//!
//! # mod seeder {
//! #     // A seeder on loopback that has one file.
//! #     use std::net::SocketAddr;
//! #     use std::path::Path;
//! #     use std::sync::Arc;
//! #     use torrentfs::metainfo::{FileKind, NewFile, NewTorrent, hash_pieces};
//! #     use torrentfs::*;
//! #
//! #     pub fn config(dir: &Path) -> SessionConfig {
//! #         let cache = CacheConfig { dir: dir.to_owned(), disk_limit: None, memory: 32 << 20 };
//! #         let loopback = Route { bind: "127.0.0.1".parse().unwrap(), ..Route::default() };
//! #         let net = NetConfig { port: PortChoice::Exactly(0), route: loopback, ..NetConfig::default() };
//! #         SessionConfig { net, ..SessionConfig::new(Cache::open(cache).unwrap()) }
//! #     }
//! #
//! #     pub async fn start(dir: &Path) -> (Session, Arc<Torrent>, SocketAddr) {
//! #         let film: Vec<u8> = (0..4 << 20).map(|n: u32| (n ^ n >> 9) as u8).collect();
//! #         std::fs::write(dir.join("film.mkv"), &film).unwrap();
//! #         let (hashes, len) = hash_pieces(&film[..], 1 << 18).unwrap();
//! #         let file = NewFile { path: vec![], len, kind: FileKind::Regular { executable: false } };
//! #         let torrent = NewTorrent { name: "film.mkv".into(), piece_len: 1 << 18, files: vec![file], ..NewTorrent::default() };
//! #         let torrent = torrent.build(&hashes).unwrap();
//! #         std::fs::write(dir.join("film.torrent"), &torrent).unwrap();
//! #         let seeder = Session::start(config(&dir.join("seeder"))).unwrap();
//! #         let options = TorrentOptions { place: Place::Seed(dir.join("film.mkv")), ..TorrentOptions::default() };
//! #         let torrent = seeder.add(Metainfo::parse(&torrent).unwrap(), options).await.unwrap();
//! #         let addr = ([127, 0, 0, 1], seeder.port()).into();
//! #         (seeder, torrent, addr)
//! #     }
//! # }
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let (_seeder, _seeding, peer) = seeder::start(dir.path()).await;
//! # let path = dir.path().join("film.torrent");
//! # let cache = dir.path().join("cache");
//! let cache = Cache::open(CacheConfig { dir: cache, disk_limit: Some(20 << 30), memory: 32 << 20 })?;
//! let config = SessionConfig::new(cache);
//! # let config = SessionConfig { net: seeder::config(&dir.path().join("unused")).net, ..config };
//! let session = Session::start(config)?;
//!
//! // Peers come from the torrent's trackers, from other peers, and from here.
//! let options = TorrentOptions { peers: vec![peer], ..TorrentOptions::default() };
//! let torrent = session.add(Metainfo::parse(&std::fs::read(path)?)?, options).await?;
//!
//! let film = torrent.metainfo().layout.find("film.mkv").ok_or("no such file")?;
//! let mut stream = torrent.open(film).ok_or("no such file")?.into_stream();
//! stream.seek(std::io::SeekFrom::End(-65_536)).await?;
//! let mut end = Vec::new();
//! stream.read_to_end(&mut end).await?;
//! assert_eq!(end.len(), 65_536);
//!
//! session.remove(&torrent).await;
//! // Now the directory of the cache can be opened again.
//! session.stop().await;
//! # Ok(())
//! # }
//! ```
//!
//! [`metainfo`] reads and makes `.torrent` files, [`swarm`] is the protocol as a pure state machine, and [`wire`] its
//! messages; each is usable alone. The rest of this page is for those who change the crate.
//!
//! # Features
//!
//! `fs` mounts torrents ([`Mounted`]), `web` serves a mount over HTTP, `cli` is the programs. All are on by default;
//! without them the crate is the engine alone.
//!
//! # The path of a read
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
//! | `cli` | the command line: one file a subcommand; arguments to calls, errors to messages | how anything works | control, discovery, fs, http, library, metainfo, net, payload, route, session, store, sys, tracker, util, web |
//! | `web` | everything served over HTTP: API, status page, files, metrics; and the client of the API | FUSE, peer connections | control, metainfo, session, sys, util |
//! | `control` | the status that a running mount reports, and the orders it accepts | HTTP, FUSE, peer connections | discovery, library, metainfo, net, session, swarm, wire |
//! | `library` | the torrents of a mount: added, removed, picked up from watched directories | the command line | discovery, fs, metainfo, payload, session, store, sys, util |
//! | `fs` | the tree of inodes, the answers to reads, passthrough, the FUSE mount | peers, trackers | metainfo, session, sys |
//! | `session` | torrents at work: sockets, disk and timers for each torrent's `Swarm` | the peer protocol | discovery, http, metainfo, net, portmap, route, store, swarm, sys, util, webseed, wire |
//! | `webseed` | HTTP servers as peers that have everything (BEP 17, 19) | scheduling, choking | http, metainfo, net, util, wire |
//! | `net` | peer connections over TCP and uTP: dialing, the listener, encryption, rate limits | scheduling, choking | metainfo, route, util, wire |
//! | `discovery` | finders of peers: trackers, the DHT, local discovery | everything but addresses | http, metainfo, route, sys, util, wire |
//! | `portmap` | our port at the home router (UPnP, NAT-PMP, PCP) | everything else | util |
//! | `tracker` | a BitTorrent tracker over HTTP and UDP: keeps and returns the peers of each swarm | everything else | metainfo, sys, util, wire |
//! | `http` | bounded HTTP requests: limits, redirects, access to the local network, masked URLs | the meaning of a response | metainfo, route, util |
//! | `route` | the way out of the machine: proxy, local address, interface | everything else | nothing |
//! | `store` | the LRU piece cache: a tier in memory, a tier on disk, the state that survives a restart; files of the user | the network, FUSE | metainfo, sys, util |
//! | [`swarm`] | sans-io: the peer protocol with its extensions, scheduling of requests, choker | tokio, sockets, files, the clock | metainfo, util, wire |
//! | [`wire`] | sans-io: codecs of handshakes and messages | tokio, sockets, files, the clock | metainfo, util |
//! | `payload` | files of the user: walked and hashed for new torrents, checked against existing ones | running torrents | metainfo, sys |
//! | [`metainfo`] | bencode, `.torrent` files, magnet links, the layout of pieces and files | tokio, sockets, files, the clock | nothing |
//! | `sys` | system calls that the standard library lacks; the only `unsafe` code | everything else | nothing |
//! | `util` | locks, classes of addresses, text for display, timers that fire together | everything else | nothing |
//!
//! `README.md` is for users of the program, `CONTRIBUTING.md` for those who change it. Beside `src/`: `mount-helper/` (the
//! program that mount(8) runs, and the files that packages install for systemd), `tests/` (simulated swarms in virtual
//! time, real mounts, real peers), `benches/`, `fuzz/`.
//!
//! # Invariants
//!
//! 1. A reader gets bytes only of pieces whose hash was checked. There is no exception and no switch.
//!    (A complete file that the kernel reads itself was checked before it was opened. What other programs do to it later is
//!    noticed within seconds.)
//! 2. A piece is in exactly one state: missing, partial, checking or have. One enum holds it, not several bitfields.
//! 3. A piece is in the store before its waiters wake, and a waiter looks in the store again after it registers.
//! 4. Every FUSE request is answered: with data, with an error by its deadline, or at shutdown. No reply is dropped, and none
//!    is short before the end of the file.
//! 5. The task that owns a [`Swarm`](swarm::Swarm) never waits for a peer or a disk, and neither does a FUSE thread. Every
//!    queue is bounded; a peer whose queue is full is disconnected, so that it cannot stop the engine.
//! 6. Pieces in a reader's window, and those of a file that the kernel reads itself, are pinned: they are never evicted.
//!    Background fetching stops when the cache is full.
//! 7. A peer cannot be told that a piece is gone. A request for an evicted piece is rejected (fast extension) or left
//!    unanswered, and a peer is never blamed for our eviction.
//! 8. Input from peers, trackers and files is checked against limits before memory is allocated for it: depth, length,
//!    count, rate.
//! 9. Files of the user are opened read-only. A file in the way of a download is overwritten only on request.
//!
//! # Glossary
//!
//! - **metainfo**: the content of a `.torrent` file. **info hash**: the SHA-1 of its raw `info` value, which identifies the
//!   torrent on the network.
//! - **piece**: the unit of hashing and caching (16 KiB to many MiB). **block**: the unit of requests (16 KiB).
//! - **partial piece**: one of which some blocks have arrived. No reader gets its bytes.
//! - **choke / unchoke**: a peer refuses / serves our requests. **interested**: we want a piece that the peer has.
//! - **reader**: one open file handle. Its **window** is the range of bytes that it will need soon.
//! - **passthrough**: the kernel reads an open, complete file in the cache itself, without a request to us.
//! - **urgent**: needed by a reader, by a deadline. **background**: everything else, rarest pieces first.
//! - **end-game**: when every missing block is requested already, blocks are requested from a second peer.

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
    ReadCounts, ReadError, Reader, Report, SeedLimits, Session, SessionConfig, SessionError, Span, Torrent,
    TorrentOptions, Verification, WebSeedReport,
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
