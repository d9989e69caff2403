//! Encoding and decoding of messages (BEP 3, 5, 6, 10).
//!
//! A message consists of its length (4 bytes, big-endian), a byte with its kind, and its content. The decoder checks the
//! length against the kind's maximum before it reserves memory, returns contents without copying them, and discards
//! messages of unknown kinds as they arrive.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::error::WireError;
use super::message::{Message, Request};

/// Length limit of a block in a `Piece` message, in bytes. We request 16 KiB; the margin tolerates peers that send more.
pub const MAX_BLOCK_LEN: u32 = 128 << 10;

/// Length limit of an extension message's content, in bytes; longer ones are discarded as they arrive. Those that we
/// understand are below 20 KiB. Every connection may have one of them in memory.
pub const MAX_EXTENDED_LEN: u32 = 64 << 10;

/// Length of a `Piece` message before the block, in bytes: length, kind, piece and begin.
pub const PIECE_HEADER_LEN: usize = 13;

/// Length limit of a message that is discarded, in bytes; a longer one ends the connection.
const MAX_UNKNOWN_LEN: u32 = 1 << 20;

/// Length of the length prefix, in bytes.
const PREFIX_LEN: usize = 4;

/// Kinds of messages on the wire.
mod id {
    pub const CHOKE: u8 = 0;
    pub const UNCHOKE: u8 = 1;
    pub const INTERESTED: u8 = 2;
    pub const NOT_INTERESTED: u8 = 3;
    pub const HAVE: u8 = 4;
    pub const BITFIELD: u8 = 5;
    pub const REQUEST: u8 = 6;
    pub const PIECE: u8 = 7;
    pub const CANCEL: u8 = 8;
    pub const PORT: u8 = 9;
    pub const SUGGEST: u8 = 0x0d;
    pub const HAVE_ALL: u8 = 0x0e;
    pub const HAVE_NONE: u8 = 0x0f;
    pub const REJECT: u8 = 0x10;
    pub const ALLOWED_FAST: u8 = 0x11;
    pub const EXTENDED: u8 = 20;
}

/// Returns the number of bytes that [`encode`] appends.
pub fn encoded_len(message: &Message) -> usize {
    let body = match message {
        Message::KeepAlive => 0,
        Message::Choke
        | Message::Unchoke
        | Message::Interested
        | Message::NotInterested
        | Message::HaveAll
        | Message::HaveNone => 1,
        Message::Port(_) => 3,
        Message::Have(_) | Message::Suggest(_) | Message::AllowedFast(_) => 5,
        Message::Request(_) | Message::Cancel(_) | Message::Reject(_) => 13,
        Message::Bitfield(bits) => 1 + bits.len(),
        Message::Piece { data, .. } => 9 + data.len(),
        Message::Extended { payload, .. } => 2 + payload.len(),
    };
    PREFIX_LEN + body
}

/// Appends an encoded message. This copies the block of a `Piece`; [`encode_piece_header`] and a vectored write avoid that.
pub fn encode(message: &Message, out: &mut BytesMut) {
    let len = encoded_len(message);
    out.reserve(len);
    // Our own messages are far shorter than 4 GiB.
    out.put_u32((len - PREFIX_LEN) as u32);
    let mut number = |id: u8, piece: u32| {
        out.put_u8(id);
        out.put_u32(piece);
    };
    match message {
        Message::KeepAlive => {}
        Message::Choke => out.put_u8(id::CHOKE),
        Message::Unchoke => out.put_u8(id::UNCHOKE),
        Message::Interested => out.put_u8(id::INTERESTED),
        Message::NotInterested => out.put_u8(id::NOT_INTERESTED),
        Message::HaveAll => out.put_u8(id::HAVE_ALL),
        Message::HaveNone => out.put_u8(id::HAVE_NONE),
        Message::Have(piece) => number(id::HAVE, *piece),
        Message::Suggest(piece) => number(id::SUGGEST, *piece),
        Message::AllowedFast(piece) => number(id::ALLOWED_FAST, *piece),
        Message::Request(request) => put_request(out, id::REQUEST, request),
        Message::Cancel(request) => put_request(out, id::CANCEL, request),
        Message::Reject(request) => put_request(out, id::REJECT, request),
        Message::Port(port) => {
            out.put_u8(id::PORT);
            out.put_u16(*port);
        }
        Message::Bitfield(bits) => {
            out.put_u8(id::BITFIELD);
            out.put_slice(bits);
        }
        Message::Piece { piece, begin, data } => {
            out.put_u8(id::PIECE);
            out.put_u32(*piece);
            out.put_u32(*begin);
            out.put_slice(data);
        }
        Message::Extended { id, payload } => {
            out.put_u8(id::EXTENDED);
            out.put_u8(*id);
            out.put_slice(payload);
        }
    }
}

