//! Attributes, reads and extended attributes of artificial torrents.

use super::super::testing::{file, metainfo};
use super::*;
use crate::metainfo::Metainfo;
use proptest::prelude::*;

/// A torrent with some of its pieces.
struct Fake {
    metainfo: Metainfo,
    have: Vec<bool>,
}

struct FakeReader;

impl Content for Fake {
    type Reader = FakeReader;
    fn metainfo(&self) -> &Metainfo {
        &self.metainfo
    }
    fn open(self: &Arc<Self>, _: FileIndex) -> Option<FakeReader> {
        Some(FakeReader)
    }
    fn have_count(&self, pieces: Range<u32>) -> u32 {
        self.have[pieces.start as usize..pieces.end as usize].iter().filter(|have| **have).count() as u32
    }
}

impl Reader for FakeReader {
    type Span = usize;
    fn span(&self, _: u64, len: u32) -> usize {
        len as usize
    }
    fn read_now(&self, len: &usize) -> Option<Bytes> {
        Some(vec![7; *len].into())
    }
    async fn wait(&self, len: &usize) -> Result<Bytes, ReadError> {
        Ok(vec![7; *len].into())
    }
}

fn view() -> View {
    View { uid: 5, gid: 6, umask: 0, mounted: SystemTime::UNIX_EPOCH + Duration::from_secs(77), pid: 42 }
}

fn vfs(metainfo: Metainfo, have: &[bool], view: View) -> Vfs<Fake> {
    vfs_of(Fake { metainfo, have: have.to_vec() }, view)
}

fn vfs_of(fake: Fake, view: View) -> Vfs<Fake> {
    let (subtree, mounted) = (Subtree::new(&fake.metainfo), view.mounted);
    let mut vfs = Vfs::new(view);
    vfs.add(Arc::new(fake), subtree, mounted).unwrap();
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
fn the_umask_removes_permissions() {
    let vfs = vfs(album(), &[false; 260], View { umask: 0o077, ..view() });
    assert_eq!(vfs.attributes(find(&vfs, "a/one")).unwrap().permissions, 0o400);
    assert_eq!(vfs.attributes(find(&vfs, "a/d/two")).unwrap().permissions, 0o500);
    assert_eq!(vfs.attributes(ROOT).unwrap().permissions, 0o500);
}

#[test]
fn a_bogus_creation_date_is_ignored() {
    for date in [None, Some(0), Some(-5), Some(i64::MIN), Some(i64::MAX)] {
        let vfs = vfs(Metainfo { creation_date: date, ..album() }, &[false; 260], view());
        assert_eq!(vfs.attributes(find(&vfs, "a/one")).unwrap().time, view().mounted, "{date:?}");
    }
}

#[test]
fn only_regular_files_can_be_opened_and_only_for_reading() {
    let vfs = vfs(album(), &[false; 260], view());
    let one = find(&vfs, "a/one");
    assert!(vfs.open(one, libc::O_RDONLY | libc::O_NONBLOCK).is_ok());
    for flags in [libc::O_WRONLY, libc::O_RDWR, libc::O_RDONLY | libc::O_TRUNC] {
        assert_eq!(vfs.open(one, flags).err(), Some(Error::ReadOnly));
    }
    assert_eq!(vfs.open(find(&vfs, "a"), 0).err(), Some(Error::IsDirectory));
    assert_eq!(vfs.open(find(&vfs, "a/link"), 0).err(), Some(Error::Invalid));
    assert_eq!(vfs.open(3, 0).err(), Some(Error::NoEntry));
}

#[tokio::test]
async fn a_removed_torrent_is_in_use_until_its_last_file_is_closed() {
    let mut vfs = vfs(album(), &[false; 260], view());
    let (hash, one) = (album().info_hash, find(&vfs, "a/one"));
    let later = view().mounted + Duration::from_secs(5);
    let handles = [vfs.open(one, 0).unwrap(), vfs.open(one, 0).unwrap()];
    let (changed, open) = vfs.remove(hash, later).unwrap();
    assert_eq!(changed, [Arc::from("a")]);
    assert!(vfs.remove(hash, later).is_none());
    assert_eq!(vfs.lookup(ROOT, "a"), Err(Error::NoEntry));
    assert_eq!(vfs.open(one, 0).err(), Some(Error::NoEntry));
    assert_eq!(vfs.attributes(one).unwrap().size, 6, "for fstat");
    assert_eq!(handles[0].wait(&handles[0].span(0, 4)).await.unwrap().len(), 4);
    assert_eq!(vfs.attributes(ROOT).unwrap().time, later);
    let [first, last] = handles;
    drop(first);
    assert!(!open.is_closed() && !vfs.forget(hash));
    // Added again, it keeps its open handle, and cannot be forgotten.
    let fake = vfs.contents[&hash].content.clone();
    vfs.add(fake, Subtree::new(&album()), later).unwrap();
    drop(last);
    open.closed().await;
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
fn extended_attributes_report_progress() {
    // Pieces of 4 bytes: `one` is 0..6 (pieces 0 and 1), `two` is 6..11 (1 and 2), `three` is 12..1037 (3 to 259).
    let mut have = [false; 260];
    have[1] = true;
    let vfs = vfs(album(), &have, view());
    let get = |path: &str, name: &str| vfs.extended_attribute(find(&vfs, path), &format!("{ATTRIBUTE_PREFIX}{name}"));
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
    /// The reference counts every byte by itself.
    #[test]
    fn progress_counts_every_byte_and_piece_once(
        files in prop::collection::vec((0u64..20, 0u8..4), 1..12),
        have in prop::collection::vec(any::<bool>(), 60),
    ) {
        let files: Vec<_> = files.into_iter().enumerate().map(|(n, (len, kind))| match kind {
            0 => file(&format!("t/pad{n}"), len).pad(),
            1 => file(&format!("t/odd/{n}"), len),
            _ => file(&format!("t/even/{n}"), len),
        }).collect();
        prop_assume!(files.iter().any(|file| file.len > 0));
        let vfs = vfs(metainfo(1, "t", files), &have, view());
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
            prop_assert_eq!(progress.have_bytes, bytes.iter().filter(|byte| have[(**byte / 4) as usize]).count() as u64);
            prop_assert_eq!(progress.pieces, pieces.len() as u64);
            prop_assert_eq!(progress.have_pieces, pieces.iter().filter(|piece| have[**piece]).count() as u64);
            prop_assert_eq!(progress.percent() == 100, progress.bytes == progress.have_bytes);
        }
    }
}
