//! A torrent with as many pieces as we accept.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::time::Duration;

use crate::many::{torrent_of, usage};
use crate::support::*;
use sha1::{Digest, Sha1};
use torrentfs::internals::session::{Session, SessionConfig, TorrentOptions};
use torrentfs::internals::store::{Cache, CacheConfig, Place};
use torrentfs::metainfo::Metainfo;

const LIMIT: Duration = Duration::from_secs(120);

const PIECES: usize = 4 << 20;
const PIECE_LEN: usize = 16 << 10;

/// 80 MiB of hashes: they are in memory once while the file is read, and not at all while nobody needs them.
#[test]
fn the_hashes_of_four_million_pieces_are_in_memory_only_while_they_are_needed() {
    if !can_run(&[]) {
        return;
    }
    let _turn = turn();
    let base = TestDir::new();
    let (torrent, film) = (base.path().join("film.torrent"), base.path().join("film.bin"));
    let hashes = Sha1::digest([0; PIECE_LEN]).repeat(PIECES);
    let content = torrent_of("film.bin", PIECES * PIECE_LEN, PIECE_LEN, &hashes, None);
    fs::write(&torrent, &content).unwrap();
    File::create(&film).unwrap().set_len((PIECES * PIECE_LEN) as u64).unwrap();
    let size = content.len() as u64 >> 10;

    // A seeder that has nothing but a hole.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let entered = runtime.enter();
    let cache = CacheConfig { dir: base.path().join("seeder"), disk_limit: None, memory: 16 << 20 };
    let cache = Cache::open(cache).unwrap();
    let session = Session::start(SessionConfig { net: local(), ..SessionConfig::new(cache) }).unwrap();
    let options = TorrentOptions { place: Place::Seed(film), ..TorrentOptions::default() };
    let seeding = session.add(Metainfo::parse_owned(content.into()).unwrap(), options);
    let seeding = runtime.block_on(seeding).unwrap();
    drop(entered);
    let peer = SocketAddr::from(([127, 0, 0, 1], session.port())).to_string();

    let mounted = Mounted::start(base.path(), &torrent, &["--on-demand", "--peer", &peer]);
    let pid = mounted.process.0.id();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < size * 3 / 2 + (64 << 10), "{peak} KiB for a file of {size} KiB");
    let mut resident = 0;
    wait_until("the hashes leave memory", LIMIT, || {
        (resident, _) = usage(pid);
        resident < size
    });

    let middle = (PIECES / 2 * PIECE_LEN) as u64 + 5_000;
    assert_eq!(read_at(&mounted.path("film.bin"), middle, 100_000).unwrap(), [0; 100_000]);
    runtime.block_on(session.remove(&seeding));
    eprintln!("{} MiB at most, {} MiB at rest", peak >> 10, resident >> 10);
}
