//! Torrents without a local `.torrent` file: magnet links, info hashes and URLs, with real peers.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::support::*;

const LEN: usize = 8 << 20;
const LIMIT: Duration = Duration::from_secs(180);

fn swarm(seed: u64) -> (Lab, Vec<u8>, PathBuf, Libtorrent) {
    let mut lab = Lab::new();
    let data = noise(LEN, seed);
    let torrent = lab.publish("film.bin", &data, 16);
    let seeder = lab.libtorrent("seed", 2, 0, &lab.path("payload"), &torrent);
    (lab, data, torrent, seeder)
}

fn percent(text: &str) -> String {
    text.replace(':', "%3A").replace('/', "%2F")
}

#[test]
fn a_link_with_a_tracker_is_mounted_and_later_served_from_the_cache() {
    if !can_run(&["opentracker", "mktorrent", "libtorrent"]) {
        return;
    }
    let _turn = turn();
    let (mut lab, data, _, seeder) = swarm(1);
    wait_until("the seeder announces itself", LIMIT, || lab.scrape().0 > 0);
    let link = format!("magnet:?xt=urn:btih:{}&dn=a+film&tr={}", lab.info_hash(), percent(&lab.announce));
    let begin = Instant::now();
    let mount = lab.mount("m", Path::new(&link), &[]);
    assert_eq!(read_at(&mount.path("film.bin"), 0, 65536).unwrap(), &data[..65536]);
    eprintln!("launch to first bytes: {:?}", begin.elapsed());
    assert!(mount.read("film.bin") == data);
    mount.stop();

    drop(seeder);
    lab.stop_tracker();
    let begin = Instant::now();
    let mount = lab.mount("m", Path::new(&lab.info_hash()), &["--metadata-timeout", "5s"]);
    eprintln!("the second time: {:?}", begin.elapsed());
    assert!(mount.read("film.bin") == data, "the cache was not used");
    mount.stop();
}

#[test]
fn an_info_hash_with_a_given_peer_and_a_link_that_names_one_are_mounted() {
    if !can_run(&["opentracker", "mktorrent", "libtorrent"]) {
        return;
    }
    let _turn = turn();
    let (lab, data, _, seeder) = swarm(2);
    let mount = lab.mount("by-hand", Path::new(&lab.info_hash()), &["--peer", &seeder.addr]);
    assert!(mount.read("film.bin") == data);
    mount.stop();
    let link = format!("magnet:?xt=urn:btih:{}&x.pe={}", lab.info_hash().to_uppercase(), seeder.addr);
    let mount = lab.mount("named", Path::new(&link), &[]);
    assert!(mount.read("film.bin") == data);
    mount.stop();
}

/// We send metadata to libtorrent, and to a mount of our own that knows no other peer.
#[test]
fn peers_get_the_metadata_from_us() {
    if !can_run(&["opentracker", "mktorrent", "libtorrent"]) {
        return;
    }
    let _turn = turn();
    let (lab, data, torrent, seeder) = swarm(3);
    let port = free_port().to_string();
    let mount = lab.mount("m", &torrent, &["--port", &port]);
    assert!(mount.read("film.bin") == data);
    drop(seeder);
    let link = format!("magnet:?xt=urn:btih:{}&x.pe=127.0.0.1:{port}", lab.info_hash());
    let dir = lab.path("leech");
    fs::create_dir(&dir).unwrap();
    let mut leech = lab.libtorrent("leech", 3, 0, &dir, Path::new(&link));
    leech.done();
    assert!(fs::read(dir.join("film.bin")).unwrap() == data);
    drop(leech);
    let second = lab.mount("second", Path::new(&link), &[]);
    assert!(second.read("film.bin") == data);
    second.stop();
    mount.stop();
}

