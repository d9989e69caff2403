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
    for (method, path) in &described {
        let path = path.replace("{info_hash}", &lab.info_hash());
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
    let described = ask(&socket, "GET", "/openapi.json", "");
    assert_eq!(described.text(), torrentfs::control::openapi());
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
    mounted.stop();
}
