//! The routing table of one family: which nodes are known, many near our id and few far from it (BEP 5). Pure.
//!
//! A bucket for each count of leading bits that a node's id has in common with ours, each of at most [`K`] nodes. A
//! node gets in when it has answered us; one that does its duty is never displaced by a newcomer, one that failed
//! twice gives way to the first that comes. Those that failed stay where nobody wants their place, for it may have
//! been our own network that failed.

use std::time::{Duration, Instant};

use super::address;
use super::krpc::{Contact, NodeId};
use crate::util::is_local;

/// Nodes in a bucket, and nodes in an answer.
pub(super) const K: usize = 8;
/// A node not heard of for this long is asked whether it is still there.
const QUIET: Duration = Duration::from_secs(15 * 60);
/// So many queries unanswered in a row make a node bad.
const BAD: u8 = 2;
/// A node is not asked whether it is there more often than this.
const ASK_AGAIN: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct Entry {
    contact: Contact,
    /// When it last answered; `None`: only remembered from an earlier run.
    heard: Option<Instant>,
    asked: Option<Instant>,
    failures: u8,
}

impl Entry {
    fn is_good(&self, now: Instant) -> bool {
        self.failures == 0 && self.heard.is_some_and(|heard| now.saturating_duration_since(heard) < 2 * QUIET)
    }
}

