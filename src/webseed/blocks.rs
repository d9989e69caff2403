//! Splitting of received bytes into blocks.

use bytes::{Buf, Bytes, BytesMut};

use crate::metainfo::Lengths;
use crate::wire::Request;

/// Splits one run of the torrent's bytes into blocks. A block that arrives in one chunk is not copied. A block whose
/// beginning is missing is skipped.
pub(super) struct Blocks {
    lengths: Lengths,
    /// Offset in the torrent of the next byte.
    at: u64,
    /// The received beginning of the block at `at`; empty if there is none.
    part: BytesMut,
}

impl Blocks {
    /// Starts at offset `at` of the torrent.
    pub(super) fn new(lengths: Lengths, at: u64) -> Self {
        Self { lengths, at, part: BytesMut::new() }
    }

    /// Continues at another offset and drops an incomplete block.
    pub(super) fn jump(&mut self, at: u64) {
        self.part.clear();
        self.at = at;
    }

    /// Returns the offset in the torrent of the next byte.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// Returns the offset from which blocks can still become complete.
    pub(super) fn pending(&self) -> u64 {
        self.at - self.part.len() as u64
    }

    /// Consumes `chunk` up to the end of a block and returns the block. Returns `None` if the chunk or the torrent has
    /// ended.
    pub(super) fn next(&mut self, chunk: &mut Bytes) -> Option<(Request, Bytes)> {
        while chunk.has_remaining() {
            let block = self.lengths.block_at(self.at)?;
            let range = self.lengths.block_range(block);
            let missing = (range.end - self.at) as usize;
            let taken = chunk.split_to(missing.min(chunk.len()));
            let skipped = self.part.is_empty() && self.at != range.start;
            self.at += taken.len() as u64;
            if skipped {
                continue;
            }
            if taken.len() < missing {
                self.part.extend_from_slice(&taken);
                return None;
            }
            let data = if self.part.is_empty() {
                taken
            } else {
                self.part.extend_from_slice(&taken);
                self.part.split().freeze()
            };
            let begin = self.lengths.begin_of(block);
            return Some((Request { piece: block.piece.get(), begin, length: data.len() as u32 }, data));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn chunks_of_any_size_become_whole_blocks(
            total in 1u64..200_000,
            piece_len in prop_oneof![Just(16_384u64), Just(32_768), 1_000u64..70_000],
            start in 0u64..100_000,
            sizes in proptest::collection::vec(1usize..40_000, 1..40),
        ) {
            let lengths = Lengths::new(total, piece_len).unwrap();
            let data: Vec<u8> = (0..total).map(|at| (at % 251) as u8).collect();
            let start = start.min(total);
            let mut blocks = Blocks::new(lengths, start);
            let (mut at, mut received) = (start as usize, Vec::new());
            for size in sizes.into_iter().cycle().take(400) {
                let end = (at + size).min(data.len());
                let mut chunk = Bytes::copy_from_slice(&data[at..end]);
                while let Some((request, bytes)) = blocks.next(&mut chunk) {
                    prop_assert_eq!(request.length as usize, bytes.len());
                    let block = lengths.block(request.piece, request.begin, request.length);
                    prop_assert!(block.is_some());
                    let from = lengths.offset_of(block.unwrap().piece) + u64::from(request.begin);
                    prop_assert_eq!(&data[from as usize..][..bytes.len()], &bytes[..]);
                    received.push(from);
                }
                at = end;
                prop_assert!(blocks.pending() <= blocks.at());
            }
            let expected: Vec<u64> = lengths
                .iter()
                .flat_map(|piece| lengths.blocks(piece))
                .map(|block| lengths.offset_of(block.piece) + u64::from(lengths.begin_of(block)))
                .filter(|from| *from >= start)
                .take_while(|from| {
                    let piece = lengths.piece_at(*from).unwrap();
                    (*from + 16_384).min(lengths.range_of(piece).end) <= at as u64
                })
                .collect();
            prop_assert_eq!(received, expected);
        }
    }

    #[test]
    fn blocks_in_one_chunk_are_not_copied() {
        let mut chunk = Bytes::from(vec![7; 40_000]);
        let there = chunk.as_ptr();
        let mut blocks = Blocks::new(Lengths::new(1 << 20, 1 << 18).unwrap(), 0);
        let (_, data) = blocks.next(&mut chunk).unwrap();
        assert_eq!(data.as_ptr(), there);
    }

    #[test]
    fn bytes_after_the_torrent_are_ignored() {
        let mut blocks = Blocks::new(Lengths::new(10, 16_384).unwrap(), 0);
        let mut chunk = Bytes::from(vec![0; 20]);
        assert_eq!(blocks.next(&mut chunk).map(|(request, _)| request.length), Some(10));
        assert!(blocks.next(&mut chunk).is_none());
    }
}
