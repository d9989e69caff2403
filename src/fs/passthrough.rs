//! FUSE passthrough: the kernel reads a complete file itself, and sends us no read. It is as fast as the file in the cache, and
//! its bytes are in the page cache once, not twice.
//!
//! To register a file with the kernel takes `CAP_SYS_ADMIN`: this process does it as root, or has its keeper do it. Without
//! either, or on a kernel before 6.9, every file is read as usual.
//!
//! # One mode for each inode
//!
//! The kernel refuses an open (EIO) unless all open handles of an inode are of one kind: ordinary ones, or ones of the same
//! registered file. So an inode that has ordinary handles gets more of these, even once its file is complete. The kernel drops
//! its count of a handle before it tells us, so we may believe in a handle that is gone, but never miss one.
//!
//! # A file that turns out to be damaged
//!
//! We see no read, so we cannot keep an open handle from bytes that another program writes to the file. But the torrent
//! watches the file, and before each further open it is compared with what it was. Once it is damaged, the inode gets another
//! *generation*. When the kernel next looks up the name it finds that out, and:
//!
//! - fails all reads through handles of the old inode (EIO), as after a removal on NFS;
//! - has a new inode of the same number, which is opened as usual: its reads wait until the bad pieces are here again.
//!
//! We make the kernel look the name up at once. An open that comes before is answered with ESTALE, upon which the kernel
//! looks the name up by itself and opens the file again. So no byte that was not verified reaches a reader that opens the
//! file after the damage was noticed. At the end of the mount, too, open handles are made to fail: nobody watches the file
//! any more.
//!
//! # What remains
//!
//! - Until the damage is noticed, open handles get what is in the file. The file is compared every second; if its times have
//!   changed, its pieces are hashed a second later. What stays unseen then is listed in the store's `stamps.rs`.
//! - A memory mapping of the file cannot be taken back.
//! - A handle that outlives its server or a lazy unmount (`umount -l`) still reads the file in the cache. Nothing keeps the next
//!   mount from evicting pieces of it then, which read as zeros.

use std::collections::HashMap;
use std::fs::File;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::OwnedMutexGuard;
use tracing::debug;

use super::content::Reader;
use super::keeper::KeeperClient;
use crate::session::LocalFile;
use crate::sys::passthrough;

/// The process that registers files with the kernel, and the FUSE device.
#[derive(Debug)]
pub(super) enum Registrar {
    /// This process.
    ThisProcess(OwnedFd),
    /// The keeper of this process.
    Keeper(Arc<KeeperClient>, OwnedFd),
}

impl Registrar {
    fn register(&self, file: &File) -> io::Result<u32> {
        match self {
            Self::ThisProcess(device) => passthrough::register(device.as_fd(), file.as_fd()),
            Self::Keeper(keeper, device) => keeper.register(device.as_fd(), file.as_fd()),
        }
    }

    fn unregister(&self, id: u32) {
        let removed = match self {
            Self::ThisProcess(device) => passthrough::unregister(device.as_fd(), id).map_err(|error| error.to_string()),
            Self::Keeper(keeper, device) => keeper.unregister(device.as_fd(), id).map_err(|error| error.to_string()),
        };
        if let Err(error) = removed {
            debug!("cannot remove a file from the kernel's, probably because the mount has ended: {error}");
        }
    }
}

/// A file that is registered with the kernel.
#[derive(Debug)]
struct Registered {
    id: u32,
    registrar: Arc<Registrar>,
    /// Dropped after the file is removed from the kernel's: its pieces may be evicted then.
    local: LocalFile,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.registrar.unregister(self.id);
    }
}

/// The kind of an inode's open handles: all are of one kind, as FUSE demands.
#[derive(Debug, Default)]
enum Mode {
    /// There are none.
    #[default]
    Closed,
    /// We answer their reads.
    Ordinary { handles: usize },
    /// The kernel reads this file.
    Passthrough { file: Arc<Registered>, handles: usize },
}

/// An inode that has open handles, or is being opened.
#[derive(Debug, Default)]
struct Slot {
    /// Never locked while a thread waits for the disk or the keeper.
    mode: Mutex<Mode>,
    /// Held by a thread that opens the inode and may wait, so that there is one at a time.
    turn: Arc<tokio::sync::Mutex<()>>,
    /// Its file is damaged: the inode has another generation now.
    damaged: AtomicBool,
}

