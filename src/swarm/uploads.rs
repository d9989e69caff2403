//! The requests of one peer: a bounded queue, from which a few at a time are handed to the driver.

use std::collections::VecDeque;

use crate::wire::Request;

/// Maximum number of requests queued for one peer (libtorrent's default).
pub(super) const MAX_QUEUE: usize = 512;
/// Maximum number of blocks of one peer that the driver has and has not sent: a peer that reads slowly must not fill
/// memory.
const MAX_IN_FLIGHT: usize = 16;
/// Maximum length of a block that we serve, in bytes; some clients request more than 16 KiB.
pub(super) const MAX_LENGTH: u32 = 128 * 1024;

#[derive(Debug, Default)]
pub(super) struct Uploads {
    queue: VecDeque<Request>,
    in_flight: Vec<Request>,
}

impl Uploads {
    /// Queues a request, once. Returns false if the queue is full.
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

    /// Returns the next request to hand to the driver, if it may have another.
    pub(super) fn next(&mut self) -> Option<Request> {
        if self.in_flight.len() >= MAX_IN_FLIGHT {
            return None;
        }
        let request = self.queue.pop_front()?;
        self.in_flight.push(request);
        Some(request)
    }

    /// Records that the driver has answered. Returns false if it was not given that request.
    pub(super) fn done(&mut self, request: Request) -> bool {
        let at = self.in_flight.iter().position(|other| *other == request);
        at.map(|at| self.in_flight.swap_remove(at)).is_some()
    }

    /// Removes a request, and returns whether it was queued. A block that the driver has is sent all the same.
    pub(super) fn cancel(&mut self, request: Request) -> bool {
        let at = self.queue.iter().position(|other| *other == request);
        at.and_then(|at| self.queue.remove(at)).is_some()
    }

    /// Removes the requests for which `keep` is false, and returns them.
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
        assert!(!uploads.cancel(given[0]), "the driver has it already");
        assert!(uploads.cancel(request(100)));
        assert!(uploads.done(given[0]) && !uploads.done(given[0]));
        assert_eq!(uploads.next(), Some(request(16)));
        assert_eq!(
            uploads.clear(|request| request.piece == 20),
            (17..512).filter(|n| ![20, 100].contains(n)).map(request).collect::<Vec<_>>()
        );
    }
}
