//! `torrentfs set`: changes the limits and the mode of a running mount.

use std::path::PathBuf;

use clap::{ArgGroup, Args};

use super::failure::Failure;
use super::flags::values::{Limit, count_limit, rate_limit};
use super::running_mount;
use super::runtime::runtime;
use super::text;
use crate::control::orders::{LimitChanges, TorrentChanges};

const DESCRIPTION: &str = "\
The changes take effect at once, and last until the mount ends.";

const SECTIONS: &str = "\
Values:
  RATE  bytes per second with a unit: 500KB, 2MiB; 0 or \"unlimited\" for no limit
  N     a number; 0 or \"unlimited\" for no limit

Examples:
  torrentfs set /mnt/film --download-limit 2MiB
  torrentfs set /mnt/film --upload-limit 0
  torrentfs set /mnt/all --active-downloads 2
  torrentfs set /mnt/all --on-demand on --torrent linux.iso";

/// The options of which at least one is needed; the error names them.
const CHANGES: [&str; 4] = ["download_limit", "upload_limit", "active_downloads", "on_demand"];

/// Change the rate limits of a running mount, or whether it fetches everything
#[derive(Args, Clone, Debug, PartialEq)]
#[command(before_help = DESCRIPTION, after_help = SECTIONS)]
#[command(group(ArgGroup::new("change").args(CHANGES).required(true).multiple(true)))]
pub(super) struct SetArgs {
    /// Mountpoint, or a path below it
    mountpoint: PathBuf,

    /// Maximum download rate of the mount
    #[arg(long, value_name = "RATE", value_parser = rate_limit)]
    download_limit: Option<Limit<u64>>,

    /// Maximum upload rate of the mount
    #[arg(long, value_name = "RATE", value_parser = rate_limit)]
    upload_limit: Option<Limit<u64>>,

    /// Torrents to download at the same time, the oldest first
    #[arg(long, value_name = "N", value_parser = count_limit)]
    active_downloads: Option<Limit<usize>>,

    /// Fetch only what is read (on), or everything (off)
    #[arg(long, value_name = "on|off", value_parser = on_or_off, action = clap::ArgAction::Set)]
    on_demand: Option<bool>,

    /// Torrent for --on-demand, by its name in the mount or its info hash [default: all]
    #[arg(long, value_name = "TORRENT", requires = "on_demand")]
    torrent: Option<String>,
}

fn on_or_off(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("expected on or off".into()),
    }
}

/// Changes settings, and prints their new values.
pub(super) fn run(args: &SetArgs) -> Result<(), Failure> {
    runtime()?.block_on(async {
        let mount = running_mount::find(&args.mountpoint)?;
        // Look up the torrent first: if its name is wrong, nothing is changed.
        let torrents = match args.on_demand {
            Some(_) => mount.torrents(args.torrent.as_deref()).await?,
            None => Vec::new(),
        };
        let changes = LimitChanges {
            download: args.download_limit.map(|limit| limit.0),
            upload: args.upload_limit.map(|limit| limit.0),
            active_downloads: args.active_downloads.map(|limit| limit.0),
        };
        if changes != LimitChanges::default() {
            let now = mount.set_limits(&changes).await?;
            if changes.download.is_some() || changes.upload.is_some() {
                let shown = |limit: Option<u64>| limit.map_or("unlimited".into(), text::rate);
                println!("limits: down {}, up {}", shown(now.download), shown(now.upload));
            }
            if changes.active_downloads.is_some() {
                let limit = now.active_downloads.map_or("unlimited".into(), |limit| limit.to_string());
                println!("active downloads: {limit}");
            }
        }
        for torrent in &torrents {
            let changes = TorrentChanges { on_demand: args.on_demand, ..TorrentChanges::default() };
            let now = mount.change(torrent, &changes).await?;
            println!("{}: {}", now.name, if now.on_demand { "fetched on demand" } else { "fetched completely" });
        }
        Ok(())
    })
}
