//! The program as a whole: its output, its exit codes, and that it leaves nothing behind.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::support::*;
use torrentfs::internals::fs::mountinfo;
use torrentfs::metainfo::{FileKind, Metainfo};

/// Time limit of operations that take milliseconds. Only a hang reaches it, however busy the machine is.
const LONG: Duration = Duration::from_secs(180);
/// Most memory that the program may use for a torrent of a few KiB.
const MEMORY_KIB: u64 = 64 << 10;

/// A proxy that does not exist, so that the trackers of the samples are not contacted.
const NO_PROXY: &str = "socks5://127.0.0.1:1";

/// Returns the command with these arguments. It stays on this machine and does not use the user's cache.
fn torrentfs(home: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(TORRENTFS);
    let alone = if matches!(args, ["mount", first, ..] if *first != "--help") { &ALONE[..] } else { &[] };
    let (subcommand, rest) = args.split_at(args.len().min(1));
    command
        .args(subcommand)
        .args(alone)
        .args(rest)
        .env("XDG_CACHE_HOME", home)
        .env("TMPDIR", home)
        .env_remove("TORRENTFS_LOG");
    command
}

fn output(home: &Path, args: &[&str]) -> Output {
    torrentfs(home, args).output().unwrap()
}

/// Returns the exit code and the one line of a failure.
fn failure(output: &Output) -> (i32, String) {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let lines: Vec<&str> = stderr.lines().collect();
    assert_eq!(lines.len(), 1, "one line: {stderr}");
    assert!(output.stdout.is_empty(), "{output:?}");
    let line = lines[0].strip_prefix("torrentfs: ").unwrap_or_else(|| panic!("without the program's name: {stderr}"));
    (output.status.code().expect("an exit code"), line.to_owned())
}

fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    mountinfo::mounts().unwrap().into_iter().map(|mount| mount.path).filter(|path| path.starts_with(dir)).collect()
}

#[test]
fn help_names_every_command_and_exit_code() {
    let home = TestDir::new();
    let help = output(home.path(), &["--help"]);
    assert!(help.status.success());
    let text = String::from_utf8(help.stdout).unwrap();
    let words = ["mount", "unmount", "status", "top", "demo", "create", "show", "Exit codes", "Examples"];
    for word in words {
        assert!(text.contains(word), "{word}: {text}");
    }
    let commands = [
        "mount",
        "unmount",
        "status",
        "top",
        "add",
        "remove",
        "set",
        "pause",
        "resume",
        "verify",
        "priority",
        "demo",
        "create",
        "show",
        "check",
        "edit",
        "tracker",
        "config",
        "completions",
        "get",
        "seed",
    ];
    for command in commands {
        let help = output(home.path(), &[command, "--help"]);
        assert!(help.status.success() && help.stdout.len() > 100, "{help:?}");
    }
    // A link as a shell cuts it without quotes.
    let cut = output(home.path(), &["mount", "magnet:?xt=urn:btih:0123456789012345678901234567890123456789"]);
    assert!(cut.status.code() == Some(2) && String::from_utf8_lossy(&cut.stderr).contains("quotes"), "{cut:?}");
    let version = output(home.path(), &["--version"]);
    assert_eq!(version.stdout, concat!("torrentfs ", env!("CARGO_PKG_VERSION"), "\n").as_bytes());
    for nonsense in [&["mount"][..], &["frobnicate"], &["mount", "--cache-size", "many", "a", "b"], &[]] {
        assert_eq!(output(home.path(), nonsense).status.code(), Some(2), "{nonsense:?}");
    }
}

