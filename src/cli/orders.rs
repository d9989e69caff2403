//! Orders to a running mount: `add`, `remove`, `set`, `pause`, `resume`, `verify`, `priority`.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::http::Method;
use clap::Args;

use super::args::Exit;
use super::progress::Progress;
use super::reach::{self, Reached};
use super::status::{rate as shown_rate, share};
use super::values::{Bound, rate};
use super::{Failure, service};
use crate::control::orders::{
    AddedTorrent, FilesChanged, LimitChanges, NewTorrent, PriorityChange, RemovedTorrent, TorrentChanges,
};
use crate::control::status::{Priority, RateLimits, TorrentStatus, VerificationStatus};
use crate::metainfo::{InfoHash, MAX_TORRENT_LEN};
use crate::web::client::New;

/// How often a mount is asked how far a check is.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// `torrentfs set`.
#[derive(Args, Clone, Debug, PartialEq)]
pub struct SetArgs {
    /// A mount, or a path in it
    pub mountpoint: PathBuf,

    /// What to fetch in a second at most, all torrents together; 0 or "unlimited": no limit
    #[arg(long, value_name = "RATE", value_parser = rate, required_unless_present_any = ["upload_limit", "on_demand"])]
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

/// `torrentfs add`.
#[derive(Args, Clone, Debug, PartialEq)]
pub struct AddArgs {
    /// A mount, or a path in it
    pub mountpoint: PathBuf,

    /// .torrent files, their http(s) URLs, magnet links (in quotes), or info hashes
    #[arg(value_name = "SOURCE", required = true, num_args = 1..)]
    pub sources: Vec<OsString>,
}

/// `torrentfs remove`.
#[derive(Args, Clone, Debug, PartialEq)]
pub struct RemoveArgs {
    /// A mount, or a path in it
    pub mountpoint: PathBuf,

    /// The torrent, by its name in the mount or its info hash
    #[arg(value_name = "NAME")]
    pub torrent: String,

    /// Delete what is cached of it, too
    #[arg(long)]
    pub delete: bool,
}

/// `torrentfs pause` and `resume`.
#[derive(Args, Clone, Debug, PartialEq)]
pub struct TorrentArgs {
    /// A mount, or a path in it
    pub mountpoint: PathBuf,

    /// One torrent, by its name in the mount or its info hash [default: all]
    #[arg(value_name = "NAME")]
    pub torrent: Option<String>,
}

/// `torrentfs verify`.
#[derive(Args, Clone, Debug, PartialEq)]
pub struct VerifyArgs {
    #[command(flatten)]
    which: TorrentArgs,

    /// Do not wait for the end: `torrentfs status` tells how far it is
    #[arg(long)]
    no_wait: bool,
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
            let now = limit(&reached, &changes).await?;
            let word = |limit: Option<u64>| limit.map_or("unlimited".into(), shown_rate);
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

/// Adds torrents, one after the other. Those that can be are added, whatever becomes of the others.
pub(super) fn add(args: &AddArgs) -> Result<(), Failure> {
    service::runtime()?.block_on(async {
        let reached = reach::mount(&args.mountpoint)?;
        let mut failure = None;
        for source in &args.sources {
            let shown = source.to_string_lossy();
            let added = match new(source) {
                Ok(new) => reached.client.add::<AddedTorrent>(&new).await.map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            match added {
                Ok(AddedTorrent { name, already: true, .. }) => println!("{name} was there already"),
                Ok(AddedTorrent { name, .. }) => println!("added {name}"),
                Err(why) => {
                    let next = Failure::new(Exit::Torrent, format!("cannot add {shown}: {why}"));
                    // Each is said; the last one as every command says why it failed.
                    if let Some(earlier) = failure.replace(next) {
                        eprintln!("torrentfs: {earlier}");
                    }
                }
            }
        }
        failure.map_or(Ok(()), Err)
    })
}

/// What a SOURCE is: a file is read here, for the mount's process may stand elsewhere.
fn new(source: &OsStr) -> std::io::Result<New> {
    let path = Path::new(source);
    if path.is_file() {
        let mut bytes = Vec::new();
        std::fs::File::open(path)?.take(MAX_TORRENT_LEN as u64 + 1).read_to_end(&mut bytes)?;
        return Ok(New::File(bytes));
    }
    let named = source.to_string_lossy();
    if path.exists() || !(named.contains(':') || named.parse::<InfoHash>().is_ok()) {
        // A directory, or a name of nothing: the reason is the system's.
        std::fs::File::open(path)?;
        return Err(std::io::Error::other("it is no file; a directory can only be mounted"));
    }
    Ok(New::Named(NewTorrent { source: named.into_owned() }))
}

/// Removes a torrent.
pub(super) fn remove(args: &RemoveArgs) -> Result<(), Failure> {
    service::runtime()?.block_on(async {
        let reached = reach::mount(&args.mountpoint)?;
        for torrent in &reached.torrents(Some(&args.torrent)).await? {
            let path = format!("/torrents/{}?delete={}", torrent.info_hash, args.delete);
            let RemovedTorrent { name, in_use, .. } = reached.order(Method::DELETE, &path, &()).await?;
            println!("removed {name}{}", if in_use { "; files of it are open, and can be read on" } else { "" });
        }
        Ok(())
    })
}

/// Changes the rate limits; how they are now.
pub(super) async fn limit(reached: &Reached, changes: &LimitChanges) -> Result<RateLimits, Failure> {
    reached.order(Method::PATCH, "/limits", changes).await
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

/// Has what is here hashed again, and shows how far that is till it ends. It goes on without us, too.
pub(super) fn verify(args: &VerifyArgs, quiet: bool) -> Result<(), Failure> {
    service::runtime()?.block_on(async {
        let reached = reach::mount(&args.which.mountpoint)?;
        let mut checking = HashSet::new();
        for torrent in &reached.torrents(args.which.torrent.as_deref()).await? {
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
async fn follow(reached: &Reached, mut checking: HashSet<String>, quiet: bool) -> Result<(), Failure> {
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
