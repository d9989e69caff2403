//! The outputs of a [`Swarm`](super::Swarm): what the driver has to do.

use std::net::SocketAddr;
use std::ops::Range;

use super::event::PeerKey;
use crate::metainfo::PieceIndex;
use crate::wire::{Message, Request};

/// Why we close a connection. Shown in logs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DisconnectReason {
    /// The peer broke the protocol.
    Protocol(&'static str),
    /// The peer sent data that failed its hash.
    Liar,
    /// Both sides have everything, or neither wants anything.
    Useless,
    /// Another peer makes better use of the connection slot.
    Crowded,
    /// The same client is connected already, or it is ourselves.
    Duplicate,
    /// Nothing came for too long.
    Idle,
    /// The user paused the torrent.
    Paused,
}

/// An instruction to the driver.
#[derive(Debug, PartialEq)]
pub enum Action {
    /// Open a connection; answer with `Connected` or `ConnectFailed`.
    Connect(SocketAddr),
    /// Search for more peers now: a read is blocked on a piece that no peer serves. Repeated while it is.
    FindPeers,
    /// Send one message.
    Send(PeerKey, Message),
    /// Close the connection; no `Disconnected` follows.
    Disconnect(PeerKey, DisconnectReason),
    /// Pass on no further message of this peer before `Release`: it has sent as many requests as we queue.
    Hold(PeerKey),
    /// Pass on the messages of this peer again.
    Release(PeerKey),
    /// Refuse connections with this address and port for the rest of the session; port 0 stands for every port.
    /// Existing connections are closed by the `Disconnect`s that follow.
    Ban(SocketAddr),
    /// A piece from a web seed failed its hash: do not offer it again from there. A web seed is not banned, because its
    /// other files may be right.
    RefuseWebSeed(SocketAddr, PieceIndex),
    /// Offer this address to our DHT node, if there is one.
    AddDhtNode(SocketAddr),
    /// Read `request` from the store, send it as `Piece` and answer `Uploaded` when it has left the socket.
    Upload(PeerKey, Request),
    /// Every block of the piece is here: hash it, put it into the store, answer `Checked`.
    Check {
        /// The piece.
        piece: PieceIndex,
        /// The piece failed before: send the digests even if it is good, so that the liar is found.
        digests: bool,
    },
    /// Load [`Config::metadata`](super::Config::metadata) into memory; answer with `MetadataLoaded`. May be repeated before
    /// that.
    LoadMetadata,
    /// A partial piece is abandoned: free its buffer. (After `Checked { good: false }` the driver does so unasked.)
    Drop(PieceIndex),
    /// The pieces that readers need now and soon have changed: these, and only these, must not be evicted.
    Pin(Vec<Range<u32>>),
    /// The last missing piece has arrived (sent once, and not if the torrent was complete from the start).
    Completed,
}
