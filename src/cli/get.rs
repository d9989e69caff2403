//! `torrentfs get`: downloads torrents as ordinary files, without a mount.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use clap::Args;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::engine::Engine;
use super::failure::{Exit, Failure};
use super::flags::{NetworkArgs, NetworkFlags};
use super::log::{self, Verbosity};
use super::progress::Progress;
use super::runtime::{Signals, runtime};
use super::seeding::Seeding;
use super::sources;
use super::text::count;
use crate::library::Source;
use crate::session::{Torrent, TorrentOptions};
use crate::store::{ExtraFiles, Place, space_missing};

/// How often the disk is checked for failures, and the progress updated.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

const DESCRIPTION: &str = "\
The files are created in DIR as the torrent lays them out: DIR/NAME for a
single file, DIR/NAME/... for several, with empty files, symbolic links and
executable bits. A name that the filesystem refuses, such as one with ':' on
NTFS, is replaced, and the command says by what.

Data that exists already is checked and kept, whichever program fetched it. So
after Ctrl-C, a crash or a full disk the same command resumes. An existing file
that does not belong to the torrent is an error, unless --force is given.

The exit code is 0 only if everything is complete and every hash matches. The
program then exits, unless --seed, --seed-ratio or --seed-time is given.";

const SECTIONS: &str = "\
The network options are described in `torrentfs help mount`.

Values:
  RATE  bytes per second with a unit: 500KB, 2MiB
  TIME  a number with a unit: 90s, 2min, 1h
  BOOL  true or false; the option alone means true

Examples:
  torrentfs get film.torrent
  torrentfs get a.torrent b.torrent
  torrentfs get -o ~/Videos c12fe1c06bba254a9dc9f519b335aa7c1367a88a
  torrentfs get --seed-ratio 1.5 -o /srv/iso https://example.org/linux.torrent";

/// Download torrents as ordinary files, without a mount
#[derive(Args, Clone, Debug)]
#[command(before_help = DESCRIPTION, after_help = SECTIONS, args_override_self = true)]
pub(super) struct GetArgs {
    /// .torrent or .magnet files, http(s) URLs of such files, magnet links, or info hashes
    #[arg(value_name = "SOURCE", required = true)]
    sources: Vec<OsString>,

    /// Directory to download to; created if it does not exist
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    output: PathBuf,

    /// Overwrite existing files that do not belong to the torrent
    #[arg(long)]
    force: bool,

    /// Hash all existing data, even if it is unchanged since the last check
    #[arg(long)]
    verify: bool,

    /// Seed after the download, until Ctrl-C or until --seed-ratio or --seed-time is reached
    #[arg(long)]
    seed: bool,

    /// Directory for the state of unfinished downloads [default: ~/.cache/torrentfs]
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,

    #[command(flatten)]
    network: NetworkFlags,
}

/// The settings that every download needs.
struct DownloadSettings {
    dir: PathBuf,
    force: bool,
    verify: bool,
    seed: bool,
    quiet: bool,
    network: NetworkArgs,
}

/// Downloads, and then seeds if asked to.
pub(super) fn run(args: GetArgs, verbosity: Verbosity, quiet: bool) -> Result<(), Failure> {
    log::to_stderr(verbosity);
    let network = NetworkArgs::from(args.network);
    let seed = args.seed || network.seed != crate::session::SeedLimits::default();
    let sources = args.sources.iter().map(|named| Ok((named, sources::single("get", named)?)));
    let sources = sources.collect::<Result<Vec<_>, Failure>>()?;
    let unusable = |error| Failure::new(Exit::Resource, format!("cannot use {}: {error}", args.output.display()));
    fs::create_dir_all(&args.output).map_err(unusable)?;
    let dir = std::path::absolute(&args.output).map_err(unusable)?;
    let settings = DownloadSettings { dir, force: args.force, verify: args.verify, seed, quiet, network };
    let runtime = runtime()?;
    let outcome = runtime.block_on(async {
        let mut signals = Signals::listen()?;
        let engine = Engine::start(&settings.network, args.cache_dir.as_deref())?;
        let mut downloads = Vec::new();
        let outcome = tokio::select! {
            outcome = download(&engine, sources, &settings, &mut downloads) => outcome,
            () = engine.until_signal(&mut signals) => Err(None),
        };
        let left = downloads.iter().filter(|download| download.state == State::Fetching).count();
        engine.stop().await;
        match outcome {
            Err(None) if left == 0 && !downloads.is_empty() => Ok(()),
            Err(None) => Err(Failure::new(
                Exit::Failure,
                "stopped before the download was complete; the same command resumes it",
            )),
            Err(Some(failure)) => Err(failure),
            Ok(()) => Ok(()),
        }
    });
    // Do not wait for checks that are still hashing.
    runtime.shutdown_background();
    outcome
}

