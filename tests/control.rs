//! What a running mount tells, and the orders it takes: through the real program, a real mount and a real peer.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use support::*;
use torrentfs::control::socket;

const LONG: Duration = Duration::from_secs(60);
const SLOW: u64 = 200_000;

// ---- asking

fn torrentfs(args: &[&str]) -> Output {
    Command::new(TORRENTFS).args(args).stdin(Stdio::null()).output().unwrap()
}

/// What a command that must succeed says.
fn said(args: &[&str]) -> String {
    let output = torrentfs(args);
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn status(mounted: &Mounted) -> Value {
    serde_json::from_str(&said(&["status", "--json", text(&mounted.dir)])).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// One torrent's part of the status, when there is but one.
fn torrent(mounted: &Mounted) -> Value {
    status(mounted)["torrents"][0].clone()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("no number: {value}"))
}

/// The socket of a mount, by the device number that `stat` tells.
fn socket_of(mounted: &Mounted) -> PathBuf {
    let device = fs::metadata(&mounted.dir).unwrap().dev();
    let device = (libc::major(device), libc::minor(device));
    socket::all().into_iter().find(|found| found.device == device).expect("it has a socket").path
}

struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    fn header(&self, name: &str) -> Option<&str> {
        let line = |line: &str| line.to_ascii_lowercase().starts_with(&format!("{}:", name.to_ascii_lowercase()));
        Some(self.head.lines().find(|text| line(text))?.split_once(':')?.1.trim())
    }
}

/// Sends bytes and takes whatever comes until the other end closes.
fn exchange(mut stream: impl Read + Write, request: &[u8]) -> Option<Answer> {
    // It may have hung up by then.
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let split = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = String::from_utf8(answer[..split].to_vec()).unwrap();
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some(Answer { status, head, body: answer[split + 4..].to_vec() })
}

fn request(method: &str, path: &str, headers: &[&str], body: &str) -> Vec<u8> {
    let mut text = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
    headers.iter().for_each(|header| text += &format!("{header}\r\n"));
    (text + "\r\n" + body).into_bytes()
}

fn ask(socket: &Path, method: &str, path: &str, body: &str) -> Answer {
    let headers = ["Host: localhost", "Content-Type: application/json"];
    exchange(UnixStream::connect(socket).unwrap(), &request(method, path, &headers, body)).expect("an answer")
}

// ---- the API's description

/// The description is kept here, so that whoever changes the API sees it. `TORRENTFS_BLESS=1` writes it anew.
#[test]
fn the_description_is_as_it_was() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/openapi.json");
    let now = torrentfs::control::openapi() + "\n";
    if std::env::var_os("TORRENTFS_BLESS").is_some() {
        fs::write(&path, &now).unwrap();
    }
    let before = fs::read_to_string(&path).unwrap_or_default();
    assert!(before == now, "the API changed: is no field renamed or gone? Then run again with TORRENTFS_BLESS=1");
}

fn operations() -> Vec<(String, String)> {
    let document: Value = serde_json::from_str(&torrentfs::control::openapi()).unwrap();
    let paths = document["paths"].as_object().unwrap();
    let all = paths.iter().flat_map(|(path, item)| {
        item.as_object().unwrap().keys().map(|method| (method.to_uppercase(), path.clone())).collect::<Vec<_>>()
    });
    all.collect()
}

/// The other eyes; without them that test is left out, except in CI.
fn has_eyes() -> bool {
    let found = run("/usr/bin/python3", &[eyes(), "modules"]).status.success();
    assert!(
        found || std::env::var_os("CI").is_none(),
        "not on this machine: python3-jsonschema, python3-prometheus-client"
    );
    if !found {
        eprintln!("left out: not on this machine: python3-jsonschema, python3-prometheus-client");
    }
    found
}

fn eyes() -> &'static str {
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/api.py")
}

fn seen(args: &[&str], input: &[u8]) -> String {
    let mut command = Command::new("/usr/bin/python3");
    let mut child = command.arg(eyes()).args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(input));
    String::from_utf8(output.stdout).unwrap()
}

fn is_as_described(name: &str, json: &[u8]) {
    let document = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/openapi.json");
    seen(&["schema", document, name], json);
}

// ---- a mount with a peer

const PIECE_LOG2: u32 = 16;

/// 4 MiB in two files, from a libtorrent seeder of `rate` bytes a second.
fn lab(rate: u64) -> (Lab, Libtorrent, PathBuf) {
    let mut lab = Lab::new();
    let payload = lab.path("payload/show");
    fs::create_dir_all(payload.join("extra")).unwrap();
    fs::write(payload.join("film.mkv"), noise(3 << 20, 1)).unwrap();
    fs::write(payload.join("extra/notes & <more>.txt"), noise(1 << 20, 2)).unwrap();
    let torrent = lab.publish_path(&payload, PIECE_LOG2);
    let seeder = lab.libtorrent("seed", 2, rate, &lab.path("payload"), &torrent);
    (lab, seeder, torrent)
}

