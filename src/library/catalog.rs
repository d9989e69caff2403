//! Which torrents are in the library, and how they are added and removed.
//!
//! A torrent has a set of *origins*: the SOURCEs and files that name it. The first origin adds the torrent; further
//! ones change nothing, except that the torrent stays until its last origin is gone. A removed torrent disappears from
//! the root at once, but keeps serving its open files. Only when the last of these is closed is the torrent stopped and
//! its part of the cache kept for later, or deleted on request. If it is added again before that, it continues as it
//! was.
//!
//! An operation that has begun is finished even if its caller goes away, so no torrent is left half added.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use tokio::sync::watch as channel;

use super::resolve::{AddError, Resolver};
use super::source::Source;
use crate::fs::MountedTorrents;
use crate::metainfo::{InfoHash, Metainfo};
use crate::session::{CheckProgress, MetadataProgress, Session, SessionError, Torrent, TorrentOptions};
use crate::store::{Cache, StoreError};
use crate::util::lock;

/// Minimum number of digits by which an info hash may be abbreviated: fewer are more likely a mistyped name.
const MIN_HASH_DIGITS: usize = 8;

/// Options for every torrent of a library.
#[derive(Clone, Debug, Default)]
pub struct LibraryOptions {
    /// Whether to fetch only what readers need.
    pub on_demand: bool,
    /// Peers given by the user.
    pub peers: Vec<SocketAddr>,
    /// Whether to hash all cached pieces before use.
    pub verify: bool,
    /// Receives the progress of such a check, and of one that is necessary because the saved state is lost.
    pub progress: Option<CheckProgress>,
    /// Time limit for fetching metadata; `None` means no limit.
    pub metadata_timeout: Option<Duration>,
}

/// The result of adding a torrent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Added {
    /// Info hash of the torrent.
    pub info_hash: InfoHash,
    /// Its name in the root. The name changes when another torrent with the same name is added.
    pub name: String,
    /// Whether the torrent was in the library before.
    pub already: bool,
}

/// The result of removing a torrent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// Info hash of the torrent.
    pub info_hash: InfoHash,
    /// The name that it had in the root.
    pub name: String,
    /// Whether files are still open. The torrent is stopped when the last of them is closed.
    pub in_use: bool,
}

/// An error of removing a torrent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RemoveError {
    /// No torrent has this name or info hash.
    #[error("there is no torrent {0:?} here; give its name in the mount, or its info hash")]
    Unknown(String),
    /// Several info hashes begin with these digits.
    #[error("more than one info hash begins with {0:?}; give more digits")]
    Ambiguous(String),
}

/// Something that names a torrent.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Origin {
    /// A SOURCE of the command line, or a request to a running mount.
    Request,
    /// A file in a watched directory.
    File(PathBuf),
}

/// The state of a torrent. [`Inner::changes`] is sent on every transition.
enum State {
    /// It is being added to the root, or removed from it.
    Changing,
    /// It is in the root.
    Shown,
    /// It is removed, but may have open files.
    Removed {
        /// Whether to delete its cached pieces at the end.
        delete: bool,
    },
    /// Its task is ending.
    Stopping,
}

struct Entry {
    state: State,
    /// `None` until its part of the cache is open.
    torrent: Option<Arc<Torrent>>,
    origins: BTreeSet<Origin>,
}

/// The torrents of a mount. Cheap to clone: all clones are the same library.
#[derive(Clone)]
pub struct Library(Arc<Inner>);

struct Inner {
    session: Session,
    cache: Arc<Cache>,
    mounted: Arc<MountedTorrents<Torrent>>,
    options: LibraryOptions,
    torrents: Mutex<Torrents>,
    /// Sent whenever a state changes.
    changes: channel::Sender<()>,
}

#[derive(Default)]
struct Torrents {
    entries: HashMap<InfoHash, Entry>,
    /// Whether the library is stopping, and so accepts no more torrents.
    stopping: bool,
}

