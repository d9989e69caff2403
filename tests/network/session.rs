//! A torrent in this process: readers, the driver, the store and peers on loopback, without a mount.

use std::io::SeekFrom;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncReadExt, AsyncSeekExt};

use crate::support::fake::{self, Behaviour};
use torrentfs::internals::net::{self, PortChoice};
use torrentfs::internals::route::{Bind, Route};
use torrentfs::internals::session::{ReadError, Session, SessionConfig, Torrent, TorrentOptions};
use torrentfs::internals::store::{Cache, CacheConfig};
use torrentfs::metainfo::{FileIndex, FileKind, Metainfo, NewFile, NewTorrent, hash_pieces};

const PIECE: u32 = 256 << 10;

fn sample() -> (Arc<Vec<u8>>, Metainfo) {
    sample_of(0)
}

fn sample_of(which: u32) -> (Arc<Vec<u8>>, Metainfo) {
    let data: Vec<u8> = (0..8 * PIECE).map(|n| (n ^ (n >> 8) ^ (n >> 16) ^ which) as u8).collect();
    let (hashes, len) = hash_pieces(&data[..], PIECE).unwrap();
    let file = NewFile { path: Vec::new(), len, kind: FileKind::Regular { executable: false } };
    let torrent = NewTorrent { name: "film.bin".into(), piece_len: PIECE, files: vec![file], ..NewTorrent::default() };
    (Arc::new(data), Metainfo::parse(&torrent.build(&hashes).unwrap()).unwrap())
}

struct Lab {
    session: Session,
    torrent: Arc<Torrent>,
}

fn config(dir: &Path) -> SessionConfig {
    let cache = Cache::open(CacheConfig { dir: dir.into(), disk_limit: None, memory: 32 << 20 }).unwrap();
    let net = net::Config {
        port: PortChoice::Exactly(0),
        route: Route { bind: Bind::Address(IpAddr::V4(Ipv4Addr::LOCALHOST)), ..Route::default() },
        ..net::Config::default()
    };
    SessionConfig { net, ..SessionConfig::new(cache) }
}

async fn start(dir: &Path, metainfo: &Metainfo, limit: Duration, peers: &[&fake::FakePeer]) -> Lab {
    let session = Session::start(SessionConfig { read_timeout: Some(limit), ..config(dir) }).unwrap();
    let peers = peers.iter().map(|peer| peer.addr).collect();
    let options = TorrentOptions { on_demand: true, peers, ..TorrentOptions::default() };
    let torrent = session.add(metainfo.clone(), options).await.unwrap();
    Lab { session, torrent }
}

impl Lab {
    fn open(&self) -> torrentfs::internals::session::Reader {
        self.torrent.open(FileIndex(0)).unwrap()
    }
}

#[tokio::test]
async fn handles_are_opened_and_closed_in_order_however_busy_the_task_is() {
    let (data, metainfo) = sample();
    let dir = tempfile::tempdir().unwrap();
    let peer = fake::peer("127.0.0.1", &metainfo, &data, Behaviour::Honest);
    let lab = start(dir.path(), &metainfo, Duration::from_secs(60), &[&peer]).await;
    // The torrent's task does not run meanwhile: this runtime has one thread.
    let handles: Vec<_> = (0..6_000).map(|_| lab.open()).collect();
    let last = handles.into_iter().next_back().unwrap();
    for (offset, len) in [(0, 100), (1_000_000, 300_000), (data.len() as u64 - 1, 50), (data.len() as u64 + 5, 1)] {
        let got = last.read(offset, len).await.unwrap();
        let from = data.len().min(offset as usize);
        assert!(*got == data[from..data.len().min(from + len as usize)], "at {offset}");
    }
    drop(last);
    lab.session.remove(&lab.torrent).await;
}

#[tokio::test]
async fn a_slow_peer_keeps_a_read_alive_and_a_read_without_peers_times_out() {
    let (data, metainfo) = sample();
    let dir = tempfile::tempdir().unwrap();
    let peer = fake::peer("127.0.0.1", &metainfo, &data, Behaviour::Slow);
    let lab = start(&dir.path().join("slow"), &metainfo, Duration::from_secs(2), &[&peer]).await;
    // 16 blocks of 150 ms: longer than the limit.
    assert!(*lab.open().read(5, 100).await.unwrap() == data[5..105]);
    lab.session.remove(&lab.torrent).await;

    let lab = start(&dir.path().join("none"), &metainfo, Duration::from_millis(300), &[]).await;
    let error = lab.open().read(5, 100).await.unwrap_err();
    assert!(matches!(&error, ReadError::TimedOut { sources, .. } if sources == "no peer connected"), "{error}");
    lab.session.remove(&lab.torrent).await;
}

