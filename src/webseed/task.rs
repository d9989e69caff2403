//! The connection that represents a server: handles messages, starts fetches, sends blocks, rejects, choke and unchoke.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};

use super::fetch::Fetch;
use super::pauses::{Consequence, wait_after};
use super::queue::{FetchId, Queue};
use super::server::{Availability, Fault, Remedy, Server};
use super::url::SeedKind;
use crate::net::{Incoming, Limits};
use crate::util::lock;
use crate::wire::{ExtensionHandshake, Message, Request};

/// Maximum number of concurrent HTTP requests to one server, including those whose blocks are not wanted any more.
pub(super) const MAX_FETCHES: usize = 8;
/// Maximum number of concurrent HTTP requests whose blocks are wanted: hides the round trips without loading the
/// server.
const MAX_WANTED_FETCHES: usize = 4;
/// The same for a script (BEP 17), which may limit the connections of a client.
const MAX_SCRIPT_FETCHES: usize = 2;
/// Block requests queued, announced as `reqq` (BEP 10).
const MAX_QUEUE: usize = 2_000;
/// Pieces rejected because the server lacks them, after which the connection is made anew to announce the right pieces.
const MAX_MISSING: usize = 32;
/// Interval of keep-alive messages: half of the two minutes that BEP 3 allows.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// Acts as the server until the connection is dropped, or until only a new connection can announce the right pieces.
pub(super) async fn run<K: Copy + Send + Sync + 'static>(
    server: Arc<Server>,
    available: Availability,
    queue: mpsc::Receiver<Vec<Message>>,
    limits: Arc<Limits>,
    key: K,
    inbox: mpsc::Sender<(K, Incoming)>,
) {
    let fetch = Fetch { server, queue: Arc::default(), limits, key, inbox };
    let mut task = Task {
        requests: fetch.queue.clone(),
        fetch,
        fetches: JoinSet::new(),
        running: Vec::new(),
        next_fetch: 0,
        failures: 0,
        paused_until: None,
        missing_pieces: HashSet::new(),
    };
    let why = task.serve(available, queue).await;
    let _ = task.fetch.inbox.send((key, Incoming::Closed(why))).await;
}

struct Task<K> {
    fetch: Fetch<K>,
    requests: Arc<Mutex<Queue>>,
    fetches: JoinSet<(FetchId, Result<(), Fault>)>,
    running: Vec<(FetchId, Range<u64>)>,
    next_fetch: u64,
    /// Consecutive failures.
    failures: u32,
    /// End of the current pause, during which we are choked.
    paused_until: Option<Instant>,
    /// Pieces that were requested and that the server lacks.
    missing_pieces: HashSet<u32>,
}

/// The reason why the connection ends.
type Ended = String;

