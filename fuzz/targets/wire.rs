//! A peer's bytes from the handshake on: the decoded messages do not depend on the read sizes, and each message decodes to
//! itself after encoding.

#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use torrentfs::wire::{Decoder, HANDSHAKE_LEN, Handshake, Message, WireError, bitfield_from_wire, encode, encoded_len};

fn decode(pieces: u32, bytes: &[u8], chunk: usize) -> (Vec<Message>, Option<WireError>) {
    let (mut decoder, mut buffer, mut messages) = (Decoder::new(pieces), BytesMut::new(), Vec::new());
    for chunk in bytes.chunks(chunk) {
        buffer.extend_from_slice(chunk);
        loop {
            match decoder.decode(&mut buffer) {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(error) => return (messages, Some(error)),
            }
        }
    }
    (messages, None)
}

fuzz_target!(|input: (u16, u8, &[u8])| {
    let (pieces, chunk, bytes) = (u32::from(input.0), usize::from(input.1) + 1, input.2);
    if let Some(Ok(handshake)) = bytes.first_chunk::<HANDSHAKE_LEN>().map(Handshake::decode) {
        assert_eq!(Handshake::decode(&handshake.encode()), Ok(handshake));
    }
    let (messages, error) = decode(pieces, bytes, usize::MAX);
    assert_eq!(decode(pieces, bytes, chunk), (messages.clone(), error));
    let mut written = BytesMut::new();
    for message in &messages {
        let before = written.len();
        encode(message, &mut written);
        assert_eq!(written.len() - before, encoded_len(message));
        if let Message::Bitfield(bits) = message {
            let _ = bitfield_from_wire(bits, pieces);
        }
    }
    assert_eq!(decode(pieces, &written, chunk), (messages, None));
});
