//! Messages of the peer wire protocol.

use bytes::Bytes;

/// 20 bytes that identify a client on the network (by the convention of BEP 20, `-XX1234-` and 12 random bytes).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PeerId(pub [u8; 20]);

/// A byte range of one piece, as in a request message. Not checked against a torrent.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Request {
    /// Piece number.
    pub piece: u32,
    /// Offset in the piece, in bytes.
    pub begin: u32,
    /// Length in bytes.
    pub length: u32,
}

/// A message of the peer wire protocol. "We" is the sender.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    /// An empty message that keeps the connection alive.
    KeepAlive,
    /// 0: we no longer serve your requests.
    Choke,
    /// 1: we serve your requests.
    Unchoke,
    /// 2: we want pieces that you have.
    Interested,
    /// 3: we want no piece that you have.
    NotInterested,
    /// 4: we now have this piece.
    Have(u32),
    /// 5: the pieces that we have, most significant bit first. Valid only as the first message after the handshake.
    /// [`bitfield_from_wire`](super::bitfield_from_wire) decodes it.
    Bitfield(Bytes),
    /// 6: send this block.
    Request(Request),
    /// 7: the bytes of a block.
    Piece {
        /// Piece number.
        piece: u32,
        /// Offset in the piece, in bytes.
        begin: u32,
        /// The bytes.
        data: Bytes,
    },
    /// 8: a request is withdrawn.
    Cancel(Request),
    /// 9: our DHT port (BEP 5).
    Port(u16),
    /// 0x0D: we suggest that you download this piece from us (BEP 6).
    Suggest(u32),
    /// 0x0E: we have every piece (BEP 6).
    HaveAll,
    /// 0x0F: we have no piece (BEP 6).
    HaveNone,
    /// 0x10: we will not serve this request (BEP 6).
    Reject(Request),
    /// 0x11: you may request this piece while choked (BEP 6).
    AllowedFast(u32),
    /// 20: a message of an extension (BEP 10). `id` 0 is the extension handshake.
    Extended {
        /// The extension, by the id that the receiver assigned to it.
        id: u8,
        /// Bencode, followed by raw bytes in some extensions.
        payload: Bytes,
    },
}
