//! The task that keeps one torrent's trackers informed and passes on the peers they name.

use std::future::pending;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::client::TrackerClient;
use super::reply::Reply;
use super::schedule::{News, Order, Schedule};
use super::url::Query;
use super::{Announce, AnnounceError, Scrape, TrackerStatus, TrackerUrl, Transferred};
use crate::http::RequestError;
use crate::util::lock;

/// Addresses that wait for the session to take them; more are dropped, a tracker will name them again.
const MAX_PENDING: usize = 2000;
/// For the farewell to a tracker that has not answered yet: more likely than not it is dead.
const BRIEF_FAREWELL: Duration = Duration::from_millis(500);
/// Trackers are not scraped again sooner.
const SCRAPE_PAUSE: Duration = Duration::from_secs(5 * 60);

/// One torrent's announces, in a task of their own. Dropping it ends the task without a farewell;
/// [`Announcer::stop`] says it.
#[derive(Debug)]
pub struct Announcer {
    shared: Arc<Shared>,
    requests: Requests,
    /// When the trackers were scraped, and what came of it.
    scraped: tokio::sync::Mutex<Option<(Instant, Vec<Scraped>)>>,
    /// Until it is stopped.
    running: Mutex<Option<(oneshot::Sender<Duration>, JoinHandle<()>)>>,
}

/// What came of scraping one tracker.
#[derive(Clone, Debug)]
pub struct Scraped {
    /// The tracker; `Display` hides passkeys.
    pub url: TrackerUrl,
    /// Its counts.
    pub counts: Result<Scrape, AnnounceError>,
}

#[derive(Debug, Default)]
struct Shared {
    wake: Notify,
    completed: AtomicBool,
    want_peers: AtomicBool,
    /// Somebody reads: not to wait for a turn.
    urgent: AtomicBool,
    status: Mutex<Vec<TrackerStatus>>,
}

impl Announcer {
    /// Starts the task on the current tokio runtime; the first announce leaves at once, or, of many torrents of one
    /// client, in its turn. Addresses go to `peers` in
    /// batches; when nobody takes them they wait, bounded, and hold up nothing.
    pub fn spawn(
        announce: Announce,
        transferred: Arc<Transferred>,
        client: impl Into<TrackerClient>,
        peers: mpsc::Sender<Vec<SocketAddr>>,
    ) -> Self {
        let client = client.into();
        let mut schedule = Schedule::new(&announce.tiers, rand::random());
        schedule.bar(|url| client.bar(url));
        let shared = Arc::new(Shared::default());
        shared.publish(&schedule);
        let (stop, stopped) = oneshot::channel();
        let requests = Requests { announce: Arc::new(announce), transferred, client };
        let driver = Driver {
            schedule,
            shared: shared.clone(),
            requests: requests.clone(),
            in_flight: JoinSet::new(),
            pending: Vec::new(),
            turn: None,
        };
        let task = tokio::spawn(driver.run(peers, stopped));
        Self { shared, requests, scraped: Default::default(), running: Mutex::new(Some((stop, task))) }
    }

    /// The last piece has come: tells the trackers that counted us as incomplete, once. Not for a torrent that was
    /// complete from the start.
    pub fn completed(&self) {
        self.shared.completed.store(true, Ordering::Release);
        self.shared.wake.notify_one();
    }

    /// Few peers are left: announces before the interval is over, as early as the trackers allow; and, if it is
    /// `urgent`, without waiting for its turn among other torrents. May be called often.
    pub fn want_peers(&self, urgent: bool) {
        self.shared.urgent.store(urgent, Ordering::Relaxed);
        self.shared.want_peers.store(true, Ordering::Release);
        self.shared.wake.notify_one();
    }

    /// Takes leave of every tracker that counts us, of all at the same time and within `limit`, and ends the task.
    /// A second call returns at once.
    pub async fn stop(&self, limit: Duration) {
        let running = lock(&self.running).take();
        // The task is gone already if this fails.
        if let Some((stop, task)) = running
            && stop.send(limit).is_ok()
        {
            let _ = task.await;
        }
    }

