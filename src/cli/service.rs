//! Everything that runs behind one mount, from start to end.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use etcetera::BaseStrategy;
use tokio::runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Failure;
use super::args::{Exit, MountArgs};
use super::resolve::resolve;
use super::source::Source;
use crate::fs::{MountOptions, Mounted};
use crate::net::{Blocklist, Ranges, Unread};
use crate::session::{Session, SessionConfig, SessionError, Torrent, TorrentOptions};
use crate::store::{Cache, CacheConfig};

/// Threads for hashing and for the disk.
const BLOCKING_THREADS: usize = 32;

/// A torrent that is mounted.
pub(super) struct Service {
    pub(super) torrent: Arc<Torrent>,
    pub(super) mounted: Mounted,
    session: Session,
    cache: Arc<Cache>,
    /// To be read again at SIGHUP.
    blocklist: Option<(PathBuf, Arc<Blocklist>)>,
    signals: tokio::sync::Mutex<Signals>,
}

/// SIGINT, SIGTERM and SIGHUP. As long as nobody listens they kill; then never again.
pub(super) struct Signals([Signal; 3]);

impl Signals {
    pub(super) fn listen() -> Result<Self, Failure> {
        let listen = |kind| signal(kind).map_err(|error| Failure::new(Exit::Resource, error));
        Ok(Self([listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?, listen(SignalKind::hangup())?]))
    }

    /// Waits for one that came since listening began, or comes. Whether it was SIGHUP.
    pub(super) async fn any(&mut self) -> bool {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => false,
            _ = terminate.recv() => false,
            _ = hangup.recv() => true,
        }
    }
}

/// The runtime that all of it runs on. Not before a daemon has been split off.
pub(super) fn runtime() -> Result<runtime::Runtime, Failure> {
    runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(BLOCKING_THREADS)
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Resource, format!("cannot start threads: {error}")))
}

/// Opens the cache that the arguments name.
pub(super) fn open_cache(args: &MountArgs) -> Result<Arc<Cache>, Failure> {
    let dir = cache_dir(args.cache_dir.as_deref())?;
    let config = CacheConfig { dir, disk_limit: args.cache_size, memory: args.memory };
    Cache::open(config).map_err(|error| Failure::new(Exit::Resource, error))
}

/// Absolute, for a daemon leaves its working directory.
pub(super) fn cache_dir(given: Option<&Path>) -> Result<PathBuf, Failure> {
    let dir = match given {
        Some(dir) => dir.to_owned(),
        None => etcetera::choose_base_strategy()
            .map_err(|_| {
                Failure::new(Exit::Resource, "no home directory to keep the cache in; name one with --cache-dir")
            })?
            .cache_dir()
            .join("torrentfs"),
    };
    std::path::absolute(&dir)
        .map_err(|error| Failure::new(Exit::Resource, format!("cannot use cache {}: {error}", dir.display())))
}

