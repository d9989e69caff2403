//! Peers through a real SOCKS5 proxy, and through nothing but it.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::*;
use torrentfs::internals::net::{Config, PortChoice};
use torrentfs::internals::route::Route;
use torrentfs::internals::session::{Session, SessionConfig, TorrentOptions};
use torrentfs::internals::store::{Cache, CacheConfig};
use torrentfs::metainfo::{FileIndex, FileKind, Metainfo, NewFile, NewTorrent, hash_pieces};

const LEN: usize = 8 << 20;

fn microsocks(port: u16) -> Process {
    let process = Process::start(
        Command::new("microsocks")
            .args(["-i", "127.0.0.1", "-p", &port.to_string(), "-u", "me", "-P", "p@ss"])
            .stdout(Stdio::null())
            .stderr(Stdio::null()),
    );
    wait_until("the proxy listens", Duration::from_secs(60), || {
        std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
    });
    process
}

#[test]
fn peers_are_reached_through_the_proxy_or_not_at_all() {
    if !can_run(&["microsocks", "opentracker", "mktorrent", "libtorrent"]) {
        return;
    }
    let _turn = turn();
    let mut lab = Lab::new();
    let data = noise(LEN, 1);
    let file = lab.publish("film.bin", &data, 18);
    let seeder = lab.libtorrent("seed", 2, 0, &lab.path("payload"), &file);
    let addr = seeder.addr.parse().unwrap();
    let port = free_port();
    let with = |login: &str| {
        let proxy = Some(format!("socks5://{login}@127.0.0.1:{port}").parse().unwrap());
        Config { route: Route { proxy, ..local().route }, ..local() }
    };
    let proxy = microsocks(port);

    let runtime = tokio::runtime::Runtime::new().unwrap();
    let read = |dir: &str, login: &str, len: u32, timeout: u64| {
        let timeout = Duration::from_secs(timeout);
        runtime.block_on(async {
            let (session, torrent) = in_process(&lab.path(dir), &file, addr, with(login), timeout).await;
            assert_eq!(session.port(), 0, "a proxied session accepts no connections");
            let got = torrent.open(FileIndex(0)).unwrap().read(0, len).await;
            session.remove(&torrent).await;
            got
        })
    };
    assert!(*read("good", "me:p%40ss", LEN as u32, 30).unwrap() == data);
    // The seeder would accept a direct connection.
    assert!(read("login", "me:wrong", 1, 3).is_err());
    drop(proxy);
    assert!(read("gone", "me:p%40ss", 1, 3).is_err());
}

#[test]
fn a_mount_reads_through_the_proxy() {
    if !can_run(&["microsocks", "opentracker", "mktorrent", "libtorrent"]) {
        return;
    }
    let _turn = turn();
    let mut lab = Lab::new();
    let data = noise(LEN, 2);
    let file = lab.publish("film.bin", &data, 18);
    let seeder = lab.libtorrent("seed", 2, 0, &lab.path("payload"), &file);
    let port = free_port();
    let url = format!("socks5://me:p%40ss@127.0.0.1:{port}");
    let args = ["--proxy", &url, "--peer", &seeder.addr, "--read-timeout", "3s"];
    // Without the proxy a read fails. The log says why, without the password.
    let mount = lab.mount("m", &file, &args);
    assert!(read_at(&mount.path("film.bin"), 0, 1).is_err());
    let log = mount.log();
    assert!(log.contains("the proxy socks5://127.0.0.1") && !log.contains("p%40ss") && !log.contains("p@ss"), "{log}");
    let _proxy = microsocks(port);
    wait_until(&format!("the file is read through the proxy; {}", mount.log()), Duration::from_secs(90), || {
        std::fs::read(mount.path("film.bin")).is_ok_and(|got| got == data)
    });
    mount.stop();
}

/// Many trackers refuse port 0, and some refuse low ports.
#[test]
fn trackers_are_told_a_plausible_port_through_a_proxy() {
    if !can_run(&["microsocks"]) {
        return;
    }
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let tracker = TcpListener::bind("127.0.0.1:0").unwrap();
    let (hashes, len) = hash_pieces(&[7; 100][..], 1 << 14).unwrap();
    let file = NewFile { path: vec![], len, kind: FileKind::Regular { executable: false } };
    let trackers = vec![vec![format!("http://{}/announce", tracker.local_addr().unwrap())]];
    let new = NewTorrent { name: "a".into(), piece_len: 1 << 14, files: vec![file], trackers, ..NewTorrent::default() };
    let metainfo = Metainfo::parse(&new.build(&hashes).unwrap()).unwrap();
    let port = free_port();
    let _proxy = microsocks(port);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let announced = |choice: PortChoice| {
        let _runtime = runtime.enter();
        let proxy = Some(format!("socks5://me:p%40ss@127.0.0.1:{port}").parse().unwrap());
        let net = Config { port: choice, route: Route { proxy, ..local().route }, ..local() };
        let cache = CacheConfig { dir: dir.path().join("cache"), disk_limit: None, memory: 16 << 20 };
        let session = Session::start(SessionConfig { net, ..SessionConfig::new(Cache::open(cache).unwrap()) }).unwrap();
        assert_eq!(session.port(), 0);
        let torrent = runtime.block_on(session.add(metainfo.clone(), TorrentOptions::default())).unwrap();
        let (mut stream, _) = tracker.accept().unwrap();
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nd8:intervali1800e5:peers0:e").unwrap();
        drop(stream);
        let stopped = std::thread::spawn({
            let tracker = tracker.try_clone().unwrap();
            move || drop(tracker.accept())
        });
        runtime.block_on(session.remove(&torrent));
        stopped.join().unwrap();
        runtime.block_on(session.stop());
        let (_, port) = line.split_once("&port=").unwrap();
        port.split('&').next().unwrap().parse::<u16>().unwrap()
    };
    assert!((49_152..65_000).contains(&announced(PortChoice::Customary)));
    // The machine of the proxy may forward the user's port.
    assert_eq!(announced(PortChoice::Exactly(51_413)), 51_413);
}
