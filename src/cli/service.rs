//! Everything that runs behind one mount, from its start to its end.

use std::io::IsTerminal;
use std::sync::Arc;

use tokio::runtime;

use super::blocklist::BlocklistFile;
use super::failure::{Exit, Failure};
use super::mount_args::MountArgs;
use super::progress::Progress;
use super::runtime::Signals;
use super::sources;
use crate::control::Mount;
use crate::fs::{Attacher, Mounted, MountedTorrents};
use crate::library::{Library, LibraryOptions, Source, Watch};
use crate::session::{Session, SessionConfig, SessionError};
use crate::store::{Cache, CacheConfig};
use crate::web::Server;

/// A mount, its torrents, and the servers that control it.
pub(super) struct Service {
    pub(super) library: Library,
    pub(super) mounted: Mounted,
    /// Server of the control socket and of HTTP.
    pub(super) control: Server,
    watches: Vec<Watch>,
    /// Reloaded on SIGHUP; `None` in a terminal, where SIGHUP unmounts.
    blocklist: Option<BlocklistFile>,
    signals: tokio::sync::Mutex<Signals>,
}

/// Opens the cache that the arguments select.
pub(super) fn open_cache(args: &MountArgs) -> Result<Arc<Cache>, Failure> {
    args.cache_dir.open(&args.mountpoint, |dir| {
        Cache::open(CacheConfig { dir: dir.to_owned(), disk_limit: args.cache_size, memory: args.memory })
    })
}

impl Service {
    /// Adds the sources and mounts; returns when the mount answers. After a failure nothing is running or mounted.
    ///
    /// `attacher` attaches the filesystem to the kernel. Progress of checks and of metadata is shown unless `quiet`. Start is
    /// cancelled if `is_wanted` returns false.
    pub(super) async fn start(
        args: &MountArgs,
        sources: Vec<Source>,
        cache: Arc<Cache>,
        attacher: Attacher,
        quiet: bool,
        is_wanted: &dyn Fn() -> bool,
    ) -> Result<Self, Failure> {
        let blocklist = args.network.blocklist.as_deref().map(BlocklistFile::load).transpose()?;
        let list = blocklist.as_ref().map(BlocklistFile::list).unwrap_or_default();
        // A terminal that closes sends SIGHUP to end its programs.
        let in_terminal = args.foreground && std::io::stdin().is_terminal();
        let blocklist = blocklist.filter(|_| !in_terminal);
        let http = args.http.bind()?;
        let config = args.network.session(cache.clone(), list);
        let session = Session::start(SessionConfig { read_timeout: args.read_timeout, ..config }).map_err(resource)?;
        let options = args.to_fs();
        let mounted_torrents = Arc::new(MountedTorrents::new(&options));
        let checking = Arc::new(Progress::start("checking the cache", 0, quiet));
        let library = Library::new(
            session,
            cache,
            mounted_torrents.clone(),
            LibraryOptions {
                on_demand: args.on_demand,
                peers: args.network.peers.clone(),
                verify: args.verify,
                progress: Some(checking.check_progress()),
                metadata_timeout: args.network.metadata_timeout,
            },
        );
        let watches = match sources::add_all(&library, args, sources, quiet, is_wanted).await {
            Ok(watches) => watches,
            Err(failure) => {
                library.stop().await;
                return Err(failure);
            }
        };
        drop(checking);
        // From here on a signal must not kill the process, which would leave a dead mount behind.
        let signals = match Signals::listen() {
            Ok(signals) => tokio::sync::Mutex::new(signals),
            Err(failure) => {
                library.stop().await;
                return Err(failure);
            }
        };

        let mountpoint = args.mountpoint.clone();
        let handle = runtime::Handle::current();
        let mounting = tokio::task::spawn_blocking(move || {
            Mounted::serve(attacher, mounted_torrents, &mountpoint, &options, handle)
        });
        let failure = match mounting.await {
            Ok(Ok(mounted)) => {
                let (mountpoint, device) = (mounted.path().to_owned(), mounted.device());
                let control = Server::start(Mount { mountpoint, device, library: library.clone() }, http);
                return Ok(Self { library, mounted, control, watches, blocklist, signals });
            }
            Ok(Err(error)) => Failure::new(Exit::Mountpoint, error),
            Err(error) => Failure::new(Exit::Mountpoint, error),
        };
        library.stop().await;
        Err(failure)
    }

    /// Waits for a signal that ends the mount, or for an unmount from outside. If there is a blocklist to reload, SIGHUP does
    /// that instead.
    pub(super) async fn ended(&self) -> Result<(), Failure> {
        let mut signals = self.signals.lock().await;
        if self.blocklist.is_some() {
            signals.obey_hangup();
        }
        loop {
            let hangup = tokio::select! {
                hangup = signals.any() => hangup,
                () = self.mounted.ended() => return Ok(()),
            };
            let Some(blocklist) = self.blocklist.as_ref().filter(|_| hangup) else { return Ok(()) };
            blocklist.reload();
        }
    }

    /// Unmounts, announces the end to trackers for 2 seconds at most, and saves the state.
    pub(super) async fn stop(self) -> Result<(), Failure> {
        let Self { library, mounted, control, watches, .. } = self;
        // No torrents or requests arrive any more. The socket goes before the unmount, because its name is the device number,
        // which the next mount may get.
        drop((watches, control));
        let (unmounted, ()) = tokio::join!(mounted.unmount(), library.stop());
        unmounted.map_err(|error| Failure::new(Exit::Mountpoint, error))
    }
}

fn resource(error: SessionError) -> Failure {
    Failure::new(Exit::Resource, error)
}
