//! Tests of the store's interface: tiers, eviction, a full disk, many threads. Also the helpers that all its tests share.

#![allow(clippy::single_range_in_vec_init, reason = "a pinned set may consist of one range")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use proptest::prelude::*;
use sha1::{Digest, Sha1};

use super::*;
use crate::metainfo::{File, FileKind, InfoHash, Layout, Lengths, PieceHashes, PieceIndex};
use crate::util::lock;

mod changes;
mod held;
mod hostile;
mod leftovers;
mod model;
mod places;
mod restart;

/// A torrent with known content.
#[derive(Clone)]
struct Sample {
    lengths: Lengths,
    bytes: Vec<u8>,
    files: Vec<File>,
    hashes: PieceHashes,
    info_hash: InfoHash,
}

impl Sample {
    /// A torrent with files of these sizes, every third of which is a pad.
    fn new(name: u8, piece_len: u64, sizes: &[u64]) -> Self {
        let total = sizes.iter().sum();
        let lengths = Lengths::new(total, piece_len).unwrap();
        let mut seed = u64::from(name) + 1;
        let mut bytes: Vec<u8> = (0..total)
            .map(|_| {
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (seed >> 33) as u8
            })
            .collect();
        let mut offset = 0;
        let mut files = Vec::new();
        for (n, len) in sizes.iter().enumerate() {
            let pad = n % 3 == 2;
            let path = vec!["name".to_owned(), format!("dir{}", n % 2), format!("file{n}")];
            if pad {
                bytes[offset as usize..(offset + len) as usize].fill(0);
            }
            let kind = if pad { FileKind::Pad } else { FileKind::Regular { executable: false } };
            files.push(File { path, offset, len: *len, kind });
            offset += len;
        }
        let hashes: Vec<u8> = bytes.chunks(piece_len as usize).flat_map(Sha1::digest).collect();
        Self { lengths, bytes, files, hashes: PieceHashes::v1(hashes), info_hash: InfoHash([name; 20]) }
    }

    fn one_file(name: u8, piece_len: u64, pieces: u64) -> Self {
        Self::new(name, piece_len, &[piece_len * pieces])
    }

    fn spec(&self) -> TorrentSpec {
        TorrentSpec {
            info_hash: self.info_hash,
            layout: Layout::new(self.lengths, self.files.clone()).into(),
            hashes: self.hashes.clone(),
            verify: false,
            place: Place::Cache,
            progress: None,
        }
    }

    fn piece(&self, n: u32) -> PieceIndex {
        self.lengths.piece(n).unwrap()
    }

    fn content(&self, n: u32) -> &[u8] {
        let range = self.lengths.range_of(self.piece(n));
        &self.bytes[range.start as usize..range.end as usize]
    }

    fn put(&self, store: &TorrentStore, n: u32) {
        let mut buffer = store.cache().buffer(self.content(n).len());
        buffer.copy_from_slice(self.content(n));
        let verified = store.verify(self.piece(n), buffer.freeze()).expect("the right bytes");
        store.put(verified);
    }

    /// Reads a whole piece and asserts that its bytes are right. Returns whether it is present.
    fn reads(&self, store: &TorrentStore, n: u32) -> bool {
        let mut out = vec![0xEE; self.content(n).len()];
        match store.read(self.piece(n), 0, &mut out).unwrap() {
            Lookup::Hit => {
                assert!(out == self.content(n), "wrong bytes of piece {n}");
                true
            }
            Lookup::Missing => false,
            Lookup::WouldBlock => panic!("a blocking read would block"),
        }
    }

    fn path(&self, dir: &Path, file: usize) -> PathBuf {
        dir.join(self.info_hash.to_string()).join("data").join(self.files[file].relative_path())
    }

    fn state(&self, dir: &Path) -> PathBuf {
        dir.join(self.info_hash.to_string()).join("state")
    }
}

fn open(dir: &Path, disk_limit: Option<u64>, memory: u64) -> Arc<Cache> {
    let config = CacheConfig { dir: dir.to_owned(), disk_limit, memory };
    Cache::open_unmaintained(config).unwrap()
}

type Evicted = Arc<Mutex<Vec<u32>>>;

