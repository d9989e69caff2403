//! `torrentfs remove`: removes a torrent from a running mount.

use std::path::PathBuf;

use axum::http::Method;
use clap::Args;

use super::failure::Failure;
use super::running_mount;
use super::runtime::runtime;
use crate::control::orders::RemovedTorrent;

/// Show a torrent no longer; who has a file of it open reads on
#[derive(Args, Clone, Debug, PartialEq)]
pub(super) struct RemoveArgs {
    /// A mount, or a path in it
    mountpoint: PathBuf,

    /// The torrent, by its name in the mount or its info hash
    #[arg(value_name = "NAME")]
    torrent: String,

    /// Delete what is cached of it, too
    #[arg(long)]
    delete: bool,
}

/// Removes a torrent.
pub(super) fn run(args: &RemoveArgs) -> Result<(), Failure> {
    runtime()?.block_on(async {
        let reached = running_mount::find(&args.mountpoint)?;
        for torrent in &reached.torrents(Some(&args.torrent)).await? {
            let path = format!("/torrents/{}?delete={}", torrent.info_hash, args.delete);
            let RemovedTorrent { name, in_use, .. } = reached.order(Method::DELETE, &path, &()).await?;
            println!("removed {name}{}", if in_use { "; files of it are open, and can be read on" } else { "" });
        }
        Ok(())
    })
}
