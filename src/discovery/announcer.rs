//! The task that announces one torrent to its trackers and passes on the peers that they return.

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
use super::schedule::{Schedule, ScheduledAnnounce, StatusChange};
use super::url::Query;
use super::{Announce, AnnounceError, Scrape, TrackerStatus, TrackerUrl, Transferred, Want};
use crate::http::RequestError;
use crate::util::lock;

/// Addresses that wait until the session takes them. More are dropped, because a tracker returns them again.
const MAX_PENDING: usize = 2000;
/// Limit of a `stopped` announce to a tracker that has not answered yet. Such a tracker is probably unreachable.
const UNCONFIRMED_STOP_LIMIT: Duration = Duration::from_millis(500);
/// Minimum time between two scrapes of the same trackers.
const SCRAPE_PAUSE: Duration = Duration::from_secs(5 * 60);

/// The announces of one torrent, in a task of their own. Dropping it ends the task without announcing `stopped`;
/// [`Announcer::stop`] announces it first.
#[derive(Debug)]
pub struct Announcer {
    shared: Arc<Shared>,
    excess_trackers: usize,
    requester: Requester,
    /// Time and results of the last scrape.
    scraped: tokio::sync::Mutex<Option<(Instant, Vec<Scraped>)>>,
    /// The stop signal and the handle of the task; `None` once it was stopped.
    running: Mutex<Option<(oneshot::Sender<Duration>, JoinHandle<()>)>>,
}

/// The result of scraping one tracker.
#[derive(Clone, Debug)]
pub struct Scraped {
    /// URL of the tracker; `Display` masks passkeys.
    pub url: TrackerUrl,
    /// Counts of the tracker.
    pub counts: Result<Scrape, AnnounceError>,
}

#[derive(Debug, Default)]
struct Shared {
    wake: Notify,
    completed: AtomicBool,
    /// How much more peers are wanted, since the task last looked.
    wanted: Mutex<Option<Want>>,
    /// Somebody is reading the torrent: announce without waiting for a slot.
    urgent: AtomicBool,
    status: Mutex<Vec<TrackerStatus>>,
}

impl Announcer {
    /// Starts the task on the current tokio runtime. The first announce is sent at once, or in its slot if many
    /// torrents share the client. Addresses are sent to `peers` in batches; while the channel is full they wait, up to
    /// a bound, and delay nothing.
    pub fn spawn(
        announce: Announce,
        transferred: Arc<Transferred>,
        client: impl Into<TrackerClient>,
        peers: mpsc::Sender<Vec<SocketAddr>>,
    ) -> Self {
        let client = client.into();
        let mut schedule = Schedule::new(&announce.tiers, rand::random());
        schedule.disable(|url| client.unreachable(url));
        let excess_trackers = schedule.excess();
        let shared = Arc::new(Shared::default());
        shared.publish(&schedule);
        let (stop, stopped) = oneshot::channel();
        let requester = Requester { announce: Arc::new(announce), transferred, client };
        let task = Task {
            schedule,
            shared: shared.clone(),
            requester: requester.clone(),
            in_flight: JoinSet::new(),
            announced_as_seed: false,
            pending: Vec::new(),
            slot: None,
        };
        let task = tokio::spawn(task.run(peers, stopped));
        Self {
            shared,
            excess_trackers,
            requester,
            scraped: Default::default(),
            running: Mutex::new(Some((stop, task))),
        }
    }

    /// Announces completion, once, to the trackers that counted us as incomplete. Do not call it for a torrent that was
    /// complete from the start.
    pub fn completed(&self) {
        self.shared.completed.store(true, Ordering::Release);
        self.shared.wake.notify_one();
    }

    /// Asks for more peers before the announce interval is over, as early as the trackers allow. If somebody reads, also
    /// from trackers that state no minimum interval, and without waiting for a slot among other torrents. If a read is
    /// blocked, from all trackers. May be called often.
    pub fn want_peers(&self, want: Want) {
        self.shared.urgent.store(want >= Want::Read, Ordering::Relaxed);
        let mut wanted = lock(&self.shared.wanted);
        *wanted = (*wanted).max(Some(want));
        drop(wanted);
        self.shared.wake.notify_one();
    }

    /// Announces `stopped` to every tracker that counts us, concurrently and within `limit`, and ends the task. A
    /// second call returns at once.
    pub async fn stop(&self, limit: Duration) {
        let running = lock(&self.running).take();
        // Sending fails only if the task has ended already.
        if let Some((stop, task)) = running
            && stop.send(limit).is_ok()
        {
            let _ = task.await;
        }
    }

