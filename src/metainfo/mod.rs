//! Torrents as data: bencode, `.torrent` files, magnet links, and the layout of pieces and files.
//!
//! Pure: bytes in, values out. It checks input against bounds before it allocates for it (invariant 8), and it does no I/O
//! except through a reader that the caller passes in ([`hash_pieces`]).
//!
//! ```
//! use torrentfs::metainfo::{FileIndex, FileKind, Metainfo, NewFile, NewTorrent, hash_pieces};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let song = [7; 100_000];
//! let (hashes, len) = hash_pieces(&song[..], 1 << 16)?;
//! let file = NewFile { path: vec!["01.flac".into()], len, kind: FileKind::Regular { executable: false } };
//! let album = NewTorrent { name: "album".into(), piece_len: 1 << 16, files: vec![file], ..NewTorrent::default() };
//! let torrent_file = album.build(&hashes)?;
//!
//! let metainfo = Metainfo::parse(&torrent_file)?;
//! assert_eq!(metainfo.layout.find("album/01.flac"), Some(FileIndex(0)));
//! assert_eq!(metainfo.layout.lengths().pieces(), 2);
//! assert!(metainfo.magnet().to_string().starts_with("magnet:?xt=urn:btih:"));
//! # Ok(())
//! # }
//! ```

pub mod bencode;
mod create;
mod document;
mod edit;
mod error;
mod file_tree;
mod files;
mod gzip;
mod identity;
mod layout;
mod legacy;
mod lengths;
mod magnet;
mod names;
mod original;
mod piece_hashes;
mod raw_info;
mod sniff;
mod text;
mod torrent;

pub use create::{CreateError, DraftError, NewFile, NewTorrent, hash_pieces, is_name, link_target, piece_len_for};
pub use document::{Document, DocumentError};
pub use edit::Edit;
pub use error::{Location, MetainfoError};
pub use gzip::{GunzipError, gunzip, is_gzip};
pub use identity::InfoHash;
pub use layout::{File, FileIndex, FileKind, Layout, MAX_FILES};
pub use lengths::{
    BLOCK_LEN, Block, BlockIndex, Lengths, LengthsError, MAX_PIECE_LEN, MAX_PIECES, PieceIndex, PieceRange,
};
pub use magnet::{Magnet, MagnetError};
pub use original::OriginalPaths;
pub use piece_hashes::{PieceHashes, Verdict};
pub use raw_info::{InfoSource, RawInfo};
pub use sniff::Kind;
pub use text::unquote;
pub use torrent::{MAX_DATE, MAX_TORRENT_LEN, Metainfo};
