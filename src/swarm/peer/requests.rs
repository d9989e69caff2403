//! Our requests at one peer: those that it owes us, and those that we withdrew.
//!
//! A peer without the fast extension drops requests without a word, but answers in about the order of the requests: one
//! that was sent before a request that is answered now has been *passed over*, and is dropped, most likely. A request that
//! we withdrew (with a cancel) has a place in the peer's queue until it is answered or passed over, but no longer than its
//! answer would take. Then its block may be requested from the peer again. The answer may come later all the same; it is
//! taken, and not held against the peer.
//!
//! A peer with the fast extension answers each request, with the block or a reject, also those that we withdraw (BEP 6).
//! It is taken at its word, because libtorrent answers far out of order. A peer that leaves out a request for long is
//! treated as one without the extension for a while, or until the answer comes after all.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use crate::swarm::pieces::BlockId;

/// Maximum number of withdrawn requests remembered. A peer's queue has at most half as many.
const MAX_WITHDRAWN: usize = 4_000;

/// One request of ours.
#[derive(Clone, Copy, Debug)]
pub(in crate::swarm) struct Ask {
    pub(in crate::swarm) id: BlockId,
    pub(in crate::swarm) sent: Instant,
    /// It was sent to an empty pipeline, so that its delay is the base latency.
    pub(in crate::swarm) fresh: bool,
    number: u64,
    /// When a later request was first answered.
    passed_over: Option<Instant>,
}

/// A request that we withdrew and that may be in the peer's queue.
#[derive(Clone, Copy, Debug)]
struct Withdrawn {
    number: u64,
    /// When its answer should be here if one comes.
    until: Instant,
}

/// The request that a message of the peer answers.
#[derive(Debug)]
pub(in crate::swarm) enum Answer {
    Owed(Ask),
    Withdrawn,
    /// There is none.
    Unknown,
}

#[derive(Debug, Default)]
pub(in crate::swarm) struct Requests {
    /// The peer has the fast extension.
    fast: bool,
    /// In the order sent.
    owed: VecDeque<Ask>,
    withdrawn: BTreeMap<BlockId, Withdrawn>,
    /// Requests that were withdrawn and that the peer seems to have dropped, and since when.
    dropped: BTreeMap<BlockId, Instant>,
    /// Number of requests sent.
    sent: u64,
}

impl Requests {
    pub(in crate::swarm) fn new(fast: bool) -> Self {
        Self { fast, ..Self::default() }
    }

    /// Returns whether the peer answers every request, as far as we know.
    pub(in crate::swarm) fn all_answered(&self) -> bool {
        self.fast && self.dropped.is_empty()
    }

    /// Returns the number of requests that the peer owes us.
    pub(in crate::swarm) fn len(&self) -> usize {
        self.owed.len()
    }

    pub(in crate::swarm) fn is_empty(&self) -> bool {
        self.owed.is_empty()
    }

    /// Returns the requests that the peer owes us, in the order sent.
    pub(in crate::swarm) fn iter(&self) -> impl DoubleEndedIterator<Item = &Ask> {
        self.owed.iter()
    }

    pub(in crate::swarm) fn contains(&self, id: BlockId) -> bool {
        self.owed.iter().any(|ask| ask.id == id)
    }

    /// Returns the number of requests that have a place in the peer's queue.
    pub(in crate::swarm) fn queued(&self, now: Instant) -> usize {
        self.owed.len() + self.withdrawn(now)
    }

    /// Returns the number of withdrawn requests that may still be answered.
    pub(in crate::swarm) fn withdrawn(&self, now: Instant) -> usize {
        if self.withdrawn.is_empty() { 0 } else { self.withdrawn.values().filter(|one| now < one.until).count() }
    }

    /// Returns whether a withdrawn request for this block may still be answered, so that another would bring it twice.
    pub(in crate::swarm) fn may_still_answer(&self, now: Instant, id: BlockId) -> bool {
        !self.withdrawn.is_empty() && self.withdrawn.get(&id).is_some_and(|one| now < one.until)
    }

    /// Records a request.
    pub(in crate::swarm) fn push(&mut self, now: Instant, id: BlockId, fresh: bool) {
        self.sent += 1;
        self.owed.push_back(Ask { id, sent: now, fresh, number: self.sent, passed_over: None });
    }

    /// Removes the request that a block answers. Fast, because answers mostly come in order.
    pub(in crate::swarm) fn answered(&mut self, now: Instant, id: BlockId) -> Answer {
        let (answer, number) = if let Some(ask) = self.take(id) {
            (Answer::Owed(ask), ask.number)
        } else if let Some(one) = self.withdrawn.remove(&id) {
            (Answer::Withdrawn, one.number)
        } else if self.dropped.remove(&id).is_some() {
            return Answer::Withdrawn;
        } else {
            return Answer::Unknown;
        };
        for ask in self.owed.iter_mut().take_while(|ask| ask.number < number) {
            ask.passed_over.get_or_insert(now);
        }
        if !self.withdrawn.is_empty() && !self.all_answered() {
            self.drop_withdrawn(now, |one| one.number < number);
        }
        answer
    }

