//! `torrentfs create` compared with mktorrent, transmission-create and libtorrent: the same files and settings make the
//! same torrent.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::support::*;
use torrentfs::metainfo::Metainfo;

/// Returns the command `torrentfs` in a directory.
fn torrentfs(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(TORRENTFS);
    command.args(args).current_dir(dir).env_remove("TORRENTFS_LOG").env_remove("SOURCE_DATE_EPOCH");
    command
}

fn output(dir: &Path, args: &[&str]) -> Output {
    torrentfs(dir, args).stdin(Stdio::null()).output().unwrap()
}

/// Creates the torrent of `tree` in `dir` with our program.
fn ours(dir: &Path, tree: &str, args: &[&str]) -> Metainfo {
    let made = output(dir, &[&["create", tree, "-q", "-f", "-o", "ours.torrent"], args].concat());
    assert!(made.status.success() && made.stdout.is_empty() && made.stderr.is_empty(), "{made:?}");
    Metainfo::parse(&fs::read(dir.join("ours.torrent")).unwrap()).unwrap()
}

/// Creates `theirs.torrent` in `dir` with a shell command.
fn theirs(dir: &Path, line: &str) -> Metainfo {
    let _ = fs::remove_file(dir.join("theirs.torrent"));
    sh(&format!("cd '{}' && {line}", dir.display()));
    Metainfo::parse(&fs::read(dir.join("theirs.torrent")).unwrap()).unwrap()
}

fn assert_same(ours: &Metainfo, theirs: &Metainfo) {
    if ours.info != theirs.info {
        let text = |of: &Metainfo| of.info.load().unwrap().escape_ascii().to_string();
        panic!("different torrents:\n{:.3000}\n{:.3000}", text(ours), text(theirs));
    }
    assert_eq!(ours.info_hash, theirs.info_hash);
}

/// Creates a torrent with libtorrent, with the files in the byte order of their paths.
fn libtorrent(dir: &Path, tree: &str, piece_len: u32, options: &str) -> Metainfo {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/make_torrent.py");
    theirs(dir, &format!("/usr/bin/python3 '{}' theirs.torrent {piece_len} '{tree}' {options}", script.display()))
}

