//! Info hashes and piece hashes.

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use sha1::{Digest, Sha1};

use super::lengths::{BlockIndex, PieceIndex};

/// SHA-1 of a torrent's raw `info` value, which identifies it on the network (BEP 3).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InfoHash(pub [u8; 20]);

impl InfoHash {
    /// Hashes the raw bytes of an `info` value, exactly as they are in the file.
    pub fn of(info: &[u8]) -> Self {
        Self(Sha1::digest(info).into())
    }
}

impl fmt::Display for InfoHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for InfoHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for InfoHash {
    type Err = ();

    /// Parses 40 hexadecimal digits.
    fn from_str(text: &str) -> Result<Self, ()> {
        let digits = text.as_bytes();
        if digits.len() != 40 {
            return Err(());
        }
        let mut hash = [0; 20];
        for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
            let nibble = |digit: u8| (digit as char).to_digit(16).ok_or(());
            *byte = (nibble(pair[0])? << 4 | nibble(pair[1])?) as u8;
        }
        Ok(Self(hash))
    }
}

/// The result of checking a piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The data matches the torrent.
    Good,
    /// The data does not match.
    Bad {
        /// Blocks proven wrong; empty if one hash covers the whole piece (BitTorrent v1).
        blocks: Vec<BlockIndex>,
    },
}

/// The hashes that verify a torrent's pieces: a SHA-1 per piece (BitTorrent v1).
#[derive(Clone)]
pub struct PieceHashes {
    /// 20 bytes per piece. For a parsed torrent it shares the memory of `info`, of which it is the largest part.
    v1: Bytes,
}

impl PieceHashes {
    /// Takes one SHA-1 per piece, in order (BEP 3 `pieces`). An incomplete hash at the end is ignored.
    pub fn v1(hashes: impl Into<Bytes>) -> Self {
        Self { v1: hashes.into() }
    }

    /// Checks the data of a whole piece. Takes about 0.5 ms per MiB, so do not call it on an async thread.
    pub fn check(&self, piece: PieceIndex, data: &[u8]) -> Verdict {
        match self.matches(piece, &Sha1::digest(data).into()) {
            true => Verdict::Good,
            false => Verdict::Bad { blocks: Vec::new() },
        }
    }

    /// Returns whether `digest` is the SHA-1 of a whole piece.
    pub fn matches(&self, piece: PieceIndex, digest: &[u8; 20]) -> bool {
        self.v1.as_chunks::<20>().0.get(piece.index()) == Some(digest)
    }
}

impl fmt::Debug for PieceHashes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PieceHashes({} pieces)", self.v1.len() / 20)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_info_hash_parses_its_own_text() {
        let hash = InfoHash::of(b"de");
        assert_eq!(hash.to_string().parse(), Ok(hash));
        assert_eq!("xyz".parse::<InfoHash>(), Err(()));
        assert_eq!("é".repeat(20).parse::<InfoHash>(), Err(()));
    }
}
