//! Restarts after a clean close, after a crash, after changes by other programs; a second process.

use super::*;

#[test]
fn a_clean_close_is_trusted_and_a_crash_is_verified() {
    let dir = tempfile::tempdir().unwrap();
    let sample = Sample::new(1, 4096, &[10_000, 30_000, 480, 12_345]);
    let clean_close = |cache: &Cache| cache.close();
    {
        let cache = open(dir.path(), None, 0);
        let (store, _) = add(&cache, &sample);
        [1, 3, 5, 7].into_iter().for_each(|n| sample.put(&store, n));
        clean_close(&cache);
        assert!(store.is_closed() && !store.has(sample.piece(1)) && !sample.reads(&store, 1));
        sample.put(&store, 2);
        assert!(!store.has(sample.piece(2)));
    }
    {
        let cache = open(dir.path(), None, 0);
        let (store, _) = add(&cache, &sample);
        assert_eq!(have(&store), [1, 3, 5, 7]);
        assert_eq!(cache_torrent(&cache).pieces.word(sample.piece(1)).state(), pieces::State::Disk);
        assert!([1, 3, 5, 7].into_iter().all(|n| sample.reads(&store, n)));
        // The first change clears the mark of the clean close at once.
        assert!(state::Saved::load(&sample.state(dir.path())).unwrap().unwrap().closed);
        sample.put(&store, 2);
        assert!(!state::Saved::load(&sample.state(dir.path())).unwrap().unwrap().closed);
        cache.maintain(Instant::now());
        sample.put(&store, 4);
        // Dropped without a close, as after a kill.
    }
    let path = sample.path(dir.path(), 1);
    // Piece 5 starts at offset 20480 - 10000 of file 1. Only the hash can detect this change.
    fs::File::options().write(true).open(&path).unwrap().write_all_at(b"damage", 10_500).unwrap();
    let cache = open(dir.path(), None, 0);
    let (store, evicted) = add(&cache, &sample);
    // Piece 6 is smaller than the blocks that its neighbours occupy.
    assert_eq!(have(&store), [1, 2, 3, 4, 5, 6, 7], "also the piece that was put after the last hint");
    let mut out = [0; 4];
    assert_eq!(store.read_now(sample.piece(1), 0, &mut out), Lookup::WouldBlock, "it must be hashed first");
    assert!([1, 2, 3, 4, 7].into_iter().all(|n| sample.reads(&store, n)));
    assert!(!sample.reads(&store, 5) && !sample.reads(&store, 6));
    assert_eq!(*lock(&evicted), [5, 6]);
    clean_close(&cache);
    drop((cache, store));
    let cache = open(dir.path(), None, 0);
    let (_store, _) = add(&cache, &sample);
    let states = [1, 2, 3, 7].map(|n| cache_torrent(&cache).pieces.word(sample.piece(n)).state());
    assert_eq!(states, [pieces::State::Disk; 4], "verified, and cleanly closed since");
}

#[test]
fn a_piece_that_is_wrong_after_a_crash_is_never_served() {
    let dir = tempfile::tempdir().unwrap();
    let sample = Sample::one_file(1, 8192, 6);
    {
        let cache = open(dir.path(), Some(3 * 8192), 0);
        let (store, _) = add(&cache, &sample);
        (0..3).for_each(|n| sample.put(&store, n));
        cache.maintain(Instant::now());
        // Evicts 0 and 1, which no hint records.
        (3..5).for_each(|n| sample.put(&store, n));
    }
    let cache = open(dir.path(), Some(3 * 8192), 0);
    let (store, evicted) = add(&cache, &sample);
    assert_eq!(have(&store), [2, 3, 4], "what the state does not know, and not what it knows wrongly");
    assert!([2, 3, 4].into_iter().all(|n| sample.reads(&store, n)) && lock(&evicted).is_empty());
    assert_eq!(cache.usage().disk, 3 * 8192);
}

