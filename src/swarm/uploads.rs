//! What one peer asked of us: a bounded queue, of which a few blocks at a time are handed to the driver.

use std::collections::VecDeque;

use crate::wire::Request;

/// Requests queued for one peer at most (what libtorrent allows by default).
pub(super) const MAX_QUEUE: usize = 512;
/// Blocks handed to the driver and not yet sent, for one peer at most.
const MAX_IN_FLIGHT: usize = 16;
/// The longest block served, in bytes; some clients ask for more than 16 KiB.
pub(super) const MAX_LENGTH: u32 = 128 * 1024;

#[derive(Debug, Default)]
pub(super) struct Uploads {
    queue: VecDeque<Request>,
    in_flight: Vec<Request>,
}

impl Uploads {
    /// False if the queue is full. What is asked for twice is queued once.
    pub(super) fn push(&mut self, request: Request) -> bool {
        if self.queue.contains(&request) || self.in_flight.contains(&request) {
            return true;
        }
        if self.queue.len() >= MAX_QUEUE {
            return false;
        }
        self.queue.push_back(request);
        true
    }

    /// The next one to hand to the driver, if it may have another.
    pub(super) fn next(&mut self) -> Option<Request> {
        if self.in_flight.len() >= MAX_IN_FLIGHT {
            return None;
        }
        let request = self.queue.pop_front()?;
        self.in_flight.push(request);
        Some(request)
    }

    /// The driver answered. False if it was never given that one.
    pub(super) fn done(&mut self, request: Request) -> bool {
        let at = self.in_flight.iter().position(|other| *other == request);
        at.map(|at| self.in_flight.swap_remove(at)).is_some()
    }

    /// Whether it was queued, and now is not. What the driver has is sent.
    pub(super) fn cancel(&mut self, request: Request) -> bool {
        let at = self.queue.iter().position(|other| *other == request);
        at.and_then(|at| self.queue.remove(at)).is_some()
    }

    /// Empties the queue, but for what `keep` says.
    pub(super) fn clear(&mut self, keep: impl Fn(&Request) -> bool) -> Vec<Request> {
        let (kept, gone) = self.queue.drain(..).partition(keep);
        self.queue = kept;
        Vec::from(gone)
    }

    pub(super) fn check(&self) {
        assert!(self.queue.len() <= MAX_QUEUE && self.in_flight.len() <= MAX_IN_FLIGHT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_bounded_and_paced() {
        let request = |piece| Request { piece, begin: 0, length: 1 };
        let mut uploads = Uploads::default();
        assert!((0..MAX_QUEUE as u32).all(|piece| uploads.push(request(piece))));
        assert!(!uploads.push(request(9_999)));
        assert!(uploads.push(request(3)), "already queued");
        let given: Vec<_> = std::iter::from_fn(|| uploads.next()).collect();
        assert_eq!(given.len(), MAX_IN_FLIGHT);
        assert!(!uploads.cancel(given[0]), "the driver has it");
        assert!(uploads.cancel(request(100)));
        assert!(uploads.done(given[0]) && !uploads.done(given[0]));
        assert_eq!(uploads.next(), Some(request(16)));
        assert_eq!(
            uploads.clear(|request| request.piece == 20),
            (17..512).filter(|n| ![20, 100].contains(n)).map(request).collect::<Vec<_>>()
        );
    }
}
