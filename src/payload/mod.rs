//! A user's own files: found for a new torrent, hashed, and checked against an existing one.
//!
//! It only reads, and it blocks, so it does not belong on an async thread. It detects files that change while they are
//! read; when a torrent is created that is an error, because its hashes would match no state of the files.
//!
//! The cache's files, with their state, belong to `store`.

mod check;
mod found;
mod hash;
mod walk;

pub use check::{Check, CheckError, CheckedFile, FileState, PieceState, check};
pub use found::{Changed, Found, Stamp};
pub use hash::{Content, HashError, hash};
pub use walk::{Ignore, LeftOut, Walk, WalkError, walk};
