//! What both protocols share: the table, who is served, and the answers.

use std::collections::HashSet;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use super::counters::Counters;
use super::page::{self, MAX_SHOWN, Status};
use super::request::{Refused, Request};
use super::table::{Announce, Answer, PARTS, Scraped, Table};
use super::ticket::Tickets;
use super::{Limits, answer, datagram, query};
use crate::metainfo::InfoHash;

/// The table's seconds at the start, so that those before it can be told, too.
const EPOCH: u32 = 1 << 30;
/// How long a list of the largest swarms is good for: to make it takes a look at each.
const LARGEST_FRESH: Duration = Duration::from_secs(10);

/// The largest swarms, when they were looked for.
type Largest = (Instant, Vec<(InfoHash, Scraped)>);

pub(super) struct Service {
    pub limits: Limits,
    pub table: Table,
    pub counters: Counters,
    pub trusted: Vec<IpAddr>,
    pub show_torrents: bool,
    tickets: Tickets,
    /// `None`: every torrent.
    allowed: RwLock<Option<Arc<HashSet<InfoHash>>>>,
    largest: Mutex<Option<Largest>>,
    start: Instant,
}

const REFUSED: &str = "this tracker does not serve this torrent";
const FULL: &str = "this tracker is full, try another";

impl Service {
    pub fn new(limits: Limits, trusted: Vec<IpAddr>, show_torrents: bool) -> Self {
        Self {
            limits,
            table: Table::new(limits, &mut rand::rng()),
            counters: Counters::default(),
            trusted,
            show_torrents,
            tickets: Tickets::default(),
            allowed: RwLock::default(),
            largest: Mutex::default(),
            start: Instant::now(),
        }
    }

    /// In the table's seconds; they do not jump with the machine's clock.
    pub fn now(&self) -> u32 {
        EPOCH.saturating_add(u32::try_from(self.start.elapsed().as_secs()).unwrap_or(u32::MAX))
    }

    pub fn is_allowed(&self, info_hash: &InfoHash) -> bool {
        let allowed = self.allowed.read().unwrap_or_else(PoisonError::into_inner);
        allowed.as_ref().is_none_or(|allowed| allowed.contains(info_hash))
    }

    /// From now on these are served; who is in the swarms of others is forgotten.
    pub fn allow(&self, hashes: HashSet<InfoHash>) {
        let hashes = Arc::new(hashes);
        *self.allowed.write().unwrap_or_else(PoisonError::into_inner) = Some(hashes.clone());
        for nth in 0..PARTS {
            self.table.retain(nth, |info_hash| hashes.contains(info_hash));
        }
    }

    /// How many torrents are served; `None`: all.
    pub fn served(&self) -> Option<usize> {
        self.allowed.read().unwrap_or_else(PoisonError::into_inner).as_ref().map(|allowed| allowed.len())
    }

