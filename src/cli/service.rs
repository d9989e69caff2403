//! Everything that runs behind one mount, from start to end.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Failure;
use super::adding;
use super::args::Exit;
use super::mount_args::MountArgs;
use super::progress::Progress;
use crate::control::Mount;
use crate::fs::{Attacher, Mounted, MountedTorrents};
use crate::library::{Library, LibraryOptions, Source, Watch};
use crate::net::{Blocklist, Ranges, Unread};
use crate::session::{Session, SessionConfig, SessionError};
use crate::store::{Cache, CacheConfig};
use crate::sys;
use crate::web::Server;

/// Threads for hashing and for the disk.
const BLOCKING_THREADS: usize = 32;
/// Connections, files of the cache, requests to trackers: of a thousand torrents, too.
const OPEN_FILES: u64 = 4096;

/// Torrents that are mounted.
pub(super) struct Service {
    pub(super) library: Library,
    pub(super) mounted: Mounted,
    /// What tells of it and takes orders.
    pub(super) control: Server,
    watches: Vec<Watch>,
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
    if let Err(error) = sys::process::raise_descriptor_limit(OPEN_FILES) {
        tracing::debug!("the limit of open files stays: {error}");
    }
    runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(BLOCKING_THREADS)
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Resource, format!("cannot start threads: {error}")))
}

/// Opens the cache that the arguments name.
pub(super) fn open_cache(args: &MountArgs) -> Result<Arc<Cache>, Failure> {
    args.cache_dir.open(&args.mountpoint, |dir| {
        Cache::open(CacheConfig { dir: dir.to_owned(), disk_limit: args.cache_size, memory: args.memory })
    })
}

impl Service {
    /// Starts the swarm and mounts; returns once the mount answers. On failure nothing is left running or mounted.
    /// `by` attaches it to the kernel. How far checks and the fetching of metadata are is shown unless `quiet`, and `wanted`
    /// is asked meanwhile: false ends it.
    pub(super) async fn start(
        args: &MountArgs,
        sources: Vec<Source>,
        cache: Arc<Cache>,
        by: Attacher,
        quiet: bool,
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
        let http = args.http.bind()?;
        let config = args.network.session(cache.clone(), blocklist);
        let session = Session::start(SessionConfig { read_timeout: args.read_timeout, ..config }).map_err(resource)?;
        let options = args.options.to_fs();
        let mounted_torrents = Arc::new(MountedTorrents::new(&options));
        let checking = Arc::new(Progress::start("checking what is in the cache", 0, quiet));
        let library = Library::new(
            session,
            cache.clone(),
            mounted_torrents.clone(),
            LibraryOptions {
                on_demand: args.on_demand,
                peers: args.network.peers.clone(),
                verify: args.verify,
                progress: Some(checking.of_checks()),
                metadata_timeout: args.network.metadata_timeout,
            },
        );
        let watches = match adding::add_all(&library, args, sources, quiet, wanted).await {
            Ok(watches) => watches,
            Err(failure) => {
                library.stop().await;
                return Err(failure);
            }
        };
        drop(checking);
        // From here on a signal that killed would leave a dead mount behind.
        let signals = match Signals::listen() {
            Ok(signals) => tokio::sync::Mutex::new(signals),
            Err(failure) => {
                library.stop().await;
                return Err(failure);
            }
        };

        let mountpoint = args.mountpoint.clone();
        let handle = runtime::Handle::current();
        let mounting =
            tokio::task::spawn_blocking(move || Mounted::serve(by, mounted_torrents, &mountpoint, &options, handle));
        let failure = match mounting.await {
            Ok(Ok(mounted)) => {
                let (mountpoint, device) = (mounted.path().to_owned(), mounted.device());
                let control = Server::start(Mount { mountpoint, device, library: library.clone() }, http);
                return Ok(Self { library, mounted, control, watches, cache, blocklist: again, signals });
            }
            Ok(Err(error)) => Failure::new(Exit::Mountpoint, error),
            Err(error) => Failure::new(Exit::Mountpoint, error),
        };
        library.stop().await;
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
        let Self { library, mounted, control, watches, cache, .. } = self;
        // Nothing comes any more; and the device number that names the socket may soon be another's.
        drop((watches, control));
        let (unmounted, ()) = tokio::join!(mounted.unmount(), library.stop());
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

fn resource(error: SessionError) -> Failure {
    Failure::new(Exit::Resource, error)
}
