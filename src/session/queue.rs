//! Which torrents download in the background: a limited number at a time, so that they complete one after another.
//!
//! Those with files of high priority come first, then the oldest. Only background fetching takes turns: what readers
//! need is fetched at once, and what is here is served. A torrent has no turn while there is nothing for it to fetch:
//! it is complete, paused, on demand, or the cache is full.
//!
//! A torrent whose turn brings nothing does not hold up the others: it goes on, but no longer counts, until a block
//! arrives.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;

use crate::swarm::BackgroundNeed;
use crate::util::lock;

/// Number of torrents that download in the background at a time, if the user does not say: as many as Transmission's.
pub const ACTIVE_DOWNLOADS: usize = 5;
/// How long a torrent in its turn may be without a connection before it no longer counts: finding and dialing peers
/// takes a few seconds.
const UNCONNECTED: Duration = Duration::from_secs(15);
/// How long a torrent with peers may receive nothing before it no longer counts: choked peers get a chance every 30 s.
const UNSERVED: Duration = Duration::from_secs(60);

/// The torrents of a session that want to download in the background.
#[derive(Debug)]
pub(super) struct Queue(Mutex<Places>);

#[derive(Debug)]
struct Places {
    /// Maximum number of torrents that count; `None`: all have their turn.
    limit: Option<usize>,
    /// Number of torrents that ever had a place.
    count: u64,
    entries: HashMap<u64, Entry>,
    /// The torrents that need something, those first that come first.
    order: BTreeSet<Rank>,
    /// The torrents that have their turn.
    turns: BTreeSet<u64>,
}

/// Order in the queue. Of torrents added at the same time, the one with the lower number comes first.
type Rank = (Reverse<BackgroundNeed>, SystemTime, u64);

#[derive(Debug)]
struct Entry {
    since: SystemTime,
    need: BackgroundNeed,
    /// It has its turn, but does not count.
    stalled: bool,
    turn: watch::Sender<bool>,
}

impl Queue {
    /// Returns an empty queue, in which `limit` torrents have their turn at a time.
    pub(super) fn new(limit: Option<usize>) -> Self {
        Self(Mutex::new(Places {
            limit,
            count: 0,
            entries: HashMap::new(),
            order: BTreeSet::new(),
            turns: BTreeSet::new(),
        }))
    }

    /// Returns the number of torrents that may have their turn at a time.
    pub(super) fn limit(&self) -> Option<usize> {
        lock(&self.0).limit
    }

    /// Changes the number of torrents that may have their turn at a time.
    pub(super) fn set_limit(&self, limit: Option<usize>) {
        let mut places = lock(&self.0);
        places.limit = limit;
        places.assign();
    }

    /// Adds a torrent that was added at `since`.
    pub(super) fn enter(self: &Arc<Self>, since: SystemTime) -> Place {
        let mut places = lock(&self.0);
        let id = places.count;
        places.count += 1;
        let (sender, turn) = watch::channel(false);
        places.entries.insert(id, Entry { since, need: BackgroundNeed::Nothing, stalled: false, turn: sender });
        Place {
            queue: self.clone(),
            id,
            turn,
            need: BackgroundNeed::Nothing,
            stalled: false,
            received: 0,
            progress: Instant::now(),
        }
    }
}

