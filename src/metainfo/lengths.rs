//! The arithmetic of pieces and blocks: the only place that knows how a torrent's bytes are cut up.
//!
//! A [`PieceIndex`] or a [`Block`] comes only from a [`Lengths`], which checks it against the torrent. Code that holds
//! one needs no further bounds check for that torrent.

use std::ops::Range;

use fixedbitset::FixedBitSet;

/// Length of a block, the unit of a request, in bytes (BEP 3: all current implementations use 2^14).
pub const BLOCK_LEN: u32 = 16 * 1024;

/// Largest piece accepted, in bytes. A piece is hashed and cached whole, so this bounds memory.
pub const MAX_PIECE_LEN: u32 = 128 << 20;

/// Largest `piece length` accepted of a torrent whose pieces are shorter than that, because there is only one: the largest
/// that libtorrent accepts.
const MAX_STATED_LEN: u32 = 32_767 * BLOCK_LEN;

/// Largest number of pieces accepted in one torrent; bounds the bitfield that a peer may send (512 KiB).
pub const MAX_PIECES: u32 = 4 << 20;

/// A piece of one torrent, known to exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PieceIndex(u32);

impl PieceIndex {
    /// Returns the piece number as sent on the wire.
    pub fn get(self) -> u32 {
        self.0
    }

    /// Returns the piece number as an index into a slice or a bitset.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl std::fmt::Display for PieceIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Consecutive pieces of one torrent; an iterator over them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PieceRange(Range<u32>);

impl PieceRange {
    /// Returns the piece numbers as sent on the wire.
    pub fn numbers(&self) -> Range<u32> {
        self.0.clone()
    }

    /// Returns the piece numbers as indexes into a slice or a bitset.
    pub fn indexes(&self) -> Range<usize> {
        self.0.start as usize..self.0.end as usize
    }
}

impl Iterator for PieceRange {
    type Item = PieceIndex;

    fn next(&mut self) -> Option<PieceIndex> {
        self.0.next().map(PieceIndex)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl DoubleEndedIterator for PieceRange {
    fn next_back(&mut self) -> Option<PieceIndex> {
        self.0.next_back().map(PieceIndex)
    }
}

impl ExactSizeIterator for PieceRange {}

/// A block's number within its piece; block 0 starts the piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockIndex(u32);

impl BlockIndex {
    /// Returns the block number.
    pub fn get(self) -> u32 {
        self.0
    }

    /// Returns the block number as an index into a slice.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A block of one torrent, known to exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Block {
    /// The piece it is part of.
    pub piece: PieceIndex,
    /// Its number within the piece.
    pub index: BlockIndex,
}

/// A total length and a piece length that make no torrent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LengthsError {
    /// The torrent is one empty file, which no client accepts, or it has no file at all.
    #[error("it has no bytes: it is one empty file or none, which other programs refuse")]
    Empty,
    /// The piece length is 0 or more than [`MAX_PIECE_LEN`].
    #[error("its piece length {0} is not between 1 and {MAX_PIECE_LEN} bytes")]
    PieceLength(u64),
    /// The number of pieces is more than [`MAX_PIECES`].
    #[error("its {0} pieces are more than the {MAX_PIECES} that are accepted")]
    TooManyPieces(u64),
}

/// The lengths of one torrent: its bytes are cut into pieces, and each piece into blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lengths {
    total: u64,
    piece_len: u32,
    pieces: u32,
}

impl Lengths {
    /// Cuts `total` bytes into pieces of `piece_len` bytes, the last one perhaps shorter. A torrent of empty files has no
    /// pieces.
    pub fn new(total: u64, piece_len: u64) -> Result<Self, LengthsError> {
        let piece_len = u32::try_from(piece_len)
            .ok()
            .filter(|len| (1..=MAX_STATED_LEN).contains(len))
            .filter(|len| u64::from(*len).min(total) <= MAX_PIECE_LEN.into())
            .ok_or(LengthsError::PieceLength(piece_len))?;
        let pieces = total.div_ceil(u64::from(piece_len));
        let pieces =
            u32::try_from(pieces).ok().filter(|n| *n <= MAX_PIECES).ok_or(LengthsError::TooManyPieces(pieces))?;
        Ok(Self { total, piece_len, pieces })
    }

