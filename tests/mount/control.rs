//! Status and control of a running mount, with the real program and a real peer.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::api::*;
use crate::support::*;
use serde_json::Value;

/// A copy of the API's description is kept, so that every change of the API is seen. `TORRENTFS_BLESS=1` updates it.
#[test]
fn the_api_description_is_unchanged() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/openapi.json");
    let now = torrentfs::internals::web::openapi() + "\n";
    if std::env::var_os("TORRENTFS_BLESS").is_some() {
        fs::write(&path, &now).unwrap();
    }
    let before = fs::read_to_string(&path).unwrap_or_default();
    assert!(before == now, "the API changed: if no field was renamed or removed, run again with TORRENTFS_BLESS=1");
}

#[test]
fn the_status_is_correct() {
    if !can_run(&TOOLS) || !has_validators() {
        return;
    }
    let _turn = turn();
    let (lab, seeder, torrent_file) = lab(SLOW);
    let mounted = lab.mount("a", &torrent_file, &["--on-demand", "--download-limit", "1MiB"]);

    // Without a read nothing is fetched.
    wait_until("the seeder is connected", LONG, || torrent(&mounted)["seeds"] == 1);
    let before = status(&mounted);
    assert_matches_schema("Status", before.to_string().as_bytes());
    assert_eq!(before["mountpoint"], text(&mounted.dir));
    assert_eq!(before["pid"], mounted.process.0.id());
    assert_eq!(before["limits"]["download"], 1 << 20);
    assert_eq!(before["limits"]["upload"], Value::Null);
    assert_eq!(before["torrents"][0]["state"], "on-demand");
    assert_eq!(before["torrents"][0]["info_hash"], lab.info_hash());
    assert_eq!(before["torrents"][0]["size"], 4 << 20);
    assert_eq!(before["torrents"][0]["have"], 0);
    let peer = &before["torrents"][0]["peers"][0];
    assert_eq!(peer["address"], seeder.addr);
    assert!(peer["client"].as_str().unwrap().contains("libtorrent"), "{peer}");
    assert_eq!(
        (&peer["source"], &peer["transport"], &peer["incoming"]),
        (&"tracker".into(), &"tcp".into(), &false.into())
    );
    let tracker = &before["torrents"][0]["trackers"][0];
    assert_eq!((&tracker["state"], &tracker["url"]), (&"working".into(), &lab.announce.as_str().into()));
    assert!(tracker["next_announce"].is_u64() && tracker["error"].is_null(), "{tracker}");

    // A blocked read is reported with the pieces that it waits for.
    let film = mounted.path("show/film.mkv");
    let reading = std::thread::spawn(move || read_at(&film, 2 << 20, 1 << 20).unwrap());
    let mut waiting = Value::Null;
    wait_until("a blocked read is reported", LONG, || {
        waiting = torrent(&mounted);
        waiting["blocked_reads"].as_array().is_some_and(|reads| !reads.is_empty())
    });
    assert_matches_schema("TorrentStatus", waiting.to_string().as_bytes());
    assert_eq!(waiting["state"], "fetching");
    let read = &waiting["blocked_reads"][0];
    assert_eq!(read["file"], "show/film.mkv");
    assert!((2 << 20..3 << 20).contains(&number(&read["offset"])), "{read}");
    if let Some(piece) = read["pieces"].as_array().unwrap().first() {
        assert_eq!((number(&piece["peers"]), number(&piece["blocks"])), (1, 4), "{piece}");
    }
    // Between two reads of the kernel none is blocked.
    let mut lines = String::new();
    wait_until("a blocked read is printed", LONG, || {
        lines = stdout_of(&["status", text(&mounted.dir)]);
        lines.contains("show/film.mkv at 2.") && lines.contains("1 peer has it") || reading.is_finished()
    });
    assert!(lines.contains("show/film.mkv at 2.") && lines.contains("1 peer has it"), "{lines}");
    assert_eq!(reading.join().unwrap(), noise(3 << 20, 1)[2 << 20..]);

    // The counters agree.
    let after = torrent(&mounted);
    assert!(number(&after["have"]) >= 1 << 20 && number(&after["downloaded"]) >= 1 << 20, "{after}");
    assert!(number(&after["have"]) == number(&after["pieces_had"]) << PIECE_LOG2, "{after}");
    assert!(number(&after["reads"]["missed"]) > 0 && after["blocked_reads"].as_array().unwrap().is_empty(), "{after}");
    let peer = &after["peers"][0];
    assert!(number(&peer["downloaded"]) >= 1 << 20 && number(&peer["pieces_had"]) == 64, "{peer}");

    // The text for people fits a terminal of 80 columns.
    assert!(stdout_of(&["status"]).contains(text(&mounted.dir)));
    let lines = stdout_of(&["status", text(&mounted.dir)]);
    for word in [text(&mounted.dir), "show", "libtorrent", &seeder.addr, "tracker http://", "cache:", "on demand"] {
        assert!(lines.contains(word), "{word}: {lines}");
    }
    assert!(lines.lines().all(|line| line.chars().count() <= 80), "{lines}");
    let all: Value = serde_json::from_str(&stdout_of(&["status", "--json"])).unwrap();
    assert!(all.as_array().unwrap().iter().any(|status| status["mountpoint"] == text(&mounted.dir)));
    // A path inside the mount works, too.
    let within: Value =
        serde_json::from_str(&stdout_of(&["status", "--json", text(&mounted.path("show/extra"))])).unwrap();
    assert_eq!(within["pid"], mounted.process.0.id());
    // With `--watch` the status is printed repeatedly.
    let mut watching = Command::new(TORRENTFS);
    watching.args(["status", "--json", "--watch=100ms", text(&mounted.dir)]).stdout(Stdio::piped());
    let mut watching = Process::start(&mut watching);
    let seen = serde_json::Deserializer::from_reader(watching.0.stdout.take().unwrap()).into_iter::<Value>();
    assert!(seen.take(3).all(|status| status.unwrap()["pid"] == mounted.process.0.id()));
    mounted.stop();
}