    /// Returns how many trackers are not used, because the torrent has too many.
    pub fn excess_trackers(&self) -> usize {
        self.excess_trackers
    }

    /// Returns the trackers in the order in which they are asked.
    pub fn status(&self) -> Vec<TrackerStatus> {
        lock(&self.shared.status).clone()
    }

    /// Scrapes the trackers that answered our announces (BEP 48), concurrently and within `limit`. May be called often:
    /// results are cached for some minutes.
    pub async fn scrape(&self, limit: Duration) -> Vec<Scraped> {
        // Concurrent callers wait here for the same results.
        let mut last = self.scraped.lock().await;
        if let Some((at, scraped)) = &*last
            && at.elapsed() < SCRAPE_PAUSE
        {
            return scraped.clone();
        }
        let mut requests = JoinSet::new();
        let answered = self.status().into_iter().filter(|status| matches!(status.last, Some(Ok(_))));
        for (index, TrackerStatus { url, .. }) in answered.enumerate() {
            let Requester { client, announce, .. } = self.requester.clone();
            requests.spawn(async move {
                let counts =
                    async { client.scrape(url.usable().map_err(AnnounceError::clone)?, announce.info_hash).await };
                let counts =
                    timeout(limit, counts).await.unwrap_or(Err(AnnounceError::Request(RequestError::Timeout(limit))));
                (index, Scraped { url, counts })
            });
        }
        let mut scraped = requests.join_all().await;
        scraped.sort_by_key(|(index, _)| *index);
        let scraped: Vec<Scraped> = scraped.into_iter().map(|(_, scraped)| scraped).collect();
        if !scraped.is_empty() {
            *last = Some((Instant::now(), scraped.clone()));
        }
        scraped
    }

    /// Returns our own address as reported by a tracker (BEP 24), if any reported it.
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

/// Everything that an announce needs besides its [`ScheduledAnnounce`].
#[derive(Clone, Debug)]
struct Requester {
    announce: Arc<Announce>,
    transferred: Arc<Transferred>,
    client: TrackerClient,
}

impl Requester {
    async fn announce(self, scheduled: &ScheduledAnnounce) -> Result<Reply, AnnounceError> {
        let counter = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let query = Query {
            event: scheduled.event,
            uploaded: counter(&self.transferred.uploaded),
            downloaded: counter(&self.transferred.downloaded),
            left: counter(&self.transferred.left),
            tracker_id: scheduled.tracker_id.as_deref(),
        };
        let url = scheduled.url.usable().map_err(AnnounceError::clone)?;
        self.client.announce(url, &self.announce, &query).await
    }
}

struct Task {
    schedule: Schedule,
    shared: Arc<Shared>,
    requester: Requester,
    in_flight: JoinSet<(ScheduledAnnounce, Result<Reply, AnnounceError>)>,
    /// The last announces said that nothing is missing.
    announced_as_seed: bool,
    /// Addresses that the session has not taken yet.
    pending: Vec<SocketAddr>,
    /// Time of the slot for the announces that are due.
    slot: Option<std::time::Instant>,
}

impl Task {
    async fn run(mut self, peers: mpsc::Sender<Vec<SocketAddr>>, mut stopped: oneshot::Receiver<Duration>) {
        for status in self.schedule.status(Instant::now().into_std()) {
            if let Some(Err(error)) = status.last {
                tracing::info!(tracker = %status.url, "tracker skipped: {error}");
            }
        }
        loop {
            let now = Instant::now().into_std();
            let due = self.schedule.wakeup(now).is_some_and(|at| at <= now);
            self.slot = due.then(|| self.slot.unwrap_or_else(|| self.requester.client.pacer.reserve(now)));
            if due && (self.slot.is_some_and(|slot| slot <= now) || self.shared.urgent.load(Ordering::Relaxed)) {
                self.slot = None;
                while let Some(scheduled) = self.schedule.poll(now) {
                    self.start(scheduled);
                }
            }
            self.shared.publish(&self.schedule);
            let wakeup = self.slot.or_else(|| self.schedule.wakeup(now));
            tokio::select! {
                // A task of the set panics or is aborted only together with the whole program.
                Some(Ok((scheduled, outcome))) = self.in_flight.join_next() => self.finish(scheduled, outcome),
                () = self.shared.wake.notified() => self.apply_flags(),
                room = peers.reserve(), if !self.pending.is_empty() => {
                    let batch = std::mem::take(&mut self.pending);
                    if let Ok(room) = room {
                        room.send(batch);
                    }
                }
                () = async { match wakeup { Some(at) => sleep_until(at.into()).await, None => pending().await } } => {}
                limit = &mut stopped => {
                    if let Ok(limit) = limit {
                        self.announce_stopped(limit).await;
                    }
                    return;
                }
            }
        }
    }

