//! A torrent in this process: readers, the driver, the store and peers on loopback, without a mount.

use std::io::SeekFrom;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncSeekExt};

use crate::support::fake::{self, Behaviour};
use torrentfs::internals::net::{self, PortChoice};
use torrentfs::internals::route::{Bind, Route};
use torrentfs::internals::session::{ReadError, Session, SessionConfig, Torrent, TorrentOptions};
use torrentfs::internals::store::{Cache, CacheConfig};
use torrentfs::metainfo::{FileIndex, FileKind, Metainfo, NewFile, NewTorrent, hash_pieces};

const PIECE: u32 = 256 << 10;

fn sample() -> (Arc<Vec<u8>>, Metainfo) {
    let data: Vec<u8> = (0..8 * PIECE).map(|n| (n ^ (n >> 8) ^ (n >> 16)) as u8).collect();
    let (hashes, len) = hash_pieces(&data[..], PIECE).unwrap();
    let file = NewFile { path: Vec::new(), len, kind: FileKind::Regular { executable: false } };
    let torrent = NewTorrent { name: "film.bin".into(), piece_len: PIECE, files: vec![file], ..NewTorrent::default() };
    (Arc::new(data), Metainfo::parse(&torrent.build(&hashes).unwrap()).unwrap())
}

struct Lab {
    session: Session,
    torrent: Arc<Torrent>,
}

async fn start(dir: &Path, metainfo: &Metainfo, limit: Duration, peers: &[&fake::FakePeer]) -> Lab {
    let cache = Cache::open(CacheConfig { dir: dir.into(), disk_limit: None, memory: 32 << 20 }).unwrap();
    let config = SessionConfig {
        net: net::Config {
            port: PortChoice::Exactly(0),
            route: Route { bind: Bind::Address(IpAddr::V4(Ipv4Addr::LOCALHOST)), ..Route::default() },
            ..net::Config::default()
        },
        read_timeout: Some(limit),
        ..SessionConfig::new(cache)
    };
    let session = Session::start(config).unwrap();
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
    let lab = start(&dir.path().join("slow"), &metainfo, Duration::from_millis(1_200), &[&peer]).await;
    // 16 blocks of 150 ms: twice the limit.
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
