//! Places of a torrent's files, and what the store may do there.
//!
//! | place | files created | files written | pieces evicted | state stored in |
//! |---|---|---|---|---|
//! | cache | yes | yes | yes, counted against the limit | `CACHE_DIR/INFO_HASH` |
//! | download | yes | yes, those of the torrent | never | `CACHE_DIR/downloads/…` |
//! | seed | no | no | never | nowhere |
//!
//! The files of a seed are the user's. They are opened read-only, so the kernel refuses any change, and without a
//! directory for the torrent there is nowhere to write a state.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use sha1::{Digest, Sha1};

use crate::metainfo::{self, FileKind, InfoHash};
use crate::sys::file as sys;

/// The place of a torrent's files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// In the cache, as long as it has room for them.
    #[default]
    Cache,
    /// In an existing directory of the user's, to stay there. Existing files are verified and used; anything that is
    /// not the torrent's is an error.
    Download {
        /// The directory.
        dir: PathBuf,
        /// Whether to replace files that are not the torrent's.
        overwrite: bool,
    },
    /// The user's own file or directory, which takes the place of the torrent's first path component whatever its name.
    /// Read-only.
    Seed(PathBuf),
}

impl Place {
    /// Returns whether its pieces count against the cache's limit and may be evicted.
    pub(super) fn is_evictable(&self) -> bool {
        *self == Self::Cache
    }

    /// Returns the directory of the torrent's state within the cache directory.
    pub(super) fn torrent_dir(&self, cache: &Path, info_hash: &InfoHash) -> Option<PathBuf> {
        match self {
            Self::Cache => Some(cache.join(info_hash.to_string())),
            Self::Download { dir, .. } => {
                // The same torrent may be downloaded to two directories at once.
                let dir = dir.canonicalize().unwrap_or_else(|_| dir.clone());
                let digest = Sha1::digest(dir.as_os_str().as_bytes());
                let digest: String = digest[..8].iter().map(|byte| format!("{byte:02x}")).collect();
                Some(cache.join("downloads").join(format!("{info_hash}-{digest}")))
            }
            Self::Seed(_) => None,
        }
    }
}

/// The purpose of opening a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Access {
    /// Read, and perhaps change.
    Read,
    /// Change if it exists.
    Change,
    /// Change; the file and its directories are created if they do not exist.
    Create,
}

/// The directory of a torrent's files.
pub(super) enum Root {
    /// Below `data` in this directory, which is ours; no other user may read it.
    Own(PathBuf),
    /// In this directory of the user's; the umask decides who may read the files.
    Users(PathBuf),
    /// This file or directory of the user's, read-only.
    ReadOnly(PathBuf),
}

impl Root {
    pub fn new(place: &Place, torrent_dir: Option<&Path>) -> Self {
        match place {
            Place::Cache => Self::Own(torrent_dir.map(Path::to_owned).unwrap_or_default()),
            Place::Download { dir, .. } => Self::Users(dir.clone()),
            Place::Seed(path) => Self::ReadOnly(path.clone()),
        }
    }

    /// Returns a path on the files' filesystem.
    pub fn dir(&self) -> &Path {
        match self {
            Self::Own(dir) | Self::Users(dir) | Self::ReadOnly(dir) => dir,
        }
    }

    /// Returns the path that file paths are relative to.
    pub fn data(&self) -> PathBuf {
        match self {
            Self::Own(torrent_dir) => torrent_dir.join("data"),
            Self::Users(dir) | Self::ReadOnly(dir) => dir.clone(),
        }
    }

    pub fn path(&self, file: &metainfo::File) -> PathBuf {
        match self {
            Self::ReadOnly(root) => {
                let below: PathBuf = file.path.iter().skip(1).collect();
                // Joining an empty path would add a slash, which names a directory.
                if below.as_os_str().is_empty() { root.clone() } else { root.join(below) }
            }
            _ => self.data().join(file.relative_path()),
        }
    }

    /// Returns whether the files are only read.
    pub fn is_read_only(&self) -> bool {
        matches!(self, Self::ReadOnly(_))
    }

    /// Returns whether pieces may be punched out of the files.
    pub fn is_own(&self) -> bool {
        matches!(self, Self::Own(_))
    }

    /// Opens a file. Returns whether it may be written to.
    ///
    /// If it may be written to, it walks down one component at a time and follows no symbolic link. A path that the user
    /// named for reading may contain links of the user's own.
    pub fn open(&self, file: &metainfo::File, access: Access) -> io::Result<(File, bool)> {
        let (start, first, mode) = match self {
            Self::ReadOnly(_) if access == Access::Read => return Ok((sys::open_to_read(&self.path(file))?, false)),
            Self::ReadOnly(_) => return Err(io::ErrorKind::ReadOnlyFilesystem.into()),
            Self::Own(torrent_dir) => (sys::open_dir(torrent_dir)?, Some("data"), 0o600),
            Self::Users(dir) => (File::open(dir)?, None, 0o666),
        };
        let create = access == Access::Create;
        // A directory is searchable, and an executable file executable, for everyone who may read it.
        let with_x = mode | (mode & 0o444) >> 2;
        let executable = !self.is_own() && file.kind == FileKind::Regular { executable: true };
        let (name, parents) = file.path.split_last().ok_or(io::ErrorKind::InvalidInput)?;
        let mut dir = OwnedFd::from(start);
        for part in first.into_iter().chain(parents.iter().map(String::as_str)).map(OsStr::new) {
            dir = open_or_create_dir(dir.as_fd(), part, create.then_some(with_x))?;
        }
        let name = OsStr::new(name);
        match sys::open_file_at(dir.as_fd(), name, create.then_some(if executable { with_x } else { mode })) {
            // On a filesystem that became read-only, and of files that their user protected, all pieces can be read.
            Err(error) if access == Access::Read && is_protected(&error) => {
                Ok((sys::open_file_to_read_at(dir.as_fd(), name)?, false))
            }
            opened => Ok((opened?, true)),
        }
    }
}

fn is_protected(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
        || error.raw_os_error() == Some(libc::ETXTBSY)
}

/// Opens a directory in `dir`. With `create`, creates a missing one with that mode.
pub(super) fn open_or_create_dir(dir: BorrowedFd<'_>, name: &OsStr, create: Option<u32>) -> io::Result<OwnedFd> {
    match (sys::open_dir_at(dir, name), create) {
        (Err(error), Some(mode)) if error.kind() == io::ErrorKind::NotFound => {
            match sys::make_dir_at(dir, name, mode) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            sys::open_dir_at(dir, name)
        }
        (opened, _) => opened,
    }
}
