//! Asking a tracker over UDP (BEP 15).
//!
//! One exchange is with one address: a request for a connection id, unless one from the last minute is kept, then the
//! request itself. What is not answered is sent again after 15·2ⁿ seconds, but not for long: the schedule goes on to
//! other trackers and comes back to this one by a doubling pause of its own. The socket is connected, so the kernel
//! drops what other addresses send, and says at once when nobody is there.
//!
//! A name with addresses of both families is asked at one of each, for each answers with peers of its own kind only.

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
use super::url::Query;
use super::{Announce, AnnounceError, Scrape};
use crate::http::{self, Purpose, RequestError};
use crate::metainfo::InfoHash;
use crate::route::Bind;
use crate::util::{is_local, lock, printable};

/// Bytes taken of a datagram; the rest, some hundreds of peers later, is dropped.
const MAX_DATAGRAM: usize = 8 << 10;
/// Datagrams that answer nothing, before the tracker is given up.
const MAX_STRAY: usize = 100;
/// Connections kept, each a socket. Beyond them ids are asked for anew.
const MAX_KEPT: usize = 64;

/// How long one exchange may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct UdpLimits {
    /// To an answer about the tracker's name.
    pub resolve: Duration,
    /// Without an answer a request is sent again after this long, then after twice as long, and so on.
    pub retry: Duration,
    /// Requests without an answer after which the tracker is given up.
    pub tries: u32,
    /// When a tracker has answered in one family, for the answer in the other.
    pub grace: Duration,
    /// A connection id is used for this long.
    pub id_life: Duration,
}

impl Default for UdpLimits {
    fn default() -> Self {
        Self {
            resolve: Duration::from_secs(10),
            retry: Duration::from_secs(15),
            tries: 2,
            grace: Duration::from_secs(1),
            id_life: Duration::from_secs(60),
        }
    }
}

impl UdpLimits {
    /// Of an exchange that nobody answers.
    fn total(&self) -> Duration {
        self.retry * ((1 << self.tries) - 1)
    }
}

/// Asks trackers over UDP. Cheap to clone; clones share connections.
#[derive(Clone, Debug)]
pub(super) struct UdpClient {
    limits: UdpLimits,
    bind: Bind,
    kept: Arc<Mutex<HashMap<SocketAddr, Connection>>>,
}

impl UdpClient {
    pub fn new(bind: Bind, limits: UdpLimits) -> Self {
        Self { limits, bind, kept: Arc::default() }
    }

    pub async fn announce(&self, url: &Url, announce: &Announce, query: &Query<'_>) -> Result<Reply, AnnounceError> {
        let path = match url.query() {
            Some(query) => format!("{}?{query}", url.path()),
            None => url.path().to_owned(),
        };
        let replies = self
            .ask(self.addresses(url).await?, Request::announce(announce, query, &path), datagram::announced)
            .await?;
        Ok(replies.into_iter().fold(Reply::default(), merge))
    }

    pub async fn scrape(&self, url: &Url, info_hash: InfoHash) -> Result<Scrape, AnnounceError> {
        let counts =
            self.ask(self.addresses(url).await?, Request::scrape(info_hash), |body, _| datagram::scraped(body)).await?;
        Ok(counts.into_iter().next().unwrap_or_default())
    }

