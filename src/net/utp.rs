//! uTP sockets (BEP 29): one for IPv4 and one for IPv6, on the port number of the TCP listener.
//!
//! `librqbit-utp` implements the protocol. This module sets its limits, owns the UDP sockets, and adds what the crate
//! lacks: a lost SYN packet is sent again, and a (temporary) error of the UDP socket does not end all connections.
//!
//! The DHT has the same sockets: other clients expect its node at the port of the peer, and routers map one port. Its
//! datagrams begin with the `d` of a bencoded dictionary, which would be version 4 and type 6 of uTP; there is only version
//! 1 with types up to 4.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use librqbit_dualstack_sockets::PollSendToVectored;
use librqbit_utp::{SocketOpts, UtpSocket, UtpSocketUdp, UtpStream};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::route::Bind;

/// Maximum number of connections per socket. Each costs at most its two buffers, and next to nothing while idle.
const MAX_STREAMS: NonZeroUsize = NonZeroUsize::new(100).unwrap();

/// Receive buffer of a connection, in bytes: enough for 10 MB/s from a peer 50 ms away.
pub(super) const RECEIVE_BUFFER: NonZeroUsize = NonZeroUsize::new(512 << 10).unwrap();

/// Maximum send buffer of a connection, in bytes. It starts small and grows with use.
const SEND_BUFFER: NonZeroUsize = NonZeroUsize::new(512 << 10).unwrap();

/// Kernel buffer of a UDP socket, in bytes. All connections share it; the kernel caps it.
const KERNEL_BUFFER: usize = 4 << 20;

/// Time to wait for the answer to each SYN packet. The round trip to a usable peer takes less than a second.
const SYN_TIMEOUTS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(2)];

/// Time after which a peer that sends nothing is considered gone. The library counts from the last data received, also
/// while neither side has anything to send, and stops when the peer acknowledges data of ours, such as a keep-alive.
const SILENCE_LIMIT: Duration = Duration::from_secs(20);

/// Time after which a connection on which we sent nothing gets a keep-alive. Routers forget a UDP flow after 30 s, and
/// other programs with the same library hang up after 10 s without data.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(8);

/// Pause after an error of the UDP socket, so that a lasting error does not cause a busy loop.
const RECEIVE_PAUSE: Duration = Duration::from_millis(20);

/// Maximum number of datagrams that wait for the DHT; a few bursts of replies.
const MAX_WAITING: usize = 256;

/// Maximum length of these, in bytes: more than one that is not fragmented.
const MAX_BENCODED: usize = 2048;

/// The part of a UDP socket that is not uTP's: its datagrams that begin like a bencoded dictionary.
#[derive(Debug)]
pub struct Bencoded {
    /// The socket, to send from.
    pub socket: Arc<UdpSocket>,
    /// The datagrams received, and their senders.
    pub received: mpsc::Receiver<(SocketAddr, Bytes)>,
}

/// The uTP sockets of one port.
pub(super) struct Utp {
    v4: Option<Arc<Endpoint>>,
    v6: Option<Arc<Endpoint>>,
    cancel: CancellationToken,
}

/// One UDP socket with its connections.
pub(super) type Endpoint = UtpSocket<Udp, Environment>;

/// The crate's clock and random generator, a type that it does not export.
type Environment = <UtpSocketUdp as Inner>::Environment;

/// Names that type through the type parameter of [`UtpSocket`].
pub(super) trait Inner {
    type Environment;
}

impl<T, E> Inner for UtpSocket<T, E> {
    type Environment = E;
}

impl Utp {
    /// Opens `port` on `bind`. If `bind` is not an address, IPv4 is required and IPv6 optional. Returns also the rest of
    /// the sockets, which may be dropped.
    pub(super) fn bind(port: u16, bind: &Bind) -> io::Result<(Self, Vec<Bencoded>)> {
        let cancel = CancellationToken::new();
        let mut rest = Vec::new();
        let mut open = |ip: IpAddr| {
            let (endpoint, bencoded) = endpoint(SocketAddr::new(ip, port), bind, cancel.clone())?;
            rest.push(bencoded);
            io::Result::Ok(Some(endpoint))
        };
        let (v4, v6) = match bind.address() {
            Some(ip @ IpAddr::V4(_)) => (open(ip)?, None),
            Some(ip @ IpAddr::V6(_)) => (None, open(ip)?),
            None => (open(Ipv4Addr::UNSPECIFIED.into())?, open(Ipv6Addr::UNSPECIFIED.into()).unwrap_or(None)),
        };
        Ok((Self { v4, v6, cancel }, rest))
    }

