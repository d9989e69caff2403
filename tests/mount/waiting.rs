//! Progress output while a mount starts: on a terminal, without one, and with `--quiet`.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::support::*;
use torrentfs::metainfo::Metainfo;

const LINK: &str = "magnet:?xt=urn:btih:c12fe1c06bba254a9dc9f519b335aa7c1367a88a&dn=film";

/// Quotes a command for a shell.
fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| format!("'{}'", word.to_str().unwrap())).collect::<Vec<_>>().join(" ")
}

/// Runs a command on a terminal. Returns its output.
fn on_terminal(command: &Command) -> String {
    let output = Command::new("script").args(["-qec", &line(command), "/dev/null"]).stdin(Stdio::null()).output();
    String::from_utf8(output.unwrap().stdout).unwrap()
}

fn of_link(base: &Path, flags: &[&str]) -> Command {
    let mut command = mount_command();
    command.args(["--bind", "127.0.0.1", "--port", "0", "--cache-dir"]).arg(base.join("cache"));
    command.args(flags).arg(LINK).arg(base).stdin(Stdio::null());
    command
}

/// Nobody has the link's torrent: the command shows the progress of the search and then the failure.
#[test]
fn the_search_for_metadata_is_shown() {
    if !can_run(&["script"]) {
        return;
    }
    let _turn = turn();
    let base = TestDir::new();
    let output = on_terminal(&of_link(base.path(), &["--metadata-timeout", "1s"]));
    assert!(output.contains("metadata of film: 0 peers found, 0 asked"), "{output}");
    assert!(output.contains("no metadata within 1s"), "{output}");
    assert!(!on_terminal(&of_link(base.path(), &["-q", "--metadata-timeout", "1s"])).contains("metadata of"));

    let lines = |flags: &[&str]| {
        let output = of_link(base.path(), flags).output().unwrap();
        assert_eq!(output.status.code(), Some(3), "{output:?}");
        String::from_utf8(output.stderr).unwrap().lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let output = lines(&["--metadata-timeout", "8s"]);
    assert_eq!((output.len(), output[0].as_str()), (2, "metadata of film: 0 peers found, 0 asked"), "{output:?}");
    assert_eq!(lines(&["-f", "-q", "--metadata-timeout", "1s"]).len(), 1);
}

/// The cached data is hashed while the command waits. A terminal gets a progress bar, also for a background mount.
#[test]
fn a_check_at_mounting_is_shown() {
    if !can_run(&["script"]) {
        return;
    }
    let _turn = turn();
    let base = TestDir::new();
    let [dir, cache, film, torrent] = ["mnt", "cache", "film.bin", "film.torrent"].map(|name| base.path().join(name));
    let data = noise(4 << 20, 1);
    fs::write(&film, &data).unwrap();
    let made = Command::new(TORRENTFS).arg("create").arg(&film).arg("-o").arg(&torrent).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let home = cache.join(Metainfo::parse(&fs::read(&torrent).unwrap()).unwrap().info_hash.to_string());
    fs::create_dir_all(home.join("data")).unwrap();
    fs::create_dir(&dir).unwrap();
    fs::write(home.join("data/film.bin"), &data).unwrap();
    let command = |flags: &[&str]| {
        let mut command = mount_command();
        command.args(["--bind", "127.0.0.1", "--port", "0", "--cache-dir"]).arg(&cache).args(flags);
        command.arg(&torrent).arg(&dir);
        command
    };
    let unmount = || {
        let output: Output = Command::new(TORRENTFS).arg("unmount").arg(&dir).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    for (flags, shown) in [(&[][..], true), (&["--verify"], true), (&[], false), (&["--verify", "-q"], false)] {
        let output = on_terminal(&command(flags));
        assert_eq!(output.contains("checking the cache ["), shown, "{flags:?}: {output}");
        assert_eq!(output.contains("mounted at"), !flags.contains(&"-q"), "{flags:?}: {output}");
        assert!(fs::read(dir.join("film.bin")).unwrap() == data);
        unmount();
    }
}
