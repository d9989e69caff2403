//! How many bytes may be outstanding at one peer: a window bounded in time, not in blocks.
//!
//! A request often cannot be taken back (its block is in the peer's send buffer already), so a seek waits behind what
//! was requested before it. The bytes outstanding are therefore held at `rate × (base latency + allowed queue)`.
//!
//! - The *rate* is the delivery rate while the pipeline is busy, averaged over [`Policy::rate_span`]: peers send in
//!   bursts, and time with nothing outstanding says nothing about them.
//! - The *base latency* is measured only by requests sent into an (almost) empty pipeline. Any other delay contains our
//!   own queue, and a window computed from it would feed on itself. The measurement expires and is then repeated by a
//!   *probe*: the pipeline runs empty and one block is requested alone, which costs two round trips. Alone, because some
//!   peers send nothing before they may send everything that they were asked for.
//! - A rate measured through a window that is too small is too small itself. So the window does not follow the rate
//!   alone: as long as blocks come back within half of the allowed queue, it is larger by [`Policy::rate_headroom`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::metainfo::BLOCK_LEN;
use crate::swarm::policy::{Need, Phase, Policy};

const BLOCK: f64 = BLOCK_LEN as f64;

/// One peer's request window, and what is known about its rate and latency.
#[derive(Clone, Debug)]
pub(in crate::swarm) struct Pipeline {
    policy: Arc<Policy>,
    /// Bytes requested and not yet received.
    outstanding: u64,
    /// The last refill stopped at the window, not for lack of work.
    limited: bool,
    /// The last block came so soon that the window may be too small for the peer's real rate.
    growing: bool,
    /// A block came.
    known: bool,
    /// Decayed bytes received, and the decayed seconds in which they came.
    bytes: f64,
    seconds: f64,
    /// The time up to which `seconds` has counted.
    clock: Instant,
    /// Lowest base latency in this and in the previous period, in seconds.
    base: Option<f64>,
    base_before: Option<f64>,
    /// When the base latency expires.
    probe_at: Instant,
    /// The one outstanding block is a probe.
    probing: bool,
    /// The peer stopped answering: only one block may be outstanding.
    pub(in crate::swarm) snubbed: bool,
}

impl Pipeline {
    pub(in crate::swarm) fn new(now: Instant, policy: Arc<Policy>) -> Self {
        Self {
            outstanding: 0,
            limited: false,
            growing: true,
            known: false,
            bytes: 0.0,
            seconds: 0.0,
            clock: now,
            base: None,
            base_before: None,
            probe_at: now,
            probing: false,
            snubbed: false,
            policy,
        }
    }

    /// Returns the tuning that this peer is scheduled by.
    pub(in crate::swarm) fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Returns the bytes requested and not yet received.
    pub(in crate::swarm) fn outstanding(&self) -> u64 {
        self.outstanding
    }

    /// Returns the seconds from request to block in an empty pipeline.
    fn base(&self) -> f64 {
        match (self.base, self.base_before) {
            (Some(a), Some(b)) => a.min(b),
            (Some(a), None) | (None, Some(a)) => a,
            (None, None) => self.policy.unknown_latency.as_secs_f64(),
        }
    }

    /// Returns the time from request to block in an empty pipeline.
    pub(in crate::swarm) fn latency(&self) -> Duration {
        Duration::from_secs_f64(self.base().min(10.0))
    }

    /// Returns the bytes a second that the peer delivers when asked.
    pub(in crate::swarm) fn rate(&self) -> f64 {
        if self.bytes > 0.0 {
            self.bytes / self.seconds.max(self.policy.min_rate_span.as_secs_f64())
        } else {
            self.policy.unknown_rate as f64
        }
    }

    /// Returns whether at least one block came.
    pub(in crate::swarm) fn rate_is_known(&self) -> bool {
        self.known
    }

    /// Returns the seconds that `bytes` would take if they were requested now and nothing else were outstanding.
    pub(in crate::swarm) fn eta(&self, bytes: f64) -> f64 {
        self.base() + bytes / self.rate().max(1.0)
    }

    /// Returns the bytes that may be requested now for a need: the one path from an allowance to bytes.
    pub(in crate::swarm) fn room(&self, now: Instant, need: Need, phase: Phase) -> f64 {
        self.target(now, need, phase) - self.outstanding as f64
    }

    /// Returns the bytes that may be outstanding once a need is served.
    fn target(&self, now: Instant, need: Need, phase: Phase) -> f64 {
        let Some(queue) = self.policy.queue_allowance(need, phase) else { return 0.0 };
        // Less than a block, so that one may be outstanding. Due blocks do not wait for a probe.
        let one = 1.0;
        if self.snubbed || !need.is_due() && (self.probing || self.is_stale(now)) {
            return one;
        }
        if !self.known {
            return self.policy.first_window as f64;
        }
        let headroom = if self.growing && !queue.is_zero() { self.policy.rate_headroom } else { 1.0 };
        (headroom * self.rate() * (self.base() + queue.as_secs_f64())).max(one)
    }

