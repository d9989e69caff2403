//! The torrents of a mount, which come and go while it lives: from a SOURCE to files in the root, and back.
//!
//! A [`Library`] owns the session and which torrents are in it. A torrent is *added* once, by whatever names it first:
//! more that name it change nothing but that it stays until the last of them is gone. Once *removed* it is shown no
//! longer; but whoever has a file of it open reads on, and only after the last of these is closed is the torrent stopped
//! and its part of the cache parked, or deleted if that was asked for. Added again before, it goes on as it was.
//!
//! Work that was begun is finished, whoever asked for it and is gone: nothing is left half added. A [`Watch`] keeps the
//! library as a directory of `.torrent` and `.magnet` files has it.
//!
//! It knows nothing of the command line, nor how bytes are fetched (`session`) and shown (`fs`).

mod resolve;
mod source;
mod watch;

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::watch as channel;

use crate::discovery::FetchError;
use crate::fs::Shelf;
use crate::metainfo::{InfoHash, Metainfo, MetainfoError};
use crate::session::{CheckProgress, MetadataError, MetadataProgress, Session, SessionError, Torrent, TorrentOptions};
use crate::store::{Cache, StoreError};
use crate::util::lock;

pub use resolve::Resolver;
pub use source::{Opened, Source, SourceError, read_torrent};
pub use watch::Watch;

/// The least digits of an info hash that name a torrent.
const LEAST_DIGITS: usize = 8;

/// How every torrent is added.
#[derive(Clone, Debug, Default)]
pub struct LibraryOptions {
    /// Fetch only what readers need.
    pub on_demand: bool,
    /// Peers by hand.
    pub peers: Vec<SocketAddr>,
    /// Hash everything that is in the cache before it is used.
    pub verify: bool,
    /// Told of the progress of such a check, and of one that is needed because the state is lost.
    pub progress: Option<CheckProgress>,
    /// How long metadata may take; `None`: for ever.
    pub metadata_timeout: Option<Duration>,
}

/// What came of adding a torrent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Added {
    /// The torrent.
    pub info_hash: InfoHash,
    /// What the root shows it as now. It is another name as soon as a second torrent has the same.
    pub name: String,
    /// It was there before.
    pub already: bool,
}

/// What came of removing a torrent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// The torrent.
    pub info_hash: InfoHash,
    /// What the root showed it as.
    pub name: String,
    /// Files of it are open: it goes on for these, and ends with the last.
    pub in_use: bool,
}

/// Why a torrent is not added. One line, without what named it.
#[derive(Debug, thiserror::Error)]
pub enum AddError {
    /// It cannot be fetched from where the URL says.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// What came is no torrent that can be used.
    #[error(transparent)]
    Metainfo(#[from] MetainfoError),
    /// Its metadata could not be had.
    #[error(transparent)]
    Metadata(MetadataError),
    /// The session, or the cache.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// Many torrents at once are watched, and not added.
    #[error("a directory can only be mounted")]
    Directory,
}

impl From<MetadataError> for AddError {
    fn from(error: MetadataError) -> Self {
        match error {
            MetadataError::Session(error) => Self::Session(error),
            error => Self::Metadata(error),
        }
    }
}

/// Why nothing is removed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RemoveError {
    /// Neither a name in the root nor an info hash.
    #[error("there is no torrent {0:?} here; name it as the mount shows it, or by its info hash")]
    Unknown(String),
    /// More than one info hash begins like this.
    #[error("more than one info hash begins with {0:?}; give more digits")]
    Ambiguous(String),
}

/// Who named a torrent.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Origin {
    /// A SOURCE, or somebody while it runs.
    Given,
    /// A file in a watched directory.
    File(PathBuf),
}

/// Where a torrent stands. What waits for another to come about listens to [`Inner::changes`].
enum State {
    /// It is on its way into the root, or out of it.
    Moving,
    /// In the root.
    Shown,
    /// Removed, and still in use.
    Leaving {
        /// Delete what is cached of it.
        delete: bool,
    },
    /// Its task is ending.
    Stopping,
}

struct Entry {
    state: State,
    /// Not before its part of the cache is open.
    torrent: Option<Arc<Torrent>>,
    origins: BTreeSet<Origin>,
}

/// The torrents of a mount. Cheap to clone: every clone is the same library.
#[derive(Clone)]
pub struct Library(Arc<Inner>);

struct Inner {
    session: Session,
    cache: Arc<Cache>,
    shelf: Arc<Shelf<Torrent>>,
    options: LibraryOptions,
    torrents: Mutex<Torrents>,
    /// Sent whenever a state changes.
    changes: channel::Sender<()>,
}

#[derive(Default)]
struct Torrents {
    entries: HashMap<InfoHash, Entry>,
    /// Nothing is added any more.
    ending: bool,
}

impl Library {
    /// An empty library.
    pub fn new(session: Session, cache: Arc<Cache>, shelf: Arc<Shelf<Torrent>>, options: LibraryOptions) -> Self {
        let (changes, _) = channel::channel(());
        Self(Arc::new(Inner { session, cache, shelf, options, torrents: Mutex::default(), changes }))
    }