fn add(cache: &Arc<Cache>, sample: &Sample) -> (Arc<TorrentStore>, Evicted) {
    let evicted = Evicted::default();
    let sink = Arc::clone(&evicted);
    let store = TorrentStore::open(cache, sample.spec(), Box::new(move |piece| lock(&sink).push(piece.get()))).unwrap();
    (store, evicted)
}

fn have(store: &TorrentStore) -> Vec<usize> {
    store.have().ones().collect()
}

#[test]
fn a_piece_is_read_back_from_memory_and_from_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let sample = Sample::new(1, 1000, &[1500, 2200, 300, 1, 0, 0, 4096, 77]);
    for memory in [0, 1 << 20] {
        let cache = open(&dir.path().join(memory.to_string()), None, memory);
        let (store, evicted) = add(&cache, &sample);
        for n in (0..sample.lengths.pieces()).rev() {
            assert!(!store.has(sample.piece(n)) && !sample.reads(&store, n));
            sample.put(&store, n);
            assert!(store.has(sample.piece(n)) && sample.reads(&store, n));
        }
        let mut out = [0; 10];
        assert_eq!(store.read(sample.piece(2), 990, &mut out).unwrap(), Lookup::Hit);
        assert_eq!(out, sample.content(2)[990..]);
        assert!(matches!(store.read(sample.piece(2), 991, &mut out), Err(StoreError::Range { .. })));
        assert_eq!(store.read_now(sample.piece(2), u32::MAX, &mut out), Lookup::Missing);
        assert!(lock(&evicted).is_empty());
        assert_eq!(cache.usage().disk, sample.lengths.total());
        assert_eq!(cache.usage().fault, None);
        for (n, file) in sample.files.iter().enumerate() {
            let path = sample.path(&cache.dir, n);
            assert_eq!(path.exists(), file.is_stored(), "{path:?}");
            if path.exists() {
                assert_eq!(fs::read(path).unwrap(), sample.bytes[file.offset as usize..][..file.len as usize]);
            }
        }
        let home = cache.dir.join(sample.info_hash.to_string());
        for dir in [&cache.dir, &home, &home.join("data/name/dir0")] {
            assert_eq!(fs::metadata(dir).unwrap().permissions().mode() & 0o777, 0o700);
        }
    }
}

#[test]
fn pieces_in_memory_are_dropped_for_partial_ones() {
    let dir = tempfile::tempdir().unwrap();
    let sample = Sample::one_file(1, 64 << 10, 12);
    let limit = 6 * (65 << 10);
    let cache = open(dir.path(), None, limit);
    let (store, evicted) = add(&cache, &sample);
    (0..12).for_each(|n| sample.put(&store, n));
    assert!(cache.usage().memory > 5 * (64 << 10));
    let mut partial = Vec::new();
    for _ in 0..5 {
        partial.push(cache.buffer(64 << 10));
        assert!(cache.usage().buffers <= limit, "{:?}", cache.usage());
    }
    partial.extend((0..5).map(|_| cache.buffer(64 << 10)));
    assert_eq!(cache.usage().memory, (64 << 10) + 256, "the newest stays");
    assert!(lock(&evicted).is_empty() && (0..12).all(|n| sample.reads(&store, n)));
}

#[test]
fn bytes_in_the_page_cache_are_read_without_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let sample = Sample::one_file(1, 1 << 16, 4);
    let cache = open(dir.path(), None, 0);
    let (store, _) = add(&cache, &sample);
    sample.put(&store, 0);
    sample.put(&store, 1);
    let mut out = vec![0; 5000];
    assert_eq!(store.memory(sample.piece(0)), None);
    assert_eq!(store.read_now(sample.piece(0), 7, &mut out), Lookup::Hit);
    assert_eq!(out, sample.content(0)[7..5007]);
    assert_eq!(store.peek_now(sample.piece(1), 9, &mut out), Lookup::Hit);
    assert_eq!(store.read_now(sample.piece(2), 0, &mut out), Lookup::Missing);
    cache.handles.close(1);
    assert_eq!(store.read_now(sample.piece(0), 7, &mut out), Lookup::WouldBlock, "the file must be opened first");
    assert_eq!(store.read(sample.piece(0), 7, &mut out).unwrap(), Lookup::Hit);
    assert_eq!(store.read_now(sample.piece(0), 7, &mut out), Lookup::Hit);
}

