//! UDP tracker client (BEP 15).
//!
//! An exchange is with one address: a connect request, unless a connection id from the last minute is cached, followed
//! by the request itself. A request without a reply is sent again after 15 s and given up after another 30 s. BEP 15
//! allows more repetitions, but the schedule has a back-off of its own and other trackers to ask. The socket is
//! connected, so that the kernel drops datagrams from other addresses and reports at once when nobody listens.
//!
//! A tracker whose name has addresses of both families is asked at one of each, because each returns only peers of its
//! own family.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rand::seq::IndexedRandom;
use reqwest::Url;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::datagram::{self, Action, ConnectionId, Received, Request, TransactionId};
use super::reply::{MAX_PEERS, Reply};
use super::url::{Query, UDP_PORT};
use super::{Announce, AnnounceError, Scrape};
use crate::http::{self, Purpose, RequestError};
use crate::metainfo::InfoHash;
use crate::route::Bind;
use crate::util::{is_local, lock, printable};

/// Bytes received of a datagram. More than a thousand peers fit; the rest is dropped.
const MAX_DATAGRAM: usize = 8 << 10;
/// Unrelated datagrams after which the tracker is given up, so that a flood ends.
const MAX_STRAY: usize = 100;
/// Cached connections. Each holds a socket; beyond this number connection ids are requested again.
const MAX_CACHED: usize = 64;

/// Limits of one exchange.
#[derive(Clone, Copy, Debug)]
pub(super) struct UdpLimits {
    /// Time to resolve the tracker's name.
    pub resolve: Duration,
    /// Time after which a request without a reply is sent again; it doubles with each repetition. BEP 15 says 15 s, but a
    /// reader may be waiting, and one datagram in a hundred is lost.
    pub retry: Duration,
    /// Requests without a reply after which the tracker is given up.
    pub tries: u32,
    /// Time to wait for the reply from the other address family, once one family has answered.
    pub grace: Duration,
    /// Lifetime of a connection id (BEP 15: one minute).
    pub id_lifetime: Duration,
}

impl Default for UdpLimits {
    fn default() -> Self {
        Self {
            resolve: Duration::from_secs(10),
            retry: Duration::from_secs(3),
            tries: 4,
            grace: Duration::from_secs(1),
            id_lifetime: Duration::from_secs(60),
        }
    }
}

impl UdpLimits {
    /// Returns how long an exchange without any reply takes.
    fn total(&self) -> Duration {
        self.retry * ((1 << self.tries) - 1)
    }
}

/// Sends requests to UDP trackers. Cheap to clone; clones share cached connections.
#[derive(Clone, Debug)]
pub(super) struct UdpClient {
    limits: UdpLimits,
    bind: Bind,
    cache: Arc<Mutex<HashMap<SocketAddr, Connection>>>,
}

impl UdpClient {
    pub fn new(bind: Bind, limits: UdpLimits) -> Self {
        Self { limits, bind, cache: Arc::default() }
    }

    pub async fn announce(&self, url: &Url, announce: &Announce, query: &Query<'_>) -> Result<Reply, AnnounceError> {
        let path = match url.query() {
            Some(query) => format!("{}?{query}", url.path()),
            None => url.path().to_owned(),
        };
        let replies = self
            .ask_all(self.addresses(url).await?, Request::announce(announce, query, &path), datagram::parse_announce)
            .await?;
        Ok(replies.into_iter().fold(Reply::default(), merge))
    }

    pub async fn scrape(&self, url: &Url, info_hash: InfoHash) -> Result<Scrape, AnnounceError> {
        let counts = self
            .ask_all(self.addresses(url).await?, Request::scrape(info_hash), |body, _| datagram::parse_scrape(body))
            .await?;
        Ok(counts.into_iter().next().unwrap_or_default())
    }

