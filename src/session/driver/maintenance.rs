//! Timers: the swarm's own, and once a second or less often statistics and limits.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Driver;
use crate::metainfo::Metainfo;
use crate::session::queue::Activity;
use crate::session::shares::{Allowed, Demand};
use crate::store::{MAX_KEPT_PEERS, TorrentStore};
use crate::swarm::{BackgroundNeed, Event};

/// Maintenance interval while there are peers or readers.
pub(super) const INTERVAL: Duration = Duration::from_secs(1);

/// Maximum maintenance interval while there are none; reached in steps, each four times as long as the one before.
const IDLE_INTERVAL: Duration = Duration::from_secs(5 * 60);

/// Time after the start at which the addresses of good peers are first kept, in case the process is killed.
pub(super) const FIRST_KEEPING: Duration = Duration::from_secs(20);

/// Time between two such times.
const KEEPING: Duration = Duration::from_secs(10 * 60);

/// With fewer peers than this, trackers are asked for more before their interval is over, as far as they allow.
const FEW_PEERS: usize = 10;

/// Returns the bytes that are missing if we have `have` pieces. Does not look at each: a torrent may have millions.
pub(super) fn bytes_left(store: &TorrentStore, metainfo: &Metainfo, have: u32) -> u64 {
    let lengths = metainfo.layout.lengths();
    let has_last = lengths.iter().next_back().is_some_and(|last| store.has(last));
    lengths.total().saturating_sub(lengths.bytes_of(have, has_last))
}

impl Driver {
    /// Does what is due at this time.
    pub(super) fn tick(&mut self) {
        let now = self.now();
        self.dispatch(Event::Tick);
        if now < self.maintenance_due {
            return;
        }
        if self.maintenance_interval != INTERVAL {
            // Nobody has needed a hash for a while.
            self.metainfo.info.release();
        }
        // The random part keeps a thousand idle torrents from waking all at once.
        self.maintenance_due = match self.maintenance_interval {
            INTERVAL => now + INTERVAL,
            interval => self.share.beat(now + interval.mul_f64(rand::random_range(0.75..1.25))),
        };
        self.maintenance_interval = (self.maintenance_interval * 4).min(IDLE_INTERVAL);
        self.update_allowed(now);
        self.update_transferred();
        self.update_room();
        self.update_serving(now);
        self.keep_peers(now);
        let peers = self.peers.values().filter(|peer| !self.web_seeds.contains_key(&peer.addr)).count();
        if peers < FEW_PEERS && !self.swarm.complete() && !self.swarm.is_paused() {
            self.want_peers();
        }
    }

    /// Returns the addresses at which the next start should find good peers.
    pub(super) fn good_peers(&self) -> Vec<SocketAddr> {
        if self.keep_peers_due.is_none() { Vec::new() } else { self.swarm.good_addresses(self.now(), MAX_KEPT_PEERS) }
    }

    /// Keeps these addresses now and then.
    fn keep_peers(&mut self, now: Instant) {
        if self.keep_peers_due.is_none_or(|due| now < due) {
            return;
        }
        let good = self.good_peers();
        if good.is_empty() {
            self.keep_peers_due = Some(now + FIRST_KEEPING);
            return;
        }
        self.keep_peers_due = Some(now + KEEPING);
        let store = self.store.clone();
        tokio::task::spawn_blocking(move || store.keep_peers(&good));
    }

    /// Publishes the statistics, and the totals for the next announce.
    pub(super) fn update_transferred(&mut self) {
        let stats = self.swarm.stats(self.now());
        self.transferred.uploaded.store(stats.uploaded, Ordering::Relaxed);
        self.transferred.downloaded.store(stats.downloaded, Ordering::Relaxed);
        if stats.have != self.stats.borrow().have {
            self.transferred.left.store(bytes_left(&self.store, &self.metainfo, stats.have), Ordering::Relaxed);
        }
        self.stats.send_replace(stats);
    }

    /// Starts or stops serving as the seeding limits say.
    fn update_serving(&mut self, now: Instant) {
        let (stats, size) = (self.stats.borrow().clone(), self.metainfo.layout.lengths().total());
        let change = self.seeding.update(now, self.swarm.complete(), stats.uploaded, stats.downloaded, size);
        if let Some(serve) = change.filter(|_| self.upload) {
            let what =
                if serve { "serving again: pieces are missing" } else { "serving ends: the seeding limit is reached" };
            tracing::info!(name = %self.metainfo.name, "{what}");
            self.dispatch(Event::Serve(serve));
        }
    }

    /// Begins or ends the torrent's turn in background fetching.
    pub(super) fn update_turn(&mut self) {
        let now = self.clock.now();
        let turn = self.place.update(
            now,
            Activity {
                need: if self.has_room { self.swarm.background_need() } else { BackgroundNeed::Nothing },
                read: self.swarm.is_read(now),
                received: self.swarm.downloaded(),
                peers: self.peers.len(),
                held_back: self.allowed.background == 0,
            },
        );
        if turn == self.swarm.is_queued() {
            self.dispatch(Event::Turn(turn));
            // Limits, and the search for peers.
            self.maintenance_due = now;
        }
    }

    /// Tells the other torrents how much this one uses, and keeps the short interval while there is anything to do.
    pub(super) fn update_share(&mut self) {
        let now = self.now();
        let (taken, partial, is_read) =
            (self.swarm.slots_taken(now), self.swarm.partial_bytes(), self.swarm.is_read(now));
        if is_read && !self.share.is_read() {
            // A new reader may have no peers to read from.
            self.maintenance_due = now;
        }
        self.hurried.send_if_modified(|hurried| std::mem::replace(hurried, is_read) != is_read);
        self.share.set(taken, partial, is_read, self.place.waits());
        let busy = self.swarm.connections() > 0 || is_read || self.checking > 0 || self.place.counts();
        if busy && self.maintenance_interval != INTERVAL {
            self.maintenance_interval = INTERVAL;
            self.maintenance_due = self.maintenance_due.min(now + INTERVAL);
        }
    }

    /// Tells the swarm how much the other torrents leave to it.
    pub(super) fn update_allowed(&mut self, now: Instant) {
        if self.swarm.is_blocked() && self.stats.borrow().down_rate > 0 {
            self.share.set_waiting(now);
        }
        let demand = Demand { starved: self.swarm.take_starved(), receives: self.stats.borrow().down_rate > 0 };
        let allowed = self.share.allowed(now, demand);
        if allowed != self.allowed || allowed.shed {
            let Allowed { peers, shed, partial, yielding, .. } = allowed;
            self.allowed = allowed;
            self.dispatch(Event::Share { peers, shed, max_partial: partial, yielding });
        }
    }

    /// Tells the swarm how much background fetching may add.
    pub(super) fn update_room(&mut self) {
        let (free, lengths) = (self.store.room(), self.metainfo.layout.lengths());
        self.has_room = free >= lengths.full_pieces(1).min(lengths.total());
        let room = free.min(self.allowed.background);
        // The swarm subtracts each piece that arrives, although the room may not have shrunk.
        if room != self.swarm.room() {
            self.dispatch(Event::Room(room));
        }
    }
}