impl Service {
    /// Starts the swarm and mounts; returns once the mount answers. On failure nothing is left running or mounted.
    /// `wanted` is asked while the torrent is still being fetched: false ends it.
    pub(super) async fn start(
        args: &MountArgs,
        source: Source,
        cache: Arc<Cache>,
        wanted: &dyn Fn() -> bool,
    ) -> Result<Self, Failure> {
        let blocklist = Arc::new(Blocklist::default());
        let mut again = None;
        if let Some(file) = &args.network.blocklist {
            blocklist.replace(read_blocklist(file)?);
            // Absolute, for a daemon leaves its working directory.
            let file = std::path::absolute(file).map_err(|error| Failure::new(Exit::Resource, error))?;
            // A terminal that goes away ends what runs in it.
            let in_terminal = args.foreground && std::io::stdin().is_terminal();
            again = (!in_terminal).then(|| (file, blocklist.clone()));
        }
        let config = args.network.session(cache.clone(), blocklist);
        let session = Session::start(SessionConfig { read_timeout: args.read_timeout, ..config }).map_err(resource)?;
        let (metainfo, found) = resolve(source, &args.source, &args.network, &session, &cache, wanted).await?;
        let options = TorrentOptions {
            on_demand: args.on_demand,
            peers: [args.network.peers.clone(), found].concat(),
            verify: args.verify,
            progress: std::io::stderr().is_terminal().then_some(show_check),
            ..TorrentOptions::default()
        };
        let torrent = session.add(metainfo, options).await.map_err(resource)?;
        // From here on a signal that killed would leave a dead mount behind.
        let signals = match Signals::listen() {
            Ok(signals) => tokio::sync::Mutex::new(signals),
            Err(failure) => {
                session.remove(&torrent).await;
                return Err(failure);
            }
        };

        let (contents, mountpoint) = (vec![torrent.clone()], args.mountpoint.clone());
        let options = MountOptions {
            allow_other: args.options.allow_other,
            noexec: args.options.noexec,
            uid: args.options.uid,
            gid: args.options.gid,
            umask: args.options.umask.unwrap_or(0),
            ..MountOptions::default()
        };
        let handle = runtime::Handle::current();
        let mounting = tokio::task::spawn_blocking(move || Mounted::start(contents, &mountpoint, &options, handle));
        let failure = match mounting.await {
            Ok(Ok(mounted)) => return Ok(Self { torrent, mounted, session, cache, blocklist: again, signals }),
            Ok(Err(error)) => Failure::new(Exit::Mountpoint, error),
            Err(error) => Failure::new(Exit::Mountpoint, error),
        };
        session.remove(&torrent).await;
        Err(failure)
    }

    /// Waits for SIGINT, SIGTERM or SIGHUP, or for somebody to unmount. With a blocklist SIGHUP reads that again.
    pub(super) async fn ended(&self) -> Result<(), Failure> {
        let mut signals = self.signals.lock().await;
        loop {
            let hangup = tokio::select! {
                hangup = signals.any() => hangup,
                () = self.mounted.ended() => return Ok(()),
            };
            let Some((file, blocklist)) = self.blocklist.as_ref().filter(|_| hangup) else { return Ok(()) };
            reread_blocklist(file, blocklist);
        }
    }

    /// Unmounts, tells the trackers (2 s at most), saves the state.
    pub(super) async fn stop(self) -> Result<(), Failure> {
        let Self { torrent, mounted, session, cache, .. } = self;
        let (unmounted, ()) = tokio::join!(mounted.unmount(), session.remove(&torrent));
        session.stop().await;
        let _ = tokio::task::spawn_blocking(move || cache.close()).await;
        unmounted.map_err(|error| Failure::new(Exit::Mountpoint, error))
    }
}

/// What cannot be read leaves the old one in force.
pub(super) fn reread_blocklist(file: &Path, blocklist: &Blocklist) {
    match read_blocklist(file) {
        Ok(ranges) => blocklist.replace(ranges),
        Err(failure) => tracing::error!("{failure}; the old one stays in force"),
    }
}

pub(super) fn read_blocklist(file: &Path) -> Result<Ranges, Failure> {
    let ranges = Ranges::load(file).map_err(|error| {
        Failure::new(Exit::Resource, format!("cannot read the blocklist {}: {error}", file.display()))
    })?;
    let Unread { lines, first } = ranges.unread();
    if lines > 0 {
        tracing::warn!("{lines} lines of the blocklist {} make no sense, line {first} first", file.display());
    }
    tracing::info!("the blocklist {} has {} ranges", file.display(), ranges.len());
    Ok(ranges)
}

/// A line that changes while what is in the cache is hashed, and goes when that is done.
fn show_check(done: u32, pieces: u32) {
    /// In percent. Several threads tell, not always in order.
    static SHOWN: Mutex<u64> = Mutex::new(0);
    let percent = u64::from(done) * 100 / u64::from(pieces.max(1));
    let mut shown = SHOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if percent > *shown {
        *shown = percent;
        // To the line's begin, and away with what stood there.
        eprint!("\r\x1b[K");
        if done < pieces {
            eprint!("checking what is in the cache: {percent} %");
        }
    }
}

fn resource(error: SessionError) -> Failure {
    Failure::new(Exit::Resource, error)
}
