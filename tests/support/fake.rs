//! Peers and trackers that misbehave, each in one way. They end with the test process.

#![allow(dead_code, missing_docs, reason = "each test file uses its own part")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use bytes::BytesMut;
use torrentfs::metainfo::Metainfo;
use torrentfs::wire::{self, Decoder, HANDSHAKE_LEN, Handshake, Message, PeerId, Request};

/// How a peer behaves once it has said that it has everything and has unchoked us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    Honest,
    /// Every block it sends has a wrong byte.
    Lies,
    /// Every eighth block it sends has a wrong byte.
    LiesSometimes,
    /// Takes requests and answers none.
    Silent,
    /// Answers, a byte a second.
    Drips,
    /// Answers, a block every 150 ms.
    Slow,
    /// Sends what is not the protocol.
    Garbage,
    /// Takes the call and says nothing.
    Mute,
    /// Talks without end, asks for all there is, and never listens.
    Floods,
}

pub struct FakePeer {
    pub addr: SocketAddr,
    /// Connections it took.
    pub connections: Arc<AtomicUsize>,
    /// Requests it took.
    pub requests: Arc<AtomicUsize>,
}

/// Starts a peer at `ip` that has all of `data`.
pub fn peer(ip: &str, metainfo: &Metainfo, data: &Arc<Vec<u8>>, behaviour: Behaviour) -> FakePeer {
    let listener = TcpListener::bind((ip, 0)).unwrap();
    let peer = FakePeer { addr: listener.local_addr().unwrap(), connections: Arc::default(), requests: Arc::default() };
    let (connections, requests) = (peer.connections.clone(), peer.requests.clone());
    let (metainfo, data) = (Arc::new(metainfo.clone()), data.clone());
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let call = connections.fetch_add(1, Ordering::Relaxed);
            let (metainfo, data, requests) = (metainfo.clone(), data.clone(), requests.clone());
            // The connection's end, however it comes, is the end of this peer's part.
            thread::spawn(move || drop(serve(stream, call, &metainfo, &data, behaviour, &requests)));
        }
    });
    peer
}

fn serve(
    mut stream: TcpStream,
    call: usize,
    metainfo: &Metainfo,
    data: &[u8],
    behaviour: Behaviour,
    requests: &AtomicUsize,
) -> std::io::Result<()> {
    if behaviour == Behaviour::Mute {
        return stream.read_to_end(&mut Vec::new()).map(drop);
    }
    let mut id = [b'x'; 20];
    id[0..8].copy_from_slice(&(call as u64).to_be_bytes());
    let port = stream.local_addr()?.port();
    id[8..10].copy_from_slice(&port.to_be_bytes());
    let mut theirs = [0; HANDSHAKE_LEN];
    stream.read_exact(&mut theirs)?;
    stream.write_all(&Handshake::new(metainfo.info_hash, PeerId(id)).encode())?;
    if behaviour == Behaviour::Garbage {
        return stream.write_all(&[0xFF; 4096]);
    }
    let mut out = BytesMut::new();
    wire::encode(&Message::HaveAll, &mut out);
    wire::encode(&Message::Unchoke, &mut out);
    stream.write_all(&out)?;

    let pieces = metainfo.layout.lengths().pieces();
    if behaviour == Behaviour::Floods {
        let mut out = BytesMut::new();
        for piece in 0..pieces {
            let request = Request { piece, begin: 0, length: 16384 };
            let talk = [Message::KeepAlive, Message::Choke, Message::Interested, Message::Request(request)];
            let more = [Message::Unchoke, Message::Have(piece), Message::Cancel(request), Message::NotInterested];
            talk.iter().chain(&more).for_each(|message| wire::encode(message, &mut out));
        }
        loop {
            stream.write_all(&out)?;
        }
    }
    let mut decoder = Decoder::new(pieces);
    let mut buffer = BytesMut::new();
    let mut sent = 0;
    loop {
        while let Some(message) = decoder.decode(&mut buffer).map_err(std::io::Error::other)? {
            let Message::Request(request) = message else { continue };
            requests.fetch_add(1, Ordering::Relaxed);
            let lengths = metainfo.layout.lengths();
            let Some(piece) = lengths.piece(request.piece) else { continue };
            let at = lengths.offset_in(piece, request.begin) as usize;
            let mut block = data[at..at + request.length as usize].to_vec();
            sent += 1;
            match behaviour {
                Behaviour::Lies => block[7] ^= 1,
                Behaviour::LiesSometimes if sent % 8 == 3 => block[7] ^= 1,
                Behaviour::Silent => continue,
                Behaviour::Slow => thread::sleep(Duration::from_millis(150)),
                _ => {}
            }
            let mut out = BytesMut::new();
            let message = Message::Piece { piece: request.piece, begin: request.begin, data: block.into() };
            wire::encode(&message, &mut out);
            if behaviour == Behaviour::Drips {
                for byte in out {
                    stream.write_all(&[byte])?;
                    thread::sleep(Duration::from_secs(1));
                }
            } else {
                stream.write_all(&out)?;
            }
        }
        let mut chunk = [0; 16384];
        let n = stream.read(&mut chunk)?;
        if n == 0 {
            return Ok(());
        }
        buffer.extend_from_slice(&chunk[..n]);
    }
}

/// How a tracker behaves.
#[derive(Clone, Copy, Debug)]
pub enum TrackerFault {
    /// Takes the request and says nothing.
    Hangs,
    /// Answers with a page.
    Garbage,
    /// Answers without end.
    Endless,
}

/// Starts a tracker; its announce URL.
pub fn tracker(behaviour: TrackerFault) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/announce", listener.local_addr().unwrap());
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || -> std::io::Result<()> {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request)?;
                match behaviour {
                    TrackerFault::Hangs => {
                        // Until the caller gives up.
                        while stream.read(&mut request)? > 0 {}
                    }
                    TrackerFault::Garbage => {
                        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n<html>\xFF\x00</ht")?;
                    }
                    TrackerFault::Endless => {
                        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 104857600\r\n\r\n")?;
                        for _ in 0..1600 {
                            stream.write_all(&[b'l'; 65536])?;
                        }
                    }
                }
                Ok(())
            });
        }
    });
    url
}
