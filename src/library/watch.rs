//! Keeping the library in step with a directory of `.torrent` and `.magnet` files.
//!
//! When the kernel reports a change (inotify), we scan the whole directory: new and changed files are read, torrents
//! whose files are gone are removed. A periodic scan catches changes that the kernel does not report. So neither the
//! kind nor the order of the events matters.
//!
//! - A file may be half written. A malformed one is read again for a moment before a warning is logged, and is then
//!   ignored until it changes. A magnet link is used only when its file has not changed for a moment, because
//!   the beginning of a link may be a valid link.
//! - If the cache has no room for a torrent, we retry after 5 s, and at longer intervals up to a minute.
//! - If the directory cannot be read, for example because its disk was removed, its torrents stay.
//! - Magnet links are resolved in the background, a few at a time, until they succeed or their file is gone.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::catalog::{Added, Library, Origin};
use super::events::DirectoryEvents;
use super::listing::{ListedFile, is_magnet, list, read_all};
use super::resolve::AddError;
use super::source::{Source, SourceError};
use crate::metainfo::{InfoHash, Magnet, Metainfo};
use crate::payload::Stamp;
use crate::session::{MetadataError, MetadataProgress, SessionError};

/// Delay between an event and the scan, so that one scan covers a burst of changes.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// Interval of scans without events: the kernel does not report every change, for example those on network filesystems.
const SCAN_INTERVAL: Duration = Duration::from_secs(30);
/// Interval of scans if the kernel reports no events at all.
const SCAN_INTERVAL_WITHOUT_EVENTS: Duration = Duration::from_secs(2);
/// How long a malformed file is read again before it is reported; a copy that takes longer ends with an event.
const MALFORMED_GRACE: Duration = Duration::from_millis(1500);
/// Interval for reading a malformed file again.
const REREAD_INTERVAL: Duration = Duration::from_millis(200);
/// How long a `.magnet` file must be unchanged before it is read; editors write such a short file at once.
const MAGNET_MIN_AGE: Duration = Duration::from_millis(300);
/// Maximum number of entries to look at in one directory, and of files to use: bounds the memory and time of a scan.
const MAX_FILES: usize = 100_000;
/// Maximum number of torrents being added at a time: adding reads the disk, so more would only compete for it.
const MAX_CONCURRENT_ADDS: usize = 16;
/// Maximum number of torrents that were read and not added yet: bounds the memory of their metainfo, of which some have
/// megabytes of piece hashes.
const MAX_READ: usize = 64;
/// Number of files that are read at a time.
const READ_BATCH: usize = 16;
/// Maximum number of magnet links being resolved at a time: each opens connections to peers.
const MAX_CONCURRENT_LOOKUPS: usize = 16;
/// Time limit for resolving one link before another gets its turn, unless the user sets one.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(120);
/// Pause between two attempts to resolve a link, and the longest pause between two attempts to add a torrent.
const MAX_RETRY_PAUSE: Duration = Duration::from_secs(60);
/// First pause before adding a torrent again; the cache may have made room by then.
const FIRST_RETRY_PAUSE: Duration = Duration::from_secs(5);

/// Keeps a library in step with a directory until it is dropped.
pub struct Watch(JoinHandle<()>);

