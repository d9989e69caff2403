//! `torrentfs demo`: a whole swarm on loopback, mounted through the ordinary path.

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

const NAME: &str = "torrentfs-demo";
const PIECE_LEN: u32 = 128 * 1024;
const SEEDERS: usize = 2;
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// See it work: a whole swarm on this machine, with sample music and video, mounted
///
/// Makes a sample library and a torrent of it, starts a tracker and throttled seeders on loopback, and mounts the
/// torrent. Nothing leaves this machine. Ctrl-C takes everything away again.
#[derive(Args, Clone, Debug, PartialEq)]
#[command(args_override_self = true)]
pub(super) struct DemoArgs {
    /// Where to mount [default: a new temporary directory]
    pub(super) mountpoint: Option<PathBuf>,

    /// What each of the seeders gives in a second at most
    #[arg(long, value_name = "RATE", default_value = "2MiB", value_parser = rate)]
    pub(super) rate: u64,

    /// End by itself after so long [default: on Ctrl-C]
    #[arg(long = "for", value_name = "TIME", value_parser = duration)]
    pub(super) time: Option<Duration>,

    /// Read every file through the mount, compare it with the original, and end: 0 if all is the same, else 1
    #[arg(long, conflicts_with = "time")]
    pub(super) check: bool,
}

/// Shows it, or checks it and ends.
pub(super) fn run(args: DemoArgs, verbosity: Verbosity) -> Result<(), Failure> {
    log::to_stderr(verbosity);
    let dir = Scratch::new().map_err(|error| failed("make a temporary directory", error))?;
    runtime()?.block_on(demonstrate(&args, &dir.0))
}

async fn demonstrate(args: &DemoArgs, dir: &Path) -> Result<(), Failure> {
    let mut signals = Signals::listen()?;
    let stage = tokio::select! {
        stage = Stage::set(args, dir) => stage?,
        _ = signals.any() => return Ok(()),
    };
    let Stage { library, files, torrent_file, metainfo, tracker, seeders } = stage;
    let total = metainfo.layout.lengths().total();

    let mountpoint = match &args.mountpoint {
        Some(mountpoint) => mountpoint.clone(),
        None => dir.join("mnt"),
    };
    fs::create_dir_all(&mountpoint).map_err(|error| failed("make the mount point", error))?;
    let mount_args = MountArgs {
        sources: vec![torrent_file.into()],
        mountpoint,
        foreground: true,
        on_demand: false,
        read_timeout: Some(Duration::from_secs(60)),
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
    println!("mounted at {shown}, {} to come", ByteSize(total));

    let outcome = if args.check {
        tokio::select! {
            outcome = check(&service, &root, &library, &files) => outcome,
            _ = signals.any() => Err(cut_short()),
        }
    } else {
        println!("try, in another terminal:");
        println!("  ls -lR {shown}");
        println!("  ffplay {shown}/video/waves.y4m    (or mpv, vlc; seek as you like)");
        println!("  cp -r {shown} /tmp/    (a copy of what is not here yet)");
        println!("Ctrl-C ends it and takes everything away again");
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
    for (session, torrent, cache) in seeders {
        session.remove(&torrent).await;
        let _ = tokio::task::spawn_blocking(move || cache.close()).await;
    }
    // It has no state to save.
    let _ = tracker.stop(Duration::from_secs(1)).await;
    outcome.and(stopped)
}

/// What is there before the mount: the library, a torrent of it, a tracker and seeders.
struct Stage {
    library: PathBuf,
    files: Vec<NewFile>,
    torrent_file: PathBuf,
    metainfo: Metainfo,
    tracker: Tracker,
    seeders: Vec<(Session, Arc<Torrent>, Arc<Cache>)>,
}

impl Stage {
    async fn set(args: &DemoArgs, dir: &Path) -> Result<Self, Failure> {
        println!("making a sample library: music, a clip, texts");
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
            .map_err(|error| failed("make the sample library", error))?;

        let loopback = SocketAddr::new(LOOPBACK, 0);
        let tracker = Tracker::bind(loopback, tracker::Limits::default()).await;
        let (tracker, addr) = tracker.map_err(|error| failed("start a tracker", error))?;
        let announce = format!("http://{addr}/announce");
        let torrent = make_torrent(&library, &files, &announce)?;
        let torrent_file = dir.join("demo.torrent");
        fs::write(&torrent_file, &torrent).map_err(|error| failed("write the torrent", error))?;
        let metainfo = Metainfo::parse(&torrent).map_err(|error| failed("read the torrent", error))?;
        println!("tracker at {announce}; {SEEDERS} seeders of {}/s each", ByteSize(args.rate));

        let mut seeders = Vec::new();
        for n in 0..SEEDERS {
            seeders.push(seed(&dir.join(format!("seeder-{n}")), &library, &metainfo, args.rate).await?);
        }
        Ok(Self { library, files, torrent_file, metainfo, tracker, seeders })
    }
}

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

/// A seeder of our own engine. It gives the library as it lies, checked before.
async fn seed(
    dir: &Path,
    library: &Path,
    metainfo: &Metainfo,
    rate: u64,
) -> Result<(Session, Arc<Torrent>, Arc<Cache>), Failure> {
    let cache = Cache::open_shared(dir.into(), 1 << 20);
    let cache = cache.map_err(|error| Failure::new(Exit::Resource, error))?;
    let session = Session::start(SessionConfig {
        net: net::Config {
            port: PortChoice::Exactly(0),
            route: Route { bind: Bind::Address(LOOPBACK), ..Route::default() },
            ..net::Config::default()
        },
        limits: Arc::new(Limits::new(0, rate)),
        ..SessionConfig::new(cache.clone())
    });
    let session = session.map_err(|error| Failure::new(Exit::Resource, error))?;
    let place = Place::Seed(library.to_owned());
    let options = TorrentOptions { place, whole: true, verify: true, ..TorrentOptions::default() };
    let torrent = session.add(metainfo.clone(), options).await;
    let torrent = torrent.map_err(|error| Failure::new(Exit::Resource, error))?;
    Ok((session, torrent, cache))
}

/// A line that changes on a terminal, a line now and then elsewhere. Never ends.
async fn show_progress(library: &Library, total: u64) {
    // The one of the demo.
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
        ended = service.ended() => return ended.and(Err(cut_short())),
    };
    let (files, bytes) = compared.map_err(|error| failed("read the mount", error))?;
    println!(
        "read {files} files, {} through the mount in {:.1?}: all as they were made",
        ByteSize(bytes),
        begin.elapsed()
    );
    Ok(())
}

fn cut_short() -> Failure {
    Failure::new(Exit::Failure, "ended before everything was read")
}

fn failed(what: &str, error: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::Failure, format!("cannot {what}: {error}"))
}

/// A directory that goes with its owner.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> io::Result<Self> {
        let name = format!("torrentfs-demo-{}-{:08x}", std::process::id(), rand::random::<u32>());
        let dir = std::env::temp_dir().join(name);
        // `create_dir` fails on what is there already, so nobody else's directory is used or removed.
        fs::create_dir(&dir)?;
        Ok(Self(dir))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!("cannot remove {}: {error}", self.0.display());
        }
    }
}
