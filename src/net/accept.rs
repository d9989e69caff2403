//! The tasks that accept connections.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::Config;
use super::blocklist::Blocklist;
use super::half_open::HalfOpen;
use super::handshake::{DialError, Encryption, Handshaken, respond};
use super::listen::Sockets;
use super::stream::Socket;
use super::utp::Endpoint;
use crate::metainfo::InfoHash;
use crate::wire::Handshake;

/// Pause after a failure to accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);

/// The torrents for which we accept connections.
pub trait Host: Send + Sync + 'static {
    /// Returns our handshake for the torrent whose info hash satisfies `matches`. An encrypted handshake contains only
    /// a hash of the info hash, hence the predicate.
    fn find(&self, matches: &dyn Fn(&InfoHash) -> bool) -> Option<Handshake>;

    /// Takes a connection after its handshake. Must not block.
    fn accept(&self, peer: Handshaken);

    /// Learns that a peer called for a torrent without the encryption that is required. Many clients would try again only
    /// after a minute, so it should be dialed. The port is 0 if it is not known. Must not block.
    fn refuse(&self, info_hash: InfoHash, addr: SocketAddr);
}

/// Accepts connections until it is dropped.
#[derive(Debug)]
pub struct Listener {
    _tasks: JoinSet<()>,
}

impl Listener {
    /// Starts to accept connections on `sockets`.
    pub fn start(sockets: Sockets, config: &Config, host: Arc<impl Host>) -> Self {
        let accept_all = |acceptor| accept_all(acceptor, config.encryption, config.blocklist.clone(), host.clone());
        let mut tasks = JoinSet::new();
        for tcp in sockets.tcp {
            tasks.spawn(accept_all(Acceptor::Tcp(tcp)));
        }
        for endpoint in sockets.utp.iter().flat_map(|utp| utp.endpoints()) {
            tasks.spawn(accept_all(Acceptor::Utp(endpoint.clone())));
        }
        Self { _tasks: tasks }
    }
}

/// A listening socket.
enum Acceptor {
    Tcp(TcpListener),
    Utp(Arc<Endpoint>),
}

impl Acceptor {
    /// Waits for the next connection. Returns `None` when the socket is closed.
    async fn accept(&self) -> Option<io::Result<(Socket, SocketAddr)>> {
        match self {
            Acceptor::Tcp(listener) => Some(accept_tcp(listener).await),
            Acceptor::Utp(endpoint) => {
                // The only possible error: the owner of the socket has closed it.
                let stream = endpoint.accept().await.ok()?;
                let addr = stream.remote_addr();
                Some(Ok((Socket::Utp(stream), addr)))
            }
        }
    }
}

async fn accept_tcp(listener: &TcpListener) -> io::Result<(Socket, SocketAddr)> {
    let (stream, addr) = listener.accept().await?;
    // Request messages are small and urgent, so Nagle's algorithm must not hold them back.
    stream.set_nodelay(true)?;
    Ok((Socket::Tcp(stream), addr))
}

async fn accept_all(acceptor: Acceptor, encryption: Encryption, blocklist: Arc<Blocklist>, host: Arc<impl Host>) {
    // Each socket has its own bounds, so that a flood of forged uTP connections leaves TCP open.
    let half_open = Arc::new(HalfOpen::default());
    let mut handshakes = JoinSet::new();
    let mut failing = false;
    loop {
        let Some(accepted) = acceptor.accept().await else { return };
        while handshakes.try_join_next().is_some() {}
        let (socket, addr) = match accepted {
            Ok(connection) => connection,
            Err(error) => {
                // Usually we are out of file descriptors, which are freed again. Logged once until it works again.
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!("cannot accept peers: {error}");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        failing = false;
        if blocklist.blocks(addr.ip()) {
            tracing::debug!(%addr, "incoming connection dropped: its address is on the blocklist");
            continue;
        }
        let mut slot = half_open.admit(addr.ip());
        let host = host.clone();
        // A TCP connection comes from a port of its own, a uTP connection from the port on which the peer listens.
        let dial_addr = match socket {
            Socket::Tcp(_) => SocketAddr::new(addr.ip(), 0),
            Socket::Utp(_) => addr,
        };
        handshakes.spawn(async move {
            let exchange = respond(socket, addr, encryption, |matches| host.find(matches));
            tokio::select! {
                outcome = exchange => match outcome {
                    Ok(peer) => host.accept(peer),
                    Err(error) => {
                        tracing::debug!(%addr, "incoming connection dropped: {error}");
                        if let DialError::Plaintext(info_hash) = error {
                            host.refuse(info_hash, dial_addr);
                        }
                    }
                },
                () = slot.gives_way() => {
                    tracing::debug!(%addr, "incoming connection dropped: newer ones wait for its slot");
                }
            }
        });
    }
}
