//! The requests of one peer: a bounded queue, from which a few at a time are handed to the driver.
//!
//! No request is lost without a word. A peer whose queue is full is *held*: the driver reads nothing more from it until
//! half of the queue is served, and meanwhile TCP or uTP keeps what it sends.

use std::collections::VecDeque;

use crate::wire::Request;

/// Maximum number of requests queued for one peer, which we state as `reqq`: as many as the fastest clients keep
/// outstanding (libtorrent states 2,000, too).
pub(super) const MAX_QUEUE: usize = 2_000;
/// Length of the queue at which a held peer is read again.
const RESUME: usize = MAX_QUEUE / 2;
/// Maximum bytes of blocks of one peer that the driver has and has not sent, unless it is a single block: a peer that
/// reads slowly must not fill memory. Sixteen blocks of the usual length.
const MAX_IN_FLIGHT: u32 = 256 * 1024;
/// Maximum length of a block that we serve, in bytes; some clients request more than 16 KiB.
pub(super) const MAX_LENGTH: u32 = 128 * 1024;

#[derive(Debug, Default)]
pub(super) struct Uploads {
    queue: VecDeque<Request>,
    in_flight: Vec<Request>,
    /// The driver was told to read nothing more from the peer.
    held: bool,
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
        let in_flight: u32 = self.in_flight.iter().map(|request| request.length).sum();
        let length = self.queue.front()?.length;
        if in_flight > 0 && in_flight + length > MAX_IN_FLIGHT {
            return None;
        }
        let request = self.queue.pop_front()?;
        self.in_flight.push(request);
        Some(request)
    }

    /// Returns whether the driver reads nothing more from the peer.
    pub(super) fn is_held(&self) -> bool {
        self.held
    }

    /// Returns whether the peer is to be held, or not any more, if that has changed.
    pub(super) fn hold_change(&mut self) -> Option<bool> {
        let hold = if self.held { self.queue.len() > RESUME } else { self.queue.len() >= MAX_QUEUE };
        (std::mem::replace(&mut self.held, hold) != hold).then_some(hold)
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
        let in_flight: u32 = self.in_flight.iter().map(|request| request.length).sum();
        assert!(self.queue.len() <= MAX_QUEUE && (in_flight <= MAX_IN_FLIGHT || self.in_flight.len() == 1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(piece: u32, length: u32) -> Request {
        Request { piece, begin: 0, length }
    }

    #[test]
    fn is_bounded_and_paced() {
        let block = |piece| request(piece, 16 * 1024);
        let mut uploads = Uploads::default();
        assert!((0..MAX_QUEUE as u32).all(|piece| uploads.push(block(piece))));
        assert!(!uploads.push(block(9_999)));
        assert!(uploads.push(block(3)), "already queued");
        let given: Vec<_> = std::iter::from_fn(|| uploads.next()).collect();
        assert_eq!(given.len(), 16);
        assert!(!uploads.cancel(given[0]), "the driver has it already");
        assert!(uploads.cancel(block(100)));
        assert!(uploads.done(given[0]) && !uploads.done(given[0]));
        assert_eq!(uploads.next(), Some(block(16)));
        assert_eq!(
            uploads.clear(|request| request.piece == 20),
            (17..MAX_QUEUE as u32).filter(|n| ![20, 100].contains(n)).map(block).collect::<Vec<_>>()
        );
    }

    #[test]
    fn long_blocks_are_paced_by_their_bytes() {
        let mut uploads = Uploads::default();
        assert!((0..9).all(|piece| uploads.push(request(piece, MAX_LENGTH))));
        assert_eq!(std::iter::from_fn(|| uploads.next()).count() as u32, MAX_IN_FLIGHT / MAX_LENGTH);
        uploads.check();
    }

    #[test]
    fn a_peer_with_a_full_queue_is_held_until_half_of_it_is_served() {
        let mut uploads = Uploads::default();
        for piece in 0..MAX_QUEUE as u32 {
            assert_eq!((uploads.hold_change(), uploads.is_held()), (None, false));
            assert!(uploads.push(request(piece, 1)));
        }
        assert_eq!((uploads.hold_change(), uploads.hold_change()), (Some(true), None));
        while uploads.queue.len() > RESUME {
            assert_eq!(uploads.hold_change(), None);
            let given = uploads.next().unwrap();
            assert!(uploads.done(given));
        }
        assert_eq!((uploads.hold_change(), uploads.is_held()), (Some(false), false));
    }
}
