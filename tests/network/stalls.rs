//! Reads beside seeds with faults, on loopback. The simulations of `tests/pure/stalls.rs` have the exact limits.

use std::sync::Arc;
use std::time::{Duration, Instant};

use torrentfs::internals::net::{self, PortChoice};
use torrentfs::internals::session::{Session, SessionConfig, TorrentOptions};
use torrentfs::internals::store::{Cache, CacheConfig};
use torrentfs::metainfo::{FileIndex, FileKind, Metainfo, NewFile, NewTorrent, hash_pieces};

use crate::support::faulty::{Fault, Faulty};
use crate::support::{local, noise};

const PIECE: u32 = 256 << 10;
const PIECES: u64 = 21;
/// Two seconds in virtual time; here other programs may use the machine at the same time.
const LONGEST: Duration = Duration::from_secs(4);

/// Reads the pieces in a random order from some seeds. Returns how long the longest read waited.
async fn read_from(seeds: &[Faulty]) -> Duration {
    let data = Arc::new(noise(PIECES as usize * PIECE as usize, 5));
    let (hashes, len) = hash_pieces(&data[..], PIECE).unwrap();
    let file = NewFile { path: Vec::new(), len, kind: FileKind::Regular { executable: false } };
    let torrent = NewTorrent { name: "film.bin".into(), piece_len: PIECE, files: vec![file], ..NewTorrent::default() };
    let metainfo = Metainfo::parse(&torrent.build(&hashes).unwrap()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(CacheConfig { dir: dir.path().into(), disk_limit: None, memory: 32 << 20 }).unwrap();
    let net = net::Config { port: PortChoice::Exactly(0), ..local() };
    let session = Session::start(SessionConfig { net, ..SessionConfig::new(cache) }).unwrap();
    let peers = seeds.iter().map(|seed| seed.start(&metainfo, &data)).collect();
    let options = TorrentOptions { on_demand: true, peers, ..TorrentOptions::default() };
    let torrent = session.add(metainfo, options).await.unwrap();
    let reader = torrent.open(FileIndex(0)).unwrap();
    let mut longest = Duration::ZERO;
    // Every place once: 13 has no factor in common with the number of pieces.
    for piece in (0..PIECES).map(|n| n * 13 % PIECES) {
        let at = piece * u64::from(PIECE) + 1_000;
        let begin = Instant::now();
        let got = reader.read(at, 1_000).await.unwrap();
        longest = longest.max(begin.elapsed());
        assert!(*got == data[at as usize..at as usize + 1_000]);
    }
    session.remove(&torrent).await;
    longest
}

fn seed(fault: Fault, fast: bool) -> Faulty {
    // 1 MB/s for the good one; the others are faster, and so preferred.
    let pace = Duration::from_millis(if fault == Fault::None { 16 } else { 4 });
    Faulty { fault, fast, pace }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_healthy_seed_is_enough_beside_any_others() {
    let faults = [Fault::Stops, Fault::Drops, Fault::Chokes, Fault::Closes, Fault::ShortQueue];
    for fast in [false, true] {
        for fault in faults {
            let longest = read_from(&[seed(fault, fast), seed(fault, fast), seed(Fault::None, fast)]).await;
            assert!(longest < LONGEST, "{fault:?}, fast {fast}: a read waited {longest:?}");
        }
        let all: Vec<Faulty> = faults.into_iter().chain([Fault::None]).map(|fault| seed(fault, fast)).collect();
        let longest = read_from(&all).await;
        assert!(longest < LONGEST, "all faults, fast {fast}: a read waited {longest:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_seed_that_drops_and_forgets_is_read_without_a_pause() {
    for fast in [false, true] {
        for fault in [Fault::Drops, Fault::Chokes, Fault::ShortQueue] {
            let longest = read_from(&[seed(fault, fast)]).await;
            assert!(longest < LONGEST, "{fault:?}, fast {fast}: a read waited {longest:?}");
        }
    }
}
