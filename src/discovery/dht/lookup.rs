//! An iterative lookup: asks ever closer nodes to a target until the closest ones have answered. Pure.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::address;
use super::krpc::{Contact, NodeId};
use super::table::K;
use crate::util::is_local;

/// Concurrent queries, not counting slow ones. Kademlia's alpha, a little higher than usual for speed.
const ALPHA: usize = 4;
/// Time after which an unanswered query is slow and no longer blocks another one. Its reply is still used.
const SLOW_AFTER: Duration = Duration::from_millis(700);
/// Candidates kept; the farthest are dropped. Far more than the closest 8 that matter.
const MAX_CANDIDATES: usize = 100;
/// Maximum number of queries. A lookup that does not end by then is being misled.
const MAX_ASKED: usize = 120;

#[derive(Debug, PartialEq)]
enum State {
    New,
    Asked(Instant),
    Answered(Option<Vec<u8>>),
    Failed,
}

#[derive(Debug)]
struct Candidate {
    /// `None`: the address of a node whose id is not known yet.
    id: Option<NodeId>,
    addr: SocketAddr,
    state: State,
}

/// The state of one lookup.
#[derive(Debug)]
pub(super) struct Lookup {
    pub target: NodeId,
    /// Candidates without an id first, then in order of distance.
    candidates: Vec<Candidate>,
    asked: usize,
}

impl Lookup {
    pub fn new(target: NodeId) -> Self {
        Self { target, candidates: Vec::new(), asked: 0 }
    }

    /// Adds a candidate. One candidate per internet address; in the local network, nodes may share an address.
    pub fn add(&mut self, id: Option<NodeId>, addr: SocketAddr) {
        let same = |candidate: &Candidate| {
            candidate.addr == addr
                || (!is_local(addr.ip()) && address::subscriber(candidate.addr.ip()) == address::subscriber(addr.ip()))
        };
        if self.candidates.iter().any(same) {
            return;
        }
        self.insert(Candidate { id, addr, state: State::New });
        if self.candidates.len() > MAX_CANDIDATES
            && let Some(at) = self.candidates.iter().rposition(|candidate| candidate.state == State::New)
        {
            self.candidates.remove(at);
        }
    }

    fn insert(&mut self, new: Candidate) {
        let distance = |id: Option<NodeId>| id.map(|id| id.distance(&self.target));
        let at = self.candidates.partition_point(|candidate| distance(candidate.id) <= distance(new.id));
        self.candidates.insert(at, new);
    }

    /// Returns the next node to ask now and marks it as asked.
    pub fn next(&mut self, now: Instant) -> Option<(Option<NodeId>, SocketAddr)> {
        if self.asked >= MAX_ASKED || self.in_flight(now) >= ALPHA {
            return None;
        }
        let at = self.relevant().find(|at| self.candidates[*at].state == State::New)?;
        self.asked += 1;
        let candidate = &mut self.candidates[at];
        candidate.state = State::Asked(now);
        Some((candidate.id, candidate.addr))
    }

    fn in_flight(&self, now: Instant) -> usize {
        let is_recent = |asked: Instant| now.saturating_duration_since(asked) < SLOW_AFTER;
        self.candidates.iter().filter(|candidate| matches!(candidate.state, State::Asked(at) if is_recent(at))).count()
    }

    /// Returns the indexes of the candidates before the K-th that answered. The nodes beyond it do not matter.
    fn relevant(&self) -> impl Iterator<Item = usize> {
        let answered = |(_, candidate): &(usize, &Candidate)| matches!(candidate.state, State::Answered(_));
        let end = self.candidates.iter().enumerate().filter(answered).nth(K - 1);
        0..end.map_or(self.candidates.len(), |(at, _)| at)
    }

    /// Records that a node has answered. Its token permits us to announce to it.
    pub fn answered(&mut self, contact: Contact, token: Option<Vec<u8>>) {
        if let Some(at) = self.candidates.iter().position(|candidate| candidate.addr == contact.addr) {
            self.candidates.remove(at);
            self.insert(Candidate { id: Some(contact.id), addr: contact.addr, state: State::Answered(token) });
        }
    }

    /// Records that a node did not answer, or sent an error.
    pub fn failed(&mut self, addr: SocketAddr) {
        if let Some(candidate) = self.candidates.iter_mut().find(|candidate| candidate.addr == addr) {
            candidate.state = State::Failed;
        }
    }

    /// Returns the number of nodes that have answered.
    pub fn answers(&self) -> usize {
        self.candidates.iter().filter(|candidate| matches!(candidate.state, State::Answered(_))).count()
    }

    /// Returns the addresses of the nodes that have answered.
    pub fn answered_by(&self) -> impl Iterator<Item = SocketAddr> {
        let answered = |candidate: &&Candidate| matches!(candidate.state, State::Answered(_));
        self.candidates.iter().filter(answered).map(|candidate| candidate.addr)
    }

