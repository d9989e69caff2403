//! Why a torrent cannot be used, in words for people.

use std::fmt;

use super::bencode::BencodeError;
use super::layout::MAX_FILES;
use super::lengths::LengthsError;

/// Where in a torrent a fault is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The top dictionary.
    Top,
    /// Its `info` dictionary.
    Info,
    /// An entry of `files`, counted from 1.
    File(usize),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Top => f.write_str("the torrent"),
            Place::Info => f.write_str("the torrent's `info`"),
            Place::File(number) => write!(f, "the torrent's file {number}"),
        }
    }
}

/// Why a `.torrent` file cannot be used. Each is one line, and a caller puts the file's name before it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetainfoError {
    /// Not bencode, or over a bound.
    #[error("not a sound .torrent file: {0}")]
    Bencode(#[from] BencodeError),
    /// Bencode, but not a dictionary.
    #[error("not a .torrent file: it is not a dictionary")]
    NotADictionary,
    /// A required key is not there.
    #[error("{place} has no `{key}`")]
    Missing {
        /// Where.
        place: Place,
        /// Which.
        key: &'static str,
    },
    /// A required key has a value of the wrong kind.
    #[error("{place} has a `{key}` that is not {wanted}")]
    Kind {
        /// Where.
        place: Place,
        /// Which.
        key: &'static str,
        /// What it should be.
        wanted: &'static str,
    },
    /// A length below zero.
    #[error("{place} has a `{key}` of {value}, which is negative")]
    Negative {
        /// Where.
        place: Place,
        /// Which.
        key: &'static str,
        /// What it says.
        value: i64,
    },
    /// No bytes, or pieces of an impossible size or number.
    #[error("the torrent cannot be used: {0}")]
    Lengths(#[from] LengthsError),
    /// `pieces` does not have one hash a piece.
    #[error("the torrent's `pieces` has {found} bytes, but its files make {pieces} pieces with 20 bytes each")]
    Pieces {
        /// Bytes there are.
        found: usize,
        /// Pieces there should be.
        pieces: u32,
    },
    /// Over the bound.
    #[error("the torrent has more than {MAX_FILES} files")]
    TooManyFiles,
    /// Over the bounds of a path.
    #[error("{0} has a path that is too deep or too long for a filesystem")]
    PathTooLong(Place),
    /// The `file tree` of a v2 or hybrid torrent.
    #[error("the torrent's `file tree` is broken: {0}")]
    FileTree(&'static str),
    /// Sound as far as it was read, but only of BitTorrent v2.
    #[error("BitTorrent v2-only torrents are not supported yet; use a v1 or hybrid torrent of the same files")]
    V2Only,
}
