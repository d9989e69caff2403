//! `torrentfs seed` with real peers: which peers it serves, what it refuses, and that it never writes to the files.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::tracker::{TrackerServer, publish};
use crate::support::transfer::Transfer;
use crate::support::*;

const LIMIT: Duration = Duration::from_secs(180);
const PIECE: usize = 1 << 16;

fn tools(more: &[&str]) -> bool {
    can_run(&[&["opentracker", "mktorrent", "libtorrent"], more].concat())
}

fn quiet(command: &mut Command) -> Process {
    Process::start(command.stdout(Stdio::null()).stderr(Stdio::null()))
}

fn has_content(file: &Path, data: &[u8]) -> bool {
    fs::read(file).is_ok_and(|got| got == data)
}

/// Starts `torrentfs seed` and waits until it has checked the files.
fn seed(base: &Path, args: &[&str], paths: &[&Path]) -> Transfer {
    let mut seed = Transfer::start("seed", base, args, paths);
    wait_until("the seeder is ready", LIMIT, || {
        assert!(seed.is_running(), "{}", seed.output());
        seed.output().contains("seeding ")
    });
    seed
}

/// Returns mode, times and content of everything below a directory.
fn snapshot(root: &Path) -> BTreeMap<PathBuf, (u32, i64, i64, Vec<u8>)> {
    let (mut found, mut left) = (BTreeMap::new(), vec![root.to_owned()]);
    while let Some(path) = left.pop() {
        let metadata = path.symlink_metadata().unwrap();
        let nanoseconds = |seconds: i64, rest: i64| seconds * 1_000_000_000 + rest;
        let times = (
            nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
            nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
        );
        if metadata.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        let content = if metadata.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
        found.insert(path, (metadata.mode(), times.0, times.1, content));
    }
    found
}

/// Five leechers of four programs, one seeder, one `torrentfs tracker`. The seeder leaves once a leecher is complete.
#[test]
fn five_leechers_of_four_programs_complete_after_the_seeder_has_left() {
    if !tools(&["aria2c", "transmission-cli"]) {
        return;
    }
    let _turn = turn();
    let lab = Lab::new();
    let tracker = TrackerServer::start(&[]);
    let data = noise(12 << 20, 21);
    let torrent = publish(&lab, &format!("http://{}/announce", tracker.addr), &data);
    let out = |name: &str| {
        let dir = lab.path(name);
        fs::create_dir_all(&dir).unwrap();
        dir
    };
    // Transmission does not connect to loopback addresses. It starts first, so that the others connect to it.
    let config = lab.path("transmission-config");
    let start = || {
        quiet(
            Command::new("transmission-cli")
                .arg("-g")
                .arg(&config)
                .args(["-M", "-U", "-D", "-p", &free_port().to_string(), "-w"])
                .args([&out("transmission"), &torrent]),
        )
    };
    let _transmission = start_until_known(start, || tracker.peers().1 == 1);
    let mut seeder = seed(
        &lab.path("seeder"),
        &["--bind", "127.0.0.2", "--upload-limit", "2MiB"],
        &[&torrent, &lab.path("payload")],
    );
    wait_until("the seeder announces itself", LIMIT, || tracker.peers().0 == 1);
    let _aria2 = quiet(
        Command::new("aria2c")
            .args(["--enable-dht=false", "--enable-dht6=false", "--bt-enable-lpd=false", "--no-conf=true"])
            .args(["--seed-ratio=0", "--file-allocation=none", "--interface=127.0.0.3"])
            .arg(format!("--listen-port={}", free_port()))
            .arg(format!("--dir={}", out("aria2").display()))
            .arg(&torrent),
    );
    let _libtorrent = lab.libtorrent("leech", 4, 0, &out("libtorrent"), &torrent);
    let _get = Transfer::get(&lab.path("get"), &["--bind", "127.0.0.5", "--seed"], &torrent);
    let mount = lab.mount("mount", &torrent, &["--bind", "127.0.0.6"]);

    let copies = ["transmission", "aria2", "libtorrent", "get/out"].map(|name| lab.path(name).join("film.bin"));
    let in_mount = || {
        let progress =
            run("getfattr", &["--only-values", "-n", "user.torrentfs.progress", mount.dir.to_str().unwrap()]);
        progress.stdout == b"100"
    };
    wait_until(&format!("a leecher is complete; {}", seeder.output()), LIMIT, || {
        copies.iter().any(|copy| has_content(copy, &data)) || in_mount()
    });
    assert_eq!(seeder.interrupt(), Some(0));
    assert!(seeder.output().contains(" uploaded"), "{}", seeder.output());
    for copy in &copies {
        wait_until(&format!("{} is complete", copy.display()), LIMIT, || has_content(copy, &data));
    }
    assert!(mount.read("film.bin") == data);
    mount.stop();
    tracker.stop();
}

