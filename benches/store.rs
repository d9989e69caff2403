//! Reads that the store answers without waiting: from memory, and from the page cache.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sha1::{Digest, Sha1};
use torrentfs::internals::store::{Cache, CacheConfig, Lookup, TorrentSpec, TorrentStore};
use torrentfs::metainfo::{File, FileKind, InfoHash, Layout, Lengths, PieceHashes};

/// Length of a piece in bytes: a common one.
const PIECE_LEN: u32 = 1 << 20;
/// Number of pieces, which all fit in memory.
const PIECES: u32 = 32;
/// Length of a read in bytes: the kernel's largest FUSE read with the default read-ahead.
const READ: usize = 128 << 10;

/// A store with all pieces, `memory` bytes of which fit in memory.
fn filled(dir: &std::path::Path, memory: u64) -> (Arc<Cache>, Arc<TorrentStore>, Lengths) {
    let content = |piece: u32| vec![piece as u8; PIECE_LEN as usize];
    let total = u64::from(PIECE_LEN) * u64::from(PIECES);
    let lengths = Lengths::new(total, PIECE_LEN.into()).expect("sizes of a torrent");
    let hashes: Vec<u8> = (0..PIECES).flat_map(|piece| Sha1::digest(content(piece))).collect();
    let config = CacheConfig { dir: dir.to_owned(), disk_limit: None, memory };
    let cache = Cache::open(config).expect("a new directory");
    let kind = FileKind::Regular { executable: false };
    let file = File { path: vec!["file".into()], offset: 0, len: total, kind };
    let spec = TorrentSpec {
        info_hash: InfoHash([1; 20]),
        layout: Layout::new(lengths, vec![file]).into(),
        hashes: PieceHashes::v1(hashes),
        verify: false,
        place: torrentfs::internals::store::Place::Cache,
        progress: None,
    };
    let store = TorrentStore::open(&cache, spec, Box::new(|_| {})).expect("a new torrent");
    for piece in lengths.iter() {
        let mut buffer = cache.buffer(PIECE_LEN as usize);
        buffer.copy_from_slice(&content(piece.get()));
        store.put(store.verify(piece, buffer.freeze()).expect("the right bytes"));
    }
    store.flush();
    (cache, store, lengths)
}

fn hits(c: &mut Criterion) {
    let mut group = c.benchmark_group("store");
    group.throughput(Throughput::Bytes(READ as u64));
    for (name, memory) in [("128 KiB from memory", 64 << 20), ("128 KiB from the page cache", 0)] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (cache, store, lengths) = filled(dir.path(), memory);
        let mut out = vec![0; READ];
        let mut at = 0;
        group.bench_function(name, |b| {
            b.iter(|| {
                let (piece, part) = lengths.parts(&(at..at + READ as u64)).next().expect("within the torrent");
                assert_eq!(store.read_now(piece, part.start, black_box(&mut out)), Lookup::Hit);
                at = (at + READ as u64) % lengths.total();
            });
        });
        store.close();
        cache.close();
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2)).sample_size(30);
    targets = hits
}
criterion_main!(benches);
