//! Torrents whose files are outside the cache: downloads, and the user's own files.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;

use super::*;

/// Per file: mode, modification and status change time in seconds and nanoseconds, content.
type Snapshot = BTreeMap<PathBuf, (u32, i64, i64, i64, i64, Vec<u8>)>;

/// Records everything below a directory, to detect changes.
fn snapshot(root: &Path) -> Snapshot {
    let (mut found, mut left) = (BTreeMap::new(), vec![root.to_owned()]);
    while let Some(path) = left.pop() {
        let about = path.symlink_metadata().unwrap();
        let content = if about.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
        if about.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        let times = (about.mtime(), about.mtime_nsec(), about.ctime(), about.ctime_nsec());
        found.insert(path, (about.mode(), times.0, times.1, times.2, times.3, content));
    }
    found
}

pub(super) fn shared(dir: &Path) -> Arc<Cache> {
    Cache::open_shared(dir.to_owned(), 0).unwrap()
}

pub(super) fn add_at(
    cache: &Arc<Cache>,
    sample: &Sample,
    place: Place,
    verify: bool,
) -> Result<Arc<TorrentStore>, StoreError> {
    TorrentStore::open(cache, TorrentSpec { place, verify, ..sample.spec() }, Box::new(|_| {}))
}

pub(super) fn download(dir: &Path, overwrite: bool) -> Place {
    Place::Download { dir: dir.to_owned(), overwrite }
}

/// Writes the sample's files, with `root` in place of their first path component.
fn write_files(sample: &Sample, root: &Path) {
    for file in sample.files.iter().filter(|file| file.is_stored()) {
        let path = root.join(file.relative_path().strip_prefix("name").unwrap());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, &sample.bytes[file.offset as usize..(file.offset + file.len) as usize]).unwrap();
    }
}

#[test]
fn the_users_files_are_only_read() {
    let (home, mine) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let root = mine.path().join("by another name");
    let sample = Sample::new(1, 50, &[170, 90, 30, 100, 0, 17]);
    write_files(&sample, &root);
    // Names that the cache uses elsewhere.
    for name in ["state", "lock", "data"] {
        fs::write(root.join(name), "mine").unwrap();
    }
    // One file has a wrong piece, one is truncated, one is too long.
    let path = |file: usize| root.join(sample.files[file].relative_path().strip_prefix("name").unwrap());
    fs::File::options().write(true).open(path(0)).unwrap().write_all_at(b"?", 120).unwrap();
    fs::File::options().write(true).open(path(3)).unwrap().set_len(60).unwrap();
    fs::File::options().append(true).open(path(1)).unwrap().write_all_at(b"more", 90).unwrap();
    for (dir, mode) in [(root.join("dir0"), 0o555), (root.join("dir1"), 0o555), (root.clone(), 0o555)] {
        fs::set_permissions(dir, fs::Permissions::from_mode(mode)).unwrap();
    }
    let before = snapshot(mine.path());

    for verify in [true, false] {
        let cache = shared(home.path());
        let store = add_at(&cache, &sample, Place::Seed(root.clone()), verify).unwrap();
        // 170 + 90 bytes, a pad of 30, then 60 of 100 bytes.
        let good: Vec<u32> = vec![0, 1, 3, 4, 5, 6, 8];
        if verify {
            assert_eq!(have(&store), [0, 1, 3, 4, 5, 6, 8]);
        }
        for n in 0..sample.lengths.pieces() {
            assert_eq!(sample.reads(&store, n), good.contains(&n), "piece {n}");
        }
        assert_eq!(have(&store), [0, 1, 3, 4, 5, 6, 8]);
        // A missing piece is not fetched; if it were, it would not be written.
        sample.put(&store, 2);
        store.flush();
        cache.maintain(Instant::now());
        assert!(cache.usage().disk == 0 && !store.is_all_on_disk());
        store.close();
        cache.close();
    }
    assert!(before == snapshot(mine.path()), "the files were changed");
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0, "no state is stored");
}