/// Eight leechers that start with the pieces for which `has(leecher, piece)`, and no seeder.
fn ring(seed: u64, has: fn(usize, usize) -> bool) {
    if !tools(&[]) {
        return;
    }
    let _turn = turn();
    let mut lab = Lab::new();
    let data = noise(64 * PIECE - 1234, seed);
    let torrent = lab.publish("film.bin", &data, 16);
    let mut leechers: Vec<Transfer> = (0..8)
        .map(|n| {
            let base = lab.path(&format!("leecher{n}"));
            fs::create_dir_all(base.join("out")).unwrap();
            let file = fs::File::create(base.join("out/film.bin")).unwrap();
            file.set_len(data.len() as u64).unwrap();
            for (piece, bytes) in data.chunks(PIECE).enumerate().filter(|(piece, _)| has(n, *piece)) {
                file.write_all_at(bytes, (piece * PIECE) as u64).unwrap();
            }
            Transfer::get(&base, &["--bind", &format!("127.0.0.{}", n + 2), "--seed"], &torrent)
        })
        .collect();
    for (n, leecher) in leechers.iter_mut().enumerate() {
        let file = lab.path(&format!("leecher{n}/out/film.bin"));
        wait_until(&format!("leecher {n} is complete; {}", leecher.output()), LIMIT, || has_content(&file, &data));
    }
    for leecher in &mut leechers {
        assert_eq!(leecher.interrupt(), Some(0), "{}", leecher.output());
    }
}

#[test]
fn eight_leechers_that_each_lack_an_eighth_complete_each_other() {
    ring(22, |leecher, piece| piece % 8 != leecher);
}

#[test]
fn eight_leechers_that_each_have_an_eighth_complete_each_other() {
    ring(23, |leecher, piece| piece % 8 == leecher);
}

#[test]
fn the_users_files_are_never_changed() {
    if !tools(&[]) {
        return;
    }
    let _turn = turn();
    let mut lab = Lab::new();
    let payload = lab.path("payload/tree");
    for (n, (name, len)) in [("a/one", 700_000), ("two", 300_000), ("state", 5000), ("empty", 0)].iter().enumerate() {
        fs::create_dir_all(payload.join(name).parent().unwrap()).unwrap();
        fs::write(payload.join(name), noise(*len, n as u64 + 30)).unwrap();
    }
    let torrent = lab.publish_path(&payload, 16);
    // Under another name, and read-only for everybody but root.
    let mine = lab.path("payload/renamed");
    fs::rename(&payload, &mine).unwrap();
    sh(&format!("chmod -R a-w {}", mine.display()));
    let before = snapshot(&mine);
    for args in [&["--super-seed"][..], &["--no-check"]] {
        let base = lab.path(&format!("seeder{}", args[0]));
        let mut seeder = seed(&base, &[&["--bind", "127.0.0.2"], args].concat(), &[&torrent, &mine]);
        let leecher = lab.path(&format!("leecher{}", args[0]));
        let mut get = Transfer::get(&leecher, &["--bind", "127.0.0.3"], &torrent);
        assert!(get.wait().success());
        assert_eq!(seeder.interrupt(), Some(0));
        assert!(
            run("diff", &["-r", mine.to_str().unwrap(), leecher.join("out/tree").to_str().unwrap()]).status.success()
        );
        assert!(snapshot(&mine) == before, "{args:?}");
        assert_eq!(fs::read_dir(base.join("cache")).unwrap().count(), 0, "a seeder leaves nothing in the cache");
    }
    sh(&format!("chmod -R u+w {}", mine.display()));
}

