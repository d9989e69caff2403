//! What survives: a clean end, a crash, others' changes, another process.

use super::*;

#[test]
fn a_clean_close_is_believed_and_a_crash_is_checked() {
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
        // The first change takes the mark of the clean close away at once.
        assert!(state::Saved::load(&sample.state(dir.path())).unwrap().unwrap().closed);
        sample.put(&store, 2);
        assert!(!state::Saved::load(&sample.state(dir.path())).unwrap().unwrap().closed);
        cache.maintain(Instant::now());
        sample.put(&store, 4);
    } // killed: no close
    let path = sample.path(dir.path(), 1);
    // Piece 5 lies in file 1 from 20480 - 10000 on; this goes past every check but the hash.
    fs::File::options().write(true).open(&path).unwrap().write_all_at(b"spoilt", 10_500).unwrap();
    let cache = open(dir.path(), None, 0);
    let (store, evicted) = add(&cache, &sample);
    assert_eq!(have(&store), [1, 2, 3, 5, 7], "all but what was put after the last hint");
    let mut out = [0; 4];
    assert_eq!(store.read_now(sample.piece(1), 0, &mut out), Lookup::WouldBlock, "it must be hashed first");
    assert!([1, 2, 3, 7].into_iter().all(|n| sample.reads(&store, n)));
    assert!(!sample.reads(&store, 5));
    assert_eq!(*lock(&evicted), [5]);
    clean_close(&cache);
    drop((cache, store));
    let cache = open(dir.path(), None, 0);
    let (_store, _) = add(&cache, &sample);
    let states = [1, 2, 3, 7].map(|n| cache_torrent(&cache).pieces.word(sample.piece(n)).state());
    assert_eq!(states, [pieces::State::Disk; 4], "proven, and cleanly closed since");
}

#[test]
fn a_claim_that_a_crash_made_false_is_never_served() {
    let dir = tempfile::tempdir().unwrap();
    let sample = Sample::one_file(1, 8192, 6);
    {
        let cache = open(dir.path(), Some(3 * 8192), 0);
        let (store, _) = add(&cache, &sample);
        (0..3).for_each(|n| sample.put(&store, n));
        cache.maintain(Instant::now());
        (3..5).for_each(|n| sample.put(&store, n)); // evicts 0 and 1, and no hint says so
    }
    let cache = open(dir.path(), Some(3 * 8192), 0);
    let (store, evicted) = add(&cache, &sample);
    assert_eq!(have(&store), [0, 1, 2]);
    assert_eq!([0, 1, 2].map(|n| sample.reads(&store, n)), [false, false, true]);
    assert_eq!(*lock(&evicted), [0, 1]);
    assert_eq!(cache.usage().disk, 8192);
}

#[test]
fn changes_by_others_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let sample = Sample::new(1, 1000, &[4000, 4000]);
    let close = |cache: Arc<Cache>| cache.close();
    let cache = open(dir.path(), None, 0);
    let (store, _) = add(&cache, &sample);
    (0..8).for_each(|n| sample.put(&store, n));
    drop(store);
    // A drop without a close is a crash; close the next one.
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

    // And while it runs: what is not there cannot be read, and comes again.
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
        sample.reads(&store, n); // asserts the bytes
    }
    close(cache);
}

#[test]
fn without_a_state_or_when_asked_every_piece_is_checked() {
    let dir = tempfile::tempdir().unwrap();
    let sample = Sample::new(1, 1000, &[4000, 0, 100, 3900]);
    {
        let cache = open(dir.path(), None, 0);
        let (store, _) = add(&cache, &sample);
        [0, 1, 2, 4, 5, 7].into_iter().for_each(|n| sample.put(&store, n));
        cache.close();
    }
    let spoil = || {
        let file = fs::File::options().write(true).open(sample.path(dir.path(), 0)).unwrap();
        file.write_all_at(b"spoilt", 1100).unwrap();
    };
    for garbage in [Some(&b""[..]), Some(b"tfstate1 and more of no use"), Some(&[0xFF; 3000]), None] {
        match garbage {
            Some(bytes) => fs::write(sample.state(dir.path()), bytes).unwrap(),
            None => fs::remove_file(sample.state(dir.path())).unwrap(),
        }
        spoil();
        let cache = open(dir.path(), None, 0);
        assert!(cache.usage().disk > 0, "data without a state counts");
        let (store, _) = add(&cache, &sample);
        assert_eq!(have(&store), [0, 2, 4, 5, 7]);
        assert_eq!(cache.usage().disk, 5000);
        assert!([0, 2, 4, 5, 7].into_iter().all(|n| sample.reads(&store, n)));
        cache.close();
    }
    spoil();
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
    assert!(again().is_ok(), "closed, it lets go of the directory");
}
