//! Dialing: from an address to a peer, over TCP or uTP, plain or encrypted.
//!
//! TCP starts first. uTP follows when TCP fails or takes long, as in Happy Eyeballs (RFC 8305), and the first complete
//! handshake ends the other attempt. The two do not exchange handshakes at the same time, because a peer that receives both
//! keeps one connection, and not always the one that we keep. What worked for an address is tried first the next time.
//!
//! Most attempts of a swarm fail, slowly. Each is an entry in the connection table of the home's router, of which some have
//! only a thousand for the whole household and keep one for minutes, and too many at once look like a scan. Therefore the
//! attempts of a session are limited, in number and by time. Those of torrents that somebody reads never wait for those of
//! others.

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use lru::LruCache;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

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

/// Time that the preferred transport has to connect before the other one starts: what RFC 8305 recommends, more than the
/// round trip to most peers.
const HEAD_START: Duration = Duration::from_millis(250);

/// Time that one transport waits while the other exchanges handshakes. The other end drops a uTP connection without
/// data soon after.
const HANDSHAKE_WAIT: Duration = Duration::from_millis(600);

/// Concurrent dials of all torrents: the half-open limit. One torrent with a reader may have nearly all of them.
const MAX_DIALS: usize = 128;

/// Concurrent dials of torrents that nobody waits for. The rest is for those with a reader.
const MAX_IDLE_DIALS: usize = 64;

/// Time between two dials of torrents that nobody waits for: libtorrent begins 30 a second.
const IDLE_SPACING: Duration = Duration::from_millis(33);

/// Time between two dials of torrents with a reader. Their number is limited anyway, unless addresses refuse at once.
const SPACING: Duration = Duration::from_millis(5);

/// Dials that may start at once after a pause.
const BURST: u32 = 30;

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
    /// For torrents with a reader, and for all.
    slots: Lane,
    /// For torrents that nobody waits for, in addition.
    idle_slots: Lane,
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
            slots: Lane::new(MAX_DIALS, SPACING),
            idle_slots: Lane::new(MAX_IDLE_DIALS, IDLE_SPACING),
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
        let _slot = self.slots.enter().await;
        let dial = timeout(DIAL_LIMIT, self.race(addr, ours)).await;
        dial.unwrap_or(Err(DialError::NoHandshake(DIAL_LIMIT)))
    }

    /// Does the same in turn with the dials of other torrents, unless it is `hurried`, or until then, because somebody waits
    /// for this one.
    pub async fn connect_in_turn(
        &self,
        addr: SocketAddr,
        ours: &Handshake,
        mut hurried: watch::Receiver<bool>,
    ) -> Result<Handshaken, DialError> {
        let _idle_slot = tokio::select! {
            biased;
            // An error: nobody is left who could hurry, or wait.
            _ = hurried.wait_for(|hurried| *hurried) => None,
            slot = self.idle_slots.enter() => slot,
        };
        self.connect(addr, ours).await
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
            drop(handshake_lock.take().await);
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

/// Dials in progress of one kind: their number is limited, and they begin one after the other, but for a burst.
#[derive(Debug)]
struct Lane {
    slots: Arc<Semaphore>,
    spacing: Duration,
    /// When the next dial would begin if there were no bursts.
    next: Mutex<Option<Instant>>,
}

impl Lane {
    fn new(slots: usize, spacing: Duration) -> Self {
        Self { slots: Arc::new(Semaphore::new(slots)), spacing, next: Mutex::default() }
    }

    /// Waits for a slot, and then for the time to begin.
    async fn enter(&self) -> Option<OwnedSemaphorePermit> {
        // The semaphore is never closed.
        let slot = self.slots.clone().acquire_owned().await.ok();
        let begin = self.reserve(Instant::now());
        sleep_until(begin).await;
        slot
    }

    /// Returns the time at which the next dial may begin.
    fn reserve(&self, now: Instant) -> Instant {
        let mut next = lock(&self.next);
        let earliest = now.checked_sub(self.spacing * (BURST - 1)).unwrap_or(now);
        let begin = next.map_or(earliest, |next| next.max(earliest));
        *next = Some(begin + self.spacing);
        begin.max(now)
    }
}

/// The lock that lets only one transport exchange handshakes with an address at a time.
#[derive(Default)]
struct HandshakeLock {
    lock: tokio::sync::Mutex<()>,
    /// When the exchange in progress began.
    since: Mutex<Option<Instant>>,
}

impl HandshakeLock {
    /// Waits for the other transport, but not for long in all: it may have connected to something that never answers.
    async fn take(&self) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        let since = *lock(&self.since);
        let guard = match since {
            Some(since) => tokio::time::timeout_at(since + HANDSHAKE_WAIT, self.lock.lock()).await.ok(),
            None => Some(self.lock.lock().await),
        };
        if guard.is_some() {
            *lock(&self.since) = Some(Instant::now());
        }
        guard
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dials_begin_in_a_burst_and_then_one_by_one() {
        let lane = Lane::new(1, IDLE_SPACING);
        let now = Instant::now();
        let waits = |now: Instant| -> Vec<Duration> { (0..100).map(|_| lane.reserve(now) - now).collect() };
        let first = waits(now);
        assert!(first[..BURST as usize].iter().all(Duration::is_zero));
        assert_eq!(first[99], IDLE_SPACING * (100 - BURST));
        let later = waits(now + Duration::from_secs(3600));
        assert_eq!(later.iter().filter(|wait| wait.is_zero()).count(), BURST as usize, "pauses do not add up");
    }

    #[tokio::test(start_paused = true)]
    async fn a_transport_waits_for_the_other_once_and_not_for_long() {
        let handshakes = HandshakeLock::default();
        let begun = Instant::now();
        let stuck = handshakes.take().await;
        assert!(stuck.is_some() && begun.elapsed().is_zero());
        sleep(HEAD_START).await;
        assert!(handshakes.take().await.is_none());
        assert!(handshakes.take().await.is_none());
        assert_eq!(begun.elapsed(), HANDSHAKE_WAIT);
        drop(stuck);
        assert!(handshakes.take().await.is_some());
        assert_eq!(begun.elapsed(), HANDSHAKE_WAIT);
    }

    #[tokio::test(start_paused = true)]
    async fn dials_for_a_reader_do_not_wait_for_others() {
        let (dialer, _sockets) = Config { utp: false, ..Config::default() }.open().unwrap();
        let dialer = Arc::new(dialer);
        let idle: Vec<_> = std::iter::repeat_with(|| dialer.idle_slots.slots.clone().try_acquire_owned())
            .take(MAX_IDLE_DIALS)
            .collect();
        let (hurry, hurried) = watch::channel(false);
        let refused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let dialing = tokio::spawn({
            let dialer = dialer.clone();
            let ours = Handshake::new(crate::metainfo::InfoHash([1; 20]), crate::wire::PeerId([2; 20]));
            async move { dialer.connect_in_turn(refused, &ours, hurried).await.is_err() }
        });
        sleep(Duration::from_secs(60)).await;
        assert!(!dialing.is_finished(), "all slots are taken");
        hurry.send_replace(true);
        assert!(timeout(Duration::from_secs(60), dialing).await.unwrap().unwrap());
        drop(idle);
    }
}
