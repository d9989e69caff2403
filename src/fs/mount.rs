//! The life of our own mount: attaching it, serving it, waiting until the kernel reaches us, ending.
//!
//! The end is one of three: [`Mounted::unmount`], dropping [`Mounted`], or somebody else's `umount`, of which
//! [`Mounted::ended`] tells. Files that are still open do not delay it: the connection is aborted where the kernel allows,
//! and in any case ends with the process.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use fuser::{Config, Session, SessionACL};
use tokio::runtime;
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::{debug, info, warn};

use super::attach::{Attached, MountError, MountOptions, open_device, prepare};
use super::content::Content;
use super::fuse::Fuse;
use super::keeper::Client;
use super::mountinfo;
use super::shelf::Shelf;
use super::unmount::UnmountError;
use crate::sys;

/// How long waiting reads may take to be answered at the end.
const DRAIN_LIMIT: Duration = Duration::from_millis(500);
/// How long somebody else may take to attach.
const ATTACH_LIMIT: Duration = Duration::from_secs(60);
/// How often it is looked whether they have.
const ATTACH_PERIOD: Duration = Duration::from_millis(5);
/// How long the FUSE threads may take to end once the mount is detached.
const JOIN_LIMIT: Duration = Duration::from_secs(1);
/// Who attaches the mount, and takes it away at the end.
pub enum Attacher {
    /// This process.
    Ourselves,
    /// Another one that may.
    Keeper(Client),
    /// Whoever calls [`attach_for`](super::keeper::attach_for), once this has been called; and who does takes the mount
    /// away when this process has ended.
    Other(Box<dyn FnOnce() + Send>),
}

/// By whom it was attached.
#[derive(Debug)]
enum Hold {
    Ours(Attached),
    Kept(Client),
    Others { path: PathBuf, device: Option<(u32, u32)> },
}

impl Hold {
    /// Also the descriptor through which the kernel asks.
    fn new(by: Attacher, mountpoint: &Path, options: &MountOptions) -> Result<(Self, OwnedFd), MountError> {
        match by {
            Attacher::Ourselves => {
                let (attached, device) = Attached::new(&prepare(mountpoint)?, options)?;
                Ok((Self::Ours(attached), device))
            }
            Attacher::Keeper(keeper) => {
                let device = keeper.attach()?;
                Ok((Self::Kept(keeper), device))
            }
            Attacher::Other(ready) => {
                let device = open_device().map_err(MountError::Device)?;
                ready();
                let path = std::path::absolute(mountpoint)
                    .map_err(|source| MountError::MountPoint { path: mountpoint.to_owned(), source })?;
                wait_for_mount(&device).map_err(|source| MountError::NotAnswering { path: path.clone(), source })?;
                let number = number_of(&device);
                Ok((Self::Others { path, device: number }, device.into()))
            }
        }
    }

    fn path(&self) -> &Path {
        match self {
            Self::Ours(attached) => attached.path(),
            Self::Kept(keeper) => keeper.path(),
            Self::Others { path, .. } => path,
        }
    }

    fn check(&self, options: &MountOptions) -> Result<(), MountError> {
        match self {
            Self::Ours(attached) => attached.check(options),
            Self::Kept(keeper) => keeper.check(),
            Self::Others { .. } => Ok(()),
        }
    }

    fn detach(&self) -> Result<(), UnmountError> {
        match self {
            Self::Ours(attached) => attached.detach(),
            Self::Kept(keeper) => keeper.detach(),
            Self::Others { .. } => Ok(()),
        }
    }
}

/// Waits until a device is that of a mount. The kernel has no better way to tell.
fn wait_for_mount(device: &File) -> io::Result<()> {
    let end = Instant::now() + ATTACH_LIMIT;
    while sys::process::is_in_error(device.as_fd())? {
        if Instant::now() > end {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "nobody has attached it"));
        }
        thread::sleep(ATTACH_PERIOD);
    }
    Ok(())
}

/// The device number of the filesystem behind a FUSE device. Older kernels do not tell.
fn number_of(device: &File) -> Option<(u32, u32)> {
    let about = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", device.as_raw_fd())).ok()?;
    let number: u32 = about.lines().find_map(|line| line.strip_prefix("fuse_connection:"))?.trim().parse().ok()?;
    // As the kernel packs them.
    Some((number >> 20, number & 0xF_FFFF))
}

/// A mount that answers. Dropping it unmounts.
#[derive(Debug)]
pub struct Mounted {
    hold: Hold,
    shutdown: watch::Sender<bool>,
    ended: watch::Receiver<bool>,
}

