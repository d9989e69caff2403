//! The data files of a torrent: sparse, and created on their first write.
//!
//! Except for the user's own files, every open walks down from the torrent's directory one component at a time and
//! follows no symbolic link, so neither a name nor a planted link leads outside (see `place`). Pad files are not
//! stored, because they are zeros (BEP 47).

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::fs::{File, Metadata};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock};

use lru::LruCache;

use super::error::StoreError;
use super::health::DiskError;
use super::pieces::{Pieces, State};
use super::place::Root;
use super::substitute;
use crate::metainfo::{self, FileIndex, Layout, PieceIndex};
use crate::sys::file as sys;
use crate::util::lock;

/// Limit on open files over all torrents; well below the usual descriptor limit of 1024.
const MAX_OPEN: usize = 128;
/// Length of a write in bytes. For a whole piece of 1 MiB the kernel allocates one huge folio, which took three times
/// as long when measured on a virtual machine, and locks the file meanwhile.
const WRITE_LEN: usize = 128 << 10;
/// Number of attempts to read a file that changes during the read.
const STEADY_TRIES: usize = 4;

/// The open files of all torrents, by torrent and file.
pub(super) struct Handles(Mutex<LruCache<(u32, FileIndex), Handle>>);

#[derive(Clone)]
struct Handle {
    file: Arc<File>,
    in_memory: bool,
}

impl Handles {
    pub fn new() -> Self {
        Self(Mutex::new(LruCache::unbounded()))
    }

    fn get(&self, key: (u32, FileIndex)) -> Option<Handle> {
        lock(&self.0).get(&key).cloned()
    }

    fn put(&self, key: (u32, FileIndex), handle: Handle) {
        let old = {
            let mut handles = lock(&self.0);
            handles.put(key, handle);
            if handles.len() > MAX_OPEN { handles.pop_lru() } else { None }
        };
        // Closing is I/O, so it must not happen under the lock.
        drop(old);
    }

    /// Closes a torrent's files.
    pub fn close(&self, torrent: u32) {
        let mut handles = lock(&self.0);
        let keys: Vec<_> = handles.iter().map(|(key, _)| *key).filter(|key| key.0 == torrent).collect();
        let closed: Vec<_> = keys.iter().filter_map(|key| handles.pop(key)).collect();
        drop(handles);
        drop(closed);
    }
}

/// Size and times of a file, to detect changes by others. All zeros if the file does not exist.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) struct Stamp {
    pub size: u64,
    /// Modification time, and below the status change time, in nanoseconds since 1970.
    pub modified: i64,
    pub changed: i64,
}

impl Stamp {
    fn of(about: &Metadata) -> Self {
        let nanoseconds = |seconds: i64, rest: i64| seconds.saturating_mul(1_000_000_000).saturating_add(rest);
        Self {
            size: about.len(),
            modified: nanoseconds(about.mtime(), about.mtime_nsec()),
            changed: nanoseconds(about.ctime(), about.ctime_nsec()),
        }
    }
}

/// The result of a read that must not wait.
pub(super) enum Cached {
    Read,
    WouldWait,
}

/// The data files of one torrent.
pub(super) struct Files {
    pieces: Arc<Pieces>,
    pub root: Root,
    pub layout: Arc<Layout>,
    /// Inode of each file when it was last examined; 0 if it was not.
    inodes: Box<[AtomicU64]>,
    /// Held while a file is extended to its length.
    resizing: Mutex<()>,
    /// Stamps of the user's own files at their last read. The user may change these files at any time.
    last_stamps: Mutex<HashMap<FileIndex, Stamp>>,
    /// Files that are under another name, because the filesystem refuses their own. Holds them with that path.
    renamed: Mutex<HashMap<FileIndex, metainfo::File>>,
    /// Files that would be the same as another one on a filesystem that ignores case.
    twins: HashMap<FileIndex, FileIndex>,
    /// Held while a file is created.
    creating: Mutex<()>,
    /// The other paths of the files of a download.
    portable: OnceLock<HashMap<FileIndex, Vec<String>>>,
    /// Existing files in a download directory of which no piece can be hashed, because other files are missing.
    pub undecided: Mutex<HashSet<FileIndex>>,
    /// Makes every write fail with this `errno`, unless it is 0, and every read if it is `EIO`.
    #[cfg(test)]
    pub injected_errno: std::sync::atomic::AtomicI32,
}

