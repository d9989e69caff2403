//! The listening sockets.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

use super::utp::{Bencoded, Utp};
use crate::route::Bind;

/// Attempts with a port chosen by the system, until one is free for both TCP and UDP.
const ATTEMPTS: usize = 8;

/// The port to listen on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PortChoice {
    /// The first free port of 6881 to 6889, BitTorrent's customary range, or else any free port.
    #[default]
    Customary,
    /// This port, or an error if it is taken; 0 stands for any free port.
    Exactly(u16),
}

/// The sockets of one port: TCP on IPv4 and, if the machine has it, on IPv6, and uTP on the same addresses, with room for
/// the DHT beside it.
pub struct Sockets {
    pub(super) tcp: Vec<TcpListener>,
    pub(super) utp: Option<Arc<Utp>>,
    /// Why there is no uTP although it was requested.
    pub(super) utp_missing: Option<io::Error>,
    bencoded: Vec<Bencoded>,
    port: u16,
}

impl Sockets {
    /// Opens listening sockets on `bind`. With `utp`, prefers a port that is free for UDP too; if there is none, only
    /// TCP is opened.
    pub(super) fn open(choice: PortChoice, bind: &Bind, utp: bool) -> io::Result<Self> {
        let ports: Vec<u16> = match choice {
            PortChoice::Exactly(0) => vec![0; ATTEMPTS],
            PortChoice::Exactly(port) => vec![port],
            PortChoice::Customary => (6881..=6889).chain([0; ATTEMPTS]).collect(),
        };
        let mut tcp_alone = None;
        let mut refused = None;
        for port in ports {
            let (port, tcp) = match open_tcp(port, bind) {
                Ok(opened) => opened,
                Err(error) => {
                    refused = Some(error);
                    continue;
                }
            };
            if !utp {
                return Ok(Self { tcp, port, ..Self::none() });
            }
            match Utp::bind(port, bind) {
                Ok((utp, bencoded)) => {
                    return Ok(Self { tcp, utp: Some(Arc::new(utp)), utp_missing: None, bencoded, port });
                }
                // Kept open, so that the system chooses another port at the next attempt.
                Err(error) => {
                    let _ = tcp_alone.get_or_insert(Self { tcp, utp_missing: Some(error), port, ..Self::none() });
                }
            }
        }
        tcp_alone.ok_or_else(|| refused.unwrap_or_else(|| io::ErrorKind::AddrInUse.into()))
    }

    /// Creates an empty set: no port, so that nobody can connect to us.
    pub(super) fn none() -> Self {
        Self { tcp: Vec::new(), utp: None, utp_missing: None, bencoded: Vec::new(), port: 0 }
    }

    /// Takes out the parts of the UDP sockets that the DHT may have; none without uTP.
    pub fn take_bencoded(&mut self) -> Vec<Bencoded> {
        std::mem::take(&mut self.bencoded)
    }

    /// Returns the port; 0 if there is none.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns why there is no uTP although it was requested, usually because its UDP port is taken.
    pub fn utp_missing(&self) -> Option<&io::Error> {
        self.utp_missing.as_ref()
    }
}

fn open_tcp(port: u16, bind: &Bind) -> io::Result<(u16, Vec<TcpListener>)> {
    let first = listen(SocketAddr::new(bind.address().unwrap_or(Ipv4Addr::UNSPECIFIED.into()), port), bind)?;
    let port = first.local_addr()?.port();
    let mut listeners = vec![first];
    if bind.address().is_none() {
        // Many machines have no IPv6; that is not an error.
        listeners.extend(listen((Ipv6Addr::UNSPECIFIED, port).into(), bind));
    }
    Ok((port, listeners))
}

fn listen(addr: SocketAddr, bind: &Bind) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // Permits a restart while old connections are in TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    bind.bind_device(&socket)?;
    socket.bind(&addr.into())?;
    socket.listen(128)?;
    TcpListener::from_std(socket.into())
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    const LOOPBACK: Bind = Bind::Address(IpAddr::V4(Ipv4Addr::LOCALHOST));

    #[tokio::test]
    async fn an_exact_port_in_use_is_an_error_and_a_customary_one_is_not() {
        let first = Sockets::open(PortChoice::Customary, &LOOPBACK, true).unwrap();
        assert!(first.utp.is_some());
        assert!(Sockets::open(PortChoice::Exactly(first.port()), &LOOPBACK, true).is_err());
        let second = Sockets::open(PortChoice::Customary, &LOOPBACK, true).unwrap();
        assert_ne!(first.port(), second.port());
    }

    #[tokio::test]
    async fn without_its_udp_port_there_is_only_tcp_and_a_reason() {
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = udp.local_addr().unwrap().port();
        let sockets = Sockets::open(PortChoice::Exactly(port), &LOOPBACK, true).unwrap();
        assert_eq!((sockets.port(), sockets.utp.is_none(), sockets.tcp.len()), (port, true, 1));
        assert_eq!(sockets.utp_missing().unwrap().kind(), io::ErrorKind::AddrInUse);
        // uTP was not requested, so its absence is not reported.
        drop(sockets);
        assert!(Sockets::open(PortChoice::Exactly(port), &LOOPBACK, false).unwrap().utp_missing().is_none());
    }

    #[tokio::test]
    async fn both_families_have_one_port() {
        let sockets = Sockets::open(PortChoice::Exactly(0), &Bind::Anywhere, true).unwrap();
        let ports: Vec<u16> = sockets.tcp.iter().map(|tcp| tcp.local_addr().unwrap().port()).collect();
        assert!(ports.iter().all(|port| *port == sockets.port()));
        let utp = sockets.utp.as_ref().unwrap();
        assert_eq!(utp.endpoints().count(), ports.len());
        assert!(utp.endpoints().all(|endpoint| endpoint.bind_addr().port() == sockets.port()));
    }
}
