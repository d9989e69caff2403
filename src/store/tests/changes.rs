//! Other programs that change, replace or remove the files of the cache while it is in use.

use std::time::Duration;

use super::*;
use crate::metainfo::FileIndex;

/// Length of a piece in bytes.
const PIECE: u64 = 64 << 10;

/// Waits until a change gets another time than the last one, on a kernel whose clock for files is coarse.
pub(super) fn tick() {
    std::thread::sleep(Duration::from_millis(15));
}

fn sample() -> Sample {
    Sample::new(1, PIECE, &[8 * PIECE + 777, 6 * PIECE, 50, 3 * PIECE])
}

/// Reads every piece in every way. Asserts that no byte is wrong. Returns the pieces that were read.
fn read_all(sample: &Sample, store: &TorrentStore) -> Vec<u32> {
    let read = |n: &u32| {
        let mut out = vec![0xEE; sample.content(*n).len()];
        for read in [TorrentStore::read_now, TorrentStore::peek_now] {
            let lookup = read(store, sample.piece(*n), 0, &mut out);
            assert!(lookup != Lookup::Hit || out == sample.content(*n), "wrong bytes of piece {n}");
        }
        sample.reads(store, *n)
    };
    (0..sample.lengths.pieces()).filter(read).collect()
}

#[test]
fn bytes_that_another_program_writes_are_never_served() {
    let sample = sample();
    let all: Vec<u32> = (0..sample.lengths.pieces()).collect();
    // A change of the first file, and the pieces that it damages.
    type Change = (&'static str, fn(&Path), &'static [u32]);
    let changes: &[Change] = &[
        ("overwritten in place", |path| open_rw(path).write_all_at(b"bad", 3 * PIECE + 9).unwrap(), &[3]),
        (
            "overwritten as a whole",
            |path| open_rw(path).write_all_at(&vec![7; 8 * PIECE as usize], 0).unwrap(),
            &[0, 1, 2, 3, 4, 5, 6, 7],
        ),
        (
            "overwritten, with the old time",
            |path| {
                let file = open_rw(path);
                let before = file.metadata().unwrap().modified().unwrap();
                file.write_all_at(b"bad", PIECE).unwrap();
                file.set_modified(before).unwrap();
            },
            &[1],
        ),
        (
            "recreated",
            |path| {
                let len = path.metadata().unwrap().len();
                fs::remove_file(path).unwrap();
                fs::write(path, vec![9; len as usize]).unwrap();
            },
            &[0, 1, 2, 3, 4, 5, 6, 7, 8],
        ),
        (
            "replaced",
            |path| {
                let mut bytes = fs::read(path).unwrap();
                bytes[5 * PIECE as usize] ^= 1;
                let new = path.with_extension("new");
                fs::write(&new, bytes).unwrap();
                fs::rename(&new, path).unwrap();
            },
            &[5],
        ),
        ("removed", |path| fs::remove_file(path).unwrap(), &[0, 1, 2, 3, 4, 5, 6, 7, 8]),
        ("truncated", |path| open_rw(path).set_len(2 * PIECE).unwrap(), &[2, 3, 4, 5, 6, 7, 8]),
        (
            "truncated and extended",
            |path| {
                let len = path.metadata().unwrap().len();
                open_rw(path).set_len(2 * PIECE).unwrap();
                open_rw(path).set_len(len).unwrap();
            },
            &[2, 3, 4, 5, 6, 7, 8],
        ),
        ("made longer", |path| open_rw(path).set_len(99 * PIECE).unwrap(), &[]),
        ("touched", |path| open_rw(path).set_modified(std::time::SystemTime::now()).unwrap(), &[]),
        (
            "copied over",
            |path| {
                let copy = path.with_extension("copy");
                fs::copy(path, &copy).unwrap();
                fs::rename(&copy, path).unwrap();
            },
            &[],
        ),
    ];
    for (name, change, damaged) in changes {
        for reopen in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let cache = open(dir.path(), None, 0);
            let (store, evicted) = add(&cache, &sample);
            all.iter().for_each(|n| sample.put(&store, *n));
            assert_eq!(read_all(&sample, &store), all);
            tick();
            change(&sample.path(dir.path(), 0));
            if reopen {
                // As when many other files were read meanwhile.
                cache.handles.close(cache_torrent(&cache).pieces.id);
            }
            let mut out = vec![0; PIECE as usize];
            for n in *damaged {
                assert_ne!(store.read_now(sample.piece(*n), 0, &mut out), Lookup::Hit, "{name}: piece {n}");
            }
            let left: Vec<u32> = all.iter().copied().filter(|n| !damaged.contains(n)).collect();
            let right = read_all(&sample, &store);
            // The inode of a file that was removed or replaced has the right bytes for as long as it is open.
            assert!(left.iter().all(|n| right.contains(n)), "{name}: {right:?}");
            assert!(right == left || !reopen, "{name}: {right:?}");
            assert!(lock(&evicted).iter().all(|n| damaged.contains(n)), "{name}");
            // A piece that was fetched again stays, also for the next process.
            for n in all.iter().filter(|n| !right.contains(n)) {
                sample.put(&store, *n);
            }
            assert_eq!(read_all(&sample, &store), all, "{name}");
            assert_eq!(cache.usage().fault, None, "{name}");
            cache.close();
            drop((store, cache));
            let cache = open(dir.path(), None, 0);
            let (store, _) = add(&cache, &sample);
            let right = read_all(&sample, &store);
            assert!(right == all || !reopen, "{name}: {right:?}");
        }
    }
}

