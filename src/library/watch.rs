//! A directory of `.torrent` and `.magnet` files, and the library as it has them.
//!
//! The kernel tells when something in the directory changes (inotify), and then all of it is looked at: what is new or
//! changed is read, what is gone is let go. A slow look now and then finds what the kernel did not tell of. So it does
//! not matter which events came, or in which order.
//!
//! A file may be half written. One that makes no sense is tried again for a moment before a line in the log says so; a
//! link, whose beginning makes sense already, is read once its file has rested. Then a file that makes no sense is left
//! alone until it changes. A torrent for which the cache has no place is tried again, after 5 s at first and after a
//! minute at last. A directory that cannot be read, as that of a disk that was taken away, takes nothing away.
//!
//! Magnet links are looked for behind the scenes, a few at a time, until they are found or their file is gone.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use inotify::{Inotify, WatchMask};
use tokio::io::unix::AsyncFd;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::{AddError, Added, Library, Origin, Source, SourceError};
use crate::metainfo::{InfoHash, Metainfo};
use crate::payload::Stamp;
use crate::session::{MetadataProgress, SessionError};
use crate::sys;

/// What changes together is looked at together.
const SETTLE: Duration = Duration::from_millis(50);
/// How often the directory is looked at though nothing was heard; and where the kernel cannot tell.
const LOOK: Duration = Duration::from_secs(30);
const LOOK_BLIND: Duration = Duration::from_secs(2);
/// A file that makes no sense is given so long, and tried so often.
const PATIENCE: Duration = Duration::from_millis(1500);
const TRY: Duration = Duration::from_millis(200);
/// A link's file that was not written to for so long is whole.
const REST: Duration = Duration::from_millis(300);
/// Entries looked at in one directory, and files taken in.
const MAX_FILES: usize = 100_000;
/// Torrents being added at a time, and links being looked for.
const ADDING: usize = 16;
const SEEKING: usize = 16;
/// How long a link is looked for before another has its turn, if nothing else is said; and how long it then rests.
const TURN: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_secs(60);
/// How long the cache has for making place, the first time.
const SHORT_PAUSE: Duration = Duration::from_secs(5);

/// Keeps a library as a directory has it, until it is dropped.
pub struct Watch(JoinHandle<()>);

