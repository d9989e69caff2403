//! The announce schedule: which tracker to ask, when, and with which event. Pure: time is an argument and the random
//! generator is owned.
//!
//! A *round* goes through the tiers in order (BEP 12) until one tracker answers. That tracker moves to the front of its
//! tier and its interval sets the time of the next round. A tracker that fails is skipped for a time that doubles with
//! each failure. Because a reader may be waiting, the schedule departs from BEP 12 in three ways: a tracker that is slow
//! to answer delays neither the next tracker nor the next round; when peers are wanted, a round skips trackers that may
//! not be asked again yet and thus reaches the backups; and while a read is blocked without a peer, all trackers are asked,
//! one shortly after the other, also when some have answered: their peers may be dead.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use super::reply::Reply;
use super::url::{Event, TrackerUrl};
use super::{AnnounceError, Answer, Retry, Want};

/// Trackers used from a torrent's list; the rest is dropped.
const MAX_TRACKERS: usize = 100;
/// Shortest announce interval that we follow, whatever a tracker specifies: protects the tracker.
const INTERVAL_FLOOR: Duration = Duration::from_secs(30);
/// Longest announce interval that we follow: a longer one would leave the swarm without new peers.
const INTERVAL_CEILING: Duration = Duration::from_secs(2 * 3600);
/// Interval if the reply specifies none: the usual value among trackers.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(30 * 60);
/// Minimum interval if the reply specifies none.
const DEFAULT_MIN_INTERVAL: Duration = Duration::from_secs(60);
/// Back-off after the first failure of a tracker; it doubles with each further one.
const FIRST_BACK_OFF: Duration = Duration::from_secs(15);
/// Longest back-off, so that a tracker which is back is used again within half an hour.
const MAX_BACK_OFF: Duration = Duration::from_secs(30 * 60);
/// Shortest `retry in` that we follow: protects a tracker that specifies too little.
const MIN_RETRY_IN: Duration = Duration::from_secs(60);
/// Longest `retry in` that we follow, so that a mistake does not disable a tracker for longer than a day.
const MAX_RETRY_IN: Duration = Duration::from_secs(24 * 3600);
/// How long a tracker may take to answer before the next one is asked as well.
const FALLBACK_DELAY: Duration = Duration::from_secs(3);
/// The same while a read is blocked without a peer: longer than most answers take.
const BLOCKED_DELAY: Duration = Duration::from_millis(250);
/// How long [`Want::Blocked`] holds. It is repeated sooner while the read waits.
const BLOCKED_FOR: Duration = Duration::from_secs(2);
/// Minimum time between two rounds when more peers are wanted, and between two announces to a tracker that states no
/// minimum while a read is blocked without peers.
const WANT_PAUSE: Duration = Duration::from_secs(15);

/// The state of one tracker.
#[derive(Clone, Debug)]
pub struct TrackerStatus {
    /// URL of the tracker; `Display` masks passkeys.
    pub url: TrackerUrl,
    /// Index of its tier in the torrent's list, from 0.
    pub tier: usize,
    /// Outcome of the last announce; `None` until the first one has ended.
    pub last: Option<Result<Answer, AnnounceError>>,
    /// Whether an announce is in progress.
    pub announcing: bool,
    /// Earliest time of the next announce. `None` means any time, or never if `last` is an error.
    pub next_announce: Option<Instant>,
}

/// The index of a tracker in the schedule; never changes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct TrackerKey(usize);

/// An announce to send. Its outcome goes to [`Schedule::finish`].
#[derive(Clone, Debug)]
pub(super) struct ScheduledAnnounce {
    pub tracker: TrackerKey,
    pub url: TrackerUrl,
    pub event: Option<Event>,
    pub tracker_id: Option<Vec<u8>>,
}

