//! Attaching to the kernel: checking the mount point, `mount(2)` or `fusermount3`, and detaching again.
//!
//! We mount ourselves and pass the descriptor to fuser, for three reasons: the type in `/proc/mounts` is
//! `fuse.torrentfs`; unchecked text never becomes part of an option string; and fuser never unmounts anything (its own
//! guard may unmount another filesystem that was mounted at the same path meanwhile).
//!
//! The process that attaches need not be the one that serves: see [`keeper`](super::keeper).

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
use super::unmount::{self, ANSWER_LIMIT, ConnectionAbort, UnmountError, is_dead, with_timeout};
use crate::sys;

/// Maximum number of stacked dead mounts to detach before mounting; more than a crash loop leaves in practice.
const MAX_DEAD_MOUNTS: usize = 16;
/// Maximum length of the source name passed to `fusermount3`, in bytes; enough to recognise a torrent by.
const MAX_SOURCE: usize = 128;

/// Options of a mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// Whether all users have access, subject to the file modes.
    pub allow_other: bool,
    /// Whether to forbid executing files.
    pub noexec: bool,
    /// Owner of all files; by default the user who mounts.
    pub uid: Option<u32>,
    /// Group of all files; by default the group of the user who mounts.
    pub gid: Option<u32>,
    /// User and group that own the mount: they have access even without `allow_other`, and may end it. By default those
    /// of the process that mounts.
    pub user: Option<(u32, u32)>,
    /// Permission bits removed from 0444 and 0555.
    pub umask: u16,
    /// Source in `/proc/mounts`, without NUL. `fusermount3` gets it with special characters replaced.
    pub fsname: String,
    /// The kernel's read-ahead, in bytes. Only root can set it; the kernel's default is 128 KiB.
    pub read_ahead: u32,
    /// Maximum size of a read request, in bytes. A request is answered only when all its bytes are here, so a large one
    /// that spans two pieces delays the bytes of the first, and a player may stall. Half the kernel's default of 128
    /// KiB has no measurable cost; smaller sizes have.
    pub max_read: u32,
    /// Number of threads that read requests from the kernel.
    pub threads: usize,
    /// Whether the kernel reads complete files itself, where it can and this process or its keeper may have it do that.
    pub passthrough: bool,
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
            passthrough: true,
        }
    }
}

fn advice(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::NotFound { "; create the directory first" } else { "" }
}

