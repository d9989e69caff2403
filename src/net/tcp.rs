//! Outgoing TCP connections.

use std::io;
use std::net::SocketAddr;

use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream};

use crate::route::Bind;

/// Connects to `addr` from the address or interface in `bind`.
pub(super) async fn connect(bind: &Bind, addr: SocketAddr) -> io::Result<TcpStream> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    match bind {
        Bind::Address(ip) if ip.is_ipv4() == addr.is_ipv4() => socket.bind((*ip, 0).into())?,
        Bind::Interface(name) => SockRef::from(&socket).bind_device(Some(name.as_bytes()))?,
        Bind::Anywhere | Bind::Address(_) => {}
    }
    let stream = socket.connect(addr).await?;
    // Request messages are small and urgent, so Nagle's algorithm must not hold them back.
    stream.set_nodelay(true)?;
    Ok(stream)
}
