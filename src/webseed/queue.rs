//! Requests that wait for their block, and which of them make one HTTP request.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::wire::Request;

/// Requests by where their block begins in the torrent. Whoever takes one out answers it: so each is answered once.
#[derive(Debug, Default)]
pub(super) struct Queue {
    wants: BTreeMap<u64, Want>,
    /// Those that nobody fetches yet, in the order in which they came: it is the swarm's, most urgent first.
    waiting: BTreeMap<u64, u64>,
    next_turn: u64,
}

#[derive(Debug)]
struct Want {
    request: Request,
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// Its key in `waiting`.
    Waiting(u64),
    Fetched(FlightId),
}

/// One fetch; never used twice.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct FlightId(pub u64);

impl Queue {
    /// How many there are, fetched and waiting.
    pub(super) fn len(&self) -> usize {
        self.wants.len()
    }

    /// A request whose block begins at `at`. One that is there already stays as it is.
    pub(super) fn push(&mut self, at: u64, request: Request) {
        if self.wants.contains_key(&at) {
            return;
        }
        let turn = self.next_turn;
        self.next_turn += 1;
        self.wants.insert(at, Want { request, stage: Stage::Waiting(turn) });
        self.waiting.insert(turn, at);
    }

    /// Takes out the request whose block begins at `at`, fetched or waiting.
    pub(super) fn take(&mut self, at: u64) -> Option<Request> {
        let want = self.wants.remove(&at)?;
        if let Stage::Waiting(turn) = want.stage {
            self.waiting.remove(&turn);
        }
        Some(want.request)
    }

    /// Takes out every request with a byte in `bytes`.
    pub(super) fn take_touching(&mut self, bytes: &Range<u64>) -> Vec<Request> {
        let touching = |(at, want): (&u64, &Want)| (*at + u64::from(want.request.length) > bytes.start).then_some(*at);
        let there: Vec<u64> = self.wants.range(..bytes.end).rev().map_while(touching).collect();
        there.into_iter().rev().filter_map(|at| self.take(at)).collect()
    }

    /// Whether any request's block begins in `bytes`.
    pub(super) fn wants(&self, bytes: Range<u64>) -> bool {
        bytes.start < bytes.end && self.wants.range(bytes).next().is_some()
    }

    /// The next run to fetch: the request that waits longest, and those that wait for what follows it without a gap, up
    /// to the end that `limit` sets for that beginning. From now on they are fetched by `flight`.
    pub(super) fn next_run(&mut self, flight: FlightId, limit: impl FnOnce(u64) -> u64) -> Option<Range<u64>> {
        let (_, start) = self.waiting.first_key_value()?;
        let start = *start;
        let limit = limit(start);
        let mut end = start;
        while let Some(want) = self.wants.get_mut(&end)
            && let Stage::Waiting(turn) = want.stage
        {
            let block_end = end + u64::from(want.request.length);
            if block_end > limit && end > start {
                break;
            }
            want.stage = Stage::Fetched(flight);
            self.waiting.remove(&turn);
            end = block_end;
        }
        Some(start..end)
    }

    /// Whether anything of its run is left for a fetch to bring.
    pub(super) fn is_of_use(&self, flight: FlightId, run: &Range<u64>) -> bool {
        self.wants.range(run.clone()).any(|(_, want)| want.stage == Stage::Fetched(flight))
    }

    /// A fetch has ended: what it did not bring of its run waits again, before all that came later. How many those are.
    pub(super) fn put_back(&mut self, flight: FlightId, run: &Range<u64>) -> usize {
        let first = self.waiting.first_key_value().map_or(self.next_turn, |(turn, _)| *turn);
        let unanswered = self.wants.range_mut(run.clone()).filter(|(_, want)| want.stage == Stage::Fetched(flight));
        let unanswered: Vec<(&u64, &mut Want)> = unanswered.collect();
        let count = unanswered.len();
        // Turns before the first one may have been used up: then these go last, which is no more than unkind.
        let mut turn = first.checked_sub(count as u64).unwrap_or(self.next_turn);
        for (at, want) in unanswered {
            want.stage = Stage::Waiting(turn);
            self.waiting.insert(turn, *at);
            turn += 1;
        }
        self.next_turn = self.next_turn.max(turn);
        count
    }

