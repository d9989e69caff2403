//! Peer discovery: trackers over HTTP and UDP (BEP 3, 7, 12, 15, 23, 24, 31, 41, 48), the DHT, local discovery.
//!
//! An [`Announcer`] is one torrent's task: it announces our progress to the torrent's trackers and passes on the peer
//! addresses that they return. It decides which tracker to ask and when. It does not know what becomes of an address.
//!
//! - `url`: tracker URLs and the announce query.
//! - `reply`, `scrape`, `datagram`: decode a tracker's answers and bound what they contain.
//! - `schedule`: tiers, intervals, back-off and events; pure, with time as an argument.
//! - `udp`: requests over UDP; `client`: one interface to UDP and HTTP trackers.
//! - `pace`: spreads the announces of many torrents over time.
//! - `announcer`: the task that combines them. `fetch`: downloads a `.torrent` file.
//! - `dht`, `lsd`: the other two sources of peers, independent of the rest.
//!
//! Invariants: a tracker is asked no sooner than it allows; the announces of many torrents are spread out, except for a
//! torrent that is being read; every request ends in bounded time with a bounded reply; a passkey in a URL is never
//! displayed (`Display` masks it); a failure is logged when it changes, not each time it repeats.

mod announcer;
mod client;
mod datagram;
mod dht;
mod fetch;
mod lsd;
mod pace;
mod reply;
mod schedule;
mod scrape;
mod udp;
mod url;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::time::{Duration, Instant};

pub use announcer::{Announcer, Scraped};
pub use client::TrackerClient;
pub use dht::{DHT_BOOTSTRAP, Dht, DhtConfig, DhtSearch, DhtStatus};
pub use fetch::{FetchError, fetch_torrent};
pub use lsd::{Lsd, LsdTorrent};
pub use url::TrackerUrl;

use crate::http::RequestError;
use crate::metainfo::InfoHash;
use crate::wire::PeerId;

/// The constant parameters of one torrent's announces.
#[derive(Clone, Debug)]
pub struct Announce {
    /// Info hash of the torrent.
    pub info_hash: InfoHash,
    /// Our peer id, the same as in handshakes.
    pub peer_id: PeerId,
    /// Port at which peers can reach us.
    pub port: AnnouncedPort,
    /// Tracker URLs in tiers (BEP 12), as in the metainfo, not yet shuffled.
    pub tiers: Vec<Vec<String>>,
    /// Random number by which a tracker recognizes us if our address changes. The same for the whole session.
    pub key: u32,
}

/// The port that we announce. It may change while running, because a router may map another port than the one we listen
/// on.
#[derive(Clone, Debug)]
pub struct AnnouncedPort(Arc<AtomicU16>);

impl AnnouncedPort {
    /// Returns the current port; 0 means that no peer can reach us.
    pub fn get(&self) -> u16 {
        self.0.load(Ordering::Relaxed)
    }

    /// Replaces the port for all later announces.
    pub fn set(&self, port: u16) {
        self.0.store(port, Ordering::Relaxed);
    }
}

impl From<u16> for AnnouncedPort {
    fn from(port: u16) -> Self {
        Self(Arc::new(AtomicU16::new(port)))
    }
}

/// Transfer counters for announces. The session writes them, the announcer reads them for each announce.
#[derive(Debug, Default)]
pub struct Transferred {
    /// Bytes sent to peers in this session.
    pub uploaded: AtomicU64,
    /// Bytes received from peers in this session.
    pub downloaded: AtomicU64,
    /// Bytes of the whole torrent that are still missing. Set it before the announcer is spawned: 0 announces a seed.
    pub left: AtomicU64,
}

/// The state of one tracker.
#[derive(Clone, Debug)]
pub struct TrackerStatus {
    /// URL of the tracker; `Display` masks passkeys.
    pub url: TrackerUrl,
    /// Index of its tier in the torrent's list, from 0.
    pub tier: usize,
    /// Outcome of the last announce; `None` until the first one has ended.
    pub last: Option<Result<Answer, AnnounceError>>,
    /// Whether an announce is in progress.
    pub announcing: bool,
    /// Earliest time of the next announce. `None` means any time, or never if `last` is an error.
    pub next_announce: Option<Instant>,
}