#[test]
fn a_file_that_its_user_changes_is_hashed_again() {
    let (home, mine) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let sample = Sample::one_file(2, 4096, 4);
    let root = mine.path().join("file");
    fs::write(&root, &sample.bytes).unwrap();
    let single = Sample { files: vec![File { path: vec!["name".into()], ..sample.files[0].clone() }], ..sample };
    let cache = shared(home.path());
    let store = add_at(&cache, &single, Place::Seed(root.clone()), true).unwrap();
    assert!(store.is_all_on_disk() && single.reads(&store, 1));
    let file = fs::File::options().write(true).open(&root).unwrap();
    let mut out = vec![0; 4096];
    wait_for_clock_tick(&root);
    file.write_all_at(b"edited", 5000).unwrap();
    // Neither the page cache nor the disk returns wrong bytes.
    assert_ne!(store.peek_now(single.piece(1), 0, &mut out), Lookup::Hit);
    assert!(!single.reads(&store, 1) && single.reads(&store, 0) && single.reads(&store, 3));
    assert_eq!(have(&store), [0, 2, 3]);
    // Replaced by another file, as editors do.
    fs::write(mine.path().join("new"), vec![7; 4096]).unwrap();
    fs::rename(mine.path().join("new"), &root).unwrap();
    cache.handles.close(store_id(&cache));
    // The last verified piece may still be in memory.
    assert!((0..4).filter(|n| single.reads(&store, *n)).count() <= 1);
    assert_eq!(fs::read(&root).unwrap(), vec![7; 4096]);
}

fn store_id(cache: &Cache) -> u32 {
    cache.torrents()[0].pieces.id
}

/// Waits until a write would get a later time than the last one: file times advance every few milliseconds.
fn wait_for_clock_tick(path: &Path) {
    let probe = path.with_extension("probe");
    let before = path.metadata().unwrap().modified().unwrap();
    loop {
        fs::write(&probe, "").unwrap();
        if probe.metadata().unwrap().modified().unwrap() > before {
            return fs::remove_file(&probe).unwrap();
        }
    }
}

#[test]
fn a_download_keeps_its_files_and_resumes() {
    let (home, users) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let sample = Sample::new(3, 50, &[170, 90, 30, 100, 0, 17]);
    fs::write(users.path().join("other"), "mine").unwrap();
    let place = || download(users.path(), false);
    let begin = |pieces: &[u32]| {
        let cache = shared(home.path());
        let store = add_at(&cache, &sample, place(), false).unwrap();
        pieces.iter().for_each(|n| sample.put(&store, *n));
        (cache, store)
    };
    // A clean close, then a kill, after which a piece is damaged.
    let (cache, store) = begin(&[0, 2, 7]);
    cache.close();
    drop((cache, store));
    let (cache, store) = begin(&[1]);
    assert_eq!(have(&store), [0, 1, 2, 7]);
    cache.maintain(Instant::now());
    drop((cache, store));
    let path = |file: usize| users.path().join(sample.files[file].relative_path());
    fs::File::options().write(true).open(path(0)).unwrap().write_all_at(b"?", 120).unwrap();
    let (cache, store) = begin(&[]);
    // Piece 8 is a pad.
    assert_eq!(have(&store), [0, 1, 7, 8], "verified before anything else");
    (2..9).for_each(|n| sample.put(&store, n));
    assert!(store.is_all_on_disk() && cache.usage().disk == 0);
    store.remove_state_on_close();
    store.close();
    cache.close();
    for (n, file) in sample.files.iter().enumerate().filter(|(_, file)| file.is_stored()) {
        let range = file.offset as usize..(file.offset + file.len) as usize;
        assert!(fs::read(path(n)).unwrap() == sample.bytes[range], "file {n}");
        assert_eq!(path(n).metadata().unwrap().mode() & 0o700, 0o600);
    }
    let left: BTreeSet<_> = fs::read_dir(users.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, BTreeSet::from(["name".into(), "other".into()]));
    assert_eq!(fs::read_dir(home.path().join("downloads")).unwrap().count(), 0);
    // Opened again, every piece is hashed, because no state was kept.
    let (_cache, store) = begin(&[]);
    assert!(store.is_all_on_disk());
}

