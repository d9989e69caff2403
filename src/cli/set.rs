//! `torrentfs set`: changes a running mount.

use std::path::PathBuf;

use clap::Args;

use super::failure::Failure;
use super::flags::values::{Bound, rate};
use super::running_mount;
use super::runtime::runtime;
use super::text;
use crate::control::orders::{LimitChanges, TorrentChanges};

const AFTER_HELP: &str = "\
RATE is a number with a unit, for a second: 500KB, 2MiB.

Examples:
  torrentfs set /mnt/film --download-limit 2MiB
  torrentfs set /mnt/film --upload-limit 0
  torrentfs set /mnt/all --on-demand on --torrent linux.iso";

/// Change a running mount until it ends: its rate limits, or whether all is fetched
#[derive(Args, Clone, Debug, PartialEq)]
#[command(after_help = AFTER_HELP)]
pub(super) struct SetArgs {
    /// A mount, or a path in it
    mountpoint: PathBuf,

    /// What to fetch in a second at most, all torrents together; 0 or "unlimited": no limit
    #[arg(long, value_name = "RATE", value_parser = rate, required_unless_present_any = ["upload_limit", "on_demand"])]
    download_limit: Option<Bound<u64>>,

    /// What to give others in a second at most, all torrents together; 0 or "unlimited": no limit
    #[arg(long, value_name = "RATE", value_parser = rate)]
    upload_limit: Option<Bound<u64>>,

    /// Fetch only what is read, or all
    #[arg(long, value_name = "on|off", value_parser = on_or_off, action = clap::ArgAction::Set)]
    on_demand: Option<bool>,

    /// The torrent that --on-demand is for, by its name in the mount or its info hash [default: all]
    #[arg(long, value_name = "NAME", requires = "on_demand")]
    torrent: Option<String>,
}

fn on_or_off(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("expected on or off".into()),
    }
}

/// Changes settings, and says how they are now.
pub(super) fn run(args: &SetArgs) -> Result<(), Failure> {
    runtime()?.block_on(async {
        let reached = running_mount::find(&args.mountpoint)?;
        // Before anything is changed: the name may be wrong.
        let torrents = match args.on_demand {
            Some(_) => reached.torrents(args.torrent.as_deref()).await?,
            None => Vec::new(),
        };
        if args.download_limit.is_some() || args.upload_limit.is_some() {
            let said = |bound: Option<Bound<u64>>| bound.map(|bound| bound.0);
            let changes = LimitChanges { download: said(args.download_limit), upload: said(args.upload_limit) };
            let now = reached.limit(&changes).await?;
            let word = |limit: Option<u64>| limit.map_or("unlimited".into(), text::rate);
            println!("limits: down {}, up {}", word(now.download), word(now.upload));
        }
        for torrent in &torrents {
            let changes = TorrentChanges { on_demand: args.on_demand, ..TorrentChanges::default() };
            let now = reached.change(torrent, &changes).await?;
            println!("{}: {}", now.name, if now.on_demand { "fetched on demand" } else { "all of it is fetched" });
        }
        Ok(())
    })
}
