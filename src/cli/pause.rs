//! `torrentfs pause` and `torrentfs resume`.

use clap::Args;

use super::failure::Failure;
use super::flags::TorrentSelection;
use super::running_mount;
use super::runtime::runtime;
use crate::control::orders::TorrentChanges;

const DESCRIPTION: &str = "\
A paused torrent has no peers and transfers nothing. Reads of cached data still
succeed; reads of anything else wait, and fail after the mount's read timeout.
A pause lasts until `torrentfs resume` or until the mount ends.";

const PAUSE_EXAMPLES: &str = "\
Examples:
  torrentfs pause /mnt/all
  torrentfs pause /mnt/all linux.iso";

const RESUME_EXAMPLES: &str = "\
Examples:
  torrentfs resume /mnt/all
  torrentfs resume /mnt/all linux.iso";

/// Pause torrents of a running mount
#[derive(Args, Clone, Debug, PartialEq)]
#[command(before_help = DESCRIPTION, after_help = PAUSE_EXAMPLES)]
pub(super) struct PauseArgs {
    #[command(flatten)]
    selection: TorrentSelection,
}

/// Resume paused torrents of a running mount
#[derive(Args, Clone, Debug, PartialEq)]
#[command(after_help = RESUME_EXAMPLES)]
pub(super) struct ResumeArgs {
    #[command(flatten)]
    selection: TorrentSelection,
}

/// Pauses the selected torrents.
pub(super) fn pause(args: &PauseArgs) -> Result<(), Failure> {
    set_paused(&args.selection, true)
}

/// Resumes the selected torrents.
pub(super) fn resume(args: &ResumeArgs) -> Result<(), Failure> {
    set_paused(&args.selection, false)
}

fn set_paused(selection: &TorrentSelection, paused: bool) -> Result<(), Failure> {
    runtime()?.block_on(async {
        let mount = running_mount::find(&selection.mountpoint)?;
        for torrent in &mount.torrents(selection.torrent.as_deref()).await? {
            let changes = TorrentChanges { paused: Some(paused), ..TorrentChanges::default() };
            let now = mount.change(torrent, &changes).await?;
            println!("{}: {}", now.name, now.state.word());
        }
        Ok(())
    })
}
