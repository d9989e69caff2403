//! Orders to a running mount: `set`, `pause`, `resume`, `verify`, `priority`.

use std::path::{Path, PathBuf};

use axum::http::Method;
use clap::Args;

use super::args::{Bound, rate};
use super::reach::{self, Reached};
use super::status::{rate as shown_rate, share};
use super::{Failure, service};
use crate::control::orders::{FilesChanged, LimitChanges, PriorityChange, TorrentChanges};
use crate::control::status::{Priority, RateLimits, TorrentStatus};

/// `torrentfs set`.
#[derive(Args, Clone, Debug, PartialEq)]
#[group(id = "setting", required = true, multiple = true, args = ["download_limit", "upload_limit", "on_demand"])]
pub struct SetArgs {
    /// A mount, or a path in it
    pub mountpoint: PathBuf,

    /// What to fetch in a second at most, all torrents together; 0 or "unlimited": no limit
    #[arg(long, value_name = "RATE", value_parser = rate)]
    pub(super) download_limit: Option<Bound<u64>>,

    /// What to give others in a second at most, all torrents together; 0 or "unlimited": no limit
    #[arg(long, value_name = "RATE", value_parser = rate)]
    pub(super) upload_limit: Option<Bound<u64>>,

    /// Fetch only what is read, or all
    #[arg(long, value_name = "on|off", value_parser = on_or_off, action = clap::ArgAction::Set)]
    pub on_demand: Option<bool>,

    /// The torrent that --on-demand is for, by its name in the mount or its info hash [default: all]
    #[arg(long, value_name = "NAME", requires = "on_demand")]
    pub torrent: Option<String>,
}

/// `torrentfs pause`, `resume` and `verify`.
#[derive(Args, Clone, Debug, PartialEq)]
pub struct TorrentArgs {
    /// A mount, or a path in it
    pub mountpoint: PathBuf,

    /// One torrent, by its name in the mount or its info hash [default: all]
    #[arg(value_name = "NAME")]
    pub torrent: Option<String>,
}

/// `torrentfs priority`.
#[derive(Args, Clone, Debug, PartialEq)]
pub struct PriorityArgs {
    /// A mount, or a path in it
    pub mountpoint: PathBuf,

    /// A file or directory in it, from its root on or with the mountpoint before
    #[arg(value_name = "PATH")]
    pub path: PathBuf,

    /// Not at all unless it is read, as all others, or before all others
    #[arg(value_name = "skip|normal|high", value_parser = priority)]
    pub priority: Priority,
}

fn on_or_off(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("expected on or off".into()),
    }
}

fn priority(text: &str) -> Result<Priority, String> {
    [Priority::Skip, Priority::Normal, Priority::High]
        .into_iter()
        .find(|priority| priority.word() == text)
        .ok_or_else(|| "expected skip, normal or high".into())
}

/// Changes settings, and says how they are now.
pub(super) fn set(args: &SetArgs) -> Result<(), Failure> {
    service::runtime()?.block_on(async {
        let reached = reach::mount(&args.mountpoint)?;
        // Before anything is changed: the name may be wrong.
        let torrents = match args.on_demand {
            Some(_) => reached.torrents(args.torrent.as_deref()).await?,
            None => Vec::new(),
        };
        if args.download_limit.is_some() || args.upload_limit.is_some() {
            let said = |bound: Option<Bound<u64>>| bound.map(|bound| bound.0);
            let changes = LimitChanges { download: said(args.download_limit), upload: said(args.upload_limit) };
            let now: RateLimits = reached.order(Method::PATCH, "/limits", &changes).await?;
            let limit = |limit: Option<u64>| limit.map_or("unlimited".into(), shown_rate);
            println!("limits: down {}, up {}", limit(now.download), limit(now.upload));
        }
        for torrent in &torrents {
            let changes = TorrentChanges { on_demand: args.on_demand, ..TorrentChanges::default() };
            let now = reached.change(torrent, &changes).await?;
            println!("{}: {}", now.name, if now.on_demand { "fetched on demand" } else { "all of it is fetched" });
        }
        Ok(())
    })
}

/// Pauses torrents, or goes on with them.
pub(super) fn pause(args: &TorrentArgs, paused: bool) -> Result<(), Failure> {
    each(args, async |reached, torrent| {
        let changes = TorrentChanges { paused: Some(paused), ..TorrentChanges::default() };
        let now = reached.change(torrent, &changes).await?;
        println!("{}: {}", now.name, now.state.word());
        Ok(())
    })
}

/// Has what is here hashed again, and does not wait for it.
pub(super) fn verify(args: &TorrentArgs) -> Result<(), Failure> {
    each(args, async |reached, torrent| {
        let path = format!("/torrents/{}/verify", torrent.info_hash);
        let now: TorrentStatus = reached.order(Method::POST, &path, &()).await?;
        let done = now.verification.map_or("100 %".into(), |check| share(check.done.into(), check.pieces.into()));
        println!("{}: checking, {done}; `torrentfs status` tells how far it is", now.name);
        Ok(())
    })
}

fn each(
    args: &TorrentArgs,
    order: impl AsyncFn(&Reached, &TorrentStatus) -> Result<(), Failure>,
) -> Result<(), Failure> {
    service::runtime()?.block_on(async {
        let reached = reach::mount(&args.mountpoint)?;
        for torrent in &reached.torrents(args.torrent.as_deref()).await? {
            order(&reached, torrent).await?;
        }
        Ok(())
    })
}

/// Says how much a file is wanted.
pub(super) fn prioritize(args: &PriorityArgs) -> Result<(), Failure> {
    service::runtime()?.block_on(async {
        let reached = reach::mount(&args.mountpoint)?;
        let mountpoint = PathBuf::from(reached.status().await?.mountpoint);
        let path = within(&mountpoint, &args.path).to_string_lossy().into_owned();
        let change = PriorityChange { path, priority: args.priority };
        let FilesChanged { files } = reached.order(Method::PATCH, "/priority", &change).await?;
        let files = if files == 1 { "1 file".into() } else { format!("{files} files") };
        println!("{files}: {}", args.priority.word());
        Ok(())
    })
}

/// A path from the mount's root, however the user wrote it.
fn within(mountpoint: &Path, path: &Path) -> PathBuf {
    let whole = std::path::absolute(path).ok();
    let resolved = std::fs::canonicalize(path).ok();
    let below =
        [resolved, whole].into_iter().flatten().find_map(|path| Some(path.strip_prefix(mountpoint).ok()?.to_owned()));
    below.unwrap_or_else(|| path.to_owned())
}

impl Reached {
    async fn order<T: serde::de::DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl serde::Serialize,
    ) -> Result<T, Failure> {
        self.client.send(method, path, body).await.map_err(|error| self.failure(&error))
    }

    pub(super) async fn change(
        &self,
        torrent: &TorrentStatus,
        changes: &TorrentChanges,
    ) -> Result<TorrentStatus, Failure> {
        self.order(Method::PATCH, &format!("/torrents/{}", torrent.info_hash), changes).await
    }
}
