//! Which tracker is asked when, and with which event. Pure: time is an argument, chance an owned generator.
//!
//! A *round* goes through the tiers in order (BEP 12) until one tracker answers; that one moves to the front of its
//! tier and says when the next round is. A tracker that fails is left alone for a while that doubles. Two departures,
//! because a reader is waiting: a tracker that is slow to answer holds up neither the next one nor the next round, and
//! when peers are few a round passes over those that may not be asked again yet and so reaches the backups.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use super::reply::Reply;
use super::url::{Event, TrackerUrl};
use super::{AnnounceError, Answer, Retry, TrackerStatus};

/// Trackers kept of a torrent's list; the rest is dropped.
const MAX_TRACKERS: usize = 100;
/// A tracker's `interval` is brought into this range.
const INTERVAL: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(2 * 3600));
/// When it names none.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(30 * 60);
/// When it names no `min interval`.
const DEFAULT_MIN_INTERVAL: Duration = Duration::from_secs(60);
/// After the first failure; doubles with each further one, up to the second.
const BACK_OFF: (Duration, Duration) = (Duration::from_secs(15), Duration::from_secs(30 * 60));
/// A `retry in` is brought into this range.
const RETRY_IN: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(24 * 3600));
/// A tracker that has not answered after this long gets company from the next one.
const PATIENCE: Duration = Duration::from_secs(3);
/// From one round to the next when more peers are wanted.
const WANT_PAUSE: Duration = Duration::from_secs(15);

/// A tracker's place in the schedule; never changes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct TrackerKey(usize);

/// One announce to be made. Its outcome goes to [`Schedule::done`].
#[derive(Clone, Debug)]
pub(super) struct Order {
    pub tracker: TrackerKey,
    pub url: TrackerUrl,
    pub event: Option<Event>,
    pub tracker_id: Option<Vec<u8>>,
}

/// What changed with a tracker, if it is worth a line in the log.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum News {
    /// Failed, after success or in another way than before.
    Failed,
    /// Answered after failing.
    Recovered,
    /// Answered with a warning that it had not given before.
    Warned(String),
}

/// When something may happen.
#[derive(Clone, Copy, PartialEq, Debug)]
enum When {
    Any,
    At(Instant),
    Never,
}

impl When {
    /// The moment, not before `now`; `None`: never.
    fn from(self, now: Instant) -> Option<Instant> {
        match self {
            When::Any => Some(now),
            When::At(at) => Some(at.max(now)),
            When::Never => None,
        }
    }

    fn reached(self, now: Instant) -> bool {
        self.from(now) == Some(now)
    }
}

struct Tracker {
    url: TrackerUrl,
    tier: usize,
    last: Option<Result<Answer, AnnounceError>>,
    tracker_id: Option<Vec<u8>>,
    /// Failures since the last answer.
    failures: u32,
    /// Not asked before: its `min interval` after an answer, back-off after a failure.
    when: When,
    in_flight: bool,
    /// It has answered, so it counts us among its peers.
    knows_us: bool,
    /// It is to hear that the download is complete.
    owes_completed: bool,
    /// It was asked in this round, or before and may still answer.
    asked: bool,
}

/// A round under way, or the time of the next.
enum Round {
    Active { last_asked: Option<Instant> },
    Next(When),
}

/// The trackers of one torrent and the state of talking to them.
pub(super) struct Schedule {
    trackers: Vec<Tracker>,
    /// Positions in `trackers`, in the order of asking.
    tiers: Vec<Vec<usize>>,
    round: Round,
    /// The round, or the last one, has had its answer.
    answered: bool,
    /// When the last round ended.
    ended: Option<Instant>,
    rng: StdRng,
}

impl Schedule {
    /// Shuffles each tier once. The first round is due at once.
    pub fn new(tiers: &[Vec<String>], seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut trackers: Vec<Tracker> = Vec::new();
        let mut order = Vec::new();
        for (tier, urls) in tiers.iter().enumerate() {
            let first = trackers.len();
            for url in urls.iter().map(|url| url.trim()) {
                if trackers.len() < MAX_TRACKERS && trackers.iter().all(|known| known.url.as_str() != url) {
                    trackers.push(Tracker::new(TrackerUrl::new(url), tier));
                }
            }
            let mut members: Vec<usize> = (first..trackers.len()).collect();
            members.shuffle(&mut rng);
            order.push(members);
        }
        Self { trackers, tiers: order, round: Round::Next(When::Any), answered: false, ended: None, rng }
    }

    /// Leaves out the trackers that `fault` has something against. To be called before the first round.
    pub fn bar(&mut self, fault: impl Fn(&TrackerUrl) -> Option<AnnounceError>) {
        for tracker in &mut self.trackers {
            if let Some(fault) = fault(&tracker.url) {
                tracker.when = When::Never;
                tracker.last = Some(Err(fault));
            }
        }
    }

