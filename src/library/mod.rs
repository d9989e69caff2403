//! The torrents of a mount: from a SOURCE to files in the root, and back.
//!
//! | module | owns |
//! |---|---|
//! | [`Library`] | which torrents there are, and adding and removing them |
//! | [`Source`] | what a SOURCE names, as far as it is known without the network |
//! | [`Resolver`] | fetching metainfo from the network |
//! | [`Watch`] | keeping the library in step with a directory of `.torrent` and `.magnet` files |
//!
//! The library knows nothing of the command line, of how bytes are fetched (`session`), or of how they are shown
//! (`fs`).

mod catalog;
mod events;
mod listing;
mod resolve;
mod source;
mod watch;

pub use catalog::{Added, Library, LibraryOptions, RemoveError, Removed};
pub use resolve::{AddError, Resolver};
pub use source::{Named, OpenedSource, Source, SourceError, read_torrent};
pub use watch::Watch;
