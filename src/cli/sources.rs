//! The SOURCEs of a command line: opening and resolving them, adding them to a mount, and the progress of their metadata.

use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::interval;

use super::failure::{Exit, Failure};
use super::mount_args::MountArgs;
use super::output::STANDARD;
use super::progress::Progress;
use crate::http::Masked;
use crate::library::{AddError, Added, Library, Named, OpenedSource, Resolver, Source, Watch, read_torrent};
use crate::metainfo::{Document, Metainfo};
use crate::session::MetadataProgress;

/// How often the progress of metadata is shown, if nothing changes.
const UPDATE_INTERVAL: Duration = Duration::from_secs(1);
/// Error of a command that needs a whole torrent.
const NO_HASHES: &str = "it is a magnet link, which does not say what is in the torrent; give the .torrent file";
/// How often to check whether the command that mounts still waits.
const UNWANTED_INTERVAL: Duration = Duration::from_millis(200);

/// Opens each SOURCE of the command line.
pub(super) fn open(args: &MountArgs) -> Result<Vec<OpenedSource>, Failure> {
    let open = |source: &OsString| OpenedSource::new(source).map_err(|error| cannot_mount(&shown(source), error));
    args.sources.iter().map(open).collect()
}

/// Reads the opened SOURCEs. An invalid one is an error, even if others are valid.
pub(super) fn read(args: &MountArgs, opened: Vec<OpenedSource>) -> Result<Vec<Source>, Failure> {
    let read = |(opened, source): (OpenedSource, &OsString)| {
        opened.read().map_err(|error| cannot_mount(&shown(source), error))
    };
    let sources: Vec<Source> = opened.into_iter().zip(&args.sources).map(read).collect::<Result<_, _>>()?;
    // A mount over a source directory, or above it, would hide its files.
    let mountpoint = args.mountpoint.canonicalize().ok();
    for (source, named) in args.sources.iter().zip(&sources) {
        if let (Source::Directory(dir), Some(mountpoint)) = (named, &mountpoint)
            && dir.starts_with(mountpoint)
        {
            let which = if dir == mountpoint { "this directory" } else { "a parent directory" };
            return Err(cannot_mount(&shown(source), format!("{which} is the mountpoint; use another mountpoint")));
        }
    }
    Ok(sources)
}

/// Adds all sources at the same time, and starts to watch the directories among them. Cancelled if `is_wanted` returns false.
pub(super) async fn add_all(
    library: &Library,
    args: &MountArgs,
    sources: Vec<Source>,
    quiet: bool,
    is_wanted: &dyn Fn() -> bool,
) -> Result<Vec<Watch>, Failure> {
    let mut shown_metadata = Vec::new();
    let (mut adding, mut dirs) = (JoinSet::new(), Vec::new());
    for (source, named) in sources.into_iter().zip(&args.sources) {
        if let Source::Directory(dir) = source {
            dirs.push(dir);
            continue;
        }
        let (progress, shown_progress) = watch::channel(MetadataProgress::default());
        if let Source::Magnet(magnet) = &source {
            let name = magnet.name.clone().unwrap_or_else(|| magnet.info_hash.to_string());
            shown_metadata.push((name, shown_progress));
        }
        let (library, named, since) = (library.clone(), shown(named), SystemTime::now());
        adding.spawn(async move {
            let added = library.add_with_progress(&source, since, &progress).await;
            (named, added)
        });
    }
    let mut all = async || {
        // A task fails only if it panics, which the program does not survive, or is aborted, which happens at its end.
        while let Some(Ok((named, added))) = adding.join_next().await {
            match added {
                Ok(Added { name, already: true, .. }) => {
                    tracing::warn!("{named} is the same torrent as {name}, and is mounted once");
                }
                Ok(_) => {}
                Err(error) => return Err(cannot_add(&named, error)),
            }
        }
        Ok(())
    };
    let added = tokio::select! {
        added = all() => added,
        never = show_metadata(shown_metadata, quiet) => match never {},
        () = until_unwanted(is_wanted) => Err(Failure::new(Exit::Failure, "cancelled: the command that mounts has ended")),
    };
    added?;
    let mut watches = Vec::new();
    for dir in dirs {
        watches.push(Watch::start(library.clone(), dir, args.delete_removed).await);
    }
    Ok(watches)
}