    /// Returns whether enough of the window has run empty for the next batch of requests.
    pub(in crate::swarm) fn wants_refill(&self, now: Instant, phase: Phase) -> bool {
        let alone = self.probing || self.is_stale(now);
        let level = if alone { 0.0 } else { self.policy.refill_level * self.target(now, Need::Soon, phase) };
        self.outstanding as f64 <= level
    }

    /// Returns whether the base latency has expired.
    fn is_stale(&self, now: Instant) -> bool {
        self.base.is_some() && now >= self.probe_at
    }

    /// Ends a probe: its block is no longer alone.
    fn spoil_probe(&mut self, now: Instant) {
        if std::mem::take(&mut self.probing) {
            self.probe_at = now + self.policy.repeat_probe_after();
        }
    }

    /// Records that a refill ended, at the window (`limited`) or for lack of work.
    pub(in crate::swarm) fn refilled(&mut self, limited: bool) {
        self.limited = limited;
    }

    /// Records a request. Returns whether its delay will measure the base latency. `clean`: no block that was cancelled
    /// can still be on its way.
    pub(in crate::swarm) fn requested(&mut self, now: Instant, bytes: u32, clean: bool) -> bool {
        let empty = self.outstanding <= u64::from(BLOCK_LEN);
        self.spoil_probe(now);
        if self.outstanding == 0 {
            if self.is_stale(now) {
                self.probing = clean;
                self.probe_at = now + self.policy.repeat_probe_after();
            }
            // No block can be here before the base latency has passed: that time does not count for the rate.
            self.clock = now + Duration::from_secs_f64(self.base().min(10.0));
        }
        self.outstanding += u64::from(bytes);
        empty && clean
    }

    /// Records a block whose request had been cancelled too late. It says as much about the rate as any other.
    pub(in crate::swarm) fn strayed(&mut self, now: Instant, bytes: u32) {
        self.count(now, bytes, true);
        self.snubbed = false;
    }

    /// Records that a request is void: cancelled, rejected or choked away.
    pub(in crate::swarm) fn dropped(&mut self, now: Instant, bytes: u32) {
        self.outstanding -= u64::from(bytes);
        self.spoil_probe(now);
    }

    /// Records a block that came `delay` after its request. `fresh`: the request went into an empty pipeline.
    pub(in crate::swarm) fn arrived(&mut self, now: Instant, bytes: u32, delay: Duration, fresh: bool, phase: Phase) {
        let busy = self.limited || self.outstanding as f64 >= 4.0 * BLOCK;
        self.outstanding -= u64::from(bytes);
        self.snubbed = false;
        self.known = true;
        self.count(now, bytes, busy);
        let delay = delay.as_secs_f64();
        self.measure_base(now, delay, fresh);
        let queue = self.policy.queue_allowance(Need::Soon, phase).unwrap_or_default().as_secs_f64();
        self.growing = delay < self.base() + 0.5 * queue;
    }

    /// Counts a block for the rate. A trickle (not `busy`) is our rate, not the peer's; it may only raise the estimate.
    fn count(&mut self, now: Instant, bytes: u32, busy: bool) {
        if busy || self.bytes == 0.0 {
            let passed = now.saturating_duration_since(self.clock).as_secs_f64();
            if passed > 0.0 {
                let span = self.policy.rate_span.as_secs_f64();
                let keep = (-passed / span).exp();
                self.bytes *= keep;
                self.seconds = self.seconds * keep + span * (1.0 - keep);
            }
            self.bytes += f64::from(bytes);
        }
        self.clock = self.clock.max(now);
    }

    fn measure_base(&mut self, now: Instant, delay: f64, fresh: bool) {
        let valid = now + self.policy.base_validity(delay);
        if std::mem::take(&mut self.probing) {
            self.base_before = self.base.replace(delay).or(self.base_before);
            self.probe_at = valid;
        } else if fresh {
            if self.base.is_none() {
                self.probe_at = valid;
            }
            self.base = Some(self.base.map_or(delay, |base| base.min(delay)));
        }
    }

