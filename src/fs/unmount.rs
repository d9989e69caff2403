//! Ending a mount from outside, by its path, and the steps shared with ending our own.
//!
//! We ask the process that serves a mount to end it, so that it can answer waiting reads, save its state and announce
//! its departure to trackers. `user.torrentfs.pid` names the process; we verify it, send SIGTERM and wait. If that is
//! not possible (the process is dead, hangs, or belongs to another user), we detach the mount.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use super::mountinfo::{self, Mount};
use super::vfs::ATTRIBUTE_PREFIX;
use crate::sys;
use crate::sys::process::Process;

/// Time limit for a request that needs no network, and so normally takes a millisecond.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Time limit for a process to unmount after SIGTERM, before we detach the mount ourselves.
const UNMOUNT_LIMIT: Duration = Duration::from_secs(5);
/// Time limit for the process to end after the mount is gone: it contacts trackers and writes its cache.
const END_LIMIT: Duration = Duration::from_secs(15);
/// Interval for polling the list of mounts; too short to notice.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// An error of unmounting.
#[derive(Debug, thiserror::Error)]
pub enum UnmountError {
    /// The path cannot be resolved.
    #[error("cannot unmount {}: {source}", path.display())]
    Path {
        /// Path to unmount.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// No filesystem is mounted there.
    #[error("{} is not a mount point, or not any more; `findmnt -t fuse.torrentfs` lists the torrentfs mounts", .0.display())]
    NotMounted(PathBuf),
    /// Another filesystem is mounted there.
    #[error("{} is not a torrentfs mount but one of type {fstype}; use umount instead", path.display())]
    NotOurs {
        /// Mount point.
        path: PathBuf,
        /// Type of that filesystem.
        fstype: String,
    },
    /// The mount could not be detached.
    #[error("cannot unmount {}: {reason}", path.display())]
    Detach {
        /// Mount point.
        path: PathBuf,
        /// Cause.
        reason: String,
    },
    /// The mount is gone, but the process still runs.
    #[error("{} is unmounted, but its process {pid} has not ended yet", path.display())]
    StillRunning {
        /// Mount point.
        path: PathBuf,
        /// Process that served the mount.
        pid: u32,
    },
    /// The kernel's list of mounts cannot be read.
    #[error("cannot read /proc/self/mountinfo: {0}")]
    MountInfo(#[source] io::Error),
}

/// Ends the torrentfs mount at a path and waits until its process has ended. Detaches a dead mount.
///
/// Blocks for half a minute at most, so it must not run on an async thread.
pub fn unmount_path(path: &Path) -> Result<(), UnmountError> {
    let path = resolve(path).map_err(|source| UnmountError::Path { path: path.to_owned(), source })?;
    let at = || mountinfo::mount_at(&path).map_err(UnmountError::MountInfo);
    let Some(mount) = at()? else { return Err(UnmountError::NotMounted(path)) };
    if !mount.is_torrentfs() {
        return Err(UnmountError::NotOurs { path, fstype: mount.fstype });
    }
    let server = find_server(&mount).filter(|(pid, _)| *pid != std::process::id());
    let is_mounted = || at().map(|now| now.is_some_and(|now| now.id == mount.id));
    if let Some((pid, process)) = &server {
        if let Err(error) = process.terminate() {
            debug!("cannot send SIGTERM to process {pid}: {error}");
        } else {
            let limit = Instant::now() + UNMOUNT_LIMIT;
            while is_mounted()? && Instant::now() < limit && !process.wait(POLL_INTERVAL).unwrap_or(true) {}
        }
    }
    // The process did not unmount, or it died of the signal and left a dead mount.
    if is_mounted()? {
        detach_found(&mount)?;
    }
    match server {
        Some((pid, process)) if !process.wait(END_LIMIT).unwrap_or(true) => {
            Err(UnmountError::StillRunning { path, pid })
        }
        _ => Ok(()),
    }
}

/// Reads one of our extended attributes (`name` without its prefix) of a file in a mount, with a time limit.
pub fn attribute(path: &Path, name: &str) -> io::Result<String> {
    let (path, name) = (path.to_owned(), format!("{ATTRIBUTE_PREFIX}{name}"));
    let value = with_timeout(ANSWER_LIMIT, move || sys::mount::extended_attribute(&path, &name))?;
    String::from_utf8(value?).map_err(io::Error::other)
}

/// Returns the process that serves a mount, as the mount reports it.
///
/// The process must belong to the user who mounted, and have the FUSE device open. Otherwise a malicious mount could
/// make us end any process.
fn find_server(mount: &Mount) -> Option<(u32, Process)> {
    let pid: u32 = match attribute(&mount.path, "pid") {
        Ok(pid) => pid.parse().ok()?,
        Err(error) => {
            debug!("cannot read the process id of {}: {error}", mount.path.display());
            return None;
        }
    };
    // Open the process before checking it, so that its id cannot be reused in between.
    let process = Process::open(pid).ok()?;
    let is_server = serves(pid, mount);
    if !is_server {
        warn!("ignoring process {pid}: {} names it as its server, but it is not", mount.path.display());
    }
    is_server.then_some((pid, process))
}

/// Whether a process can be the server of a mount.
fn serves(pid: u32, mount: &Mount) -> bool {
    let owner = fs::metadata(format!("/proc/{pid}")).map(|process| process.uid()).ok();
    if owner.is_none() || owner != mount.owner() {
        return false;
    }
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    descriptors.flatten().any(|entry| fs::read_link(entry.path()).is_ok_and(|file| file == Path::new("/dev/fuse")))
}

/// Detaches a mount and aborts its connection, even if files are open in it. Without privileges it does what
/// `fusermount3` and the kernel allow to the owner. The caller must have checked that the mount is the topmost at its
/// path.
pub(super) fn detach(mount: &Mount, connection: &ConnectionAbort) -> Result<(), UnmountError> {
    let detached = match sys::mount::detach_and_abort(&mount.path) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => detach_by_helper(&mount.path),
        other => other.map_err(|error| error.to_string()),
    };
    // Detaching alone keeps the connection alive while files are open.
    connection.abort();
    detached.map_err(|reason| UnmountError::Detach { path: mount.path.clone(), reason })
}

/// Detaches a mount that was found in the list of mounts, unless it has left the list since then.
pub(super) fn detach_found(mount: &Mount) -> Result<(), UnmountError> {
    let connection = ConnectionAbort::of(mount);
    let now = mountinfo::mount_at(&mount.path).map_err(UnmountError::MountInfo)?;
    if now.is_some_and(|now| (now.id, now.device) == (mount.id, mount.device)) {
        detach(mount, &connection)?;
    }
    Ok(())
}

/// The file by which the kernel aborts the connection of one mount (`abort` in the fusectl filesystem). The owner may do
/// this.
///
/// The file is opened while the mount exists, and belongs to its connection from then on. By its name it could be another
/// one: the kernel gives the number of a mount that is gone to the next mount of any process.
#[derive(Debug)]
pub(super) struct ConnectionAbort {
    number: u64,
    /// `None` if it cannot be opened, for example because fusectl is not mounted.
    file: Option<File>,
}

impl ConnectionAbort {
    /// Opens the file of a mount. The caller must know that the mount still exists, or check it afterwards.
    pub(super) fn of(mount: &Mount) -> Self {
        let (major, minor) = mount.device;
        let number = u64::from(major) << 20 | u64::from(minor);
        let file = File::options().write(true).open(format!("/sys/fs/fuse/connections/{number}/abort"));
        let file = file.inspect_err(|error| debug!("cannot abort connection {number} later: {error}")).ok();
        Self { number, file }
    }

