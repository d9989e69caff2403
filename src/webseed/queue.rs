//! Block requests that wait for their data, and their grouping into HTTP requests.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::wire::Request;

/// Requests by the offset of their block in the torrent. Taking a request out obliges the caller to answer it, so each
/// is answered exactly once.
#[derive(Debug, Default)]
pub(super) struct Queue {
    entries: BTreeMap<u64, Entry>,
    /// Offsets of requests that no fetch handles yet, in order of arrival, which is the swarm's order of urgency.
    waiting: BTreeMap<u64, u64>,
    next_number: u64,
}

#[derive(Debug)]
struct Entry {
    request: Request,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Waiting, with its key in `waiting`.
    Waiting(u64),
    InFlight(FetchId),
}

/// Identifies a fetch; never reused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct FetchId(pub u64);

impl Queue {
    /// Returns the number of requests, waiting and in flight.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Adds a request for the block at `at`. A request for the same block that is already queued stays unchanged.
    pub(super) fn push(&mut self, at: u64, request: Request) {
        if self.entries.contains_key(&at) {
            return;
        }
        let number = self.next_number;
        self.next_number += 1;
        self.entries.insert(at, Entry { request, state: State::Waiting(number) });
        self.waiting.insert(number, at);
    }

    /// Removes and returns the request for the block at `at`.
    pub(super) fn take(&mut self, at: u64) -> Option<Request> {
        let entry = self.entries.remove(&at)?;
        if let State::Waiting(number) = entry.state {
            self.waiting.remove(&number);
        }
        Some(entry.request)
    }

    /// Removes and returns all requests that overlap `bytes`.
    pub(super) fn take_touching(&mut self, bytes: &Range<u64>) -> Vec<Request> {
        let touching =
            |(at, entry): (&u64, &Entry)| (*at + u64::from(entry.request.length) > bytes.start).then_some(*at);
        let offsets: Vec<u64> = self.entries.range(..bytes.end).rev().map_while(touching).collect();
        offsets.into_iter().rev().filter_map(|at| self.take(at)).collect()
    }

    /// Returns whether a requested block starts in `bytes`.
    pub(super) fn contains_start_in(&self, bytes: Range<u64>) -> bool {
        bytes.start < bytes.end && self.entries.range(bytes).next().is_some()
    }

    /// Returns the next run to fetch and assigns it to `fetch`: the request that has waited longest and the waiting
    /// requests directly after it, up to the end that `limit` returns for the start of the run.
    pub(super) fn next_run(&mut self, fetch: FetchId, limit: impl FnOnce(u64) -> u64) -> Option<Range<u64>> {
        let (_, start) = self.waiting.first_key_value()?;
        let start = *start;
        let limit = limit(start);
        let mut end = start;
        while let Some(entry) = self.entries.get_mut(&end)
            && let State::Waiting(number) = entry.state
        {
            let block_end = end + u64::from(entry.request.length);
            if block_end > limit && end > start {
                break;
            }
            entry.state = State::InFlight(fetch);
            self.waiting.remove(&number);
            end = block_end;
        }
        Some(start..end)
    }

    /// Returns whether any request of a run is still assigned to this fetch.
    pub(super) fn has_requests(&self, fetch: FetchId, run: &Range<u64>) -> bool {
        self.entries.range(run.clone()).any(|(_, entry)| entry.state == State::InFlight(fetch))
    }

    /// Puts the unanswered requests of an ended fetch in front of the waiting ones and returns their number.
    pub(super) fn put_back(&mut self, fetch: FetchId, run: &Range<u64>) -> usize {
        let first = self.waiting.first_key_value().map_or(self.next_number, |(number, _)| *number);
        let unanswered = self.entries.range_mut(run.clone()).filter(|(_, entry)| entry.state == State::InFlight(fetch));
        let unanswered: Vec<(&u64, &mut Entry)> = unanswered.collect();
        let count = unanswered.len();
        // If there are no smaller numbers left, the requests are put last, which only delays them.
        let mut number = first.checked_sub(count as u64).unwrap_or(self.next_number);
        for (at, entry) in unanswered {
            entry.state = State::Waiting(number);
            self.waiting.insert(number, *at);
            number += 1;
        }
        self.next_number = self.next_number.max(number);
        count
    }

    #[cfg(test)]
    fn check(&self) {
        let number = |(at, entry): (&u64, &Entry)| match entry.state {
            State::Waiting(number) => Some((number, *at)),
            State::InFlight(_) => None,
        };
        let waiting: BTreeMap<u64, u64> = self.entries.iter().filter_map(number).collect();
        assert_eq!(waiting, self.waiting);
        assert!(self.waiting.last_key_value().is_none_or(|(number, _)| *number < self.next_number));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LEN: u64 = 16_384;
    const FETCH: FetchId = FetchId(1);

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
    fn adjacent_requests_form_one_run_that_starts_with_the_oldest() {
        let mut queue = queue(&[7, 3, 4, 9, 5, 8]);
        assert_eq!(blocks(queue.next_run(FETCH, |_| u64::MAX)), Some(7..10));
        assert_eq!(blocks(queue.next_run(FETCH, |start| start + 2 * LEN)), Some(3..5));
        assert_eq!(blocks(queue.next_run(FETCH, |start| start)), Some(5..6), "one block at least");
        assert_eq!(queue.next_run(FETCH, |_| u64::MAX), None);
        assert_eq!(queue.len(), 6, "each is still to be answered");
        queue.check();
    }

    #[test]
    fn cancelled_requests_are_left_out() {
        let mut queue = queue(&[1, 2, 3]);
        assert_eq!(queue.take(2 * LEN), Some(request(2)));
        assert_eq!(queue.take(2 * LEN), None);
        assert_eq!(blocks(queue.next_run(FETCH, |_| u64::MAX)), Some(1..2));
        assert_eq!(queue.take(LEN), Some(request(1)), "while it is fetched, too");
        assert!(
            !queue.contains_start_in(0..3 * LEN)
                && queue.contains_start_in(0..3 * LEN + 1)
                && !queue.contains_start_in(3 * LEN..3 * LEN)
        );
        queue.check();
    }

    #[test]
    fn unanswered_requests_return_to_the_front() {
        let mut queue = queue(&[1, 2, 3, 9]);
        let run = queue.next_run(FETCH, |_| u64::MAX).unwrap();
        queue.take(LEN);
        assert!(queue.has_requests(FETCH, &run) && !queue.has_requests(FetchId(2), &run));
        assert_eq!(queue.put_back(FetchId(2), &run), 0, "they are another's");
        assert_eq!(queue.put_back(FETCH, &run), 2);
        assert!(!queue.has_requests(FETCH, &run));
        queue.check();
        assert_eq!(blocks(queue.next_run(FETCH, |_| u64::MAX)), Some(2..4));
        assert_eq!(blocks(queue.next_run(FETCH, |_| u64::MAX)), Some(9..10));
    }

    #[test]
    fn all_requests_that_overlap_a_range_are_taken() {
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
                        let fetch = FetchId(runs.len() as u64);
                        if let Some(run) = queue.next_run(fetch, |start| start + most * LEN) {
                            prop_assert!(!run.is_empty() && run.end - run.start <= most * LEN);
                            for block in run.start / LEN..run.end / LEN {
                                prop_assert!(model.contains(&block));
                            }
                            runs.push(run);
                        }
                    }
                    Step::Back => {
                        if let Some(run) = runs.pop() {
                            queue.put_back(FetchId(runs.len() as u64), &run);
                        }
                    }
                }
                queue.check();
                prop_assert_eq!(queue.len(), model.len());
            }
        }
    }
}
