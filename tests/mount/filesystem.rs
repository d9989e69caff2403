//! Mounts in this process: the kernel's FUSE, ordinary tools, and made-up files of which some block until a test opens a
//! gate.
//!
//! Without `/dev/fuse` the tests are skipped with a message, but in CI they fail.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;

use torrentfs::internals::fs::unmount::attribute;
use torrentfs::internals::fs::{MountError, MountOptions, Mounted, mountinfo};

use crate::fixture::*;
use crate::support::TestDir;

// ---- tools

#[test]
fn ordinary_tools_read_the_torrent() {
    let Some(mut fixture) = Fixture::new() else { return };
    let root = fixture.root().to_owned();
    assert_eq!(succeed("ls", &[&"-A", &root.join("t")]), "big.bin\ncat\ndir\nempty\nlink\nsmall.txt\nwait\n");
    let found =
        succeed("find", &[&root.join("t"), &"-path", &"*wait*", &"-prune", &"-o", &"-printf", &"%y %m %s %P\n"]);
    let mut found: Vec<_> = found.lines().collect();
    found.sort_unstable();
    let cat = format!("f 555 {} cat", fs::metadata("/bin/cat").unwrap().len());
    let expected = [
        "d 555 0 ",
        "d 555 0 dir",
        "d 555 0 dir/deep",
        "f 444 0 empty",
        "f 444 300000 dir/deep/zeros",
        "f 444 3145745 big.bin",
        "f 444 6 small.txt",
        &cat,
        "l 777 14 link",
    ];
    assert_eq!(found, expected);
    let stat = succeed("stat", &[&"-c", &"%h %b %Y %U", &fixture.path("big.bin")]);
    let me = succeed("id", &[&"-un"]);
    assert_eq!(stat, format!("1 6145 1500000000 {me}"));
    assert_eq!(fs::metadata(&root).unwrap().ino(), 1);
    assert_eq!(fs::read_link(fixture.path("link")).unwrap(), Path::new("dir/deep/zeros"));
    assert_eq!(fs::read(fixture.path("link")).unwrap(), vec![0; 300_000]);

    let copy = tempfile::tempdir().unwrap();
    let to = copy.path();
    for name in ["dir", "empty", "big.bin", "small.txt", "link", "cat"] {
        succeed("cp", &[&"-r", &fixture.path(name), &to]);
    }
    succeed("cmp", &[&fixture.path("big.bin"), &to.join("big.bin")]);
    assert_eq!(fs::read(to.join("big.bin")).unwrap(), fixture.fake.data[2]);
    assert_eq!(fs::read(to.join("dir/deep/zeros")).unwrap(), vec![0; 300_000]);

    // A sparse archive reads block counts and holes.
    let archive = to.join("a.tar");
    succeed("tar", &[&"-C", &root.join("t"), &"-cSf", &archive, &"big.bin", &"dir", &"small.txt"]);
    fs::create_dir(to.join("out")).unwrap();
    succeed("tar", &[&"-C", &to.join("out"), &"-xf", &archive]);
    assert_eq!(fs::read(to.join("out/big.bin")).unwrap(), fixture.fake.data[2]);
    assert_eq!(fs::read(to.join("out/dir/deep/zeros")).unwrap(), vec![0; 300_000]);

    // The kernel maps a program into memory to run it.
    let output = succeed(fixture.path("cat").to_str().unwrap(), &[&fixture.path("small.txt")]);
    assert_eq!(output, "hello\n");
    let refused = Command::new(fixture.path("small.txt")).output().unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);

    let df = succeed("df", &[&"--output=fstype,avail", &root]);
    assert_eq!(df.lines().nth(1).unwrap().split_whitespace().collect::<Vec<_>>(), ["fuse.torrentfs", "0"]);
    fixture.unmount().unwrap();
    assert!(!fixture.is_mounted());
    assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
}

#[test]
fn reads_and_seeks_at_any_offset() {
    let Some(fixture) = Fixture::new() else { return };
    let mut file = File::open(fixture.path("big.bin")).unwrap();
    let data = &fixture.fake.data[2];
    for (offset, len) in [(0, 1), (3_145_700, 100), (1_000_003, 200_000), (3_145_745, 10), (4_000_000, 10), (17, 0)] {
        let mut buffer = vec![0; len];
        let mut got = 0;
        while let Ok(n @ 1..) = file.read_at(&mut buffer[got..], offset + got as u64) {
            got += n;
        }
        let start = (offset as usize).min(data.len());
        assert_eq!(buffer[..got], data[start..(start + len).min(data.len())], "{len} bytes at {offset}");
    }
    file.seek(SeekFrom::End(-5)).unwrap();
    let mut tail = Vec::new();
    file.read_to_end(&mut tail).unwrap();
    assert_eq!(tail, data[data.len() - 5..]);
    assert_eq!(fs::read(fixture.path("empty")).unwrap(), b"");
    assert_eq!(File::open(fixture.path("nothing")).unwrap_err().kind(), io::ErrorKind::NotFound);
    assert_eq!(File::open(fixture.path("nothing")).unwrap_err().kind(), io::ErrorKind::NotFound);
}

