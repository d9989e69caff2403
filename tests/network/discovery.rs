//! Mounts that find their peers without a tracker: by the DHT alone, and by local discovery alone.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::*;

const LIMIT: Duration = Duration::from_secs(180);

/// Starts a libtorrent node of the DHT on 127.0.0.`host`.
fn node(host: u8) -> (Process, String) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/dht.py");
    let (ip, port) = (format!("127.0.0.{host}"), free_port());
    let mut command = Command::new("/usr/bin/python3");
    command.arg(script).args(["node", &ip, &port.to_string(), "-", &"0".repeat(40)]);
    let mut process = Process::start(command.stdout(Stdio::piped()));
    let mut line = String::new();
    BufReader::new(process.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line.trim(), "READY");
    (process, format!("{ip}:{port}"))
}

/// Publishes a file and stops its tracker. Returns the lab, the data and the torrent.
fn lab(seed: u64) -> (Lab, Vec<u8>, std::path::PathBuf) {
    let mut lab = Lab::new();
    let data = noise(4 << 20, seed);
    let torrent = lab.publish("film.bin", &data, 16);
    lab.stop_tracker();
    (lab, data, torrent)
}

const DHT_ON_LOOPBACK: [&str; 5] = [
    "enable_dht=1",
    "dht_restrict_routing_ips=0",
    "dht_restrict_search_ips=0",
    "dht_prefer_verified_node_ids=0",
    "dht_ignore_dark_internet=0",
];

#[test]
fn peers_are_found_by_the_dht_alone() {
    if !can_run(&["opentracker", "mktorrent", "libtorrent"]) {
        return;
    }
    let _turn = turn();
    let (lab, data, torrent) = lab(1);
    let (_node, bootstrap) = node(11);
    let settings: Vec<String> = DHT_ON_LOOPBACK
        .iter()
        .map(|setting| (*setting).to_owned())
        .chain([format!("dht_bootstrap_nodes={bootstrap}")])
        .collect();
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let _seeder = lab.libtorrent_with("seed", 12, 0, &lab.path("payload"), &torrent, &settings);
    let flags = ["--no-lsd", "--dht-bootstrap", &bootstrap];
    let mount = lab.mount("m", &torrent, &flags);
    assert!(mount.read("film.bin") == data);
    mount.stop();
    assert!(lab.path("m/cache/dht.nodes").exists(), "nodes were not saved");

    // Now that the DHT knows the torrent, a link with the info hash alone suffices.
    let begin = Instant::now();
    let mount = lab.mount("magnet", Path::new(&format!("magnet:?xt=urn:btih:{}", lab.info_hash())), &flags);
    assert_eq!(read_at(&mount.path("film.bin"), 0, 65536).unwrap(), &data[..65536]);
    eprintln!("by the DHT, launch to first bytes: {:?}", begin.elapsed());
    assert!(mount.read("film.bin") == data);
    mount.stop();

    let off = lab.mount("off", Path::new(&torrent), &["--no-lsd", "--no-dht", "--read-timeout", "2s"]);
    assert!(read_at(&off.path("film.bin"), 0, 100).is_err(), "found without the DHT");
    off.stop();
}

#[test]
fn peers_are_found_by_local_discovery_alone() {
    if !can_run(&["opentracker", "mktorrent", "libtorrent"]) {
        return;
    }
    let _turn = turn();
    let (lab, data, torrent) = lab(2);
    let mount = lab.mount("m", &torrent, &["--no-dht", "--bind", "127.0.0.1", "--read-timeout", "60s"]);
    // The seeder announces itself when it starts, and receives our announces.
    let _seeder = lab.libtorrent_with("seed", 13, 0, &lab.path("payload"), &torrent, &["enable_lsd=1"]);
    assert!(mount.read("film.bin") == data);
    mount.stop();
    wait_until("the mount is gone", LIMIT, || !is_mounted(&lab.path("m/mnt")));
}
