//! The parameters and outcomes of announces.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::time::Duration;

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

/// How much more peers are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Want {
    /// There are few.
    Few,
    /// There are few, and somebody reads.
    Read,
    /// A read is blocked, and no peer can serve it.
    Blocked,
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
    /// A `udp` URL with port 0.
    #[error("port 0 of a udp:// tracker cannot be reached")]
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
