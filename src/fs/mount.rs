//! The life of our own mount: attaching, serving, waiting until the kernel reaches us, ending.
//!
//! A mount ends by [`Mounted::unmount`], by dropping [`Mounted`], or by a foreign `umount`, which [`Mounted::ended`]
//! reports. Open files do not delay the end: the connection is aborted where the kernel allows it, and ends with the
//! process in any case.
//!
//! After a lazy unmount (`umount -l`) the kernel keeps the connection for as long as a file is open in the mount, so its
//! end says nothing. The list of mounts does: a filesystem that is mounted nowhere any more has ended. The process that
//! attached the mount watches the list of its namespace.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use fuser::{Config, Session, SessionACL};
use tokio::runtime;
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::{debug, info, warn};

use super::attach::{Attached, MountError, MountOptions, device_number, open_device, prepare};
use super::content::Content;
use super::fuse::Fuse;
use super::keeper::KeeperClient;
use super::mounted_torrents::MountedTorrents;
use super::mountinfo::{self, MountTable};
use super::passthrough::{Passthrough, Registrar};
use super::unmount::UnmountError;
use crate::sys;

/// Time limit for answering the waiting reads at the end; they only have to return EIO.
const DRAIN_LIMIT: Duration = Duration::from_millis(500);
/// Time limit for taking away the files that the kernel reads itself; each takes a fraction of a millisecond.
const REVOKE_LIMIT: Duration = Duration::from_millis(500);
/// Time limit for another process to attach the mount: a service manager may first start other steps.
const ATTACH_LIMIT: Duration = Duration::from_secs(60);
/// Interval for polling whether the mount is attached; too short to notice.
const ATTACH_POLL_INTERVAL: Duration = Duration::from_millis(5);
/// Time limit for the FUSE threads to end after the mount is detached; they normally end at once.
const JOIN_LIMIT: Duration = Duration::from_secs(1);

/// The process that attaches a mount, and detaches it at the end.
pub enum Attacher {
    /// This process.
    ThisProcess,
    /// The keeper of this process.
    Keeper(KeeperClient),
    /// Another process, which calls [`attach_for`](super::keeper::attach_for) after this function was called, and
    /// detaches the mount after this process has ended.
    External(Box<dyn FnOnce() + Send>),
}

/// A mount, by the process that attached it.
#[derive(Debug)]
enum Attachment {
    ThisProcess(Attached),
    Keeper(Arc<KeeperClient>),
    External { path: PathBuf, device: Option<(u32, u32)> },
}

impl Attachment {
    /// Attaches a mount. Also returns the descriptor of the FUSE device.
    fn new(by: Attacher, mountpoint: &Path, options: &MountOptions) -> Result<(Self, OwnedFd), MountError> {
        match by {
            Attacher::ThisProcess => {
                let (attached, device) = Attached::new(&prepare(mountpoint)?, options)?;
                Ok((Self::ThisProcess(attached), device))
            }
            Attacher::Keeper(keeper) => {
                let device = keeper.attach()?;
                Ok((Self::Keeper(Arc::new(keeper)), device))
            }
            Attacher::External(ready) => {
                let device = open_device().map_err(MountError::Device)?;
                ready();
                let path = std::path::absolute(mountpoint)
                    .map_err(|source| MountError::MountPoint { path: mountpoint.to_owned(), source })?;
                wait_for_mount(&device).map_err(|source| MountError::NotAnswering { path: path.clone(), source })?;
                let number = device_number(&device);
                Ok((Self::External { path, device: number }, device.into()))
            }
        }
    }

    fn path(&self) -> &Path {
        match self {
            Self::ThisProcess(attached) => attached.path(),
            Self::Keeper(keeper) => keeper.path(),
            Self::External { path, .. } => path,
        }
    }

    /// Returns the device number of the filesystem if this process has to watch for its end. A keeper does that itself;
    /// another process has ended, and the mount may be invisible here.
    fn watched_device(&self) -> Option<(u32, u32)> {
        match self {
            Self::ThisProcess(attached) => Some(attached.device()),
            Self::Keeper(_) => None,
            Self::External { device, .. } => {
                device.filter(|device| MountTable::open().and_then(|table| table.contains(*device)).unwrap_or(false))
            }
        }
    }

