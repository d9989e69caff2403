//! The filesystem without FUSE: attributes, extended attributes, open files.
//!
//! Everything here but [`Handle::read`] answers at once. Extended attributes tell of progress:
//!
//! | attribute | of | value |
//! |---|---|---|
//! | `user.torrentfs.infohash` | all but the root | 40 hexadecimal digits |
//! | `user.torrentfs.progress` | files, directories | 0 to 100: the share of its bytes that is had, rounded down |
//! | `user.torrentfs.pieces` | files, directories | `had/total` of the pieces that hold its bytes |
//! | `user.torrentfs.pid` | the root | the process that serves the mount |

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use tokio::sync::watch;

use super::content::{Content, ReadError, Reader};
use super::tree::{Branch, Kind, ROOT, Tree, TreeError};
use crate::metainfo::{FileIndex, InfoHash, Layout, MAX_DATE};

/// The prefix of every extended attribute of ours.
pub const ATTRIBUTE_PREFIX: &str = "user.torrentfs.";

/// The class of attributes that users give, and the only one here: no ACLs, capabilities or labels.
const USER_CLASS: &str = "user.";

/// The unit of `st_blocks` and of `statfs`, in bytes.
const SECTOR: u64 = 512;
/// Told as the best unit of reading, in bytes.
const BLOCK: u32 = 4096;

/// Why a request was refused.
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
    #[error("no attributes of this kind")]
    Unsupported,
    /// ENXIO
    #[error("offset past the end")]
    PastEnd,
    /// EROFS
    #[error("read-only filesystem")]
    ReadOnly,
}

impl Error {
    /// The number for it in `errno`.
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

/// How things are shown.
#[derive(Clone, Debug)]
pub struct View {
    /// The owner of everything.
    pub uid: u32,
    /// The group of everything.
    pub gid: u32,
    /// Permission bits taken away from 0444 and 0555.
    pub umask: u16,
    /// The age of what has no date of its own.
    pub mounted: SystemTime,
    /// The process that serves the mount, for `user.torrentfs.pid`.
    pub pid: u32,
}

/// The attributes of an inode, as `stat` shows them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// `st_ino`
    pub ino: u64,
    /// `st_size`, in bytes.
    pub size: u64,
    /// `st_blocks`, in 512 bytes: always the full size. Less would read as holes, which `tar -S` archives as zeros.
    pub blocks: u64,
    /// Every time of it.
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

/// What `statfs` shows: a full, read-only filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statistics {
    /// Blocks of `block_size` in all files.
    pub blocks: u64,
    /// Inodes.
    pub inodes: u64,
    /// In bytes.
    pub block_size: u32,
    /// The longest name, in bytes.
    pub max_name: u32,
}

/// An open file.
#[derive(Debug)]
pub struct Handle<R> {
    reader: R,
    len: u64,
    /// Dropped last: whoever waits for the end of use may then stop the torrent.
    _in_use: watch::Receiver<()>,
}

/// Ends when no file of a torrent is open.
pub type Unused = Arc<watch::Sender<()>>;

#[derive(Debug)]
struct Item<C> {
    content: Arc<C>,
    /// Every open handle has a receiver.
    users: Unused,
}

/// The torrents of one mount, as files. They come and go; of one that is removed the open files go on.
#[derive(Debug)]
pub struct Vfs<C> {
    contents: HashMap<InfoHash, Item<C>>,
    tree: Tree,
    view: View,
    /// When the root changed last.
    changed: SystemTime,
}

impl<C: Content> Vfs<C> {
    /// Shows nothing yet.
    pub fn new(view: View) -> Self {
        Self { contents: HashMap::new(), tree: Tree::default(), changed: view.mounted, view }
    }

