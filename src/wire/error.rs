//! How a peer breaks the protocol.

use crate::metainfo::bencode::BencodeError;

/// What a peer sent that it may not. The connection is of no further use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The handshake does not begin with [`PROTOCOL`](super::PROTOCOL).
    #[error("the handshake is not of the BitTorrent protocol")]
    NotBitTorrent,
    /// A message longer than its kind can be.
    #[error("message {id} of {len} bytes is longer than {max}")]
    TooLong {
        /// The message's number.
        id: u8,
        /// Its length, the number included.
        len: u32,
        /// The most its kind may have.
        max: u32,
    },
    /// A message of a fixed form with another length, or too short for its form.
    #[error("message {id} has {len} bytes, which is not its form")]
    WrongLength {
        /// The message's number.
        id: u8,
        /// Its length, the number included.
        len: u32,
    },
    /// A bitfield that is not one bit a piece in whole bytes.
    #[error("a bitfield of {len} bytes for {pieces} pieces")]
    BitfieldLength {
        /// Bytes there are.
        len: usize,
        /// Pieces there are.
        pieces: u32,
    },
    /// A bitfield with a bit beyond the last piece.
    #[error("a bitfield with a spare bit set")]
    BitfieldSpare,
    /// An extension message that is not the bencode it should be.
    #[error("an extension message is unsound: {0}")]
    Extension(#[from] BencodeError),
}