    /// Returns whether there is no node left to ask or to wait for.
    pub fn is_done(&self) -> bool {
        let may_ask = self.asked < MAX_ASKED;
        !self.relevant().any(|at| match self.candidates[at].state {
            State::New => may_ask,
            State::Asked(_) => true,
            State::Answered(_) | State::Failed => false,
        })
    }

    /// Returns when the next query becomes slow and makes room for another.
    pub fn wakeup(&self, now: Instant) -> Option<Instant> {
        let asked = |candidate: &Candidate| match candidate.state {
            State::Asked(at) => Some(at + SLOW_AFTER).filter(|slow| *slow > now),
            _ => None,
        };
        self.candidates.iter().filter_map(asked).min()
    }

    /// Returns the closest nodes that gave a token, at most [`K`].
    pub fn tokens(self) -> impl Iterator<Item = (Contact, Vec<u8>)> {
        let token = |candidate: Candidate| match candidate.state {
            State::Answered(Some(token)) => Some((Contact { id: candidate.id?, addr: candidate.addr }, token)),
            _ => None,
        };
        self.candidates.into_iter().filter_map(token).take(K)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: NodeId = NodeId([0; 20]);

    fn node(n: u8) -> Contact {
        Contact { id: NodeId([n; 20]), addr: ([8, 8, 8, n], 1).into() }
    }

    fn lookup(nodes: impl IntoIterator<Item = u8>) -> Lookup {
        let mut lookup = Lookup::new(TARGET);
        nodes.into_iter().for_each(|n| lookup.add(Some(node(n).id), node(n).addr));
        lookup
    }

    #[test]
    fn the_closest_nodes_are_asked_first_a_few_at_a_time() {
        let (mut lookup, now) = (lookup([9, 1, 5, 7, 3, 8]), Instant::now());
        let asked: Vec<_> = std::iter::from_fn(|| lookup.next(now)).map(|(_, addr)| addr).collect();
        assert_eq!(asked, [1, 3, 5, 7].map(|n| node(n).addr));
        // A slow query makes room for another, and may still be answered.
        assert_eq!(lookup.wakeup(now), Some(now + SLOW_AFTER));
        assert_eq!(lookup.next(now + SLOW_AFTER).unwrap().1, node(8).addr);
        lookup.answered(node(1), None);
        assert_eq!(lookup.answers(), 1);
    }

    #[test]
    fn a_lookup_ends_with_the_closest_eight() {
        let (mut lookup, now) = (lookup(1..50), Instant::now());
        lookup.failed(node(2).addr);
        let mut asked = 0;
        while let Some((id, addr)) = lookup.next(now) {
            asked += 1;
            let token = (id != Some(node(3).id)).then(|| b"t".to_vec());
            lookup.answered(Contact { id: id.unwrap(), addr }, token);
        }
        assert!(lookup.is_done());
        assert_eq!(asked, K);
        let announce: Vec<_> = lookup.tokens().map(|(contact, _)| contact).collect();
        assert_eq!(announce, [1, 4, 5, 6, 7, 8, 9].map(node));
    }

    #[test]
    fn candidates_without_an_id_are_asked_first_and_then_sorted() {
        let (mut lookup, now) = (lookup([1, 2]), Instant::now());
        lookup.add(None, node(9).addr);
        assert_eq!(lookup.next(now), Some((None, node(9).addr)));
        lookup.answered(node(9), None);
        assert_eq!(lookup.candidates.iter().map(|c| c.addr).collect::<Vec<_>>(), [1, 2, 9].map(|n| node(n).addr));
        assert!(!lookup.is_done());
        [1, 2].into_iter().for_each(|n| lookup.failed(node(n).addr));
        assert!(lookup.is_done());
    }

    #[test]
    fn a_lookup_ends_even_if_every_reply_has_closer_nodes() {
        let (mut lookup, now) = (Lookup::new(TARGET), Instant::now());
        let mut n = u32::MAX;
        let mut asked = 0;
        lookup.add(Some(NodeId([0xff; 20])), ([8, 8, 8, 8], 1).into());
        while let Some((id, addr)) = lookup.next(now) {
            asked += 1;
            // Every reply contains ever closer nodes.
            for _ in 0..20 {
                n -= 0x1_0001;
                let mut closer = [0; 20];
                closer[..4].copy_from_slice(&n.to_be_bytes());
                lookup.add(Some(NodeId(closer)), (std::net::Ipv4Addr::from(n), 1).into());
            }
            lookup.answered(Contact { id: id.unwrap(), addr }, None);
            assert!(lookup.candidates.len() <= MAX_CANDIDATES);
        }
        assert!(lookup.is_done() && asked <= MAX_ASKED, "{asked}");
    }
}
