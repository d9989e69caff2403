//! Peer connections through a SOCKS5 proxy (RFC 1928, RFC 1929).

use std::io;
use std::net::SocketAddr;

use tokio::net::{TcpStream, lookup_host};
use tokio_socks::tcp::Socks5Stream;

use super::tcp;
use crate::route::{Bind, Proxy, ProxyKind};

/// The reason why a connection through a proxy failed.
#[derive(Debug)]
pub(super) enum ProxyError {
    /// The proxy itself failed, so no peer can be reached.
    Proxy(io::Error),
    /// The proxy could not reach this peer.
    Peer(io::Error),
}

/// Connects to `addr` through the proxy.
pub(super) async fn connect(proxy: &Proxy, addr: SocketAddr, bind: &Bind) -> Result<TcpStream, ProxyError> {
    if proxy.kind() == ProxyKind::Http {
        return Err(ProxyError::Proxy(io::Error::other(
            "an HTTP proxy cannot carry peer connections; use a socks5:// proxy",
        )));
    }
    let socket = connect_to_proxy(proxy, bind).await.map_err(ProxyError::Proxy)?;
    let connected = match proxy.login() {
        None => Socks5Stream::connect_with_socket(socket, addr).await,
        Some((user, password)) => Socks5Stream::connect_with_password_and_socket(socket, addr, user, password).await,
    };
    use tokio_socks::Error::{
        ConnectionNotAllowedByRuleset, ConnectionRefused, GeneralSocksServerFailure, HostUnreachable,
        NetworkUnreachable, TtlExpired,
    };
    match connected {
        Ok(socket) => Ok(socket.into_inner()),
        // Many proxies report every failure as a general one, which most often concerns the peer.
        Err(
            error @ (ConnectionNotAllowedByRuleset
            | ConnectionRefused
            | GeneralSocksServerFailure
            | HostUnreachable
            | NetworkUnreachable
            | TtlExpired),
        ) => Err(ProxyError::Peer(io::Error::other(error))),
        Err(error) => Err(ProxyError::Proxy(io::Error::other(error))),
    }
}

/// Connects to the proxy.
async fn connect_to_proxy(proxy: &Proxy, bind: &Bind) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "its host name has no address");
    for addr in lookup_host(proxy.host()).await? {
        match tcp::connect(bind, addr).await {
            Ok(socket) => return Ok(socket),
            Err(error) => last = error,
        }
    }
    Err(last)
}