    #[cfg(test)]
    fn check(&self) {
        let turn = |(at, want): (&u64, &Want)| match want.stage {
            Stage::Waiting(turn) => Some((turn, *at)),
            Stage::Fetched(_) => None,
        };
        let waiting: BTreeMap<u64, u64> = self.wants.iter().filter_map(turn).collect();
        assert_eq!(waiting, self.waiting);
        assert!(self.waiting.last_key_value().is_none_or(|(turn, _)| *turn < self.next_turn));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LEN: u64 = 16_384;
    const FLIGHT: FlightId = FlightId(1);

    fn request(block: u64) -> Request {
        Request { piece: block as u32, begin: 0, length: LEN as u32 }
    }

    fn queue(blocks: &[u64]) -> Queue {
        let mut queue = Queue::default();
        blocks.iter().for_each(|block| queue.push(block * LEN, request(*block)));
        queue.check();
        queue
    }

    fn blocks(run: Option<Range<u64>>) -> Option<Range<u64>> {
        run.map(|run| run.start / LEN..run.end / LEN)
    }

    #[test]
    fn neighbours_make_one_run_and_the_oldest_begins() {
        let mut queue = queue(&[7, 3, 4, 9, 5, 8]);
        assert_eq!(blocks(queue.next_run(FLIGHT, |_| u64::MAX)), Some(7..10));
        assert_eq!(blocks(queue.next_run(FLIGHT, |start| start + 2 * LEN)), Some(3..5));
        assert_eq!(blocks(queue.next_run(FLIGHT, |start| start)), Some(5..6), "one block at least");
        assert_eq!(queue.next_run(FLIGHT, |_| u64::MAX), None);
        assert_eq!(queue.len(), 6, "each is still to be answered");
        queue.check();
    }

    #[test]
    fn cancelled_requests_are_left_out() {
        let mut queue = queue(&[1, 2, 3]);
        assert_eq!(queue.take(2 * LEN), Some(request(2)));
        assert_eq!(queue.take(2 * LEN), None);
        assert_eq!(blocks(queue.next_run(FLIGHT, |_| u64::MAX)), Some(1..2));
        assert_eq!(queue.take(LEN), Some(request(1)), "while it is fetched, too");
        assert!(!queue.wants(0..3 * LEN) && queue.wants(0..3 * LEN + 1) && !queue.wants(3 * LEN..3 * LEN));
        queue.check();
    }

    #[test]
    fn what_a_fetch_did_not_bring_waits_again_in_front() {
        let mut queue = queue(&[1, 2, 3, 9]);
        let run = queue.next_run(FLIGHT, |_| u64::MAX).unwrap();
        queue.take(LEN);
        assert!(queue.is_of_use(FLIGHT, &run) && !queue.is_of_use(FlightId(2), &run));
        assert_eq!(queue.put_back(FlightId(2), &run), 0, "they are another's");
        assert_eq!(queue.put_back(FLIGHT, &run), 2);
        assert!(!queue.is_of_use(FLIGHT, &run));
        queue.check();
        assert_eq!(blocks(queue.next_run(FLIGHT, |_| u64::MAX)), Some(2..4));
        assert_eq!(blocks(queue.next_run(FLIGHT, |_| u64::MAX)), Some(9..10));
    }

    #[test]
    fn what_touches_a_range_is_taken_at_once() {
        let mut queue = queue(&[1, 2, 3, 4]);
        assert_eq!(queue.take_touching(&(2 * LEN + 5..3 * LEN + 1)), [request(2), request(3)]);
        assert_eq!(queue.take_touching(&(0..LEN)), []);
        queue.check();
    }

    #[derive(Clone, Debug)]
    enum Step {
        Push(u64),
        Take(u64),
        Run(u64),
        Back,
    }

    proptest! {
        #[test]
        fn each_request_is_answered_once(
            steps in proptest::collection::vec(
                prop_oneof![
                    4 => (0u64..30).prop_map(Step::Push),
                    2 => (0u64..30).prop_map(Step::Take),
                    2 => (1u64..8).prop_map(Step::Run),
                    1 => Just(Step::Back),
                ],
                1..200,
            )
        ) {
            let (mut queue, mut model, mut runs) = (Queue::default(), std::collections::BTreeSet::new(), Vec::new());
            for step in steps {
                match step {
                    Step::Push(block) => {
                        queue.push(block * LEN, request(block));
                        model.insert(block);
                    }
                    Step::Take(block) => {
                        prop_assert_eq!(queue.take(block * LEN).is_some(), model.remove(&block));
                    }
                    Step::Run(most) => {
                        let flight = FlightId(runs.len() as u64);
                        if let Some(run) = queue.next_run(flight, |start| start + most * LEN) {
                            prop_assert!(!run.is_empty() && run.end - run.start <= most * LEN);
                            for block in run.start / LEN..run.end / LEN {
                                prop_assert!(model.contains(&block));
                            }
                            runs.push(run);
                        }
                    }
                    Step::Back => {
                        if let Some(run) = runs.pop() {
                            queue.put_back(FlightId(runs.len() as u64), &run);
                        }
                    }
                }
                queue.check();
                prop_assert_eq!(queue.len(), model.len());
            }
        }
    }
}