    fn status(&self) -> Status<'_> {
        Status {
            counts: self.table.counts(),
            counters: &self.counters,
            uptime: self.start.elapsed(),
            allowed: self.served(),
            torrents: None,
        }
    }

    fn largest(&self) -> Vec<(InfoHash, Scraped)> {
        let mut kept = self.largest.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((when, largest)) = &*kept
            && when.elapsed() < LARGEST_FRESH
        {
            return largest.clone();
        }
        let mut largest = Vec::with_capacity(4 * MAX_SHOWN);
        let cut = |largest: &mut Vec<(InfoHash, Scraped)>| {
            largest.sort_by_key(|(info_hash, one)| (usize::MAX - one.seeders - one.leechers, *info_hash));
            largest.truncate(MAX_SHOWN);
        };
        for nth in 0..PARTS {
            self.table.visit(nth, |info_hash, torrent| {
                largest.push((*info_hash, torrent.scraped()));
                if largest.len() == 4 * MAX_SHOWN {
                    cut(&mut largest);
                }
            });
        }
        cut(&mut largest);
        *kept = Some((Instant::now(), largest.clone()));
        largest
    }

    /// Writes the whole answer to a request over HTTP.
    pub fn http(&self, request: Result<Request<'_>, Refused>, scratch: &mut Scratch, out: &mut Vec<u8>) {
        let request = match request {
            Ok(request) => request,
            Err(refused) => {
                self.counters.http_malformed.add();
                return match refused {
                    Refused::BadRequest => write_head("400 Bad Request", PLAIN, b"bad request\n", false, out),
                    Refused::MethodNotAllowed => {
                        write_head("405 Method Not Allowed\r\nAllow: GET, HEAD", PLAIN, b"GET only\n", false, out)
                    }
                };
            }
        };
        let body = &mut scratch.body;
        body.clear();
        let kind = match request.path {
            "/announce" => {
                self.http_announce(&request, &mut scratch.answer, body);
                PLAIN
            }
            "/scrape" => {
                match query::parse_scrape(request.query) {
                    Ok(hashes) => {
                        self.counters.http_scrapes.add();
                        let allowed = hashes.into_iter().filter(|info_hash| self.is_allowed(info_hash));
                        answer::scrape(allowed.map(|info_hash| (info_hash, self.table.scrape(&info_hash))), body);
                    }
                    Err(bad) => {
                        self.counters.http_malformed.add();
                        answer::failure(&bad.to_string(), body);
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
            _ => return write_head("404 Not Found", PLAIN, b"not found\n", request.head_only, out),
        };
        write_head("200 OK", kind, body, request.head_only, out);
    }

    fn http_announce(&self, request: &Request, found: &mut Answer, body: &mut Vec<u8>) {
        match query::parse(request.query, request.client) {
            Err(bad) => {
                self.counters.http_malformed.add();
                answer::failure(&bad.to_string(), body);
            }
            Ok(query) => match self.announce(&query.announce, found) {
                Err(reason) => answer::failure(reason, body),
                Ok(()) => {
                    self.counters.http_announces.add();
                    answer::success(found, query.form, self.limits.interval, request.client, body);
                }
            },
        }
    }

    fn announce(&self, announce: &Announce, found: &mut Answer) -> Result<(), &'static str> {
        if !self.is_allowed(&announce.info_hash) {
            self.counters.not_allowed.add();
            return Err(REFUSED);
        }
        self.table.announce(self.now(), announce, &mut rand::rng(), found).map_err(|_| {
            self.counters.full.add();
            FULL
        })?;
        if found.left_out {
            self.counters.left_out.add();
        }
        Ok(())
    }

    /// Writes the answer to a datagram; none, if `out` stays empty.
    pub fn udp(&self, bytes: &[u8], from: SocketAddr, scratch: &mut Scratch, out: &mut Vec<u8>) {
        let (ip, now) = (from.ip().to_canonical(), self.now());
        let (connection, action, transaction) = match datagram::head(bytes) {
            None => return self.counters.udp_malformed.add(),
            Some(datagram::Head::Connect(transaction)) => {
                self.counters.connects.add();
                return datagram::connected(transaction, self.tickets.give(ip, now), out);
            }
            Some(datagram::Head::Request { connection, action, transaction }) => (connection, action, transaction),
        };
        if !self.tickets.is_good(connection, ip, now) {
            // No answer: it may be another's address.
            return self.counters.bad_ids.add();
        }
        match datagram::request(bytes, action, ip) {
            Err(reason) => {
                self.counters.udp_malformed.add();
                datagram::refused(transaction, reason, bytes.len(), out);
            }
            Ok(datagram::Request::Scrape(hashes)) => {
                self.counters.udp_scrapes.add();
                let scrape = |hash: &[u8; 20]| {
                    let info_hash = InfoHash(*hash);
                    if self.is_allowed(&info_hash) { self.table.scrape(&info_hash) } else { Scraped::default() }
                };
                datagram::scraped(transaction, hashes.iter().map(scrape), out);
            }
            Ok(datagram::Request::Announce(announce)) => match self.announce(&announce, &mut scratch.answer) {
                Err(reason) => datagram::refused(transaction, reason, bytes.len(), out),
                Ok(()) => {
                    self.counters.udp_announces.add();
                    let interval = u32::try_from(self.limits.interval.as_secs()).unwrap_or(u32::MAX).max(1);
                    let found = &scratch.answer;
                    let peers = if ip.is_ipv4() { &found.v4 } else { &found.v6 };
                    datagram::announced(transaction, interval, found, peers, out);
                }
            },
        }
    }
}

/// Memory that is used again for each request.
#[derive(Default)]
pub(super) struct Scratch {
    answer: Answer,
    body: Vec<u8>,
}

const PLAIN: &str = "text/plain";

/// Each connection is for one request, as clients ask a tracker once in half an hour.
fn write_head(status: &str, kind: &str, body: &[u8], head_only: bool, out: &mut Vec<u8>) {
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
