//! From a connected socket to an established peer: the encryption handshake, if any, and the BitTorrent handshake.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::BytesMut;
use tokio::time::timeout;

use super::mse::{self, Ciphers, Initiator, Methods, MseError, Responder};
use super::stream::{Socket, Stream};
use crate::metainfo::InfoHash;
use crate::wire::{Handshake, PROTOCOL, WireError};

/// Time limit for both handshakes.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

/// Read size during an encryption handshake, in bytes.
const READ_SIZE: usize = 1024;

/// Whether connections are encrypted (message stream encryption).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encryption {
    /// Both, as the peer wants. We dial in plaintext first, which saves two round trips, and encrypted at once if the
    /// peer closes that connection. Incoming connections may use either.
    #[default]
    Prefer,
    /// RC4 in both directions, or no connection.
    Require,
    /// Plaintext only.
    Off,
}

impl Encryption {
    /// Returns the methods allowed for the payload after an encryption handshake.
    fn methods(self) -> Methods {
        match self {
            Encryption::Prefer => Methods::BOTH,
            Encryption::Require => Methods::RC4,
            Encryption::Off => Methods::PLAINTEXT,
        }
    }
}

/// A connection whose handshakes are complete.
#[derive(Debug)]
pub struct Handshaken {
    /// The connection.
    pub stream: Stream,
    /// Remote address.
    pub addr: SocketAddr,
    /// Handshake of the peer.
    pub theirs: Handshake,
}

