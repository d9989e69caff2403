//! The translation between FUSE requests and the [`Vfs`](super::vfs::Vfs). The only policy here is how to answer:
//!
//! - Requests that need no waiting are answered on the FUSE thread. A read that must wait moves its reply into a task,
//!   so the FUSE threads are always free. The kernel bounds the number of tasks: at most [`MAX_BACKGROUND`] read-ahead
//!   requests, plus one read per blocked thread.
//! - Every reply is sent: by the task, at the [`Reader`](super::Reader)'s deadline, at shutdown, or as EIO by fuser's
//!   `Drop` if the task dies.
//! - `FUSE_INTERRUPT` is not handled (fuser answers ENOSYS): a signal kills a program that waits for a cached page at
//!   once. This does not hold for programs that open a file with `O_DIRECT`: see [`callers`](super::callers). Nor with
//!   `FOPEN_DIRECT_IO`, so that flag is never set.
//! - A file handle (`name_to_handle_at`, NFS) stays valid when the kernel drops its caches, and over a new mount: inode
//!   numbers are derived from the info hash, and the kernel finds an inode again by looking up `.` and `..` in it.
//! - The kernel caches attributes, names and pages for long, because the files of a torrent never change.
//! - A complete file is read by the kernel itself where possible: see [`passthrough`](super::passthrough).

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

use super::callers::Callers;
use super::content::{Content, ReadError, Reader};
use super::mounted_torrents::MountedTorrents;
use super::passthrough::{Opened, Passthrough, Use};
use super::tree::{Kind, ROOT};
use super::vfs::{ATTRIBUTE_PREFIX, Attributes, Error, Handle, Vfs};
use crate::sys;

/// Maximum number of read-ahead requests in flight. With the kernel's default of 16, a few blocked files stall all
/// others.
pub const MAX_BACKGROUND: u16 = 512;

/// How long the kernel may cache names and attributes: a day, but any long time would do, because they never change.
const CACHE_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

/// How many filesystems the one of a complete file may be stacked on, plus one: the kernel reads no file of an overlay itself.
/// More would keep this mount from being a layer of an overlay.
const MAX_STACK_DEPTH: u32 = 1;

/// The FUSE server of a mount.
#[derive(Debug)]
pub struct Fuse<C: Content> {
    torrents: Arc<MountedTorrents<C>>,
    runtime: runtime::Handle,
    /// Turns true once, which ends every waiting read. Each of these holds a receiver until it is answered.
    shutdown: watch::Sender<bool>,
    handles: Arc<Handles<C::Reader>>,
    callers: Arc<Callers>,
    /// `None`: the kernel reads no file itself.
    passthrough: Option<Arc<Passthrough>>,
    /// Whether the kernel can open directories without a request.
    kernel_opens_directories: bool,
}

/// The open files by the numbers of their handles.
#[derive(Debug)]
struct Handles<R> {
    files: RwLock<HashMap<u64, Arc<OpenFile<R>>>>,
    next: AtomicU64,
}

#[derive(Debug)]
struct OpenFile<R> {
    /// Dropped first: the torrent may be stopped once the handle is gone.
    inode: Option<Use>,
    handle: Handle<R>,
    /// Whether its last read failed: only the first failure of a series is worth a warning, because one `cat` is many
    /// reads.
    failed: AtomicBool,
}

impl<C: Content> Fuse<C> {
    /// Returns a server whose waiting reads run on `runtime`. They end when `shutdown` turns true, and each holds a
    /// receiver of it until then.
    pub(super) fn new(
        torrents: Arc<MountedTorrents<C>>,
        runtime: runtime::Handle,
        shutdown: watch::Sender<bool>,
        passthrough: Option<Arc<Passthrough>>,
    ) -> Self {
        Self {
            torrents,
            runtime,
            shutdown,
            handles: Arc::new(Handles { files: RwLock::default(), next: AtomicU64::new(1) }),
            callers: Arc::default(),
            passthrough,
            kernel_opens_directories: false,
        }
    }

    /// Returns the generation of an inode: 0, because numbers are never reused, unless its file was damaged. `looked_up`: it is
    /// for the answer to a look-up of its name.
    fn generation(&self, ino: u64, looked_up: bool) -> Generation {
        Generation(self.passthrough.as_ref().map_or(0, |passthrough| passthrough.generation(ino, looked_up)))
    }
}

impl<R> Handles<R> {
    fn add(&self, handle: Handle<R>, inode: Option<Use>) -> FileHandle {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let file = Arc::new(OpenFile { inode, handle, failed: AtomicBool::new(false) });
        self.files.write().unwrap_or_else(PoisonError::into_inner).insert(number, file);
        FileHandle(number)
    }

