//! What is done now and then: the silent forgotten, the lists followed, the state saved.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::{MissedTickBehavior, interval};

use super::StartError;
use super::allow::{Allow, AllowError};
use super::service::Service;
use super::state::{self, Saved, StateError};
use super::table::PARTS;

/// Everything below happens at a multiple of it.
const TICK: Duration = Duration::from_secs(1);
/// How often the directory of torrents is looked at, in ticks.
const LOOK: u64 = 5;
/// How often the state is saved, in ticks: what a power cut costs is soon announced again.
const SAVE: u64 = 300;

pub(super) struct House {
    pub service: Arc<Service>,
    allow: Mutex<Allow>,
    /// Held while it is written.
    state: Mutex<Option<PathBuf>>,
}

impl House {
    pub fn new(service: Arc<Service>, list: Option<PathBuf>, dir: Option<PathBuf>, state: Option<PathBuf>) -> Self {
        Self { service, allow: Mutex::new(Allow::new(list, dir)), state: Mutex::new(state) }
    }

    /// Reads the lists and what was saved. May wait for the disk, as all here but [`House::keep`].
    pub fn open(&self) -> Result<(), StartError> {
        self.reload()?;
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(path) = state.as_ref() else { return Ok(()) };
        let failed = |why: &dyn std::fmt::Display| StartError::State { path: path.clone(), why: why.to_string() };
        let mut full = false;
        match state::load(path, |written, torrent| full = full || !self.restore(written, &torrent)) {
            Ok(false) => {
                // Better now than at the end.
                state::save(path, &self.service.table, self.service.now(), unix()).map_err(|error| failed(&error))?;
            }
            Ok(true) => {
                let counts = self.service.table.counts();
                let peers = counts.seeders + counts.leechers;
                tracing::info!("from {}: torrents {}, peers {peers}", path.display(), counts.torrents);
            }
            Err(StateError::Damaged) => {
                let aside = state::set_aside(path).map_err(|error| failed(&error))?;
                tracing::warn!(
                    "the state file {} is damaged, the tracker begins anew; it is kept as {}",
                    path.display(),
                    aside.display()
                );
            }
            Err(error) => return Err(failed(&error)),
        }
        Ok(())
    }

    /// False: there is no room for more.
    fn restore(&self, written: u64, torrent: &Saved) -> bool {
        let service = &self.service;
        let (now, silence) = (service.now(), service.limits.silence());
        // A clock that was set back makes nobody older.
        let since = u32::try_from(unix().saturating_sub(written)).unwrap_or(u32::MAX);
        let there = torrent.peers.iter().map(|&(addr, seed, age)| (addr, seed, age.saturating_add(since)));
        let mut there = there.filter(|(.., age)| *age <= silence).peekable();
        if !service.is_allowed(&torrent.info_hash) || (torrent.completed == 0 && there.peek().is_none()) {
            return true;
        }
        let room = service.table.restore(torrent.info_hash, torrent.completed);
        if room {
            there.for_each(|(addr, seed, age)| {
                service.table.restore_peer(&torrent.info_hash, addr, seed, now.saturating_sub(age));
            });
        }
        room
    }

    /// Reads the lists again; on an error the old ones stay in force. How many torrents are served, unless all are.
    pub fn reload(&self) -> Result<Option<usize>, AllowError> {
        let mut allow = self.allow.lock().unwrap_or_else(PoisonError::into_inner);
        if allow.is_all() {
            return Ok(None);
        }
        let hashes = allow.read()?;
        let count = hashes.len();
        self.service.allow(hashes);
        tracing::info!("torrents served: {count}");
        Ok(Some(count))
    }

    fn look(&self) {
        let changed = self.allow.lock().unwrap_or_else(PoisonError::into_inner).look();
        let reloaded = match changed {
            Ok(true) => self.reload().map(drop),
            Ok(false) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = reloaded {
            tracing::warn!("{error}; the torrents served stay the same");
        }
    }

    /// Saves the state, if it is kept.
    pub fn save(&self) -> io::Result<()> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(path) = state.as_ref() else { return Ok(()) };
        state::save(path, &self.service.table, self.service.now(), unix()).map_err(|error| {
            io::Error::new(error.kind(), format!("cannot save the state to {}: {error}", path.display()))
        })
    }

    /// Keeps house until it is dropped.
    pub async fn keep(self: Arc<Self>) {
        // The whole table a few times an interval, and then some of it each second.
        let round = (self.service.limits.interval.as_secs() / 4).clamp(1, 300);
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await;
        for tick in 1u64.. {
            ticks.tick().await;
            let house = self.clone();
            // Ends, for every part of it does; fails only with the runtime.
            let _ = tokio::task::spawn_blocking(move || {
                let due = |tick: u64| tick * PARTS as u64 / round;
                for nth in due(tick - 1)..due(tick) {
                    house.service.table.sweep((nth % PARTS as u64) as usize, house.service.now());
                }
                if tick.is_multiple_of(LOOK) {
                    house.look();
                }
                if tick.is_multiple_of(SAVE)
                    && let Err(error) = house.save()
                {
                    tracing::warn!("{error}");
                }
            })
            .await;
        }
    }
}

fn unix() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