/// The reason why a connection could not be established.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The connection failed with this error of the operating system.
    #[error("{0}")]
    Unreachable(io::Error),
    /// The connection was not accepted in time.
    #[error("no answer within {} s", .0.as_secs())]
    NoAnswer(Duration),
    /// The connection was closed during the handshake.
    #[error("it closed the connection during the handshake: {0}")]
    Closed(#[from] io::Error),
    /// The connection was accepted, but the handshake was not complete in time.
    #[error("no handshake within {} s", .0.as_secs())]
    NoHandshake(Duration),
    /// The handshake is not BitTorrent's.
    #[error("{0}")]
    Wire(#[from] WireError),
    /// The encryption handshake failed.
    #[error("{0}")]
    Mse(#[from] MseError),
    /// The peer's handshake has another info hash than ours.
    #[error("it answers for another torrent")]
    WrongTorrent,
    /// An incoming handshake asks for a torrent that we do not have.
    #[error("it asks for a torrent that we do not have ({0})")]
    UnknownTorrent(InfoHash),
    /// An incoming plaintext handshake for this torrent although encryption is required.
    #[error("it uses plaintext, but encryption is required")]
    Plaintext(InfoHash),
    /// An incoming encrypted handshake although encryption is off.
    #[error("it uses encryption, which is off")]
    Encrypted,
    /// The address is on the blocklist.
    #[error("its address is on the blocklist")]
    Blocked,
    /// The proxy failed, so nobody can be reached.
    #[error("the proxy fails: {0}")]
    Proxy(io::Error),
    /// Both transports failed.
    #[error("over TCP: {tcp}; over uTP: {utp}")]
    Both {
        /// Error over TCP.
        tcp: Box<DialError>,
        /// Error over uTP.
        utp: Box<DialError>,
    },
}

impl DialError {
    pub(super) fn both(tcp: Self, utp: Self) -> Self {
        Self::Both { tcp: tcp.into(), utp: utp.into() }
    }

    /// Returns whether the other transport may succeed: nobody answered, or the peer closed the connection at once, as
    /// clients do on TCP if they accept only uTP.
    pub(super) fn may_try_other_transport(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::NoAnswer(_) | Self::Closed(_))
    }
}

/// Exchanges handshakes with a peer that we dialed.
pub(super) async fn initiate(
    socket: Socket,
    addr: SocketAddr,
    ours: &Handshake,
    encryption: Encryption,
    encrypted: bool,
) -> Result<Handshaken, DialError> {
    in_time(async {
        let mut stream = if encrypted {
            initiate_encryption(socket, ours, encryption.methods()).await?
        } else {
            let mut stream = Stream::new(socket, None, BytesMut::new());
            stream.write_all(ours.encode()).await?;
            stream
        };
        let theirs = Handshake::decode(&stream.read_array().await?)?;
        if theirs.info_hash != ours.info_hash {
            return Err(DialError::WrongTorrent);
        }
        Ok(Handshaken { stream, addr, theirs })
    })
    .await
}

/// Performs the encryption handshake, which carries our BitTorrent handshake.
async fn initiate_encryption(mut socket: Socket, ours: &Handshake, offer: Methods) -> Result<Stream, DialError> {
    let (mut input, mut output) = (BytesMut::new(), BytesMut::new());
    let mut initiator = Initiator::start(ours.info_hash, offer, &ours.encode(), &mut rand::rng(), &mut output);
    loop {
        send(&mut socket, &mut output).await?;
        fill(&mut socket, &mut input).await?;
        if let Some(mse::Secured { ciphers, early }) = initiator.handle(&mut input, &mut output)? {
            return Ok(Stream::new(socket, ciphers, early));
        }
    }
}

/// Exchanges handshakes with a peer that connected to us. `find` returns our handshake for the torrent whose info hash
/// satisfies its argument.
pub(super) async fn respond(
    socket: Socket,
    addr: SocketAddr,
    encryption: Encryption,
    find: impl Fn(&dyn Fn(&InfoHash) -> bool) -> Option<Handshake>,
) -> Result<Handshaken, DialError> {
    in_time(async {
        let mut socket = socket;
        let mut input = BytesMut::new();
        let encrypted = loop {
            fill(&mut socket, &mut input).await?;
            let known = input.len().min(PROTOCOL.len());
            // A public key may start with any bytes, so compare the whole protocol name.
            if input[..known] != PROTOCOL[..known] {
                break true;
            }
            if known == PROTOCOL.len() {
                break false;
            }
        };
        let (ciphers, early) = match (encrypted, encryption) {
            (true, Encryption::Off) => return Err(DialError::Encrypted),
            (false, Encryption::Require) => {
                // The rest is only read: the peer learns nothing of us.
                let theirs = Handshake::decode(&Stream::new(socket, None, input).read_array().await?)?;
                return Err(DialError::Plaintext(theirs.info_hash));
            }
            (true, _) => respond_with_encryption(&mut socket, input, encryption.methods(), &find).await?,
            (false, _) => (None, input),
        };
        let mut stream = Stream::new(socket, ciphers, early);
        let theirs = Handshake::decode(&stream.read_array().await?)?;
        let ours = find(&|hash| *hash == theirs.info_hash).ok_or(DialError::UnknownTorrent(theirs.info_hash))?;
        stream.write_all(ours.encode()).await?;
        Ok(Handshaken { stream, addr, theirs })
    })
    .await
}

/// Performs the encryption handshake for an incoming connection. Returns the ciphers and the bytes after the handshake.
async fn respond_with_encryption(
    socket: &mut Socket,
    mut input: BytesMut,
    allowed: Methods,
    find: impl Fn(&dyn Fn(&InfoHash) -> bool) -> Option<Handshake>,
) -> Result<(Option<Box<Ciphers>>, BytesMut), DialError> {
    let mut output = BytesMut::new();
    let mut responder = Responder::new(allowed, &mut rand::rng());
    loop {
        let ended = responder.handle(&mut input, &mut output, |matches| Some(find(matches)?.info_hash))?;
        send(socket, &mut output).await?;
        if let Some(mse::Secured { ciphers, early }) = ended {
            return Ok((ciphers, early));
        }
        fill(socket, &mut input).await?;
    }
}

async fn in_time(exchange: impl Future<Output = Result<Handshaken, DialError>>) -> Result<Handshaken, DialError> {
    timeout(HANDSHAKE_LIMIT, exchange).await.unwrap_or(Err(DialError::NoHandshake(HANDSHAKE_LIMIT)))
}

async fn fill(socket: &mut Socket, input: &mut BytesMut) -> io::Result<()> {
    input.reserve(READ_SIZE);
    if socket.read_buf(input).await? == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
}

async fn send(socket: &mut Socket, output: &mut BytesMut) -> io::Result<()> {
    socket.write_all(&output.split()).await
}