#[tokio::test]
async fn removing_a_torrent_ends_its_reads() {
    let (data, metainfo) = sample();
    let dir = tempfile::tempdir().unwrap();
    let peer = fake::peer("127.0.0.1", &metainfo, &data, Behaviour::Silent);
    let lab = start(dir.path(), &metainfo, Duration::from_secs(600), &[&peer]).await;
    let reader = lab.open();
    let (blocked, ()) = tokio::join!(reader.read(0, 1), async {
        while peer.requests.load(std::sync::atomic::Ordering::Relaxed) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        lab.session.remove(&lab.torrent).await;
    });
    assert_eq!(blocked, Err(ReadError::Closed));
    assert_eq!(reader.read(0, 1).await, Err(ReadError::Closed), "a later read");
}

#[tokio::test]
async fn the_first_read_returns_as_soon_as_its_piece_is_here() {
    let (data, metainfo) = sample();
    let dir = tempfile::tempdir().unwrap();
    // The next piece takes a second and more.
    let peer = fake::peer("127.0.0.1", &metainfo, &data, Behaviour::Slow);
    let lab = start(dir.path(), &metainfo, Duration::from_secs(60), &[&peer]).await;
    let reader = lab.open();
    let piece = |n| metainfo.layout.lengths().piece(n).unwrap();
    assert!(*reader.read(0, 65_536).await.unwrap() == data[..65_536]);
    assert!(lab.torrent.has(piece(0)));
    assert!(!lab.torrent.has(piece(1)));
    lab.session.remove(&lab.torrent).await;

    let lab = start(&dir.path().join("end"), &metainfo, Duration::from_secs(60), &[&peer]).await;
    let end = data.len() as u64 - 100;
    assert!(*lab.open().read(end, 100).await.unwrap() == data[data.len() - 100..]);
    lab.session.remove(&lab.torrent).await;
}

#[tokio::test]
async fn a_file_is_a_stream_that_seeks() {
    let (data, metainfo) = sample();
    let dir = tempfile::tempdir().unwrap();
    let peer = fake::peer("127.0.0.1", &metainfo, &data, Behaviour::Honest);
    let lab = start(dir.path(), &metainfo, Duration::from_secs(60), &[&peer]).await;
    let mut stream = lab.open().into_stream();
    let mut some = vec![0; 3 * 65_536 + 17];
    stream.seek(SeekFrom::Start(u64::from(PIECE) - 5)).await.unwrap();
    stream.read_exact(&mut some).await.unwrap();
    assert!(some[..] == data[PIECE as usize - 5..][..some.len()], "over the edge of a piece");
    assert_eq!(stream.seek(SeekFrom::Current(-17)).await.unwrap(), u64::from(PIECE) - 5 + 3 * 65_536);
    stream.read_exact(&mut some[..17]).await.unwrap();
    assert!(some[..17] == data[PIECE as usize - 5 + 3 * 65_536..][..17], "back into what was read");
    assert!(stream.seek(SeekFrom::Current(i64::MIN)).await.is_err(), "before the start");
    stream.seek(SeekFrom::End(-100)).await.unwrap();
    let mut end = Vec::new();
    stream.read_to_end(&mut end).await.unwrap();
    assert!(end[..] == data[data.len() - 100..]);
    stream.seek(SeekFrom::End(1)).await.unwrap();
    assert_eq!(stream.read(&mut some).await.unwrap(), 0, "behind the end");
    lab.session.remove(&lab.torrent).await;

    let lab = start(&dir.path().join("alone"), &metainfo, Duration::from_secs(60), &[]).await;
    let mut stream = lab.open().into_stream();
    let (read, ()) = tokio::join!(stream.read(&mut some), lab.session.remove(&lab.torrent));
    assert!(read.is_err(), "the torrent has ended");
}

/// Waits until `done`, for two minutes at most.
async fn wait_until(what: &str, done: impl Fn() -> bool) {
    for _ in 0..12_000 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what}: not within two minutes");
}

/// Returns the options of a torrent that was added so many minutes ago.
fn added(minutes: u64, peers: Vec<SocketAddr>) -> TorrentOptions {
    let since = SystemTime::now() - Duration::from_secs(60 * minutes);
    TorrentOptions { peers, since: Some(since), ..TorrentOptions::default() }
}

