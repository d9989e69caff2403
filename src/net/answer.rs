//! The tasks that answer callers.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::Config;
use super::gate::Gate;
use super::handshake::{Encryption, Handshaken, answer};
use super::listen::Sockets;
use super::stream::Socket;
use super::utp::Endpoint;
use crate::metainfo::InfoHash;
use crate::wire::Handshake;

/// Callers of one socket whose handshake is still to come, at most; further ones wait in the system's queue. A flood
/// of forged uTP callers leaves TCP open.
const HALF_OPEN: usize = 64;

/// Pause when callers cannot be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);

/// The torrents that callers may ask for.
pub trait Host: Send + Sync + 'static {
    /// Our handshake for the torrent whose info hash satisfies `matches`. (Under encryption a caller does not name it.)
    fn find(&self, matches: &dyn Fn(&InfoHash) -> bool) -> Option<Handshake>;

    /// Takes a caller that has found its torrent. Must not wait.
    fn welcome(&self, caller: Handshaken);
}

/// Answers callers until it is dropped.
#[derive(Debug)]
pub struct Listener {
    _tasks: JoinSet<()>,
}

impl Listener {
    /// Starts answering on `sockets`, as `config` has it.
    pub fn start(sockets: Sockets, config: &Config, host: Arc<impl Host>) -> Self {
        let gate = Arc::new(Gate::new(config.blocklist.clone()));
        let encryption = config.encryption;
        let mut tasks = JoinSet::new();
        for tcp in sockets.tcp {
            tasks.spawn(answer_all(Door::Tcp(tcp), encryption, gate.clone(), host.clone()));
        }
        for endpoint in sockets.utp.iter().flat_map(|utp| utp.endpoints()) {
            tasks.spawn(answer_all(Door::Utp(endpoint.clone()), encryption, gate.clone(), host.clone()));
        }
        Self { _tasks: tasks }
    }
}

/// A socket that is called.
enum Door {
    Tcp(TcpListener),
    Utp(Arc<Endpoint>),
}

impl Door {
    /// The next caller. `None`: the socket is being closed.
    async fn accept(&self) -> Option<io::Result<(Socket, SocketAddr)>> {
        match self {
            Door::Tcp(listener) => Some(accept_tcp(listener).await),
            Door::Utp(endpoint) => {
                // The one error there is: whoever owns the socket has let it go.
                let stream = endpoint.accept().await.ok()?;
                let addr = stream.remote_addr();
                Some(Ok((Socket::Utp(stream), addr)))
            }
        }
    }
}

async fn accept_tcp(listener: &TcpListener) -> io::Result<(Socket, SocketAddr)> {
    let (stream, addr) = listener.accept().await?;
    // Requests are small and urgent.
    stream.set_nodelay(true)?;
    Ok((Socket::Tcp(stream), addr))
}

async fn answer_all(door: Door, encryption: Encryption, gate: Arc<Gate>, host: Arc<impl Host>) {
    let half_open = Arc::new(Semaphore::new(HALF_OPEN));
    let mut answering = JoinSet::new();
    let mut failing = false;
    loop {
        // Never closed, so never an error.
        let Ok(permit) = half_open.clone().acquire_owned().await else { return };
        while answering.try_join_next().is_some() {}
        let Some(accepted) = door.accept().await else { return };
        let (socket, addr) = match accepted {
            Ok(caller) => caller,
            Err(error) => {
                // Out of descriptors, mostly: they come back. Said once each time.
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!("cannot accept peers: {error}");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        failing = false;
        let pass = match gate.enter(addr.ip()) {
            Ok(pass) => pass,
            Err(why) => {
                tracing::debug!(%addr, "caller dropped: {why}");
                continue;
            }
        };
        let host = host.clone();
        answering.spawn(async move {
            let _inside = (permit, pass);
            match answer(socket, addr, encryption, |matches| host.find(matches)).await {
                Ok(caller) => host.welcome(caller),
                Err(error) => tracing::debug!(%addr, "caller dropped: {error}"),
            }
        });
    }
}
