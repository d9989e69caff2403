//! A peer that has nothing and speaks the extension protocol, message by message, as a test wants it.

#![allow(dead_code, missing_docs, reason = "each test file uses its own part")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use torrentfs::metainfo::Metainfo;
use torrentfs::wire::{self, Decoder, ExtensionHandshake, HANDSHAKE_LEN, Handshake, Message, PeerId};

/// Where a peer will be called.
pub struct Door {
    listener: TcpListener,
    pub addr: SocketAddr,
}

impl Door {
    pub fn new(ip: &str) -> Self {
        let listener = TcpListener::bind((ip, 0)).unwrap();
        Self { addr: listener.local_addr().unwrap(), listener }
    }

    /// Takes a call and greets, with these extensions by our numbers.
    pub fn answer(&self, metainfo: &Metainfo, extensions: &[(&str, u8)]) -> Talker {
        let (mut stream, _) = self.listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.read_exact(&mut [0; HANDSHAKE_LEN]).unwrap();
        let mut id = [b'x'; 20];
        id[..2].copy_from_slice(&self.addr.port().to_be_bytes());
        stream.write_all(&Handshake::new(metainfo.info_hash, PeerId(id)).encode()).unwrap();
        let extensions = extensions.iter().map(|(name, number)| ((*name).to_owned(), *number)).collect();
        let hello = ExtensionHandshake { extensions, ..ExtensionHandshake::default() };
        let decoder = Decoder::new(metainfo.layout.lengths().pieces());
        let mut talker = Talker { stream, buffer: BytesMut::new(), decoder };
        talker.send(&Message::HaveNone);
        talker.say(0, hello.encode());
        talker
    }
}

pub struct Talker {
    stream: TcpStream,
    buffer: BytesMut,
    decoder: Decoder,
}

impl Talker {
    pub fn send(&mut self, message: &Message) {
        let mut out = BytesMut::new();
        wire::encode(message, &mut out);
        self.stream.write_all(&out).unwrap();
    }

    /// An extension message, by their number.
    pub fn say(&mut self, id: u8, payload: Bytes) {
        self.send(&Message::Extended { id, payload });
    }

    /// Their next extension message by our number `id`; `None`: they hung up.
    pub fn hear(&mut self, id: u8) -> Option<Bytes> {
        loop {
            while let Some(message) = self.decoder.decode(&mut self.buffer).unwrap() {
                if let Message::Extended { id: number, payload } = message
                    && number == id
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

    /// Their extension handshake.
    pub fn hello(&mut self) -> ExtensionHandshake {
        ExtensionHandshake::decode(&self.hear(0).expect("they greet")).unwrap()
    }
}