#[test]
fn extended_attributes_are_read_through_the_kernel() {
    let Some(fixture) = Fixture::new() else { return };
    let hash = fixture.fake.metainfo.info_hash.to_string();
    assert_eq!(attribute(&fixture.path("big.bin"), "infohash").unwrap(), hash);
    assert_eq!(attribute(&fixture.path("small.txt"), "progress").unwrap(), "100");
    assert_eq!(attribute(&fixture.path("small.txt"), "pieces").unwrap(), "1/1");
    assert_eq!(attribute(&fixture.path("wait/99"), "progress").unwrap(), "0");
    let pieces = fixture.fake.metainfo.layout.lengths().pieces();
    assert_eq!(attribute(fixture.root(), "pieces").unwrap(), format!("{}/{pieces}", pieces / 2));
    assert_eq!(attribute(fixture.root(), "pid").unwrap(), std::process::id().to_string());
    let absent = attribute(&fixture.path("big.bin"), "pid").unwrap_err();
    assert_eq!(absent.raw_os_error(), Some(libc::ENODATA));
    if Path::new("/usr/bin/getfattr").exists() {
        let foreign = run("getfattr", &[&"-n", &"security.selinux", &fixture.path("big.bin")]);
        let message = String::from_utf8(foreign.stderr).unwrap();
        assert!(message.contains("Operation not supported"), "{message}");
    }
    if Path::new("/usr/bin/getfattr").exists() {
        let list = succeed("getfattr", &[&"--absolute-names", &"-d", &fixture.path("small.txt")]);
        let ours: Vec<_> = list.lines().filter(|line| line.starts_with("user.")).collect();
        let hash = format!("user.torrentfs.infohash=\"{hash}\"");
        assert_eq!(ours, [&hash, "user.torrentfs.pieces=\"1/1\"", "user.torrentfs.progress=\"100\""]);
    }
}

#[test]
fn nothing_can_be_written() {
    let Some(fixture) = Fixture::new() else { return };
    let (small, root) = (fixture.path("small.txt"), fixture.root().to_owned());
    let write_all = |fixture: &Fixture| {
        let results: [io::Result<()>; 9] = [
            File::create(fixture.path("new")).map(drop),
            File::options().write(true).open(&small).map(drop),
            File::options().append(true).open(&small).map(drop),
            fs::remove_file(&small),
            fs::create_dir(root.join("d")),
            fs::remove_dir(fixture.path("dir")),
            fs::rename(&small, root.join("x")),
            std::os::unix::fs::symlink("a", root.join("l")),
            fs::set_permissions(&small, PermissionsExt::from_mode(0o600)),
        ];
        results.map(|result| result.unwrap_err().raw_os_error())
    };
    assert_eq!(write_all(&fixture), [Some(libc::EROFS); 9]);
    if is_root() {
        // Now the kernel passes writes on to us.
        succeed("mount", &[&"-i", &"-o", &"remount,rw", &fixture.root()]);
        assert_eq!(write_all(&fixture), [Some(libc::EROFS); 9]);
    }
    assert_eq!(fs::read(&small).unwrap(), b"hello\n");
}

#[test]
fn a_large_directory_is_listed_completely() {
    if !can_mount() {
        return;
    }
    let (runtime, directory) = (runtime(), TestDir::new());
    let many = many(20_000);
    let film = torrent("film.mkv", vec![fake_file("film.mkv", noise(3, 1000))]);
    let options = MountOptions::default();
    let _mounted = Mounted::start(vec![film, many], directory.path(), &options, runtime.handle().clone()).unwrap();
    let listing = succeed("ls", &[&"-l", &directory.path().join("many")]);
    assert_eq!(listing.lines().count(), 20_001);
    assert_eq!(fs::read(directory.path().join("many/00300")).unwrap(), [300u16 as u8]);
    assert_eq!(fs::read(directory.path().join("film.mkv")).unwrap(), noise(3, 1000));
}

// ---- blocked reads

#[test]
fn a_read_waits_for_its_data() {
    let Some(fixture) = Fixture::new() else { return };
    let read = read_in_background(fixture.path("wait/7"));
    fixture.wait_for_blocked_reads(1);
    assert!(read.try_recv().is_err());
    fixture.fake.gate.send_replace(true);
    assert_eq!(read.recv_timeout(LONG).unwrap().unwrap(), noise(7, 200_000));
}

