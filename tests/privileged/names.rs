//! Filesystems that refuse names of a torrent's files: NTFS as Windows restricts it, and gocryptfs, whose names are short.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use crate::support::*;

/// Flags of `get` and `seed` that keep their traffic on this machine.
const LOCAL: [&str; 5] = ["--no-dht", "--no-lsd", "--no-port-mapping", "--bind", "127.0.0.1"];

/// A mounted filesystem. It is unmounted at the end of the test.
struct Filesystem(PathBuf);

impl Filesystem {
    fn ntfs(base: &Path, name: &str, mount: &str) -> Self {
        let at = base.join(name);
        fs::create_dir(&at).unwrap();
        let image = base.join(format!("{name}.img"));
        fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
        sh(&format!("mkntfs -F -Q -q '{0}' 2>&1 && {mount} '{0}' '{1}'", image.display(), at.display()));
        Self(at)
    }

    fn gocryptfs(base: &Path) -> Self {
        let (at, cipher) = (base.join("crypt"), base.join("cipher"));
        fs::create_dir(&at).unwrap();
        fs::create_dir(&cipher).unwrap();
        fs::write(base.join("password"), "secret").unwrap();
        let flags = format!("-q -passfile '{}'", base.join("password").display());
        let (cipher, to) = (cipher.display(), at.display());
        sh(&format!(
            "gocryptfs -init -scryptn 10 -longnames=false {flags} '{cipher}' && gocryptfs -longnames=false {flags} '{cipher}' '{to}'"
        ));
        Self(at)
    }
}

impl Drop for Filesystem {
    fn drop(&mut self) {
        detach(&self.0);
    }
}

fn get(home: &Path, dir: &Path, peer: &str, torrent: &Path) -> Output {
    let mut command = Command::new(TORRENTFS);
    command.arg("get").args(LOCAL).args(["--port", "0", "--peer", peer, "-o"]).args([dir, torrent]);
    command.env("XDG_CACHE_HOME", home).env_remove("TORRENTFS_LOG").output().unwrap()
}

#[test]
fn names_that_the_filesystem_refuses_are_replaced() {
    if !can_run(&["mkntfs", "ntfs-3g", "lowntfs-3g", "gocryptfs"]) || sh("id -u").trim() != "0" {
        return;
    }
    let _turn = turn();
    let dir = TestDir::new();
    let base = dir.path();
    let film = base.join("src/film");
    let long = format!("{}.mkv", "n".repeat(200));
    let names = ["disc: 1/what?.bin", "plain.bin", "empty?", &long, "Plain.bin"];
    for (seed, name) in (1..).zip(names) {
        let path = film.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, if name == "empty?" { Vec::new() } else { noise(100_000, seed) }).unwrap();
    }
    let torrent = base.join("film.torrent");
    let (from, to) = (film.display(), torrent.display());
    sh(&format!("{TORRENTFS} create -q -l 16KiB -o '{to}' '{from}'"));
    let port = free_port().to_string();
    let peer = format!("127.0.0.1:{port}");
    let mut seeding = Command::new(TORRENTFS);
    seeding.arg("seed").args(LOCAL).args(["--port", &port]).args([&torrent, &film]).env("XDG_CACHE_HOME", base);
    let _seeding = Process::start(&mut seeding);
    wait_until("the seeder listens", Duration::from_secs(20), || std::net::TcpStream::connect(&peer).is_ok());

    let short = format!("{}.mkv", "n".repeat(136));
    let ntfs = Filesystem::ntfs(base, "windows", "ntfs-3g -o windows_names");
    let caseless = Filesystem::ntfs(base, "caseless", "lowntfs-3g -o ignore_case");
    let crypt = Filesystem::gocryptfs(base);
    let cases = [
        (
            &ntfs,
            vec![
                (names[0], "disc_ 1/what_.bin"),
                (names[1], names[1]),
                (names[2], "empty_"),
                (&*long, &*long),
                (names[4], names[4]),
            ],
        ),
        (
            &crypt,
            vec![
                (names[0], names[0]),
                (names[1], names[1]),
                (names[2], names[2]),
                (&*long, &*short),
                (names[4], names[4]),
            ],
        ),
        (
            &caseless,
            vec![
                (names[0], names[0]),
                (names[1], "plain (2).bin"),
                (names[2], names[2]),
                (&*long, &*long),
                (names[4], names[4]),
            ],
        ),
    ];
    for (number, (filesystem, expected)) in cases.into_iter().enumerate() {
        let home = base.join(format!("home{number}"));
        let at = &filesystem.0;
        // The second time nothing is left to fetch.
        for time in 0..2 {
            let got = get(&home, at, &peer, &torrent);
            let said = String::from_utf8_lossy(&got.stderr);
            assert!(got.status.success(), "{}: {said}", at.display());
            for (own, other) in expected.iter().filter(|(own, other)| own != other && time == 0) {
                let line = format!("film/{own} is saved as film/{other}, because the filesystem refuses the name");
                assert_eq!(said.matches(&line).count(), 1, "{line}: {said}");
            }
        }
        for (own, other) in &expected {
            assert!(fs::read(film.join(own)).unwrap() == fs::read(at.join("film").join(other)).unwrap(), "{other}");
        }

        let mount = base.join(format!("m{number}"));
        fs::create_dir(&mount).unwrap();
        std::os::unix::fs::symlink(at.join("cache"), mount.join("cache")).unwrap();
        fs::create_dir(at.join("cache")).unwrap();
        let mounted = Mounted::start(&mount, &torrent, &["--peer", &peer]);
        for (own, _) in &expected {
            assert!(mounted.read(&format!("film/{own}")) == fs::read(film.join(own)).unwrap(), "{own}");
        }
        // Every piece is on the disk, and the cache has no fault.
        let status = || {
            let output = run(TORRENTFS, &["status", "--json", mounted.dir.to_str().unwrap()]);
            serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap_or_default()
        };
        let cache = |status: &serde_json::Value| status.get("cache").cloned();
        wait_until(&format!("all is cached: {}", status()), Duration::from_secs(20), || {
            cache(&status()).is_some_and(|cache| cache["disk"] == 400_000 && cache["fault"].is_null())
        });
        mounted.stop();
        assert!(walk(&at.join("cache")).iter().any(|path| path.to_string_lossy().contains("data/renamed/")));
    }
}

/// Returns the files below a directory.
fn walk(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}