/// A change in a tracker's state that is worth a log line.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum StatusChange {
    /// The announce failed, after a success or in another way than before.
    Failed,
    /// The announce succeeded after a failure.
    Recovered,
    /// The reply has a warning that the previous one did not have.
    Warned(String),
    /// Parts of the reply could not be used; reported once in the life of the torrent.
    Ignored(String),
}

/// The earliest time at which something may happen.
#[derive(Clone, Copy, PartialEq, Debug)]
enum When {
    Any,
    At(Instant),
    Never,
}

impl When {
    /// Returns the time, but not before `now`; `None` stands for never.
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
    /// It was reported that parts of its replies cannot be used.
    odd: bool,
    /// Consecutive failures.
    failures: u32,
    /// Earliest next announce: after the `min interval` of a reply, or after the back-off of a failure.
    when: When,
    /// The same while a read is blocked: sooner if the tracker states no `min interval`.
    urgent_when: When,
    /// A `started` event has yet to be announced, because the tracker counts us as a seed that we no longer are.
    restarted: bool,
    in_flight: bool,
    /// The tracker has answered, so it counts us as a peer.
    registered: bool,
    /// A `completed` event has yet to be announced to it.
    completed_pending: bool,
    /// It was asked in this round, or earlier and may still answer.
    asked: bool,
}

/// The round in progress, or the time of the next one.
enum Round {
    Active,
    Next(When),
}

/// The trackers of one torrent and their announce state.
pub(super) struct Schedule {
    trackers: Vec<Tracker>,
    /// Indexes into `trackers` per tier, in the order of asking.
    tiers: Vec<Vec<usize>>,
    /// Number of trackers that are not used.
    excess: usize,
    round: Round,
    /// When a tracker was last asked in the current or last round.
    last_asked: Option<Instant>,
    /// When a read was last blocked without a peer.
    blocked: Option<Instant>,
    /// A tracker has answered in the current or last round.
    answered: bool,
    /// End of the last round.
    ended: Option<Instant>,
    rng: StdRng,
}

impl Schedule {
    /// Creates a schedule whose first round is due at once. Shuffles each tier once.
    pub fn new(tiers: &[Vec<String>], seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut trackers: Vec<Tracker> = Vec::new();
        let (mut tier_order, mut excess) = (Vec::new(), 0);
        for (tier, urls) in tiers.iter().enumerate() {
            let first = trackers.len();
            for url in urls.iter().map(|url| url.trim()) {
                match trackers.iter().any(|known| known.url.as_str() == url) {
                    true => {}
                    false if trackers.len() < MAX_TRACKERS => trackers.push(Tracker::new(TrackerUrl::new(url), tier)),
                    false => excess += 1,
                }
            }
            let mut members: Vec<usize> = (first..trackers.len()).collect();
            members.shuffle(&mut rng);
            tier_order.push(members);
        }
        Self {
            trackers,
            tiers: tier_order,
            excess,
            round: Round::Next(When::Any),
            last_asked: None,
            blocked: None,
            answered: false,
            ended: None,
            rng,
        }
    }

    /// Returns how many trackers are not used, because there are too many.
    pub fn excess(&self) -> usize {
        self.excess
    }

    /// Disables the trackers for which `error` returns an error. Call it before the first round.
    pub fn disable(&mut self, error: impl Fn(&TrackerUrl) -> Option<AnnounceError>) {
        for tracker in &mut self.trackers {
            if let Some(error) = error(&tracker.url) {
                (tracker.when, tracker.urgent_when) = (When::Never, When::Never);
                tracker.last = Some(Err(error));
            }
        }
    }