    /// Removes the request that a reject answers: of two for the same block the older.
    pub(in crate::swarm) fn rejected(&mut self, id: BlockId) -> Answer {
        if self.withdrawn.remove(&id).is_some() || self.dropped.remove(&id).is_some() {
            return Answer::Withdrawn;
        }
        self.take(id).map_or(Answer::Unknown, Answer::Owed)
    }

    /// Withdraws a request, whose answer may come until then. Returns false if there is none.
    pub(in crate::swarm) fn withdraw(&mut self, now: Instant, id: BlockId, until: Instant) -> bool {
        let Some(ask) = self.take(id) else { return false };
        if self.withdrawn.len() + self.dropped.len() >= MAX_WITHDRAWN {
            self.dropped.clear();
        }
        if now < until && self.withdrawn.len() < MAX_WITHDRAWN {
            self.withdrawn.insert(id, Withdrawn { number: ask.number, until });
        } else if self.dropped.len() < MAX_WITHDRAWN {
            self.dropped.insert(id, now);
        }
        true
    }

    /// Returns the requests that were passed over at least as long ago as `grace` says for each.
    pub(in crate::swarm) fn passed_over(&self, now: Instant, grace: impl Fn(BlockId) -> Duration) -> Vec<BlockId> {
        // Those that were passed over come first.
        let passed = self.owed.iter().map_while(|ask| Some((ask.id, ask.passed_over?)));
        passed.filter(|(id, since)| now >= *since + grace(*id)).map(|(id, _)| id).collect()
    }

    /// Counts as dropped what should have been answered by now, and forgets what was dropped longer ago than `memory`.
    /// Returns whether a block may be requested again.
    pub(in crate::swarm) fn expire(&mut self, now: Instant, memory: Duration) -> bool {
        let before = self.withdrawn.len();
        if before > 0 {
            self.drop_withdrawn(now, |one| now >= one.until);
        }
        if !self.dropped.is_empty() {
            self.dropped.retain(|_, since| now < *since + memory);
        }
        self.withdrawn.len() < before
    }

    fn drop_withdrawn(&mut self, now: Instant, is_over: impl Fn(&Withdrawn) -> bool) {
        let dropped = &mut self.dropped;
        self.withdrawn.retain(|id, one| {
            let over = is_over(one);
            if over {
                dropped.insert(*id, now);
            }
            !over
        });
    }

    fn take(&mut self, id: BlockId) -> Option<Ask> {
        let at = self.owed.iter().position(|ask| ask.id == id)?;
        self.owed.remove(at)
    }

    pub(in crate::swarm) fn check(&self, now: Instant, most: usize) {
        assert!(self.owed.len() <= most && self.queued(now) <= most + MAX_WITHDRAWN);
        assert!(self.withdrawn.len() <= MAX_WITHDRAWN && self.dropped.len() <= 2 * MAX_WITHDRAWN);
        assert!(self.owed.iter().zip(self.owed.iter().skip(1)).all(|(a, b)| a.number < b.number));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn id(block: u32) -> BlockId {
        BlockId { piece: 0, block }
    }

    fn requests(now: Instant, blocks: u32) -> Requests {
        let mut requests = Requests::default();
        (0..blocks).for_each(|block| requests.push(now, id(block), false));
        requests
    }

    #[test]
    fn a_later_answer_passes_over_what_was_sent_before() {
        let now = Instant::now();
        let mut requests = requests(now, 4);
        assert!(requests.withdraw(now, id(1), now + SECOND));
        assert!(requests.may_still_answer(now, id(1)) && requests.queued(now) == 4);
        assert!(matches!(requests.answered(now, id(2)), Answer::Owed(ask) if ask.id == id(2)));
        assert!(!requests.may_still_answer(now, id(1)) && requests.queued(now) == 2);
        let grace = |_| SECOND / 10;
        assert!(requests.passed_over(now, grace).is_empty());
        assert_eq!(requests.passed_over(now + SECOND / 10, grace), [id(0)]);
        // The answer comes after all.
        assert!(matches!(requests.answered(now, id(1)), Answer::Withdrawn));
        assert!(matches!(requests.answered(now, id(1)), Answer::Unknown));
    }

    #[test]
    fn a_withdrawn_request_is_over_when_its_answer_should_be_here() {
        let now = Instant::now();
        let mut requests = requests(now, 2);
        assert!(requests.withdraw(now, id(0), now + SECOND) && !requests.withdraw(now, id(0), now));
        assert!(!requests.expire(now, SECOND));
        assert!(requests.expire(now + SECOND, SECOND) && requests.queued(now + SECOND) == 1);
        assert!(!requests.expire(now + 3 * SECOND, SECOND));
        assert!(matches!(requests.answered(now, id(0)), Answer::Unknown), "forgotten");
    }

    #[test]
    fn a_reject_answers_the_older_of_two_requests() {
        let now = Instant::now();
        let mut requests = requests(now, 1);
        requests.withdraw(now, id(0), now);
        requests.push(now, id(0), false);
        assert!(matches!(requests.rejected(id(0)), Answer::Withdrawn));
        assert!(matches!(requests.rejected(id(0)), Answer::Owed(_)));
        assert!(matches!(requests.rejected(id(0)), Answer::Unknown));
    }
}
