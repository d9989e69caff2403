//! The real mount: a real `/dev/fuse`, ordinary tools, and contents made up here, some of which wait until told.
//!
//! Without `/dev/fuse` the tests say so and pass, but in CI they fail.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use torrentfs::fs::unmount::attribute;
use torrentfs::fs::{
    Content, MountError, MountOptions, Mounted, ReadError, Reader, UnmountError, mountinfo, unmount_path,
};
use torrentfs::metainfo::{self, FileIndex, FileKind, InfoHash, Layout, Lengths, Metainfo, PieceHashes};

/// Far more than anything here takes: only a hang reaches it.
const LONG: Duration = Duration::from_secs(60);

// ---- contents

/// A torrent in memory. Reads of its gated files wait until the gate opens.
struct Fake {
    metainfo: Metainfo,
    data: Vec<Bytes>,
    gated: HashSet<u32>,
    gate: watch::Sender<bool>,
    waiting: Arc<AtomicUsize>,
    /// The largest read so far, in bytes.
    largest: Arc<AtomicUsize>,
}

struct FakeReader {
    data: Bytes,
    gate: Option<watch::Receiver<bool>>,
    waiting: Arc<AtomicUsize>,
    largest: Arc<AtomicUsize>,
}

struct Part {
    path: String,
    data: Bytes,
    kind: FileKind,
    gated: bool,
}

fn part(path: impl Into<String>, data: impl Into<Bytes>) -> Part {
    Part { path: path.into(), data: data.into(), kind: FileKind::Regular { executable: false }, gated: false }
}

/// Bytes that differ from place to place.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

fn torrent(name: &str, parts: Vec<Part>) -> Arc<Fake> {
    let (mut files, mut data, mut gated, mut offset) = (Vec::new(), Vec::new(), HashSet::new(), 0);
    for (index, part) in (0..).zip(parts) {
        let len = part.data.len() as u64;
        let path = part.path.split('/').map(str::to_owned).collect();
        files.push(metainfo::File { path, offset, len, kind: part.kind });
        offset += len;
        data.push(part.data);
        if part.gated {
            gated.insert(index);
        }
    }
    let metainfo = Metainfo {
        info_hash: InfoHash::of(name.as_bytes()),
        name: name.to_owned(),
        private: false,
        trackers: Vec::new(),
        web_seeds: Vec::new(),
        http_seeds: Vec::new(),
        nodes: Vec::new(),
        creation_date: Some(1_500_000_000),
        comment: None,
        created_by: None,
        source: None,
        layout: Layout::new(Lengths::new(offset, 16 * 1024).unwrap(), files),
        hashes: PieceHashes::v1(Vec::new()),
        info: Bytes::new(),
    };
    Arc::new(Fake {
        metainfo,
        data,
        gated,
        gate: watch::channel(false).0,
        waiting: Arc::default(),
        largest: Arc::default(),
    })
}

impl Content for Fake {
    type Reader = FakeReader;

    fn metainfo(&self) -> &Metainfo {
        &self.metainfo
    }

    fn open(self: &Arc<Self>, file: FileIndex) -> Option<FakeReader> {
        let gate = self.gated.contains(&file.0).then(|| self.gate.subscribe());
        Some(FakeReader {
            data: self.data[file.0 as usize].clone(),
            gate,
            waiting: self.waiting.clone(),
            largest: self.largest.clone(),
        })
    }

    /// As if the first half had come.
    fn had(&self, pieces: Range<u32>) -> u32 {
        let half = self.metainfo.layout.lengths().pieces() / 2;
        pieces.end.min(half).saturating_sub(pieces.start)
    }
}

impl FakeReader {
    fn slice(&self, offset: u64, len: u32) -> Bytes {
        self.data.slice(offset as usize..offset as usize + len as usize)
    }
}

impl Reader for FakeReader {
    fn read_now(&self, offset: u64, len: u32) -> Option<Bytes> {
        self.largest.fetch_max(len as usize, Ordering::SeqCst);
        self.gate.as_ref().is_none_or(|gate| *gate.borrow()).then(|| self.slice(offset, len))
    }

    async fn read(&self, offset: u64, len: u32) -> Result<Bytes, ReadError> {
        if let Some(gate) = &self.gate {
            self.waiting.fetch_add(1, Ordering::SeqCst);
            gate.clone().wait_for(|open| *open).await.map_err(|_| ReadError::Closed)?;
        }
        Ok(self.slice(offset, len))
    }
}