impl Watch {
    /// Adds every torrent of the directory and returns once they are shown; what makes no sense is left out, with a line
    /// in the log. From then on torrents come and go with their files. Magnet links come when they are found. With
    /// `delete`, what is cached of a torrent is deleted when its file is.
    pub async fn start(library: Library, dir: PathBuf, delete: bool) -> Self {
        let ears = Ears::open(&dir);
        let mut folder = Folder {
            library,
            dir,
            delete,
            known: HashMap::new(),
            adding: Arc::new(Semaphore::new(ADDING)),
            seeking: Arc::new(Semaphore::new(SEEKING)),
            lost: false,
            crowded: false,
        };
        let again = folder.look().await;
        folder.settle().await;
        Self(tokio::spawn(folder.keep(ears, again)))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A file as it was found.
struct Found {
    name: OsString,
    stamp: Stamp,
    modified: SystemTime,
}

/// What is known of a file.
struct Known {
    stamp: Stamp,
    since: Instant,
    /// Found to be bad, and said so.
    told: bool,
    /// The torrent that it names.
    named: Option<Named>,
}

struct Named {
    info_hash: InfoHash,
    /// Ends when it was tried to add it. `None`: a link, for which nobody waits.
    tried: Option<oneshot::Receiver<()>>,
    /// Adds it.
    task: JoinHandle<()>,
}

impl Drop for Named {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Folder {
    library: Library,
    dir: PathBuf,
    delete: bool,
    known: HashMap<OsString, Known>,
    adding: Arc<Semaphore>,
    seeking: Arc<Semaphore>,
    /// The directory cannot be read, and that was said.
    lost: bool,
    /// It has more than is looked at, and that was said.
    crowded: bool,
}

impl Folder {
    async fn keep(mut self, mut ears: Option<Ears>, mut again: Option<Instant>) {
        loop {
            let pause = if ears.is_some() { LOOK } else { LOOK_BLIND };
            let next = (Instant::now() + pause).min(again.unwrap_or_else(|| Instant::now() + pause));
            let heard = async {
                match &mut ears {
                    Some(ears) => ears.hear().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = heard => {
                    sleep(SETTLE).await;
                }
                () = sleep_until(next) => {
                    // Another directory may have come to its path.
                    if !ears.as_mut().is_some_and(|ears| ears.listen(&self.dir)) {
                        ears = Ears::open(&self.dir);
                    }
                }
            }
            if let Some(ears) = &mut ears {
                ears.drain();
            }
            again = self.look().await;
        }
    }

    /// Waits until every torrent that was read is added, or is not to be.
    async fn settle(&mut self) {
        for tried in self.known.values_mut().filter_map(|known| known.named.as_mut()?.tried.as_mut()) {
            let _ = tried.await;
        }
    }

    /// Looks at the whole directory. Says when to do it again, if some file is not settled.
    async fn look(&mut self) -> Option<Instant> {
        let (dir, known) = (self.dir.clone(), self.known.keys().cloned().collect());
        let listed = spawn_blocking(move || list(&dir, known, MAX_FILES))
            .await
            .unwrap_or_else(|error| Err(io::Error::other(error)));
        let found = match listed {
            Ok((found, all)) => {
                if !all && !self.crowded {
                    tracing::warn!(
                        "{} has more than {MAX_FILES} entries; the rest is passed over, put it into another directory",
                        self.dir.display()
                    );
                }
                self.crowded = !all;
                found
            }
            Err(error) => {
                if !std::mem::replace(&mut self.lost, true) {
                    tracing::warn!("{} cannot be read: {error}; what it had stays", self.dir.display());
                }
                return None;
            }
        };
        self.lost = false;
        let there: HashSet<&OsString> = found.iter().map(|found| &found.name).collect();
        let gone: Vec<OsString> = self.known.keys().filter(|name| !there.contains(name)).cloned().collect();
        // A file that was renamed is another one with the same torrent.
        let named = |name| Some(self.known.get(name)?.named.as_ref()?.info_hash);
        let moved: HashSet<InfoHash> = gone.iter().filter_map(named).collect();

        let mut again = None;
        let mut due = Vec::new();
        for Found { name, stamp, modified } in found {
            let known = self.known.get(&name).filter(|known| known.stamp == stamp);
            if known.is_some_and(|known| known.told || known.named.is_some()) {
                continue;
            }
            let since = known.map_or_else(Instant::now, |known| known.since);
            // A time to come is no measure.
            let age = SystemTime::now().duration_since(modified).unwrap_or(PATIENCE);
            if is_link(&name) && age < REST {
                again = earlier(again, REST - age);
                continue;
            }
            due.push((name, stamp, since, age));
        }
        let (dir, names) = (self.dir.clone(), due.iter().map(|(name, ..)| name.clone()).collect());
        let read = spawn_blocking(move || read_all(&dir, names)).await.unwrap_or_default();
        let mut others = Vec::new();
        for ((name, stamp, since, age), source) in due.into_iter().zip(read) {
            let path = self.dir.join(&name);
            let (told, named) = match source {
                Ok(source) => (false, self.name(&path, source, &moved)),
                // It went meanwhile.
                Err(SourceError::Io(error)) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(_) if since.elapsed().max(age) < PATIENCE => {
                    again = earlier(again, TRY);
                    // What it named before stays for so long.
                    let named = self.known.remove(&name).and_then(|known| known.named);
                    self.known.insert(name, Known { stamp, since, told: false, named: None });
                    others.extend(named.map(|named| (path, named)));
                    continue;
                }
                Err(error) => {
                    tracing::warn!("{}: {error}; left out", path.display());
                    (true, None)
                }
            };
            let before = self.known.insert(name, Known { stamp, since, told, named });
            others.extend(before.and_then(|known| known.named).map(|named| (path, named)));
        }
        // After what is new.
        for name in gone {
            if let Some(named) = self.known.remove(&name).and_then(|known| known.named) {
                self.disown(&name, named).await;
            }
        }
        for (path, named) in others {
            let name = path.file_name().unwrap_or_default().to_owned();
            let is_named = self.known.get(&name).and_then(|known| known.named.as_ref());
            // The same torrent by the same file, written anew.
            if is_named.is_none_or(|new| new.info_hash != named.info_hash) {
                self.disown(&name, named).await;
            }
        }
        again
    }

    /// A file names a torrent no longer.
    async fn disown(&self, name: &OsString, named: Named) {
        let origin = Origin::File(self.dir.join(name));
        named.task.abort();
        if let Some(removed) = self.library.disown(named.info_hash, &origin, self.delete).await {
            tracing::info!("{} removed: its file is gone", removed.name);
        }
    }

    /// Begins to add what a file names.
    fn name(&self, path: &Path, source: Source, moved: &HashSet<InfoHash>) -> Option<Named> {
        let (library, path, origin) = (self.library.clone(), path.to_owned(), Origin::File(path.to_owned()));
        match source {
            Source::Torrent(metainfo) => {
                let (info_hash, adding) = (metainfo.info_hash, self.adding.clone());
                let moved = moved.contains(&info_hash);
                let (trying, tried) = oneshot::channel();
                let task = tokio::spawn(async move {
                    add(&library, &path, &metainfo, origin, moved, trying, &adding).await;
                });
                Some(Named { info_hash, tried: Some(tried), task })
            }
            Source::Magnet(magnet) => {
                let info_hash = magnet.info_hash;
                let seeking = self.seeking.clone();
                let task = tokio::spawn(async move {
                    seek(&library, &path, Source::Magnet(magnet), origin, &seeking).await;
                });
                Some(Named { info_hash, tried: None, task })
            }
            Source::Url(_) | Source::Directory(_) => None,
        }
    }
}

/// Adds a torrent; while the cache has no place for it, again and again. `trying` goes after the first time. `moved`: its
/// file has another name now, and that it is here already is no news.
async fn add(
    library: &Library,
    path: &Path,
    metainfo: &Metainfo,
    origin: Origin,
    moved: bool,
    trying: oneshot::Sender<()>,
    adding: &Semaphore,
) {
    let (mut trying, mut pause) = (Some(trying), SHORT_PAUSE);
    loop {
        // Never closed.
        let turn = adding.acquire().await;
        let added = library.admit(metainfo.clone(), Vec::new(), origin.clone()).await;
        drop(turn);
        let passes = added.as_ref().is_err_and(may_pass);
        let is_old = if passes { trying.is_none() } else { moved && added.as_ref().is_ok_and(|added| added.already) };
        if !is_old {
            say(path, added);
        }
        if !passes {
            return;
        }
        trying = None;
        sleep(pause).await;
        pause = (pause * 2).min(PAUSE);
    }
}

/// Looks for a magnet link's torrent until it is found, or never can be.
async fn seek(library: &Library, path: &Path, source: Source, origin: Origin, seeking: &Semaphore) {
    let limit = library.0.options.metadata_timeout.unwrap_or(TURN);
    let mut told = false;
    loop {
        let turn = seeking.acquire().await;
        let (progress, _) = watch::channel(MetadataProgress::default());
        let found = tokio::select! {
            found = timeout(limit, library.0.resolve(source.clone(), &progress)) => found,
            // Somebody else has found it.
            added = shown(library, &source, &origin) => return say(path, Ok(added)),
        };
        drop(turn);
        let why = match found {
            Ok(Ok((metainfo, peers))) => match library.admit(metainfo, peers, origin.clone()).await {
                Err(error) if may_pass(&error) => error.to_string(),
                added => return say(path, added),
            },
            Ok(Err(error @ AddError::Metainfo(_))) => return say(path, Err(error)),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no metadata within {}", humantime::format_duration(limit)),
        };
        if std::mem::replace(&mut told, true) {
            tracing::debug!("{}: {why}", path.display());
        } else {
            tracing::warn!("{}: {why}; looking further", path.display());
        }
        sleep(PAUSE).await;
    }
}

/// Waits until the torrent of a link is shown.
async fn shown(library: &Library, source: &Source, origin: &Origin) -> Added {
    let mut changes = library.0.changes.subscribe();
    loop {
        if let Source::Magnet(magnet) = source
            && let Some(added) = library.0.find_shown(magnet.info_hash, origin)
        {
            return added;
        }
        // The sender is the library's.
        let _ = changes.changed().await;
    }
}

/// The fault is the cache's, and not the torrent's.
fn may_pass(error: &AddError) -> bool {
    matches!(error, AddError::Session(SessionError::Store(_)))
}

/// One line for what came of a file.
fn say(path: &Path, added: Result<Added, AddError>) {
    let file = path.display();
    match added {
        Ok(Added { name, already: false, .. }) => tracing::info!("{file}: added as {name}"),
        Ok(Added { name, .. }) => tracing::warn!("{file}: the same torrent as {name}, which is here; shown once"),
        Err(error) if may_pass(&error) => tracing::warn!("{file}: {error}; it is tried again"),
        Err(error) => tracing::warn!("{file}: {error}; left out"),
    }
}

fn earlier(at: Option<Instant>, wait: Duration) -> Option<Instant> {
    let other = Instant::now() + wait;
    Some(at.map_or(other, |at| at.min(other)))
}

fn has_extension(name: &OsString, extension: &str) -> bool {
    Path::new(name).extension().is_some_and(|other| other.eq_ignore_ascii_case(extension))
}

fn is_link(name: &OsString) -> bool {
    has_extension(name, "magnet")
}

/// The files that name torrents, `most` of them; hidden ones are others' work in progress. Whether that is all.
///
/// Where it is not, which entries come first is the filesystem's to say, each time anew: those `known` that were not among
/// them are asked for by name, and go before new ones.
fn list(dir: &Path, known: HashSet<OsString>, most: usize) -> io::Result<(Vec<Found>, bool)> {
    let mut found = Vec::new();
    let mut entries = dir.read_dir()?;
    for entry in entries.by_ref().take(most) {
        let name = entry?.file_name();
        if name.as_bytes().starts_with(b".") || !(is_link(&name) || has_extension(&name, "torrent")) {
            continue;
        }
        found.extend(look_at(dir, name));
    }
    let all = entries.next().is_none();
    if !all {
        let (mut old, new): (Vec<_>, Vec<_>) = found.into_iter().partition(|found| known.contains(&found.name));
        let listed: HashSet<OsString> = old.iter().map(|found| found.name.clone()).collect();
        old.extend(known.into_iter().filter(|name| !listed.contains(name)).filter_map(|name| look_at(dir, name)));
        let room = most.saturating_sub(old.len());
        old.extend(new.into_iter().take(room));
        found = old;
    }
    // Which of two files that name the same torrent comes first is not left to chance.
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok((found, all))
}

/// By its path: a symbolic link is as good as a file.
fn look_at(dir: &Path, name: OsString) -> Option<Found> {
    let about = dir.join(&name).metadata().ok().filter(|about| about.is_file())?;
    Some(Found { name, stamp: Stamp::from(&about), modified: about.modified().ok()? })
}

fn read_all(dir: &Path, names: Vec<OsString>) -> Vec<Result<Source, SourceError>> {
    let read = |name: OsString| {
        let path = dir.join(&name);
        if is_link(&name) { Source::of_magnet(&path) } else { Source::of_torrent(&path) }
    };
    names.into_iter().map(read).collect()
}

/// What the kernel tells of a directory.
struct Ears {
    inotify: Inotify,
    /// Tells when there is something to hear.
    ready: AsyncFd<OwnedFd>,
}

impl Ears {
    /// `None`, and a line in the log: it does not.
    fn open(dir: &Path) -> Option<Self> {
        let opened = Inotify::init().and_then(|inotify| {
            let ready = sys::file::readiness(inotify.as_fd().try_clone_to_owned()?)?;
            Ok(Self { inotify, ready })
        });
        let mut ears = opened
            .inspect_err(|error| {
                tracing::warn!("changes of {} are not told by the kernel: {error}; looking every 2 s", dir.display());
            })
            .ok()?;
        ears.listen(dir).then_some(ears)
    }

    /// Listens to what is at this path now. Whether it can.
    fn listen(&mut self, dir: &Path) -> bool {
        let mask = WatchMask::CREATE
            | WatchMask::CLOSE_WRITE
            | WatchMask::MOVED_TO
            | WatchMask::MOVED_FROM
            | WatchMask::DELETE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF;
        self.inotify.watches().add(dir, mask).is_ok()
    }

    /// Waits until something changed.
    async fn hear(&mut self) {
        loop {
            let Ok(mut ready) = self.ready.readable().await else { return std::future::pending().await };
            if ready.try_io(|_| read_events(&mut self.inotify)).is_ok() {
                return;
            }
        }
    }

    /// Forgets what was told.
    fn drain(&mut self) {
        while read_events(&mut self.inotify).is_ok() {}
    }
}

fn read_events(inotify: &mut Inotify) -> io::Result<()> {
    inotify.read_events(&mut [0; 4096]).map(drop)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Whatever the filesystem lists first: what had been taken in stays for as long as it is there.
    #[test]
    fn what_is_passed_over_is_not_gone() {
        let dir = tempfile::tempdir().unwrap();
        let name = |n: usize| OsString::from(format!("{n}.torrent"));
        let make = |of: std::ops::Range<usize>| of.for_each(|n| fs::write(dir.path().join(name(n)), []).unwrap());
        let look = |known: &HashSet<OsString>| {
            let (found, all) = list(dir.path(), known.clone(), 10).unwrap();
            (found.into_iter().map(|found| found.name).collect::<HashSet<_>>(), all)
        };
        make(0..9);
        fs::write(dir.path().join("note.txt"), []).unwrap();
        let (first, all) = look(&HashSet::new());
        assert_eq!((first.len(), all), (9, true));

        make(9..100);
        let (found, all) = look(&first);
        assert!(found.is_superset(&first) && found.len() <= 10 && !all, "{found:?}");
        for n in 0..4 {
            fs::remove_file(dir.path().join(name(n))).unwrap();
        }
        fs::create_dir(dir.path().join(name(3))).unwrap();
        let gone: HashSet<OsString> = (0..4).map(name).collect();
        let (found, _) = look(&first);
        assert!(found.is_superset(&(&first - &gone)) && found.is_disjoint(&gone) && found.len() <= 10, "{found:?}");
    }
}
