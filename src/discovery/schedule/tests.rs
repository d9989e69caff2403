use super::*;
use crate::http::RequestError;
use proptest::prelude::*;

const SECOND: Duration = Duration::from_secs(1);

fn tiers(text: &[&[&str]]) -> Vec<Vec<String>> {
    text.iter().map(|tier| tier.iter().map(|name| format!("http://{name}.example/")).collect()).collect()
}

fn name(scheduled: &ScheduledAnnounce) -> &str {
    scheduled.url.as_str().trim_start_matches("http://").trim_end_matches(".example/")
}

fn ok() -> Result<Reply, AnnounceError> {
    Ok(Reply { interval: Some(1800 * SECOND), min_interval: Some(600 * SECOND), ..Reply::default() })
}

fn refused(retry: Retry) -> Result<Reply, AnnounceError> {
    Err(AnnounceError::Refused { reason: "no".into(), retry })
}

fn fail() -> Result<Reply, AnnounceError> {
    Err(AnnounceError::Request(RequestError::Connect("refused".into())))
}

/// A schedule with a clock.
struct Clocked {
    schedule: Schedule,
    now: Instant,
}

impl Clocked {
    fn new(tiers: &[Vec<String>], seed: u64) -> Self {
        Self { schedule: Schedule::new(tiers, seed), now: Instant::now() }
    }

    /// Returns the only announce that is due now.
    fn ask(&mut self) -> ScheduledAnnounce {
        let scheduled = self.schedule.poll(self.now).expect("an announce is due");
        self.idle_time();
        scheduled
    }

    /// Asserts that nothing is due now and returns how long the schedule wants to sleep.
    fn idle_time(&mut self) -> Option<Duration> {
        assert!(self.schedule.poll(self.now).is_none());
        let wakeup = self.schedule.wakeup(self.now);
        assert!(wakeup.is_none_or(|at| at > self.now));
        wakeup.map(|at| at - self.now)
    }

    fn sleep(&mut self) {
        let pause = self.idle_time().expect("another announce is scheduled");
        self.now += pause;
    }

    fn answer(&mut self, scheduled: &ScheduledAnnounce, outcome: Result<Reply, AnnounceError>) -> Option<StatusChange> {
        self.schedule.finish(self.now, scheduled.tracker, scheduled.event, outcome)
    }
}

#[test]
fn first_announce_is_immediate_then_by_the_interval() {
    let mut clocked = Clocked::new(&tiers(&[&["a"]]), 1);
    let scheduled = clocked.ask();
    assert_eq!(scheduled.event, Some(Event::Started));
    clocked.answer(&scheduled, ok());
    assert_eq!(clocked.idle_time(), Some(1800 * SECOND));
    clocked.now += 1800 * SECOND;
    assert_eq!(clocked.ask().event, None);
}

#[test]
fn intervals_are_clamped() {
    for (interval, min, expected) in [(1, None, 30), (1_000_000, None, 7200), (100, Some(5000), 100)] {
        let mut clocked = Clocked::new(&tiers(&[&["a"]]), 1);
        let scheduled = clocked.ask();
        let reply =
            Reply { interval: Some(interval * SECOND), min_interval: min.map(|n| n * SECOND), ..Reply::default() };
        clocked.answer(&scheduled, Ok(reply));
        assert_eq!(clocked.idle_time(), Some(expected * SECOND));
        assert!(clocked.schedule.first_allowed(clocked.now).unwrap() <= clocked.now + expected * SECOND);
    }
}

#[test]
fn tiers_are_tried_in_order_and_the_first_to_answer_moves_to_the_front() {
    // The example of BEP 12: one tier of three and a backup.
    let mut clocked = Clocked::new(&tiers(&[&["1", "2", "3"], &["backup"]]), 7);
    let mut asked = Vec::new();
    for _ in 0..3 {
        let scheduled = clocked.ask();
        asked.push(name(&scheduled).to_owned());
        clocked.answer(&scheduled, if asked.len() == 3 { ok() } else { fail() });
    }
    let mut sorted = asked.clone();
    sorted.sort();
    assert_eq!(sorted, ["1", "2", "3"]);
    clocked.now += 1800 * SECOND;
    for expected in [&asked[2], &asked[0], &asked[1], "backup"] {
        let scheduled = clocked.ask();
        assert_eq!(name(&scheduled), expected);
        clocked.answer(&scheduled, fail());
    }
}

