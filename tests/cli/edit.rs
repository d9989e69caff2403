//! `torrentfs edit`: what it changes, what it keeps, and that it never loses a torrent.

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::support::*;
use torrentfs::metainfo::Metainfo;

fn torrentfs(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(TORRENTFS);
    command.args(args).current_dir(dir).env_remove("TORRENTFS_LOG").stdin(Stdio::null());
    command
}

fn output(dir: &Path, args: &[&str]) -> Output {
    torrentfs(dir, &[&["edit"], args].concat()).output().unwrap()
}

/// Returns standard output of a command that must succeed.
fn stdout_of(dir: &Path, args: &[&str]) -> String {
    let output = output(dir, args);
    assert!(output.status.success() && output.stderr.is_empty(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn failure(dir: &Path, args: &[&str]) -> (i32, String) {
    let output = output(dir, args);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.stdout.is_empty() && stderr.lines().count() == 1, "{output:?}");
    (output.status.code().unwrap(), stderr.trim_end().strip_prefix("torrentfs: ").unwrap().to_owned())
}

fn read(path: &Path) -> Metainfo {
    Metainfo::parse(&fs::read(path).unwrap()).unwrap()
}

/// Writes `f.torrent` with mktorrent, with two tiers of trackers.
fn write_sample(dir: &Path) {
    fs::write(dir.join("f"), noise(100_000, 1)).unwrap();
    let line = "mktorrent -d -l 15 -a http://a/x,http://b/x -a udp://c:1 -w http://w/ -c old -o f.torrent f";
    sh(&format!("cd '{}' && {line}", dir.display()));
}

/// Returns a directory with that file. `None` skips the test, because mktorrent is missing.
fn sample() -> Option<tempfile::TempDir> {
    if !can_run(&["mktorrent"]) {
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    write_sample(dir.path());
    Some(dir)
}

fn names_in(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn everything_but_the_info_can_change() {
    let Some(dir) = sample() else { return };
    let dir = dir.path();
    let torrent = dir.join("f.torrent");
    let before = read(&torrent);
    let edit = |args: &[&str]| {
        let text = stdout_of(dir, &[&["f.torrent"], args].concat());
        let after = read(&torrent);
        assert_eq!(after.info, before.info);
        (text.strip_prefix("f.torrent: ").unwrap().trim_end().to_owned(), after)
    };
    let (text, after) = edit(&["--add-tracker", "http://d/x,http://a/x"]);
    assert_eq!(text, "trackers +http://d/x");
    assert_eq!(after.trackers, [vec!["http://a/x", "http://b/x"], vec!["udp://c:1"], vec!["http://d/x"]]);
    let (text, after) = edit(&["--remove-tracker", "http://b/x", "--replace-tracker", "udp://c:1", "udp://e:1"]);
    assert_eq!(text, "trackers -http://b/x -udp://c:1 +udp://e:1");
    assert_eq!(after.trackers, [["http://a/x"], ["udp://e:1"], ["http://d/x"]]);
    assert_eq!(edit(&["--remove-tracker", "http://never/"]).0, "no changes");
    let (_, after) = edit(&["--tracker", "http://one/"]);
    assert_eq!(after.trackers, [["http://one/"]]);
    assert!(!fs::read(&torrent).unwrap().windows(13).any(|part| part == b"announce-list"));
    assert_eq!(edit(&["--no-trackers"]).1.trackers, [[""; 0]; 0]);
    sh(&format!("cd '{}' && mktorrent -a http://x/,http://y/ -o other.torrent f", dir.display()));
    assert_eq!(edit(&["--copy-trackers-from", "other.torrent"]).1.trackers, [["http://x/", "http://y/"]]);

    assert_eq!(edit(&["--add-web-seed", "http://v/"]).1.web_seeds, ["http://w/", "http://v/"]);
    assert_eq!(edit(&["--remove-web-seed", "http://w/"]).1.web_seeds, ["http://v/"]);
    assert_eq!(edit(&["--web-seed", "ftp://z/"]).1.web_seeds, ["ftp://z/"]);
    assert_eq!(edit(&["--no-web-seeds"]).1.web_seeds, [""; 0]);

    let (text, after) = edit(&["--comment", "new\u{e9}", "--created-by", "me", "--date", "2020-09-13T12:26:40Z"]);
    assert_eq!(text, "comment \"new\u{e9}\"; created by \"me\"; date 2020-09-13 12:26:40 UTC");
    assert_eq!((after.comment.as_deref(), after.created_by.as_deref()), (Some("new\u{e9}"), Some("me")));
    let (text, after) = edit(&["--comment", "", "--created-by", "", "--date", "none"]);
    assert_eq!(text, "comment: none; created by: none; date: none");
    assert_eq!((after.comment, after.created_by, after.creation_date), (None, None, None));
}

#[test]
fn renaming_makes_another_torrent_and_says_so() {
    let Some(dir) = sample() else { return };
    let dir = dir.path();
    let old = read(&dir.join("f.torrent"));
    let text = stdout_of(dir, &["f.torrent", "--rename", "g", "-o", "g.torrent"]);
    let new = read(&dir.join("g.torrent"));
    let expected = format!(
        "f.torrent: name \"g\": this is ANOTHER TORRENT, with the info hash {} instead of {}\n",
        new.info_hash, old.info_hash
    );
    assert_eq!(text, expected);
    assert_eq!(read(&dir.join("f.torrent")).info_hash, old.info_hash, "the original changed");
    // A torrent made with that name is the same.
    sh(&format!("cd '{}' && mktorrent -d -n g -l 15 -o made.torrent f", dir.display()));
    assert_eq!(read(&dir.join("made.torrent")).info, new.info);
    assert_eq!(output(dir, &["f.torrent", "--rename", "a/b"]).status.code(), Some(2));
}

#[test]
fn only_the_chosen_output_is_written() {
    let Some(dir) = sample() else { return };
    let dir = dir.path();
    let torrent = dir.join("f.torrent");
    let before = fs::read(&torrent).unwrap();
    let change = ["--comment", "x"];
    let with = |args: &[&str]| stdout_of(dir, &[args, &change].concat());

    assert_eq!(with(&["f.torrent", "--dry-run"]), "f.torrent: would change: comment \"x\"\n");
    assert_eq!(fs::read(&torrent).unwrap(), before);
    with(&["f.torrent", "--output", "new.torrent"]);
    assert_eq!(fs::read(&torrent).unwrap(), before);
    assert_eq!(read(&dir.join("new.torrent")).comment.as_deref(), Some("x"));
    let (code, line) = failure(dir, &["f.torrent", "--comment", "y", "-o", "new.torrent"]);
    assert_eq!((code, line.as_str()), (1, "cannot write new.torrent: it exists already; use --force to overwrite it"));
    assert_eq!(read(&dir.join("new.torrent")).comment.as_deref(), Some("x"));
    with(&["f.torrent", "--output", "new.torrent", "--force"]);

    // A link is followed, and the file keeps its mode.
    fs::set_permissions(&torrent, Permissions::from_mode(0o640)).unwrap();
    symlink("f.torrent", dir.join("link.torrent")).unwrap();
    with(&["link.torrent"]);
    assert!(fs::symlink_metadata(dir.join("link.torrent")).unwrap().is_symlink());
    assert_eq!(read(&torrent).comment.as_deref(), Some("x"));
    assert_eq!(fs::metadata(&torrent).unwrap().permissions().mode() & 0o777, 0o640);
    let edited = fs::metadata(&torrent).unwrap().modified().unwrap();
    assert_eq!(with(&["f.torrent"]), "f.torrent: no changes\n");
    assert_eq!(fs::metadata(&torrent).unwrap().modified().unwrap(), edited, "an unchanged torrent was written");

    // Through pipes.
    let mut piped = torrentfs(dir, &["edit", "-", "--comment", "p"]);
    let mut piped = piped.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    piped.stdin.take().unwrap().write_all(&before).unwrap();
    let piped = piped.wait_with_output().unwrap();
    assert_eq!(Metainfo::parse(&piped.stdout).unwrap().comment.as_deref(), Some("p"));
    assert_eq!(String::from_utf8_lossy(&piped.stderr), "-: comment \"p\"\n");

    // Of several torrents one is broken: it is reported, and the others are edited.
    fs::write(dir.join("broken.torrent"), "de").unwrap();
    let several = output(dir, &["f.torrent", "broken.torrent", "new.torrent", "--comment", "z"]);
    assert_eq!(several.status.code(), Some(3));
    assert_eq!(
        String::from_utf8_lossy(&several.stderr),
        "torrentfs: cannot edit broken.torrent: the torrent has no `info`\n"
    );
    assert!([&torrent, &dir.join("new.torrent")].iter().all(|path| read(path).comment.as_deref() == Some("z")));
    assert_eq!(fs::read(dir.join("broken.torrent")).unwrap(), b"de");

    for nonsense in [&["f.torrent"][..], &["--comment", "x"], &["f.torrent", "new.torrent", "-o", "x", "-c", "x"]] {
        assert_eq!(output(dir, nonsense).status.code(), Some(2), "{nonsense:?}");
    }
    assert_eq!(names_in(dir), ["broken.torrent", "f", "f.torrent", "link.torrent", "new.torrent"]);
}

/// On a full filesystem the torrent keeps its content.
#[test]
fn a_full_disk_loses_nothing() {
    if !can_run(&["mktorrent"]) || sh("id -u").trim() != "0" {
        return;
    }
    let lab = Lab::new();
    let dir = lab.path("full");
    fs::create_dir(&dir).unwrap();
    if !run("mount", &["-t", "tmpfs", "-o", "size=256k", "tmpfs", dir.to_str().unwrap()]).status.success() {
        assert!(std::env::var_os("CI").is_none(), "no tmpfs can be mounted here");
        eprintln!("skipped: no tmpfs can be mounted here");
        return;
    }
    write_sample(lab.dir.path());
    fs::copy(lab.path("f.torrent"), dir.join("f.torrent")).unwrap();
    let mut filler = File::create(dir.join("filler")).unwrap();
    while filler.write_all(&[7; 4096]).is_ok() {}
    let before = fs::read(dir.join("f.torrent")).unwrap();
    let (code, line) = failure(&dir, &["f.torrent", "--comment", "x"]);
    assert!(code == 1 && line.contains("No space left"), "{line}");
    assert_eq!(fs::read(dir.join("f.torrent")).unwrap(), before);
    assert_eq!(names_in(&dir), ["f.torrent", "filler"]);
}

#[test]
fn the_result_is_printed_as_json() {
    let Some(dir) = sample() else { return };
    let dir = dir.path();
    let hash = read(&dir.join("f.torrent")).info_hash.to_string();
    let lines = stdout_of(dir, &["f.torrent", "--json", "--tracker", "http://q/", "--dry-run"]);
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&lines).unwrap(),
        serde_json::json!({
            "file": "f.torrent", "output": null, "name": "f", "info_hash": hash, "old_info_hash": hash,
            "changes": ["trackers -http://a/x -http://b/x -udp://c:1 +http://q/"], "trackers": [["http://q/"]],
            "web_seeds": ["http://w/"], "written": false,
        })
    );
}

/// Every sample torrent that loads keeps its info and its other fields.
#[test]
fn the_samples_keep_their_info() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/torrents");
    let Ok(entries) = fs::read_dir(&dir) else {
        assert!(std::env::var_os("CI").is_none(), "the sample torrents are missing: {}", dir.display());
        eprintln!("skipped: no sample torrents in {}", dir.display());
        return;
    };
    let scratch = tempfile::tempdir().unwrap();
    let mut edited = 0;
    for path in entries.map(|entry| entry.unwrap().path()) {
        let Ok(before) = fs::read(&path).map_err(drop).and_then(|bytes| Metainfo::parse(&bytes).map_err(drop)) else {
            continue;
        };
        fs::copy(&path, scratch.path().join("t.torrent")).unwrap();
        stdout_of(scratch.path(), &["t.torrent", "--add-tracker", "http://added.example/", "--comment", "edited"]);
        let after = read(&scratch.path().join("t.torrent"));
        assert_eq!(after.info, before.info, "{}", path.display());
        assert_eq!((after.comment.as_deref(), after.web_seeds), (Some("edited"), before.web_seeds));
        assert_eq!(after.trackers.last().unwrap(), &["http://added.example/"], "{}", path.display());
        assert!(
            before.trackers.iter().flatten().all(|url| after.trackers.concat().contains(url)),
            "{}",
            path.display()
        );
        assert_eq!((after.nodes, after.http_seeds), (before.nodes, before.http_seeds));
        edited += 1;
    }
    assert!(edited > 10, "{edited}");
}
