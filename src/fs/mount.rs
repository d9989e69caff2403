//! The life of our own mount: checking the mount point, mounting, waiting until the kernel reaches us, ending.
//!
//! We mount by ourselves and hand fuser the descriptor: so the type is `fuse.torrentfs` in `/proc/mounts`, no option string
//! of ours is built from unchecked text, and fuser never unmounts anything (its own guard may unmount another filesystem
//! that has come to the same path).
//!
//! The end is one of three: [`Mounted::unmount`], dropping [`Mounted`], or somebody else's `umount`, of which
//! [`Mounted::ended`] tells. Files that are still open do not delay it: the connection is aborted where the kernel allows,
//! and in any case ends with the process.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use fuser::{Config, Session, SessionACL};
use tokio::runtime;
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::{debug, info, warn};

use super::content::Content;
use super::fuse::Fuse;
use super::mountinfo::{self, FSTYPE, Mount};
use super::shelf::Shelf;
use super::tree::{ROOT, TreeError};
use super::unmount::{self, ANSWER_LIMIT, UnmountError, is_dead, within};
use crate::sys;

/// How long waiting reads may take to be answered at the end.
const DRAIN_LIMIT: Duration = Duration::from_millis(500);
/// How long the FUSE threads may take to end once the mount is detached.
const JOIN_LIMIT: Duration = Duration::from_secs(1);
/// How many dead mounts, one upon another, are cleared away before mounting.
const MAX_DEAD: usize = 16;
/// The longest name of the source shown in `/proc/mounts`, in bytes.
const MAX_SOURCE: usize = 128;

/// How to mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// Let every user in, as the file modes say.
    pub allow_other: bool,
    /// No file may be executed.
    pub noexec: bool,
    /// The owner of everything; by default the user who mounts.
    pub uid: Option<u32>,
    /// The group of everything; by default the group of the user who mounts.
    pub gid: Option<u32>,
    /// Permission bits taken away from 0444 and 0555.
    pub umask: u16,
    /// The source shown in `/proc/mounts`.
    pub fsname: String,
    /// How far the kernel reads ahead, in bytes. Only root can set it; the kernel's own is 128 KiB.
    pub read_ahead: u32,
    /// The largest single read request, in bytes. A request waits until all of it is there, so a large one delays the
    /// first bytes after a seek; a small one costs time when everything is there.
    pub max_read: u32,
    /// Threads that take requests from the kernel.
    pub threads: usize,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            allow_other: false,
            noexec: false,
            uid: None,
            gid: None,
            umask: 0,
            fsname: "torrentfs".to_owned(),
            read_ahead: 1024 * 1024,
            max_read: 128 * 1024,
            threads: 2,
        }
    }
}

fn advice(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::NotFound { "; make the directory first" } else { "" }
}

