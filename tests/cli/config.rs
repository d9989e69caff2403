//! Configuration: the precedence of file, environment and flags, messages for mistakes, and the log.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::support::*;

const LIMIT: Duration = Duration::from_secs(180);

/// Returns the command with its own configuration and cache directories.
fn torrentfs(home: &Path, args: &[&str], environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(TORRENTFS);
    command.args(args).env("XDG_CONFIG_HOME", home.join("config")).env("XDG_CACHE_HOME", home.join("cache"));
    command.env_remove("TORRENTFS_LOG").envs(environment.iter().copied());
    command
}

fn output(home: &Path, args: &[&str], environment: &[(&str, &str)]) -> Output {
    torrentfs(home, args, environment).output().unwrap()
}

/// Writes the user's configuration file. Returns its path.
fn configure(home: &Path, text: &str) -> String {
    let dir = home.join("config/torrentfs");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("torrentfs.toml"), text).unwrap();
    dir.join("torrentfs.toml").to_str().unwrap().to_owned()
}

#[test]
fn the_environment_overrides_the_file_and_each_value_has_its_source() {
    let home = TestDir::new();
    let home = home.path();
    let file = configure(home, "# mine\nmemory = '64MiB'\ncache_size = '2GiB'\nno_dht = true\n");
    let environment = [("TORRENTFS_CACHE_SIZE", "3GiB"), ("TORRENTFS_NO_DHT", "false")];
    let entries = |args: &[&str]| -> serde_json::Value {
        let shown = output(home, args, &environment);
        assert!(shown.status.success(), "{shown:?}");
        serde_json::from_slice(&shown.stdout).unwrap()
    };
    let all = entries(&["config", "--json"]);
    let of = |all: &serde_json::Value, key: &str| {
        let entry = all.as_array().unwrap().iter().find(|entry| entry["key"] == key).unwrap();
        (entry["value"].clone(), entry["from"].as_str().unwrap().to_owned())
    };
    assert_eq!(of(&all, "memory"), ("64MiB".into(), format!("{file}:2")));
    assert_eq!(of(&all, "cache_size"), ("3GiB".into(), "TORRENTFS_CACHE_SIZE".into()));
    assert_eq!(of(&all, "no_dht"), (false.into(), "TORRENTFS_NO_DHT".into()));
    assert_eq!(of(&all, "read_timeout").1, "default");

    let other = home.join("other.toml");
    fs::write(&other, "verify = true").unwrap();
    let other = other.to_str().unwrap();
    let all = entries(&["--config", other, "config", "--json"]);
    assert_eq!(of(&all, "verify"), (true.into(), format!("{other}:1")));
    assert_eq!(of(&all, "memory").1, "default", "the given file replaces the user's");

    let text = String::from_utf8(output(home, &["config"], &environment).stdout).unwrap();
    assert!(text.contains(&format!("memory = \"64MiB\"  # {file}:2\n")), "{text}");
}

#[test]
fn a_mistake_is_reported_in_one_line_with_its_place() {
    let home = TestDir::new();
    let home = home.path();
    let file = configure(home, "memory = '64MiB'\n\ncache_sise = '1GiB'\n");
    for args in [&["config"][..], &["mount", "a.torrent", "/mnt"]] {
        let refused = output(home, args, &[]);
        let text = String::from_utf8(refused.stderr).unwrap();
        assert_eq!(text, format!("torrentfs: {file}:3: unknown key \"cache_sise\"; did you mean \"cache_size\"?\n"));
        assert_eq!(refused.status.code(), Some(2));
    }
    configure(home, "");
    let refused = output(home, &["config"], &[("TORRENTFS_MEMORY", "much")]);
    assert!(String::from_utf8_lossy(&refused.stderr).starts_with("torrentfs: TORRENTFS_MEMORY: "), "{refused:?}");
    let missing = output(home, &["config", "--config", "/nowhere.toml"], &[]);
    assert_eq!(missing.status.code(), Some(2), "{missing:?}");
}

