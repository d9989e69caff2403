use super::*;
use crate::http::RequestError;
use proptest::prelude::*;

const SECOND: Duration = Duration::from_secs(1);

fn tiers(text: &[&[&str]]) -> Vec<Vec<String>> {
    text.iter().map(|tier| tier.iter().map(|name| format!("http://{name}.example/")).collect()).collect()
}

fn name(order: &Order) -> &str {
    order.url.as_str().trim_start_matches("http://").trim_end_matches(".example/")
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
struct Bench {
    schedule: Schedule,
    now: Instant,
}

impl Bench {
    fn new(tiers: &[Vec<String>], seed: u64) -> Self {
        Self { schedule: Schedule::new(tiers, seed), now: Instant::now() }
    }

    /// The one order due now.
    fn ask(&mut self) -> Order {
        let order = self.schedule.poll(self.now).expect("an order is due");
        self.quiet();
        order
    }

    /// Nothing is due now, and the schedule says when something is.
    fn quiet(&mut self) -> Option<Duration> {
        assert!(self.schedule.poll(self.now).is_none());
        let wakeup = self.schedule.wakeup(self.now);
        assert!(wakeup.is_none_or(|at| at > self.now));
        wakeup.map(|at| at - self.now)
    }

    fn sleep(&mut self) {
        let pause = self.quiet().expect("something is to come");
        self.now += pause;
    }

    fn answer(&mut self, order: &Order, outcome: Result<Reply, AnnounceError>) -> Option<News> {
        self.schedule.done(self.now, order.tracker, order.event, outcome)
    }
}

#[test]
fn first_announce_is_immediate_then_by_the_interval() {
    let mut bench = Bench::new(&tiers(&[&["a"]]), 1);
    let order = bench.ask();
    assert_eq!(order.event, Some(Event::Started));
    bench.answer(&order, ok());
    assert_eq!(bench.quiet(), Some(1800 * SECOND));
    bench.now += 1800 * SECOND;
    assert_eq!(bench.ask().event, None);
}

#[test]
fn intervals_are_clamped() {
    for (interval, min, expected) in [(1, None, 30), (1_000_000, None, 7200), (100, Some(5000), 100)] {
        let mut bench = Bench::new(&tiers(&[&["a"]]), 1);
        let order = bench.ask();
        let reply =
            Reply { interval: Some(interval * SECOND), min_interval: min.map(|n| n * SECOND), ..Reply::default() };
        bench.answer(&order, Ok(reply));
        assert_eq!(bench.quiet(), Some(expected * SECOND));
        assert!(bench.schedule.first_allowed(bench.now).unwrap() <= bench.now + expected * SECOND);
    }
}

#[test]
fn tiers_are_tried_in_order_and_the_first_to_answer_moves_to_the_front() {
    // The example of BEP 12: one tier of three and a backup.
    let mut bench = Bench::new(&tiers(&[&["1", "2", "3"], &["backup"]]), 7);
    let mut asked = Vec::new();
    for _ in 0..3 {
        let order = bench.ask();
        asked.push(name(&order).to_owned());
        bench.answer(&order, if asked.len() == 3 { ok() } else { fail() });
    }
    let mut sorted = asked.clone();
    sorted.sort();
    assert_eq!(sorted, ["1", "2", "3"]);
    bench.now += 1800 * SECOND;
    for expected in [&asked[2], &asked[0], &asked[1], "backup"] {
        let order = bench.ask();
        assert_eq!(name(&order), expected);
        bench.answer(&order, fail());
    }
}

#[test]
fn tiers_are_shuffled_within_but_not_among() {
    let list = tiers(&[&["1", "2", "3", "4", "5"], &["6"]]);
    let order = |seed| Schedule::new(&list, seed).tiers;
    assert!((0..20).any(|seed| order(seed) != order(0)));
    assert!((0..20).all(|seed| order(seed)[1] == [5]));
}

#[test]
fn a_silent_tracker_does_not_hold_up_the_next() {
    let mut bench = Bench::new(&tiers(&[&["silent"], &["b"], &["c"]]), 1);
    let silent = bench.ask();
    assert_eq!(bench.quiet(), Some(PATIENCE));
    bench.now += PATIENCE;
    let second = bench.ask();
    assert_eq!(name(&second), "b");
    bench.answer(&second, ok());
    assert_eq!(bench.quiet(), Some(1800 * SECOND));
    // The answer that comes late counts for its tracker and changes no plan.
    bench.now += SECOND;
    bench.answer(&silent, ok());
    assert_eq!(bench.quiet(), Some(1799 * SECOND));
    assert_eq!(bench.schedule.stopped().len(), 2);
}

#[test]
fn a_silent_tracker_does_not_hold_up_the_next_round() {
    let mut bench = Bench::new(&tiers(&[&["silent"], &["b"]]), 1);
    let silent = bench.ask();
    bench.now += PATIENCE;
    let second = bench.ask();
    bench.answer(&second, fail());
    bench.sleep();
    let retried = bench.schedule.poll(bench.now).or_else(|| {
        bench.sleep();
        bench.schedule.poll(bench.now)
    });
    let second = retried.expect("after its back-off");
    assert_eq!(name(&second), "b");
    // The answer ends the search, late as it is.
    bench.now += SECOND;
    bench.answer(&silent, ok());
    assert_eq!(bench.quiet(), Some(1800 * SECOND));
    bench.answer(&second, fail());
    assert_eq!(bench.quiet(), Some(1800 * SECOND));
    assert_eq!(bench.schedule.status(bench.now)[0].url.as_str(), "http://silent.example/");
}

#[test]
fn barred_trackers_are_shown_and_skipped() {
    let mut bench = Bench::new(&[vec!["udp://a:1".into()], vec!["http://b.example/".into()]], 1);
    bench.schedule.bar(|url| url.as_str().starts_with("udp").then_some(AnnounceError::NotThroughProxy));
    assert_eq!(bench.schedule.status(bench.now)[0].last, Some(Err(AnnounceError::NotThroughProxy)));
    let order = bench.ask();
    assert_eq!(name(&order), "b");
    bench.answer(&order, fail());
    bench.sleep();
    assert_eq!(name(&bench.ask()), "b");
}

#[test]
fn failures_back_off_and_recover() {
    let mut bench = Bench::new(&tiers(&[&["a"]]), 1);
    let mut last = Duration::ZERO;
    for n in 0..12 {
        let order = bench.ask();
        assert_eq!(order.event, Some(Event::Started));
        assert_eq!(bench.answer(&order, fail()), (n == 0).then_some(News::Failed));
        let pause = bench.quiet().unwrap();
        let ideal = (BACK_OFF.0 * (1 << n.min(10))).min(BACK_OFF.1);
        assert!(pause >= ideal.mul_f64(0.8) && pause <= ideal.mul_f64(1.2), "{pause:?} {ideal:?}");
        assert!(n > 6 || pause > last);
        last = pause;
        bench.now += pause;
    }
    let order = bench.ask();
    assert_eq!(bench.answer(&order, Err(AnnounceError::Status("404".into()))), Some(News::Failed));
    bench.sleep();
    let order = bench.ask();
    assert_eq!(bench.answer(&order, ok()), Some(News::Recovered));
    assert_eq!(bench.quiet(), Some(1800 * SECOND));
}

#[test]
fn a_tracker_says_when_to_retry() {
    for (retry, expected) in [
        (Retry::After(300 * SECOND), Some(300 * SECOND)),
        (Retry::After(SECOND), Some(RETRY_IN.0)),
        (Retry::After(Duration::MAX), Some(RETRY_IN.1)),
        (Retry::Never, None),
    ] {
        let mut bench = Bench::new(&tiers(&[&["a"]]), 1);
        let order = bench.ask();
        bench.answer(&order, refused(retry));
        assert_eq!(bench.quiet(), expected);
        bench.schedule.want_peers(bench.now);
        assert_eq!(bench.quiet(), expected);
    }
}

#[test]
fn completed_is_told_once_to_those_who_counted_us() {
    let mut bench = Bench::new(&tiers(&[&["a"], &["b"]]), 1);
    let order = bench.ask();
    // Complete before the first answer has come.
    bench.schedule.completed();
    bench.quiet();
    bench.answer(&order, ok());
    let order = bench.ask();
    assert_eq!((name(&order), order.event), ("a", Some(Event::Completed)));
    // It fails: told again after back-off, then never more.
    bench.answer(&order, fail());
    let pause = bench.quiet().unwrap();
    assert!(pause < 20 * SECOND);
    bench.now += pause;
    let order = bench.ask();
    assert_eq!(order.event, Some(Event::Completed));
    bench.answer(&order, ok());
    assert!(bench.quiet().unwrap() > 1700 * SECOND);
    bench.now += 1800 * SECOND;
    assert_eq!(bench.ask().event, None);
}

#[test]
fn a_tracker_met_after_completion_hears_only_started() {
    let mut bench = Bench::new(&tiers(&[&["a"]]), 1);
    let order = bench.ask();
    bench.schedule.completed();
    bench.answer(&order, fail());
    bench.sleep();
    let order = bench.ask();
    assert_eq!(order.event, Some(Event::Started));
    bench.answer(&order, ok());
    assert_eq!(bench.quiet(), Some(1800 * SECOND));
}

#[test]
fn more_peers_come_from_backups_first_and_from_all_by_their_min_interval() {
    let mut bench = Bench::new(&tiers(&[&["a"], &["b"]]), 1);
    let order = bench.ask();
    bench.answer(&order, ok());
    bench.schedule.want_peers(bench.now);
    assert_eq!(bench.quiet(), Some(WANT_PAUSE));
    bench.now += WANT_PAUSE;
    let order = bench.ask();
    assert_eq!(name(&order), "b");
    bench.answer(&order, ok());
    bench.schedule.want_peers(bench.now);
    bench.schedule.want_peers(bench.now);
    assert_eq!(bench.quiet(), Some(600 * SECOND - WANT_PAUSE));
    bench.now += 600 * SECOND - WANT_PAUSE;
    assert_eq!(name(&bench.ask()), "a");
}

#[test]
fn what_cannot_be_asked_is_shown_and_skipped() {
    let list =
        [vec!["wss://a:1".to_owned(), "nonsense".to_owned()], vec!["http://b/".to_owned(), " http://b/".to_owned()]];
    let mut bench = Bench::new(&list, 1);
    let order = bench.ask();
    assert_eq!(order.url.as_str(), "http://b/");
    bench.answer(&order, ok());
    let status = bench.schedule.status(bench.now);
    assert_eq!(status.len(), 3);
    assert_eq!(status.iter().filter(|s| matches!(s.last, Some(Err(_)))).count(), 2);
    assert!(status.iter().all(|s| s.next_announce.is_some() == (s.tier == 1)));
    assert_eq!(Bench::new(&list[..1], 1).quiet(), None);
    assert_eq!(Bench::new(&[], 1).quiet(), None);
}

#[test]
fn tracker_id_is_sent_back_and_kept() {
    let mut bench = Bench::new(&tiers(&[&["a"]]), 1);
    let order = bench.ask();
    assert_eq!(order.tracker_id, None);
    bench.answer(&order, Ok(Reply { tracker_id: Some(b"x".to_vec()), ..ok().unwrap() }));
    bench.now += 1800 * SECOND;
    let order = bench.ask();
    assert_eq!(order.tracker_id.as_deref(), Some(b"x".as_slice()));
    bench.answer(&order, ok());
    assert_eq!(bench.schedule.stopped()[0].0.tracker_id.as_deref(), Some(b"x".as_slice()));
}

#[test]
fn a_warning_is_news_once() {
    let mut bench = Bench::new(&tiers(&[&["a"]]), 1);
    let warned = || Ok(Reply { answer: Answer { warning: Some("old".into()), ..Answer::default() }, ..ok().unwrap() });
    for expected in [Some(News::Warned("old".into())), None] {
        let order = bench.ask();
        assert_eq!(bench.answer(&order, warned()), expected);
        bench.now += 1800 * SECOND;
    }
}

#[test]
fn the_list_is_bounded() {
    let many = [(0..1000).map(|n| format!("http://{n}.example/")).collect()];
    assert_eq!(Schedule::new(&many, 1).trackers.len(), MAX_TRACKERS);
}

#[derive(Clone, Debug)]
enum Step {
    Sleep,
    Pass(u16),
    Answer(usize),
    Fail(usize),
    Want,
    Completed,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Sleep),
        2 => (0..4000u16).prop_map(Step::Pass),
        4 => any::<usize>().prop_map(Step::Answer),
        3 => any::<usize>().prop_map(Step::Fail),
        2 => Just(Step::Want),
        1 => Just(Step::Completed),
    ]
}

