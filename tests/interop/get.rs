//! `torrentfs get` with real peers: what it makes, that it goes on where it was, and what it leaves alone.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use crate::support::transfer::Transfer;
use crate::support::*;

const LIMIT: Duration = Duration::from_secs(120);

/// A tree with an empty file, small files that share a piece, and large ones.
fn tree(root: &Path) {
    for (n, (path, len)) in
        [("a/one.bin", 3_000_000), ("a/b/two.bin", 1_700_001), ("empty", 0), ("s1", 10), ("s2", 999)].iter().enumerate()
    {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, noise(*len, n as u64 + 1)).unwrap();
    }
}

fn same(a: &Path, b: &Path) -> bool {
    run("diff", &["-r", a.to_str().unwrap(), b.to_str().unwrap()]).status.success()
}

fn tools() -> bool {
    can_run(&["opentracker", "mktorrent"])
}

#[test]
fn a_tree_is_downloaded_and_the_tracker_is_told() {
    if !tools() {
        return;
    }
    let _turn = turn();
    let mut lab = Lab::new();
    let payload = lab.path("payload/tree");
    tree(&payload);
    let torrent = lab.publish_path(&payload, 16);
    let _seeder = lab.libtorrent("seed", 2, 0, &lab.path("payload"), &torrent);
    let base = lab.path("get");
    let mut get = Transfer::get(&base, &[], &torrent);
    assert!(get.ends().success());
    assert!(same(&payload, &base.join("out/tree")));
    let names: Vec<_> = fs::read_dir(base.join("out")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["tree"], "nothing else is left there");
    assert_eq!(fs::read_dir(base.join("cache/downloads")).unwrap().count(), 0);
    assert!(get.said().contains("complete"), "{}", get.said());
    // Completed, and gone.
    assert_eq!((lab.downloads(), lab.scrape()), (1, (1, 0)));

    // Again: it is all there.
    let mut get = Transfer::get(&base, &[], &torrent);
    assert!(get.ends().success());
    assert!(get.said().contains("all there"), "{}", get.said());
    // One file is lost, one is damaged: that is made good, the rest is not fetched again.
    fs::remove_file(base.join("out/tree/s1")).unwrap();
    let mut damaged = fs::read(base.join("out/tree/a/one.bin")).unwrap();
    damaged[1_000_000] ^= 1;
    fs::write(base.join("out/tree/a/one.bin"), damaged).unwrap();
    let mut get = Transfer::get(&base, &[], &torrent);
    assert!(get.ends().success());
    assert!(same(&payload, &base.join("out/tree")));
    assert!(get.said().contains("complete, 1"), "two pieces of 64 KiB: {}", get.said());
    assert_eq!(base.join("out/tree/s1").metadata().unwrap().len(), 10);
}

/// The memory for pieces under way is used again and again.
#[test]
fn more_than_is_under_way_at_once_is_fetched() {
    if !tools() {
        return;
    }
    let _turn = turn();
    let mut lab = Lab::new();
    let data = noise(150 << 20, 6);
    let torrent = lab.publish("film.bin", &data, 20);
    let _seeder = lab.libtorrent("seed", 2, 0, &lab.path("payload"), &torrent);
    let base = lab.path("get");
    let mut get = Transfer::get(&base, &[], &torrent);
    assert!(get.ends().success());
    assert!(fs::read(base.join("out/film.bin")).unwrap() == data);
}

#[test]
fn it_goes_on_after_kill_and_ctrl_c() {
    if !tools() {
        return;
    }
    let _turn = turn();
    let mut lab = Lab::new();
    let data = noise(16 << 20, 7);
    let torrent = lab.publish("film.bin", &data, 16);
    let _seeder = lab.libtorrent("seed", 2, 0, &lab.path("payload"), &torrent);
    let base = lab.path("get");
    let file = base.join("out/film.bin");
    let written = |file: &Path| file.metadata().map_or(0, |about| about.blocks() * 512);
    for n in 0..6u64 {
        let before = written(&file);
        let mut get = Transfer::get(&base, &["--download-limit", "4MiB"], &torrent);
        // At another moment each time.
        let more = 100_000 + u64::from_le_bytes(noise(8, n)[..8].try_into().unwrap()) % 1_500_000;
        wait_until("something comes", LIMIT, || {
            assert!(get.is_running(), "{}", get.said());
            written(&file) >= before + more
        });
        if n % 2 == 0 {
            get.kill();
        } else {
            assert_eq!(get.interrupt(), Some(1));
            assert!(get.said().contains("goes on from here"), "{}", get.said());
        }
    }
    // What was there is not fetched again, but for the last moment before each kill.
    let there = written(&file);
    assert!(there > 0 && there < data.len() as u64, "{there}");
    let mut get = Transfer::get(&base, &["--seed-time", "1s"], &torrent);
    assert!(get.ends().success());
    assert!(fs::read(&file).unwrap() == data);
    let said = get.said();
    let fetched = said.split("complete, ").nth(1).and_then(|rest| rest.split(' ').next()).expect(&said);
    let fetched: f64 = fetched.parse().expect(&said);
    assert!(fetched < 16.0, "{said}");
    assert!(fs::read_dir(base.join("cache/downloads")).unwrap().count() > 0, "kept, for it goes on seeding");
}

