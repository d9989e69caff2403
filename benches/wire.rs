//! Decoding of untrusted bytes: messages of peers, and `.torrent` files.

use std::hint::black_box;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use torrentfs::metainfo::{BLOCK_LEN, FileKind, Metainfo, NewFile, NewTorrent};
use torrentfs::wire::{Decoder, Message, encode};

/// Blocks in one buffer: about as many as one read from a socket returns.
const BLOCKS: u32 = 16;

fn blocks(c: &mut Criterion) {
    let mut stream = BytesMut::new();
    for n in 0..BLOCKS {
        let data = Bytes::from(vec![n as u8; BLOCK_LEN as usize]);
        encode(&Message::Piece { piece: n, begin: 0, data }, &mut stream);
    }
    let mut group = c.benchmark_group("wire");
    group.throughput(Throughput::Bytes(stream.len() as u64));
    group.bench_function("decode Piece messages", |b| {
        b.iter_batched(
            || (Decoder::new(BLOCKS), stream.clone()),
            |(mut decoder, mut buffer)| {
                let mut bytes = 0;
                while let Ok(Some(Message::Piece { data, .. })) = decoder.decode(&mut buffer) {
                    bytes += data.len();
                }
                assert_eq!(black_box(bytes), (BLOCKS * BLOCK_LEN) as usize);
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

/// A torrent with 20,000 files and as many pieces.
fn large_torrent() -> Vec<u8> {
    const FILES: u64 = 20_000;
    const PIECE_LEN: u32 = 1 << 20;
    let file = |n: u64| NewFile {
        path: vec![format!("directory {}", n / 100), format!("file {n}.bin")],
        len: u64::from(PIECE_LEN),
        kind: FileKind::Regular { executable: false },
    };
    let torrent = NewTorrent {
        name: "large".into(),
        piece_len: PIECE_LEN,
        files: (0..FILES).map(file).collect(),
        trackers: vec![vec!["http://127.0.0.1/announce".into()]],
        ..NewTorrent::default()
    };
    torrent.build(&vec![[7; 20]; FILES as usize]).expect("a valid torrent")
}

fn metainfo(c: &mut Criterion) {
    let torrent = large_torrent();
    let mut group = c.benchmark_group("metainfo");
    group.throughput(Throughput::Bytes(torrent.len() as u64));
    group.bench_function("parse 20,000 files and pieces", |b| {
        b.iter(|| Metainfo::parse(black_box(&torrent)).expect("a valid torrent"));
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2)).sample_size(30);
    targets = blocks, metainfo
}
criterion_main!(benches);
