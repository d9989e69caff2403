//! The tasks that accept connections.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::Config;
use super::accept_limit::AcceptLimit;
use super::handshake::{Encryption, Handshaken, respond};
use super::listen::Sockets;
use super::stream::Socket;
use super::utp::Endpoint;
use crate::metainfo::InfoHash;
use crate::wire::Handshake;

/// Connections per socket whose handshake is in progress: enough for a busy swarm, bounded against floods. More wait in
/// the system's queue. Each socket has its own limit, so that a flood of forged uTP connections leaves TCP open.
const MAX_HALF_OPEN: usize = 64;

/// Pause after a failure to accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);

/// The torrents for which we accept connections.
pub trait Host: Send + Sync + 'static {
    /// Returns our handshake for the torrent whose info hash satisfies `matches`. An encrypted handshake contains only
    /// a hash of the info hash, hence the predicate.
    fn find(&self, matches: &dyn Fn(&InfoHash) -> bool) -> Option<Handshake>;

    /// Takes a connection after its handshake. Must not block.
    fn accept(&self, peer: Handshaken);
}

/// Accepts connections until it is dropped.
#[derive(Debug)]
pub struct Listener {
    _tasks: JoinSet<()>,
}

impl Listener {
    /// Starts to accept connections on `sockets`.
    pub fn start(sockets: Sockets, config: &Config, host: Arc<impl Host>) -> Self {
        let limit = Arc::new(AcceptLimit::new(config.blocklist.clone()));
        let encryption = config.encryption;
        let mut tasks = JoinSet::new();
        for tcp in sockets.tcp {
            tasks.spawn(accept_all(Acceptor::Tcp(tcp), encryption, limit.clone(), host.clone()));
        }
        for endpoint in sockets.utp.iter().flat_map(|utp| utp.endpoints()) {
            tasks.spawn(accept_all(Acceptor::Utp(endpoint.clone()), encryption, limit.clone(), host.clone()));
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

async fn accept_all(acceptor: Acceptor, encryption: Encryption, limit: Arc<AcceptLimit>, host: Arc<impl Host>) {
    let half_open = Arc::new(Semaphore::new(MAX_HALF_OPEN));
    let mut handshakes = JoinSet::new();
    let mut failing = false;
    loop {
        // The semaphore is never closed.
        let Ok(permit) = half_open.clone().acquire_owned().await else { return };
        while handshakes.try_join_next().is_some() {}
        let Some(accepted) = acceptor.accept().await else { return };
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
        let slot = match limit.admit(addr.ip()) {
            Ok(slot) => slot,
            Err(why) => {
                tracing::debug!(%addr, "incoming connection dropped: {why}");
                continue;
            }
        };
        let host = host.clone();
        handshakes.spawn(async move {
            let _held = (permit, slot);
            match respond(socket, addr, encryption, |matches| host.find(matches)).await {
                Ok(peer) => host.accept(peer),
                Err(error) => tracing::debug!(%addr, "incoming connection dropped: {error}"),
            }
        });
    }
}
