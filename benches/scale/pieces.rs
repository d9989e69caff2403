//! A torrent of 2 TiB in 131,072 pieces of 16 MiB. All bytes are zeros, so that a seeder can have it in a file without data.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use sha1::{Digest, Sha1};

use super::program::{Mount, Seeder, Torrent, mib, percentile};

const PIECES: usize = 131_072;
const PIECE_LEN: u64 = 16 << 20;

/// Reads at random places.
const SEEKS: u64 = 40;
/// Bytes read in order.
const STREAM: u64 = 1 << 30;

pub fn measure() {
    let base = tempfile::tempdir().unwrap();
    let (path, film) = (base.path().join("film.torrent"), base.path().join("film.bin"));
    let len = PIECES as u64 * PIECE_LEN;
    let hashes = Sha1::digest(vec![0; PIECE_LEN as usize]).repeat(PIECES);
    let torrent = Torrent::new("film.bin", len, PIECE_LEN, &hashes);
    fs::write(&path, &torrent.bytes).unwrap();
    if let Err(error) = File::create(&film).and_then(|file| file.set_len(len)) {
        return println!("2 TiB: skipped, the filesystem of temporary files has no files of that size: {error}");
    }
    let seeder = Seeder::start(base.path(), &torrent, &film);

    let mount = Mount::start(base.path(), &path, &["--on-demand", "--peer", &seeder.addr()]);
    let at_start = mount.process.usage();
    std::thread::sleep(Duration::from_secs(10));
    let at_rest = mount.process.usage();
    let file = File::open(mount.dir.join("film.bin")).unwrap();
    let mut block = vec![1; 64 << 10];
    let mut read = |offset: u64| {
        let begun = Instant::now();
        file.read_exact_at(&mut block, offset).unwrap();
        assert!(block.iter().all(|byte| *byte == 0));
        begun.elapsed()
    };
    let first = read(0);
    let mut seeks: Vec<Duration> = (1..=SEEKS).map(|n| read(n * 0x9E37_79B9_7F4A_7C15 % (len - (1 << 20)))).collect();
    let before = mount.process.usage();
    let (begun, from) = (Instant::now(), len / 2);
    for offset in (from..from + STREAM).step_by(1 << 16) {
        read(offset);
    }
    let stream = begun.elapsed();
    let after = mount.process.usage();
    println!(
        "2 TiB in {PIECES} pieces: mounted after {:.2} s; {} at the start, {} at rest, {} at most; first read {} ms, \
         seeks {} and {} ms (median, 90th percentile), {:.0} MB/s in order at {:.1} s of processor time a GiB",
        mount.ready.as_secs_f64(),
        mib(at_start.peak),
        mib(at_rest.resident),
        mib(after.peak),
        first.as_millis(),
        percentile(&mut seeks, 50).as_millis(),
        percentile(&mut seeks, 90).as_millis(),
        STREAM as f64 / stream.as_secs_f64() / 1e6,
        (after.processor - before.processor).as_secs_f64() * (1u64 << 30) as f64 / STREAM as f64,
    );
}
