//! Both ends of a web seed: a driver that requests blocks from it, and an HTTP server whose answers a test defines.

#![allow(dead_code, missing_docs, reason = "each test file uses its own part")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;
use torrentfs::internals::http::HttpClient;
use torrentfs::internals::net::{Connection, Incoming, Limits};
use torrentfs::internals::webseed::WebSeed;
use torrentfs::metainfo::{FileKind, Metainfo, NewFile, NewTorrent, hash_pieces};
use torrentfs::wire::{Message, Request};

use crate::support;

/// Limit of every wait in these tests. None should come near it.
pub const LONG: Duration = Duration::from_secs(180);

/// Makes a torrent `t` of these files. A single file without a directory makes a single-file torrent.
/// Returns the torrent and its bytes.
pub fn torrent(files: &[(&str, usize)], piece_len: u32) -> (Metainfo, Vec<u8>) {
    let data = support::noise(files.iter().map(|(_, len)| len).sum(), 1);
    let alone = files.len() == 1 && !files[0].0.contains('/');
    let path = |name: &str| name.split('/').map(str::to_owned).collect();
    let new = NewTorrent {
        name: if alone { files[0].0.into() } else { "t".into() },
        piece_len,
        files: files
            .iter()
            .map(|(name, len)| NewFile {
                path: if alone { Vec::new() } else { path(name) },
                len: *len as u64,
                kind: FileKind::Regular { executable: false },
            })
            .collect(),
        ..NewTorrent::default()
    };
    let (hashes, _) = hash_pieces(&data[..], piece_len).unwrap();
    (Metainfo::parse(&new.build(&hashes).unwrap()).unwrap(), data)
}

/// Writes the torrent's files to the directory of a server.
pub fn publish(metainfo: &Metainfo, data: &[u8], root: &std::path::Path) {
    for file in metainfo.layout.files() {
        let path = file.path.iter().fold(root.to_path_buf(), |dir, part| dir.join(part));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, &data[file.range().start as usize..file.range().end as usize]).unwrap();
    }
}

/// The side that requests blocks from a web seed.
pub struct Driver {
    pub metainfo: Arc<Metainfo>,
    pub seed: WebSeed,
    pub limits: Arc<Limits>,
    pub connection: Option<Connection>,
    pub inbox: mpsc::Receiver<((), Incoming)>,
    pub outstanding: usize,
    /// Blocks received, by piece and begin.
    pub blocks: BTreeMap<(u32, u32), Vec<u8>>,
    pub rejected: Vec<Request>,
    pub choked: bool,
    /// The message with the pieces that the seed has: `HaveAll` or `Bitfield`.
    pub offer: Option<Message>,
    pub closed: Option<String>,
}

impl Driver {
    pub fn new(mut metainfo: Metainfo, urls: &[&str], scripts: &[&str], limits: Limits) -> Self {
        metainfo.web_seeds = urls.iter().map(|url| (*url).to_owned()).collect();
        metainfo.http_seeds = scripts.iter().map(|url| (*url).to_owned()).collect();
        let metainfo = Arc::new(metainfo);
        let seed = WebSeed::all(&metainfo, &HttpClient::new().unwrap()).remove(0);
        let mut driver = Self {
            metainfo,
            seed,
            limits: Arc::new(limits),
            connection: None,
            inbox: mpsc::channel(1).1,
            outstanding: 0,
            blocks: BTreeMap::new(),
            rejected: Vec::new(),
            choked: true,
            offer: None,
            closed: None,
        };
        driver.connect().unwrap();
        driver
    }

    pub fn files(metainfo: Metainfo, url: &str) -> Self {
        Self::new(metainfo, &[url], &[], Limits::new(0, 0))
    }

    pub fn connect(&mut self) -> Result<(), String> {
        let (sender, inbox) = mpsc::channel(8);
        self.connection = Some(self.seed.connect(self.limits.clone(), (), sender)?);
        (self.inbox, self.closed, self.outstanding, self.choked) = (inbox, None, 0, true);
        Ok(())
    }

    /// Returns the blocks that begin at a byte from `from` to `to`.
    pub fn blocks_in(&self, from: u64, to: u64) -> Vec<Request> {
        let lengths = self.metainfo.layout.lengths();
        let requests = lengths.iter().flat_map(|piece| lengths.blocks(piece)).map(|block| {
            let begin = lengths.begin_of(block);
            (lengths.offset_in(block.piece, begin), block.piece.get(), begin, lengths.block_len(block))
        });
        let inside = requests.filter(|(at, ..)| (from..to).contains(at));
        inside.map(|(_, piece, begin, length)| Request { piece, begin, length }).collect()
    }

    pub fn send(&self, messages: Vec<Message>) {
        self.connection.as_ref().unwrap().outbox().send(messages).unwrap();
    }

    pub fn request(&mut self, requests: Vec<Request>) {
        self.outstanding += requests.len();
        self.send(requests.into_iter().map(Message::Request).collect());
    }

    pub fn request_all(&mut self) {
        self.request(self.blocks_in(0, u64::MAX));
    }

