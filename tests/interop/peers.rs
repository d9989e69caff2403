//! A mount with other programs as peers: each uploads a torrent to us and downloads it from us.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::*;

const LEN: usize = 24 << 20;
const LIMIT: Duration = Duration::from_secs(120);

/// Starts a program that seeds the files of a directory, or downloads into it.
type Client = fn(lab: &Lab, dir: &Path, torrent: &Path) -> Process;

/// Whether a program connects to us.
#[derive(PartialEq)]
enum Connects {
    /// It connects to us when it needs a piece.
    ToUs,
    /// It does not connect to loopback addresses, so we have to connect to it.
    Never,
}

/// Downloads from `client`, stops it, and uploads to another instance of it.
fn transfers_both_ways(program: &str, connects: Connects, client: Client) {
    if !can_run(&[program, "opentracker", "mktorrent", "libtorrent"]) {
        return;
    }
    let _turn = turn();
    let mut lab = Lab::new();
    let data = noise(LEN, 1);
    let torrent = lab.publish("film.bin", &data, 18);
    // Trackers are asked every half hour, so a peer that started first learns of others only by their connections.
    let seeder = start_until_known(|| client(&lab, &lab.path("payload"), &torrent), || lab.scrape() != (0, 0));
    let mut mount = lab.mount("m", &torrent, &["--read-timeout", "60s"]);
    assert!(mount.read("film.bin") == data, "{program} has uploaded other bytes");
    drop(seeder);

    let leech_dir = lab.path("leech");
    fs::create_dir_all(&leech_dir).unwrap();
    let _leech;
    if connects == Connects::ToUs {
        _leech = client(&lab, &leech_dir, &torrent);
    } else {
        mount.stop();
        let (_, before) = lab.scrape();
        _leech = start_until_known(|| client(&lab, &leech_dir, &torrent), || lab.scrape().1 > before);
        mount = lab.mount("m", &torrent, &[]);
    }
    wait_until(&format!("{program} downloads from us; {}", mount.log()), LIMIT, || {
        fs::read(leech_dir.join("film.bin")).is_ok_and(|got| got == data)
    });
    mount.stop();
}

fn quiet(command: &mut Command) -> Process {
    Process::start(command.stdout(Stdio::null()).stderr(Stdio::null()))
}

#[test]
fn libtorrent() {
    if !can_run(&["opentracker", "mktorrent", "libtorrent"]) {
        return;
    }
    let _turn = turn();
    let mut lab = Lab::new();
    let data = noise(LEN, 2);
    let torrent = lab.publish("film.bin", &data, 18);
    let seeder = lab.libtorrent("seed", 2, 0, &lab.path("payload"), &torrent);
    let mount = lab.mount("m", &torrent, &[]);
    assert!(mount.read("film.bin") == data);
    drop(seeder);
    let leech_dir = lab.path("leech");
    fs::create_dir_all(&leech_dir).unwrap();
    let mut leech = lab.libtorrent("leech", 3, 0, &leech_dir, &torrent);
    leech.done();
    assert!(fs::read(leech_dir.join("film.bin")).unwrap() == data);
    mount.stop();
}

#[test]
fn transmission() {
    transfers_both_ways("transmission-cli", Connects::Never, |lab, dir, torrent| {
        let config = lab.path(&format!("transmission-{}", free_port()));
        quiet(
            Command::new("transmission-cli")
                .arg("-g")
                .arg(config)
                .args(["-M", "-v", "-U", "-D", "-p", &free_port().to_string(), "-w"])
                .args([dir, torrent]),
        )
    });
}

#[test]
fn aria2() {
    transfers_both_ways("aria2c", Connects::ToUs, |_, dir, torrent| {
        quiet(
            Command::new("aria2c")
                .args(["--enable-dht=false", "--enable-dht6=false", "--bt-enable-lpd=false", "--no-conf=true"])
                .args(["--check-integrity=true", "--seed-ratio=0", "--file-allocation=none"])
                .arg(format!("--listen-port={}", free_port()))
                .arg(format!("--dir={}", dir.display()))
                .arg(torrent),
        )
    });
}

#[test]
fn rqbit() {
    transfers_both_ways("rqbit", Connects::ToUs, |_, dir, torrent| {
        quiet(
            Command::new("rqbit")
                .args(["--disable-dht", "--disable-upnp-port-forward", "--disable-lsd"])
                .args(["download", "--overwrite", "--disable-http-api", "-o"])
                .args([dir, torrent]),
        )
    });
}

/// Two mounts that have one half each find each other through the tracker. No seeder is left.
#[test]
fn two_mounts_complete_each_other() {
    if !can_run(&["opentracker", "mktorrent", "libtorrent"]) {
        return;
    }
    let _turn = turn();
    let mut lab = Lab::new();
    let data = noise(LEN, 3);
    let torrent = lab.publish("film.bin", &data, 18);
    let seeder = lab.libtorrent("seed", 2, 0, &lab.path("payload"), &torrent);
    let half = LEN / 2;
    let args = ["--on-demand"];
    let (first, second) = (lab.mount("a", &torrent, &args), lab.mount("b", &torrent, &args));
    assert!(read_at(&first.path("film.bin"), 0, half).unwrap() == data[..half]);
    assert!(read_at(&second.path("film.bin"), half as u64, half).unwrap() == data[half..]);
    first.stop();
    second.stop();
    drop(seeder);

    let (first, second) = (lab.mount("a", &torrent, &[]), lab.mount("b", &torrent, &[]));
    assert!(first.read("film.bin") == data);
    assert!(second.read("film.bin") == data);
    first.stop();
    second.stop();
}
