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

/// How often a mount is asked how far a check is.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Hash again what is here, while it is used; what is not as it should be is fetched again
///
/// Shows how far it is till it ends; ended by Ctrl-C, the check goes on. If something was not as it should be, the
/// exit code is 6.
#[derive(Args, Clone, Debug, PartialEq)]
pub(super) struct VerifyArgs {
    #[command(flatten)]
    selection: TorrentSelection,

    /// Do not wait for the end: `torrentfs status` tells how far it is
    #[arg(long)]
    no_wait: bool,
}

/// Has what is here hashed again, and shows how far that is till it ends. It goes on without us, too.
pub(super) fn run(args: &VerifyArgs, quiet: bool) -> Result<(), Failure> {
    runtime()?.block_on(async {
        let reached = running_mount::find(&args.selection.mountpoint)?;
        let mut checking = HashSet::new();
        for torrent in &reached.torrents(args.selection.torrent.as_deref()).await? {
            let path = format!("/torrents/{}/verify", torrent.info_hash);
            let now: TorrentStatus = reached.order(Method::POST, &path, &()).await?;
            if args.no_wait {
                let done =
                    now.verification.map_or("100 %".into(), |check| share(check.done.into(), check.pieces.into()));
                println!("{}: checking, {done}; `torrentfs status` tells how far it is", now.name);
            } else {
                checking.insert(now.info_hash);
            }
        }
        if checking.is_empty() { Ok(()) } else { follow(&reached, checking, quiet).await }
    })
}

/// Shows checks till the last one ends, and says what each found.
async fn follow(reached: &RunningMount, mut checking: HashSet<String>, quiet: bool) -> Result<(), Failure> {
    let mut progress: Option<Progress> = None;
    let mut bad = 0;
    loop {
        let torrents = reached.status().await?.torrents;
        // What was removed meanwhile is checked no longer; nor if it was then added anew.
        let checked = |torrent: &TorrentStatus, hash: &str| torrent.info_hash == hash && torrent.verification.is_some();
        checking.retain(|info_hash| torrents.iter().any(|torrent| checked(torrent, info_hash)));
        let (mut done, mut total) = (0, 0);
        let (mut ended, mut what) = (Vec::new(), String::new());
        for torrent in torrents.iter().filter(|torrent| checking.contains(&torrent.info_hash)) {
            let Some(check) = torrent.verification else { continue };
            total += torrent.size;
            done += (u64::from(check.done) * u64::from(torrent.piece_length)).min(torrent.size);
            ended.extend((!check.running).then_some((torrent, check)));
            what = format!("checking {}", torrent.name);
        }
        if checking.len() > 1 {
            what = format!("checking {} torrents", checking.len());
        }
        progress.get_or_insert_with(|| Progress::start(&what, total, quiet)).set(done);
        if ended.len() == checking.len() {
            drop(progress);
            for (torrent, check) in ended {
                bad += check.bad;
                if !quiet {
                    println!("{}", found(torrent, check));
                }
            }
            break;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    match bad {
        0 => Ok(()),
        bad => {
            let pieces = if bad == 1 { "1 piece was".into() } else { format!("{bad} pieces were") };
            Err(Failure::new(Exit::Incomplete, format!("{}: {pieces} not right", reached.shown)))
        }
    }
}

/// What a check that has ended found.
fn found(torrent: &TorrentStatus, check: VerificationStatus) -> String {
    let VerificationStatus { done, pieces, bad, .. } = check;
    let name = &torrent.name;
    match bad {
        _ if done < pieces => format!("{name}: ended after {done} of {pieces} pieces"),
        0 => format!("{name}: all that is here is as it should be"),
        1 => format!("{name}: 1 piece was not as it should be; it is fetched again"),
        bad => format!("{name}: {bad} pieces were not as they should be; they are fetched again"),
    }
}