#[test]
fn incomplete_files_are_reported_and_seeded_only_on_request() {
    if !tools(&[]) {
        return;
    }
    let _turn = turn();
    let mut lab = Lab::new();
    let data = noise(16 * PIECE, 24);
    let torrent = lab.publish("film.bin", &data, 16);
    let file = lab.path("payload/film.bin");
    fs::File::options().write(true).open(&file).unwrap().write_all_at(b"?", 5 * PIECE as u64).unwrap();
    let before = snapshot(&lab.path("payload"));
    let refused = |args: &[&str], path: &Path| {
        let mut seed = Transfer::start("seed", &lab.path("seeder"), args, &[&torrent, path]);
        assert_eq!(seed.wait().code(), Some(1));
        seed.output()
    };
    let output = refused(&[], &file);
    assert!(
        output.contains("1 of 16 pieces") && output.contains("--partial") && output.lines().count() == 1,
        "{output}"
    );
    let empty = lab.path("empty");
    fs::create_dir(&empty).unwrap();
    assert!(refused(&[], &empty).contains("is missing"));
    assert!(refused(&["--partial"], &empty).contains("no valid data"));

    // Without a check the size decides, but a damaged piece is never sent: it has to come from another peer.
    for args in [&["--partial"][..], &["--no-check"]] {
        let seeder = seed(&lab.path("seeder"), &[args, &["--bind", "127.0.0.2"]].concat(), &[&torrent, &file]);
        let base = lab.path(&format!("get{}", args[0]));
        let get = Transfer::get(&base, &["--bind", "127.0.0.3", "-v"], &torrent);
        let out = base.join("out/film.bin");
        let good = || {
            let got = fs::read(&out).unwrap_or_default();
            got.len() == data.len()
                && data.chunks(PIECE).zip(got.chunks(PIECE)).filter(|(wanted, got)| wanted == got).count() == 15
        };
        wait_until(&format!("all but one piece arrive; {}", seeder.output()), LIMIT, good);
        assert!(!get.output().contains("banned"), "{}", get.output());
        let whole = lab.path(&format!("whole{}", args[0]));
        fs::create_dir(&whole).unwrap();
        fs::write(whole.join("film.bin"), &data).unwrap();
        let other = lab.libtorrent("seed", 4, 0, &whole, &torrent);
        let mut get = get;
        wait_until(&format!("the last piece arrives; {}", get.output()), LIMIT, || !get.is_running());
        assert!(get.wait().success() && has_content(&out, &data));
        drop((seeder, other));
        assert!(snapshot(&lab.path("payload")) == before);
    }
}

#[test]
fn a_seeder_creates_the_torrent_and_ends_at_its_ratio_or_time() {
    if !tools(&[]) {
        return;
    }
    let _turn = turn();
    let mut lab = Lab::new();
    let data = noise(32 * PIECE, 25);
    // A torrent for the tracker's list.
    let known = lab.publish("film.bin", &data, 16);
    let info_hash = lab.info_hash();
    let (file, torrent) = (lab.path("payload/film.bin"), lab.path("mine.torrent"));
    let made = ["--bind", "127.0.0.2", "--seed-ratio", "1", "-a", &lab.announce, "-o", torrent.to_str().unwrap()];
    let mut seeder = seed(&lab.path("seeder"), &made, &[Path::new("--create"), &file]);
    let output = seeder.output();
    assert!(output.contains("magnet:?xt=urn:btih:"), "{output}");
    let made = torrentfs::metainfo::Metainfo::parse(&fs::read(&torrent).unwrap()).unwrap();
    let known = torrentfs::metainfo::Metainfo::parse(&fs::read(&known).unwrap()).unwrap();
    assert_eq!(made.layout.lengths().total(), known.layout.lengths().total());
    assert!(output.contains(&made.info_hash.to_string()), "{output}; {info_hash}");
    let port = {
        // Finds the seeder's port: the tracker may refuse the torrent that the seeder makes.
        let sockets =
            sh(&format!("ls -l /proc/{}/fd | grep -o 'socket:\\[[0-9]*' | tr -dc '0-9\\n'", seeder.process.0.id()));
        let table = fs::read_to_string("/proc/net/tcp").unwrap();
        let listening = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
        let ours = listening.filter(|fields| fields[3] == "0A" && sockets.lines().any(|inode| inode == fields[9]));
        let ports = ours.map(|fields| u16::from_str_radix(fields[1].split(':').nth(1).unwrap(), 16).unwrap());
        ports.last().expect("the seeder listens")
    };
    let base = lab.path("get");
    let mut get = Transfer::get(&base, &["--bind", "127.0.0.3", "--peer", &format!("127.0.0.2:{port}")], &torrent);
    assert!(get.wait().success());
    assert!(has_content(&base.join("out/film.bin"), &data));
    assert!(seeder.wait().success(), "one copy was uploaded: {}", seeder.output());
    // It also ends by time.
    let mut seeder = Transfer::start("seed", &lab.path("seeder"), &["--seed-time", "1s"], &[&torrent, &file]);
    assert!(seeder.wait().success());
}
