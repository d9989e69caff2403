//! A file that was found on the disk, and whether it is still the same.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::hash::Content;
use crate::metainfo::{FileIndex, FileKind, NewFile};

/// A file that a torrent is to be made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// As the torrent will have it.
    pub file: NewFile,
    /// Where it is.
    pub path: PathBuf,
    /// By which a change is seen.
    pub stamp: Stamp,
}

/// What changes whenever a file does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    place: (u64, u64),
    len: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl From<&Metadata> for Stamp {
    fn from(about: &Metadata) -> Self {
        Self {
            place: (about.dev(), about.ino()),
            len: about.len(),
            modified: (about.mtime(), about.mtime_nsec()),
            changed: (about.ctime(), about.ctime_nsec()),
        }
    }
}

/// A file is not what it was when it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it has changed while it was read; try again when nobody writes to it")]
pub struct Changed;

impl Found {
    /// Looks whether the file is still the one that was found.
    pub fn unchanged(&self) -> io::Result<()> {
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

/// Of files that must not change meanwhile.
impl Content for [Found] {
    fn open(&self, file: FileIndex) -> io::Result<File> {
        let found = &self[file.0 as usize];
        let file = open(&found.path)?;
        found.compare(&file.metadata()?)?;
        Ok(file)
    }

    fn was_read(&self, file: FileIndex, handle: &File) -> io::Result<()> {
        self[file.0 as usize].compare(&handle.metadata()?)
    }
}

/// Opens what must be a regular file, and does not wait where it is a FIFO.
pub(super) fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    match kind(&file.metadata()?) {
        None => Ok(file),
        Some(kind) => Err(io::Error::other(format!("it is a {kind}, not a file"))),
    }
}

/// What a thing is that is no regular file.
pub(super) fn kind(about: &Metadata) -> Option<&'static str> {
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
