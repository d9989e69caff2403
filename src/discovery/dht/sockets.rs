//! The UDP sockets of the node: its own, or those of uTP.

use std::borrow::Cow;
use std::future::pending;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;

use super::address::Family;
use super::krpc::MAX_DATAGRAM;
use super::shared::SharedSocket;
use crate::route::Bind;

/// Pause after an error of a socket, so that a lasting one does not cause a busy loop.
const RECEIVE_PAUSE: Duration = Duration::from_millis(100);

/// One socket.
#[derive(Debug)]
struct Port {
    socket: Arc<UdpSocket>,
    /// Datagrams that the owner of a shared socket passes on to us.
    received: Option<mpsc::Receiver<(SocketAddr, Bytes)>>,
}

/// One UDP port on IPv4 and, if the machine has it, on IPv6.
#[derive(Debug)]
pub(super) struct Sockets {
    /// Sockets in the order of `Family`.
    ports: [Option<Port>; 2],
    port: u16,
}

/// Memory for datagrams of both families.
pub(super) type Buffers = [Vec<u8>; 2];

/// Returns memory for [`Sockets::receive`].
pub(super) fn buffers() -> Buffers {
    [vec![0; MAX_DATAGRAM], vec![0; MAX_DATAGRAM]]
}

impl Sockets {
    /// Opens `port`, or any free port if it is taken.
    pub fn bind(port: u16, bind: &Bind) -> io::Result<Self> {
        Self::bind_port(port, bind).or_else(|error| match error.kind() {
            io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied if port != 0 => Self::bind_port(0, bind),
            _ => Err(error),
        })
    }

    /// Takes sockets that another protocol uses, too.
    pub fn share(shared: Vec<SharedSocket>) -> io::Result<Self> {
        let mut sockets = Self { ports: [None, None], port: 0 };
        for SharedSocket { socket, received } in shared {
            let addr = socket.local_addr()?;
            sockets.port = addr.port();
            sockets.ports[Family::of(addr) as usize] = Some(Port { socket, received: Some(received) });
        }
        Ok(sockets)
    }

    fn bind_port(port: u16, bind: &Bind) -> io::Result<Self> {
        let v4 = match bind.address() {
            Some(IpAddr::V6(_)) => None,
            Some(ip) => Some(open((ip, port).into(), bind)?),
            None => Some(open((Ipv4Addr::UNSPECIFIED, port).into(), bind)?),
        };
        let port = v4.as_ref().map_or(Ok(port), |socket| socket.local_addr().map(|addr| addr.port()))?;
        let v6 = match bind.address() {
            Some(IpAddr::V4(_)) => None,
            Some(ip) => Some(open((ip, port).into(), bind)?),
            // Many machines have no IPv6; that is not an error.
            None => open((Ipv6Addr::UNSPECIFIED, port).into(), bind).ok(),
        };
        let port = v6.as_ref().map_or(Ok(port), |socket| socket.local_addr().map(|addr| addr.port()))?;
        let own = |socket: UdpSocket| Port { socket: Arc::new(socket), received: None };
        Ok(Self { ports: [v4.map(own), v6.map(own)], port })
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn families(&self) -> Vec<Family> {
        Family::BOTH.into_iter().filter(|family| self.ports[*family as usize].is_some()).collect()
    }

    /// Waits until the runtime knows that the sockets are writable. Before that, `try_send_to` refuses every datagram.
    pub async fn writable(&self) {
        for port in self.ports.iter().flatten() {
            let _ = port.socket.writable().await;
        }
    }

    /// Sends a datagram. If the socket buffer is full the datagram is lost, as the network may lose any.
    pub fn send(&self, to: SocketAddr, bytes: &[u8]) {
        if let Some(port) = &self.ports[Family::of(to) as usize]
            && let Err(error) = port.socket.try_send_to(bytes, to)
        {
            tracing::trace!(%to, "DHT datagram not sent: {error}");
        }
    }

    /// Receives a datagram. Cancel safe.
    pub async fn receive<'a>(&mut self, buffers: &'a mut Buffers) -> (SocketAddr, Cow<'a, [u8]>) {
        let [v4, v6] = &mut self.ports;
        let [buffer4, buffer6] = buffers;
        tokio::select! {
            received = receive(v4, buffer4) => received,
            received = receive(v6, buffer6) => received,
        }
    }
}

fn open(addr: SocketAddr, bind: &Bind) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    bind.bind_device(&socket)?;
    socket.bind(&addr.into())?;
    UdpSocket::from_std(socket.into())
}

async fn receive<'a>(port: &mut Option<Port>, buffer: &'a mut [u8]) -> (SocketAddr, Cow<'a, [u8]>) {
    match port {
        Some(Port { received: Some(received), .. }) => match received.recv().await {
            Some((from, datagram)) => (from, Cow::Owned(datagram.into())),
            // The owner of the socket has ended.
            None => pending().await,
        },
        Some(Port { socket, .. }) => loop {
            match socket.recv_from(buffer).await {
                Ok((len, from)) => return (from, Cow::Borrowed(&buffer[..len])),
                Err(error) => {
                    tracing::debug!("cannot receive from the DHT socket: {error}");
                    tokio::time::sleep(RECEIVE_PAUSE).await;
                }
            }
        },
        None => pending().await,
    }
}