/// The generation of an inode that has had a damaged file.
#[derive(Clone, Copy, Debug, Default)]
struct Renewed {
    generation: u64,
    /// The kernel has looked the name up since, so it knows the new inode.
    known: bool,
}

#[derive(Debug, Default)]
struct Table {
    slots: HashMap<u64, Arc<Slot>>,
    /// Only inodes whose generation is not 0.
    renewed: HashMap<u64, Renewed>,
}

/// Makes the kernel look up the name of an inode whose generation has changed. Called on a thread that may block.
pub(super) type LookUp = Box<dyn Fn(u64, Reason) + Send + Sync>;

/// Why an inode has another generation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reason {
    /// Its file in the cache is damaged.
    Damage,
    /// The mount ends, and nobody watches over the file any more.
    Unmount,
}

/// The open inodes of a mount, and how the kernel reads each.
pub(super) struct Passthrough {
    registrar: Arc<Registrar>,
    /// The kernel has refused: there is no use in further tries.
    refused: AtomicBool,
    table: Mutex<Table>,
    runtime: tokio::runtime::Handle,
    look_up: LookUp,
}

impl std::fmt::Debug for Passthrough {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Passthrough({:?})", self.registrar)
    }
}

/// How an open is to be answered.
pub(super) enum Opened {
    /// As an ordinary handle.
    Ordinary(Use),
    /// As a handle of the registered file with this number.
    Passthrough(Use, u32),
    /// With ESTALE: the kernel has to look up the name first.
    Stale,
}

/// An open handle's share in its inode. Dropping it closes the handle.
#[derive(Debug)]
pub(super) struct Use {
    owner: Arc<Passthrough>,
    ino: u64,
    slot: Arc<Slot>,
    /// It is counted in the slot's mode.
    counted: bool,
}

impl Passthrough {
    pub fn new(registrar: Registrar, runtime: tokio::runtime::Handle, look_up: LookUp) -> Arc<Self> {
        let (refused, table) = (AtomicBool::new(false), Mutex::default());
        Arc::new(Self { registrar: Arc::new(registrar), refused, table, runtime, look_up })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the generation of an inode. `looked_up`: it is for the answer to a look-up of its name.
    pub fn generation(&self, ino: u64, looked_up: bool) -> u64 {
        let mut table = self.table();
        let Some(renewed) = table.renewed.get_mut(&ino) else { return 0 };
        renewed.known |= looked_up;
        renewed.generation
    }

    /// Begins to open an inode. Returns `None` if the kernel must look up its name first.
    pub fn begin(self: &Arc<Self>, ino: u64) -> Option<Use> {
        let mut table = self.table();
        if table.renewed.get(&ino).is_some_and(|renewed| !renewed.known) {
            return None;
        }
        let slot = table.slots.entry(ino).or_default().clone();
        Some(Use { owner: self.clone(), ino, slot, counted: false })
    }

    /// Whether a file that is complete is worth a try.
    pub fn is_possible(&self) -> bool {
        !self.refused.load(SeqCst)
    }

    /// Gives an inode another generation, so that the kernel fails the reads of its open handles. Returns false if it has another
    /// one already.
    fn renew(&self, ino: u64, slot: &Arc<Slot>) -> bool {
        slot.damaged.store(true, SeqCst);
        let mut table = self.table();
        if !table.slots.get(&ino).is_some_and(|current| Arc::ptr_eq(current, slot)) {
            return false;
        }
        table.slots.remove(&ino);
        let renewed = table.renewed.entry(ino).or_default();
        *renewed = Renewed { generation: renewed.generation + 1, known: false };
        true
    }

    /// Takes a damaged file away from those who have it open.
    fn revoke(self: &Arc<Self>, ino: u64, slot: &Arc<Slot>) {
        if self.renew(ino, slot) {
            let owner = self.clone();
            self.runtime.spawn_blocking(move || (owner.look_up)(ino, Reason::Damage));
        }
    }

    /// Takes the files away from those who have them open, because the mount ends. Blocks, but not beyond `limit`.
    pub fn end(&self, limit: Duration) {
        let begun = Instant::now();
        self.refused.store(true, SeqCst);
        let slots: Vec<_> = self.table().slots.iter().map(|(ino, slot)| (*ino, slot.clone())).collect();
        for (ino, slot) in slots {
            let is_read_by_kernel = matches!(*slot.lock(), Mode::Passthrough { .. });
            if is_read_by_kernel && begun.elapsed() < limit && self.renew(ino, &slot) {
                (self.look_up)(ino, Reason::Unmount);
            }
        }
    }

    /// Registers a file with the kernel, if it is complete. `None`: it is to be read as usual.
    fn register<R: Reader>(self: &Arc<Self>, reader: &R, ino: u64, slot: &Arc<Slot>) -> Option<Registered> {
        let (owner, damaged) = (Arc::downgrade(self), Arc::downgrade(slot));
        let (local, file) = reader.local_file(Box::new(move || {
            if let (Some(owner), Some(slot)) = (owner.upgrade(), damaged.upgrade()) {
                owner.revoke(ino, &slot);
            }
        }))?;
        match self.registrar.register(&file) {
            Ok(id) => Some(Registered { id, registrar: self.registrar.clone(), local }),
            Err(error) => {
                // These say that this process or this kernel cannot do it at all; others, such as ELOOP for a cache on a stacked
                // filesystem, are about the file.
                if matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENOTTY | libc::ENOSYS)) {
                    self.refused.store(true, SeqCst);
                }
                debug!(ino, "the kernel does not read this file itself: {error}");
                None
            }
        }
    }
}

