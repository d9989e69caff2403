//! What carries a peer's bytes: TCP or uTP, each plain or under RC4.
//!
//! Plain TCP is an arm of an enum with the same system calls as a bare socket. Once part of a buffer has passed the
//! cipher the rest must follow: whoever gives up a write half-way must give up the connection.
//!
//! `librqbit-utp` may announce a closed receive window and not notice that its reader has made room since (it looks for
//! a wakeup by the segment size that it began with, and closes the window by the one that it has found out): both ends
//! then wait for seconds. Anything written to the connection makes it look again. So a reader that has emptied what may
//! have been a full buffer, and gets no more, has the other half send a keep-alive ([`WriteHalf::nudged`]).

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use librqbit_utp::{UtpStream, UtpStreamReadHalf, UtpStreamWriteHalf};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::mse::{Cipher, Ciphers};
use super::utp;

/// How long a reader of uTP that may have emptied a full buffer waits for more before it has the window looked at.
const NUDGE: Duration = Duration::from_millis(20);

/// Below the encryption.
pub(super) enum Socket {
    Tcp(TcpStream),
    Utp(UtpStream),
}

impl Socket {
    pub(super) async fn read_buf(&mut self, buffer: &mut BytesMut) -> io::Result<usize> {
        match self {
            Socket::Tcp(socket) => socket.read_buf(buffer).await,
            Socket::Utp(socket) => socket.read_buf(buffer).await,
        }
    }

    pub(super) async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Socket::Tcp(socket) => socket.write_all(bytes).await,
            Socket::Utp(socket) => socket.write_all(bytes).await,
        }
    }
}

/// What a connection runs over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// The micro transport protocol over UDP (BEP 29).
    Utp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Transport::Tcp => "TCP",
            Transport::Utp => "uTP",
        })
    }
}

/// A connection to a peer. Dropping it closes the connection.
pub struct Stream {
    socket: Socket,
    ciphers: Option<Box<Ciphers>>,
    /// Received in the handshake and not used by it; decrypted.
    early: BytesMut,
}

impl Stream {
    pub(super) fn new(socket: Socket, ciphers: Option<Box<Ciphers>>, early: BytesMut) -> Self {
        Self { socket, ciphers, early }
    }

    /// What it runs over.
    pub fn transport(&self) -> Transport {
        match self.socket {
            Socket::Tcp(_) => Transport::Tcp,
            Socket::Utp(_) => Transport::Utp,
        }
    }

    /// Whether all of it is encrypted, and not the handshake alone.
    pub fn encrypted(&self) -> bool {
        self.ciphers.is_some()
    }

    /// The next `N` bytes.
    pub(super) async fn read_array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        while self.early.len() < N {
            let from = self.early.len();
            self.early.reserve(N);
            if self.socket.read_buf(&mut self.early).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if let Some(ciphers) = &mut self.ciphers {
                ciphers.receive.apply(&mut self.early[from..]);
            }
        }
        let mut bytes = [0; N];
        self.early.copy_to_slice(&mut bytes);
        Ok(bytes)
    }

    pub(super) async fn write_all<const N: usize>(&mut self, mut bytes: [u8; N]) -> io::Result<()> {
        if let Some(ciphers) = &mut self.ciphers {
            ciphers.send.apply(&mut bytes);
        }
        self.socket.write_all(&bytes).await
    }

    pub(super) fn into_split(self) -> (ReadHalf, WriteHalf) {
        let (send, receive) = self.ciphers.map(|both| (both.send, both.receive)).unzip();
        let (read, write) = match self.socket {
            Socket::Tcp(socket) => {
                let (read, write) = socket.into_split();
                (ReadSocket::Tcp(read), WriteSocket::Tcp(write))
            }
            Socket::Utp(socket) => {
                let (read, write) = socket.split();
                let nudge = Arc::new(Notify::new());
                (ReadSocket::Utp { socket: read, nudge: nudge.clone(), taken: 0 }, WriteSocket::Utp(write, nudge))
            }
        };
        (ReadHalf { socket: read, cipher: receive, early: self.early }, WriteHalf { socket: write, cipher: send })
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let encrypted = if self.encrypted() { ", encrypted" } else { "" };
        write!(f, "Stream({}{encrypted})", self.transport())
    }
}

