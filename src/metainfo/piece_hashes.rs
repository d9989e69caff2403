//! The hashes of pieces.

use std::fmt;
use std::io;
use std::ops::Range;

use bytes::Bytes;
use sha1::{Digest, Sha1};

use super::lengths::{BlockIndex, PieceIndex};
use super::raw_info::RawInfo;

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
pub struct PieceHashes(Place);

/// 20 bytes per piece.
#[derive(Clone)]
enum Place {
    InMemory(Bytes),
    /// Part of the torrent's `info`, which may have to be read back.
    InInfo(RawInfo, Range<usize>),
}

impl PieceHashes {
    /// Takes one SHA-1 per piece, in order (BEP 3 `pieces`). An incomplete hash at the end is ignored.
    pub fn v1(hashes: impl Into<Bytes>) -> Self {
        Self(Place::InMemory(hashes.into()))
    }

    /// Takes the hashes at `span` of `info`.
    pub(super) fn in_info(info: RawInfo, span: Range<usize>) -> Self {
        Self(Place::InInfo(info, span))
    }

    /// Checks the data of a whole piece. Takes about 0.5 ms per MiB and may read the hashes from the disk, so do not call it
    /// on an async thread. Fails if the hashes cannot be read ([`RawInfo::load`]).
    pub fn check(&self, piece: PieceIndex, data: &[u8]) -> io::Result<Verdict> {
        Ok(match self.matches(piece, &Sha1::digest(data).into())? {
            true => Verdict::Good,
            false => Verdict::Bad { blocks: Vec::new() },
        })
    }

    /// Returns whether `digest` is the SHA-1 of a whole piece. May block and fail as [`Self::check`] does.
    pub fn matches(&self, piece: PieceIndex, digest: &[u8; 20]) -> io::Result<bool> {
        let is_in = |hashes: &[u8]| hashes.as_chunks::<20>().0.get(piece.index()) == Some(digest);
        Ok(match &self.0 {
            Place::InMemory(hashes) => is_in(hashes),
            Place::InInfo(info, span) => is_in(info.load()?.get(span.clone()).unwrap_or_default()),
        })
    }
}

impl fmt::Debug for PieceHashes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = match &self.0 {
            Place::InMemory(hashes) => hashes.len(),
            Place::InInfo(_, span) => span.len(),
        };
        write!(f, "PieceHashes({} pieces)", bytes / 20)
    }
}
