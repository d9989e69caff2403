//! Dialing: from an address to a peer, over TCP or uTP, plain or encrypted.
//!
//! TCP starts first. uTP follows when TCP fails or takes long. The two never exchange handshakes at the same time,
//! because a peer that receives both keeps one connection, and not always the one that we keep. What worked for an
//! address is tried first the next time.

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
use super::handshake::{DialError, Encryption, Handshaken, initiate};
use super::mse::MseError;
use super::proxy::{self, ProxyError};
use super::stream::{Socket, Transport};
use super::tcp;
use super::utp::{self, Utp};
use crate::route::{Bind, Proxy};
use crate::util::lock;
use crate::wire::Handshake;

/// Time limit for a TCP connection. Peers that can be reached answer far sooner.
const CONNECT_LIMIT: Duration = Duration::from_secs(8);

/// Time limit for a connection through a proxy, which may be slow to reach the peer.
const PROXY_LIMIT: Duration = Duration::from_secs(20);

/// Time limit for all attempts at one address, so that a peer which closes second_may_start does not block a slot for long.
const DIAL_LIMIT: Duration = Duration::from_secs(30);

/// Time that the preferred transport has to connect before the other one starts.
const HEAD_START: Duration = Duration::from_millis(500);

/// Time that one transport waits while the other exchanges handshakes. The other end drops a uTP connection without
/// data soon after.
const HANDSHAKE_WAIT: Duration = Duration::from_millis(600);

/// Concurrent dials of all torrents: the half-open limit.
const MAX_DIALS: usize = 128;

/// Addresses for which the last success is remembered.
const MAX_REMEMBERED: NonZeroUsize = NonZeroUsize::new(2048).unwrap();

/// The combination that last worked for an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Preference {
    transport: Transport,
    encrypted: bool,
}

