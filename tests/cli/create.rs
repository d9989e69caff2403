//! `torrentfs create`: the torrents that it makes, and the files that it refuses.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::Write;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::*;
use proptest::prelude::*;
use torrentfs::internals::payload::{self, Found, Walk};
use torrentfs::metainfo::{FileKind, Metainfo, NewTorrent};

/// Returns the command in a directory.
fn torrentfs(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(TORRENTFS);
    command.args(args).current_dir(dir).env_remove("TORRENTFS_LOG").env_remove("SOURCE_DATE_EPOCH");
    command
}

fn output(dir: &Path, args: &[&str]) -> Output {
    torrentfs(dir, args).stdin(Stdio::null()).output().unwrap()
}

/// Returns the one line of a failure with this exit code.
fn failure(output: &Output, code: i32) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(output.stdout.is_empty(), "{output:?}");
    assert_eq!(stderr.lines().count(), 1, "one line: {stderr}");
    stderr.trim_end().strip_prefix("torrentfs: ").expect("the program's name").to_owned()
}

/// Returns the files of a directory and their torrent, without hashes.
fn found(tree: &Path) -> (Vec<Found>, NewTorrent) {
    let files = payload::walk(tree, &Walk { hidden: true, executable: true, ..Walk::default() }).unwrap().0;
    let torrent = NewTorrent {
        name: "t".into(),
        piece_len: 16_384,
        files: files.iter().map(|found| found.file.clone()).collect(),
        ..NewTorrent::default()
    };
    (files, torrent)
}

/// Hashes the files and runs `meanwhile` after the first piece. Returns the first error, if there is one.
fn hashes(files: &[Found], draft: &Metainfo, meanwhile: impl FnOnce() + Send) -> Result<Vec<[u8; 20]>, String> {
    let hashes = Mutex::new(vec![[0; 20]; draft.layout.lengths().pieces() as usize]);
    let (fault, meanwhile) = (Mutex::new(None), Mutex::new(Some(meanwhile)));
    payload::hash(&draft.layout, draft.layout.lengths().iter(), files, &|piece, result| {
        if let Some(meanwhile) = meanwhile.lock().unwrap().take() {
            meanwhile();
        }
        match result {
            Ok(digest) => hashes.lock().unwrap()[piece.index()] = digest,
            Err(unread) => drop(fault.lock().unwrap().get_or_insert(unread.why.to_string())),
        }
        ControlFlow::Continue(())
    });
    let changed = files.iter().find_map(|found| found.check_unchanged().err());
    match fault.into_inner().unwrap().or(changed.map(|why| why.to_string())) {
        Some(fault) => Err(fault),
        None => Ok(hashes.into_inner().unwrap()),
    }
}

#[test]
fn a_file_that_changes_while_it_is_hashed_makes_no_torrent() {
    type Change = fn(&Path);
    let changes: [(&str, Change); 6] = [
        ("grows", |path| File::options().append(true).open(path).unwrap().write_all(b"x").unwrap()),
        ("shrinks", |path| File::options().write(true).open(path).unwrap().set_len(100_000).unwrap()),
        ("is written to", |path| File::options().write(true).open(path).unwrap().write_all_at(b"x", 0).unwrap()),
        ("is replaced by its like", |path| {
            let other = path.with_extension("new");
            fs::copy(path, &other).unwrap();
            File::open(&other).unwrap().set_modified(fs::metadata(path).unwrap().modified().unwrap()).unwrap();
            fs::rename(other, path).unwrap();
        }),
        ("goes", |path| fs::remove_file(path).unwrap()),
        ("changes its mode", |path| fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap()),
    ];
    for (what, change) in changes {
        for (name, early) in [("early", true), ("late", false)] {
            let dir = tempfile::tempdir().unwrap();
            for file in ["a", "b", "c"] {
                fs::write(dir.path().join(file), noise(300_000, 1)).unwrap();
            }
            let (files, torrent) = found(dir.path());
            let draft = torrent.draft().unwrap();
            assert!(hashes(&files, &draft, || {}).is_ok());
            // Timestamps of files have a coarse clock.
            wait_until("the clock ticks", std::time::Duration::from_secs(5), || {
                fs::write(dir.path().join("tick"), "").unwrap();
                let ticked = fs::metadata(dir.path().join("tick")).unwrap().modified().unwrap();
                ticked > fs::metadata(dir.path().join("c")).unwrap().modified().unwrap()
            });
            let path = dir.path().join(if early { "a" } else { "c" });
            let fault = hashes(&files, &draft, || change(&path)).expect_err(&format!("{what}, {name}"));
            assert!(
                fault.contains("changed") || fault.contains("shorter") || fault.contains("No such file"),
                "{fault}"
            );
        }
    }
}

