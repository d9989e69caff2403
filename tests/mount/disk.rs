//! The cache's disk: kills, other programs that change its files, limits and failures. The bytes stay exact.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::*;

const TOOLS: [&str; 3] = ["opentracker", "mktorrent", "libtorrent"];
/// Longest time for something that takes a second or two.
const LIMIT: Duration = Duration::from_secs(180);

/// Returns the bytes that a directory occupies on disk.
fn disk_use(dir: &Path) -> u64 {
    let kib: u64 = sh(&format!("du -sk {}", dir.display())).split_whitespace().next().unwrap().parse().unwrap();
    kib * 1024
}

/// Reads the extended attribute `user.torrentfs.pieces`, which is "have/total".
fn have_count(mount: &Mounted, name: &str) -> u64 {
    let value = sh(&format!("getfattr --only-values -n user.torrentfs.pieces {}", mount.path(name).display()));
    value.split('/').next().unwrap().trim().parse().unwrap()
}

/// Returns the file in a cache that holds a torrent's only file.
fn data_file(cache: &Path, info_hash: &str, name: &str) -> PathBuf {
    cache.join(info_hash).join("data").join(name)
}

/// Kills a mount in the middle of its work, `TORRENTFS_KILLS` times if that is set.
#[test]
fn kills_lose_nothing_and_the_cache_keeps_its_limit() {
    if !can_run(&TOOLS) {
        return;
    }
    let _turn = turn();
    let kills: u64 = std::env::var("TORRENTFS_KILLS").map_or(8, |kills| kills.parse().unwrap());
    let mut lab = Lab::new();
    let data = noise(128 << 20, 30);
    let torrent = lab.publish("film.bin", &data, 18);
    let _seeder = lab.libtorrent("seed", 2, 0, &lab.path("payload"), &torrent);
    let limit = 32 << 20;
    // Pieces that are whole on the disk.
    let stored = || {
        let file = fs::read(data_file(&lab.path("m/cache"), &lab.info_hash(), "film.bin")).unwrap_or_default();
        file.chunks(1 << 18).zip(data.chunks(1 << 18)).filter(|(stored, right)| stored == right).count() as u64
    };
    let mut before = 0;
    for round in 0..kills {
        let mount = lab.mount("m", &torrent, &["--cache-size", "32MiB", "--read-timeout", "60s"]);
        let count = have_count(&mount, "film.bin");
        assert!(count >= before, "round {round}: {count} pieces, {before} on the disk");
        for place in 0..6u64 {
            let offset = (round * 7919 + place * 104_729) * 4096 % (data.len() as u64 - (4 << 20));
            let got = read_at(&mount.path("film.bin"), offset, 4 << 20).unwrap();
            assert!(got == data[offset as usize..][..4 << 20], "wrong bytes at {offset}");
        }
        let mut used = 0;
        wait_until("the cache is within its limit", LIMIT, || {
            used = disk_use(&mount.cache);
            // Pieces that a reader is about to need may exceed it for a moment; the rest is the state and directories.
            used <= limit + (1 << 20)
        });
        std::thread::sleep(Duration::from_millis(round * 137 % 1000));
        let count = have_count(&mount, "film.bin").min(limit >> 18);
        mount.kill();
        before = stored().min(limit >> 18);
        // A kill loses what is just being written, by 32 threads at most.
        assert!(before + 32 >= count, "round {round}: {before} pieces on the disk of {count}");
    }
    let mount = lab.mount("m", &torrent, &["--cache-size", "32MiB"]);
    assert!(mount.read("film.bin") == data);
    mount.stop();
    assert!(disk_use(&lab.path("m/cache")) <= limit + (1 << 20));
}