    /// Sends a request to all addresses, one per family, and returns the replies: at least one.
    async fn ask_all<T: Send + 'static>(
        &self,
        addresses: Vec<SocketAddr>,
        request: Request,
        read: fn(&[u8], bool) -> Result<T, AnnounceError>,
    ) -> Result<Vec<T>, AnnounceError> {
        let mut exchanges = JoinSet::new();
        for addr in addresses {
            let (client, request) = (self.clone(), request.clone());
            exchanges.spawn(async move {
                let body = client.exchange(addr, &request).await?;
                read(&body, addr.is_ipv6())
            });
        }
        let mut answers = Vec::new();
        let mut failure = None;
        loop {
            let next = exchanges.join_next();
            let next = if answers.is_empty() {
                next.await
            } else {
                timeout(self.limits.grace, next).await.unwrap_or_default()
            };
            match next {
                Some(Ok(Ok(answer))) => answers.push(answer),
                // On a host without IPv6, the IPv6 address always fails to connect. Another error says more.
                Some(Ok(Err(error)))
                    if matches!(failure, None | Some(AnnounceError::Request(RequestError::Connect(_)))) =>
                {
                    failure = Some(error)
                }
                Some(_) => {}
                None => break,
            }
        }
        match failure {
            Some(error) if answers.is_empty() => Err(error),
            _ => Ok(answers),
        }
    }

    /// Returns one address for each family in which the tracker has one that we may contact. The choice among several
    /// is random, so that the next announce may reach another.
    async fn addresses(&self, url: &Url) -> Result<Vec<SocketAddr>, AnnounceError> {
        let (host, port) = (url.host_str().unwrap_or_default(), url.port().unwrap_or(UDP_PORT));
        let found: Vec<SocketAddr> = match http::ip_literal(url) {
            Some(ip) => vec![(ip, port).into()],
            None => {
                let lookup = timeout(self.limits.resolve, tokio::net::lookup_host((host, port)));
                let found = lookup.await.map_err(|_| {
                    AnnounceError::Request(RequestError::Connect("its name was not resolved in time".into()))
                })?;
                found.map_err(cannot_connect)?.collect()
            }
        };
        let plain = found.into_iter().map(|addr| match addr.ip().to_canonical() {
            ip @ IpAddr::V4(_) => (ip, port).into(),
            IpAddr::V6(_) => addr,
        });
        let may_reach_local = http::may_reach_local(url, Purpose::Announce);
        let allowed: Vec<SocketAddr> = plain.filter(|addr| may_reach_local || !is_local(addr.ip())).collect();
        if allowed.is_empty() {
            return Err(AnnounceError::Request(RequestError::Local));
        }
        let reachable = |addr: &&SocketAddr| match self.bind {
            Bind::Address(ip) => ip.is_ipv4() == addr.is_ipv4(),
            _ => true,
        };
        let family = |v6: bool| -> Vec<SocketAddr> {
            allowed.iter().filter(|addr| addr.is_ipv6() == v6).filter(reachable).copied().collect()
        };
        let chosen = [family(false), family(true)];
        let chosen: Vec<SocketAddr> =
            chosen.iter().filter_map(|family| family.choose(&mut rand::rng()).copied()).collect();
        if chosen.is_empty() {
            return Err(AnnounceError::Request(RequestError::Connect(
                "it has no address of the IP family that we are bound to".into(),
            )));
        }
        Ok(chosen)
    }

    /// Exchanges a request and its reply with one address and returns the body of the reply.
    async fn exchange(&self, addr: SocketAddr, request: &Request) -> Result<Vec<u8>, AnnounceError> {
        let [connect_id, request_id] = rand::random::<[u32; 2]>().map(TransactionId);
        let cached = self.take(addr);
        let mut from_cache = cached.is_some();
        let mut connection = match cached {
            Some(connection) => connection,
            None => Connection::open(addr, &self.bind).await?,
        };
        let mut unanswered = 0;
        while unanswered < self.limits.tries {
            let wait = self.limits.retry * (1 << unanswered);
            let (datagram, action, transaction) = match self.valid_id(&connection) {
                Some(id) => (request.encode(id, request_id), request.action(), request_id),
                None => (datagram::connect(connect_id).to_vec(), Action::Connect, connect_id),
            };
            match connection.request(&datagram, action, transaction, wait).await {
                Ok(None) => unanswered += 1,
                Ok(Some(body)) if action == Action::Connect => {
                    connection.id = Some((datagram::parse_connect(&body)?, Instant::now()));
                }
                Ok(Some(body)) => {
                    self.put_back(addr, connection);
                    return Ok(body);
                }
                // A tracker that was restarted in the meantime does not know its old connection ids.
                Err(_) if from_cache => {
                    from_cache = false;
                    connection = Connection::open(addr, &self.bind).await?;
                }
                Err(error) => return Err(error),
            }
        }
        Err(AnnounceError::Request(RequestError::Timeout(self.limits.total())))
    }

    /// Returns the id of a connection, unless it has expired.
    fn valid_id(&self, connection: &Connection) -> Option<ConnectionId> {
        connection.id.filter(|(_, since)| since.elapsed() < self.limits.id_lifetime).map(|(id, _)| id)
    }

    /// Takes a connection out of the cache. It is used by one exchange at a time, so every reply on its socket belongs
    /// to that exchange.
    fn take(&self, addr: SocketAddr) -> Option<Connection> {
        self.cache().remove(&addr).filter(|connection| self.valid_id(connection).is_some())
    }

    fn put_back(&self, addr: SocketAddr, connection: Connection) {
        let mut cache = self.cache();

        cache.retain(|_, connection| self.valid_id(connection).is_some());
        if cache.len() < MAX_CACHED {
            cache.insert(addr, connection);
        }
    }

    /// Locks the cache.
    fn cache(&self) -> MutexGuard<'_, HashMap<SocketAddr, Connection>> {
        lock(&self.cache)
    }
}

