//! Peers through a SOCKS5 proxy (RFC 1928, RFC 1929).

use std::io;
use std::net::SocketAddr;

use tokio::net::{TcpStream, lookup_host};
use tokio_socks::tcp::Socks5Stream;

use super::tcp;
use crate::route::{Bind, Proxy, ProxyKind};

/// Why a call through a proxy failed.
#[derive(Debug)]
pub(super) enum ProxyError {
    /// The proxy itself: nobody can be reached.
    Proxy(io::Error),
    /// It cannot reach this peer.
    Peer(io::Error),
}

/// Has the proxy connect to `addr`.
pub(super) async fn connect(proxy: &Proxy, addr: SocketAddr, bind: &Bind) -> Result<TcpStream, ProxyError> {
    if proxy.kind() == ProxyKind::Http {
        return Err(ProxyError::Proxy(io::Error::other("an HTTP proxy carries no peers; socks5:// does")));
    }
    let socket = reach(proxy, bind).await.map_err(ProxyError::Proxy)?;
    let asked = match proxy.login() {
        None => Socks5Stream::connect_with_socket(socket, addr).await,
        Some((user, password)) => Socks5Stream::connect_with_password_and_socket(socket, addr, user, password).await,
    };
    use tokio_socks::Error::{
        ConnectionNotAllowedByRuleset, ConnectionRefused, GeneralSocksServerFailure, HostUnreachable,
        NetworkUnreachable, TtlExpired,
    };
    match asked {
        Ok(socket) => Ok(socket.into_inner()),
        // Many proxies say no more than that it failed.
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

/// The proxy itself.
async fn reach(proxy: &Proxy, bind: &Bind) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "its name has no address");
    for addr in lookup_host(proxy.host()).await? {
        match tcp::connect(bind, addr).await {
            Ok(socket) => return Ok(socket),
            Err(error) => last = error,
        }
    }
    Err(last)
}
