//! The torrents of one mount, shared by the FUSE threads and by the tasks that add and remove torrents.
//!
//! The kernel caches names, attributes and listings, so every change must invalidate them. An invalidation takes the
//! kernel's lock of the root directory. A look-up may hold that lock while it waits for us, so we invalidate without
//! holding a lock of our own, and never on a FUSE thread. Requests that began before the change have finished once the
//! kernel's lock was taken, and their cached results are dropped then; later requests see the change.
//!
//! Programs that watch the root with inotify get no event of a change, because FUSE has no message that raises one.
//! `FUSE_NOTIFY_DELETE` only tells those that watch the removed file itself, and marks its inode as deleted, which would
//! outlast the torrent's return to the root. Programs that poll see the new modification time of the root.
//!
//! Reads of open files never take the lock of this module, so a change does not delay them.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::SystemTime;

use fuser::{INodeNo, Notifier};
use tracing::{debug, warn};

use super::attach::MountOptions;
use super::content::Content;
use super::passthrough::Reason;
use super::tree::{ROOT, Subtree, TreeError};
use super::unmount::{ANSWER_LIMIT, with_timeout};
use super::vfs::{OpenHandles, Vfs, View};
use crate::metainfo::InfoHash;
use crate::sys;

/// The torrents of a mount. Reads are cheap; changes are rare.
#[derive(Debug)]
pub struct MountedTorrents<C> {
    vfs: RwLock<Vfs<C>>,
    /// Invalidates the kernel's caches; unset until the mount is served.
    notifier: OnceLock<Notifier>,
}

impl<C: Content> MountedTorrents<C> {
    /// Returns an empty set, for a mount with these options.
    pub fn new(options: &MountOptions) -> Self {
        let view = View {
            uid: options.uid.unwrap_or_else(sys::process::user),
            gid: options.gid.unwrap_or_else(sys::process::group),
            umask: options.umask & 0o777,
            mounted: SystemTime::now(),
            pid: std::process::id(),
        };
        Self { vfs: RwLock::new(Vfs::new(view)), notifier: OnceLock::new() }
    }

    /// Adds a torrent, or one that was removed before. Every program sees it once this returns.
    ///
    /// Blocks for some milliseconds; must not run on a FUSE thread.
    ///
    /// # Errors
    /// If the torrent is mounted already.
    pub fn add(&self, content: Arc<C>) -> Result<(), TreeError> {
        let subtree = Subtree::new(content.metainfo());
        let changed = self.vfs_mut().add(content, subtree, SystemTime::now())?;
        self.invalidate(&changed);
        Ok(())
    }

    /// Removes a torrent from the root; its open files stay readable. Returns its open handles, or `None` if it is not
    /// mounted.
    ///
    /// Blocks like [`add`](Self::add).
    pub fn remove(&self, info_hash: InfoHash) -> Option<OpenHandles> {
        let (changed, handles) = self.vfs_mut().remove(info_hash, SystemTime::now())?;
        self.invalidate(&changed);
        Some(handles)
    }

    /// Drops a removed torrent whose files are all closed. Returns false if it was opened or added again.
    pub fn forget(&self, info_hash: InfoHash) -> bool {
        self.vfs_mut().forget(info_hash)
    }

    /// Returns the name of a torrent in the root, or `None` if it is not mounted.
    pub fn name(&self, info_hash: InfoHash) -> Option<String> {
        self.vfs().tree().name(info_hash).map(str::to_owned)
    }

    /// Returns the torrent with this name in the root.
    pub fn find(&self, name: &str) -> Option<InfoHash> {
        let vfs = self.vfs();
        vfs.tree().torrent(vfs.lookup(ROOT, name).ok()?)
    }

    /// Locks the filesystem for reading. Hold the guard only briefly, and never two at a time.
    pub(super) fn vfs(&self) -> RwLockReadGuard<'_, Vfs<C>> {
        self.vfs.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn vfs_mut(&self) -> RwLockWriteGuard<'_, Vfs<C>> {
        self.vfs.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes later changes invalidate the kernel's caches.
    pub(super) fn set_notifier(&self, notifier: Notifier) {
        let _ = self.notifier.set(notifier);
    }

    /// Makes the kernel look up an inode by its name, because its generation has changed. Must not run on a FUSE thread.
    pub(super) fn look_up(&self, ino: u64, why: Reason, mountpoint: &Path) {
        let (parent, path) = {
            let vfs = self.vfs();
            let names: Option<PathBuf> = vfs.tree().path(ino).map(|names| names.iter().collect());
            // Files of a removed torrent have no name any more.
            let (Some(parent), Some(path)) = (vfs.tree().parent(ino), names) else { return };
            (parent, path)
        };
        match why {
            Reason::Damage => warn!(
                "{} is damaged in the cache: programs that have it open get I/O errors, those that open it now get the right data",
                path.display()
            ),
            Reason::Unmount => debug!("{} is still open", path.display()),
        }
        let (Some(kernel), Some(name)) = (self.notifier.get(), path.file_name()) else { return };
        if let Err(error) = kernel.inval_entry(INodeNo(parent), name) {
            debug!("cannot invalidate {}, probably because the kernel does not know it: {error}", path.display());
        }
        // The mount may have ended, or be in another namespace: then the next program that opens the file looks it up.
        let path = mountpoint.join(path);
        let _ = with_timeout(ANSWER_LIMIT, move || drop(path.symlink_metadata()));
    }

    /// Invalidates these names in the root, and its listing.
    fn invalidate(&self, names: &[Arc<str>]) {
        let Some(kernel) = self.notifier.get() else { return };
        let root = INodeNo(ROOT);
        // Each call waits for pending requests in the root, even if the kernel does not know the name. Only then may
        // the listing be dropped.
        let done = names.iter().try_for_each(|name| kernel.inval_entry(root, OsStr::new(&**name)));
        if let Err(error) = done.and_then(|()| kernel.inval_inode(root, 0, 0)) {
            debug!("cannot invalidate the kernel's cache of the root, probably because it is unmounted: {error}");
        }
    }
}