    /// Adds what a source names; waits for its metadata, if that is to be fetched. Once it returns the torrent's files
    /// are there.
    pub async fn add(&self, source: &Source) -> Result<Added, AddError> {
        self.add_watched(source, &channel::channel(MetadataProgress::default()).0).await
    }

    /// The same, telling how far the fetching of metadata has come.
    pub async fn add_watched(
        &self,
        source: &Source,
        progress: &channel::Sender<MetadataProgress>,
    ) -> Result<Added, AddError> {
        // What is here need not be looked for.
        if let Source::Magnet(magnet) = source
            && let Some(added) = self.0.find_shown(magnet.info_hash, &Origin::Given)
        {
            return Ok(added);
        }
        let (metainfo, peers) = self.0.resolve(source.clone(), progress).await?;
        self.admit(metainfo, peers, Origin::Given).await
    }

    /// Removes the torrent that is shown by this name, or has this info hash or one that begins like this. Once it
    /// returns no program finds it any more. With `delete` what is cached of it goes as soon as nobody reads it.
    pub async fn remove(&self, which: &str, delete: bool) -> Result<Removed, RemoveError> {
        let info_hash = self.find(which)?;
        self.remove_torrent(info_hash, delete, false).await.ok_or_else(|| RemoveError::Unknown(which.to_owned()))
    }

    /// The torrents that are shown, by their names in the root, in the order of these.
    pub fn torrents(&self) -> Vec<(String, Arc<Torrent>)> {
        let torrents = self.0.lock();
        let shown = torrents.entries.iter().filter_map(|(info_hash, entry)| {
            let torrent = entry.torrent.clone().filter(|_| matches!(entry.state, State::Shown))?;
            Some((self.0.shelf.name(*info_hash)?, torrent))
        });
        let mut shown: Vec<_> = shown.collect();
        drop(torrents);
        shown.sort_by(|(a, _), (b, _)| a.cmp(b));
        shown
    }

    /// What all of it runs on.
    pub fn session(&self) -> &Session {
        &self.0.session
    }

    /// Where all of it is kept.
    pub fn cache(&self) -> &Arc<Cache> {
        &self.0.cache
    }

    /// Ends every torrent, all at the same time, and then the session: blocked reads fail, trackers are told (2 s at
    /// most), states are saved. Nothing can be added afterwards.
    pub async fn stop(&self) {
        let torrents: Vec<Arc<Torrent>> = {
            let mut torrents = self.0.lock();
            torrents.ending = true;
            torrents.entries.values().filter_map(|entry| entry.torrent.clone()).collect()
        };
        self.0.session.remove_all(&torrents).await;
        self.0.session.stop().await;
    }

    /// By its name in the root or its info hash.
    fn find(&self, which: &str) -> Result<InfoHash, RemoveError> {
        if let Some(info_hash) = self.0.shelf.find(which) {
            return Ok(info_hash);
        }
        let digits = which.to_ascii_lowercase();
        let is_start = digits.len() >= LEAST_DIGITS && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        let torrents = self.0.lock();
        let mut alike = torrents.entries.keys().filter(|hash| is_start && hash.to_string().starts_with(&digits));
        match (alike.next(), alike.next()) {
            (Some(info_hash), None) => Ok(*info_hash),
            (Some(_), Some(_)) => Err(RemoveError::Ambiguous(which.to_owned())),
            (None, _) => Err(RemoveError::Unknown(which.to_owned())),
        }
    }

    /// Adds a torrent that is known. Dropping the future does not end it.
    async fn admit(&self, metainfo: Metainfo, peers: Vec<SocketAddr>, origin: Origin) -> Result<Added, AddError> {
        let inner = self.0.clone();
        let admitted = tokio::spawn(async move { inner.admit(metainfo, peers, origin).await });
        admitted.await.unwrap_or(Err(AddError::Session(SessionError::Ending)))
    }

    /// `None`: it is not shown. With `orphan`: nor if something names it.
    async fn remove_torrent(&self, info_hash: InfoHash, delete: bool, orphan: bool) -> Option<Removed> {
        let inner = self.0.clone();
        tokio::spawn(async move { inner.remove(info_hash, delete, orphan).await }).await.ok()?
    }

    /// A file that named a torrent is gone: so is the torrent, if nothing else names it.
    async fn disown(&self, info_hash: InfoHash, origin: &Origin, delete: bool) -> Option<Removed> {
        let known = self.0.lock().entries.get_mut(&info_hash).is_some_and(|entry| entry.origins.remove(origin));
        if known { self.remove_torrent(info_hash, delete, true).await } else { None }
    }
}

