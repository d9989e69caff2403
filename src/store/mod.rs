//! The piece cache: a memory tier and a disk tier, least recently used first out, shared by all torrents.
//!
//! Owns the bytes of every piece that is had, and the truth of which those are. Knows no network and no FUSE; only a
//! torrent's sizes, files and hashes.
//!
//! - **Only checked bytes come out** (invariant 1). The one way in is a [`VerifiedPiece`], which only
//!   [`TorrentStore::verify`] makes. What is found on the disk at a start is believed only after a clean close and if
//!   the files look untouched; else each piece is hashed before its first byte is served (see `torrent.rs`).
//! - **A piece is in exactly one state** (invariant 2): one atomic word a piece, see `pieces.rs`.
//! - **Visible, then woken** (invariant 3): [`TorrentStore::put`] shows the piece in memory, wakes those who wait, and
//!   then writes. [`TorrentStore::wait`] registers first and looks then.
//! - **A reader gets exact bytes or none.** Eviction changes the word, then punches; a reader of the disk looks at the
//!   word again after it has read. Punching is over before the piece can be put again.
//! - **No lock is held across I/O** by what a FUSE thread calls ([`TorrentStore::memory`], [`TorrentStore::read_now`],
//!   [`TorrentStore::has`], [`TorrentStore::wait`]).
//! - **Not everything lies in the cache.** A torrent may be downloaded to a directory of the user's, or be the user's own
//!   files, which are only ever read ([`Place`]). Neither is counted or evicted.
//! - **The limits.** Memory counts the pieces of the tier and all other buffers given out ([`Cache::buffer`]): for those,
//!   pieces of the tier that are on the disk, too, make way. Beyond that it is for their holders to bound them. Disk counts the bytes of the pieces had (the filesystem may use up to a block more at each end of a
//!   piece that is not aligned to it, and the state files). The limit is passed only by what is pinned.
//! - **A disk that is full or fails** is no error of a read or a put: pieces stay in memory only, the fault is logged
//!   once and shown in [`Usage::fault`], background room is 0, and writing is tried again every 30 s. What is pinned
//!   takes, on a full disk, the place of what was used longest ago.

mod buffer;
mod cache;
mod dir;
mod download;
mod error;
mod files;
mod handle;
mod health;
mod heap_trim;
mod ledger;
mod load;
mod memory;
mod metainfo;
mod pieces;
mod place;
mod spec;
mod state;
mod torrent;
mod waiters;

#[cfg(test)]
mod tests;

#[cfg(fuzzing)]
#[doc(hidden)]
pub use state::fuzz_state;

pub use buffer::PieceBuf;
pub use cache::{Cache, CacheConfig, Usage};
pub use download::{ExtraFiles, space_missing};
pub use error::StoreError;
pub use handle::{BadPiece, Lookup, TorrentStore, VerifiedPiece};
pub use place::Place;
pub use spec::{EvictionSink, Progress, TorrentSpec};