    fn get(&self, number: FileHandle) -> Option<Arc<OpenFile<R>>> {
        self.files.read().unwrap_or_else(PoisonError::into_inner).get(&number.0).cloned()
    }

    fn remove(&self, number: FileHandle) -> Option<Arc<OpenFile<R>>> {
        self.files.write().unwrap_or_else(PoisonError::into_inner).remove(&number.0)
    }

    /// Answers an open with a handle whose reads we answer.
    fn opened(&self, handle: Handle<R>, inode: Option<Use>, reply: ReplyOpen) {
        let number = self.add(handle, inode);
        reply.opened(number, FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH);
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

/// Returns the attributes of a missing file. The kernel looks only at the inode number 0.
fn missing_attr() -> FileAttr {
    let time = SystemTime::UNIX_EPOCH;
    let none = Attributes { ino: 0, size: 0, blocks: 0, time, permissions: 0, links: 0, uid: 0, gid: 0, block_size: 0 };
    file_attr(&none, FileType::RegularFile)
}

fn errno(error: Error) -> Errno {
    Errno::from_i32(error.errno())
}

/// Replies with an extended attribute: its size if `size` is 0, else its bytes if they fit.
fn reply_xattr(reply: ReplyXattr, size: u32, value: &[u8]) {
    match size as usize {
        // Cannot truncate: values are a few dozen bytes.
        0 => reply.size(value.len() as u32),
        room if room < value.len() => reply.error(Errno::ERANGE),
        _ => reply.data(value),
    }
}

impl<C: Content> Filesystem for Fuse<C> {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // These are optional: an older kernel works without them. FUSE_READDIRPLUS_AUTO is not among them, because it
        // sends a first listing without attributes. The kernel caches that listing, and so would look up every file by
        // itself.
        for capability in [
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_NO_OPENDIR_SUPPORT,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_EXPORT_SUPPORT,
        ] {
            if let Err(lacking) = config.add_capabilities(capability) {
                debug!("the kernel does not support {lacking:?}");
            }
        }
        let stacks = config.set_max_stack_depth(MAX_STACK_DEPTH).is_ok();
        if self.passthrough.is_some() && !(stacks && config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()) {
            debug!("the kernel does not support passthrough");
            self.passthrough = None;
        }
        self.kernel_opens_directories = config.capabilities().contains(InitFlags::FUSE_NO_OPENDIR_SUPPORT);
        let refused = |_| io::Error::other("fuser rejected the limit on background requests");
        config.set_max_background(MAX_BACKGROUND).map_err(refused)?;
        config.set_congestion_threshold(MAX_BACKGROUND / 4 * 3).map_err(refused)?;
        Ok(())
    }

    fn destroy(&mut self) {
        let files = std::mem::take(&mut *self.handles.files.write().unwrap_or_else(PoisonError::into_inner));
        drop(files);
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        // Every name in the tree is UTF-8, so any other name does not exist.
        let vfs = self.torrents.vfs();
        let found = name.to_str().ok_or(Error::NoEntry).and_then(|name| vfs.lookup(parent.0, name));
        match found.and_then(|ino| attr(&vfs, ino)) {
            Ok(attr) => reply.entry(&CACHE_LIFETIME, &attr, self.generation(attr.ino.0, true)),
            // Inode 0 means "missing", and lets the kernel cache that too. Not in the root or in a removed torrent,
            // where the name may appear later.
            Err(Error::NoEntry) if parent.0 != ROOT && vfs.is_shown(parent.0) => {
                reply.entry(&CACHE_LIFETIME, &missing_attr(), Generation(0))
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match attr(&self.torrents.vfs(), ino.0) {
            Ok(attr) => reply.attr(&CACHE_LIFETIME, &attr),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        match self.torrents.vfs().link_target(ino.0) {
            Ok(target) => reply.data(target.as_bytes()),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let opened = self.torrents.vfs().open(ino.0, flags.0);
        let handle = match opened {
            Ok(handle) => handle,
            Err(error) => return reply.error(errno(error)),
        };
        let Some(passthrough) = &self.passthrough else { return self.handles.opened(handle, None, reply) };
        let Some(inode) = passthrough.begin(ino.0) else { return reply.error(Errno::ESTALE) };
        // With `O_DIRECT`, the rules of the cache's filesystem would hold for offsets and lengths.
        let possible = passthrough.is_possible() && flags.0 & libc::O_DIRECT == 0;
        let complete = possible && handle.reader().is_on_disk();
        if possible && !complete {
            handle.reader().verify();
        }
        let inode = match inode.open_now(complete) {
            Ok(inode) => return self.handles.opened(handle, Some(inode), reply),
            Err(inode) => inode,
        };
        let (handles, runtime) = (self.handles.clone(), self.runtime.clone());
        self.runtime.spawn(async move {
            let turn = inode.turn().await;
            runtime.spawn_blocking(move || {
                match inode.open(handle.reader(), complete) {
                    Opened::Ordinary(inode) => handles.opened(handle, Some(inode), reply),
                    Opened::Passthrough(inode, id) => {
                        // Without FOPEN_KEEP_CACHE, because the kernel caches the pages of the file in the cache.
                        let number = handles.add(handle, Some(inode));
                        sys::passthrough::reply(reply, number, FopenFlags::FOPEN_NOFLUSH, id);
                    }
                    Opened::Stale => reply.error(Errno::ESTALE),
                }
                drop(turn);
            });
        });
    }

    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Some(file) = self.handles.get(fh) else { return reply.error(Errno::EBADF) };
        let span = file.handle.span(offset, size);
        if let Some(bytes) = file.handle.read_now(&span) {
            return reply.data(&bytes);
        }
        let mut shutdown = self.shutdown.subscribe();
        let (callers, caller, is_direct) = (self.callers.clone(), request.pid(), flags.0 & libc::O_DIRECT != 0);
        self.runtime.spawn(async move {
            let result = tokio::select! {
                biased;
                // An error means that the server is gone, which also ends the read.
                _ = shutdown.wait_for(|is_down| *is_down) => Err(ReadError::Closed),
                result = file.handle.wait(&span) => result,
                () = callers.interrupted(caller, is_direct) => Err(ReadError::Interrupted),
            };
            match result {
                Ok(bytes) => {
                    file.failed.store(false, Ordering::Relaxed);
                    reply.data(&bytes);
                }
                Err(error) => {
                    match &error {
                        ReadError::Closed | ReadError::Interrupted => {
                            debug!(%ino, offset, size, "read cancelled: {error}")
                        }
                        _ if file.failed.swap(true, Ordering::Relaxed) => {
                            debug!(%ino, offset, size, "read failed: {error}")
                        }
                        _ => warn!(%ino, offset, size, "read failed: {error}"),
                    }
                    reply.error(Errno::from_i32(error.errno()));
                }
            }
            // Dropped only after the reply, because the shutdown waits for it.
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
        // Dropping a reader may take time, so the lock was released before.
        match self.handles.remove(fh) {
            Some(file) if file.inode.as_ref().is_some_and(Use::is_passthrough) => {
                self.runtime.spawn_blocking(move || drop(file));
            }
            file => drop(file),
        }
        reply.ok();
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let checked = self.torrents.vfs().check_directory(ino.0);
        match checked {
            // After ENOSYS the kernel opens all directories by itself, with the same two flags as below.
            Ok(()) if self.kernel_opens_directories => reply.error(Errno::ENOSYS),
            Ok(()) => reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let vfs = self.torrents.vfs();
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
        let vfs = self.torrents.vfs();
        if let Err(error) = vfs.check_directory(ino.0) {
            return reply.error(errno(error));
        }
        for entry in vfs.tree().entries(ino.0, offset) {
            let Ok(attr) = attr(&vfs, entry.ino) else { continue };
            let generation = self.generation(entry.ino, false);
            if reply.add(INodeNo(entry.ino), entry.next, entry.name, &CACHE_LIFETIME, &attr, generation) {
                break;
            }
        }
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let statistics = self.torrents.vfs().statistics();
        let size = statistics.block_size;
        reply.statfs(statistics.blocks, 0, 0, statistics.inodes, 0, size, statistics.max_name, size);
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let value = name
            .to_str()
            .ok_or(Error::NoAttribute)
            .and_then(|name| self.torrents.vfs().extended_attribute(ino.0, name));
        match value {
            Ok(value) => reply_xattr(reply, size, value.as_bytes()),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        match self.torrents.vfs().extended_attributes(ino.0) {
            Ok(names) => {
                let list: String = names.iter().map(|name| format!("{ATTRIBUTE_PREFIX}{name}\0")).collect();
                reply_xattr(reply, size, list.as_bytes());
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    fn access(&self, _: &Request, _: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        // The kernel checks the modes itself (`default_permissions`).
        if mask.contains(AccessFlags::W_OK) { reply.error(Errno::EROFS) } else { reply.ok() }
    }

    fn lseek(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        match self.torrents.vfs().seek(ino.0, offset, whence) {
            Ok(offset) => reply.offset(offset),
            Err(error) => reply.error(errno(error)),
        }
    }

    // Requests that write. The kernel refuses most of them on a read-only mount, but not after `mount -o remount,rw`.

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
