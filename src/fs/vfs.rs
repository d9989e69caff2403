//! The filesystem without FUSE: attributes, extended attributes and open files.
//!
//! Everything here except [`Handle::wait`] answers at once. Extended attributes report progress:
//!
//! | attribute | of | value |
//! |---|---|---|
//! | `user.torrentfs.infohash` | all but the root | 40 hexadecimal digits |
//! | `user.torrentfs.progress` | files, directories | 0 to 100: the percentage of the bytes that we have, rounded down |
//! | `user.torrentfs.pieces` | files, directories | `have/total` of the pieces that contain the bytes |
//! | `user.torrentfs.pid` | the root | the process that serves the mount |

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::sync::watch;

use super::content::{Content, ReadError, Reader};
use super::names::MAX_NAME;
use super::tree::{Kind, ROOT, Subtree, Tree, TreeError};
use crate::metainfo::{FileIndex, InfoHash, Layout, MAX_DATE};

/// Prefix of all our extended attributes.
pub const ATTRIBUTE_PREFIX: &str = "user.torrentfs.";

/// The only class of extended attributes here: there are no ACLs, capabilities or labels.
const USER_CLASS: &str = "user.";

/// Unit of `st_blocks`, in bytes, fixed by POSIX.
const SECTOR: u64 = 512;
/// Preferred read size (`st_blksize`) and unit of `statfs`, in bytes: a memory page.
const BLOCK: u32 = 4096;

/// An error of a request, named after its `errno`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// ENOENT
    #[error("no such file or directory")]
    NoEntry,
    /// ENOTDIR
    #[error("not a directory")]
    NotDirectory,
    /// EISDIR
    #[error("is a directory")]
    IsDirectory,
    /// EINVAL
    #[error("invalid argument")]
    Invalid,
    /// ENODATA
    #[error("no such attribute")]
    NoAttribute,
    /// EOPNOTSUPP
    #[error("attributes of this class are not supported")]
    Unsupported,
    /// ENXIO
    #[error("offset past the end")]
    PastEnd,
    /// EROFS
    #[error("read-only filesystem")]
    ReadOnly,
}

impl Error {
    /// Returns the value of `errno`.
    pub fn errno(self) -> i32 {
        match self {
            Self::NoEntry => libc::ENOENT,
            Self::NotDirectory => libc::ENOTDIR,
            Self::IsDirectory => libc::EISDIR,
            Self::Invalid => libc::EINVAL,
            Self::NoAttribute => libc::ENODATA,
            Self::Unsupported => libc::EOPNOTSUPP,
            Self::PastEnd => libc::ENXIO,
            Self::ReadOnly => libc::EROFS,
        }
    }
}

/// The attributes that all inodes of a mount share.
#[derive(Clone, Debug)]
pub struct View {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits removed from 0444 and 0555.
    pub umask: u16,
    /// Time of the mount: the date of torrents without one.
    pub mounted: SystemTime,
    /// Process that serves the mount, for `user.torrentfs.pid`.
    pub pid: u32,
}

/// The attributes of an inode, as `stat` shows them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// `st_ino`
    pub ino: u64,
    /// `st_size`, in bytes.
    pub size: u64,
    /// `st_blocks`, in units of 512 bytes: always the full size, because `tar -S` would archive missing blocks as
    /// zeros.
    pub blocks: u64,
    /// All of its times.
    pub time: SystemTime,
    /// Permission bits.
    pub permissions: u16,
    /// `st_nlink`
    pub links: u32,
    /// `st_uid`
    pub uid: u32,
    /// `st_gid`
    pub gid: u32,
    /// `st_blksize`, in bytes.
    pub block_size: u32,
}

/// The result of `statfs`: a full, read-only filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statistics {
    /// Size of all files, in blocks of `block_size`.
    pub blocks: u64,
    /// Number of inodes.
    pub inodes: u64,
    /// Block size, in bytes.
    pub block_size: u32,
    /// Maximum length of a name, in bytes.
    pub max_name: u32,
}

/// An open file.
#[derive(Debug)]
pub struct Handle<R> {
    reader: R,
    /// Declared last, so dropped after the reader: the torrent may be stopped once the last receiver is gone.
    _open: watch::Receiver<()>,
}