#[test]
fn tiers_are_shuffled_within_but_not_among() {
    let list = tiers(&[&["1", "2", "3", "4", "5"], &["6"]]);
    let tier_order = |seed| Schedule::new(&list, seed).tiers;
    assert!((0..20).any(|seed| tier_order(seed) != tier_order(0)));
    assert!((0..20).all(|seed| tier_order(seed)[1] == [5]));
}

#[test]
fn a_silent_tracker_does_not_delay_the_next() {
    let mut clocked = Clocked::new(&tiers(&[&["silent"], &["b"], &["c"]]), 1);
    let silent = clocked.ask();
    assert_eq!(clocked.idle_time(), Some(FALLBACK_DELAY));
    clocked.now += FALLBACK_DELAY;
    let second = clocked.ask();
    assert_eq!(name(&second), "b");
    clocked.answer(&second, ok());
    assert_eq!(clocked.idle_time(), Some(1800 * SECOND));
    // The late answer is recorded for its tracker but does not change the plan.
    clocked.now += SECOND;
    clocked.answer(&silent, ok());
    assert_eq!(clocked.idle_time(), Some(1799 * SECOND));
    assert_eq!(clocked.schedule.stopped().len(), 2);
}

#[test]
fn a_silent_tracker_does_not_delay_the_next_round() {
    let mut clocked = Clocked::new(&tiers(&[&["silent"], &["b"]]), 1);
    let silent = clocked.ask();
    clocked.now += FALLBACK_DELAY;
    let second = clocked.ask();
    clocked.answer(&second, fail());
    clocked.sleep();
    let retried = clocked.schedule.poll(clocked.now).or_else(|| {
        clocked.sleep();
        clocked.schedule.poll(clocked.now)
    });
    let second = retried.expect("after its back-off");
    assert_eq!(name(&second), "b");
    // Although it is late, the answer ends the search.
    clocked.now += SECOND;
    clocked.answer(&silent, ok());
    assert_eq!(clocked.idle_time(), Some(1800 * SECOND));
    clocked.answer(&second, fail());
    assert_eq!(clocked.idle_time(), Some(1800 * SECOND));
    assert_eq!(clocked.schedule.status(clocked.now)[0].url.as_str(), "http://silent.example/");
}

#[test]
fn disabled_trackers_are_shown_and_skipped() {
    let mut clocked = Clocked::new(&[vec!["udp://a:1".into()], vec!["http://b.example/".into()]], 1);
    clocked.schedule.disable(|url| url.as_str().starts_with("udp").then_some(AnnounceError::NotThroughProxy));
    assert_eq!(clocked.schedule.status(clocked.now)[0].last, Some(Err(AnnounceError::NotThroughProxy)));
    let scheduled = clocked.ask();
    assert_eq!(name(&scheduled), "b");
    clocked.answer(&scheduled, fail());
    clocked.sleep();
    assert_eq!(name(&clocked.ask()), "b");
}

#[test]
fn failures_back_off_and_recover() {
    let mut clocked = Clocked::new(&tiers(&[&["a"]]), 1);
    let mut last = Duration::ZERO;
    for n in 0..12 {
        let scheduled = clocked.ask();
        assert_eq!(scheduled.event, Some(Event::Started));
        assert_eq!(clocked.answer(&scheduled, fail()), (n == 0).then_some(StatusChange::Failed));
        let pause = clocked.idle_time().unwrap();
        let ideal = (FIRST_BACK_OFF * (1 << n.min(10))).min(MAX_BACK_OFF);
        assert!(pause >= ideal.mul_f64(0.8) && pause <= ideal.mul_f64(1.2), "{pause:?} {ideal:?}");
        assert!(n > 6 || pause > last);
        last = pause;
        clocked.now += pause;
    }
    let scheduled = clocked.ask();
    assert_eq!(clocked.answer(&scheduled, Err(AnnounceError::Status("404".into()))), Some(StatusChange::Failed));
    clocked.sleep();
    let scheduled = clocked.ask();
    assert_eq!(clocked.answer(&scheduled, ok()), Some(StatusChange::Recovered));
    assert_eq!(clocked.idle_time(), Some(1800 * SECOND));
}