pub(super) fn open_rw(path: &Path) -> fs::File {
    fs::File::options().read(true).write(true).open(path).unwrap()
}

#[test]
fn a_change_that_nobody_noticed_is_found_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let sample = sample();
    let cache = open(dir.path(), None, 0);
    let (store, _) = add(&cache, &sample);
    (0..10).for_each(|n| sample.put(&store, n));
    tick();
    open_rw(&sample.path(dir.path(), 0)).write_all_at(b"bad", 2 * PIECE).unwrap();
    // In the second file nothing is read after the change, but something is written.
    open_rw(&sample.path(dir.path(), 1)).write_all_at(b"bad", PIECE).unwrap();
    tick();
    sample.put(&store, 12);
    cache.close();
    drop((store, cache));
    let cache = open(dir.path(), None, 0);
    let (store, _) = add(&cache, &sample);
    assert_eq!(read_all(&sample, &store), [0, 1, 3, 4, 5, 6, 7, 8, 12]);
}

#[test]
fn a_file_that_keeps_changing_is_hashed_until_it_rests() {
    let dir = tempfile::tempdir().unwrap();
    let sample = sample();
    let cache = open(dir.path(), None, 0);
    let (store, _) = add(&cache, &sample);
    (0..8).for_each(|n| sample.put(&store, n));
    tick();
    let path = sample.path(dir.path(), 0);
    // The kernel set the times of a long write at its begin; here a mapping stands for one.
    open_rw(&path).set_modified(std::time::SystemTime::now()).unwrap();
    let state = |n| cache_torrent(&cache).pieces.word(sample.piece(n)).state();
    assert!(sample.reads(&store, 3));
    assert_eq!(state(3), pieces::State::Unverified, "right, but not to be trusted yet");
    assert_eq!(store.recheck(sample.piece(3)), Some(true));
    std::thread::sleep(Duration::from_millis(1100));
    assert!(sample.reads(&store, 3) && !store.is_all_on_disk());
    assert_eq!((state(3), state(4)), (pieces::State::Disk, pieces::State::Unverified));
    store.check_unverified();
    assert_eq!(state(4), pieces::State::Disk);
}

/// A piece is in two files, and the first is changed after our write to it and before the one to the second.
#[test]
fn a_change_of_a_piece_that_is_being_written_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let sample = &sample();
    let cache = open(dir.path(), None, 0);
    let store = &add(&cache, sample).0;
    (0..8).for_each(|n| sample.put(store, n));
    let (files, path) = (&cache_torrent(&cache).files, sample.path(dir.path(), 0));
    let second = files.pause_changes(FileIndex(1));
    std::thread::scope(|scope| {
        scope.spawn(|| sample.put(store, 8));
        let begin = |path| {
            let mut begin = [0; 777];
            fs::File::open(path)
                .and_then(|file| file.read_exact_at(&mut begin, 8 * PIECE))
                .is_ok_and(|()| begin == sample.content(8)[..777])
        };
        while !begin(&path) {
            std::thread::yield_now();
        }
        tick();
        let first = files.pause_changes(FileIndex(0));
        open_rw(&path).write_all_at(b"bad", 8 * PIECE + 9).unwrap();
        assert_eq!(store.recheck(sample.piece(0)), Some(true), "it notices the change");
        drop((first, second));
    });
    assert_eq!(cache_torrent(&cache).pieces.word(sample.piece(8)).state(), pieces::State::Unverified);
    assert_eq!(store.recheck(sample.piece(8)), Some(false));
}

