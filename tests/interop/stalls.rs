//! Reads while seeders are stopped, as by a laptop's lid.

use std::time::{Duration, Instant};

use crate::support::*;

const LEN: usize = 48 << 20;
const PIECE: usize = 256 << 10;
/// Two seconds in virtual time (`tests/pure/stalls.rs`); here other programs may use the machine at the same time.
const LONGEST: Duration = Duration::from_secs(4);

/// Of three libtorrent seeders two are stopped in the midst of random reads. The third one serves 1 MB/s.
fn two_of_three_stop(settings: &[&str]) {
    if !can_run(&["opentracker", "mktorrent", "libtorrent"]) {
        return;
    }
    let _turn = lone_turn();
    let mut lab = Lab::new();
    let data = noise(LEN, 4);
    let torrent = lab.publish("film.bin", &data, 18);
    let seeders: Vec<Libtorrent> = [(2, 2_000_000), (3, 2_000_000), (4, 1_000_000)]
        .into_iter()
        .map(|(host, rate)| lab.libtorrent_with("seed", host, rate, &lab.path("payload"), &torrent, settings))
        .collect();
    let mut args = vec!["--on-demand", "--read-timeout", "30s"];
    seeders.iter().for_each(|seeder| args.extend(["--peer", &seeder.addr]));
    let mount = lab.mount("m", &torrent, &args);
    let film = mount.path("film.bin");
    // Every piece at most once: 37 has no factor in common with their number.
    let mut places = (0..LEN / PIECE).map(|n| n * 37 % (LEN / PIECE) * PIECE + 1_000);
    let mut read = |count: usize| {
        let times = places.by_ref().take(count).map(|at| {
            let begin = Instant::now();
            assert!(read_at(&film, at as u64, 1_000).unwrap() == data[at..at + 1_000]);
            begin.elapsed()
        });
        times.max().unwrap()
    };
    // The first read waits for the connections.
    read(1);
    let before = read(30);
    seeders[..2].iter().for_each(|seeder| seeder.process.signal("STOP"));
    let after = read(60);
    assert!(after < LONGEST, "a read took {before:?} before and {after:?} after two of three stopped: {}", mount.log());
    mount.stop();
}

#[test]
fn two_of_three_seeders_stop_over_tcp() {
    two_of_three_stop(&[]);
}

#[test]
fn two_of_three_seeders_stop_over_utp() {
    two_of_three_stop(&[
        "enable_incoming_tcp=0",
        "enable_outgoing_tcp=0",
        "enable_incoming_utp=1",
        "enable_outgoing_utp=1",
    ]);
}
