//! `torrentfs check` and `torrentfs show`: output for people and for programs, and exit codes.

use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::support::*;
use torrentfs::metainfo::{FileKind, Metainfo, NewFile, NewTorrent};

fn torrentfs(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(TORRENTFS);
    command.args(args).current_dir(dir).env_remove("TORRENTFS_LOG").stdin(Stdio::null());
    command
}

fn output(dir: &Path, args: &[&str]) -> Output {
    torrentfs(dir, args).output().unwrap()
}

/// Returns the exit code and standard output. Standard error must be empty.
fn stdout_of(dir: &Path, args: &[&str]) -> (i32, String) {
    let output = output(dir, args);
    assert!(output.stderr.is_empty(), "{output:?}");
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
}

fn failure(output: &Output) -> (i32, String) {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.stdout.is_empty() && stderr.lines().count() == 1, "{output:?}");
    (output.status.code().unwrap(), stderr.trim_end().to_owned())
}

/// Writes `t/a` of 5 pieces, `t/d/b` of 3.5 pieces, the empty `t/e`, and `t.torrent` with mktorrent.
fn sample(dir: &Path) {
    fs::create_dir_all(dir.join("t/d")).unwrap();
    fs::write(dir.join("t/a"), noise(5 * 32768, 1)).unwrap();
    fs::write(dir.join("t/d/b"), noise(7 * 16384, 2)).unwrap();
    fs::write(dir.join("t/e"), "").unwrap();
    sh(&format!("cd '{}' && mktorrent -l 15 -o t.torrent t", dir.display()));
}