    /// The trackers in the order in which they are asked.
    pub fn status(&self) -> Vec<TrackerStatus> {
        lock(&self.shared.status).clone()
    }

    /// Asks the trackers that answer our announces what they count (BEP 48), all at the same time and within `limit`.
    /// May be called often: for some minutes what they said is said again.
    pub async fn scrape(&self, limit: Duration) -> Vec<Scraped> {
        // Who calls meanwhile waits for the same answers.
        let mut last = self.scraped.lock().await;
        if let Some((at, scraped)) = &*last
            && at.elapsed() < SCRAPE_PAUSE
        {
            return scraped.clone();
        }
        let mut calls = JoinSet::new();
        let answering = self.status().into_iter().filter(|status| matches!(status.last, Some(Ok(_))));
        for (index, TrackerStatus { url, .. }) in answering.enumerate() {
            let Requests { client, announce, .. } = self.requests.clone();
            calls.spawn(async move {
                let counts =
                    async { client.scrape(url.usable().map_err(AnnounceError::clone)?, announce.info_hash).await };
                let counts =
                    timeout(limit, counts).await.unwrap_or(Err(AnnounceError::Request(RequestError::Timeout(limit))));
                (index, Scraped { url, counts })
            });
        }
        let mut scraped = calls.join_all().await;
        scraped.sort_by_key(|(index, _)| *index);
        let scraped: Vec<Scraped> = scraped.into_iter().map(|(_, scraped)| scraped).collect();
        if !scraped.is_empty() {
            *last = Some((Instant::now(), scraped.clone()));
        }
        scraped
    }

    /// Our address as a tracker sees it (BEP 24), if one said so.
    pub fn external_ip(&self) -> Option<IpAddr> {
        let ip = |status: TrackerStatus| status.last?.ok()?.external_ip;
        self.status().into_iter().find_map(ip)
    }
}

impl Shared {
    fn publish(&self, schedule: &Schedule) {
        let status = schedule.status(Instant::now().into_std());
        *lock(&self.status) = status;
    }
}

/// What a request needs.
#[derive(Clone, Debug)]
struct Requests {
    announce: Arc<Announce>,
    transferred: Arc<Transferred>,
    client: TrackerClient,
}

impl Requests {
    async fn make(self, order: &Order) -> Result<Reply, AnnounceError> {
        let counter = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let query = Query {
            event: order.event,
            uploaded: counter(&self.transferred.uploaded),
            downloaded: counter(&self.transferred.downloaded),
            left: counter(&self.transferred.left),
            tracker_id: order.tracker_id.as_deref(),
        };
        let url = order.url.usable().map_err(AnnounceError::clone)?;
        self.client.announce(url, &self.announce, &query).await
    }
}

struct Driver {
    schedule: Schedule,
    shared: Arc<Shared>,
    requests: Requests,
    in_flight: JoinSet<(Order, Result<Reply, AnnounceError>)>,
    /// Not yet taken by the session.
    pending: Vec<SocketAddr>,
    /// When what is due may leave.
    turn: Option<std::time::Instant>,
}

