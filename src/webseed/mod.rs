//! Web seeds: HTTP servers that act as peers with all pieces (BEP 19 `url-list`, BEP 17 `httpseeds`).
//!
//! For the session's driver a web seed is a [`Connection`] like any other: it announces its
//! pieces, unchokes us, and answers each request with a block or a reject. The swarm therefore measures its speed,
//! avoids it when it is late and bans it when its data is wrong, as it does with any peer. Where peers are identified
//! by address, a web seed has an address that no peer can have ([`WebSeed::addr`]); its peer id is derived from its
//! URL.
//!
//! Owns the URLs, the mapping of block requests to HTTP requests (adjacent blocks share one), the checks of a server's
//! answers, redirects and back-off. Every request is answered exactly once: by the code that takes it out of the queue.
//!
//! - What a server lacks (a file that is missing, the end of one that is shorter there or served only from the start,
//!   pieces that failed their hash) is remembered until the torrent is removed, and not offered when the connection is
//!   next made. One file that differs does not affect the others.
//! - A file that the server fails to deliver (an internal error, a body that breaks off) is not requested for a while;
//!   requests for it are rejected meanwhile.
//! - A server that is busy or unreachable, or fails to deliver one file after the other, chokes us until it is time to
//!   try again.
//!
//! FTP is not supported. Whether and by which route a URL may be requested is decided by the [`HttpClient`], and
//! whether the data is right by the swarm.
//!
//! | file | owns |
//! |---|---|
//! | `url` | URLs of files and pieces |
//! | `queue` | waiting requests, and their grouping into HTTP requests |
//! | `blocks` | splitting of received bytes into blocks |
//! | `server` | one server: redirects, checks of answers, what it lacks |
//! | `head` | the head of an answer: which bytes its body holds |
//! | `missing` | a set of byte ranges |
//! | `pauses` | files that fail for now |
//! | `fetch` | the download of one run of requests |
//! | `task` | the connection: incoming messages, starting fetches, choke and unchoke |

mod blocks;
mod fetch;
mod head;
mod missing;
mod pauses;
mod queue;
mod server;
mod task;
mod url;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use sha1::{Digest, Sha1};
use tokio::sync::mpsc;

use crate::http::{HttpClient, Masked};
use crate::metainfo::{Metainfo, PieceIndex};
use crate::net::{Connection, Incoming, Limits};
use crate::wire::PeerId;

use server::Server;

pub use url::{SeedKind, SeedUrl, SeedUrlError};

/// Maximum number of web seeds used per torrent. Real torrents have fewer.
pub const MAX_WEB_SEEDS: usize = 32;

/// A URL of a torrent that cannot be used as a web seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SkippedSeed {
    /// The URL, without parts that may be secret.
    pub url: String,
    /// Why it cannot be used.
    pub error: SeedUrlError,
}

/// Returns the usable URLs of a torrent's web seeds, each once, and the others.
fn parse_urls(metainfo: &Metainfo) -> (Vec<SeedUrl>, Vec<SkippedSeed>) {
    let files = metainfo.web_seeds.iter().map(|url| (SeedKind::Files, url));
    let scripts = metainfo.http_seeds.iter().map(|url| (SeedKind::Script, url));
    let (mut urls, mut skipped): (Vec<SeedUrl>, Vec<SkippedSeed>) = Default::default();
    for (kind, text) in files.chain(scripts) {
        let error = match SeedUrl::parse(kind, text) {
            Ok(url) if urls.contains(&url) => continue,
            Ok(url) if urls.len() < MAX_WEB_SEEDS => {
                urls.push(url);
                continue;
            }
            Ok(_) => SeedUrlError::TooMany,
            Err(error) => error,
        };
        skipped.push(SkippedSeed { url: Masked(text).to_string(), error });
    }
    (urls, skipped)
}

/// One web seed of a torrent. Cheap to clone; clones share what is known about the server.
#[derive(Clone)]
pub struct WebSeed {
    server: Arc<Server>,
    addr: SocketAddr,
}

impl WebSeed {
    /// Returns the web seeds of a torrent without duplicates. Unusable URLs are logged once and left out.
    pub fn all(metainfo: &Arc<Metainfo>, http: &HttpClient) -> Vec<Self> {
        let (urls, skipped) = parse_urls(metainfo);
        for SkippedSeed { url, error } in skipped {
            tracing::info!(seed = %url, "web seed ignored: {error}");
        }
        let paths = Arc::default();
        let seeds = urls.into_iter().zip(1u32..).map(|(url, number)| {
            let addr = SocketAddr::from((Ipv4Addr::from_bits(0xF000_0000 | number), url.port()));
            let server = Server::new(metainfo.clone(), Arc::clone(&paths), url, http.clone());
            Self { server: Arc::new(server), addr }
        });
        seeds.collect()
    }

    /// Returns the URLs of a torrent that cannot be used as web seeds.
    pub fn skipped(metainfo: &Metainfo) -> Vec<SkippedSeed> {
        parse_urls(metainfo).1
    }

    /// Returns the address that identifies the web seed among peers: one of 240.0.0.0/8, which no internet host uses,
    /// different for each web seed of a torrent. Nothing is ever sent there.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Returns the peer id: derived from the URL, and thus always the same for the same URL.
    pub fn peer_id(&self) -> PeerId {
        let mut id = *b"-WS0000-............";
        let digest: [u8; 20] = Sha1::digest(self.server.url().as_str()).into();
        id[8..].copy_from_slice(&digest[..12]);
        PeerId(id)
    }

    /// Returns the URL. `Display` masks secrets.
    pub fn url(&self) -> &SeedUrl {
        self.server.url()
    }

    /// Returns why the server failed last, until it works again.
    pub fn fault(&self) -> Option<String> {
        self.server.fault()
    }

    /// Records that a piece from this server failed its hash. It is not fetched from there again, and neither is a file
    /// of which two pieces have failed: the server has another version of it.
    pub fn mark_bad(&self, piece: PieceIndex) {
        self.server.mark_bad(piece);
    }

    /// Starts a connection that represents the server and sends its events to `inbox` under `key`. No HTTP request is
    /// made before a block is requested. The connection behaves like a peer that supports the fast extension and the
    /// extension protocol. Returns an error if the server has nothing of this torrent; it is then not used again.
    pub fn connect<K: Copy + Send + Sync + 'static>(
        &self,
        limits: Arc<Limits>,
        key: K,
        inbox: mpsc::Sender<(K, Incoming)>,
    ) -> Result<Connection, String> {
        let Some(available) = self.server.availability() else {
            return Err(self.fault().unwrap_or_else(|| "it has nothing of this torrent".into()));
        };
        let server = self.server.clone();
        Ok(Connection::without_socket(|queue| {
            tokio::spawn(task::run(server, available, queue, limits, key, inbox)).abort_handle()
        }))
    }
}

impl std::fmt::Debug for WebSeed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WebSeed({})", self.url())
    }
}
