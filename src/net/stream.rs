//! The transport of a connection: TCP or uTP, each in plaintext or encrypted with RC4.
//!
//! Plaintext TCP makes the same system calls as a bare socket. Once the cipher has processed part of a buffer, the rest
//! must follow, so cancelling a write means dropping the connection.
//!
//! `librqbit-utp` may announce a closed receive window and not notice that the reader has emptied the buffer since. It
//! compares the free space with its initial segment size but closes the window by the segment size that it discovered.
//! Both ends then wait for seconds. Any write makes it check again. Therefore a reader that may have emptied a full
//! buffer, and gets no more data, requests a keep-alive from the writing half ([`WriteHalf::keep_alive_due`]).

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use librqbit_utp::{UtpStream, UtpStreamReadHalf, UtpStreamWriteHalf};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::mse::{Cipher, Ciphers};
use super::outgoing::Outgoing;
use super::utp;

/// Time that a uTP reader waits for data after it may have emptied a full buffer, before it requests a keep-alive.
const WINDOW_CHECK_DELAY: Duration = Duration::from_millis(20);

/// The socket below the encryption.
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

/// The transport protocol of a connection.
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
    /// Decrypted bytes that were received together with the handshake and belong to what follows it.
    early: BytesMut,
}

impl Stream {
    pub(super) fn new(socket: Socket, ciphers: Option<Box<Ciphers>>, early: BytesMut) -> Self {
        Self { socket, ciphers, early }
    }

    /// Returns the transport protocol.
    pub fn transport(&self) -> Transport {
        match self.socket {
            Socket::Tcp(_) => Transport::Tcp,
            Socket::Utp(_) => Transport::Utp,
        }
    }

    /// Returns whether the payload is encrypted, not only the handshake.
    pub fn encrypted(&self) -> bool {
        self.ciphers.is_some()
    }

    /// Reads the next `N` bytes.
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
                let keep_alive = Arc::new(Notify::new());
                (
                    ReadSocket::Utp { socket: read, keep_alive: keep_alive.clone(), read_since: 0 },
                    WriteSocket::Utp(write, keep_alive),
                )
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
        keep_alive: Arc<Notify>,
        /// Bytes read since the last keep-alive request.
        read_since: usize,
    },
}

enum WriteSocket {
    Tcp(OwnedWriteHalf),
    Utp(UtpStreamWriteHalf, Arc<Notify>),
}

/// The receiving half of a stream.
pub(super) struct ReadHalf {
    socket: ReadSocket,
    cipher: Option<Cipher>,
    early: BytesMut,
}

impl ReadHalf {
    /// Reads into `buffer`; 0 bytes mean the end of the stream.
    pub(super) async fn read_buf(&mut self, buffer: &mut BytesMut) -> io::Result<usize> {
        if !self.early.is_empty() {
            let early = std::mem::take(&mut self.early);
            buffer.extend_from_slice(&early);
            return Ok(early.len());
        }
        let from = buffer.len();
        let n = match &mut self.socket {
            ReadSocket::Tcp(socket) => socket.read_buf(buffer).await?,
            ReadSocket::Utp { socket, keep_alive, read_since } => {
                let n = match timeout(WINDOW_CHECK_DELAY, socket.read_buf(buffer)).await {
                    Ok(read) => read?,
                    Err(_) => {
                        // If less was read, the buffer was not full.
                        if *read_since >= utp::RECEIVE_BUFFER.get() / 2 {
                            *read_since = 0;
                            keep_alive.notify_one();
                        }
                        socket.read_buf(buffer).await?
                    }
                };
                *read_since = read_since.saturating_add(n);
                n
            }
        };
        if let Some(cipher) = &mut self.cipher {
            cipher.apply(&mut buffer[from..]);
        }
        Ok(n)
    }

    /// Makes TCP send the next acknowledgement without delay.
    pub(super) fn acknowledge(&self) {
        if let ReadSocket::Tcp(socket) = &self.socket {
            let _ = socket.as_ref().set_quickack(true);
        }
    }
}

/// The sending half of a stream.
pub(super) struct WriteHalf {
    socket: WriteSocket,
    cipher: Option<Cipher>,
}

impl WriteHalf {
    /// Waits until the reading half requests a keep-alive, or nothing was sent for [`utp::KEEP_ALIVE`] while this waits.
    pub(super) async fn keep_alive_due(&self) {
        match &self.socket {
            WriteSocket::Tcp(_) => std::future::pending().await,
            WriteSocket::Utp(_, keep_alive) => drop(timeout(utp::KEEP_ALIVE, keep_alive.notified()).await),
        }
    }

    /// Has TCP end the connection if the peer's machine acknowledges nothing for this long; `None`: for minutes, as usual.
    pub(super) fn limit_acknowledgement(&self, limit: Option<Duration>) {
        if let WriteSocket::Tcp(socket) = &self.socket {
            let _ = SockRef::from(socket.as_ref()).set_tcp_user_timeout(limit);
        }
    }

    /// Waits until a uTP peer has acknowledged everything. TCP does not tell; see
    /// [`limit_acknowledgement`](Self::limit_acknowledgement).
    pub(super) async fn acknowledged(&mut self) -> io::Result<()> {
        match &mut self.socket {
            WriteSocket::Tcp(_) => Ok(()),
            WriteSocket::Utp(socket, _) => socket.flush().await,
        }
    }

    /// Sends and consumes all of `bytes`.
    pub(super) async fn write_all(&mut self, bytes: &mut BytesMut) -> io::Result<()> {
        if let Some(cipher) = &mut self.cipher {
            cipher.apply(bytes);
        }
        match &mut self.socket {
            WriteSocket::Tcp(socket) => socket.write_all_buf(bytes).await,
            WriteSocket::Utp(socket, _) => socket.write_all_buf(bytes).await,
        }
    }

    /// Encrypts messages, if the connection is encrypted. They must be sent next.
    pub(super) fn encrypt(&mut self, outgoing: &mut Outgoing) {
        if let Some(cipher) = &mut self.cipher {
            outgoing.encrypt(|bytes| cipher.apply(bytes));
        }
    }

    /// Sends and consumes what the socket takes now, or after a wait: at least a byte.
    pub(super) async fn write_some(&mut self, outgoing: &mut Outgoing) -> io::Result<()> {
        let written = match &mut self.socket {
            WriteSocket::Tcp(socket) => socket.write_buf(outgoing).await?,
            WriteSocket::Utp(socket, _) => socket.write_buf(outgoing).await?,
        };
        if written == 0 { Err(io::ErrorKind::WriteZero.into()) } else { Ok(()) }
    }
}
