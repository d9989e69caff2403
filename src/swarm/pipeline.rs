//! How much may be asked of one peer at a time: a pipeline bounded in time, not in blocks.
//!
//! What is asked of a peer often cannot be taken back (it stands in the peer's send buffer already), and a seek then
//! waits behind it. So the bytes outstanding are held at `rate × (base latency + slack)`.
//!
//! - The *rate* is the delivery rate while the pipeline is busy, a mean over about 0.4 s: peers hand out bandwidth in
//!   bursts, and time with nothing asked says nothing.
//! - The *base latency* is measured only by requests sent into an (almost) empty pipeline; any other delay contains our
//!   own queue, and a target made of it would feed on itself. It goes stale, and is then measured again by a *probe*: the
//!   pipeline runs empty and one block is asked for alone, which costs two round trips. (Alone, for there are peers that
//!   send nothing before they may send all that they were asked for.)
//! - A rate measured through a pipeline that is too small is too small itself. So the window never follows the rate
//!   alone: as long as blocks come back sooner than the target delay, it grows by what came (it doubles a round trip).

use std::time::{Duration, Instant};

use crate::metainfo::BLOCK_LEN;

const BLOCK: f64 = BLOCK_LEN as f64;
/// Bytes: a new peer's first window.
const FIRST: f64 = 6.0 * BLOCK;
/// Bytes: enough to keep a slow peer from pausing between two requests.
const FLOOR: f64 = 3.0 * BLOCK;
/// Seconds over which the rate is smoothed.
const SPAN: f64 = 0.4;
/// Seconds that a young rate counts as at least, so that a first burst is not taken for the rate.
const YOUNG: f64 = 0.1;
/// How long a measurement of the base latency holds; longer where it is so large that probing would cost too much.
const STALE: Duration = Duration::from_secs(10);
const STALE_LATENCIES: f64 = 100.0;
/// What the first requests have measured, all at once, holds for less.
const STALE_FIRST: Duration = Duration::from_secs(3);
/// A probe that something came between is tried again after so long.
const PROBE_AGAIN: Duration = Duration::from_secs(1);
/// Seconds assumed before anything was measured.
const UNKNOWN_LATENCY: f64 = 0.1;
/// Bytes a second assumed before anything was measured.
const UNKNOWN_RATE: f64 = 1e6;

#[derive(Clone, Debug)]
pub(super) struct Pipeline {
    /// Bytes asked for and not yet come.
    outstanding: u64,
    /// Bytes that may be outstanding.
    window: f64,
    /// The last refill stopped at the window, not for want of work.
    limited: bool,
    /// Decayed bytes that came and seconds in which they came.
    bytes: f64,
    seconds: f64,
    /// Until when `seconds` has counted.
    clock: Instant,
    /// Lowest base latency in this and in the previous period, in seconds.
    base: Option<f64>,
    base_before: Option<f64>,
    /// When it is to be measured anew.
    probe_at: Instant,
    /// The one block outstanding measures it.
    probing: bool,
    /// Mean and mean deviation of the delay from request to block, in seconds.
    delay: Option<(f64, f64)>,
    /// Only one block at a time: the peer stopped answering.
    pub(super) snubbed: bool,
}