/// A torrent that is being downloaded.
struct Download {
    torrent: Arc<Torrent>,
    state: State,
    since: Instant,
    /// The hashing of pieces whose files another program changed meanwhile.
    checking: Option<JoinHandle<()>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Fetching,
    /// All files exist and every hash matches.
    Complete,
}

impl Download {
    /// Starts to hash the pieces that are not verified, unless that is under way. Nothing else reads them, and those that
    /// are wrong are then fetched again.
    fn check_unverified(&mut self) {
        if self.checking.as_ref().is_none_or(JoinHandle::is_finished) {
            let store = self.torrent.store().clone();
            self.checking = Some(tokio::task::spawn_blocking(move || store.check_unverified()));
        }
    }

    fn total(&self) -> u64 {
        self.torrent.metainfo().layout.lengths().total()
    }

    fn bytes(&self) -> u64 {
        let lengths = self.torrent.metainfo().layout.lengths();
        lengths.full_pieces(self.torrent.stats().have)
    }
}

/// Fetches all sources at the same time, then seeds them if asked to. A source that fails does not stop the others: with
/// several sources each failure is printed at once, and the first one is returned. `Err(None)` means interrupted.
async fn download(
    engine: &Engine,
    sources: Vec<(&OsString, Source)>,
    settings: &DownloadSettings,
    downloads: &mut Vec<Download>,
) -> Result<(), Option<Failure>> {
    let several = sources.len() > 1;
    let mut failed = None;
    let mut fail = |failure: Failure| {
        if several {
            eprintln!("torrentfs: {failure}");
        }
        failed.get_or_insert(failure);
    };
    let progressed = Arc::new(Notify::new());
    // Torrents whose metadata must be fetched come last, so that they do not delay the others.
    let (known, unknown): (Vec<_>, Vec<_>) =
        sources.into_iter().partition(|(_, source)| matches!(source, Source::Torrent(_)));
    for (named, source) in known.into_iter().chain(unknown) {
        match start(engine, named, source, settings).await {
            Ok(torrent) => {
                let (mut stats, progressed) = (torrent.watch(), progressed.clone());
                tokio::spawn(async move {
                    while stats.changed().await.is_ok() {
                        progressed.notify_one();
                    }
                });
                downloads.push(Download { torrent, state: State::Fetching, since: Instant::now(), checking: None });
            }
            Err(failure) => fail(failure),
        }
    }
    fetch(engine, settings, downloads, &progressed).await?;
    if settings.seed {
        let mut seeding = Seeding::new(settings.network.seed, settings.quiet);
        downloads.iter().for_each(|download| seeding.add(download.torrent.clone()));
        seeding.until_limit().await;
    }
    failed.map_or(Ok(()), |failure| Err(Some(failure)))
}