    pub async fn receive(&mut self) {
        let received = timeout(LONG, self.inbox.recv()).await.expect("a message in time").expect("a connection");
        match received.1 {
            Incoming::Messages(messages) => messages.into_iter().for_each(|message| self.message(message)),
            Incoming::Closed(why) => self.closed = Some(why),
            Incoming::Sent(_) | Incoming::ExtensionsSent(_) => panic!("a web seed has no socket"),
        }
    }

    pub fn message(&mut self, message: Message) {
        match message {
            Message::Piece { piece, begin, data } => {
                self.outstanding -= 1;
                assert!(self.blocks.insert((piece, begin), data.to_vec()).is_none(), "a block arrived twice");
            }
            Message::Reject(request) => {
                self.outstanding -= 1;
                self.rejected.push(request);
            }
            Message::Choke => self.choked = true,
            Message::Unchoke => self.choked = false,
            offer @ (Message::HaveAll | Message::Bitfield(_)) => self.offer = Some(offer),
            Message::Extended { id: 0, .. } | Message::KeepAlive => {}
            other => panic!("a web seed sent {other:?}"),
        }
    }

    /// Waits until every request is answered or the connection has ended.
    pub async fn wait_for_answers(&mut self) {
        while self.outstanding > 0 && self.closed.is_none() {
            self.receive().await;
        }
    }

    pub async fn until(&mut self, mut done: impl FnMut(&Self) -> bool) {
        while !done(self) {
            self.receive().await;
        }
    }

    /// Compares the received blocks with the torrent's bytes. Returns how many bytes were received.
    pub fn check(&self, data: &[u8]) -> usize {
        let lengths = self.metainfo.layout.lengths();
        for ((piece, begin), block) in &self.blocks {
            let at = lengths.offset_in(lengths.piece(*piece).unwrap(), *begin) as usize;
            assert!(data[at..at + block.len()] == block[..], "wrong bytes in piece {piece} at {begin}");
        }
        self.blocks.values().map(Vec::len).sum()
    }
}

/// A request to a fake server.
#[derive(Clone, Debug)]
pub struct ReceivedRequest {
    /// Path and query.
    pub path: String,
    /// First and last byte of the range.
    pub range: Option<(u64, u64)>,
}

/// An HTTP server that ends with the process.
pub struct FakeServer {
    pub url: String,
    requests: Arc<Mutex<Vec<ReceivedRequest>>>,
    pub connections: Arc<AtomicUsize>,
}

impl FakeServer {
    /// Starts a server. `answer` writes the answer to a request and returns whether the connection stays open.
    pub fn start(
        answer: impl Fn(&ReceivedRequest, &mut TcpStream) -> std::io::Result<bool> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (requests, connections) = (Arc::<Mutex<Vec<ReceivedRequest>>>::default(), Arc::<AtomicUsize>::default());
        let fake = Self { url, requests: requests.clone(), connections: connections.clone() };
        let answer = Arc::new(answer);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                connections.fetch_add(1, Ordering::Relaxed);
                let (requests, answer) = (requests.clone(), answer.clone());
                thread::spawn(move || {
                    let mut stream = stream;
                    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                    while let Some(request) = read_request(&mut lines) {
                        requests.lock().unwrap().push(request.clone());
                        if !answer(&request, &mut stream).unwrap_or(false) {
                            return;
                        }
                    }
                });
            }
        });
        fake
    }

    /// Returns the requests received so far.
    pub fn requests(&self) -> Vec<ReceivedRequest> {
        self.requests.lock().unwrap().clone()
    }
}

pub fn read_request(lines: &mut impl Iterator<Item = std::io::Result<String>>) -> Option<ReceivedRequest> {
    let first = lines.next()?.ok()?;
    let path = first.split(' ').nth(1)?.to_owned();
    let mut range = None;
    for line in lines.by_ref() {
        let line = line.ok()?.to_ascii_lowercase();
        if line.is_empty() {
            return Some(ReceivedRequest { path, range });
        }
        if let Some((from, to)) = line.strip_prefix("range: bytes=").and_then(|range| range.split_once('-')) {
            range = Some((from.parse().ok()?, to.parse().ok()?));
        }
    }
    None
}

pub fn write_head(stream: &mut TcpStream, status: &str, headers: &str, len: usize) -> std::io::Result<()> {
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {len}\r\n{headers}\r\n")
}

/// Answers with the requested range, as a correct server does.
pub fn serve_range(request: &ReceivedRequest, stream: &mut TcpStream, file: &[u8]) -> std::io::Result<bool> {
    let (from, to) = request.range.unwrap();
    let (from, end) = (from as usize, (to as usize + 1).min(file.len()));
    write_head(stream, "206 Partial Content", &content_range(from, end, file.len()), end - from)?;
    stream.write_all(&file[from..end])?;
    Ok(true)
}

pub fn content_range(from: usize, end: usize, len: usize) -> String {
    format!("Content-Range: bytes {from}-{}/{len}\r\n", end - 1)
}

pub fn respond_empty(stream: &mut TcpStream, status: &str) -> std::io::Result<bool> {
    write_head(stream, status, "", 0)?;
    Ok(true)
}
