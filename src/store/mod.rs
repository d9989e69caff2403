//! The piece cache: a memory tier and a disk tier, both LRU, shared by all torrents.
//!
//! Owns the bytes of every piece we have, and is authoritative for which those are. It knows a torrent's layout and
//! hashes, but neither the network nor FUSE.
//!
//! - **Only verified bytes come out** (invariant 1). A piece enters only as a [`VerifiedPiece`], which only
//!   [`TorrentStore::verify`] creates. Pieces found on the disk at start are trusted only after a clean close and if
//!   the files look unchanged. Otherwise each is hashed before it is served (see `torrent.rs`). Files that another
//!   program changes while they are in use are noticed after each read (see `stamps.rs`, also for what is not noticed).
//! - **A piece is in exactly one state** (invariant 2): one atomic word per piece, see `pieces.rs`.
//! - **Visible before woken** (invariant 3): [`TorrentStore::put`] makes the piece visible in memory, wakes its
//!   waiters, and then writes it. [`TorrentStore::wait`] registers before it looks.
//! - **A reader gets the exact bytes or none.** Eviction changes the word before it punches the hole. A reader of the
//!   disk checks the word again after it has read. A piece cannot be put again before its hole is punched.
//! - **No lock is held across I/O** in the functions that a FUSE thread calls ([`TorrentStore::memory`],
//!   [`TorrentStore::read_now`], [`TorrentStore::has`], [`TorrentStore::wait`]).
//! - **Files outside the cache**: a torrent may be downloaded to a user's directory, or be the user's own files, which
//!   are only read ([`Place`]). Neither is counted or evicted.
//! - **A file that the kernel reads itself** ([`HeldFile`]) is complete and verified when it is handed out, and its pieces
//!   are pinned. What other programs do to it afterwards is noticed a little later (see `held.rs`).
//! - **Limits.** The memory limit covers the pieces of the memory tier and all other buffers handed out
//!   ([`Cache::buffer`]). For those buffers, pieces that are also on the disk are dropped from memory; beyond that, the
//!   owners of the buffers bound them. The disk limit covers the bytes of pieces. (State files, and up to a filesystem
//!   block at each end of an unaligned piece, come on top.) Only pinned pieces may exceed the limit.
//! - **Piece hashes of idle torrents are on the disk** ([`Cache::spill`]) and read back, and checked, when a piece is. If they
//!   cannot be read, a piece that has just arrived is fetched again, and an unverified one on the disk is dropped.
//! - **A name that the filesystem refuses** is the fault of one file alone, which is stored under another (`substitute.rs`).
//! - **A full or failing disk** is not an error of a read or a put. Pieces then stay in memory only, the fault is
//!   logged once and shown in [`Usage::fault`], there is no room for background fetching, and writing is retried every
//!   30 s. On a full disk, pinned pieces replace the least recently used ones.
//! - **Nothing planted in the cache directory is followed or waited for**: neither a symbolic link nor a FIFO. Root uses no
//!   directory of another user, who could plant a state that is trusted.

mod buffer;
mod cache;
mod dir;
mod download;
mod error;
mod files;
mod handle;
mod health;
mod heap_trim;
mod held;
mod ledger;
mod load;
mod lock;
mod memory;
mod metainfo;
mod pieces;
mod place;
mod recover;
mod spec;
mod spill;
mod stamps;
mod state;
mod substitute;
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
pub use handle::{Lookup, TorrentStore, VerifiedPiece, VerifyError};
pub use held::HeldFile;
pub use place::Place;
pub use spec::{EvictionSink, LossSink, Progress, TorrentSpec};