#[test]
fn a_file_that_is_written_continuously_is_refused_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("log"), noise(64 << 20, 1)).unwrap();
    let file = File::options().write(true).open(dir.path().join("log")).unwrap();
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                file.write_all_at(b"x", 1000).unwrap();
                std::thread::yield_now();
            }
        });
        let made = output(dir.path(), &["create", "log", "-q"]);
        ended.store(true, Ordering::Relaxed);
        let line = failure(&made, 1);
        assert!(line.contains("log") && line.contains("changed while it was read"), "{line}");
    });
    assert_eq!(names_in(dir.path()), ["log"], "something was left behind");
}

fn names_in(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Runs the program as an unprivileged user.
fn as_nobody(dir: &Path, args: &[&str]) -> Output {
    let program = dir.join("torrentfs-for-nobody");
    if !program.exists() {
        copy_program(&program);
    }
    let mut command = Command::new(&program);
    command.args(args).current_dir(dir).stdin(Stdio::null());
    if sh("id -u").trim() == "0" {
        command.uid(65534).gid(65534);
    }
    command.output().unwrap()
}

#[test]
fn unreadable_files_are_refused_before_hashing() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::set_permissions(dir, Permissions::from_mode(0o777)).unwrap();
    fs::create_dir_all(dir.join("tree/d")).unwrap();
    fs::write(dir.join("tree/a"), "a").unwrap();
    fs::write(dir.join("tree/d/secret"), "b").unwrap();
    assert!(as_nobody(dir, &["create", "tree", "-o", "ok.torrent"]).status.success());
    for (path, mode) in [("tree/d/secret", 0o000), ("tree/d", 0o000)] {
        fs::set_permissions(dir.join(path), Permissions::from_mode(mode)).unwrap();
        let line = failure(&as_nobody(dir, &["create", "tree", "-q"]), 1);
        assert!(line.starts_with(&format!("cannot read {path}: Permission denied")), "{line}");
    }
    assert!(as_nobody(dir, &["create", "tree", "--ignore", "d/", "-o", "less.torrent"]).status.success());
    fs::set_permissions(dir.join("tree/d"), Permissions::from_mode(0o755)).unwrap();
    // A directory that cannot be written to.
    fs::create_dir(dir.join("locked")).unwrap();
    fs::set_permissions(dir.join("locked"), Permissions::from_mode(0o555)).unwrap();
    let line = failure(&as_nobody(dir, &["create", "tree/a", "-q", "-o", "locked/a.torrent"]), 1);
    assert!(line.starts_with("cannot write locked/a.torrent: Permission denied"), "{line}");
}

#[test]
fn files_that_a_torrent_cannot_contain_are_refused_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::create_dir(dir.join("tree")).unwrap();
    let refused = |args: &[&str], word: &str| {
        let line = failure(&output(dir, &[&["create", "-q"], args].concat()), 1);
        assert!(line.contains(word), "{args:?}: {line}");
    };
    refused(&["tree"], "no bytes");
    fs::write(dir.join("tree/empty"), "").unwrap();
    refused(&["tree/empty"], "no bytes");
    refused(&["nowhere"], "cannot read nowhere: No such file");
    refused(&["/dev/null"], "/dev/null is a device");
    fs::write(dir.join("tree/a"), "a").unwrap();
    sh(&format!("mkfifo '{}/tree/fifo'", dir.display()));
    refused(&["tree"], "tree/fifo is a FIFO, which a torrent cannot hold: leave it out with --ignore");
    fs::remove_file(dir.join("tree/fifo")).unwrap();
    let _socket = UnixListener::bind(dir.join("tree/socket")).unwrap();
    refused(&["tree"], "tree/socket is a socket");
    fs::remove_file(dir.join("tree/socket")).unwrap();
    symlink("/etc/passwd", dir.join("tree/link")).unwrap();
    refused(&["tree"], "the link tree/link leads out of the tree");
    fs::remove_file(dir.join("tree/link")).unwrap();
    let bad = dir.join("tree").join(OsStr::from_bytes(b"n\xffme"));
    fs::write(&bad, "x").unwrap();
    refused(&["tree"], r#""tree/n\xFFme" is not UTF-8"#);
    fs::remove_file(bad).unwrap();
    let deep = (0..70).map(|_| "d").collect::<PathBuf>();
    fs::create_dir_all(dir.join("tree").join(&deep)).unwrap();
    fs::write(dir.join("tree").join(&deep).join("f"), "x").unwrap();
    refused(&["tree"], "too deep");
    assert_eq!(names_in(dir), ["tree"]);

    let nonsense: [&[&str]; 7] = [
        &["-a", "not a url", "tree"],
        &["-w", "udp://a:1", "tree"],
        &["-l", "17KiB", "tree"],
        &["--name", "a/b", "tree"],
        &["--ignore", "[", "tree"],
        &["--format", "v2", "tree"],
        &[],
    ];
    for args in nonsense {
        assert_eq!(output(dir, &[&["create"], args].concat()).status.code(), Some(2), "{args:?}");
    }
}

