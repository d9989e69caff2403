//! Peers that ask for more than others, and peers that send more than they should.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use torrentfs::internals::session::{Session, SessionConfig, Torrent, TorrentOptions};
use torrentfs::internals::store::{Cache, CacheConfig, Place};
use torrentfs::metainfo::{FileKind, InfoHash, Metainfo, NewFile, NewTorrent, hash_pieces};
use torrentfs::wire::{
    self, Decoder, ExtensionHandshake, HANDSHAKE_LEN, Handshake, Message, PeerId, Request, Reserved,
};

use crate::support::transfer::Transfer;
use crate::support::{local, noise, wait_until};

const PIECE: u32 = 256 << 10;
const LIMIT: Duration = Duration::from_secs(120);
/// Peak memory that a process may have whatever peers send, in bytes: the cache has 32 MiB of it.
const MEMORY: u64 = 150 << 20;

/// Makes the torrent of one file.
fn torrent(data: &[u8]) -> Vec<u8> {
    let (hashes, len) = hash_pieces(data, PIECE).unwrap();
    let file = NewFile { path: Vec::new(), len, kind: FileKind::Regular { executable: false } };
    let torrent = NewTorrent { name: "film.bin".into(), piece_len: PIECE, files: vec![file], ..NewTorrent::default() };
    torrent.build(&hashes).unwrap()
}

/// Seeds a file in this process.
async fn seed(dir: &Path, data: &[u8]) -> (Session, Arc<Torrent>, SocketAddr) {
    let path = dir.join("film.bin");
    fs::write(&path, data).unwrap();
    let cache = Cache::open(CacheConfig { dir: dir.join("cache"), disk_limit: None, memory: 32 << 20 }).unwrap();
    let session = Session::start(SessionConfig { net: local(), ..SessionConfig::new(cache) }).unwrap();
    let options = TorrentOptions { place: Place::Seed(path), ..TorrentOptions::default() };
    let torrent = session.add(Metainfo::parse(&torrent(data)).unwrap(), options).await.unwrap();
    let addr = ([127, 0, 0, 1], session.port()).into();
    (session, torrent, addr)
}

/// Exchanges handshakes. Without `fast` neither the fast extension nor extension messages are agreed on.
fn shake_hands(mut stream: TcpStream, info_hash: InfoHash, number: u64, fast: bool, calls: bool) -> TcpStream {
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let mut id = [b'x'; 20];
    id[..8].copy_from_slice(&number.to_be_bytes());
    let mut ours = Handshake::new(info_hash, PeerId(id));
    if !fast {
        ours.reserved = Reserved([0; 8]);
    }
    if calls {
        stream.write_all(&ours.encode()).unwrap();
    }
    stream.read_exact(&mut [0; HANDSHAKE_LEN]).unwrap();
    if !calls {
        stream.write_all(&ours.encode()).unwrap();
    }
    stream
}

fn encoded(messages: &[Message]) -> BytesMut {
    let mut out = BytesMut::new();
    messages.iter().for_each(|message| wire::encode(message, &mut out));
    out
}

/// As rtorrent does near the end of a download, and more: everything is requested at once. Answers are read only after
/// the last request is sent, and the socket does not hold all requests, so the seeder must read on when it has answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leecher_without_the_fast_extension_is_served_all_of_thousands_of_requests() {
    let data = noise(24 << 20, 7);
    let dir = tempfile::tempdir().unwrap();
    let (session, torrent, addr) = seed(dir.path(), &data).await;
    let info_hash = torrent.metainfo().info_hash;
    const LEN: u32 = 4096;
    let leecher = tokio::task::spawn_blocking(move || {
        let stream = shake_hands(TcpStream::connect(addr).unwrap(), info_hash, 1, false, true);
        let mut requests: Vec<Request> = (0..data.len() as u32 / LEN)
            .map(|n| n * LEN)
            .map(|at| Request { piece: at / PIECE, begin: at % PIECE, length: LEN })
            .collect();
        let mut writer = stream.try_clone().unwrap();
        writer.write_all(&encoded(&[Message::Interested])).unwrap();
        let mut messages = messages(stream, data.len() as u32 / PIECE);
        while messages.next().unwrap() != Message::Unchoke {}
        let all: Vec<Message> = requests.iter().copied().map(Message::Request).collect();
        thread::spawn(move || writer.write_all(&encoded(&all)).unwrap());
        while !requests.is_empty() {
            let left = requests.len();
            let Some(message) = messages.next() else { panic!("closed while {left} requests were not answered") };
            let Message::Piece { piece, begin, data: block } = message else { continue };
            let at = (piece * PIECE + begin) as usize;
            assert!(*block == data[at..at + block.len()]);
            requests.retain(|request| (request.piece, request.begin) != (piece, begin));
        }
    });
    leecher.await.unwrap();
    session.remove(&torrent).await;
}

