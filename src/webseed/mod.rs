//! Web seeds: HTTP servers as peers that have everything (BEP 19 `url-list`, BEP 17 `httpseeds`).
//!
//! To the session's driver a web seed is one more [`Connection`](crate::net::Connection): it says what it has,
//! unchokes, and answers each request by its block or by a reject. So the swarm weighs its speed, passes it by when it
//! is late and bans it when its bytes are wrong, as it does with any peer. Where the network is named by addresses, a
//! web seed has one that no peer can have ([`WebSeed::addr`]), and its id is made of its URL.
//!
//! Owns: the URLs, what is asked of which (requests that follow each other are one HTTP request), what a server may
//! answer, redirects, back-off. Every block is answered once: by whoever takes its request out of the queue.
//!
//! - What a server lacks (a file that is not there or of another size, the far end of one that it gives only from the
//!   start) is remembered for as long as the torrent is here, and is not offered when the connection is next made.
//! - A server that is busy or cannot be reached chokes, and unchokes when it is to be tried again.
//!
//! Deliberately no FTP, and no trust: whether a URL may be asked at all, and by which way, is for the
//! [`HttpClient`], and whether the bytes are right for the swarm.
//!
//! | file | owns |
//! |---|---|
//! | `url` | how a file or a piece is asked for |
//! | `queue` | requests that wait, and which of them make one HTTP request |
//! | `blocks` | bytes as they come, cut into blocks |
//! | `server` | one server: redirects, what an answer must look like, what it lacks |
//! | `fetch` | one run of requests, fetched |
//! | `task` | the connection: messages in, fetches started, choke and unchoke |

mod blocks;
mod fetch;
mod queue;
mod server;
mod task;
mod url;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use sha1::{Digest, Sha1};
use tokio::sync::mpsc;

use crate::http::HttpClient;
use crate::metainfo::Metainfo;
use crate::net::{Connection, Incoming, Limits};
use crate::wire::PeerId;

use server::Server;

pub use url::{SeedKind, SeedUrl, SeedUrlError};

/// Web seeds used of one torrent, at most.
pub const MAX_WEB_SEEDS: usize = 32;

/// One web seed of one torrent. Cheap to clone; clones share what was learnt of the server.
#[derive(Clone)]
pub struct WebSeed {
    server: Arc<Server>,
    addr: SocketAddr,
}

impl WebSeed {
    /// The web seeds of a torrent, each URL once. What cannot be asked is left out, and said once in the log.
    pub fn all(metainfo: &Arc<Metainfo>, http: &HttpClient) -> Vec<Self> {
        let files = metainfo.web_seeds.iter().map(|url| (SeedKind::Files, url));
        let scripts = metainfo.http_seeds.iter().map(|url| (SeedKind::Script, url));
        let mut urls: Vec<SeedUrl> = Vec::new();
        for (kind, text) in files.chain(scripts) {
            match SeedUrl::parse(kind, text).map_err(|error| error.to_string()) {
                Ok(url) if urls.contains(&url) => {}
                Ok(url) if urls.len() < MAX_WEB_SEEDS => urls.push(url),
                Ok(url) => tracing::debug!(seed = %url, "web seed left out: the torrent has too many"),
                Err(error) => tracing::info!("web seed left out: {error}"),
            }
        }
        let seeds = urls.into_iter().zip(1u32..).map(|(url, number)| {
            let addr = SocketAddr::from((Ipv4Addr::from_bits(0xF000_0000 | number), url.port()));
            Self { server: Arc::new(Server::new(metainfo.clone(), url, http.clone())), addr }
        });
        seeds.collect()
    }

    /// What stands for it where peers are told by address: one of 240.0.0.0/8, which no host on the Internet has, a
    /// different one for each of a torrent's web seeds. Nothing is ever sent there.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What stands for the id of a handshake: the same for the same URL, always.
    pub fn peer_id(&self) -> PeerId {
        let mut id = *b"-WS0000-............";
        let digest: [u8; 20] = Sha1::digest(self.server.url().as_str()).into();
        id[8..].copy_from_slice(&digest[..12]);
        PeerId(id)
    }

    /// Its URL. `Display` leaves out what may be secret.
    pub fn url(&self) -> &SeedUrl {
        self.server.url()
    }

    /// Why it failed when it last did, until it serves again.
    pub fn fault(&self) -> Option<String> {
        self.server.fault()
    }

    /// Starts a connection that stands for the server; what it says goes to `inbox` under `key`. No byte is asked for
    /// before a request comes. It speaks as a peer with which the fast extension and the extension protocol were agreed
    /// on. An error: the server has nothing of this torrent, and is not asked again.
    pub fn connect<K: Copy + Send + Sync + 'static>(
        &self,
        limits: Arc<Limits>,
        key: K,
        inbox: mpsc::Sender<(K, Incoming)>,
    ) -> Result<Connection, String> {
        let Some(holding) = self.server.holding() else {
            return Err(self.fault().unwrap_or_else(|| "it has nothing of this torrent".into()));
        };
        let server = self.server.clone();
        Ok(Connection::played_by(|queue| {
            tokio::spawn(task::run(server, holding, queue, limits, key, inbox)).abort_handle()
        }))
    }
}

impl std::fmt::Debug for WebSeed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WebSeed({})", self.url())
    }
}
