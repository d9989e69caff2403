//! A peer without pieces whose extension messages are sent and received by the test, one by one.

#![allow(dead_code, missing_docs, reason = "each test file uses its own part")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use torrentfs::metainfo::Metainfo;
use torrentfs::wire::{self, Decoder, ExtensionHandshake, HANDSHAKE_LEN, Handshake, Message, PeerId};

/// A listening peer.
pub struct PeerListener {
    listener: TcpListener,
    pub addr: SocketAddr,
}

impl PeerListener {
    pub fn new(ip: &str) -> Self {
        let listener = TcpListener::bind((ip, 0)).unwrap();
        Self { addr: listener.local_addr().unwrap(), listener }
    }

    /// Accepts a connection and sends both handshakes, with these extensions and their message ids.
    pub fn accept(&self, metainfo: &Metainfo, extensions: &[(&str, u8)]) -> ExtensionPeer {
        let (mut stream, _) = self.listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.read_exact(&mut [0; HANDSHAKE_LEN]).unwrap();
        let mut id = [b'x'; 20];
        id[..2].copy_from_slice(&self.addr.port().to_be_bytes());
        stream.write_all(&Handshake::new(metainfo.info_hash, PeerId(id)).encode()).unwrap();
        let extensions = extensions.iter().map(|(name, number)| ((*name).to_owned(), *number)).collect();
        let handshake = ExtensionHandshake { extensions, ..ExtensionHandshake::default() };
        let decoder = Decoder::new(metainfo.layout.lengths().pieces());
        let mut peer = ExtensionPeer { stream, buffer: BytesMut::new(), decoder };
        peer.send(&Message::HaveNone);
        peer.send_extended(0, handshake.encode());
        peer
    }
}

pub struct ExtensionPeer {
    stream: TcpStream,
    buffer: BytesMut,
    decoder: Decoder,
}

impl ExtensionPeer {
    pub fn send(&mut self, message: &Message) {
        let mut out = BytesMut::new();
        wire::encode(message, &mut out);
        self.stream.write_all(&out).unwrap();
    }

    /// Sends an extension message by the other side's message id.
    pub fn send_extended(&mut self, id: u8, payload: Bytes) {
        self.send(&Message::Extended { id, payload });
    }

    /// Receives the next extension message with our message id `id`. `None` means that the other side has disconnected.
    pub fn receive(&mut self, id: u8) -> Option<Bytes> {
        loop {
            while let Some(message) = self.decoder.decode(&mut self.buffer).unwrap() {
                if let Message::Extended { id: received, payload } = message
                    && received == id
                {
                    return Some(payload);
                }
            }
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk).unwrap() {
                0 => return None,
                n => self.buffer.extend_from_slice(&chunk[..n]),
            }
        }
    }

    /// Receives the extension handshake.
    pub fn receive_handshake(&mut self) -> ExtensionHandshake {
        ExtensionHandshake::decode(&self.receive(0).expect("an extension handshake")).unwrap()
    }
}
