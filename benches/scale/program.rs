//! Our program, as a process: started, measured and ended; and torrents for it.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{env, thread};

use tokio::runtime::Runtime;
use torrentfs::internals::net::{self, PortChoice};
use torrentfs::internals::route::{Bind, Route};
use torrentfs::internals::session::{self, Session, SessionConfig, TorrentOptions};
use torrentfs::internals::store::{Cache, CacheConfig, Place};
use torrentfs::metainfo::Metainfo;

/// Flags that keep a process to itself.
const ALONE: [&str; 5] = ["--no-dht", "--no-lsd", "--no-port-mapping", "--bind", "127.0.0.1"];

/// Time limit of a start.
const START_LIMIT: Duration = Duration::from_secs(600);

/// A `.torrent` file of one file with made-up hashes.
pub struct Torrent {
    pub bytes: Vec<u8>,
}

impl Torrent {
    pub fn new(name: &str, len: u64, piece_len: u64, hashes: &[u8]) -> Self {
        let head =
            format!("d6:lengthi{len}e4:name{}:{name}12:piece lengthi{piece_len}e6:pieces{}:", name.len(), hashes.len());
        Self { bytes: [b"d4:info", head.as_bytes(), hashes, b"ee"].concat() }
    }
}

/// Memory and processor time of a process.
#[derive(Clone, Copy)]
pub struct Usage {
    /// Resident memory in bytes.
    pub resident: u64,
    /// Its maximum so far.
    pub peak: u64,
    pub processor: Duration,
}

impl Usage {
    pub fn of(pid: u32) -> Self {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let kib = |key: &str| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
            line.trim().trim_end_matches(" kB").parse().unwrap()
        };
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        // Hundredths of a second, in user and in kernel mode.
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Self { resident: kib("VmRSS:") << 10, peak: kib("VmHWM:") << 10, processor: Duration::from_millis(ticks * 10) }
    }
}

/// A running process of the program or of another, killed when it is dropped.
pub struct Process(pub Child);

impl Process {
    pub fn usage(&self) -> Usage {
        Usage::of(self.0.id())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Returns the command that runs the program.
pub fn program() -> Command {
    let program = env::var_os("TORRENTFS_PROGRAM").unwrap_or_else(|| env!("CARGO_BIN_EXE_torrentfs").into());
    Command::new(program)
}

/// A mount in a temporary directory.
pub struct Mount {
    pub process: Process,
    pub dir: PathBuf,
    /// From the launch until the mount shows its files.
    pub ready: Duration,
}

impl Mount {
    pub fn start(base: &Path, source: &Path, flags: &[&str]) -> Self {
        let dir = base.join("mnt");
        fs::create_dir_all(&dir).unwrap();
        let log = File::create(base.join("log")).unwrap();
        let begun = Instant::now();
        let child = program()
            .env("TORRENTFS_LOG", "warn")
            .arg("mount")
            .args(ALONE)
            .args(["--foreground", "--port", "0", "--cache-dir"])
            .arg(base.join("cache"))
            .args(flags)
            .args([source, &dir])
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let mut process = Process(child);
        let is_ready = || fs::read_to_string(base.join("log")).unwrap().contains("mounted at ");
        while !is_ready() {
            let ended = process.0.try_wait().unwrap().is_some() || begun.elapsed() > START_LIMIT;
            assert!(!ended, "no mount: {}", fs::read_to_string(base.join("log")).unwrap());
            thread::sleep(Duration::from_millis(2));
        }
        Self { process, dir, ready: begun.elapsed() }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let pid = self.process.0.id().to_string();
        let _ = Command::new("kill").args(["-TERM", &pid]).status();
        let end = Instant::now() + Duration::from_secs(20);
        while self.process.0.try_wait().is_ok_and(|ended| ended.is_none()) && Instant::now() < end {
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Formats bytes as MiB.
pub fn mib(bytes: u64) -> String {
    format!("{:.0} MiB", bytes as f64 / f64::from(1 << 20))
}

/// Returns a percentile of some durations.
pub fn percentile(durations: &mut [Duration], percent: usize) -> Duration {
    durations.sort();
    durations[(durations.len() - 1) * percent / 100]
}

/// A session in this process that seeds one file.
pub struct Seeder {
    session: Session,
    _torrent: Arc<session::Torrent>,
    _runtime: Runtime,
}

impl Seeder {
    pub fn start(base: &Path, torrent: &Torrent, file: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let _entered = runtime.enter();
        let cache = CacheConfig { dir: base.join("seeder"), disk_limit: None, memory: 64 << 20 };
        let net = net::Config {
            port: PortChoice::Exactly(0),
            route: Route { bind: Bind::Address(Ipv4Addr::LOCALHOST.into()), ..Route::default() },
            ..net::Config::default()
        };
        let session = Session::start(SessionConfig { net, ..SessionConfig::new(Cache::open(cache).unwrap()) }).unwrap();
        let options = TorrentOptions { place: Place::Seed(file.to_owned()), ..TorrentOptions::default() };
        let metainfo = Metainfo::parse(&torrent.bytes).unwrap();
        let torrent = runtime.block_on(session.add(metainfo, options)).unwrap();
        drop(_entered);
        Self { session, _torrent: torrent, _runtime: runtime }
    }

    /// Returns its address, as a flag of the program takes it.
    pub fn addr(&self) -> String {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.session.port())).to_string()
    }
}