    /// Returns the sockets.
    pub(super) fn endpoints(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.v4.iter().chain(&self.v6)
    }

    /// Returns the socket for the address family of `addr`.
    pub(super) fn endpoint_for(&self, addr: SocketAddr) -> Option<&Arc<Endpoint>> {
        if addr.is_ipv4() { self.v4.as_ref() } else { self.v6.as_ref() }
    }
}

impl Drop for Utp {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// Connects to `addr`. uTP cannot refuse a connection in a way that the crate reports, so a refusal is a timeout.
pub(super) async fn connect(endpoint: &Arc<Endpoint>, addr: SocketAddr) -> io::Result<UtpStream> {
    for limit in SYN_TIMEOUTS {
        if let Ok(ended) = timeout(limit, endpoint.connect(addr)).await {
            return ended.map_err(io::Error::other);
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

/// Maximum duration of [`connect`]: the sum of `SYN_TIMEOUTS`.
pub(super) const CONNECT_LIMIT: Duration = Duration::from_secs(3);

fn endpoint(addr: SocketAddr, bind: &Bind, cancel: CancellationToken) -> io::Result<(Arc<Endpoint>, Bencoded)> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // The kernel caps the sizes without an error.
    socket.set_recv_buffer_size(KERNEL_BUFFER)?;
    socket.set_send_buffer_size(KERNEL_BUFFER)?;
    socket.set_nonblocking(true)?;
    bind.bind_device(&socket)?;
    socket.bind(&addr.into())?;
    let addr = socket.local_addr()?.as_socket().unwrap_or(addr);
    let socket = Arc::new(UdpSocket::from_std(socket.into())?);
    let (bencoded, received) = mpsc::channel(MAX_WAITING);
    let rest = Bencoded { socket: socket.clone(), received };
    let udp = Udp { addr, socket, bencoded };
    let options = SocketOpts {
        vsock_rx_bufsize_bytes: Some(RECEIVE_BUFFER),
        vsock_tx_bufsize_bytes_max: Some(SEND_BUFFER),
        // Request messages are small and urgent, so Nagle's algorithm must not hold them back.
        disable_nagle: true,
        cancellation_token: cancel,
        remote_inactivity_timeout: Some(SILENCE_LIMIT),
        max_live_vsocks: Some(MAX_STREAMS),
        dont_wait_for_lastack: true,
        ..SocketOpts::default()
    };
    let endpoint = UtpSocket::new_with_opts(udp, Environment::default(), options).map_err(io::Error::other)?;
    Ok((endpoint, rest))
}

/// A UDP socket that survives errors, and keeps for others what is theirs.
pub(super) struct Udp {
    socket: Arc<UdpSocket>,
    addr: SocketAddr,
    bencoded: mpsc::Sender<(SocketAddr, Bytes)>,
}

impl librqbit_utp::Transport for Udp {
    async fn recv_from(&self, buf: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        loop {
            match self.socket.recv_from(buf).await {
                Ok((len, from)) if buf[..len].first() == Some(&b'd') => {
                    // If the DHT is behind it is lost, as the network may lose any.
                    let _ = self.bencoded.try_send((from, Bytes::copy_from_slice(&buf[..len.min(MAX_BENCODED)])));
                }
                Ok(received) => return Ok(received),
                // The network went down, memory was short, or an ICMP error arrived. At most one connection is
                // affected.
                Err(error) => {
                    tracing::trace!("UDP socket {}: {error}", self.addr);
                    tokio::time::sleep(RECEIVE_PAUSE).await;
                }
            }
        }
    }

    async fn send_to(&self, buf: &[u8], target: SocketAddr) -> io::Result<usize> {
        self.socket.send_to(buf, target).await
    }

    fn poll_send_to(&self, cx: &mut Context<'_>, buf: &[u8], target: SocketAddr) -> Poll<io::Result<usize>> {
        self.socket.poll_send_to(cx, buf, target)
    }

    fn bind_addr(&self) -> SocketAddr {
        self.addr
    }
}

impl PollSendToVectored for Udp {
    fn poll_send_to_vectored(
        &self,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
        target: SocketAddr,
    ) -> Poll<io::Result<usize>> {
        self.socket.poll_send_to_vectored(cx, bufs, target)
    }
}
