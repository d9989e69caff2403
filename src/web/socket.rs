//! The control socket of a mount: its path, its permissions, and the search for sockets.
//!
//! A socket is named after the device number of the mount's filesystem. A client reads that number from the kernel's
//! list of mounts, without a request to the mount, which may hang. The socket is in a directory that only its user can
//! enter. A daemon that is killed leaves its socket behind; the next one that starts removes it.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use etcetera::BaseStrategy;

use crate::sys::file::open_regular;
use crate::sys::process::user;

/// Name of the directory for sockets within a runtime directory.
const DIR_NAME: &str = "torrentfs";
/// Ending of a socket's file name.
const SUFFIX: &str = ".sock";
/// Root's runtime directory.
const ROOT_RUNTIME_DIR: &str = "/run";
/// Parent of the runtime directories of the other users.
const USER_RUNTIME_DIRS: &str = "/run/user";
/// Parent of the directories that root creates: one for each user who serves mounts of root, and one for each service.
const SERVER_DIRS: &str = "/run/torrentfs.d";

/// Returns the directory that root creates and gives to the user before that user serves a mount of root.
pub fn server_dir(user: u32) -> PathBuf {
    Path::new(SERVER_DIRS).join(user.to_string())
}

/// A socket found by [`all`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Device number of its mount, major and minor.
    pub device: (u32, u32),
    /// Path of the socket.
    pub path: PathBuf,
}

/// Returns the directory of this user's sockets: `/run/torrentfs` for root; otherwise the directory that systemd or root
/// created, else `$XDG_RUNTIME_DIR/torrentfs`, else `run` in the user's cache directory of torrentfs.
fn own_dir() -> io::Result<PathBuf> {
    if user() == 0 {
        return Ok(Path::new(ROOT_RUNTIME_DIR).join(DIR_NAME));
    }
    // `su` keeps the environment: the variables may name directories of another user.
    let ours = |dir: &PathBuf| dir.is_absolute() && fs::metadata(dir).is_ok_and(|about| about.uid() == user());
    let named = |variable| std::env::var_os(variable).map(PathBuf::from);
    if let Some(dir) = [named("RUNTIME_DIRECTORY"), Some(server_dir(user()))].into_iter().flatten().find(ours) {
        return Ok(dir);
    }
    if let Some(dir) = named("XDG_RUNTIME_DIR").filter(ours) {
        return Ok(dir.join(DIR_NAME));
    }
    let strategy = etcetera::choose_base_strategy().map_err(io::Error::other)?;
    Ok(strategy.cache_dir().join(DIR_NAME).join("run"))
}

/// Creates the directory, or checks that it belongs to this user and removes the permissions of others.
fn make_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let about = fs::symlink_metadata(dir)?;
    if !about.is_dir() || about.uid() != user() {
        return Err(io::Error::other(format!("{} is not a directory that belongs to this user", dir.display())));
    }
    if about.mode() & 0o077 != 0 {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// Binds the socket of a mount, and removes those that no process listens on any more.
pub(super) fn bind(device: (u32, u32)) -> io::Result<(UnixListener, PathBuf)> {
    let dir = own_dir()?;
    make_dir(&dir)?;
    // Between `bind` and `listen` a socket refuses connections like a dead one, so only one process at a time may do this.
    let lock = open_regular(&dir.join("lock"), File::options().create(true).truncate(false).write(true))?;
    lock.lock()?;
    for Found { path, .. } in in_dir(&dir) {
        if UnixStream::connect(&path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
            tracing::debug!("removing the unused socket {}", path.display());
            let _ = fs::remove_file(path);
        }
    }
    let path = dir.join(format!("{}-{}{SUFFIX}", device.0, device.1));
    // The kernel reuses the device number of a removed mount: a process that still listens here serves nothing.
    let _ = fs::remove_file(&path);
    let listener = UnixListener::bind(&path)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    Ok((listener, path))
}

/// Returns whether the other end is the user of this process or root. Logs others.
pub(super) fn is_authorized(stream: &tokio::net::UnixStream) -> bool {
    let peer = stream.peer_cred().map(|peer| peer.uid());
    let authorized = matches!(peer, Ok(uid) if uid == user() || uid == 0);
    if !authorized {
        tracing::warn!("refused a connection of user {peer:?} to the control socket, which is not theirs");
    }
    authorized
}

/// Returns the sockets in a directory.
fn in_dir(dir: &Path) -> Vec<Found> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let sockets = entries.filter_map(|entry| {
        let name = entry.file_name();
        let (major, minor) = name.to_str()?.strip_suffix(SUFFIX)?.split_once('-')?;
        let device = (major.parse().ok()?, minor.parse().ok()?);
        entry.file_type().ok()?.is_socket().then(|| Found { device, path: entry.path() })
    });
    sockets.collect()
}

/// Returns every socket of this user; for root, also those of other users in the usual directories.
pub fn all() -> Vec<Found> {
    let mut dirs: Vec<PathBuf> = own_dir().into_iter().collect();
    if user() == 0 {
        let users = fs::read_dir(USER_RUNTIME_DIRS).into_iter().flatten().flatten();
        dirs.extend(users.map(|entry| entry.path().join(DIR_NAME)));
        dirs.extend(fs::read_dir(SERVER_DIRS).into_iter().flatten().flatten().map(|entry| entry.path()));
    }
    let mut found: Vec<Found> = dirs.iter().flat_map(|dir| in_dir(dir)).collect();
    found.sort_by_key(|found| found.device);
    found
}
