//! Peers and trackers that misbehave in one way each. They end with the test process.

#![allow(dead_code, missing_docs, reason = "each test binary uses a part of this")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use bytes::BytesMut;
use torrentfs::metainfo::Metainfo;
use torrentfs::wire::{self, Decoder, HANDSHAKE_LEN, Handshake, Message, PeerId, Request};

/// Behaviour of a peer after it has sent `HaveAll` and `Unchoke`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    Honest,
    /// Every block has a wrong byte.
    Lies,
    /// Every eighth block has a wrong byte.
    LiesSometimes,
    /// Reads requests and answers none.
    Silent,
    /// Answers one byte a second.
    Drips,
    /// Answers one block every 150 ms.
    Slow,
    /// Sends garbage instead of messages.
    Garbage,
    /// Accepts the connection and sends nothing.
    Mute,
    /// Sends messages and requests without end, and reads nothing.
    Floods,
}

pub struct FakePeer {
    pub addr: SocketAddr,
    /// Connections accepted.
    pub connections: Arc<AtomicUsize>,
    /// Connections on which it has sent its first messages: that it has every piece, and that we are unchoked.
    pub offers: Arc<AtomicUsize>,
    /// Requests received.
    pub requests: Arc<AtomicUsize>,
}

/// Starts a peer at `ip` that has all data of the torrent.
pub fn peer(ip: &str, metainfo: &Metainfo, data: &Arc<Vec<u8>>, behaviour: Behaviour) -> FakePeer {
    peer_on(TcpListener::bind((ip, 0)).unwrap(), metainfo, data, behaviour)
}

/// Starts a peer that accepts these connections.
pub fn peer_on(listener: TcpListener, metainfo: &Metainfo, data: &Arc<Vec<u8>>, behaviour: Behaviour) -> FakePeer {
    let peer = FakePeer {
        addr: listener.local_addr().unwrap(),
        connections: Arc::default(),
        offers: Arc::default(),
        requests: Arc::default(),
    };
    let (connections, offers, requests) = (peer.connections.clone(), peer.offers.clone(), peer.requests.clone());
    let (metainfo, data) = (Arc::new(metainfo.clone()), data.clone());
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let number = connections.fetch_add(1, Ordering::Relaxed);
            let (metainfo, data) = (metainfo.clone(), data.clone());
            let counters = (offers.clone(), requests.clone());
            // An error means that the other side has disconnected.
            thread::spawn(move || drop(serve(stream, number, &metainfo, &data, behaviour, &counters)));
        }
    });
    peer
}

fn serve(
    mut stream: TcpStream,
    number: usize,
    metainfo: &Metainfo,
    data: &[u8],
    behaviour: Behaviour,
    (offers, requests): &(Arc<AtomicUsize>, Arc<AtomicUsize>),
) -> std::io::Result<()> {
    if behaviour == Behaviour::Mute {
        return stream.read_to_end(&mut Vec::new()).map(drop);
    }
    let mut id = [b'x'; 20];
    id[0..8].copy_from_slice(&(number as u64).to_be_bytes());
    let port = stream.local_addr()?.port();
    id[8..10].copy_from_slice(&port.to_be_bytes());
    let mut theirs = [0; HANDSHAKE_LEN];
    stream.read_exact(&mut theirs)?;
    stream.write_all(&Handshake::new(metainfo.info_hash, PeerId(id)).encode())?;
    if behaviour == Behaviour::Garbage {
        offers.fetch_add(1, Ordering::Relaxed);
        return stream.write_all(&[0xFF; 4096]);
    }
    let mut out = BytesMut::new();
    wire::encode(&Message::HaveAll, &mut out);
    wire::encode(&Message::Unchoke, &mut out);
    stream.write_all(&out)?;
    offers.fetch_add(1, Ordering::Relaxed);

    let pieces = metainfo.layout.lengths().pieces();
    if behaviour == Behaviour::Floods {
        let mut out = BytesMut::new();
        for piece in 0..pieces {
            let request = Request { piece, begin: 0, length: 16384 };
            let some = [Message::KeepAlive, Message::Choke, Message::Interested, Message::Request(request)];
            let more = [Message::Unchoke, Message::Have(piece), Message::Cancel(request), Message::NotInterested];
            some.iter().chain(&more).for_each(|message| wire::encode(message, &mut out));
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

/// Behaviour of a tracker.
#[derive(Clone, Copy, Debug)]
pub enum TrackerFault {
    /// Accepts the request and sends nothing.
    Hangs,
    /// Answers with a web page.
    Garbage,
    /// Sends an answer of 100 MiB.
    Endless,
}

/// Starts a tracker. Returns its announce URL.
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
                        // Until the client disconnects.
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