#[test]
fn readers_get_no_wrong_byte_while_others_write() {
    let dir = tempfile::tempdir().unwrap();
    let sample = &sample();
    let cache = open(dir.path(), Some(12 * PIECE), 0);
    let store = &add(&cache, sample).0;
    let stop = &AtomicBool::new(false);
    let path = sample.path(dir.path(), 0);
    sample.put(store, 0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(move || {
                while !stop.load(SeqCst) {
                    read_all(sample, store);
                }
            });
        }
        scope.spawn(move || {
            let mut n = 1u32;
            while !stop.load(SeqCst) {
                n = n.wrapping_mul(1103515245).wrapping_add(12345);
                sample.put(store, (n >> 8) % sample.lengths.pieces());
            }
        });
        let (file, torrent) = (open_rw(&path), cache_torrent(&cache));
        for n in 0..300u64 {
            // Not in one of the store's own writes, where it would not be noticed; they are short.
            std::thread::sleep(Duration::from_millis(3));
            let _turn = torrent.files.pause_changes(crate::metainfo::FileIndex(0));
            file.write_all_at(&n.to_le_bytes(), n * 7919 % (8 * PIECE)).unwrap();
        }
        stop.store(true, SeqCst);
    });
    assert_eq!(cache.usage().fault, None);
}

#[test]
fn bytes_that_never_reach_the_disk_are_hashed_again() {
    let dir = tempfile::tempdir().unwrap();
    let sample = sample();
    let cache = open(dir.path(), None, 0);
    let (store, _) = add(&cache, &sample);
    (0..4).for_each(|n| sample.put(&store, n));
    let torrent = cache_torrent(&cache);
    let state = |n| torrent.pieces.word(sample.piece(n)).state();
    cache.maintain(Instant::now());
    assert_eq!((state(3), cache.usage().fault), (pieces::State::Disk, None));
    torrent.files.injected_errno.store(libc::EREMOTEIO, SeqCst);
    cache.maintain(Instant::now());
    assert_eq!(state(3), pieces::State::Unverified);
    assert!(cache.usage().fault.is_some_and(|fault| fault.contains("check the disk")));
    torrent.files.injected_errno.store(0, SeqCst);
    assert!((0..4).all(|n| sample.reads(&store, n)));
}

#[test]
fn a_filesystem_without_holes_is_no_fault() {
    let dir = tempfile::tempdir().unwrap();
    let sample = sample();
    let cache = open(dir.path(), Some(5 * PIECE), 0);
    let (store, evicted) = add(&cache, &sample);
    cache_torrent(&cache).files.injected_errno.store(libc::EOPNOTSUPP, SeqCst);
    for n in 0..9 {
        sample.put(&store, n);
        assert!(sample.reads(&store, n));
    }
    assert_eq!((cache.usage().fault, lock(&evicted).len(), have(&store).len()), (None, 4, 5));
}

/// A filesystem in a file on a tmpfs that is too small for it: the kernel finds out when it writes back.
#[test]
fn a_disk_that_fails_behind_the_kernels_memory_shows_no_wrong_byte() {
    let (disk, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let sh = |line: &str| {
        let line = line.replace("DISK", disk.path().to_str().unwrap()).replace("DIR", dir.path().to_str().unwrap());
        std::process::Command::new("sh").args(["-c", &line]).output().is_ok_and(|output| output.status.success())
    };
    let made = sh("mount -t tmpfs -o size=6m none DISK && truncate -s 256M DISK/image && mkfs.ext4 -q DISK/image")
        && sh("mount -o loop DISK/image DIR");
    let unmount = [Unmount(dir.path().to_owned()), Unmount(disk.path().to_owned())];
    if !made {
        eprintln!("skipped: cannot mount a loop device here");
        return;
    }
    let sample = Sample::one_file(1, 256 << 10, 60);
    let cache = open(dir.path(), None, 1 << 20);
    let (store, _) = add(&cache, &sample);
    for n in 0..60 {
        sample.put(&store, n);
        assert!(sample.reads(&store, n));
        if n % 10 == 9 {
            cache.maintain(Instant::now());
            std::thread::sleep(Duration::from_millis(200));
        }
    }
    let begun = Instant::now();
    while cache.usage().fault.is_none() {
        assert!(begun.elapsed() < Duration::from_secs(60), "the kernel never wrote back");
        std::thread::sleep(Duration::from_millis(200));
        cache.maintain(Instant::now());
    }
    // The kernel drops from its memory what it could not write.
    let file = sample.path(dir.path(), 0);
    assert!(sh(&format!("dd if={} iflag=nocache count=0", file.display())));
    let right = (0..60).filter(|n| sample.reads(&store, *n)).count();
    assert!(right < 60, "a disk of 6 MiB holds 15 MiB");
    cache.close();
    drop((store, cache));
    drop(unmount);
}