#[test]
fn what_was_there_is_not_overwritten() {
    if !tools() {
        return;
    }
    let _turn = turn();
    let mut lab = Lab::new();
    let data = noise(1 << 20, 9);
    let torrent = lab.publish("notes.txt", &data, 16);
    let base = lab.path("get");
    let file = base.join("out/notes.txt");
    fs::create_dir_all(base.join("out")).unwrap();
    for mine in [b"my notes".to_vec(), noise(1 << 20, 10), [data.clone(), b"more".to_vec()].concat()] {
        fs::write(&file, &mine).unwrap();
        let before = file.metadata().unwrap();
        let mut get = Transfer::get(&base, &[], &torrent);
        assert_eq!(get.ends().code(), Some(5));
        let said = get.said();
        assert!(said.contains("notes.txt") && said.contains("--force") && said.lines().count() == 1, "{said}");
        let after = file.metadata().unwrap();
        assert!(fs::read(&file).unwrap() == mine);
        assert_eq!((before.mtime_nsec(), before.ctime_nsec()), (after.mtime_nsec(), after.ctime_nsec()));
    }
    let _seeder = lab.libtorrent("seed", 2, 0, &lab.path("payload"), &torrent);
    let mut get = Transfer::get(&base, &["--force"], &torrent);
    assert!(get.ends().success());
    assert!(fs::read(&file).unwrap() == data);
    // A link that leads out is not followed.
    let outside = lab.path("outside");
    fs::write(&outside, "mine").unwrap();
    fs::remove_file(&file).unwrap();
    std::os::unix::fs::symlink(&outside, &file).unwrap();
    for flag in ["--verify", "--force"] {
        let mut get = Transfer::get(&base, &[flag], &torrent);
        assert_eq!(get.ends().code(), Some(5));
        assert_eq!(fs::read(&outside).unwrap(), b"mine");
    }
}

#[test]
fn a_full_disk_is_said_in_a_line_and_is_no_end() {
    if !tools() {
        return;
    }
    let _turn = turn();
    let mut lab = Lab::new();
    let data = noise(12 << 20, 11);
    let torrent = lab.publish("film.bin", &data, 16);
    let base = lab.path("get");
    let out = base.join("out");
    fs::create_dir_all(&out).unwrap();
    let disk = |size: &str| {
        let mounted = run("mount", &["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs", out.to_str().unwrap()]);
        mounted.status.success()
    };
    if !disk("8m") {
        eprintln!("left out: no tmpfs can be mounted here");
        return;
    }
    // Before anything is fetched.
    let mut get = Transfer::get(&base, &[], &torrent);
    assert_eq!(get.ends().code(), Some(5));
    assert!(get.said().contains("no room") && get.said().lines().count() == 1, "{}", get.said());
    assert_eq!(fs::read_dir(&out).unwrap().count(), 0);
    detach(&out);
    // In the middle: somebody else takes the room.
    assert!(disk("16m"));
    let _seeder = lab.libtorrent("seed", 2, 3 << 20, &lab.path("payload"), &torrent);
    let mut get = Transfer::get(&base, &[], &torrent);
    wait_until("something comes", LIMIT, || {
        assert!(get.is_running(), "{}", get.said());
        out.join("film.bin").metadata().is_ok_and(|about| about.blocks() * 512 > 1 << 20)
    });
    let _ = fs::write(out.join("other"), vec![1; 16 << 20]);
    assert_eq!(get.ends().code(), Some(5), "{}", get.said());
    let said = get.said();
    assert!(said.contains("film.bin") && said.contains("goes on from here"), "{said}");
    assert_eq!(said.lines().filter(|line| line.contains("No space")).count(), 1, "{said}");
    fs::remove_file(out.join("other")).unwrap();
    let mut get = Transfer::get(&base, &[], &torrent);
    assert!(get.ends().success());
    assert!(fs::read(out.join("film.bin")).unwrap() == data);
    detach(&out);
}

#[test]
fn several_at_once_and_a_magnet_link() {
    if !tools() {
        return;
    }
    let _turn = turn();
    let mut lab = Lab::new();
    let data = noise(2 << 20, 12);
    let torrent = lab.publish("film.bin", &data, 16);
    let seeder = lab.libtorrent("seed", 2, 0, &lab.path("payload"), &torrent);
    let base = lab.path("get");
    let magnet = format!("magnet:?xt=urn:btih:{}&x.pe={}", lab.info_hash(), seeder.addr);
    let broken = lab.path("broken.torrent");
    fs::write(&broken, "nothing").unwrap();
    // Told before anything is begun.
    let mut get = Transfer::start("get", &base, &["-o", base.join("out").to_str().unwrap(), &magnet], &[&broken]);
    assert_eq!(get.ends().code(), Some(3));
    assert!(!base.join("out").exists());
    let mut get = Transfer::start("get", &base, &["-o", base.join("out").to_str().unwrap(), &magnet], &[&torrent]);
    assert_eq!(get.ends().code(), Some(2), "twice the same");
    assert!(fs::read(base.join("out/film.bin")).unwrap() == data, "the other one is done all the same");
}
