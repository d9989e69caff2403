//! A clock that stands still while the process is stopped (SIGSTOP, a debugger) or the machine is suspended.
//!
//! Limits for readers and peers run on this clock: whoever did not run could neither read nor answer. A heartbeat
//! looks at the clock every [`BEAT`]; if anybody finds that it is late, the process was stopped. The kernel's monotonic
//! clock leaves suspensions out already, so these only have to be noticed. Both are reported to the torrents, because
//! their connections may have died meanwhile.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::sys::time::since_boot;
use crate::util::lock;

/// Interval of the heartbeat.
const BEAT: Duration = Duration::from_secs(2);

/// Longest time between two looks at the clock of a process that runs, however busy the machine is.
const MAX_GAP: Duration = Duration::from_secs(5);

/// A wait that stands for one without an end: no process runs for thirty years.
const FOREVER: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// The clock of a session.
#[derive(Debug)]
pub(super) struct AwakeClock {
    state: Mutex<State>,
    /// The number of times that the process slept.
    sleeps: watch::Sender<u64>,
}

#[derive(Clone, Copy, Debug)]
struct State {
    /// When somebody last looked.
    seen: Instant,
    /// Time that was slept, as far as the monotonic clock counts it.
    slept: Duration,
    /// How far the monotonic clock is behind the time since boot.
    suspended: Duration,
    /// When the heartbeat started.
    begin: Instant,
    boot: Duration,
}

impl State {
    /// Looks at the clock. Returns whether the process was stopped since somebody last did.
    fn look(&mut self, real: Instant) -> bool {
        let gap = real.saturating_duration_since(self.seen);
        self.seen = self.seen.max(real);
        let stopped = gap > MAX_GAP;
        if stopped {
            self.slept += gap - BEAT;
        }
        stopped
    }

    /// Compares the two clocks. Returns whether the machine was suspended since the last call.
    fn compare(&mut self, real: Instant, since_boot: Duration) -> bool {
        let monotonic = real.saturating_duration_since(self.begin);
        let suspended = since_boot.saturating_sub(self.boot).saturating_sub(monotonic);
        let grown = suspended.saturating_sub(self.suspended) > MAX_GAP;
        if grown {
            self.suspended = suspended;
        }
        grown
    }
}

/// The heartbeat; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Heartbeat(JoinHandle<()>);

impl Drop for Heartbeat {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl AwakeClock {
    /// Starts the clock and its heartbeat on the current tokio runtime.
    pub(super) fn start() -> (Arc<Self>, Heartbeat) {
        let now = Instant::now();
        let state =
            State { seen: now, slept: Duration::ZERO, suspended: Duration::ZERO, begin: now, boot: since_boot() };
        let clock = Arc::new(Self { state: Mutex::new(state), sleeps: watch::Sender::new(0) });
        let beating = clock.clone();
        let heartbeat = tokio::spawn(async move {
            loop {
                tokio::time::sleep(BEAT).await;
                beating.beat();
            }
        });
        (clock, Heartbeat(heartbeat))
    }

    fn beat(&self) {
        let now = self.now();
        let real = self.real(now);
        if lock(&self.state).compare(real, since_boot()) {
            self.woke("the machine was suspended");
        }
    }

    fn woke(&self, why: &str) {
        tracing::info!("{why}; looking for connections that died meanwhile");
        self.sleeps.send_modify(|sleeps| *sleeps += 1);
    }

    /// Returns the time on this clock.
    pub(super) fn now(&self) -> Instant {
        let real = Instant::now();
        let mut state = lock(&self.state);
        let stopped = state.look(real);
        // The machine has not been up for less time than the process was stopped.
        let now = real.checked_sub(state.slept).unwrap_or(real);
        drop(state);
        if stopped {
            self.woke("the process was stopped");
        }
        now
    }

    /// Returns the time on this clock at which a wait from now on is over. No wait is too long.
    pub(super) fn after(&self, wait: Duration) -> Instant {
        self.now() + wait.min(FOREVER)
    }

    /// Converts a time on this clock to the one at which the process gets there if it does not sleep.
    pub(super) fn real(&self, awake: Instant) -> Instant {
        awake + lock(&self.state).slept
    }

    /// Waits until this clock shows `at`.
    pub(super) async fn sleep_until(&self, at: Instant) {
        while self.now() < at {
            tokio::time::sleep_until(self.real(at).into()).await;
        }
    }

    /// Returns a channel that changes each time the process has slept.
    pub(super) fn sleeps(&self) -> watch::Receiver<u64> {
        self.sleeps.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn state(now: Instant) -> State {
        State { seen: now, slept: Duration::ZERO, suspended: Duration::ZERO, begin: now, boot: 1000 * SECOND }
    }

    #[tokio::test]
    async fn no_wait_is_too_long() {
        let (clock, _heartbeat) = AwakeClock::start();
        let end = clock.after(Duration::MAX);
        assert!(end > clock.now() + 1000 * SECOND);
        assert!(tokio::time::timeout(SECOND / 10, clock.sleep_until(end)).await.is_err());
    }

    #[test]
    fn time_spent_stopped_does_not_count() {
        let start = Instant::now();
        let mut state = state(start);
        assert!((1..100).all(|n| !state.look(start + BEAT * n)));
        assert_eq!(state.slept, Duration::ZERO);
        assert!(state.look(start + BEAT * 99 + 200 * SECOND));
        assert!(!state.look(start + BEAT * 99 + 200 * SECOND), "noticed once");
        assert!(!state.look(start), "a thread that read the time before");
        assert_eq!(state.slept, 200 * SECOND - BEAT);
    }

    #[test]
    fn a_suspension_is_noticed_once() {
        let start = Instant::now();
        let mut state = state(start);
        assert!((0..100).all(|n| !state.compare(start + SECOND * n, (1000 + n) * SECOND)));
        assert!(state.compare(start + 100 * SECOND, (1100 + 3600) * SECOND));
        assert!(!state.compare(start + 102 * SECOND, (1102 + 3600) * SECOND));
        assert!(state.compare(start + 104 * SECOND, (1104 + 3700) * SECOND));
        assert!(!state.look(start + 104 * SECOND) || state.slept < 110 * SECOND);
    }
}
