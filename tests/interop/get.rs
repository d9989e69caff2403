//! `torrentfs get` with real peers: the files that it writes, how it resumes, and the files that it leaves alone.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use crate::support::transfer::Transfer;
use crate::support::*;

const LIMIT: Duration = Duration::from_secs(120);

/// Writes a directory with an empty file, small files that share a piece, and large files.
fn tree(root: &Path) {
    for (n, (path, len)) in
        [("a/one.bin", 3_000_000), ("a/b/two.bin", 1_700_001), ("empty", 0), ("s1", 10), ("s2", 999)].iter().enumerate()
    {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, noise(*len, n as u64 + 1)).unwrap();
    }
}

fn are_equal(a: &Path, b: &Path) -> bool {
    run("diff", &["-r", a.to_str().unwrap(), b.to_str().unwrap()]).status.success()
}

fn tools() -> bool {
    can_run(&["opentracker", "mktorrent", "libtorrent"])
}

#[test]
fn a_directory_is_downloaded_and_the_tracker_is_told() {
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
    assert!(get.wait().success());
    assert!(are_equal(&payload, &base.join("out/tree")));
    let names: Vec<_> = fs::read_dir(base.join("out")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["tree"], "something else was left there");
    assert_eq!(fs::read_dir(base.join("cache/downloads")).unwrap().count(), 0);
    assert!(get.output().contains("complete"), "{}", get.output());
    // The tracker was told that we completed and left.
    assert_eq!((lab.downloads(), lab.scrape()), (1, (1, 0)));

    // Again, with all files there.
    let mut get = Transfer::get(&base, &[], &torrent);
    assert!(get.wait().success());
    assert!(get.output().contains("already complete"), "{}", get.output());
    // A missing file and a damaged one are repaired. Nothing else is fetched again.
    fs::remove_file(base.join("out/tree/s1")).unwrap();
    let mut damaged = fs::read(base.join("out/tree/a/one.bin")).unwrap();
    damaged[1_000_000] ^= 1;
    fs::write(base.join("out/tree/a/one.bin"), damaged).unwrap();
    let mut get = Transfer::get(&base, &[], &torrent);
    assert!(get.wait().success());
    assert!(are_equal(&payload, &base.join("out/tree")));
    assert!(get.output().contains("complete, 1"), "more than two pieces of 64 KiB were fetched: {}", get.output());
    assert_eq!(base.join("out/tree/s1").metadata().unwrap().len(), 10);
}

/// Downloads more than fits in the memory for pieces in progress, so that the memory is reused.
#[test]
fn a_torrent_larger_than_the_memory_for_its_pieces_is_downloaded() {
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
    assert!(get.wait().success());
    assert!(fs::read(base.join("out/film.bin")).unwrap() == data);
}

#[test]
fn a_download_resumes_after_kill_and_ctrl_c() {
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
    // Neither Ctrl-C nor a kill loses a piece that was written.
    let mut saved = 0;
    for n in 0..6u64 {
        let before = written(&file);
        let mut get = Transfer::get(&base, &["--download-limit", "4MiB"], &torrent);
        // Each run ends at another moment.
        let more = 100_000 + u64::from_le_bytes(noise(8, n)[..8].try_into().unwrap()) % 1_500_000;
        wait_until("some bytes arrive", LIMIT, || {
            assert!(get.is_running(), "{}", get.output());
            written(&file) >= before + more
        });
        if n % 2 == 0 {
            get.kill();
        } else {
            assert_eq!(get.interrupt(), Some(1));
            assert!(get.output().contains("resumes"), "{}", get.output());
        }
        saved += written(&file) - before;
    }
    assert!(saved > 0 && written(&file) < data.len() as u64, "{saved}");
    let mut get = Transfer::get(&base, &["--seed-time", "1s"], &torrent);
    assert!(get.wait().success());
    assert!(fs::read(&file).unwrap() == data);
    let output = get.output();
    let fetched = output.split("complete, ").nth(1).and_then(|rest| rest.split_once(" MiB")).expect(&output).0;
    let fetched: f64 = fetched.parse().expect(&output);
    // Two pieces of 64 KiB more may have been in progress at each end, and the output is rounded.
    let most = 16.0 - saved as f64 / f64::from(1 << 20) + 0.9;
    assert!(fetched <= most, "{fetched} MiB fetched, at most {most} MiB were missing");
    assert!(fs::read_dir(base.join("cache/downloads")).unwrap().count() > 0, "the state is kept for seeding");
}

