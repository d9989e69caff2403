//! A transfer in each direction with another program: a mount downloads from it, and then uploads to it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::support::*;

/// Time limit of a transfer. Only a hang reaches it.
const LIMIT: Duration = Duration::from_secs(120);

/// Transfers the torrent of `film.bin` with a program that `start` starts in a directory, first to us and then from us.
/// Returns the mount.
pub fn both_ways(lab: &Lab, torrent: &Path, data: &[u8], name: &str, start: impl Fn(&Path) -> Process) -> Mounted {
    let seeder = start(&lab.path("payload"));
    wait_until(&format!("{name} announces itself"), LIMIT, || lab.scrape() != (0, 0));
    let mount = lab.mount("m", torrent, &["--read-timeout", "30s"]);
    assert!(mount.read("film.bin") == data);
    drop(seeder);
    let leech_dir = lab.path("leech");
    fs::create_dir_all(&leech_dir).unwrap();
    let _leech = start(&leech_dir);
    wait_until(&format!("{name} downloads from us; {}", mount.log()), LIMIT, || {
        fs::read(leech_dir.join("film.bin")).is_ok_and(|got| got == data)
    });
    mount
}

/// The same with libtorrent peers that have these settings.
pub fn with_libtorrent(lab: &Lab, torrent: &Path, data: &[u8], settings: &[&str]) {
    let seeder = lab.libtorrent_with("seed", 2, 0, &lab.path("payload"), torrent, settings);
    let mount = lab.mount("m", torrent, &["--read-timeout", "30s"]);
    assert!(mount.read("film.bin") == data);
    drop(seeder);
    let leech_dir = lab.path("leech");
    fs::create_dir_all(&leech_dir).unwrap();
    let mut leech = lab.libtorrent_with("leech", 3, 0, &leech_dir, torrent, settings);
    leech.done();
    assert!(fs::read(leech_dir.join("film.bin")).unwrap() == data);
    mount.stop();
}
