//! The handle by which the rest of the program uses a torrent.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use crate::discovery::{Announcer, Scraped, TrackerStatus};
use crate::metainfo::{FileIndex, Metainfo, PieceIndex};
use crate::store::TorrentStore;
use crate::swarm::{Event, Stats};
use crate::util::lock;
use crate::webseed::{SkippedSeed, WebSeed};

use super::awake::AwakeClock;
use super::block_times::BlockTimes;
use super::local_files::LocalFiles;
use super::priorities::{Priority, piece_priorities};
use super::reads::{ReadCounts, Reads};
use super::report::{Report, WebSeedReport};
use super::sources::tracker_fault;
use super::verify::{Verification, Verifier};

/// A command to a torrent's task.
#[derive(Debug)]
pub(super) enum Command {
    /// Pass an event to the swarm.
    Swarm(Event),
    /// Report the torrent's state.
    Report(oneshot::Sender<Report>),
    /// End.
    Stop,
}

/// A torrent of a session. A cheap handle; the work is done by the torrent's own task.
pub struct Torrent {
    pub(super) metainfo: Arc<Metainfo>,
    pub(super) store: Arc<TorrentStore>,
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) stats: watch::Receiver<Stats>,
    pub(super) announcer: Arc<Announcer>,
    pub(super) web_seeds: Vec<WebSeed>,
    /// Set when the task ends: blocked reads fail at once.
    pub(super) closed: watch::Receiver<bool>,
    pub(super) read_timeout: Option<Duration>,
    /// The clock of read limits.
    pub(super) clock: Arc<AwakeClock>,
    pub(super) runtime: tokio::runtime::Handle,
    pub(super) next_id: AtomicU64,
    pub(super) stopping: AtomicBool,
    pub(super) paused: AtomicBool,
    /// Files whose priority is not normal.
    pub(super) priorities: Mutex<BTreeMap<FileIndex, Priority>>,
    pub(super) verifier: Arc<Verifier>,
    pub(super) reads: Reads,
    pub(super) local_files: LocalFiles,
    pub(super) block_times: Arc<BlockTimes>,
}

impl Torrent {
    /// Returns the torrent's metainfo.
    pub fn metainfo(&self) -> &Metainfo {
        &self.metainfo
    }

    /// Returns whether we have a piece: downloaded and verified.
    pub fn has(&self, piece: PieceIndex) -> bool {
        self.store.has(piece)
    }

    /// Returns the torrent's part of the cache.
    pub(crate) fn store(&self) -> &Arc<TorrentStore> {
        &self.store
    }

    /// Returns rates and counts, at most about a second old.
    pub fn stats(&self) -> Stats {
        self.stats.borrow().clone()
    }

    /// Returns the same as a channel that changes once a second, and when the last piece has arrived.
    pub fn watch(&self) -> watch::Receiver<Stats> {
        self.stats.clone()
    }

    /// Returns how the torrent's reads were answered.
    pub fn reads(&self) -> ReadCounts {
        self.reads.counts()
    }

    /// Returns the state of every tracker.
    pub fn trackers(&self) -> Vec<TrackerStatus> {
        self.announcer.status()
    }

    /// Scrapes the trackers that answered our announces (BEP 48), concurrently and within `limit`. May be called often:
    /// results are cached for some minutes.
    pub async fn scrape(&self, limit: Duration) -> Vec<Scraped> {
        self.announcer.scrape(limit).await
    }

    /// Returns our own address as reported by a tracker (BEP 24), if any reported it.
    pub fn external_ip(&self) -> Option<IpAddr> {
        self.announcer.external_ip()
    }

    /// Returns how many trackers of the torrent's list are not used, because it has too many.
    pub fn excess_trackers(&self) -> usize {
        self.announcer.excess_trackers()
    }