    /// Shows a torrent, a new one or one that was removed; `branch` was made of it. Gives the names in the root that
    /// show something else now.
    ///
    /// # Errors
    /// If it is shown already.
    pub fn add(&mut self, content: Arc<C>, branch: Branch, now: SystemTime) -> Result<Vec<Arc<str>>, TreeError> {
        let info_hash = content.metainfo().info_hash;
        let changed = self.tree.add(branch)?;
        // What was open before it was removed is in use still.
        let users = self.contents.remove(&info_hash).map_or_else(Unused::default, |item| item.users);
        self.contents.insert(info_hash, Item { content, users });
        self.changed = now;
        Ok(changed)
    }

    /// Shows a torrent no longer; files of it that are open go on, and no more can be opened. Gives the names in the root
    /// that show something else now, and what tells of the last of these files; `None`: it is not there.
    pub fn remove(&mut self, info_hash: InfoHash, now: SystemTime) -> Option<(Vec<Arc<str>>, Unused)> {
        let changed = self.tree.hide(info_hash)?;
        self.changed = now;
        Some((changed, self.contents.get(&info_hash)?.users.clone()))
    }

    /// Forgets a removed torrent of which no file is open. Whether it did.
    pub fn forget(&mut self, info_hash: InfoHash) -> bool {
        let unused = self.contents.get(&info_hash).is_some_and(|item| item.users.is_closed());
        let removed = unused && self.tree.name(info_hash).is_none();
        if removed {
            self.contents.remove(&info_hash);
            self.tree.forget(info_hash);
        }
        removed
    }

    /// Names, kinds and directories.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// What `stat` answers.
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

    /// The inode of a name in a directory.
    pub fn lookup(&self, directory: u64, name: &str) -> Result<u64, Error> {
        self.check_directory(directory)?;
        self.tree.lookup(directory, name).ok_or(Error::NoEntry)
    }

    /// Whether an inode can be reached from the root.
    pub fn is_shown(&self, ino: u64) -> bool {
        ino == ROOT || self.tree.torrent(ino).is_some_and(|torrent| self.tree.name(torrent).is_some())
    }

    /// That an inode is a directory.
    pub fn check_directory(&self, ino: u64) -> Result<(), Error> {
        match self.tree.kind(ino) {
            Some(Kind::Directory { .. }) => Ok(()),
            Some(_) => Err(Error::NotDirectory),
            None => Err(Error::NoEntry),
        }
    }