    /// The next announce that is due. Call until `None`.
    pub fn poll(&mut self, now: Instant) -> Option<Order> {
        if let Some(order) = self.poll_completed(now) {
            return Some(order);
        }
        if let Round::Next(when) = self.round {
            if !when.reached(now) {
                return None;
            }
            self.trackers.iter_mut().for_each(|tracker| tracker.asked = tracker.in_flight);
            self.round = Round::Active { last_asked: None };
            self.answered = false;
        }
        match self.candidate(now) {
            Some((index, at)) if at <= now => {
                self.round = Round::Active { last_asked: Some(now) };
                self.trackers[index].asked = true;
                Some(self.order(index))
            }
            // All were tried and none answered: again as soon as the first of them may be asked, which can be now. Who
            // is silent may answer yet.
            None if self.patient_until(now) <= now => {
                self.end_round(now, self.retry_round(now));
                self.poll(now)
            }
            _ => None,
        }
    }

    /// When `poll` will have something, if nothing else happens first.
    pub fn wakeup(&self, now: Instant) -> Option<Instant> {
        let round = match self.round {
            Round::Next(when) => when.from(now),
            Round::Active { .. } => Some(self.candidate(now).map_or_else(|| self.patient_until(now), |(_, at)| at)),
        };
        let completed = self.trackers.iter().filter_map(|tracker| tracker.completed_at(now));
        completed.chain(round).min()
    }

    /// The outcome of an [`Order`].
    pub fn done(
        &mut self,
        now: Instant,
        key: TrackerKey,
        event: Option<Event>,
        outcome: Result<Reply, AnnounceError>,
    ) -> Option<News> {
        let tracker = self.trackers.get_mut(key.0)?;
        tracker.in_flight = false;
        match outcome {
            Ok(reply) => {
                let news = tracker.news_of_answer(&reply.answer);
                let interval = reply.interval.unwrap_or(DEFAULT_INTERVAL).clamp(INTERVAL.0, INTERVAL.1);
                let least =
                    reply.min_interval.unwrap_or(DEFAULT_MIN_INTERVAL).clamp(INTERVAL.0, INTERVAL.1).min(interval);
                tracker.when = When::At(now + least);
                tracker.failures = 0;
                tracker.knows_us = true;
                tracker.owes_completed &= event != Some(Event::Completed);
                tracker.tracker_id = reply.tracker_id.or(tracker.tracker_id.take());
                tracker.last = Some(Ok(reply.answer));
                let (tier, asked) = (tracker.tier, tracker.asked);
                if asked && !self.answered {
                    self.answered = true;
                    let members = &mut self.tiers[tier];
                    if let Some(at) = members.iter().position(|member| *member == key.0) {
                        members[..=at].rotate_right(1);
                    }
                    self.end_round(now, When::At(now + interval));
                } else if matches!(self.round, Round::Next(When::Never)) {
                    self.round = Round::Next(When::At(now + interval));
                }
                news
            }
            Err(error) => {
                let news = tracker.news_of_failure(&error);
                tracker.failures = tracker.failures.saturating_add(1);
                tracker.when = match error {
                    AnnounceError::Refused { retry: Retry::Never, .. } => When::Never,
                    AnnounceError::Refused { retry: Retry::After(pause), .. } => {
                        When::At(now + pause.clamp(RETRY_IN.0, RETRY_IN.1))
                    }
                    _ => When::At(now + back_off(tracker.failures, &mut self.rng)),
                };
                // It never counted us: when it does, it will be with what is left by then.
                tracker.owes_completed &= tracker.knows_us;
                tracker.last = Some(Err(error));
                if !self.answered && matches!(self.round, Round::Next(_)) {
                    self.round = Round::Next(self.retry_round(now));
                }
                news
            }
        }
    }

    /// The download is complete: those who counted us as incomplete, or are about to, hear it, each once.
    pub fn completed(&mut self) {
        for tracker in &mut self.trackers {
            tracker.owes_completed = tracker.knows_us || tracker.in_flight;
        }
    }

    /// Whom to tell now that the download is complete, one after the other; whom else to ask is not looked at.
    pub fn poll_completed(&mut self, now: Instant) -> Option<Order> {
        let index = self.trackers.iter().position(|tracker| tracker.completed_at(now) == Some(now))?;
        Some(self.order(index))
    }

    /// Somebody is being told, or is yet to be, that the download is complete.
    pub fn owes_completed(&self) -> bool {
        self.trackers.iter().any(|tracker| tracker.owes_completed && (tracker.knows_us || tracker.in_flight))
    }

    /// More peers are wanted before the interval is over: the next round comes as soon as any tracker allows it.
    pub fn want_peers(&mut self, now: Instant) {
        let Round::Next(next) = self.round else { return };
        let Some(allowed) = self.first_allowed(now) else { return };
        let paused = self.ended.map_or(now, |ended| ended + WANT_PAUSE);
        let wanted = allowed.max(paused);
        if next.from(now).is_none_or(|next| wanted < next) {
            self.round = Round::Next(When::At(wanted));
        }
    }