    /// Returns the next announce that is due. Call it until it returns `None`.
    pub fn poll(&mut self, now: Instant) -> Option<ScheduledAnnounce> {
        if let Some(scheduled) = self.poll_completed(now) {
            return Some(scheduled);
        }
        if let Round::Next(when) = self.round {
            if !when.reached(now) {
                let (index, _) = self.backup(now).filter(|(_, at)| *at <= now)?;
                return Some(self.ask(now, index));
            }
            self.trackers.iter_mut().for_each(|tracker| tracker.asked = tracker.in_flight);
            (self.round, self.last_asked) = (Round::Active, None);
            self.answered = false;
        }
        match self.candidate(now) {
            Some((index, at)) if at <= now => Some(self.ask(now, index)),
            // All trackers were tried and none has answered. Start again as soon as the first of them may be asked,
            // which may be now. A tracker that is still silent may yet answer.
            None if self.fallback_at(now) <= now => {
                self.end_round(now, self.retry_round(now));
                self.poll(now)
            }
            _ => None,
        }
    }

    /// Returns when `poll` will return something, unless another call changes that.
    pub fn wakeup(&self, now: Instant) -> Option<Instant> {
        let round = match self.round {
            Round::Next(when) => when.from(now),
            Round::Active => Some(self.candidate(now).map_or_else(|| self.fallback_at(now), |(_, at)| at)),
        };
        let backup = self.backup(now).map(|(_, at)| at);
        let completed = self.trackers.iter().filter_map(|tracker| tracker.completed_at(now));
        completed.chain(round).chain(backup).min()
    }

    /// Records the outcome of a [`ScheduledAnnounce`].
    pub fn finish(
        &mut self,
        now: Instant,
        key: TrackerKey,
        event: Option<Event>,
        outcome: Result<Reply, AnnounceError>,
    ) -> Option<StatusChange> {
        let tracker = self.trackers.get_mut(key.0)?;
        tracker.in_flight = false;
        match outcome {
            Ok(reply) => {
                let change = tracker.change_on_answer(&reply);
                let interval = reply.interval.unwrap_or(DEFAULT_INTERVAL).clamp(INTERVAL_FLOOR, INTERVAL_CEILING);
                let least = reply
                    .min_interval
                    .unwrap_or(DEFAULT_MIN_INTERVAL)
                    .clamp(INTERVAL_FLOOR, INTERVAL_CEILING)
                    .min(interval);
                tracker.when = When::At(now + least);
                let least = if reply.min_interval.is_some() { least } else { least.min(WANT_PAUSE) };
                tracker.urgent_when = When::At(now + least);
                tracker.failures = 0;
                tracker.registered = true;
                tracker.completed_pending &= event != Some(Event::Completed);
                tracker.restarted &= event != Some(Event::Started);
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
                change
            }
            Err(error) => {
                let change = tracker.change_on_failure(&error);
                tracker.failures = tracker.failures.saturating_add(1);
                tracker.when = match error {
                    AnnounceError::Refused { retry: Retry::Never, .. } => When::Never,
                    AnnounceError::Refused { retry: Retry::After(pause), .. } => {
                        When::At(now + pause.clamp(MIN_RETRY_IN, MAX_RETRY_IN))
                    }
                    _ => When::At(now + back_off(tracker.failures, &mut self.rng)),
                };
                tracker.urgent_when = tracker.when;
                // This tracker never counted us. Its first successful announce will have the right number of missing
                // bytes.
                tracker.completed_pending &= tracker.registered;
                tracker.last = Some(Err(error));
                if !self.answered && matches!(self.round, Round::Next(_)) {
                    self.round = Round::Next(self.retry_round(now));
                }
                change
            }
        }
    }

    /// Marks the download as complete. Each tracker that counted us as incomplete, or is about to, gets one `completed`
    /// event.
    pub fn completed(&mut self) {
        for tracker in &mut self.trackers {
            tracker.completed_pending = tracker.registered || tracker.in_flight;
        }
    }

    /// Returns the next `completed` announce that is due, and ignores the rounds.
    pub fn poll_completed(&mut self, now: Instant) -> Option<ScheduledAnnounce> {
        let index = self.trackers.iter().position(|tracker| tracker.completed_at(now) == Some(now))?;
        Some(self.start_announce(index))
    }