#[test]
fn a_path_that_is_no_mount_is_reported_in_one_line() {
    let home = TestDir::new();
    for path in [text(home.path()), "/proc", "/nowhere/at/all"] {
        let output = torrentfs(&["status", path]);
        assert_eq!(output.status.code(), Some(4), "{output:?}");
        let line = String::from_utf8(output.stderr).unwrap();
        assert!(line.starts_with("torrentfs: cannot find mount ") && line.lines().count() == 1, "{line}");
    }
}

#[test]
fn the_socket_is_private_and_removed_with_the_mount() {
    if !can_run(&["mktorrent", "opentracker", "libtorrent", "curl", "setpriv"]) || sh("id -u").trim() != "0" {
        return;
    }
    // Every mount that starts makes the directory private again.
    let _turn = lone_turn();
    let (lab, _seeder, torrent_file) = lab(SLOW);
    let mounted = lab.mount("a", &torrent_file, &["--on-demand"]);
    let socket = socket_of(&mounted);
    let dir = socket.parent().unwrap().to_owned();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&socket), mode(&dir)), (0o600, 0o700));

    let curl =
        format!("curl -s -m 20 -o /dev/null -w '%{{http_code}}' --unix-socket '{}' http://x/status", socket.display());
    let as_user = |user: u32| {
        let user = format!("--reuid={user}");
        run("setpriv", &[&user, "--regid=65534", "--clear-groups", "sh", "-c", &curl])
    };
    assert_eq!(as_user(0).stdout, b"200");
    assert_eq!(as_user(65534).stdout, b"000", "another user reached the socket");
    assert!(!mounted.log().contains("not theirs"), "a connection of another user was accepted");
    // With any permissions, the user of a connection is checked.
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
    let refused = as_user(65534);
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(refused.stdout, b"000", "{refused:?}");
    assert!(mounted.log().contains("not theirs"), "{}", mounted.log());
    assert_eq!(as_user(0).stdout, b"200");

    // The socket of a killed daemon is ignored, and the next mount that starts removes it.
    let link = dir.join("9999-1.sock");
    let _ = fs::remove_file(&link);
    drop(std::os::unix::net::UnixListener::bind(&link).unwrap());
    stdout_of(&["status"]);
    let other = lab.mount("b", &torrent_file, &["--on-demand"]);
    assert!(!link.exists() && socket.exists(), "the dead socket was not removed, or another one was");
    other.stop();
    mounted.stop();
    assert!(!socket.exists(), "the socket was not removed");
}