const TOOLS: [&str; 3] = ["mktorrent", "opentracker", "/usr/bin/python3"];

#[test]
fn status_tells_the_truth() {
    if !can_run(&TOOLS) || !has_eyes() {
        return;
    }
    let _turn = turn();
    let (lab, seeder, torrent_file) = lab(SLOW);
    let mounted = lab.mount("a", &torrent_file, &["--on-demand", "--download-limit", "1MiB"]);

    // Nobody reads: nothing is fetched.
    wait_until("the seeder is there", LONG, || torrent(&mounted)["seeds"] == 1);
    let before = status(&mounted);
    is_as_described("Status", before.to_string().as_bytes());
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

    // A read waits, and what for is told.
    let film = mounted.path("show/film.mkv");
    let reading = std::thread::spawn(move || read_at(&film, 2 << 20, 1 << 20).unwrap());
    let mut waiting = Value::Null;
    wait_until("a blocked read is told", LONG, || {
        waiting = torrent(&mounted);
        waiting["blocked_reads"].as_array().is_some_and(|reads| !reads.is_empty())
    });
    is_as_described("TorrentStatus", waiting.to_string().as_bytes());
    assert_eq!(waiting["state"], "fetching");
    let read = &waiting["blocked_reads"][0];
    assert_eq!(read["file"], "show/film.mkv");
    assert!((2 << 20..3 << 20).contains(&number(&read["offset"])), "{read}");
    if let Some(piece) = read["pieces"].as_array().unwrap().first() {
        assert_eq!((number(&piece["peers"]), number(&piece["blocks"])), (1, 4), "{piece}");
    }
    let lines = said(&["status", text(&mounted.dir)]);
    assert!(lines.contains("show/film.mkv at 2.") && lines.contains("1 peer has it"), "{lines}");
    assert_eq!(reading.join().unwrap(), noise(3 << 20, 1)[2 << 20..]);

    // The kernel has it now; a second reader of its own does not ask again. What was fetched adds up.
    let after = torrent(&mounted);
    assert!(number(&after["have"]) >= 1 << 20 && number(&after["downloaded"]) >= 1 << 20, "{after}");
    assert!(number(&after["have"]) == number(&after["pieces_had"]) << PIECE_LOG2, "{after}");
    assert!(number(&after["reads"]["missed"]) > 0 && after["blocked_reads"].as_array().unwrap().is_empty(), "{after}");
    let peer = &after["peers"][0];
    assert!(number(&peer["downloaded"]) >= 1 << 20 && number(&peer["pieces_had"]) == 64, "{peer}");

    // For people: it fits, and names what there is.
    let lines = said(&["status"]);
    for word in [text(&mounted.dir), "show", "libtorrent", &seeder.addr, "tracker http://", "cache:", "on demand"] {
        assert!(lines.contains(word), "{word}: {lines}");
    }
    assert!(lines.lines().all(|line| line.chars().count() <= 80), "{lines}");
    let all: Value = serde_json::from_str(&said(&["status", "--json"])).unwrap();
    assert!(all.as_array().unwrap().iter().any(|status| status["mountpoint"] == text(&mounted.dir)));
    // A path within the mount will do.
    let within: Value = serde_json::from_str(&said(&["status", "--json", text(&mounted.path("show/extra"))])).unwrap();
    assert_eq!(within["pid"], mounted.process.0.id());
    // Again and again, if asked to.
    let mut watching = Command::new(TORRENTFS);
    watching.args(["status", "--json", "--watch=100ms", text(&mounted.dir)]).stdout(Stdio::piped());
    let mut watching = Process::start(&mut watching);
    let seen = serde_json::Deserializer::from_reader(watching.0.stdout.take().unwrap()).into_iter::<Value>();
    assert!(seen.take(3).all(|status| status.unwrap()["pid"] == mounted.process.0.id()));
    mounted.stop();
}

#[test]
fn what_is_no_mount_is_said_in_a_line() {
    let home = tempfile::tempdir().unwrap();
    for path in [text(home.path()), "/proc", "/nowhere/at/all"] {
        let output = torrentfs(&["status", path]);
        assert_eq!(output.status.code(), Some(4), "{output:?}");
        let line = String::from_utf8(output.stderr).unwrap();
        assert!(line.starts_with("torrentfs: cannot ask ") && line.lines().count() == 1, "{line}");
    }
}