/// Returns the messages that come, until the connection ends.
fn messages(mut stream: TcpStream, pieces: u32) -> impl Iterator<Item = Message> {
    let (mut decoder, mut buffer) = (Decoder::new(pieces), BytesMut::new());
    std::iter::from_fn(move || {
        loop {
            if let Some(message) = decoder.decode(&mut buffer).unwrap() {
                return Some(message);
            }
            let mut chunk = [0; 65_536];
            match stream.read(&mut chunk) {
                Ok(0) => return None,
                Ok(n) => buffer.extend_from_slice(&chunk[..n]),
                Err(error) => panic!("nothing comes: {error}"),
            }
        }
    })
}

/// What a hostile peer sends after the handshakes, for as long as the connection lasts. It reads nothing.
#[derive(Clone, Copy, Debug)]
enum Attack {
    /// Metadata of 32 MiB; each piece is padded to the longest message.
    PaddedMetadata,
    /// The same without padding, and with another length for each peer.
    LongMetadata,
    /// The longest extension message, but for its last byte.
    UnfinishedExtension,
    /// Peer exchange messages with thousands of addresses.
    Addresses,
    /// Requests for the longest blocks.
    LongRequests,
    /// Requests that are refused, one by one.
    Refused,
    /// Requests for pieces of our metadata.
    MetadataRequests,
    /// Blocks that nobody asked for, the last one unfinished.
    Blocks,
    /// Every small message there is.
    Small,
}

const ATTACKS: [Attack; 9] = [
    Attack::PaddedMetadata,
    Attack::LongMetadata,
    Attack::UnfinishedExtension,
    Attack::Addresses,
    Attack::LongRequests,
    Attack::Refused,
    Attack::MetadataRequests,
    Attack::Blocks,
    Attack::Small,
];

/// Our numbers of the extensions, as our extension handshake states them.
const METADATA: u8 = 1;
const PEX: u8 = 2;

fn extended(id: u8, payload: Vec<u8>) -> Message {
    Message::Extended { id, payload: payload.into() }
}

fn attack(mut stream: TcpStream, attack: Attack, number: u64, pieces: u32) -> std::io::Result<()> {
    let extensions = [("ut_metadata".to_owned(), 1), ("ut_pex".to_owned(), 2)].into();
    let size = (32 << 20) - if matches!(attack, Attack::LongMetadata) { number as u32 } else { 0 };
    let handshake = ExtensionHandshake { extensions, metadata_size: Some(size), ..ExtensionHandshake::default() };
    stream.write_all(&encoded(&[
        Message::HaveNone,
        Message::Extended { id: 0, payload: handshake.encode() },
        Message::Interested,
    ]))?;
    stream.set_write_timeout(Some(Duration::from_secs(5)))?;
    let metadata = |stream: &mut TcpStream, padding: usize| -> std::io::Result<()> {
        let (mut decoder, mut buffer) = (Decoder::new(pieces.max(1 << 22)), BytesMut::new());
        loop {
            while let Some(message) = decoder.decode(&mut buffer).map_err(std::io::Error::other)? {
                let Message::Extended { id: METADATA, payload } = message else { continue };
                let piece = String::from_utf8_lossy(&payload).split("piecei").nth(1).map(str::to_owned);
                let piece = piece.and_then(|rest| rest.split('e').next()?.parse::<u32>().ok()).unwrap_or(0);
                let pad = "p".repeat(padding);
                let head = format!("d8:msg_typei1e3:pad{padding}:{pad}5:piecei{piece}e10:total_sizei{size}ee");
                let mut reply = head.into_bytes();
                let len = (size - piece * 16_384).min(16_384) as usize;
                reply.resize(reply.len() + len, 7);
                stream.write_all(&encoded(&[extended(METADATA, reply)]))?;
            }
            let mut chunk = [0; 65_536];
            let n = stream.read(&mut chunk)?;
            if n == 0 {
                return Ok(());
            }
            buffer.extend_from_slice(&chunk[..n]);
        }
    };
    let forever = |stream: &mut TcpStream, messages: &[Message]| -> std::io::Result<()> {
        let bytes = encoded(messages);
        loop {
            stream.write_all(&bytes)?;
        }
    };
    let request = |n: u32, length: u32| Message::Request(Request { piece: n % pieces, begin: 0, length });
    match attack {
        Attack::PaddedMetadata => metadata(&mut stream, 1_000_000),
        Attack::LongMetadata => metadata(&mut stream, 0),
        Attack::UnfinishedExtension => {
            let mut out = BytesMut::new();
            out.put_u32(2 + (64 << 10));
            out.put_slice(&[20, METADATA]);
            out.put_bytes(b'd', (64 << 10) - 1);
            stream.write_all(&out)?;
            thread::sleep(LIMIT);
            Ok(())
        }
        Attack::Addresses => {
            let mut payload = b"d5:added60000:".to_vec();
            payload.extend((0..60_000u32).map(|n| (n * 7 + number as u32) as u8));
            payload.extend_from_slice(b"e");
            forever(&mut stream, &[extended(PEX, payload)])
        }
        Attack::LongRequests => {
            let all: Vec<Message> = (0..1_000).map(|n| request(n, 128 << 10)).collect();
            forever(&mut stream, &all)
        }
        Attack::Refused => {
            let all: Vec<Message> = (0..1_000).map(|n| request(n, 1 + n)).collect();
            let all: Vec<Message> = [vec![Message::NotInterested], all].concat();
            forever(&mut stream, &all)
        }
        Attack::MetadataRequests => {
            let ask = |piece: u32| extended(METADATA, format!("d8:msg_typei0e5:piecei{piece}ee").into_bytes());
            forever(&mut stream, &(0..100).map(ask).collect::<Vec<_>>())
        }
        Attack::Blocks => {
            let block = |piece: u32| Message::Piece { piece, begin: 0, data: Bytes::from(vec![1; 128 << 10]) };
            let out = encoded(&[block(0), block(1)]);
            stream.write_all(&out[..out.len() - 1])?;
            thread::sleep(LIMIT);
            Ok(())
        }
        Attack::Small => {
            let some = (0..pieces).flat_map(|piece| {
                let asked = Request { piece, begin: 0, length: 16_384 };
                [
                    Message::Have(piece),
                    Message::Suggest(piece),
                    Message::AllowedFast(piece),
                    Message::Cancel(asked),
                    Message::Port(piece as u16),
                    Message::KeepAlive,
                    Message::Choke,
                    Message::Unchoke,
                ]
            });
            forever(&mut stream, &some.collect::<Vec<_>>())
        }
    }
}

