//! The arguments that select torrents of a running mount.

use std::path::PathBuf;

use clap::Args;

/// A running mount, and one of its torrents or all.
#[derive(Args, Clone, Debug, PartialEq)]
pub(in crate::cli) struct TorrentSelection {
    /// Mountpoint, or a path below it
    pub(in crate::cli) mountpoint: PathBuf,

    /// Torrent, by its name in the mount or its info hash [default: all torrents]
    #[arg(value_name = "TORRENT")]
    pub(in crate::cli) torrent: Option<String>,
}