    /// A tracker's answers from its addresses, one a family: at least one.
    async fn ask<T: Send + 'static>(
        &self,
        addresses: Vec<SocketAddr>,
        request: Request,
        read: fn(&[u8], bool) -> Result<T, AnnounceError>,
    ) -> Result<Vec<T>, AnnounceError> {
        let mut calls = JoinSet::new();
        for addr in addresses {
            let (client, request) = (self.clone(), request.clone());
            calls.spawn(async move {
                let body = client.exchange(addr, &request).await?;
                read(&body, addr.is_ipv6())
            });
        }
        let mut answers = Vec::new();
        let mut fault = None;
        loop {
            let next = calls.join_next();
            let next = if answers.is_empty() {
                next.await
            } else {
                timeout(self.limits.grace, next).await.unwrap_or_default()
            };
            match next {
                Some(Ok(Ok(answer))) => answers.push(answer),
                // A host without IPv6 has nothing to say but that.
                Some(Ok(Err(error)))
                    if matches!(fault, None | Some(AnnounceError::Request(RequestError::Connect(_)))) =>
                {
                    fault = Some(error)
                }
                Some(_) => {}
                None => break,
            }
        }
        match fault {
            Some(fault) if answers.is_empty() => Err(fault),
            _ => Ok(answers),
        }
    }

    /// One address of each family, where the tracker has one that may be asked. Any of several: the next announce
    /// may meet another.
    async fn addresses(&self, url: &Url) -> Result<Vec<SocketAddr>, AnnounceError> {
        let (host, port) = (url.host_str().unwrap_or_default(), url.port().ok_or(AnnounceError::NoPort)?);
        let found: Vec<SocketAddr> = match http::ip_literal(url) {
            Some(ip) => vec![(ip, port).into()],
            None => {
                let lookup = timeout(self.limits.resolve, tokio::net::lookup_host((host, port)));
                let found = lookup.await.map_err(|_| {
                    AnnounceError::Request(RequestError::Connect("its name does not resolve in time".into()))
                })?;
                found.map_err(cannot_connect)?.collect()
            }
        };
        let plain = found.into_iter().map(|addr| match addr.ip().to_canonical() {
            ip @ IpAddr::V4(_) => (ip, port).into(),
            IpAddr::V6(_) => addr,
        });
        let may_be_local = http::may_be_local(url, Purpose::Announce);
        let allowed: Vec<SocketAddr> = plain.filter(|addr| may_be_local || !is_local(addr.ip())).collect();
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
                "it has no address of the family that we are bound to".into(),
            )));
        }
        Ok(chosen)
    }

    /// Asks one address: the body of its reply.
    async fn exchange(&self, addr: SocketAddr, request: &Request) -> Result<Vec<u8>, AnnounceError> {
        let [connecting, asking] = rand::random::<[u32; 2]>().map(TransactionId);
        let kept = self.take(addr);
        let mut was_kept = kept.is_some();
        let mut connection = match kept {
            Some(connection) => connection,
            None => Connection::open(addr, &self.bind).await?,
        };
        let mut unanswered = 0;
        while unanswered < self.limits.tries {
            let wait = self.limits.retry * (1 << unanswered);
            let (datagram, action, transaction) = match self.fresh(&connection) {
                Some(id) => (request.encode(id, asking), request.action(), asking),
                None => (datagram::connect(connecting).to_vec(), Action::Connect, connecting),
            };
            match connection.say(&datagram, action, transaction, wait).await {
                Ok(None) => unanswered += 1,
                Ok(Some(body)) if action == Action::Connect => {
                    connection.id = Some((datagram::connected(&body)?, Instant::now()));
                }
                Ok(Some(body)) => {
                    self.keep(addr, connection);
                    return Ok(body);
                }
                // A tracker that was started anew in between does not know its old ids.
                Err(_) if was_kept => {
                    was_kept = false;
                    connection = Connection::open(addr, &self.bind).await?;
                }
                Err(fault) => return Err(fault),
            }
        }
        Err(AnnounceError::Request(RequestError::Timeout(self.limits.total())))
    }

    /// The id of a connection, while it may be used.
    fn fresh(&self, connection: &Connection) -> Option<ConnectionId> {
        connection.id.filter(|(_, since)| since.elapsed() < self.limits.id_life).map(|(id, _)| id)
    }

    /// For one exchange alone: a reply on its socket is to that exchange.
    fn take(&self, addr: SocketAddr) -> Option<Connection> {
        self.lock().remove(&addr).filter(|connection| self.fresh(connection).is_some())
    }

    fn keep(&self, addr: SocketAddr, connection: Connection) {
        let mut kept = self.lock();
        kept.retain(|_, connection| self.fresh(connection).is_some());
        if kept.len() < MAX_KEPT {
            kept.insert(addr, connection);
        }
    }

    /// No code panics while it holds the lock.
    fn lock(&self) -> MutexGuard<'_, HashMap<SocketAddr, Connection>> {
        lock(&self.kept)
    }
}

/// A socket that speaks with one tracker, and the id that the tracker gave.
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

    /// Sends a request and waits for the body of its reply. `None`: none came in time.
    async fn say(
        &self,
        datagram: &[u8],
        action: Action,
        transaction: TransactionId,
        wait: Duration,
    ) -> Result<Option<Vec<u8>>, AnnounceError> {
        self.socket.send(datagram).await.map_err(cannot_connect)?;
        let listen = async {
            let mut buffer = vec![0; MAX_DATAGRAM];
            for _ in 0..MAX_STRAY {
                let len = self.socket.recv(&mut buffer).await.map_err(cannot_connect)?;
                match datagram::receive(&buffer[..len], action, transaction) {
                    Received::Stray => {}
                    Received::Reply(body) => return Ok(Some(body.to_vec())),
                    Received::Fault(fault) => return Err(fault),
                }
            }
            Err(AnnounceError::Garbage("it sends what was not asked for".into()))
        };
        timeout(wait, listen).await.unwrap_or(Ok(None))
    }
}

fn cannot_connect(error: io::Error) -> AnnounceError {
    AnnounceError::Request(RequestError::Connect(printable(error.to_string().as_bytes(), 200)))
}

/// What a tracker answered in both families, as one answer.
fn merge(mut all: Reply, one: Reply) -> Reply {
    all.peers.extend(one.peers);
    all.peers.truncate(MAX_PEERS);
    all.interval = all.interval.max(one.interval);
    let answer = &mut all.answer;
    answer.peers = all.peers.len();
    // It counts the same peers twice, or each in its own family; no telling which.
    answer.seeders = answer.seeders.max(one.answer.seeders);
    answer.leechers = answer.leechers.max(one.answer.leechers);
    all
}

#[cfg(test)]
pub(super) mod tests;
