//! A session without a mount, for `get` and `seed`.

use std::io::IsTerminal;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::blocklist::BlocklistFile;
use super::cache_dir;
use super::failure::{Exit, Failure};
use super::flags::NetworkArgs;
use super::runtime::Signals;
use crate::library::Resolver;
use crate::metainfo::Metainfo;
use crate::session::{Session, SessionError, Torrent, TorrentOptions};
use crate::store::Cache;

/// Bytes of pieces in memory. All pieces are files on disk, and the kernel caches those that are read.
const MEMORY: u64 = 32 << 20;

/// A session, its torrents and its cache.
pub(super) struct Engine {
    pub(super) session: Session,
    pub(super) cache: Arc<Cache>,
    torrents: Mutex<Vec<Arc<Torrent>>>,
    /// Reloaded on SIGHUP; `None` in a terminal, where SIGHUP ends the command.
    blocklist: Option<BlocklistFile>,
}

impl Engine {
    /// Opens the cache and a port. No peer or tracker is contacted before a torrent is added.
    pub(super) fn start(network: &NetworkArgs, dir: Option<&Path>) -> Result<Self, Failure> {
        let cache = Cache::open_shared(cache_dir::dir_or_default(dir)?, MEMORY);
        let cache = cache.map_err(|error| Failure::new(Exit::Resource, error))?;
        let blocklist = network.blocklist.as_deref().map(BlocklistFile::load).transpose()?;
        let list = blocklist.as_ref().map(BlocklistFile::list).unwrap_or_default();
        let session = Session::start(network.session(cache.clone(), list));
        let session = session.map_err(|error| Failure::new(Exit::Resource, error))?;
        // A terminal that closes sends SIGHUP to end its programs.
        let blocklist = blocklist.filter(|_| !std::io::stdin().is_terminal());
        Ok(Self { session, cache, torrents: Mutex::default(), blocklist })
    }

    /// Returns the resolver that turns sources into metainfo.
    pub(super) fn resolver<'a>(&'a self, network: &'a NetworkArgs) -> Resolver<'a> {
        let NetworkArgs { peers, metadata_timeout, .. } = network;
        Resolver { session: &self.session, cache: &self.cache, peers, limit: *metadata_timeout }
    }

    /// Adds a torrent to the session.
    pub(super) async fn add(&self, metainfo: Metainfo, options: TorrentOptions) -> Result<Arc<Torrent>, SessionError> {
        let torrent = self.session.add(metainfo, options).await?;
        self.torrents.lock().unwrap_or_else(PoisonError::into_inner).push(torrent.clone());
        Ok(torrent)
    }

    /// Waits for a signal that ends the command. If there is a blocklist to reload, SIGHUP does that instead.
    pub(super) async fn until_signal(&self, signals: &mut Signals) {
        if self.blocklist.is_some() {
            signals.obey_hangup();
        }
        loop {
            let hangup = signals.any().await;
            let Some(blocklist) = self.blocklist.as_ref().filter(|_| hangup) else { return };
            blocklist.reload();
        }
    }

    /// Stops all torrents, which announces their end to trackers for 2 seconds at most, and saves the state.
    pub(super) async fn stop(&self) {
        let torrents = std::mem::take(&mut *self.torrents.lock().unwrap_or_else(PoisonError::into_inner));
        let mut removals = tokio::task::JoinSet::new();
        for torrent in torrents {
            // Not removed from the session, which is about to stop.
            removals.spawn(async move { torrent.stop().await });
        }
        removals.join_all().await;
        self.session.stop().await;
    }
}
