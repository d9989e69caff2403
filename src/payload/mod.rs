//! The files that a torrent is made of, where they lie on a user's disk: walked, hashed, checked.
//!
//! Everything here reads and nothing writes. It blocks: not for async threads. What changes while it is read is found
//! out, and is an error where a torrent is made of it: no torrent is of bytes that never were together.
//!
//! The store's files are not its concern: those are the cache's own, with their state beside them.

mod check;
mod found;
mod hash;
mod walk;

pub use check::{Check, CheckError, CheckedFile, FileState, PieceState, check};
pub use found::{Changed, Found, Stamp};
pub use hash::{Content, Unread, hash};
pub use walk::{Ignore, LeftOut, Walk, WalkError, walk};
