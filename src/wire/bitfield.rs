//! The bitfield message (BEP 3). Its first bit is the most significant one of a byte, but a [`FixedBitSet`] starts with the
//! least significant one, so the bits of each byte are reversed.

use bytes::Bytes;
use fixedbitset::{Block, FixedBitSet};

use super::error::WireError;

/// Bytes in a word of a [`FixedBitSet`].
const WORD: usize = size_of::<Block>();

/// Encodes the content of a bitfield message: one bit per piece, padded with zeros to whole bytes.
pub fn bitfield_to_wire(have: &FixedBitSet) -> Bytes {
    let mut bytes: Vec<u8> = have.as_slice().iter().flat_map(|word| word.to_le_bytes()).map(u8::reverse_bits).collect();
    bytes.truncate(have.len().div_ceil(8));
    bytes.into()
}

/// Decodes the content of a bitfield message for a torrent with this number of pieces. Spare bits at the end are ignored,
/// although BEP 3 wants them to be zero: some clients set them.
pub fn bitfield_from_wire(bytes: &[u8], pieces: u32) -> Result<FixedBitSet, WireError> {
    let bits = pieces as usize;
    if bytes.len() != bits.div_ceil(8) {
        return Err(WireError::BitfieldLength { len: bytes.len(), pieces });
    }
    let words = bytes.chunks(WORD).map(|chunk| {
        let mut word = [0; WORD];
        for (to, from) in word.iter_mut().zip(chunk) {
            *to = from.reverse_bits();
        }
        Block::from_le_bytes(word)
    });
    let mut have = FixedBitSet::with_capacity_and_blocks(bits, words);
    // Bits beyond the length would count.
    if let Some(last) = have.as_mut_slice().last_mut().filter(|_| !bits.is_multiple_of(8 * WORD)) {
        *last &= (1 << (bits % (8 * WORD))) - 1;
    }
    Ok(have)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_first_piece_is_the_highest_bit() {
        let mut have = FixedBitSet::with_capacity(10);
        have.insert(0);
        have.insert(9);
        assert_eq!(bitfield_to_wire(&have).as_ref(), [0b1000_0000, 0b0100_0000]);
    }

    #[test]
    fn the_length_is_checked_and_spare_bits_are_ignored() {
        let full = bitfield_from_wire(&[0xff, 0xc0], 10).unwrap();
        assert!(full.is_full());
        for spare in [0xe0, 0xc1, 0xff] {
            assert_eq!(bitfield_from_wire(&[0xff, spare], 10), Ok(full.clone()));
        }
        for len in [0, 1, 3] {
            let error = WireError::BitfieldLength { len, pieces: 10 };
            assert_eq!(bitfield_from_wire(&vec![0; len], 10), Err(error));
        }
        assert!(bitfield_from_wire(&[0xff], 8).is_ok());
    }

    proptest! {
        #[test]
        fn encoding_and_decoding_keep_every_bit(bits in proptest::collection::vec(any::<bool>(), 0..300)) {
            let mut have = FixedBitSet::with_capacity(bits.len());
            for (n, bit) in bits.iter().enumerate() {
                have.set(n, *bit);
            }
            let wire = bitfield_to_wire(&have);
            for n in 0..wire.len() * 8 {
                let on_wire = wire[n / 8] & (0x80 >> (n % 8)) != 0;
                prop_assert_eq!(on_wire, bits.get(n).copied().unwrap_or(false));
            }
            prop_assert_eq!(bitfield_from_wire(&wire, bits.len() as u32), Ok(have));
        }

        #[test]
        fn an_accepted_bitfield_encodes_to_the_same_bits(bytes in proptest::collection::vec(any::<u8>(), 0..40), pieces in 0u32..320) {
            if let Ok(have) = bitfield_from_wire(&bytes, pieces) {
                prop_assert_eq!(have.len(), pieces as usize);
                let mut bytes = bytes;
                if let Some(last) = bytes.last_mut().filter(|_| !pieces.is_multiple_of(8)) {
                    *last &= 0xff << (8 - pieces % 8);
                }
                prop_assert_eq!(bitfield_to_wire(&have), bytes);
            }
        }
    }
}