/// The counts and notes in a tracker's reply.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Number of complete peers.
    pub seeders: Option<u64>,
    /// Number of incomplete peers.
    pub leechers: Option<u64>,
    /// Number of usable addresses in the reply.
    pub peers: usize,
    /// The `warning message`. The rest of the reply is valid nevertheless.
    pub warning: Option<String>,
    /// Our own address as seen by the tracker (BEP 24).
    pub external_ip: Option<IpAddr>,
}

/// A tracker's counts for one swarm (BEP 48). `None`: the tracker did not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scrape {
    /// Number of complete peers.
    pub seeders: Option<u64>,
    /// Number of incomplete peers.
    pub leechers: Option<u64>,
    /// Number of completed downloads so far.
    pub downloads: Option<u64>,
}

/// The reason why an announce or a scrape failed. One line each, without the URL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnnounceError {
    /// Not a URL, or a URL without a host.
    #[error("this is not the address of a tracker")]
    NotAUrl,
    /// A scheme other than `http`, `https` and `udp`.
    #[error("{0}:// trackers are not supported")]
    Scheme(String),
    /// A `udp` URL without a port; the scheme has no default port.
    #[error("the address of a udp:// tracker needs a port")]
    NoPort,
    /// A UDP tracker behind a proxy that carries no UDP.
    #[error("not asked: udp:// trackers cannot be reached through the proxy")]
    NotThroughProxy,
    /// The URL of the tracker does not follow the scrape convention.
    #[error("the tracker does not support scraping")]
    NoScrape,
    /// The request failed before an answer arrived.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// An unsuccessful HTTP status without a `failure reason` in the body.
    #[error("HTTP status {0}")]
    Status(String),
    /// The answer does not have the format of a tracker's reply.
    #[error("unexpected answer from the tracker: {0}")]
    Garbage(String),
    /// The tracker rejected the request (`failure reason`).
    #[error("refused: {reason}")]
    Refused {
        /// The tracker's reason, made printable.
        reason: String,
        /// When to retry (BEP 31).
        retry: Retry,
    },
}

/// When to retry after a rejected announce (BEP 31).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Not specified: use our own back-off.
    BackOff,
    /// After this delay.
    After(Duration),
    /// Never.
    Never,
}

/// For `fuzz/` only: checks that a reply is rejected or bounded.
#[cfg(fuzzing)]
#[doc(hidden)]
pub fn fuzz_reply(body: &[u8]) {
    match reply::parse(body) {
        Ok(reply) => {
            assert!(reply.answer.peers == reply.peers.len() && reply.peers.iter().all(|peer| peer.port() != 0));
            assert!(reply.answer.warning.is_none_or(|text| !text.contains(char::is_control)));
        }
        Err(error) => assert!(!error.to_string().contains(char::is_control)),
    }
}

/// For `fuzz/` only: checks the same for scrape replies and UDP datagrams.
#[cfg(fuzzing)]
#[doc(hidden)]
pub fn fuzz_counts_and_datagram(bytes: &[u8]) {
    if let Err(error) = scrape::parse(bytes, InfoHash([b'y'; 20])) {
        assert!(!error.to_string().contains(char::is_control));
    }
    let transaction = datagram::TransactionId(0x6161_6161);
    match datagram::parse(bytes, datagram::Action::Announce, transaction) {
        datagram::Received::Stray => {}
        datagram::Received::Error(error) => assert!(!error.to_string().contains(char::is_control)),
        datagram::Received::Reply(body) => {
            for v6 in [false, true] {
                if let Ok(reply) = datagram::parse_announce(body, v6) {
                    assert!(reply.peers.len() <= body.len() / 6 && reply.peers.iter().all(|peer| peer.port() != 0));
                }
            }
            let _ = (datagram::parse_connect(body), datagram::parse_scrape(body));
        }
    }
}

#[cfg(test)]
mod tests;
