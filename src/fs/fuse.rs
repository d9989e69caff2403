//! From FUSE requests to the [`Vfs`](super::vfs::Vfs), and back. No policy lives here but that of answering:
//!
//! - What can be answered at once is answered on the FUSE thread. A read that must wait takes its reply along into a
//!   task, so that the FUSE threads are always free. The kernel bounds the tasks: at most [`MAX_BACKGROUND`] reads ahead,
//!   and one read for each thread that waits in person.
//! - Every reply is sent: by the task, by its [`Reader`](super::Reader)'s deadline, at shutdown, or (fuser's `Drop`, EIO)
//!   when the task dies.
//! - `FUSE_INTERRUPT` needs no answer (fuser gives ENOSYS): a reader of cached pages dies at once by a signal. That holds
//!   only without `FOPEN_DIRECT_IO`, which is therefore never set.
//! - Attributes, names and pages are cached by the kernel for long, as nothing shown ever changes.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use tokio::runtime;
use tokio::sync::watch;
use tracing::{debug, warn};

use super::content::{Content, ReadError};
use super::shelf::Shelf;
use super::tree::{Kind, ROOT};
use super::vfs::{ATTRIBUTE_PREFIX, Attributes, Error, Handle, Vfs};

/// Reads ahead that the kernel may have waiting at once. With the default of 16, a few blocked files stall all others.
pub const MAX_BACKGROUND: u16 = 512;

/// How long the kernel may believe what it was told: for as long as it likes, nothing ever changes.
const LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

/// Inode numbers are never used for anything else.
const GENERATION: Generation = Generation(0);

/// A [`Shelf`] served to the kernel.
#[derive(Debug)]
pub struct Fuse<C: Content> {
    shelf: Arc<Shelf<C>>,
    runtime: runtime::Handle,
    /// Turns true once, to end every waiting read. Each of those holds a receiver until it is answered.
    shutdown: watch::Sender<bool>,
    handles: RwLock<HashMap<u64, Arc<Opened<C::Reader>>>>,
    next_handle: AtomicU64,
    /// Whether the kernel can open directories without asking.
    kernel_opens_directories: bool,
}

#[derive(Debug)]
struct Opened<R> {
    handle: Handle<R>,
    /// Its last read failed. One `cat` is many reads, and one line of the log is enough.
    failed: AtomicBool,
}

impl<C: Content> Fuse<C> {
    /// Reads that wait become tasks of `runtime`; they end when `shutdown` turns true, and hold a receiver of it till then.
    pub fn new(shelf: Arc<Shelf<C>>, runtime: runtime::Handle, shutdown: watch::Sender<bool>) -> Self {
        Self {
            shelf,
            runtime,
            shutdown,
            handles: RwLock::default(),
            next_handle: AtomicU64::new(1),
            kernel_opens_directories: false,
        }
    }
}

fn attr<C: Content>(vfs: &Vfs<C>, ino: u64) -> Result<FileAttr, Error> {
    let kind = vfs.tree().kind(ino).ok_or(Error::NoEntry)?;
    Ok(file_attr(&vfs.attributes(ino)?, file_type(kind)))
}

fn file_type(kind: &Kind) -> FileType {
    match kind {
        Kind::Directory { .. } => FileType::Directory,
        Kind::File { .. } => FileType::RegularFile,
        Kind::Symlink { .. } => FileType::Symlink,
    }
}

fn file_attr(attributes: &Attributes, kind: FileType) -> FileAttr {
    let Attributes { ino, size, blocks, time, permissions, links, uid, gid, block_size } = *attributes;
    FileAttr {
        ino: INodeNo(ino),
        size,
        blocks,
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind,
        perm: permissions,
        nlink: links,
        uid,
        gid,
        rdev: 0,
        blksize: block_size,
        flags: 0,
    }
}

/// The attributes of what is not there; the kernel looks only at the inode number.
fn nothing() -> FileAttr {
    let time = SystemTime::UNIX_EPOCH;
    let none = Attributes { ino: 0, size: 0, blocks: 0, time, permissions: 0, links: 0, uid: 0, gid: 0, block_size: 0 };
    file_attr(&none, FileType::RegularFile)
}

fn errno(error: Error) -> Errno {
    Errno::from_i32(error.errno())
}

/// Answers an extended attribute: its size, or its bytes if they fit.
fn reply_xattr(reply: ReplyXattr, size: u32, value: &[u8]) {
    match size as usize {
        // Values are a few dozen bytes.
        0 => reply.size(value.len() as u32),
        room if room < value.len() => reply.error(Errno::ERANGE),
        _ => reply.data(value),
    }
}

