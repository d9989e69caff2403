//! The SOURCEs of a mount, put into its library; and what is shown while metadata is fetched.

use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::interval;

use super::failure::{Exit, Failure};
use super::mount_args::MountArgs;
use super::progress::Progress;
use crate::http::Masked;
use crate::library::{AddError, Added, Library, OpenedSource, Resolver, Source, Watch};
use crate::metainfo::Metainfo;
use crate::session::MetadataProgress;

/// How often it is looked whether it is time to say how far metadata is, though nothing changed.
const SAY_EVERY: Duration = Duration::from_secs(1);

/// Opens each SOURCE of the command line.
pub(super) fn open(args: &MountArgs) -> Result<Vec<OpenedSource>, Failure> {
    let open = |source: &OsString| OpenedSource::new(source).map_err(|error| fault(&shown(source), error));
    args.sources.iter().map(open).collect()
}

/// What each SOURCE is. One that is bad is an error, however many there are.
pub(super) fn read(args: &MountArgs, opened: Vec<OpenedSource>) -> Result<Vec<Source>, Failure> {
    let read =
        |(opened, source): (OpenedSource, &OsString)| opened.read().map_err(|error| fault(&shown(source), error));
    let sources: Vec<Source> = opened.into_iter().zip(&args.sources).map(read).collect::<Result<_, _>>()?;
    // Mounted over, its files could not be read any more.
    let below = args.mountpoint.canonicalize().ok();
    for (source, named) in args.sources.iter().zip(&sources) {
        if let (Source::Directory(dir), Some(mountpoint)) = (named, &below)
            && dir.starts_with(mountpoint)
        {
            let which = if dir == mountpoint { "this directory" } else { "a directory above it" };
            return Err(fault(&shown(source), format!("{which} is the mountpoint; mount somewhere else")));
        }
    }
    Ok(sources)
}

/// Adds every source, all at the same time, and begins to watch the directories among them. `wanted` is asked now and
/// then: false ends it.
pub(super) async fn add_all(
    library: &Library,
    args: &MountArgs,
    sources: Vec<Source>,
    quiet: bool,
    wanted: &dyn Fn() -> bool,
) -> Result<Vec<Watch>, Failure> {
    let mut shows = Vec::new();
    let (mut adding, mut dirs) = (JoinSet::new(), Vec::new());
    for (source, named) in sources.into_iter().zip(&args.sources) {
        if let Source::Directory(dir) = source {
            dirs.push(dir);
            continue;
        }
        let (progress, shown_progress) = watch::channel(MetadataProgress::default());
        if let Source::Magnet(magnet) = &source {
            let name = magnet.name.clone().unwrap_or_else(|| magnet.info_hash.to_string());
            shows.push((name, shown_progress));
        }
        let (library, named) = (library.clone(), shown(named));
        adding.spawn(async move {
            let added = library.add_with_progress(&source, &progress).await;
            (named, added)
        });
    }
    let mut all = async || {
        // A task panics or is aborted only with the whole program.
        while let Some(Ok((named, added))) = adding.join_next().await {
            match added {
                Ok(Added { name, already: true, .. }) => {
                    tracing::warn!("{named}: the same torrent as {name}, which is here; shown once");
                }
                Ok(_) => {}
                Err(error) => return Err(add_fault(&named, error)),
            }
        }
        Ok(())
    };
    let added = tokio::select! {
        added = all() => added,
        never = show(shows, quiet) => match never {},
        () = unwanted(wanted) => Err(Failure::new(Exit::Failure, "nobody waits for the mount any more")),
    };
    added?;
    let mut watches = Vec::new();
    for dir in dirs {
        watches.push(Watch::start(library.clone(), dir, args.delete_removed).await);
    }
    Ok(watches)
}

/// What a SOURCE is to a command that takes no directory.
pub(super) fn single(verb: &str, source: &OsStr) -> Result<Source, Failure> {
    match Source::read(source) {
        Ok(Source::Directory(_)) => {
            Err(Failure::of_torrent(verb, &shown(source), "it is a directory; give a .torrent file or a link"))
        }
        Ok(read) => Ok(read),
        Err(error) => Err(Failure::of_torrent(verb, &shown(source), error)),
    }
}

/// The torrent that a source names, and peers found on the way; showing how far its metadata is.
pub(super) async fn resolve(
    verb: &str,
    source: Source,
    named: &OsStr,
    resolver: Resolver<'_>,
    quiet: bool,
) -> Result<(Metainfo, Vec<SocketAddr>), Failure> {
    let (progress, shown_progress) = watch::channel(MetadataProgress::default());
    let name = match &source {
        Source::Magnet(magnet) => Some(magnet.name.clone().unwrap_or_else(|| magnet.info_hash.to_string())),
        _ => None,
    };
    let shows = name.map(|name| (name, shown_progress)).into_iter().collect();
    let resolved = tokio::select! {
        resolved = resolver.resolve(source, &progress) => resolved,
        never = show(shows, quiet) => match never {},
    };
    resolved.map_err(|error| match error {
        AddError::Session(error) => error.into(),
        error => Failure::of_torrent(verb, &shown(named), error),
    })
}

/// The failure of a mount for its source's sake.
fn fault(shown: &str, why: impl std::fmt::Display) -> Failure {
    Failure::of_torrent("mount", shown, why)
}

fn add_fault(shown: &str, error: AddError) -> Failure {
    match error {
        AddError::Session(error) => Failure::new(Exit::Resource, error),
        error => fault(shown, error),
    }
}

/// A SOURCE as it may be shown: what is no file's name may hold a secret.
pub(super) fn shown(source: &OsStr) -> String {
    let text = source.to_string_lossy();
    if text.contains("://") || text.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case("magnet:")) {
        Masked(&text).to_string()
    } else {
        text.into_owned()
    }
}

async fn unwanted(wanted: &dyn Fn() -> bool) {
    let mut now_and_then = interval(Duration::from_millis(200));
    while wanted() {
        now_and_then.tick().await;
    }
}

/// Shows how far it is, for ever. Of several it is the first that is not done.
async fn show(all: Vec<(String, watch::Receiver<MetadataProgress>)>, quiet: bool) -> Infallible {
    if all.is_empty() {
        return std::future::pending().await;
    }
    let shown = Progress::open(quiet);
    let count = all.len();
    for (at, (name, mut progress)) in (1..).zip(all) {
        let which = if count > 1 { format!("{name} ({at} of {count})") } else { name };
        loop {
            let MetadataProgress { found, peers, received, pieces, .. } = *progress.borrow_and_update();
            let pieces = if pieces == 0 { String::new() } else { format!(", {received} of {pieces} pieces") };
            shown.tell(&format!("metadata of {which}: {found} peers found, {peers} asked{pieces}"));
            tokio::select! {
                changed = progress.changed() => {
                    // It is added, or has failed.
                    if changed.is_err() {
                        break;
                    }
                }
                () = tokio::time::sleep(SAY_EVERY) => {}
            }
        }
    }
    // What stands there is over.
    drop(shown);
    std::future::pending().await
}
