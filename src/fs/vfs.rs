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
use crate::metainfo::{FileIndex, InfoHash, Layout};

/// The prefix of every extended attribute of ours.
pub const ATTRIBUTE_PREFIX: &str = "user.torrentfs.";

/// The class of attributes that users give, and the only one here: no ACLs, capabilities or labels.
const USER_CLASS: &str = "user.";

/// The unit of `st_blocks` and of `statfs`, in bytes.
const SECTOR: u64 = 512;
/// Told as the best unit of reading, in bytes.
const BLOCK: u32 = 4096;
/// The last second of the year 9999; a torrent that claims to be younger is not believed.
const LAST_DATE: i64 = 253_402_300_799;

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
        date.filter(|date| (1..=LAST_DATE).contains(date))
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
                let pieces = piece_numbers(layout, &bytes);
                progress.bytes += bytes.end - bytes.start;
                progress.had_bytes += had_bytes(content.as_ref(), &bytes, &pieces);
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

/// The pieces that hold any of these bytes.
fn piece_numbers(layout: &Layout, bytes: &Range<u64>) -> Range<u32> {
    let mut pieces = layout.lengths().pieces_in(bytes);
    match (pieces.next(), pieces.next_back()) {
        (Some(first), last) => first.get()..last.unwrap_or(first).get() + 1,
        (None, _) => 0..0,
    }
}

