//! Metadata exchange (BEP 9 `ut_metadata`): the torrent's `info` value in pieces of 16 KiB.

use bytes::{Bytes, BytesMut};

use super::error::WireError;
use crate::metainfo::bencode::{self, BencodeError, Field, Limits, dict};

/// The extension's name in the extension handshake.
pub const UT_METADATA: &str = "ut_metadata";

/// Length of a metadata piece in bytes; the last one may be shorter (BEP 9).
pub const METADATA_PIECE_LEN: u32 = 16 << 10;

/// Length limit of a message's dictionary in bytes; real ones have some 50. The data of a piece follows it.
const MAX_DICT_LEN: usize = 1 << 10;

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
        /// Length of the whole metadata in bytes, which some clients leave out.
        total: Option<u32>,
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
                let total = total.map(|total| format!("10:total_sizei{total}e")).unwrap_or_default();
                let head = format!("d8:msg_typei1e5:piecei{piece}e{total}e");
                let mut payload = BytesMut::with_capacity(head.len() + data.len());
                payload.extend_from_slice(head.as_bytes());
                payload.extend_from_slice(data);
                payload.freeze()
            }
        }
    }

    /// Decodes a payload. Returns `None` for an unknown kind of message, which the BEP says to ignore. The data of a piece
    /// is copied, so that it does not keep the rest of the payload in memory.
    pub fn decode(payload: &Bytes) -> Result<Option<Self>, WireError> {
        let wrong = |what: &str| BencodeError::Kind(format!("the metadata message has no {what}"));
        let head = payload.get(..MAX_DICT_LEN).unwrap_or(payload);
        let (raw, consumed) = bencode::decode_prefix::<Field<Raw>>(head, &Limits::PEER)?;
        let raw = raw.ok().ok_or_else(|| wrong("dictionary"))?;
        let number = |field: Field<i64>| field.ok().and_then(|number| u32::try_from(number).ok());
        let piece = number(raw.piece).ok_or_else(|| wrong("piece"))?;
        Ok(match raw.kind.ok().ok_or_else(|| wrong("type"))? {
            0 => Some(Self::Request { piece }),
            1 => {
                let data = payload.get(consumed..).unwrap_or_default();
                if data.len() > METADATA_PIECE_LEN as usize {
                    return Err(wrong("piece of at most 16 KiB").into());
                }
                Some(Self::Data { piece, total: number(raw.total_size), data: Bytes::copy_from_slice(data) })
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
        let data = MetadataMessage::Data { piece: 0, total: Some(34256), data: Bytes::from_static(b"xxxx") };
        let payload = b"d8:msg_typei1e5:piecei0e10:total_sizei34256eexxxx";
        assert_eq!(read(payload), Some(data.clone()));
        assert_eq!(data.encode().as_ref(), payload);
        assert_eq!(read(b"d8:msg_typei2e5:piecei0ee"), Some(MetadataMessage::Reject { piece: 0 }));
        assert_eq!(read(b"d8:msg_typei9e5:piecei0ee"), None);
        let data = MetadataMessage::Data { piece: 0, total: None, data: Bytes::from_static(b"xxxx") };
        assert_eq!(read(b"d8:msg_typei1e5:piecei0eexxxx"), Some(data.clone()));
        assert_eq!(read(b"d8:msg_typei1e5:piecei0e10:total_sizei-1eexxxx"), Some(data));
    }

    #[test]
    fn padding_is_neither_accepted_nor_kept() {
        let encode = |padding: usize, data: usize| {
            let padding = String::from_utf8(vec![b'p'; padding]).unwrap();
            let mut payload = format!("d8:msg_typei1e1:p{}:{padding}5:piecei0ee", padding.len()).into_bytes();
            payload.resize(payload.len() + data, 7);
            Bytes::from(payload)
        };
        let piece = METADATA_PIECE_LEN as usize;
        let payload = encode(900, piece);
        let Ok(Some(MetadataMessage::Data { data, .. })) = MetadataMessage::decode(&payload) else { panic!("refused") };
        assert_eq!(data.len(), piece);
        assert!(payload.is_unique(), "the data keeps the payload in memory");
        for (padding, data) in [(1_000_000, piece), (2_000, 1), (0, piece + 1), (0, 1_000_000)] {
            assert!(MetadataMessage::decode(&encode(padding, data)).is_err(), "{padding} and {data} bytes");
        }
    }

    #[test]
    fn incomplete_messages_are_refused() {
        for payload in ["", "le", "de", "d8:msg_typei0ee", "d8:msg_typei0e5:piecei-1ee"] {
            assert!(MetadataMessage::decode(&Bytes::from(payload)).is_err(), "{payload}");
        }
    }

    proptest! {
        #[test]
        fn a_message_decodes_to_itself(kind in 0u8..3, piece: u32, total: Option<u32>, data: Vec<u8>) {
            let message = match kind {
                0 => MetadataMessage::Request { piece },
                1 => MetadataMessage::Data { piece, total, data: data.into() },
                _ => MetadataMessage::Reject { piece },
            };
            prop_assert_eq!(MetadataMessage::decode(&message.encode()), Ok(Some(message)));
        }
    }
}