#[test]
fn the_output_path_is_respected_and_nothing_is_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::create_dir_all(dir.join("tree/.git")).unwrap();
    fs::create_dir(dir.join("out")).unwrap();
    fs::write(dir.join("tree/a"), noise(100_000, 1)).unwrap();
    let made = output(dir, &["create", "tree", "--piece-length", "16KiB"]);
    let text = String::from_utf8_lossy(&made.stdout);
    let hash = Metainfo::parse(&fs::read(dir.join("tree.torrent")).unwrap()).unwrap().info_hash.to_string();
    assert_eq!(
        text,
        format!(
            "tree.torrent: 1 file, 97.7 KiB in 7 pieces of 16.0 KiB\ninfo hash: {hash}\n\
             magnet link: magnet:?xt=urn:btih:{hash}&dn=tree\n"
        )
    );
    assert_eq!(String::from_utf8_lossy(&made.stderr), "left out: 1 hidden (use --hidden to include them)\n");
    let before = fs::read(dir.join("tree.torrent")).unwrap();
    let line = failure(&output(dir, &["create", "tree", "-q", "-c", "another"]), 1);
    assert_eq!(line, "cannot write tree.torrent: it exists already; use --force to overwrite it");
    assert_eq!(fs::read(dir.join("tree.torrent")).unwrap(), before);
    assert!(output(dir, &["create", "tree", "-q", "-c", "another", "--force"]).status.success());
    assert_ne!(fs::read(dir.join("tree.torrent")).unwrap(), before);
    assert!(output(dir, &["create", "tree", "-q", "-o", "out"]).status.success());
    assert_eq!(names_in(&dir.join("out")), ["tree.torrent"]);
    let line = failure(&output(dir, &["create", "tree", "-q", "-o", "no/where.torrent"]), 1);
    assert!(line.starts_with("cannot write no/where.torrent: No such file"), "{line}");

    // To standard output, with the messages on standard error.
    let piped = output(dir, &["create", "tree", "-o", "-"]);
    assert_eq!(Metainfo::parse(&piped.stdout).unwrap().info_hash, Metainfo::parse(&before).unwrap().info_hash.clone());
    assert!(String::from_utf8_lossy(&piped.stderr).contains("info hash: "), "{piped:?}");
    let full = torrentfs(dir, &["create", "tree", "-q", "-o", "-"]).stdout(File::create("/dev/full").unwrap()).output();
    let full = full.unwrap();
    assert!(full.status.code() == Some(1) && String::from_utf8_lossy(&full.stderr).contains("No space"), "{full:?}");

    // In the directory itself, twice: the torrent does not contain itself.
    for force in [&[][..], &["--force"]] {
        let made = output(&dir.join("tree"), &[&["create", ".", "-q"], force].concat());
        assert!(made.status.success(), "{made:?}");
        let torrent = Metainfo::parse(&fs::read(dir.join("tree/tree.torrent")).unwrap()).unwrap();
        assert_eq!((torrent.name.as_str(), torrent.layout.files().len()), ("tree", 1));
    }
}

#[test]
fn the_result_is_printed_as_json() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::create_dir_all(dir.join("tree/none")).unwrap();
    for name in ["a", ".b", "c.tmp"] {
        fs::write(dir.join("tree").join(name), noise(50_000, 1)).unwrap();
    }
    let made = output(dir, &["create", "tree", "--json", "-q", "--ignore", "*.tmp", "-l", "32KiB", "--private"]);
    let json: serde_json::Value = serde_json::from_slice(&made.stdout).unwrap();
    let torrent = Metainfo::parse(&fs::read(dir.join("tree.torrent")).unwrap()).unwrap();
    assert_eq!(
        json,
        serde_json::json!({
            "torrent": "tree.torrent", "name": "tree", "info_hash": torrent.info_hash.to_string(),
            "magnet": torrent.magnet().to_string(), "size": 50_000, "files": 1, "piece_length": 32768, "pieces": 2,
            "private": true, "left_out": { "hidden": 1, "ignored": 1, "empty_directories": 1 },
        })
    );
    assert!(made.stderr.is_empty() && made.stdout.ends_with(b"}\n"), "{made:?}");
}

