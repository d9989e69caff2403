//! One file seeded to fifty leechers, by us and by libtorrent in turns. The leechers are bare sockets in this process: they
//! request blocks and drop what comes, so that both seeders have the same load.

use std::fs;
use std::io::{self, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use sha1::{Digest, Sha1};
use torrentfs::metainfo::Metainfo;

use super::noise::noise;
use super::program::{Process, Torrent, program};

const LEECHERS: u8 = 50;
const LEN: usize = 256 << 20;
const PIECE_LEN: usize = 1 << 20;
const BLOCK: u32 = 16 << 10;
/// Requests that a leecher has outstanding, as common clients have.
const OUTSTANDING: u32 = 64;
const ROUNDS: usize = 3;
const ROUND: Duration = Duration::from_secs(8);
/// Time in which connections are made and unchoked.
const WARM_UP: Duration = Duration::from_secs(3);

/// A libtorrent session that seeds to anybody.
const LIBTORRENT: &str = r#"
import sys, time, libtorrent as lt
port, save, path = sys.argv[1:]
session = lt.session({"listen_interfaces": "127.0.0.1:" + port, "enable_dht": False, "enable_lsd": False,
    "enable_upnp": False, "enable_natpmp": False, "allow_multiple_connections_per_ip": True, "unchoke_slots_limit": -1,
    "max_allowed_in_request_queue": 5000, "send_buffer_watermark": 8 << 20, "alert_mask": 0})
params = lt.add_torrent_params()
params.ti, params.save_path = lt.torrent_info(path), save
params.flags = params.flags & ~(lt.torrent_flags.auto_managed | lt.torrent_flags.paused) | lt.torrent_flags.seed_mode
session.add_torrent(params)
time.sleep(3600)
"#;

pub fn measure() {
    let base = tempfile::tempdir().unwrap();
    let (path, film) = (base.path().join("film.torrent"), base.path().join("film.bin"));
    let data = noise(LEN, 1);
    let hashes: Vec<u8> = data.chunks(PIECE_LEN).flat_map(Sha1::digest).collect();
    let torrent = Torrent::new("film.bin", LEN as u64, PIECE_LEN as u64, &hashes);
    fs::write(&path, &torrent.bytes).unwrap();
    fs::write(&film, data).unwrap();
    let info_hash = Metainfo::parse(&torrent.bytes).unwrap().info_hash.0;
    let has_libtorrent =
        Command::new("/usr/bin/python3").args(["-c", "import libtorrent"]).output().is_ok_and(|it| it.status.success());
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ours.push(round(info_hash, |port| seed(base.path(), &path, &film, port)));
        if has_libtorrent {
            theirs.push(round(info_hash, |port| libtorrent(base.path(), &path, port)));
        }
    }
    for (name, rounds) in [("torrentfs", ours), ("libtorrent", theirs)] {
        if let Some((rate, cost)) = median(rounds) {
            println!("{LEECHERS} leechers of {name}: {rate:.0} MiB/s, {cost:.2} s of processor time a GiB");
        }
    }
}

fn seed(base: &Path, torrent: &Path, film: &Path, port: u16) -> Process {
    let child = program()
        .args(["seed", "--no-dht", "--no-lsd", "--no-port-mapping", "--bind", "127.0.0.1", "--port", &port.to_string()])
        .arg("--cache-dir")
        .arg(base.join("seed"))
        .args([torrent, film])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    Process(child.unwrap())
}

fn libtorrent(base: &Path, torrent: &Path, port: u16) -> Process {
    let child =
        Command::new("/usr/bin/python3").args(["-c", LIBTORRENT, &port.to_string()]).arg(base).arg(torrent).spawn();
    Process(child.unwrap())
}

/// Returns MiB a second, and seconds of processor time a GiB.
fn round(info_hash: [u8; 20], start: impl FnOnce(u16) -> Process) -> (f64, f64) {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let seeder = start(port);
    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let end = Instant::now() + Duration::from_secs(60);
    while TcpStream::connect(addr).is_err() {
        assert!(Instant::now() < end, "the seeder does not listen");
        thread::sleep(Duration::from_millis(20));
    }
    let (received, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let leechers = (1..=LEECHERS).map(|host| {
        let (received, stop) = (received.clone(), stop.clone());
        thread::spawn(move || drop(leech(addr, host, info_hash, &received, &stop)))
    });
    let leechers: Vec<_> = leechers.collect();
    thread::sleep(WARM_UP);
    let (before, at, begun) = (seeder.usage().processor, received.load(Relaxed), Instant::now());
    thread::sleep(ROUND);
    let bytes = (received.load(Relaxed) - at) as f64;
    let (took, processor) = (begun.elapsed().as_secs_f64(), (seeder.usage().processor - before).as_secs_f64());
    stop.store(true, Relaxed);
    drop(seeder);
    leechers.into_iter().for_each(|leecher| leecher.join().unwrap());
    (bytes / took / f64::from(1 << 20), processor / (bytes.max(1.0) / f64::from(1 << 30)))
}

/// Requests one block after the other, from a place of its own in the file, until the connection ends.
fn leech(addr: SocketAddr, host: u8, info_hash: [u8; 20], received: &AtomicU64, stop: &AtomicBool) -> io::Result<()> {
    // Many clients keep one connection for each address.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.bind(&SocketAddr::from(([127, 0, 1, host], 0)).into())?;
    socket.connect(&addr.into())?;
    let mut out: TcpStream = socket.into();
    out.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut id = *b"-BN0001-leecher.....";
    id[19] = host;
    out.write_all(&[&b"\x13BitTorrent protocol"[..], &[0; 8], &info_hash, &id].concat())?;
    let mut input = BufReader::with_capacity(256 << 10, out.try_clone()?);
    input.read_exact(&mut [0; 68])?;
    out.write_all(&[0, 0, 0, 1, 2])?;
    let blocks = LEN as u32 / BLOCK;
    let (mut next, mut outstanding, mut is_choked) = (u32::from(host) * blocks / u32::from(LEECHERS), 0, true);
    let mut body = vec![0; BLOCK as usize + 13];
    while !stop.load(Relaxed) {
        if !is_choked && outstanding <= OUTSTANDING / 2 {
            let mut requests = Vec::new();
            for _ in outstanding..OUTSTANDING {
                let at = next % blocks * BLOCK;
                next += 1;
                requests.extend([0, 0, 0, 13, 6]);
                for number in [at / PIECE_LEN as u32, at % PIECE_LEN as u32, BLOCK] {
                    requests.extend(number.to_be_bytes());
                }
            }
            outstanding = OUTSTANDING;
            out.write_all(&requests)?;
        }
        let mut len = [0; 4];
        input.read_exact(&mut len)?;
        let len = u32::from_be_bytes(len) as usize;
        if len > body.len() {
            io::copy(&mut input.by_ref().take(len as u64), &mut io::sink())?;
            continue;
        }
        input.read_exact(&mut body[..len])?;
        match body[..len].first() {
            Some(0) => (is_choked, outstanding) = (true, 0),
            Some(1) => is_choked = false,
            Some(7) => {
                outstanding = outstanding.saturating_sub(1);
                received.fetch_add(len as u64 - 9, Relaxed);
            }
            _ => {}
        }
    }
    Ok(())
}

fn median(mut rounds: Vec<(f64, f64)>) -> Option<(f64, f64)> {
    rounds.sort_by(|a, b| a.0.total_cmp(&b.0));
    rounds.get(rounds.len() / 2).copied()
}