/// The open handles of a torrent. Each holds a receiver, so the channel is closed while no file is open.
pub type OpenHandles = Arc<watch::Sender<()>>;

#[derive(Debug)]
struct Item<C> {
    content: Arc<C>,
    handles: OpenHandles,
}

/// The torrents of one mount, as files. Torrents are added and removed; a removed one keeps serving its open files.
#[derive(Debug)]
pub struct Vfs<C> {
    contents: HashMap<InfoHash, Item<C>>,
    tree: Tree,
    view: View,
    /// Time of the last change of the root.
    changed: SystemTime,
}

impl<C: Content> Vfs<C> {
    /// Returns an empty filesystem.
    pub fn new(view: View) -> Self {
        Self { contents: HashMap::new(), tree: Tree::default(), changed: view.mounted, view }
    }

    /// Adds a torrent, be it new or removed before; `subtree` must be its own. Returns the names in the root that
    /// changed.
    ///
    /// # Errors
    /// If the torrent is mounted already.
    pub fn add(&mut self, content: Arc<C>, subtree: Subtree, now: SystemTime) -> Result<Vec<Arc<str>>, TreeError> {
        let info_hash = content.metainfo().info_hash;
        let changed = self.tree.add(subtree)?;
        // Handles that were opened before the torrent was removed still count.
        let handles = self.contents.remove(&info_hash).map_or_else(OpenHandles::default, |item| item.handles);
        self.contents.insert(info_hash, Item { content, handles });
        self.changed = now;
        Ok(changed)
    }

    /// Removes a torrent from the root: its open files stay readable, but no more can be opened. Returns the names in
    /// the root that changed and the open handles, or `None` if the torrent is not mounted.
    pub fn remove(&mut self, info_hash: InfoHash, now: SystemTime) -> Option<(Vec<Arc<str>>, OpenHandles)> {
        let changed = self.tree.hide(info_hash)?;
        self.changed = now;
        Some((changed, self.contents.get(&info_hash)?.handles.clone()))
    }

    /// Drops a removed torrent whose files are all closed. Returns whether it did.
    pub fn forget(&mut self, info_hash: InfoHash) -> bool {
        let is_unused = self.contents.get(&info_hash).is_some_and(|item| item.handles.is_closed());
        let removed = is_unused && self.tree.name(info_hash).is_none();
        if removed {
            self.contents.remove(&info_hash);
            self.tree.forget(info_hash);
        }
        removed
    }

    /// Returns the inodes.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Returns the attributes of an inode, for `stat`.
    pub fn attributes(&self, ino: u64) -> Result<Attributes, Error> {
        let kind = self.tree.kind(ino).ok_or(Error::NoEntry)?;
        let (size, permissions, links) = match kind {
            Kind::Directory { subdirectories } => (0, 0o555, subdirectories.saturating_add(2)),
            Kind::File { len, executable, .. } => (*len, if *executable { 0o555 } else { 0o444 }, 1),
            Kind::Symlink { target } => (target.len() as u64, 0o777, 1),
        };
        let is_symlink = matches!(kind, Kind::Symlink { .. });
        Ok(Attributes {
            ino,
            size,
            blocks: size.div_ceil(SECTOR),
            time: self.time(ino),
            permissions: if is_symlink { permissions } else { permissions & !self.view.umask },
            links,
            uid: self.view.uid,
            gid: self.view.gid,
            block_size: BLOCK,
        })
    }