/// Resolves a source, checks that its files can be written, and starts the torrent.
async fn start(
    engine: &Engine,
    named: &OsString,
    source: Source,
    settings: &DownloadSettings,
) -> Result<Arc<Torrent>, Failure> {
    let (metainfo, found) =
        sources::resolve("get", source, named, engine.resolver(&settings.network), settings.quiet).await?;
    let (dir, files, force) = (settings.dir.clone(), metainfo.layout.files().to_owned(), settings.force);
    let checked = tokio::task::spawn_blocking(move || {
        let resource = |error: &dyn std::fmt::Display| Failure::new(Exit::Resource, error);
        ExtraFiles { dir: &dir, files: &files, overwrite: force }.check().map_err(|error| resource(&error))?;
        match space_missing(&dir, &files) {
            Ok(None) => Ok(()),
            Ok(Some((needed, free))) => Err(resource(&format!(
                "not enough space in {}: {} more is needed, {} is free; free some space, or choose another directory with -o",
                dir.display(),
                ByteSize(needed),
                ByteSize(free)
            ))),
            Err(error) => Err(resource(&format!("cannot use {}: {error}", dir.display()))),
        }
    });
    checked.await.map_err(|error| Failure::new(Exit::Failure, error))??;
    let checking = Arc::new(Progress::start(&format!("checking {}", metainfo.name), 0, settings.quiet));
    let options = TorrentOptions {
        place: Place::Download { dir: settings.dir.clone(), overwrite: settings.force },
        peers: [settings.network.peers.clone(), found].concat(),
        verify: settings.verify,
        progress: Some(checking.check_progress()),
        ..TorrentOptions::default()
    };
    engine.add(metainfo, options).await.map_err(Failure::from)
}

/// Waits until every download is complete, or the disk fails.
async fn fetch(
    engine: &Engine,
    settings: &DownloadSettings,
    downloads: &mut [Download],
    progressed: &Notify,
) -> Result<(), Option<Failure>> {
    if downloads.is_empty() {
        return Ok(());
    }
    let what = match &*downloads {
        [download] => download.torrent.metainfo().name.clone(),
        several => format!("{} torrents", several.len()),
    };
    let progress = Progress::start(&what, downloads.iter().map(Download::total).sum(), settings.quiet);
    let mut begun = false;
    while downloads.iter().any(|download| download.state == State::Fetching) {
        for download in downloads.iter_mut().filter(|download| download.state == State::Fetching) {
            let stats = download.torrent.stats();
            let all = stats.have == download.torrent.metainfo().layout.lengths().pieces();
            if all && !download.torrent.store().is_all_on_disk() {
                download.check_unverified();
            } else if all {
                finish(&download.torrent, settings).await.map_err(Some)?;
                download.state = State::Complete;
                if !settings.quiet {
                    progress.print(&done(download, &settings.dir));
                }
            }
        }
        if let Some(cause) = engine.cache.failure() {
            let message =
                format!("{cause}; the data fetched so far is kept, and the same command resumes the download");
            return Err(Some(Failure::new(Exit::Resource, message)));
        }
        let bytes = downloads.iter().map(Download::bytes).sum();
        let peers: usize = downloads.iter().map(|download| download.torrent.stats().peers).sum();
        progress.set_note(&count(peers, "peer"));
        if std::mem::replace(&mut begun, true) {
            progress.set(bytes)
        } else {
            progress.resume(bytes)
        }
        tokio::select! {
            () = progressed.notified() => {}
            () = tokio::time::sleep(POLL_INTERVAL) => {}
        }
    }
    Ok(())
}

/// Creates empty files, links and executable bits, which need no data. This completes the torrent.
async fn finish(torrent: &Arc<Torrent>, settings: &DownloadSettings) -> Result<(), Failure> {
    let (dir, files, overwrite) = (settings.dir.clone(), torrent.metainfo().layout.files().to_owned(), settings.force);
    let made = tokio::task::spawn_blocking(move || ExtraFiles { dir: &dir, files: &files, overwrite }.create());
    let made = made.await.map_err(|error| Failure::new(Exit::Failure, error))?;
    made.map_err(|error| Failure::new(Exit::Resource, error))?;
    // Keep the state if the torrent is seeded: the next run then need not hash the files again.
    if !settings.seed {
        torrent.store().remove_state_on_close();
    }
    Ok(())
}

fn done(download: &Download, dir: &Path) -> String {
    let Download { torrent, since, .. } = download;
    let (stats, path) = (torrent.stats(), dir.join(&torrent.metainfo().name));
    if stats.downloaded == 0 {
        return format!("{}: already complete, every hash matches", path.display());
    }
    let seconds = since.elapsed().as_secs_f64();
    format!(
        "{}: complete, {} fetched in {seconds:.1} s, {}/s",
        path.display(),
        ByteSize(stats.downloaded),
        ByteSize((stats.downloaded as f64 / seconds.max(0.001)) as u64)
    )
}
