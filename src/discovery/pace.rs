//! Pacing: spreads the announces of many torrents over time.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::util::{align_to_tick, lock};

/// Time between the announces of two torrents: ten a second spare a tracker that many torrents share.
const SPACING: Duration = Duration::from_millis(100);
/// Announces that may start at once after a pause, so that a small session never waits.
const BURST: u32 = 20;
/// Concurrent `stopped` announces. Higher than for others, because shutdown leaves two seconds for all of them.
const MAX_STOPPING: usize = 100;

/// Assigns announce slots to all torrents of a session.
#[derive(Debug)]
pub(super) struct Pacer {
    /// Start of the next free slot, before it is aligned to a tick.
    next: Mutex<Option<Instant>>,
    /// Start of the tick grid.
    begin: Instant,
    stopping: Semaphore,
}

impl Default for Pacer {
    fn default() -> Self {
        Self { next: Mutex::default(), begin: Instant::now(), stopping: Semaphore::new(MAX_STOPPING) }
    }
}

impl Pacer {
    /// Reserves a slot for a torrent that has something to announce and returns its time: `now` or later. A torrent
    /// that cannot wait may ignore it.
    pub(super) fn reserve(&self, now: Instant) -> Instant {
        let mut next = lock(&self.next);
        let earliest = now.checked_sub(SPACING * (BURST - 1)).unwrap_or(now);
        let slot = next.map_or(earliest, |next| next.max(earliest));
        *next = Some(slot + SPACING);
        if slot <= now { now } else { align_to_tick(self.begin, slot) }
    }

    /// Waits for a permit to send a `stopped` announce.
    pub(super) async fn stop_permit(&self) -> Option<SemaphorePermit<'_>> {
        // The semaphore is never closed.
        self.stopping.acquire().await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::util::TICK;

    #[test]
    fn a_burst_starts_at_once_and_the_rest_is_spaced() {
        let pacer = Pacer::default();
        // Between two ticks.
        let now = pacer.begin + Duration::from_millis(3_600_250);
        let waits = |now: Instant, count: usize| -> Vec<Duration> {
            (0..count).map(|_| pacer.reserve(now).saturating_duration_since(now)).collect()
        };
        let first = waits(now, 1000);
        assert!(first[..BURST as usize].iter().all(Duration::is_zero));
        let [first_tick, second_tick] = [750, 1750].map(Duration::from_millis);
        assert_eq!(first[BURST as usize..][..10], [[first_tick; 7].as_slice(), &[second_tick; 3]].concat());
        assert!(first.iter().zip(0..).all(|(wait, n)| *wait >= SPACING * (n + 1 - BURST.min(n + 1))), "none is early");
        assert!(first[999] < SPACING * (1000 - BURST) + TICK);
        // Long after, the unused time has not accumulated.
        let later = waits(now + Duration::from_secs(3600), 100);
        assert_eq!(later.iter().filter(|wait| wait.is_zero()).count(), BURST as usize);
    }
}