#[test]
fn wrong_bytes_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let sample = Sample::one_file(1, 100, 3);
    let cache = open(dir.path(), None, 1000);
    let (store, _) = add(&cache, &sample);
    let mut bytes = sample.content(0).to_vec();
    bytes[3] ^= 1;
    let bad = store.verify(sample.piece(0), bytes.into()).err().unwrap();
    assert!(matches!(bad, VerifyError::Bad { blocks } if blocks.is_empty()));
    assert!(store.verify(sample.piece(0), sample.content(0)[1..].to_vec().into()).is_err());
    assert!(store.verify(sample.piece(0), sample.content(1).to_vec().into()).is_err());
}

#[test]
fn the_least_recently_used_piece_is_evicted_and_its_blocks_are_freed() {
    let dir = tempfile::tempdir().unwrap();
    let sample = Sample::one_file(1, 64 << 10, 12);
    let cache = open(dir.path(), Some(4 * (64 << 10)), 0);
    let (store, evicted) = add(&cache, &sample);
    (0..4).for_each(|n| sample.put(&store, n));
    assert_eq!(store.room(), 0);
    assert!(sample.reads(&store, 0));
    let mut out = [0; 8];
    assert_eq!(store.peek(sample.piece(1), 0, &mut out).unwrap(), Lookup::Hit);
    sample.put(&store, 4);
    assert_eq!(*lock(&evicted), [1], "a read counts as a use, a peek does not");
    store.pin(vec![2..3, 5..6, 0..0, 9..u32::MAX]);
    sample.put(&store, 5);
    assert_eq!(*lock(&evicted), [1, 3], "the pinned one stays");
    assert_eq!(have(&store), [0, 2, 4, 5]);
    assert!([0, 2, 4, 5].into_iter().all(|n| sample.reads(&store, n)));
    let file = fs::File::open(sample.path(dir.path(), 0)).unwrap();
    file.sync_all().unwrap();
    assert!(file.metadata().unwrap().blocks() * 512 <= 5 * (64 << 10), "holes free their blocks");
    assert_eq!(file.metadata().unwrap().len(), sample.lengths.total());

    store.pin((0..12).map(|n| n..n + 1).collect());
    (6..9).for_each(|n| sample.put(&store, n));
    assert_eq!(have(&store), [0, 2, 4, 5, 6, 7, 8], "pinned pieces may exceed the limit");
    store.pin(vec![8..9]);
    cache.maintain(Instant::now());
    assert_eq!(have(&store).len(), 4, "but only while they are pinned");
    assert!(sample.reads(&store, 8));
    assert_eq!(cache.usage().disk, 4 * (64 << 10));
}

#[test]
fn an_unaligned_hole_does_not_damage_the_neighbours() {
    let dir = tempfile::tempdir().unwrap();
    let sample = Sample::new(1, 5000, &[7000, 100, 50, 20_000, 1, 12_000]);
    let cache = open(dir.path(), None, 0);
    let (store, _) = add(&cache, &sample);
    (0..sample.lengths.pieces()).for_each(|n| sample.put(&store, n));
    for n in (0..sample.lengths.pieces()).step_by(2) {
        cache.discard(&cache_torrent(&cache), sample.piece(n));
    }
    for n in 0..sample.lengths.pieces() {
        assert_eq!(sample.reads(&store, n), n % 2 == 1);
    }
}

/// The only torrent of a cache.
fn cache_torrent(cache: &Cache) -> Arc<torrent::Torrent> {
    cache.torrents().pop().unwrap()
}

#[test]
fn no_path_leaves_the_cache() {
    let dir = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    let cache = open(dir.path(), None, 1000);
    for path in ["../x", "/x", "a/../x", "", "./x"] {
        let mut sample = Sample::one_file(1, 100, 3);
        sample.files[0].path = path.split('/').map(str::to_owned).collect();
        assert!(
            matches!(TorrentStore::open(&cache, sample.spec(), Box::new(|_| {})), Err(StoreError::UnsafePath { .. })),
            "{path}"
        );
    }
    let sample = Sample::one_file(2, 100, 3);
    let home = dir.path().join(sample.info_hash.to_string());
    fs::create_dir_all(home.join("data")).unwrap();
    symlink(outside.path(), home.join("data/name")).unwrap();
    let (store, _) = add(&cache, &sample);
    sample.put(&store, 0);
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    assert!(sample.reads(&store, 0), "from memory");
    assert!(cache.usage().fault.unwrap().contains("--cache-dir"));
}