/// A socket connected to one tracker, and the connection id from that tracker.
#[derive(Debug)]
struct Connection {
    socket: UdpSocket,
    id: Option<(ConnectionId, Instant)>,
}

impl Connection {
    async fn open(addr: SocketAddr, bind: &Bind) -> Result<Self, AnnounceError> {
        let open = async {
            let from: IpAddr = match bind {
                Bind::Address(ip) => *ip,
                _ if addr.is_ipv4() => Ipv4Addr::UNSPECIFIED.into(),
                _ => Ipv6Addr::UNSPECIFIED.into(),
            };
            let socket = UdpSocket::bind((from, 0)).await?;
            if let Bind::Interface(name) = bind {
                socket.bind_device(Some(name.as_bytes()))?;
            }
            socket.connect(addr).await?;
            Ok(Self { socket, id: None })
        };
        open.await.map_err(cannot_connect)
    }

    /// Sends a request and returns the body of its reply, or `None` if none arrives in time.
    async fn request(
        &self,
        datagram: &[u8],
        action: Action,
        transaction: TransactionId,
        wait: Duration,
    ) -> Result<Option<Vec<u8>>, AnnounceError> {
        self.socket.send(datagram).await.map_err(cannot_connect)?;
        let receive = async {
            let mut buffer = vec![0; MAX_DATAGRAM];
            for _ in 0..MAX_STRAY {
                let len = self.socket.recv(&mut buffer).await.map_err(cannot_connect)?;
                match datagram::parse(&buffer[..len], action, transaction) {
                    Received::Stray => {}
                    Received::Reply(body) => return Ok(Some(body.to_vec())),
                    Received::Error(error) => return Err(error),
                }
            }
            Err(AnnounceError::Garbage("it keeps sending unrelated datagrams".into()))
        };
        timeout(wait, receive).await.unwrap_or(Ok(None))
    }
}

fn cannot_connect(error: io::Error) -> AnnounceError {
    AnnounceError::Request(RequestError::Connect(printable(error.to_string().as_bytes(), 200)))
}

/// Merges the replies of two address families.
fn merge(mut all: Reply, one: Reply) -> Reply {
    all.peers.extend(one.peers);
    all.peers.truncate(MAX_PEERS);
    all.interval = all.interval.max(one.interval);
    let answer = &mut all.answer;
    answer.peers = all.peers.len();
    // The tracker may count the same peers in both families or each in its own. We cannot know, so take the maximum.
    answer.seeders = answer.seeders.max(one.answer.seeders);
    answer.leechers = answer.leechers.max(one.answer.leechers);
    all
}

#[cfg(test)]
pub(super) mod tests;
