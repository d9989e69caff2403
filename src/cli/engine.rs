//! A session without a mount: what `get` and `seed` run on.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::Failure;
use super::args::Exit;
use super::cache_dir;
use super::network::NetworkArgs;
use super::service::{self, Signals};
use crate::library::Resolver;
use crate::metainfo::Metainfo;
use crate::net::Blocklist;
use crate::session::{Session, SessionError, Torrent, TorrentOptions};
use crate::store::{Cache, StoreError};

/// Bytes of pieces in memory: the disk has them all, and the kernel keeps what is asked for.
const MEMORY: u64 = 32 << 20;

pub(super) struct Engine {
    pub(super) session: Session,
    pub(super) cache: Arc<Cache>,
    torrents: Mutex<Vec<Arc<Torrent>>>,
    /// To be read again at SIGHUP.
    blocklist: Option<(PathBuf, Arc<Blocklist>)>,
}

impl Engine {
    /// Opens a port; nothing else is heard of us before a torrent is added.
    pub(super) fn start(network: &NetworkArgs, dir: Option<&Path>) -> Result<Self, Failure> {
        let cache = Cache::open_beside(cache_dir::dir_or_default(dir)?, MEMORY);
        let cache = cache.map_err(|error| Failure::new(Exit::Resource, error))?;
        let blocklist = Arc::new(Blocklist::default());
        let mut again = None;
        if let Some(file) = &network.blocklist {
            blocklist.replace(service::read_blocklist(file)?);
            // A terminal that goes away ends what runs in it.
            again = (!std::io::stdin().is_terminal()).then(|| (file.clone(), blocklist.clone()));
        }
        let session = Session::start(network.session(cache.clone(), blocklist));
        let session = session.map_err(|error| Failure::new(Exit::Resource, error))?;
        Ok(Self { session, cache, torrents: Mutex::default(), blocklist: again })
    }

    /// By which it is found out about torrents.
    pub(super) fn resolver<'a>(&'a self, network: &'a NetworkArgs) -> Resolver<'a> {
        let NetworkArgs { peers, metadata_timeout, .. } = network;
        Resolver { session: &self.session, cache: &self.cache, peers, limit: *metadata_timeout }
    }

    pub(super) async fn add(&self, metainfo: Metainfo, options: TorrentOptions) -> Result<Arc<Torrent>, SessionError> {
        let torrent = self.session.add(metainfo, options).await?;
        self.torrents.lock().unwrap_or_else(PoisonError::into_inner).push(torrent.clone());
        Ok(torrent)
    }

    /// Waits for SIGINT, SIGTERM or SIGHUP. With a blocklist SIGHUP reads that again.
    pub(super) async fn interrupted(&self, signals: &mut Signals) {
        loop {
            let hangup = signals.any().await;
            let Some((file, blocklist)) = self.blocklist.as_ref().filter(|_| hangup) else { return };
            service::reread_blocklist(file, blocklist);
        }
    }

    /// Tells the trackers (2 s at most), saves the state.
    pub(super) async fn stop(&self) {
        let torrents = std::mem::take(&mut *self.torrents.lock().unwrap_or_else(PoisonError::into_inner));
        let mut removals = tokio::task::JoinSet::new();
        for torrent in torrents {
            // Its place in the session ends with the session.
            removals.spawn(async move { torrent.stop().await });
        }
        removals.join_all().await;
        self.session.stop().await;
        let cache = self.cache.clone();
        let _ = tokio::task::spawn_blocking(move || cache.close()).await;
    }
}

/// The failure of a torrent that could not be taken up.
pub(super) fn refused(error: SessionError) -> Failure {
    let exit = match &error {
        SessionError::Twice(_) | SessionError::Store(StoreError::Already(_)) => Exit::Usage,
        _ => Exit::Resource,
    };
    Failure::new(exit, error)
}