    /// Aborts the connection. Has no effect if it has ended.
    pub(super) fn abort(&self) {
        if let Some(Err(error)) = self.file.as_ref().map(|mut file| file.write_all(b"1")) {
            debug!("cannot abort connection {}: {error}", self.number);
        }
    }
}

/// Detaches a mount with `fusermount3`, which is setuid root.
fn detach_by_helper(path: &Path) -> Result<(), String> {
    let run = |program: &str| Command::new(program).args(["-u", "-z", "--"]).arg(path).stdin(Stdio::null()).output();
    let output = run("fusermount3").or_else(|_| run("fusermount")).map_err(|error| format!("fusermount3: {error}"))?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()) }
}

/// Returns the canonical path, even of a mount point whose filesystem is dead or hangs.
pub fn resolve(path: &Path) -> io::Result<PathBuf> {
    let whole = path.to_owned();
    match with_timeout(ANSWER_LIMIT, move || fs::canonicalize(whole)).flatten() {
        Err(error) if is_dead(&error) || error.kind() == io::ErrorKind::TimedOut => {
            let path = std::path::absolute(path)?;
            match (path.parent(), path.file_name()) {
                (Some(parent), Some(name)) => Ok(fs::canonicalize(parent)?.join(name)),
                _ => Err(error),
            }
        }
        other => other,
    }
}

/// Whether an error means that the server of a FUSE mount is dead.
pub(super) fn is_dead(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED))
}

/// Runs `work`, which may hang, on another thread. Fails with `TimedOut` after the limit; the thread is then abandoned.
pub(super) fn with_timeout<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let (sender, receiver) = mpsc::sync_channel(1);
    thread::Builder::new().name("mount-probe".to_owned()).spawn(move || drop(sender.send(work())))?;
    receiver.recv_timeout(limit).map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the filesystem does not answer"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_filesystems_are_not_unmounted() {
        let directory = tempfile::tempdir().unwrap();
        assert!(matches!(unmount_path(directory.path()), Err(UnmountError::NotMounted(_))));
        assert!(matches!(unmount_path(Path::new("/proc")), Err(UnmountError::NotOurs { .. })));
        assert!(matches!(unmount_path(&directory.path().join("missing")), Err(UnmountError::Path { .. })));
    }

    #[test]
    fn hanging_work_times_out() {
        let (_keep, wait) = mpsc::channel::<()>();
        let error = with_timeout(Duration::from_millis(1), move || wait.recv().is_ok()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(with_timeout(ANSWER_LIMIT, || 5).unwrap(), 5);
    }

    #[test]
    fn a_process_must_belong_to_the_owner_and_have_the_device_open() {
        let options = format!("rw,user_id={}", sys::process::user());
        let mount = Mount {
            id: 1,
            parent: 0,
            device: (0, 9),
            path: "/".into(),
            fstype: mountinfo::FSTYPE.to_owned(),
            source: String::new(),
            options,
        };
        assert!(!serves(1, &Mount { options: "user_id=12345".to_owned(), ..mount.clone() }));
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        assert!(!serves(child.id(), &mount));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
