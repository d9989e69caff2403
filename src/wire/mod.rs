//! The peer wire protocol: encoding and decoding of the handshake, of messages (BEP 3, 6, 10) and of the extensions'
//! messages (BEP 9, 11, 55).
//!
//! Sans-io. It bounds lengths and checks forms, but knows no torrent: the swarm checks piece numbers, which are plain
//! `u32` here.

mod allowed_fast;
mod bitfield;
mod client;
mod codec;
mod compact;
mod error;
mod extension;
mod handshake;
mod holepunch;
mod message;
mod metadata;
mod pex;

pub use allowed_fast::allowed_fast_set;
pub use bitfield::{bitfield_from_wire, bitfield_to_wire};
pub use client::{CLIENT_NAME, client_of};
pub use codec::{Decoder, MAX_BLOCK_LEN, MAX_EXTENDED_LEN, PIECE_HEADER_LEN, encode, encode_piece_header, encoded_len};
pub use compact::{put_compact, take_compact};
pub use error::WireError;
pub use extension::ExtensionHandshake;
pub use handshake::{HANDSHAKE_LEN, Handshake, PROTOCOL, Reserved};
pub use holepunch::{Holepunch, PunchError, UT_HOLEPUNCH};
pub use message::{Message, PeerId, Request};
pub use metadata::{METADATA_PIECE_LEN, MetadataMessage, UT_METADATA};
pub use pex::{MAX_PEX, Pex, PexFlags, UT_PEX};
