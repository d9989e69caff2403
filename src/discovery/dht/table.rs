//! The routing table of one address family: many nodes close to our id, few far from it (BEP 5). Pure.
//!
//! There is one bucket for each number of leading bits that a node's id shares with ours, with at most [`K`] nodes
//! each. A node is added once it has answered us. A node that keeps answering is never displaced by a new one; a node
//! that failed twice is replaced by the next candidate. Until then it stays, because the failure may have been in our
//! own network.

use std::time::{Duration, Instant};

use super::address;
use super::krpc::{Contact, NodeId};
use crate::util::is_local;

/// Nodes in a bucket and in a reply (BEP 5).
pub(super) const K: usize = 8;
/// Time after which a node that sent nothing is pinged (BEP 5).
const PING_AFTER: Duration = Duration::from_secs(15 * 60);
/// Consecutive unanswered queries that make a node bad.
const BAD_AFTER: u8 = 2;
/// Minimum time between two pings of a node; it doubles with each failure.
const PING_INTERVAL: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct Entry {
    contact: Contact,
    /// Last reply to us; `None` for a node that was only loaded from an earlier run.
    last_answer: Option<Instant>,
    last_ping: Option<Instant>,
    failures: u8,
}

impl Entry {
    fn is_good(&self, now: Instant) -> bool {
        self.failures == 0
            && self.last_answer.is_some_and(|last_answer| now.saturating_duration_since(last_answer) < 2 * PING_AFTER)
    }
}

/// The routing table.
#[derive(Debug)]
pub(super) struct Table {
    own: NodeId,
    buckets: Vec<Vec<Entry>>,
}

impl Table {
    pub fn new(own: NodeId) -> Self {
        Self { own, buckets: (0..160).map(|_| Vec::new()).collect() }
    }

    fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.buckets.iter().flatten()
    }

    fn find(&mut self, contact: &Contact) -> Option<&mut Entry> {
        let bucket = self.own.common_bits(&contact.id);
        self.buckets.get_mut(bucket)?.iter_mut().find(|entry| entry.contact == *contact)
    }

    /// Records that a node has answered a query of ours.
    pub fn record_answer(&mut self, now: Instant, contact: Contact) {
        match self.find(&contact) {
            Some(entry) => (entry.last_answer, entry.failures) = (Some(now), 0),
            None => self.insert(Entry { contact, last_answer: Some(now), last_ping: None, failures: 0 }),
        }
    }

    /// Adds a node from an earlier run, which has not answered yet.
    pub fn restore(&mut self, contact: Contact) {
        self.insert(Entry { contact, last_answer: None, last_ping: None, failures: 0 });
    }

    /// Records that a node did not answer in time.
    pub fn record_failure(&mut self, contact: Contact) {
        if let Some(entry) = self.find(&contact) {
            entry.failures = entry.failures.saturating_add(1);
        }
    }

    fn insert(&mut self, new: Entry) {
        let Some(slot) = self.slot(&new.contact) else { return };
        let bucket = self.own.common_bits(&new.contact.id);
        match slot {
            Some(at) if new.last_answer.is_some() => self.buckets[bucket][at] = new,
            Some(_) => {}
            None => self.buckets[bucket].push(new),
        }
    }

    /// Returns whether a node would be added if it answered.
    pub fn would_accept(&self, contact: &Contact) -> bool {
        self.slot(contact).is_some()
    }

    /// Returns the slot for a node in its bucket: at the end (`Some(None)`), in place of another (`Some(Some(index))`),
    /// or none.
    fn slot(&self, contact: &Contact) -> Option<Option<usize>> {
        // Our own id shares every bit and has no bucket.
        let bucket = self.buckets.get(self.own.common_bits(&contact.id))?;
        // One node per internet address, so that one machine cannot take many slots.
        let ip = contact.addr.ip();
        let shares = |entry: &Entry| match entry.contact.addr.ip() {
            _ if is_local(ip) => entry.contact.addr == contact.addr,
            other => address::subscriber(other) == address::subscriber(ip),
        };
        // A bad entry does not count: it may be this very node, restarted with another id.
        let is_crowded = self.entries().any(|entry| entry.failures < BAD_AFTER && shares(entry));
        if bucket.iter().any(|entry| entry.contact.id == contact.id) || is_crowded {
            return None;
        }
        if bucket.len() < K {
            return Some(None);
        }
        let worst = bucket.iter().enumerate().max_by_key(|(_, entry)| (entry.failures, entry.last_answer.is_none()))?;
        (worst.1.failures >= BAD_AFTER || worst.1.last_answer.is_none()).then_some(Some(worst.0))
    }

    /// Returns the nodes closest to `target` that are not bad, in order of distance.
    pub fn closest(&self, target: &NodeId, count: usize) -> Vec<Contact> {
        self.closest_of(target, count, |entry| entry.failures < BAD_AFTER)
    }

    /// Returns the closest nodes that are not bad, or the closest of all if every node is bad: then it was probably our
    /// own network that failed.
    pub fn closest_or_any(&self, target: &NodeId, count: usize) -> Vec<Contact> {
        let all_are_bad = self.entries().all(|entry| entry.failures >= BAD_AFTER);
        self.closest_of(target, count, |entry| all_are_bad || entry.failures < BAD_AFTER)
    }

    fn closest_of(&self, target: &NodeId, count: usize, which: impl Fn(&Entry) -> bool) -> Vec<Contact> {
        let mut nodes: Vec<Contact> = self.entries().filter(|entry| which(entry)).map(|entry| entry.contact).collect();
        nodes.sort_by(|one, other| target.compare(&one.id, &other.id));
        nodes.truncate(count);
        nodes
    }

    /// Returns a node that was quiet for long enough to be pinged, and marks it as pinged.
    pub fn due_for_ping(&mut self, now: Instant) -> Option<Contact> {
        let since = |at: Option<Instant>| at.map(|at| now.saturating_duration_since(at));
        let due = |entry: &&mut Entry| {
            since(entry.last_answer).is_none_or(|quiet| quiet >= PING_AFTER)
                && since(entry.last_ping)
                    .is_none_or(|asked| asked >= PING_INTERVAL * 2_u32.pow(entry.failures.min(6).into()))
        };
        let entry =
            self.buckets.iter_mut().flatten().filter(due).min_by_key(|entry| entry.last_ping.max(entry.last_answer))?;
        entry.last_ping = Some(now);
        Some(entry.contact)
    }

    /// Returns the number of good nodes: those that answer and were seen recently.
    pub fn good(&self, now: Instant) -> usize {
        self.entries().filter(|entry| entry.is_good(now)).count()
    }

    /// Returns the nodes to save for the next run.
    pub fn worth_saving(&self, now: Instant) -> Vec<Contact> {
        self.entries().filter(|entry| entry.is_good(now)).map(|entry| entry.contact).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const OWN: NodeId = NodeId([0; 20]);

    /// Returns a contact in the bucket of ids that share no bit with ours.
    fn far(n: u32) -> Contact {
        let mut id = [0x80; 20];
        id[16..].copy_from_slice(&n.to_be_bytes());
        Contact { id: NodeId(id), addr: (Ipv4Addr::from(0x0808_0000 + n), 1).into() }
    }

    #[test]
    fn a_full_bucket_keeps_good_nodes() {
        let (mut table, now) = (Table::new(OWN), Instant::now());
        (0..20).for_each(|n| table.record_answer(now, far(n)));
        assert_eq!(table.good(now), K);
        assert!(!table.would_accept(&far(9)));
        table.record_failure(far(3));
        assert!(!table.would_accept(&far(9)));
        table.record_failure(far(3));
        assert!(table.would_accept(&far(9)));
        assert_eq!(table.closest(&OWN, 100).len(), K - 1);
        table.record_answer(now, far(9));
        assert!(table.closest(&OWN, 100).contains(&far(9)) && !table.closest(&OWN, 100).contains(&far(3)));
    }

    #[test]
    fn loaded_nodes_give_way_to_answering_ones() {
        let (mut table, now) = (Table::new(OWN), Instant::now());
        (0..20).for_each(|n| table.restore(far(n)));
        assert_eq!((table.good(now), table.closest(&OWN, 100).len()), (0, K));
        assert!(table.worth_saving(now).is_empty());
        (20..40).for_each(|n| table.record_answer(now, far(n)));
        assert_eq!(table.good(now), K);
    }

    #[test]
    fn one_node_per_address_except_in_the_local_network() {
        let (mut table, now) = (Table::new(OWN), Instant::now());
        let at = |n: u8, addr: &str| Contact { id: NodeId([0xff - n; 20]), addr: addr.parse().unwrap() };
        for (n, addr) in ["8.8.8.8:1", "8.8.8.8:2", "127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:2"].iter().enumerate() {
            table.record_answer(now, at(n as u8, addr));
        }
        assert_eq!(table.good(now), 3);
        // Our own id, and a known id from another address, are not added.
        table.record_answer(now, Contact { id: OWN, addr: "9.9.9.9:1".parse().unwrap() });
        table.record_answer(now, at(0, "9.9.9.9:1"));
        assert_eq!(table.good(now), 3);
    }

    #[test]
    fn quiet_nodes_are_pinged_once_per_interval() {
        let (mut table, now) = (Table::new(OWN), Instant::now());
        (0..3).for_each(|n| table.record_answer(now, far(n)));
        assert_eq!(table.due_for_ping(now), None);
        let later = now + PING_AFTER;
        let mut asked: Vec<_> = std::iter::from_fn(|| table.due_for_ping(later)).map(|contact| contact.addr).collect();
        asked.sort();
        assert_eq!(asked, [far(0).addr, far(1).addr, far(2).addr]);
        assert!(table.due_for_ping(later + PING_INTERVAL).is_some());
    }

    #[test]
    fn bad_nodes_are_used_again_if_all_are_bad() {
        let (mut table, now) = (Table::new(OWN), Instant::now());
        (0..3).for_each(|n| table.record_answer(now, far(n)));
        (0..4).for_each(|n| table.record_failure(far(n / 2)));
        assert_eq!(table.closest_or_any(&OWN, 9), [far(2)]);
        (0..2).for_each(|_| table.record_failure(far(2)));
        assert_eq!((table.closest(&OWN, 9).len(), table.closest_or_any(&OWN, 9).len()), (0, 3));
    }

    #[test]
    fn nodes_are_returned_in_order_of_distance() {
        let (mut table, now) = (Table::new(OWN), Instant::now());
        (0..6).for_each(|n| table.record_answer(now, far(n)));
        let closest = table.closest(&far(2).id, 3);
        assert_eq!(closest, [far(2), far(3), far(0)]);
    }
}
