//! Protocol violations of peers.

use crate::metainfo::bencode::BencodeError;

/// A protocol violation. The connection is closed after it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The handshake does not begin with [`PROTOCOL`](super::PROTOCOL).
    #[error("the handshake is not a BitTorrent handshake")]
    NotBitTorrent,
    /// A message is longer than its kind allows.
    #[error("message {id} has {len} bytes, which is more than {max}")]
    TooLong {
        /// The message's kind.
        id: u8,
        /// Its length in bytes, with the kind.
        len: u32,
        /// The limit for its kind.
        max: u32,
    },
    /// A message of a fixed length has another one, or a message is too short for its kind.
    #[error("message {id} cannot have {len} bytes")]
    WrongLength {
        /// The message's kind.
        id: u8,
        /// Its length in bytes, with the kind.
        len: u32,
    },
    /// The length of a bitfield does not match the number of pieces.
    #[error("the bitfield has {len} bytes for {pieces} pieces")]
    BitfieldLength {
        /// Length of the bitfield in bytes.
        len: usize,
        /// Number of pieces.
        pieces: u32,
    },
    /// The bencode of an extension message is invalid.
    #[error("invalid extension message: {0}")]
    Extension(#[from] BencodeError),
}