/// An error of mounting.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The mount point does not exist or is not accessible.
    #[error("cannot mount on {}: {source}{}", path.display(), advice(source))]
    MountPoint {
        /// Mount point.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The mount point is not a directory.
    #[error("cannot mount on {}: it is not a directory", .0.display())]
    NotADirectory(PathBuf),
    /// Another torrentfs process serves a mount there.
    #[error("cannot mount on {path}: it is already a torrentfs mount; end that with `torrentfs unmount {path}`", path = .0.display())]
    AlreadyMounted(PathBuf),
    /// There is a torrentfs mount that does not answer.
    #[error(
        "cannot mount on {path}: it is a torrentfs mount that does not answer; end that with `torrentfs unmount {path}`",
        path = .0.display()
    )]
    Hanging(PathBuf),
    /// There is a dead mount of another filesystem.
    #[error(
        "cannot mount on {}: there is a dead mount of type {fstype}; detach it with `umount -l` or `fusermount3 -u -z`",
        path.display()
    )]
    DeadMount {
        /// Mount point.
        path: PathBuf,
        /// Type of the dead mount.
        fstype: String,
    },
    /// A dead mount of ours could not be detached.
    #[error("cannot remove a dead mount: {0}")]
    Clear(#[source] UnmountError),
    /// The kernel or the container has no FUSE.
    #[error(
        "/dev/fuse is missing: load the module (`modprobe fuse`), or give the container access to it (`--device /dev/fuse --cap-add SYS_ADMIN`)"
    )]
    NoDevice,
    /// The FUSE device cannot be opened.
    #[error("cannot open /dev/fuse: {0}")]
    Device(#[source] io::Error),
    /// Mounting without privileges needs a program that is not installed.
    #[error("mounting without root needs fusermount3, which is not installed: install the package fuse3")]
    NoHelper,
    /// The system does not allow `allow_other` to users.
    #[error(
        "allow_other is reserved for root; to allow it to all users, add the line user_allow_other to /etc/fuse.conf"
    )]
    AllowOther,
    /// `fusermount3` failed.
    #[error("cannot mount on {}: {message}", path.display())]
    Helper {
        /// Mount point.
        path: PathBuf,
        /// Its error message.
        message: String,
    },
    /// `mount(2)` failed.
    #[error("cannot mount on {}: mount: {source}", path.display())]
    Mount {
        /// Mount point.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The FUSE session could not be started.
    #[error("cannot serve {}: {source}", path.display())]
    Session {
        /// Mount point.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The new mount does not answer.
    #[error("the new mount on {} does not answer: {source}", path.display())]
    NotAnswering {
        /// Mount point.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The keeper failed; this is its error message.
    #[error("{0}")]
    Keeper(String),
    /// The process to mount for does not exist, or does not wait for a mount.
    #[error("cannot mount for process {pid}: {source}")]
    Server {
        /// Process id.
        pid: u32,
        /// Cause.
        source: io::Error,
    },
    /// The keeper has ended.
    #[error("the keeper process, which mounts and unmounts for this one, has ended: {0}")]
    KeeperGone(#[source] io::Error),
    /// A torrent cannot be added.
    #[error(transparent)]
    Tree(#[from] TreeError),
}

/// An attached mount of ours.
#[derive(Debug)]
pub(super) struct Attached(Mount, ConnectionAbort);

impl Attached {
    /// Mounts on a directory that [`prepare`] has checked. Also returns the descriptor of the FUSE device.
    pub(super) fn new(path: &Path, options: &MountOptions) -> Result<(Self, OwnedFd), MountError> {
        Self::find_after(path, || attach(path, options))
    }

    /// Mounts the device of another process, which will serve it.
    pub(super) fn with(device: OwnedFd, path: &Path, options: &MountOptions) -> Result<Self, MountError> {
        let to_error = |source| MountError::Mount { path: path.to_owned(), source };
        Self::find_after(path, || mount_device(&device, path, options).map_err(to_error)).map(|(attached, ())| attached)
    }

    /// Runs `attach`, then finds the mount that it made.
    fn find_after<T>(path: &Path, attach: impl FnOnce() -> Result<T, MountError>) -> Result<(Self, T), MountError> {
        let before = mountinfo::mount_at(path).ok().flatten().map(|mount| mount.id);
        let device = attach()?;
        // A failure from here on must detach the mount again. It is ours unless it was there before.
        let found = mountinfo::mount_at(path).and_then(|mount| {
            mount.filter(|mount| Some(mount.id) != before && mount.is_torrentfs()).ok_or(io::ErrorKind::NotFound.into())
        });
        let mount = found.map_err(|source| {
            let _ = sys::mount::detach_and_abort(path);
            MountError::NotAnswering { path: path.to_owned(), source }
        })?;
        // The device is open, so the connection exists.
        let connection = ConnectionAbort::of(&mount);
        Ok((Self(mount, connection), device))
    }

    /// Returns the mount point, canonical.
    pub(super) fn path(&self) -> &Path {
        &self.0.path
    }

    /// Returns the device number of the filesystem, major and minor.
    pub(super) fn device(&self) -> (u32, u32) {
        self.0.device
    }

    /// Checks that the mount answers through the kernel, and sets the kernel's read-ahead. Call this once it is served.
    pub(super) fn check(&self, options: &MountOptions) -> Result<(), MountError> {
        let path = self.0.path.clone();
        let answer = with_timeout(ANSWER_LIMIT, move || fs::metadata(path)).flatten().and_then(|root| {
            if root.ino() == ROOT { Ok(()) } else { Err(io::Error::other("another filesystem is mounted there")) }
        });
        answer.map_err(|source| MountError::NotAnswering { path: self.0.path.clone(), source })?;
        let (major, minor) = self.0.device;
        let file = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
        if let Err(error) = fs::write(&file, (options.read_ahead / 1024).to_string()) {
            debug!("cannot set the kernel's read-ahead, its default stays: {file}: {error}");
        }
        Ok(())
    }

    /// Detaches the mount, if it is still there and still ours.
    pub(super) fn detach(&self) -> Result<(), UnmountError> {
        match mountinfo::mount_at(&self.0.path).map_err(UnmountError::MountInfo)? {
            Some(top) if (top.id, top.device) == (self.0.id, self.0.device) => unmount::detach(&self.0, &self.1),
            // It was detached by another process, or something is mounted over it: unmounting by path would be wrong.
            _ => {
                self.1.abort();
                Ok(())
            }
        }
    }
}

/// Checks a mount point, detaches the dead mounts of killed torrentfs processes, and returns its canonical path.
pub fn prepare(mountpoint: &Path) -> Result<PathBuf, MountError> {
    let to_error = |source| MountError::MountPoint { path: mountpoint.to_owned(), source };
    let path = unmount::resolve(mountpoint).map_err(to_error)?;
    for _ in 0..MAX_DEAD_MOUNTS {
        let Some(mount) = mountinfo::mount_at(&path).map_err(to_error)?.filter(Mount::is_torrentfs) else {
            return check_directory(path, to_error);
        };
        // An extended attribute, because the kernel answers `stat` from its cache long after the server died.
        match unmount::attribute(&path, "pid") {
            Err(error) if is_dead(&error) => {
                info!("removing a dead mount on {}", path.display());
                unmount::detach_found(&mount).map_err(MountError::Clear)?;
            }
            Err(error) if error.kind() == io::ErrorKind::TimedOut => return Err(MountError::Hanging(path)),
            // Any other answer comes from a process that serves the mount.
            _ => return Err(MountError::AlreadyMounted(path)),
        }
    }
    Err(to_error(io::Error::other("more than 16 dead mounts are stacked there; detach them with `umount -l`")))
}

fn check_directory(path: PathBuf, to_error: impl Fn(io::Error) -> MountError) -> Result<PathBuf, MountError> {
    let probe = path.clone();
    match with_timeout(ANSWER_LIMIT, move || fs::metadata(probe)).flatten() {
        Ok(directory) if directory.is_dir() => Ok(path),
        Ok(_) => Err(MountError::NotADirectory(path)),
        Err(error) if is_dead(&error) => {
            let fstype =
                mountinfo::mount_at(&path).ok().flatten().map_or_else(|| "fuse".to_owned(), |mount| mount.fstype);
            Err(MountError::DeadMount { path, fstype })
        }
        Err(error) => Err(to_error(error)),
    }
}

/// Returns the device number of the filesystem of a FUSE device, major and minor. Older kernels do not report it.
pub(super) fn device_number(device: &impl AsRawFd) -> Option<(u32, u32)> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", device.as_raw_fd())).ok()?;
    let number: u32 = info.lines().find_map(|line| line.strip_prefix("fuse_connection:"))?.trim().parse().ok()?;
    // The kernel packs them as 12 and 20 bits.
    Some((number >> 20, number & 0xF_FFFF))
}

/// Opens the FUSE device.
pub(super) fn open_device() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open("/dev/fuse")
}

/// Mounts, directly as root or else through `fusermount3`. Returns the descriptor of the FUSE device.
fn attach(path: &Path, options: &MountOptions) -> Result<OwnedFd, MountError> {
    let device = match open_device() {
        Ok(device) => device,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(MountError::NoDevice),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return attach_by_helper(path, options);
        }
        // ENODEV or ENXIO: the device node exists, but the kernel module is not loaded.
        Err(error) => return Err(MountError::Device(error)),
    };
    match mount_device(&device, path, options) {
        Ok(()) => Ok(device.into()),
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => attach_by_helper(path, options),
        Err(source) => Err(MountError::Mount { path: path.to_owned(), source }),
    }
}

/// Mounts an open device with `mount(2)`.
fn mount_device(device: &impl AsRawFd, path: &Path, options: &MountOptions) -> io::Result<()> {
    let (user, group) = options.user.unwrap_or_else(|| (sys::process::user(), sys::process::group()));
    let common = common_options(options);
    let data = format!("fd={},rootmode=40000,user_id={user},group_id={group},{common}", device.as_raw_fd());
    sys::mount::mount_fuse(&options.fsname, path, FSTYPE, &data, options.noexec)
}

/// Returns the options that the kernel and `fusermount3` have in common.
fn common_options(options: &MountOptions) -> String {
    let max_read = options.max_read.max(4096);
    let others = if options.allow_other { ",allow_other" } else { "" };
    format!("max_read={max_read},default_permissions{others}")
}

/// Mounts through `fusermount3`, which is setuid root. It returns the descriptor through a socket, whose number it
/// takes from `_FUSE_COMMFD`: here its standard input.
fn attach_by_helper(path: &Path, options: &MountOptions) -> Result<OwnedFd, MountError> {
    let to_error = |source| MountError::Mount { path: path.to_owned(), source };
    let (source, common) = (source_name(&options.fsname), common_options(options));
    let noexec = if options.noexec { ",noexec" } else { "" };
    let options = format!("ro,nosuid,nodev,noatime,fsname={source},subtype=torrentfs,{common}{noexec}");
    let mut run = None;
    for program in ["fusermount3", "fusermount"] {
        let (ours, theirs) = UnixStream::pair().map_err(to_error)?;
        ours.set_read_timeout(Some(ANSWER_LIMIT)).map_err(to_error)?;
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
            Err(error) => return Err(to_error(error)),
        }
    }
    let (mut child, socket) = run.ok_or(MountError::NoHelper)?;
    let device = sys::descriptors::receive_one(&socket);
    if device.is_err() {
        // `fusermount3` has failed, or hangs.
        let _ = child.kill();
    }
    let mut message = String::new();
    if let Some(stderr) = child.stderr.take() {
        let _ = stderr.take(4096).read_to_string(&mut message);
    }
    let _ = child.wait();
    device.map_err(|error| match message.trim() {
        "" => to_error(io::Error::new(error.kind(), format!("fusermount3: {error}"))),
        text if text.contains("user_allow_other") => MountError::AllowOther,
        text => MountError::Helper { path: path.to_owned(), message: text.to_owned() },
    })
}

/// Returns a name that is safe in a comma-separated list of options.
fn source_name(name: &str) -> String {
    let safe = |c: char| if c.is_ascii_alphanumeric() || "._-+:@".contains(c) { c } else { '_' };
    let name: String = name.chars().map(safe).take(MAX_SOURCE).collect();
    if name.is_empty() { "torrentfs".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_cannot_inject_an_option() {
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
