//! From an address to a peer: over TCP or uTP, plain or encrypted, whichever answers first.
//!
//! TCP goes first and uTP follows when TCP cannot connect or takes long to. Two handshakes are not exchanged at the
//! same time, for a peer that hears both keeps one, and not always the one that we keep. What worked for an address is
//! tried first the next time.

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use lru::LruCache;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::Config;
use super::blocklist::Blocklist;
use super::handshake::{DialError, Encryption, Handshaken, call};
use super::proxy::{self, ProxyError};
use super::stream::{Socket, Transport};
use super::tcp;
use super::utp::{self, Utp};
use crate::route::{Bind, Proxy};
use crate::util::lock;
use crate::wire::Handshake;

/// A peer that does not answer a TCP connection in this time is given up.
const CONNECT_LIMIT: Duration = Duration::from_secs(8);

/// A proxy may have a long way to the peer.
const PROXY_LIMIT: Duration = Duration::from_secs(20);

/// All ways to one address together: who keeps hanging up late must not hold a place for long.
const CALL_LIMIT: Duration = Duration::from_secs(30);

/// How long the first transport may take to connect before the second one starts.
const HEAD_START: Duration = Duration::from_millis(500);

/// How long one transport waits while the other exchanges handshakes. A uTP connection on which nothing is said does
/// not live much longer at its other end.
const TURN: Duration = Duration::from_millis(600);

/// Calls under way, of all torrents.
const CALLS: usize = 128;

/// Addresses whose habits are remembered.
const HABITS: NonZeroUsize = NonZeroUsize::new(2048).unwrap();

/// What worked last for an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Habit {
    transport: Transport,
    encrypted: bool,
}

/// Calls peers. One for all torrents.
pub struct Dialer {
    bind: Bind,
    encryption: Encryption,
    pub(super) utp: Option<Arc<Utp>>,
    proxy: Option<Proxy>,
    /// Told once each time.
    proxy_failing: AtomicBool,
    blocklist: Arc<Blocklist>,
    calls: Semaphore,
    habits: Mutex<LruCache<SocketAddr, Habit>>,
}

impl Dialer {
    pub(super) fn new(config: &Config, utp: Option<Arc<Utp>>) -> Self {
        Self {
            bind: config.route.bind.clone(),
            encryption: config.encryption,
            utp,
            proxy: config.route.proxy.clone(),
            proxy_failing: AtomicBool::new(false),
            blocklist: config.blocklist.clone(),
            calls: Semaphore::new(CALLS),
            habits: Mutex::new(LruCache::new(HABITS)),
        }
    }

    /// Whether peers may be called over uTP.
    pub fn has_utp(&self) -> bool {
        self.utp.is_some()
    }

    /// Calls `addr` and exchanges handshakes. Ends, well or not, within 30 s of its turn; most of the dead cost 8 s.
    pub async fn connect(&self, addr: SocketAddr, ours: &Handshake) -> Result<Handshaken, DialError> {
        if self.blocklist.blocks(addr.ip()) {
            return Err(DialError::Blocked);
        }
        // The semaphore is never closed.
        let _call = self.calls.acquire().await;
        let call = timeout(CALL_LIMIT, self.either(addr, ours)).await;
        call.unwrap_or(Err(DialError::Silent(CALL_LIMIT)))
    }

    /// The race of the transports.
    async fn either(&self, addr: SocketAddr, ours: &Handshake) -> Result<Handshaken, DialError> {
        let turn = Turn::default();
        if self.utp.as_ref().is_none_or(|utp| utp.toward(addr).is_none()) {
            return self.over(Transport::Tcp, addr, ours, &turn).await;
        }
        let (first, second) = match self.habit(addr).transport {
            Transport::Tcp => (Transport::Tcp, Transport::Utp),
            Transport::Utp => (Transport::Utp, Transport::Tcp),
        };
        let mut leading = pin!(self.over(first, addr, ours, &turn));
        let both = |first_error, second_error| match first {
            Transport::Tcp => DialError::both(first_error, second_error),
            Transport::Utp => DialError::both(second_error, first_error),
        };
        let late = async {
            sleep(HEAD_START).await;
            turn.wait().await;
        };
        tokio::select! {
            ended = &mut leading => match ended {
                Err(error) if error.elsewhere() => {
                    return self.over(second, addr, ours, &turn).await.map_err(|other| both(error, other));
                }
                ended => return ended,
            },
            () = late => {}
        }
        let mut following = pin!(self.over(second, addr, ours, &turn));
        tokio::select! {
            ended = &mut leading => match ended {
                Err(error) => following.await.map_err(|other| both(error, other)),
                ended => ended,
            },
            ended = &mut following => match ended {
                Err(other) => leading.await.map_err(|error| both(error, other)),
                ended => ended,
            },
        }
    }

