//! `torrentfs get` over what interrupted downloads of other programs leave behind.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::transfer::Transfer;
use crate::support::*;

const LIMIT: Duration = Duration::from_secs(180);

/// Lets a program download until it has written some MiB, and kills it.
fn interrupt(program: &mut Command, file: &Path, len: u64) {
    let mut process = Process::start(program.stdout(Stdio::null()).stderr(Stdio::null()));
    wait_until(&format!("{program:?} writes"), LIMIT, || {
        assert!(process.0.try_wait().unwrap().is_none(), "{program:?} ended");
        // Space that is only reserved has no data yet.
        let data = run("sh", &["-c", &format!("tr -d '\\0' < '{}' | wc -c", file.display())]).stdout;
        String::from_utf8_lossy(&data).trim().parse::<u64>().is_ok_and(|data| data > len / 4)
    });
}

#[test]
fn interrupted_downloads_of_other_programs_are_completed() {
    if !can_run(&["opentracker", "mktorrent", "libtorrent", "aria2c", "wget", "python3"]) {
        return;
    }
    let _turn = turn();
    let mut lab = Lab::new();
    let data = noise(12 << 20, 40);
    let torrent = lab.publish("film.bin", &data, 16);
    let payload = lab.path("payload");
    let _seeder = lab.libtorrent("seed", 2, 0, &payload, &torrent);
    let complete = |name: &str, leftovers: &[&str]| {
        let base = lab.path(name);
        let file = base.join("out/film.bin");
        let before = file.metadata().unwrap();
        let notes: Vec<_> = leftovers.iter().map(|note| fs::read(base.join("out").join(note)).unwrap()).collect();
        let mut get = Transfer::get(&base, &[], &torrent);
        assert!(get.wait().success(), "{name}: {}", get.output());
        assert!(fs::read(&file).unwrap() == data, "{name}");
        assert_eq!(file.metadata().unwrap().mode(), before.mode(), "{name}");
        // At least a piece was of use.
        assert!(!get.output().contains("complete, 12.0 MiB"), "{name}: {}", get.output());
        for (note, content) in leftovers.iter().zip(notes) {
            assert!(fs::read(base.join("out").join(note)).unwrap() == content, "{name}: {note}");
        }
    };
    let out = |name: &str| {
        let out = lab.path(name).join("out");
        fs::create_dir_all(&out).unwrap();
        out
    };

    // wget and curl leave the start of the file, of any length.
    let port = free_port().to_string();
    let mut server = Command::new("python3");
    server.args(["-m", "http.server", "--bind", "127.0.0.1", "-d"]).arg(&payload).arg(&port);
    let _server = Process::start(server.stdout(Stdio::null()).stderr(Stdio::null()));
    let url = format!("http://127.0.0.1:{port}/film.bin");
    wait_until("the web server answers", LIMIT, || run("wget", &["-q", "-O", "/dev/null", &url]).status.success());
    let wget = out("wget");
    interrupt(
        Command::new("wget").args(["-q", "--limit-rate=8m", "-P"]).arg(&wget).arg(&url),
        &wget.join("film.bin"),
        data.len() as u64,
    );
    let len = wget.join("film.bin").metadata().unwrap().len();
    assert!(len < data.len() as u64, "wget was too fast");
    complete("wget", &[]);
    for len in [1 << 16, (1 << 16) + 1, data.len() - (1 << 16), data.len() - 1] {
        let name = format!("cut at {len}");
        fs::write(out(&name).join("film.bin"), &data[..len]).unwrap();
        complete(&name, &[]);
    }

    for allocation in ["none", "falloc", "trunc", "prealloc"] {
        let name = format!("aria2 {allocation}");
        let out = out(&name);
        interrupt(
            Command::new("aria2c")
                .args(["--enable-dht=false", "--enable-dht6=false", "--bt-enable-lpd=false", "--no-conf=true"])
                .args(["--interface=127.0.0.3", "--max-download-limit=6M", "--auto-save-interval=1", "--disk-cache=0"])
                .arg(format!("--file-allocation={allocation}"))
                .arg(format!("--listen-port={}", free_port()))
                .arg(format!("--dir={}", out.display()))
                .arg(&torrent),
            &out.join("film.bin"),
            data.len() as u64,
        );
        complete(&name, if out.join("film.bin.aria2").exists() { &["film.bin.aria2"] } else { &[] });
    }

    let libtorrent = out("libtorrent");
    let leech = lab.libtorrent("leech", 4, 4 << 20, &libtorrent, &torrent);
    wait_until("libtorrent writes", LIMIT, || {
        libtorrent.join("film.bin").metadata().is_ok_and(|about| about.blocks() * 512 > 3 << 20)
    });
    drop(leech);
    complete("libtorrent", &[]);
}
