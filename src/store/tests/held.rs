//! Files that the kernel reads itself.

use std::sync::atomic::AtomicUsize;

use super::changes::{open_rw, tick};
use super::*;
use crate::metainfo::FileIndex;

/// Length of a piece in bytes.
const PIECE: u64 = 16 << 10;

/// Four files, of which the third is a pad, and where every boundary is within a piece.
fn sample() -> Sample {
    Sample::new(1, PIECE, &[4 * PIECE + 777, 3 * PIECE, 50, PIECE])
}

/// Holds a file. Also returns how often it has lost a piece.
fn hold(store: &Arc<TorrentStore>, file: u32) -> Option<(HeldFile, fs::File, Arc<AtomicUsize>)> {
    let lost = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&lost);
    let (held, opened) = store.hold(FileIndex(file), Box::new(move || _ = count.fetch_add(1, SeqCst)))?;
    Some((held, opened.try_clone().unwrap(), lost))
}

fn filled(cache: &Arc<Cache>, sample: &Sample) -> Arc<TorrentStore> {
    let (store, _) = add(cache, sample);
    (0..sample.lengths.pieces()).for_each(|n| sample.put(&store, n));
    store
}

#[test]
fn only_a_complete_and_verified_file_is_held() {
    let dir = tempfile::tempdir().unwrap();
    let (sample, cache) = (sample(), open(dir.path(), None, 1 << 20));
    let (store, _) = add(&cache, &sample);
    let held = |store: &Arc<TorrentStore>| [0, 1, 2, 3, 4].map(|file| hold(store, file).is_some());
    assert_eq!(held(&store), [false; 5]);
    (0..4).for_each(|n| sample.put(&store, n));
    assert_eq!(held(&store), [false; 5], "the piece at the end of the first file is missing");
    sample.put(&store, 4);
    assert_eq!(held(&store), [true, false, false, false, false]);
    (5..sample.lengths.pieces()).for_each(|n| sample.put(&store, n));
    // Neither a pad file nor one that the torrent does not have.
    assert_eq!(held(&store), [true, true, false, true, false]);
    let (_, opened, _) = hold(&store, 1).unwrap();
    let mut bytes = vec![0; 3 * PIECE as usize];
    opened.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes == sample.bytes[4 * PIECE as usize + 777..][..bytes.len()]);

    // Without a clean close the pieces are hashed before they are trusted. None may be pinned for good by the failed tries.
    cache.maintain(Instant::now());
    drop((store, cache));
    let cache = open(dir.path(), None, 0);
    let (store, _) = add(&cache, &sample);
    assert_eq!(held(&store), [false; 5]);
    let unverified = |file| store.unverified_of(FileIndex(file)).len();
    assert_eq!([0, 1, 3].map(unverified), [5, 4, 2]);
    store.check_unverified();
    assert_eq!([0, 1, 3].map(unverified), [0; 3]);
    assert_eq!(held(&store), [true, true, false, true, false]);
    let pieces = &cache.torrents()[0].pieces;
    assert!(sample.lengths.iter().all(|piece| !pieces.word(piece).pinned()));
    cache.close();
    assert_eq!(held(&store), [false; 5]);
}

#[test]
fn a_held_file_is_not_evicted() {
    let dir = tempfile::tempdir().unwrap();
    let (one, other) = (Sample::one_file(1, PIECE, 8), Sample::one_file(2, PIECE, 8));
    let cache = open(dir.path(), Some(8 * PIECE), 0);
    let first = filled(&cache, &one);
    let (held, _, lost) = hold(&first, 0).unwrap();
    // The pieces of the reader's window are not the only pinned ones.
    first.pin(vec![0..1]);
    first.pin(Vec::new());
    let second = filled(&cache, &other);
    assert!((0..8).all(|n| one.reads(&first, n)) && !(0..7).any(|n| other.reads(&second, n)));
    assert!(held.is_intact() && lost.load(SeqCst) == 0 && cache.usage().disk <= 8 * PIECE);
    drop(held);
    (0..8).for_each(|n| other.put(&second, n));
    assert!((0..8).all(|n| other.reads(&second, n)) && !(0..8).any(|n| one.reads(&first, n)));
    assert!(hold(&second, 0).is_some() && hold(&first, 0).is_none());
}

#[test]
fn a_change_by_another_program_is_judged_by_the_bytes() {
    type Change = fn(&Path);
    let changes: [(&str, bool, Change); 7] = [
        ("touched", true, |path| open_rw(path).set_modified(std::time::SystemTime::now()).unwrap()),
        ("linked", true, |path| fs::hard_link(path, path.with_extension("link")).unwrap()),
        ("overwritten", false, |path| open_rw(path).write_all_at(b"bad", 2 * PIECE).unwrap()),
        ("truncated", false, |path| open_rw(path).set_len(PIECE).unwrap()),
        ("made longer", false, |path| open_rw(path).set_len(99 * PIECE).unwrap()),
        ("removed", false, |path| fs::remove_file(path).unwrap()),
        // The right bytes, but not those that the kernel reads.
        ("copied over", false, |path| {
            let copy = path.with_extension("copy");
            fs::copy(path, &copy).unwrap();
            fs::rename(&copy, path).unwrap();
        }),
    ];
    for (name, stays, change) in changes {
        let dir = tempfile::tempdir().unwrap();
        let (sample, cache) = (sample(), open(dir.path(), None, 0));
        let store = filled(&cache, &sample);
        let (held, ..) = hold(&store, 0).unwrap();
        let (neighbour, _, unharmed) = hold(&store, 3).unwrap();
        tick();
        change(&sample.path(dir.path(), 0));
        assert_eq!(held.is_intact(), stays, "{name}");
        assert!(neighbour.is_intact() && unharmed.load(SeqCst) == 0, "{name}");
        assert_eq!(hold(&store, 0).is_some(), stays || name == "copied over", "{name}");
    }
}

#[test]
fn a_held_file_learns_that_a_piece_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let (sample, cache) = (sample(), open(dir.path(), None, 0));
    let store = filled(&cache, &sample);
    let (held, _, lost) = hold(&store, 0).unwrap();
    let (other, _, unharmed) = hold(&store, 3).unwrap();
    tick();
    open_rw(&sample.path(dir.path(), 0)).write_all_at(b"bad", PIECE + 5).unwrap();
    // As `torrentfs verify` does.
    for n in 0..sample.lengths.pieces() {
        assert_eq!(store.recheck(sample.piece(n)), Some(n != 1), "piece {n}");
    }
    assert_eq!((lost.load(SeqCst), unharmed.load(SeqCst)), (1, 0));
    assert!(!held.is_intact() && other.is_intact());
    // The piece is here again, in the same inode.
    sample.put(&store, 1);
    assert!(held.is_intact());
}
