//! Message stream encryption with real programs, in both directions, and the three policies.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::both_ways::{both_ways, with_libtorrent};
use crate::support::*;
use torrentfs::internals::net::{Config, Encryption};
use torrentfs::internals::session::ReadError;
use torrentfs::metainfo::FileIndex;

const LEN: usize = 8 << 20;
const LIMIT: Duration = Duration::from_secs(180);

/// Settings of libtorrent: RC4 required, only an encrypted handshake allowed, and no encryption.
const FORCED_RC4: [&str; 4] = ["in_enc_policy=0", "out_enc_policy=0", "allowed_enc_level=2", "prefer_rc4=1"];
const FORCED_HANDSHAKE: [&str; 3] = ["in_enc_policy=0", "out_enc_policy=0", "allowed_enc_level=1"];
const NONE: [&str; 2] = ["in_enc_policy=2", "out_enc_policy=2"];

/// A mount downloads from a libtorrent peer with these settings, and then uploads to another one.
fn transfers_both_ways(settings: &[&str]) {
    if !can_run(&["opentracker", "mktorrent", "libtorrent"]) {
        return;
    }
    let _turn = turn();
    let mut lab = Lab::new();
    let data = noise(LEN, 1);
    let torrent = lab.publish("film.bin", &data, 18);
    with_libtorrent(&lab, &torrent, &data, settings);
}

#[test]
fn libtorrent_requires_rc4() {
    transfers_both_ways(&FORCED_RC4);
}

#[test]
fn libtorrent_requires_an_encrypted_handshake() {
    transfers_both_ways(&FORCED_HANDSHAKE);
}

#[test]
fn libtorrent_disables_encryption() {
    transfers_both_ways(&NONE);
}

#[test]
fn transmission_requires_encryption() {
    if !can_run(&["transmission-cli", "opentracker", "mktorrent", "libtorrent"]) {
        return;
    }
    let _turn = turn();
    let mut lab = Lab::new();
    let data = noise(LEN, 2);
    let torrent = lab.publish("film.bin", &data, 18);
    let start = || {
        Process::start(
            Command::new("transmission-cli")
                .arg("-g")
                .arg(lab.path("transmission"))
                .args(["-er", "-M", "-v", "-U", "-D", "-p", &free_port().to_string(), "-w"])
                .args([&lab.path("payload"), &torrent])
                .stdout(Stdio::null())
                .stderr(Stdio::null()),
        )
    };
    let _seeder = start_until_known(start, || lab.scrape() != (0, 0));
    let mount = lab.mount("m", &torrent, &["--read-timeout", "30s"]);
    assert!(mount.read("film.bin") == data);
    mount.stop();
}

#[test]
fn aria2_requires_encryption_in_both_directions() {
    if !can_run(&["aria2c", "opentracker", "mktorrent", "libtorrent"]) {
        return;
    }
    let _turn = turn();
    let mut lab = Lab::new();
    let data = noise(LEN, 3);
    let torrent = lab.publish("film.bin", &data, 18);
    let aria2 = |dir: &Path| {
        Process::start(
            Command::new("aria2c")
                .args(["--enable-dht=false", "--enable-dht6=false", "--bt-enable-lpd=false", "--no-conf=true"])
                .args(["--check-integrity=true", "--seed-ratio=0", "--file-allocation=none"])
                .args(["--bt-require-crypto=true", "--bt-min-crypto-level=arc4"])
                .arg(format!("--listen-port={}", free_port()))
                .arg(format!("--dir={}", dir.display()))
                .arg(&torrent)
                .stdout(Stdio::null())
                .stderr(Stdio::null()),
        )
    };
    let mount = both_ways(&lab, &torrent, &data, "aria2", aria2);
    mount.stop();
}

