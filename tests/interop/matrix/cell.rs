//! One transfer with one client.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::clients::{Client, Job};
use super::{Role, Way};
use crate::support::tracker::TrackerServer;
use crate::support::transfer::Transfer;
use crate::support::*;
use torrentfs::internals::discovery::{Dht, DhtConfig};
use torrentfs::internals::route::Bind;
use torrentfs::metainfo::{FileKind, Metainfo, NewFile, NewTorrent, hash_pieces};

/// How long a transfer may take. Generous, because many run at the same time, and some clients have timers of half a
/// minute.
const LIMIT: Duration = Duration::from_secs(90);
/// A tracker that does not answer. rtorrent refuses torrents without one.
const NO_TRACKER: &str = "http://127.0.0.1:1/announce";
/// How long a client may take to listen.
pub const START_LIMIT: Duration = Duration::from_secs(60);

/// Runs a cell. An error says what did not happen.
pub fn run_cell(client: &dyn Client, way: Way, role: Role) -> Result<(), String> {
    let base = tempfile::tempdir().unwrap();
    let tracker = (way == Way::Magnet).then(|| TrackerServer::start(&[]));
    let announce = tracker.as_ref().map(|tracker| format!("http://{}/announce", tracker.addr));
    let cell = Cell::new(base.path(), way, &announce.unwrap_or(NO_TRACKER.into()));
    let dht = (way == Way::Dht).then(dht_node);
    let job = Job {
        way,
        role,
        dir: cell.theirs.clone(),
        work: base.path().join("work"),
        source: match (way, role) {
            (Way::Magnet, Role::Leech) => cell.magnet.clone(),
            _ => cell.torrent.to_str().unwrap().to_owned(),
        },
        port: free_port(),
        dht: dht.as_ref().map(|(_, _, addr)| *addr),
    };
    fs::create_dir_all(&job.work).unwrap();
    let start = || {
        let running = client.start(&job);
        let ready = wait_for(START_LIMIT, || client.is_ready(&job));
        ready.map(|()| running).map_err(|()| "it does not start".to_owned())
    };
    let outcome = match (role, &tracker) {
        (Role::Seed, _) => {
            cell.write(&cell.theirs, way == Way::PartialSeed);
            start().and_then(|_running| cell.fetch(&job))
        }
        // Some clients accept no connections before they have the metadata. They find us by the tracker.
        (Role::Leech, Some(tracker)) => {
            let mut seed = cell.seed(&job, &[]);
            let known = wait_for(START_LIMIT, || !seed.is_running() || tracker.peers().0 > 0);
            let started =
                known.map_err(|()| format!("our seeder is not known\n{}", seed.output())).and_then(|()| start());
            started.and_then(|_running| cell.serve(&mut seed))
        }
        (Role::Leech, None) => start().and_then(|_running| {
            let middleman = (way == Way::Pex).then(|| cell.middleman(&job));
            let via: Vec<&str> = middleman.iter().flat_map(|(_, addr)| ["--peer", addr]).collect();
            cell.serve(&mut cell.seed(&job, &via))
        }),
    };
    outcome.map_err(|why| format!("{why}\n--- the client\n{}", job.log()))
}

