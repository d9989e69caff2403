//! Clients of a mount's API: our commands, and raw HTTP over its socket.

#![allow(dead_code, missing_docs, reason = "each test file uses a part of this")]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use torrentfs::internals::web::socket;

use crate::support::*;

pub const LONG: Duration = Duration::from_secs(180);
pub const SLOW: u64 = 200_000;

// ---- requests

pub fn torrentfs(args: &[&str]) -> Output {
    Command::new(TORRENTFS).args(args).stdin(Stdio::null()).output().unwrap()
}

/// Returns standard output of a command that must succeed.
pub fn stdout_of(args: &[&str]) -> String {
    let output = torrentfs(args);
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

pub fn status(mounted: &Mounted) -> Value {
    serde_json::from_str(&stdout_of(&["status", "--json", text(&mounted.dir)])).unwrap()
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Returns the status of the only torrent.
pub fn torrent(mounted: &Mounted) -> Value {
    status(mounted)["torrents"][0].clone()
}

pub fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("no number: {value}"))
}

/// Returns the socket of a mount, found by the device number of its root.
pub fn socket_of(mounted: &Mounted) -> PathBuf {
    let device = fs::metadata(&mounted.dir).unwrap().dev();
    let device = (libc::major(device), libc::minor(device));
    socket::all().into_iter().find(|found| found.device == device).expect("a socket").path
}

pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let line = |line: &str| line.to_ascii_lowercase().starts_with(&format!("{}:", name.to_ascii_lowercase()));
        Some(self.head.lines().find(|text| line(text))?.split_once(':')?.1.trim())
    }
}

/// Sends bytes and reads the answer until the server closes the connection. `None` means that there was no answer.
pub fn exchange(mut stream: impl Read + Write, request: &[u8]) -> Option<Answer> {
    // The server may have disconnected already.
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let split = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = String::from_utf8(answer[..split].to_vec()).unwrap();
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some(Answer { status, head, body: answer[split + 4..].to_vec() })
}

pub fn request(method: &str, path: &str, headers: &[&str], body: &str) -> Vec<u8> {
    let mut text = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
    headers.iter().for_each(|header| text += &format!("{header}\r\n"));
    (text + "\r\n" + body).into_bytes()
}

pub fn send(socket: &Path, method: &str, path: &str, body: &str) -> Answer {
    let headers = ["Host: localhost", "Content-Type: application/json"];
    exchange(UnixStream::connect(socket).unwrap(), &request(method, path, &headers, body)).expect("an answer")
}

// ---- the API's description
pub fn operations() -> Vec<(String, String)> {
    let document: Value = serde_json::from_str(&torrentfs::internals::web::openapi()).unwrap();
    let paths = document["paths"].as_object().unwrap();
    let all = paths.iter().flat_map(|(path, item)| {
        item.as_object().unwrap().keys().map(|method| (method.to_uppercase(), path.clone())).collect::<Vec<_>>()
    });
    all.collect()
}

/// Returns whether the independent validators of the API's output are installed. In CI they must be.
pub fn has_validators() -> bool {
    let found = run("/usr/bin/python3", &[validator(), "modules"]).status.success();
    assert!(
        found || std::env::var_os("CI").is_none(),
        "missing on this machine: python3-jsonschema, python3-prometheus-client"
    );
    if !found {
        eprintln!("skipped: missing on this machine: python3-jsonschema, python3-prometheus-client");
    }
    found
}

pub fn validator() -> &'static str {
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/api.py")
}

pub fn validate(args: &[&str], input: &[u8]) -> String {
    let mut command = Command::new("/usr/bin/python3");
    let mut child = command.arg(validator()).args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(input));
    String::from_utf8(output.stdout).unwrap()
}

pub fn assert_matches_schema(name: &str, json: &[u8]) {
    let document = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/openapi.json");
    validate(&["schema", document, name], json);
}

// ---- a mount with a peer

pub const PIECE_LOG2: u32 = 16;

/// Publishes 4 MiB in two files, which a libtorrent seeder uploads with `rate` bytes a second.
pub fn lab(rate: u64) -> (Lab, Libtorrent, PathBuf) {
    let mut lab = Lab::new();
    let payload = lab.path("payload/show");
    fs::create_dir_all(payload.join("extra")).unwrap();
    fs::write(payload.join("film.mkv"), noise(3 << 20, 1)).unwrap();
    fs::write(payload.join("extra/notes & <more>.txt"), noise(1 << 20, 2)).unwrap();
    let torrent = lab.publish_path(&payload, PIECE_LOG2);
    let seeder = lab.libtorrent("seed", 2, rate, &lab.path("payload"), &torrent);
    (lab, seeder, torrent)
}

pub const TOOLS: [&str; 3] = ["mktorrent", "opentracker", "/usr/bin/python3"];

pub fn wait_for_status(mounted: &Mounted, what: &str, done: impl Fn(&Value) -> bool) -> Value {
    let mut last = Value::Null;
    wait_until(&format!("{what}; {}", mounted.log()), LONG, || {
        last = torrent(mounted);
        done(&last)
    });
    last
}
