//! Ending a mount from outside, by its path; and the steps that ending our own shares with it.
//!
//! A mount is ended through the process that serves it, so that it can answer its waiting reads, save its state and say
//! goodbye to its trackers: the process is found by `user.torrentfs.pid`, checked, asked by `SIGTERM` and waited for. What
//! cannot be ended so (nobody serves it any more, it hangs, it is another user's) is detached.

use std::fs;
use std::io;
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

/// How long a mount may take to answer a question that needs no network.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// How long the process that was asked to end may take to unmount.
const UNMOUNT_LIMIT: Duration = Duration::from_secs(5);
/// How long it may then take to end.
const END_LIMIT: Duration = Duration::from_secs(15);
/// How often the list of mounts is looked at meanwhile.
const PERIOD: Duration = Duration::from_millis(20);

/// Why a mount was not ended.
#[derive(Debug, thiserror::Error)]
pub enum UnmountError {
    /// The path cannot be followed.
    #[error("cannot unmount {}: {source}", path.display())]
    Path {
        /// What was to be unmounted.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no mount.
    #[error("{} is not a mount point; `findmnt -t fuse.torrentfs` lists what is mounted", .0.display())]
    NotMounted(PathBuf),
    /// There is a mount of something else.
    #[error("{} is a mount of type {fstype}, not one of torrentfs; use umount", path.display())]
    NotOurs {
        /// The mount point.
        path: PathBuf,
        /// What is there.
        fstype: String,
    },
    /// The mount could not be detached.
    #[error("cannot unmount {}: {reason}", path.display())]
    Detach {
        /// The mount point.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The mount is gone, the process is not.
    #[error("{} is unmounted, but its process {pid} has not ended yet", path.display())]
    StillRunning {
        /// The mount point.
        path: PathBuf,
        /// The process that served it.
        pid: u32,
    },
    /// The list of mounts cannot be read.
    #[error("cannot read /proc/self/mountinfo: {0}")]
    MountInfo(#[source] io::Error),
}

/// Ends the torrentfs mount at a path and waits until its process has ended. A dead mount is cleared away.
///
/// Takes at most about half a minute; blocks, so it is not for an async thread.
pub fn unmount_path(path: &Path) -> Result<(), UnmountError> {
    let path = resolve(path).map_err(|source| UnmountError::Path { path: path.to_owned(), source })?;
    let at = || mountinfo::mount_at(&path).map_err(UnmountError::MountInfo);
    let Some(mount) = at()? else { return Err(UnmountError::NotMounted(path)) };
    if !mount.is_torrentfs() {
        return Err(UnmountError::NotOurs { path, fstype: mount.fstype });
    }
    let server = server(&mount).filter(|(pid, _)| *pid != std::process::id());
    let is_mounted = || at().map(|now| now.is_some_and(|now| now.id == mount.id));
    if let Some((pid, process)) = &server {
        if let Err(error) = process.terminate() {
            debug!("cannot ask process {pid} to end: {error}");
        } else {
            let limit = Instant::now() + UNMOUNT_LIMIT;
            while is_mounted()? && Instant::now() < limit && !process.wait(PERIOD).unwrap_or(true) {}
        }
    }
    // It did not unmount; or it died of the signal, and left a dead mount.
    if is_mounted()? {
        detach(&mount)?;
    }
    match server {
        Some((pid, process)) if !process.wait(END_LIMIT).unwrap_or(true) => {
            Err(UnmountError::StillRunning { path, pid })
        }
        _ => Ok(()),
    }
}

/// The value of one of our extended attributes (`name` without its prefix) of a file in a mount, within a time limit.
pub fn attribute(path: &Path, name: &str) -> io::Result<String> {
    let (path, name) = (path.to_owned(), format!("{ATTRIBUTE_PREFIX}{name}"));
    let value = within(ANSWER_LIMIT, move || sys::mount::extended_attribute(&path, &name))?;
    String::from_utf8(value?).map_err(io::Error::other)
}

/// The process that serves a mount, if it says so and it is one that can: it belongs to the user who mounted, and has the
/// FUSE device open. Else a mount could make us end any process.
fn server(mount: &Mount) -> Option<(u32, Process)> {
    let pid: u32 = match attribute(&mount.path, "pid") {
        Ok(pid) => pid.parse().ok()?,
        Err(error) => {
            debug!("{} does not tell its process: {error}", mount.path.display());
            return None;
        }
    };
    // Held before it is checked, so that it is the same process afterwards.
    let process = Process::open(pid).ok()?;
    let is_server = serves(pid, mount);
    if !is_server {
        warn!("process {pid} does not serve {}", mount.path.display());
    }
    is_server.then_some((pid, process))
}

fn serves(pid: u32, mount: &Mount) -> bool {
    let owner = fs::metadata(format!("/proc/{pid}")).map(|process| process.uid()).ok();
    if owner.is_none() || owner != mount.owner() {
        return false;
    }
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    descriptors.flatten().any(|entry| fs::read_link(entry.path()).is_ok_and(|file| file == Path::new("/dev/fuse")))
}

/// Detaches a mount and ends its connection, whatever is open in it; without privileges, only as far as `fusermount3`
/// and the kernel let the mount's owner. The caller has checked that the mount is on top at its path.
pub(super) fn detach(mount: &Mount) -> Result<(), UnmountError> {
    let detached = match sys::mount::detach_and_abort(&mount.path) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => detach_by_helper(&mount.path),
        other => other.map_err(|error| error.to_string()),
    };
    // Detaching alone leaves a connection alive while files are open in it.
    abort(mount);
    detached.map_err(|reason| UnmountError::Detach { path: mount.path.clone(), reason })
}

/// Ends a mount's connection through the kernel's control filesystem, where that is mounted. Its owner may.
pub(super) fn abort(mount: &Mount) {
    let (major, minor) = mount.device;
    let connection = u64::from(major) << 20 | u64::from(minor);
    if let Err(error) = fs::write(format!("/sys/fs/fuse/connections/{connection}/abort"), "1") {
        debug!("cannot abort connection {connection}: {error}");
    }
}

fn detach_by_helper(path: &Path) -> Result<(), String> {
    let run = |program: &str| Command::new(program).args(["-u", "-z", "--"]).arg(path).stdin(Stdio::null()).output();
    let output = run("fusermount3").or_else(|_| run("fusermount")).map_err(|error| format!("fusermount3: {error}"))?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()) }
}

