//! From a connected socket to a peer whose handshakes are done: the encryption's, if any, and the protocol's.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::BytesMut;
use tokio::time::timeout;

use super::mse::{self, Answerer, Caller, Ciphers, Methods, MseError};
use super::stream::{Socket, Stream};
use crate::metainfo::InfoHash;
use crate::wire::{Handshake, PROTOCOL, WireError};

/// Both handshakes must be through in this time.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

/// How much of an encryption handshake is read at once.
const READ: usize = 1024;

/// Whether connections are encrypted (message stream encryption).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encryption {
    /// Whatever the peer takes. We call in plaintext first, for it is two round trips shorter, and at once again
    /// encrypted if the peer hangs up on that; callers may do either.
    #[default]
    Prefer,
    /// RC4, both ways, or no connection.
    Require,
    /// Plaintext alone.
    Off,
}

impl Encryption {
    /// What may be used after an encrypted handshake.
    fn methods(self) -> Methods {
        match self {
            Encryption::Prefer => Methods::BOTH,
            Encryption::Require => Methods::RC4,
            Encryption::Off => Methods::PLAINTEXT,
        }
    }
}

/// A connection that can carry messages.
#[derive(Debug)]
pub struct Handshaken {
    /// The connection.
    pub stream: Stream,
    /// The remote end.
    pub addr: SocketAddr,
    /// What they said of themselves.
    pub theirs: Handshake,
}

/// Why an address gave no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// No connection at all: the operating system's reason.
    #[error("{0}")]
    Unreachable(io::Error),
    /// Nobody answers the connection itself.
    #[error("no answer within {} s", .0.as_secs())]
    NoAnswer(Duration),
    /// The connection ended in the handshake.
    #[error("it hung up in the handshake: {0}")]
    HungUp(#[from] io::Error),
    /// Connected, but no handshake in time.
    #[error("no handshake within {} s", .0.as_secs())]
    Silent(Duration),
    /// Not a BitTorrent handshake.
    #[error("{0}")]
    Wire(#[from] WireError),
    /// The encryption's handshake failed.
    #[error("{0}")]
    Mse(#[from] MseError),
    /// They serve another torrent than the one asked for.
    #[error("it answers for another torrent")]
    WrongTorrent,
    /// A caller asked for a torrent that is not here.
    #[error("it asks for a torrent that is not here ({0})")]
    UnknownTorrent(InfoHash),
    /// A caller without encryption, where it is required.
    #[error("it speaks in plaintext, and encryption is required")]
    Plaintext,
    /// A caller with encryption, where it is off.
    #[error("it insists on encryption, which is off")]
    Encrypted,
    /// On the blocklist.
    #[error("its address is on the blocklist")]
    Blocked,
    /// The proxy, through which all go.
    #[error("the proxy fails: {0}")]
    Proxy(io::Error),
    /// Neither way leads there.
    #[error("over TCP: {tcp}; over uTP: {utp}")]
    Both {
        /// Why not over TCP.
        tcp: Box<DialError>,
        /// Why not over uTP.
        utp: Box<DialError>,
    },
}

impl DialError {
    pub(super) fn both(tcp: Self, utp: Self) -> Self {
        Self::Both { tcp: tcp.into(), utp: utp.into() }
    }

    /// Another transport may lead there: nobody answered this one, or somebody hung up without a word (as programs do
    /// on TCP that take uTP alone).
    pub(super) fn elsewhere(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::NoAnswer(_) | Self::HungUp(_))
    }
}

/// Exchanges handshakes with a peer that we called.
pub(super) async fn call(
    socket: Socket,
    addr: SocketAddr,
    ours: &Handshake,
    encryption: Encryption,
    encrypted: bool,
) -> Result<Handshaken, DialError> {
    in_time(async {
        let mut stream = if encrypted {
            secure(socket, ours, encryption.methods()).await?
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

/// The encrypted handshake, in which ours goes along.
async fn secure(mut socket: Socket, ours: &Handshake, offer: Methods) -> Result<Stream, DialError> {
    let (mut input, mut output) = (BytesMut::new(), BytesMut::new());
    let mut caller = Caller::begin(ours.info_hash, offer, &ours.encode(), &mut rand::rng(), &mut output);
    loop {
        send(&mut socket, &mut output).await?;
        fill(&mut socket, &mut input).await?;
        if let Some(mse::Secured { ciphers, early }) = caller.handle(&mut input, &mut output)? {
            return Ok(Stream::new(socket, ciphers, early));
        }
    }
}

/// Answers a caller. `find` gives our handshake for the torrent of ours that satisfies its argument.
pub(super) async fn answer(
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
            // A public key begins with any bytes, so all of the name is compared.
            if input[..known] != PROTOCOL[..known] {
                break true;
            }
            if known == PROTOCOL.len() {
                break false;
            }
        };
        let (ciphers, early) = match (encrypted, encryption) {
            (true, Encryption::Off) => return Err(DialError::Encrypted),
            (false, Encryption::Require) => return Err(DialError::Plaintext),
            (true, _) => be_secured(&mut socket, input, encryption.methods(), &find).await?,
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

/// The encrypted handshake from the other side; what comes behind it.
async fn be_secured(
    socket: &mut Socket,
    mut input: BytesMut,
    allowed: Methods,
    find: impl Fn(&dyn Fn(&InfoHash) -> bool) -> Option<Handshake>,
) -> Result<(Option<Box<Ciphers>>, BytesMut), DialError> {
    let mut output = BytesMut::new();
    let mut answerer = Answerer::new(allowed, &mut rand::rng());
    loop {
        let ended = answerer.handle(&mut input, &mut output, |matches| Some(find(matches)?.info_hash))?;
        send(socket, &mut output).await?;
        if let Some(mse::Secured { ciphers, early }) = ended {
            return Ok((ciphers, early));
        }
        fill(socket, &mut input).await?;
    }
}

async fn in_time(exchange: impl Future<Output = Result<Handshaken, DialError>>) -> Result<Handshaken, DialError> {
    timeout(HANDSHAKE_LIMIT, exchange).await.unwrap_or(Err(DialError::Silent(HANDSHAKE_LIMIT)))
}

async fn fill(socket: &mut Socket, input: &mut BytesMut) -> io::Result<()> {
    input.reserve(READ);
    if socket.read_buf(input).await? == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
}

async fn send(socket: &mut Socket, output: &mut BytesMut) -> io::Result<()> {
    socket.write_all(&output.split()).await
}
