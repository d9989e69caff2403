//! A small BitTorrent tracker over HTTP (BEP 3, 7, 23): who is in which swarm, in memory.
//!
//! - `table`: the swarms; pure, with time and chance as arguments.
//! - `query`: an announce's query string to values. `answer`: values to bencode.
//! - `listener`: connections, bounded in number and in time.
//!
//! Invariants: torrents, peers of a torrent, peers in an answer, connections and their lifetimes are all bounded; a
//! peer is known by the address its request came from, never by one that it claims; who is silent for two intervals
//! is forgotten.
//!
//! Not here: scrape, UDP, TLS, a white list, anything on disk.

mod answer;
mod listener;
mod query;
mod table;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{ConnectInfo, RawQuery, State};
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use listener::{Bounded, Remote};
use table::Table;

/// How much a tracker takes on.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Torrents known at a time.
    pub torrents: usize,
    /// Peers known of one torrent at a time.
    pub peers: usize,
    /// Peers in one answer.
    pub answer: usize,
    /// How often peers are asked to announce. Who is silent for twice as long is forgotten.
    pub interval: Duration,
    /// Connections at a time; more wait to be accepted.
    pub connections: usize,
    /// How long a connection may last, whatever it does.
    pub connection_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            torrents: 10_000,
            peers: 5_000,
            answer: 200,
            interval: Duration::from_secs(15 * 60),
            connections: 500,
            connection_time: Duration::from_secs(30),
        }
    }
}

/// A tracker at work. Dropping it stops it too, only without waiting; [`Tracker::stop`] lets requests under way finish.
#[derive(Debug)]
pub struct Tracker {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Tracker {
    /// Listens on `addr` (port 0: any free one) and says where. Announces go to `http://ADDR/announce`.
    pub async fn bind(addr: SocketAddr, limits: Limits) -> io::Result<(Self, SocketAddr)> {
        let socket = TcpListener::bind(addr).await?;
        let addr = socket.local_addr()?;
        let shared = Arc::new(Shared { limits, table: Mutex::new(Table::new(limits)) });
        let app = Router::new().route("/announce", get(announce)).with_state(shared);
        let listener = Bounded::new(socket, limits);
        let (stop, stopped) = oneshot::channel();
        let server = axum::serve(listener, app.into_make_service_with_connect_info::<Remote>());
        // A dropped `Tracker` ends the server just as a stopped one does.
        let server = server.with_graceful_shutdown(async { _ = stopped.await });
        let task = tokio::spawn(async {
            // Never fails: the listener retries.
            let _ = server.await;
        });
        Ok((Self { stop, task }, addr))
    }

    /// Takes no more connections and waits for requests under way, at most `limit`.
    pub async fn stop(mut self, limit: Duration) {
        let _ = self.stop.send(());
        if tokio::time::timeout(limit, &mut self.task).await.is_err() {
            self.task.abort();
        }
    }
}

struct Shared {
    limits: Limits,
    table: Mutex<Table>,
}

async fn announce(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(Remote(from)): ConnectInfo<Remote>,
    RawQuery(text): RawQuery,
) -> impl IntoResponse {
    let body = match query::parse(text.as_deref().unwrap_or_default(), from.ip()) {
        Err(reason) => answer::failure(&reason.to_string()),
        Ok(query) => {
            let mut table = shared.table.lock().unwrap_or_else(PoisonError::into_inner);
            match table.announce(Instant::now(), &query.announce, &mut rand::rng()) {
                Err(full) => answer::failure(&full.to_string()),
                Ok(swarm) => answer::success(&swarm, query.form, shared.limits.interval, from.ip()),
            }
        }
    };
    ([(header::CONTENT_TYPE, "text/plain")], body)
}

/// For `fuzz/` alone: a query is refused, or it is entered and answered.
#[cfg(fuzzing)]
#[doc(hidden)]
pub fn fuzz_query(text: &str) {
    let from = std::net::IpAddr::from([127, 0, 0, 1]);
    let Ok(query) = query::parse(text, from) else { return };
    let limits = Limits::default();
    let swarm = Table::new(limits).announce(Instant::now(), &query.announce, &mut rand::rng());
    let swarm = swarm.expect("an empty table has room");
    assert!(!answer::success(&swarm, query.form, limits.interval, from).is_empty());
}

#[cfg(test)]
mod tests;