    /// The farewells: one to each tracker that counts us (`true`), or may, for it has not answered yet.
    pub fn stopped(&self) -> Vec<(Order, bool)> {
        let told = self.trackers.iter().enumerate().filter(|(_, tracker)| tracker.knows_us || tracker.in_flight);
        told.map(|(index, tracker)| (tracker.order(index, Some(Event::Stopped)), tracker.knows_us)).collect()
    }

    /// The trackers in the order of asking.
    pub fn status(&self, now: Instant) -> Vec<TrackerStatus> {
        let round = match self.round {
            Round::Next(when) => when.from(now),
            Round::Active { .. } => None,
        };
        let status = |tracker: &Tracker| TrackerStatus {
            url: tracker.url.clone(),
            tier: tracker.tier,
            last: tracker.last.clone(),
            announcing: tracker.in_flight,
            next_announce: match tracker.when {
                When::At(at) => Some(round.map_or(at, |round| round.max(at))),
                When::Any | When::Never => None,
            },
        };
        self.tiers.iter().flatten().map(|&index| status(&self.trackers[index])).collect()
    }

    /// Who is next in the round under way, and when. `None`: nobody is left.
    fn candidate(&self, now: Instant) -> Option<(usize, Instant)> {
        let Round::Active { .. } = self.round else { return None };
        let next = self.tiers.iter().flatten().copied().find(|&index| {
            let tracker = &self.trackers[index];
            !tracker.asked && !tracker.in_flight && tracker.when.reached(now)
        })?;
        Some((next, self.patient_until(now)))
    }

    /// Until when the round waits for those asked to answer; `now` if there is nobody to wait for.
    fn patient_until(&self, now: Instant) -> Instant {
        let waiting = self.trackers.iter().any(|tracker| tracker.asked && tracker.in_flight);
        match self.round {
            Round::Active { last_asked: Some(asked) } if waiting => now.max(asked + PATIENCE),
            _ => now,
        }
    }

    /// When the first tracker may be asked again. Says nothing of those being asked.
    fn first_allowed(&self, now: Instant) -> Option<Instant> {
        self.trackers.iter().filter(|tracker| !tracker.in_flight).filter_map(|tracker| tracker.when.from(now)).min()
    }

    /// When to go round again after a round that came to nothing. `Never` until an outcome changes it.
    fn retry_round(&self, now: Instant) -> When {
        self.first_allowed(now).map_or(When::Never, When::At)
    }

    fn end_round(&mut self, now: Instant, next: When) {
        self.ended = Some(now);
        self.round = Round::Next(next);
    }

    fn order(&mut self, index: usize) -> Order {
        let tracker = &mut self.trackers[index];
        tracker.in_flight = true;
        let event = match (tracker.knows_us, tracker.owes_completed) {
            (false, _) => Some(Event::Started),
            (true, true) => Some(Event::Completed),
            (true, false) => None,
        };
        tracker.order(index, event)
    }
}

impl Tracker {
    fn new(url: TrackerUrl, tier: usize) -> Self {
        let fault = url.usable().err().cloned();
        Self {
            url,
            tier,
            when: if fault.is_some() { When::Never } else { When::Any },
            last: fault.map(Err),
            tracker_id: None,
            failures: 0,
            in_flight: false,
            knows_us: false,
            owes_completed: false,
            asked: false,
        }
    }

    fn order(&self, index: usize, event: Option<Event>) -> Order {
        Order { tracker: TrackerKey(index), url: self.url.clone(), event, tracker_id: self.tracker_id.clone() }
    }

    /// When it can be told of completion: at once, for an event need not wait for the interval; after back-off if it
    /// fails.
    fn completed_at(&self, now: Instant) -> Option<Instant> {
        let due = self.owes_completed && self.knows_us && !self.in_flight;
        let when = if self.failures == 0 { When::Any } else { self.when };
        if due { when.from(now) } else { None }
    }

    fn news_of_answer(&self, answer: &Answer) -> Option<News> {
        let warned = match &self.last {
            Some(Ok(last)) => last.warning.as_ref(),
            _ => None,
        };
        match (&answer.warning, self.failures) {
            (Some(warning), _) if Some(warning) != warned => Some(News::Warned(warning.clone())),
            (_, 1..) => Some(News::Recovered),
            _ => None,
        }
    }

    fn news_of_failure(&self, error: &AnnounceError) -> Option<News> {
        let same =
            matches!(&self.last, Some(Err(last)) if std::mem::discriminant(last) == std::mem::discriminant(error));
        (!same).then_some(News::Failed)
    }
}

/// Doubling, with a fifth of chance to either side so that clients that failed together do not return together.
fn back_off(failures: u32, rng: &mut StdRng) -> Duration {
    let doubled = BACK_OFF.0.saturating_mul(1 << (failures - 1).min(16));
    doubled.min(BACK_OFF.1).mul_f64(rng.random_range(0.8..1.2))
}

#[cfg(test)]
mod tests;
