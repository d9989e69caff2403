//! Mounts whose only sources are web servers (BEP 19).

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::api::{status, stdout_of};
use crate::support::*;

const LIMIT: Duration = Duration::from_secs(180);

/// Starts nginx for a directory. Returns the process and its URL.
fn nginx(base: &Path, root: &Path) -> (Process, String) {
    fs::create_dir_all(base).unwrap();
    // The workers run as nobody when root starts nginx.
    sh(&format!("chmod -R a+rX {}", root.display()));
    let (port, config) = (free_port(), base.join("nginx.conf"));
    let text = format!(
        "daemon off; master_process off; pid {base}/pid; error_log {base}/error; events {{}}
         http {{ access_log off; server {{ listen 127.0.0.1:{port}; root {root}; }} }}",
        base = base.display(),
        root = root.display(),
    );
    fs::write(&config, text).unwrap();
    let process = Process::start(Command::new("nginx").arg("-c").arg(&config).stderr(Stdio::null()));
    wait_until("nginx answers", LIMIT, || TcpStream::connect(("127.0.0.1", port)).is_ok());
    (process, format!("http://127.0.0.1:{port}/"))
}

/// Writes a directory and its torrent, with these web seeds and a tracker that does not exist.
fn publish(lab: &Lab, root: &Path, seeds: &[&str]) -> PathBuf {
    let tree = root.join("a tree");
    fs::create_dir_all(tree.join("with a directory")).unwrap();
    fs::write(tree.join("film.bin"), noise(3_000_000, 1)).unwrap();
    fs::write(tree.join("with a directory/100% é.txt"), noise(777_777, 2)).unwrap();
    fs::write(tree.join("empty"), "").unwrap();
    let torrent = lab.path("tree.torrent");
    let _ = fs::remove_file(&torrent);
    let mut command = Command::new("mktorrent");
    command.args(["-l", "16", "-a", &lab.announce, "-o"]).arg(&torrent);
    for seed in seeds {
        command.args(["-w", seed]);
    }
    let made = command.arg(&tree).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    torrent
}

#[test]
fn a_directory_is_read_from_nginx_alone_and_from_python_alone() {
    if !can_run(&["nginx", "mktorrent", "python3"]) {
        return;
    }
    let _turn = turn();
    let lab = Lab::new();
    let root = lab.path("www");
    fs::create_dir(&root).unwrap();
    let (_nginx, url) = nginx(&lab.path("nginx"), &root);
    let torrent = publish(&lab, &root, &[&url]);
    sh(&format!("chmod -R a+rX {}", root.display()));
    let mount = lab.mount("nginx-mount", &torrent, &["--on-demand"]);
    sh(&format!("diff -r '{}' '{}'", root.display(), mount.dir.display()));
    mount.stop();

    // Python's server does not support ranges.
    let port = free_port();
    let mut command = Command::new("python3");
    command.args(["-m", "http.server", "--bind", "127.0.0.1", &port.to_string()]).current_dir(&root);
    let _python = Process::start(command.stdout(Stdio::null()).stderr(Stdio::null()));
    wait_until("python answers", LIMIT, || TcpStream::connect(("127.0.0.1", port)).is_ok());
    let torrent = publish(&lab, &root, &[&format!("http://127.0.0.1:{port}/")]);
    let mount = lab.mount("python-mount", &torrent, &[]);
    sh(&format!("diff -r '{}' '{}'", root.display(), mount.dir.display()));
    mount.stop();
}

#[test]
fn wrong_bytes_are_never_shown() {
    if !can_run(&["nginx", "mktorrent"]) {
        return;
    }
    let _turn = turn();
    let lab = Lab::new();
    let (good, bad) = (lab.path("good"), lab.path("bad"));
    fs::create_dir(&good).unwrap();
    fs::create_dir(&bad).unwrap();
    let (honest, good_url) = nginx(&lab.path("nginx-good"), &good);
    let (_liar, bad_url) = nginx(&lab.path("nginx-bad"), &bad);
    let torrent = publish(&lab, &good, &[&bad_url, &good_url]);
    sh(&format!(
        "cp -r '{}/.' '{}' && chmod -R a+rX {} {}",
        good.display(),
        bad.display(),
        good.display(),
        bad.display()
    ));
    // Same length, but every piece is wrong.
    fs::write(bad.join("a tree/film.bin"), noise(3_000_000, 9)).unwrap();
    let mount = lab.mount("both", &torrent, &[]);
    sh(&format!("diff -r '{}' '{}'", good.display(), mount.dir.display()));
    mount.stop();
    drop(honest);
    let mount = lab.mount("liar-alone", &torrent, &["--read-timeout", "3s"]);
    assert!(read_at(&mount.path("a tree/film.bin"), 0, 100).is_err());
    wait_until("the liar is logged", LIMIT, || mount.log().contains("does not have the torrent's hash"));
    mount.stop();
}