#[test]
fn inactive_torrents_count_and_are_evicted_first() {
    let dir = tempfile::tempdir().unwrap();
    let [old, new, third] = [1, 2, 3].map(|name| Sample::one_file(name, 1000, 10));
    let cache = open(dir.path(), Some(20_000), 0);
    for sample in [&old, &new] {
        let (store, _) = add(&cache, sample);
        (0..8).for_each(|n| sample.put(&store, n));
        store.close();
    }
    cache.close();
    drop(cache);
    let cache = open(dir.path(), Some(20_000), 0);
    assert_eq!(cache.usage().disk, 16_000);
    let (store, evicted) = add(&cache, &third);
    assert_eq!(store.room(), 20_000, "an inactive torrent takes no room away");
    (0..5).for_each(|n| third.put(&store, n));
    assert_eq!(cache.usage().disk, 8_000 + 5_000);
    assert!(!dir.path().join(old.info_hash.to_string()).exists());
    let (kept, _) = add(&cache, &new);
    assert_eq!(have(&kept).len(), 8);
    (5..8).for_each(|n| third.put(&store, n));
    assert!(lock(&evicted).is_empty());
    assert_eq!(cache.usage().disk, 16_000);
}

#[test]
fn a_failing_disk_is_reported_and_retried() {
    let dir = tempfile::tempdir().unwrap();
    let sample = Sample::one_file(1, 1000, 20);
    let cache = open(dir.path(), None, 3 * (1000 + 256));
    let (store, evicted) = add(&cache, &sample);
    sample.put(&store, 0);
    let torrent = &cache_torrent(&cache);
    torrent.files.injected_errno.store(libc::EROFS, SeqCst);
    for n in 1..6 {
        sample.put(&store, n);
        assert!(sample.reads(&store, n));
    }
    assert_eq!(store.room(), 0);
    assert!(cache.usage().fault.unwrap().contains("check the disk"));
    assert_eq!(have(&store), [0, 3, 4, 5]);
    assert_eq!(*lock(&evicted), [1, 2], "pieces that were only in memory");
    assert_eq!(cache.usage().disk, 1000);
    cache.maintain(Instant::now());
    assert_eq!(cache.memory.memory_only(), 3);
    torrent.files.injected_errno.store(0, SeqCst);
    cache.health.retry_now();
    cache.maintain(Instant::now());
    assert_eq!((cache.memory.memory_only(), cache.usage().fault, cache.usage().disk), (0, None, 4000));
    (6..12).for_each(|n| sample.put(&store, n));
    assert!([0, 3, 4, 5, 11].into_iter().all(|n| sample.reads(&store, n)));

    torrent.files.injected_errno.store(libc::EIO, SeqCst);
    assert!(!sample.reads(&store, 3), "a piece that cannot be read is missing");
    assert!(!store.has(sample.piece(3)) && cache.usage().fault.is_some());
    assert!(sample.reads(&store, 11), "from memory");
}

#[test]
fn the_fault_of_one_file_is_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let [other, sick] = [2, 1].map(|name| Sample::one_file(name, 1000, 20));
    let cache = open(dir.path(), None, 6 * (1000 + 256));
    let (well, _) = add(&cache, &other);
    let (store, _) = add(&cache, &sick);
    let torrent = cache.torrents().into_iter().find(|torrent| torrent.info_hash == sick.info_hash).unwrap();
    for (round, errno) in [libc::EFBIG, libc::EIO, libc::ENAMETOOLONG, libc::EACCES].into_iter().enumerate() {
        torrent.files.injected_errno.store(errno, SeqCst);
        let (first, disk) = (2 * round as u32 + 1, cache.usage().disk);
        sick.put(&store, first);
        assert!(sick.reads(&store, first), "from memory");
        assert!(cache.usage().fault.unwrap().contains("this file"), "{errno}");
        assert_eq!(store.room(), 0);
        // Another file is written as if nothing was, and does not end the fault.
        other.put(&well, round as u32);
        assert_eq!((cache.usage().disk, well.room()), (disk + 1000, u64::MAX), "{errno}");
        assert!(cache.usage().fault.is_some());
        torrent.files.injected_errno.store(0, SeqCst);
        sick.put(&store, first - 1);
        assert_eq!(cache.usage().disk, disk + 1000, "nothing is written to the file for a while");
        cache.health.retry_now();
        cache.maintain(Instant::now());
        assert_eq!((cache.usage().fault, cache.usage().disk), (None, disk + 3000), "{errno}");
    }
}