#[test]
fn every_route_is_described_and_no_other_exists() {
    if !can_run(&TOOLS) || !has_validators() {
        return;
    }
    let _turn = turn();
    let (lab, _seeder, torrent_file) = lab(SLOW);
    let mounted = lab.mount("a", &torrent_file, &["--on-demand"]);
    let socket = socket_of(&mounted);
    let described = operations();
    assert!(described.len() >= 8, "{described:?}");
    // DELETE comes last, because it removes the torrent.
    for (method, path) in described.iter().filter(|(method, _)| method != "DELETE") {
        let path = path.replace("{info_hash}", &lab.info_hash()).replace("{path}", "show/");
        let answer = send(&socket, method, &path, "{}");
        // 400: `{}` is an invalid body for some.
        assert!([200, 202, 400].contains(&answer.status), "{method} {path}: {} {}", answer.status, answer.text());
    }
    for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
        for path in ["/status", "/limits", "/priority", "/openapi.json", &format!("/torrents/{}", lab.info_hash())] {
            let known = path.replace(&lab.info_hash(), "{info_hash}");
            if !described.contains(&(method.to_owned(), known)) {
                let answer = send(&socket, method, path, "{}");
                assert_eq!(answer.status, 405, "{method} {path}");
                assert!(answer.json()["error"].is_string());
            }
        }
    }
    let document = send(&socket, "GET", "/openapi.json", "");
    assert_eq!(document.text(), torrentfs::internals::web::openapi());
    let map = send(&socket, "GET", &format!("/torrents/{}/pieces?cells=10", lab.info_hash()), "");
    assert_matches_schema("PieceMap", &map.body);
    let cells = map.json()["cells"].as_array().unwrap().clone();
    assert_eq!((cells.len(), cells.iter().map(|cell| number(&cell["pieces"])).sum::<u64>()), (10, 64));
    for (path, code) in [
        ("/nothing", 404),
        ("/torrents/xyz", 400),
        ("/torrents/0123456789012345678901234567890123456789", 404),
        (&format!("/torrents/{}/pieces?cells=0", lab.info_hash()), 400),
        (&format!("/torrents/{}/pieces?cells=many", lab.info_hash()), 400),
    ] {
        assert_eq!(send(&socket, "GET", path, "").status, code, "{path}");
    }
    assert!(described.contains(&("DELETE".into(), "/torrents/{info_hash}".into())));
    let gone = send(&socket, "DELETE", &format!("/torrents/{}?delete=true", lab.info_hash()), "");
    assert_matches_schema("RemovedTorrent", &gone.body);
    assert_eq!(send(&socket, "GET", "/status", "").json()["torrents"], Value::Array(Vec::new()));
    mounted.stop();
}

// ---- commands

#[test]
fn commands_change_a_running_mount() {
    if !can_run(&TOOLS) {
        return;
    }
    let _turn = turn();
    let (lab, _seeder, torrent_file) = lab(0);
    let mounted = lab.mount("a", &torrent_file, &["--on-demand"]);
    let dir = text(&mounted.dir).to_owned();
    wait_for_status(&mounted, "the seeder is connected", |torrent| torrent["seeds"] == 1);

    let now = stdout_of(&["set", &dir, "--download-limit", "500KiB", "--upload-limit", "0"]);
    assert_eq!(now, "limits: down 500 KiB/s, up unlimited\n");
    assert_eq!(status(&mounted)["limits"]["download"], 500 << 10);
    assert_eq!(stdout_of(&["set", &dir, "--download-limit", "unlimited"]), "limits: down unlimited, up unlimited\n");

    // Priorities: the film is not fetched in the background, but can be read.
    assert_eq!(stdout_of(&["priority", &dir, "show/film.mkv", "skip"]), "1 file: skip\n");
    assert_eq!(stdout_of(&["priority", &dir, text(&mounted.path("show/extra")), "high"]), "1 file: high\n");
    assert_eq!(stdout_of(&["set", &dir, "--on-demand", "off", "--torrent", "show"]), "show: fetched completely\n");
    let partly =
        wait_for_status(&mounted, "all but the skipped file is complete", |torrent| torrent["state"] == "idle");
    assert_eq!(number(&partly["have"]), 1 << 20, "{partly}");
    let paths: Vec<&str> =
        partly["priorities"].as_array().unwrap().iter().map(|p| p["path"].as_str().unwrap()).collect();
    assert!(paths.contains(&"show/film.mkv") && paths.contains(&"show/extra/notes & <more>.txt"), "{partly}");
    let film = noise(3 << 20, 1);
    assert_eq!(read_at(&mounted.path("show/film.mkv"), 2 << 20, 4096).unwrap(), film[2 << 20..(2 << 20) + 4096]);
    assert!(number(&torrent(&mounted)["have"]) < 4 << 20, "more was fetched than was read");

    // A pause blocks reads, too, until the torrent is resumed.
    assert_eq!(stdout_of(&["pause", &dir]), "show: paused\n");
    assert!(torrent(&mounted)["peers"].as_array().unwrap().is_empty());
    let path = mounted.path("show/film.mkv");
    let reading = std::thread::spawn(move || read_at(&path, 0, 4096).unwrap());
    let waiting = wait_for_status(&mounted, "the read is blocked", |torrent| {
        torrent["blocked_reads"] != Value::Array(Vec::new())
    });
    assert_eq!((&waiting["state"], &waiting["blocked_reads"][0]["pieces"][0]["peers"]), (&"paused".into(), &0.into()));
    assert!(!reading.is_finished());
    stdout_of(&["resume", &dir, "show"]);
    assert_eq!(reading.join().unwrap(), film[..4096]);

    assert_eq!(stdout_of(&["priority", &dir, "show", "normal"]), "2 files: normal\n");
    let whole = wait_for_status(&mounted, "the torrent is complete", |torrent| torrent["state"] == "seeding");
    assert_eq!((number(&whole["have"]), &whole["priorities"]), (4 << 20, &Value::Array(Vec::new())));

    // Verification finds damage on disk, and the piece is fetched again.
    let stored = mounted.cache.join(lab.info_hash()).join("data/show/film.mkv");
    let file = fs::File::options().write(true).open(&stored).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"spoiled!", 1 << 20).unwrap();
    let output = torrentfs(&["verify", &dir, "show"]);
    assert_eq!(output.stdout, b"show: 1 piece was damaged, and is fetched again\n", "{output:?}");
    assert_eq!(output.status.code(), Some(6));
    let checked = torrent(&mounted);
    assert_eq!(checked["verification"]["running"], false);
    assert_eq!((&checked["verification"]["bad"], &checked["verification"]["done"]), (&1.into(), &64.into()));
    wait_for_status(&mounted, "the piece is fetched again", |torrent| torrent["state"] == "seeding");
    wait_until("the piece is on disk", LONG, || fs::read(&stored).unwrap() == film);
    assert!(stdout_of(&["verify", &dir, "show", "--no-wait"]).starts_with("show: checking, "));
    assert_eq!(stdout_of(&["verify", &dir]), "show: all fetched data is correct\n");
    assert_eq!(stdout_of(&["verify", &dir, "-q"]), "");

    // An invalid command is reported and changes nothing.
    for (args, code, word) in [
        (&["pause", &dir, "other"][..], 1, "it has show"),
        (&["priority", &dir, "show/none", "high"], 1, "no file or directory"),
        (&["priority", &dir, "show", "urgent"], 2, "skip, normal or high"),
        (&["set", &dir], 2, "--download-limit"),
        (&["set", &dir, "--on-demand", "maybe"], 2, "on or off"),
        (&["set", &dir, "--download-limit", "1TiB", "--torrent", "show"], 2, "--on-demand"),
    ] {
        let output = torrentfs(args);
        let line = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(code) && line.contains(word), "{args:?}: {output:?}");
    }
    mounted.stop();
}

