//! One torrent's swarm as a pure state machine: which peers to reach, what to ask of whom, whom to serve.
//!
//! Sans-io. Time comes in as an argument, randomness from an owned seeded generator; `handle(now, event)` changes the
//! state, `poll()` yields what is to be done. It never sees a byte of a block: the driver holds the data and says which
//! block came from whom. So a test runs a hundred peers for an hour of virtual time in a second.
//!
//! After each [`Swarm::handle`] and [`Swarm::block`] the driver calls [`Swarm::poll`] until it yields `None`.
//!
//! # Map
//!
//! | file | owns |
//! |---|---|
//! | `machine` | [`Swarm`]: events in, actions out, the clock's tick |
//! | `messages` | what a peer says and asks |
//! | `connections` | peers coming and going, duplicates, whom to call |
//! | `policy` | [`Policy`]: every tuning constant, and how long a queue each need is allowed |
//! | `sched` | readers, and which blocks to request from which peer |
//! | `verdicts` | checked pieces, bans |
//! | `orders` | what the user says while it runs: on demand, pause, priorities |
//! | `snapshot` | what it looks like at one moment, for people |
//! | `choker`, `super_seed` | whom we serve, and how a torrent's first seeder does |
//! | `metadata` | before there is a swarm: the metadata of a magnet link |
//! | `pieces`, `availability` | every piece's one state; the missing ones, rarest first |
//! | `peer`, `uploads`, `rate` | one connection |
//! | `blame`, `addresses` | who lied; whom to call and whom never again |
//!
//! # Cost
//!
//! A block that comes costs a few map look-ups; requests go out in batches when a quarter of a peer's pipeline has run
//! empty. Nothing here walks over all pieces or peers for one block. Torrents of millions of pieces cost 11 bytes a
//! piece (one while there is no peer), and one bit a piece for each peer that is not a seed.

mod addresses;
mod availability;
mod blame;
mod choker;
mod connections;
mod machine;
mod messages;
mod metadata;
mod orders;
mod peer;
mod pieces;
mod policy;
mod rate;
mod sched;
mod snapshot;
mod super_seed;
mod uploads;
mod verdicts;

pub use machine::Swarm;
pub use metadata::{MAX_METADATA, MetadataAction, MetadataFetch};
pub use policy::Policy;
pub use snapshot::{AwaitedPiece, PartialSnapshot, PeerSnapshot, ReaderSnapshot, Snapshot, WaitSnapshot};

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;

use fixedbitset::FixedBitSet;

use crate::metainfo::{BlockIndex, InfoHash, Lengths, PieceIndex};
use crate::wire::{Message, PeerId, Request};

/// One connection, named by the driver; never used twice in the life of a `Swarm`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PeerKey(pub u64);

/// One open file handle, named by the driver; never used twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ReaderId(pub u64);

/// One read that is blocked, named by the driver; never used twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct WantId(pub u64);

/// Which side opened a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// They called us; the address's port is not one to call back.
    Incoming,
    /// We called them.
    Outgoing,
}

/// What happened, told by the driver.
#[derive(Debug)]
pub enum Event {
    /// Time passed: `next_wakeup` was reached.
    Tick,
    /// Addresses to try, from a tracker, the user or another finder of peers.
    PeersFound(Vec<SocketAddr>),
    /// `Action::Connect` came to nothing (refused, timed out, wrong info hash, ourselves).
    ConnectFailed(SocketAddr),
    /// Both handshakes are done.
    Connected {
        /// The new connection.
        peer: PeerKey,
        /// Its remote end.
        addr: SocketAddr,
        /// Who opened it.
        direction: Direction,
        /// The id in their handshake.
        id: PeerId,
        /// Both sides have the fast extension (BEP 6).
        fast: bool,
        /// Both sides have the extension protocol (BEP 10).
        extended: bool,
    },
    /// The connection is gone, by whichever side.
    Disconnected(PeerKey),
    /// Any message but `Piece`, which goes through [`Swarm::block`]. Of the extension protocol nothing is read here.
    Message(PeerKey, Message),
    /// Their extension handshake says how many requests of ours they queue (BEP 10 `reqq`).
    Reqq {
        /// Who says so.
        peer: PeerKey,
        /// Requests.
        reqq: u32,
    },
    /// Their extension handshake says that they will fetch nothing more (BEP 21).
    UploadOnly(PeerKey),
    /// Serve others from now on, or stop it.
    Serve(bool),
    /// Fetch only what readers need from now on, or all.
    OnDemand(bool),
    /// Fetch and give nothing from now on, or begin again.
    Pause(bool),
    /// How background fetching treats pieces from now on; those in neither set are ordinary. Readers get what they need
    /// all the same.
    Priorities {
        /// Left out.
        skip: FixedBitSet,
        /// Before all others.
        high: FixedBitSet,
    },
    /// The answer to `Action::Upload`: the block has left through the socket, or could not be read (evicted: `false`).
    Uploaded {
        /// To whom.
        peer: PeerKey,
        /// What.
        request: Request,
        /// Whether it was sent.
        sent: bool,
    },
    /// The answer to `Action::Check`, sent once the piece is in the store if good.
    Checked {
        /// The piece.
        piece: PieceIndex,
        /// Its hash matched.
        good: bool,
        /// Blocks proven wrong; empty where the hash covers the whole piece.
        bad_blocks: Vec<BlockIndex>,
        /// A digest of each block, when it was bad or when `Action::Check` asked for it; empty otherwise.
        digests: Vec<u64>,
    },
    /// The store dropped a piece that we had.
    Evicted(PieceIndex),
    /// How many more bytes background fetching may add to the store (partial pieces not yet counted).
    Room(u64),
    /// What this torrent may have of what all torrents share.
    Share {
        /// Connections at most, below [`Config::max_peers`].
        peers: usize,
        /// Let go of the one that is of least use.
        shed: bool,
        /// [`Config::max_partial`] from now on.
        max_partial: u64,
    },
    /// A file was opened; `bytes` is the whole file, counted in the torrent.
    Open {
        /// The handle.
        reader: ReaderId,
        /// The file's place in the torrent.
        bytes: Range<u64>,
    },
    /// A read began, whether it can be answered at once or not. Sent at least whenever a read enters another piece.
    Read {
        /// The handle.
        reader: ReaderId,
        /// What is read, counted in the torrent.
        bytes: Range<u64>,
    },
    /// A read is blocked until every piece of `bytes` is had.
    Want {
        /// The read.
        want: WantId,
        /// Its handle.
        reader: ReaderId,
        /// What is read, counted in the torrent.
        bytes: Range<u64>,
    },
    /// That read was answered or given up.
    Unwant(WantId),
    /// The handle was closed.
    Close(ReaderId),
}

