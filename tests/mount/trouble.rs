//! Failures of peers, trackers, disks and users: the bytes stay exact, nothing hangs, memory stays bounded.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::support::fake::{self, Behaviour, TrackerFault};
use crate::support::*;
use torrentfs::metainfo::Metainfo;

const TOOLS: [&str; 3] = ["opentracker", "mktorrent", "libtorrent"];
/// Longest time from the start of a mount to the end of an 8 MiB read beside a peer that sends nothing. It needs a second
/// or two; a block that waited for the disconnection of such a peer would take a minute.
const UNHINDERED: Duration = Duration::from_secs(30);
/// Time limit of whatever happens at once. Only a hang reaches it.
const LONG: Duration = Duration::from_secs(180);

/// Makes a torrent without a tracker.
fn untracked(lab: &Lab, name: &str, data: &[u8], piece_log2: u32) -> PathBuf {
    let payload = lab.path("payload");
    fs::create_dir_all(&payload).unwrap();
    fs::write(payload.join(name), data).unwrap();
    let torrent = lab.path(&format!("{name}.torrent"));
    make(&payload.join(name), &torrent, &[], piece_log2);
    torrent
}

fn make(path: &Path, torrent: &Path, trackers: &[&str], piece_log2: u32) {
    let mut command = Command::new("mktorrent");
    command.args(["-l", &piece_log2.to_string(), "-o"]).arg(torrent);
    for tracker in trackers {
        command.args(["-a", tracker]);
    }
    assert!(command.arg(path).stdout(Stdio::null()).status().unwrap().success());
}

fn parse(torrent: &Path) -> Metainfo {
    Metainfo::parse(&fs::read(torrent).unwrap()).unwrap()
}

fn peak_rss_mib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

/// Result of a mount with several peers of which one is honest.
struct Outcome {
    peers: Vec<fake::FakePeer>,
    log: String,
    /// The time from the start of the mount until the whole file of 8 MiB was read.
    elapsed: Duration,
}

/// Mounts a torrent of these peers, one of them honest, and reads the whole file once each peer can be asked for it.
fn among(behaviours: &[Behaviour]) -> Outcome {
    let lab = Lab::new();
    let data = Arc::new(noise(8 << 20, 7));
    let torrent = untracked(&lab, "film.bin", &data, 18);
    let metainfo = parse(&torrent);
    let peers: Vec<_> =
        behaviours.iter().map(|behaviour| fake::peer("127.0.0.1", &metainfo, &data, *behaviour)).collect();
    let addrs: Vec<String> = peers.iter().map(|peer| peer.addr.to_string()).collect();
    let mut args = vec!["-v", "--on-demand"];
    addrs.iter().for_each(|addr| args.extend(["--peer", addr]));
    let begin = Instant::now();
    let mount = lab.mount("m", &torrent, &args);
    wait_until("every peer is connected", LONG, || peers.iter().all(|peer| peer.offers.load(Ordering::Relaxed) > 0));
    assert!(mount.read("film.bin") == *data);
    let elapsed = begin.elapsed();
    let log = mount.log();
    mount.stop();
    Outcome { peers, log, elapsed }
}

#[test]
fn peers_that_lie_are_banned_and_honest_ones_are_not() {
    if !can_run(&TOOLS) {
        return;
    }
    let _turn = turn();
    let Outcome { peers, log, .. } = among(&[Behaviour::Lies, Behaviour::LiesSometimes, Behaviour::Honest]);
    let banned = |peer: &fake::FakePeer| {
        let addr = peer.addr.to_string();
        log.lines().any(|line| line.contains("banned") && line.contains(&addr))
    };
    assert!(banned(&peers[0]) && banned(&peers[1]) && !banned(&peers[2]), "{log}");
    assert_eq!(peers[2].connections.load(Ordering::Relaxed), 1, "the honest peer was kept");
}

#[test]
fn a_silent_peer_delays_nothing() {
    if !can_run(&TOOLS) {
        return;
    }
    let _turn = turn();
    let Outcome { peers, elapsed, .. } = among(&[Behaviour::Silent, Behaviour::Honest]);
    assert!(peers[0].requests.load(Ordering::Relaxed) > 0, "the silent peer was asked for nothing");
    assert!(elapsed < UNHINDERED, "{elapsed:?}");
}

