//! Finding peers: trackers over HTTP and UDP (BEP 3, 7, 12, 15, 23, 24, 31, 41, 48), the DHT, local discovery.
//!
//! An [`Announcer`] is one torrent's task: it tells the torrent's trackers what we have and passes on the peer
//! addresses that they give. It owns which tracker is asked when; it knows nothing of peers but their addresses, and
//! nothing of what becomes of them.
//!
//! - `url`: tracker URLs and the announce query. `mask`: URLs as they may be shown.
//! - `reply`, `scrape`, `datagram`: a tracker's answer from bytes to values, bounded before it is believed.
//! - `schedule`: tiers, intervals, back-off and events; pure, with time as an argument.
//! - `local`: what a stranger's URL may reach; pure. `resolve`: names, by that rule.
//! - `http`: bounded GETs; `udp`: an exchange of datagrams; `client`: one door to both.
//! - `pace`: many torrents' announces, spread out.
//! - `announcer`: the task that joins them. `fetch`: a `.torrent` file by its URL.
//!
//! Invariants: a tracker is asked again no sooner than it allows, and of many torrents one after the other, but for one
//! that somebody reads; every request ends in a bounded time with a bounded
//! reply; a passkey in a URL is never shown (`Display` masks it); a fault is logged when it changes, not each time; a
//! URL from a torrent reaches of the local network only what looks like a tracker's announce; behind a proxy nothing
//! leaves around it.
//!
//! `dht` and `lsd` stand beside this: see there.

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

/// Who announces what, and to whom.
#[derive(Clone, Debug)]
pub struct Announce {
    /// The torrent.
    pub info_hash: InfoHash,
    /// Our id, the same as in handshakes.
    pub peer_id: PeerId,
    /// Where peers call us.
    pub port: AnnouncedPort,
    /// Tracker URLs in tiers (BEP 12), as in the metainfo, not yet shuffled.
    pub tiers: Vec<Vec<String>>,
    /// A random number that tells the tracker that it is us, should our address change. The same for the whole session.
    pub key: u32,
}

/// The port that others are told to call. It may change while running: a home router may give another than ours.
#[derive(Clone, Debug)]
pub struct AnnouncedPort(Arc<AtomicU16>);

impl AnnouncedPort {
    /// What it is now; 0: nobody can call.
    pub fn get(&self) -> u16 {
        self.0.load(Ordering::Relaxed)
    }

    /// From now on.
    pub fn set(&self, port: u16) {
        self.0.store(port, Ordering::Relaxed);
    }
}

impl From<u16> for AnnouncedPort {
    fn from(port: u16) -> Self {
        Self(Arc::new(AtomicU16::new(port)))
    }
}

/// What the tracker is told about progress. The session writes, the announcer reads at each announce.
#[derive(Debug, Default)]
pub struct Transferred {
    /// Bytes sent to peers in this session.
    pub uploaded: AtomicU64,
    /// Bytes received from peers in this session.
    pub downloaded: AtomicU64,
    /// Bytes still missing for the whole torrent. Set it before the announcer is spawned: 0 says that we are a seed.
    pub left: AtomicU64,
}

/// What is known of one tracker.
#[derive(Clone, Debug)]
pub struct TrackerStatus {
    /// Its URL; `Display` hides passkeys.
    pub url: TrackerUrl,
    /// Its place in the torrent's list, from 0.
    pub tier: usize,
    /// What came of the last announce; `None`: not asked yet, or the first request is under way.
    pub last: Option<Result<Answer, AnnounceError>>,
    /// A request is under way.
    pub announcing: bool,
    /// When it may be asked next, at the earliest; `None`: any time, or, after an error, never.
    pub next_announce: Option<Instant>,
}

/// The numbers in a tracker's answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Peers with everything, by the tracker's count.
    pub seeders: Option<u64>,
    /// Peers without.
    pub leechers: Option<u64>,
    /// Usable addresses in this answer.
    pub peers: usize,
    /// `warning message`: the answer counts all the same.
    pub warning: Option<String>,
    /// Our address as the tracker sees it (BEP 24).
    pub external_ip: Option<IpAddr>,
}

/// What a tracker counts in the swarm (BEP 48). `None`: it does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scrape {
    /// Peers with everything.
    pub seeders: Option<u64>,
    /// Peers without.
    pub leechers: Option<u64>,
    /// Peers that ever had everything.
    pub downloads: Option<u64>,
}

/// Why an announce or another request came to nothing. One line each; never shows a URL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnnounceError {
    /// Not a URL at all, or one without a host.
    #[error("this is not the address of a tracker")]
    NotAUrl,
    /// A scheme other than `http`, `https` and `udp`.
    #[error("{0}:// trackers are not supported")]
    Scheme(String),
    /// `udp` has no usual port.
    #[error("the address of a udp:// tracker needs a port")]
    NoPort,
    /// A UDP tracker, and all goes through a proxy.
    #[error("not asked: udp:// trackers cannot be reached through the proxy")]
    NotThroughProxy,
    /// Its URL says not where.
    #[error("it cannot be scraped")]
    NoScrape,
    /// The request failed before there was an answer.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// An HTTP status that is no success, and no reason with it.
    #[error("HTTP status {0}")]
    Status(String),
    /// The answer is not a tracker's.
    #[error("the answer is not from a tracker: {0}")]
    Garbage(String),
    /// The tracker said no (`failure reason`).
    #[error("refused: {reason}")]
    Refused {
        /// In the tracker's words, made printable.
        reason: String,
        /// When to ask again (BEP 31).
        retry: Retry,
    },
}

/// When a tracker that refused may be asked again (BEP 31).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// It did not say.
    BackOff,
    /// After this long.
    After(Duration),
    /// `never`
    Never,
}

/// For `fuzz/` alone: an answer is refused, or what is taken from it is bounded.
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

/// For `fuzz/` alone: the same for a scrape and for what comes by UDP.
#[cfg(fuzzing)]
#[doc(hidden)]
pub fn fuzz_counts_and_datagram(bytes: &[u8]) {
    if let Err(error) = scrape::parse(bytes, InfoHash([b'y'; 20])) {
        assert!(!error.to_string().contains(char::is_control));
    }
    let transaction = datagram::TransactionId(0x6161_6161);
    match datagram::receive(bytes, datagram::Action::Announce, transaction) {
        datagram::Received::Stray => {}
        datagram::Received::Fault(error) => assert!(!error.to_string().contains(char::is_control)),
        datagram::Received::Reply(body) => {
            for v6 in [false, true] {
                if let Ok(reply) = datagram::announced(body, v6) {
                    assert!(reply.peers.len() <= body.len() / 6 && reply.peers.iter().all(|peer| peer.port() != 0));
                }
            }
            let _ = (datagram::connected(body), datagram::scraped(body));
        }
    }
}

#[cfg(test)]
mod tests;