#[test]
fn a_full_disk_concerns_all_files() {
    for errno in [libc::ENOSPC, libc::EDQUOT, libc::EROFS] {
        let dir = tempfile::tempdir().unwrap();
        let [other, sick] = [2, 1].map(|name| Sample::one_file(name, 1000, 20));
        let cache = open(dir.path(), None, 6 * (1000 + 256));
        let (well, _) = add(&cache, &other);
        let (store, _) = add(&cache, &sick);
        let torrent = cache.torrents().into_iter().find(|torrent| torrent.info_hash == sick.info_hash).unwrap();
        torrent.files.injected_errno.store(errno, SeqCst);
        sick.put(&store, 0);
        other.put(&well, 0);
        assert_eq!((cache.usage().disk, well.room(), store.room()), (0, 0, 0), "{errno}");
    }
}

#[test]
fn on_a_full_disk_pinned_pieces_replace_old_ones() {
    let dir = tempfile::tempdir().unwrap();
    let process = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs"])
        .arg(dir.path())
        .stderr(std::process::Stdio::null())
        .status();
    if !process.is_ok_and(|status| status.success()) {
        assert!(std::env::var_os("CI").is_none(), "CI must be able to mount a tmpfs");
        eprintln!("skipped: cannot mount a tmpfs here");
        return;
    }
    let unmount = Unmount(dir.path().to_owned());
    let sample = Sample::one_file(1, 64 << 10, 60);
    let cache = open(dir.path(), None, 4 * (65 << 10));
    let (store, evicted) = add(&cache, &sample);
    let mut n = 0;
    while cache.usage().fault.is_none() {
        sample.put(&store, n);
        assert!(sample.reads(&store, n));
        n += 1;
    }
    assert!((10..17).contains(&n), "{n} pieces in 1 MiB");
    assert!(cache.usage().fault.unwrap().contains("free some space"));
    assert!(lock(&evicted).is_empty(), "pieces that are not pinned evict nothing");
    let before = cache.usage().disk;
    store.pin(vec![n..n + 6]);
    (n..n + 6).for_each(|n| sample.put(&store, n));
    assert!((n..n + 6).all(|n| sample.reads(&store, n)), "though only four fit in memory");
    assert!(lock(&evicted).contains(&0));
    assert!(cache.usage().disk <= before);
    cache.close();
    drop((store, cache));
    let cache = open(dir.path(), None, 0);
    let (store, _) = add(&cache, &sample);
    assert!((n..n + 6).all(|n| sample.reads(&store, n)));
    let mut out = [0; 9];
    assert_eq!(store.read_now(sample.piece(n), 1, &mut out), Lookup::Hit, "tmpfs never waits");
    drop((store, cache));
    drop(unmount);
}

struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_torrent_of_many_small_files_opens_few_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let sample = Sample::new(1, 16 << 10, &vec![100; 20_000]);
    let cache = open(dir.path(), None, 0);
    let (store, _) = add(&cache, &sample);
    assert!(
        !dir.path().join(sample.info_hash.to_string()).join("data").exists(),
        "no directory is created before the first write"
    );
    (0..5).for_each(|n| sample.put(&store, n));
    assert!((0..5).all(|n| sample.reads(&store, n)));
    let open_files = fs::read_dir("/proc/self/fd").unwrap().count();
    assert!(open_files < 600, "{open_files} open files");
    cache.close();
    drop((store, cache));
    let cache = open(dir.path(), None, 0);
    let (store, _) = add(&cache, &sample);
    assert_eq!(have(&store), [0, 1, 2, 3, 4]);
    assert!((0..5).all(|n| sample.reads(&store, n)));
}

