//! Periodic work: forgetting silent peers, rescanning the lists of served torrents, saving the state.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::{MissedTickBehavior, interval};

use super::allow::{AllowError, AllowList};
use super::error::StartError;
use super::service::Service;
use super::shards::SHARDS;
use super::state::{self, SavedTorrent, StateError};
use crate::util::lock;

/// Unit of all intervals below. Short, so that each sweep covers few shards.
const TICK: Duration = Duration::from_secs(1);
/// Interval between scans of the directory of torrents, in ticks.
const RESCAN_TICKS: u64 = 5;
/// Interval between saves of the state, in ticks. After a power cut, peers announce what is lost within an interval anyway.
const SAVE_TICKS: u64 = 300;

/// Owns the list of served torrents and the state file. Its methods may wait for the disk, except [`Maintenance::run`].
pub(super) struct Maintenance {
    pub service: Arc<Service>,
    allow: Mutex<AllowList>,
    /// Path of the state file. Locked while the file is written.
    state: Mutex<Option<PathBuf>>,
}

impl Maintenance {
    pub fn new(service: Arc<Service>, list: Option<PathBuf>, dir: Option<PathBuf>, state: Option<PathBuf>) -> Self {
        Self { service, allow: Mutex::new(AllowList::new(list, dir)), state: Mutex::new(state) }
    }

    /// Reads the lists of served torrents and the state file.
    pub fn load(&self) -> Result<(), StartError> {
        self.reload()?;
        let state = lock(&self.state);
        let Some(path) = state.as_ref() else { return Ok(()) };
        let failed = |why: &dyn std::fmt::Display| StartError::State { path: path.clone(), why: why.to_string() };
        let mut full = false;
        match state::load(path, |saved_at, torrent| full = full || !self.restore(saved_at, &torrent)) {
            Ok(false) => {
                // A path that cannot be written must fail now, not at the end.
                state::save(path, &self.service.table, self.service.now(), unix()).map_err(|error| failed(&error))?;
            }
            Ok(true) => {
                let counts = self.service.table.counts();
                let peers = counts.seeders + counts.leechers;
                tracing::info!("restored from {}: torrents {}, peers {peers}", path.display(), counts.torrents);
            }
            Err(StateError::Damaged) => {
                let aside = state::set_aside(path).map_err(|error| failed(&error))?;
                tracing::warn!(
                    "the state file {} is damaged; moved it to {} and started without state",
                    path.display(),
                    aside.display()
                );
            }
            Err(error) => return Err(failed(&error)),
        }
        Ok(())
    }

    /// Restores a saved torrent. Returns false if the table is full.
    fn restore(&self, saved_at: u64, torrent: &SavedTorrent) -> bool {
        let service = &self.service;
        let (now, timeout) = (service.now(), service.limits.peer_timeout());
        // If the clock was set back since, the peers keep their age.
        let since = u32::try_from(unix().saturating_sub(saved_at)).unwrap_or(u32::MAX);
        let peers = torrent.peers.iter().map(|&(addr, seed, age)| (addr, seed, age.saturating_add(since)));
        let mut peers = peers.filter(|(.., age)| *age <= timeout).peekable();
        if !service.is_allowed(&torrent.info_hash) || (torrent.completed == 0 && peers.peek().is_none()) {
            return true;
        }
        let restored = service.table.restore(torrent.info_hash, torrent.completed);
        if restored {
            peers.for_each(|(addr, seed, age)| {
                service.table.restore_peer(&torrent.info_hash, addr, seed, now.saturating_sub(age));
            });
        }
        restored
    }

    /// Reads the lists again and returns the number of served torrents, or `None` if every torrent is served. After an
    /// error the previous lists stay in force.
    pub fn reload(&self) -> Result<Option<usize>, AllowError> {
        let mut allow = lock(&self.allow);
        if allow.allows_all() {
            return Ok(None);
        }
        let hashes = allow.read()?;
        let count = hashes.len();
        self.service.allow(hashes);
        tracing::info!("listed torrents: {count}");
        Ok(Some(count))
    }

    /// Reads the lists again if the directory has changed.
    fn rescan(&self) {
        let changed = lock(&self.allow).rescan();
        let reloaded = match changed {
            Ok(true) => self.reload().map(drop),
            Ok(false) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = reloaded {
            tracing::warn!("{error}; the served torrents stay the same");
        }
    }

    /// Saves the state, if a state file is configured.
    pub fn save(&self) -> io::Result<()> {
        let state = lock(&self.state);
        let Some(path) = state.as_ref() else { return Ok(()) };
        state::save(path, &self.service.table, self.service.now(), unix()).map_err(|error| {
            io::Error::new(error.kind(), format!("cannot save the state to {}: {error}", path.display()))
        })
    }

    /// Runs the periodic work. Does not return; the caller aborts it.
    pub async fn run(self: Arc<Self>) {
        // Sweeps the whole table four times per announce interval, at least every five minutes, a few shards per tick.
        let sweep_ticks = (self.service.limits.interval.as_secs() / 4).clamp(1, 300);
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await;
        for tick in 1u64.. {
            ticks.tick().await;
            let this = self.clone();
            // An error means that the runtime shuts down.
            let _ = tokio::task::spawn_blocking(move || {
                let due = |tick: u64| tick * SHARDS as u64 / sweep_ticks;
                for nth in due(tick - 1)..due(tick) {
                    this.service.table.sweep((nth % SHARDS as u64) as usize, this.service.now());
                }
                if tick.is_multiple_of(RESCAN_TICKS) {
                    this.rescan();
                }
                if tick.is_multiple_of(SAVE_TICKS)
                    && let Err(error) = this.save()
                {
                    tracing::warn!("{error}");
                }
            })
            .await;
        }
    }
}

/// Returns the current time in seconds since the Unix epoch.
fn unix() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