impl Places {
    /// Records the state of a torrent, and gives the turns anew.
    fn set(&mut self, id: u64, need: BackgroundNeed, stalled: bool) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        self.order.remove(&(Reverse(entry.need), entry.since, id));
        (entry.need, entry.stalled) = (need, stalled);
        if need > BackgroundNeed::Nothing {
            self.order.insert((Reverse(need), entry.since, id));
        }
        match self.limit {
            Some(_) => self.assign(),
            None => self.give(id, need > BackgroundNeed::Nothing),
        }
    }

    /// Gives a torrent its turn, or takes it back.
    fn give(&mut self, id: u64, turn: bool) {
        let changed = if turn { self.turns.insert(id) } else { self.turns.remove(&id) };
        if let Some(entry) = self.entries.get(&id).filter(|_| changed) {
            entry.turn.send_replace(turn);
        }
    }

    /// Gives the turns to those that come first. Looks only at torrents that have or get one.
    fn assign(&mut self) {
        let mut free = self.limit.unwrap_or(usize::MAX);
        let mut turns = BTreeSet::new();
        for (_, _, id) in &self.order {
            if free == 0 {
                break;
            }
            let stalled = self.entries.get(id).is_some_and(|entry| entry.stalled);
            free -= usize::from(!stalled);
            turns.insert(*id);
        }
        let goes_on =
            |id: &&u64| self.entries.get(id).is_some_and(|entry| entry.stalled && entry.need > BackgroundNeed::Nothing);
        turns.extend(self.turns.iter().filter(goes_on));
        let changed: Vec<u64> = turns.symmetric_difference(&self.turns).copied().collect();
        changed.into_iter().for_each(|id| self.give(id, turns.contains(&id)));
    }
}

/// A torrent at one moment, as far as its place in the queue depends on it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Activity {
    pub(super) need: BackgroundNeed,
    /// Wanted bytes received so far.
    pub(super) received: u64,
    pub(super) peers: usize,
    /// Background fetching is suspended for the reader of another torrent.
    pub(super) held_back: bool,
}

/// The place of one torrent, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    queue: Arc<Queue>,
    id: u64,
    turn: watch::Receiver<bool>,
    need: BackgroundNeed,
    stalled: bool,
    received: u64,
    /// When the last block arrived, or the turn began.
    progress: Instant,
}

impl Place {
    /// Records the state of the torrent. Returns whether it has its turn.
    pub(super) fn update(&mut self, now: Instant, activity: Activity) -> bool {
        let Activity { need, received, peers, held_back } = activity;
        let turn = *self.turn.borrow_and_update();
        let moved = std::mem::replace(&mut self.received, received) != received;
        let mut stalled = self.stalled && turn && !moved && need > BackgroundNeed::Nothing;
        if moved || !turn || held_back || need == BackgroundNeed::Nothing {
            self.progress = now;
        } else {
            let limit = if peers == 0 { UNCONNECTED } else { UNSERVED };
            stalled |= now.saturating_duration_since(self.progress) >= limit;
        }
        if (need, stalled) == (self.need, self.stalled) {
            return turn;
        }
        (self.need, self.stalled) = (need, stalled);
        lock(&self.queue.0).set(self.id, need, stalled);
        *self.turn.borrow_and_update()
    }

    /// Returns whether the torrent has something to fetch and waits for its turn.
    pub(super) fn waits(&self) -> bool {
        self.need > BackgroundNeed::Nothing && !*self.turn.borrow()
    }

    /// Returns whether the torrent has its turn and is not known to have stalled, so that it has to be watched.
    pub(super) fn counts(&self) -> bool {
        *self.turn.borrow() && !self.stalled
    }