proptest! {
    /// Whatever happens: no tracker has two requests at once or is asked plainly before its min interval, each
    /// starts with `started`, the schedule sleeps between orders, and it never dies while a tracker can be asked.
    #[test]
    fn any_course_keeps_the_rules(seed: u64, steps in prop::collection::vec(step(), 0..80)) {
        let mut bench = Bench::new(&tiers(&[&["a", "b"], &["c"]]), seed);
        let mut flying: Vec<Order> = Vec::new();
        let mut answered = [None; 3];
        for step in steps {
            while let Some(order) = bench.schedule.poll(bench.now) {
                let index = order.tracker.0;
                prop_assert!(flying.iter().all(|other| other.tracker != order.tracker));
                prop_assert_eq!(order.event == Some(Event::Started), answered[index].is_none());
                if let (None, Some(at)) = (order.event, answered[index]) {
                    prop_assert!(bench.now - at >= 600 * SECOND);
                }
                flying.push(order);
            }
            let wakeup = bench.schedule.wakeup(bench.now);
            prop_assert!(wakeup.is_none_or(|at| at > bench.now));
            prop_assert!(wakeup.is_some() || !flying.is_empty());
            match step {
                Step::Sleep => bench.now = wakeup.unwrap_or(bench.now),
                Step::Pass(seconds) => bench.now += u32::from(seconds) * SECOND,
                Step::Answer(n) if !flying.is_empty() => {
                    let order = flying.swap_remove(n % flying.len());
                    answered[order.tracker.0] = Some(bench.now);
                    bench.answer(&order, ok());
                }
                Step::Fail(n) if !flying.is_empty() => {
                    let order = flying.swap_remove(n % flying.len());
                    bench.answer(&order, fail());
                }
                Step::Answer(_) | Step::Fail(_) => {}
                Step::Want => bench.schedule.want_peers(bench.now),
                Step::Completed => bench.schedule.completed(),
            }
        }
    }
}
