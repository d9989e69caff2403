//! Downloads over what other programs leave behind, and over files that change meanwhile.

use std::time::Duration;

use super::places::{add_at, download, shared};
use super::*;

/// Length of a piece in bytes: some filesystem blocks.
const PIECE: u64 = 16 << 10;

/// A torrent of one file directly in the download directory, without the last bytes of a piece.
fn single() -> Sample {
    let sample = Sample::one_file(2, PIECE, 9);
    let mut file = sample.files[0].clone();
    file.path = vec!["film.mkv".into()];
    Sample { files: vec![file], ..sample }
}

fn directory() -> Sample {
    Sample::new(3, PIECE, &[3 * PIECE + 100, 2 * PIECE + 17, 40, 4 * PIECE])
}

/// Downloads what is missing, and asserts that every file is right in the end. Returns the pieces that were there.
fn complete(sample: &Sample, dir: &Path, overwrite: bool, verify: bool) -> Result<Vec<u32>, StoreError> {
    let home = tempfile::tempdir().unwrap();
    let cache = shared(home.path());
    let store = add_at(&cache, sample, download(dir, overwrite), verify)?;
    let had: Vec<u32> = have(&store).into_iter().map(|n| n as u32).collect();
    for n in (0..sample.lengths.pieces()).filter(|n| !had.contains(n)) {
        sample.put(&store, n);
    }
    assert!(store.is_all_on_disk(), "never ends: {:?}", cache.failure());
    for file in sample.files.iter().filter(|file| file.is_stored()) {
        let range = file.offset as usize..(file.offset + file.len) as usize;
        assert!(fs::read(dir.join(file.relative_path())).unwrap() == sample.bytes[range], "{:?}", file.path);
    }
    store.remove_state_on_close();
    store.close();
    cache.close();
    Ok(had)
}

fn new_file(path: &Path, len: u64) -> fs::File {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let file = fs::File::options().write(true).create(true).truncate(true).open(path).unwrap();
    file.set_len(len).unwrap();
    file
}

#[test]
fn files_of_every_length_are_completed() {
    let sample = single();
    let full = 9 * PIECE;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("film.mkv");
    // As wget, curl and browsers leave them.
    for len in [PIECE, PIECE + 1, 2 * PIECE - 1, 4 * PIECE, 5 * PIECE + 4096, full - PIECE, full - 1, full] {
        for verify in [false, true] {
            fs::write(&path, &sample.bytes[..len as usize]).unwrap();
            let had = complete(&sample, dir.path(), false, verify).unwrap();
            assert_eq!(had.len() as u64, len / PIECE, "{len}");
        }
    }
    // Longer ones, and a start that holds no whole piece, are only replaced on request.
    for content in [[&sample.bytes[..], b"<html>"].concat(), sample.bytes[..PIECE as usize - 1].to_vec()] {
        fs::write(&path, &content).unwrap();
        assert!(matches!(complete(&sample, dir.path(), false, false), Err(StoreError::Foreign { .. })));
        assert_eq!(fs::read(&path).unwrap(), content);
        complete(&sample, dir.path(), true, false).unwrap();
    }
    // A server that answered with an error in the middle.
    fs::write(&path, [&sample.bytes[..3 * PIECE as usize], b"504 Gateway Timeout"].concat()).unwrap();
    assert_eq!(complete(&sample, dir.path(), false, false).unwrap(), [0, 1, 2]);
}

#[test]
fn files_of_other_torrent_clients_are_completed() {
    let sample = single();
    let full = 9 * PIECE;
    let write = |file: &fs::File, pieces: &[u32]| {
        for n in pieces {
            file.write_all_at(sample.content(*n), u64::from(*n) * PIECE).unwrap();
        }
    };
    type Leave<'a> = (&'static str, Box<dyn Fn(&Path) + 'a>, &'static [u32]);
    let leave = |len: u64, pieces: &'static [u32]| move |path: &Path| write(&new_file(path, len), pieces);
    let reserved = |pieces: &'static [u32]| {
        move |path: &Path| {
            let file = new_file(path, 0);
            let len = full.to_string();
            let reserved = std::process::Command::new("fallocate").args(["-l", &len]).arg(path).status();
            assert!(reserved.unwrap().success());
            write(&file, pieces);
        }
    };
    let zeros = |pieces: &'static [u32]| {
        move |path: &Path| {
            let file = new_file(path, 0);
            file.write_all_at(&vec![0; full as usize], 0).unwrap();
            write(&file, pieces);
        }
    };
    let cases: Vec<Leave> = vec![
        ("aria2 without allocation: as long as its last piece", Box::new(leave(6 * PIECE, &[0, 2, 5])), &[0, 2, 5]),
        ("aria2 with falloc", Box::new(reserved(&[1, 8])), &[1, 8]),
        ("aria2 with falloc, before the first piece", Box::new(reserved(&[])), &[]),
        ("aria2 with prealloc", Box::new(zeros(&[0, 3])), &[0, 3]),
        ("aria2 with prealloc, before the first piece", Box::new(zeros(&[])), &[]),
        ("libtorrent: sparse", Box::new(leave(full, &[4, 5])), &[4, 5]),
        ("libtorrent: sparse, before the first piece", Box::new(leave(full, &[])), &[]),
        ("sparse, and cut short", Box::new(leave(7 * PIECE + 5, &[0, 3])), &[0, 3]),
        ("complete", Box::new(leave(full, &[0, 1, 2, 3, 4, 5, 6, 7, 8])), &[0, 1, 2, 3, 4, 5, 6, 7, 8]),
        ("empty", Box::new(leave(0, &[])), &[]),
    ];
    for (name, leave, there) in cases {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("film.mkv");
        leave(&path);
        // The notes of other clients, and files under their temporary names.
        let notes = ["film.mkv.aria2", ".0202.parts", "film.mkv.part", "film.mkv.!qB", "film.mkv.st"];
        notes.iter().for_each(|note| fs::write(dir.path().join(note), "theirs").unwrap());
        assert_eq!(complete(&sample, dir.path(), false, false).unwrap(), there, "{name}");
        assert!(notes.iter().all(|note| fs::read(dir.path().join(note)).unwrap() == b"theirs"), "{name}");
    }
}

