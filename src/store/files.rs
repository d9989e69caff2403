//! The data files of a torrent: sparse, and created on their first write.
//!
//! Except for the user's own files, every open walks down from the torrent's directory one component at a time and
//! follows no symbolic link, so neither a name nor a planted link leads outside (see `place`). Pad files are not
//! stored, because they are zeros (BEP 47).

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};
use std::fs::{File, Metadata};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock};

use lru::LruCache;

use super::error::StoreError;
use super::health::{DiskError, is_gone};
use super::pieces::Pieces;
use super::place::{Access, Root};
use super::stamps::{Check, Reason, Stamp, Stamps};
use super::substitute;
use crate::metainfo::{self, FileIndex, FileKind, Layout, PieceIndex};
use crate::sys::file as sys;
use crate::util::lock;

/// Limit on open files over all torrents; well below the usual descriptor limit of 1024.
const MAX_OPEN: usize = 128;
/// Length of a write in bytes. For a whole piece of 1 MiB the kernel allocates one huge folio, which took three times
/// as long when measured on a virtual machine, and locks the file meanwhile.
const WRITE_LEN: usize = 128 << 10;

/// Device and number of an inode.
pub(super) type Inode = (u64, u64);

/// The open files of all torrents, by torrent and file.
pub(super) struct Handles {
    open: Mutex<LruCache<(u32, FileIndex), Handle>>,
    /// The user was told that the filesystem cannot free parts of files.
    warned: AtomicBool,
}

#[derive(Clone)]
struct Handle {
    file: Arc<File>,
    /// Whether it may be written to.
    writable: bool,
    in_memory: bool,
}

impl Handles {
    pub fn new() -> Self {
        Self { open: Mutex::new(LruCache::unbounded()), warned: AtomicBool::new(false) }
    }

    fn get(&self, key: (u32, FileIndex)) -> Option<Handle> {
        lock(&self.open).get(&key).cloned()
    }

    fn put(&self, key: (u32, FileIndex), handle: Handle) {
        let old = {
            let mut handles = lock(&self.open);
            handles.put(key, handle);
            if handles.len() > MAX_OPEN { handles.pop_lru() } else { None }
        };
        // Closing is I/O, so it must not happen under the lock.
        drop(old);
    }

    /// Closes one file, which is then opened again by its path.
    fn close_one(&self, key: (u32, FileIndex)) {
        let closed = lock(&self.open).pop(&key);
        drop(closed);
    }

    fn warn_of_no_holes(&self, root: &Root) {
        if !self.warned.swap(true, Relaxed) {
            let dir = root.dir().display();
            tracing::warn!(
                "the filesystem of {dir} cannot free parts of files: the cache may grow beyond its limit, up to the size of its torrents; choose another --cache-dir"
            );
        }
    }

