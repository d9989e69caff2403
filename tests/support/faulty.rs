//! Seeds on loopback that serve for a while and then stop, choke, close, or drop requests. They end with the test process.

#![allow(dead_code, missing_docs, reason = "each test binary uses a part of this")]

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use fixedbitset::FixedBitSet;
use torrentfs::metainfo::Metainfo;
use torrentfs::wire::{
    self, Decoder, ExtensionHandshake, HANDSHAKE_LEN, Handshake, Message, PeerId, Request, bitfield_to_wire,
};

/// Blocks served before the fault shows, each time.
const GOOD: usize = 20;
/// Duration of a choke.
const CHOKE: Duration = Duration::from_millis(300);

/// The fault of a seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    /// It neither reads nor sends any more, as a process that was stopped.
    Stops,
    /// It loses every third request.
    Drops,
    /// It chokes for a moment, and forgets what it was asked for.
    Chokes,
    /// It closes the connection.
    Closes,
    /// It queues one request, loses those that come meanwhile, and says so a second after the handshake.
    ShortQueue,
}

/// A seed to start.
#[derive(Clone, Copy, Debug)]
pub struct Faulty {
    pub fault: Fault,
    /// It supports the fast extension. It rejects nothing all the same.
    pub fast: bool,
    /// Time that it takes for a block.
    pub pace: Duration,
}

impl Faulty {
    /// Starts a seed that has all data of the torrent. Returns its address.
    pub fn start(self, metainfo: &Metainfo, data: &Arc<Vec<u8>>) -> SocketAddr {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let (metainfo, data) = (Arc::new(metainfo.clone()), data.clone());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (metainfo, data) = (metainfo.clone(), data.clone());
                let mut id = *b"-FAULTY-            ";
                id[8..16].copy_from_slice(&COUNT.fetch_add(1, Ordering::Relaxed).to_be_bytes());
                // An error means that the other side has disconnected.
                thread::spawn(move || drop(self.serve(stream, PeerId(id), &metainfo, &data)));
            }
        });
        addr
    }

    fn serve(self, mut stream: TcpStream, id: PeerId, metainfo: &Metainfo, data: &[u8]) -> std::io::Result<()> {
        let lengths = metainfo.layout.lengths();
        let mut theirs = [0; HANDSHAKE_LEN];
        stream.read_exact(&mut theirs)?;
        let mut ours = Handshake::new(metainfo.info_hash, id);
        if !self.fast {
            ours.reserved.0[7] &= !0x04;
        }
        stream.write_all(&ours.encode())?;
        let mut all = FixedBitSet::with_capacity(lengths.pieces() as usize);
        all.insert_range(..);
        send(&mut stream, &Message::Bitfield(bitfield_to_wire(&all)))?;
        send(&mut stream, &Message::Unchoke)?;

        let begin = Instant::now();
        let (mut queue, mut sent, mut said) = (VecDeque::new(), 0, false);
        let (mut decoder, mut buffer, mut chunk) = (Decoder::new(lengths.pieces()), BytesMut::new(), [0; 16_384]);
        let mut asked = 0;
        loop {
            // Whatever has come by now, or what comes next if there is nothing to do.
            stream.set_read_timeout(Some(if queue.is_empty() { CHOKE } else { Duration::from_millis(1) }))?;
            match stream.read(&mut chunk) {
                Ok(0) => return Ok(()),
                Ok(n) => buffer.extend_from_slice(&chunk[..n]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            while let Some(message) = decoder.decode(&mut buffer).map_err(std::io::Error::other)? {
                match message {
                    Message::Request(request) => {
                        asked += 1;
                        let lost = match self.fault {
                            Fault::Drops => asked % 3 == 0,
                            Fault::ShortQueue => !queue.is_empty(),
                            _ => false,
                        };
                        if !lost {
                            queue.push_back(request);
                        }
                    }
                    Message::Cancel(request) => queue.retain(|other: &Request| *other != request),
                    _ => {}
                }
            }
            if self.fault == Fault::ShortQueue && !said && begin.elapsed() > Duration::from_secs(1) {
                said = true;
                let hello = ExtensionHandshake { request_queue: Some(1), ..ExtensionHandshake::default() };
                send(&mut stream, &Message::Extended { id: 0, payload: hello.encode() })?;
            }
            let Some(request) = queue.pop_front() else { continue };
            thread::sleep(self.pace);
            let Some(piece) = lengths.piece(request.piece) else { continue };
            let at = lengths.offset_in(piece, request.begin) as usize;
            let block = data[at..at + request.length as usize].to_vec();
            send(&mut stream, &Message::Piece { piece: request.piece, begin: request.begin, data: block.into() })?;
            sent += 1;
            if sent % GOOD > 0 {
                continue;
            }
            match self.fault {
                Fault::Stops => loop {
                    thread::park();
                },
                Fault::Chokes => {
                    send(&mut stream, &Message::Choke)?;
                    thread::sleep(CHOKE);
                    queue.clear();
                    send(&mut stream, &Message::Unchoke)?;
                }
                Fault::Closes => return Ok(()),
                Fault::None | Fault::Drops | Fault::ShortQueue => {}
            }
        }
    }
}

fn send(stream: &mut TcpStream, message: &Message) -> std::io::Result<()> {
    let mut out = BytesMut::new();
    wire::encode(message, &mut out);
    stream.write_all(&out)
}