impl<C: Content> Filesystem for Fuse<C> {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Each is an improvement, none a need: what an older kernel lacks is left out. Not FUSE_READDIRPLUS_AUTO: it lists
        // by names alone what nobody has looked at yet, and the kernel then asks for every file by itself: a listing is
        // cached, and so never comes here a second time.
        for capability in [
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_NO_OPENDIR_SUPPORT,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_CACHE_SYMLINKS,
        ] {
            if let Err(lacking) = config.add_capabilities(capability) {
                debug!("the kernel lacks {lacking:?}");
            }
        }
        self.kernel_opens_directories = config.capabilities().contains(InitFlags::FUSE_NO_OPENDIR_SUPPORT);
        let refused = |_| io::Error::other("the kernel's limits on background requests are not as fuser says");
        config.set_max_background(MAX_BACKGROUND).map_err(refused)?;
        config.set_congestion_threshold(MAX_BACKGROUND / 4 * 3).map_err(refused)?;
        Ok(())
    }

    fn destroy(&mut self) {
        self.handles.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        // Every name shown is UTF-8, so another cannot be there.
        let vfs = self.shelf.vfs();
        let found = name.to_str().ok_or(Error::NoEntry).and_then(|name| vfs.lookup(parent.0, name));
        match found.and_then(|ino| attr(&vfs, ino)) {
            Ok(attr) => reply.entry(&LIFETIME, &attr, GENERATION),
            // Inode 0 is "none", and may be remembered too. Not of the root, nor of a torrent that is removed: both may
            // show more later.
            Err(Error::NoEntry) if parent.0 != ROOT && vfs.is_shown(parent.0) => {
                reply.entry(&LIFETIME, &nothing(), GENERATION)
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match attr(&self.shelf.vfs(), ino.0) {
            Ok(attr) => reply.attr(&LIFETIME, &attr),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        match self.shelf.vfs().link_target(ino.0) {
            Ok(target) => reply.data(target.as_bytes()),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let opened = self.shelf.vfs().open(ino.0, flags.0);
        match opened {
            Ok(handle) => {
                let number = self.next_handle.fetch_add(1, Ordering::Relaxed);
                self.handles
                    .write()
                    .unwrap_or_else(PoisonError::into_inner)
                    .insert(number, Arc::new(Opened { handle, failed: AtomicBool::new(false) }));
                reply.opened(FileHandle(number), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH);
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let handle = self.handles.read().unwrap_or_else(PoisonError::into_inner).get(&fh.0).cloned();
        let Some(opened) = handle else { return reply.error(Errno::EBADF) };
        let len = opened.handle.clip(offset, size);
        if let Some(bytes) = opened.handle.read_now(offset, len) {
            return reply.data(&bytes);
        }
        let mut shutdown = self.shutdown.subscribe();
        self.runtime.spawn(async move {
            let result = tokio::select! {
                biased;
                // An error means that the sender is gone, which is as good as true.
                _ = shutdown.wait_for(|down| *down) => Err(ReadError::Closed),
                result = opened.handle.read(offset, len) => result,
            };
            match result {
                Ok(bytes) => {
                    opened.failed.store(false, Ordering::Relaxed);
                    reply.data(&bytes);
                }
                Err(error) => {
                    match error {
                        ReadError::Closed => debug!(%ino, offset, len, "read ended: {error}"),
                        _ if opened.failed.swap(true, Ordering::Relaxed) => debug!(%ino, offset, len, "{error}"),
                        _ => warn!(%ino, offset, len, "read failed: {error}"),
                    }
                    reply.error(Errno::EIO);
                }
            }
            // Only after the reply: whoever shuts down waits for this.
            drop(shutdown);
        });
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        let handle = self.handles.write().unwrap_or_else(PoisonError::into_inner).remove(&fh.0);
        // The reader's own end may take its time; the lock is free by now.
        drop(handle);
        reply.ok();
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let checked = self.shelf.vfs().check_directory(ino.0);
        match checked {
            // Never asked again: the kernel opens directories by itself from now on, with the same two flags.
            Ok(()) if self.kernel_opens_directories => reply.error(Errno::ENOSYS),
            Ok(()) => reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let vfs = self.shelf.vfs();
        if let Err(error) = vfs.check_directory(ino.0) {
            return reply.error(errno(error));
        }
        for entry in vfs.tree().entries(ino.0, offset) {
            if reply.add(INodeNo(entry.ino), entry.next, file_type(entry.kind), entry.name) {
                break;
            }
        }
        reply.ok();
    }

    fn readdirplus(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let vfs = self.shelf.vfs();
        if let Err(error) = vfs.check_directory(ino.0) {
            return reply.error(errno(error));
        }
        for entry in vfs.tree().entries(ino.0, offset) {
            let Ok(attr) = attr(&vfs, entry.ino) else { continue };
            if reply.add(INodeNo(entry.ino), entry.next, entry.name, &LIFETIME, &attr, GENERATION) {
                break;
            }
        }
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let statistics = self.shelf.vfs().statistics();
        let size = statistics.block_size;
        reply.statfs(statistics.blocks, 0, 0, statistics.inodes, 0, size, statistics.max_name, size);
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let value =
            name.to_str().ok_or(Error::NoAttribute).and_then(|name| self.shelf.vfs().extended_attribute(ino.0, name));
        match value {
            Ok(value) => reply_xattr(reply, size, value.as_bytes()),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        match self.shelf.vfs().extended_attributes(ino.0) {
            Ok(names) => {
                let list: String = names.iter().map(|name| format!("{ATTRIBUTE_PREFIX}{name}\0")).collect();
                reply_xattr(reply, size, list.as_bytes());
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    fn access(&self, _: &Request, _: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        // The kernel checks the modes by itself (`default_permissions`).
        if mask.contains(AccessFlags::W_OK) { reply.error(Errno::EROFS) } else { reply.ok() }
    }

    fn lseek(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        match self.shelf.vfs().seek(ino.0, offset, whence) {
            Ok(offset) => reply.offset(offset),
            Err(error) => reply.error(errno(error)),
        }
    }

    // Whatever would write. A read-only mount refuses most of it in the kernel; after `mount -o remount,rw` it comes here.

    fn setattr(
        &self,
        _: &Request,
        _: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply.error(Errno::EROFS);
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn rmdir(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &Path, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn rename(&self, _: &Request, _: INodeNo, _: &OsStr, _: INodeNo, _: &OsStr, _: RenameFlags, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::EROFS);
    }

    fn setxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: &[u8], _: i32, _: u32, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn create(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        reply.error(Errno::EROFS);
    }

    fn fallocate(&self, _: &Request, _: INodeNo, _: FileHandle, _: u64, _: u64, _: i32, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn copy_file_range(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::EROFS);
    }
}