/// Returns the highest memory that a process has had, in bytes.
fn peak_memory(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("the process runs");
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// Starts hostile peers that wait for our program, `each` of each kind. Returns their addresses.
fn hostile_peers(info_hash: InfoHash, pieces: u32, attacks: &[Attack], each: u64) -> Vec<String> {
    let mut addrs = Vec::new();
    for (n, kind) in attacks.iter().cycle().copied().enumerate().take(attacks.len() * each as usize) {
        let number = n as u64;
        let addr = SocketAddr::from(([127, 0, 1 + (n / 200) as u8, 1 + (n % 200) as u8], 0));
        let listener = TcpListener::bind(addr).unwrap();
        addrs.push(listener.local_addr().unwrap().to_string());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || {
                    let attacks = || attack(shake_hands(stream, info_hash, number, true, false), kind, number, pieces);
                    // An error means that our program has hung up.
                    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(attacks));
                });
            }
        });
    }
    addrs
}

fn watch(mut transfer: Transfer, what: &str) {
    let end = Instant::now() + Duration::from_secs(12);
    let mut peak = 0;
    while Instant::now() < end {
        assert!(transfer.is_running(), "{}", transfer.output());
        peak = peak_memory(transfer.process.0.id());
        assert!(peak <= MEMORY, "{what}: {} MiB; {}", peak >> 20, transfer.output());
        thread::sleep(Duration::from_millis(200));
    }
    println!("{what}: at most {} MiB", peak >> 20);
    transfer.kill();
}

#[test]
fn memory_stays_bounded_while_a_magnet_link_is_fetched_from_liars() {
    let dir = tempfile::tempdir().unwrap();
    let info_hash = InfoHash([7; 20]);
    let peers = hostile_peers(info_hash, 1000, &ATTACKS, 6);
    let args: Vec<&str> = peers.iter().flat_map(|peer| ["--peer", peer]).collect();
    let get = Transfer::get(dir.path(), &args, Path::new(&format!("magnet:?xt=urn:btih:{info_hash}")));
    watch(get, "a magnet link");
}

#[test]
fn memory_stays_bounded_while_a_torrent_is_fetched_from_attackers() {
    let dir = tempfile::tempdir().unwrap();
    let data = noise(16 << 20, 3);
    let path = dir.path().join("film.torrent");
    fs::write(&path, torrent(&data)).unwrap();
    let metainfo = Metainfo::parse(&torrent(&data)).unwrap();
    let peers = hostile_peers(metainfo.info_hash, 64, &ATTACKS, 10);
    let args: Vec<&str> = peers.iter().flat_map(|peer| ["--peer", peer]).collect();
    watch(Transfer::get(dir.path(), &args, &path), "a download");
}

#[test]
fn memory_stays_bounded_while_a_torrent_is_served_to_attackers() {
    let dir = tempfile::tempdir().unwrap();
    // Pieces of 256 KiB, so that the longest blocks may be requested; and metadata of a megabyte.
    let data = noise(64 << 20, 3);
    let (path, file) = (dir.path().join("film.torrent"), dir.path().join("film.bin"));
    fs::write(&file, &data).unwrap();
    fs::write(&path, torrent(&data)).unwrap();
    let metainfo = Metainfo::parse(&torrent(&data)).unwrap();
    let peers = hostile_peers(metainfo.info_hash, 256, &ATTACKS, 10);
    let args: Vec<&str> = peers.iter().flat_map(|peer| ["--peer", peer]).collect();
    let mut seed = Transfer::start("seed", dir.path(), &args, &[&path, &file]);
    wait_until("the seeder is ready", LIMIT, || {
        assert!(seed.is_running(), "{}", seed.output());
        seed.output().contains("seeding ")
    });
    watch(seed, "a seeder");
}