/// Reads a SOURCE of a command that takes no directories.
pub(super) fn single(verb: &str, source: &OsStr) -> Result<Source, Failure> {
    match Source::read(source) {
        Ok(Source::Directory(_)) => Err(Failure::of_torrent(
            verb,
            &shown(source),
            "it is a directory; give a .torrent file, a URL or a magnet link",
        )),
        Ok(read) => Ok(read),
        Err(error) => Err(Failure::of_torrent(verb, &shown(source), error)),
    }
}

/// Reads a `.torrent` file, or standard input for "-". Returns it with its bytes.
pub(super) fn torrent_file(verb: &str, source: &OsStr) -> Result<(Metainfo, Vec<u8>), Failure> {
    let named = if source == STANDARD { "standard input".into() } else { shown(source) };
    let failed = |error: &dyn std::fmt::Display| Failure::of_torrent(verb, &named, error);
    let bytes = if source == STANDARD {
        read_torrent(io::stdin().lock())
    } else {
        match Named::new(source).map_err(|error| failed(&error))? {
            Named::Path(path) => File::open(path).and_then(read_torrent),
            Named::Magnet(_) => return Err(failed(&NO_HASHES)),
            Named::Url(_) => return Err(failed(&"it is a URL; download the file first")),
        }
    };
    let bytes = bytes.map_err(|error| failed(&error))?;
    match Document::parse(bytes.clone()).map_err(|error| failed(&error))? {
        Document::Torrent(metainfo) => Ok((*metainfo, bytes)),
        Document::Magnet(_) => Err(failed(&NO_HASHES)),
    }
}

/// Returns the metainfo of a source, and the peers that its search found. Shows the progress of metadata.
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
    let shown_metadata = name.map(|name| (name, shown_progress)).into_iter().collect();
    let resolved = tokio::select! {
        resolved = resolver.resolve(source, &progress) => resolved,
        never = show_metadata(shown_metadata, quiet) => match never {},
    };
    resolved.map_err(|error| match error {
        AddError::Session(error) => error.into(),
        error => Failure::of_torrent(verb, &shown(named), error),
    })
}

/// Describes a source that cannot be mounted.
fn cannot_mount(shown: &str, reason: impl std::fmt::Display) -> Failure {
    Failure::of_torrent("mount", shown, reason)
}

fn cannot_add(shown: &str, error: AddError) -> Failure {
    match error {
        AddError::Session(error) => Failure::new(Exit::Resource, error),
        error => cannot_mount(shown, error),
    }
}

/// Returns a SOURCE for display. URLs and magnet links are masked, because they may contain a passkey or a password.
pub(super) fn shown(source: &OsStr) -> String {
    let text = source.to_string_lossy();
    if text.contains("://") || text.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case("magnet:")) {
        Masked(&text).to_string()
    } else {
        text.into_owned()
    }
}

/// Waits until `is_wanted` returns false.
async fn until_unwanted(is_wanted: &dyn Fn() -> bool) {
    let mut ticks = interval(UNWANTED_INTERVAL);
    while is_wanted() {
        ticks.tick().await;
    }
}

/// Shows the progress of metadata, of the first source that is not done. Never returns.
async fn show_metadata(all: Vec<(String, watch::Receiver<MetadataProgress>)>, quiet: bool) -> Infallible {
    if all.is_empty() {
        return std::future::pending().await;
    }
    let line = Progress::spinner(quiet);
    let count = all.len();
    for (at, (name, mut progress)) in (1..).zip(all) {
        let which = if count > 1 { format!("{name} ({at} of {count})") } else { name };
        loop {
            let MetadataProgress { found, peers, received, pieces, .. } = *progress.borrow_and_update();
            let pieces = if pieces == 0 { String::new() } else { format!(", {received} of {pieces} pieces") };
            line.set_text(&format!("metadata of {which}: {found} peers found, {peers} asked{pieces}"));
            tokio::select! {
                changed = progress.changed() => {
                    // The sender is gone: the source has been added, or has failed.
                    if changed.is_err() {
                        break;
                    }
                }
                () = tokio::time::sleep(UPDATE_INTERVAL) => {}
            }
        }
    }
    // Clear the line.
    drop(line);
    std::future::pending().await
}
