//! `torrentfs get`: a torrent as ordinary files, without a mount.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use clap::Args;
use tokio::sync::Notify;

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

/// How often it is looked at what the disk says, and the rate is shown anew.
const LOOK_EVERY: Duration = Duration::from_millis(500);

const AFTER_HELP: &str = "\
Files are made in DIR as the torrent lays them out: DIR/NAME for a single file,
DIR/NAME/... for many. What is there already is checked and used, so the same
command goes on after Ctrl-C, a crash or a full disk. A file that is not the
torrent's is not overwritten without --force. The exit code is 0 only if all is
there and every hash matched.

RATE is a number with a unit, for a second: 500KB, 2MiB. TIME is one, too: 90s,
2min, 1h. BOOL is true or false, and true if left out.

Examples:
  torrentfs get film.torrent
  torrentfs get -o ~/Videos 'magnet:?xt=urn:btih:...'
  torrentfs get --seed-ratio 1.5 -o /srv/iso https://example.org/linux.torrent";

/// Download torrents as ordinary files, without a mount
#[derive(Args, Clone, Debug)]
#[command(after_help = AFTER_HELP, args_override_self = true)]
pub(super) struct GetArgs {
    /// A .torrent file, its http(s) URL, a magnet link (in quotes), or an info hash; or several
    #[arg(value_name = "SOURCE", required = true)]
    sources: Vec<OsString>,

    /// Where the files are made; the directory is made if it is not there
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    output: PathBuf,

    /// Take the place of files that are not the torrent's
    #[arg(long)]
    force: bool,

    /// Hash everything that is there already, even if nobody touched it since
    #[arg(long)]
    verify: bool,

    /// Once all is here, go on seeding it to others until Ctrl-C; --seed-ratio and --seed-time do so until then
    #[arg(long)]
    seed: bool,

    /// Where it is kept how far a download is [default: torrentfs in the user's cache directory]
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,

    #[command(flatten)]
    network: NetworkFlags,
}

/// What of [`GetArgs`] each download needs.
struct Wishes {
    dir: PathBuf,
    force: bool,
    verify: bool,
    seed: bool,
    quiet: bool,
    network: NetworkArgs,
}

/// Downloads; returns when all is there, and given to others as long as asked.
pub(super) fn run(args: GetArgs, verbosity: Verbosity, quiet: bool) -> Result<(), Failure> {
    log::to_stderr(verbosity);
    let network = NetworkArgs::from(args.network);
    let seed = args.seed || network.seed != crate::session::SeedLimits::default();
    let sources = args.sources.iter().map(|named| Ok((named, sources::single("get", named)?)));
    let sources = sources.collect::<Result<Vec<_>, Failure>>()?;
    let unusable = |error| Failure::new(Exit::Resource, format!("cannot use {}: {error}", args.output.display()));
    fs::create_dir_all(&args.output).map_err(unusable)?;
    let dir = std::path::absolute(&args.output).map_err(unusable)?;
    let wishes = Wishes { dir, force: args.force, verify: args.verify, seed, quiet, network };
    let runtime = runtime()?;
    let outcome = runtime.block_on(async {
        let mut signals = Signals::listen()?;
        let engine = Engine::start(&wishes.network, args.cache_dir.as_deref())?;
        let mut downloads = Vec::new();
        let outcome = tokio::select! {
            outcome = download(&engine, sources, &wishes, &mut downloads) => outcome,
            () = engine.interrupted(&mut signals) => Err(None),
        };
        let left = downloads.iter().filter(|download| download.state == State::Fetching).count();
        engine.stop().await;
        match outcome {
            Err(None) if left == 0 && !downloads.is_empty() => Ok(()),
            Err(None) => {
                Err(Failure::new(Exit::Failure, "ended before all was there; the same command goes on from here"))
            }
            Err(Some(failure)) => Err(failure),
            Ok(()) => Ok(()),
        }
    });
    // A check that nobody waits for any more may still be at work.
    runtime.shutdown_background();
    outcome
}

/// One torrent on its way.
struct Download {
    torrent: Arc<Torrent>,
    state: State,
    since: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Fetching,
    /// All its files are there.
    Complete,
}

impl Download {
    fn total(&self) -> u64 {
        self.torrent.metainfo().layout.lengths().total()
    }

    fn bytes(&self) -> u64 {
        let lengths = self.torrent.metainfo().layout.lengths();
        lengths.full_pieces(self.torrent.stats().have)
    }
}

/// Fetches them all, at the same time; then gives them to others if asked. What fails is told at once, and the first
/// failure at the end again by its code; the others go on. `None`: interrupted.
async fn download(
    engine: &Engine,
    sources: Vec<(&OsString, Source)>,
    wishes: &Wishes,
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
    let news = Arc::new(Notify::new());
    // What needs the network to be known comes behind what does not.
    let (known, unknown): (Vec<_>, Vec<_>) =
        sources.into_iter().partition(|(_, source)| matches!(source, Source::Torrent(_)));
    for (named, source) in known.into_iter().chain(unknown) {
        match take_up(engine, named, source, wishes).await {
            Ok(torrent) => {
                let (mut stats, news) = (torrent.watch(), news.clone());
                tokio::spawn(async move {
                    while stats.changed().await.is_ok() {
                        news.notify_one();
                    }
                });
                downloads.push(Download { torrent, state: State::Fetching, since: Instant::now() });
            }
            Err(failure) => fail(failure),
        }
    }
    fetch(engine, wishes, downloads, &news).await?;
    if wishes.seed {
        let mut seeding = Seeding::new(wishes.network.seed, wishes.quiet);
        downloads.iter().for_each(|download| seeding.add(download.torrent.clone()));
        seeding.until_enough().await;
    }
    failed.map_or(Ok(()), |failure| Err(Some(failure)))
}

