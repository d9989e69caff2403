//! The clients, one in each file.

mod aria2;
mod deluge;
mod libtorrent;
mod qbittorrent;
mod rqbit;
mod rtorrent;
mod transmission;
mod webtorrent;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

pub use rtorrent::Rtorrent;

use super::cell::{START_LIMIT, listens};
use super::{Role, Way};
use crate::support::Process;

/// Reasons why a client cannot take part in a way.
const NO_MSE: &str = "it has no encryption";
const NO_UTP: &str = "it has no uTP";
const UTP_NOT_ALONE: &str = "it cannot be told to use uTP alone";
const NO_BOOTSTRAP: &str = "it cannot be told a DHT node to start from";
const NO_SUPER_SEED: &str = "it cannot super-seed";
const SUPER_SEED_BY_HAND: &str = "it super-seeds only what is told so in its interface";
const NO_LOOPBACK: &str = "it does not connect to loopback addresses";

/// A BitTorrent client that we test against.
pub trait Client: Sync + Send {
    /// Its name in the table.
    fn name(&self) -> &'static str;

    /// Returns whether it can be run on this machine.
    fn is_installed(&self) -> bool;

    /// Returns why it cannot take part in a cell; `None`: it can.
    fn cannot(&self, way: Way, role: Role) -> Option<&'static str>;

    /// Starts it. It checks the data in the job's directory, then downloads what is missing, and seeds.
    fn start(&self, job: &Job) -> Process;

    /// Returns whether it is ready for connections.
    fn is_ready(&self, job: &Job) -> bool {
        // Without TCP there is nothing to ask. Our program repeats attempts that fail.
        job.way == Way::Utp || listens(job.port)
    }
}

/// Returns every client.
pub fn all() -> Vec<Box<dyn Client>> {
    vec![
        Box::new(libtorrent::Libtorrent::DEBIAN),
        Box::new(libtorrent::Libtorrent::PYPI),
        Box::new(qbittorrent::Qbittorrent),
        Box::new(transmission::Transmission),
        Box::new(deluge::Deluge),
        Box::new(rtorrent::Rtorrent),
        Box::new(aria2::Aria2),
        Box::new(rqbit::Rqbit),
        Box::new(webtorrent::Webtorrent),
    ]
}

/// The task of a client.
pub struct Job {
    pub way: Way,
    pub role: Role,
    /// The directory of `film.bin`.
    pub dir: PathBuf,
    /// A directory for the client's own files.
    pub work: PathBuf,
    /// The path of the `.torrent` file, or a magnet link.
    pub source: String,
    /// The port at which it listens.
    pub port: u16,
    /// The DHT node to start from; `None`: no DHT.
    pub dht: Option<SocketAddr>,
}

impl Job {
    /// Returns the end of the client's output.
    pub fn log(&self) -> String {
        let log = fs::read(self.work.join("log.txt")).unwrap_or_default();
        String::from_utf8_lossy(&log[log.len().saturating_sub(3_000)..]).into_owned()
    }

    /// Starts a program whose output goes to the client's log.
    fn spawn(&self, command: &mut Command) -> Process {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.work.join("log.txt")).unwrap();
        Process::start(command.current_dir(&self.work).stdout(Stdio::from(log.try_clone().unwrap())).stderr(log))
    }

    /// Returns `yes` if the job is about a way, otherwise `no`.
    fn if_way<T>(&self, way: Way, yes: T, no: T) -> T {
        if self.way == way { yes } else { no }
    }

    /// Writes a file of the client's.
    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.work.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }
}

/// Waits until a client accepts commands at a port. If it never does, its cell fails when nothing is transferred.
fn wait_until_listening(port: u16) {
    let end = Instant::now() + START_LIMIT;
    while !listens(port) && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Returns a file below the repository.
fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Returns whether a program is in the path.
fn has(program: &str) -> bool {
    let dirs = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&dirs).any(|dir| dir.join(program).exists())
}