/// What most tests mount: `t/…` with a bit of everything, and 100 files in `t/wait` that do not come.
fn sample() -> Arc<Fake> {
    let mut parts = vec![
        part("t/small.txt", &b"hello\n"[..]),
        part("t/.pad/10", vec![0; 10]),
        part("t/big.bin", noise(1, 3 * 1024 * 1024 + 17)),
        part("t/empty", Vec::new()),
        part("t/dir/deep/zeros", vec![0; 300_000]),
        part("t/cat", fs::read("/bin/cat").unwrap()),
        part("t/link", Vec::new()),
    ];
    parts[1].kind = FileKind::Pad;
    parts[5].kind = FileKind::Regular { executable: true };
    parts[6].kind = FileKind::Symlink { target: "dir/deep/zeros".to_owned() };
    parts.extend((0..100).map(|n| Part { gated: true, ..part(format!("t/wait/{n}"), noise(n, 200_000)) }));
    torrent("t", parts)
}

// ---- the mount

/// A mount in a directory of its own, taken away at the end.
struct Fixture {
    mounted: Option<Mounted>,
    runtime: Runtime,
    fake: Arc<Fake>,
    directory: tempfile::TempDir,
}

/// A directory of so many files of one byte.
fn many(files: u32) -> Arc<Fake> {
    torrent("many", (0..files).map(|n| part(format!("many/{n:05}"), vec![n as u8])).collect())
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn can_mount() -> bool {
    let can = Path::new("/dev/fuse").exists();
    if !can {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "/dev/fuse is missing");
        eprintln!("skipped: /dev/fuse is missing");
    }
    can
}

fn is_root() -> bool {
    let root = fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0);
    if !root {
        eprintln!("skipped: this needs root");
    }
    root
}

impl Fixture {
    fn new() -> Option<Self> {
        can_mount().then(|| {
            let (runtime, fake, directory) = (runtime(), sample(), tempfile::tempdir().unwrap());
            let options = MountOptions::default();
            let contents = vec![fake.clone()];
            let mounted = Mounted::start(contents, directory.path(), &options, runtime.handle().clone()).unwrap();
            Self { mounted: Some(mounted), runtime, fake, directory }
        })
    }

    fn root(&self) -> &Path {
        self.directory.path()
    }

    fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join("t").join(path)
    }

    /// Blocks until so many reads wait at the gate.
    fn await_waiting(&self, count: usize) {
        until("reads wait", || self.fake.waiting.load(Ordering::SeqCst) >= count);
    }

    fn unmount(&mut self) -> Result<(), UnmountError> {
        let mounted = self.mounted.take().unwrap();
        self.runtime.block_on(async { tokio::time::timeout(LONG, mounted.unmount()).await.expect("unmount hangs") })
    }

    fn is_mounted(&self) -> bool {
        is_mounted(self.root())
    }
}

