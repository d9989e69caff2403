//! Sockets: one for TCP and one for UDP at each address.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};

use socket2::{Domain, Protocol, Socket, Type};

use super::{DEFAULT_PORT, StartError};

/// Connections that wait in the kernel to be accepted.
const BACKLOG: i32 = 1024;
/// Datagrams that wait, in bytes; the kernel may allow less.
const BUFFER: usize = 4 << 20;
/// A free TCP port may be taken for UDP.
const TRIES: usize = 20;

type Sockets = (Vec<TcpListener>, Vec<UdpSocket>, Vec<SocketAddr>);

/// Binds every address, or none.
pub(super) fn bind(addresses: &[SocketAddr]) -> Result<Sockets, StartError> {
    let everywhere =
        [(Ipv4Addr::UNSPECIFIED, DEFAULT_PORT).into(), SocketAddr::from((Ipv6Addr::UNSPECIFIED, DEFAULT_PORT))];
    let by_default = addresses.is_empty();
    let (mut tcp, mut udp, mut bound) = (Vec::new(), Vec::new(), Vec::new());
    for &addr in if by_default { &everywhere } else { addresses } {
        match both(addr) {
            Ok((listener, socket, at)) => {
                tcp.push(listener);
                udp.push(socket);
                bound.push(at);
            }
            Err(error) if by_default && addr.is_ipv6() && is_missing(&error) => {
                tracing::info!("this machine has no IPv6: {error}");
            }
            Err(source) => return Err(StartError::Listen { addr, source }),
        }
    }
    Ok((tcp, udp, bound))
}

/// Whether a whole address family is.
fn is_missing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

fn both(addr: SocketAddr) -> io::Result<(TcpListener, UdpSocket, SocketAddr)> {
    let mut tries = 0;
    loop {
        let listener = socket(addr, Type::STREAM, Protocol::TCP)?;
        listener.listen(BACKLOG)?;
        let listener = TcpListener::from(listener);
        let at = listener.local_addr()?;
        tries += 1;
        match socket(at, Type::DGRAM, Protocol::UDP) {
            Ok(socket) => {
                // The kernel gives what it allows.
                let _ = socket.set_recv_buffer_size(BUFFER);
                return Ok((listener, socket.into(), at));
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && addr.port() == 0 && tries < TRIES => {}
            Err(error) => return Err(error),
        }
    }
}

fn socket(addr: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), kind, Some(protocol))?;
    if addr.is_ipv6() {
        // IPv4 has a socket of its own.
        socket.set_only_v6(true)?;
    }
    if kind == Type::STREAM {
        // Connections of a tracker that ended a moment ago do not stand in the way.
        socket.set_reuse_address(true)?;
    }
    socket.bind(&addr.into())?;
    Ok(socket)
}