    /// Returns the torrent's length in bytes, pad files included.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Returns the torrent's `piece length`, to show or to record it. Use the other methods to calculate with it.
    pub fn piece_len(&self) -> u32 {
        self.piece_len
    }

    /// Returns the length of the longest piece: the piece length, or less in a torrent of one short piece.
    pub fn longest_piece(&self) -> u32 {
        self.total.min(u64::from(self.piece_len)) as u32
    }

    /// Returns the bytes in `count` pieces of full length, at most the torrent's total.
    pub fn full_pieces(&self, count: u32) -> u64 {
        (u64::from(count) * u64::from(self.piece_len)).min(self.total)
    }

    /// Returns the bytes in a set of pieces, given by piece number.
    pub fn bytes_in(&self, set: &FixedBitSet) -> u64 {
        let has_last = self.iter().next_back().is_some_and(|last| set.contains(last.index()));
        self.bytes_of(set.count_ones(..) as u32, has_last)
    }

    /// Returns the bytes in `count` different pieces, one of them the last one of the torrent if `has_last`.
    pub fn bytes_of(&self, count: u32, has_last: bool) -> u64 {
        let last = self.iter().next_back().filter(|_| has_last);
        let shortfall = last.map_or(0, |last| self.piece_len - self.len_of(last));
        (u64::from(count) * u64::from(self.piece_len)).saturating_sub(shortfall.into())
    }

    /// Returns the number of pieces.
    pub fn pieces(&self) -> u32 {
        self.pieces
    }

    /// Returns every piece, in order.
    pub fn iter(&self) -> PieceRange {
        PieceRange(0..self.pieces)
    }

    /// Checks a piece number from outside.
    pub fn piece(&self, number: u32) -> Option<PieceIndex> {
        (number < self.pieces).then_some(PieceIndex(number))
    }

    /// Returns the piece that holds the byte at `offset` of the torrent.
    pub fn piece_at(&self, offset: u64) -> Option<PieceIndex> {
        (offset < self.total).then(|| PieceIndex((offset / u64::from(self.piece_len)) as u32))
    }

    /// Returns the pieces that hold any byte of `bytes`, which is clipped to the torrent.
    pub fn pieces_in(&self, bytes: &Range<u64>) -> PieceRange {
        let len = u64::from(self.piece_len);
        let end = bytes.end.min(self.total);
        if bytes.start >= end {
            return PieceRange(0..0);
        }
        // A torrent has at most `MAX_PIECES` pieces.
        PieceRange((bytes.start / len) as u32..end.div_ceil(len) as u32)
    }

    /// Returns the pieces that hold any byte of `bytes`, each with the part of `bytes` within it, counted from the start
    /// of the piece. The parts tile `bytes`, which is clipped to the torrent.
    pub fn parts(&self, bytes: &Range<u64>) -> impl DoubleEndedIterator<Item = (PieceIndex, Range<u32>)> + use<> {
        let (lengths, bytes) = (*self, bytes.clone());
        self.pieces_in(&bytes).map(move |piece| {
            let held = lengths.range_of(piece);
            let (start, end) = (bytes.start.max(held.start), bytes.end.min(held.end));
            (piece, (start - held.start) as u32..(end - held.start) as u32)
        })
    }

    /// Returns the length of a piece in bytes.
    pub fn len_of(&self, piece: PieceIndex) -> u32 {
        (self.total - self.offset_of(piece)).min(u64::from(self.piece_len)) as u32
    }

    /// Returns the offset of a piece in the torrent, in bytes.
    pub fn offset_of(&self, piece: PieceIndex) -> u64 {
        self.offset_in(piece, 0)
    }

