//! What a mount shows, shared by those who answer the kernel and those who add and remove torrents.
//!
//! The kernel keeps names, attributes and listings for as long as it likes, so it is told of each change. Telling takes
//! the lock of the root directory in the kernel, which a look-up holds that waits for us: so it is done with no lock of
//! ours held, and by no thread that answers the kernel. Whatever began before the change is over once that lock was had,
//! and whatever the kernel has kept of it is dropped then; what began later has seen the change.
//!
//! Reads of open files come here never: a change disturbs none.

use std::ffi::OsStr;
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::SystemTime;

use fuser::{INodeNo, Notifier};
use tracing::debug;

use super::attach::MountOptions;
use super::content::Content;
use super::tree::{Branch, ROOT, TreeError};
use super::vfs::{Unused, Vfs, View};
use crate::metainfo::InfoHash;
use crate::sys;

/// The torrents of a mount. Cheap to read; changed seldom.
#[derive(Debug)]
pub struct Shelf<C> {
    vfs: RwLock<Vfs<C>>,
    /// Who is to be told of changes; empty until it is mounted.
    kernel: OnceLock<Notifier>,
}

impl<C: Content> Shelf<C> {
    /// An empty one, to be mounted with these options.
    pub fn new(options: &MountOptions) -> Self {
        let view = View {
            uid: options.uid.unwrap_or_else(sys::process::user),
            gid: options.gid.unwrap_or_else(sys::process::group),
            umask: options.umask & 0o777,
            mounted: SystemTime::now(),
            pid: std::process::id(),
        };
        Self { vfs: RwLock::new(Vfs::new(view)), kernel: OnceLock::new() }
    }

    /// Shows a torrent, or shows one again that was removed. Once it returns every program sees it. Blocking, for some
    /// milliseconds: not for a thread that answers the kernel.
    ///
    /// # Errors
    /// If it is shown already.
    pub fn add(&self, content: Arc<C>) -> Result<(), TreeError> {
        let branch = Branch::new(content.metainfo());
        let changed = self.change().add(content, branch, SystemTime::now())?;
        self.tell(&changed);
        Ok(())
    }

    /// Shows a torrent no longer; its open files go on. Gives what ends with the last of them; `None`: it is not there.
    /// Blocking as [`add`](Self::add).
    pub fn remove(&self, info_hash: InfoHash) -> Option<Unused> {
        let (changed, unused) = self.change().remove(info_hash, SystemTime::now())?;
        self.tell(&changed);
        Some(unused)
    }

    /// Forgets a removed torrent of which no file is open. Whether it did: it may have been opened or shown again.
    pub fn forget(&self, info_hash: InfoHash) -> bool {
        self.change().forget(info_hash)
    }

    /// What a torrent is called in the root; `None`: it is not there.
    pub fn name(&self, info_hash: InfoHash) -> Option<String> {
        self.vfs().tree().name(info_hash).map(str::to_owned)
    }

    /// The torrent that the root shows by this name.
    pub fn find(&self, name: &str) -> Option<InfoHash> {
        let vfs = self.vfs();
        vfs.tree().torrent(vfs.lookup(ROOT, name).ok()?)
    }

    /// As it is now. To be held shortly, and once at a time.
    pub(super) fn vfs(&self) -> RwLockReadGuard<'_, Vfs<C>> {
        self.vfs.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self) -> RwLockWriteGuard<'_, Vfs<C>> {
        self.vfs.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on the kernel is told of changes.
    pub(super) fn mounted(&self, kernel: Notifier) {
        let _ = self.kernel.set(kernel);
    }

    /// Has the kernel ask again for these names in the root, and for its listing.
    fn tell(&self, names: &[Arc<str>]) {
        let Some(kernel) = self.kernel.get() else { return };
        let root = INodeNo(ROOT);
        // Each waits for what is under way in the root, also where the kernel does not know the name. Only then is the
        // listing dropped.
        let told = names.iter().try_for_each(|name| kernel.inval_entry(root, OsStr::new(&**name)));
        if let Err(error) = told.and_then(|()| kernel.inval_inode(root, 0, 0)) {
            debug!("the kernel cannot be told of a change, as after an unmount: {error}");
        }
    }
}
