//! The inputs of a [`Swarm`](super::Swarm): what the driver reports to it.

use std::net::SocketAddr;
use std::ops::Range;

use fixedbitset::FixedBitSet;

use crate::metainfo::{BlockIndex, PieceIndex};
use crate::wire::{Message, PeerId, Request};

/// One connection, numbered by the driver; never reused in the life of a `Swarm`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PeerKey(pub u64);

/// One open file handle, numbered by the driver; never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ReaderId(pub u64);

/// One blocked read, numbered by the driver; never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct WantId(pub u64);

/// The side that opened a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// The peer connected to us; the port of its address is not one to dial.
    Incoming,
    /// We connected to the peer.
    Outgoing,
}

/// Where a peer's address came from.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum PeerSource {
    /// A tracker.
    Tracker,
    /// The DHT.
    Dht,
    /// Another peer, by peer exchange or hole punching.
    Pex,
    /// An announce in the local network.
    Lsd,
    /// The peer connected to us.
    Incoming,
    /// The user.
    Manual,
    /// A search for the metadata of a magnet link.
    Magnet,
    /// The torrent's list of web seeds.
    WebSeed,
    /// Blocks came from it in an earlier run.
    Remembered,
}

/// A connection whose handshakes are done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NewPeer {
    /// The connection.
    pub key: PeerKey,
    /// Its remote end.
    pub addr: SocketAddr,
    /// The side that opened it.
    pub direction: Direction,
    /// The id in the peer's handshake.
    pub id: PeerId,
    /// Both sides support the fast extension (BEP 6).
    pub fast: bool,
    /// Both sides support the extension protocol (BEP 10).
    pub extended: bool,
    /// The connection runs over uTP.
    pub utp: bool,
    /// The connection is encrypted.
    pub encrypted: bool,
    /// The TCP port at which others can reach us; 0 if they cannot.
    pub our_port: u16,
    /// The port of our DHT node, if the peer has a DHT node, too.
    pub our_dht_port: Option<u16>,
}

impl NewPeer {
    /// A plaintext TCP connection with the fast extension and the extension protocol, for which we name no ports.
    pub fn new(key: PeerKey, addr: SocketAddr, direction: Direction, id: PeerId) -> Self {
        Self {
            key,
            addr,
            direction,
            id,
            fast: true,
            extended: true,
            utp: false,
            encrypted: false,
            our_port: 0,
            our_dht_port: None,
        }
    }
}

/// Something that happened, reported by the driver.
#[derive(Debug)]
pub enum Event {
    /// `next_wakeup` has passed.
    Tick,
    /// Peers' addresses to try.
    PeersFound {
        /// The addresses.
        addrs: Vec<SocketAddr>,
        /// Where they came from. Of an address found more than once, the first source is kept.
        source: PeerSource,
    },
    /// A peer called us in a way that we refuse: dial it, and any other known address of its host. Port 0: the port is not
    /// known.
    Refused(SocketAddr),
    /// `Action::Connect` failed (refused, timed out, wrong info hash).
    ConnectFailed(SocketAddr),
    /// A connection was made, by whichever side.
    Connected(NewPeer),
    /// The connection is gone, by whichever side.
    Disconnected(PeerKey),
    /// Any message but `Piece`, which goes through [`Swarm::block`](super::Swarm::block).
    Message(PeerKey, Message),
    /// Serve others from now on, or stop.
    Serve(bool),
    /// Fetch only what readers need from now on, or everything.
    OnDemand(bool),
    /// Begin pieces in the background from now on (true), or finish those that are begun and wait for the torrent's turn.
    Turn(bool),
    /// Stop fetching and serving, or resume.
    Pause(bool),
    /// How background fetching treats pieces from now on; pieces in neither set are ordinary. Readers get what they
    /// need in any case.
    Priorities {
        /// Not fetched.
        skip: FixedBitSet,
        /// Fetched before all others.
        high: FixedBitSet,
    },
    /// Extension messages have left the socket. Each `Send` of one is reported once.
    ExtensionsSent {
        /// The receiver.
        peer: PeerKey,
        /// Their number.
        count: usize,
    },
    /// The answer to `Action::Upload`.
    Uploaded {
        /// The receiver.
        peer: PeerKey,
        /// The block.
        request: Request,
        /// The block has left through the socket; `false` if it could not be read (it was evicted).
        sent: bool,
    },
    /// The answer to `Action::Check`, sent once a good piece is in the store.
    Checked {
        /// The piece.
        piece: PieceIndex,
        /// Its hash matched.
        good: bool,
        /// Blocks proven wrong; empty where the hash covers the whole piece.
        bad_blocks: Vec<BlockIndex>,
        /// A digest of each block, if the piece was bad or `Action::Check` asked for it; empty otherwise.
        digests: Vec<u64>,
    },
    /// The answer to `Action::LoadMetadata`: the metadata is in memory, or cannot be read.
    MetadataLoaded,
    /// The store dropped a piece that we had.
    Evicted(PieceIndex),
    /// How many more bytes background fetching may add to the store (partial pieces not yet counted).
    Room(u64),
    /// This torrent's share of what all torrents of the session have together.
    Share {
        /// Maximum number of connections, below [`Config::max_peers`](super::Config::max_peers).
        peers: usize,
        /// Close the least useful connection.
        shed: bool,
        /// [`Config::max_partial`](super::Config::max_partial) from now on.
        max_partial: u64,
        /// A read of another torrent is blocked on blocks that are on their way, so nothing is fetched in the background.
        yielding: bool,
    },
    /// A file was opened.
    Open {
        /// The handle.
        reader: ReaderId,
        /// The whole file, as bytes of the torrent.
        bytes: Range<u64>,
    },
    /// A read began, whether it can be answered at once or not. Sent at least whenever a read enters another piece.
    Read {
        /// The handle.
        reader: ReaderId,
        /// The bytes read, as bytes of the torrent.
        bytes: Range<u64>,
    },
    /// A read is blocked until we have every piece of `bytes`.
    Want {
        /// The read.
        want: WantId,
        /// Its handle.
        reader: ReaderId,
        /// The bytes read, as bytes of the torrent.
        bytes: Range<u64>,
    },
    /// That read was answered or abandoned.
    Unwant(WantId),
    /// The handle was closed.
    Close(ReaderId),
}