#[test]
fn a_tracker_says_when_to_retry() {
    for (retry, expected) in [
        (Retry::After(300 * SECOND), Some(300 * SECOND)),
        (Retry::After(SECOND), Some(MIN_RETRY_IN)),
        (Retry::After(Duration::MAX), Some(MAX_RETRY_IN)),
        (Retry::Never, None),
    ] {
        let mut clocked = Clocked::new(&tiers(&[&["a"]]), 1);
        let scheduled = clocked.ask();
        clocked.answer(&scheduled, refused(retry));
        assert_eq!(clocked.idle_time(), expected);
        clocked.schedule.want_peers(clocked.now, Want::Few);
        assert_eq!(clocked.idle_time(), expected);
    }
}

#[test]
fn completed_is_announced_once_to_trackers_that_counted_us() {
    let mut clocked = Clocked::new(&tiers(&[&["a"], &["b"]]), 1);
    let scheduled = clocked.ask();
    // The download completes before the first answer arrives.
    clocked.schedule.completed();
    clocked.idle_time();
    clocked.answer(&scheduled, ok());
    let scheduled = clocked.ask();
    assert_eq!((name(&scheduled), scheduled.event), ("a", Some(Event::Completed)));
    // The announce fails, so it is repeated after the back-off, and then never again.
    clocked.answer(&scheduled, fail());
    let pause = clocked.idle_time().unwrap();
    assert!(pause < 20 * SECOND);
    clocked.now += pause;
    let scheduled = clocked.ask();
    assert_eq!(scheduled.event, Some(Event::Completed));
    clocked.answer(&scheduled, ok());
    assert!(clocked.idle_time().unwrap() > 1700 * SECOND);
    clocked.now += 1800 * SECOND;
    assert_eq!(clocked.ask().event, None);
}

#[test]
fn a_tracker_first_asked_after_completion_gets_only_started() {
    let mut clocked = Clocked::new(&tiers(&[&["a"]]), 1);
    let scheduled = clocked.ask();
    clocked.schedule.completed();
    clocked.answer(&scheduled, fail());
    clocked.sleep();
    let scheduled = clocked.ask();
    assert_eq!(scheduled.event, Some(Event::Started));
    clocked.answer(&scheduled, ok());
    assert_eq!(clocked.idle_time(), Some(1800 * SECOND));
}

#[test]
fn a_blocked_read_asks_again_as_soon_as_the_tracker_allows() {
    for (min, expected) in [(None, WANT_PAUSE), (Some(600 * SECOND), 600 * SECOND)] {
        let mut clocked = Clocked::new(&tiers(&[&["a"]]), 1);
        let scheduled = clocked.ask();
        clocked.answer(&scheduled, Ok(Reply { min_interval: min, ..ok().unwrap() }));
        clocked.schedule.want_peers(clocked.now, Want::Read);
        assert_eq!(clocked.idle_time(), Some(expected));
        clocked.now += expected;
        let scheduled = clocked.ask();
        assert_eq!(scheduled.event, None);
        clocked.answer(&scheduled, fail());
        clocked.schedule.want_peers(clocked.now, Want::Read);
        assert!(clocked.idle_time().unwrap() >= FIRST_BACK_OFF.mul_f64(0.8), "a failure is not urgent");
    }
}

#[test]
fn a_seed_that_lost_pieces_starts_again_at_once() {
    let mut clocked = Clocked::new(&tiers(&[&["a"], &["never answers"]]), 1);
    let scheduled = clocked.ask();
    clocked.answer(&scheduled, ok());
    clocked.schedule.completed();
    let scheduled = clocked.ask();
    clocked.answer(&scheduled, ok());
    assert!(clocked.idle_time().unwrap() > 1700 * SECOND);
    clocked.schedule.incomplete();
    clocked.schedule.want_peers(clocked.now, Want::Read);
    let scheduled = clocked.ask();
    assert_eq!((name(&scheduled), scheduled.event), ("a", Some(Event::Started)));
    clocked.answer(&scheduled, ok());
    // Once.
    clocked.schedule.want_peers(clocked.now, Want::Read);
    clocked.now += 600 * SECOND;
    assert!(
        std::iter::from_fn(|| clocked.schedule.poll(clocked.now))
            .all(|next| name(&next) != "a" || next.event.is_none())
    );
}

#[test]
fn a_silent_tracker_delays_no_other_while_a_read_is_blocked() {
    let trackers = tiers(&[&["silent"], &["quiet"], &["c"]]);
    for (want, delay) in [(Want::Few, FALLBACK_DELAY), (Want::Read, FALLBACK_DELAY), (Want::Blocked, BLOCKED_DELAY)] {
        let mut clocked = Clocked::new(&trackers, 1);
        assert_eq!(name(&clocked.ask()), "silent");
        clocked.schedule.want_peers(clocked.now, want);
        for next in ["quiet", "c"] {
            assert_eq!(clocked.idle_time(), Some(delay), "{want:?}");
            clocked.now += delay;
            assert_eq!(name(&clocked.ask()), next);
        }
    }
}