impl Files {
    /// Checks that every path is a plain relative one.
    pub fn new(pieces: Arc<Pieces>, root: Root, layout: Arc<Layout>) -> Result<Self, StoreError> {
        let is_plain = |part: &String| {
            let mut components = Path::new(part).components();
            matches!((components.next(), components.next()), (Some(Component::Normal(name)), None) if name == part.as_str())
        };
        let mut files = layout.files().iter().filter(|file| !file.is_pad());
        if let Some(file) = files.find(|file| file.path.is_empty() || !file.path.iter().all(is_plain)) {
            return Err(StoreError::UnsafePath { path: file.relative_path() });
        }
        let twins = if root.is_read_only() { HashMap::new() } else { substitute::twins(layout.files()) };
        Ok(Self {
            pieces,
            root,
            inodes: layout.files().iter().map(|_| AtomicU64::new(0)).collect(),
            layout,
            resizing: Mutex::default(),
            last_stamps: Mutex::default(),
            renamed: Mutex::default(),
            twins,
            creating: Mutex::default(),
            portable: OnceLock::new(),
            undecided: Mutex::default(),
            #[cfg(test)]
            injected_errno: Default::default(),
        })
    }

    fn file(&self, index: FileIndex) -> &metainfo::File {
        &self.layout.files()[index.index()]
    }

    /// Returns every file that exists on the disk once its bytes are written.
    pub fn stored(&self) -> impl Iterator<Item = (FileIndex, &metainfo::File)> {
        self.layout.indexed_files().filter(|(_, file)| file.is_stored())
    }

    pub fn path(&self, file: FileIndex) -> PathBuf {
        self.root.path(&self.placed(file))
    }