#[test]
fn files_that_others_change_in_a_cache_in_use_show_no_wrong_byte() {
    if !can_run(&TOOLS) {
        return;
    }
    let _turn = turn();
    let mut lab = Lab::new();
    let data = noise(24 << 20, 31);
    let torrent = lab.publish("film.bin", &data, 18);
    let _seeder = lab.libtorrent("seed", 2, 0, &lab.path("payload"), &torrent);
    type Change = (&'static str, fn(&Path, u64));
    let changes: [Change; 4] = [
        ("overwritten", |path, len| {
            let file = fs::File::options().write(true).open(path).unwrap();
            file.write_all_at(&noise(len as usize, 99), 0).unwrap();
        }),
        ("overwritten-in-part", |path, _| {
            let file = fs::File::options().write(true).open(path).unwrap();
            (0..24).for_each(|n| file.write_all_at(b"wrong", (n << 19) + 77_777).unwrap());
        }),
        ("recreated", |path, len| {
            fs::remove_file(path).unwrap();
            fs::write(path, noise(len as usize, 98)).unwrap();
        }),
        ("truncated", |path, _| fs::File::options().write(true).open(path).unwrap().set_len(12 << 20).unwrap()),
    ];
    for (name, change) in changes {
        // The last third is never read, so that the seeder stays connected.
        let mount = lab.mount(name, &torrent, &["-v", "--memory", "4MiB", "--on-demand"]);
        let read = || read_at(&mount.path("film.bin"), 0, 16 << 20).unwrap();
        assert!(read() == data[..16 << 20], "{name}");
        std::thread::sleep(Duration::from_millis(50));
        change(&data_file(&mount.cache, &lab.info_hash(), "film.bin"), data.len() as u64);
        // Drops what the kernel keeps of the file.
        sh(&format!("dd if={} iflag=nocache count=0 2>&1", mount.path("film.bin").display()));
        assert!(read() == data[..16 << 20], "{name}");
        if name != "recreated" {
            assert!(mount.log().contains("another program changed"), "{name}: {}", mount.log());
        }
        mount.stop();
        // And not in the next mount.
        let mount = lab.mount(name, &torrent, &["--on-demand"]);
        assert!(read_at(&mount.path("film.bin"), 0, 16 << 20).unwrap() == data[..16 << 20], "{name}, mounted again");
        mount.stop();
    }
}

#[test]
fn a_limit_on_file_sizes_is_a_full_disk() {
    if !can_run(&[TOOLS[0], TOOLS[1], TOOLS[2], "prlimit"]) {
        return;
    }
    let _turn = turn();
    let mut lab = Lab::new();
    let data = noise(24 << 20, 32);
    let torrent = lab.publish("film.bin", &data, 18);
    let mount = lab.mount("m", &torrent, &["--memory", "16MiB", "--read-timeout", "60s"]);
    let pid = mount.process.0.id().to_string();
    assert!(run("prlimit", &["--fsize=8388608", "--pid", &pid]).status.success());
    let _seeder = lab.libtorrent("seed", 2, 0, &lab.path("payload"), &torrent);
    assert!(mount.read("film.bin") == data);
    let log = mount.log();
    assert_eq!(log.lines().filter(|line| line.contains("ulimit -f")).count(), 1, "{log}");
    mount.stop();
}

#[test]
fn a_planted_link_or_fifo_in_the_cache_is_refused() {
    if !can_run(&["mktorrent", "opentracker"]) {
        return;
    }
    let _turn = turn();
    let mut lab = Lab::new();
    let torrent = lab.publish("film.bin", &noise(1 << 20, 33), 18);
    let cache = lab.path("cache");
    let victim = lab.path("victim");
    fs::create_dir(&cache).unwrap();
    fs::create_dir(lab.path("mnt")).unwrap();
    fs::write(&victim, "precious").unwrap();
    let mount = |foreground: bool| {
        let mut command = mount_command();
        command.args(["--port", "0", "--cache-dir"]).arg(&cache);
        if foreground {
            command.arg("--foreground");
        }
        let mut process =
            Process::start(command.args([&torrent, &lab.path("mnt")]).stderr(std::process::Stdio::piped()));
        let status = process.wait(LIMIT).expect("it does not hang");
        let log = drain(process.0.stderr.take().unwrap());
        (status.success(), log)
    };
    // The lock, as a link and as a FIFO.
    std::os::unix::fs::symlink(&victim, cache.join("lock")).unwrap();
    let (mounted, log) = mount(true);
    assert!(!mounted && log.contains("symbolic link") && log.lines().count() == 1, "{log}");
    fs::remove_file(cache.join("lock")).unwrap();
    sh(&format!("mkfifo {}", cache.join("lock").display()));
    let (mounted, log) = mount(true);
    assert!(!mounted && log.contains("not a regular file"), "{log}");
    fs::remove_file(cache.join("lock")).unwrap();
    // A FIFO as the state.
    let home = cache.join(lab.info_hash());
    fs::create_dir(&home).unwrap();
    sh(&format!("mkfifo {}", home.join("state").display()));
    let (mounted, log) = mount(true);
    assert!(!mounted && log.contains("state") && log.contains("not a regular file"), "{log}");
    fs::remove_file(home.join("state")).unwrap();
    // The log of a mount in the background, and the notes beside it, replace links.
    for name in ["torrentfs.log", "mountpoint"] {
        std::os::unix::fs::symlink(&victim, cache.join(name)).unwrap();
    }
    let (mounted, log) = mount(false);
    assert!(mounted, "{log}");
    run(TORRENTFS, &["unmount", lab.path("mnt").to_str().unwrap()]);
    assert!(cache.join("torrentfs.log").symlink_metadata().unwrap().is_file());
    assert_eq!(fs::read(&victim).unwrap(), b"precious");
    assert_eq!(victim.metadata().unwrap().nlink(), 1);
}
