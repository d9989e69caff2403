//! Request handling that both protocols share: the table of swarms, the list of served torrents, and the responses.

use std::collections::HashSet;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use super::config::Limits;
use super::connection_id::ConnectionIds;
use super::counters::Counters;
use super::page::{self, MAX_SHOWN, Status};
use super::request::{Request, RequestError};
use super::shards::SHARDS;
use super::table::{Announce, AnnounceResponse, ScrapeCounts, Table};
use super::{datagram, query, response};
use crate::metainfo::InfoHash;
use crate::util::lock;

/// Table time at the start, in seconds. Not zero, so that restored peers can have earlier times.
const EPOCH: u32 = 1 << 30;
/// How long the list of the largest swarms is reused. To build it, every torrent must be visited.
const LARGEST_MAX_AGE: Duration = Duration::from_secs(10);

/// The largest swarms, and when the list was built.
type Largest = (Instant, Vec<(InfoHash, ScrapeCounts)>);

/// State that all threads share.
pub(super) struct Service {
    pub limits: Limits,
    pub table: Table,
    pub counters: Counters,
    pub trusted_proxies: Vec<IpAddr>,
    pub show_torrents: bool,
    connection_ids: ConnectionIds,
    /// Info hashes to serve; `None` to serve every torrent.
    allowed: RwLock<Option<Arc<HashSet<InfoHash>>>>,
    largest: Mutex<Option<Largest>>,
    start: Instant,
}

/// Failure reason for a torrent that is not in the lists.
const NOT_SERVED: &str = "this tracker does not serve this torrent";
/// Failure reason for a new torrent when the table is full.
const FULL: &str = "this tracker is full, try another";

impl Service {
    pub fn new(limits: Limits, trusted_proxies: Vec<IpAddr>, show_torrents: bool) -> Self {
        Self {
            limits,
            table: Table::new(limits, &mut rand::rng()),
            counters: Counters::default(),
            trusted_proxies,
            show_torrents,
            connection_ids: ConnectionIds::default(),
            allowed: RwLock::default(),
            largest: Mutex::default(),
            start: Instant::now(),
        }
    }

    /// Returns the table time in seconds. It is monotonic: changes of the system clock do not affect it.
    pub fn now(&self) -> u32 {
        EPOCH.saturating_add(u32::try_from(self.start.elapsed().as_secs()).unwrap_or(u32::MAX))
    }

    /// Returns whether a torrent is served.
    pub fn is_allowed(&self, info_hash: &InfoHash) -> bool {
        let allowed = self.allowed.read().unwrap_or_else(PoisonError::into_inner);
        allowed.as_ref().is_none_or(|allowed| allowed.contains(info_hash))
    }

    /// Sets the torrents to serve. The swarms of all others are dropped.
    pub fn allow(&self, hashes: HashSet<InfoHash>) {
        let hashes = Arc::new(hashes);
        *self.allowed.write().unwrap_or_else(PoisonError::into_inner) = Some(hashes.clone());
        for nth in 0..SHARDS {
            self.table.retain(nth, |info_hash| hashes.contains(info_hash));
        }
    }

    /// Returns the number of torrents in the lists; `None` if every torrent is served.
    pub fn served_torrents(&self) -> Option<usize> {
        self.allowed.read().unwrap_or_else(PoisonError::into_inner).as_ref().map(|allowed| allowed.len())
    }