/// Dials peers. One serves all torrents.
pub struct Dialer {
    bind: Bind,
    encryption: Encryption,
    pub(super) utp: Option<Arc<Utp>>,
    proxy: Option<Proxy>,
    /// Whether the proxy failed last time, so that the failure is logged only once.
    proxy_failing: AtomicBool,
    blocklist: Arc<Blocklist>,
    slots: Semaphore,
    preferences: Mutex<LruCache<SocketAddr, Preference>>,
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
            slots: Semaphore::new(MAX_DIALS),
            preferences: Mutex::new(LruCache::new(MAX_REMEMBERED)),
        }
    }

    /// Returns whether uTP is available.
    pub fn has_utp(&self) -> bool {
        self.utp.is_some()
    }

    /// Dials `addr` and exchanges handshakes. Takes at most 30 s after a slot is free; most unreachable peers take 8 s.
    pub async fn connect(&self, addr: SocketAddr, ours: &Handshake) -> Result<Handshaken, DialError> {
        if self.blocklist.blocks(addr.ip()) {
            return Err(DialError::Blocked);
        }
        // The semaphore is never closed.
        let _slot = self.slots.acquire().await;
        let dial = timeout(DIAL_LIMIT, self.race(addr, ours)).await;
        dial.unwrap_or(Err(DialError::NoHandshake(DIAL_LIMIT)))
    }

    /// Races the two transports.
    async fn race(&self, addr: SocketAddr, ours: &Handshake) -> Result<Handshaken, DialError> {
        let handshake_lock = HandshakeLock::default();
        if self.utp.as_ref().is_none_or(|utp| utp.endpoint_for(addr).is_none()) {
            return self.dial_over(Transport::Tcp, addr, ours, &handshake_lock).await;
        }
        let (first, second) = match self.preference(addr).transport {
            Transport::Tcp => (Transport::Tcp, Transport::Utp),
            Transport::Utp => (Transport::Utp, Transport::Tcp),
        };
        let mut leading = pin!(self.dial_over(first, addr, ours, &handshake_lock));
        let both = |first_error, second_error| match first {
            Transport::Tcp => DialError::both(first_error, second_error),
            Transport::Utp => DialError::both(second_error, first_error),
        };
        let second_may_start = async {
            sleep(HEAD_START).await;
            handshake_lock.wait().await;
        };
        tokio::select! {
            result = &mut leading => match result {
                Err(error) if error.may_try_other_transport() => {
                    return self.dial_over(second, addr, ours, &handshake_lock).await.map_err(|other| both(error, other));
                }
                result => return result,
            },
            () = second_may_start => {}
        }
        let mut following = pin!(self.dial_over(second, addr, ours, &handshake_lock));
        tokio::select! {
            result = &mut leading => match result {
                Err(error) => following.await.map_err(|other| both(error, other)),
                result => result,
            },
            result = &mut following => match result {
                Err(other) => leading.await.map_err(|error| both(error, other)),
                result => result,
            },
        }
    }

    /// Dials over one transport: in plaintext or encrypted, and if the peer closes that connection and both are
    /// allowed, the other way.
    async fn dial_over(
        &self,
        transport: Transport,
        addr: SocketAddr,
        ours: &Handshake,
        handshake_lock: &HandshakeLock,
    ) -> Result<Handshaken, DialError> {
        let (encrypted, other) = match self.encryption {
            Encryption::Off => (false, None),
            Encryption::Require => (true, None),
            Encryption::Prefer => {
                let encrypted = self.preference(addr).encrypted;
                (encrypted, Some(!encrypted))
            }
        };
        let attempt = async |encrypted| {
            let socket = self.open(transport, addr).await?;
            let _guard = handshake_lock.take().await;
            let result = initiate(socket, addr, ours, self.encryption, encrypted).await;
            match (&result, other) {
                (Ok(_), _) => self.remember(addr, Preference { transport, encrypted }),
                // The peer may be waiting for an encryption handshake: start the other way next time.
                (Err(DialError::NoHandshake(_)), Some(_)) => {
                    self.remember(addr, Preference { transport, encrypted: !encrypted })
                }
                _ => {}
            }
            result
        };
        let attempt = async |encrypted| {
            match attempt(encrypted).await {
                // One in 256. The next one fails in this way as rarely.
                Err(DialError::Mse(MseError::ShortSecret)) => attempt(encrypted).await,
                result => result,
            }
        };
        match (attempt(encrypted).await, other) {
            (Err(DialError::Closed(_) | DialError::Wire(_) | DialError::Mse(_)), Some(other)) => attempt(other).await,
            (result, _) => result,
        }
    }

    async fn open(&self, transport: Transport, addr: SocketAddr) -> Result<Socket, DialError> {
        match transport {
            Transport::Tcp => {
                if let Some(proxy) = &self.proxy {
                    return self.connect_through(proxy, addr).await;
                }
                let connecting = timeout(CONNECT_LIMIT, tcp::connect(&self.bind, addr)).await;
                let socket = connecting.map_err(|_| DialError::NoAnswer(CONNECT_LIMIT))?;
                Ok(Socket::Tcp(socket.map_err(DialError::Unreachable)?))
            }
            Transport::Utp => {
                let endpoint = self.utp.as_ref().and_then(|utp| utp.endpoint_for(addr));
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

    async fn connect_through(&self, proxy: &Proxy, addr: SocketAddr) -> Result<Socket, DialError> {
        let connecting = timeout(PROXY_LIMIT, proxy::connect(proxy, addr, &self.bind)).await;
        let connected = connecting.map_err(|_| DialError::NoAnswer(PROXY_LIMIT))?;
        let failing = matches!(connected, Err(ProxyError::Proxy(_)));
        let failed = self.proxy_failing.swap(failing, Ordering::Relaxed);
        connected.map(Socket::Tcp).map_err(|error| match error {
            ProxyError::Peer(error) => DialError::Unreachable(error),
            ProxyError::Proxy(error) => {
                if !failed {
                    tracing::warn!("the proxy {proxy} fails: {error}; no peer can be reached until it works");
                }
                DialError::Proxy(error)
            }
        })
    }

    fn preference(&self, addr: SocketAddr) -> Preference {
        let known = self.preferences().get(&addr).copied();
        known.unwrap_or(Preference { transport: Transport::Tcp, encrypted: false })
    }

    fn remember(&self, addr: SocketAddr, preference: Preference) {
        self.preferences().put(addr, preference);
    }

    /// Locks the preferences.
    fn preferences(&self) -> MutexGuard<'_, LruCache<SocketAddr, Preference>> {
        lock(&self.preferences)
    }
}

/// The lock that lets only one transport exchange handshakes with an address at a time.
#[derive(Default)]
struct HandshakeLock(tokio::sync::Mutex<()>);

impl HandshakeLock {
    /// Waits for the other transport, but not for long: it may have connected to something that never answers.
    async fn take(&self) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        timeout(HANDSHAKE_WAIT, self.0.lock()).await.ok()
    }

    /// Waits in the same way without taking the lock.
    async fn wait(&self) {
        drop(self.take().await);
    }
}