#[tokio::test]
async fn background_downloads_take_turns_by_age_and_a_read_does_not_wait_for_one() {
    let dir = tempfile::tempdir().unwrap();
    // A second for each torrent.
    let limits = Arc::new(net::Limits::new(2 << 20, 0));
    let config = SessionConfig { active_downloads: Some(1), limits, ..config(dir.path()) };
    let session = Session::start(config).unwrap();
    let (mut peers, mut torrents) = (Vec::new(), Vec::new());
    // The last one that is added is the oldest.
    for which in 0..4 {
        let (data, metainfo) = sample_of(which);
        let peer = fake::peer("127.0.0.1", &metainfo, &data, Behaviour::Honest);
        torrents.push(session.add(metainfo, added(which.into(), vec![peer.addr])).await.unwrap());
        peers.push((peer, data));
    }
    let have = |which: usize| torrents[which].stats().have;
    let is_complete = |which: usize| have(which) == 8;
    wait_until("the oldest is complete", || is_complete(3)).await;
    // Each may have begun before it knew of an older one, and is nearly done with what it began.
    assert!(!is_complete(0) && !is_complete(1) && !is_complete(2), "{:?}", [0, 1, 2].map(have));
    let reader = torrents[0].open(FileIndex(0)).unwrap();
    let read = reader.read(u64::from(7 * PIECE), 100).await;
    assert!(*read.unwrap() == peers[0].1[7 * PIECE as usize..][..100]);
    assert!(!is_complete(1), "a read waited for an older torrent: {:?}", [0, 1, 2].map(have));
    // Its reader brings it to the front.
    wait_until("the one that is read is complete", || is_complete(0)).await;
    assert!(!is_complete(1) && !is_complete(2), "{:?}", [0, 1, 2].map(have));
    wait_until("the next one is complete", || is_complete(2)).await;
    assert!(!is_complete(1), "{:?}", [0, 1, 2].map(have));
    wait_until("all are complete", || is_complete(1)).await;
    session.remove_all(&torrents).await;
}

#[tokio::test]
async fn a_torrent_without_peers_does_not_hold_up_the_queue() {
    let dir = tempfile::tempdir().unwrap();
    let session = Session::start(SessionConfig { active_downloads: Some(1), ..config(dir.path()) }).unwrap();
    let first = session.add(sample_of(0).1, added(9, vec![])).await.unwrap();
    let (data, metainfo) = sample_of(1);
    let peer = fake::peer("127.0.0.1", &metainfo, &data, Behaviour::Honest);
    let second = session.add(metainfo, added(0, vec![peer.addr])).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(second.stats().have, 0, "it has not waited for its turn");
    wait_until("the second one is complete", || second.stats().have == 8).await;
    assert_eq!(first.stats().have, 0);
    session.remove_all(&[first, second]).await;
}

/// Programs are started meanwhile: until such a program executes, it has a copy of every open file of this process.
#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_session_has_released_its_cache() {
    let (data, metainfo) = sample();
    let dir = tempfile::tempdir().unwrap();
    let peer = fake::peer("127.0.0.1", &metainfo, &data, Behaviour::Honest);
    let over = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let programs = std::thread::spawn({
        let over = over.clone();
        move || {
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                std::process::Command::new("true").status().unwrap();
            }
        }
    });
    let mut readers = Vec::new();
    for _ in 0..20 {
        let lab = start(dir.path(), &metainfo, Duration::from_secs(60), &[&peer]).await;
        let reader = lab.open();
        assert!(*reader.read(5, 100).await.unwrap() == data[5..105]);
        lab.session.remove(&lab.torrent).await;
        lab.session.stop().await;
        // An open file outlives its session.
        readers.push((lab, reader));
    }
    over.store(true, std::sync::atomic::Ordering::Relaxed);
    programs.join().unwrap();
    assert_eq!(readers[0].1.read(5, 100).await, Err(ReadError::Closed));
}

#[tokio::test]
async fn the_hashes_of_an_idle_torrent_leave_memory_and_come_back() {
    // Enough pieces for a metainfo of more than a block of the disk.
    let data: Vec<u8> = (0..300 << 14u32).map(|n: u32| (n ^ (n >> 9)) as u8).collect();
    let (hashes, len) = hash_pieces(&data[..], 1 << 14).unwrap();
    let file = NewFile { path: Vec::new(), len, kind: FileKind::Regular { executable: false } };
    let torrent =
        NewTorrent { name: "film.bin".into(), piece_len: 1 << 14, files: vec![file], ..NewTorrent::default() };
    let (data, metainfo) = (Arc::new(data), Metainfo::parse(&torrent.build(&hashes).unwrap()).unwrap());
    let dir = tempfile::tempdir().unwrap();
    let peer = fake::peer("127.0.0.1", &metainfo, &data, Behaviour::Honest);
    let lab = start(dir.path(), &metainfo, Duration::from_secs(60), &[&peer]).await;
    let info = lab.torrent.metainfo().info.clone();
    assert_eq!(info.resident(), None, "nobody has read anything");
    assert_eq!(*lab.open().read(1_000_000, 100_000).await.unwrap(), data[1_000_000..1_100_000]);
    assert!(info.resident().is_some(), "pieces were checked");

    // Disconnects.
    lab.torrent.set_paused(true).await;
    let begun = std::time::Instant::now();
    while info.resident().is_some() {
        assert!(begun.elapsed() < Duration::from_secs(120), "still in memory");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // A stored piece needs no hash.
    assert_eq!(*lab.open().read(1_050_000, 1_000).await.unwrap(), data[1_050_000..1_051_000]);
    assert_eq!(info.resident(), None);
    lab.torrent.verify();
    while lab.torrent.verification().is_none_or(|state| state.running) {
        assert!(begun.elapsed() < Duration::from_secs(120), "still checking");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(info.resident().is_some());
    assert_eq!(lab.torrent.verification().unwrap().bad, 0);
    lab.session.remove(&lab.torrent).await;
}
