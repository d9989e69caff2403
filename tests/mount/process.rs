//! Mounts that another process serves: dead, stopped, of another user, and how they are unmounted from outside.
//!
//! Without `/dev/fuse` the tests are skipped with a message, but in CI they fail.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;

use torrentfs::internals::fs::unmount::attribute;
use torrentfs::internals::fs::{MountOptions, Mounted, UnmountError, mountinfo, unmount_path};

use crate::fixture::*;
use crate::support::TestDir;

const SERVE: &str = "TORRENTFS_TEST_SERVE";
const UNMOUNT: &str = "TORRENTFS_TEST_UNMOUNT";

/// Not a test: the code of the processes that the tests below start. It unmounts a path, or serves a mount until SIGTERM, an
/// `umount`, or the end of standard input, at which it aborts without unmounting. A process of its own for each, because it
/// exits, and catches a signal.
#[test]
fn helper() {
    if let Some(path) = std::env::var_os(UNMOUNT) {
        match unmount_path(Path::new(&path)) {
            Ok(()) => println!("HELPER unmounted"),
            Err(error) => println!("HELPER {error}"),
        }
    }
    let Some(path) = std::env::var_os(SERVE) else { return };
    thread::spawn(|| {
        let _ = io::stdin().read(&mut [0]);
        std::process::abort();
    });
    let runtime = runtime();
    let contents = vec![sample(), many(2000)];
    let started = Mounted::start(contents, Path::new(&path), &MountOptions::default(), runtime.handle().clone());
    let mounted = match started {
        Ok(mounted) => mounted,
        Err(error) => return println!("HELPER {error}"),
    };
    runtime.block_on(async {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
        println!("HELPER mounted");
        io::stdout().flush().unwrap();
        tokio::select! {
            _ = terminate.recv() => {}
            () = mounted.ended() => {}
        }
        mounted.unmount().await.unwrap();
    });
    // As `main` does.
    std::process::exit(0);
}

/// Runs `helper` in a process, as another user if given. Returns its first message.
fn start_helper(variable: &str, path: &Path, user: Option<u32>) -> (Running, String) {
    let test = std::env::current_exe().unwrap();
    let mut command = match user {
        Some(user) => {
            let mut command = Command::new("setpriv");
            command.args(["--reuid", &user.to_string(), "--regid", &user.to_string(), "--clear-groups"]).arg(test);
            command
        }
        None => Command::new(test),
    };
    let mut child = command
        .args(["--exact", "process::helper", "--nocapture", "--test-threads=1"])
        .env(variable, path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let message = lines.find_map(|line| Some(line.split_once("HELPER ")?.1.to_owned())).unwrap_or_default();
    // Reads on, so that further output does not fail.
    thread::spawn(move || lines.for_each(drop));
    (Running(child), message)
}

fn start_server(path: &Path) -> Running {
    let (process, message) = start_helper(SERVE, path, None);
    assert_eq!(message, "mounted");
    process
}

#[test]
fn a_dead_mount_is_replaced() {
    if !can_mount() {
        return;
    }
    let directory = TestDir::new();
    let mut server = start_server(directory.path());
    assert_eq!(fs::read(directory.path().join("t/small.txt")).unwrap(), b"hello\n");
    server.0.kill().unwrap();
    server.wait();
    assert!(is_mounted(directory.path()));
    assert_eq!(attribute(directory.path(), "pid").unwrap_err().raw_os_error(), Some(libc::ENOTCONN));
    let _again = start_server(directory.path());
    assert_eq!(fs::read(directory.path().join("t/small.txt")).unwrap(), b"hello\n");
    unmount_path(directory.path()).unwrap();
    assert!(!is_mounted(directory.path()));
}

#[test]
fn a_dead_mount_is_unmounted() {
    if !can_mount() {
        return;
    }
    let directory = TestDir::new();
    let mut server = start_server(directory.path());
    server.0.kill().unwrap();
    server.wait();
    unmount_path(directory.path()).unwrap();
    assert!(!is_mounted(directory.path()));
    assert!(matches!(unmount_path(directory.path()), Err(UnmountError::NotMounted(_))));
}

/// Lists everything below a path, with sizes on request.
fn walk(path: &Path, sizes: bool) -> io::Result<Vec<(PathBuf, Option<u64>)>> {
    let (mut found, mut open) = (Vec::new(), vec![path.to_owned()]);
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                open.push(entry.path());
            }
            let size = if sizes { Some(entry.metadata()?.len()) } else { None };
            found.push((entry.path(), size));
        }
    }
    Ok(found)
}

#[test]
fn the_kernel_caches_listings() {
    if !can_mount() {
        return;
    }
    let directory = TestDir::new();
    let server = start_server(directory.path());
    let first = walk(directory.path(), false).unwrap();
    server.signal("-STOP");
    let (path, (give, take)) = (directory.path().to_owned(), mpsc::channel());
    thread::spawn(move || give.send(walk(&path, true)));
    let again = take.recv_timeout(LONG);
    server.signal("-CONT");
    let again = again.expect("the kernel asked again").unwrap();
    assert!(again.iter().map(|(path, _)| path).eq(first.iter().map(|(path, _)| path)));
    assert_eq!(again.iter().filter(|(_, size)| *size == Some(1)).count(), 2000);
    unmount_path(directory.path()).unwrap();
}