fn put_request(out: &mut BytesMut, id: u8, request: &Request) {
    out.put_u8(id);
    out.put_u32(request.piece);
    out.put_u32(request.begin);
    out.put_u32(request.length);
}

/// Encodes the part of a `Piece` message before the block. The block of `request.length` bytes must follow.
pub fn encode_piece_header(request: Request) -> [u8; PIECE_HEADER_LEN] {
    let mut header = [0; PIECE_HEADER_LEN];
    header[..4].copy_from_slice(&9u32.saturating_add(request.length).to_be_bytes());
    header[4] = id::PIECE;
    header[5..9].copy_from_slice(&request.piece.to_be_bytes());
    header[9..].copy_from_slice(&request.begin.to_be_bytes());
    header
}

/// Decodes messages from a connection's receive buffer.
#[derive(Clone, Debug)]
pub struct Decoder {
    max_bitfield: u32,
    /// Bytes still to discard of a message of an unknown kind.
    to_skip: usize,
}

impl Decoder {
    /// Creates a decoder for a torrent with this number of pieces.
    pub fn new(pieces: u32) -> Self {
        Self { max_bitfield: pieces.div_ceil(8), to_skip: 0 }
    }

    /// Takes the next message from the buffer. Returns `None` if it is incomplete, and then has reserved memory for the rest
    /// of it. After an error, close the connection.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Message>, WireError> {
        loop {
            let skipped = self.to_skip.min(buffer.len());
            buffer.advance(skipped);
            self.to_skip -= skipped;

            let Some((prefix, rest)) = buffer.split_first_chunk::<PREFIX_LEN>() else { return Ok(None) };
            let len = u32::from_be_bytes(*prefix);
            if len == 0 {
                buffer.advance(PREFIX_LEN);
                return Ok(Some(Message::KeepAlive));
            }
            let Some(&id) = rest.first() else { return Ok(None) };
            if !self.is_known(id, len)? {
                self.to_skip = PREFIX_LEN + len as usize;
                continue;
            }
            let whole = PREFIX_LEN + len as usize;
            if buffer.len() < whole {
                buffer.reserve(whole - buffer.len());
                return Ok(None);
            }
            buffer.advance(PREFIX_LEN + 1);
            let content = buffer.split_to(len as usize - 1).freeze();
            return Ok(Some(message(id, content)));
        }
    }

    /// Checks a message's length, which includes its kind. Returns whether the kind is known.
    fn is_known(&self, id: u8, len: u32) -> Result<bool, WireError> {
        let (min, max) = match id {
            id::CHOKE | id::UNCHOKE | id::INTERESTED | id::NOT_INTERESTED | id::HAVE_ALL | id::HAVE_NONE => (1, 1),
            id::PORT => (3, 3),
            id::HAVE | id::SUGGEST | id::ALLOWED_FAST => (5, 5),
            id::REQUEST | id::CANCEL | id::REJECT => (13, 13),
            id::BITFIELD => (1, 1 + self.max_bitfield),
            id::PIECE => (9, 9 + MAX_BLOCK_LEN),
            id::EXTENDED if len <= 2 + MAX_EXTENDED_LEN => (2, 2 + MAX_EXTENDED_LEN),
            _ if len <= MAX_UNKNOWN_LEN => return Ok(false),
            _ => return Err(WireError::TooLong { id, len, max: MAX_UNKNOWN_LEN }),
        };
        if min == max && len != min || len < min {
            Err(WireError::WrongLength { id, len })
        } else if len > max {
            Err(WireError::TooLong { id, len, max })
        } else {
            Ok(true)
        }
    }
}

/// Decodes a message of a known kind whose length was checked.
fn message(id: u8, mut content: Bytes) -> Message {
    match id {
        id::CHOKE => Message::Choke,
        id::UNCHOKE => Message::Unchoke,
        id::INTERESTED => Message::Interested,
        id::NOT_INTERESTED => Message::NotInterested,
        id::HAVE_ALL => Message::HaveAll,
        id::HAVE_NONE => Message::HaveNone,
        id::PORT => Message::Port(content.get_u16()),
        id::HAVE => Message::Have(content.get_u32()),
        id::SUGGEST => Message::Suggest(content.get_u32()),
        id::ALLOWED_FAST => Message::AllowedFast(content.get_u32()),
        id::REQUEST => Message::Request(get_request(&mut content)),
        id::CANCEL => Message::Cancel(get_request(&mut content)),
        id::REJECT => Message::Reject(get_request(&mut content)),
        id::BITFIELD => Message::Bitfield(content),
        id::PIECE => Message::Piece { piece: content.get_u32(), begin: content.get_u32(), data: content },
        _ => Message::Extended { id: content.get_u8(), payload: content },
    }
}