#[test]
fn changes_by_other_programs_are_detected() {
    let dir = tempfile::tempdir().unwrap();
    let sample = Sample::new(1, 1000, &[4000, 4000]);
    let close = |cache: Arc<Cache>| cache.close();
    let cache = open(dir.path(), None, 0);
    let (store, _) = add(&cache, &sample);
    (0..8).for_each(|n| sample.put(&store, n));
    drop(store);
    // The torrent was dropped without a close, as in a crash; close the next one.
    close(cache);
    let cache = open(dir.path(), None, 0);
    let (store, _) = add(&cache, &sample);
    (0..8).for_each(|n| sample.put(&store, n));
    close(cache);
    drop(store);

    let touched = fs::File::options().write(true).open(sample.path(dir.path(), 0)).unwrap();
    touched.write_all_at(b"XX", 1500).unwrap();
    fs::File::options().write(true).open(sample.path(dir.path(), 1)).unwrap().set_len(2500).unwrap();
    let cache = open(dir.path(), None, 0);
    let (store, _) = add(&cache, &sample);
    assert_eq!(have(&store), [0, 1, 2, 3, 4, 5], "nothing beyond the end of the file");
    assert_eq!([0, 1, 2, 3, 4, 5].map(|n| sample.reads(&store, n)), [true, false, true, true, true, true]);

    // The same while the torrent is open: truncated pieces are missing and can be put again.
    fs::File::options().write(true).open(sample.path(dir.path(), 0)).unwrap().set_len(500).unwrap();
    assert!(!sample.reads(&store, 2) && !store.has(sample.piece(2)));
    sample.put(&store, 2);
    assert_eq!([0, 1, 2, 3, 4, 5].map(|n| sample.reads(&store, n)), [false, false, true, false, true, true]);
    [0, 1, 3].into_iter().for_each(|n| sample.put(&store, n));
    let stranger = dir.path().join("stranger");
    fs::write(&stranger, vec![9; 4000]).unwrap();
    fs::rename(&stranger, sample.path(dir.path(), 0)).unwrap();
    cache.handles.close(1);
    assert_eq!([0, 1, 4].map(|n| sample.reads(&store, n)), [false, false, true]);
    fs::remove_dir_all(dir.path().join(sample.info_hash.to_string())).unwrap();
    for n in 0..8 {
        // Asserts that no wrong bytes are read.
        sample.reads(&store, n);
    }
    close(cache);
}

#[test]
fn without_a_state_or_on_request_every_piece_is_hashed() {
    let dir = tempfile::tempdir().unwrap();
    let sample = Sample::new(1, 1000, &[4000, 0, 100, 3900]);
    {
        let cache = open(dir.path(), None, 0);
        let (store, _) = add(&cache, &sample);
        [0, 1, 2, 4, 5, 7].into_iter().for_each(|n| sample.put(&store, n));
        cache.close();
    }
    let corrupt = || {
        let file = fs::File::options().write(true).open(sample.path(dir.path(), 0)).unwrap();
        file.write_all_at(b"damage", 1100).unwrap();
    };
    for garbage in [Some(&b""[..]), Some(b"tfstate1 and nothing valid"), Some(&[0xFF; 3000]), None] {
        match garbage {
            Some(bytes) => fs::write(sample.state(dir.path()), bytes).unwrap(),
            None => fs::remove_file(sample.state(dir.path())).unwrap(),
        }
        corrupt();
        let cache = open(dir.path(), None, 0);
        assert!(cache.usage().disk > 0, "data without a state counts");
        let (store, _) = add(&cache, &sample);
        assert_eq!(have(&store), [0, 2, 4, 5, 7]);
        assert_eq!(cache.usage().disk, 5000);
        assert!([0, 2, 4, 5, 7].into_iter().all(|n| sample.reads(&store, n)));
        cache.close();
    }
    corrupt();
    let cache = open(dir.path(), None, 0);
    let seen = Arc::new(Mutex::new(BTreeSet::new()));
    let progress = Arc::clone(&seen);
    let spec = TorrentSpec {
        verify: true,
        progress: Some(Box::new(move |done, of| lock(&progress).extend([(done, of)]))),
        ..sample.spec()
    };
    let store = TorrentStore::open(&cache, spec, Box::new(|_| {})).unwrap();
    assert_eq!(have(&store), [0, 2, 4, 5, 7]);
    assert_eq!(*lock(&seen), (0..=8).map(|done| (done, 8)).collect());
}

