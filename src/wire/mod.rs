//! The peer wire protocol: handshake and messages to bytes and back (BEP 3, 6, 10), and the
//! extensions' messages (BEP 9, 11, 55).
//!
//! Sans-io and without judgement: it bounds lengths and shapes. Whether a piece number lies in the torrent is for
//! the swarm, which alone knows the torrent; so numbers here are plain `u32`.

mod allowed_fast;
mod bitfield;
mod client;
mod codec;
mod compact;
mod error;
mod extension;
mod handshake;
mod holepunch;
mod local;
mod metadata;
mod pex;

use bytes::Bytes;

pub use allowed_fast::allowed_fast_set;
pub use bitfield::{bitfield_from_wire, bitfield_to_wire};
pub use client::{CLIENT_NAME, client_of};
pub use codec::{Decoder, MAX_BLOCK_LEN, MAX_EXTENDED_LEN, PIECE_HEADER_LEN, encode, encode_piece_header, encoded_len};
pub use compact::{put_compact, take_compact};
pub use error::WireError;
pub use extension::ExtensionHandshake;
pub use handshake::{HANDSHAKE_LEN, Handshake, PROTOCOL, Reserved};
pub use holepunch::{Holepunch, PunchError, UT_HOLEPUNCH};
pub use local::is_local;
pub use metadata::{METADATA_PIECE_LEN, MetadataMessage, UT_METADATA};
pub use pex::{MAX_PEX, Pex, PexFlags, UT_PEX};

/// 20 bytes that name a client on the network (BEP 20 convention: `-XX1234-` and 12 random bytes).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PeerId(pub [u8; 20]);

/// `(index, begin, length)` as in a request: a range of one piece, in bytes. Not yet checked against a torrent.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Request {
    /// Piece number.
    pub piece: u32,
    /// First byte within the piece.
    pub begin: u32,
    /// Bytes.
    pub length: u32,
}

/// One message of the peer wire protocol.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    /// An empty message: still here.
    KeepAlive,
    /// 0: your requests are not served from now on.
    Choke,
    /// 1: your requests are served.
    Unchoke,
    /// 2
    Interested,
    /// 3
    NotInterested,
    /// 4: the sender now has this piece.
    Have(u32),
    /// 5: what the sender has, most significant bit first. First message after the handshake or not at all.
    /// [`bitfield_from_wire`] reads it.
    Bitfield(Bytes),
    /// 6
    Request(Request),
    /// 7: a block's bytes.
    Piece {
        /// Piece number.
        piece: u32,
        /// First byte within the piece.
        begin: u32,
        /// The bytes.
        data: Bytes,
    },
    /// 8
    Cancel(Request),
    /// 9: the sender's DHT port (BEP 5).
    Port(u16),
    /// 0x0D: fetch this piece from me (BEP 6).
    Suggest(u32),
    /// 0x0E (BEP 6)
    HaveAll,
    /// 0x0F (BEP 6)
    HaveNone,
    /// 0x10: this request will not be served (BEP 6).
    Reject(Request),
    /// 0x11: this piece may be requested while choked (BEP 6).
    AllowedFast(u32),
    /// 20: extension protocol (BEP 10); `id` 0 is its handshake.
    Extended {
        /// Which extension, by the receiver's numbering.
        id: u8,
        /// Bencode, then for some extensions raw bytes.
        payload: Bytes,
    },
}