    /// Returns the offset in the torrent of the byte at `begin` of a piece.
    pub fn offset_in(&self, piece: PieceIndex, begin: u32) -> u64 {
        u64::from(piece.0) * u64::from(self.piece_len) + u64::from(begin)
    }

    /// Returns the bytes of the torrent that a piece holds.
    pub fn range_of(&self, piece: PieceIndex) -> Range<u64> {
        self.offset_of(piece)..self.offset_in(piece, self.len_of(piece))
    }

    /// Returns the number of blocks in a piece.
    pub fn blocks_in(&self, piece: PieceIndex) -> u32 {
        self.len_of(piece).div_ceil(BLOCK_LEN)
    }

    /// Returns every block of a piece, in order.
    pub fn blocks(&self, piece: PieceIndex) -> impl DoubleEndedIterator<Item = Block> + use<> {
        (0..self.blocks_in(piece)).map(move |n| Block { piece, index: BlockIndex(n) })
    }

    /// Returns the offset of a block in its piece, in bytes.
    pub fn begin_of(&self, block: Block) -> u32 {
        block.index.0 * BLOCK_LEN
    }

    /// Returns the length of a block in bytes.
    pub fn block_len(&self, block: Block) -> u32 {
        (self.len_of(block.piece) - self.begin_of(block)).min(BLOCK_LEN)
    }

    /// Returns the bytes of the torrent that a block holds.
    pub fn block_range(&self, block: Block) -> Range<u64> {
        let start = self.offset_in(block.piece, self.begin_of(block));
        start..start + u64::from(self.block_len(block))
    }

    /// Returns the block that holds the byte at `offset` of the torrent.
    pub fn block_at(&self, offset: u64) -> Option<Block> {
        let piece = self.piece_at(offset)?;
        let begin = (offset - self.offset_of(piece)) as u32;
        Some(Block { piece, index: BlockIndex(begin / BLOCK_LEN) })
    }

    /// Checks the number of a block within a piece.
    pub fn block_of(&self, piece: PieceIndex, number: u32) -> Option<Block> {
        (number < self.blocks_in(piece)).then_some(Block { piece, index: BlockIndex(number) })
    }