enum ReadSocket {
    Tcp(OwnedReadHalf),
    Utp {
        socket: UtpStreamReadHalf,
        nudge: Arc<Notify>,
        /// Bytes read since the last nudge.
        taken: usize,
    },
}

enum WriteSocket {
    Tcp(OwnedWriteHalf),
    Utp(UtpStreamWriteHalf, Arc<Notify>),
}

/// The receiving half.
pub(super) struct ReadHalf {
    socket: ReadSocket,
    cipher: Option<Cipher>,
    early: BytesMut,
}

impl ReadHalf {
    /// Appends what comes to `buffer`; 0 bytes are the end.
    pub(super) async fn read_buf(&mut self, buffer: &mut BytesMut) -> io::Result<usize> {
        if !self.early.is_empty() {
            let early = std::mem::take(&mut self.early);
            buffer.extend_from_slice(&early);
            return Ok(early.len());
        }
        let from = buffer.len();
        let n = match &mut self.socket {
            ReadSocket::Tcp(socket) => socket.read_buf(buffer).await?,
            ReadSocket::Utp { socket, nudge, taken } => {
                let n = match timeout(NUDGE, socket.read_buf(buffer)).await {
                    Ok(read) => read?,
                    Err(_) => {
                        // With less read, the buffer was not full.
                        if *taken >= utp::RECEIVE_BUFFER.get() / 2 {
                            *taken = 0;
                            nudge.notify_one();
                        }
                        socket.read_buf(buffer).await?
                    }
                };
                *taken = taken.saturating_add(n);
                n
            }
        };
        if let Some(cipher) = &mut self.cipher {
            cipher.apply(&mut buffer[from..]);
        }
        Ok(n)
    }

    /// Asks TCP to acknowledge at once, this time.
    pub(super) fn acknowledge(&self) {
        if let ReadSocket::Tcp(socket) = &self.socket {
            let _ = socket.as_ref().set_quickack(true);
        }
    }
}

/// The sending half.
pub(super) struct WriteHalf {
    socket: WriteSocket,
    cipher: Option<Cipher>,
}

impl WriteHalf {
    /// Waits until a keep-alive is to be sent, for the reader's sake.
    pub(super) async fn nudged(&self) {
        match &self.socket {
            WriteSocket::Tcp(_) => std::future::pending().await,
            WriteSocket::Utp(_, nudge) => nudge.notified().await,
        }
    }

    /// Sends all of `bytes`, which are used up.
    pub(super) async fn write_all(&mut self, bytes: &mut BytesMut) -> io::Result<()> {
        if let Some(cipher) = &mut self.cipher {
            cipher.apply(bytes);
        }
        match &mut self.socket {
            WriteSocket::Tcp(socket) => socket.write_all_buf(bytes).await,
            WriteSocket::Utp(socket, _) => socket.write_all_buf(bytes).await,
        }
    }

    /// Sends a header and its block: with one system call where the socket takes both, and without copying the block
    /// unless it has to be encrypted (others share it).
    pub(super) async fn write_block(&mut self, head: &mut BytesMut, data: Bytes) -> io::Result<()> {
        if self.cipher.is_some() {
            head.extend_from_slice(&data);
            return self.write_all(head).await;
        }
        let both = head.split().chain(data);
        match &mut self.socket {
            WriteSocket::Tcp(socket) => write_chain(socket, both).await,
            WriteSocket::Utp(socket, _) => write_chain(socket, both).await,
        }
    }
}

async fn write_chain(socket: &mut (impl AsyncWrite + Unpin), mut bytes: impl Buf) -> io::Result<()> {
    while bytes.has_remaining() {
        if socket.write_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
    }
    Ok(())
}