/// libtorrent dials peers that a tracker named in plaintext first, and again after a minute.
#[test]
fn a_caller_without_the_required_encryption_is_dialed() {
    if !can_run(&["libtorrent"]) {
        return;
    }
    let _turn = turn();
    let lab = Lab::new();
    let data = noise(LEN, 6);
    let tracker = tracker::TrackerServer::start(&[]);
    let torrent = tracker::publish(&lab, &format!("http://{}/announce", tracker.addr), &data);
    let payload = lab.path("payload");
    let _seeder =
        transfer::Transfer::start("seed", &lab.path("s"), &["--encryption", "require"], &[&torrent, &payload]);
    wait_until("we announce ourselves", LIMIT, || tracker.peers().0 == 1);
    let leech_dir = lab.path("leech");
    fs::create_dir_all(&leech_dir).unwrap();
    let utp = ["enable_outgoing_utp=1", "enable_incoming_utp=1"];
    let mut leech = lab.libtorrent_with("leech", 3, 0, &leech_dir, &torrent, &utp);
    let begun = std::time::Instant::now();
    leech.done();
    assert!(begun.elapsed() < Duration::from_secs(40), "{:?}", begun.elapsed());
    assert!(fs::read(leech_dir.join("film.bin")).unwrap() == data);
    tracker.stop();
}

#[test]
fn a_policy_is_enforced_over_tcp_and_utp() {
    if !can_run(&["opentracker", "mktorrent", "libtorrent"]) {
        return;
    }
    let _turn = turn();
    let mut lab = Lab::new();
    let data = noise(LEN, 4);
    let file = lab.publish("film.bin", &data, 18);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let default: [&str; 0] = [];
    for (n, (settings, policy, reached)) in [
        (&default[..], Encryption::Require, true),
        (&FORCED_RC4[..], Encryption::Require, true),
        (&NONE[..], Encryption::Require, false),
        (&FORCED_HANDSHAKE[..], Encryption::Require, false),
        (&default[..], Encryption::Off, true),
        (&FORCED_RC4[..], Encryption::Off, false),
    ]
    .into_iter()
    .enumerate()
    {
        for utp in [false, true] {
            let transports: &[&str] =
                if utp { &["enable_incoming_tcp=0", "enable_outgoing_tcp=0", "enable_incoming_utp=1"] } else { &[] };
            let settings: Vec<&str> = settings.iter().chain(transports).copied().collect();
            let seeder = lab.libtorrent_with("seed", 2, 0, &lab.path("payload"), &file, &settings);
            let dir = lab.path(&format!("cache{n}{utp}"));
            let net = Config { encryption: policy, utp, ..local() };
            // A peer that is refused is not worth waiting for.
            let timeout = Duration::from_secs(if reached { 30 } else { 3 });
            let got = runtime.block_on(async {
                let (session, torrent) = in_process(&dir, &file, seeder.addr.parse().unwrap(), net, timeout).await;
                let got = torrent.open(FileIndex(0)).unwrap().read(0, LEN as u32).await;
                session.remove(&torrent).await;
                got
            });
            let what = format!("{policy:?} with {settings:?}");
            match got {
                Ok(got) => assert!(reached && *got == data, "{what}"),
                Err(error) => assert!(!reached && matches!(error, ReadError::TimedOut { .. }), "{what}: {error}"),
            }
        }
    }
}

#[test]
fn a_mount_enforces_the_policy_of_its_flag() {
    if !can_run(&["opentracker", "mktorrent", "libtorrent"]) {
        return;
    }
    let _turn = turn();
    let mut lab = Lab::new();
    let data = noise(LEN, 5);
    let torrent = lab.publish("film.bin", &data, 18);
    for (settings, reached) in [(&NONE[..], false), (&[], true)] {
        let seeder = lab.libtorrent_with("seed", 2, 0, &lab.path("payload"), &torrent, settings);
        let args = ["--encryption", "require", "--peer", &seeder.addr, "--read-timeout", "3s"];
        let mount = lab.mount("m", &torrent, &args);
        let got = fs::read(mount.path("film.bin"));
        assert_eq!(got.is_ok_and(|got| got == data), reached, "{settings:?}");
        mount.stop();
    }
}