#[test]
fn complete_files_are_reported_with_code_0() {
    if !can_run(&["mktorrent"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    sample(dir);
    for path in [".", "t", "../../../../../../../../..", ""] {
        let full = match path {
            "" => dir.join("t").to_str().unwrap().to_owned(),
            path if path.len() > 9 => format!("{path}{}", dir.display()),
            path => path.to_owned(),
        };
        let (code, text) = stdout_of(dir, &["check", "t.torrent", &full]);
        assert_eq!(code, 0, "{text}");
        assert!(text.starts_with("complete    ") && text.ends_with("t: 3 files, 272.0 KiB in 9 pieces\n"), "{text}");
    }
    assert_eq!(stdout_of(dir, &["check", "-q", "t.torrent", "t"]), (0, String::new()));
    let piped = torrentfs(dir, &["check", "-", "t"]).stdin(File::open(dir.join("t.torrent")).unwrap()).output();
    assert!(piped.unwrap().status.success());
    assert_eq!(stdout_of(dir, &["check", "t.torrent", "t", "--json"]).0, 0);
}

#[test]
fn damaged_files_are_reported_in_a_line_each_with_code_6() {
    if !can_run(&["mktorrent"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    sample(dir);
    let a = File::options().write(true).open(dir.join("t/a")).unwrap();
    a.write_all_at(b"!", 40_000).unwrap();
    a.write_all_at(b"!", 70_000).unwrap();
    a.write_all_at(b"!", 5 * 32768 - 1).unwrap();
    let before = sh(&format!("cd '{}' && find . -printf '%p %s %T@ %C@ %m\\n' | sort", dir.display()));
    let text = "bad         t/a: 3 of 5 pieces bad: 1-2, 4\n\
                incomplete  ./t: 2 of 3 files good; of 9 pieces, 6 good, 3 bad, 0 missing; 176.0 KiB of 272.0 KiB good\n";
    assert_eq!(stdout_of(dir, &["check", "t.torrent", "."]), (6, text.to_owned()));
    let after = sh(&format!("cd '{}' && find . -printf '%p %s %T@ %C@ %m\\n' | sort", dir.display()));
    assert_eq!(before, after, "something was written");
    assert_eq!(stdout_of(dir, &["check", "t.torrent", ".", "--quiet"]), (6, String::new()));

    File::options().write(true).open(dir.join("t/d/b")).unwrap().set_len(40_000).unwrap();
    fs::remove_file(dir.join("t/e")).unwrap();
    let text = "bad         t/a: 3 of 5 pieces bad: 1-2, 4\n\
                short       t/d/b: 40000 of 114688 bytes\n\
                missing     t/e\n\
                incomplete  t: 0 of 3 files good; of 9 pieces, 3 good, 3 bad, 3 missing; 96.0 KiB of 272.0 KiB good\n";
    assert_eq!(stdout_of(dir, &["check", "t.torrent", "t"]), (6, text.to_owned()));
    let (code, json) = stdout_of(dir, &["check", "t.torrent", "t", "--json"]);
    let file = |path: &str, size: u64, state: &str, detail: Option<&str>, pieces: u32, bad: u32, missing: u32| {
        serde_json::json!({
            "path": path, "size": size, "state": state, "detail": detail, "pieces": pieces, "bad_pieces": bad,
            "missing_pieces": missing,
        })
    };
    assert_eq!(
        (code, serde_json::from_str::<serde_json::Value>(&json).unwrap()),
        (
            6,
            serde_json::json!({
                "complete": false, "path": "t", "size": 278_528, "good_bytes": 98_304, "pieces": 9, "good_pieces": 3,
                "bad_pieces": [1, 2, 4], "missing_pieces": [6, 7, 8],
                "files": [
                    file("t/a", 163_840, "bad", None, 5, 3, 0),
                    file("t/d/b", 114_688, "short", Some("40000 of 114688 bytes"), 4, 0, 3),
                    file("t/e", 0, "missing", None, 0, 0, 0),
                ],
            })
        )
    );
}

#[test]
fn a_failed_check_is_reported_in_one_line() {
    if !can_run(&["mktorrent"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    sample(dir);
    let (code, line) = failure(&output(dir, &["check", "t.torrent", "nowhere"]));
    assert_eq!((code, line.as_str()), (1, "torrentfs: cannot read nowhere: No such file or directory (os error 2)"));
    for torrent in ["nowhere", "t/a", "t", "-"] {
        let (code, line) = failure(&output(dir, &["check", torrent, "t"]));
        assert!(code == 3 && line.starts_with("torrentfs: cannot read "), "{line}");
    }
    assert_eq!(output(dir, &["check", "t.torrent"]).status.code(), Some(2));
}

#[test]
fn unreadable_files_are_reported() {
    if !can_run(&["mktorrent"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    sample(dir);
    fs::set_permissions(dir, Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(dir.join("t/a"), Permissions::from_mode(0o000)).unwrap();
    let program = dir.join("program");
    copy_program(&program);
    let mut command = Command::new(program);
    command.args(["check", "t.torrent", "t"]).current_dir(dir);
    if sh("id -u").trim() == "0" {
        command.uid(65534).gid(65534);
    }
    let checked = command.output().unwrap();
    let text = String::from_utf8_lossy(&checked.stdout);
    assert_eq!(checked.status.code(), Some(6), "{checked:?}");
    assert!(text.contains("unreadable  t/a: Permission denied") && text.contains("5 missing"), "{text}");
}

/// Makes a torrent of many files with terminal escape sequences in every text.
fn hostile() -> Vec<u8> {
    let evil = "\u{1b}[31m\u{7}\r\n\u{9b}31m\u{202e}";
    let file = |n: u32| NewFile {
        path: vec![format!("{n}{evil}"), "f".into()],
        len: 1,
        kind: FileKind::Regular { executable: false },
    };
    let torrent = NewTorrent {
        name: format!("name{evil}"),
        piece_len: 16384,
        files: (0..16_384).map(file).collect(),
        trackers: vec![vec![format!("http://tracker/{evil}"), "http://good/".into()]],
        web_seeds: vec![format!("http://seed/{evil}")],
        comment: Some(evil.into()),
        created_by: Some(evil.into()),
        source: Some(evil.into()),
        ..NewTorrent::default()
    };
    torrent.build(&[[7; 20]]).unwrap()
}

fn assert_harmless(text: &[u8]) {
    let text = std::str::from_utf8(text).unwrap();
    let bad = text.chars().find(|c| (c.is_control() && !matches!(c, '\n')) || *c == '\u{202e}');
    assert_eq!(bad, None, "{:?}", text.chars().take(2000).collect::<String>());
}

#[test]
fn escape_sequences_in_names_are_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::write(dir.join("evil.torrent"), hostile()).unwrap();
    fs::create_dir(dir.join("e\u{1b}[31mvil")).unwrap();
    let shown = output(dir, &["show", "evil.torrent"]);
    assert!(shown.status.success());
    assert_harmless(&shown.stdout);
    let text = String::from_utf8(shown.stdout).unwrap();
    assert!(
        text.contains("http://good/") && !text.contains("http://tracker/") && text.contains("name_[31m"),
        "{text:.500}"
    );
    assert_harmless(&output(dir, &["show", "evil.torrent", "--json"]).stdout);
    for args in [&["check", "evil.torrent", "e\u{1b}[31mvil"], &["check", "evil.torrent", "\u{1b}[31m"]] {
        let checked = output(dir, args);
        assert_harmless(&checked.stdout);
        assert_harmless(&checked.stderr);
    }
    let link = "magnet:?xt=urn:btih:c12fe1c06bba254a9dc9f519b335aa7c1367a88a&dn=a%1b%5b31mb&tr=http%3A%2F%2F%1b";
    let shown = output(dir, &["show", link]);
    assert!(shown.status.success() && String::from_utf8_lossy(&shown.stdout).contains("a_[31mb"), "{shown:?}");
    assert_harmless(&shown.stdout);
}

#[test]
fn a_closed_pipe_is_no_error() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("many.torrent"), hostile()).unwrap();
    for args in [&["show", "many.torrent"][..], &["show", "many.torrent", "--json"], &["check", "many.torrent", "."]] {
        let mut child = torrentfs(dir.path(), args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut first = Vec::new();
        BufReader::with_capacity(16, child.stdout.take().unwrap()).read_until(b' ', &mut first).unwrap();
        let ended = child.wait_with_output().unwrap();
        assert!(matches!(ended.status.code(), Some(0 | 6)) && ended.stderr.is_empty(), "{args:?}: {ended:?}");
    }
    let full = torrentfs(dir.path(), &["show", "many.torrent"]).stdout(File::create("/dev/full").unwrap()).output();
    assert_eq!(failure(&full.unwrap()).0, 1);
}

#[test]
fn only_terminals_get_colours() {
    if !can_run(&["script"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let link = "c12fe1c06bba254a9dc9f519b335aa7c1367a88a";
    let on_terminal = |env: &str| sh(&format!("TERM=xterm {env} script -qec \"'{TORRENTFS}' show {link}\" /dev/null"));
    assert!(on_terminal("").contains("\u{1b}[1mInfo hash"));
    assert!(!on_terminal("NO_COLOR=1").contains('\u{1b}'));
    assert!(!stdout_of(dir.path(), &["show", link]).1.contains('\u{1b}'));
}

#[test]
fn every_kind_of_source_is_shown() {
    if !can_run(&["mktorrent"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::write(dir.join("f"), noise(100_000, 1)).unwrap();
    sh(&format!(
        "cd '{}' && mktorrent -d -l 15 -a http://a/x,http://b/x -a udp://c:1 -w http://w/ -c 'a b' -s src -p -o f.torrent f",
        dir.display()
    ));
    let bytes = fs::read(dir.join("f.torrent")).unwrap();
    let torrent = Metainfo::parse(&bytes).unwrap();
    let (hash, magnet) = (torrent.info_hash.to_string(), torrent.magnet().to_string());
    let (code, page) = stdout_of(dir, &["show", "f.torrent"]);
    let expected = format!(
        "Name         f\nInfo hash    {hash}\nMagnet link  {magnet}\nSize         97.7 KiB (100000 bytes) in 1 file\n\
         Pieces       4 of 32.0 KiB\nPrivate      yes: peers come from the trackers only\n\
         Trackers     http://a/x\n             http://b/x\n  then       udp://c:1\nWeb seeds    http://w/\n\
         Created by   mktorrent 1.1\nSource       src\nComment      a b\n\n  97.7 KiB  f\n"
    );
    assert_eq!((code, page.as_str()), (0, expected.as_str()));

    let mut piped = torrentfs(dir, &["show", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    piped.stdin.take().unwrap().write_all(&bytes).unwrap();
    assert_eq!(piped.wait_with_output().unwrap().stdout, expected.as_bytes());

    let json: serde_json::Value = serde_json::from_str(&stdout_of(dir, &["show", "f.torrent", "--json"]).1).unwrap();
    assert_eq!(
        json,
        serde_json::json!({
            "name": "f", "info_hash": hash, "magnet": magnet, "format": "v1", "size": 100_000, "piece_length": 32768,
            "pieces": 4, "private": true, "trackers": [["http://a/x", "http://b/x"], ["udp://c:1"]],
            "web_seeds": ["http://w/"], "http_seeds": [], "nodes": [], "creation_date": null,
            "created_by": "mktorrent 1.1", "comment": "a b", "source": "src",
            "files": [{ "path": "f", "size": 100_000, "kind": "file", "executable": false, "target": null }],
        })
    );

    // A link has fewer fields.
    let json: serde_json::Value = serde_json::from_str(&stdout_of(dir, &["show", &magnet, "--json"]).1).unwrap();
    assert_eq!(
        json,
        serde_json::json!({
            "name": "f", "info_hash": hash, "magnet": magnet, "trackers": ["http://a/x", "http://b/x", "udp://c:1"],
            "web_seeds": ["http://w/"], "peers": [],
        })
    );
    for (source, word) in
        [("nowhere", "No such file"), ("magnet:?dn=x", "names no torrent"), ("f", "not a .torrent file")]
    {
        let (code, line) = failure(&output(dir, &["show", source]));
        assert!(code == 3 && line.starts_with("torrentfs: cannot show ") && line.contains(word), "{line}");
    }

    // A URL. The server answers one request.
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/f.torrent", server.local_addr().unwrap());
    let serving = std::thread::spawn(move || {
        let (mut client, _) = server.accept().unwrap();
        let mut lines = BufReader::new(client.try_clone().unwrap()).lines();
        assert!(lines.by_ref().map(Result::unwrap).take_while(|line| !line.is_empty()).count() > 1);
        write!(client, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", bytes.len()).unwrap();
        client.write_all(&bytes).unwrap();
    });
    assert_eq!(stdout_of(dir, &["show", &url]), (0, expected));
    serving.join().unwrap();
}