#[tokio::test]
async fn waiters_wake_when_the_piece_is_visible() {
    let dir = tempfile::tempdir().unwrap();
    let sample = Sample::one_file(1, 1000, 10);
    let cache = open(dir.path(), None, 10_000);
    let (store, _) = add(&cache, &sample);
    let waiters = Arc::clone(&cache_torrent(&cache).waiters);
    let (one, two, other) = (store.wait(sample.piece(1)), store.wait(sample.piece(1)), store.wait(sample.piece(2)));
    let task = tokio::spawn({
        let (store, sample) = (Arc::clone(&store), sample.clone());
        async move {
            one.await;
            assert_eq!(store.memory(sample.piece(1)).unwrap(), sample.content(1));
        }
    });
    sample.put(&store, 1);
    task.await.unwrap();
    two.await;
    store.wait(sample.piece(1)).await;
    let third = store.wait(sample.piece(3));
    assert_eq!(waiters.len(), 2);
    drop(third);
    assert_eq!(waiters.len(), 1);
    store.close();
    other.await;
    store.wait(sample.piece(3)).await;
    assert_eq!(waiters.len(), 0);
}

#[test]
fn readers_get_exact_bytes_or_none_during_puts_and_evictions() {
    let dir = tempfile::tempdir().unwrap();
    let sample = &Sample::new(1, 20_000, &[130_000, 90_000, 20, 99_000]);
    let cache = open(dir.path(), Some(5 * 20_000), 2 * 20_000);
    let store = &add(&cache, sample).0;
    let stop = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        for reader in 0..3u32 {
            scope.spawn(move || {
                let (mut out, mut n) = (vec![0; 20_000], reader);
                while !stop.load(SeqCst) {
                    n = n.wrapping_mul(1103515245).wrapping_add(12345);
                    let piece = n >> 8;
                    let piece = piece % sample.lengths.pieces();
                    let out = &mut out[..sample.content(piece).len()];
                    let lookup = match reader {
                        0 => store.read_now(sample.piece(piece), 0, out),
                        1 => store.peek(sample.piece(piece), 0, out).unwrap(),
                        _ => store.read(sample.piece(piece), 0, out).unwrap(),
                    };
                    assert!(lookup != Lookup::Hit || out == sample.content(piece), "wrong bytes of piece {piece}");
                }
            });
        }
        let writers: Vec<_> = (0..2u32)
            .map(|writer| {
                scope.spawn(move || {
                    let mut n = writer;
                    for _ in 0..1500 {
                        n = n.wrapping_mul(1103515245).wrapping_add(12345);
                        sample.put(store, (n >> 8) % sample.lengths.pieces());
                        if n >> 8 & 15 == 0 {
                            let start = (n >> 12) % sample.lengths.pieces();
                            store.pin(vec![start..start + 2]);
                        }
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.join().unwrap();
        }
        stop.store(true, SeqCst);
    });
    store.pin(vec![]);
    cache.maintain(Instant::now());
    assert!(cache.usage().disk <= 5 * 20_000);
    let kept: u64 = have(store).into_iter().map(|n| sample.content(n as u32).len() as u64).sum();
    assert_eq!(cache.usage().disk, kept, "the ledger agrees with the pieces");
    assert_eq!(cache.usage().fault, None);
    assert!(have(store).into_iter().all(|n| sample.reads(store, n as u32)));
}

#[test]
fn maintenance_saves_the_state() {
    let dir = tempfile::tempdir().unwrap();
    let sample = Sample::one_file(1, 1000, 4);
    let cache = Cache::open(CacheConfig { dir: dir.path().to_owned(), disk_limit: None, memory: 0 }).unwrap();
    let (store, _) = add(&cache, &sample);
    sample.put(&store, 2);
    let saved = || state::Saved::load(&sample.state(dir.path())).ok().flatten();
    while saved().is_none_or(|saved| !saved.have.contains(2)) {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    cache.close();
    assert!(saved().unwrap().closed);
}