#[test]
fn a_failure_is_one_line_and_a_code() {
    if !can_run(&["mktorrent"]) {
        return;
    }
    let _turn = turn();
    let home = TestDir::new();
    let home = home.path();
    let path = |name: &str| home.join(name).to_str().unwrap().to_owned();
    fs::create_dir(home.join("mnt")).unwrap();
    fs::write(home.join("film.bin"), noise(100_000, 1)).unwrap();
    sh(&format!("cd '{}' && mktorrent -o film.torrent film.bin", home.display()));
    fs::write(home.join("broken.torrent"), "d4:infoi1ee").unwrap();
    fs::write(home.join("two\nlines.torrent"), "no").unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().port().to_string();

    let (mnt, film, missing) = (path("mnt"), path("film.torrent"), path("not-there"));
    let data = path("film.bin");
    let (broken, two_lines) = (path("broken.torrent"), path("two\nlines.torrent"));
    let magnet = "magnet:?xt=urn:btih:0123456789012345678901234567890123456789";
    let cases: [(i32, &str, &[&str]); 12] = [
        (2, "--create", &["seed", &film, &data, "-a", "http://127.0.0.1:1/announce"]),
        (3, "No such file", &["mount", "/nowhere.torrent", &mnt]),
        (3, "no metadata", &["mount", "--metadata-timeout", "200ms", magnet, &mnt]),
        (3, "names no torrent", &["mount", "magnet:?dn=x", &mnt]),
        (3, "cannot connect", &["mount", "http://127.0.0.1:1/x.torrent", &mnt]),
        (3, "directory", &["mount", &mnt, &mnt]),
        (3, "`info`", &["mount", &broken, &mnt]),
        (3, "two lines", &["mount", &two_lines, &mnt]),
        (4, "No such file", &["mount", &film, &missing]),
        (4, "not a directory", &["mount", &film, &film]),
        (4, "not a mount", &["unmount", &mnt]),
        (5, "in use", &["mount", "--bind", "127.0.0.1", "--port", &taken, &film, &mnt]),
    ];
    for (code, word, args) in &cases {
        for foreground in [false, true] {
            let mut args = args.to_vec();
            if foreground && args[0] == "mount" {
                args.insert(1, "--foreground");
            }
            let (got, line) = failure(&output(home, &args));
            assert_eq!(got, *code, "{args:?}: {line}");
            assert!(line.contains(word), "{args:?}: {word:?} is not in {line:?}");
            assert!(mounts_below(home).is_empty(), "{args:?}");
        }
    }
}

/// A background mount returns once it answers and prints how to unmount it. A second one with the same cache is refused.
#[test]
fn a_mount_in_the_background_returns_once_it_answers() {
    if !can_run(&["mktorrent"]) {
        return;
    }
    let _turn = turn();
    let home = TestDir::new();
    let home = home.path();
    fs::write(home.join("film.bin"), noise(100_000, 1)).unwrap();
    sh(&format!("cd '{}' && mktorrent -o film.torrent film.bin && mkdir mnt other", home.display()));
    let [film, mnt, other] = ["film.torrent", "mnt", "other"].map(|name| home.join(name).to_str().unwrap().to_owned());

    let cache = home.join("cache").to_str().unwrap().to_owned();
    let here = ["mount", "--port", "0", "--cache-dir", &cache];
    let up = output(home, &[&here[..], &["--read-timeout", "1s", &film, &mnt]].concat());
    assert!(up.status.success(), "{up:?}");
    let text = String::from_utf8_lossy(&up.stdout);
    assert!(text.contains(&mnt) && text.contains(&format!("torrentfs unmount {mnt}")), "{text}");
    assert_eq!(fs::metadata(home.join("mnt/film.bin")).unwrap().len(), 100_000);

    let (code, line) = failure(&output(home, &[&here[..], &[&film, &other]].concat()));
    assert_eq!(code, 5, "{line}");
    assert!(line.contains(&cache) && line.contains("in use"), "{line}");
    assert_eq!(mounts_below(home), [Path::new(&mnt)]);

    let down = output(home, &["unmount", &mnt]);
    assert!(down.status.success() && down.stderr.is_empty(), "{down:?}");
    assert!(mounts_below(home).is_empty());
    let again = output(home, &[&here[..], &[&film, &mnt]].concat());
    assert!(again.status.success(), "the cache is still locked: {again:?}");
    assert!(output(home, &["unmount", &mnt]).status.success());
}

#[test]
fn the_demo_checks_itself_and_leaves_nothing() {
    if !can_run(&[]) {
        return;
    }
    let _turn = turn();
    let home = TestDir::new();
    // The demo makes both directories.
    let mnt = home.path().join("new/mnt");
    let check = output(home.path(), &["demo", "--check", "--rate", "16MiB", mnt.to_str().unwrap()]);
    assert!(check.status.success() && check.stderr.is_empty(), "{check:?}");
    let text = String::from_utf8_lossy(&check.stdout);
    assert!(text.contains("all are equal to the originals"), "{text}");
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0, "{}", sh(&format!("ls -R '{}'", home.path().display())));
    assert!(mounts_below(home.path()).is_empty());
}

