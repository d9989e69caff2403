//! The messages of the peer wire protocol.

use bytes::Bytes;

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
    /// [`bitfield_from_wire`](super::bitfield_from_wire) reads it.
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
