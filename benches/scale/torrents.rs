//! Five thousand torrents in one mount: a library of which nearly everything is idle.

use std::time::{Duration, Instant};
use std::{env, fs, thread};

use super::noise::noise;
use super::program::{Mount, Torrent, mib};

/// 1.2 GiB in pieces of 512 KiB.
const PIECES: usize = 2_500;
const PIECE_LEN: u64 = 512 << 10;

/// How long the processor is watched.
const WATCH: Duration = Duration::from_secs(60);

pub fn measure() {
    let count: usize = env::var("TORRENTS").map_or(5_000, |count| count.parse().unwrap());
    let base = tempfile::tempdir().unwrap();
    let library = base.path().join("library");
    fs::create_dir(&library).unwrap();
    for n in 0..count {
        let torrent =
            Torrent::new(&format!("film{n}.mkv"), PIECES as u64 * PIECE_LEN, PIECE_LEN, &noise(PIECES * 20, n as u64));
        fs::write(library.join(format!("{n}.torrent")), torrent.bytes).unwrap();
    }
    let mount = Mount::start(base.path(), &library, &[]);
    assert_eq!(fs::read_dir(&mount.dir).unwrap().count(), count);
    // The torrents end what they did at the start.
    thread::sleep(Duration::from_secs(30));
    let (before, begun) = (mount.process.usage(), Instant::now());
    thread::sleep(WATCH);
    let after = mount.process.usage();
    let share = (after.processor - before.processor).as_secs_f64() / begun.elapsed().as_secs_f64();
    println!(
        "{count} torrents of {PIECES} pieces: mounted after {:.1} s and {:.1} s of processor time; {} at rest, {} at most; \
         {:.2} % of a processor at rest",
        mount.ready.as_secs_f64(),
        before.processor.as_secs_f64(),
        mib(after.resident),
        mib(after.peak),
        share * 100.0
    );
}