    /// Closes a torrent's files.
    pub fn close(&self, torrent: u32) {
        let mut handles = lock(&self.open);
        let keys: Vec<_> = handles.iter().map(|(key, _)| *key).filter(|key| key.0 == torrent).collect();
        let closed: Vec<_> = keys.iter().filter_map(|key| handles.pop(key)).collect();
        drop(handles);
        drop(closed);
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
    /// Files that are under another name, because the filesystem refuses their own. Holds them with that path.
    renamed: Mutex<HashMap<FileIndex, metainfo::File>>,
    /// Files that would be the same as another one on a filesystem that ignores case.
    twins: HashMap<FileIndex, FileIndex>,
    /// Held while a file is created in a torrent that has such files.
    creating: Mutex<()>,
    /// The other paths of the files of a download.
    portable: OnceLock<HashMap<FileIndex, Vec<String>>>,
    /// The expected state of each file.
    stamps: Stamps,
    /// Existing files in a download directory of which no piece can be hashed, because other files are missing.
    pub undecided: Mutex<HashSet<FileIndex>>,
    /// Makes every write fail with this `errno`, unless it is 0, and every read if it is `EIO`. `EOPNOTSUPP` makes only
    /// punching fail, and `EREMOTEIO` what the kernel does later.
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
            stamps: Stamps::new(layout.files().len()),
            layout,
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

    fn opened_twin(&self, file: FileIndex, opened: &File) -> io::Result<bool> {
        Ok(self.twins.contains_key(&file) && self.is_of_twin(file, &opened.metadata()?))
    }

    /// Opens a file under its own name, or under the other one if the filesystem refuses that.
    pub fn open(&self, file: FileIndex, access: Access) -> io::Result<(File, bool)> {
        let create = access == Access::Create;
        let _turn = (create && !self.twins.is_empty()).then(|| lock(&self.creating));
        // A new file without a twin has another name only if its own is refused.
        let own = if create && !self.twins.contains_key(&file) { self.placed(file) } else { self.locate(file) };
        let error = match self.root.open(&own, access) {
            Ok((opened, _)) if create && matches!(own, Cow::Borrowed(_)) && self.opened_twin(file, &opened)? => {
                // It was created just now, and it is the other file's.
                std::fs::remove_file(self.root.path(&own))?;
                io::ErrorKind::AlreadyExists.into()
            }
            Err(error) if create && substitute::is_refused(&error, true) => error,
            opened => return opened,
        };
        let Some(other) = self.substitute(file).filter(|other| other.path != own.path) else { return Err(error) };
        // The error about its own name says more than that about one which we made up.
        let Ok(opened) = self.root.open(&other, access) else { return Err(error) };
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

    /// Fills `out` with the torrent's bytes from `start` on. Waits for the disk. If another program changed a file, its
    /// pieces are unverified when this returns: the caller looks at the piece's word again.
    pub fn read(&self, handles: &Handles, start: u64, out: &mut [u8]) -> Result<(), DiskError> {
        for (file, at, part) in self.extents(start, out.len()) {
            let out = &mut out[part];
            if self.file(file).is_pad() {
                out.fill(0);
                continue;
            }
            let handle = self.handle(handles, file, Access::Read)?;
            let read = self.injected_fault(Faulty::Read).and_then(|()| handle.file.read_exact_at(out, at));
            read.map_err(|error| {
                if is_gone(&error) {
                    handles.close_one((self.pieces.id, file));
                    self.distrust(file, Reason::Changed);
                }
                self.failed("read", file)(error)
            })?;
            let _ = self.check(handles, file, &handle.file).map_err(self.failed("examine", file))?;
        }
        Ok(())
    }

    /// Compares a file with its stamp. One that another program changed is closed, because it may be another file now.
    fn check(&self, handles: &Handles, file: FileIndex, opened: &File) -> io::Result<Check> {
        let check = self.stamps.check(file, opened, &opened.metadata()?, |reason| self.distrust(file, reason))?;
        if check == Check::Changed {
            handles.close_one((self.pieces.id, file));
        }
        Ok(check)
    }

    /// Opens a file to be read without us. Returns it with its inode, or `None` if it is not exactly as we left it. If another
    /// program changed it, its pieces are unverified when this returns.
    pub fn open_unchanged(&self, handles: &Handles, file: FileIndex) -> Result<Option<(Arc<File>, Inode)>, DiskError> {
        let opened = self.handle(handles, file, Access::Read)?.file;
        let unchanged = self.check(handles, file, &opened).map_err(self.failed("examine", file))? == Check::Unchanged;
        let about = opened.metadata().map_err(self.failed("examine", file))?;
        let whole = self.file(file).is_stored() && about.len() == self.file(file).len && about.nlink() > 0;
        let sound = unchanged && whole && self.stamps.is_steady(file);
        Ok(sound.then(|| (opened, (about.dev(), about.ino()))))
    }

    /// Returns whether no other program's change of a file was noticed lately.
    pub fn is_file_settled(&self, file: FileIndex) -> bool {
        self.stamps.is_settled(file)
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
            self.injected_fault(Faulty::Read)?;
            match sys::read_cached(&handle.file, out, at) {
                Ok(Some(count)) if count == out.len() => {}
                Ok(_) => return Ok(Cached::WouldWait),
                Err(error) if error.kind() == io::ErrorKind::Unsupported && handle.in_memory => {
                    handle.file.read_exact_at(out, at)?;
                }
                Err(error) if error.kind() == io::ErrorKind::Unsupported => return Ok(Cached::WouldWait),
                Err(error) => return Err(error),
            }
            if self.check(handles, file, &handle.file)? == Check::Changed {
                return Ok(Cached::WouldWait);
            }
        }
        Ok(Cached::Read)
    }

    /// Writes the torrent's bytes from `start` on. Bytes of pad files are discarded.
    pub fn write(&self, handles: &Handles, start: u64, bytes: &[u8]) -> Result<(), DiskError> {
        for (file, at, part) in self.extents(start, bytes.len()) {
            if !self.file(file).is_pad() {
                let bytes = &bytes[part];
                let handle = self.handle(handles, file, Access::Create)?;
                self.compare_undecided(file, &handle.file, bytes, at).map_err(self.failed("overwrite", file))?;
                let mut places = (at..).step_by(WRITE_LEN).zip(bytes.chunks(WRITE_LEN));
                let mut write = |(at, part)| {
                    self.change(file, &handle.file, |before| {
                        self.resize(file, &handle.file, before)?;
                        handle.file.write_all_at(part, at)
                    })
                };
                let written = self.injected_fault(Faulty::Write).and_then(|()| places.try_for_each(&mut write));
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
            match self.handle(handles, file, Access::Change) {
                Ok(handle) => {
                    let punch = |_: &Metadata| {
                        self.injected_fault(Faulty::Punch)?;
                        sys::punch_hole(&handle.file, part.start, part.end - part.start)
                    };
                    match self.change(file, &handle.file, punch) {
                        Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                            handles.warn_of_no_holes(&self.root)
                        }
                        punched => punched.map_err(self.failed("free a part of", file))?,
                    }
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
            let synced = File::open(self.root.dir()).and_then(|torrent_dir| sys::sync_filesystem(&torrent_dir));
            return synced.map_err(|error| {
                files.for_each(|file| drop(self.lost(file)));
                DiskError::new("sync", self.root.dir())(error)
            });
        }
        for file in files {
            match self.handle(handles, file, Access::Read) {
                Ok(handle) => handle.file.sync_data().map_err(|error| self.lost(file)(error))?,
                Err(error) if error.is_gone() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Starts writing dirty pages, so that a later sync is short.
    pub fn start_writeback(&self, handles: &Handles, file: FileIndex) {
        if let Some(handle) = handles.get((self.pieces.id, file)) {
            let _ = sys::start_writeback(&handle.file);
        }
    }

    /// Looks for bytes that were written and never reached the disk. The kernel drops them some time, and the file shows
    /// other ones, without a sign in its times.
    pub fn check_writeback(&self, handles: &Handles, file: FileIndex) -> Result<(), DiskError> {
        let Some(handle) = handles.get((self.pieces.id, file)) else { return Ok(()) };
        let failed = sys::check_writeback(&handle.file).and_then(|()| self.injected_fault(Faulty::Writeback));
        failed.map_err(|error| self.lost(file)(error))
    }

    /// Distrusts a file of which written bytes are lost.
    fn lost(&self, file: FileIndex) -> impl FnOnce(io::Error) -> DiskError {
        self.stamps.notice(file);
        self.distrust(file, Reason::Changed);
        self.failed("bring to the disk what was written to", file)
    }

    fn about(&self, file: FileIndex) -> Option<Metadata> {
        let path = self.root.path(&self.locate(file));
        let about = if self.root.is_read_only() { path.metadata() } else { path.symlink_metadata() };
        about.ok().filter(Metadata::is_file)
    }

    /// Returns the stamp of a file as it is now.
    pub fn stamp(&self, file: FileIndex) -> Stamp {
        self.about(file).map_or(Stamp::default(), |about| Stamp::of(&about))
    }

    /// Returns the stamp of a file as it is now, which it must have from now on.
    pub fn examine(&self, file: FileIndex) -> Stamp {
        let Some(about) = self.about(file) else { return Stamp::default() };
        self.stamps.set(file, &about);
        Stamp::of(&about)
    }

    /// Returns the stamp that a file must have; zeros if it was never examined. Other programs may have changed it.
    pub fn expected_stamp(&self, file: FileIndex) -> Stamp {
        self.stamps.expected(file)
    }

    /// Returns whether the files of a piece may be trusted after one hash: no other program is changing them.
    pub fn is_settled(&self, piece: PieceIndex) -> bool {
        self.of_piece(piece).all(|file| self.stamps.is_settled(file))
    }

    fn handle(&self, handles: &Handles, file: FileIndex, access: Access) -> Result<Handle, DiskError> {
        let key = (self.pieces.id, file);
        match handles.get(key) {
            Some(handle) if access == Access::Read => return Ok(handle),
            Some(handle) if handle.writable => {
                let about = handle.file.metadata().map_err(self.failed("examine", file))?;
                // Bytes written to a deleted file would be lost.
                if about.nlink() > 0 {
                    return Ok(handle);
                }
                handles.close_one(key);
            }
            _ => {}
        }
        let opened = self.open(file, access).and_then(|(opened, writable)| {
            let about = opened.metadata()?;
            if !about.is_file() {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
            }
            let _ = self.stamps.check(file, &opened, &about, |reason| self.distrust(file, reason))?;
            Ok(Handle { in_memory: sys::is_on_tmpfs(&opened)?, writable, file: Arc::new(opened) })
        });
        let handle = opened.map_err(|error| {
            if is_gone(&error) {
                self.distrust(file, Reason::Changed);
            }
            self.failed("open", file)(error)
        })?;
        handles.put(key, handle.clone());
        Ok(handle)
    }

    /// Gives a file its whole length before it is written to. A new file becomes a hole. One that another program truncated
    /// does, too, but the stamp then shows the change, so its zeros are not taken for our pieces.
    fn resize(&self, file: FileIndex, opened: &File, before: &Metadata) -> io::Result<()> {
        let len = self.file(file).len;
        match before.len().cmp(&len) {
            Ordering::Equal => Ok(()),
            Ordering::Greater if !self.root.is_own() => {
                Err(io::Error::other("it is longer than the torrent says, so another program writes to it"))
            }
            _ => opened.set_len(len),
        }
    }

    /// Makes an existing file in a download directory the torrent's: cuts off what it has beyond the torrent's length, and
    /// lets it be executed if the torrent says so. Fails if it is not `complete` and cannot be written to.
    pub fn claim(&self, file: FileIndex, complete: bool) -> io::Result<()> {
        let access = if complete { Access::Read } else { Access::Change };
        let (opened, _) = self.open(file, access)?;
        let about = opened.metadata()?;
        let len = self.file(file).len;
        let executable = self.file(file).kind == FileKind::Regular { executable: true } && about.mode() & 0o111 == 0;
        if about.len() <= len && !executable {
            return Ok(());
        }
        self.change(file, &opened, |_| {
            if executable {
                // Some filesystems have no executable bit.
                let _ = sys::make_executable(&opened);
            }
            if about.len() > len { opened.set_len(len) } else { Ok(()) }
        })
    }

    /// Changes a file, which is not a change by another program. `change` gets its metadata before that.
    fn change<T>(
        &self,
        file: FileIndex,
        opened: &File,
        change: impl FnOnce(&Metadata) -> io::Result<T>,
    ) -> io::Result<T> {
        self.stamps.change(file, opened, |reason| self.distrust(file, reason), change)
    }

    /// Marks all pieces of a changed file as unverified, so that each is hashed before it is served.
    fn distrust(&self, file: FileIndex, reason: Reason) {
        let of_file = self.layout.pieces_of(file);
        if of_file.filter(|piece| self.pieces.distrust(*piece, reason == Reason::Changed)).count() > 0 {
            let path = self.path(file);
            tracing::warn!(
                "another program changed {}: its pieces are hashed again before they are served",
                path.display()
            );
        }
    }

    fn failed(&self, action: &'static str, file: FileIndex) -> impl FnOnce(io::Error) -> DiskError {
        DiskError::of_file(action, self.path(file), (self.pieces.id, file))
    }

    /// Keeps the store from changing a file.
    #[cfg(test)]
    pub fn pause_changes(&self, file: FileIndex) -> impl Sized {
        self.stamps.pause(file)
    }

    #[cfg(not(test))]
    #[inline]
    fn injected_fault(&self, _operation: Faulty) -> io::Result<()> {
        Ok(())
    }

    #[cfg(test)]
    fn injected_fault(&self, operation: Faulty) -> io::Result<()> {
        let errno = self.injected_errno.load(std::sync::atomic::Ordering::SeqCst);
        let fails = match operation {
            Faulty::Write => !matches!(errno, 0 | libc::EOPNOTSUPP | libc::EREMOTEIO),
            Faulty::Read => errno == libc::EIO,
            Faulty::Punch => errno == libc::EOPNOTSUPP,
            Faulty::Writeback => errno == libc::EREMOTEIO,
        };
        if fails { Err(io::Error::from_raw_os_error(errno)) } else { Ok(()) }
    }
}

/// An operation that a test can make fail.
#[derive(Clone, Copy)]
enum Faulty {
    Write,
    Read,
    Punch,
    Writeback,
}