impl Library {
    /// Returns an empty library.
    pub fn new(
        session: Session,
        cache: Arc<Cache>,
        mounted: Arc<MountedTorrents<Torrent>>,
        options: LibraryOptions,
    ) -> Self {
        let (changes, _) = channel::channel(());
        Self(Arc::new(Inner { session, cache, mounted, options, torrents: Mutex::default(), changes }))
    }

    /// Adds the torrent of a source, and fetches its metadata if necessary. The files are visible once this returns.
    pub async fn add(&self, source: &Source) -> Result<Added, AddError> {
        self.add_with_progress(source, SystemTime::now(), &channel::channel(MetadataProgress::default()).0).await
    }

    /// Adds like [`add`](Self::add) a torrent that the user named at `since`, and reports the progress of fetching
    /// metadata.
    pub async fn add_with_progress(
        &self,
        source: &Source,
        since: SystemTime,
        progress: &channel::Sender<MetadataProgress>,
    ) -> Result<Added, AddError> {
        // A torrent that is here needs no metadata.
        if let Source::Magnet(magnet) = source
            && let Some(added) = self.0.find_shown(magnet.info_hash, &Origin::Request)
        {
            return Ok(added);
        }
        let (metainfo, peers) = self.resolve(source.clone(), progress).await?;
        self.insert(metainfo, peers, Origin::Request, since).await
    }

    /// Removes a torrent, given by its name in the root, its info hash, or the first digits of that. No program finds
    /// it once this returns. With `delete`, its cached pieces are deleted when its last file is closed.
    pub async fn remove(&self, which: &str, delete: bool) -> Result<Removed, RemoveError> {
        let info_hash = self.find(which)?;
        self.remove_torrent(info_hash, delete, false).await.ok_or_else(|| RemoveError::Unknown(which.to_owned()))
    }

    /// Returns the torrents in the root with their names, sorted by name.
    pub fn torrents(&self) -> Vec<(String, Arc<Torrent>)> {
        let torrents = self.0.lock();
        let shown = torrents.entries.iter().filter_map(|(info_hash, entry)| {
            let torrent = entry.torrent.clone().filter(|_| matches!(entry.state, State::Shown))?;
            Some((self.0.mounted.name(*info_hash)?, torrent))
        });
        let mut shown: Vec<_> = shown.collect();
        drop(torrents);
        shown.sort_by(|(a, _), (b, _)| a.cmp(b));
        shown
    }

    /// Returns the session that runs the torrents.
    pub fn session(&self) -> &Session {
        &self.0.session
    }

    /// Returns the cache that stores the torrents.
    pub fn cache(&self) -> &Arc<Cache> {
        &self.0.cache
    }

    /// Stops every torrent, all at the same time, and then the session: blocked reads fail, trackers are informed (for
    /// 2 s at most), states are saved, the cache is closed. No torrent can be added afterwards.
    pub async fn stop(&self) {
        let torrents: Vec<Arc<Torrent>> = {
            let mut torrents = self.0.lock();
            torrents.stopping = true;
            torrents.entries.values().filter_map(|entry| entry.torrent.clone()).collect()
        };
        self.0.session.remove_all(&torrents).await;
        self.0.session.stop().await;
    }

    /// Finds a torrent by its name in the root, its info hash, or the first digits of that.
    fn find(&self, which: &str) -> Result<InfoHash, RemoveError> {
        if let Some(info_hash) = self.0.mounted.find(which) {
            return Ok(info_hash);
        }
        let digits = which.to_ascii_lowercase();
        let is_prefix = digits.len() >= MIN_HASH_DIGITS && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        let torrents = self.0.lock();
        let mut matching = torrents.entries.keys().filter(|hash| is_prefix && hash.to_string().starts_with(&digits));
        match (matching.next(), matching.next()) {
            (Some(info_hash), None) => Ok(*info_hash),
            (Some(_), Some(_)) => Err(RemoveError::Ambiguous(which.to_owned())),
            (None, _) => Err(RemoveError::Unknown(which.to_owned())),
        }
    }

