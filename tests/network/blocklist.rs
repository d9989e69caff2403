//! A blocklist with a real peer, before and after it is reloaded.

use std::fs;
use std::time::Duration;

use crate::support::*;

#[test]
fn a_blocked_peer_is_not_connected_until_the_list_is_reloaded() {
    if !can_run(&["opentracker", "mktorrent", "libtorrent"]) {
        return;
    }
    let _turn = turn();
    let mut lab = Lab::new();
    let data = noise(4 << 20, 1);
    let torrent = lab.publish("film.bin", &data, 18);
    let seeder = lab.libtorrent("seed", 2, 0, &lab.path("payload"), &torrent);
    let list = lab.path("blocked.p2p");
    fs::write(&list, "the seeder:127.0.0.2-127.0.0.2\n").unwrap();
    let args = ["--blocklist", list.to_str().unwrap(), "--peer", &seeder.addr, "--read-timeout", "3s"];
    let mount = lab.mount("m", &torrent, &args);
    assert!(read_at(&mount.path("film.bin"), 0, 1).is_err(), "a blocked peer was connected");
    fs::write(&list, "somebody else:192.0.2.0-192.0.2.255\n").unwrap();
    mount.process.signal("HUP");
    wait_until(&format!("the peer is connected now; {}", mount.log()), Duration::from_secs(90), || {
        fs::read(mount.path("film.bin")).is_ok_and(|got| got == data)
    });
    mount.stop();
}