#[test]
fn the_socket_is_its_owners_alone_and_goes_with_the_mount() {
    if !can_run(&["mktorrent", "opentracker", "curl", "setpriv"]) || sh("id -u").trim() != "0" {
        return;
    }
    let _turn = turn();
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
    assert_eq!(as_user(65534).stdout, b"000", "the directory is closed");
    assert!(!mounted.log().contains("not theirs"), "nobody else came to the door");
    // Even if somebody opened the doors, the caller is looked at.
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
    let refused = as_user(65534);
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(refused.stdout, b"000", "{refused:?}");
    assert!(mounted.log().contains("not theirs"), "{}", mounted.log());
    assert_eq!(as_user(0).stdout, b"200");

    // A killed daemon leaves its socket behind: it is passed over, and the next one that starts takes it away.
    let link = dir.join("9999-1.sock");
    let _ = fs::remove_file(&link);
    drop(std::os::unix::net::UnixListener::bind(&link).unwrap());
    said(&["status"]);
    let other = lab.mount("b", &torrent_file, &["--on-demand"]);
    assert!(!link.exists() && socket.exists(), "the dead one alone is gone");
    other.stop();
    mounted.stop();
    assert!(!socket.exists(), "a mount that ended leaves nothing");
}

#[test]
fn every_route_is_described_and_nothing_else_answers() {
    if !can_run(&TOOLS) || !has_eyes() {
        return;
    }
    let _turn = turn();
    let (lab, _seeder, torrent_file) = lab(SLOW);
    let mounted = lab.mount("a", &torrent_file, &["--on-demand"]);
    let socket = socket_of(&mounted);
    let described = operations();
    assert!(described.len() >= 8, "{described:?}");
    // To delete comes last: then nothing is left to ask for.
    for (method, path) in described.iter().filter(|(method, _)| method != "DELETE") {
        let path = path.replace("{info_hash}", &lab.info_hash()).replace("{path}", "show/");
        let answer = ask(&socket, method, &path, "{}");
        // 400: `{}` is no sensible body of some.
        assert!([200, 202, 400].contains(&answer.status), "{method} {path}: {} {}", answer.status, answer.text());
    }
    for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
        for path in ["/status", "/limits", "/priority", "/openapi.json", &format!("/torrents/{}", lab.info_hash())] {
            let known = path.replace(&lab.info_hash(), "{info_hash}");
            if !described.contains(&(method.to_owned(), known)) {
                let answer = ask(&socket, method, path, "{}");
                assert_eq!(answer.status, 405, "{method} {path}");
                assert!(answer.json()["error"].is_string());
            }
        }
    }
    let document = ask(&socket, "GET", "/openapi.json", "");
    assert_eq!(document.text(), torrentfs::control::openapi());
    let map = ask(&socket, "GET", &format!("/torrents/{}/pieces?cells=10", lab.info_hash()), "");
    is_as_described("PieceMap", &map.body);
    let cells = map.json()["cells"].as_array().unwrap().clone();
    assert_eq!((cells.len(), cells.iter().map(|cell| number(&cell["pieces"])).sum::<u64>()), (10, 64));
    for (path, code) in [
        ("/nothing", 404),
        ("/torrents/xyz", 400),
        ("/torrents/0123456789012345678901234567890123456789", 404),
        (&format!("/torrents/{}/pieces?cells=0", lab.info_hash()), 400),
        (&format!("/torrents/{}/pieces?cells=many", lab.info_hash()), 400),
    ] {
        assert_eq!(ask(&socket, "GET", path, "").status, code, "{path}");
    }
    assert!(described.contains(&("DELETE".into(), "/torrents/{info_hash}".into())));
    let gone = ask(&socket, "DELETE", &format!("/torrents/{}?delete=true", lab.info_hash()), "");
    is_as_described("RemovedTorrent", &gone.body);
    assert_eq!(ask(&socket, "GET", "/status", "").json()["torrents"], Value::Array(Vec::new()));
    mounted.stop();
}

// ---- orders

fn waits_for(mounted: &Mounted, what: &str, done: impl Fn(&Value) -> bool) -> Value {
    let mut last = Value::Null;
    wait_until(&format!("{what}; {}", mounted.log()), LONG, || {
        last = torrent(mounted);
        done(&last)
    });
    last
}