#[test]
fn blocked_reads_stall_no_other_file() {
    let Some(fixture) = Fixture::new() else { return };
    let blocked: Vec<_> = (0..40).map(|n| read_in_background(fixture.path(&format!("wait/{n}")))).collect();
    fixture.wait_for_blocked_reads(40);
    assert_eq!(read_in_background(fixture.path("big.bin")).recv_timeout(LONG).unwrap().unwrap(), fixture.fake.data[2]);
    // Opening a file with a blocked read does not block.
    assert_eq!(File::open(fixture.path("wait/0")).unwrap().metadata().unwrap().len(), 200_000);
    assert!(blocked.iter().all(|read| read.try_recv().is_err()));
    fixture.fake.gate.send_replace(true);
    for (n, read) in blocked.iter().enumerate() {
        assert_eq!(read.recv_timeout(LONG).unwrap().unwrap(), noise(n as u64, 200_000));
    }
}

/// The kernel reads ahead, but bytes that are available do not wait for those behind them.
#[test]
fn available_bytes_do_not_wait_for_missing_ones() {
    let Some(fixture) = Fixture::new() else { return };
    for begin in [128 << 10, 0] {
        let (path, data) = (fixture.path("wait/half"), noise(200, HALF as usize));
        let (give, take) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let (file, mut chunk) = (File::open(path).unwrap(), vec![0; 64 << 10]);
            for at in (begin..HALF).step_by(chunk.len()) {
                file.read_exact_at(&mut chunk, at).unwrap();
                give.send((at, chunk.clone())).unwrap();
            }
        });
        for at in (begin..HALF).step_by(64 << 10) {
            let (got, chunk) = take.recv_timeout(LONG).unwrap();
            assert!(got == at && chunk == data[at as usize..][..64 << 10], "at {at}");
        }
    }
}

#[test]
fn ctrl_c_ends_a_blocked_reader() {
    let Some(fixture) = Fixture::new() else { return };
    let mut cat = Running::new("cat", &fixture.path("wait/3"));
    fixture.wait_for_blocked_reads(1);
    cat.signal("-INT");
    let status = cat.wait();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGINT));
    assert!(!*fixture.fake.gate.borrow());
}

#[test]
fn signals_end_a_blocked_reader_of_direct_io() {
    use std::os::unix::process::ExitStatusExt;
    let Some(fixture) = Fixture::new() else { return };
    for (n, signal) in (1..).zip([libc::SIGKILL, libc::SIGTERM, libc::SIGINT, libc::SIGQUIT]) {
        // A shell starts its background jobs with signals ignored, and the test may be in one.
        let mut dd = Command::new("env");
        dd.args(["--default-signal=INT,QUIT,TERM", "dd", "iflag=direct", "bs=64k", "count=1", "of=/dev/null"]);
        let mut dd = Running::start(dd.arg(format!("if={}", fixture.path(&format!("wait/{n}")).display())));
        fixture.wait_for_blocked_reads(n);
        dd.signal(&format!("-{signal}"));
        assert_eq!(dd.wait().signal(), Some(signal));
    }
    // The handler of a caught signal runs.
    let handler = "import mmap, os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
file = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
os.readv(file, [mmap.mmap(-1, 65536)])";
    let mut python = Command::new("python3");
    let mut python = Running::start(python.args(["-c", handler]).arg(fixture.path("wait/9")));
    fixture.wait_for_blocked_reads(5);
    python.signal("-TERM");
    assert_eq!(python.wait().code(), Some(7));
    assert!(!*fixture.fake.gate.borrow());
}

#[test]
fn nothing_is_fetched_for_a_reader_that_was_killed() {
    let Some(fixture) = Fixture::new() else { return };
    let mut cat = Running::new("cat", &fixture.path("wait/5"));
    fixture.wait_for_blocked_reads(1);
    cat.signal("-KILL");
    cat.wait();
    // Its file is closed, which the kernel does only when all of its reads are answered.
    until("the reader is dropped", || fixture.fake.gate.receiver_count() == 0);
    // Another reader of the same pages is not affected.
    let read = read_in_background(fixture.path("wait/5"));
    fixture.fake.gate.send_replace(true);
    assert_eq!(read.recv_timeout(LONG).unwrap().unwrap(), noise(5, 200_000));
}

#[test]
fn unmounting_ends_a_hundred_blocked_reads() {
    let Some(mut fixture) = Fixture::new() else { return };
    let blocked: Vec<_> = (0..100).map(|n| read_in_background(fixture.path(&format!("wait/{n}")))).collect();
    fixture.wait_for_blocked_reads(100);
    fixture.unmount().unwrap();
    for read in blocked {
        assert!(read.recv_timeout(LONG).unwrap().is_err());
    }
    assert!(!fixture.is_mounted());
}

// ---- unmounting