fn get_request(content: &mut Bytes) -> Request {
    Request { piece: content.get_u32(), begin: content.get_u32(), length: content.get_u32() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encoded(message: &Message) -> BytesMut {
        let mut out = BytesMut::new();
        encode(message, &mut out);
        out
    }

    fn decode_all(bytes: &[u8], pieces: u32) -> Result<Vec<Message>, WireError> {
        let mut buffer = BytesMut::from(bytes);
        let mut decoder = Decoder::new(pieces);
        let mut messages = Vec::new();
        while let Some(message) = decoder.decode(&mut buffer)? {
            messages.push(message);
        }
        Ok(messages)
    }

    #[test]
    fn encodings_are_those_of_the_specifications() {
        let request = Request { piece: 1, begin: 0x4000, length: 0x4000 };
        let cases: [(Message, &[u8]); 10] = [
            (Message::KeepAlive, &[0, 0, 0, 0]),
            (Message::Choke, &[0, 0, 0, 1, 0]),
            (Message::NotInterested, &[0, 0, 0, 1, 3]),
            (Message::Have(258), &[0, 0, 0, 5, 4, 0, 0, 1, 2]),
            (Message::Bitfield(Bytes::from_static(&[0xa0])), &[0, 0, 0, 2, 5, 0xa0]),
            (Message::Request(request), &[0, 0, 0, 13, 6, 0, 0, 0, 1, 0, 0, 0x40, 0, 0, 0, 0x40, 0]),
            (Message::Port(6881), &[0, 0, 0, 3, 9, 0x1a, 0xe1]),
            (Message::HaveAll, &[0, 0, 0, 1, 0x0e]),
            (Message::Reject(request), &[0, 0, 0, 13, 16, 0, 0, 0, 1, 0, 0, 0x40, 0, 0, 0, 0x40, 0]),
            (Message::Extended { id: 0, payload: Bytes::from_static(b"de") }, &[0, 0, 0, 4, 20, 0, b'd', b'e']),
        ];
        for (message, bytes) in cases {
            assert_eq!(encoded(&message).as_ref(), bytes, "{message:?}");
            assert_eq!(decode_all(bytes, 3), Ok(vec![message]));
        }
    }

    #[test]
    fn a_header_and_a_block_are_a_piece_message() {
        let header = encode_piece_header(Request { piece: 7, begin: 3, length: 4 });
        let message = Message::Piece { piece: 7, begin: 3, data: Bytes::from_static(b"abcd") };
        assert_eq!([header.as_slice(), b"abcd"].concat(), encoded(&message));
    }

    #[test]
    fn blocks_are_not_copied() {
        let message = Message::Piece { piece: 0, begin: 0, data: vec![7; 16384].into() };
        let mut buffer = encoded(&message);
        let there = buffer[PIECE_HEADER_LEN..].as_ptr();
        let Ok(Some(Message::Piece { data, .. })) = Decoder::new(1).decode(&mut buffer) else { panic!("no piece") };
        assert_eq!(data.as_ptr(), there);
    }

    #[test]
    fn memory_is_reserved_only_for_valid_lengths() {
        let mut buffer = BytesMut::from(&[0, 0, 0x40, 9, id::PIECE][..]);
        assert_eq!(Decoder::new(1).decode(&mut buffer), Ok(None));
        assert!(buffer.capacity() >= 0x4000 + PIECE_HEADER_LEN);

        let mut buffer = BytesMut::from(&[0xff, 0xff, 0xff, 0xff, id::PIECE][..]);
        assert!(Decoder::new(1).decode(&mut buffer).is_err());
    }

    #[test]
    fn lengths_are_checked_by_kind() {
        let head = |len: u32, id: u8| [&len.to_be_bytes()[..], &[id], &[0; 40]].concat();
        for (id, len) in [
            (id::CHOKE, 2),
            (id::HAVE, 4),
            (id::HAVE, 6),
            (id::REQUEST, 12),
            (id::PIECE, 8),
            (id::PORT, 5),
            (id::EXTENDED, 1),
        ] {
            assert_eq!(decode_all(&head(len, id), 8), Err(WireError::WrongLength { id, len }));
        }
        for (id, max) in
            [(id::BITFIELD, 2), (id::PIECE, 9 + MAX_BLOCK_LEN), (id::EXTENDED, MAX_UNKNOWN_LEN), (99, MAX_UNKNOWN_LEN)]
        {
            let len = max + 1;
            assert_eq!(decode_all(&head(len, id), 8), Err(WireError::TooLong { id, len, max }));
        }
    }

    #[test]
    fn unknown_kinds_are_discarded_as_they_arrive() {
        let mut decoder = Decoder::new(8);
        let mut buffer = BytesMut::from(&[0, 0, 2, 0, 99][..]);
        assert_eq!(decoder.decode(&mut buffer), Ok(None));
        buffer.extend_from_slice(&[1; 500]);
        assert_eq!(decoder.decode(&mut buffer), Ok(None));
        assert!(buffer.is_empty());
        buffer.extend_from_slice(&[1; 11]);
        encode(&Message::Unchoke, &mut buffer);
        assert_eq!(decoder.decode(&mut buffer), Ok(Some(Message::Unchoke)));
        assert!(buffer.is_empty());
    }

    #[test]
    fn long_extension_messages_are_discarded_as_they_arrive() {
        let extended = |len: u32| Message::Extended { id: 1, payload: vec![1; len as usize].into() };
        let longest = extended(MAX_EXTENDED_LEN);
        let mut buffer = encoded(&extended(MAX_EXTENDED_LEN + 1));
        encode(&longest, &mut buffer);
        let mut decoder = Decoder::new(8);
        let rest = buffer.split_off(100);
        assert_eq!(decoder.decode(&mut buffer), Ok(None));
        assert!(buffer.is_empty());
        buffer.unsplit(rest);
        assert_eq!(decoder.decode(&mut buffer), Ok(Some(longest)));
    }

    fn any_message() -> impl Strategy<Value = Message> {
        let request = || any::<(u32, u32, u32)>().prop_map(|(piece, begin, length)| Request { piece, begin, length });
        let data = || proptest::collection::vec(any::<u8>(), 0..60).prop_map(Bytes::from);
        prop_oneof![
            proptest::sample::select(vec![
                Message::KeepAlive,
                Message::Choke,
                Message::Unchoke,
                Message::Interested,
                Message::NotInterested,
                Message::HaveAll,
                Message::HaveNone,
            ]),
            any::<u32>().prop_map(Message::Have),
            any::<u32>().prop_map(Message::Suggest),
            any::<u32>().prop_map(Message::AllowedFast),
            any::<u16>().prop_map(Message::Port),
            request().prop_map(Message::Request),
            request().prop_map(Message::Cancel),
            request().prop_map(Message::Reject),
            data().prop_map(Message::Bitfield),
            (any::<u32>(), any::<u32>(), data()).prop_map(|(piece, begin, data)| Message::Piece { piece, begin, data }),
            (any::<u8>(), data()).prop_map(|(id, payload)| Message::Extended { id, payload }),
        ]
    }

    proptest! {
        #[test]
        fn messages_decode_whatever_the_chunks(
            messages in proptest::collection::vec(any_message(), 0..12),
            cuts in proptest::collection::vec(1usize..40, 1..20),
            unknown in proptest::collection::vec(any::<u8>(), 0..30),
        ) {
            // A message of an unknown kind between every two.
            let mut stream = BytesMut::new();
            for message in &messages {
                let before = stream.len();
                encode(message, &mut stream);
                prop_assert_eq!(stream.len() - before, encoded_len(message));
                stream.put_u32(1 + unknown.len() as u32);
                stream.put_u8(200);
                stream.put_slice(&unknown);
            }
            let mut decoder = Decoder::new(1000);
            let mut buffer = BytesMut::new();
            let mut decoded = Vec::new();
            let mut cuts = cuts.iter().cycle();
            while !stream.is_empty() {
                let len = stream.len().min(*cuts.next().unwrap());
                buffer.extend_from_slice(&stream.split_to(len));
                while let Some(message) = decoder.decode(&mut buffer).unwrap() {
                    decoded.push(message);
                }
            }
            prop_assert!(buffer.is_empty());
            prop_assert_eq!(decoded, messages);
        }

        #[test]
        fn random_bytes_do_not_panic(bytes in proptest::collection::vec(prop_oneof![Just(0u8), 0u8..24, any::<u8>()], 0..200)) {
            let _ = decode_all(&bytes, 100);
        }
    }
}
