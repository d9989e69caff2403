//! Where a torrent's files lie, and what may be done to them there.
//!
//! | place | files are made | written | dropped for others | state kept in |
//! |---|---|---|---|---|
//! | cache | yes | yes | yes, counted against the limit | `CACHE_DIR/INFO_HASH` |
//! | download | yes | yes, what is the torrent's | never | `CACHE_DIR/downloads/…` |
//! | seed | no | no | never | nowhere |
//!
//! The files of a seed are the user's: they are opened for reading alone, so that the kernel refuses whatever else is
//! tried, and a torrent without a directory of its own has nowhere to write a state to.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use sha1::{Digest, Sha1};

use crate::metainfo::{self, InfoHash};
use crate::sys::file as sys;

/// Where a torrent's files are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// In the cache, for as long as it has room for them.
    #[default]
    Cache,
    /// In a directory of the user's, which is there: made as the torrent lays them out, to stay. What is there already
    /// is checked and used; what is there and not the torrent's is an error.
    Download {
        /// The directory.
        dir: PathBuf,
        /// Take the place of files that are not the torrent's.
        overwrite: bool,
    },
    /// The user's own file or directory, which stands for the torrent's first component whatever it is called. Only
    /// read.
    Seed(PathBuf),
}

impl Place {
    /// Counted, and dropped when others need the room.
    pub(super) fn is_evictable(&self) -> bool {
        *self == Self::Cache
    }

    /// The directory, within the cache's, where the torrent's state is kept.
    pub(super) fn home(&self, cache: &Path, info_hash: &InfoHash) -> Option<PathBuf> {
        match self {
            Self::Cache => Some(cache.join(info_hash.to_string())),
            Self::Download { dir, .. } => {
                // The same torrent may be under way in two directories.
                let dir = dir.canonicalize().unwrap_or_else(|_| dir.clone());
                let digest = Sha1::digest(dir.as_os_str().as_bytes());
                let digest: String = digest[..8].iter().map(|byte| format!("{byte:02x}")).collect();
                Some(cache.join("downloads").join(format!("{info_hash}-{digest}")))
            }
            Self::Seed(_) => None,
        }
    }
}

/// The directory that a torrent's files are in, as [`super::files`] opens them.
pub(super) enum Root {
    /// Below `data` in this directory, which is ours; nobody else may look in.
    Own(PathBuf),
    /// In this directory of the user's; whoever the user lets look in may.
    Users(PathBuf),
    /// The user's own, by whatever name; for reading alone.
    ReadOnly(PathBuf),
}

impl Root {
    pub fn new(place: &Place, home: Option<&Path>) -> Self {
        match place {
            Place::Cache => Self::Own(home.map(Path::to_owned).unwrap_or_default()),
            Place::Download { dir, .. } => Self::Users(dir.clone()),
            Place::Seed(path) => Self::ReadOnly(path.clone()),
        }
    }

    /// A directory on the filesystem that the files are on.
    pub fn dir(&self) -> &Path {
        match self {
            Self::Own(dir) | Self::Users(dir) | Self::ReadOnly(dir) => dir,
        }
    }

    /// Where the files are.
    pub fn data(&self) -> PathBuf {
        match self {
            Self::Own(home) => home.join("data"),
            Self::Users(dir) | Self::ReadOnly(dir) => dir.clone(),
        }
    }

    pub fn path(&self, file: &metainfo::File) -> PathBuf {
        match self {
            Self::ReadOnly(root) => {
                let below: PathBuf = file.path.iter().skip(1).collect();
                // Joined with nothing it would name a directory.
                if below.as_os_str().is_empty() { root.clone() } else { root.join(below) }
            }
            _ => self.data().join(file.relative_path()),
        }
    }

    /// Whether a file is only ever read.
    pub fn is_read_only(&self) -> bool {
        matches!(self, Self::ReadOnly(_))
    }

    /// Whether parts of a file may be given back to the filesystem.
    pub fn is_own(&self) -> bool {
        matches!(self, Self::Own(_))
    }

    /// Opens a file. To `create` it makes its directories, too.
    ///
    /// What we write to, we walk to one component at a time and through no symbolic link. What the user named for
    /// reading may well disk_copy links of the user's own.
    pub fn open(&self, file: &metainfo::File, create: bool) -> io::Result<File> {
        let (start, first, mode) = match self {
            Self::ReadOnly(_) if create => return Err(io::ErrorKind::ReadOnlyFilesystem.into()),
            Self::ReadOnly(_) => return sys::open_to_read(&self.path(file)),
            Self::Own(home) => (File::open(home)?, Some("data"), 0o600),
            Self::Users(dir) => (File::open(dir)?, None, 0o666),
        };
        let (name, parents) = file.path.split_last().ok_or(io::ErrorKind::InvalidInput)?;
        let mut dir = OwnedFd::from(start);
        for part in first.into_iter().chain(parents.iter().map(String::as_str)).map(OsStr::new) {
            // A directory may be entered by whoever may read in it.
            dir = open_or_create_dir(dir.as_fd(), part, create.then_some(mode | (mode & 0o444) >> 2))?;
        }
        sys::open_file_at(dir.as_fd(), OsStr::new(name), create.then_some(mode))
    }
}

/// Opens a directory in `dir`, making it first if it may, with this mode.
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
