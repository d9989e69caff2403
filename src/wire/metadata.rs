//! Metadata exchange (BEP 9 `ut_metadata`): the torrent's `info` value in pieces of 16 KiB.

use bytes::{Bytes, BytesMut};

use super::error::WireError;
use crate::metainfo::bencode::{self, BencodeError, Field, Limits, dict};

/// The extension's name in the extension handshake.
pub const UT_METADATA: &str = "ut_metadata";

/// Length of a metadata piece in bytes; the last one may be shorter (BEP 9).
pub const METADATA_PIECE_LEN: u32 = 16 << 10;

/// A metadata message. Pieces are numbered from 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetadataMessage {
    /// The sender wants a piece.
    Request {
        /// The piece number.
        piece: u32,
    },
    /// The sender delivers a piece.
    Data {
        /// The piece number.
        piece: u32,
        /// Length of the whole metadata in bytes.
        total: u32,
        /// The piece's bytes.
        data: Bytes,
    },
    /// The sender lacks a piece or has sent enough.
    Reject {
        /// The piece number.
        piece: u32,
    },
}

dict! {
    struct Raw {
        kind: i64 = "msg_type",
        piece: i64 = "piece",
        total_size: i64 = "total_size",
    }
}

impl MetadataMessage {
    /// Encodes the payload of a `Message::Extended` with the id that the receiver assigned to [`UT_METADATA`].
    pub fn encode(&self) -> Bytes {
        match self {
            Self::Request { piece } => format!("d8:msg_typei0e5:piecei{piece}ee").into(),
            Self::Reject { piece } => format!("d8:msg_typei2e5:piecei{piece}ee").into(),
            Self::Data { piece, total, data } => {
                let head = format!("d8:msg_typei1e5:piecei{piece}e10:total_sizei{total}ee");
                let mut payload = BytesMut::with_capacity(head.len() + data.len());
                payload.extend_from_slice(head.as_bytes());
                payload.extend_from_slice(data);
                payload.freeze()
            }
        }
    }

    /// Decodes a payload. Returns `None` for an unknown kind of message, which the BEP says to ignore.
    pub fn decode(payload: &Bytes) -> Result<Option<Self>, WireError> {
        let wrong = |what: &str| BencodeError::Kind(format!("the metadata message has no {what}"));
        let (raw, consumed) = bencode::decode_prefix::<Field<Raw>>(payload, &Limits::PEER)?;
        let raw = raw.ok().ok_or_else(|| wrong("dictionary"))?;
        let number = |field: Field<i64>| field.ok().and_then(|number| u32::try_from(number).ok());
        let piece = number(raw.piece).ok_or_else(|| wrong("piece"))?;
        Ok(match raw.kind.ok().ok_or_else(|| wrong("type"))? {
            0 => Some(Self::Request { piece }),
            1 => {
                let total = number(raw.total_size).ok_or_else(|| wrong("size"))?;
                Some(Self::Data { piece, total, data: payload.slice(consumed..) })
            }
            2 => Some(Self::Reject { piece }),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_examples_of_bep_9() {
        let read = |payload: &'static [u8]| MetadataMessage::decode(&Bytes::from_static(payload)).unwrap();
        assert_eq!(read(b"d8:msg_typei0e5:piecei0ee"), Some(MetadataMessage::Request { piece: 0 }));
        let data = MetadataMessage::Data { piece: 0, total: 34256, data: Bytes::from_static(b"xxxx") };
        let payload = b"d8:msg_typei1e5:piecei0e10:total_sizei34256eexxxx";
        assert_eq!(read(payload), Some(data.clone()));
        assert_eq!(data.encode().as_ref(), payload);
        assert_eq!(read(b"d8:msg_typei2e5:piecei0ee"), Some(MetadataMessage::Reject { piece: 0 }));
        assert_eq!(read(b"d8:msg_typei9e5:piecei0ee"), None);
    }

    #[test]
    fn incomplete_messages_are_refused() {
        for payload in ["", "le", "de", "d8:msg_typei0ee", "d8:msg_typei0e5:piecei-1ee", "d8:msg_typei1e5:piecei0ee"] {
            assert!(MetadataMessage::decode(&Bytes::from(payload)).is_err(), "{payload}");
        }
    }

    proptest! {
        #[test]
        fn a_message_decodes_to_itself(kind in 0u8..3, piece: u32, total: u32, data: Vec<u8>) {
            let message = match kind {
                0 => MetadataMessage::Request { piece },
                1 => MetadataMessage::Data { piece, total, data: data.into() },
                _ => MetadataMessage::Reject { piece },
            };
            prop_assert_eq!(MetadataMessage::decode(&message.encode()), Ok(Some(message)));
        }
    }
}