#[test]
fn a_dripping_peer_delays_nothing() {
    if !can_run(&TOOLS) {
        return;
    }
    let _turn = turn();
    let Outcome { peers, elapsed, .. } = among(&[Behaviour::Drips, Behaviour::Garbage, Behaviour::Honest]);
    assert!(peers[0].requests.load(Ordering::Relaxed) > 0, "the dripping peer was asked for nothing");
    assert!(peers[1].connections.load(Ordering::Relaxed) > 0, "the other bad peer was not connected");
    assert!(elapsed < UNHINDERED, "{elapsed:?}");
}

#[test]
fn a_flood_of_messages_is_survived() {
    if !can_run(&TOOLS) {
        return;
    }
    let _turn = turn();
    let lab = Lab::new();
    let data = Arc::new(noise(8 << 20, 18));
    let torrent = untracked(&lab, "film.bin", &data, 18);
    let metainfo = parse(&torrent);
    let behaviours = [Behaviour::Floods, Behaviour::Floods, Behaviour::Mute, Behaviour::Honest];
    let peers = behaviours.map(|behaviour| fake::peer("127.0.0.1", &metainfo, &data, behaviour).addr.to_string());
    let mut args = vec!["-v"];
    peers.iter().for_each(|addr| args.extend(["--peer", addr]));
    let mount = lab.mount("m", &torrent, &args);
    assert!(mount.read("film.bin") == *data);
    std::thread::sleep(Duration::from_secs(3));
    let rss = peak_rss_mib(mount.process.0.id());
    assert!(rss < 200, "{rss} MiB");
    mount.stop();
}

#[test]
fn failing_trackers_are_survived() {
    if !can_run(&TOOLS) {
        return;
    }
    let _turn = turn();
    let lab = Lab::new();
    let data = Arc::new(noise(4 << 20, 8));
    let torrent = untracked(&lab, "film.bin", &data, 18);
    let bad = [TrackerFault::Hangs, TrackerFault::Garbage, TrackerFault::Endless].map(fake::tracker);
    let down = format!("http://127.0.0.1:{}/announce", free_port());
    fs::remove_file(&torrent).unwrap();
    let trackers: Vec<&str> = bad.iter().map(String::as_str).chain([down.as_str()]).collect();
    make(&lab.path("payload").join("film.bin"), &torrent, &trackers, 18);
    let peer = fake::peer("127.0.0.1", &parse(&torrent), &data, Behaviour::Honest).addr.to_string();
    let mount = lab.mount("m", &torrent, &["--peer", &peer]);
    assert!(mount.read("film.bin") == *data);
    std::thread::sleep(Duration::from_secs(3));
    let rss = peak_rss_mib(mount.process.0.id());
    assert!(rss < 200, "{rss} MiB");
    assert!(mount.log().lines().count() < 20, "the log is not flooded: {}", mount.log());
    mount.stop();
}

#[test]
fn with_bad_peers_alone_a_read_fails_and_no_wrong_byte_is_served() {
    if !can_run(&TOOLS) {
        return;
    }
    let _turn = turn();
    let lab = Lab::new();
    let data = Arc::new(noise(4 << 20, 15));
    let torrent = untracked(&lab, "film.bin", &data, 18);
    let metainfo = parse(&torrent);
    let behaviours = [
        Behaviour::Lies,
        Behaviour::Lies,
        Behaviour::LiesSometimes,
        Behaviour::Silent,
        Behaviour::Drips,
        Behaviour::Garbage,
    ];
    let peers = behaviours.map(|behaviour| fake::peer("127.0.0.1", &metainfo, &data, behaviour).addr.to_string());
    let mut args = vec!["--read-timeout", "4s"];
    peers.iter().for_each(|addr| args.extend(["--peer", addr]));
    let mount = lab.mount("m", &torrent, &args);
    // A peer that lies sometimes may deliver a whole good piece before it is banned.
    for offset in (0..data.len()).step_by(1 << 20) {
        match read_at(&mount.path("film.bin"), offset as u64, 65536) {
            Ok(got) => assert!(got == data[offset..][..65536], "wrong bytes at {offset}"),
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}"),
        }
    }
    assert!(fs::read(mount.path("film.bin")).is_err(), "a file was read that no peer sent correctly");
    mount.stop();
}

/// Mounts a torrent without peers.
fn mount_without_peers(lab: &Lab, args: &[&str]) -> Mounted {
    let torrent = untracked(lab, "film.bin", &noise(64 << 20, 9), 18);
    lab.mount("m", &torrent, args)
}