#[test]
fn all_trackers_are_asked_while_a_read_is_blocked_although_some_have_answered() {
    let mut clocked = Clocked::new(&tiers(&[&["a"], &["b"], &["c"], &["d"]]), 1);
    let scheduled = clocked.ask();
    clocked.answer(&scheduled, ok());
    assert_eq!(clocked.idle_time(), Some(1800 * SECOND));
    // The peers of the first are dead.
    clocked.now += 10 * SECOND;
    clocked.schedule.want_peers(clocked.now, Want::Blocked);
    let scheduled = clocked.ask();
    assert_eq!(name(&scheduled), "b");
    assert_eq!(clocked.idle_time(), Some(BLOCKED_DELAY));
    clocked.now += BLOCKED_DELAY;
    assert_eq!(name(&clocked.ask()), "c");
    // The peers of the second are good: the last one is left alone.
    clocked.answer(&scheduled, ok());
    clocked.now += BLOCKED_FOR;
    let next_round = clocked.idle_time().unwrap();
    assert!(next_round > SECOND, "{next_round:?}");
    // Each is asked once a round, however long the read waits.
    let mut asked = Vec::new();
    let end = clocked.now + 500 * SECOND;
    while clocked.now < end {
        clocked.schedule.want_peers(clocked.now, Want::Blocked);
        while let Some(scheduled) = clocked.schedule.poll(clocked.now) {
            asked.push(name(&scheduled).to_owned());
            clocked.answer(&scheduled, ok());
        }
        clocked.now += BLOCKED_DELAY;
    }
    assert_eq!(asked, ["d"]);
}

#[test]
fn more_peers_come_from_backups_first_and_from_all_by_their_min_interval() {
    let mut clocked = Clocked::new(&tiers(&[&["a"], &["b"]]), 1);
    let scheduled = clocked.ask();
    clocked.answer(&scheduled, ok());
    clocked.schedule.want_peers(clocked.now, Want::Few);
    assert_eq!(clocked.idle_time(), Some(WANT_PAUSE));
    clocked.now += WANT_PAUSE;
    let scheduled = clocked.ask();
    assert_eq!(name(&scheduled), "b");
    clocked.answer(&scheduled, ok());
    clocked.schedule.want_peers(clocked.now, Want::Few);
    clocked.schedule.want_peers(clocked.now, Want::Few);
    assert_eq!(clocked.idle_time(), Some(600 * SECOND - WANT_PAUSE));
    clocked.now += 600 * SECOND - WANT_PAUSE;
    assert_eq!(name(&clocked.ask()), "a");
}

#[test]
fn unusable_trackers_are_shown_and_skipped() {
    let list =
        [vec!["wss://a:1".to_owned(), "nonsense".to_owned()], vec!["http://b/".to_owned(), " http://b/".to_owned()]];
    let mut clocked = Clocked::new(&list, 1);
    let scheduled = clocked.ask();
    assert_eq!(scheduled.url.as_str(), "http://b/");
    clocked.answer(&scheduled, ok());
    let status = clocked.schedule.status(clocked.now);
    assert_eq!(status.len(), 3);
    assert_eq!(status.iter().filter(|s| matches!(s.last, Some(Err(_)))).count(), 2);
    assert!(status.iter().all(|s| s.next_announce.is_some() == (s.tier == 1)));
    assert_eq!(Clocked::new(&list[..1], 1).idle_time(), None);
    assert_eq!(Clocked::new(&[], 1).idle_time(), None);
}

#[test]
fn tracker_id_is_sent_back_and_kept() {
    let mut clocked = Clocked::new(&tiers(&[&["a"]]), 1);
    let scheduled = clocked.ask();
    assert_eq!(scheduled.tracker_id, None);
    clocked.answer(&scheduled, Ok(Reply { tracker_id: Some(b"x".to_vec()), ..ok().unwrap() }));
    clocked.now += 1800 * SECOND;
    let scheduled = clocked.ask();
    assert_eq!(scheduled.tracker_id.as_deref(), Some(b"x".as_slice()));
    clocked.answer(&scheduled, ok());
    assert_eq!(clocked.schedule.stopped()[0].0.tracker_id.as_deref(), Some(b"x".as_slice()));
}

