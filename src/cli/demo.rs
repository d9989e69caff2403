//! `torrentfs demo`: runs a whole swarm on loopback and mounts its torrent with the code of `torrentfs mount`.

use std::fs;
use std::io::{self, IsTerminal, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytesize::ByteSize;
use clap::Args;

use super::cache_dir::CacheDir;
use super::failure::{Exit, Failure};
use super::flags::values::{duration, rate};
use super::flags::{HttpFlags, MountOptions, NetworkArgs};
use super::log::{self, Verbosity};
use super::mount_args::MountArgs;
use super::runtime::{Signals, runtime};
use super::sample;
use super::service::{self, Service};
use crate::fs::Attacher;
use crate::library::{Library, Source};
use crate::metainfo::{Metainfo, NewFile, NewTorrent, hash_pieces};
use crate::net::{self, Limits, PortChoice};
use crate::route::{Bind, Route};
use crate::session::{Session, SessionConfig, Torrent, TorrentOptions};
use crate::store::{Cache, Place};
use crate::tracker::{self, Tracker};

/// Name of the torrent, and of its directory in the mount.
const NAME: &str = "torrentfs-demo";
/// Piece length in bytes. Small, so that the demo has hundreds of pieces to show.
const PIECE_LEN: u32 = 128 * 1024;
/// Number of seeders: the smallest that shows a download from several peers.
const SEEDERS: usize = 2;
/// Address of all sockets of the demo.
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

const DESCRIPTION: &str = "\
The demo makes a sample library of music, video and text, makes a torrent of it,
starts a tracker and two seeders with a limited rate, and mounts the torrent.
All connections stay on this machine. Ctrl-C unmounts, stops everything and
removes the files, and the MOUNTPOINT if the demo made it.

While it runs, read the mounted files, or watch it from another terminal with
`torrentfs top`.";

const SECTIONS: &str = "\
Values:
  RATE  bytes per second with a unit: 500KB, 2MiB
  TIME  a number with a unit: 90s, 2min, 1h

Examples:
  torrentfs demo
  torrentfs demo --rate 500KB --for 2min
  torrentfs demo --check && echo it works";

/// Try torrentfs with a swarm on this machine
#[derive(Args, Clone, Debug, PartialEq)]
#[command(before_help = DESCRIPTION, after_help = SECTIONS, args_override_self = true)]
pub(super) struct DemoArgs {
    /// Directory to mount on, created if it does not exist [default: a new temporary directory]
    pub(super) mountpoint: Option<PathBuf>,

    /// Maximum upload rate of each seeder
    #[arg(long, value_name = "RATE", default_value = "2MiB", value_parser = rate)]
    pub(super) rate: u64,

    /// Stop after this time [default: until Ctrl-C]
    #[arg(long = "for", value_name = "TIME", value_parser = duration)]
    pub(super) time: Option<Duration>,

    /// Read every file through the mount and compare it with the original, then exit: 0 if all are equal, else 1
    #[arg(long, conflicts_with = "time")]
    pub(super) check: bool,
}

/// Runs the demo.
pub(super) fn run(args: DemoArgs, verbosity: Verbosity) -> Result<(), Failure> {
    log::to_stderr(verbosity);
    let dir = TempDir::new().map_err(|error| failed("create a temporary directory", error))?;
    runtime()?.block_on(demonstrate(&args, &dir.0))
}

async fn demonstrate(args: &DemoArgs, dir: &Path) -> Result<(), Failure> {
    let mut signals = Signals::listen()?;
    let swarm = tokio::select! {
        swarm = DemoSwarm::start(args, dir) => swarm?,
        _ = signals.any() => return Ok(()),
    };
    let DemoSwarm { library, files, torrent_file, metainfo, tracker, seeders } = swarm;
    let total = metainfo.layout.lengths().total();

    let mountpoint = match &args.mountpoint {
        Some(mountpoint) => mountpoint.clone(),
        None => dir.join("mnt"),
    };
    let _made = MadeDirs::create(&mountpoint).map_err(|error| failed("create the mountpoint", error))?;
    let mount_args = MountArgs {
        sources: vec![torrent_file.into()],
        mountpoint,
        foreground: true,
        on_demand: false,
        read_timeout: Some(Duration::from_secs(60)),
        passthrough: true,
        cache_dir: CacheDir::Exclusive(dir.join("cache")),
        cache_size: None,
        memory: 64 << 20,
        verify: false,
        delete_removed: false,
        network: NetworkArgs {
            port: PortChoice::Exactly(0),
            route: Route { bind: Bind::Address(LOOPBACK), ..Route::default() },
            dht: None,
            lsd: false,
            port_mapping: None,
            ..NetworkArgs::default()
        },
        http: HttpFlags::default(),
        log_format: None,
        options: MountOptions::default(),
    };
    let cache = service::open_cache(&mount_args)?;
    let source = Source::Torrent(Box::new(metainfo));
    let service = Service::start(&mount_args, vec![source], cache, Attacher::ThisProcess, true, &|| true).await?;
    let root = service.mounted.path().join(NAME);
    let shown = root.display();
    println!("mounted at {shown}, {} to fetch", ByteSize(total));

    let outcome = if args.check {
        tokio::select! {
            outcome = check(&service, &root, &library, &files) => outcome,
            _ = signals.any() => Err(interrupted()),
        }
    } else {
        println!("Try in another terminal:");
        println!("  ls -lR {shown}");
        println!("  ffplay {shown}/video/waves.y4m    (or mpv, vlc; seeking works)");
        println!("  cp -r {shown} /tmp/    (waits for data that is missing)");
        println!("Ctrl-C stops the demo and removes all its files");
        let end = async {
            match args.time {
                Some(time) => tokio::time::sleep(time).await,
                None => std::future::pending().await,
            }
        };
        let ended = tokio::select! {
            ended = service.ended() => ended,
            _ = signals.any() => Ok(()),
            () = end => Ok(()),
            () = show_progress(&service.library, total) => Ok(()),
        };
        if io::stdout().is_terminal() {
            println!();
        }
        ended
    };
    let stopped = service.stop().await;
    for (session, torrent) in seeders {
        session.remove(&torrent).await;
        session.stop().await;
    }
    // The tracker has no state to save, so this cannot fail.
    let _ = tracker.stop(Duration::from_secs(1)).await;
    outcome.and(stopped)
}

/// Everything but the mount: the library, its torrent, a tracker and seeders.
struct DemoSwarm {
    library: PathBuf,
    files: Vec<NewFile>,
    torrent_file: PathBuf,
    metainfo: Metainfo,
    tracker: Tracker,
    seeders: Vec<(Session, Arc<Torrent>)>,
}

impl DemoSwarm {
    async fn start(args: &DemoArgs, dir: &Path) -> Result<Self, Failure> {
        println!("making a sample library of music, video and text");
        let library = dir.join("library").join(NAME);
        let generated = library.clone();
        let files = tokio::task::spawn_blocking(move || {
            fs::create_dir_all(&generated)?;
            sample::write(&generated, sample::Scale::default())
        });
        let files = files
            .await
            .map_err(io::Error::other)
            .flatten()
            .map_err(|error| failed("write the sample library", error))?;

        let loopback = SocketAddr::new(LOOPBACK, 0);
        let tracker = Tracker::bind(loopback, tracker::Limits::default()).await;
        let (tracker, addr) = tracker.map_err(|error| failed("start a tracker", error))?;
        let announce = format!("http://{addr}/announce");
        let torrent = make_torrent(&library, &files, &announce)?;
        let torrent_file = dir.join("demo.torrent");
        fs::write(&torrent_file, &torrent).map_err(|error| failed("write the torrent", error))?;
        let metainfo = Metainfo::parse(&torrent).map_err(|error| failed("read the torrent", error))?;
        println!("tracker: {announce}; {SEEDERS} seeders with {}/s each", ByteSize(args.rate));

        let mut seeders = Vec::new();
        for n in 0..SEEDERS {
            seeders.push(seed(&dir.join(format!("seeder-{n}")), &library, &metainfo, args.rate).await?);
        }
        Ok(Self { library, files, torrent_file, metainfo, tracker, seeders })
    }
}

/// Returns the torrent file of the library.
fn make_torrent(library: &Path, files: &[NewFile], announce: &str) -> Result<Vec<u8>, Failure> {
    let make = || -> io::Result<Vec<u8>> {
        let mut content: Box<dyn io::Read> = Box::new(io::empty());
        for file in files {
            content = Box::new(io::Read::chain(content, fs::File::open(path_of(library, file))?));
        }
        let (hashes, _) = hash_pieces(content, PIECE_LEN)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let torrent = NewTorrent {
            name: NAME.into(),
            piece_len: PIECE_LEN,
            files: files.to_vec(),
            trackers: vec![vec![announce.into()]],
            creation_date: i64::try_from(now.as_secs()).ok(),
            comment: Some("made by torrentfs demo".into()),
            created_by: Some(concat!("torrentfs ", env!("CARGO_PKG_VERSION")).into()),
            ..NewTorrent::default()
        };
        torrent.build(&hashes).map_err(io::Error::other)
    };
    make().map_err(|error| failed("make the torrent", error))
}

/// Starts a seeder that uploads the library in place, after checking it.
async fn seed(dir: &Path, library: &Path, metainfo: &Metainfo, rate: u64) -> Result<(Session, Arc<Torrent>), Failure> {
    let cache = Cache::open_shared(dir.into(), 1 << 20);
    let cache = cache.map_err(|error| Failure::new(Exit::Resource, error))?;
    let session = Session::start(SessionConfig {
        net: net::Config {
            port: PortChoice::Exactly(0),
            route: Route { bind: Bind::Address(LOOPBACK), ..Route::default() },
            ..net::Config::default()
        },
        limits: Arc::new(Limits::new(0, rate)),
        ..SessionConfig::new(cache)
    });
    let session = session.map_err(|error| Failure::new(Exit::Resource, error))?;
    let place = Place::Seed(library.to_owned());
    let options = TorrentOptions { place, whole: true, verify: true, ..TorrentOptions::default() };
    let torrent = session.add(metainfo.clone(), options).await;
    let torrent = torrent.map_err(|error| Failure::new(Exit::Resource, error))?;
    Ok((session, torrent))
}

/// Prints the progress: on a terminal in one line every second, otherwise in a new line every five seconds. Never returns.
async fn show_progress(library: &Library, total: u64) {
    // The demo has a single torrent.
    let Some((_, torrent)) = library.torrents().pop() else { return std::future::pending().await };
    let terminal = io::stdout().is_terminal();
    let pieces = torrent.metainfo().layout.lengths().pieces();
    let mut complete = false;
    loop {
        let stats = torrent.stats();
        let part = f64::from(stats.have) / f64::from(pieces);
        let line = format!(
            "{:>3.0} % of {}, {}/s from {} peers",
            100.0 * part,
            ByteSize(total),
            ByteSize(stats.down_rate),
            stats.peers
        );
        if terminal {
            print!("\r\x1b[K{line}");
        } else if !complete {
            println!("{line}");
        }
        let _ = io::stdout().flush();
        complete = stats.have == pieces;
        tokio::time::sleep(Duration::from_secs(if terminal { 1 } else { 5 })).await;
    }
}

/// Returns the path of a file below a directory.
fn path_of(dir: &Path, file: &NewFile) -> PathBuf {
    dir.join(file.path.iter().collect::<PathBuf>())
}

/// Reads every file through the mount and compares it with the original.
async fn check(service: &Service, root: &Path, library: &Path, files: &[NewFile]) -> Result<(), Failure> {
    let (root, library, files) = (root.to_owned(), library.to_owned(), files.to_owned());
    let begin = Instant::now();
    let compared = tokio::task::spawn_blocking(move || {
        let mut bytes = 0;
        for file in &files {
            let (got, expected) = (fs::read(path_of(&root, file))?, fs::read(path_of(&library, file))?);
            if got != expected {
                return Err(io::Error::other(format!("{} differs", file.path.join("/"))));
            }
            bytes += got.len() as u64;
        }
        Ok((files.len(), bytes))
    });
    let compared = tokio::select! {
        compared = compared => compared.map_err(io::Error::other).flatten(),
        ended = service.ended() => return ended.and(Err(interrupted())),
    };
    let (files, bytes) = compared.map_err(|error| failed("read the mount", error))?;
    println!(
        "read {files} files, {} through the mount in {:.1?}: all are equal to the originals",
        ByteSize(bytes),
        begin.elapsed()
    );
    Ok(())
}

fn interrupted() -> Failure {
    Failure::new(Exit::Failure, "stopped before everything was read")
}

fn failed(what: &str, error: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::Failure, format!("cannot {what}: {error}"))
}