/// A mount follows its configuration. Its log has the configured format and contains no passkey.
#[test]
fn a_mount_follows_its_configuration_and_logs_no_secrets() {
    if !can_run(&["mktorrent"]) {
        return;
    }
    let _turn = turn();
    let home = TestDir::new();
    let home = home.path();
    let (mnt, log) = (home.join("mnt"), home.join("log"));
    fs::create_dir(&mnt).unwrap();
    fs::write(home.join("film.bin"), noise(100_000, 1)).unwrap();
    let secret = "0123456789abcdef0123456789abcdef";
    let tracker = format!("http://127.0.0.1:{}/{secret}/announce?passkey={secret}", free_port());
    sh(&format!(
        "cd '{}' && mktorrent -a '{tracker}' -w 'http://u:{secret}@127.0.0.1:1/' -o film.torrent film.bin",
        home.display()
    ));
    let here = home.join("here");
    configure(home, &format!("cache_dir = {here:?}\nlog_format = 'json'\nread_timeout = '300ms'\nport = 0\n"));
    let film = home.join("film.torrent");
    let mut command = torrentfs(home, &["mount", "-f", "-vv"], &[("TORRENTFS_NO_DHT", "1")]);
    command.args(["--no-lsd", "--no-port-mapping"]).args([&film, &mnt]);
    let mut mount = Process::start(command.stdout(Stdio::null()).stderr(fs::File::create(&log).unwrap()));
    wait_until("the mount is there", LIMIT, || is_mounted(&mnt) && mnt.join("film.bin").exists());
    assert!(fs::read(mnt.join("film.bin")).is_err(), "there is no peer to read from");
    assert!(here.join("lock").exists(), "the cache is not where it was configured");
    let text = || fs::read_to_string(&log).unwrap();
    wait_until("the tracker's error is logged", LIMIT, || text().contains("announce failed"));
    mount.signal("INT");
    assert!(mount.wait(LIMIT).is_some_and(|status| status.success()), "{}", text());
    let text = text();
    assert!(!text.contains(secret), "{text}");
    assert!(text.contains("http://127.0.0.1:") && text.contains("/***/announce?***"), "{text}");
    let lines = text.lines().filter(|line| !line.starts_with("mounted at "));
    let failed = lines.map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|_| panic!("{line}")));
    assert!(failed.filter(|line| line["level"] == "WARN").count() > 0, "{text}");
    let refused = output(home, &["mount", "-f", &format!("{tracker}&x.torrent"), mnt.to_str().unwrap()], &[]);
    assert!(!String::from_utf8_lossy(&refused.stderr).contains(secret), "{refused:?}");
}

/// The file has `on_demand = true`. Every other source overrides it.
#[test]
fn a_flag_an_option_and_a_variable_override_the_file() {
    let _turn = turn();
    let home = TestDir::new();
    let home = home.path();
    let [film, torrent, mnt] =
        ["film.bin", "film.torrent", "mnt"].map(|name| home.join(name).to_str().unwrap().to_owned());
    fs::write(&film, noise(100_000, 1)).unwrap();
    fs::create_dir(&mnt).unwrap();
    assert!(output(home, &["create", &film, "-o", &torrent], &[]).status.success());
    configure(home, "on_demand = true\nno_dht = true\nno_lsd = true\nno_port_mapping = true\nport = 0\n");
    for (flags, environment, on_demand) in [
        (&[][..], &[][..], true),
        (&["--on-demand=false"], &[], false),
        (&["-o", "on_demand=false"], &[], false),
        (&[], &[("TORRENTFS_ON_DEMAND", "false")], false),
        // Without a value, the flag means true, and it overrides the variable.
        (&["--on-demand"], &[("TORRENTFS_ON_DEMAND", "false")], true),
    ] {
        let args = [&["mount", "--bind", "127.0.0.1"], flags, &[&torrent, &mnt]].concat();
        let mounted = output(home, &args, environment);
        assert!(mounted.status.success(), "{flags:?}: {mounted:?}");
        let status = output(home, &["status", "--json", &mnt], &[]);
        let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
        let unmounted = output(home, &["unmount", &mnt], &[]);
        assert_eq!(status["torrents"][0]["on_demand"], on_demand, "{flags:?} {environment:?}: {status}");
        assert!(unmounted.status.success(), "{unmounted:?}");
    }
}