/// Why there is no mount.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The mount point is not there or cannot be reached.
    #[error("cannot mount on {}: {source}{}", path.display(), advice(source))]
    MountPoint {
        /// The mount point.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The mount point is no directory.
    #[error("cannot mount on {}: it is not a directory", .0.display())]
    NotADirectory(PathBuf),
    /// Another torrentfs serves it.
    #[error("{path} is already a torrentfs mount; end it with `torrentfs unmount {path}`", path = .0.display())]
    AlreadyMounted(PathBuf),
    /// A torrentfs mount that does not answer.
    #[error("{path} is a torrentfs mount that does not answer; end it with `torrentfs unmount {path}`", path = .0.display())]
    Hanging(PathBuf),
    /// A dead mount that is not ours to clear away.
    #[error("{} is a dead mount of type {fstype}; clear it with `umount -l` or `fusermount3 -u -z`", path.display())]
    DeadMount {
        /// The mount point.
        path: PathBuf,
        /// What was there.
        fstype: String,
    },
    /// A dead mount of ours could not be cleared away.
    #[error("a dead mount is in the way: {0}")]
    Clear(#[source] UnmountError),
    /// The kernel has no FUSE, or the container does not.
    #[error(
        "/dev/fuse is missing: load the module (`modprobe fuse`), or give the container the device (`--device /dev/fuse --cap-add SYS_ADMIN`)"
    )]
    NoDevice,
    /// The FUSE device refuses to open.
    #[error("cannot open /dev/fuse: {0}")]
    Device(#[source] io::Error),
    /// Mounting without privileges takes a helper that is not there.
    #[error("mounting without root needs fusermount3, which is not installed: install the package fuse3")]
    NoHelper,
    /// The system's administrator has not allowed it.
    #[error("allow_other is for root only, unless /etc/fuse.conf has the line user_allow_other")]
    AllowOther,
    /// The helper refused.
    #[error("cannot mount on {}: {message}", path.display())]
    Helper {
        /// The mount point.
        path: PathBuf,
        /// What it said.
        message: String,
    },
    /// The kernel refused.
    #[error("cannot mount on {}: mount: {source}", path.display())]
    Mount {
        /// The mount point.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel and fuser did not agree.
    #[error("cannot serve {}: {source}", path.display())]
    Session {
        /// The mount point.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It was mounted, but cannot be reached.
    #[error("{} was mounted but does not answer: {source}", path.display())]
    NotAnswering {
        /// The mount point.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The torrents cannot be shown together.
    #[error(transparent)]
    Tree(#[from] TreeError),
}

/// A mount that answers. Dropping it unmounts.
#[derive(Debug)]
pub struct Mounted {
    mount: Mount,
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
        Self::show(Arc::new(shelf), mountpoint, options, runtime)
    }

    /// The same with a shelf to which torrents can be added, and from which they can be removed, also later.
    pub fn show<C: Content>(
        shelf: Arc<Shelf<C>>,
        mountpoint: &Path,
        options: &MountOptions,
        runtime: runtime::Handle,
    ) -> Result<Self, MountError> {
        let path = prepare(mountpoint)?;
        let before = mountinfo::mount_at(&path).ok().flatten().map(|mount| mount.id);
        let device = attach(&path, options)?;
        // From here on a failure must take the mount away again; it is ours if it is not the one from before.
        let found = mountinfo::mount_at(&path).and_then(|mount| {
            mount.filter(|mount| Some(mount.id) != before && mount.is_torrentfs()).ok_or(io::ErrorKind::NotFound.into())
        });
        let mount = found.map_err(|source| {
            let _ = sys::mount::detach_and_abort(&path);
            MountError::NotAnswering { path: path.clone(), source }
        })?;
        let (shutdown, _) = watch::channel(false);
        let fuse = Fuse::new(shelf.clone(), runtime, shutdown.clone());
        let ended = match serve(fuse, &shelf, device, options) {
            Ok(ended) => ended,
            Err(source) => {
                if let Err(error) = unmount::detach(&mount) {
                    warn!("{error}");
                }
                return Err(MountError::Session { path, source });
            }
        };
        let mounted = Self { mount, shutdown, ended };
        mounted.check_answer()?;
        mounted.set_read_ahead(options.read_ahead);
        info!("mounted on {}", path.display());
        Ok(mounted)
    }

    /// The mount point, canonical.
    pub fn path(&self) -> &Path {
        &self.mount.path
    }

    /// The device number of the filesystem, major and minor.
    pub fn device(&self) -> (u32, u32) {
        self.mount.device
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
        if self.is_ended() {
            return Ok(());
        }
        match mountinfo::mount_at(&self.mount.path).map_err(UnmountError::MountInfo)? {
            Some(top) if (top.id, top.device) == (self.mount.id, self.mount.device) => unmount::detach(&self.mount),
            // Detached by somebody else while files are open, or something is mounted over it: not to be touched by path.
            _ => {
                unmount::abort(&self.mount);
                Ok(())
            }
        }
    }

    fn check_answer(&self) -> Result<(), MountError> {
        let path = self.mount.path.clone();
        let answer = within(ANSWER_LIMIT, move || fs::metadata(path)).flatten().and_then(|root| {
            if root.ino() == ROOT { Ok(()) } else { Err(io::Error::other("something else is mounted there")) }
        });
        answer.map_err(|source| MountError::NotAnswering { path: self.mount.path.clone(), source })
    }

    fn set_read_ahead(&self, bytes: u32) {
        let (major, minor) = self.mount.device;
        let file = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
        if let Err(error) = fs::write(&file, (bytes / 1024).to_string()) {
            debug!("the kernel's own read-ahead stays: {file}: {error}");
        }
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

/// Checks a mount point, clears away what a killed torrentfs left there, and gives its canonical path.
fn prepare(mountpoint: &Path) -> Result<PathBuf, MountError> {
    let fault = |source| MountError::MountPoint { path: mountpoint.to_owned(), source };
    let path = unmount::resolve(mountpoint).map_err(fault)?;
    for _ in 0..MAX_DEAD {
        let Some(mount) = mountinfo::mount_at(&path).map_err(fault)?.filter(Mount::is_torrentfs) else {
            return check_directory(path, fault);
        };
        // Not `stat`: the kernel answers that from its cache long after the server has died.
        match unmount::attribute(&path, "pid") {
            Err(error) if is_dead(&error) => {
                info!("clearing away a dead mount on {}", path.display());
                unmount::detach(&mount).map_err(MountError::Clear)?;
            }
            Err(error) if error.kind() == io::ErrorKind::TimedOut => return Err(MountError::Hanging(path)),
            // Whatever it answers, somebody serves it.
            _ => return Err(MountError::AlreadyMounted(path)),
        }
    }
    Err(fault(io::Error::other("too many dead mounts lie upon each other")))
}

fn check_directory(path: PathBuf, fault: impl Fn(io::Error) -> MountError) -> Result<PathBuf, MountError> {
    let probe = path.clone();
    match within(ANSWER_LIMIT, move || fs::metadata(probe)).flatten() {
        Ok(directory) if directory.is_dir() => Ok(path),
        Ok(_) => Err(MountError::NotADirectory(path)),
        Err(error) if is_dead(&error) => {
            let fstype =
                mountinfo::mount_at(&path).ok().flatten().map_or_else(|| "fuse".to_owned(), |mount| mount.fstype);
            Err(MountError::DeadMount { path, fstype })
        }
        Err(error) => Err(fault(error)),
    }
}

fn open_device() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open("/dev/fuse")
}

/// Mounts, and gives the descriptor through which the kernel asks. As root directly, else through fusermount3.
fn attach(path: &Path, options: &MountOptions) -> Result<OwnedFd, MountError> {
    let source = source_name(&options.fsname);
    let max_read = options.max_read.max(4096);
    let mut common = format!("max_read={max_read},default_permissions");
    if options.allow_other {
        common.push_str(",allow_other");
    }
    // A flag of mount(2), an option of the helper.
    let helper = format!("{common}{}", if options.noexec { ",noexec" } else { "" });
    let device = match open_device() {
        Ok(device) => device,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(MountError::NoDevice),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return attach_by_helper(path, &source, &helper);
        }
        // ENODEV, ENXIO: the node is there, the module is not.
        Err(error) => return Err(MountError::Device(error)),
    };
    let (user, group) = (sys::process::user(), sys::process::group());
    let data = format!("fd={},rootmode=40000,user_id={user},group_id={group},{common}", device.as_raw_fd());
    match sys::mount::mount_fuse(&source, path, FSTYPE, &data, options.noexec) {
        Ok(()) => Ok(device.into()),
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => attach_by_helper(path, &source, &helper),
        Err(source) => Err(MountError::Mount { path: path.to_owned(), source }),
    }
}

/// fusermount3 mounts with the rights that it has, and passes the descriptor back through a socket: its standard input,
/// named by `_FUSE_COMMFD`.
fn attach_by_helper(path: &Path, source: &str, common: &str) -> Result<OwnedFd, MountError> {
    let fault = |source| MountError::Mount { path: path.to_owned(), source };
    let options = format!("ro,nosuid,nodev,noatime,fsname={source},subtype=torrentfs,{common}");
    let mut run = None;
    for program in ["fusermount3", "fusermount"] {
        let (ours, theirs) = UnixStream::pair().map_err(fault)?;
        ours.set_read_timeout(Some(ANSWER_LIMIT)).map_err(fault)?;
        let child = Command::new(program)
            .args(["-o", &options, "--"])
            .arg(path)
            .env("_FUSE_COMMFD", "0")
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        match child {
            Ok(child) => {
                run = Some((child, ours));
                break;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(fault(error)),
        }
    }
    let (mut child, socket) = run.ok_or(MountError::NoHelper)?;
    let device = sys::mount::receive_descriptor(&socket);
    if device.is_err() {
        // It has failed already, or hangs.
        let _ = child.kill();
    }
    let mut message = String::new();
    if let Some(stderr) = child.stderr.take() {
        let _ = stderr.take(4096).read_to_string(&mut message);
    }
    let _ = child.wait();
    device.map_err(|error| match message.trim() {
        "" => fault(io::Error::new(error.kind(), format!("fusermount3: {error}"))),
        text if text.contains("user_allow_other") => MountError::AllowOther,
        text => MountError::Helper { path: path.to_owned(), message: text.to_owned() },
    })
}

/// A name that is safe in a list of options, whatever parses it.
fn source_name(name: &str) -> String {
    let safe = |c: char| if c.is_ascii_alphanumeric() || "._-+:@".contains(c) { c } else { '_' };
    let name: String = name.chars().map(safe).take(MAX_SOURCE).collect();
    if name.is_empty() { "torrentfs".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_injects_no_option() {
        assert_eq!(source_name("a,allow_other\\,b c"), "a_allow_other__b_c");
        assert_eq!(source_name(""), "torrentfs");
        assert_eq!(source_name(&"ß".repeat(500)).len(), MAX_SOURCE);
    }

    #[test]
    fn a_mount_point_must_be_a_directory() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        fs::write(&file, "x").unwrap();
        assert!(matches!(prepare(&file), Err(MountError::NotADirectory(_))));
        let missing = prepare(&directory.path().join("missing")).unwrap_err();
        assert!(missing.to_string().contains("No such file"), "{missing}");
        assert_eq!(prepare(directory.path()).unwrap(), directory.path().canonicalize().unwrap());
    }
}
