//! Bytes as they come from a server, cut into the torrent's blocks.

use bytes::{Buf, Bytes, BytesMut};

use crate::metainfo::Lengths;
use crate::wire::Request;

/// Cuts one run of the torrent's bytes into blocks, without copying those that come in one part. A block of which only
/// the end comes is passed over.
pub(super) struct Blocks {
    lengths: Lengths,
    /// The torrent's byte that comes next.
    at: u64,
    /// The beginning of the block that `at` lies in; empty if that did not come.
    part: BytesMut,
}

impl Blocks {
    /// The bytes that follow begin at `at` of the torrent.
    pub(super) fn new(lengths: Lengths, at: u64) -> Self {
        Self { lengths, at, part: BytesMut::new() }
    }

    /// The bytes that follow begin elsewhere. What was begun is dropped.
    pub(super) fn jump(&mut self, at: u64) {
        self.part.clear();
        self.at = at;
    }

    /// The torrent's byte that comes next.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// From where on blocks can still be made whole.
    pub(super) fn pending(&self) -> u64 {
        self.at - self.part.len() as u64
    }

    /// Takes bytes out of `chunk` up to the end of a block. `None`: all were taken, or the torrent has ended.
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
        fn whole_blocks_come_out_whatever_the_chunks(
            total in 1u64..200_000,
            piece_len in prop_oneof![Just(16_384u64), Just(32_768), 1_000u64..70_000],
            start in 0u64..100_000,
            sizes in proptest::collection::vec(1usize..40_000, 1..40),
        ) {
            let lengths = Lengths::new(total, piece_len).unwrap();
            let data: Vec<u8> = (0..total).map(|at| (at % 251) as u8).collect();
            let start = start.min(total);
            let mut blocks = Blocks::new(lengths, start);
            let (mut at, mut came) = (start as usize, Vec::new());
            for size in sizes.into_iter().cycle().take(400) {
                let end = (at + size).min(data.len());
                let mut chunk = Bytes::copy_from_slice(&data[at..end]);
                while let Some((request, bytes)) = blocks.next(&mut chunk) {
                    prop_assert_eq!(request.length as usize, bytes.len());
                    let block = lengths.block(request.piece, request.begin, request.length);
                    prop_assert!(block.is_some());
                    let from = lengths.offset_of(block.unwrap().piece) + u64::from(request.begin);
                    prop_assert_eq!(&data[from as usize..][..bytes.len()], &bytes[..]);
                    came.push(from);
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
            prop_assert_eq!(came, expected);
        }
    }

    #[test]
    fn blocks_that_come_in_one_part_are_not_copied() {
        let mut chunk = Bytes::from(vec![7; 40_000]);
        let there = chunk.as_ptr();
        let mut blocks = Blocks::new(Lengths::new(1 << 20, 1 << 18).unwrap(), 0);
        let (_, data) = blocks.next(&mut chunk).unwrap();
        assert_eq!(data.as_ptr(), there);
    }

    #[test]
    fn what_follows_the_torrent_is_not_a_block() {
        let mut blocks = Blocks::new(Lengths::new(10, 16_384).unwrap(), 0);
        let mut chunk = Bytes::from(vec![0; 20]);
        assert_eq!(blocks.next(&mut chunk).map(|(request, _)| request.length), Some(10));
        assert!(blocks.next(&mut chunk).is_none());
    }
}
