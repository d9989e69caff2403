//! Blocks on their way into a socket: several with one system call, and each reported when the socket has taken it.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes, BytesMut};

use crate::wire::{self, Request};

/// Bytes of blocks that are written together: half of what the swarm has on its way to one peer, so that the other half
/// comes meanwhile.
pub(super) const WRITE_LEN: usize = 128 * 1024;

/// Messages that are written together. The blocks are shared, not copied.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    chunks: VecDeque<Bytes>,
    /// Bytes in `chunks`.
    remaining: usize,
    /// Bytes pushed since the start, and of these written.
    pushed: usize,
    written: usize,
    /// The blocks, each with the number of bytes that must be written before it is.
    ends: VecDeque<(usize, Request)>,
}

impl Outgoing {
    /// Takes encoded messages, which are written first.
    pub fn new(small: &mut BytesMut) -> Self {
        let mut outgoing = Self::default();
        outgoing.push_bytes(small.split().freeze());
        outgoing
    }

    fn push_bytes(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.remaining += bytes.len();
            self.pushed += bytes.len();
            self.chunks.push_back(bytes);
        }
    }

    /// Adds a block.
    pub fn push(&mut self, request: Request, data: Bytes) {
        self.push_bytes(Bytes::copy_from_slice(&wire::encode_piece_header(request)));
        self.push_bytes(data);
        self.ends.push_back((self.pushed, request));
    }

    /// Encrypts everything, for which it is copied.
    pub fn encrypt(&mut self, apply: impl FnOnce(&mut [u8])) {
        let mut all = BytesMut::with_capacity(self.remaining);
        self.chunks.drain(..).for_each(|chunk| all.extend_from_slice(&chunk));
        apply(&mut all);
        self.chunks.push_back(all.freeze());
    }

    /// Removes the blocks that are written, and returns their requests.
    pub fn take_written(&mut self) -> Vec<Request> {
        let count = self.ends.iter().take_while(|(end, _)| *end <= self.written).count();
        self.ends.drain(..count).map(|(_, request)| request).collect()
    }
}

impl Buf for Outgoing {
    fn remaining(&self) -> usize {
        self.remaining
    }

    fn chunk(&self) -> &[u8] {
        self.chunks.front().map_or(&[], |chunk| chunk)
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let filled = slices.iter_mut().zip(&self.chunks);
        filled.map(|(slice, chunk)| *slice = IoSlice::new(chunk)).count()
    }

    fn advance(&mut self, mut count: usize) {
        assert!(count <= self.remaining, "more was written than there was");
        self.remaining -= count;
        self.written += count;
        while let Some(first) = self.chunks.front_mut() {
            if count < first.len() {
                return first.advance(count);
            }
            count -= first.len();
            self.chunks.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Message;

    #[test]
    fn a_block_is_reported_when_its_last_byte_is_written() {
        let request = |piece, length| Request { piece, begin: 0, length };
        let requests = [request(1, 100), request(2, 5), request(3, 60)];
        for step in [1, 7, 64, 1000] {
            let mut small = BytesMut::from(&b"small"[..]);
            let mut expected = small.to_vec();
            let mut outgoing = Outgoing::new(&mut small);
            for request in requests {
                let data = Bytes::from(vec![request.piece as u8; request.length as usize]);
                outgoing.push(request, data.clone());
                let mut message = BytesMut::new();
                wire::encode(&Message::Piece { piece: request.piece, begin: 0, data }, &mut message);
                expected.extend_from_slice(&message);
            }
            if step == 7 {
                outgoing.encrypt(|bytes| bytes.iter_mut().for_each(|byte| *byte ^= 0x55));
                expected.iter_mut().for_each(|byte| *byte ^= 0x55);
            }
            let (mut written, mut reported) = (Vec::new(), Vec::new());
            while outgoing.has_remaining() {
                let mut slices = [IoSlice::new(&[]); 4];
                let count = outgoing.chunks_vectored(&mut slices);
                let now: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.iter()).take(step).copied().collect();
                outgoing.advance(now.len());
                written.extend(now);
                reported.extend(outgoing.take_written());
                let ends = [5 + 113, 5 + 113 + 18, 5 + 113 + 18 + 73];
                assert_eq!(reported.len(), ends.iter().filter(|end| **end <= written.len()).count());
            }
            assert!(written == expected && reported == requests, "{step}");
        }
    }
}
