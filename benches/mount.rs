//! Reading a complete file: the file itself, through a mount where the kernel reads it (passthrough), and through a mount that
//! answers every read. Each with cold caches, in turns; the medians are printed, and the memory that the kernel's cache takes.
//!
//! Needs root, to drop the caches. `TORRENTFS_BENCH_MIB` sets the size of the file, in MiB.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use torrentfs::metainfo::{FileKind, NewFile, NewTorrent, hash_pieces};
use torrentfs::{
    Bind, Cache, CacheConfig, Metainfo, MountOptions, Mounted, NetConfig, Place, PortChoice, Route, Session,
    SessionConfig, Torrent, TorrentOptions,
};

/// Size of the file in MiB, if the environment does not say: long enough to measure, small beside the memory of most machines.
const SIZE_MIB: u64 = 512;
/// Reads in each way. Their median is not moved by a disturbance.
const ROUNDS: usize = 7;
/// Length of a piece in bytes: a usual one of a file of this size.
const PIECE_LEN: u32 = 1 << 20;
/// Length of a read in bytes, as with `dd bs=1M`.
const READ_LEN: usize = 1 << 20;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    // `cargo test --benches` runs every benchmark, too.
    if !std::env::args().any(|arg| arg == "--bench") {
        return Ok(());
    }
    let mib = std::env::var("TORRENTFS_BENCH_MIB").ok().and_then(|size| size.parse().ok()).unwrap_or(SIZE_MIB);
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("film.mkv");
    write_file(&path, mib)?;
    if drop_caches().is_err() {
        println!("skipped: only root can drop the kernel's caches");
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let (session, torrent) = seed(dir.path(), &path).await?;
        let mut mounts = Vec::new();
        for passthrough in [true, false] {
            let at = dir.path().join(format!("passthrough-{passthrough}"));
            fs::create_dir(&at)?;
            let (options, handle) =
                (MountOptions { passthrough, ..MountOptions::default() }, tokio::runtime::Handle::current());
            let (contents, to) = (vec![torrent.clone()], at.clone());
            let mounted = tokio::task::spawn_blocking(move || Mounted::start(contents, &to, &options, handle));
            mounts.push((mounted.await??, at.join("film.mkv")));
        }
        let ways =
            [("the file itself", path), ("passthrough", mounts[0].1.clone()), ("no passthrough", mounts[1].1.clone())];
        let mut results = vec![Vec::new(); ways.len()];
        for _ in 0..ROUNDS {
            for ((_, path), results) in ways.iter().zip(&mut results) {
                let path = path.clone();
                results.push(tokio::task::spawn_blocking(move || measure(&path)).await??);
            }
        }
        let median = |mut values: Vec<f64>| {
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        let own = median(results[0].iter().map(|(seconds, _)| *seconds).collect());
        for ((name, _), results) in ways.iter().zip(results) {
            let seconds = median(results.iter().map(|(seconds, _)| *seconds).collect());
            let cached = median(results.iter().map(|(_, cached)| *cached).collect());
            let rate = mib as f64 * 1.048_576 / seconds;
            println!(
                "{name:<16} {rate:>7.0} MB/s, {:.2} of the file's; {:.2} of its size cached",
                own / seconds,
                cached / mib as f64
            );
        }
        for (mounted, _) in mounts {
            mounted.unmount().await?;
        }
        session.remove(&torrent).await;
        session.stop().await;
        Ok(())
    })
}

/// Writes bytes that are no zeros, which some disks would not store.
fn write_file(path: &Path, mib: u64) -> io::Result<()> {
    let mut file = File::create(path)?;
    let mut state = 1u64;
    for _ in 0..mib {
        let part: Vec<u8> = (0..(1 << 20) / 8)
            .flat_map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                state.to_le_bytes()
            })
            .collect();
        io::Write::write_all(&mut file, &part)?;
    }
    file.sync_all()
}

/// Starts a session that seeds the file to nobody.
async fn seed(dir: &Path, path: &Path) -> Result<(Session, Arc<Torrent>), Failure> {
    let (hashes, len) = hash_pieces(File::open(path)?, PIECE_LEN)?;
    let file = NewFile { path: vec![], len, kind: FileKind::Regular { executable: false } };
    let new = NewTorrent { name: "film.mkv".into(), piece_len: PIECE_LEN, files: vec![file], ..NewTorrent::default() };
    let metainfo = Metainfo::parse(&new.build(&hashes)?)?;
    let cache = Cache::open(CacheConfig { dir: dir.join("cache"), disk_limit: None, memory: 32 << 20 })?;
    let loopback = Route { bind: Bind::Address([127, 0, 0, 1].into()), ..Route::default() };
    let net = NetConfig { port: PortChoice::Exactly(0), route: loopback, ..NetConfig::default() };
    let session = Session::start(SessionConfig { net, ..SessionConfig::new(cache) })?;
    let options = TorrentOptions { place: Place::Seed(path.to_owned()), ..TorrentOptions::default() };
    let torrent = session.add(metainfo, options).await?;
    Ok((session, torrent))
}

/// Reads a file in order from cold caches. Returns the time in seconds, and by how many MiB the kernel's cache has grown.
fn measure(path: &Path) -> io::Result<(f64, f64)> {
    drop_caches()?;
    let before = cached()?;
    let (begun, mut buffer) = (Instant::now(), vec![0; READ_LEN]);
    let mut file = File::open(path)?;
    while file.read(&mut buffer)? > 0 {}
    let seconds = begun.elapsed().as_secs_f64();
    let cached = cached()? - before;
    drop(file);
    // The mount learns of the end of the file later.
    std::thread::sleep(Duration::from_millis(50));
    Ok((seconds, cached))
}

fn drop_caches() -> io::Result<()> {
    fs::write("/proc/sys/vm/drop_caches", "3")
}

/// Returns the size of the kernel's page cache in MiB.
fn cached() -> io::Result<f64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("Cached:"));
    let number = line.and_then(|line| line.trim().strip_suffix(" kB")).and_then(|number| number.parse::<f64>().ok());
    number.map(|kib| kib / 1024.0).ok_or_else(|| io::Error::other("/proc/meminfo has no Cached"))
}