impl Watch {
    /// Adds every torrent of the directory and returns once they are shown, then follows changes in the background.
    /// Malformed files are logged and ignored; magnet links appear when they are resolved. With `delete`, the cached
    /// pieces of a torrent are deleted when its file is.
    pub async fn start(library: Library, dir: PathBuf, delete: bool) -> Self {
        let events = DirectoryEvents::open(&dir);
        let mut directory = Directory {
            library,
            dir,
            delete,
            files: HashMap::new(),
            adds: Arc::new(Semaphore::new(MAX_CONCURRENT_ADDS)),
            reads: Arc::new(Semaphore::new(MAX_READ)),
            lookups: Arc::new(Semaphore::new(MAX_CONCURRENT_LOOKUPS)),
            is_unreadable: false,
            is_too_large: false,
        };
        let rescan = directory.scan().await;
        directory.wait_for_adds().await;
        Self(tokio::spawn(directory.follow(events, rescan)))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The state of a file.
struct FileState {
    stamp: Stamp,
    /// Time when this version of the file was first seen.
    since: Instant,
    /// Whether the file was reported as malformed.
    reported: bool,
    /// The torrent that the file names.
    torrent: Option<NamedTorrent>,
}

/// A torrent that a file names, in the library or on its way there.
struct NamedTorrent {
    info_hash: InfoHash,
    /// Closed after the first attempt to add the torrent. `None` for a magnet link, which nothing waits for.
    attempted: Option<oneshot::Receiver<()>>,
    /// Adds the torrent.
    task: JoinHandle<()>,
}

impl Drop for NamedTorrent {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Directory {
    library: Library,
    dir: PathBuf,
    delete: bool,
    files: HashMap<OsString, FileState>,
    adds: Arc<Semaphore>,
    /// A permit for each torrent, from before it is read until the first attempt to add it.
    reads: Arc<Semaphore>,
    lookups: Arc<Semaphore>,
    /// Whether the directory cannot be read, which was logged.
    is_unreadable: bool,
    /// Whether the directory has more than [`MAX_FILES`] entries, which was logged.
    is_too_large: bool,
}

impl Directory {
    /// Scans the directory after every event, and at `rescan` and the regular intervals.
    async fn follow(mut self, mut events: Option<DirectoryEvents>, mut rescan: Option<Instant>) {
        loop {
            let interval = if events.is_some() { SCAN_INTERVAL } else { SCAN_INTERVAL_WITHOUT_EVENTS };
            let next = (Instant::now() + interval).min(rescan.unwrap_or_else(|| Instant::now() + interval));
            let event = async {
                match &mut events {
                    Some(events) => events.wait().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = event => {
                    sleep(DEBOUNCE).await;
                }
                () = sleep_until(next) => {
                    // Another directory may be at the path now.
                    if !events.as_mut().is_some_and(|events| events.watch(&self.dir)) {
                        events = DirectoryEvents::open(&self.dir);
                    }
                }
            }
            if let Some(events) = &mut events {
                events.drain();
            }
            rescan = self.scan().await;
        }
    }

    /// Waits until the library has tried to add every torrent that was read.
    async fn wait_for_adds(&mut self) {
        for attempted in self.files.values_mut().filter_map(|file| file.torrent.as_mut()?.attempted.as_mut()) {
            let _ = attempted.await;
        }
    }

    /// Scans the whole directory. Returns when to scan again, if a file was not ready.
    async fn scan(&mut self) -> Option<Instant> {
        let listed = self.list().await?;
        let present: HashSet<&OsString> = listed.iter().map(|file| &file.name).collect();
        let gone: Vec<OsString> = self.files.keys().filter(|name| !present.contains(name)).cloned().collect();
        // Renaming a file looks like one file gone and a new one with the same torrent.
        let torrent_of = |name| Some(self.files.get(name)?.torrent.as_ref()?.info_hash);
        let maybe_renamed: HashSet<InfoHash> = gone.iter().filter_map(torrent_of).collect();

        let mut rescan = None;
        let mut due = Vec::new();
        for ListedFile { name, stamp, modified } in listed {
            let known = self.files.get(&name).filter(|file| file.stamp == stamp);
            if known.is_some_and(|file| file.reported || file.torrent.is_some()) {
                continue;
            }
            let since = known.map_or_else(Instant::now, |file| file.since);
            // A modification time in the future says nothing about the age.
            let age = SystemTime::now().duration_since(modified).unwrap_or(MALFORMED_GRACE);
            if is_magnet(&name) && age < MAGNET_MIN_AGE {
                rescan = earlier(rescan, MAGNET_MIN_AGE - age);
                continue;
            }
            due.push((name, stamp, since, modified, age));
        }
        let mut replaced = Vec::new();
        let mut due = due.into_iter().peekable();
        while due.peek().is_some() {
            let batch: Vec<_> = due.by_ref().take(READ_BATCH).collect();
            // Cannot fail: the semaphore is never closed.
            let mut permits = self.reads.clone().acquire_many_owned(READ_BATCH as u32).await.ok();
            let (dir, names) = (self.dir.clone(), batch.iter().map(|(name, ..)| name.clone()).collect());
            let sources = spawn_blocking(move || read_all(&dir, names)).await.unwrap_or_default();
            for ((name, stamp, since, modified, age), source) in batch.into_iter().zip(sources) {
                let path = self.dir.join(&name);
                let (reported, torrent) = match source {
                    // A link under another name than `.magnet`, which may be half written.
                    Ok(Source::Magnet(_)) if age < MAGNET_MIN_AGE => {
                        rescan = earlier(rescan, MAGNET_MIN_AGE - age);
                        continue;
                    }
                    Ok(source) => {
                        let permit = permits.as_mut().and_then(|permits| permits.split(1));
                        (false, self.start_adding(&path, source, modified, &maybe_renamed, permit))
                    }
                    // The file was deleted meanwhile.
                    Err(SourceError::Io(error)) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(_) if since.elapsed().max(age) < MALFORMED_GRACE => {
                        rescan = earlier(rescan, REREAD_INTERVAL);
                        let before = self.files.remove(&name).and_then(|file| file.torrent);
                        self.files.insert(name, FileState { stamp, since, reported: false, torrent: None });
                        replaced.extend(before.map(|torrent| (path, torrent)));
                        continue;
                    }
                    Err(error) => {
                        tracing::warn!("{}: {error}; left out", path.display());
                        (true, None)
                    }
                };
                let before = self.files.insert(name, FileState { stamp, since, reported, torrent });
                replaced.extend(before.and_then(|file| file.torrent).map(|torrent| (path, torrent)));
            }
        }
        // Remove old torrents after adding new ones, so that a torrent whose file was renamed stays.
        for name in gone {
            if let Some(torrent) = self.files.remove(&name).and_then(|file| file.torrent) {
                self.remove(&name, torrent).await;
            }
        }
        for (path, before) in replaced {
            let name = path.file_name().unwrap_or_default().to_owned();
            let now = self.files.get(&name).and_then(|file| file.torrent.as_ref());
            // A file may be rewritten with the same torrent.
            if now.is_none_or(|now| now.info_hash != before.info_hash) {
                self.remove(&name, before).await;
            }
        }
        rescan
    }

    /// Lists the directory. Returns `None` if it cannot be read.
    async fn list(&mut self) -> Option<Vec<ListedFile>> {
        let (dir, known) = (self.dir.clone(), self.files.keys().cloned().collect());
        let listed = spawn_blocking(move || list(&dir, known, MAX_FILES))
            .await
            .unwrap_or_else(|error| Err(io::Error::other(error)));
        match listed {
            Ok((files, is_complete)) => {
                if !is_complete && !self.is_too_large {
                    tracing::warn!(
                        "{} has more than {MAX_FILES} entries; move some to another directory, the rest is ignored",
                        self.dir.display()
                    );
                }
                self.is_too_large = !is_complete;
                self.is_unreadable = false;
                Some(files)
            }
            Err(error) => {
                if !std::mem::replace(&mut self.is_unreadable, true) {
                    tracing::warn!("cannot read {}, its torrents stay mounted: {error}", self.dir.display());
                }
                None
            }
        }
    }

    /// Removes the torrent that a file named before.
    async fn remove(&self, name: &OsString, torrent: NamedTorrent) {
        let origin = Origin::File(self.dir.join(name));
        torrent.task.abort();
        if let Some(removed) = self.library.remove_origin(torrent.info_hash, &origin, self.delete).await {
            tracing::info!("{} removed, because its file is gone", removed.name);
        }
    }

    /// Starts to add the torrent of a file.
    fn start_adding(
        &self,
        path: &Path,
        source: Source,
        modified: SystemTime,
        maybe_renamed: &HashSet<InfoHash>,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Option<NamedTorrent> {
        let (library, path, origin) = (self.library.clone(), path.to_owned(), Origin::File(path.to_owned()));
        match source {
            Source::Torrent(metainfo) => {
                let (info_hash, adds) = (metainfo.info_hash, self.adds.clone());
                let renamed = maybe_renamed.contains(&info_hash);
                let (attempt, attempted) = oneshot::channel();
                let task = tokio::spawn(async move {
                    let attempt = Attempt { _done: attempt, _permit: permit };
                    add_torrent(&library, &path, &metainfo, (origin, modified), renamed, attempt, &adds).await;
                });
                Some(NamedTorrent { info_hash, attempted: Some(attempted), task })
            }
            Source::Magnet(magnet) => {
                let info_hash = magnet.info_hash;
                let lookups = self.lookups.clone();
                let task = tokio::spawn(async move {
                    add_magnet(&library, &path, magnet, (origin, modified), &lookups).await;
                });
                Some(NamedTorrent { info_hash, attempted: None, task })
            }
            Source::Url(_) | Source::Directory(_) => None,
        }
    }
}

/// The first attempt to add a torrent, until it is dropped.
struct Attempt {
    _done: oneshot::Sender<()>,
    _permit: Option<OwnedSemaphorePermit>,
}

/// Adds a torrent, retrying while the cache has no room. Drops `attempt` after the first attempt. With `renamed`, only
/// the name of the file is new, so nothing is logged if the torrent is in the library already.
async fn add_torrent(
    library: &Library,
    path: &Path,
    metainfo: &Metainfo,
    (origin, since): (Origin, SystemTime),
    renamed: bool,
    attempt: Attempt,
    adds: &Semaphore,
) {
    let (mut attempt, mut pause) = (Some(attempt), FIRST_RETRY_PAUSE);
    loop {
        // Cannot fail: the semaphore is never closed.
        let permit = adds.acquire().await;
        let added = library.insert(metainfo.clone(), Vec::new(), origin.clone(), since).await;
        drop(permit);
        let retry = added.as_ref().is_err_and(is_temporary);
        let is_known =
            if retry { attempt.is_none() } else { renamed && added.as_ref().is_ok_and(|added| added.already) };
        if !is_known {
            log_result(path, added);
        }
        if !retry {
            return;
        }
        attempt = None;
        sleep(pause).await;
        pause = (pause * 2).min(MAX_RETRY_PAUSE);
    }
}

/// Resolves a magnet link and adds its torrent, retrying until that succeeds or cannot succeed.
async fn add_magnet(
    library: &Library,
    path: &Path,
    magnet: Magnet,
    (origin, since): (Origin, SystemTime),
    lookups: &Semaphore,
) {
    let limit = library.metadata_timeout().unwrap_or(LOOKUP_TIMEOUT);
    let mut reported = false;
    loop {
        let permit = lookups.acquire().await;
        let (progress, _) = watch::channel(MetadataProgress::default());
        let resolved = tokio::select! {
            resolved = timeout(limit, library.resolve(Source::Magnet(magnet.clone()), &progress)) => resolved,
            // Another origin may add the torrent meanwhile.
            added = library.wait_until_shown(magnet.info_hash, &origin) => return log_result(path, Ok(added)),
        };
        drop(permit);
        let why = match resolved {
            Ok(Ok((metainfo, peers))) => match library.insert(metainfo, peers, origin.clone(), since).await {
                Err(error) if is_temporary(&error) => error.to_string(),
                added => return log_result(path, added),
            },
            Ok(Err(error @ AddError::Metadata(MetadataError::Metainfo(_)))) => return log_result(path, Err(error)),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no metadata within {}", humantime::format_duration(limit)),
        };
        if std::mem::replace(&mut reported, true) {
            tracing::debug!("{}: {why}", path.display());
        } else {
            tracing::warn!("{}: {why}; still looking for it", path.display());
        }
        sleep(MAX_RETRY_PAUSE).await;
    }
}

/// Whether adding may succeed later, because the cache failed and not the torrent.
fn is_temporary(error: &AddError) -> bool {
    matches!(error, AddError::Session(SessionError::Store(_)))
}

/// Logs the result of adding the torrent of a file, in one line.
fn log_result(path: &Path, added: Result<Added, AddError>) {
    let file = path.display();
    match added {
        Ok(Added { name, already: false, .. }) => tracing::info!("{file}: added as {name}"),
        Ok(Added { name, .. }) => tracing::warn!("{file} is the same torrent as {name}, and is mounted once"),
        Err(error) if is_temporary(&error) => tracing::warn!("{file}: {error}; it is tried again"),
        Err(error) => tracing::warn!("{file}: {error}; left out"),
    }
}

/// Returns the earlier of `at` and the time after `wait`.
fn earlier(at: Option<Instant>, wait: Duration) -> Option<Instant> {
    let other = Instant::now() + wait;
    Some(at.map_or(other, |at| at.min(other)))
}
