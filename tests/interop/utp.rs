//! uTP in both directions with real programs that use nothing else.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::both_ways::{both_ways, with_libtorrent};
use crate::support::*;

const LEN: usize = 24 << 20;

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
    with_libtorrent(&lab, &torrent, &data, &settings);

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
    both_ways(&lab, &torrent, &data, "rqbit", rqbit).stop();
}