    fn time(&self, ino: u64) -> SystemTime {
        if ino == ROOT {
            return self.changed;
        }
        let date = self.content(ino).and_then(|content| content.metainfo().creation_date);
        date.filter(|date| (1..=MAX_DATE).contains(date))
            .and_then(|date| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(date.unsigned_abs())))
            .unwrap_or(self.view.mounted)
    }

    /// Returns the inode with this name in a directory. The kernel asks for `.` and `..` when it has only the number of an
    /// inode, as in a file handle; `.` exists in every kind of inode.
    pub fn lookup(&self, directory: u64, name: &str) -> Result<u64, Error> {
        if (name == "." || name == "..") && !self.is_shown(directory) {
            return Err(Error::NoEntry);
        }
        if name == "." {
            return Ok(directory);
        }
        self.check_directory(directory)?;
        if name == ".." {
            return self.tree.parent(directory).ok_or(Error::NoEntry);
        }
        self.tree.lookup(directory, name).ok_or(Error::NoEntry)
    }

    /// Whether an inode can be reached from the root.
    pub fn is_shown(&self, ino: u64) -> bool {
        ino == ROOT || self.tree.torrent(ino).is_some_and(|torrent| self.tree.name(torrent).is_some())
    }

    /// Fails unless an inode is a directory.
    pub fn check_directory(&self, ino: u64) -> Result<(), Error> {
        match self.tree.kind(ino) {
            Some(Kind::Directory { .. }) => Ok(()),
            Some(_) => Err(Error::NotDirectory),
            None => Err(Error::NoEntry),
        }
    }

    /// Returns the target of a symbolic link.
    pub fn link_target(&self, ino: u64) -> Result<&str, Error> {
        match self.tree.kind(ino) {
            Some(Kind::Symlink { target }) => Ok(target),
            Some(_) => Err(Error::Invalid),
            None => Err(Error::NoEntry),
        }
    }

    /// Opens a regular file with the flags of `open(2)`.
    pub fn open(&self, ino: u64, flags: i32) -> Result<Handle<C::Reader>, Error> {
        if flags & libc::O_ACCMODE != libc::O_RDONLY || flags & libc::O_TRUNC != 0 {
            return Err(Error::ReadOnly);
        }
        match (self.tree.kind(ino), self.item(ino)) {
            (Some(Kind::File { index, .. }), Some(item)) => {
                if !self.is_shown(ino) {
                    return Err(Error::NoEntry);
                }
                let open = item.handles.subscribe();
                let reader = item.content.open(*index).ok_or(Error::NoEntry)?;
                Ok(Handle { reader, _open: open })
            }
            (Some(Kind::Directory { .. }), _) => Err(Error::IsDirectory),
            (Some(_), _) => Err(Error::Invalid),
            (None, _) => Err(Error::NoEntry),
        }
    }

    /// Answers `SEEK_DATA` and `SEEK_HOLE`: a file is all data, and its only hole is the implicit one at its end.
    pub fn seek(&self, ino: u64, offset: i64, whence: i32) -> Result<i64, Error> {
        let Some(Kind::File { len, .. }) = self.tree.kind(ino) else { return Err(Error::Invalid) };
        let len = i64::try_from(*len).unwrap_or(i64::MAX);
        match whence {
            libc::SEEK_DATA | libc::SEEK_HOLE if !(0..len).contains(&offset) => Err(Error::PastEnd),
            libc::SEEK_DATA => Ok(offset),
            libc::SEEK_HOLE => Ok(len),
            _ => Err(Error::Invalid),
        }
    }

    /// Returns the totals of the filesystem, for `statfs`.
    pub fn statistics(&self) -> Statistics {
        Statistics {
            blocks: self.tree.bytes().div_ceil(u64::from(BLOCK)),
            inodes: self.tree.inodes(),
            block_size: BLOCK,
            max_name: MAX_NAME as u32,
        }
    }

    /// Returns the names of an inode's extended attributes, without [`ATTRIBUTE_PREFIX`].
    pub fn extended_attributes(&self, ino: u64) -> Result<&'static [&'static str], Error> {
        match self.tree.kind(ino) {
            None => Err(Error::NoEntry),
            // The kernel allows no `user.` attributes on symbolic links.
            Some(Kind::Symlink { .. }) => Ok(&[]),
            Some(_) if ino == ROOT => Ok(&["progress", "pieces", "pid"]),
            Some(_) => Ok(&["infohash", "progress", "pieces"]),
        }
    }

    /// Returns the value of an extended attribute.
    ///
    /// # Errors
    /// [`Unsupported`](Error::Unsupported) for every class but `user.`: then `ls -l` asks once, instead of two or three
    /// times per file as after ENODATA.
    pub fn extended_attribute(&self, ino: u64, name: &str) -> Result<String, Error> {
        if !name.starts_with(USER_CLASS) {
            return Err(Error::Unsupported);
        }
        let name = name.strip_prefix(ATTRIBUTE_PREFIX).ok_or(Error::NoAttribute)?;
        let name = self.extended_attributes(ino)?.iter().find(|known| **known == name).ok_or(Error::NoAttribute)?;
        match *name {
            "infohash" => self.content(ino).map(|content| content.metainfo().info_hash.to_string()),
            "progress" => Some(self.progress(ino).percent().to_string()),
            "pieces" => {
                Some(self.progress(ino)).map(|progress| format!("{}/{}", progress.have_pieces, progress.pieces))
            }
            "pid" => Some(self.view.pid.to_string()),
            _ => None,
        }
        .ok_or(Error::NoAttribute)
    }

    fn item(&self, ino: u64) -> Option<&Item<C>> {
        self.contents.get(&self.tree.torrent(ino)?)
    }

    fn content(&self, ino: u64) -> Option<&Arc<C>> {
        self.item(ino).map(|item| &item.content)
    }

    /// Returns how much we have of the files at and below an inode.
    fn progress(&self, ino: u64) -> Progress {
        let mut progress = Progress::default();
        for (torrent, files) in self.tree.files_below(ino) {
            let Some(Item { content, .. }) = self.contents.get(&torrent) else { continue };
            let layout = &content.metainfo().layout;
            // End of the last piece counted, so that a piece of two files counts once.
            let mut counted = 0;
            for bytes in spans(layout, &files) {
                let pieces = layout.lengths().pieces_in(&bytes).numbers();
                progress.bytes += bytes.end - bytes.start;
                progress.have_bytes += have_bytes(content.as_ref(), &bytes);
                let new = pieces.start.max(counted)..pieces.end;
                counted = pieces.end;
                progress.pieces += new.len() as u64;
                progress.have_pieces += u64::from(if new.is_empty() { 0 } else { content.have_count(new) });
            }
        }
        progress
    }
}