impl Use {
    /// Opens the inode if that takes no waiting, which is so for an ordinary handle. `complete`: the file may be read by the
    /// kernel.
    pub fn open_now(mut self, complete: bool) -> Result<Self, Self> {
        self.counted = match &mut *self.slot.lock() {
            Mode::Passthrough { .. } => false,
            Mode::Closed if complete => false,
            mode => {
                mode.add_ordinary();
                true
            }
        };
        if self.counted { Ok(self) } else { Err(self) }
    }

    /// Waits until no other thread opens this inode by [`Self::open`].
    pub fn turn(&self) -> impl Future<Output = OwnedMutexGuard<()>> + Send + use<> {
        self.slot.turn.clone().lock_owned()
    }

    /// Opens the inode; it is the turn of this thread. `complete`: the file may be read by the kernel. May wait for the disk.
    pub fn open<R: Reader>(mut self, reader: &R, complete: bool) -> Opened {
        let (owner, slot, ino) = (self.owner.clone(), self.slot.clone(), self.ino);
        let open = match &*slot.lock() {
            Mode::Passthrough { file, .. } => Some(file.clone()),
            Mode::Closed | Mode::Ordinary { .. } => None,
        };
        let file = match open {
            Some(file) if file.local.is_intact() => Some(file),
            Some(_) => {
                owner.revoke(ino, &slot);
                return Opened::Stale;
            }
            None if complete => owner.register(reader, ino, &slot).map(Arc::new),
            None => None,
        };
        if slot.damaged.load(SeqCst) {
            return Opened::Stale;
        }
        self.counted = true;
        let mut mode = slot.lock();
        match (&mut *mode, &file) {
            (Mode::Passthrough { file, handles }, _) => {
                *handles += 1;
                let id = file.id;
                Opened::Passthrough(self, id)
            }
            (Mode::Closed, Some(file)) => {
                *mode = Mode::Passthrough { file: file.clone(), handles: 1 };
                Opened::Passthrough(self, file.id)
            }
            // Others may have opened it meanwhile, as usual.
            (mode, _) => {
                mode.add_ordinary();
                Opened::Ordinary(self)
            }
        }
    }

    /// Whether the kernel reads the file itself. Closing the last such handle may take a while.
    pub fn is_passthrough(&self) -> bool {
        matches!(*self.slot.lock(), Mode::Passthrough { .. })
    }
}

impl Mode {
    /// Adds an ordinary handle, which the mode allows.
    fn add_ordinary(&mut self) {
        match self {
            Self::Ordinary { handles } => *handles += 1,
            Self::Closed | Self::Passthrough { .. } => *self = Self::Ordinary { handles: 1 },
        }
    }
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, Mode> {
        self.mode.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        if self.counted {
            let closed = {
                let mut mode = self.slot.lock();
                let (Mode::Ordinary { handles } | Mode::Passthrough { handles, .. }) = &mut *mode else { return };
                *handles -= 1;
                (*handles == 0).then(|| std::mem::take(&mut *mode))
            };
            // Removed from the kernel's files without the lock.
            drop(closed);
        }
        let mut table = self.owner.table();
        let is_last = |slot: &Arc<Slot>| Arc::ptr_eq(slot, &self.slot) && Arc::strong_count(slot) == 2;
        if table.slots.get(&self.ino).is_some_and(is_last) {
            table.slots.remove(&self.ino);
        }
    }
}