#[test]
fn files_that_are_not_the_torrents_are_preserved() {
    let sample = Sample::new(4, 50, &[170, 90]);
    let home = tempfile::tempdir().unwrap();
    let attempt = |prepare: &dyn Fn(&Path), overwrite: bool| {
        let users = tempfile::tempdir().unwrap();
        prepare(&users.path().join("name"));
        let before = snapshot(users.path());
        let cache = shared(home.path());
        let added = add_at(&cache, &sample, download(users.path(), overwrite), false);
        if !overwrite {
            assert!(snapshot(users.path()) == before, "changed");
        }
        let outcome = added.map(|store| {
            (0..sample.lengths.pieces()).for_each(|n| sample.put(&store, n));
            assert!(store.is_all_on_disk());
            sample.files.iter().all(|file| {
                let range = file.offset as usize..(file.offset + file.len) as usize;
                fs::read(users.path().join(file.relative_path())).unwrap() == sample.bytes[range]
            })
        });
        cache.close();
        outcome
    };
    let first = |root: &Path| root.join("dir0").join("file0");
    let write = |content: Vec<u8>| {
        move |root: &Path| {
            fs::create_dir_all(root.join("dir0")).unwrap();
            fs::write(first(root), &content).unwrap();
        }
    };
    // A shorter file, one of the right size, and one that starts like the torrent's but is longer.
    let longer = [&sample.bytes[..170], b"and mine"].concat();
    for content in [b"mine".to_vec(), vec![9; 170], longer] {
        let refused = attempt(&write(content.clone()), false).unwrap_err();
        assert!(matches!(&refused, StoreError::Foreign { .. }), "{refused}");
        assert!(refused.to_string().contains("--force"), "{refused}");
        assert!(attempt(&write(content), true).unwrap(), "requested");
    }
    // A file with a piece of the torrent's, an empty one and a hole can be used.
    let partly = [&sample.bytes[..60], &[0; 110]].concat();
    for content in [partly, Vec::new()] {
        assert!(attempt(&write(content), false).unwrap());
    }
    let hole = |root: &Path| {
        write(Vec::new())(root);
        fs::File::options().write(true).open(first(root)).unwrap().set_len(170).unwrap();
    };
    assert!(attempt(&hole, false).unwrap());
    // Some things must not be replaced even on request.
    for overwrite in [false, true] {
        let directory = |root: &Path| fs::create_dir_all(first(root)).unwrap();
        let file = |root: &Path| fs::write(root, "mine").unwrap();
        let link = |root: &Path| {
            fs::create_dir_all(root).unwrap();
            symlink("/nowhere", root.join("dir0")).unwrap();
        };
        for prepare in [&directory as &dyn Fn(&Path), &file, &link] {
            assert!(matches!(attempt(prepare, overwrite), Err(StoreError::InTheWay { .. })));
        }
    }
}

#[test]
fn a_file_that_appears_between_two_runs_is_detected() {
    let (home, users) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let sample = Sample::new(5, 50, &[150, 90]);
    let cache = shared(home.path());
    let store = add_at(&cache, &sample, download(users.path(), false), false).unwrap();
    sample.put(&store, 0);
    cache.close();
    drop((cache, store));
    // No byte of the second file had been written.
    let second = users.path().join(sample.files[1].relative_path());
    fs::create_dir_all(second.parent().unwrap()).unwrap();
    fs::write(&second, "notes").unwrap();
    let cache = shared(home.path());
    let refused = add_at(&cache, &sample, download(users.path(), false), false);
    assert!(matches!(refused, Err(StoreError::Foreign { .. })));
    assert_eq!(fs::read(&second).unwrap(), b"notes");
    cache.close();
    // The same for a file that had been written and was replaced.
    fs::remove_file(&second).unwrap();
    let first = users.path().join(sample.files[0].relative_path());
    fs::remove_file(&first).unwrap();
    fs::write(&first, vec![3; 150]).unwrap();
    let cache = shared(home.path());
    let refused = add_at(&cache, &sample, download(users.path(), false), false);
    assert!(matches!(refused, Err(StoreError::Foreign { .. })));
    assert_eq!(fs::read(&first).unwrap(), vec![3; 150]);
}