#[test]
fn orders_are_obeyed() {
    if !can_run(&TOOLS) {
        return;
    }
    let _turn = turn();
    let (lab, _seeder, torrent_file) = lab(0);
    let mounted = lab.mount("a", &torrent_file, &["--on-demand"]);
    let dir = text(&mounted.dir).to_owned();
    waits_for(&mounted, "the seeder is there", |torrent| torrent["seeds"] == 1);

    let now = said(&["set", &dir, "--download-limit", "500KiB", "--upload-limit", "0"]);
    assert_eq!(now, "limits: down 500 KiB/s, up unlimited\n");
    assert_eq!(status(&mounted)["limits"]["download"], 500 << 10);
    assert_eq!(said(&["set", &dir, "--download-limit", "unlimited"]), "limits: down unlimited, up unlimited\n");

    // Priorities: the film is left out of what is fetched unread, but can be read.
    assert_eq!(said(&["priority", &dir, "show/film.mkv", "skip"]), "1 file: skip\n");
    assert_eq!(said(&["priority", &dir, text(&mounted.path("show/extra")), "high"]), "1 file: high\n");
    assert_eq!(said(&["set", &dir, "--on-demand", "off", "--torrent", "show"]), "show: all of it is fetched\n");
    let partly = waits_for(&mounted, "all but what is skipped is here", |torrent| torrent["state"] == "idle");
    assert_eq!(number(&partly["have"]), 1 << 20, "{partly}");
    let paths: Vec<&str> =
        partly["priorities"].as_array().unwrap().iter().map(|p| p["path"].as_str().unwrap()).collect();
    assert!(paths.contains(&"show/film.mkv") && paths.contains(&"show/extra/notes & <more>.txt"), "{partly}");
    let film = noise(3 << 20, 1);
    assert_eq!(read_at(&mounted.path("show/film.mkv"), 2 << 20, 4096).unwrap(), film[2 << 20..(2 << 20) + 4096]);
    assert!(number(&torrent(&mounted)["have"]) < 4 << 20, "only what is read");

    // Paused, even a read waits; and goes on afterwards.
    assert_eq!(said(&["pause", &dir]), "show: paused\n");
    assert!(torrent(&mounted)["peers"].as_array().unwrap().is_empty());
    let path = mounted.path("show/film.mkv");
    let reading = std::thread::spawn(move || read_at(&path, 0, 4096).unwrap());
    let waiting = waits_for(&mounted, "it waits", |torrent| torrent["blocked_reads"] != Value::Array(Vec::new()));
    assert_eq!((&waiting["state"], &waiting["blocked_reads"][0]["pieces"][0]["peers"]), (&"paused".into(), &0.into()));
    assert!(!reading.is_finished());
    said(&["resume", &dir, "show"]);
    assert_eq!(reading.join().unwrap(), film[..4096]);

    assert_eq!(said(&["priority", &dir, "show", "normal"]), "2 files: normal\n");
    let whole = waits_for(&mounted, "all is here", |torrent| torrent["state"] == "seeding");
    assert_eq!((number(&whole["have"]), &whole["priorities"]), (4 << 20, &Value::Array(Vec::new())));

    // Somebody spoils a byte on the disk. A check finds it, and it is fetched again.
    let stored = mounted.cache.join(lab.info_hash()).join("data/show/film.mkv");
    let file = fs::File::options().write(true).open(&stored).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"spoiled!", 1 << 20).unwrap();
    let output = torrentfs(&["verify", &dir, "show"]);
    assert_eq!(output.stdout, b"show: 1 piece was not as it should be; it is fetched again\n", "{output:?}");
    assert_eq!(output.status.code(), Some(6));
    let checked = torrent(&mounted);
    assert_eq!(checked["verification"]["running"], false);
    assert_eq!((&checked["verification"]["bad"], &checked["verification"]["done"]), (&1.into(), &64.into()));
    waits_for(&mounted, "it is fetched again", |torrent| torrent["state"] == "seeding");
    wait_until("the disk has it", LONG, || fs::read(&stored).unwrap() == film);
    assert!(said(&["verify", &dir, "show", "--no-wait"]).starts_with("show: checking, "));
    assert_eq!(said(&["verify", &dir]), "show: all that is here is as it should be\n");
    assert_eq!(said(&["verify", &dir, "-q"]), "");

    // What makes no sense is said, and changes nothing.
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
fn torrents_come_and_go_by_order() {
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
    assert_eq!(said(&["add", &dir, text(&file)]), "added one.bin\n");
    assert_eq!(said(&["add", &dir, text(&file)]), "one.bin was there already\n");
    assert_eq!(fs::metadata(mounted.path("one.bin")).unwrap().len(), 100_000);
    assert_eq!(status(&mounted)["torrents"].as_array().unwrap().len(), 2);
    assert_eq!(said(&["remove", &dir, "one.bin", "--delete"]), "removed one.bin\n");
    assert!(!mounted.path("one.bin").exists());
    // By its hash: the metadata comes from the peer.
    assert_eq!(said(&["remove", &dir, &lab.info_hash()]), "removed show\n");
    wait_until("it is added again", LONG, || torrentfs(&["add", &dir, &lab.info_hash()]).status.success());
    waits_for(&mounted, "all is here", |torrent| torrent["state"] == "seeding");
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

// ---- over TCP

struct Web(std::net::SocketAddr);

impl Web {
    fn of(mounted: &Mounted) -> Self {
        let url = status(mounted)["http"].as_str().expect("it serves HTTP").to_owned();
        Self(url.strip_prefix("http://").unwrap().strip_suffix('/').unwrap().parse().unwrap())
    }

    fn send(&self, bytes: &[u8]) -> Option<Answer> {
        let stream = std::net::TcpStream::connect(self.0).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        exchange(stream, bytes)
    }

    /// What may not be understood, or not be whole, is not waited for as long.
    fn send_strange(&self, bytes: &[u8], whole: bool) -> Option<Answer> {
        let mut stream = std::net::TcpStream::connect(self.0).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        if !whole {
            let _ = stream.write_all(bytes);
            stream.shutdown(std::net::Shutdown::Write).ok()?;
            return exchange(stream, b"");
        }
        exchange(stream, bytes)
    }

    fn ask(&self, method: &str, path: &str, headers: &[&str]) -> Answer {
        let host = format!("Host: {}", self.0);
        let headers: Vec<&str> = std::iter::once(host.as_str()).chain(headers.iter().copied()).collect();
        self.send(&request(method, path, &headers, "")).unwrap_or_else(|| panic!("no answer to {method} {path}"))
    }
}

#[test]
fn files_are_served_in_whole_and_in_part() {
    if !can_run(&[TOOLS[0], TOOLS[1], TOOLS[2], "curl"]) {
        return;
    }
    let _turn = turn();
    let (lab, _seeder, torrent_file) = lab(0);
    let mounted = lab.mount("a", &torrent_file, &["--on-demand", "--http", "127.0.0.1:0"]);
    let web = Web::of(&mounted);
    assert!(mounted.log().contains(&format!("status and files: http://{}/", web.0)), "{}", mounted.log());
    let film = noise(3 << 20, 1);
    let path = "/files/show/film.mkv";

    // Of a torrent of which nothing is here yet.
    let part = web.ask("GET", path, &["Range: bytes=2000000-2099999"]);
    assert_eq!((part.status, part.header("content-range")), (206, Some("bytes 2000000-2099999/3145728")));
    assert_eq!(part.body, film[2_000_000..2_100_000]);
    let whole = web.ask("GET", path, &[]);
    assert_eq!((whole.status, whole.header("content-type")), (200, Some("video/x-matroska")));
    assert_eq!((whole.header("accept-ranges"), whole.header("content-length")), (Some("bytes"), Some("3145728")));
    assert_eq!(whole.body, film);
    let etag = whole.header("etag").unwrap().to_owned();
    assert!(etag.contains(&lab.info_hash()), "{etag}");
    assert!(whole.header("content-security-policy").is_none(), "a film plays where it is");
    let head = web.ask("HEAD", path, &[]);
    assert_eq!((head.status, head.header("content-length"), head.body.len()), (200, Some("3145728"), 0));
    for (headers, code, body) in [
        (&["Range: bytes=-5"][..], 206, &film[(3 << 20) - 5..]),
        (&["Range: bytes=3145727-"], 206, &film[(3 << 20) - 1..]),
        (&["Range: bytes=0-0"], 206, &film[..1]),
        (&["Range: bytes=3145728-"], 416, &[][..]),
        (&["Range: bytes=0-1,5-6"], 200, &film),
        (&["Range: bytes=5-1"], 200, &film),
        (&["Range: bytes=0-9", "If-Range: \"other\""], 200, &film),
        (&["Range: bytes=0-9", &format!("If-Range: {etag}")], 206, &film[..10]),
        (&[&format!("If-None-Match: {etag}")], 304, &[]),
    ] {
        let answer = web.ask("GET", path, headers);
        assert!(answer.status == code && answer.body == body, "{headers:?}: {} {}", answer.status, answer.body.len());
    }
    assert_eq!(web.ask("GET", path, &["Range: bytes=3145728-"]).header("content-range"), Some("bytes */3145728"));

    // What a browser would run it runs in nobody's name.
    fs::write(lab.path("page.html"), "<script>alert(1)</script>").unwrap();
    sh(&format!("cd '{}' && mktorrent -o page.torrent page.html", lab.dir.path().display()));
    said(&["add", text(&mounted.dir), text(&lab.path("page.torrent"))]);
    let page = web.ask("HEAD", "/files/page.html", &[]);
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html")));
    assert!(page.header("content-security-policy").unwrap().starts_with("sandbox;"));
    assert_eq!(page.header("x-content-type-options"), Some("nosniff"));

    // Directories, and names that HTML and URLs do not like. curl follows the links as a browser would.
    let listing = web.ask("GET", "/files/show/extra/", &[]);
    assert!(
        listing.text().contains(r#"<a href="./notes%20%26%20%3Cmore%3E.txt">notes &amp; &lt;more&gt;.txt</a>"#),
        "{}",
        listing.text()
    );
    assert_eq!(web.ask("GET", "/files/show/extra", &[]).header("location"), Some("extra/"));
    let notes = run("curl", &["-sfL", &format!("http://{}/files/show/extra/notes%20%26%20%3Cmore%3E.txt", web.0)]);
    assert_eq!(notes.stdout, noise(1 << 20, 2));
    assert!(run("curl", &["-sfL", &format!("http://{}/files/show", web.0)]).stdout.starts_with(b"<!DOCTYPE html>"));
    let root = web.ask("GET", "/files/", &[]);
    assert!(root.text().contains(r#"<a href="./show/">show/</a>"#), "{}", root.text());
    let page = web.ask("GET", "/", &[]);
    assert!(page.status == 200 && page.text().contains("<td>show<td>"), "{}", page.text());
    assert!(!page.text().contains("<script") && !page.text().contains("http"), "{}", page.text());

    // Tricks lead nowhere.
    for (path, code) in [
        ("/files/..", 400),
        ("/files/../../etc/passwd", 400),
        ("/files/show/%2e%2e/%2e%2e/etc/passwd", 400),
        ("/files/show/..%2f..%2fetc%2fpasswd", 400),
        ("/files/show/film.mkv%00", 400),
        ("/files/show/%ff", 400),
        ("/files//etc/passwd", 404),
        ("/files/show/film.mkv/more", 404),
        ("/files/show/Film.mkv", 404),
        ("/files/other", 404),
        ("/filesystem", 404),
    ] {
        assert_eq!(web.ask("GET", path, &[]).status, code, "{path}");
    }
    assert_eq!(web.ask("DELETE", path, &["Content-Type: application/json"]).status, 405);
    mounted.stop();
}

#[test]
fn strangers_are_refused() {
    if !can_run(&TOOLS) {
        return;
    }
    let _turn = turn();
    let (lab, _seeder, torrent_file) = lab(SLOW);
    let token = lab.path("token");
    fs::write(&token, "correct-horse-battery\n").unwrap();
    let args = ["--on-demand", "--http", "0.0.0.0:0", "--http-token", text(&token)];
    let mounted = lab.mount("a", &torrent_file, &args);
    let web = Web((std::net::Ipv4Addr::LOCALHOST, Web::of(&mounted).0.port()).into());
    let bearer = "Authorization: Bearer correct-horse-battery";
    let basic = "Authorization: Basic bWU6Y29ycmVjdC1ob3JzZS1iYXR0ZXJ5";
    for path in ["/status", "/files/show/film.mkv", "/", "/metrics", "/openapi.json", "/nothing"] {
        let answer = web.ask("GET", path, &[]);
        assert_eq!(answer.status, 401, "{path}");
        assert!(answer.header("www-authenticate").unwrap().starts_with("Basic"));
        for wrong in ["Authorization: Bearer correct-horse-batterz", "Authorization: Bearer", "Authorization: x"] {
            assert_eq!(web.ask("GET", path, &[wrong]).status, 401, "{path}");
        }
        for right in [bearer, basic] {
            // The film would have to be fetched first.
            let method = if path.starts_with("/files") { "HEAD" } else { "GET" };
            assert_eq!(web.ask(method, path, &[right]).status, if path == "/nothing" { 404 } else { 200 }, "{path}");
        }
    }
    let with = |headers: &[&str]| web.send(&request("GET", "/status", headers, "")).unwrap().status;
    let here = format!("Host: {}", web.0);
    assert_eq!(with(&["Host: rebound.example", bearer]), 403);
    assert_eq!(with(&[bearer]), 400);
    assert_eq!(with(&[&here, "Origin: http://evil.example", bearer]), 403);
    assert_eq!(with(&[&here, "Origin: null", bearer]), 403);
    assert_eq!(with(&[&here, &format!("Origin: http://{}", web.0), bearer]), 200);
    assert_eq!(with(&[&here, "Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors", bearer]), 403);
    // A form of another site cannot order anything.
    let form = ["Content-Type: text/plain", bearer];
    assert_eq!(web.ask("POST", &format!("/torrents/{}/verify", lab.info_hash()), &form).status, 415);
    assert!(torrent(&mounted)["verification"].is_null());
    // What never ends is cut off by a bound, not by us.
    let long = format!("X: {}", "x".repeat(100_000));
    assert_eq!(web.ask("GET", "/status", &[bearer, &long]).status, 431);
    let many: Vec<String> = (0..500).map(|n| format!("X-{n}: x")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).chain([bearer]).collect();
    assert_eq!(web.ask("GET", "/status", &many).status, 431);
    let host = format!("Host: {}", web.0);
    let headers = [host.as_str(), bearer, "Content-Type: application/json"];
    let large = web.send(&request("PATCH", "/limits", &headers, &"9".repeat(100_000))).unwrap();
    assert_eq!(large.status, 413);
    mounted.stop();

    // Where others could come without a token nothing is served, and the mount says so.
    let mnt = lab.path("b");
    fs::create_dir_all(&mnt).unwrap();
    for (args, code, word) in [
        (&["--http", "0.0.0.0:0"][..], 2, "--http-token"),
        (&["--http", "127.0.0.1:0", "--http-token", "short"], 2, "at least 16"),
        (&["--http", "127.0.0.1:0", "--http-token", "/nowhere/token"], 5, "/nowhere/token"),
        (&["--http-token", "correct-horse-battery"], 2, "--http"),
    ] {
        let cache = lab.path("cache-b");
        let output =
            mount_command().args(args).arg("--cache-dir").arg(&cache).args([&torrent_file, &mnt]).output().unwrap();
        let line = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(code) && line.contains(word), "{args:?}: {output:?}");
        assert!(!is_mounted(&mnt));
    }
}

#[test]
fn prometheus_can_read_the_metrics() {
    if !can_run(&TOOLS) || !has_eyes() {
        return;
    }
    let _turn = turn();
    let (lab, _seeder, torrent_file) = lab(0);
    let mounted = lab.mount("a", &torrent_file, &["--http", "127.0.0.1:0", "--download-limit", "50MiB"]);
    assert_eq!(mounted.read("show/film.mkv"), noise(3 << 20, 1));
    waits_for(&mounted, "all is here", |torrent| torrent["state"] == "seeding");
    let answer = Web::of(&mounted).ask("GET", "/metrics", &[]);
    assert!(answer.header("content-type").unwrap().starts_with("application/openmetrics-text"));
    let samples = seen(&["metrics"], &answer.body);
    let labels = format!("info_hash={},torrent=show", lab.info_hash());
    let sample = |name: &str| {
        let line = samples
            .lines()
            .find(|line| line.starts_with(&format!("{name}{{")))
            .unwrap_or_else(|| panic!("{name}: {samples}"));
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    assert!(samples.contains(&labels) && sample("torrentfs_torrent_size_bytes") == f64::from(4 << 20), "{samples}");
    assert_eq!(sample("torrentfs_torrent_have_bytes"), f64::from(4 << 20));
    assert!(sample("torrentfs_torrent_downloaded_bytes_total") >= f64::from(4 << 20));
    assert_eq!(sample("torrentfs_download_limit_bytes_per_second"), f64::from(50 << 20));
    let reads: f64 = samples
        .lines()
        .filter(|line| line.starts_with("torrentfs_torrent_reads_total"))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        .sum();
    let told = torrent(&mounted)["reads"].clone();
    assert!(
        reads > 0.0 && reads <= ["memory", "disk", "missed"].iter().map(|key| number(&told[key]) as f64).sum(),
        "{told} {samples}"
    );
    mounted.stop();
}

/// Anything at all is answered with less than 500 or not at all, and nothing is left of it.
#[test]
fn ten_thousand_strange_requests_do_no_harm() {
    if !can_run(&TOOLS) {
        return;
    }
    let _turn = turn();
    let (lab, _seeder, torrent_file) = lab(0);
    let args = ["--http", "127.0.0.1:0", "--metadata-timeout", "100ms"];
    let mounted = lab.mount("a", &torrent_file, &args);
    waits_for(&mounted, "all is here", |torrent| torrent["state"] == "seeding");
    let (web, hash, pid) = (Web::of(&mounted), lab.info_hash(), mounted.process.0.id());
    let descriptors = || fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let memory = || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap().to_owned();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap()
    };
    let work = |from: u64, to: u64| {
        let mut answered = 0;
        for seed in from..to {
            let (bytes, whole) = strange(seed, &web.0.to_string(), &hash);
            if let Some(answer) = web.send_strange(&bytes, whole) {
                assert!(
                    answer.status < 500,
                    "{}: {} {}",
                    answer.status,
                    String::from_utf8_lossy(&bytes),
                    answer.text()
                );
                answered += 1;
            }
        }
        answered
    };
    // What it needs once it needs always.
    work(0, 1_000);
    let (files_before, memory_before) = (descriptors(), memory());
    let answered: u64 = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..4).map(|n| scope.spawn(move || work(1_000 + n * 2_250, 1_000 + (n + 1) * 2_250))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert!(answered > 5_000, "{answered} of 9,000 were answered");
    wait_until("connections are gone", LONG, || descriptors() <= files_before + 2);
    assert!(memory() < memory_before + (32 << 10), "{memory_before} KiB became {} KiB", memory());
    assert_eq!(web.ask("GET", "/status", &[]).status, 200);
    assert!(!mounted.log().contains("panicked"), "{}", mounted.log());
    assert_eq!(mounted.read("show/film.mkv"), noise(3 << 20, 1));
    mounted.stop();
}

/// A request that is mostly sound, and sometimes not at all.
fn strange(seed: u64, host: &str, hash: &str) -> (Vec<u8>, bool) {
    let bytes = noise(4_096, seed);
    let mut at = 0;
    let mut next = |below: usize| {
        at += 2;
        usize::from(u16::from_le_bytes([bytes[at % 4_000], bytes[at % 4_000 + 1]])) % below
    };
    fn one<'a>(list: &[&'a str], n: usize) -> &'a str {
        list[n % list.len()]
    }
    let torrent = format!("/torrents/{hash}");
    let paths = [
        "/",
        "/status",
        "/limits",
        "/priority",
        "/metrics",
        "/openapi.json",
        "/torrents",
        &torrent,
        "/files",
        "/files/",
        "/files/show/",
        "/files/show/film.mkv",
        "/files/show/extra/notes%20%26%20%3Cmore%3E.txt",
        "/torrents/xyz",
        "*",
        "",
    ];
    let ends = [
        "",
        "",
        "",
        "/verify",
        "/pieces",
        "/pieces?cells=",
        "?delete=true&",
        "/..",
        "/%2e%2e/",
        "%00",
        "%",
        "//",
        "?",
        "#",
    ];
    let methods = ["GET", "GET", "GET", "HEAD", "POST", "PUT", "PATCH", "OPTIONS", "TRACE", "CONNECT", "get", "\u{7f}"];
    // Not DELETE: a torrent that is gone would leave nothing to play with.
    let mut path = one(&paths, next(99)).to_owned() + one(&ends, next(99));
    for _ in 0..next(4) {
        let junk = next(256) as u8;
        path += &if next(2) == 0 { format!("%{junk:02x}") } else { char::from(junk % 94 + 33).to_string() };
    }
    let kinds = ["application/json", "application/json", "text/plain", "application/x-bittorrent", ""];
    let number = ["0", "-1", "1e99", "18446744073709551616", "null", "\"x\"", "[[[[", "500000000"];
    let values = ["true", "null", "1", "\"skip\"", "\"\\u0000\"", "{}"];
    let keys = ["download", "upload", "paused", "on_demand", "path", "priority", "source", "x"];
    let value = if next(2) == 0 { one(&number, next(99)) } else { one(&values, next(99)) };
    let body = match next(4) {
        0 => String::new(),
        1 => format!("{{\"{}\":{value}}}", one(&keys, next(99))),
        2 => format!("{{\"path\":\"show\",\"priority\":{value}}}"),
        _ => String::from_utf8_lossy(&noise(next(200), seed + 1)).into_owned(),
    };
    let hosts = [host, host, host, host, "evil.example", "", "[::1"];
    let ranges = ["bytes=0-9", "bytes=-1", "bytes=99999999999-", "bytes=5-1", "x", "bytes=0-1,2-3"];
    let mut headers =
        vec![format!("Host: {}", one(&hosts, next(99))), format!("Content-Type: {}", one(&kinds, next(99)))];
    if next(3) == 0 {
        headers.push(format!("Range: {}", one(&ranges, next(99))));
    }
    if next(20) == 0 {
        headers.push(format!("X: {}", "x".repeat(next(30_000))));
    }
    let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
    let mut bytes = request(one(&methods, next(99)), &path, &headers, &body);
    // Some arrive spoiled, and some not whole.
    for _ in 0..next(8).saturating_sub(5) {
        let at = next(bytes.len());
        bytes[at] = next(256) as u8;
    }
    let whole = next(40) != 0;
    if !whole {
        bytes.truncate(next(bytes.len()));
    }
    (bytes, whole)
}