#[test]
fn a_changed_file_does_not_affect_its_neighbours() {
    if !can_run(&["nginx", "mktorrent"]) {
        return;
    }
    let _turn = turn();
    let lab = Lab::new();
    let (root, torrents) = (lab.path("www"), lab.path("torrents"));
    fs::create_dir(&root).unwrap();
    fs::create_dir(&torrents).unwrap();
    let (_nginx, url) = nginx(&lab.path("nginx"), &root);
    // Ten pieces each, and files whose ends share a piece.
    let (whole, shared) = (10 << 15, 333_333);
    let (other, appended) = (noise(whole, 8), noise(1000, 8));
    let cases = [
        ("other", whole, other.clone()),
        ("other and shorter", whole, other[..100_000].to_vec()),
        ("cut", whole, noise(whole, 2)[..100_000].to_vec()),
        ("empty", whole, Vec::new()),
        ("appended", shared, [noise(shared, 2), appended].concat()),
    ];
    for (number, (name, len, changed)) in cases.into_iter().enumerate() {
        let tree = root.join(name);
        fs::create_dir(&tree).unwrap();
        for (file, seed) in [("a", 1), ("b", 2), ("c", 3)] {
            fs::write(tree.join(file), noise(len, seed)).unwrap();
        }
        let torrent = torrents.join("t.torrent");
        let _ = fs::remove_file(&torrent);
        let mut command = Command::new("mktorrent");
        command.args(["-l", "15", "-w", &url, "-o"]).arg(&torrent).arg(&tree);
        assert!(command.stdout(Stdio::null()).status().unwrap().success());
        fs::write(tree.join("b"), changed).unwrap();
        sh(&format!("chmod -R a+rX '{}'", root.display()));
        // In the background, too, where the order of the pieces is random.
        for (round, mode) in [&["--on-demand"] as &[_], &[]].into_iter().enumerate() {
            let mount = lab.mount(&format!("m{number}-{round}"), &torrent, &[mode, &["--read-timeout", "5s"]].concat());
            // A read of the changed file that waits does not delay the others.
            let changed = mount.path(&format!("{name}/b"));
            let reader = std::thread::spawn(move || read_at(&changed, 0, len));
            for (file, seed) in [("a", 1), ("c", 3)] {
                assert!(mount.read(&format!("{name}/{file}")) == noise(len, seed), "{name}, {file}: {}", mount.log());
            }
            let read = reader.join().unwrap();
            assert_eq!(read.is_ok_and(|data| data == noise(len, 2)), name == "appended", "{name}: {}", mount.log());
            mount.stop();
        }
    }
}

#[test]
fn the_status_says_what_is_skipped() {
    if !can_run(&["mktorrent"]) {
        return;
    }
    let _turn = turn();
    let lab = Lab::new();
    let (film, torrent) = (lab.path("film.bin"), lab.path("film.torrent"));
    fs::write(&film, noise(100_000, 1)).unwrap();
    let mut command = Command::new("mktorrent");
    command.args(["-l", "15", "-w", "ftp://127.0.0.1/film.bin", "-w", "http://127.0.0.1:1/film.bin", "-o"]);
    // More trackers than are used: the last ten. A UDP tracker without a port is used.
    let odd = ["wss://127.0.0.1/", "udp://127.0.0.1:0/", "udp://127.0.0.1/announce"].map(str::to_owned);
    let trackers = odd.into_iter().chain((0..107).map(|n| format!("http://127.0.0.1:1/{n}/announce")));
    command.arg(&torrent).args(trackers.flat_map(|tracker| ["-a".to_owned(), tracker])).arg(&film);
    assert!(command.stdout(Stdio::null()).status().unwrap().success());
    let mount = lab.mount("m", &torrent, &["--on-demand"]);
    let status = &status(&mount)["torrents"][0];
    let error = |url: &str| {
        let lists = ["trackers", "web_seeds"].map(|list| status[list].as_array().unwrap().iter());
        let found = lists.into_iter().flatten().find(|entry| entry["url"] == url);
        found.unwrap_or_else(|| panic!("no {url}: {status}"))["error"].clone()
    };
    assert_eq!(error("wss://127.0.0.1/"), "wss:// trackers are not supported");
    assert_eq!(error("udp://127.0.0.1:0/"), "port 0 of a udp:// tracker cannot be reached");
    assert_eq!(error("ftp://127.0.0.1/film.bin"), "ftp:// is not supported, only http and https");
    assert!(
        error("http://127.0.0.1:1/film.bin").is_null()
            && !error("udp://127.0.0.1/announce").to_string().contains("port")
    );
    assert_eq!(status["excess_trackers"], 10);
    let text = stdout_of(&["status", mount.dir.to_str().unwrap()]);
    for line in [
        "tracker wss://127.0.0.1/: wss:// trackers are not",
        "web seed ftp://127.0.0.1/film.bin: ftp://",
        "and 10 more trackers",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    mount.stop();
}