impl Mounted {
    /// Mounts torrents and returns once the mount answers through the kernel.
    ///
    /// Reads that wait run on `runtime`. Blocks for some seconds at worst; not for an async thread.
    pub fn start<C: Content>(
        contents: Vec<Arc<C>>,
        mountpoint: &Path,
        options: &MountOptions,
        runtime: runtime::Handle,
    ) -> Result<Self, MountError> {
        let shelf = Shelf::new(options);
        contents.into_iter().try_for_each(|content| shelf.add(content))?;
        Self::show(Attacher::Ourselves, Arc::new(shelf), mountpoint, options, runtime)
    }

    /// The same with a shelf to which torrents can be added, and from which they can be removed, also later. A keeper
    /// that attaches it has its own mount point and options.
    pub fn show<C: Content>(
        by: Attacher,
        shelf: Arc<Shelf<C>>,
        mountpoint: &Path,
        options: &MountOptions,
        runtime: runtime::Handle,
    ) -> Result<Self, MountError> {
        let (hold, device) = Hold::new(by, mountpoint, options)?;
        let (shutdown, _) = watch::channel(false);
        let fuse = Fuse::new(shelf.clone(), runtime, shutdown.clone());
        let ended = match serve(fuse, &shelf, device, options) {
            Ok(ended) => ended,
            Err(source) => {
                if let Err(error) = hold.detach() {
                    warn!("{error}");
                }
                return Err(MountError::Session { path: hold.path().to_owned(), source });
            }
        };
        let mounted = Self { hold, shutdown, ended };
        mounted.hold.check(options)?;
        info!("mounted on {}", mounted.path().display());
        Ok(mounted)
    }

    /// The mount point, canonical.
    pub fn path(&self) -> &Path {
        self.hold.path()
    }

    /// The device number of the filesystem, major and minor; `None`: it is not known, as it is attached where this
    /// process cannot see it.
    pub fn device(&self) -> Option<(u32, u32)> {
        let listed = || mountinfo::mount_at(self.path()).ok().flatten().filter(|mount| mount.is_torrentfs());
        match self.hold {
            Hold::Others { device, .. } => device,
            Hold::Ours(_) | Hold::Kept(_) => Some(listed()?.device),
        }
    }

    /// Whether the kernel has let go of the mount.
    pub fn is_ended(&self) -> bool {
        *self.ended.borrow()
    }

    /// Waits until the kernel has let go of the mount, by whomever it was unmounted.
    pub async fn ended(&self) {
        // An error means that the serving thread is gone, which is the same.
        let _ = self.ended.clone().wait_for(|ended| *ended).await;
    }

    /// Ends the mount: waiting reads get EIO, open files become useless, the mount point is free. Takes two seconds at
    /// most, but for a hanging `fusermount3`.
    ///
    /// # Errors
    /// If the mount cannot be detached; it is dead all the same once the process ends.
    pub async fn unmount(self) -> Result<(), UnmountError> {
        self.shutdown.send_replace(true);
        if timeout(DRAIN_LIMIT, self.shutdown.closed()).await.is_err() {
            warn!("some reads are still waiting");
        }
        let mut ended = self.ended.clone();
        let detached = tokio::task::spawn_blocking(move || self.detach()).await;
        if timeout(JOIN_LIMIT, ended.wait_for(|ended| *ended)).await.is_err() {
            // Without privileges the kernel keeps it while files are open. It ends with this process.
            debug!("files are still open in the mount");
        }
        detached.unwrap_or(Ok(()))
    }

    /// Takes the mount away, if it is still there and still ours.
    fn detach(&self) -> Result<(), UnmountError> {
        if self.is_ended() { Ok(()) } else { self.hold.detach() }
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

/// Answers the kernel on threads of its own; the receiver turns true when they are done.
fn serve<C: Content>(
    fuse: Fuse<C>,
    shelf: &Shelf<C>,
    device: OwnedFd,
    options: &MountOptions,
) -> io::Result<watch::Receiver<bool>> {
    let mut config = Config::default();
    config.n_threads = Some(options.threads.clamp(1, 64));
    // Each thread opens the device anew; a user who may not had it opened by fusermount3.
    config.clone_fd = open_device().is_ok();
    let acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
    let session = Session::from_fd(fuse, device, acl, config)?;
    shelf.mounted(session.notifier());
    let (ended, ending) = watch::channel(false);
    thread::Builder::new().name("fuse".to_owned()).spawn(move || {
        if let Err(error) = session.run() {
            warn!("the FUSE session failed: {error}");
        }
        ended.send_replace(true);
    })?;
    Ok(ending)
}
