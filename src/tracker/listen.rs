//! Binding of the sockets: one for TCP and one for UDP at each address.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};

use socket2::{Domain, Protocol, Socket, Type};

use super::{DEFAULT_PORT, StartError};

/// Length of the kernel's queue of connections to accept. In a longer burst, the kernel drops connection attempts.
const BACKLOG: i32 = 1024;
/// Receive buffer of a UDP socket in bytes, for bursts of some thousand announces. The kernel may allow less.
const RECEIVE_BUFFER: usize = 4 << 20;
/// Attempts to find a port that is free for both TCP and UDP.
const TRIES: usize = 20;

type Sockets = (Vec<TcpListener>, Vec<UdpSocket>, Vec<SocketAddr>);

/// Binds every address. If one fails, none stays bound.
pub(super) fn bind(addresses: &[SocketAddr]) -> Result<Sockets, StartError> {
    let defaults =
        [(Ipv4Addr::UNSPECIFIED, DEFAULT_PORT).into(), SocketAddr::from((Ipv6Addr::UNSPECIFIED, DEFAULT_PORT))];
    let use_defaults = addresses.is_empty();
    let (mut tcp, mut udp, mut bound) = (Vec::new(), Vec::new(), Vec::new());
    for &addr in if use_defaults { &defaults } else { addresses } {
        match bind_pair(addr) {
            Ok((listener, socket, at)) => {
                tcp.push(listener);
                udp.push(socket);
                bound.push(at);
            }
            Err(error) if use_defaults && addr.is_ipv6() && lacks_family(&error) => {
                tracing::info!("not listening over IPv6, which this machine lacks: {error}");
            }
            Err(source) => return Err(StartError::Listen { addr, source }),
        }
    }
    Ok((tcp, udp, bound))
}

/// Returns whether an error means that the machine lacks the address family.
fn lacks_family(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

/// Binds a TCP and a UDP socket to one address and port.
fn bind_pair(addr: SocketAddr) -> io::Result<(TcpListener, UdpSocket, SocketAddr)> {
    let mut tries = 0;
    loop {
        let listener = socket(addr, Type::STREAM, Protocol::TCP)?;
        listener.listen(BACKLOG)?;
        let listener = TcpListener::from(listener);
        let at = listener.local_addr()?;
        tries += 1;
        match socket(at, Type::DGRAM, Protocol::UDP) {
            Ok(socket) => {
                // A smaller buffer is acceptable.
                let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
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
        // IPv4 has its own socket.
        socket.set_only_v6(true)?;
    }
    if kind == Type::STREAM {
        // Connections of a previous process in TIME_WAIT do not block the address.
        socket.set_reuse_address(true)?;
    }
    socket.bind(&addr.into())?;
    Ok(socket)
}