impl Inner {
    /// The torrent that a source names, and peers found on the way.
    async fn resolve(
        &self,
        source: Source,
        progress: &channel::Sender<MetadataProgress>,
    ) -> Result<(Metainfo, Vec<SocketAddr>), AddError> {
        let Inner { session, cache, options, .. } = self;
        let resolver = Resolver { session, cache, peers: &options.peers, limit: options.metadata_timeout };
        resolver.resolve(source, progress).await
    }

    fn lock(&self) -> MutexGuard<'_, Torrents> {
        lock(&self.torrents)
    }

    /// A torrent that is shown; it stays until `origin` is gone, too.
    fn find_shown(&self, info_hash: InfoHash, origin: &Origin) -> Option<Added> {
        let mut torrents = self.lock();
        let entry = torrents.entries.get_mut(&info_hash).filter(|entry| matches!(entry.state, State::Shown))?;
        entry.origins.insert(origin.clone());
        let name = self.shelf.name(info_hash)?;
        Some(Added { info_hash, name, already: true })
    }

    async fn admit(
        self: Arc<Self>,
        metainfo: Metainfo,
        peers: Vec<SocketAddr>,
        origin: Origin,
    ) -> Result<Added, AddError> {
        let info_hash = metainfo.info_hash;
        let mut changes = self.changes.subscribe();
        let leaving = loop {
            if let Some(added) = self.find_shown(info_hash, &origin) {
                return Ok(added);
            }
            {
                let mut torrents = self.lock();
                if torrents.ending {
                    return Err(SessionError::Ending.into());
                }
                match torrents.entries.get_mut(&info_hash) {
                    None => {
                        let origins = BTreeSet::from([origin.clone()]);
                        torrents.entries.insert(info_hash, Entry { state: State::Moving, torrent: None, origins });
                        break None;
                    }
                    Some(entry) if matches!(entry.state, State::Leaving { .. }) => {
                        entry.state = State::Moving;
                        entry.origins = BTreeSet::from([origin.clone()]);
                        break entry.torrent.clone();
                    }
                    Some(_) => {}
                }
            }
            // The sender is ours.
            let _ = changes.changed().await;
        };
        let added = match leaving {
            Some(torrent) => Ok(torrent),
            None => self.start(metainfo, peers).await,
        };
        let torrent = match added {
            Ok(torrent) => torrent,
            Err(error) => {
                self.lock().entries.remove(&info_hash);
                self.changes.send_replace(());
                return Err(error);
            }
        };
        // The kernel is told, which waits for a little.
        let (shelf, shown) = (self.shelf.clone(), torrent.clone());
        let _ = tokio::task::spawn_blocking(move || shelf.add(shown)).await;
        let name = self.shelf.name(info_hash).unwrap_or_default();
        if let Some(entry) = self.lock().entries.get_mut(&info_hash) {
            entry.state = State::Shown;
            entry.torrent = Some(torrent);
        }
        self.changes.send_replace(());
        Ok(Added { info_hash, name, already: false })
    }

    async fn start(&self, metainfo: Metainfo, peers: Vec<SocketAddr>) -> Result<Arc<Torrent>, AddError> {
        let options = TorrentOptions {
            on_demand: self.options.on_demand,
            peers: self.options.peers.clone(),
            found: peers,
            verify: self.options.verify,
            progress: self.options.progress.clone(),
            ..TorrentOptions::default()
        };
        let torrent = self.session.add(metainfo, options).await?;
        if self.lock().ending {
            self.session.remove(&torrent).await;
            return Err(SessionError::Ending.into());
        }
        Ok(torrent)
    }

    async fn remove(self: Arc<Self>, info_hash: InfoHash, delete: bool, orphan: bool) -> Option<Removed> {
        let mut changes = self.changes.subscribe();
        let name = loop {
            {
                let mut torrents = self.lock();
                let entry = torrents.entries.get_mut(&info_hash)?;
                match entry.state {
                    State::Shown if orphan && !entry.origins.is_empty() => return None,
                    State::Shown => {
                        entry.state = State::Moving;
                        break self.shelf.name(info_hash).unwrap_or_default();
                    }
                    State::Leaving { .. } | State::Stopping => return None,
                    State::Moving => {}
                }
            }
            // The sender is ours.
            let _ = changes.changed().await;
        };
        let shelf = self.shelf.clone();
        let unused = tokio::task::spawn_blocking(move || shelf.remove(info_hash)).await.ok()??;
        if let Some(entry) = self.lock().entries.get_mut(&info_hash) {
            entry.state = State::Leaving { delete };
        }
        self.changes.send_replace(());
        let in_use = !unused.is_closed();
        tokio::spawn(async move {
            unused.closed().await;
            self.end(info_hash).await;
        });
        Some(Removed { info_hash, name, in_use })
    }

    /// The last file of a removed torrent is closed.
    async fn end(&self, info_hash: InfoHash) {
        let (torrent, delete) = {
            let mut torrents = self.lock();
            let Some(entry) = torrents.entries.get_mut(&info_hash) else { return };
            // Else it is back.
            let State::Leaving { delete } = entry.state else { return };
            if !self.shelf.forget(info_hash) {
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