    /// Returns the time limit for fetching metadata; `None` means no limit.
    pub(super) fn metadata_timeout(&self) -> Option<Duration> {
        self.0.options.metadata_timeout
    }

    /// Fetches the metainfo of a source, and the peers found on the way.
    pub(super) async fn resolve(
        &self,
        source: Source,
        progress: &channel::Sender<MetadataProgress>,
    ) -> Result<(Metainfo, Vec<SocketAddr>), AddError> {
        let Inner { session, cache, options, .. } = &*self.0;
        let resolver = Resolver { session, cache, peers: &options.peers, limit: options.metadata_timeout };
        resolver.resolve(source, progress).await
    }

    /// Adds a torrent whose metainfo is known, which the user has had since `since`. Dropping the future does not cancel
    /// it.
    pub(super) async fn insert(
        &self,
        metainfo: Metainfo,
        peers: Vec<SocketAddr>,
        origin: Origin,
        since: SystemTime,
    ) -> Result<Added, AddError> {
        let inner = self.0.clone();
        let inserted = tokio::spawn(async move { inner.insert(metainfo, peers, origin, since).await });
        inserted.await.unwrap_or(Err(AddError::Session(SessionError::Ending)))
    }

    /// Waits until a torrent is in the root, and adds an origin to it.
    pub(super) async fn wait_until_shown(&self, info_hash: InfoHash, origin: &Origin) -> Added {
        let mut changes = self.0.changes.subscribe();
        loop {
            if let Some(added) = self.0.find_shown(info_hash, origin) {
                return added;
            }
            // Cannot fail: `self` holds the sender.
            let _ = changes.changed().await;
        }
    }

    /// Removes an origin of a torrent, and the torrent itself if that was its last.
    pub(super) async fn remove_origin(&self, info_hash: InfoHash, origin: &Origin, delete: bool) -> Option<Removed> {
        let known = self.0.lock().entries.get_mut(&info_hash).is_some_and(|entry| entry.origins.remove(origin));
        if known { self.remove_torrent(info_hash, delete, true).await } else { None }
    }