/// From what names a torrent to its task.
async fn take_up(engine: &Engine, named: &OsString, source: Source, wishes: &Wishes) -> Result<Arc<Torrent>, Failure> {
    let (metainfo, found) =
        sources::resolve("get", source, named, engine.resolver(&wishes.network), wishes.quiet).await?;
    let (dir, files, force) = (wishes.dir.clone(), metainfo.layout.files().to_owned(), wishes.force);
    let looked = tokio::task::spawn_blocking(move || {
        let resource = |error: &dyn std::fmt::Display| Failure::new(Exit::Resource, error);
        ExtraFiles { dir: &dir, files: &files, overwrite: force }.check().map_err(|error| resource(&error))?;
        match space_missing(&dir, &files) {
            Ok(None) => Ok(()),
            Ok(Some((needed, free))) => Err(resource(&format!(
                "no room in {}: {} more are needed, and {} are free; make room or choose another directory with -o",
                dir.display(),
                ByteSize(needed),
                ByteSize(free)
            ))),
            Err(error) => Err(resource(&format!("cannot use {}: {error}", dir.display()))),
        }
    });
    looked.await.map_err(|error| Failure::new(Exit::Failure, error))??;
    let checking = Arc::new(Progress::start(&format!("checking {}", metainfo.name), 0, wishes.quiet));
    let options = TorrentOptions {
        place: Place::Download { dir: wishes.dir.clone(), overwrite: wishes.force },
        peers: [wishes.network.peers.clone(), found].concat(),
        verify: wishes.verify,
        progress: Some(checking.of_checks()),
        ..TorrentOptions::default()
    };
    engine.add(metainfo, options).await.map_err(Failure::from)
}

/// Until each is complete, or the disk refuses.
async fn fetch(
    engine: &Engine,
    wishes: &Wishes,
    downloads: &mut [Download],
    news: &Notify,
) -> Result<(), Option<Failure>> {
    if downloads.is_empty() {
        return Ok(());
    }
    let what = match &*downloads {
        [download] => download.torrent.metainfo().name.clone(),
        several => format!("{} torrents", several.len()),
    };
    let progress = Progress::start(&what, downloads.iter().map(Download::total).sum(), wishes.quiet);
    let mut begun = false;
    while downloads.iter().any(|download| download.state == State::Fetching) {
        for download in downloads.iter_mut().filter(|download| download.state == State::Fetching) {
            let stats = download.torrent.stats();
            let all = stats.have == download.torrent.metainfo().layout.lengths().pieces();
            if all && download.torrent.store().is_all_on_disk() {
                finish(&download.torrent, wishes).await.map_err(Some)?;
                download.state = State::Complete;
                if !wishes.quiet {
                    progress.say(&done(download, &wishes.dir));
                }
            }
        }
        if let Some(cause) = engine.cache.failure() {
            let message = format!("{cause}; what has come so far is kept, and the same command goes on from here");
            return Err(Some(Failure::new(Exit::Resource, message)));
        }
        let bytes = downloads.iter().map(Download::bytes).sum();
        let peers: usize = downloads.iter().map(|download| download.torrent.stats().peers).sum();
        progress.note(&count(peers, "peer"));
        if std::mem::replace(&mut begun, true) {
            progress.set(bytes)
        } else {
            progress.resume(bytes)
        }
        tokio::select! {
            () = news.notified() => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
    Ok(())
}

/// Makes what has no bytes. Afterwards the torrent is as it is to be.
async fn finish(torrent: &Arc<Torrent>, wishes: &Wishes) -> Result<(), Failure> {
    let (dir, files, overwrite) = (wishes.dir.clone(), torrent.metainfo().layout.files().to_owned(), wishes.force);
    let made = tokio::task::spawn_blocking(move || ExtraFiles { dir: &dir, files: &files, overwrite }.create());
    let made = made.await.map_err(|error| Failure::new(Exit::Failure, error))?;
    made.map_err(|error| Failure::new(Exit::Resource, error))?;
    // Who goes on seeding comes back to it, and need not hash it all again then.
    if !wishes.seed {
        torrent.store().remove_state_on_close();
    }
    Ok(())
}

fn done(download: &Download, dir: &Path) -> String {
    let Download { torrent, since, .. } = download;
    let (stats, path) = (torrent.stats(), dir.join(&torrent.metainfo().name));
    if stats.downloaded == 0 {
        return format!("{}: all there, every hash matches", path.display());
    }
    let seconds = since.elapsed().as_secs_f64();
    format!(
        "{}: complete, {} fetched in {seconds:.1} s, {}/s",
        path.display(),
        ByteSize(stats.downloaded),
        ByteSize((stats.downloaded as f64 / seconds.max(0.001)) as u64)
    )
}