    /// Returns whether a `completed` announce is in flight or yet to be sent.
    pub fn completed_pending(&self) -> bool {
        self.trackers.iter().any(|tracker| tracker.completed_pending && (tracker.registered || tracker.in_flight))
    }

    /// Marks the torrent as incomplete again. Each tracker that counts us as a seed gets a `started` event in the next
    /// round, which need not wait for its interval: it has given us leechers only.
    pub fn incomplete(&mut self) {
        for tracker in self.trackers.iter_mut().filter(|tracker| tracker.registered) {
            (tracker.restarted, tracker.completed_pending) = (true, false);
            if tracker.failures == 0 {
                (tracker.when, tracker.urgent_when) = (When::Any, When::Any);
            }
        }
        self.ended = None;
    }

    /// Advances the next round to the earliest time at which a tracker may be asked, because more peers are wanted. If
    /// somebody reads, a tracker is asked again as soon as it does not forbid it. If a read is blocked, the trackers of the
    /// last round that were not asked are asked, too.
    pub fn want_peers(&mut self, now: Instant, want: Want) {
        if want >= Want::Read {
            self.trackers.iter_mut().for_each(|tracker| tracker.when = tracker.urgent_when);
        }
        if want == Want::Blocked {
            self.blocked = Some(now);
        }
        let Round::Next(next) = self.round else { return };
        let Some(allowed) = self.first_allowed(now) else { return };
        let paused = self.ended.map_or(now, |ended| ended + WANT_PAUSE);
        let wanted = allowed.max(paused);
        if next.from(now).is_none_or(|next| wanted < next) {
            self.round = Round::Next(When::At(wanted));
        }
    }

    /// Returns the `stopped` announces: one for each tracker that counts us (`true`) or may count us (`false`), because
    /// it has not answered yet.
    pub fn stopped(&self) -> Vec<(ScheduledAnnounce, bool)> {
        let informed = self.trackers.iter().enumerate().filter(|(_, tracker)| tracker.registered || tracker.in_flight);
        informed.map(|(index, tracker)| (tracker.announce(index, Some(Event::Stopped)), tracker.registered)).collect()
    }