#[test]
fn a_read_without_a_source_ends_in_eio() {
    if !can_run(&TOOLS) {
        return;
    }
    let _turn = turn();
    let lab = Lab::new();
    let mount = mount_without_peers(&lab, &["--read-timeout", "10s"]);
    let begin = Instant::now();
    let error = fs::read(mount.path("film.bin")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
    // The kernel reads twice, first with read-ahead and then the page alone. Both share one time limit.
    assert!(begin.elapsed() < Duration::from_secs(19), "{:?}; {}", begin.elapsed(), mount.log());
    assert!(mount.log().contains("no peer connected"), "{}", mount.log());
    mount.stop();
}

#[test]
fn ctrl_c_ends_a_blocked_reader_at_once() {
    if !can_run(&TOOLS) {
        return;
    }
    let _turn = turn();
    let lab = Lab::new();
    let mount = mount_without_peers(&lab, &[]);
    let mut cat = Process::start(Command::new("cat").arg(mount.path("film.bin")).stdout(Stdio::null()));
    wait_until("the file is open", LONG, || has_open(&cat, &mount.path("film.bin")));
    std::thread::sleep(Duration::from_millis(500));
    cat.signal("INT");
    // A read times out after two minutes.
    assert!(cat.wait(LONG).is_some(), "cat did not end");
    mount.stop();
}

/// Returns whether a process has opened a file.
fn has_open(process: &Process, path: &Path) -> bool {
    let files = fs::read_dir(format!("/proc/{}/fd", process.0.id())).into_iter().flatten().flatten();
    files.into_iter().any(|file| fs::read_link(file.path()).is_ok_and(|open| open == path))
}

fn block_reads(mount: &Mounted, count: u64) -> Vec<Process> {
    let readers: Vec<Process> = (0..count)
        .map(|n| {
            let input = format!("if={}", mount.path("film.bin").display());
            Process::start(
                Command::new("dd")
                    .args([&input, "of=/dev/null", "bs=4k", "count=1", &format!("skip={}", n * 100)])
                    .stderr(Stdio::null()),
            )
        })
        .collect();
    let path = mount.path("film.bin");
    wait_until("all readers have opened the file", LONG, || readers.iter().all(|reader| has_open(reader, &path)));
    std::thread::sleep(Duration::from_secs(1));
    readers
}

#[test]
fn a_mount_ends_in_every_way_with_a_hundred_blocked_reads() {
    if !can_run(&TOOLS) {
        return;
    }
    let _turn = turn();
    for way in ["unmount", "umount", "umount -l", "TERM", "INT"] {
        let lab = Lab::new();
        let mut mount = mount_without_peers(&lab, &[]);
        let mut readers = block_reads(&mount, 100);
        let begin = Instant::now();
        match way {
            "unmount" => {
                let output = run(TORRENTFS, &["unmount", mount.dir.to_str().unwrap()]);
                assert!(output.status.success(), "{output:?}");
            }
            // The kernel refuses while files are open and obeys when the readers have ended.
            "umount" => {
                assert!(!run("umount", &[mount.dir.to_str().unwrap()]).status.success());
                readers.clear();
                wait_until("umount", LONG, || run("umount", &[mount.dir.to_str().unwrap()]).status.success());
            }
            // A lazy unmount leaves the files open: the program ends when the readers do.
            "umount -l" => {
                sh(&format!("umount -l {}", mount.dir.display()));
                readers.clear();
            }
            signal => mount.process.signal(signal),
        }
        let status = mount.process.wait(LONG);
        assert!(status.is_some_and(|s| s.success()), "{way}: {status:?} after {:?}", begin.elapsed());
        assert!(!mount.is_mounted(), "{way}: left mounted");
        for reader in &mut readers {
            assert!(reader.wait(LONG).is_some(), "{way}: a reader hangs");
        }
    }
}

#[test]
fn repeated_kills_lose_no_pieces() {
    if !can_run(&TOOLS) {
        return;
    }
    let _turn = turn();
    let mut lab = Lab::new();
    let data = noise(96 << 20, 10);
    let torrent = lab.publish("film.bin", &data, 18);
    let _seeder = lab.libtorrent("seed", 2, 6_000_000, &lab.path("payload"), &torrent);
    let mut count_before = 0;
    for round in 0..20u64 {
        let mount = lab.mount("m", &torrent, &[]);
        let count = have_count(&mount, "film.bin");
        // A piece counts from the moment at which it is verified. Those that are being written may be lost.
        assert!(count + 4 >= count_before, "round {round}: {count} pieces, {count_before} before the kill");
        std::thread::sleep(Duration::from_millis(300 + round * 137 % 1000));
        for place in 0..4u64 {
            let offset = (round * 7919 + place * 104_729) * 4096 % (data.len() as u64 - 65536);
            let got = read_at(&mount.path("film.bin"), offset, 65536).unwrap();
            assert!(got == data[offset as usize..][..65536], "wrong bytes at {offset}");
        }
        count_before = have_count(&mount, "film.bin");
        mount.kill();
    }
    let mount = lab.mount("m", &torrent, &[]);
    assert!(mount.read("film.bin") == data);
    mount.stop();
}

/// Reads the extended attribute `user.torrentfs.pieces`, which is "have/total".
fn have_count(mount: &Mounted, name: &str) -> u64 {
    let value = sh(&format!("getfattr --only-values -n user.torrentfs.pieces {}", mount.path(name).display()));
    value.split('/').next().unwrap().trim().parse().unwrap()
}

#[test]
fn a_small_cache_reads_a_large_torrent() {
    if !can_run(&TOOLS) {
        return;
    }
    let _turn = turn();
    let mut lab = Lab::new();
    let data = noise(512 << 20, 11);
    let torrent = lab.publish("film.bin", &data, 20);
    let _seeder = lab.libtorrent("seed", 2, 0, &lab.path("payload"), &torrent);
    let mount = lab.mount("m", &torrent, &["-v", "--cache-size", "64MiB"]);
    let file = fs::File::open(mount.path("film.bin")).unwrap();
    let mut most = 0;
    for (n, expected) in data.chunks(32 << 20).enumerate() {
        use std::os::unix::fs::FileExt;
        let mut got = vec![0; expected.len()];
        file.read_exact_at(&mut got, (n as u64) * (32 << 20)).unwrap();
        assert!(got == expected, "wrong bytes in part {n}");
        most = most.max(disk_use(&mount.cache));
    }
    assert!(most <= (64 + 8) << 20, "{} MiB on disk", most >> 20);
    assert!(!mount.log().contains("banned"), "{}", mount.log());
    mount.stop();
}

#[test]
fn many_readers_share_a_tiny_cache() {
    if !can_run(&TOOLS) {
        return;
    }
    let _turn = turn();
    let mut lab = Lab::new();
    let data = Arc::new(noise(64 << 20, 16));
    let torrent = lab.publish("film.bin", &data, 20);
    let _seeder = lab.libtorrent("seed", 2, 0, &lab.path("payload"), &torrent);
    let mount = lab.mount("m", &torrent, &["-v", "--cache-size", "4MiB", "--memory", "4MiB"]);
    std::thread::scope(|scope| {
        for n in 0..8 {
            let (path, data) = (mount.path("film.bin"), &data);
            scope.spawn(move || {
                let from = n * (8 << 20);
                let got = read_at(&path, from as u64, 8 << 20).unwrap_or_else(|error| panic!("at {from}: {error}"));
                assert!(got == data[from..][..8 << 20], "wrong bytes after {from}");
            });
        }
    });
    assert!(!mount.log().contains("banned"), "{}", mount.log());
    mount.stop();
}

#[test]
fn a_new_seeder_is_found_when_one_leaves() {
    if !can_run(&TOOLS) {
        return;
    }
    let _turn = turn();
    let mut lab = Lab::new();
    let data = noise(32 << 20, 17);
    let torrent = lab.publish("film.bin", &data, 18);
    let payload = lab.path("payload");
    let first = lab.libtorrent("seed", 2, 2_000_000, &payload, &torrent);
    let mount = lab.mount("m", &torrent, &["--read-timeout", "60s"]);
    assert!(read_at(&mount.path("film.bin"), 0, 1 << 20).unwrap() == data[..1 << 20]);
    drop(first);
    let reading = std::thread::spawn({
        let path = mount.path("film.bin");
        move || fs::read(path)
    });
    std::thread::sleep(Duration::from_secs(2));
    let _second = lab.libtorrent("seed", 3, 0, &payload, &torrent);
    assert!(reading.join().unwrap().unwrap() == data);
    mount.stop();
}

/// Returns the bytes that a directory occupies on disk.
fn disk_use(dir: &Path) -> u64 {
    let kib: u64 = sh(&format!("du -sk {}", dir.display())).split_whitespace().next().unwrap().parse().unwrap();
    kib * 1024
}

#[test]
fn a_full_disk_fails_no_read() {
    if !can_run(&TOOLS) {
        return;
    }
    let _turn = turn();
    let mut lab = Lab::new();
    let data = noise(96 << 20, 12);
    let torrent = lab.publish("film.bin", &data, 18);
    let _seeder = lab.libtorrent("seed", 2, 0, &lab.path("payload"), &torrent);
    let cache = lab.path("m/cache");
    fs::create_dir_all(&cache).unwrap();
    sh(&format!("mount -t tmpfs -o size=32m none {}", cache.display()));
    let mount = lab.mount("m", &torrent, &["--memory", "16MiB"]);
    assert!(mount.read("film.bin") == data);
    let faults = mount.log().lines().filter(|line| line.contains("No space left")).count();
    assert_eq!(faults, 1, "{}", mount.log());
    mount.stop();
}

/// Starts a mount in the background with `base/mnt` and `base/cache`. Returns the command's output.
fn background(base: &Path, torrent: &Path) -> std::process::Output {
    let dir = base.join("mnt");
    fs::create_dir_all(&dir).unwrap();
    mount_command()
        .args(["--port", "0", "--cache-dir"])
        .args([base.join("cache").as_path(), torrent, &dir])
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn to_text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_background_mount_answers_or_reports_its_failure() {
    if !can_run(&TOOLS) {
        return;
    }
    let _turn = turn();
    let lab = Lab::new();
    let torrent = untracked(&lab, "film.bin", &noise(1 << 20, 13), 18);
    let base = lab.path("m");
    let mnt = base.join("mnt");

    let started = background(&base, &torrent);
    assert!(started.status.success(), "{started:?}");
    assert!(is_mounted(&mnt));
    assert!(fs::metadata(mnt.join("film.bin")).unwrap().len() == 1 << 20, "the mount does not answer");
    let output = to_text(&started.stdout);
    assert!(output.contains(mnt.to_str().unwrap()) && output.contains("unmount"), "{output}");

    // A second mount can use neither the same cache nor the same mountpoint.
    let other = lab.path("other");
    fs::create_dir_all(other.join("mnt")).unwrap();
    std::os::unix::fs::symlink(base.join("cache"), other.join("cache")).unwrap();
    let refused = background(&other, &torrent);
    let output = to_text(&refused.stderr);
    assert!(!refused.status.success() && output.lines().count() == 1 && output.contains("cache"), "{refused:?}");
    assert!(!is_mounted(&other.join("mnt")));
    let args = ["--foreground", "--port", "0", "--cache-dir"];
    let third =
        mount_command().args(args).args([&lab.path("third"), &torrent, &mnt]).stdin(Stdio::null()).output().unwrap();
    let output = to_text(&third.stderr);
    assert!(!third.status.success() && output.lines().count() == 1 && output.contains("already"), "{third:?}");

    let ended = run(TORRENTFS, &["unmount", mnt.to_str().unwrap()]);
    assert!(ended.status.success() && !is_mounted(&mnt), "{ended:?}");
    // The process may still be ending. Then the cache is free.
    let mut again = background(&other, &torrent);
    wait_until("the cache is free", LONG, || {
        if !again.status.success() {
            again = background(&other, &torrent);
        }
        again.status.success()
    });
    let ended = run(TORRENTFS, &["unmount", other.join("mnt").to_str().unwrap()]);
    assert!(ended.status.success(), "{ended:?}");
}

#[test]
fn a_failed_mount_leaves_nothing_mounted() {
    if !can_run(&TOOLS) {
        return;
    }
    let _turn = turn();
    let lab = Lab::new();
    let torrent = untracked(&lab, "film.bin", &noise(1 << 20, 14), 18);
    let file = lab.path("file");
    fs::write(&file, "").unwrap();
    let mnt = lab.path("mnt");
    fs::create_dir(&mnt).unwrap();
    let cache = lab.path("cache");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let nowhere = lab.path("nowhere");
    let cases: [(&Path, &Path, &[&str], &str); 4] = [
        (&cache, &nowhere, &[], "nowhere"),
        (&cache, &file, &[], "not a directory"),
        (&file, &mnt, &[], "cache"),
        (&cache, &mnt, &["--bind", "127.0.0.1", "--port", &port], "--port"),
    ];
    for (cache, dir, extra, why) in cases {
        for foreground in [&["--foreground"][..], &[]] {
            let output = mount_command()
                .args(foreground)
                .arg("--cache-dir")
                .arg(cache)
                .args(extra)
                .args([&torrent, dir])
                .stdin(Stdio::null())
                .output()
                .unwrap();
            let stderr = to_text(&output.stderr);
            assert!(!output.status.success(), "{output:?}");
            assert!(stderr.lines().count() == 1 && stderr.to_lowercase().contains(why), "{why}: {stderr}");
            assert!(!is_mounted(dir));
        }
    }
}