/// Why a peer is let go. Shown in logs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Goodbye {
    /// It broke the protocol.
    Protocol(&'static str),
    /// It sent data that failed its hash.
    Liar,
    /// Both of us have everything, or neither wants anything.
    Useless,
    /// A better use for the connection slot.
    Crowded,
    /// The same client is connected already.
    Duplicate,
    /// Nothing came for too long.
    Idle,
    /// The user paused the torrent.
    Paused,
}

/// What the driver is to do.
#[derive(Debug, PartialEq)]
pub enum Action {
    /// Open a connection; answer with `Connected` or `ConnectFailed`.
    Connect(SocketAddr),
    /// Send one message.
    Send(PeerKey, Message),
    /// Close the connection and say nothing more of it (no `Disconnected` follows).
    Disconnect(PeerKey, Goodbye),
    /// Refuse this address and port for the rest of the session; port 0: the address on any port. Its connections are
    /// closed by `Disconnect`s that follow.
    Ban(SocketAddr),
    /// Read `request` from the store, send it as `Piece` and answer `Uploaded` when it has left the socket.
    Upload(PeerKey, Request),
    /// Every block of the piece is in: hash it, put it into the store, answer `Checked`.
    Check {
        /// The piece.
        piece: PieceIndex,
        /// It failed before: send the digests even when it is good, so that the liar is found.
        digests: bool,
    },
    /// A partial piece is given up: its buffer can go. (After `Checked { good: false }` the driver drops it unasked.)
    Drop(PieceIndex),
    /// The pieces readers need now and soon have changed: these, and only these, must not be evicted.
    Pin(Vec<Range<u32>>),
    /// The last missing piece has come (sent once, not when complete from the start).
    Completed,
}

/// In which order background fetching starts pieces.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum PickOrder {
    /// The pieces that fewest peers have first, random among equals: keeps every piece alive and peers useful to each
    /// other.
    #[default]
    RarestFirst,
    /// By number. Worse for any swarm; here to measure the other against, in the simulations.
    InOrder,
}

/// What governs a swarm.
#[derive(Clone, Debug)]
pub struct Config {
    /// The torrent's name; with a peer's address it gives the pieces served to it while choked (BEP 6).
    pub info_hash: InfoHash,
    /// The torrent's sizes.
    pub lengths: Lengths,
    /// Seeds the generator behind every random choice.
    pub seed: u64,
    /// Our own id: a peer with the same one is ourselves.
    pub our_id: PeerId,
    /// Fetch only what readers need.
    pub on_demand: bool,
    /// Serve others.
    pub upload: bool,
    /// Complete from the start and the only one, perhaps: give each piece once and let the others spread it (BEP 16).
    pub super_seed: bool,
    /// Connections at most.
    pub max_peers: usize,
    /// Half-open connections at most.
    pub max_connecting: usize,
    /// Bytes of partial and checking pieces at most; what a blocked read waits for may pass it by a few pieces.
    pub max_partial: u64,
    /// In which order background fetching starts pieces.
    pub order: PickOrder,
    /// How requests are scheduled.
    pub policy: Arc<Policy>,
}

/// A handful of numbers for people.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stats {
    /// Connections.
    pub peers: usize,
    /// Of them, those that have everything.
    pub seeds: usize,
    /// Pieces had.
    pub have: u32,
    /// Bytes a second received as wanted blocks, over the last few seconds.
    pub down_rate: u64,
    /// Bytes a second of blocks sent.
    pub up_rate: u64,
    /// Wanted bytes received in this session.
    pub downloaded: u64,
    /// Bytes sent in this session.
    pub uploaded: u64,
    /// Bytes received that failed a hash or came twice.
    pub wasted: u64,
}