#[test]
fn unmounting_by_path_ends_the_process_despite_open_files() {
    if !can_mount() {
        return;
    }
    let directory = TestDir::new();
    let mut server = start_server(directory.path());
    let file = File::open(directory.path().join("t/small.txt")).unwrap();
    let blocked: Vec<_> = (0..5).map(|n| read_in_background(directory.path().join(format!("t/wait/{n}")))).collect();
    unmount_path(directory.path()).unwrap();
    assert!(!is_mounted(directory.path()));
    assert!(server.wait().success(), "the server did not end in order");
    for read in blocked {
        assert!(read.recv_timeout(LONG).unwrap().is_err());
    }
    drop(file);
}

#[test]
fn a_lazy_unmount_ends_the_process_and_its_waiting_reads() {
    if !can_mount() || !is_root() {
        return;
    }
    let directory = TestDir::new();
    let mut server = start_server(directory.path());
    let file = File::open(directory.path().join("t/small.txt")).unwrap();
    let blocked: Vec<_> = (0..5).map(|n| read_in_background(directory.path().join(format!("t/wait/{n}")))).collect();
    // An end of another mount is none of this one.
    let other = TestDir::new();
    succeed("mount", &[&"-t", &"tmpfs", &"none", &other.path()]);
    succeed("umount", &[&"-l", &other.path()]);
    // Nor does it end while it is mounted in a second place.
    succeed("mount", &[&"--bind", &directory.path(), &other.path()]);
    succeed("umount", &[&"-l", &directory.path()]);
    assert_eq!(fs::read(other.path().join("t/small.txt")).unwrap(), b"hello\n");
    assert!(blocked.iter().all(|read| read.try_recv().is_err()));

    succeed("umount", &[&"-l", &other.path()]);
    for read in blocked {
        assert!(read.recv_timeout(LONG).expect("a read still waits").is_err());
    }
    assert!(server.wait().success(), "the server did not end in order");
    assert!(matches!(unmount_path(directory.path()), Err(UnmountError::NotMounted(_))));
    drop(file);
}

#[test]
fn a_stopped_process_does_not_block_unmounting() {
    if !can_mount() || !is_root() {
        return;
    }
    let directory = TestDir::new();
    let server = start_server(directory.path());
    server.signal("-STOP");
    unmount_path(directory.path()).unwrap();
    assert!(!is_mounted(directory.path()));
}

#[test]
fn a_user_mounts_and_unmounts_through_fusermount() {
    const NOBODY: u32 = 65534;
    if !can_mount() || !is_root() {
        return;
    }
    if Command::new("fusermount3").arg("-V").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "fusermount3 is missing");
        return eprintln!("skipped: fusermount3 is missing");
    }
    // The user must be able to run this program.
    let probe = run("setpriv", &[&"--reuid", &NOBODY.to_string(), &"test", &"-x", &std::env::current_exe().unwrap()]);
    if !probe.status.success() {
        return eprintln!("skipped: another user cannot run this program");
    }
    let device = run("setpriv", &[&"--reuid", &NOBODY.to_string(), &"--clear-groups", &"test", &"-w", &"/dev/fuse"]);
    if !device.status.success() {
        return eprintln!("skipped: /dev/fuse is for root only");
    }
    let directory = TestDir::new();
    std::os::unix::fs::chown(directory.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    let path = directory.path();

    let (mut server, message) = start_helper(SERVE, path, Some(NOBODY));
    assert_eq!(message, "mounted");
    let mount = mountinfo::mount_at(path).unwrap().unwrap();
    assert_eq!((mount.fstype.as_str(), mount.owner()), ("fuse.torrentfs", Some(NOBODY)));
    // The kernel requires the same group, too.
    let user = NOBODY.to_string();
    let as_user = ["--reuid", &user, "--regid", &user, "--clear-groups"];
    let cat = Command::new("setpriv").args(as_user).arg("cat").arg(path.join("t/small.txt")).output().unwrap();
    assert_eq!(cat.stdout, b"hello\n");
    assert_eq!(fs::metadata(path).unwrap_err().kind(), io::ErrorKind::PermissionDenied, "root has access");
    // An open file keeps a detached mount alive.
    let open = Command::new("setpriv")
        .args(as_user)
        .args(["tail", "-f"])
        .arg(path.join("t/small.txt"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut open = Running(open);
    open.0.stdout.take().unwrap().read_exact(&mut [0; 6]).unwrap();
    let (_unmounter, message) = start_helper(UNMOUNT, path, Some(NOBODY));
    assert_eq!(message, "unmounted");
    assert!(!is_mounted(path));
    assert!(server.wait().success());

    // Root can unmount it, although root has no access to it.
    let (mut server, message) = start_helper(SERVE, path, Some(NOBODY));
    assert_eq!(message, "mounted");
    unmount_path(path).unwrap();
    assert!(!is_mounted(path));
    assert!(server.wait().success());
}