    /// Waits until the turn has changed since the last update.
    pub(super) async fn changed(&mut self) {
        if self.turn.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut places = lock(&self.queue.0);
        places.set(self.id, BackgroundNeed::Nothing, false);
        places.entries.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use BackgroundNeed::{High, Normal, Nothing};

    /// Torrents in virtual time.
    struct Lab {
        queue: Arc<Queue>,
        now: Instant,
        torrents: Vec<(Place, Activity)>,
    }

    impl Lab {
        /// Returns torrents of these ages in minutes, all with peers and something to fetch.
        fn new(limit: usize, ages: &[u64]) -> Self {
            let queue = Arc::new(Queue::new(Some(limit)));
            let activity = Activity { need: Normal, received: 0, peers: 1, held_back: false };
            let at = |minutes: &u64| SystemTime::UNIX_EPOCH + Duration::from_secs(60 * (1000 - minutes));
            let torrents = ages.iter().map(|age| (queue.enter(at(age)), activity)).collect();
            let mut lab = Self { queue, now: Instant::now(), torrents };
            lab.turns();
            lab
        }

        /// Returns the torrents that have their turn.
        fn turns(&mut self) -> Vec<usize> {
            // Twice, because an update of one changes the turns of others.
            for _ in 0..2 {
                for (place, activity) in &mut self.torrents {
                    place.update(self.now, *activity);
                }
            }
            let turns = self.torrents.iter().enumerate().filter(|(_, (place, _))| *place.turn.borrow());
            turns.map(|(torrent, _)| torrent).collect()
        }

        /// Lets time pass, in which these torrents receive blocks if it is their turn.
        fn run(&mut self, seconds: u64, fed: &[usize]) -> Vec<usize> {
            for _ in 0..seconds {
                self.now += Duration::from_secs(1);
                for torrent in fed {
                    let (place, activity) = &mut self.torrents[*torrent];
                    activity.received += u64::from(*place.turn.borrow());
                }
                self.turns();
            }
            self.turns()
        }
    }

    #[test]
    fn a_library_completes_one_after_another_the_oldest_first() {
        // Of equal ones the first is the older one.
        let mut lab = Lab::new(2, &[1, 5, 3, 4, 2, 5]);
        let all: Vec<usize> = (0..6).collect();
        for (turns, completes) in [([1, 5], 1), ([3, 5], 5), ([2, 3], 3), ([2, 4], 2), ([0, 4], 4)] {
            assert_eq!(lab.run(90, &all), turns);
            lab.torrents[completes].1.need = Nothing;
        }
        assert_eq!(lab.run(1, &all), [0]);
    }

    #[test]
    fn only_torrents_that_want_something_take_a_turn() {
        let mut lab = Lab::new(2, &[4, 3, 2, 1]);
        assert_eq!(lab.turns(), [0, 1]);
        // The user pauses one, or switches it to on demand; later it goes on, and its successor waits again.
        lab.torrents[0].1.need = Nothing;
        assert_eq!(lab.turns(), [1, 2]);
        lab.torrents[0].1.need = Normal;
        assert_eq!(lab.turns(), [0, 1]);
        lab.torrents[3].1.need = High;
        assert_eq!(lab.turns(), [0, 3], "high priority comes before age");
        lab.torrents.remove(0);
        assert_eq!(lab.turns(), [0, 2]);
        lab.queue.set_limit(Some(1));
        assert_eq!(lab.turns(), [2]);
        lab.queue.set_limit(None);
        assert_eq!((lab.turns(), lab.queue.limit()), (vec![0, 1, 2], None));
    }

    #[test]
    fn a_torrent_that_receives_nothing_does_not_hold_up_the_others() {
        let mut lab = Lab::new(2, &[4, 3, 2, 1]);
        lab.torrents[0].1.peers = 0;
        assert_eq!(lab.run(14, &[1]), [0, 1]);
        assert_eq!(lab.run(1, &[1]), [0, 1, 2], "the first one has no peers, and the third one starts beside it");
        lab.torrents[0].1.peers = 1;
        assert_eq!(lab.run(10, &[1, 2]), [0, 1, 2], "it has found a peer, but no block came");
        assert_eq!(lab.run(1, &[0, 1, 2]), [0, 1], "now it goes on");
        // The peers of the second one do not serve it, nor those of the third one.
        assert_eq!(lab.run(58, &[0]), [0, 1]);
        assert_eq!(lab.run(2, &[0]), [0, 1, 2]);
        assert_eq!(lab.run(60, &[0]), [0, 1, 2, 3]);
        // Each starts anew when it has its turn again.
        lab.torrents[1].1.need = Nothing;
        assert_eq!(lab.run(1, &[0]), [0, 2, 3]);
        lab.torrents[1].1.need = Normal;
        assert_eq!(lab.run(1, &[0]), [0, 1, 2]);
    }

    #[test]
    fn waiting_for_a_reader_of_another_torrent_is_no_stall() {
        let mut lab = Lab::new(1, &[2, 1]);
        lab.torrents.iter_mut().for_each(|(_, activity)| activity.held_back = true);
        assert_eq!(lab.run(600, &[]), [0]);
        lab.torrents.iter_mut().for_each(|(_, activity)| activity.held_back = false);
        assert_eq!(lab.run(59, &[]), [0]);
        assert_eq!(lab.run(1, &[]), [0, 1]);
    }
}