    /// Records that nothing came for long: the peer starts over with one block.
    pub(in crate::swarm) fn snub(&mut self) {
        self.snubbed = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    const NEED: Need = Need::Soon;
    const PHASE: Phase = Phase::Reading;

    /// Simulates a peer that serves `rate` bytes a second, granted every `tick`, at a round trip of `latency`; with `by_lot`
    /// it sends nothing before it may send everything that it was asked for. Returns the bytes that came in the last of
    /// `seconds`, the bytes outstanding at the end, and the base latency as measured.
    fn serve(rate: f64, tick: u64, latency: u64, by_lot: bool, seconds: u32) -> (u64, u64, f64) {
        let (tick, latency) = (Duration::from_millis(tick), Duration::from_millis(latency));
        let start = Instant::now();
        let mut now = start;
        let mut pipeline = Pipeline::new(now, Arc::default());
        let mut queue = VecDeque::new();
        let mut wire: VecDeque<(Instant, Instant, bool)> = VecDeque::new();
        let (mut credit, mut granted, mut came, mut lot) = (0.0, now, 0, 0);
        let step = Duration::from_micros(250);
        while now < start + Duration::from_secs(u64::from(seconds)) {
            now += step;
            if now >= granted + tick {
                credit += rate * (now - granted).as_secs_f64();
                granted = now;
            }
            loop {
                if lot == 0 {
                    credit = credit.min(rate * 0.1);
                    lot = queue.iter().filter(|(sent, _): &&(Instant, bool)| *sent + latency / 2 <= now).count();
                    lot = if by_lot { lot } else { lot.min(1) };
                }
                if lot == 0 || credit < lot as f64 * BLOCK {
                    break;
                }
                credit -= lot as f64 * BLOCK;
                wire.extend(
                    queue.drain(..std::mem::take(&mut lot)).map(|(sent, fresh)| (now + latency / 2, sent, fresh)),
                );
            }
            while wire.front().is_some_and(|(at, ..)| *at <= now) {
                if let Some((_, sent, fresh)) = wire.pop_front() {
                    pipeline.arrived(now, BLOCK_LEN, now - sent, fresh, PHASE);
                    if now > start + Duration::from_secs(u64::from(seconds - 1)) {
                        came += u64::from(BLOCK_LEN);
                    }
                }
            }
            if pipeline.wants_refill(now, PHASE) {
                while pipeline.room(now, NEED, PHASE) > 0.0 {
                    let fresh = pipeline.requested(now, BLOCK_LEN, true);
                    queue.push_back((now, fresh));
                }
                pipeline.refilled(true);
            }
        }
        (came, pipeline.outstanding(), pipeline.base())
    }

    #[test]
    fn keeps_the_full_rate_with_a_short_queue() {
        for (rate, tick, latency) in [(4e6, 20, 1), (4e6, 20, 60), (1e6, 100, 5), (30e6, 1, 1), (8e6, 1, 300)] {
            let (came, outstanding, base) = serve(rate, tick, latency, false, 4);
            assert!(came as f64 > 0.9 * rate, "{rate} {tick} {latency}: {came}");
            let most = rate * ((latency + tick) as f64 / 1e3 + 0.12);
            assert!((outstanding as f64) < most.max(6.0 * BLOCK), "{rate} {tick} {latency}: {outstanding} outstanding");
            assert!(base <= (latency + tick) as f64 / 1e3 + BLOCK / rate, "{rate} {tick} {latency}: {base}");
        }
    }

    #[test]
    fn never_feeds_on_its_own_queue() {
        for by_lot in [false, true] {
            let (came, outstanding, base) = serve(4e6, 20, 1, by_lot, 30);
            assert!(outstanding < 500_000, "{outstanding}");
            assert!(base < 0.03 && came > 3_500_000, "{base} {came}");
            // So slow that a queue of its blocks takes longer than the allowed queue.
            let (came, outstanding, base) = serve(1e6, 20, 1, by_lot, 45);
            assert!(outstanding < 200_000, "{outstanding}");
            assert!(base < 0.045 && came > 800_000, "{base} {came}");
        }
    }

    #[test]
    fn a_probe_is_alone() {
        let start = Instant::now();
        let mut pipeline = Pipeline::new(start, Arc::default());
        let second = Duration::from_secs(1);
        assert!(pipeline.requested(start, BLOCK_LEN, true));
        pipeline.arrived(start + second / 50, BLOCK_LEN, second / 50, true, PHASE);
        let mut now = start + 11 * second;
        // Spoilt by another request, postponed because of a cancelled block, void; then good.
        let probe = |pipeline: &mut Pipeline, now, clean| {
            assert!(pipeline.wants_refill(now, PHASE) && (0.0..=BLOCK).contains(&pipeline.room(now, NEED, PHASE)));
            pipeline.requested(now, BLOCK_LEN, clean);
            assert_eq!(clean, pipeline.probing);
            assert!(!clean || pipeline.room(now, NEED, PHASE) <= 0.0, "alone");
        };
        let is_over = |pipeline: &Pipeline, now| !pipeline.probing && !pipeline.is_stale(now);
        probe(&mut pipeline, now, true);
        pipeline.requested(now, BLOCK_LEN, true);
        assert!(is_over(&pipeline, now));
        for _ in 0..2 {
            pipeline.arrived(now + second / 10, BLOCK_LEN, second / 10, false, PHASE);
        }
        now += 2 * second;
        probe(&mut pipeline, now, false);
        pipeline.dropped(now, BLOCK_LEN);
        now += 2 * second;
        probe(&mut pipeline, now, true);
        pipeline.dropped(now, BLOCK_LEN);
        assert!(is_over(&pipeline, now));
        assert!((pipeline.base() - 0.02).abs() < 1e-9);
        now += 2 * second;
        probe(&mut pipeline, now, true);
        pipeline.arrived(now + second / 100, BLOCK_LEN, second / 100, true, PHASE);
        assert!((pipeline.base() - 0.01).abs() < 1e-9);
        assert!(is_over(&pipeline, now));
    }
}