#[test]
fn open_files_do_not_delay_unmounting() {
    let Some(mut fixture) = Fixture::new() else { return };
    let file = File::open(fixture.path("big.bin")).unwrap();
    file.read_at(&mut [0; 10], 0).unwrap();
    fixture.unmount().unwrap();
    assert!(!fixture.is_mounted());
    let dead = file.read_at(&mut [0; 10], 3_000_000).unwrap_err();
    assert!(matches!(dead.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED)), "{dead}");
}

#[test]
fn an_external_umount_is_noticed_and_no_other_mount_is_touched() {
    if !is_root() {
        return;
    }
    let Some(mut fixture) = Fixture::new() else { return };
    let root = fixture.root().to_owned();
    let file = File::open(fixture.path("small.txt")).unwrap();
    assert!(!run("umount", &[&root]).status.success(), "a busy mount was unmounted");
    assert!(fixture.is_mounted());
    drop(file);
    // A program that another test is just starting holds a copy of the file until it is executed.
    until("umount", || run("umount", &[&root]).status.success());
    let mounted = fixture.mounted.take().unwrap();
    fixture.runtime.block_on(async { tokio::time::timeout(LONG, mounted.ended()).await.unwrap() });
    // The mount has left the list of mounts; the connection ends a moment later.
    until("the connection ends", || mounted.is_ended());
    // Another filesystem is mounted at the same place. Our end must not unmount it.
    succeed("mount", &[&"-t", &"tmpfs", &"tmpfs", &root]);
    fixture.mounted = Some(mounted);
    fixture.unmount().unwrap();
    assert!(fixture.is_mounted());
    succeed("umount", &[&root]);
}

#[test]
fn a_mount_over_ours_is_not_touched() {
    if !is_root() {
        return;
    }
    let Some(mut fixture) = Fixture::new() else { return };
    let root = fixture.root().to_owned();
    succeed("mount", &[&"-t", &"tmpfs", &"tmpfs", &root]);
    fixture.unmount().unwrap();
    assert_eq!(mountinfo::mount_at(&root).unwrap().unwrap().fstype, "tmpfs");
    succeed("umount", &[&root]);
    let _ = run("umount", &[&"-l", &root]);
}

#[test]
fn dropping_a_mount_unmounts_it() {
    let Some(mut fixture) = Fixture::new() else { return };
    drop(fixture.mounted.take());
    assert!(!fixture.is_mounted());
}

#[test]
fn a_live_mount_is_not_mounted_over() {
    let Some(fixture) = Fixture::new() else { return };
    let again =
        Mounted::start(vec![sample()], fixture.root(), &MountOptions::default(), fixture.runtime.handle().clone());
    let error = again.expect_err("mounted twice");
    assert!(matches!(error, MountError::AlreadyMounted(_)), "{error}");
    assert_eq!(fs::read(fixture.path("small.txt")).unwrap(), b"hello\n");
}

#[test]
fn the_options_reach_the_kernel() {
    if !can_mount() || !is_root() {
        return;
    }
    let (runtime, directory) = (runtime(), TestDir::new());
    let options = MountOptions {
        allow_other: true,
        uid: Some(1234),
        gid: Some(4321),
        umask: 0o007,
        fsname: "a b,user_id=7".to_owned(),
        read_ahead: 512 * 1024,
        max_read: 32 * 1024,
        ..MountOptions::default()
    };
    let fake = sample();
    let mounted = Mounted::start(vec![fake.clone()], directory.path(), &options, runtime.handle().clone()).unwrap();
    let mount = mountinfo::mount_at(mounted.path()).unwrap().unwrap();
    assert_eq!((mount.fstype.as_str(), mount.owner()), ("fuse.torrentfs", Some(0)));
    for option in ["max_read=32768", "allow_other", "default_permissions"] {
        assert!(mount.options.split(',').any(|set| set == option), "{option} in {}", mount.options);
    }
    let source = succeed("findmnt", &[&"-no", &"SOURCE", &directory.path()]);
    // Root mounts without a parser of options in between.
    assert_eq!(source.trim(), "a b,user_id=7");
    let (major, minor) = mount.device;
    let read_ahead = fs::read_to_string(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb")).unwrap();
    assert_eq!(read_ahead.trim(), "512");
    assert_eq!(fs::read(directory.path().join("t/big.bin")).unwrap(), fake.data[2]);
    assert_eq!(fake.largest.load(Ordering::SeqCst), 32 * 1024);
    let file = fs::metadata(directory.path().join("t/small.txt")).unwrap();
    assert_eq!((file.uid(), file.gid(), file.mode() & 0o777), (1234, 4321, 0o440));
    // Other users have the access that the modes allow.
    let path = directory.path().join("t/small.txt");
    let as_user = |uid: &str| run("setpriv", &[&"--reuid", &uid, &"--regid", &uid, &"--clear-groups", &"cat", &path]);
    assert!(as_user("1234").status.success());
    assert!(!as_user("5678").status.success());
    drop(mounted);
}
