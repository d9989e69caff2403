//! Mounts whose only sources are web servers (BEP 19).

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::*;

const LIMIT: Duration = Duration::from_secs(60);

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
    wait_until("the liar is logged", LIMIT, || mount.log().contains("web seed banned"));
    mount.stop();
}
