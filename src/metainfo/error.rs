//! Errors that explain to a user why a `.torrent` file cannot be used.

use std::fmt;

use super::bencode::BencodeError;
use super::gzip::GunzipError;
use super::layout::MAX_FILES;
use super::lengths::LengthsError;
use super::sniff::Kind;

/// The part of a torrent that an error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Location {
    /// The top-level dictionary.
    Top,
    /// The `info` dictionary.
    Info,
    /// The entry of `files` with this number, counted from 1.
    File(usize),
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Location::Top => f.write_str("the torrent"),
            Location::Info => f.write_str("the torrent's `info`"),
            Location::File(number) => write!(f, "the torrent's file {number}"),
        }
    }
}

/// Why a `.torrent` file cannot be used. Each message is one line; the caller puts the file's name before it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetainfoError {
    /// It begins like bencode and is malformed later, or exceeds a bound.
    #[error("not a valid .torrent file: {0}")]
    Bencode(#[from] BencodeError),
    /// It is another kind of file.
    #[error("not a .torrent file: {0}")]
    Other(Kind),
    /// It is compressed and cannot be decompressed.
    #[error("not a valid .torrent file: {0}")]
    Gzip(#[from] GunzipError),
    /// It is bencode, but not a dictionary.
    #[error("not a .torrent file: it is not a dictionary")]
    NotADictionary,
    /// A required key is missing.
    #[error("{location} has no `{key}`")]
    Missing {
        /// The part of the torrent.
        location: Location,
        /// The key.
        key: &'static str,
    },
    /// A required key has a value of the wrong kind.
    #[error("the `{key}` of {location} is not {wanted}")]
    Kind {
        /// The part of the torrent.
        location: Location,
        /// The key.
        key: &'static str,
        /// The expected kind of value.
        wanted: &'static str,
    },
    /// A length is negative.
    #[error("the `{key}` of {location} is negative: {value}")]
    Negative {
        /// The part of the torrent.
        location: Location,
        /// The key.
        key: &'static str,
        /// The value.
        value: i64,
    },
    /// There are no bytes, or the pieces have an impossible size or number.
    #[error("the torrent cannot be used: {0}")]
    Lengths(#[from] LengthsError),
    /// `pieces` does not have one hash per piece.
    #[error("the torrent's `pieces` has {found} bytes, but its files make {pieces} pieces, which need 20 bytes each")]
    Pieces {
        /// Length of `pieces` in bytes.
        found: usize,
        /// Number of pieces that the files make.
        pieces: u32,
    },
    /// There are more than [`MAX_FILES`] files.
    #[error("the torrent has more than {MAX_FILES} files")]
    TooManyFiles,
    /// One path is that of many files.
    #[error("the torrent has one path for many files, so it was made by a faulty program")]
    Duplicates,
    /// A path has too many components or too many bytes.
    #[error("{0} has a path that is too deep or too long for a filesystem")]
    PathTooLong(Location),
    /// The `file tree` of a v2 or hybrid torrent is invalid.
    #[error("the torrent's `file tree` is invalid: {0}")]
    FileTree(&'static str),
    /// It is a torrent of BitTorrent v2 only.
    #[error("BitTorrent v2-only torrents are not supported yet; use a v1 or hybrid torrent of the same files")]
    V2Only,
}
