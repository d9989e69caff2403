//! Attaching to the kernel: checks of the mount point, `mount(2)` or `fusermount3`, and taking it away again.
//!
//! We mount by ourselves and hand fuser the descriptor: so the type is `fuse.torrentfs` in `/proc/mounts`, no option string
//! of ours is built from unchecked text, and fuser never unmounts anything (its own guard may unmount another filesystem
//! that has come to the same path).
//!
//! Who attaches need not be who serves: see [`keeper`](super::keeper).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tracing::{debug, info};

use super::mountinfo::{self, FSTYPE, Mount};
use super::tree::{ROOT, TreeError};
use super::unmount::{self, ANSWER_LIMIT, UnmountError, is_dead, within};
use crate::sys;

/// How many dead mounts, one upon another, are cleared away before mounting.
const MAX_DEAD: usize = 16;
/// The longest name of the source that passes `fusermount3`, in bytes.
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
    /// Whose mount it is: this user may look also without `allow_other`, and may end it. By default the user who mounts.
    pub user: Option<(u32, u32)>,
    /// Permission bits taken away from 0444 and 0555.
    pub umask: u16,
    /// The source shown in `/proc/mounts`, without NUL; what passes `fusermount3` has its odd characters replaced.
    pub fsname: String,
    /// How far the kernel reads ahead, in bytes. Only root can set it; the kernel's own is 128 KiB.
    pub read_ahead: u32,
    /// The largest single read request, in bytes. A request waits until all of it is there. So of one that spans two pieces
    /// the bytes in the first come only with the second, and a player that was to have them by then stands still. Half as
    /// large as what the kernel would send costs nothing that could be measured; smaller ones do.
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
            user: None,
            umask: 0,
            fsname: "torrentfs".to_owned(),
            read_ahead: 1024 * 1024,
            max_read: 64 * 1024,
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
    /// The process that mounts for us says why not, in words.
    #[error("{0}")]
    Kept(String),
    /// The process to mount for is not there, or is no server of ours.
    #[error("cannot mount for process {pid}: {source}")]
    Server {
        /// The process.
        pid: u32,
        /// Why.
        source: io::Error,
    },
    /// The process that mounts for us cannot be reached.
    #[error("the process that mounts for this one is gone: {0}")]
    KeeperGone(#[source] io::Error),
    /// The torrents cannot be shown together.
    #[error(transparent)]
    Tree(#[from] TreeError),
}

/// A mount of ours in the kernel's list.
#[derive(Debug)]
pub(super) struct Attached(Mount);

impl Attached {
    /// Mounts on a directory that [`prepare`] has checked; also the descriptor through which the kernel asks.
    pub(super) fn new(path: &Path, options: &MountOptions) -> Result<(Self, OwnedFd), MountError> {
        Self::by(path, || attach(path, options))
    }

    /// The same for a process that has the device open already, and is to serve.
    pub(super) fn with(device: OwnedFd, path: &Path, options: &MountOptions) -> Result<Self, MountError> {
        let fault = |source| MountError::Mount { path: path.to_owned(), source };
        Self::by(path, || mount_device(&device, path, options).map_err(fault)).map(|(attached, ())| attached)
    }

    fn by<T>(path: &Path, attach: impl FnOnce() -> Result<T, MountError>) -> Result<(Self, T), MountError> {
        let before = mountinfo::mount_at(path).ok().flatten().map(|mount| mount.id);
        let device = attach()?;
        // From here on a failure must take the mount away again; it is ours if it is not the one from before.
        let found = mountinfo::mount_at(path).and_then(|mount| {
            mount.filter(|mount| Some(mount.id) != before && mount.is_torrentfs()).ok_or(io::ErrorKind::NotFound.into())
        });
        let mount = found.map_err(|source| {
            let _ = sys::mount::detach_and_abort(path);
            MountError::NotAnswering { path: path.to_owned(), source }
        })?;
        Ok((Self(mount), device))
    }

    /// The mount point, canonical.
    pub(super) fn path(&self) -> &Path {
        &self.0.path
    }

    /// To be called once it is served: checks that it answers through the kernel, and sets how far that reads ahead.
    pub(super) fn check(&self, options: &MountOptions) -> Result<(), MountError> {
        let path = self.0.path.clone();
        let answer = within(ANSWER_LIMIT, move || fs::metadata(path)).flatten().and_then(|root| {
            if root.ino() == ROOT { Ok(()) } else { Err(io::Error::other("something else is mounted there")) }
        });
        answer.map_err(|source| MountError::NotAnswering { path: self.0.path.clone(), source })?;
        let (major, minor) = self.0.device;
        let file = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
        if let Err(error) = fs::write(&file, (options.read_ahead / 1024).to_string()) {
            debug!("the kernel's own read-ahead stays: {file}: {error}");
        }
        Ok(())
    }

    /// Takes the mount away, if it is still there and still ours.
    pub(super) fn detach(&self) -> Result<(), UnmountError> {
        match mountinfo::mount_at(&self.0.path).map_err(UnmountError::MountInfo)? {
            Some(top) if (top.id, top.device) == (self.0.id, self.0.device) => unmount::detach(&self.0),
            // Detached by somebody else while files are open, or something is mounted over it: not to be touched by path.
            _ => {
                unmount::abort(&self.0);
                Ok(())
            }
        }
    }
}

/// Checks a mount point, clears away what a killed torrentfs left there, and gives its canonical path.
pub fn prepare(mountpoint: &Path) -> Result<PathBuf, MountError> {
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

pub(super) fn open_device() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open("/dev/fuse")
}

/// Mounts, and gives the descriptor through which the kernel asks. As root directly, else through fusermount3.
fn attach(path: &Path, options: &MountOptions) -> Result<OwnedFd, MountError> {
    let device = match open_device() {
        Ok(device) => device,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(MountError::NoDevice),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return attach_by_helper(path, options);
        }
        // ENODEV, ENXIO: the node is there, the module is not.
        Err(error) => return Err(MountError::Device(error)),
    };
    match mount_device(&device, path, options) {
        Ok(()) => Ok(device.into()),
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => attach_by_helper(path, options),
        Err(source) => Err(MountError::Mount { path: path.to_owned(), source }),
    }
}

/// `mount(2)` of an open device.
fn mount_device(device: &impl AsRawFd, path: &Path, options: &MountOptions) -> io::Result<()> {
    let (user, group) = options.user.unwrap_or_else(|| (sys::process::user(), sys::process::group()));
    let common = common_options(options);
    let data = format!("fd={},rootmode=40000,user_id={user},group_id={group},{common}", device.as_raw_fd());
    sys::mount::mount_fuse(&options.fsname, path, FSTYPE, &data, options.noexec)
}

/// What the kernel and fusermount3 both take.
fn common_options(options: &MountOptions) -> String {
    let max_read = options.max_read.max(4096);
    let others = if options.allow_other { ",allow_other" } else { "" };
    format!("max_read={max_read},default_permissions{others}")
}

/// fusermount3 mounts with the rights that it has, and passes the descriptor back through a socket: its standard input,
/// named by `_FUSE_COMMFD`.
fn attach_by_helper(path: &Path, options: &MountOptions) -> Result<OwnedFd, MountError> {
    let fault = |source| MountError::Mount { path: path.to_owned(), source };
    let (source, common) = (source_name(&options.fsname), common_options(options));
    let noexec = if options.noexec { ",noexec" } else { "" };
    let options = format!("ro,nosuid,nodev,noatime,fsname={source},subtype=torrentfs,{common}{noexec}");
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
