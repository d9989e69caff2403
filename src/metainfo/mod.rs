//! What a torrent is: the bencode guard, the `.torrent` file, magnet links, and the map between pieces and files.
//!
//! Pure: bytes in, values out. Everything here is bounded before it is believed (invariant 8).

use std::sync::Arc;

pub mod bencode;
mod create;
mod edit;
mod error;
mod file_tree;
mod files;
mod identity;
mod layout;
mod lengths;
mod magnet;
mod names;
mod torrent;

pub use create::{CreateError, DraftError, NewFile, NewTorrent, hash_pieces, is_name, link_target, piece_len_for};
pub use edit::Edit;
pub use error::{MetainfoError, Place};
pub use identity::{InfoHash, PieceHashes, Verdict};
pub use layout::{File, FileIndex, FileKind, Layout, MAX_FILES};
pub use lengths::{
    BLOCK_LEN, Block, BlockIndex, Lengths, LengthsError, MAX_PIECE_LEN, MAX_PIECES, PieceIndex, PieceRange,
};
pub use magnet::{Magnet, MagnetError};
pub use torrent::{MAX_DATE, MAX_TORRENT_LEN};

/// Everything a `.torrent` file says that the rest needs.
#[derive(Clone, Debug)]
pub struct Metainfo {
    /// The torrent's name on the network.
    pub info_hash: InfoHash,
    /// The suggested file or directory name, made safe; the first component of every file's path.
    pub name: String,
    /// Its trackers alone may give peers (BEP 27).
    pub private: bool,
    /// Tracker URLs in tiers (BEP 12); `announce` alone gives one tier of one. As in the file, not shuffled. Whether
    /// each is a URL, and of which kind, is for those who use it; the same holds of the seeds below.
    pub trackers: Vec<Vec<String>>,
    /// `url-list` (BEP 19).
    pub web_seeds: Vec<String>,
    /// `httpseeds` (BEP 17).
    pub http_seeds: Vec<String>,
    /// DHT nodes, host and port (BEP 5).
    pub nodes: Vec<(String, u16)>,
    /// Seconds since 1970, up to the year 9999.
    pub creation_date: Option<i64>,
    /// Free text by whoever made it.
    pub comment: Option<String>,
    /// The program that made it.
    pub created_by: Option<String>,
    /// Whom it was made for; part of what is hashed.
    pub source: Option<String>,
    /// Pieces and files, shared with the store.
    pub layout: Arc<Layout>,
    /// What checks a piece.
    pub hashes: PieceHashes,
    /// The raw `info` value, as hashed; served to peers that have only a magnet link (BEP 9).
    pub info: bytes::Bytes,
}