/// See the module.
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

    /// The node has answered a query of ours.
    pub fn heard(&mut self, now: Instant, contact: Contact) {
        match self.find(&contact) {
            Some(entry) => (entry.heard, entry.failures) = (Some(now), 0),
            None => self.insert(Entry { contact, heard: Some(now), asked: None, failures: 0 }),
        }
    }

    /// A node of an earlier run, which has yet to show that it is there.
    pub fn restore(&mut self, contact: Contact) {
        self.insert(Entry { contact, heard: None, asked: None, failures: 0 });
    }

    /// The node did not answer in time.
    pub fn failed(&mut self, contact: Contact) {
        if let Some(entry) = self.find(&contact) {
            entry.failures = entry.failures.saturating_add(1);
        }
    }

    fn insert(&mut self, new: Entry) {
        let Some(place) = self.place(&new.contact) else { return };
        let bucket = self.own.common_bits(&new.contact.id);
        match place {
            Some(at) if new.heard.is_some() => self.buckets[bucket][at] = new,
            Some(_) => {}
            None => self.buckets[bucket].push(new),
        }
    }

    /// Whether the node, should it answer, would get in.
    pub fn has_place_for(&self, contact: &Contact) -> bool {
        self.place(contact).is_some()
    }

    /// In the node's bucket: at the end (`Some(None)`), instead of another (`Some(Some(at))`), or not at all.
    fn place(&self, contact: &Contact) -> Option<Option<usize>> {
        // None for our own id, which has every bit in common.
        let bucket = self.buckets.get(self.own.common_bits(&contact.id))?;
        // One node an address: who has one machine on the internet shall not have many places.
        let ip = contact.addr.ip();
        let shares = |entry: &Entry| match entry.contact.addr.ip() {
            _ if is_local(ip) => entry.contact.addr == contact.addr,
            other => address::subscriber(other) == address::subscriber(ip),
        };
        // A bad one may be this very node, come back with another id.
        let is_crowded = self.entries().any(|entry| entry.failures < BAD && shares(entry));
        if bucket.iter().any(|entry| entry.contact.id == contact.id) || is_crowded {
            return None;
        }
        if bucket.len() < K {
            return Some(None);
        }
        let worst = bucket.iter().enumerate().max_by_key(|(_, entry)| (entry.failures, entry.heard.is_none()))?;
        (worst.1.failures >= BAD || worst.1.heard.is_none()).then_some(Some(worst.0))
    }

    /// The nodes closest to `target` that are not known to be bad, the closest first.
    pub fn closest(&self, target: &NodeId, count: usize) -> Vec<Contact> {
        self.closest_of(target, count, |entry| entry.failures < BAD)
    }

    /// The same of all nodes, if every one is bad: more likely it was our own network that failed.
    pub fn closest_or_any(&self, target: &NodeId, count: usize) -> Vec<Contact> {
        let none_is_sound = self.entries().all(|entry| entry.failures >= BAD);
        self.closest_of(target, count, |entry| none_is_sound || entry.failures < BAD)
    }

    fn closest_of(&self, target: &NodeId, count: usize, which: impl Fn(&Entry) -> bool) -> Vec<Contact> {
        let mut nodes: Vec<Contact> = self.entries().filter(|entry| which(entry)).map(|entry| entry.contact).collect();
        nodes.sort_by(|one, other| target.compare(&one.id, &other.id));
        nodes.truncate(count);
        nodes
    }

    /// A node that was not heard of for a while, marked as asked.
    pub fn due_for_ping(&mut self, now: Instant) -> Option<Contact> {
        let since = |at: Option<Instant>| at.map(|at| now.saturating_duration_since(at));
        let due = |entry: &&mut Entry| {
            since(entry.heard).is_none_or(|quiet| quiet >= QUIET)
                && since(entry.asked).is_none_or(|asked| asked >= ASK_AGAIN * 2_u32.pow(entry.failures.min(6).into()))
        };
        let entry = self.buckets.iter_mut().flatten().filter(due).min_by_key(|entry| entry.asked.max(entry.heard))?;
        entry.asked = Some(now);
        Some(entry.contact)
    }

    /// How many nodes do their duty.
    pub fn good(&self, now: Instant) -> usize {
        self.entries().filter(|entry| entry.is_good(now)).count()
    }

    /// Those worth remembering for the next run.
    pub fn worth_saving(&self, now: Instant) -> Vec<Contact> {
        self.entries().filter(|entry| entry.is_good(now)).map(|entry| entry.contact).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const OWN: NodeId = NodeId([0; 20]);

    /// All in the bucket that has no bit in common with ours.
    fn far(n: u32) -> Contact {
        let mut id = [0x80; 20];
        id[16..].copy_from_slice(&n.to_be_bytes());
        Contact { id: NodeId(id), addr: (Ipv4Addr::from(0x0808_0000 + n), 1).into() }
    }

    #[test]
    fn a_bucket_keeps_those_that_do_their_duty() {
        let (mut table, now) = (Table::new(OWN), Instant::now());
        (0..20).for_each(|n| table.heard(now, far(n)));
        assert_eq!(table.good(now), K);
        assert!(!table.has_place_for(&far(9)));
        table.failed(far(3));
        assert!(!table.has_place_for(&far(9)));
        table.failed(far(3));
        assert!(table.has_place_for(&far(9)));
        assert_eq!(table.closest(&OWN, 100).len(), K - 1);
        table.heard(now, far(9));
        assert!(table.closest(&OWN, 100).contains(&far(9)) && !table.closest(&OWN, 100).contains(&far(3)));
    }

    #[test]
    fn what_is_only_remembered_gives_way() {
        let (mut table, now) = (Table::new(OWN), Instant::now());
        (0..20).for_each(|n| table.restore(far(n)));
        assert_eq!((table.good(now), table.closest(&OWN, 100).len()), (0, K));
        assert!(table.worth_saving(now).is_empty());
        (20..40).for_each(|n| table.heard(now, far(n)));
        assert_eq!(table.good(now), K);
    }

    #[test]
    fn one_place_an_address_except_at_home() {
        let (mut table, now) = (Table::new(OWN), Instant::now());
        let at = |n: u8, addr: &str| Contact { id: NodeId([0xff - n; 20]), addr: addr.parse().unwrap() };
        for (n, addr) in ["8.8.8.8:1", "8.8.8.8:2", "127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:2"].iter().enumerate() {
            table.heard(now, at(n as u8, addr));
        }
        assert_eq!(table.good(now), 3);
        // Neither ourselves, nor another node's id from elsewhere.
        table.heard(now, Contact { id: OWN, addr: "9.9.9.9:1".parse().unwrap() });
        table.heard(now, at(0, "9.9.9.9:1"));
        assert_eq!(table.good(now), 3);
    }

    #[test]
    fn the_quiet_are_asked_in_turn_and_not_all_the_time() {
        let (mut table, now) = (Table::new(OWN), Instant::now());
        (0..3).for_each(|n| table.heard(now, far(n)));
        assert_eq!(table.due_for_ping(now), None);
        let later = now + QUIET;
        let mut asked: Vec<_> = std::iter::from_fn(|| table.due_for_ping(later)).map(|contact| contact.addr).collect();
        asked.sort();
        assert_eq!(asked, [far(0).addr, far(1).addr, far(2).addr]);
        assert!(table.due_for_ping(later + ASK_AGAIN).is_some());
    }

    #[test]
    fn when_all_have_failed_all_are_tried_again() {
        let (mut table, now) = (Table::new(OWN), Instant::now());
        (0..3).for_each(|n| table.heard(now, far(n)));
        (0..4).for_each(|n| table.failed(far(n / 2)));
        assert_eq!(table.closest_or_any(&OWN, 9), [far(2)]);
        (0..2).for_each(|_| table.failed(far(2)));
        assert_eq!((table.closest(&OWN, 9).len(), table.closest_or_any(&OWN, 9).len()), (0, 3));
    }

    #[test]
    fn the_closest_come_first() {
        let (mut table, now) = (Table::new(OWN), Instant::now());
        (0..6).for_each(|n| table.heard(now, far(n)));
        let closest = table.closest(&far(2).id, 3);
        assert_eq!(closest, [far(2), far(3), far(0)]);
    }
}
