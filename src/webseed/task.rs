//! The connection that stands for a server: messages in, fetches started, blocks, rejects, choke and unchoke out.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};

use super::fetch::Fetch;
use super::queue::{FlightId, Queue};
use super::server::{Fault, Holding, Remedy, Server};
use super::url::SeedKind;
use crate::net::{Incoming, Limits};
use crate::util::lock;
use crate::wire::{ExtensionHandshake, Message, Request};

/// Requests to one server under way at a time, those of which nothing more is wanted counted too.
pub(super) const MAX_FLIGHTS: usize = 8;
/// Of them, those that are of use.
const FLIGHTS: usize = 4;
/// The same for a script, which counts its visitors.
const SCRIPT_FLIGHTS: usize = 2;
/// Requests that are kept; told as `reqq` (BEP 10).
const MAX_QUEUE: usize = 2_000;
/// Pieces rejected because the server lacks them, before the connection is made anew to say what it has.
const MAX_LACKING: usize = 32;
/// The wait after the second fault in a row, doubled after each further one; the first is tried again at once.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(300);
/// Between signs of life.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// Plays the server's part until the connection is dropped, or something is to be said that only a new one can say.
pub(super) async fn run<K: Copy + Send + Sync + 'static>(
    server: Arc<Server>,
    holding: Holding,
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
        flights: Vec::new(),
        next_flight: 0,
        faults: 0,
        resting: None,
        lacking: HashSet::new(),
    };
    let why = task.serve(holding, queue).await;
    let _ = task.fetch.inbox.send((key, Incoming::Closed(why))).await;
}

struct Task<K> {
    fetch: Fetch<K>,
    requests: Arc<Mutex<Queue>>,
    fetches: JoinSet<(FlightId, Result<(), Fault>)>,
    flights: Vec<(FlightId, Range<u64>)>,
    next_flight: u64,
    /// Faults since a fetch last went well.
    faults: u32,
    /// Choking, until then.
    resting: Option<Instant>,
    /// Pieces that were asked for and that it lacks.
    lacking: HashSet<u32>,
}

/// Why the connection ends.
type Ended = String;