#[test]
fn directories_with_files_of_every_length_are_completed() {
    let sample = directory();
    let content = |n: usize| {
        let file = &sample.files[n];
        &sample.bytes[file.offset as usize..(file.offset + file.len) as usize]
    };
    let cut = |n: usize, len: u64| (n, content(n)[..len as usize].to_vec());
    let (a, b, d) = (sample.files[0].len, sample.files[1].len, sample.files[3].len);
    let cases: [Vec<(usize, Vec<u8>)>; 7] = [
        vec![cut(0, a), cut(1, PIECE * 2)],
        vec![cut(0, a), cut(1, b), cut(3, d - 1)],
        vec![cut(0, 2 * PIECE), cut(3, 2 * PIECE)],
        vec![cut(0, a - 1), cut(1, b), cut(3, d)],
        vec![cut(0, a), cut(1, b - 1), cut(3, d)],
        vec![cut(3, d)],
        vec![(0, Vec::new()), cut(1, b), cut(3, PIECE * 3)],
    ];
    for (nth, files) in cases.into_iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        for (n, content) in &files {
            let path = dir.path().join(sample.files[*n].relative_path());
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        let had = complete(&sample, dir.path(), false, false).unwrap();
        assert!(!had.is_empty(), "case {nth}");
    }
}

#[test]
fn permissions_of_existing_files_are_kept() {
    let sample = single();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("film.mkv");
    for mode in [0o600, 0o644, 0o666, 0o755] {
        fs::write(&path, &sample.bytes[..3 * PIECE as usize]).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        complete(&sample, dir.path(), false, false).unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o777, mode);
    }
    // A file that cannot be written is named, before anything is fetched.
    fs::write(&path, &sample.bytes[..3 * PIECE as usize]).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
    match complete(&sample, dir.path(), false, false) {
        Err(error) => assert!(error.to_string().contains("film.mkv"), "{error}"),
        // Root may write to it all the same.
        Ok(had) => assert!(had.len() == 3 && crate::sys::process::user() == 0),
    }
}

#[test]
fn a_download_ends_although_its_files_are_touched_meanwhile() {
    let sample = directory();
    let (home, users) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = |n: usize| users.path().join(sample.files[n].relative_path());
    let cache = shared(home.path());
    let store = add_at(&cache, &sample, download(users.path(), false), false).unwrap();
    let pieces = sample.lengths.pieces();
    (0..pieces - 1).for_each(|n| sample.put(&store, n));
    std::thread::sleep(Duration::from_millis(15));
    // Somebody changes the permissions of one, truncates the next, and removes the last.
    fs::set_permissions(path(0), fs::Permissions::from_mode(0o640)).unwrap();
    fs::File::options().write(true).open(path(1)).unwrap().set_len(PIECE).unwrap();
    fs::remove_file(path(3)).unwrap();
    sample.put(&store, pieces - 1);
    let begun = Instant::now();
    while !store.is_all_on_disk() {
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?} {:?}", have(&store), cache.failure());
        store.check_unverified();
        (0..pieces).filter(|n| !store.has(sample.piece(*n))).for_each(|n| sample.put(&store, n));
        std::thread::sleep(Duration::from_millis(50));
    }
    store.close();
    for (n, file) in sample.files.iter().enumerate().filter(|(_, file)| file.is_stored()) {
        let range = file.offset as usize..(file.offset + file.len) as usize;
        assert!(fs::read(path(n)).unwrap() == sample.bytes[range], "file {n}");
    }
}