/// Writes files of more than one piece in total, with names that are easily sorted in the wrong order.
fn odd_tree(root: &Path) {
    let names = [
        "a/x",
        "a/empty",
        "a/\u{e9}/deep/er",
        "a-b",
        "a.b",
        "a0",
        "A",
        "B/b",
        "b/B",
        "Z9",
        "Z10",
        ".hidden",
        ".h/.h/f",
        "we ird\\na'me\"",
        "new\nline",
        "\u{fc}ml\u{e4}ut",
        "\u{1f3ac}.mkv",
        "~tilde",
        "%20",
        "#",
        "empty",
        "zz",
        "a name with spaces at its end ",
        "-dash",
        "control\u{7}",
    ];
    for (n, name) in names.into_iter().enumerate() {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let len = if name.contains("empty") { 0 } else { n * 7001 % 40_000 + 1 };
        fs::write(path, noise(len, n as u64)).unwrap();
    }
    fs::set_permissions(root.join("zz"), Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(root.join("a/x"), Permissions::from_mode(0o744)).unwrap();
    symlink("x", root.join("a/link")).unwrap();
    symlink("a/\u{e9}", root.join("link to a directory")).unwrap();
    symlink("../Z9", root.join("B/up")).unwrap();
}

/// mktorrent follows links, includes hidden files and ignores x bits.
const AS_MKTORRENT: [&str; 3] = ["--hidden", "--dereference", "--no-executable"];

#[test]
fn mktorrent_makes_the_same_info_hash() {
    if !can_run(&["mktorrent"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    odd_tree(&dir.join("tree"));
    fs::write(dir.join("single file"), noise(100_001, 1)).unwrap();
    fs::write(dir.join("a whole piece"), noise(65_536, 1)).unwrap();
    for (settings, to_mktorrent) in [
        (&["-l", "32KiB"][..], "-l 15"),
        (&["-l", "256KiB", "--private"], "-l 18 -p"),
        (&["-l", "64KiB", "--source", "A b\u{e9}"], "-l 16 -s 'A b\u{e9}'"),
        (&["-l", "64KiB", "--name", "other name", "--private", "--source", "x"], "-l 16 -n 'other name' -p -s x"),
    ] {
        for what in ["tree", "single file", "a whole piece"] {
            let theirs = theirs(dir, &format!("mktorrent {to_mktorrent} -o theirs.torrent '{what}'"));
            assert_same(&ours(dir, what, &[&AS_MKTORRENT[..], settings].concat()), &theirs);
        }
    }
}

#[test]
fn libtorrent_makes_the_same_info_hash() {
    if !can_run(&["libtorrent"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    odd_tree(&dir.join("tree"));
    // libtorrent changes names that it considers unsafe. We keep the names of the disk.
    for name in ["new\nline", "control\u{7}", "we ird\\na'me\""] {
        fs::remove_file(dir.join("tree").join(name)).unwrap();
    }
    fs::write(dir.join("run me"), noise(100_001, 1)).unwrap();
    fs::set_permissions(dir.join("run me"), Permissions::from_mode(0o755)).unwrap();
    for what in ["tree", "run me"] {
        let with = |ours_args: &[&str], options: &str| {
            assert_same(
                &ours(dir, what, &[&["--hidden", "-l", "32KiB"], ours_args].concat()),
                &libtorrent(dir, what, 32768, options),
            );
        };
        with(&[], "executable links");
        with(&["--no-executable"], "links");
        with(&["--dereference"], "executable");
        with(&["--dereference", "--no-executable", "--private"], "private");
    }
}

/// Creates a torrent with transmission-create. Ours is the same with `AS_TRANSMISSION`.
///
/// Transmission follows links, skips hidden and empty files, and always writes the `private` key, which others write for
/// private torrents only. It sorts ASCII letters regardless of case, after all other characters because its bytes are
/// signed. mktorrent, libtorrent and we sort by unsigned bytes.
fn transmission(dir: &Path, what: &str, piece_kib: u32) -> Metainfo {
    let options = format!("-p -t http://127.0.0.1/a -s {piece_kib}");
    theirs(dir, &format!("transmission-create {options} -o theirs.torrent '{what}' 2>&1"))
}

const AS_TRANSMISSION: [&str; 3] = ["--private", "--dereference", "--no-executable"];

#[test]
fn transmission_makes_the_same_info_hash() {
    if !can_run(&["transmission-create"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    odd_tree(&dir.join("tree"));
    // Files that transmission would skip or sort differently.
    let cased = ["A", "b/B", "Z9", "Z10", "B/b", "B/up"];
    let not_ascii = ["\u{fc}ml\u{e4}ut", "\u{1f3ac}.mkv", "a/\u{e9}/deep/er", "link to a directory"];
    for name in ["empty", "a/empty"].iter().chain(&cased).chain(&not_ascii) {
        fs::remove_file(dir.join("tree").join(name)).unwrap();
    }
    fs::write(dir.join("\u{1f3ac}"), noise(100_001, 1)).unwrap();
    for what in ["tree", "\u{1f3ac}"] {
        assert_same(&ours(dir, what, &[&["-l", "32KiB"], &AS_TRANSMISSION[..]].concat()), &transmission(dir, what, 32));
    }
}

#[test]
fn ten_thousand_files_make_the_same_torrent() {
    if !can_run(&["mktorrent", "transmission-create", "libtorrent"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let path = |n: usize| dir.join(format!("tree/{:02}/d{}/{n}.txt", n % 97, n % 7));
    for n in 0..10_000 {
        fs::create_dir_all(path(n).parent().unwrap()).unwrap();
        fs::write(path(n), noise(n % 1501, n as u64)).unwrap();
    }
    let made = ours(dir, "tree", &["-l", "64KiB"]);
    assert_eq!(made.layout.files().len(), 10_000);
    assert_same(&made, &theirs(dir, "mktorrent -l 16 -o theirs.torrent tree"));
    assert_same(&made, &libtorrent(dir, "tree", 65536, ""));
    // Without empty files, which transmission skips.
    let empty = (0..10_000).step_by(1501);
    empty.clone().for_each(|n| fs::write(path(n), "x").unwrap());
    let made = ours(dir, "tree", &[&["-l", "64KiB"], &AS_TRANSMISSION[..]].concat());
    assert_eq!(made.layout.files().len(), 10_000);
    assert_same(&made, &transmission(dir, "tree", 64));
    // With empty files, only the list of files differs.
    empty.for_each(|n| fs::write(path(n), "").unwrap());
    let made = ours(dir, "tree", &[&["-l", "64KiB"], &AS_TRANSMISSION[..]].concat());
    let theirs = transmission(dir, "tree", 64);
    assert!(made.layout.files().iter().filter(|file| file.len > 0).eq(theirs.layout.files()));
    let after_files = |of: &Metainfo| {
        let info = of.info.load().unwrap();
        let at = info.windows(12).position(|part| part == b"4:name4:tree").unwrap();
        info[at..].to_vec()
    };
    assert!(after_files(&made) == after_files(&theirs));
}

#[test]
fn a_sparse_file_of_more_than_four_gibibytes_makes_the_same_torrent() {
    if !can_run(&["mktorrent", "transmission-create", "libtorrent"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let sparse = File::create(dir.join("sparse")).unwrap();
    sparse.set_len((4 << 30) + 212_345).unwrap();
    for at in [100_000_000u64, 3 << 30, (4 << 30) - 50_000] {
        sparse.write_all_at(&noise(100_000, at), at).unwrap();
    }
    let made = ours(dir, "sparse", &["-l", "1MiB"]);
    assert_same(&made, &theirs(dir, "mktorrent -l 20 -o theirs.torrent sparse"));
    assert_same(&made, &libtorrent(dir, "sparse", 1 << 20, ""));
    assert_same(&ours(dir, "sparse", &["-l", "1MiB", "--private"]), &transmission(dir, "sparse", 1024));
}

#[test]
fn the_creation_date_can_be_omitted_or_fixed() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    odd_tree(&dir.join("tree"));
    let make = |args: &[&str], epoch: Option<&str>| {
        let mut command = torrentfs(dir, &[&["create", "tree", "-o", "-"], args].concat());
        if let Some(epoch) = epoch {
            command.env("SOURCE_DATE_EPOCH", epoch);
        }
        command.output().unwrap()
    };
    let date = |output: &Output| Metainfo::parse(&output.stdout).unwrap().creation_date;
    assert_eq!(make(&["--no-date"], None).stdout, make(&["--no-date"], Some("5")).stdout);
    assert_eq!(date(&make(&["--no-date"], None)), None);
    assert_eq!(date(&make(&[], Some("1600000000"))), Some(1_600_000_000));
    assert!(date(&make(&[], None)).unwrap() > 1_600_000_000);
    assert_eq!(make(&[], Some("yesterday")).status.code(), Some(2));
}