fn is_mounted(path: &Path) -> bool {
    mountinfo::mount_at(&path.canonicalize().unwrap_or(path.to_owned())).unwrap().is_some()
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let limit = Instant::now() + LONG;
    while !condition() {
        assert!(Instant::now() < limit, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn run(program: &str, args: &[&dyn AsRef<std::ffi::OsStr>]) -> Output {
    Command::new(program).args(args.iter().map(|arg| arg.as_ref())).output().unwrap()
}

fn succeed(program: &str, args: &[&dyn AsRef<std::ffi::OsStr>]) -> String {
    let output = run(program, args);
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A process that may block in the mount, killed at the end.
struct Running(Child);

impl Running {
    fn new(program: &str, path: &Path) -> Self {
        let mut command = Command::new(program);
        Self(command.arg(path).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    fn signal(&self, signal: &str) {
        succeed("kill", &[&signal, &self.0.id().to_string()]);
    }

    fn await_end(&mut self) -> std::process::ExitStatus {
        let mut status = None;
        until("the process ends", || {
            status = self.0.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Reads a whole file on a thread of its own.
fn reading(path: PathBuf) -> mpsc::Receiver<io::Result<Vec<u8>>> {
    let (give, take) = mpsc::channel();
    thread::spawn(move || give.send(fs::read(path)));
    take
}

// ---- what tools see

#[test]
fn ordinary_tools_see_the_torrent() {
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

    // Sparse archives ask for the blocks, and for holes.
    let archive = to.join("a.tar");
    succeed("tar", &[&"-C", &root.join("t"), &"-cSf", &archive, &"big.bin", &"dir", &"small.txt"]);
    fs::create_dir(to.join("out")).unwrap();
    succeed("tar", &[&"-C", &to.join("out"), &"-xf", &archive]);
    assert_eq!(fs::read(to.join("out/big.bin")).unwrap(), fixture.fake.data[2]);
    assert_eq!(fs::read(to.join("out/dir/deep/zeros")).unwrap(), vec![0; 300_000]);

    // The kernel runs a program by mapping it into memory.
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
        // Then the kernel lets it through to us.
        succeed("mount", &[&"-i", &"-o", &"remount,rw", &fixture.root()]);
        assert_eq!(write_all(&fixture), [Some(libc::EROFS); 9]);
    }
    assert_eq!(fs::read(&small).unwrap(), b"hello\n");
}

#[test]
fn a_large_directory_is_listed_whole() {
    if !can_mount() {
        return;
    }
    let (runtime, directory) = (runtime(), tempfile::tempdir().unwrap());
    let many = many(20_000);
    let film = torrent("film.mkv", vec![part("film.mkv", noise(3, 1000))]);
    let options = MountOptions::default();
    let _mounted = Mounted::start(vec![film, many], directory.path(), &options, runtime.handle().clone()).unwrap();
    let listing = succeed("ls", &[&"-l", &directory.path().join("many")]);
    assert_eq!(listing.lines().count(), 20_001);
    assert_eq!(fs::read(directory.path().join("many/00300")).unwrap(), [300u16 as u8]);
    assert_eq!(fs::read(directory.path().join("film.mkv")).unwrap(), noise(3, 1000));
}

// ---- reads that wait

#[test]
fn a_read_waits_for_its_data() {
    let Some(fixture) = Fixture::new() else { return };
    let read = reading(fixture.path("wait/7"));
    fixture.await_waiting(1);
    assert!(read.try_recv().is_err());
    fixture.fake.gate.send_replace(true);
    assert_eq!(read.recv_timeout(LONG).unwrap().unwrap(), noise(7, 200_000));
}

#[test]
fn waiting_reads_stall_no_other_file() {
    let Some(fixture) = Fixture::new() else { return };
    let blocked: Vec<_> = (0..40).map(|n| reading(fixture.path(&format!("wait/{n}")))).collect();
    fixture.await_waiting(40);
    assert_eq!(reading(fixture.path("big.bin")).recv_timeout(LONG).unwrap().unwrap(), fixture.fake.data[2]);
    // A second opening of a file that is waited for does not wait.
    assert_eq!(File::open(fixture.path("wait/0")).unwrap().metadata().unwrap().len(), 200_000);
    assert!(blocked.iter().all(|read| read.try_recv().is_err()));
    fixture.fake.gate.send_replace(true);
    for (n, read) in blocked.iter().enumerate() {
        assert_eq!(read.recv_timeout(LONG).unwrap().unwrap(), noise(n as u64, 200_000));
    }
}

#[test]
fn a_waiting_reader_dies_by_ctrl_c() {
    let Some(fixture) = Fixture::new() else { return };
    let mut cat = Running::new("cat", &fixture.path("wait/3"));
    fixture.await_waiting(1);
    cat.signal("-INT");
    let status = cat.await_end();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGINT));
    assert!(!*fixture.fake.gate.borrow());
}

#[test]
fn unmounting_ends_a_hundred_waiting_reads() {
    let Some(mut fixture) = Fixture::new() else { return };
    let blocked: Vec<_> = (0..100).map(|n| reading(fixture.path(&format!("wait/{n}")))).collect();
    fixture.await_waiting(100);
    fixture.unmount().unwrap();
    for read in blocked {
        assert!(read.recv_timeout(LONG).unwrap().is_err());
    }
    assert!(!fixture.is_mounted());
}

// ---- ends

#[test]
fn open_files_do_not_delay_the_end() {
    let Some(mut fixture) = Fixture::new() else { return };
    let file = File::open(fixture.path("big.bin")).unwrap();
    file.read_at(&mut [0; 10], 0).unwrap();
    fixture.unmount().unwrap();
    assert!(!fixture.is_mounted());
    let dead = file.read_at(&mut [0; 10], 3_000_000).unwrap_err();
    assert!(matches!(dead.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED)), "{dead}");
}

#[test]
fn an_umount_from_outside_is_noticed_and_nothing_else_is_touched() {
    if !is_root() {
        return;
    }
    let Some(mut fixture) = Fixture::new() else { return };
    let root = fixture.root().to_owned();
    let file = File::open(fixture.path("small.txt")).unwrap();
    assert!(!run("umount", &[&root]).status.success(), "a busy mount was unmounted");
    assert!(fixture.is_mounted());
    drop(file);
    succeed("umount", &[&root]);
    let mounted = fixture.mounted.take().unwrap();
    fixture.runtime.block_on(async { tokio::time::timeout(LONG, mounted.ended()).await.unwrap() });
    assert!(mounted.is_ended());
    // Something else comes to the same place; neither way of ending may take it away.
    succeed("mount", &[&"-t", &"tmpfs", &"tmpfs", &root]);
    fixture.mounted = Some(mounted);
    fixture.unmount().unwrap();
    assert!(fixture.is_mounted());
    succeed("umount", &[&root]);
}

#[test]
fn what_is_mounted_over_us_is_not_touched() {
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
fn dropping_unmounts() {
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
    let (runtime, directory) = (runtime(), tempfile::tempdir().unwrap());
    let options = MountOptions {
        allow_other: true,
        uid: Some(1234),
        gid: Some(4321),
        umask: 0o007,
        fsname: "a b,user_id=7".to_owned(),
        read_ahead: 512 * 1024,
        max_read: 64 * 1024,
        ..MountOptions::default()
    };
    let fake = sample();
    let mounted = Mounted::start(vec![fake.clone()], directory.path(), &options, runtime.handle().clone()).unwrap();
    let mount = mountinfo::mount_at(mounted.path()).unwrap().unwrap();
    assert_eq!((mount.fstype.as_str(), mount.owner()), ("fuse.torrentfs", Some(0)));
    for option in ["max_read=65536", "allow_other", "default_permissions"] {
        assert!(mount.options.split(',').any(|set| set == option), "{option} in {}", mount.options);
    }
    let source = succeed("findmnt", &[&"-no", &"SOURCE", &directory.path()]);
    assert_eq!(source.trim(), "a_b_user_id_7");
    let (major, minor) = mount.device;
    let read_ahead = fs::read_to_string(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb")).unwrap();
    assert_eq!(read_ahead.trim(), "512");
    assert_eq!(fs::read(directory.path().join("t/big.bin")).unwrap(), fake.data[2]);
    assert_eq!(fake.largest.load(Ordering::SeqCst), 64 * 1024);
    let file = fs::metadata(directory.path().join("t/small.txt")).unwrap();
    assert_eq!((file.uid(), file.gid(), file.mode() & 0o777), (1234, 4321, 0o440));
    // Another user is let in as far as the modes go.
    let path = directory.path().join("t/small.txt");
    let as_user = |uid: &str| run("setpriv", &[&"--reuid", &uid, &"--regid", &uid, &"--clear-groups", &"cat", &path]);
    assert!(as_user("1234").status.success());
    assert!(!as_user("5678").status.success());
    drop(mounted);
}

// ---- mounts of another process

const SERVE: &str = "TORRENTFS_TEST_SERVE";
const UNMOUNT: &str = "TORRENTFS_TEST_UNMOUNT";

/// Not a test of its own: the process that the tests below start, which serves a mount until SIGTERM, an `umount`, or the
/// end of its standard input (then it dies without unmounting), or which unmounts one.
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
    // As `main` would.
    std::process::exit(0);
}

/// Runs `helper` in a process of its own, as another user if wanted, and gives what it says first.
fn helper_process(variable: &str, path: &Path, user: Option<u32>) -> (Running, String) {
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
        .args(["--exact", "helper", "--nocapture", "--test-threads=1"])
        .env(variable, path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let word = said.find_map(|line| Some(line.split_once("HELPER ")?.1.to_owned())).unwrap_or_default();
    // What else it says must not break its pipe.
    thread::spawn(move || said.for_each(drop));
    (Running(child), word)
}

fn serving(path: &Path) -> Running {
    let (process, word) = helper_process(SERVE, path, None);
    assert_eq!(word, "mounted");
    process
}

#[test]
fn a_dead_mount_is_cleared_away_and_mounted_over() {
    if !can_mount() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mut server = serving(directory.path());
    assert_eq!(fs::read(directory.path().join("t/small.txt")).unwrap(), b"hello\n");
    server.0.kill().unwrap();
    server.await_end();
    assert!(is_mounted(directory.path()));
    assert_eq!(attribute(directory.path(), "pid").unwrap_err().raw_os_error(), Some(libc::ENOTCONN));
    let _again = serving(directory.path());
    assert_eq!(fs::read(directory.path().join("t/small.txt")).unwrap(), b"hello\n");
    unmount_path(directory.path()).unwrap();
    assert!(!is_mounted(directory.path()));
}

#[test]
fn a_dead_mount_is_unmounted() {
    if !can_mount() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mut server = serving(directory.path());
    server.0.kill().unwrap();
    server.await_end();
    unmount_path(directory.path()).unwrap();
    assert!(!is_mounted(directory.path()));
    assert!(matches!(unmount_path(directory.path()), Err(UnmountError::NotMounted(_))));
}

/// Everything at or below a path, with its size if wanted.
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
fn what_was_listed_once_is_listed_by_the_kernel_alone() {
    if !can_mount() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let server = serving(directory.path());
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
fn unmounting_by_path_ends_the_process_whatever_is_open() {
    if !can_mount() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mut server = serving(directory.path());
    let file = File::open(directory.path().join("t/small.txt")).unwrap();
    let blocked: Vec<_> = (0..5).map(|n| reading(directory.path().join(format!("t/wait/{n}")))).collect();
    unmount_path(directory.path()).unwrap();
    assert!(!is_mounted(directory.path()));
    assert!(server.await_end().success(), "the server did not end in order");
    for read in blocked {
        assert!(read.recv_timeout(LONG).unwrap().is_err());
    }
    drop(file);
}

#[test]
fn a_stopped_process_does_not_hang_the_unmounting() {
    if !can_mount() || !is_root() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let server = serving(directory.path());
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
        return eprintln!("skipped: fusermount3 is missing");
    }
    // The test's own program must be within the user's reach.
    let probe = run("setpriv", &[&"--reuid", &NOBODY.to_string(), &"test", &"-x", &std::env::current_exe().unwrap()]);
    if !probe.status.success() {
        return eprintln!("skipped: another user cannot run this program");
    }
    let device = run("setpriv", &[&"--reuid", &NOBODY.to_string(), &"--clear-groups", &"test", &"-w", &"/dev/fuse"]);
    if !device.status.success() {
        return eprintln!("skipped: /dev/fuse is for root only");
    }
    let directory = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(directory.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    let path = directory.path();

    let (mut server, word) = helper_process(SERVE, path, Some(NOBODY));
    assert_eq!(word, "mounted");
    let mount = mountinfo::mount_at(path).unwrap().unwrap();
    assert_eq!((mount.fstype.as_str(), mount.owner()), ("fuse.torrentfs", Some(NOBODY)));
    // The kernel wants the group to match, too.
    let user = NOBODY.to_string();
    let as_user = ["--reuid", &user, "--regid", &user, "--clear-groups"];
    let cat = Command::new("setpriv").args(as_user).arg("cat").arg(path.join("t/small.txt")).output().unwrap();
    assert_eq!(cat.stdout, b"hello\n");
    assert_eq!(fs::metadata(path).unwrap_err().kind(), io::ErrorKind::PermissionDenied, "even root is kept out");
    // With a file open, which keeps a detached mount alive.
    let open = Command::new("setpriv")
        .args(as_user)
        .args(["tail", "-f"])
        .arg(path.join("t/small.txt"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut open = Running(open);
    open.0.stdout.take().unwrap().read_exact(&mut [0; 6]).unwrap();
    let (_unmounter, word) = helper_process(UNMOUNT, path, Some(NOBODY));
    assert_eq!(word, "unmounted");
    assert!(!is_mounted(path));
    assert!(server.await_end().success());

    // Root ends it too, though the mount does not answer to root.
    let (mut server, word) = helper_process(SERVE, path, Some(NOBODY));
    assert_eq!(word, "mounted");
    unmount_path(path).unwrap();
    assert!(!is_mounted(path));
    assert!(server.await_end().success());
}