fn wait_for(limit: Duration, mut done: impl FnMut() -> bool) -> Result<(), ()> {
    let end = Instant::now() + limit;
    while !done() {
        if Instant::now() > end {
            return Err(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Starts a DHT node on loopback, which ends with its runtime.
fn dht_node() -> (tokio::runtime::Runtime, Dht, SocketAddr) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let bind = Bind::Address(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let dht = runtime.block_on(async { Dht::start(DhtConfig { bind, ..DhtConfig::default() }).unwrap() });
    let addr = SocketAddr::from(([127, 0, 0, 1], dht.port()));
    (runtime, dht, addr)
}

/// Returns whether something listens at a TCP port of this machine.
pub fn listens(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_ok()
}

pub struct Cell {
    way: Way,
    base: PathBuf,
    data: Vec<u8>,
    /// The part that a partial seed has.
    half: Range<usize>,
    torrent: PathBuf,
    pub magnet: String,
    ours: PathBuf,
    pub theirs: PathBuf,
}

impl Cell {
    pub fn new(base: &Path, way: Way, announce: &str) -> Self {
        let (piece, len) = way.sizes();
        let data = noise(len, 77 + piece as u64);
        let cell = Self {
            way,
            base: base.to_owned(),
            half: 0..((len / 2) >> piece) << piece,
            torrent: base.join("film.torrent"),
            magnet: String::new(),
            ours: base.join("ours"),
            theirs: base.join("theirs"),
            data,
        };
        fs::create_dir_all(&cell.ours).unwrap();
        fs::create_dir_all(&cell.theirs).unwrap();
        let (hashes, len) = hash_pieces(&cell.data[..], 1 << piece).unwrap();
        let file = NewFile { path: Vec::new(), len, kind: FileKind::Regular { executable: false } };
        let name = "film.bin".into();
        let trackers = vec![vec![announce.to_owned()]];
        let torrent = NewTorrent { name, piece_len: 1 << piece, files: vec![file], trackers, ..NewTorrent::default() };
        let torrent = torrent.build(&hashes).unwrap();
        fs::write(&cell.torrent, &torrent).unwrap();
        let info_hash = Metainfo::parse(&torrent).unwrap().info_hash;
        Self { magnet: format!("magnet:?xt=urn:btih:{info_hash}&dn=film.bin&tr={announce}"), ..cell }
    }

    /// Writes the data, or the half of it, as a client that has downloaded it would.
    fn write(&self, dir: &Path, half: bool) {
        let mut data = self.data.clone();
        if half {
            data[self.half.end..].fill(0);
        }
        fs::write(dir.join("film.bin"), data).unwrap();
    }

    /// Returns whether a file has everything that can be downloaded in this cell.
    fn has_data(&self, dir: &Path) -> bool {
        let Ok(got) = fs::read(dir.join("film.bin")) else { return false };
        match self.way {
            Way::PartialSeed => got.get(self.half.clone()) == Some(&self.data[self.half.clone()]),
            _ => got == self.data,
        }
    }

    /// Starts our program.
    fn start(&self, command: &str, port: u16, more: &[&str], paths: &[&Path], job: &Job) -> Transfer {
        let peer = format!("127.0.0.1:{}", job.port);
        let mut args = vec!["-vv"];
        match self.way {
            Way::Tcp => args.extend(["--no-utp", "--encryption", "off", "--peer", &peer]),
            Way::Mse => args.extend(["--no-utp", "--encryption", "require", "--peer", &peer]),
            Way::Dht | Way::Pex => {}
            _ => args.extend(["--peer", &peer]),
        }
        args.extend(more);
        let bootstrap = job.dht.map(|dht| dht.to_string()).unwrap_or_default();
        if job.dht.is_some() {
            args.extend(["--dht-bootstrap", &bootstrap]);
        }
        Transfer::start_at(command, &self.base, &port.to_string(), &args, paths)
    }

    /// Starts a peer of ours that downloads nothing and exchanges addresses.
    fn middleman(&self, job: &Job) -> (Mounted, String) {
        let port = free_port().to_string();
        let peer = format!("127.0.0.1:{}", job.port);
        // rtorrent accepts one connection from each address.
        let args = ["--on-demand", "--bind", "127.0.0.2", "--no-lsd", "--port", &port, "--peer", &peer];
        (Mounted::start(&self.base.join("middleman"), &self.torrent, &args), format!("127.0.0.2:{port}"))
    }

    /// Downloads from the client.
    fn fetch(&self, job: &Job) -> Result<(), String> {
        let middleman = (self.way == Way::Pex).then(|| self.middleman(job));
        let via: Vec<&str> = middleman.iter().flat_map(|(_, addr)| ["--peer", addr]).collect();
        let source = if self.way == Way::Magnet { Path::new(&self.magnet) } else { &self.torrent };
        let mut get = self.start("get", 0, &via, &[Path::new("-o"), &self.ours, source], job);
        let done = wait_for(LIMIT, || match self.way {
            Way::PartialSeed => self.has_data(&self.ours),
            _ => !get.is_running(),
        });
        let outcome = match done {
            Ok(()) if self.has_data(&self.ours) => Ok(()),
            Ok(()) => Err(format!("we ended without the data\n{}", get.output())),
            Err(()) => Err(format!("we do not get the data\n{}", get.output())),
        };
        get.kill();
        outcome
    }

    /// Starts a seeder of ours.
    fn seed(&self, job: &Job, via: &[&str]) -> Transfer {
        self.seed_at(free_port(), job, via)
    }

    /// Starts a seeder of ours that listens at a port.
    pub fn seed_at(&self, port: u16, job: &Job, via: &[&str]) -> Transfer {
        self.write(&self.ours, self.way == Way::PartialSeed);
        let mut args = via.to_vec();
        match self.way {
            Way::SuperSeed => args.push("--super-seed"),
            Way::PartialSeed => args.push("--partial"),
            _ => {}
        }
        self.start("seed", port, &args, &[&self.torrent, &self.ours.join("film.bin")], job)
    }

    /// Waits until the client has downloaded from our seeder.
    pub fn serve(&self, seed: &mut Transfer) -> Result<(), String> {
        let done = wait_for(LIMIT, || !seed.is_running() || self.has_data(&self.theirs));
        let outcome = match done {
            Ok(()) if self.has_data(&self.theirs) => Ok(()),
            Ok(()) => Err(format!("our seeder has ended\n{}", seed.output())),
            Err(()) => Err(format!("it does not get the data\n{}", seed.output())),
        };
        seed.kill();
        outcome
    }
}