#[test]
fn torrents_are_added_and_removed_by_command() {
    if !can_run(&TOOLS) {
        return;
    }
    let _turn = turn();
    let (lab, seeder, torrent_file) = lab(0);
    let one = lab.path("one.bin");
    fs::write(&one, noise(100_000, 7)).unwrap();
    sh(&format!("cd '{}' && mktorrent -o one.torrent one.bin", lab.dir.path().display()));
    let mounted = lab.mount("a", &torrent_file, &["--metadata-timeout", "1s", "--peer", &seeder.addr]);
    let (dir, file) = (text(&mounted.dir).to_owned(), lab.path("one.torrent"));
    assert_eq!(stdout_of(&["add", &dir, text(&file)]), "added one.bin\n");
    assert_eq!(stdout_of(&["add", &dir, text(&file)]), "one.bin was already there\n");
    assert_eq!(fs::metadata(mounted.path("one.bin")).unwrap().len(), 100_000);
    assert_eq!(status(&mounted)["torrents"].as_array().unwrap().len(), 2);
    assert_eq!(stdout_of(&["remove", &dir, "one.bin", "--delete"]), "removed one.bin\n");
    assert!(!mounted.path("one.bin").exists());
    // By info hash: the metadata comes from the peer.
    assert_eq!(stdout_of(&["remove", &dir, &lab.info_hash()]), "removed show\n");
    wait_until("the torrent is added again", LONG, || torrentfs(&["add", &dir, &lab.info_hash()]).status.success());
    wait_for_status(&mounted, "the torrent is complete", |torrent| torrent["state"] == "seeding");
    assert_eq!(mounted.read("show/film.mkv"), noise(3 << 20, 1));
    for (source, word) in [
        ("0123456789012345678901234567890123456789", "no metadata"),
        ("magnet:?dn=x", "names no torrent"),
        ("/nowhere.torrent", "No such file"),
        (text(lab.dir.path()), "directory"),
        (text(&one), "cannot add"),
    ] {
        let output = torrentfs(&["add", &dir, source]);
        let line = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.code() == Some(3) && line.contains(word) && line.lines().count() == 1,
            "{source}: {output:?}"
        );
    }
    mounted.stop();
}
