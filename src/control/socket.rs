//! A mount's socket: where it is, who may use it, how it is found.
//!
//! It is named by the device number of the mount's filesystem, which the kernel's list of mounts tells without asking
//! the mount anything; it lies in a directory that only its user can enter. What a daemon that was killed left behind
//! is taken away by the next one that starts.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use etcetera::BaseStrategy;

use crate::sys::process::user;

/// The directory within the user's runtime directory.
const NAME: &str = "torrentfs";
const SUFFIX: &str = ".sock";
/// Root's own, and where those of others are below.
const RUN: &str = "/run";
const USERS: &str = "/run/user";
/// Below, one directory a user, those of who serves root's mounts; and one a service.
const SERVERS: &str = "/run/torrentfs.d";

/// The directory that root is to make, and give to the user, before that user serves one of root's mounts.
pub fn server_dir(user: u32) -> PathBuf {
    Path::new(SERVERS).join(user.to_string())
}

/// A socket that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The device number of its mount, major and minor.
    pub device: (u32, u32),
    /// Where it is.
    pub path: PathBuf,
}

/// Where this user's sockets are: `/run/torrentfs` of root, else what a service or root has made for it, else `torrentfs`
/// in `$XDG_RUNTIME_DIR`, else `run` in the user's own cache of torrentfs.
fn own_dir() -> io::Result<PathBuf> {
    if user() == 0 {
        return Ok(Path::new(RUN).join(NAME));
    }
    // What `su` leaves in the environment is another user's.
    let ours = |dir: &PathBuf| dir.is_absolute() && fs::metadata(dir).is_ok_and(|about| about.uid() == user());
    let named = |variable| std::env::var_os(variable).map(PathBuf::from);
    if let Some(dir) = [named("RUNTIME_DIRECTORY"), Some(server_dir(user()))].into_iter().flatten().find(ours) {
        return Ok(dir);
    }
    if let Some(dir) = named("XDG_RUNTIME_DIR").filter(ours) {
        return Ok(dir.join(NAME));
    }
    let strategy = etcetera::choose_base_strategy().map_err(io::Error::other)?;
    Ok(strategy.cache_dir().join(NAME).join("run"))
}

/// Makes the directory, or makes sure that it is this user's alone.
fn make_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let about = fs::symlink_metadata(dir)?;
    if !about.is_dir() || about.uid() != user() {
        return Err(io::Error::other(format!("{} is not a directory of this user", dir.display())));
    }
    if about.mode() & 0o077 != 0 {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// Opens the socket of a mount, and clears away those of the dead.
pub(super) fn bind(device: (u32, u32)) -> io::Result<(UnixListener, PathBuf)> {
    let dir = own_dir()?;
    make_dir(&dir)?;
    // Between its making and its first connection a socket looks dead: those who make and clear take turns.
    let turn = File::options().create(true).truncate(false).write(true).open(dir.join("lock"))?;
    turn.lock()?;
    for Found { path, .. } in in_dir(&dir) {
        if UnixStream::connect(&path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
            tracing::debug!("clearing away {}", path.display());
            let _ = fs::remove_file(path);
        }
    }
    let path = dir.join(format!("{}-{}{SUFFIX}", device.0, device.1));
    // A device number is given anew once its mount is gone: whoever still listens there serves nothing.
    let _ = fs::remove_file(&path);
    let listener = UnixListener::bind(&path)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    Ok((listener, path))
}

/// Whether who connected is the user of this process, or root.
pub(super) fn may_speak(stream: &tokio::net::UnixStream) -> bool {
    let caller = stream.peer_cred().map(|caller| caller.uid());
    let may = matches!(caller, Ok(uid) if uid == user() || uid == 0);
    if !may {
        tracing::warn!("user {caller:?} knocked at the control socket, which is not theirs");
    }
    may
}

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

/// Every socket of this user; of root, those of others too, as far as they are where they usually are.
pub fn all() -> Vec<Found> {
    let mut dirs: Vec<PathBuf> = own_dir().into_iter().collect();
    if user() == 0 {
        let users = fs::read_dir(USERS).into_iter().flatten().flatten();
        dirs.extend(users.map(|entry| entry.path().join(NAME)));
        dirs.extend(fs::read_dir(SERVERS).into_iter().flatten().flatten().map(|entry| entry.path()));
    }
    let mut found: Vec<Found> = dirs.iter().flat_map(|dir| in_dir(dir)).collect();
    found.sort_by_key(|found| found.device);
    found
}