/// The canonical path, also of a mount point whose filesystem is dead or hangs.
pub fn resolve(path: &Path) -> io::Result<PathBuf> {
    let whole = path.to_owned();
    match within(ANSWER_LIMIT, move || fs::canonicalize(whole)).flatten() {
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

/// Whether an error says that nobody serves a FUSE mount any more.
pub(super) fn is_dead(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED))
}

/// Does on another thread what may hang; `TimedOut` if it takes longer, and the thread is left to itself.
pub(super) fn within<T: Send + 'static>(limit: Duration, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let (give, take) = mpsc::sync_channel(1);
    thread::Builder::new().name("mount-probe".to_owned()).spawn(move || drop(give.send(work())))?;
    take.recv_timeout(limit).map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the filesystem does not answer"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_torrentfs_mount_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        assert!(matches!(unmount_path(directory.path()), Err(UnmountError::NotMounted(_))));
        assert!(matches!(unmount_path(Path::new("/proc")), Err(UnmountError::NotOurs { .. })));
        assert!(matches!(unmount_path(&directory.path().join("missing")), Err(UnmountError::Path { .. })));
    }

    #[test]
    fn what_hangs_is_given_up() {
        let (_keep, wait) = mpsc::channel::<()>();
        let error = within(Duration::from_millis(1), move || wait.recv().is_ok()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(within(ANSWER_LIMIT, || 5).unwrap(), 5);
    }

    #[test]
    fn a_process_is_believed_only_if_it_can_be_the_server() {
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