    /// Returns a file with the path that it has on the disk, as far as that is known.
    fn placed(&self, file: FileIndex) -> Cow<'_, metainfo::File> {
        match lock(&self.renamed).get(&file) {
            Some(renamed) => Cow::Owned(renamed.clone()),
            None => Cow::Borrowed(self.file(file)),
        }
    }

    /// Returns a file with the other path that it has if its own is refused.
    fn substitute(&self, index: FileIndex) -> Option<metainfo::File> {
        let file = self.file(index);
        match &self.root {
            Root::ReadOnly(_) => None,
            Root::Own(_) => Some(substitute::in_cache(file, index)),
            Root::Users(_) => {
                let portable = self.portable.get_or_init(|| substitute::in_download(self.layout.files()));
                portable.get(&index).map(|path| metainfo::File { path: path.clone(), ..file.clone() })
            }
        }
    }

    /// Finds out whether a file is on the disk under its other name. Returns it with the path that it has or will have.
    pub fn locate(&self, file: FileIndex) -> Cow<'_, metainfo::File> {
        let own = self.placed(file);
        if matches!(own, Cow::Owned(_)) {
            return own;
        }
        let (is_twin, refused) = match self.root.path(&own).symlink_metadata() {
            Ok(about) => (self.is_of_twin(file, &about), false),
            Err(error) => (false, substitute::is_refused(&error, true)),
        };
        let exists = |other: &metainfo::File| self.root.path(other).symlink_metadata().is_ok();
        match self.substitute(file).filter(|other| is_twin || refused && exists(other)) {
            Some(other) => {
                lock(&self.renamed).insert(file, other.clone());
                Cow::Owned(other)
            }
            None => own,
        }
    }

    /// Returns whether what is under a file's own name is another file, because the filesystem ignores case. A file with two
    /// links is in two directories that do not.
    fn is_of_twin(&self, file: FileIndex, about: &Metadata) -> bool {
        let Some(twin) = self.twins.get(&file) else { return false };
        let other = self.root.path(self.file(*twin)).symlink_metadata();
        about.nlink() == 1 && other.is_ok_and(|other| (other.dev(), other.ino()) == (about.dev(), about.ino()))
    }

    /// Opens a file under its own name, or under the other one if the filesystem refuses that.
    pub fn open(&self, file: FileIndex, create: bool) -> io::Result<File> {
        let _turn = create.then(|| lock(&self.creating));
        let own = self.locate(file);
        let error = match self.root.open(&own, create) {
            Ok(opened) if create && matches!(own, Cow::Borrowed(_)) && self.is_of_twin(file, &opened.metadata()?) => {
                // It was created just now, and it is the other file's.
                std::fs::remove_file(self.root.path(&own))?;
                io::ErrorKind::AlreadyExists.into()
            }
            Err(error) if create && substitute::is_refused(&error, true) => error,
            opened => return opened,
        };
        let Some(other) = self.substitute(file).filter(|other| other.path != own.path) else { return Err(error) };
        // The error about its own name says more than that about one which we made up.
        let Ok(opened) = self.root.open(&other, true) else { return Err(error) };
        let (from, to) = (substitute::shown(&own.path), substitute::shown(&other.path));
        if lock(&self.renamed).insert(file, other).is_some() {
            // Another of our threads was first.
            return Ok(opened);
        }
        if self.root.is_own() {
            tracing::info!("the cache stores {from} as {to}, because its filesystem refuses the name: {error}");
        } else {
            tracing::warn!("{from} is saved as {to}, because the filesystem refuses the name: {error}");
        }
        Ok(opened)
    }

    /// Returns the parts of files that make up `len` bytes of the torrent from `start` on: the file, the offset in it,
    /// and the bytes in a buffer of length `len`.
    fn extents(&self, start: u64, len: usize) -> impl Iterator<Item = (FileIndex, u64, Range<usize>)> {
        self.layout.extents(start..start + len as u64).scan(0, |end, (file, part)| {
            let begin = *end;
            *end += (part.end - part.start) as usize;
            Some((file, part.start, begin..*end))
        })
    }

    /// Returns whether a file on the disk is missing or shorter than the torrent's.
    pub fn is_short(&self, file: FileIndex) -> bool {
        self.stamp(file).size < self.file(file).len
    }

    /// Returns the stored files that hold any byte of a piece.
    pub fn of_piece(&self, piece: PieceIndex) -> impl Iterator<Item = FileIndex> {
        self.layout.extents_of(piece).map(|(file, _)| file).filter(|file| self.file(*file).is_stored())
    }

    /// Fills `out` with the torrent's bytes from `start` on. Waits for the disk.
    pub fn read(&self, handles: &Handles, start: u64, out: &mut [u8]) -> Result<(), DiskError> {
        for (file, at, part) in self.extents(start, out.len()) {
            let out = &mut out[part];
            if self.file(file).is_pad() {
                out.fill(0);
                continue;
            }
            let handle = self.handle(handles, file, false)?;
            let read = self.injected_fault(true).and_then(|()| self.read_steadily(&handle.file, out, at));
            read.map_err(|error| {
                if error.kind() == io::ErrorKind::UnexpectedEof {
                    self.mark_unverified(file);
                }
                self.failed("read", file)(error)
            })?;
            self.check_stamp(file, &handle).map_err(self.failed("examine", file))?;
        }
        Ok(())
    }

    /// Reads bytes that all existed at the same time, because bytes hashed now may be served later. Only the user's own
    /// files need that care: nothing else writes to ours.
    fn read_steadily(&self, file: &File, out: &mut [u8], at: u64) -> io::Result<()> {
        if !self.root.is_read_only() {
            return file.read_exact_at(out, at);
        }
        let mut before = Stamp::of(&file.metadata()?);
        for _ in 0..STEADY_TRIES {
            file.read_exact_at(out, at)?;
            let after = Stamp::of(&file.metadata()?);
            if std::mem::replace(&mut before, after) == after {
                return Ok(());
            }
        }
        Err(io::Error::other("it keeps changing while it is read"))
    }

    /// Fills `out` as [`Self::read`] does, but only from the page cache.
    pub fn read_cached(&self, handles: &Handles, start: u64, out: &mut [u8]) -> io::Result<Cached> {
        for (file, at, part) in self.extents(start, out.len()) {
            let out = &mut out[part];
            if self.file(file).is_pad() {
                out.fill(0);
                continue;
            }
            // Opening the file could wait for the disk.
            let Some(handle) = handles.get((self.pieces.id, file)) else { return Ok(Cached::WouldWait) };
            self.injected_fault(true)?;
            match sys::read_cached(&handle.file, out, at) {
                Ok(Some(count)) if count == out.len() => {}
                Ok(_) => return Ok(Cached::WouldWait),
                Err(error) if error.kind() == io::ErrorKind::Unsupported && handle.in_memory => {
                    handle.file.read_exact_at(out, at)?;
                }
                Err(error) if error.kind() == io::ErrorKind::Unsupported => return Ok(Cached::WouldWait),
                Err(error) => return Err(error),
            }
            self.check_stamp(file, &handle)?;
        }
        Ok(Cached::Read)
    }

    /// Writes the torrent's bytes from `start` on. Bytes of pad files are discarded.
    pub fn write(&self, handles: &Handles, start: u64, bytes: &[u8]) -> Result<(), DiskError> {
        for (file, at, part) in self.extents(start, bytes.len()) {
            if !self.file(file).is_pad() {
                let bytes = &bytes[part];
                let handle = self.handle(handles, file, true)?;
                self.compare_undecided(file, &handle.file, bytes, at).map_err(self.failed("overwrite", file))?;
                let mut places = (at..).step_by(WRITE_LEN).zip(bytes.chunks(WRITE_LEN));
                let written = self
                    .injected_fault(false)
                    .and_then(|()| places.try_for_each(|(at, part)| handle.file.write_all_at(part, at)));
                written.map_err(self.failed("write to", file))?;
            }
        }
        Ok(())
    }

    /// Compares new bytes with those in an undecided file: equal bytes prove that the file is the torrent's.
    fn compare_undecided(&self, file: FileIndex, opened: &File, bytes: &[u8], at: u64) -> io::Result<()> {
        if !lock(&self.undecided).contains(&file) {
            return Ok(());
        }
        let mut existing = vec![0; bytes.len()];
        opened.read_exact_at(&mut existing, at)?;
        if existing != bytes {
            return Err(io::Error::other("it is not the torrent's file; move it away, or overwrite it with --force"));
        }
        lock(&self.undecided).remove(&file);
        Ok(())
    }

    /// Frees a range of a torrent in the cache on the filesystem. Blocks that are only partly in the range are zeroed
    /// there but stay allocated. A user's files are never punched.
    pub fn punch(&self, handles: &Handles, range: Range<u64>) -> Result<(), DiskError> {
        if !self.root.is_own() {
            return Ok(());
        }
        for (file, part) in self.layout.extents(range).filter(|(file, _)| self.file(*file).is_stored()) {
            match self.handle(handles, file, false) {
                Ok(handle) => {
                    let punched = sys::punch_hole(&handle.file, part.start, part.end - part.start);
                    punched.map_err(self.failed("free a part of", file))?;
                }
                Err(error) if error.is_gone() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Syncs files to the disk. If there are many, syncs the whole filesystem.
    pub fn sync(&self, handles: &Handles, files: impl ExactSizeIterator<Item = FileIndex>) -> Result<(), DiskError> {
        if files.len() > MAX_OPEN / 2 {
            let failed = || DiskError::new("sync", self.root.dir());
            return File::open(self.root.dir())
                .and_then(|torrent_dir| sys::sync_filesystem(&torrent_dir))
                .map_err(failed());
        }
        for file in files {
            match self.handle(handles, file, false) {
                Ok(handle) => handle.file.sync_data().map_err(self.failed("sync", file))?,
                Err(error) if error.is_gone() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Starts writing dirty pages, so that a later sync is short. Errors show up in that sync.
    pub fn start_writeback(&self, handles: &Handles, file: FileIndex) {
        if let Some(handle) = handles.get((self.pieces.id, file)) {
            let _ = sys::start_writeback(&handle.file);
        }
    }

    /// Returns the stamp of a file as it is now.
    pub fn stamp(&self, file: FileIndex) -> Stamp {
        let path = self.root.path(&self.locate(file));
        let about = if self.root.is_read_only() { path.metadata() } else { path.symlink_metadata() };
        match about {
            Ok(about) if about.is_file() => {
                self.check_inode(file, &about);
                Stamp::of(&about)
            }
            _ => Stamp::default(),
        }
    }

    fn handle(&self, handles: &Handles, file: FileIndex, write: bool) -> Result<Handle, DiskError> {
        let key = (self.pieces.id, file);
        if let Some(handle) = handles.get(key) {
            if write {
                let sized = handle.file.metadata().and_then(|about| self.resize(file, &handle.file, &about));
                sized.map_err(self.failed("examine", file))?;
            }
            return Ok(handle);
        }
        let opened = self.open(file, write).and_then(|opened| {
            let about = opened.metadata()?;
            if !about.is_file() {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
            }
            self.check_inode(file, &about);
            if self.root.is_read_only() {
                lock(&self.last_stamps).entry(file).or_insert(Stamp::of(&about));
            }
            if write {
                self.resize(file, &opened, &about)?;
            }
            Ok(Handle { in_memory: sys::is_on_tmpfs(&opened)?, file: Arc::new(opened) })
        });
        let handle = opened.map_err(|error| {
            if error.kind() == io::ErrorKind::NotFound {
                self.mark_unverified(file);
            }
            self.failed("open", file)(error)
        })?;
        handles.put(key, handle.clone());
        Ok(handle)
    }

    /// Extends a new file to its whole length, as a hole. If a file has become shorter, something else truncated it,
    /// and our pieces in it must not be read back as zeros.
    fn resize(&self, file: FileIndex, opened: &File, about: &Metadata) -> io::Result<()> {
        let len = self.file(file).len;
        if about.len() == len {
            return Ok(());
        }
        let _turn = lock(&self.resizing);
        let now = opened.metadata()?.len();
        if now == len {
            // Another of our threads was first.
            return Ok(());
        }
        if now > len && !self.root.is_own() {
            return Err(io::Error::other("it is longer than the torrent says, so another program writes to it"));
        }
        self.mark_unverified(file);
        opened.set_len(len)
    }

    /// Marks the pieces of a user's own file as unverified if it changed since its last read.
    fn check_stamp(&self, file: FileIndex, handle: &Handle) -> io::Result<()> {
        if !self.root.is_read_only() {
            return Ok(());
        }
        let now = Stamp::of(&handle.file.metadata()?);
        let before = lock(&self.last_stamps).insert(file, now);
        if before.is_some_and(|before| before != now) {
            self.mark_unverified(file);
        }
        Ok(())
    }

    /// Records a file's inode. A different inode than before means that the file was replaced.
    fn check_inode(&self, file: FileIndex, about: &Metadata) {
        let before = self.inodes[file.index()].swap(about.ino(), SeqCst);
        if before != 0 && before != about.ino() {
            self.mark_unverified(file);
        }
    }

    /// Marks all pieces of a changed file as unverified, so that each is hashed before it is served.
    fn mark_unverified(&self, file: FileIndex) {
        let of_file = self.layout.pieces_of(file);
        let unverified = of_file.filter(|piece| self.pieces.advance(*piece, State::Disk, State::Unverified)).count();
        if unverified > 0 {
            let path = self.path(file);
            tracing::warn!(
                "another program changed {}: its pieces are hashed again before they are served",
                path.display()
            );
        }
    }

    fn failed(&self, action: &'static str, file: FileIndex) -> impl FnOnce(io::Error) -> DiskError {
        let path = self.path(file);
        DiskError::new(action, path)
    }

    #[cfg(not(test))]
    #[inline]
    fn injected_fault(&self, _reading: bool) -> io::Result<()> {
        Ok(())
    }

    #[cfg(test)]
    fn injected_fault(&self, reading: bool) -> io::Result<()> {
        match self.injected_errno.load(std::sync::atomic::Ordering::SeqCst) {
            0 => Ok(()),
            errno if reading && errno != libc::EIO => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}