impl Pipeline {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            outstanding: 0,
            window: FIRST,
            limited: false,
            bytes: 0.0,
            seconds: 0.0,
            clock: now,
            base: None,
            base_before: None,
            probe_at: now,
            probing: false,
            delay: None,
            snubbed: false,
        }
    }

    pub(super) fn outstanding(&self) -> u64 {
        self.outstanding
    }

    /// Seconds from request to block in an empty pipeline.
    fn base(&self) -> f64 {
        match (self.base, self.base_before) {
            (Some(a), Some(b)) => a.min(b),
            (Some(a), None) | (None, Some(a)) => a,
            (None, None) => UNKNOWN_LATENCY,
        }
    }

    /// Bytes a second that the peer delivers when asked.
    pub(super) fn rate(&self) -> f64 {
        if self.bytes > 0.0 { self.bytes / self.seconds.max(YOUNG) } else { UNKNOWN_RATE }
    }

    /// At least one block came.
    pub(super) fn rate_is_known(&self) -> bool {
        self.delay.is_some()
    }

    /// Seconds until `bytes` would be here if they were asked for now and nothing else were outstanding.
    pub(super) fn eta(&self, bytes: f64) -> f64 {
        self.base() + bytes / self.rate().max(1.0)
    }

    /// Seconds after which a block is late: the usual delay and four deviations.
    pub(super) fn late_after(&self) -> f64 {
        self.delay.map_or(1.0, |(mean, deviation)| (mean + 4.0 * deviation).max(0.05))
    }

    /// Bytes that may be asked for now. With `slack` seconds of queue at the peer beyond the base latency.
    pub(super) fn room(&self, now: Instant, slack: f64) -> f64 {
        let target = if self.probing || self.is_stale(now) { 1.0 } else { self.target(slack) };
        target - self.outstanding as f64
    }

    /// Bytes that may be asked for now, whatever the window, to have work for `seconds`. Of a peer whose rate is not known,
    /// or that has stopped answering, no more than otherwise.
    pub(super) fn room_in_haste(&self, seconds: f64) -> f64 {
        if self.snubbed || !self.rate_is_known() {
            return 0.0;
        }
        self.rate() * (self.base() + seconds) - self.outstanding as f64
    }

    fn target(&self, slack: f64) -> f64 {
        if self.snubbed {
            return 1.0;
        }
        // A quarter more: the window is what grows, the rate keeps it from standing far above what a seek should have to
        // wait behind, when the slack has shrunk and blocks come in time.
        let most = 1.25 * self.rate() * (self.base() + slack);
        self.window.min(if self.rate_is_known() { most } else { most.max(FIRST) }).max(FLOOR)
    }

    /// Requests go out in batches: not before a quarter of the pipeline has run empty.
    pub(super) fn wants_refill(&self, now: Instant, slack: f64) -> bool {
        let level = if self.probing || self.is_stale(now) { 0.0 } else { 0.75 * self.target(slack) };
        self.outstanding as f64 <= level
    }

    /// The base latency is to be measured anew.
    fn is_stale(&self, now: Instant) -> bool {
        self.base.is_some() && now >= self.probe_at
    }

    /// The block outstanding is not alone any more.
    fn spoil_probe(&mut self, now: Instant) {
        if std::mem::take(&mut self.probing) {
            self.probe_at = now + PROBE_AGAIN;
        }
    }

    /// A refill ended, at the window (`limited`) or for want of work.
    pub(super) fn refilled(&mut self, limited: bool) {
        self.limited = limited;
    }

    /// A request goes out. Whether its delay will measure the base latency.
    /// `clean`: nothing that was cancelled may still be on its way.
    pub(super) fn asked(&mut self, now: Instant, bytes: u32, clean: bool) -> bool {
        let empty = self.outstanding <= u64::from(BLOCK_LEN);
        self.spoil_probe(now);
        if self.outstanding == 0 {
            if self.is_stale(now) {
                self.probing = clean;
                self.probe_at = now + PROBE_AGAIN;
            }
            // What is on its way cannot be here before the base latency has passed: that is not the rate.
            self.clock = now + Duration::from_secs_f64(self.base().min(10.0));
        }
        self.outstanding += u64::from(bytes);
        empty && clean
    }

    /// A block came that had been cancelled too late.
    pub(super) fn strayed(&mut self, bytes: u32) {
        self.bytes += f64::from(bytes);
        self.snubbed = false;
    }

    /// A request is void: cancelled, rejected, choked away.
    pub(super) fn dropped(&mut self, now: Instant, bytes: u32) {
        self.outstanding -= u64::from(bytes);
        self.spoil_probe(now);
    }

    /// A block came, `delay` after its request.
    pub(super) fn arrived(&mut self, now: Instant, bytes: u32, delay: Duration, fresh: bool, slack: f64) {
        let busy = self.limited || self.outstanding as f64 >= 4.0 * BLOCK;
        self.outstanding -= u64::from(bytes);
        self.snubbed = false;
        let delay = delay.as_secs_f64();
        let bytes = f64::from(bytes);

        // A trickle is our rate, not the peer's; it may only raise the estimate.
        if busy || self.bytes == 0.0 {
            let passed = now.saturating_duration_since(self.clock).as_secs_f64();
            if passed > 0.0 {
                let keep = (-passed / SPAN).exp();
                self.bytes *= keep;
                self.seconds = self.seconds * keep + SPAN * (1.0 - keep);
            }
            self.bytes += bytes;
        }
        self.clock = self.clock.max(now);

        let holds = |least: Duration| now + least.max(Duration::from_secs_f64((STALE_LATENCIES * delay).min(600.0)));
        if std::mem::take(&mut self.probing) {
            self.base_before = self.base.replace(delay).or(self.base_before);
            self.probe_at = holds(STALE);
        } else if fresh {
            if self.base.is_none() {
                self.probe_at = holds(STALE_FIRST);
            }
            self.base = Some(self.base.map_or(delay, |base| base.min(delay)));
        }
        self.delay = Some(match self.delay {
            None => (delay, delay / 2.0),
            Some((mean, deviation)) => {
                (mean + (delay - mean) / 16.0, deviation + ((delay - mean).abs() - deviation) / 8.0)
            }
        });

        let base = self.base();
        if delay < base + 0.5 * slack {
            if self.limited {
                self.window += bytes;
            }
        } else if delay > base + slack {
            let measured = self.rate() * (base + slack);
            self.window = self.window.min(measured.max(FLOOR));
        }
    }

    /// Nothing came for long: start over with one block.
    pub(super) fn snub(&mut self) {
        self.snubbed = true;
        self.window = FLOOR;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    /// A peer that serves `rate` bytes a second, granted every `tick`, `latency` away; one `by_lot` sends nothing before it
    /// may send all that it was asked for. Gives the bytes that came in the last second of `seconds`, the bytes outstanding
    /// at the end, and the base latency as measured.
    fn serve(rate: f64, tick: u64, latency: u64, by_lot: bool, seconds: u32) -> (u64, u64, f64) {
        let (tick, latency, slack) = (Duration::from_millis(tick), Duration::from_millis(latency), 0.05);
        let start = Instant::now();
        let mut now = start;
        let mut pipeline = Pipeline::new(now);
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
                    pipeline.arrived(now, BLOCK_LEN, now - sent, fresh, slack);
                    if now > start + Duration::from_secs(u64::from(seconds - 1)) {
                        came += u64::from(BLOCK_LEN);
                    }
                }
            }
            if pipeline.wants_refill(now, slack) {
                while pipeline.room(now, slack) > 0.0 {
                    let fresh = pipeline.asked(now, BLOCK_LEN, true);
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
            assert!((outstanding as f64) < most.max(FIRST), "{rate} {tick} {latency}: {outstanding} outstanding");
            assert!(base <= (latency + tick) as f64 / 1e3 + BLOCK / rate, "{rate} {tick} {latency}: {base}");
        }
    }

    #[test]
    fn never_feeds_on_its_own_queue() {
        for by_lot in [false, true] {
            let (came, outstanding, base) = serve(4e6, 20, 1, by_lot, 30);
            assert!(outstanding < 500_000, "{outstanding}");
            assert!(base < 0.03 && came > 3_500_000, "{base} {came}");
            // Slow enough for a queue of its blocks to take longer than the slack.
            let (came, outstanding, base) = serve(1e6, 20, 1, by_lot, 45);
            assert!(outstanding < 200_000, "{outstanding}");
            assert!(base < 0.045 && came > 800_000, "{base} {came}");
        }
    }

    #[test]
    fn a_probe_is_alone() {
        let (start, slack) = (Instant::now(), 0.05);
        let mut pipeline = Pipeline::new(start);
        let second = Duration::from_secs(1);
        assert!(pipeline.asked(start, BLOCK_LEN, true));
        pipeline.arrived(start + second / 50, BLOCK_LEN, second / 50, true, slack);
        let mut now = start + 4 * second;
        // Spoilt by another request, put off by what was cancelled, void; then good.
        let probe = |pipeline: &mut Pipeline, now, clean| {
            assert!(pipeline.wants_refill(now, slack) && (0.0..=BLOCK).contains(&pipeline.room(now, slack)));
            pipeline.asked(now, BLOCK_LEN, clean);
            assert_eq!(clean, pipeline.room(now, slack) <= 0.0);
        };
        probe(&mut pipeline, now, true);
        pipeline.asked(now, BLOCK_LEN, true);
        assert!(pipeline.room(now, slack) > 0.0);
        for _ in 0..2 {
            pipeline.arrived(now + second / 10, BLOCK_LEN, second / 10, false, slack);
        }
        now += 2 * second;
        probe(&mut pipeline, now, false);
        pipeline.dropped(now, BLOCK_LEN);
        now += 2 * second;
        probe(&mut pipeline, now, true);
        pipeline.dropped(now, BLOCK_LEN);
        assert!(pipeline.room(now, slack) > 2.0 * BLOCK);
        assert!((pipeline.base() - 0.02).abs() < 1e-9);
        now += 2 * second;
        probe(&mut pipeline, now, true);
        pipeline.arrived(now + second / 100, BLOCK_LEN, second / 100, true, slack);
        assert!((pipeline.base() - 0.01).abs() < 1e-9);
        assert!(pipeline.room(now, slack) > 2.0 * BLOCK);
    }
}