/// A temporary directory, removed when dropped.
struct TempDir(PathBuf);

impl TempDir {
    fn new() -> io::Result<Self> {
        let name = format!("torrentfs-demo-{}-{:08x}", std::process::id(), rand::random::<u32>());
        let dir = std::env::temp_dir().join(name);
        // `create_dir` fails if the path exists, so no directory of another program is used or removed.
        fs::create_dir(&dir)?;
        Ok(Self(dir))
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!("cannot remove {}: {error}", self.0.display());
        }
    }
}

/// Directories that did not exist before, removed when dropped, unless they are in use by then.
struct MadeDirs(Vec<PathBuf>);

impl MadeDirs {
    /// Creates a directory and those above it, as far as they do not exist.
    fn create(dir: &Path) -> io::Result<Self> {
        // The working directory may have changed by the end.
        let dir = std::path::absolute(dir)?;
        let missing = dir.ancestors().take_while(|dir| !dir.exists());
        let made = Self(missing.map(Path::to_owned).collect());
        fs::create_dir_all(dir)?;
        Ok(made)
    }
}

impl Drop for MadeDirs {
    fn drop(&mut self) {
        for dir in &self.0 {
            if let Err(error) = fs::remove_dir(dir) {
                tracing::warn!("cannot remove {}: {error}", dir.display());
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_directories_that_were_made_are_removed() {
        let base = tempfile::tempdir().unwrap();
        let (old, new) = (base.path().join("old"), base.path().join("old/a/b"));
        fs::create_dir(&old).unwrap();
        let made = MadeDirs::create(&new).unwrap();
        assert!(new.is_dir());
        drop(made);
        assert!(!old.join("a").exists() && old.is_dir());

        drop(MadeDirs::create(&old).unwrap());
        assert!(old.is_dir(), "it existed before");

        let made = MadeDirs::create(&new).unwrap();
        fs::write(old.join("a/notes"), b"mine").unwrap();
        drop(made);
        assert!(!new.exists() && old.join("a/notes").exists(), "another program has used it");
    }
}