#[test]
fn a_file_that_cannot_be_hashed_is_compared_with_new_bytes() {
    let (home, users) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // Two files in one piece.
    let sample = Sample::new(9, 100, &[40, 60]);
    let first = users.path().join(sample.files[0].relative_path());
    fs::create_dir_all(first.parent().unwrap()).unwrap();
    for (content, is_ours) in [(sample.bytes[..40].to_vec(), true), (vec![9; 40], false)] {
        fs::write(&first, &content).unwrap();
        let cache = shared(home.path());
        let store = add_at(&cache, &sample, download(users.path(), false), false).unwrap();
        assert_eq!(have(&store), [0; 0]);
        sample.put(&store, 0);
        assert_eq!((store.is_all_on_disk(), cache.failure().is_none()), (is_ours, is_ours));
        assert_eq!(fs::read(&first).unwrap(), content);
        store.remove_state_on_close();
        store.close();
        let _ = fs::remove_file(users.path().join(sample.files[1].relative_path()));
    }
    // A file of another size cannot be the torrent's.
    fs::write(&first, [9; 39]).unwrap();
    let refused = add_at(&shared(home.path()), &sample, download(users.path(), false), false);
    assert!(matches!(refused, Err(StoreError::Foreign { .. })));
}

#[test]
fn downloads_do_not_count_and_are_not_evicted() {
    let (home, users) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let cache = open(home.path(), Some(300), 0);
    let (kept, cached) = (Sample::one_file(6, 100, 10), Sample::one_file(7, 100, 10));
    let download = add_at(&cache, &kept, download(users.path(), false), false).unwrap();
    let (in_cache, evicted) = add(&cache, &cached);
    for n in 0..10 {
        kept.put(&download, n);
        cached.put(&in_cache, n);
        assert!(cache.usage().disk <= 300);
    }
    assert!(download.is_all_on_disk());
    assert_eq!((lock(&evicted).len(), have(&in_cache).len()), (7, 3));
    assert_eq!((download.room(), in_cache.room()), (u64::MAX, 0));
    download.close();
    in_cache.close();
    assert_eq!(cache.usage().disk, 300);
}

#[test]
fn two_processes_cannot_write_the_same_files_and_a_shared_cache_stores_none() {
    let (home, users, elsewhere) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let sample = Sample::one_file(8, 100, 2);
    let owner = open(home.path(), None, 0);
    let (one, two) = (shared(home.path()), shared(home.path()));
    let first = add_at(&one, &sample, download(users.path(), false), false).unwrap();
    for cache in [&two, &owner] {
        let busy = add_at(cache, &sample, download(users.path(), false), false);
        assert!(matches!(busy, Err(StoreError::Busy { .. })));
    }
    assert!(add_at(&two, &sample, download(elsewhere.path(), false), false).is_ok(), "in another directory");
    first.close();
    drop(first);
    let three = shared(home.path());
    assert!(add_at(&three, &sample, download(users.path(), false), false).is_ok());
    let refused = add_at(&shared(home.path()), &sample, Place::Cache, false);
    assert!(matches!(refused, Err(StoreError::Shared(_))));
    assert!(add_at(&owner, &sample, Place::Cache, false).is_ok(), "the cache's own copy is independent");
}

#[test]
fn files_without_content_are_created_too() {
    use crate::metainfo::{File, FileKind};
    let users = tempfile::tempdir().unwrap();
    let file = |path: &[&str], len: u64, kind: FileKind| File {
        path: path.iter().map(|part| part.to_string()).collect(),
        offset: 0,
        len,
        kind,
    };
    let (plain, run) = (FileKind::Regular { executable: false }, FileKind::Regular { executable: true });
    let files = [
        file(&["t", "a", "empty"], 0, plain.clone()),
        file(&["t", "run"], 3, run),
        file(&["t", "b", "link"], 0, FileKind::Symlink { target: "../run".into() }),
        file(&["t", ".pad"], 9, FileKind::Pad),
    ];
    let extra = |overwrite| ExtraFiles { dir: users.path(), files: &files, overwrite };
    let root = users.path().join("t");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("run"), "run").unwrap();
    for _ in 0..2 {
        extra(false).check().unwrap();
        extra(false).create().unwrap();
        assert_eq!(fs::read(root.join("a/empty")).unwrap(), b"");
        assert_eq!(fs::read_link(root.join("b/link")).unwrap(), Path::new("../run"));
        assert_eq!(root.join("run").metadata().unwrap().mode() & 0o100, 0o100);
        assert!(!root.join(".pad").exists());
    }
    // Other files with these names.
    fs::write(root.join("a/empty"), "mine").unwrap();
    assert!(matches!(extra(false).check(), Err(StoreError::Foreign { .. })));
    assert!(extra(false).create().is_err());
    assert_eq!(fs::read(root.join("a/empty")).unwrap(), b"mine");
    fs::remove_file(root.join("b/link")).unwrap();
    fs::write(root.join("b/link"), "mine").unwrap();
    extra(true).check().unwrap();
    extra(true).create().unwrap();
    assert_eq!(fs::read_link(root.join("b/link")).unwrap(), Path::new("../run"));
    fs::remove_file(root.join("b/link")).unwrap();
    fs::create_dir(root.join("b/link")).unwrap();
    assert!(matches!(extra(true).check(), Err(StoreError::InTheWay { .. })));
    // A few bytes fit, and 2^60 fit no filesystem.
    assert_eq!(space_missing(users.path(), &files).unwrap(), None);
    let huge = [file(&["t", "huge"], 1 << 60, plain)];
    assert!(space_missing(users.path(), &huge).unwrap().is_some());
}