    /// Returns the trackers in the order of asking.
    pub fn status(&self, now: Instant) -> Vec<TrackerStatus> {
        let round = match self.round {
            Round::Next(when) => when.from(now),
            Round::Active => None,
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

    /// Returns the next tracker to ask in the current round, and when; `None` if all were asked.
    fn candidate(&self, now: Instant) -> Option<(usize, Instant)> {
        matches!(self.round, Round::Active).then(|| self.unasked(now))?.map(|index| (index, self.fallback_at(now)))
    }

    /// Returns the next tracker to ask although the last round is over, and when.
    fn backup(&self, now: Instant) -> Option<(usize, Instant)> {
        let is_over = matches!(self.round, Round::Next(_)) && self.ended.is_some();
        let index = (is_over && self.is_blocked(now)).then(|| self.unasked(now))??;
        Some((index, self.last_asked.map_or(now, |asked| now.max(asked + BLOCKED_DELAY))))
    }

    /// Returns the first tracker that was not asked in this round and may be.
    fn unasked(&self, now: Instant) -> Option<usize> {
        self.tiers.iter().flatten().copied().find(|&index| {
            let tracker = &self.trackers[index];
            !tracker.asked && !tracker.in_flight && tracker.when.reached(now)
        })
    }

    /// Returns whether a read is blocked without a peer.
    fn is_blocked(&self, now: Instant) -> bool {
        self.blocked.is_some_and(|at| now < at + BLOCKED_FOR)
    }

    /// Returns until when the round waits for trackers that were asked; `now` if there is none to wait for.
    fn fallback_at(&self, now: Instant) -> Instant {
        let waiting = self.trackers.iter().any(|tracker| tracker.asked && tracker.in_flight);
        let delay = if self.is_blocked(now) { BLOCKED_DELAY } else { FALLBACK_DELAY };
        self.last_asked.filter(|_| waiting).map_or(now, |asked| now.max(asked + delay))
    }

    /// Returns when the first tracker that is not being asked may be asked again.
    fn first_allowed(&self, now: Instant) -> Option<Instant> {
        self.trackers.iter().filter(|tracker| !tracker.in_flight).filter_map(|tracker| tracker.when.from(now)).min()
    }

    /// Returns when to start again after a round without an answer: `Never` until an outcome changes that.
    fn retry_round(&self, now: Instant) -> When {
        self.first_allowed(now).map_or(When::Never, When::At)
    }

    fn end_round(&mut self, now: Instant, next: When) {
        self.ended = Some(now);
        self.round = Round::Next(next);
    }

    /// Asks a tracker as part of the round.
    fn ask(&mut self, now: Instant, index: usize) -> ScheduledAnnounce {
        self.last_asked = Some(now);
        self.trackers[index].asked = true;
        self.start_announce(index)
    }

    fn start_announce(&mut self, index: usize) -> ScheduledAnnounce {
        let tracker = &mut self.trackers[index];
        tracker.in_flight = true;
        let event = match (tracker.registered && !tracker.restarted, tracker.completed_pending) {
            (false, _) => Some(Event::Started),
            (true, true) => Some(Event::Completed),
            (true, false) => None,
        };
        tracker.announce(index, event)
    }
}

impl Tracker {
    fn new(url: TrackerUrl, tier: usize) -> Self {
        let error = url.usable().err().cloned();
        Self {
            url,
            tier,
            when: if error.is_some() { When::Never } else { When::Any },
            urgent_when: if error.is_some() { When::Never } else { When::Any },
            restarted: false,
            last: error.map(Err),
            tracker_id: None,
            odd: false,
            failures: 0,
            in_flight: false,
            registered: false,
            completed_pending: false,
            asked: false,
        }
    }

    fn announce(&self, index: usize, event: Option<Event>) -> ScheduledAnnounce {
        ScheduledAnnounce {
            tracker: TrackerKey(index),
            url: self.url.clone(),
            event,
            tracker_id: self.tracker_id.clone(),
        }
    }

    /// Returns when to announce completion: at once, because events need not wait for the interval, or after the
    /// back-off if the tracker fails.
    fn completed_at(&self, now: Instant) -> Option<Instant> {
        let due = self.completed_pending && self.registered && !self.in_flight;
        let when = if self.failures == 0 { When::Any } else { self.when };
        if due { when.from(now) } else { None }
    }

    fn change_on_answer(&mut self, reply: &Reply) -> Option<StatusChange> {
        let warned = match &self.last {
            Some(Ok(last)) => last.warning.as_ref(),
            _ => None,
        };
        match (&reply.answer.warning, &reply.ignored) {
            (Some(warning), _) if Some(warning) != warned => Some(StatusChange::Warned(warning.clone())),
            _ if self.failures > 0 => Some(StatusChange::Recovered),
            (_, Some(ignored)) if !std::mem::replace(&mut self.odd, true) => {
                Some(StatusChange::Ignored(ignored.clone()))
            }
            _ => None,
        }
    }

    fn change_on_failure(&self, error: &AnnounceError) -> Option<StatusChange> {
        let same =
            matches!(&self.last, Some(Err(last)) if std::mem::discriminant(last) == std::mem::discriminant(error));
        (!same).then_some(StatusChange::Failed)
    }
}

/// Returns a doubling back-off, varied by 20 % so that clients which failed together do not return together.
fn back_off(failures: u32, rng: &mut StdRng) -> Duration {
    let doubled = FIRST_BACK_OFF.saturating_mul(1 << (failures - 1).min(16));
    doubled.min(MAX_BACK_OFF).mul_f64(rng.random_range(0.8..1.2))
}

#[cfg(test)]
mod tests;