impl<K: Copy + Send + Sync + 'static> Task<K> {
    async fn serve(&mut self, holding: Holding, mut queue: mpsc::Receiver<Vec<Message>>) -> Ended {
        let opening = match holding {
            Holding::All => Message::HaveAll,
            Holding::Some(bits) => Message::Bitfield(bits),
        };
        let handshake = ExtensionHandshake {
            client: Some("web seed".into()),
            request_queue: Some(MAX_QUEUE as u32),
            upload_only: true,
            ..ExtensionHandshake::default()
        };
        let mut said = vec![opening, Message::Extended { id: 0, payload: handshake.encode() }, Message::Unchoke];
        let mut alive = Instant::now() + KEEP_ALIVE;
        loop {
            if !said.is_empty() {
                alive = Instant::now() + KEEP_ALIVE;
                if self.fetch.inbox.send((self.fetch.key, Incoming::Messages(said))).await.is_err() {
                    return "the driver is gone".into();
                }
            }
            self.start_fetches();
            let wakeup = self.resting.map_or(alive, |resting| resting.min(alive));
            said = tokio::select! {
                batch = queue.recv() => match batch {
                    Some(batch) => {
                        let mut said = self.hear(batch);
                        // What else is there already, so that neighbours become one request.
                        while let Ok(batch) = queue.try_recv() {
                            said.extend(self.hear(batch));
                        }
                        said
                    }
                    None => return "closed by us".into(),
                },
                Some(ended) = self.fetches.join_next() => self.ended(ended),
                () = sleep_until(wakeup) => self.wake(),
            };
            if self.lacking.len() >= MAX_LACKING || !self.lacking.is_empty() && self.fetch.server.holding().is_none() {
                return self.fetch.server.fault().unwrap_or_default();
            }
        }
    }

    /// What is to be said to these messages.
    fn hear(&mut self, batch: Vec<Message>) -> Vec<Message> {
        let mut said = Vec::new();
        for message in batch {
            match message {
                Message::Request(request) => said.extend(self.requested(request)),
                Message::Cancel(request) => {
                    let taken = self.place_of(request).and_then(|bytes| lock(&self.requests).take(bytes.start));
                    said.extend(taken.map(Message::Reject));
                }
                // A server wants nothing of us.
                _ => {}
            }
        }
        said
    }

    fn requested(&mut self, request: Request) -> Option<Message> {
        let reject = Some(Message::Reject(request));
        let Some(bytes) = self.place_of(request) else { return reject };
        if self.fetch.server.lacks(&bytes) {
            self.lacking.insert(request.piece);
            return reject;
        }
        let mut requests = lock(&self.requests);
        if self.resting.is_some() || requests.len() >= MAX_QUEUE {
            return reject;
        }
        requests.push(bytes.start, request);
        None
    }

    /// The torrent's bytes that are asked for; `None` if they are no block.
    fn place_of(&self, request: Request) -> Option<Range<u64>> {
        let lengths = self.fetch.server.metainfo().layout.lengths();
        let block = lengths.block(request.piece, request.begin, request.length)?;
        Some(lengths.block_range(block))
    }

    fn start_fetches(&mut self) {
        if self.resting.is_some() {
            return;
        }
        let server = &self.fetch.server;
        let most = match server.url().kind() {
            SeedKind::Script => SCRIPT_FLIGHTS,
            // One stream of a whole file passes by all that is wanted of it.
            SeedKind::Files if !server.has_ranges() => 1,
            SeedKind::Files => FLIGHTS,
        };
        let mut requests = lock(&self.requests);
        let mut of_use = self.flights.iter().filter(|(id, run)| requests.is_of_use(*id, run)).count();
        while of_use < most && self.flights.len() < MAX_FLIGHTS {
            let id = FlightId(self.next_flight);
            let Some(run) = requests.next_run(id, |start| server.run_limit(start)) else { return };
            self.next_flight += 1;
            of_use += 1;
            self.flights.push((id, run.clone()));
            let fetch = self.fetch.clone();
            self.fetches.spawn(async move { (id, fetch.run(run).await) });
        }
    }

    fn ended(&mut self, ended: Result<(FlightId, Result<(), Fault>), JoinError>) -> Vec<Message> {
        // A task panics only by a fault of ours; all of them are begun anew then.
        let Ok((id, result)) = ended else { return self.failed("a fetch panicked".into(), None, None) };
        let Some(at) = self.flights.iter().position(|(flight, _)| *flight == id) else { return Vec::new() };
        let (_, run) = self.flights.swap_remove(at);
        let left = lock(&self.requests).put_back(id, &run);
        match result {
            Ok(()) if left == 0 => {
                self.faults = 0;
                self.fetch.server.now_serves();
                Vec::new()
            }
            Ok(()) => self.failed("its answer is not whole".into(), None, Some(&run)),
            Err(Fault { why, remedy: Remedy::Retry(after) }) => self.failed(why, after, Some(&run)),
            Err(Fault { why, remedy: Remedy::Lacks(bytes) }) => {
                self.fetch.server.now_lacks(bytes.clone(), &why);
                let requests = lock(&self.requests).take_touching(&bytes);
                self.lacking.extend(requests.iter().map(|request| request.piece));
                requests.into_iter().map(Message::Reject).collect()
            }
        }
    }

    /// A first fault may be chance: a server ends connections as it likes. After more, or when the server says so, it
    /// is left alone for a while.
    fn failed(&mut self, why: String, after: Option<Duration>, run: Option<&Range<u64>>) -> Vec<Message> {
        self.faults = self.faults.saturating_add(1);
        if self.faults == 1 && after.is_none() && run.is_some() {
            tracing::debug!(seed = %self.fetch.server.url(), ?run, "web seed is asked once more: {why}");
            return Vec::new();
        }
        let wait = after.unwrap_or_else(|| {
            let doubled = FIRST_WAIT * (1 << self.faults.saturating_sub(2).min(10));
            doubled.min(LONGEST_WAIT).mul_f64(rand::random_range(0.75..1.25))
        });
        self.fetch.server.now_fails(&why, wait);
        self.resting = Some(Instant::now() + wait);
        // Ends those under way.
        self.fetches = JoinSet::new();
        self.flights.clear();
        let requests = lock(&self.requests).take_touching(&(0..u64::MAX));
        // The choke first: a reject by a peer that does not choke says that it does not want to serve that piece.
        std::iter::once(Message::Choke).chain(requests.into_iter().map(Message::Reject)).collect()
    }

    /// A time has come: the end of the rest, or that of a sign of life.
    fn wake(&mut self) -> Vec<Message> {
        if self.resting.is_some_and(|until| Instant::now() >= until) {
            self.resting = None;
            return vec![Message::Unchoke];
        }
        vec![Message::KeepAlive]
    }
}
