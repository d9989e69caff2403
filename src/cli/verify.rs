//! `torrentfs verify`: hashes the cached pieces of a running mount again.

use std::collections::HashSet;
use std::time::Duration;

use axum::http::Method;
use clap::Args;

use super::failure::{Exit, Failure};
use super::flags::TorrentSelection;
use super::progress::Progress;
use super::running_mount::{self, RunningMount};
use super::runtime::runtime;
use super::text::share;
use crate::control::status::{TorrentStatus, VerificationStatus};

/// How often the mount is asked for the progress of a check.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

const DESCRIPTION: &str = "\
Every fetched piece is hashed again, and damaged pieces are fetched again. The
mount stays usable meanwhile.

The command shows the progress until the check ends; the exit code is 6 if a
piece was damaged. After Ctrl-C, or with --no-wait, the check goes on in the
mount, and `torrentfs status` shows its progress.";

const EXAMPLES: &str = "\
Examples:
  torrentfs verify /mnt/film
  torrentfs verify --no-wait /mnt/all linux.iso";

/// Verify the fetched data of a running mount
#[derive(Args, Clone, Debug, PartialEq)]
#[command(before_help = DESCRIPTION, after_help = EXAMPLES)]
pub(super) struct VerifyArgs {
    #[command(flatten)]
    selection: TorrentSelection,

    /// Return at once, without waiting for the result
    #[arg(long)]
    no_wait: bool,
}

/// Starts a check of each selected torrent, and shows their progress until they end.
pub(super) fn run(args: &VerifyArgs, quiet: bool) -> Result<(), Failure> {
    runtime()?.block_on(async {
        let mount = running_mount::find(&args.selection.mountpoint)?;
        let mut checking = HashSet::new();
        for torrent in &mount.torrents(args.selection.torrent.as_deref()).await? {
            let path = format!("/torrents/{}/verify", torrent.info_hash);
            let now: TorrentStatus = mount.send(Method::POST, &path, &()).await?;
            if args.no_wait {
                let done =
                    now.verification.map_or("100 %".into(), |check| share(check.done.into(), check.pieces.into()));
                println!("{}: checking, {done}; `torrentfs status` shows the progress", now.name);
            } else {
                checking.insert(now.info_hash);
            }
        }
        if checking.is_empty() { Ok(()) } else { follow(&mount, checking, quiet).await }
    })
}

/// Shows the progress of checks until the last one ends, and prints their results.
async fn follow(mount: &RunningMount, mut checking: HashSet<String>, quiet: bool) -> Result<(), Failure> {
    let mut progress: Option<Progress> = None;
    let mut damaged = 0;
    loop {
        let torrents = mount.status().await?.torrents;
        // A torrent that was removed is not checked any more; neither is one that was removed and added again.
        let is_checked =
            |torrent: &TorrentStatus, hash: &str| torrent.info_hash == hash && torrent.verification.is_some();
        checking.retain(|info_hash| torrents.iter().any(|torrent| is_checked(torrent, info_hash)));
        let (mut done, mut total) = (0, 0);
        let (mut ended, mut task) = (Vec::new(), String::new());
        for torrent in torrents.iter().filter(|torrent| checking.contains(&torrent.info_hash)) {
            let Some(check) = torrent.verification else { continue };
            total += torrent.size;
            done += (u64::from(check.done) * u64::from(torrent.piece_length)).min(torrent.size);
            ended.extend((!check.running).then_some((torrent, check)));
            task = format!("checking {}", torrent.name);
        }
        if checking.len() > 1 {
            task = format!("checking {} torrents", checking.len());
        }
        progress.get_or_insert_with(|| Progress::start(&task, total, quiet)).set(done);
        if ended.len() == checking.len() {
            drop(progress);
            for (torrent, check) in ended {
                damaged += check.bad;
                if !quiet {
                    println!("{}", result(torrent, check));
                }
            }
            break;
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    match damaged {
        0 => Ok(()),
        1 => Err(Failure::new(Exit::Incomplete, format!("{}: 1 piece was damaged", mount.shown))),
        _ => Err(Failure::new(Exit::Incomplete, format!("{}: {damaged} pieces were damaged", mount.shown))),
    }
}

/// Describes the result of a check that has ended.
fn result(torrent: &TorrentStatus, check: VerificationStatus) -> String {
    let VerificationStatus { done, pieces, bad, .. } = check;
    let name = &torrent.name;
    match bad {
        _ if done < pieces => format!("{name}: stopped after {done} of {pieces} pieces"),
        0 => format!("{name}: all fetched data is correct"),
        1 => format!("{name}: 1 piece was damaged, and is fetched again"),
        bad => format!("{name}: {bad} pieces were damaged, and are fetched again"),
    }
}