    /// Returns the process that can register files with the kernel, so that it reads them itself.
    fn registrar(&self, device: &OwnedFd) -> Option<Registrar> {
        let device = || device.try_clone().ok();
        match self {
            Self::ThisProcess(_) if sys::process::user() == 0 => Some(Registrar::ThisProcess(device()?)),
            Self::Keeper(keeper) => Some(Registrar::Keeper(keeper.clone(), device()?)),
            Self::ThisProcess(_) | Self::External { .. } => None,
        }
    }

    fn check(&self, options: &MountOptions) -> Result<(), MountError> {
        match self {
            Self::ThisProcess(attached) => attached.check(options),
            Self::Keeper(keeper) => keeper.check(),
            Self::External { .. } => Ok(()),
        }
    }

    fn detach(&self) -> Result<(), UnmountError> {
        match self {
            Self::ThisProcess(attached) => attached.detach(),
            Self::Keeper(keeper) => keeper.detach(),
            Self::External { .. } => Ok(()),
        }
    }
}

/// Waits until a device belongs to a mount. Polls, because the kernel sends no event for this.
fn wait_for_mount(device: &File) -> io::Result<()> {
    let end = Instant::now() + ATTACH_LIMIT;
    while sys::process::has_poll_error(device.as_fd())? {
        if Instant::now() > end {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "no process has attached it within 60 s"));
        }
        thread::sleep(ATTACH_POLL_INTERVAL);
    }
    Ok(())
}

/// A mount that works. Dropping it unmounts.
#[derive(Debug)]
pub struct Mounted {
    attachment: Attachment,
    shutdown: watch::Sender<bool>,
    /// Turns true when the kernel has closed the connection.
    ended: watch::Receiver<bool>,
    /// Turns true when the filesystem has left the list of mounts.
    detached: watch::Receiver<bool>,
    passthrough: Option<Arc<Passthrough>>,
}

impl Mounted {
    /// Mounts torrents and returns once the mount answers through the kernel.
    ///
    /// Waiting reads run on `runtime`. Blocks for some seconds at worst, so it must not run on an async thread.
    pub fn start<C: Content>(
        contents: Vec<Arc<C>>,
        mountpoint: &Path,
        options: &MountOptions,
        runtime: runtime::Handle,
    ) -> Result<Self, MountError> {
        let torrents = MountedTorrents::new(options);
        contents.into_iter().try_for_each(|content| torrents.add(content))?;
        Self::serve(Attacher::ThisProcess, Arc::new(torrents), mountpoint, options, runtime)
    }

    /// Mounts like [`start`](Self::start), but torrents can be added and removed later. A keeper uses its own mount
    /// point and options.
    pub fn serve<C: Content>(
        attacher: Attacher,
        torrents: Arc<MountedTorrents<C>>,
        mountpoint: &Path,
        options: &MountOptions,
        runtime: runtime::Handle,
    ) -> Result<Self, MountError> {
        let (attachment, device) = Attachment::new(attacher, mountpoint, options)?;
        let (shutdown, _) = watch::channel(false);
        let registrar = if options.passthrough { attachment.registrar(&device) } else { None };
        let passthrough = registrar.map(|registrar| {
            let (torrents, mountpoint) = (torrents.clone(), attachment.path().to_owned());
            Passthrough::new(
                registrar,
                runtime.clone(),
                Box::new(move |ino, why| torrents.look_up(ino, why, &mountpoint)),
            )
        });
        let fuse = Fuse::new(torrents.clone(), runtime.clone(), shutdown.clone(), passthrough.clone());
        let ended = match spawn_session(fuse, &torrents, device, options) {
            Ok(ended) => ended,
            Err(source) => {
                if let Err(error) = attachment.detach() {
                    warn!("{error}");
                }
                return Err(MountError::Session { path: attachment.path().to_owned(), source });
            }
        };
        // Opened only now, so that the mount is in it if it is in this namespace at all.
        let detached = watch_table(&attachment, &runtime, ended.clone());
        let mounted = Self { attachment, shutdown, ended, detached, passthrough };
        mounted.attachment.check(options)?;
        info!("mounted on {}", mounted.path().display());
        Ok(mounted)
    }

    /// Returns the mount point, canonical.
    pub fn path(&self) -> &Path {
        self.attachment.path()
    }