/// How much we have of some files.
#[derive(Debug, Default)]
struct Progress {
    bytes: u64,
    have_bytes: u64,
    pieces: u64,
    have_pieces: u64,
}

impl Progress {
    /// Returns the percentage of the bytes that we have; 100 only if that is all of them.
    fn percent(&self) -> u64 {
        let share = u128::from(self.have_bytes) * 100 / u128::from(self.bytes.max(1));
        if self.have_bytes >= self.bytes { 100 } else { share.min(99) as u64 }
    }
}

/// Returns the byte ranges of these files in the torrent, with adjacent ones joined.
fn spans(layout: &Layout, files: &[FileIndex]) -> Vec<Range<u64>> {
    let mut spans: Vec<Range<u64>> = Vec::new();
    for bytes in files.iter().filter_map(|index| layout.file(*index)).map(|file| file.range()) {
        match spans.last_mut() {
            _ if bytes.is_empty() => {}
            Some(last) if last.end == bytes.start => last.end = bytes.end,
            _ => spans.push(bytes),
        }
    }
    spans
}

/// Returns how many of these bytes we have. The pieces at the edges count in part, those between them whole.
fn have_bytes<C: Content>(content: &C, bytes: &Range<u64>) -> u64 {
    let lengths = content.metainfo().layout.lengths();
    let (pieces, mut parts) = (lengths.pieces_in(bytes).numbers(), lengths.parts(bytes));
    let edges = parts.next().into_iter().chain(parts.next_back());
    let have = edges.filter(|(piece, _)| content.have_count(piece.get()..piece.get() + 1) == 1);
    let at_edges: u64 = have.map(|(_, part)| u64::from(part.end - part.start)).sum();
    let inner = pieces.start + 1..pieces.end.saturating_sub(1);
    at_edges + if inner.is_empty() { 0 } else { lengths.full_pieces(content.have_count(inner)) }
}

impl<R: Reader> Handle<R> {
    /// Returns the part of the file that a read covers.
    pub fn span(&self, offset: u64, len: u32) -> R::Span {
        self.reader.span(offset, len)
    }

    /// Reads bytes that are available now.
    pub fn read_now(&self, span: &R::Span) -> Option<Bytes> {
        self.reader.read_now(span)
    }

    /// Returns the reader.
    pub fn reader(&self) -> &R {
        &self.reader
    }

    /// Reads bytes, waiting for them.
    pub async fn wait(&self, span: &R::Span) -> Result<Bytes, ReadError> {
        self.reader.wait(span).await
    }
}

#[cfg(test)]
mod tests;