#[test]
fn two_processes_do_not_share_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path(), None, 0);
    let again = || Cache::open(CacheConfig { dir: dir.path().to_owned(), disk_limit: None, memory: 0 });
    let error = again().err().unwrap().to_string();
    assert!(error.contains(&format!("process {}", std::process::id())) && error.contains("--cache-dir"), "{error}");
    let sample = Sample::one_file(1, 100, 3);
    let (store, _) = add(&cache, &sample);
    assert!(matches!(TorrentStore::open(&cache, sample.spec(), Box::new(|_| {})), Err(StoreError::AlreadyOpen(_))));
    drop(store);
    let (_store, _) = add(&cache, &sample);
    cache.close();
    assert!(matches!(TorrentStore::open(&cache, sample.spec(), Box::new(|_| {})), Err(StoreError::Closed)));
    assert!(again().is_ok(), "a closed cache releases the directory");
}

/// A program that another thread is starting has a copy of every descriptor until it executes.
#[test]
fn a_copy_of_the_locked_file_does_not_hold_a_closed_or_dropped_cache() {
    let dir = tempfile::tempdir().unwrap();
    for close in [true, false] {
        let cache = open(dir.path(), None, 0);
        let copy = lock(&cache.dir_lock).as_ref().unwrap().copy();
        if close {
            cache.close();
        }
        drop(cache);
        open(dir.path(), None, 0).close();
        drop(copy);
    }
}

#[test]
fn kills_lose_no_piece_and_leave_no_block_behind() {
    const PIECE: u64 = 64 << 10;
    let dir = tempfile::tempdir().unwrap();
    let sample = Sample::new(1, PIECE, &[20 * PIECE, 9 * PIECE + 5000, 30, 11 * PIECE]);
    let limit = 12 * PIECE;
    let mut random = 1u32;
    let mut next = |below: u32| {
        random = random.wrapping_mul(1103515245).wrapping_add(12345);
        (random >> 8) % below
    };
    let mut kept = BTreeSet::new();
    for round in 0..100 {
        let cache = open(dir.path(), Some(limit), 0);
        if round % 5 == 4 {
            assert!(cache.usage().disk >= kept.len() as u64 * PIECE / 2, "a torrent that is not open counts as it is");
        }
        let (store, evicted) = add(&cache, &sample);
        cache.maintain(Instant::now());
        let evicted = std::mem::take(&mut *lock(&evicted));
        assert!(evicted.iter().all(|n| !kept.contains(n)), "round {round}: lost {evicted:?} of {kept:?}");
        assert!(kept.iter().all(|n| sample.reads(&store, *n)), "round {round}");
        let blocks: u64 =
            (0..4).filter_map(|file| sample.path(dir.path(), file).metadata().ok()).map(|a| a.blocks() * 512).sum();
        // Unaligned pieces share a filesystem block with their neighbours at each end.
        assert!(blocks <= limit + 12 * 2 * 4096, "round {round}: {blocks} bytes on the disk");
        for _ in 0..next(8) {
            sample.put(&store, next(sample.lengths.pieces()));
            if next(6) == 0 {
                cache.maintain(Instant::now());
            }
        }
        kept = have(&store).into_iter().map(|n| n as u32).collect();
        // Dropped without a close, as by a kill; the last write was cut off.
        drop((store, cache));
        let torn = (0..20).find(|n| !kept.contains(n)).unwrap();
        let file = fs::File::options().write(true).open(sample.path(dir.path(), 0));
        if let Ok(file) = file {
            file.write_all_at(&sample.content(torn)[..40_000], u64::from(torn) * PIECE).unwrap();
        }
    }
}
