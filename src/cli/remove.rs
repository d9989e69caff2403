//! `torrentfs remove`: removes a torrent from a running mount.

use std::path::PathBuf;

use axum::http::Method;
use clap::Args;

use super::failure::Failure;
use super::running_mount;
use super::runtime::runtime;
use crate::control::orders::RemovedTorrent;

const DESCRIPTION: &str = "\
The torrent disappears from the mount. Programs that have a file of it open can
read on until they close it. Cached data stays, unless --delete is given.";

const EXAMPLES: &str = "\
Examples:
  torrentfs remove /mnt/all film.mkv
  torrentfs remove --delete /mnt/all c12fe1c06bba254a9dc9f519b335aa7c1367a88a";

/// Remove a torrent from a running mount
#[derive(Args, Clone, Debug, PartialEq)]
#[command(before_help = DESCRIPTION, after_help = EXAMPLES)]
pub(super) struct RemoveArgs {
    /// Mountpoint, or a path below it
    mountpoint: PathBuf,

    /// Torrent, by its name in the mount or its info hash
    torrent: String,

    /// Delete the cached data of the torrent
    #[arg(long)]
    delete: bool,
}

/// Removes a torrent.
pub(super) fn run(args: &RemoveArgs) -> Result<(), Failure> {
    runtime()?.block_on(async {
        let mount = running_mount::find(&args.mountpoint)?;
        for torrent in &mount.torrents(Some(&args.torrent)).await? {
            let path = format!("/torrents/{}?delete={}", torrent.info_hash, args.delete);
            let RemovedTorrent { name, in_use, .. } = mount.send(Method::DELETE, &path, &()).await?;
            println!(
                "removed {name}{}",
                if in_use { "; its open files stay readable until they are closed" } else { "" }
            );
        }
        Ok(())
    })
}
