//! Announces of many torrents, spread out.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::util::{align_to_tick, lock};

/// From one torrent's announce to the next one's; and how many may leave at once after a pause.
const GAP: Duration = Duration::from_millis(100);
const AT_ONCE: u32 = 20;
/// Farewells under way at a time: all of them have but two seconds.
const FAREWELLS: usize = 100;

/// When whose turn is, over all torrents of a session.
#[derive(Debug)]
pub(super) struct Pace {
    /// When the next turn is, or could have been, before it is brought to a beat.
    next: Mutex<Option<Instant>>,
    /// When the beats began.
    begin: Instant,
    farewells: Semaphore,
}

impl Default for Pace {
    fn default() -> Self {
        Self { next: Mutex::default(), begin: Instant::now(), farewells: Semaphore::new(FAREWELLS) }
    }
}

impl Pace {
    /// When a torrent that has something to announce may do so; `now` or later. Whoever cannot wait for it need not.
    pub(super) fn turn(&self, now: Instant) -> Instant {
        let mut next = lock(&self.next);
        let earliest = now.checked_sub(GAP * (AT_ONCE - 1)).unwrap_or(now);
        let turn = next.map_or(earliest, |next| next.max(earliest));
        *next = Some(turn + GAP);
        if turn <= now { now } else { align_to_tick(self.begin, turn) }
    }

    /// A place among those that take leave.
    pub(super) async fn farewell(&self) -> Option<SemaphorePermit<'_>> {
        // Never closed.
        self.farewells.acquire().await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::util::TICK;

    #[test]
    fn a_few_at_once_and_then_one_after_the_other() {
        let pace = Pace::default();
        // Between two beats.
        let now = pace.begin + Duration::from_millis(3_600_250);
        let waits = |now: Instant, count: usize| -> Vec<Duration> {
            (0..count).map(|_| pace.turn(now).saturating_duration_since(now)).collect()
        };
        let first = waits(now, 1000);
        assert!(first[..AT_ONCE as usize].iter().all(Duration::is_zero));
        let [first_beat, second_beat] = [750, 1750].map(Duration::from_millis);
        assert_eq!(first[AT_ONCE as usize..][..10], [[first_beat; 7].as_slice(), &[second_beat; 3]].concat());
        assert!(first.iter().zip(0..).all(|(wait, n)| *wait >= GAP * (n + 1 - AT_ONCE.min(n + 1))), "none is early");
        assert!(first[999] < GAP * (1000 - AT_ONCE) + TICK);
        // Long after, there is no debt and no more credit than at the start.
        let later = waits(now + Duration::from_secs(3600), 100);
        assert_eq!(later.iter().filter(|wait| wait.is_zero()).count(), AT_ONCE as usize);
    }
}