    fn status(&self) -> Status<'_> {
        Status {
            counts: self.table.counts(),
            counters: &self.counters,
            uptime: self.start.elapsed(),
            allowed: self.served_torrents(),
            torrents: None,
        }
    }

    /// Returns the largest swarms, at most [`MAX_SHOWN`].
    fn largest(&self) -> Vec<(InfoHash, ScrapeCounts)> {
        let mut cached = lock(&self.largest);
        if let Some((when, largest)) = &*cached
            && when.elapsed() < LARGEST_MAX_AGE
        {
            return largest.clone();
        }
        let mut largest = Vec::with_capacity(4 * MAX_SHOWN);
        let truncate = |largest: &mut Vec<(InfoHash, ScrapeCounts)>| {
            largest.sort_by_key(|(info_hash, counts)| (usize::MAX - counts.seeders - counts.leechers, *info_hash));
            largest.truncate(MAX_SHOWN);
        };
        for nth in 0..SHARDS {
            self.table.visit(nth, |info_hash, torrent| {
                largest.push((*info_hash, torrent.scrape()));
                if largest.len() == 4 * MAX_SHOWN {
                    truncate(&mut largest);
                }
            });
        }
        truncate(&mut largest);
        *cached = Some((Instant::now(), largest.clone()));
        largest
    }

    /// Writes the whole response to an HTTP request.
    pub fn http(&self, request: Result<Request<'_>, RequestError>, scratch: &mut Scratch, out: &mut Vec<u8>) {
        let request = match request {
            Ok(request) => request,
            Err(error) => {
                self.counters.http_malformed.add();
                return match error {
                    RequestError::BadRequest => write_response("400 Bad Request", PLAIN, b"bad request\n", false, out),
                    RequestError::MethodNotAllowed => {
                        write_response("405 Method Not Allowed\r\nAllow: GET, HEAD", PLAIN, b"GET only\n", false, out)
                    }
                };
            }
        };
        let body = &mut scratch.body;
        body.clear();
        let kind = match request.path {
            "/announce" => {
                self.http_announce(&request, &mut scratch.found, body);
                PLAIN
            }
            "/scrape" => {
                match query::parse_scrape(request.query) {
                    Ok(hashes) => {
                        self.counters.http_scrapes.add();
                        let allowed = hashes.into_iter().filter(|info_hash| self.is_allowed(info_hash));
                        response::write_scrape(
                            allowed.map(|info_hash| (info_hash, self.table.scrape(&info_hash))),
                            body,
                        );
                    }
                    Err(error) => {
                        self.counters.http_malformed.add();
                        response::write_failure(&error.to_string(), body);
                    }
                }
                PLAIN
            }
            "/" | "/status" => {
                let torrents = self.show_torrents.then(|| self.largest());
                body.extend_from_slice(page::html(&Status { torrents, ..self.status() }).as_bytes());
                "text/html; charset=utf-8"
            }
            "/metrics" => {
                body.extend_from_slice(page::metrics(&self.status()).as_bytes());
                "text/plain; version=0.0.4"
            }
            _ => return write_response("404 Not Found", PLAIN, b"not found\n", request.head_only, out),
        };
        write_response("200 OK", kind, body, request.head_only, out);
    }

    fn http_announce(&self, request: &Request, found: &mut AnnounceResponse, body: &mut Vec<u8>) {
        match query::parse(request.query, request.client) {
            Err(error) => {
                self.counters.http_malformed.add();
                response::write_failure(&error.to_string(), body);
            }
            Ok(query) => match self.announce(&query.announce, found) {
                Err(reason) => response::write_failure(reason, body),
                Ok(()) => {
                    self.counters.http_announces.add();
                    response::write_announce(found, query.format, self.limits.interval, request.client, body);
                }
            },
        }
    }

    /// Handles an announce of either protocol. The error is the failure reason for the client.
    fn announce(&self, announce: &Announce, found: &mut AnnounceResponse) -> Result<(), &'static str> {
        if !self.is_allowed(&announce.info_hash) {
            self.counters.not_allowed.add();
            return Err(NOT_SERVED);
        }
        self.table.announce(self.now(), announce, &mut rand::rng(), found).map_err(|_| {
            self.counters.full.add();
            FULL
        })?;
        if found.unlisted {
            self.counters.unlisted.add();
        }
        Ok(())
    }

    /// Writes the response to a datagram. If `out` stays empty, there is none.
    pub fn udp(&self, bytes: &[u8], from: SocketAddr, scratch: &mut Scratch, out: &mut Vec<u8>) {
        let (ip, now) = (from.ip().to_canonical(), self.now());
        let (connection, action, transaction) = match datagram::parse_header(bytes) {
            None => return self.counters.udp_malformed.add(),
            Some(datagram::Header::Connect(transaction)) => {
                self.counters.connects.add();
                return datagram::write_connect(transaction, self.connection_ids.issue(ip, now), out);
            }
            Some(datagram::Header::Request { connection, action, transaction }) => (connection, action, transaction),
        };
        if !self.connection_ids.is_valid(connection, ip, now) {
            // No response: the source address may be forged.
            return self.counters.bad_ids.add();
        }
        match datagram::parse_request(bytes, action, ip) {
            Err(reason) => {
                self.counters.udp_malformed.add();
                datagram::write_error(transaction, reason, bytes.len(), out);
            }
            Ok(datagram::Request::Scrape(hashes)) => {
                self.counters.udp_scrapes.add();
                let scrape = |hash: &[u8; 20]| {
                    let info_hash = InfoHash(*hash);
                    if self.is_allowed(&info_hash) { self.table.scrape(&info_hash) } else { ScrapeCounts::default() }
                };
                datagram::write_scrape(transaction, hashes.iter().map(scrape), out);
            }
            Ok(datagram::Request::Announce(announce)) => match self.announce(&announce, &mut scratch.found) {
                Err(reason) => datagram::write_error(transaction, reason, bytes.len(), out),
                Ok(()) => {
                    self.counters.udp_announces.add();
                    let interval = u32::try_from(self.limits.interval.as_secs()).unwrap_or(u32::MAX).max(1);
                    let found = &scratch.found;
                    let peers = if ip.is_ipv4() { &found.v4 } else { &found.v6 };
                    datagram::write_announce(transaction, interval, found, peers, out);
                }
            },
        }
    }
}

/// Buffers that a thread reuses for each request.
#[derive(Default)]
pub(super) struct Scratch {
    found: AnnounceResponse,
    body: Vec<u8>,
}

/// Content type of everything but the status page. BEP 3 requires none for bencode.
const PLAIN: &str = "text/plain";

/// Writes status line, headers and body. The connection is closed afterwards, since a client announces only about every half
/// hour.
fn write_response(status: &str, kind: &str, body: &[u8], head_only: bool, out: &mut Vec<u8>) {
    out.clear();
    // Writing to a `Vec` cannot fail.
    let _ = write!(
        out,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    if !head_only {
        out.extend_from_slice(body);
    }
}