/// Mounts at the same time share a configured cache directory, with a cache of their own in it, and find it again.
#[test]
fn mounts_at_once_have_separate_caches_and_find_them_again() {
    let _turn = turn();
    let tmp = TestDir::new();
    let home = tmp.path().canonicalize().unwrap();
    let home = home.as_path();
    let path = |name: &str| home.join(name).to_str().unwrap().to_owned();
    let [film, torrent] = ["film.bin", "film.torrent"].map(path);
    let data = noise(300_000, 1);
    fs::write(&film, &data).unwrap();
    assert!(output(home, &["create", &film, "-o", &torrent], &[]).status.success());
    let port = free_port();
    let alone = ["--bind", "127.0.0.1", "--no-dht", "--no-lsd", "--no-port-mapping"];
    let mut seeder = torrentfs(home, &["seed"], &[]);
    seeder.args(alone).args(["--port", &port.to_string(), &torrent, &film]).stdout(Stdio::null()).stderr(Stdio::null());
    let _seeder = Process::start(&mut seeder);
    let peer = format!("127.0.0.1:{port}");

    let shared = [path("by file"), path("by variable"), path("cache/torrentfs")];
    let cases = [
        (format!("cache_dir = {:?}", shared[0]), None),
        (String::new(), Some(shared[1].as_str())),
        (String::new(), None),
    ];
    for (n, ((file, variable), shared)) in cases.iter().zip(&shared).enumerate() {
        configure(home, file);
        let environment: Vec<_> = variable.iter().map(|dir| ("TORRENTFS_CACHE_DIR", *dir)).collect();
        let [one, two] = ["one", "two"].map(|name| {
            fs::create_dir(home.join(format!("{name}{n}"))).unwrap();
            path(&format!("{name}{n}"))
        });
        let mount = |mountpoint: &str, flags: &[&str]| {
            let args = [&["mount", "--port", "0"], &alone[..], flags, &[&torrent, mountpoint]].concat();
            let mounted = output(home, &args, &environment);
            assert!(mounted.status.success(), "{mounted:?}");
            String::from_utf8(mounted.stdout).unwrap()
        };
        let unmount = |mountpoint: &str| assert!(output(home, &["unmount", mountpoint], &[]).status.success());
        let fetching = ["--peer", &peer];
        assert!(mount(&one, &fetching).contains(&format!("log: {shared}/torrentfs.log")));
        let text = mount(&two, &fetching);
        let log = text.lines().find_map(|line| line.strip_prefix("log: ")).unwrap();
        let dir = Path::new(log).parent().unwrap();
        assert!(dir.parent() == Some(&Path::new(shared).join("mounts")) && dir.join("lock").exists(), "{text}");
        for mountpoint in [&one, &two] {
            assert!(fs::read(Path::new(mountpoint).join("film.bin")).unwrap() == data);
        }
        // A second mount at the same mountpoint gets no other cache.
        let twice = output(home, &["mount", &torrent, &two], &environment);
        assert_eq!(twice.status.code(), Some(4), "{twice:?}");
        unmount(&one);
        unmount(&two);
        // Without a peer, all bytes come from the caches.
        let nobody = ["--read-timeout", "1s"];
        assert!(mount(&two, &nobody).contains(&format!("log: {log}")), "a mount did not get its own cache again");
        assert!(mount(&one, &nobody).contains(&format!("log: {shared}/torrentfs.log")));
        for mountpoint in [&one, &two] {
            assert!(fs::read(Path::new(mountpoint).join("film.bin")).unwrap() == data, "the cache was not found again");
            unmount(mountpoint);
        }
        assert_eq!(fs::read_dir(Path::new(shared).join("mounts")).unwrap().count(), 1);
    }
}