#[test]
fn the_demo_ends_on_ctrl_c_and_leaves_nothing() {
    if !can_run(&[]) {
        return;
    }
    let _turn = turn();
    let home = TestDir::new();
    let mnt = home.path().join("mnt");
    fs::create_dir(&mnt).unwrap();
    let mut command = torrentfs(home.path(), &["demo", mnt.to_str().unwrap()]);
    let mut demo = Process::start(command.stdout(Stdio::null()));
    wait_until("the demo is mounted", Duration::from_secs(60), || {
        fs::read_dir(&mnt).is_ok_and(|mut entries| entries.next().is_some())
    });
    demo.signal("INT");
    assert!(demo.wait(LONG).is_some_and(|status| status.success()));
    assert_eq!(fs::read_dir(&mnt).unwrap().count(), 0);
    fs::remove_dir(&mnt).expect("it is no longer a mount");
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
}

#[test]
fn the_demo_ends_on_ctrl_c_before_it_is_mounted() {
    let _turn = turn();
    let home = TestDir::new();
    let mut demo = Process::start(torrentfs(home.path(), &["demo"]).stdout(Stdio::piped()));
    let mut text = String::new();
    BufReader::new(demo.0.stdout.as_mut().unwrap()).read_line(&mut text).unwrap();
    assert!(text.contains("sample library"), "{text}");
    demo.signal("INT");
    // The file that is being written is completed first, which is slow in a debug build.
    let status = demo.wait(LONG);
    assert!(status.is_some_and(|status| status.success()), "{status:?}");
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
}

#[test]
fn a_download_under_nohup_goes_on_when_its_terminal_closes() {
    if !can_run(&["mktorrent"]) {
        return;
    }
    let _turn = turn();
    let home = TestDir::new();
    fs::write(home.path().join("film.bin"), noise(100_000, 1)).unwrap();
    sh(&format!("cd '{}' && mktorrent -o film.torrent film.bin && mkdir out", home.path().display()));
    for (nohup, ends) in [(false, true), (true, false)] {
        let get = torrentfs(home.path(), &["get", "-o", "out", "film.torrent"]);
        let mut command = Command::new(if nohup { "nohup" } else { "env" });
        command.arg(get.get_program()).args(get.get_args()).args(ALONE).current_dir(home.path());
        command.args(["--port", "0", "--cache-dir", if nohup { "one" } else { "two" }]);
        let mut process = Process::start(command.stdout(Stdio::null()).stderr(Stdio::null()));
        // The cache is opened after the signals are caught.
        let cache = home.path().join(if nohup { "one" } else { "two" });
        wait_until("the download runs", LONG, || cache.exists());
        process.signal("HUP");
        if ends {
            assert!(process.wait(LONG).is_some(), "it goes on");
        } else {
            assert!(process.wait(Duration::from_secs(1)).is_none(), "it has ended");
            process.signal("INT");
            assert!(process.wait(LONG).is_some(), "it cannot be ended");
        }
    }
}

// ---- the sample torrents

/// Returns the directory of the samples, and for each file whether it loads. `None` skips the test.
fn samples() -> Option<(PathBuf, BTreeMap<String, bool>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/torrents");
    let Ok(manifest) = fs::read_to_string(dir.join("MANIFEST.tsv")) else {
        assert!(std::env::var_os("CI").is_none(), "the sample torrents are missing: {}", dir.display());
        eprintln!("skipped: no sample torrents in {}", dir.display());
        return None;
    };
    let lines = manifest.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let files = lines.map(|line| {
        let mut columns = line.split('\t');
        (columns.next().unwrap().to_owned(), columns.next() == Some("load"))
    });
    Some((dir, files.collect()))
}

fn is_v2_only(torrent: &[u8]) -> bool {
    matches!(Metainfo::parse(torrent), Err(torrentfs::metainfo::MetainfoError::V2Only))
}

/// Returns the files below a directory with their sizes, and the links with their targets.
fn listing(dir: &Path) -> BTreeMap<String, String> {
    fn walk(root: &Path, dir: &Path, out: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let stat = fs::symlink_metadata(&path).unwrap();
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            if stat.is_dir() {
                walk(root, &path, out);
            } else if stat.is_symlink() {
                out.insert(name, fs::read_link(&path).unwrap().to_str().unwrap().to_owned());
            } else {
                out.insert(name, stat.len().to_string());
            }
        }
    }
    let mut out = BTreeMap::new();
    walk(dir, dir, &mut out);
    out
}

fn expected(torrent: &Metainfo) -> BTreeMap<String, String> {
    let files = torrent.layout.files().iter().filter(|file| file.kind != FileKind::Pad);
    files
        .map(|file| {
            let shown = match &file.kind {
                FileKind::Symlink { target } => target.clone(),
                _ => file.len.to_string(),
            };
            (file.path.join("/"), shown)
        })
        .collect()
}