/// How many of these bytes are had: the pieces within count whole, those at the edges in part.
fn had_bytes<C: Content>(content: &C, bytes: &Range<u64>, pieces: &Range<u32>) -> u64 {
    let lengths = content.metainfo().layout.lengths();
    let edge = |number: u32| {
        let Some(piece) = lengths.piece(number).filter(|_| content.had(number..number + 1) == 1) else { return 0 };
        let piece = lengths.range_of(piece);
        piece.end.min(bytes.end) - piece.start.max(bytes.start)
    };
    match pieces.len() {
        0 => 0,
        1 => edge(pieces.start),
        _ => {
            let inner = pieces.start + 1..pieces.end - 1;
            let whole = if inner.is_empty() { 0 } else { content.had(inner) };
            edge(pieces.start) + u64::from(whole) * u64::from(lengths.piece_len()) + edge(pieces.end - 1)
        }
    }
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
mod tests {
    use super::super::testing::{file, metainfo};
    use super::*;
    use crate::metainfo::Metainfo;
    use proptest::prelude::*;

    /// A torrent of which some pieces are had; its readers give `extra` bytes more than asked for.
    struct Fake {
        metainfo: Metainfo,
        had: Vec<bool>,
        extra: usize,
    }

    struct FakeReader(usize);

    impl Content for Fake {
        type Reader = FakeReader;
        fn metainfo(&self) -> &Metainfo {
            &self.metainfo
        }
        fn open(self: &Arc<Self>, _: FileIndex) -> Option<FakeReader> {
            Some(FakeReader(self.extra))
        }
        fn had(&self, pieces: Range<u32>) -> u32 {
            self.had[pieces.start as usize..pieces.end as usize].iter().filter(|had| **had).count() as u32
        }
    }

    impl Reader for FakeReader {
        fn read_now(&self, _: u64, len: u32) -> Option<Bytes> {
            Some(vec![7; len as usize + self.0].into())
        }
        async fn read(&self, _: u64, len: u32) -> Result<Bytes, ReadError> {
            Ok(vec![7; len as usize + self.0].into())
        }
    }

    fn view() -> View {
        View { uid: 5, gid: 6, umask: 0, mounted: SystemTime::UNIX_EPOCH + Duration::from_secs(77), pid: 42 }
    }

    fn vfs(metainfo: Metainfo, had: &[bool], view: View) -> Vfs<Fake> {
        showing(Fake { metainfo, had: had.to_vec(), extra: 0 }, view)
    }

    fn showing(fake: Fake, view: View) -> Vfs<Fake> {
        let (branch, mounted) = (Branch::new(&fake.metainfo), view.mounted);
        let mut vfs = Vfs::new(view);
        vfs.add(Arc::new(fake), branch, mounted).unwrap();
        vfs
    }

    fn album() -> Metainfo {
        metainfo(
            1,
            "a",
            vec![
                file("a/one", 6),
                file("a/d/two", 5).executable(),
                file("a/void", 0),
                file("a/pad", 1).pad(),
                file("a/link", 0).symlink("d/two"),
                file("a/d/three", 1025),
            ],
        )
    }

    fn find<C: Content>(vfs: &Vfs<C>, path: &str) -> u64 {
        path.split('/').fold(ROOT, |at, name| vfs.lookup(at, name).unwrap())
    }

    #[test]
    fn attributes_show_a_full_read_only_file() {
        let vfs = vfs(album(), &[false; 260], view());
        let three = vfs.attributes(find(&vfs, "a/d/three")).unwrap();
        assert_eq!((three.size, three.blocks, three.permissions, three.links), (1025, 3, 0o444, 1));
        assert_eq!((three.uid, three.gid), (5, 6));
        assert_eq!(three.time, SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000));
        assert_eq!(vfs.attributes(find(&vfs, "a/d/two")).unwrap().permissions, 0o555);
        let directory = vfs.attributes(find(&vfs, "a")).unwrap();
        assert_eq!((directory.permissions, directory.links), (0o555, 3));
        let link = vfs.attributes(find(&vfs, "a/link")).unwrap();
        assert_eq!((link.size, link.permissions), (5, 0o777));
        assert_eq!(vfs.link_target(find(&vfs, "a/link")), Ok("d/two"));
        assert_eq!(vfs.link_target(find(&vfs, "a")), Err(Error::Invalid));
        assert_eq!(vfs.attributes(ROOT).unwrap().time, view().mounted);
        assert_eq!(vfs.attributes(999), Err(Error::NoEntry));
        assert_eq!(vfs.statistics(), Statistics { blocks: 1, inodes: 8, block_size: 4096, max_name: 255 });
    }

    #[test]
    fn the_umask_takes_permissions_away() {
        let vfs = vfs(album(), &[false; 260], View { umask: 0o077, ..view() });
        assert_eq!(vfs.attributes(find(&vfs, "a/one")).unwrap().permissions, 0o400);
        assert_eq!(vfs.attributes(find(&vfs, "a/d/two")).unwrap().permissions, 0o500);
        assert_eq!(vfs.attributes(ROOT).unwrap().permissions, 0o500);
    }

    #[test]
    fn a_date_beyond_belief_is_not_shown() {
        for date in [None, Some(0), Some(-5), Some(i64::MIN), Some(i64::MAX)] {
            let vfs = vfs(Metainfo { creation_date: date, ..album() }, &[false; 260], view());
            assert_eq!(vfs.attributes(find(&vfs, "a/one")).unwrap().time, view().mounted, "{date:?}");
        }
    }

    #[test]
    fn only_regular_files_open_and_only_for_reading() {
        let vfs = vfs(album(), &[false; 260], view());
        let one = find(&vfs, "a/one");
        assert_eq!(vfs.open(one, libc::O_RDONLY | libc::O_NONBLOCK).unwrap().clip(0, 100), 6);
        for flags in [libc::O_WRONLY, libc::O_RDWR, libc::O_RDONLY | libc::O_TRUNC] {
            assert_eq!(vfs.open(one, flags).err(), Some(Error::ReadOnly));
        }
        assert_eq!(vfs.open(find(&vfs, "a"), 0).err(), Some(Error::IsDirectory));
        assert_eq!(vfs.open(find(&vfs, "a/link"), 0).err(), Some(Error::Invalid));
        assert_eq!(vfs.open(3, 0).err(), Some(Error::NoEntry));
    }

    #[tokio::test]
    async fn reads_are_clipped_at_the_end_and_never_short() {
        let fake = |extra| showing(Fake { metainfo: album(), had: vec![], extra }, view());
        let good = fake(0);
        let handle = good.open(find(&good, "a/one"), 0).unwrap();
        assert_eq!((handle.clip(0, 4), handle.clip(4, 4), handle.clip(6, 4), handle.clip(u64::MAX, 4)), (4, 2, 0, 0));
        assert_eq!(handle.read_now(6, 0).unwrap().len(), 0);
        assert_eq!(handle.read_now(0, 4).unwrap().len(), 4);
        assert_eq!(handle.read(0, 4).await.unwrap().len(), 4);
        let bad = fake(1);
        let handle = bad.open(find(&bad, "a/one"), 0).unwrap();
        assert!(handle.read_now(0, 4).is_none());
        assert!(matches!(handle.read(0, 4).await, Err(ReadError::Length { wanted: 4, got: 5 })));
    }

    #[tokio::test]
    async fn a_removed_torrent_is_in_use_until_its_last_file_is_closed() {
        let mut vfs = vfs(album(), &[false; 260], view());
        let (hash, one) = (album().info_hash, find(&vfs, "a/one"));
        let later = view().mounted + Duration::from_secs(5);
        let handles = [vfs.open(one, 0).unwrap(), vfs.open(one, 0).unwrap()];
        let (changed, unused) = vfs.remove(hash, later).unwrap();
        assert_eq!(changed, [Arc::from("a")]);
        assert!(vfs.remove(hash, later).is_none());
        assert_eq!(vfs.lookup(ROOT, "a"), Err(Error::NoEntry));
        assert_eq!(vfs.open(one, 0).err(), Some(Error::NoEntry));
        assert_eq!(vfs.attributes(one).unwrap().size, 6, "for fstat");
        assert_eq!(handles[0].read(0, 4).await.unwrap().len(), 4);
        assert_eq!(vfs.attributes(ROOT).unwrap().time, later);
        let [first, last] = handles;
        drop(first);
        assert!(!unused.is_closed() && !vfs.forget(hash));
        // Shown again it has the same user, and cannot be forgotten.
        let fake = vfs.contents[&hash].content.clone();
        vfs.add(fake, Branch::new(&album()), later).unwrap();
        drop(last);
        unused.closed().await;
        assert!(!vfs.forget(hash));
        vfs.remove(hash, later).unwrap().1.closed().await;
        assert!(vfs.forget(hash) && !vfs.forget(hash));
        assert_eq!(vfs.attributes(one), Err(Error::NoEntry));
    }

    #[test]
    fn a_file_is_all_data() {
        let vfs = vfs(album(), &[false; 260], view());
        let one = find(&vfs, "a/one");
        assert_eq!(vfs.seek(one, 2, libc::SEEK_DATA), Ok(2));
        assert_eq!(vfs.seek(one, 2, libc::SEEK_HOLE), Ok(6));
        for offset in [-1, 6, i64::MAX] {
            assert_eq!(vfs.seek(one, offset, libc::SEEK_DATA), Err(Error::PastEnd));
            assert_eq!(vfs.seek(one, offset, libc::SEEK_HOLE), Err(Error::PastEnd));
        }
        assert_eq!(vfs.seek(one, 0, libc::SEEK_SET), Err(Error::Invalid));
    }

    #[test]
    fn extended_attributes_tell_of_progress() {
        // Pieces of 4: `one` has 0..6 (pieces 0, 1), `two` 6..11 (1, 2), `three` 12..1037 (3 to 259).
        let mut had = [false; 260];
        had[1] = true;
        let vfs = vfs(album(), &had, view());
        let get =
            |path: &str, name: &str| vfs.extended_attribute(find(&vfs, path), &format!("{ATTRIBUTE_PREFIX}{name}"));
        assert_eq!(get("a/one", "progress").unwrap(), "33");
        assert_eq!(get("a/one", "pieces").unwrap(), "1/2");
        assert_eq!(get("a/d/two", "progress").unwrap(), "40");
        assert_eq!(get("a/void", "progress").unwrap(), "100");
        assert_eq!(get("a/void", "pieces").unwrap(), "0/0");
        assert_eq!(get("a", "pieces").unwrap(), "1/260");
        assert_eq!(get("a", "progress").unwrap(), "0");
        assert_eq!(get("a/one", "infohash").unwrap(), album().info_hash.to_string());
        assert_eq!(get("a/one", "pid"), Err(Error::NoAttribute));
        assert_eq!(get("a/link", "infohash"), Err(Error::NoAttribute));
        assert_eq!(vfs.extended_attribute(ROOT, "user.torrentfs.pid").unwrap(), "42");
        assert_eq!(vfs.extended_attribute(ROOT, "user.torrentfs.pieces").unwrap(), "1/260");
        assert_eq!(vfs.extended_attribute(ROOT, "user.torrentfs.infohash"), Err(Error::NoAttribute));
        assert_eq!(vfs.extended_attribute(ROOT, "user.mime_type"), Err(Error::NoAttribute));
        for name in ["security.selinux", "system.posix_acl_access", "trusted.overlay.opaque"] {
            assert_eq!(vfs.extended_attribute(ROOT, name), Err(Error::Unsupported), "{name}");
        }
        for ino in [ROOT, find(&vfs, "a"), find(&vfs, "a/one"), find(&vfs, "a/link")] {
            for name in vfs.extended_attributes(ino).unwrap() {
                assert!(vfs.extended_attribute(ino, &format!("{ATTRIBUTE_PREFIX}{name}")).is_ok(), "{name}");
            }
        }
    }

    proptest! {
        /// Against counting every byte by itself.
        #[test]
        fn progress_counts_every_byte_and_piece_once(
            files in prop::collection::vec((0u64..20, 0u8..4), 1..12),
            had in prop::collection::vec(any::<bool>(), 60),
        ) {
            let files: Vec<_> = files.into_iter().enumerate().map(|(n, (len, kind))| match kind {
                0 => file(&format!("t/pad{n}"), len).pad(),
                1 => file(&format!("t/odd/{n}"), len),
                _ => file(&format!("t/even/{n}"), len),
            }).collect();
            prop_assume!(files.iter().any(|file| file.len > 0));
            let vfs = vfs(metainfo(1, "t", files), &had, view());
            let layout = &vfs.contents.values().next().unwrap().content.metainfo.layout;
            for directory in ["odd", "even", ""] {
                let Ok(ino) = [&["t"][..], &[directory][..]].concat().into_iter().filter(|name| !name.is_empty())
                    .try_fold(ROOT, |at, name| vfs.lookup(at, name)) else { continue };
                let bytes: Vec<u64> = layout.files().iter()
                    .filter(|file| file.kind != crate::metainfo::FileKind::Pad)
                    .filter(|file| directory.is_empty() || file.path[1] == directory)
                    .flat_map(|file| file.range()).collect();
                let pieces: std::collections::BTreeSet<usize> = bytes.iter().map(|byte| (byte / 4) as usize).collect();
                let progress = vfs.progress(ino);
                prop_assert_eq!(progress.bytes, bytes.len() as u64);
                prop_assert_eq!(progress.had_bytes, bytes.iter().filter(|byte| had[(**byte / 4) as usize]).count() as u64);
                prop_assert_eq!(progress.pieces, pieces.len() as u64);
                prop_assert_eq!(progress.had, pieces.iter().filter(|piece| had[**piece]).count() as u64);
                prop_assert_eq!(progress.percent() == 100, progress.bytes == progress.had_bytes);
            }
        }
    }
}
