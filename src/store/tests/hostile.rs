//! Links, FIFOs and files of others in the cache directory.

use std::os::unix::fs::chown;

use super::*;

fn make_fifo(path: &Path) {
    let made = std::process::Command::new("mkfifo").arg(path).status();
    assert!(made.unwrap().success());
}

fn try_open(dir: &Path) -> Result<Arc<Cache>, StoreError> {
    Cache::open_unmaintained(CacheConfig { dir: dir.to_owned(), disk_limit: None, memory: 1 << 20 })
}

#[test]
fn planted_links_are_not_written_through() {
    let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let victim = outside.path().join("victim");
    fs::write(&victim, "precious").unwrap();
    let sample = Sample::one_file(1, 1000, 5);
    let home = dir.path().join(sample.info_hash.to_string());
    // The lock.
    symlink(&victim, dir.path().join("lock")).unwrap();
    let error = try_open(dir.path()).err().unwrap().to_string();
    assert!(error.contains("lock") && error.contains("symbolic link"), "{error}");
    fs::remove_file(dir.path().join("lock")).unwrap();
    // The new state and the new metainfo, to names that can be foreseen.
    fs::create_dir_all(&home).unwrap();
    fs::create_dir(dir.path().join("metainfo")).unwrap();
    symlink(&victim, home.join("state.new")).unwrap();
    let saved = dir.path().join("metainfo").join(format!("{}.torrent", sample.info_hash));
    symlink(&victim, saved.with_extension("new")).unwrap();
    symlink(&victim, &saved).unwrap();
    let cache = open(dir.path(), None, 0);
    assert_eq!(cache.metainfo(&sample.info_hash), None, "nor read through");
    let (store, _) = add(&cache, &sample);
    sample.put(&store, 1);
    cache.maintain(Instant::now());
    cache.keep_metainfo(&sample.info_hash, b"de").unwrap();
    assert!(home.join("state").symlink_metadata().unwrap().is_file());
    assert_eq!(cache.metainfo(&sample.info_hash).as_deref(), Some(&b"de"[..]));
    assert_eq!(cache.usage().fault, None);
    cache.close();
    drop((store, cache));
    // The state itself.
    fs::rename(home.join("state"), outside.path().join("state")).unwrap();
    symlink(outside.path().join("state"), home.join("state")).unwrap();
    let before = fs::read(outside.path().join("state")).unwrap();
    let cache = open(dir.path(), None, 0);
    assert!(TorrentStore::open(&cache, sample.spec(), Box::new(|_| {})).is_err());
    fs::remove_file(home.join("state")).unwrap();
    let (store, _) = add(&cache, &sample);
    sample.put(&store, 2);
    cache.close();
    assert_eq!(fs::read(outside.path().join("state")).unwrap(), before);
    drop((store, cache));
    // Whole directories.
    fs::remove_dir_all(&home).unwrap();
    fs::remove_dir_all(dir.path().join("metainfo")).unwrap();
    fs::create_dir(outside.path().join("dir")).unwrap();
    symlink(outside.path().join("dir"), &home).unwrap();
    symlink(outside.path().join("dir"), dir.path().join("metainfo")).unwrap();
    let cache = open(dir.path(), None, 0);
    assert!(TorrentStore::open(&cache, sample.spec(), Box::new(|_| {})).is_err());
    assert!(cache.keep_metainfo(&sample.info_hash, b"de").is_err());
    assert_eq!(fs::read_dir(outside.path().join("dir")).unwrap().count(), 0);
    assert_eq!(fs::read(&victim).unwrap(), b"precious");
}

#[test]
fn fifos_do_not_stop_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let sample = Sample::one_file(1, 1000, 5);
    let home = dir.path().join(sample.info_hash.to_string());
    make_fifo(&dir.path().join("lock"));
    let error = try_open(dir.path()).err().unwrap().to_string();
    assert!(error.contains("not a regular file"), "{error}");
    fs::remove_file(dir.path().join("lock")).unwrap();
    fs::create_dir_all(home.join("data/name/dir0")).unwrap();
    fs::create_dir(dir.path().join("metainfo")).unwrap();
    for path in [home.join("state"), home.join("state.new"), sample.path(dir.path(), 0)] {
        make_fifo(&path);
    }
    make_fifo(&dir.path().join("metainfo").join(format!("{}.torrent", sample.info_hash)));
    let cache = open(dir.path(), None, 10_000);
    assert_eq!(cache.metainfo(&sample.info_hash), None);
    let error = TorrentStore::open(&cache, sample.spec(), Box::new(|_| {})).err().unwrap().to_string();
    assert!(error.contains("state") && error.contains("not a regular file"), "{error}");
    fs::remove_file(home.join("state")).unwrap();
    let (store, _) = add(&cache, &sample);
    sample.put(&store, 0);
    assert!(sample.reads(&store, 0), "from memory");
    assert!(cache.usage().fault.is_some_and(|fault| fault.contains("not a regular file")));
    cache.close();
}

#[test]
fn root_refuses_the_directories_of_others() {
    if crate::sys::process::user() != 0 {
        eprintln!("skipped: only root can give a directory away");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let sample = Sample::one_file(1, 1000, 5);
    let home = dir.path().join(sample.info_hash.to_string());
    fs::create_dir(&home).unwrap();
    chown(&home, Some(65_534), None).unwrap();
    let cache = open(dir.path(), None, 10_000);
    let refused = TorrentStore::open(&cache, sample.spec(), Box::new(|_| {}));
    assert!(matches!(refused, Err(StoreError::Owner { user: 65_534, .. })));
    cache.close();
    drop(cache);
    chown(dir.path(), Some(65_534), None).unwrap();
    let error = try_open(dir.path()).err().unwrap().to_string();
    assert!(error.contains("user 65534") && error.contains("--cache-dir"), "{error}");
    assert!(Cache::open_shared(dir.path().to_owned(), 0).is_err());
    assert!(!dir.path().join("lock").exists() || fs::read(dir.path().join("lock")).unwrap().len() < 20);
}