#[test]
fn a_quiet_mount_prints_nothing() {
    if !can_run(&[]) {
        return;
    }
    let _turn = turn();
    let home = tempfile::tempdir().unwrap();
    let mnt = home.path().join("mnt");
    fs::create_dir(&mnt).unwrap();
    let torrent = b"d4:infod5:filesld6:lengthi0e4:pathl1:aeee4:name1:d12:piece lengthi16384e6:pieces0:ee";
    fs::write(home.path().join("d.torrent"), torrent).unwrap();
    let (torrent, at) = (home.path().join("d.torrent"), mnt.to_str().unwrap());
    for quiet in [true, false] {
        let args = ["mount", "--port", "0", torrent.to_str().unwrap(), at];
        let args = [&args[..], if quiet { &["-q"] } else { &[] }].concat();
        let mounted = output(home.path(), &args);
        assert!(mounted.status.success() && is_mounted(&mnt), "{mounted:?}");
        assert_eq!(mounted.stdout.is_empty(), quiet, "{mounted:?}");
        assert!(mounted.stderr.is_empty(), "{mounted:?}");
        assert!(output(home.path(), &["unmount", at]).status.success());
    }
}

#[test]
fn samples_that_load_are_mounted() {
    let Some((dir, files)) = samples() else { return };
    if !can_run(&[]) {
        return;
    }
    let _turn = turn();
    let mut mounted = 0;
    for name in files.iter().filter(|(_, loads)| **loads).map(|(name, _)| name) {
        let bytes = fs::read(dir.join(name)).unwrap();
        if is_v2_only(&bytes) {
            continue;
        }
        let home = TestDir::new();
        let mnt = home.path().join("mnt");
        fs::create_dir(&mnt).unwrap();
        let (torrent, at) = (dir.join(name), mnt.to_str().unwrap());
        let args = ["mount", "-f", "--proxy", NO_PROXY, torrent.to_str().unwrap(), at];
        let mut process = Process::start(torrentfs(home.path(), &args).stderr(Stdio::null()));
        wait_until(&format!("{name} is mounted"), LONG, || is_mounted(&mnt));
        let shown = listing(&mnt);
        let memory = peak_kib(process.0.id());
        process.signal("INT");
        let status = process.wait(LONG);
        detach(&mnt);
        assert_eq!(shown, expected(&Metainfo::parse(&bytes).unwrap()), "{name}");
        assert!(status.is_some_and(|status| status.success()), "{name}: {status:?}");
        assert!(memory < MEMORY_KIB, "{name}: {memory} KiB");
        mounted += 1;
    }
    assert!(mounted > 20, "{mounted}");
}

fn peak_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn samples_that_do_not_load_are_refused_in_a_line() {
    let Some((dir, files)) = samples() else { return };
    if !can_run(&["time"]) {
        return;
    }
    let _turn = turn();
    let home = TestDir::new();
    let mnt = home.path().join("mnt");
    fs::create_dir(&mnt).unwrap();
    let mut not_yet = 0;
    for (name, loads) in &files {
        let torrent = dir.join(name);
        let v2_only = is_v2_only(&fs::read(&torrent).unwrap());
        if *loads && !v2_only {
            continue;
        }
        let peak = home.path().join("peak");
        let inner = torrentfs(
            home.path(),
            &["mount", "-f", "--proxy", NO_PROXY, torrent.to_str().unwrap(), mnt.to_str().unwrap()],
        );
        let mut command = Command::new("time");
        command.args(["-q", "-f", "%M", "-o"]).arg(&peak).arg(inner.get_program()).args(inner.get_args());
        command.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let begin = Instant::now();
        let (code, line) = failure(&command.output().unwrap());
        assert!(begin.elapsed() < LONG, "{name}: {:?}", begin.elapsed());
        assert_eq!(code, 3, "{name}: {line}");
        assert!(line.contains(name.as_str()), "{name}: {line}");
        assert!(!line.contains("panicked"), "{name}: {line}");
        if v2_only {
            assert!(line.contains("not supported yet"), "{name}: {line}");
            not_yet += 1;
        }
        let memory: u64 = fs::read_to_string(&peak).unwrap().trim().parse().unwrap();
        assert!(memory < MEMORY_KIB, "{name}: {memory} KiB");
        assert!(!is_mounted(&mnt), "{name}");
    }
    assert!(not_yet >= 3, "{not_yet}");
}