/// A torrent of which two files have names that every filesystem here refuses: they are too long.
fn with_long_names() -> Sample {
    let mut sample = Sample::new(9, 50, &[170, 90, 30, 100, 0, 17]);
    sample.files[1].path[2] = format!("{}.mkv", "n".repeat(300));
    sample.files[3].path[1] = format!("dir: {}", "d".repeat(300));
    sample
}

#[test]
fn a_refused_name_is_the_fault_of_one_file() {
    let dir = tempfile::tempdir().unwrap();
    let sample = with_long_names();
    for run in 0..2 {
        let cache = open(dir.path(), None, 0);
        let (store, _) = add(&cache, &sample);
        for n in 0..sample.lengths.pieces() {
            assert_eq!(sample.reads(&store, n), run > 0, "piece {n}");
            if run == 0 {
                sample.put(&store, n);
            }
        }
        assert_eq!(cache.usage().fault, None);
        assert!(store.is_all_on_disk(), "run {run}");
        store.close();
        cache.close();
    }
    let data = dir.path().join(sample.info_hash.to_string()).join("data");
    assert_eq!(fs::metadata(data.join("renamed/1")).unwrap().len(), 90);
    assert_eq!(fs::metadata(data.join("renamed/3")).unwrap().len(), 100);
    assert_eq!(fs::metadata(sample.path(dir.path(), 0)).unwrap().len(), 170);
    // Eviction finds the files, too.
    let cache = open(dir.path(), Some(50), 0);
    let (store, _) = add(&cache, &sample);
    cache.maintain(Instant::now());
    assert!(have(&store).len() <= 1);
    assert_eq!(cache.usage().fault, None);
}

#[test]
fn a_download_renames_what_the_filesystem_refuses() {
    let (home, mine) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut sample = with_long_names();
    sample.files[4].path[2] = "e".repeat(300);
    for run in 0..2 {
        let cache = shared(home.path());
        let store = add_at(&cache, &sample, download(mine.path(), false), false).unwrap();
        assert_eq!(store.is_all_on_disk(), run > 0);
        if run == 0 {
            (0..sample.lengths.pieces()).for_each(|n| sample.put(&store, n));
        }
        assert!(store.is_all_on_disk() && cache.failure().is_none());
        let extra = ExtraFiles { dir: mine.path(), files: &sample.files, overwrite: false };
        extra.check().unwrap();
        extra.create().unwrap();
        // Without a state, the next run finds the files by their names.
        store.remove_state_on_close();
        store.close();
        cache.close();
    }
    let path = |name: &str| mine.path().join("name").join(name);
    let long = path(&format!("dir1/{}.mkv", "n".repeat(136)));
    assert_eq!(fs::read(long).unwrap(), sample.bytes[170..260]);
    assert_eq!(fs::metadata(path(&format!("dir_ {}/file3", "d".repeat(135)))).unwrap().len(), 100);
    assert_eq!(fs::metadata(path(&format!("dir0/{}", "e".repeat(140)))).unwrap().len(), 0);
}
