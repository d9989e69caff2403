//! A laboratory on loopback: real programs as peers and trackers, and our own program.
//!
//! Dropping a handle ends its process, by id, and removes its mount.

#![allow(dead_code, missing_docs, reason = "each test binary uses a part of this")]

pub mod fake;
pub mod faulty;
mod noise;
pub mod picture;
mod ports;
pub mod signals;
pub mod terminal;
pub mod tracker;
pub mod transfer;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{LazyLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, mpsc};
use std::time::{Duration, Instant};

pub use noise::noise;
pub use ports::free_port;
use tempfile::TempDir;
use torrentfs::internals::fs::mountinfo;
use torrentfs::internals::net;
use torrentfs::internals::route::{Bind, Route};
use torrentfs::internals::session::{Session, SessionConfig, Torrent, TorrentOptions};
use torrentfs::internals::store::{Cache, CacheConfig};
use torrentfs::metainfo::{InfoHash, Metainfo};

/// Time limit of whatever a program does at once. Only a hang reaches it, however busy the machine is.
const LONG: Duration = Duration::from_secs(120);

/// Held by tests that start programs. The test runner starts as many tests at a time as there are processors.
static TURN: RwLock<()> = RwLock::new(());

/// Prepares a test that starts programs, and waits until no other test of this binary has a [`lone_turn`].
pub fn turn() -> RwLockReadGuard<'static, ()> {
    signals::use_defaults();
    TURN.read().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until no other test of this binary has a turn, and lets none begin: for tests that measure time, or that examine
/// all mounts of the machine.
pub fn lone_turn() -> RwLockWriteGuard<'static, ()> {
    signals::use_defaults();
    TURN.write().unwrap_or_else(PoisonError::into_inner)
}

/// Returns whether the test can run: `/dev/fuse` and these programs exist. `libtorrent` stands for its Python bindings.
/// In CI a missing one is a failure; elsewhere the test is skipped with a message.
pub fn can_run(programs: &[&str]) -> bool {
    static LIBTORRENT: LazyLock<bool> = LazyLock::new(|| {
        let import = Command::new("/usr/bin/python3").args(["-c", "import libtorrent"]).output();
        import.is_ok_and(|output| output.status.success())
    });
    let found = |program: &str| match program {
        "libtorrent" => *LIBTORRENT,
        _ => std::env::var_os("PATH")
            .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).exists())),
    };
    let mut missing: Vec<&str> = programs.iter().copied().filter(|program| !found(program)).collect();
    if !Path::new("/dev/fuse").exists() {
        missing.push("/dev/fuse");
    }
    if missing.is_empty() {
        return true;
    }
    assert!(std::env::var_os("CI").is_none(), "missing on this machine: {missing:?}");
    eprintln!("skipped: missing on this machine: {missing:?}");
    false
}