    /// Removes a torrent. Returns `None` if it is not in the root or, with `only_orphan`, if it has an origin.
    async fn remove_torrent(&self, info_hash: InfoHash, delete: bool, only_orphan: bool) -> Option<Removed> {
        let inner = self.0.clone();
        tokio::spawn(async move { inner.remove(info_hash, delete, only_orphan).await }).await.ok()?
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Torrents> {
        lock(&self.torrents)
    }

    /// Returns a torrent of the root, and adds an origin to it.
    fn find_shown(&self, info_hash: InfoHash, origin: &Origin) -> Option<Added> {
        let mut torrents = self.lock();
        let entry = torrents.entries.get_mut(&info_hash).filter(|entry| matches!(entry.state, State::Shown))?;
        entry.origins.insert(origin.clone());
        let name = self.mounted.name(info_hash)?;
        Some(Added { info_hash, name, already: true })
    }

    async fn insert(
        self: Arc<Self>,
        metainfo: Metainfo,
        peers: Vec<SocketAddr>,
        origin: Origin,
        since: SystemTime,
    ) -> Result<Added, AddError> {
        let info_hash = metainfo.info_hash;
        let mut changes = self.changes.subscribe();
        let removed = loop {
            if let Some(added) = self.find_shown(info_hash, &origin) {
                return Ok(added);
            }
            {
                let mut torrents = self.lock();
                if torrents.stopping {
                    return Err(SessionError::Ending.into());
                }
                match torrents.entries.get_mut(&info_hash) {
                    None => {
                        let origins = BTreeSet::from([origin.clone()]);
                        torrents.entries.insert(info_hash, Entry { state: State::Changing, torrent: None, origins });
                        break None;
                    }
                    Some(entry) if matches!(entry.state, State::Removed { .. }) => {
                        entry.state = State::Changing;
                        entry.origins = BTreeSet::from([origin.clone()]);
                        break entry.torrent.clone();
                    }
                    Some(_) => {}
                }
            }
            // Cannot fail: `self` holds the sender.
            let _ = changes.changed().await;
        };
        let started = match removed {
            Some(torrent) => Ok(torrent),
            None => self.start(metainfo, peers, since).await,
        };
        let torrent = match started {
            Ok(torrent) => torrent,
            Err(error) => {
                self.lock().entries.remove(&info_hash);
                self.changes.send_replace(());
                return Err(error);
            }
        };
        // Blocking, because it invalidates the kernel's caches.
        let (mounted, shown) = (self.mounted.clone(), torrent.clone());
        let _ = tokio::task::spawn_blocking(move || mounted.add(shown)).await;
        let name = self.mounted.name(info_hash).unwrap_or_default();
        if let Some(entry) = self.lock().entries.get_mut(&info_hash) {
            entry.state = State::Shown;
            entry.torrent = Some(torrent);
        }
        self.changes.send_replace(());
        Ok(Added { info_hash, name, already: false })
    }

    async fn start(
        &self,
        metainfo: Metainfo,
        peers: Vec<SocketAddr>,
        since: SystemTime,
    ) -> Result<Arc<Torrent>, AddError> {
        let options = TorrentOptions {
            on_demand: self.options.on_demand,
            since: Some(since),
            peers: self.options.peers.clone(),
            found: peers,
            verify: self.options.verify,
            progress: self.options.progress.clone(),
            ..TorrentOptions::default()
        };
        let torrent = self.session.add(metainfo, options).await?;
        if self.lock().stopping {
            self.session.remove(&torrent).await;
            return Err(SessionError::Ending.into());
        }
        Ok(torrent)
    }

    async fn remove(self: Arc<Self>, info_hash: InfoHash, delete: bool, only_orphan: bool) -> Option<Removed> {
        let mut changes = self.changes.subscribe();
        let name = loop {
            {
                let mut torrents = self.lock();
                let entry = torrents.entries.get_mut(&info_hash)?;
                match entry.state {
                    State::Shown if only_orphan && !entry.origins.is_empty() => return None,
                    State::Shown => {
                        entry.state = State::Changing;
                        break self.mounted.name(info_hash).unwrap_or_default();
                    }
                    State::Removed { .. } | State::Stopping => return None,
                    State::Changing => {}
                }
            }
            // Cannot fail: `self` holds the sender.
            let _ = changes.changed().await;
        };
        let mounted = self.mounted.clone();
        let handles = tokio::task::spawn_blocking(move || mounted.remove(info_hash)).await.ok()??;
        if let Some(entry) = self.lock().entries.get_mut(&info_hash) {
            entry.state = State::Removed { delete };
        }
        self.changes.send_replace(());
        let in_use = !handles.is_closed();
        tokio::spawn(async move {
            handles.closed().await;
            self.finish_removal(info_hash).await;
        });
        Some(Removed { info_hash, name, in_use })
    }

    /// Stops a removed torrent after its last file was closed, unless it was added again.
    async fn finish_removal(&self, info_hash: InfoHash) {
        let (torrent, delete) = {
            let mut torrents = self.lock();
            let Some(entry) = torrents.entries.get_mut(&info_hash) else { return };
            let State::Removed { delete } = entry.state else { return };
            if !self.mounted.forget(info_hash) {
                return;
            }
            entry.state = State::Stopping;
            (entry.torrent.take(), delete)
        };
        if let Some(torrent) = torrent {
            self.session.remove(&torrent).await;
        }
        if delete {
            let cache = self.cache.clone();
            match tokio::task::spawn_blocking(move || cache.delete(&info_hash)).await {
                Ok(Err(error @ StoreError::Io { .. })) => tracing::warn!("{error}"),
                Ok(Err(error)) => tracing::debug!("{error}"),
                _ => {}
            }
        }
        self.lock().entries.remove(&info_hash);
        self.changes.send_replace(());
    }
}
