//! uTP in both directions with real programs that use nothing else.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::*;

const LEN: usize = 24 << 20;
const LIMIT: Duration = Duration::from_secs(90);

#[test]
fn libtorrent_uses_utp_alone() {
    if !can_run(&["opentracker", "mktorrent", "libtorrent"]) {
        return;
    }
    let _turn = turn();
    let mut lab = Lab::new();
    let data = noise(LEN, 1);
    let torrent = lab.publish("film.bin", &data, 18);
    let settings = ["enable_incoming_tcp=0", "enable_outgoing_tcp=0", "enable_incoming_utp=1", "enable_outgoing_utp=1"];
    let seeder = lab.libtorrent_with("seed", 2, 0, &lab.path("payload"), &torrent, &settings);
    let mount = lab.mount("m", &torrent, &["--read-timeout", "30s"]);
    assert!(mount.read("film.bin") == data);
    drop(seeder);
    let leech_dir = lab.path("leech");
    fs::create_dir_all(&leech_dir).unwrap();
    let mut leech = lab.libtorrent_with("leech", 3, 0, &leech_dir, &torrent, &settings);
    leech.done();
    assert!(fs::read(leech_dir.join("film.bin")).unwrap() == data);
    mount.stop();

    let seeder = lab.libtorrent_with("seed", 4, 0, &lab.path("payload"), &torrent, &settings);
    let mount = lab.mount("tcp", &torrent, &["--no-utp", "--peer", &seeder.addr, "--read-timeout", "3s"]);
    assert!(read_at(&mount.path("film.bin"), 0, 1).is_err(), "read over uTP, which is disabled");
    mount.stop();
}

#[test]
fn rqbit_uses_utp_alone() {
    if !can_run(&["rqbit", "opentracker", "mktorrent", "libtorrent"]) {
        return;
    }
    let _turn = turn();
    let mut lab = Lab::new();
    let data = noise(LEN, 2);
    let torrent = lab.publish("film.bin", &data, 18);
    let rqbit = |dir: &Path| {
        Process::start(
            Command::new("rqbit")
                .args(["--disable-dht", "--disable-upnp-port-forward", "--disable-lsd"])
                .args(["--disable-tcp-listen", "--disable-tcp-connect", "--experimental-enable-utp-listen"])
                .args(["download", "--overwrite", "--disable-http-api", "-o"])
                .args([dir, &torrent])
                .stdout(Stdio::null())
                .stderr(Stdio::null()),
        )
    };
    let seeder = rqbit(&lab.path("payload"));
    wait_until("rqbit announces itself", LIMIT, || lab.scrape() != (0, 0));
    let mount = lab.mount("m", &torrent, &["--read-timeout", "30s"]);
    assert!(mount.read("film.bin") == data);
    drop(seeder);
    let leech_dir = lab.path("leech");
    fs::create_dir_all(&leech_dir).unwrap();
    let _leech = rqbit(&leech_dir);
    wait_until(&format!("rqbit downloads from us; {}", mount.log()), LIMIT, || {
        fs::read(leech_dir.join("film.bin")).is_ok_and(|got| got == data)
    });
    mount.stop();
}