impl<K: Copy + Send + Sync + 'static> Task<K> {
    async fn serve(&mut self, available: Availability, mut queue: mpsc::Receiver<Vec<Message>>) -> Ended {
        let opening = match available {
            Availability::All => Message::HaveAll,
            Availability::Some(bits) => Message::Bitfield(bits),
        };
        let handshake = ExtensionHandshake {
            client: Some("web seed".into()),
            request_queue: Some(MAX_QUEUE as u32),
            upload_only: true,
            ..ExtensionHandshake::default()
        };
        let mut replies = vec![opening, Message::Extended { id: 0, payload: handshake.encode() }, Message::Unchoke];
        let mut keep_alive_at = Instant::now() + KEEP_ALIVE;
        loop {
            if !replies.is_empty() {
                keep_alive_at = Instant::now() + KEEP_ALIVE;
                if self.fetch.inbox.send((self.fetch.key, Incoming::Messages(replies))).await.is_err() {
                    return "the driver has ended".into();
                }
            }
            self.start_fetches();
            let wakeup = self.paused_until.map_or(keep_alive_at, |paused_until| paused_until.min(keep_alive_at));
            replies = tokio::select! {
                batch = queue.recv() => match batch {
                    Some(batch) => {
                        let mut replies = self.handle_messages(batch);
                        // Drain the channel first, so that adjacent requests become one HTTP request.
                        while let Ok(batch) = queue.try_recv() {
                            replies.extend(self.handle_messages(batch));
                        }
                        replies
                    }
                    None => return "closed by us".into(),
                },
                Some(ended) = self.fetches.join_next() => self.on_fetch_end(ended),
                () = sleep_until(wakeup) => self.on_wakeup(),
            };
            if self.missing_pieces.len() >= MAX_MISSING
                || !self.missing_pieces.is_empty() && self.fetch.server.availability().is_none()
            {
                return self.fetch.server.fault().unwrap_or_default();
            }
        }
    }

    /// Handles messages and returns the answers.
    fn handle_messages(&mut self, batch: Vec<Message>) -> Vec<Message> {
        let mut replies = Vec::new();
        for message in batch {
            match message {
                Message::Request(request) => replies.extend(self.on_request(request)),
                Message::Cancel(request) => {
                    let taken = self.byte_range(request).and_then(|bytes| lock(&self.requests).take(bytes.start));
                    replies.extend(taken.map(Message::Reject));
                }
                // A server does not download, so other messages do not matter.
                _ => {}
            }
        }
        replies
    }

    fn on_request(&mut self, request: Request) -> Option<Message> {
        let reject = Some(Message::Reject(request));
        let Some(bytes) = self.byte_range(request) else { return reject };
        if self.fetch.server.is_missing(&bytes) {
            self.missing_pieces.insert(request.piece);
            return reject;
        }
        let mut requests = lock(&self.requests);
        if self.paused_until.is_some() || requests.len() >= MAX_QUEUE || self.fetch.server.is_paused(&bytes) {
            return reject;
        }
        requests.push(bytes.start, request);
        None
    }

    /// Returns the byte range of a request in the torrent, or `None` if it is not a block.
    fn byte_range(&self, request: Request) -> Option<Range<u64>> {
        let lengths = self.fetch.server.metainfo().layout.lengths();
        let block = lengths.block(request.piece, request.begin, request.length)?;
        Some(lengths.block_range(block))
    }

    fn start_fetches(&mut self) {
        if self.paused_until.is_some() {
            return;
        }
        let server = &self.fetch.server;
        let limit = match server.url().kind() {
            SeedKind::Script => MAX_SCRIPT_FETCHES,
            // The server sends whole files, so one stream delivers all requested blocks.
            SeedKind::Files if !server.has_ranges() => 1,
            SeedKind::Files => MAX_WANTED_FETCHES,
        };
        let mut requests = lock(&self.requests);
        let mut wanted = self.running.iter().filter(|(id, run)| requests.has_requests(*id, run)).count();
        while wanted < limit && self.running.len() < MAX_FETCHES {
            let id = FetchId(self.next_fetch);
            let Some(run) = requests.next_run(id, |start| server.run_limit(start)) else { return };
            self.next_fetch += 1;
            wanted += 1;
            self.running.push((id, run.clone()));
            let fetch = self.fetch.clone();
            self.fetches.spawn(async move { (id, fetch.run(run).await) });
        }
    }

    fn on_fetch_end(&mut self, ended: Result<(FetchId, Result<(), Fault>), JoinError>) -> Vec<Message> {
        // A task panics only because of a bug; restart all of them then.
        let Ok((id, result)) = ended else { return self.on_failure("a fetch panicked".into(), None, None) };
        let Some(at) = self.running.iter().position(|(fetch, _)| *fetch == id) else { return Vec::new() };
        let (_, run) = self.running.swap_remove(at);
        let left = lock(&self.requests).put_back(id, &run);
        match result {
            Ok(()) if left == 0 => {
                self.failures = 0;
                self.fetch.server.mark_working();
                Vec::new()
            }
            Ok(()) => self.on_failure("its answer is incomplete".into(), None, Some(&run)),
            Err(Fault { why, remedy: Remedy::Retry(after) }) => self.on_failure(why, after, Some(&run)),
            Err(Fault { why, remedy: Remedy::RetryFile(file) }) => {
                match self.fetch.server.mark_file_failing(file, &why) {
                    Consequence::Again => Vec::new(),
                    Consequence::Whole => self.on_failure(why, None, Some(&run)),
                    Consequence::Pause(_) => {
                        let layout = &self.fetch.server.metainfo().layout;
                        let bytes = layout.file(file).map_or(0..0, |file| file.range());
                        // The swarm asks again, and until the pause is over gets the same answer.
                        lock(&self.requests).take_touching(&bytes).into_iter().map(Message::Reject).collect()
                    }
                }
            }
            Err(Fault { why, remedy: Remedy::Missing(bytes) }) => {
                self.fetch.server.mark_missing(bytes.clone(), &why);
                let requests = lock(&self.requests).take_touching(&bytes);
                self.missing_pieces.extend(requests.iter().map(|request| request.piece));
                requests.into_iter().map(Message::Reject).collect()
            }
        }
    }

    /// Handles a failure. The first one may be chance, because servers close connections as they like. After more, or
    /// if the server asks for it, the server is paused.
    fn on_failure(&mut self, why: String, after: Option<Duration>, run: Option<&Range<u64>>) -> Vec<Message> {
        self.failures = self.failures.saturating_add(1);
        if self.failures == 1 && after.is_none() && run.is_some() {
            tracing::debug!(seed = %self.fetch.server.url(), ?run, "web seed is retried: {why}");
            return Vec::new();
        }
        let wait = after.or_else(|| wait_after(self.failures.max(2))).unwrap_or_default();
        self.fetch.server.mark_failing(&why, wait);
        self.paused_until = Some(Instant::now() + wait);
        // Aborts the fetches.
        self.fetches = JoinSet::new();
        self.running.clear();
        let requests = lock(&self.requests).take_touching(&(0..u64::MAX));
        // Choke first: a reject from a peer that does not choke us means that it will never serve that piece.
        std::iter::once(Message::Choke).chain(requests.into_iter().map(Message::Reject)).collect()
    }

    /// Handles the end of a pause, or sends a keep-alive.
    fn on_wakeup(&mut self) -> Vec<Message> {
        if self.paused_until.is_some_and(|until| Instant::now() >= until) {
            self.paused_until = None;
            return vec![Message::Unchoke];
        }
        vec![Message::KeepAlive]
    }
}