    /// Returns the device number of the filesystem, major and minor, or `None` if it is unknown because the mount is in
    /// another mount namespace.
    pub fn device(&self) -> Option<(u32, u32)> {
        let listed = || mountinfo::mount_at(self.path()).ok().flatten().filter(|mount| mount.is_torrentfs());
        match self.attachment {
            Attachment::External { device, .. } => device,
            Attachment::ThisProcess(_) | Attachment::Keeper(_) => Some(listed()?.device),
        }
    }

    /// Whether the kernel has closed the connection, because the mount is gone.
    pub fn is_ended(&self) -> bool {
        *self.ended.borrow()
    }

    /// Waits until the mount has ended, by whatever process: the kernel has closed the connection, or the filesystem is
    /// mounted nowhere any more.
    pub async fn ended(&self) {
        let (mut ended, mut detached) = (self.ended.clone(), self.detached.clone());
        // An error of the first means that the serving thread has ended, which is the same.
        tokio::select! {
            _ = ended.wait_for(|ended| *ended) => {}
            Ok(_) = detached.wait_for(|detached| *detached) => {}
        }
    }

    /// Ends the mount: waiting reads get EIO, open files become unusable, the mount point is free. Takes two seconds at
    /// most, unless `fusermount3` hangs.
    ///
    /// # Errors
    /// If the mount cannot be detached. It is dead once the process ends in any case.
    pub async fn unmount(self) -> Result<(), UnmountError> {
        self.shutdown.send_replace(true);
        if timeout(DRAIN_LIMIT, self.shutdown.closed()).await.is_err() {
            warn!("some reads were not answered before the unmount");
        }
        let mut ended = self.ended.clone();
        let detached = tokio::task::spawn_blocking(move || {
            if let Some(passthrough) = self.passthrough.as_ref().filter(|_| !self.is_ended()) {
                passthrough.end(REVOKE_LIMIT);
            }
            self.detach()
        });
        let detached = detached.await;
        if timeout(JOIN_LIMIT, ended.wait_for(|ended| *ended)).await.is_err() {
            // Without privileges the kernel keeps the connection while files are open. It ends with this process.
            debug!("files are still open in the mount");
        }
        detached.unwrap_or(Ok(()))
    }

    /// Detaches the mount, if it is still there and still ours.
    fn detach(&self) -> Result<(), UnmountError> {
        if self.is_ended() { Ok(()) } else { self.attachment.detach() }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.shutdown.send_replace(true);
        if let Err(error) = self.detach() {
            warn!("{error}");
        }
    }
}

/// Watches the list of mounts. The receiver turns true when the filesystem has left it. It closes without that if the
/// connection ends first, or if another process watches because the mount is in its namespace.
fn watch_table(
    attachment: &Attachment,
    runtime: &runtime::Handle,
    mut ended: watch::Receiver<bool>,
) -> watch::Receiver<bool> {
    let (detached, watched) = watch::channel(false);
    let Some(device) = attachment.watched_device() else { return watched };
    runtime.spawn(async move {
        let left = async { MountTable::open()?.left(device).await };
        tokio::select! {
            left = left => match left {
                Ok(()) => drop(detached.send_replace(true)),
                Err(error) => warn!("cannot watch the list of mounts, so `umount -l` would not be noticed: {error}"),
            },
            _ = ended.wait_for(|ended| *ended) => {}
        }
    });
    watched
}

/// Starts threads that answer the kernel. The receiver turns true when they have ended.
fn spawn_session<C: Content>(
    fuse: Fuse<C>,
    torrents: &MountedTorrents<C>,
    device: OwnedFd,
    options: &MountOptions,
) -> io::Result<watch::Receiver<bool>> {
    let mut config = Config::default();
    config.n_threads = Some(options.threads.clamp(1, 64));
    // Each thread opens the device again, unless only `fusermount3` may open it.
    config.clone_fd = open_device().is_ok();
    let acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
    let session = Session::from_fd(fuse, device, acl, config)?;
    torrents.set_notifier(session.notifier());
    let (ended, ending) = watch::channel(false);
    thread::Builder::new().name("fuse".to_owned()).spawn(move || {
        if let Err(error) = session.run() {
            warn!("the FUSE session failed: {error}");
        }
        ended.send_replace(true);
    })?;
    Ok(ending)
}