/// A terminal gets a progress bar, a pipe does not.
#[test]
fn progress_is_shown_on_a_terminal() {
    if !can_run(&["script"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::write(dir.join("large"), noise(32 << 20, 1)).unwrap();
    let on_terminal = |args: &str| {
        let line = format!("cd '{}' && script -qec \"'{TORRENTFS}' create large -f {args}\" /dev/null", dir.display());
        sh(&line)
    };
    let text = on_terminal("");
    assert!(text.contains("hashing large [") && text.contains("info hash: "), "{text}");
    assert_eq!(on_terminal("-q"), "");
    let piped = output(dir, &["create", "large", "-f"]);
    assert!(piped.stderr.is_empty(), "{piped:?}");
}

fn a_name() -> impl Strategy<Value = String> {
    prop_oneof!["[a-c]{1,2}", "[\u{e4}\u{4e2d} .#-]{1,3}[a-z]", "[A-Za-z0-9]{1,12}\\.[a-z]{3}"]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn a_torrent_describes_its_files(
        files in proptest::collection::vec(
            (proptest::collection::vec(a_name(), 1..4), 0usize..60_000, any::<bool>()), 1..12,
        ),
        trackers in proptest::collection::vec(proptest::collection::vec("http://[a-z]{1,8}/", 1..3), 0..3),
        web_seeds in proptest::collection::btree_set("http://[a-z]{1,8}/", 0..3),
        (private, date) in (any::<bool>(), proptest::option::of(0i64..1 << 33)),
        (comment, source) in (proptest::option::of("[^\\p{C}]{1,30}"), proptest::option::of("[^\\p{C}]{1,9}")),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("t");
        fs::create_dir(&tree).unwrap();
        let mut wrote = std::collections::BTreeMap::new();
        for (n, (path, len, executable)) in files.iter().enumerate() {
            let path: PathBuf = path.iter().collect();
            let full = tree.join(&path);
            // A file where a directory should be, or the other way round.
            if fs::create_dir_all(full.parent().unwrap()).is_err() || full.is_dir() {
                continue;
            }
            let data = noise(*len, n as u64);
            fs::write(&full, &data).unwrap();
            fs::set_permissions(&full, Permissions::from_mode(if *executable { 0o755 } else { 0o644 })).unwrap();
            wrote.insert(path.to_str().unwrap().as_bytes().to_vec(), (data, *executable));
        }
        let bytes: Vec<u8> = wrote.values().flat_map(|(data, _)| data).copied().collect();
        prop_assume!(!bytes.is_empty());

        let (files, torrent) = found(&tree);
        let torrent = NewTorrent {
            trackers, private, creation_date: date, comment, source,
            web_seeds: web_seeds.into_iter().collect(), ..torrent
        };
        let made = torrent.build(&hashes(&files, &torrent.draft().unwrap(), || {}).unwrap()).unwrap();
        let read = Metainfo::parse(&made).unwrap();
        prop_assert_eq!(&read.trackers, &torrent.trackers);
        prop_assert_eq!(&read.web_seeds, &torrent.web_seeds);
        prop_assert_eq!((read.private, read.creation_date), (private, date));
        prop_assert_eq!((&read.comment, &read.source), (&torrent.comment, &torrent.source));
        let mut offset = 0;
        prop_assert_eq!(read.layout.files().len(), wrote.len());
        for (file, (path, (data, executable))) in read.layout.files().iter().zip(&wrote) {
            prop_assert_eq!(file.path[1..].join("/").into_bytes(), path.clone());
            prop_assert_eq!((file.offset, file.len), (offset, data.len() as u64));
            prop_assert_eq!(&file.kind, &FileKind::Regular { executable: *executable });
            offset += file.len;
        }
        prop_assert_eq!(bytes.chunks(16_384).count(), read.layout.lengths().pieces() as usize);
        for (piece, data) in read.layout.lengths().iter().zip(bytes.chunks(16_384)) {
            prop_assert_eq!(read.hashes.check(piece, data).unwrap(), torrentfs::metainfo::Verdict::Good);
        }
        let check = payload::check(&read, dir.path(), &|_, _| {}).unwrap();
        prop_assert!(check.is_complete());
    }
}