    /// Checks that `(piece, begin, length)` from the wire is exactly one of this torrent's blocks.
    pub fn block(&self, piece: u32, begin: u32, length: u32) -> Option<Block> {
        let block = self.block_of(self.piece(piece)?, begin / BLOCK_LEN)?;
        (self.begin_of(block) == begin && self.block_len(block) == length).then_some(block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn impossible_lengths_are_refused() {
        assert_eq!(Lengths::new(0, 0), Err(LengthsError::PieceLength(0)));
        assert_eq!(Lengths::new(1, 0), Err(LengthsError::PieceLength(0)));
        assert_eq!(Lengths::new(1, u64::MAX), Err(LengthsError::PieceLength(u64::MAX)));
        let longest = u64::from(MAX_PIECE_LEN);
        assert!(Lengths::new(longest + 1, longest).is_ok() && Lengths::new(longest, longest + 1).is_ok());
        assert_eq!(Lengths::new(longest + 1, longest + 1), Err(LengthsError::PieceLength(longest + 1)));
        assert_eq!(Lengths::new(u64::MAX, 1), Err(LengthsError::TooManyPieces(u64::MAX)));
    }

    #[test]
    fn the_last_piece_counts_what_it_has() {
        let lengths = Lengths::new(25, 10).unwrap();
        for (set, bytes) in [(vec![], 0), (vec![0], 10), (vec![2], 5), (vec![1, 2], 15), (vec![0, 1, 2], 25)] {
            assert_eq!(lengths.bytes_in(&set.iter().copied().collect()), bytes, "{set:?}");
        }
        assert_eq!([0, 1, 2, 3, 9].map(|count| lengths.full_pieces(count)), [0, 10, 20, 25, 25]);
        assert_eq!((lengths.longest_piece(), Lengths::new(7, 10).unwrap().longest_piece()), (10, 7));
    }

    proptest! {
        #[test]
        fn pieces_and_blocks_tile_the_torrent(total in 1u64..3_000_000, piece_len in 1u64..200_000) {
            let Ok(lengths) = Lengths::new(total, piece_len) else { return Ok(()) };
            prop_assume!(lengths.pieces() < 5_000);
            let mut at = 0;
            for piece in lengths.iter() {
                prop_assert_eq!(lengths.offset_of(piece), at);
                prop_assert_eq!(lengths.piece_at(at), Some(piece));
                let mut begin = 0;
                for (number, block) in lengths.blocks(piece).enumerate() {
                    prop_assert_eq!(lengths.begin_of(block), begin);
                    let len = lengths.block_len(block);
                    prop_assert!(len >= 1);
                    prop_assert_eq!(lengths.block(piece.get(), begin, len), Some(block));
                    prop_assert_eq!(lengths.block(piece.get(), begin, len + 1), None);
                    prop_assert_eq!(lengths.block(piece.get(), begin + 1, len), None);
                    prop_assert_eq!(lengths.block_of(piece, number as u32), Some(block));
                    let range = lengths.block_range(block);
                    prop_assert_eq!(&range, &(at + u64::from(begin)..at + u64::from(begin + len)));
                    prop_assert_eq!(lengths.offset_in(piece, begin), range.start);
                    prop_assert_eq!(lengths.block_at(range.start), Some(block));
                    prop_assert_eq!(lengths.block_at(range.end - 1), Some(block));
                    begin += len;
                }
                prop_assert_eq!(begin, lengths.len_of(piece));
                prop_assert!(begin <= lengths.longest_piece());
                prop_assert_eq!(lengths.block_of(piece, lengths.blocks_in(piece)), None);
                at += u64::from(lengths.len_of(piece));
                prop_assert_eq!(lengths.range_of(piece).end, at);
            }
            prop_assert_eq!(at, total);
            prop_assert_eq!((lengths.piece_at(total), lengths.block_at(total)), (None, None));
        }

        #[test]
        fn the_pieces_of_a_range_hold_its_bytes_one_by_one(
            total in 1u64..300,
            piece_len in 1u64..40,
            start in 0u64..320,
            end in 0u64..320,
        ) {
            let lengths = Lengths::new(total, piece_len).unwrap();
            let bytes = start..end;
            let mut expected: Vec<PieceIndex> = bytes.clone().filter_map(|at| lengths.piece_at(at)).collect();
            let one_by_one: Vec<_> = bytes
                .clone()
                .filter_map(|at| lengths.piece_at(at).map(|piece| (piece, (at - lengths.offset_of(piece)) as u32)))
                .collect();
            let parts: Vec<_> =
                lengths.parts(&bytes).flat_map(|(piece, part)| part.map(move |begin| (piece, begin))).collect();
            prop_assert_eq!(parts, one_by_one);
            expected.dedup();
            let pieces = lengths.pieces_in(&bytes);
            prop_assert_eq!(pieces.len(), expected.len());
            prop_assert_eq!(pieces.numbers().map(PieceIndex).collect::<Vec<_>>(), expected.clone());
            prop_assert_eq!(pieces.indexes().collect::<Vec<_>>(), expected.iter().map(|p| p.index()).collect::<Vec<_>>());
            prop_assert_eq!(pieces.rev().collect::<Vec<_>>(), expected.into_iter().rev().collect::<Vec<_>>());
        }

        #[test]
        fn a_set_of_pieces_has_the_bytes_of_its_pieces(
            total in 1u64..300,
            piece_len in 1u64..40,
            set in proptest::collection::vec(any::<bool>(), 300),
        ) {
            let lengths = Lengths::new(total, piece_len).unwrap();
            let in_set = |piece: &PieceIndex| set[piece.index()];
            let bytes: u64 = lengths.iter().filter(in_set).map(|piece| u64::from(lengths.len_of(piece))).sum();
            let bits: FixedBitSet = lengths.iter().filter(in_set).map(PieceIndex::index).collect();
            prop_assert_eq!(lengths.bytes_in(&bits), bytes);
        }
    }
}
