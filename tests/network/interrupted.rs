//! Reads whose peers are gone: after the process was stopped, and after the torrent was complete.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::fake::{self, Behaviour};
use crate::support::*;
use torrentfs::internals::session::{Session, SessionConfig, TorrentOptions};
use torrentfs::internals::store::{Cache, CacheConfig};
use torrentfs::metainfo::{FileIndex, FileKind, Metainfo, NewFile, NewTorrent, hash_pieces};

const PIECE: u32 = 64 << 10;

fn sample(trackers: Vec<Vec<String>>) -> (Arc<Vec<u8>>, Vec<u8>) {
    let data = noise(16 * PIECE as usize, 1);
    let (hashes, len) = hash_pieces(&data[..], PIECE).unwrap();
    let file = NewFile { path: Vec::new(), len, kind: FileKind::Regular { executable: false } };
    let (name, files) = ("film.bin".into(), vec![file]);
    let torrent = NewTorrent { name, piece_len: PIECE, files, trackers, ..NewTorrent::default() };
    (Arc::new(data), torrent.build(&hashes).unwrap())
}

/// The process stands still for longer than a read may take, and its peer comes up meanwhile.
#[test]
fn the_time_that_the_process_was_stopped_does_not_count() {
    if !can_run(&[]) {
        return;
    }
    let _turn = turn();
    let base = tempfile::tempdir().unwrap();
    let (data, torrent) = sample(Vec::new());
    let file = base.path().join("film.torrent");
    std::fs::write(&file, &torrent).unwrap();
    let addr = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let dir = base.path().join("m");
    let mount = Mounted::start(&dir, &file, &["--peer", &addr.to_string(), "--read-timeout", "7s"]);
    let path = mount.path("film.bin");
    let reading = thread::spawn(move || read_at(&path, 100_000, 1000));
    thread::sleep(Duration::from_secs(1));
    mount.process.signal("STOP");
    thread::sleep(Duration::from_secs(12));
    let _peer =
        fake::peer_on(TcpListener::bind(addr).unwrap(), &Metainfo::parse(&torrent).unwrap(), &data, Behaviour::Honest);
    mount.process.signal("CONT");
    let got = reading.join().unwrap();
    assert!(got.unwrap_or_else(|error| panic!("{error}: {}", mount.log())) == data[100_000..101_000]);
    mount.stop();
}

/// A tracker with one seed, which gives seeds no seeds and allows an announce every half an hour.
fn tracker(listener: TcpListener, seed: SocketAddr) {
    for mut stream in listener.incoming().flatten() {
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        let mut reply = b"HTTP/1.0 200 OK\r\n\r\nd8:intervali1800e12:min intervali1800e5:peers".to_vec();
        match (seed, line.contains("&left=0&")) {
            (SocketAddr::V4(seed), false) => {
                reply.extend_from_slice(b"6:");
                reply.extend(seed.ip().octets());
                reply.extend(seed.port().to_be_bytes());
            }
            _ => reply.extend_from_slice(b"0:"),
        }
        reply.push(b'e');
        let _ = stream.write_all(&reply);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_piece_of_a_complete_torrent_comes_again_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (data, torrent) = sample(vec![vec![format!("http://{}/announce", listener.local_addr().unwrap())]]);
    let metainfo = Metainfo::parse(&torrent).unwrap();
    let seed = fake::peer("127.0.0.1", &metainfo, &data, Behaviour::Honest);
    thread::spawn(move || tracker(listener, seed.addr));
    let dir = tempfile::tempdir().unwrap();
    for complete_from_the_start in [false, true] {
        let cache = Cache::open(CacheConfig { dir: dir.path().into(), disk_limit: None, memory: 0 }).unwrap();
        let config = SessionConfig { net: local(), ..SessionConfig::new(cache) };
        let session = Session::start(config).unwrap();
        let torrent = session.add(metainfo.clone(), TorrentOptions::default()).await.unwrap();
        wait("the torrent is complete and the tracker was told", || {
            let announced = torrent.trackers().iter().all(|tracker| matches!(tracker.last, Some(Ok(_))));
            announced && metainfo.layout.lengths().iter().all(|piece| torrent.has(piece))
        })
        .await;
        wait("peers are let go", || torrent.stats().peers == 0).await;
        if complete_from_the_start {
            // Nobody was needed, and nobody is known.
            assert_eq!(torrent.stats().downloaded, 0);
        }
        // Until everything is on the disk, for longer than the resolution of a file's time.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let path = dir.path().join(metainfo.info_hash.to_string()).join("data/film.bin");
        let cached = OpenOptions::new().read(true).write(true).open(path).unwrap();
        let at = 5 * u64::from(PIECE) + 7;
        cached.write_all_at(&[!data[at as usize]], at).unwrap();
        torrent.verify();
        // It may be here again by now.
        wait("the bad piece is noticed", || {
            torrent.verification().is_some_and(|check| check.bad == 1 && !check.running)
        })
        .await;
        let begun = Instant::now();
        let got = tokio::time::timeout(Duration::from_secs(30), torrent.open(FileIndex(0)).unwrap().read(at, 10)).await;
        assert!(*got.expect("the read is blocked").unwrap() == data[at as usize..at as usize + 10]);
        // Once the tracker or the book of addresses is asked, it takes milliseconds.
        assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
        session.remove(&torrent).await;
        session.stop().await;
    }
}

async fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < end, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