/// The command ends with one line and an exit code, and leaves nothing mounted or running.
#[test]
fn metadata_that_never_arrives_is_a_clear_error() {
    if !can_run(&[]) {
        return;
    }
    let _turn = turn();
    let home = TestDir::new();
    let (mnt, cache) = (home.path().join("mnt"), home.path().join("cache"));
    fs::create_dir(&mnt).unwrap();
    let nobody = free_port();
    let hash = "0123456789012345678901234567890123456789";
    let link = format!("magnet:?xt=urn:btih:{hash}&tr=http%3A%2F%2F127.0.0.1%3A{nobody}%2Fannounce");
    for (source, expected, foreground) in
        [(link.as_str(), "no peers found; http://127.0.0.1", false), (hash, "no peers found", true)]
    {
        let mut command = mount_command();
        command.args(["--port", "0", "--metadata-timeout", "1s", "--cache-dir"]).arg(&cache);
        command.args(foreground.then_some("--foreground")).arg(source).arg(&mnt);
        let output = command.output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(3), "{stderr}");
        let line = stderr.lines().last().unwrap();
        assert!(line.contains("no metadata within 1s") && line.contains(expected), "{stderr}");
        assert!(!is_mounted(&mnt));
    }
    // When the waiting command is interrupted, the daemon ends and releases the cache.
    let mut command = mount_command();
    command.args(["--port", "0", "--cache-dir"]).arg(&cache).args([&link, mnt.to_str().unwrap()]);
    let mut waiting = Process::start(command.stderr(Stdio::null()).stdout(Stdio::null()));
    let lock = cache.join("lock");
    let daemon = || fs::read_to_string(&lock).ok().and_then(|pid| pid.trim().parse::<u32>().ok());
    let before = waiting.0.id();
    wait_until("the daemon locks the cache", LIMIT, || {
        daemon().is_some_and(|pid| pid > before && Path::new(&format!("/proc/{pid}")).exists())
    });
    let pid = daemon().unwrap();
    waiting.signal("INT");
    waiting.wait(LIMIT).expect("Ctrl-C ends the command");
    wait_until("the daemon ends", LIMIT, || {
        fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
    });
}

/// Starts a server that gives one of the answers to each request, in order. Returns a URL.
fn serve(answers: Vec<Vec<u8>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for answer in answers {
            let Ok((mut stream, _)) = listener.accept() else { return };
            let mut request = [0; 2048];
            let _ = stream.read(&mut request);
            let _ = stream.write_all(&answer);
        }
    });
    format!("http://{addr}/film.torrent")
}

fn answer(status: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

#[test]
fn a_torrent_file_is_fetched_from_its_url() {
    if !can_run(&["opentracker", "mktorrent", "libtorrent"]) {
        return;
    }
    let _turn = turn();
    let (lab, data, torrent, seeder) = swarm(4);
    let url = serve(vec![answer("200 OK", &fs::read(torrent).unwrap())]);
    let mount = lab.mount("m", Path::new(&url), &["--peer", &seeder.addr]);
    assert!(mount.read("film.bin") == data);
    mount.stop();

    let mnt = lab.path("mnt");
    fs::create_dir(&mnt).unwrap();
    for (answer, expected) in [
        (answer("404 Not Found", b"no"), "the server answers 404 Not Found"),
        (answer("200 OK", b"\n<!DOCTYPE html><html>"), "not a .torrent file: it looks like a web page"),
        (answer("200 OK", b"d4:infoi1ee"), "`info`"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 200000000\r\n\r\n".to_vec(), "failed"),
        (b"HTTP/1.1 302 Found\r\nLocation: ftp://127.0.0.1/x\r\n\r\n".to_vec(), "redirected"),
    ] {
        let url = serve(vec![answer]);
        let mut command = mount_command();
        command.args(["--port", "0", "--cache-dir"]).arg(lab.path("cache")).arg(&url).arg(&mnt);
        let output = command.output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), stderr.lines().count()), (Some(3), 1), "{stderr}");
        assert!(stderr.contains(expected), "{expected:?} is not in {stderr:?}");
    }
}