impl Driver {
    async fn run(mut self, peers: mpsc::Sender<Vec<SocketAddr>>, mut stopped: oneshot::Receiver<Duration>) {
        for status in self.schedule.status(Instant::now().into_std()) {
            if let Some(Err(error)) = status.last {
                tracing::info!(tracker = %status.url, "tracker skipped: {error}");
            }
        }
        loop {
            let now = Instant::now().into_std();
            let due = self.schedule.wakeup(now).is_some_and(|at| at <= now);
            self.turn = due.then(|| self.turn.unwrap_or_else(|| self.requests.client.pace.turn(now)));
            if due && (self.turn.is_some_and(|turn| turn <= now) || self.shared.urgent.load(Ordering::Relaxed)) {
                self.turn = None;
                while let Some(order) = self.schedule.poll(now) {
                    self.begin(order);
                }
            }
            self.shared.publish(&self.schedule);
            let wakeup = self.turn.or_else(|| self.schedule.wakeup(now));
            tokio::select! {
                // A task panics or is aborted only with the whole program.
                Some(Ok((order, outcome))) = self.in_flight.join_next() => self.done(order, outcome),
                () = self.shared.wake.notified() => self.take_wishes(),
                room = peers.reserve(), if !self.pending.is_empty() => {
                    let batch = std::mem::take(&mut self.pending);
                    if let Ok(room) = room {
                        room.send(batch);
                    }
                }
                () = async { match wakeup { Some(at) => sleep_until(at.into()).await, None => pending().await } } => {}
                limit = &mut stopped => {
                    if let Ok(limit) = limit {
                        self.farewell(limit).await;
                    }
                    return;
                }
            }
        }
    }

    fn take_wishes(&mut self) {
        if self.shared.completed.swap(false, Ordering::Acquire) {
            self.schedule.completed();
        }
        if self.shared.want_peers.swap(false, Ordering::Acquire) {
            self.schedule.want_peers(Instant::now().into_std());
        }
    }

    fn done(&mut self, order: Order, outcome: Result<Reply, AnnounceError>) {
        let tracker = &order.url;
        let words = match &outcome {
            Ok(reply) => format!("{} peers", reply.peers.len()),
            Err(error) => error.to_string(),
        };
        if let Ok(reply) = &outcome {
            let room = MAX_PENDING.saturating_sub(self.pending.len());
            self.pending.extend(reply.peers.iter().take(room));
        }
        match self.schedule.done(Instant::now().into_std(), order.tracker, order.event, outcome) {
            Some(News::Failed) => tracing::warn!(%tracker, "announce failed: {words}"),
            Some(News::Recovered) => tracing::info!(%tracker, "announce succeeds again: {words}"),
            Some(News::Warned(warning)) => tracing::warn!(%tracker, "tracker warns: {warning}"),
            None => tracing::debug!(%tracker, event = ?order.event, "announced: {words}"),
        }
    }

    fn begin(&mut self, order: Order) {
        let requests = self.requests.clone();
        self.in_flight.spawn(async move {
            let outcome = requests.make(&order).await;
            (order, outcome)
        });
    }

    /// The last piece may have come just now: trackers count downloads by what they are told of that.
    async fn tell_completed(&mut self, limit: Duration) {
        self.take_wishes();
        let end = Instant::now() + limit;
        while self.schedule.owes_completed() {
            while let Some(order) = self.schedule.poll_completed(Instant::now().into_std()) {
                self.begin(order);
            }
            let Ok(Some(Ok((order, outcome)))) = timeout_at(end, self.in_flight.join_next()).await else { return };
            self.done(order, outcome);
        }
    }

    /// What is still under way would only delay it.
    async fn farewell(mut self, limit: Duration) {
        let begun = Instant::now();
        self.tell_completed(limit / 2).await;
        self.in_flight.abort_all();
        let limit = limit.saturating_sub(begun.elapsed());
        let mut farewells = JoinSet::new();
        for (order, counts_us) in self.schedule.stopped() {
            let requests = self.requests.clone();
            let limit = if counts_us { limit } else { limit.min(BRIEF_FAREWELL) };
            farewells.spawn(async move {
                let pace = requests.client.pace.clone();
                let in_turn = async {
                    let _place = pace.farewell().await;
                    requests.make(&order).await
                };
                let outcome = timeout(limit, in_turn).await;
                tracing::debug!(tracker = %order.url, failed = ?outcome.map(Result::err), "took leave");
            });
        }
        if timeout(limit, async { while farewells.join_next().await.is_some() {} }).await.is_err() {
            tracing::debug!(left = farewells.len(), "some trackers did not hear that we stopped");
        }
    }
}