    /// Where a symbolic link leads.
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
            (Some(Kind::File { index, len, .. }), Some(item)) => {
                if !self.is_shown(ino) {
                    return Err(Error::NoEntry);
                }
                let in_use = item.users.subscribe();
                let reader = item.content.open(*index).ok_or(Error::NoEntry)?;
                Ok(Handle { reader, len: *len, _in_use: in_use })
            }
            (Some(Kind::Directory { .. }), _) => Err(Error::IsDirectory),
            (Some(_), _) => Err(Error::Invalid),
            (None, _) => Err(Error::NoEntry),
        }
    }

    /// `SEEK_DATA` and `SEEK_HOLE`: a file is all data, with the hole that is always at the end.
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

    /// What `statfs` answers.
    pub fn statistics(&self) -> Statistics {
        Statistics {
            blocks: self.tree.bytes().div_ceil(u64::from(BLOCK)),
            inodes: self.tree.inodes(),
            block_size: BLOCK,
            max_name: super::tree::MAX_NAME as u32,
        }
    }

    /// The names of an inode's extended attributes, without [`ATTRIBUTE_PREFIX`].
    pub fn extended_attributes(&self, ino: u64) -> Result<&'static [&'static str], Error> {
        match self.tree.kind(ino) {
            None => Err(Error::NoEntry),
            // The kernel lets no symbolic link have `user.` attributes.
            Some(Kind::Symlink { .. }) => Ok(&[]),
            Some(_) if ino == ROOT => Ok(&["progress", "pieces", "pid"]),
            Some(_) => Ok(&["infohash", "progress", "pieces"]),
        }
    }

    /// The value of an extended attribute.
    ///
    /// # Errors
    /// [`Unsupported`](Error::Unsupported) for every class but `user.`: `ls -l` then asks once, and not two or three times
    /// for each file, as it must after ENODATA.
    pub fn extended_attribute(&self, ino: u64, name: &str) -> Result<String, Error> {
        if !name.starts_with(USER_CLASS) {
            return Err(Error::Unsupported);
        }
        let name = name.strip_prefix(ATTRIBUTE_PREFIX).ok_or(Error::NoAttribute)?;
        let name = self.extended_attributes(ino)?.iter().find(|known| **known == name).ok_or(Error::NoAttribute)?;
        match *name {
            "infohash" => self.content(ino).map(|content| content.metainfo().info_hash.to_string()),
            "progress" => Some(self.progress(ino).percent().to_string()),
            "pieces" => Some(self.progress(ino)).map(|progress| format!("{}/{}", progress.had, progress.pieces)),
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

    /// How much of an inode, and of all below it, is had.
    fn progress(&self, ino: u64) -> Progress {
        let mut progress = Progress::default();
        for (torrent, files) in self.tree.files_below(ino) {
            let Some(Item { content, .. }) = self.contents.get(&torrent) else { continue };
            let layout = &content.metainfo().layout;
            // A piece that two files share is counted once.
            let mut counted = 0;
            for bytes in spans(layout, &files) {
                let pieces = layout.lengths().pieces_in(&bytes).numbers();
                progress.bytes += bytes.end - bytes.start;
                progress.had_bytes += had_bytes(content.as_ref(), &bytes);
                let new = pieces.start.max(counted)..pieces.end;
                counted = pieces.end;
                progress.pieces += new.len() as u64;
                progress.had += u64::from(if new.is_empty() { 0 } else { content.had(new) });
            }
        }
        progress
    }
}

/// How much is had.
#[derive(Debug, Default)]
struct Progress {
    bytes: u64,
    had_bytes: u64,
    pieces: u64,
    had: u64,
}

impl Progress {
    /// 100 only when all is had.
    fn percent(&self) -> u64 {
        let share = u128::from(self.had_bytes) * 100 / u128::from(self.bytes.max(1));
        if self.had_bytes >= self.bytes { 100 } else { share.min(99) as u64 }
    }
}

/// Where these files lie in the torrent; neighbours are joined.
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
fn had_bytes<C: Content>(content: &C, bytes: &Range<u64>) -> u64 {
    let lengths = content.metainfo().layout.lengths();
    let (pieces, mut parts) = (lengths.pieces_in(bytes).numbers(), lengths.parts(bytes));
    let edges = parts.next().into_iter().chain(parts.next_back());
    let had = edges.filter(|(piece, _)| content.had(piece.get()..piece.get() + 1) == 1);
    let at_edges: u64 = had.map(|(_, part)| u64::from(part.end - part.start)).sum();
    let inner = pieces.start + 1..pieces.end.saturating_sub(1);
    at_edges + if inner.is_empty() { 0 } else { lengths.full_pieces(content.had(inner)) }
}

impl<R: Reader> Handle<R> {
    /// How many bytes a read at an offset gives: fewer than asked for only at the end of the file.
    pub fn clip(&self, offset: u64, len: u32) -> u32 {
        self.len.saturating_sub(offset).min(u64::from(len)) as u32
    }

    /// A read that can be answered now; `len` as [`clip`](Self::clip) gave it.
    pub fn read_now(&self, offset: u64, len: u32) -> Option<Bytes> {
        if len == 0 {
            return Some(Bytes::new());
        }
        // An answer of another length is a fault that `read` reports.
        self.reader.read_now(offset, len).filter(|bytes| bytes.len() == len as usize)
    }

    /// A read that waits; `len` as [`clip`](Self::clip) gave it.
    pub async fn read(&self, offset: u64, len: u32) -> Result<Bytes, ReadError> {
        let bytes = self.reader.read(offset, len).await?;
        if bytes.len() == len as usize { Ok(bytes) } else { Err(ReadError::Length { wanted: len, got: bytes.len() }) }
    }
}

#[cfg(test)]
mod tests;