/// Returns whether the kernel can read complete files of a mount itself: as root, since Linux 6.9, if it was built for that, and
/// where temporary files are on a filesystem of their own.
pub fn can_pass_through() -> bool {
    let version = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = version.split(['.', '-']).map(|number| number.parse().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let root = fs::metadata("/proc/self").is_ok_and(|process| std::os::unix::fs::MetadataExt::uid(&process) == 0);
    let config = "zcat /proc/config.gz 2>/dev/null || cat /boot/config-$(uname -r) 2>/dev/null || echo unknown";
    let config = run("sh", &["-c", config]).stdout;
    let config = String::from_utf8_lossy(&config);
    let built = config.contains("CONFIG_FUSE_PASSTHROUGH=y") || config.trim() == "unknown";
    let layered =
        run("stat", &["-f", "-c", "%T", std::env::temp_dir().to_str().unwrap()]).stdout.starts_with(b"overlay");
    let can = version >= (6, 9) && root && built && !layered;
    if !can {
        eprintln!("skipped: no passthrough here (version {version:?}, root {root}, built {built}, layered {layered})");
    }
    can
}

pub fn run(program: &str, args: &[&str]) -> Output {
    Command::new(program).args(args).output().unwrap_or_else(|error| panic!("{program}: {error}"))
}

/// Puts a copy of our program where another user can run it.
///
/// `cp` makes the copy: a file that this process holds open for writing, be it in a child that another test is just
/// starting, cannot be executed (`ETXTBSY`).
pub fn copy_program(to: &Path) {
    if fs::hard_link(TORRENTFS, to).is_err() {
        assert!(run("cp", &[TORRENTFS, to.to_str().unwrap()]).status.success());
    }
}

/// Runs a shell command that must succeed. Returns its standard output.
pub fn sh(line: &str) -> String {
    let output = run("sh", &["-c", line]);
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn wait_until(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !done() {
        assert!(Instant::now() < end, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A process that is killed when its handle is dropped.
pub struct Process(pub Child);

impl Process {
    pub fn start(command: &mut Command) -> Self {
        signals::use_defaults();
        Self(command.stdin(Stdio::null()).spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }

    pub fn signal(&self, name: &str) {
        run("kill", &[&format!("-{name}"), &self.0.id().to_string()]);
    }

    /// Waits for the process to end. Returns `None` if the limit passes first.
    pub fn wait(&mut self, limit: Duration) -> Option<std::process::ExitStatus> {
        let end = Instant::now() + limit;
        while Instant::now() < end {
            if let Some(status) = self.0.try_wait().unwrap() {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        None
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a client until a tracker knows it.
///
/// Transmission sends `stopped` just before `started`. If they reach the tracker the other way round, it announces itself
/// again only after half an hour.
pub fn start_until_known(start: impl Fn() -> Process, mut is_known: impl FnMut() -> bool) -> Process {
    for _ in 0..5 {
        let process = start();
        let end = Instant::now() + Duration::from_secs(20);
        while Instant::now() < end {
            if is_known() {
                return process;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    panic!("the tracker does not know the client");
}

/// A directory with a torrent, and a tracker for it.
pub struct Lab {
    pub dir: TestDir,
    pub announce: String,
    tracker: Option<Process>,
    tracker_port: u16,
    info_hash: Option<InfoHash>,
}

impl Lab {
    pub fn new() -> Self {
        let tracker_port = free_port();
        let announce = format!("http://127.0.0.1:{tracker_port}/announce");
        let dir = TestDir::new();
        // opentracker reads its list as the user nobody.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Self { dir, announce, tracker: None, tracker_port, info_hash: None }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes `payload/NAME`, makes its torrent with mktorrent, and starts an opentracker that accepts it.
    pub fn publish(&mut self, name: &str, data: &[u8], piece_log2: u32) -> PathBuf {
        let payload = self.path("payload");
        fs::create_dir_all(&payload).unwrap();
        fs::write(payload.join(name), data).unwrap();
        self.publish_path(&payload.join(name), piece_log2)
    }

    /// Does the same for a file or directory that exists already.
    pub fn publish_path(&mut self, path: &Path, piece_log2: u32) -> PathBuf {
        let torrent = self.path(&format!("{}.torrent", path.file_name().unwrap().to_str().unwrap()));
        let made = Command::new("mktorrent")
            .args(["-l", &piece_log2.to_string(), "-a", &self.announce, "-o"])
            .args([&torrent, path])
            .output()
            .unwrap();
        assert!(made.status.success(), "mktorrent: {made:?}");
        let metainfo = Metainfo::parse(&fs::read(&torrent).unwrap()).unwrap();
        self.info_hash = Some(metainfo.info_hash);
        self.track(&metainfo.info_hash.to_string());
        torrent
    }

    fn track(&mut self, info_hash: &str) {
        let allowed = self.path("allowed.txt");
        fs::write(&allowed, format!("{info_hash}\n")).unwrap();
        let port = self.tracker_port.to_string();
        self.tracker = Some(Process::start(
            Command::new("opentracker")
                .args(["-i", "127.0.0.1", "-p", &port, "-P", &port, "-d", "/", "-u", "nobody", "-w"])
                .arg(&allowed)
                .stdout(Stdio::null())
                .stderr(Stdio::null()),
        ));
        let addr = ("127.0.0.1", self.tracker_port);
        wait_until("the tracker answers", LONG, || TcpStream::connect(addr).is_ok());
        // It loads its list in the background, and until then refuses announces.
        wait_until("the tracker knows the torrent", LONG, || {
            self.scrape_reply(info_hash).is_some_and(|reply| !reply.contains("failure"))
        });
    }

    /// Returns the info hash of the published torrent as 40 digits.
    pub fn info_hash(&self) -> String {
        self.info_hash.expect("published").to_string()
    }

    /// Returns the seeders and the leechers that the tracker counts (BEP 48).
    pub fn scrape(&self) -> (u32, u32) {
        (self.scraped("8:completei"), self.scraped("10:incompletei"))
    }

    /// Returns the completed downloads that the tracker counts.
    pub fn downloads(&self) -> u32 {
        self.scraped("10:downloadedi")
    }

    fn scraped(&self, key: &str) -> u32 {
        let reply = self.scrape_reply(&self.info_hash()).expect("the tracker answers");
        let digits = reply.split(key).nth(1).and_then(|rest| rest.split('e').next());
        digits.map_or(0, |digits| digits.parse().unwrap())
    }

    fn scrape_reply(&self, info_hash: &str) -> Option<String> {
        let escaped: String =
            info_hash.as_bytes().chunks(2).map(|hex| format!("%{}", str::from_utf8(hex).unwrap())).collect();
        let mut tracker = TcpStream::connect(("127.0.0.1", self.tracker_port)).ok()?;
        write!(tracker, "GET /scrape?info_hash={escaped} HTTP/1.0\r\n\r\n").ok()?;
        let mut reply = Vec::new();
        tracker.read_to_end(&mut reply).ok()?;
        Some(String::from_utf8_lossy(&reply).into_owned())
    }

    pub fn stop_tracker(&mut self) {
        self.tracker = None;
    }

    /// Starts a libtorrent peer on 127.0.0.`host` and waits until it is ready.
    pub fn libtorrent(&self, role: &str, host: u8, rate: u64, save: &Path, torrent: &Path) -> Libtorrent {
        self.libtorrent_with(role, host, rate, save, torrent, &[])
    }

    /// Does the same with libtorrent settings, as `name=value`, and peers to connect to, as `peer=ip:port`.
    pub fn libtorrent_with(
        &self,
        role: &str,
        host: u8,
        rate: u64,
        save: &Path,
        torrent: &Path,
        settings: &[&str],
    ) -> Libtorrent {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/peer.py");
        let port = free_port();
        let mut process = Process::start(
            Command::new("/usr/bin/python3")
                .arg(script)
                .args([role, &format!("127.0.0.{host}"), &port.to_string(), &rate.to_string()])
                .args([save, torrent])
                .args(settings)
                .stdout(Stdio::piped()),
        );
        let output = BufReader::new(process.0.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let peer = Libtorrent { process, lines, addr: format!("127.0.0.{host}:{port}") };
        peer.expect("READY");
        peer
    }

    /// Starts `torrentfs mount --foreground` and waits until it is mounted.
    pub fn mount(&self, name: &str, torrent: &Path, extra: &[&str]) -> Mounted {
        Mounted::start(&self.path(name), torrent, extra)
    }
}

pub struct Libtorrent {
    pub process: Process,
    lines: mpsc::Receiver<String>,
    pub addr: String,
}

impl Libtorrent {
    /// Waits until a leech is complete.
    pub fn done(&mut self) {
        self.expect("DONE");
    }

    fn expect(&self, word: &str) {
        let line = self.lines.recv_timeout(LONG);
        assert_eq!(line.as_deref(), Ok(word), "from libtorrent at {}", self.addr);
    }
}

pub const TORRENTFS: &str = env!("CARGO_BIN_EXE_torrentfs");

/// Returns the command `torrentfs mount` with flags that keep its traffic on this machine.
pub fn mount_command() -> Command {
    let mut command = Command::new(TORRENTFS);
    command.arg("mount").args(ALONE);
    command
}

/// Flags that keep a mount from looking for peers beyond this machine.
pub const ALONE: [&str; 3] = ["--no-dht", "--no-lsd", "--no-port-mapping"];

/// A mount that our program serves.
pub struct Mounted {
    pub process: Process,
    pub dir: PathBuf,
    pub cache: PathBuf,
    pub log: PathBuf,
}

impl Mounted {
    /// Mounts at `base/mnt` with the cache `base/cache`. Both may exist from an earlier run.
    pub fn start(base: &Path, torrent: &Path, extra: &[&str]) -> Self {
        let (dir, cache, log) = (base.join("mnt"), base.join("cache"), base.join("log.txt"));
        fs::create_dir_all(base).unwrap();
        // If a dead mount is left there, the program has to remove it.
        let _ = fs::create_dir(&dir);
        let output = fs::OpenOptions::new().create(true).append(true).open(&log).unwrap();
        // Counts the log's messages: a dead mount may still list its directory, from the kernel's memory.
        let mounts = |log: &Path| fs::read_to_string(log).unwrap_or_default().matches("mounted at ").count();
        let before = mounts(&log);
        // A test that enables one of these keeps its traffic on this machine itself.
        let is_enabled = |flag: &str| match flag {
            "--no-dht" => extra.contains(&"--dht-bootstrap"),
            "--no-lsd" => extra.contains(&"--bind"),
            "--no-port-mapping" => extra.contains(&"--gateway"),
            _ => false,
        };
        let process = Process::start(
            Command::new(TORRENTFS)
                .arg("mount")
                .args(ALONE.iter().filter(|flag| !is_enabled(flag)))
                .args(["--foreground", "--port", "0", "--cache-dir"])
                .arg(&cache)
                .args(extra)
                .args([torrent, &dir])
                .stdout(output.try_clone().unwrap())
                .stderr(output),
        );
        let mut mounted = Self { process, dir, cache, log };
        wait_until(&format!("the mount answers; {}", mounted.log()), LONG, || {
            assert!(mounted.process.0.try_wait().unwrap().is_none(), "ended: {}", mounted.log());
            mounts(&mounted.log) > before
        });
        assert!(mounted.is_mounted() && fs::read_dir(&mounted.dir).is_ok_and(|mut entries| entries.next().is_some()));
        mounted
    }

    pub fn is_mounted(&self) -> bool {
        is_mounted(&self.dir)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}; log: {}", self.log()))
    }

    /// Interrupts the process as Ctrl-C does. It must exit with success and leave nothing mounted.
    pub fn stop(mut self) {
        self.process.signal("INT");
        let status = self.process.wait(LONG).expect("the mount ends");
        assert!(status.success(), "{status}: {}", self.log());
        assert!(!self.is_mounted(), "left mounted");
    }

    /// Kills the process, as the kernel does when memory runs out.
    pub fn kill(mut self) {
        let _ = self.process.0.kill();
        let _ = self.process.0.wait();
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = self.process.0.kill();
        let _ = self.process.0.wait();
        // The dead mount stays for the next `start`. `Lab` removes it at the end of the test.
        if std::thread::panicking() {
            eprintln!("--- log of {}\n{}", self.dir.display(), self.log());
        }
    }
}

/// Returns a configuration that listens on loopback, on any free port.
pub fn local() -> net::Config {
    net::Config {
        port: net::PortChoice::Exactly(0),
        route: Route { bind: Bind::Address(Ipv4Addr::LOCALHOST.into()), ..Route::default() },
        ..net::Config::default()
    }
}

/// Adds a torrent in this process with one peer and no tracker, so that all traffic follows `net`.
pub async fn in_process(
    dir: &Path,
    torrent: &Path,
    peer: SocketAddr,
    net: net::Config,
    read_timeout: Duration,
) -> (Session, std::sync::Arc<Torrent>) {
    let cache = Cache::open(CacheConfig { dir: dir.into(), disk_limit: None, memory: 16 << 20 }).unwrap();
    let session = Session::start(SessionConfig { net, read_timeout: Some(read_timeout), ..SessionConfig::new(cache) });
    let session = session.unwrap();
    let metainfo = Metainfo { trackers: Vec::new(), ..Metainfo::parse(&fs::read(torrent).unwrap()).unwrap() };
    let options = TorrentOptions { peers: vec![peer], ..TorrentOptions::default() };
    let torrent = session.add(metainfo, options).await.unwrap();
    (session, torrent)
}

pub fn is_mounted(dir: &Path) -> bool {
    mountinfo::mount_at(dir).unwrap().is_some()
}

/// Removes what is mounted at a directory; its processes end with it.
pub fn detach(dir: &Path) {
    let path = dir.to_str().unwrap();
    // One mount may hide another. As another user than root, fusermount3 does it.
    for _ in 0..20 {
        if !is_mounted(dir) {
            return;
        }
        if !run("umount", &["-l", path]).status.success() {
            let _ = run("fusermount3", &["-u", "-z", path]);
        }
    }
}

/// A temporary directory. Whatever is mounted below it when a test ends, or fails, is unmounted.
#[derive(Debug)]
pub struct TestDir(TempDir);

impl TestDir {
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }
}

impl std::ops::Deref for TestDir {
    type Target = TempDir;

    fn deref(&self) -> &TempDir {
        &self.0
    }
}

impl Drop for TestDir {
    fn drop(&mut self) {
        for mount in mountinfo::mounts().unwrap_or_default() {
            if mount.path.starts_with(self.0.path()) {
                detach(&mount.path);
            }
        }
    }
}

pub fn write_all(path: &Path, data: &[u8]) {
    fs::File::create(path).unwrap().write_all(data).unwrap();
}

pub fn read_at(path: &Path, offset: u64, len: usize) -> std::io::Result<Vec<u8>> {
    use std::os::unix::fs::FileExt;
    let mut out = vec![0; len];
    fs::File::open(path)?.read_exact_at(&mut out, offset)?;
    Ok(out)
}

pub fn drain(mut from: impl Read) -> String {
    let mut text = String::new();
    let _ = from.read_to_string(&mut text);
    text
}

/// Returns group and session of a process: fields 5 and 6 of its `stat`. Field 2, the name, may contain anything.
pub fn group_and_session(pid: u32) -> (u32, u32) {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = text.rsplit(')').next().unwrap().split_whitespace().collect();
    (fields[2].parse().unwrap(), fields[3].parse().unwrap())
}