    /// One transport: in plaintext or encrypted, and if the peer hangs up on that and both may be, the other way.
    async fn over(
        &self,
        transport: Transport,
        addr: SocketAddr,
        ours: &Handshake,
        turn: &Turn,
    ) -> Result<Handshaken, DialError> {
        let (encrypted, other) = match self.encryption {
            Encryption::Off => (false, None),
            Encryption::Require => (true, None),
            Encryption::Prefer => {
                let encrypted = self.habit(addr).encrypted;
                (encrypted, Some(!encrypted))
            }
        };
        let attempt = async |encrypted| {
            let socket = self.open(transport, addr).await?;
            let _turn = turn.take().await;
            let ended = call(socket, addr, ours, self.encryption, encrypted).await;
            match (&ended, other) {
                (Ok(_), _) => self.remember(addr, Habit { transport, encrypted }),
                // It may be waiting for more than a plaintext handshake: the next call begins the other way.
                (Err(DialError::Silent(_)), Some(_)) => self.remember(addr, Habit { transport, encrypted: !encrypted }),
                _ => {}
            }
            ended
        };
        match (attempt(encrypted).await, other) {
            (Err(DialError::HungUp(_) | DialError::Wire(_) | DialError::Mse(_)), Some(other)) => attempt(other).await,
            (ended, _) => ended,
        }
    }

    async fn open(&self, transport: Transport, addr: SocketAddr) -> Result<Socket, DialError> {
        match transport {
            Transport::Tcp => {
                if let Some(proxy) = &self.proxy {
                    return self.through(proxy, addr).await;
                }
                let connecting = timeout(CONNECT_LIMIT, tcp::connect(&self.bind, addr)).await;
                let socket = connecting.map_err(|_| DialError::NoAnswer(CONNECT_LIMIT))?;
                Ok(Socket::Tcp(socket.map_err(DialError::Unreachable)?))
            }
            Transport::Utp => {
                let endpoint = self.utp.as_ref().and_then(|utp| utp.toward(addr));
                let endpoint = endpoint.ok_or_else(|| DialError::Unreachable(io::ErrorKind::Unsupported.into()))?;
                match utp::connect(endpoint, addr).await {
                    Ok(socket) => Ok(Socket::Utp(socket)),
                    Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                        Err(DialError::NoAnswer(utp::CONNECT_LIMIT))
                    }
                    Err(error) => Err(DialError::Unreachable(error)),
                }
            }
        }
    }

    async fn through(&self, proxy: &Proxy, addr: SocketAddr) -> Result<Socket, DialError> {
        let connecting = timeout(PROXY_LIMIT, proxy::connect(proxy, addr, &self.bind)).await;
        let connected = connecting.map_err(|_| DialError::NoAnswer(PROXY_LIMIT))?;
        let failing = matches!(connected, Err(ProxyError::Proxy(_)));
        let failed = self.proxy_failing.swap(failing, Ordering::Relaxed);
        connected.map(Socket::Tcp).map_err(|error| match error {
            ProxyError::Peer(error) => DialError::Unreachable(error),
            ProxyError::Proxy(error) => {
                if !failed {
                    tracing::warn!("the proxy {proxy} fails: {error}; no peer is reached until it works");
                }
                DialError::Proxy(error)
            }
        })
    }

    fn habit(&self, addr: SocketAddr) -> Habit {
        let known = self.habits().get(&addr).copied();
        known.unwrap_or(Habit { transport: Transport::Tcp, encrypted: false })
    }

    fn remember(&self, addr: SocketAddr, habit: Habit) {
        self.habits().put(addr, habit);
    }

    /// Plain data, sound even if a thread died while it held the lock.
    fn habits(&self) -> MutexGuard<'_, LruCache<SocketAddr, Habit>> {
        lock(&self.habits)
    }
}

/// Whose turn it is to exchange handshakes, of the transports that call one address.
#[derive(Default)]
struct Turn(tokio::sync::Mutex<()>);

impl Turn {
    /// Waits for the other one, but not for long: it may have connected to something that says nothing.
    async fn take(&self) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        timeout(TURN, self.0.lock()).await.ok()
    }

    /// The same, without taking it.
    async fn wait(&self) {
        drop(self.take().await);
    }
}