#[test]
fn a_warning_is_reported_once() {
    let mut clocked = Clocked::new(&tiers(&[&["a"]]), 1);
    let warned = || Ok(Reply { answer: Answer { warning: Some("old".into()), ..Answer::default() }, ..ok().unwrap() });
    for expected in [Some(StatusChange::Warned("old".into())), None] {
        let scheduled = clocked.ask();
        assert_eq!(clocked.answer(&scheduled, warned()), expected);
        clocked.now += 1800 * SECOND;
    }
}

#[test]
fn ignored_parts_of_replies_are_reported_once() {
    let mut clocked = Clocked::new(&tiers(&[&["a"]]), 1);
    let odd = |text: &str| Ok(Reply { ignored: Some(text.into()), ..ok().unwrap() });
    // Not even when the tracker fails in between, or when something else is wrong.
    let outcomes = [
        (ok(), None),
        (odd("bytes"), Some(StatusChange::Ignored("bytes".into()))),
        (odd("bytes"), None),
        (fail(), Some(StatusChange::Failed)),
        (odd("more bytes"), Some(StatusChange::Recovered)),
        (odd("more bytes"), None),
    ];
    for (outcome, expected) in outcomes {
        let scheduled = clocked.ask();
        assert_eq!(clocked.answer(&scheduled, outcome), expected);
        clocked.now += 3600 * SECOND;
    }
}

#[test]
fn the_list_is_bounded() {
    let many = [(0..1000).map(|n| format!("http://{n}.example/")).collect()];
    let schedule = Schedule::new(&many, 1);
    assert_eq!((schedule.trackers.len(), schedule.excess()), (MAX_TRACKERS, 1000 - MAX_TRACKERS));
}

#[derive(Clone, Debug)]
enum Step {
    Sleep,
    Pass(u16),
    Answer(usize),
    Fail(usize),
    Want(Want),
    Completed,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Sleep),
        2 => (0..4000u16).prop_map(Step::Pass),
        4 => any::<usize>().prop_map(Step::Answer),
        3 => any::<usize>().prop_map(Step::Fail),
        2 => prop::sample::select(vec![Want::Few, Want::Read, Want::Blocked]).prop_map(Step::Want),
        1 => Just(Step::Completed),
    ]
}

proptest! {
    /// For any sequence of events: no tracker has two requests at once or gets a periodic announce before its minimum
    /// interval, each starts with `started`, the schedule sleeps between announces, and it never stops while a tracker
    /// can be asked.
    #[test]
    fn any_sequence_of_events_keeps_the_rules(seed: u64, steps in prop::collection::vec(step(), 0..80)) {
        let mut clocked = Clocked::new(&tiers(&[&["a", "b"], &["c"]]), seed);
        let mut in_flight: Vec<ScheduledAnnounce> = Vec::new();
        let mut answered = [None; 3];
        for step in steps {
            while let Some(scheduled) = clocked.schedule.poll(clocked.now) {
                let index = scheduled.tracker.0;
                prop_assert!(in_flight.iter().all(|other| other.tracker != scheduled.tracker));
                prop_assert_eq!(scheduled.event == Some(Event::Started), answered[index].is_none());
                if let (None, Some(at)) = (scheduled.event, answered[index]) {
                    prop_assert!(clocked.now - at >= 600 * SECOND);
                }
                in_flight.push(scheduled);
            }
            let wakeup = clocked.schedule.wakeup(clocked.now);
            prop_assert!(wakeup.is_none_or(|at| at > clocked.now));
            prop_assert!(wakeup.is_some() || !in_flight.is_empty());
            match step {
                Step::Sleep => clocked.now = wakeup.unwrap_or(clocked.now),
                Step::Pass(seconds) => clocked.now += u32::from(seconds) * SECOND,
                Step::Answer(n) if !in_flight.is_empty() => {
                    let scheduled = in_flight.swap_remove(n % in_flight.len());
                    answered[scheduled.tracker.0] = Some(clocked.now);
                    clocked.answer(&scheduled, ok());
                }
                Step::Fail(n) if !in_flight.is_empty() => {
                    let scheduled = in_flight.swap_remove(n % in_flight.len());
                    clocked.answer(&scheduled, fail());
                }
                Step::Answer(_) | Step::Fail(_) => {}
                Step::Want(want) => clocked.schedule.want_peers(clocked.now, want),
                Step::Completed => clocked.schedule.completed(),
            }
        }
    }
}
