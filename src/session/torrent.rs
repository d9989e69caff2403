//! What the rest of the program holds of a torrent.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::{OnceCell, mpsc, oneshot, watch};

use crate::discovery::{Announcer, TrackerStatus};
use crate::metainfo::{FileIndex, Metainfo, PieceIndex};
use crate::store::TorrentStore;
use crate::swarm::{Event, ReaderId, Stats};

use super::reads::Reads;
use super::report::Report;
use super::{Priority, ReadCounts, Reader, Verification};

/// What readers and the program ask of a torrent's task.
#[derive(Debug)]
pub(super) enum Command {
    /// Straight to the swarm.
    Swarm(Event),
    /// When did a block last come for any of these pieces, and why might none have?
    Progress(Vec<PieceIndex>, oneshot::Sender<Progress>),
    /// What do you look like?
    Report(oneshot::Sender<Report>),
    /// End.
    Stop,
}

/// How far the pieces that a read waits for have come.
#[derive(Debug)]
pub(super) struct Progress {
    pub(super) last_block: Option<Instant>,
    /// For people: what there is to fetch from.
    pub(super) sources: String,
}

/// A torrent of a session. Cheap to share; the work is done by its own task.
pub struct Torrent {
    pub(super) metainfo: Arc<Metainfo>,
    pub(super) store: Arc<TorrentStore>,
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) stats: watch::Receiver<Stats>,
    pub(super) announcer: Arc<Announcer>,
    /// Set when the task ends: blocked reads fail at once.
    pub(super) closed: watch::Receiver<bool>,
    pub(super) read_timeout: Option<Duration>,
    pub(super) runtime: tokio::runtime::Handle,
    pub(super) next_id: AtomicU64,
    pub(super) stopping: AtomicBool,
    /// Of files that are not ordinary.
    pub(super) priorities: Mutex<BTreeMap<FileIndex, Priority>>,
    pub(super) verification: Mutex<Option<Verification>>,
    pub(super) reads: Reads,
    /// Set once peers have delivered: no read waits for more than its own bytes.
    pub(super) flowing: OnceCell<()>,
}

impl Torrent {
    /// What the torrent is.
    pub fn metainfo(&self) -> &Metainfo {
        &self.metainfo
    }

    /// Which of its pieces are here.
    pub fn store(&self) -> &TorrentStore {
        &self.store
    }

    /// Rates and counts, renewed about once a second.
    pub fn stats(&self) -> Stats {
        self.stats.borrow().clone()
    }

    /// The same, as it changes: once a second, and at the moment when the last piece has come.
    pub fn watch(&self) -> watch::Receiver<Stats> {
        self.stats.clone()
    }

    /// How its reads were answered.
    pub fn reads(&self) -> ReadCounts {
        self.reads.counts()
    }

    /// Every tracker's last word.
    pub fn trackers(&self) -> Vec<TrackerStatus> {
        self.announcer.status()
    }

    /// Opens a file for reading; `None` if the index is not one of this torrent's.
    pub fn open(self: &Arc<Self>, file: FileIndex) -> Option<Reader> {
        let bytes = self.metainfo.layout.file(file)?.range();
        Some(Reader::new(self.clone(), ReaderId(self.next_id()), bytes))
    }

    /// Ends the torrent's task and waits until its state is saved and its trackers are told (2 s at most).
    pub async fn stop(&self) {
        if !self.stopping.swap(true, Ordering::Relaxed) {
            let _ = self.commands.send(Command::Stop).await;
        }
        self.commands.closed().await;
    }

    pub(super) fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// Sends a command that must not be lost, from a thread that must not wait.
    pub(super) fn tell(&self, command: Command) {
        if let Err(mpsc::error::TrySendError::Full(command)) = self.commands.try_send(command) {
            let commands = self.commands.clone();
            self.runtime.spawn(async move {
                let _ = commands.send(command).await;
            });
        }
    }

    /// Sends what may be lost when the task is busy. Whether it was taken.
    pub(super) fn hint(&self, event: Event) -> bool {
        self.commands.try_send(Command::Swarm(event)).is_ok()
    }
}