    /// Returns the web seeds in the torrent's list, first those that can be used.
    pub fn web_seeds(&self) -> Vec<WebSeedReport> {
        let used = self.web_seeds.iter().map(|seed| WebSeedReport { url: seed.url().to_string(), fault: seed.fault() });
        let skipped = WebSeed::skipped(&self.metainfo).into_iter();
        let skipped = skipped.map(|SkippedSeed { url, error }| WebSeedReport { url, fault: Some(error.to_string()) });
        used.chain(skipped).collect()
    }

    /// Returns the torrent's state at this moment; `None` if it has ended.
    pub async fn report(&self) -> Option<Report> {
        let (answer, report) = oneshot::channel();
        self.commands.send(Command::Report(answer)).await.ok()?;
        report.await.ok()
    }

    /// Fetches only what is read from now on, or everything again.
    pub async fn set_on_demand(&self, on_demand: bool) {
        let _ = self.commands.send(Command::Swarm(Event::OnDemand(on_demand))).await;
    }

    /// Disconnects every peer and fetches nothing, not even for readers; or resumes.
    pub async fn set_paused(&self, paused: bool) {
        self.paused.store(paused, Ordering::Relaxed);
        let _ = self.commands.send(Command::Swarm(Event::Pause(paused))).await;
    }

    /// Changes the priority of files. Indexes that are not of this torrent are ignored.
    pub fn prioritize(&self, files: impl IntoIterator<Item = FileIndex>, priority: Priority) {
        let layout = &self.metainfo.layout;
        // Locked until the command is queued, so that the later one of two changes takes effect.
        let mut priorities = lock(&self.priorities);
        for file in files.into_iter().filter(|file| layout.file(*file).is_some()) {
            match priority {
                Priority::Normal => priorities.remove(&file),
                other => priorities.insert(file, other),
            };
        }
        let (skip, high) = piece_priorities(layout, &priorities);
        self.send(Command::Swarm(Event::Priorities { skip, high }));
    }

    /// Returns the files whose priority is not normal, in the torrent's order.
    pub fn priorities(&self) -> Vec<(FileIndex, Priority)> {
        lock(&self.priorities).iter().map(|(file, priority)| (*file, *priority)).collect()
    }

    /// Starts to hash again every piece that we have, unless that is under way. Must be called within a tokio runtime.
    pub fn verify(&self) {
        self.verifier.start(self.metainfo.clone(), self.store.clone(), self.closed.clone());
    }

    /// Returns the progress of the verification that is under way, or the result of the last one.
    pub fn verification(&self) -> Option<Verification> {
        self.verifier.state()
    }

    /// Ends the torrent's task and waits until its state is saved and its trackers are told (2 s at most).
    pub async fn stop(&self) {
        if !self.stopping.swap(true, Ordering::Relaxed) {
            let _ = self.commands.send(Command::Stop).await;
        }
        self.commands.closed().await;
    }

    /// Returns a number for a reader or a blocked read that has not been used before.
    pub(super) fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// Sends a command that must not be lost, from a thread that must not wait.
    pub(super) fn send(&self, command: Command) {
        if let Err(mpsc::error::TrySendError::Full(command)) = self.commands.try_send(command) {
            let commands = self.commands.clone();
            self.runtime.spawn(async move {
                let _ = commands.send(command).await;
            });
        }
    }

    /// Sends an event that may be lost if the task is busy. Returns whether it was queued.
    pub(super) fn try_send(&self, event: Event) -> bool {
        self.commands.try_send(Command::Swarm(event)).is_ok()
    }

    /// Describes the peers that there are to fetch from, and why there may be none.
    pub(super) fn describe_sources(&self) -> String {
        if self.paused.load(Ordering::Relaxed) {
            return "the torrent is paused".into();
        }
        let peers = match self.stats.borrow().peers {
            0 => "no peer connected".to_owned(),
            1 => "1 peer connected".to_owned(),
            n => format!("{n} peers connected"),
        };
        let web_seed_fault =
            || self.web_seeds.iter().find_map(|seed| Some(format!("web seed {}: {}", seed.url(), seed.fault()?)));
        match tracker_fault(&self.announcer).or_else(web_seed_fault) {
            Some(fault) => format!("{peers}; {fault}"),
            None => peers,
        }
    }
}