#[test]
fn existing_files_are_not_overwritten() {
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
        assert_eq!(get.wait().code(), Some(5));
        let output = get.output();
        assert!(output.contains("notes.txt") && output.contains("--force") && output.lines().count() == 1, "{output}");
        let after = file.metadata().unwrap();
        assert!(fs::read(&file).unwrap() == mine);
        assert_eq!((before.mtime_nsec(), before.ctime_nsec()), (after.mtime_nsec(), after.ctime_nsec()));
    }
    let _seeder = lab.libtorrent("seed", 2, 0, &lab.path("payload"), &torrent);
    let mut get = Transfer::get(&base, &["--force"], &torrent);
    assert!(get.wait().success());
    assert!(fs::read(&file).unwrap() == data);
    // A link that points outside is not followed.
    let outside = lab.path("outside");
    fs::write(&outside, "mine").unwrap();
    fs::remove_file(&file).unwrap();
    std::os::unix::fs::symlink(&outside, &file).unwrap();
    for flag in ["--verify", "--force"] {
        let mut get = Transfer::get(&base, &[flag], &torrent);
        assert_eq!(get.wait().code(), Some(5));
        assert_eq!(fs::read(&outside).unwrap(), b"mine");
    }
}

#[test]
fn a_full_disk_is_reported_in_a_line_and_the_download_resumes() {
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
        eprintln!("skipped: no tmpfs can be mounted here");
        return;
    }
    // Before anything is fetched.
    let mut get = Transfer::get(&base, &[], &torrent);
    assert_eq!(get.wait().code(), Some(5));
    assert!(get.output().contains("not enough space") && get.output().lines().count() == 1, "{}", get.output());
    assert_eq!(fs::read_dir(&out).unwrap().count(), 0);
    detach(&out);
    // During the download another program fills the disk.
    assert!(disk("16m"));
    let _seeder = lab.libtorrent("seed", 2, 3 << 20, &lab.path("payload"), &torrent);
    let mut get = Transfer::get(&base, &[], &torrent);
    wait_until("some bytes arrive", LIMIT, || {
        assert!(get.is_running(), "{}", get.output());
        out.join("film.bin").metadata().is_ok_and(|about| about.blocks() * 512 > 1 << 20)
    });
    let _ = fs::write(out.join("other"), vec![1; 16 << 20]);
    assert_eq!(get.wait().code(), Some(5), "{}", get.output());
    let output = get.output();
    assert!(output.contains("film.bin") && output.contains("resumes"), "{output}");
    assert_eq!(output.lines().filter(|line| line.contains("No space")).count(), 1, "{output}");
    fs::remove_file(out.join("other")).unwrap();
    let mut get = Transfer::get(&base, &[], &torrent);
    assert!(get.wait().success());
    assert!(fs::read(out.join("film.bin")).unwrap() == data);
    detach(&out);
}

#[test]
fn several_sources_are_downloaded_at_once() {
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
    // An invalid source is reported before anything starts.
    let mut get = Transfer::start("get", &base, &["-o", base.join("out").to_str().unwrap(), &magnet], &[&broken]);
    assert_eq!(get.wait().code(), Some(3));
    assert!(!base.join("out").exists());
    let mut get = Transfer::start("get", &base, &["-o", base.join("out").to_str().unwrap(), &magnet], &[&torrent]);
    assert_eq!(get.wait().code(), Some(2), "the same torrent twice");
    assert!(fs::read(base.join("out/film.bin")).unwrap() == data, "the first one is downloaded");
}
