//! The queue of background downloads.

use std::fs::File;
use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::api::{status, stdout_of};
use crate::many::{Seeder, WatchedDirectory, torrent};
use crate::support::*;

/// Time limit of waits. Only a hang reaches it.
const LONG: Duration = Duration::from_secs(180);
const LEN: usize = 1 << 20;

/// Returns the names of the torrents in this state.
fn in_state<'a>(status: &'a Value, state: &str) -> Vec<&'a str> {
    let torrents = status["torrents"].as_array().unwrap().iter().filter(|torrent| torrent["state"] == state);
    torrents.map(|torrent| torrent["name"].as_str().unwrap()).collect()
}

#[test]
fn a_library_is_fetched_in_turns_the_oldest_file_first() {
    if !can_run(&[]) {
        return;
    }
    let _turn = turn();
    let names: Vec<String> = (0..8).map(|n| format!("{n}.bin")).collect();
    let files: Vec<Vec<u8>> = (0..8).map(|n| noise(LEN, 40 + n)).collect();
    let all: Vec<(&str, &[u8])> = names.iter().map(String::as_str).zip(files.iter().map(Vec::as_slice)).collect();
    // A torrent takes a second.
    let seeder = Seeder::start(&all, 1 << 20);
    let watched = WatchedDirectory::new();
    for (n, (name, data)) in all.iter().enumerate() {
        let file = format!("{n}.torrent");
        watched.put(&file, &torrent(name, data, None));
        // The last one by name is the oldest.
        let age = Duration::from_secs(3600 * n as u64);
        File::options()
            .append(true)
            .open(watched.dir.join(&file))
            .unwrap()
            .set_modified(SystemTime::now() - age)
            .unwrap();
    }
    let mounted = watched.mount(&["--peer", &seeder.addr().to_string(), "--active-downloads", "2"]);
    let dir = mounted.dir.to_str().unwrap().to_owned();
    let mut now = status(&mounted);
    wait_until("the others wait", LONG, || {
        now = status(&mounted);
        in_state(&now, "fetching").len() <= 2
    });
    assert_eq!((&now["limits"]["active_downloads"], &now["total"]["fetching"]), (&2.into(), &2.into()), "{now}");
    assert_eq!(now["total"]["queued"], in_state(&now, "queued").len(), "{now}");
    let shown = stdout_of(&["status", &dir]);
    assert!(shown.contains("2 torrents fetching (limit 2), ") && shown.contains("    queued, "), "{shown}");

    // They complete in the order of their age; two that are fetched at the same time in any order.
    let mut last = Vec::new();
    wait_until("some are complete", LONG, || {
        now = status(&mounted);
        let complete = in_state(&now, "seeding");
        let expected =
            &["7.bin", "6.bin", "5.bin", "4.bin", "3.bin", "2.bin", "1.bin", "0.bin"][..(complete.len() + 1).min(8)];
        assert!(complete.iter().all(|name| expected.contains(name)), "{complete:?}");
        last = complete.iter().map(|name| (*name).to_owned()).collect();
        last.len() >= 2
    });
    // A read of the last one does not wait for the others.
    assert_eq!(read_at(&mounted.path("0.bin"), LEN as u64 / 2, 4096).unwrap(), files[0][LEN / 2..LEN / 2 + 4096]);
    assert!(!in_state(&status(&mounted), "queued").is_empty(), "a read has waited for the queue");

    assert_eq!(stdout_of(&["set", &dir, "--active-downloads", "0"]), "active downloads: unlimited\n");
    assert_eq!(in_state(&status(&mounted), "queued"), Vec::<&str>::new());
    assert_eq!(stdout_of(&["set", &dir, "--active-downloads", "1"]), "active downloads: 1\n");
    wait_until("all are complete", LONG, || in_state(&status(&mounted), "seeding").len() == 8);
    mounted.stop();
}