    fn apply_flags(&mut self) {
        if self.shared.completed.swap(false, Ordering::Acquire) {
            self.schedule.completed();
        }
        let wanted = lock(&self.shared.wanted).take();
        if let Some(want) = wanted {
            // Pieces of a complete torrent that turned out bad.
            if self.announced_as_seed && self.requester.transferred.left.load(Ordering::Relaxed) > 0 {
                self.announced_as_seed = false;
                self.schedule.incomplete();
            }
            self.schedule.want_peers(Instant::now().into_std(), want);
        }
    }

    fn finish(&mut self, scheduled: ScheduledAnnounce, outcome: Result<Reply, AnnounceError>) {
        let tracker = &scheduled.url;
        let summary = match &outcome {
            Ok(reply) => format!("{} peers", reply.peers.len()),
            Err(error) => error.to_string(),
        };
        if let Ok(reply) = &outcome {
            let room = MAX_PENDING.saturating_sub(self.pending.len());
            self.pending.extend(reply.peers.iter().take(room));
        }
        match self.schedule.finish(Instant::now().into_std(), scheduled.tracker, scheduled.event, outcome) {
            Some(StatusChange::Failed) => tracing::warn!(%tracker, "announce failed: {summary}"),
            Some(StatusChange::Recovered) => tracing::info!(%tracker, "announce succeeds again: {summary}"),
            Some(StatusChange::Warned(warning)) => tracing::warn!(%tracker, "tracker warns: {warning}"),
            Some(StatusChange::Ignored(ignored)) => {
                tracing::info!(%tracker, "announced: {summary}; ignored in the tracker's reply: {ignored}");
            }
            None => tracing::debug!(%tracker, event = ?scheduled.event, "announced: {summary}"),
        }
    }

    fn start(&mut self, scheduled: ScheduledAnnounce) {
        let requester = self.requester.clone();
        self.announced_as_seed = requester.transferred.left.load(Ordering::Relaxed) == 0;
        self.in_flight.spawn(async move {
            let outcome = requester.announce(&scheduled).await;
            (scheduled, outcome)
        });
    }

    /// Announces completion before the task ends. The last piece may have arrived just now, and trackers count
    /// downloads by these announces.
    async fn announce_completed(&mut self, limit: Duration) {
        self.apply_flags();
        let end = Instant::now() + limit;
        while self.schedule.completed_pending() {
            while let Some(scheduled) = self.schedule.poll_completed(Instant::now().into_std()) {
                self.start(scheduled);
            }
            let Ok(Some(Ok((scheduled, outcome)))) = timeout_at(end, self.in_flight.join_next()).await else { return };
            self.finish(scheduled, outcome);
        }
    }

    /// Announces `stopped` to every tracker that may count us. Announces still in flight would only delay this, so they
    /// are aborted.
    async fn announce_stopped(mut self, limit: Duration) {
        let started = Instant::now();
        self.announce_completed(limit / 2).await;
        self.in_flight.abort_all();
        let limit = limit.saturating_sub(started.elapsed());
        let mut stopping = JoinSet::new();
        for (scheduled, registered) in self.schedule.stopped() {
            let requester = self.requester.clone();
            let limit = if registered { limit } else { limit.min(UNCONFIRMED_STOP_LIMIT) };
            stopping.spawn(async move {
                let pacer = requester.client.pacer.clone();
                let announce = async {
                    let _permit = pacer.stop_permit().await;
                    requester.announce(&scheduled).await
                };
                let outcome = timeout(limit, announce).await;
                tracing::debug!(tracker = %scheduled.url, failed = ?outcome.map(Result::err), "announced stopped");
            });
        }
        if timeout(limit, async { while stopping.join_next().await.is_some() {} }).await.is_err() {
            tracing::debug!(
                left = stopping.len(),
                "some trackers were not told that we stopped, because the time limit was reached"
            );
        }
    }
}
