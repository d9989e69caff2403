//! Files found on the disk, and the detection of changes to them.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::hash::Content;
use crate::metainfo::{FileIndex, FileKind, NewFile};

/// A file for a new torrent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The file's entry in the torrent.
    pub file: NewFile,
    /// Its path on the disk.
    pub path: PathBuf,
    /// Its stamp when it was found, to detect changes.
    pub stamp: Stamp,
}

/// Identity, size and times of a file. They change whenever the file does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Device and inode.
    inode: (u64, u64),
    len: u64,
    /// Modification time in seconds and nanoseconds.
    modified: (i64, i64),
    /// Status change time in seconds and nanoseconds.
    changed: (i64, i64),
}

impl From<&Metadata> for Stamp {
    fn from(about: &Metadata) -> Self {
        Self {
            inode: (about.dev(), about.ino()),
            len: about.len(),
            modified: (about.mtime(), about.mtime_nsec()),
            changed: (about.ctime(), about.ctime_nsec()),
        }
    }
}

/// A file has changed since it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it changed while it was read; try again when nothing writes to it")]
pub struct Changed;

impl Found {
    /// Fails if the file has changed since it was found.
    pub fn check_unchanged(&self) -> io::Result<()> {
        let about = match self.file.kind {
            FileKind::Symlink { .. } => std::fs::symlink_metadata(&self.path)?,
            _ => std::fs::metadata(&self.path)?,
        };
        self.compare(&about)
    }

    fn compare(&self, about: &Metadata) -> io::Result<()> {
        if self.stamp == about.into() { Ok(()) } else { Err(io::Error::other(Changed)) }
    }
}

/// Files that must not change while they are read.
impl Content for [Found] {
    fn open(&self, file: FileIndex) -> io::Result<File> {
        let found = &self[file.0 as usize];
        let file = open(&found.path)?;
        found.compare(&file.metadata()?)?;
        Ok(file)
    }

    fn after_read(&self, file: FileIndex, handle: &File) -> io::Result<()> {
        self[file.0 as usize].compare(&handle.metadata()?)
    }
}

/// Opens a regular file; anything else is an error. Never waits for the writer of a FIFO.
pub(super) fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    match special_kind(&file.metadata()?) {
        None => Ok(file),
        Some(kind) => Err(io::Error::other(format!("it is a {kind}, not a regular file"))),
    }
}

/// Returns the kind of anything that is not a regular file.
pub(super) fn special_kind(about: &Metadata) -> Option<&'static str> {
    let kind = about.file_type();
    match () {
        () if kind.is_file() => None,
        () if kind.is_dir() => Some("directory"),
        () if kind.is_symlink() => Some("link"),
        () if kind.is_fifo() => Some("FIFO"),
        () if kind.is_socket() => Some("socket"),
        () => Some("device"),
    }
}
