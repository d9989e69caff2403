//! The arithmetic of pieces and blocks.
//!
//! A [`PieceIndex`] or a [`Block`] can only be had from a [`Lengths`], which checks it: code that holds one needs no
//! further bounds check against the same torrent.

use std::ops::Range;

/// The unit of a request, in bytes (BEP 3: all current implementations use 2^14).
pub const BLOCK_LEN: u32 = 16 * 1024;

/// The largest piece accepted, in bytes. A piece is hashed and cached whole, so this bounds memory.
pub const MAX_PIECE_LEN: u32 = 128 << 20;

/// The most pieces accepted in one torrent; bounds the bitfield a peer may send (512 KiB).
pub const MAX_PIECES: u32 = 4 << 20;

/// A piece of one torrent, known to be within it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PieceIndex(u32);

impl PieceIndex {
    /// The number as it stands on the wire.
    pub fn get(self) -> u32 {
        self.0
    }

    /// The number as an index of a slice or a bitset.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl std::fmt::Display for PieceIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// A block's place within its piece: block 0 starts the piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockIndex(u32);

impl BlockIndex {
    /// The number as an index of a slice.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// One block of one piece, known to be within its torrent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Block {
    /// The piece.
    pub piece: PieceIndex,
    /// Which block of the piece.
    pub index: BlockIndex,
}

/// Why a total and a piece length do not make a torrent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LengthsError {
    /// A torrent without a byte has no pieces.
    #[error("the torrent has no bytes")]
    Empty,
    /// Zero or over the bound.
    #[error("piece length {0} is not between 1 and {MAX_PIECE_LEN}")]
    PieceLength(u64),
    /// Over [`MAX_PIECES`].
    #[error("{0} pieces are more than {MAX_PIECES}")]
    TooManyPieces(u64),
}

/// The sizes of one torrent: its bytes, cut into pieces, cut into blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lengths {
    total: u64,
    piece_len: u32,
    pieces: u32,
}

impl Lengths {
    /// `total` bytes in pieces of `piece_len` bytes, the last one shorter.
    pub fn new(total: u64, piece_len: u64) -> Result<Self, LengthsError> {
        if total == 0 {
            return Err(LengthsError::Empty);
        }
        let piece_len = u32::try_from(piece_len)
            .ok()
            .filter(|len| (1..=MAX_PIECE_LEN).contains(len))
            .ok_or(LengthsError::PieceLength(piece_len))?;
        let pieces = total.div_ceil(u64::from(piece_len));
        let pieces =
            u32::try_from(pieces).ok().filter(|n| *n <= MAX_PIECES).ok_or(LengthsError::TooManyPieces(pieces))?;
        Ok(Self { total, piece_len, pieces })
    }

    /// Bytes in the torrent, pad files included.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Bytes in every piece but perhaps the last.
    pub fn piece_len(&self) -> u32 {
        self.piece_len
    }

    /// How many pieces there are.
    pub fn pieces(&self) -> u32 {
        self.pieces
    }

    /// Every piece, in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = PieceIndex> + use<> {
        (0..self.pieces).map(PieceIndex)
    }

    /// Checks a piece number from outside.
    pub fn piece(&self, number: u32) -> Option<PieceIndex> {
        (number < self.pieces).then_some(PieceIndex(number))
    }

    /// The piece that holds the byte at `offset` of the torrent.
    pub fn piece_at(&self, offset: u64) -> Option<PieceIndex> {
        (offset < self.total).then(|| PieceIndex((offset / u64::from(self.piece_len)) as u32))
    }

    /// The pieces that hold any byte of `bytes`, clipped to the torrent.
    pub fn pieces_in(&self, bytes: &Range<u64>) -> impl DoubleEndedIterator<Item = PieceIndex> + use<> {
        let len = u64::from(self.piece_len);
        let end = bytes.end.min(self.total);
        let range = if bytes.start < end { bytes.start / len..end.div_ceil(len) } else { 0..0 };
        range.map(|n| PieceIndex(n as u32))
    }

    /// Bytes in this piece.
    pub fn len_of(&self, piece: PieceIndex) -> u32 {
        (self.total - self.offset_of(piece)).min(u64::from(self.piece_len)) as u32
    }

    /// Where this piece begins in the torrent, in bytes.
    pub fn offset_of(&self, piece: PieceIndex) -> u64 {
        u64::from(piece.0) * u64::from(self.piece_len)
    }

    /// The bytes of the torrent that this piece holds.
    pub fn range_of(&self, piece: PieceIndex) -> Range<u64> {
        let start = self.offset_of(piece);
        start..start + u64::from(self.len_of(piece))
    }

    /// How many blocks this piece has.
    pub fn blocks_in(&self, piece: PieceIndex) -> u32 {
        self.len_of(piece).div_ceil(BLOCK_LEN)
    }

    /// Every block of this piece, in order.
    pub fn blocks(&self, piece: PieceIndex) -> impl DoubleEndedIterator<Item = Block> + use<> {
        (0..self.blocks_in(piece)).map(move |n| Block { piece, index: BlockIndex(n) })
    }

    /// Where this block begins in its piece, in bytes.
    pub fn begin_of(&self, block: Block) -> u32 {
        block.index.0 * BLOCK_LEN
    }

    /// Bytes in this block.
    pub fn block_len(&self, block: Block) -> u32 {
        (self.len_of(block.piece) - self.begin_of(block)).min(BLOCK_LEN)
    }

    /// Checks that `(piece, begin, length)` from the wire is exactly one of this torrent's blocks.
    pub fn block(&self, piece: u32, begin: u32, length: u32) -> Option<Block> {
        let piece = self.piece(piece)?;
        if !begin.is_multiple_of(BLOCK_LEN) || begin >= self.len_of(piece) {
            return None;
        }
        let block = Block { piece, index: BlockIndex(begin / BLOCK_LEN) };
        (self.block_len(block) == length).then_some(block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn refuses_what_is_no_torrent() {
        assert_eq!(Lengths::new(0, 16384), Err(LengthsError::Empty));
        assert_eq!(Lengths::new(1, 0), Err(LengthsError::PieceLength(0)));
        assert_eq!(Lengths::new(1, u64::MAX), Err(LengthsError::PieceLength(u64::MAX)));
        assert_eq!(Lengths::new(u64::MAX, 1), Err(LengthsError::TooManyPieces(u64::MAX)));
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
                for block in lengths.blocks(piece) {
                    prop_assert_eq!(lengths.begin_of(block), begin);
                    let len = lengths.block_len(block);
                    prop_assert!(len >= 1);
                    prop_assert_eq!(lengths.block(piece.get(), begin, len), Some(block));
                    prop_assert_eq!(lengths.block(piece.get(), begin, len + 1), None);
                    begin += len;
                }
                prop_assert_eq!(begin, lengths.len_of(piece));
                at += u64::from(lengths.len_of(piece));
            }
            prop_assert_eq!(at, total);
            prop_assert_eq!(lengths.piece_at(total), None);
        }
    }
}
