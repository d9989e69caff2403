//! The address book: whom to call, when, and whom never again.
//!
//! A peer is an address *and port*: many peers live behind one IP address, and one of them lying says nothing of the
//! others. Only an IP address from which several distinct liars came is refused whole, for an incoming liar returns
//! from a new port each time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::util::is_lan;
use crate::wire::PeerId;

/// Addresses kept at most.
const MAX_ADDRESSES: usize = 2_000;
/// Bans kept at most.
const MAX_BANS: usize = 10_000;
/// The wait after a second failure, doubled after each further one; the first failure is retried sooner.
const RETRY: Duration = Duration::from_secs(10);
const FIRST_RETRY: Duration = Duration::from_secs(1);
const MAX_RETRY: Duration = Duration::from_secs(30 * 60);
/// An address that failed so often gives its place to a new one.
const HOPELESS: u32 = 3;
/// Distinct liars at one IP address, before the whole address is refused.
const BANS_AN_IP: u32 = 5;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Use {
    /// To be called when the time comes.
    Idle,
    /// A call is under way.
    Calling,
    /// Connected.
    Connected,
}

#[derive(Debug)]
struct Entry {
    usage: Use,
    /// Not to be called before this.
    after: Instant,
    failures: u32,
    /// It had everything when last seen: no use while we lack nothing.
    seed: bool,
}

#[derive(Debug, Default)]
pub(super) struct Addresses {
    entries: BTreeMap<SocketAddr, Entry>,
    /// Idle addresses by the time from which they may be called.
    due: BTreeSet<(Instant, SocketAddr)>,
    calling: usize,
    /// Addresses that turned out to be ourselves.
    ours: BTreeSet<SocketAddr>,
    banned: BTreeSet<SocketAddr>,
    /// Where a liar came from and what it called itself: it may come back from another port. An id alone proves nothing, for
    /// anybody can take an honest peer's.
    banned_ids: BTreeSet<(IpAddr, [u8; 20])>,
    bans: BTreeMap<IpAddr, u32>,
}

impl Addresses {
    /// An address was heard of.
    pub(super) fn found(&mut self, now: Instant, addr: SocketAddr) {
        let addr = SocketAddr::new(addr.ip().to_canonical(), addr.port());
        if addr.port() == 0 || addr.ip().is_unspecified() || addr.ip().is_multicast() || self.ours.contains(&addr) {
            return;
        }
        if self.is_banned(addr) || self.entries.contains_key(&addr) {
            return;
        }
        if self.entries.len() >= MAX_ADDRESSES {
            let hopeless = |entry: &Entry| entry.usage == Use::Idle && entry.failures >= HOPELESS;
            // The one that waits longest; only failures are far in the future.
            let Some(place) =
                self.due.iter().rev().find(|(_, addr)| self.entries.get(addr).is_some_and(hopeless)).copied()
            else {
                return;
            };
            self.due.remove(&place);
            self.entries.remove(&place.1);
        }
        self.entries.insert(addr, Entry { usage: Use::Idle, after: now, failures: 0, seed: false });
        self.due.insert((now, addr));
    }

    /// The next address to call, one in our own network first. It counts as being called until one of the answers below.
    pub(super) fn call(&mut self, now: Instant, want_seeds: bool) -> Option<SocketAddr> {
        let useful = |addr: &SocketAddr| self.entries.get(addr).is_some_and(|entry| want_seeds || !entry.seed);
        let mut ready = self.due.iter().take_while(|(after, _)| *after <= now).filter(|(_, addr)| useful(addr));
        let first = ready.next().copied()?;
        let near = |(_, addr): &&(Instant, SocketAddr)| is_lan(addr.ip());
        let place = if is_lan(first.1.ip()) { first } else { ready.find(near).copied().unwrap_or(first) };
        self.due.remove(&place);
        self.entries.get_mut(&place.1)?.usage = Use::Calling;
        self.calling += 1;
        Some(place.1)
    }

    /// Calls under way.
    pub(super) fn calling(&self) -> usize {
        self.calling
    }

    /// When the next address may be called.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(after, _)| *after)
    }

    /// The call came to nothing.
    pub(super) fn failed(&mut self, now: Instant, addr: SocketAddr) {
        let Some(entry) = self.entries.get_mut(&addr).filter(|entry| entry.usage == Use::Calling) else { return };
        self.calling -= 1;
        entry.failures = entry.failures.saturating_add(1);
        let wait = match entry.failures {
            1 => FIRST_RETRY,
            failures => (RETRY * (1 << (failures - 2).min(10))).min(MAX_RETRY),
        };
        self.rest(addr, now + wait);
    }

    /// The call led to a connection.
    pub(super) fn connected(&mut self, addr: SocketAddr) {
        if let Some(entry) = self.entries.get_mut(&addr) {
            match entry.usage {
                Use::Calling => self.calling -= 1,
                Use::Idle => drop(self.due.remove(&(entry.after, addr))),
                Use::Connected => {}
            }
            entry.usage = Use::Connected;
        }
    }

    /// The connection ended. `useful`: a block came through it, so it is worth an early call.
    pub(super) fn left(&mut self, now: Instant, addr: SocketAddr, useful: bool, seed: bool) {
        let Some(entry) = self.entries.get_mut(&addr).filter(|entry| entry.usage == Use::Connected) else { return };
        entry.failures = if useful { 0 } else { entry.failures.saturating_add(1) };
        entry.seed = seed;
        let wait = if useful { FIRST_RETRY * 2 } else { (RETRY * (1 << entry.failures.min(10))).min(MAX_RETRY) };
        self.rest(addr, now + wait);
    }

    /// Not to be called before `after`, or never again if its IP address was banned meanwhile.
    fn rest(&mut self, addr: SocketAddr, after: Instant) {
        let banned = self.is_banned(addr);
        let Some(entry) = self.entries.get_mut(&addr) else { return };
        (entry.usage, entry.after) = (Use::Idle, after);
        self.due.insert((after, addr));
        if banned {
            self.remove(addr);
        }
    }

    /// That address is ourselves.
    pub(super) fn is_us(&mut self, addr: SocketAddr) {
        self.remove(addr);
        if self.ours.len() < MAX_ADDRESSES {
            self.ours.insert(addr);
        }
    }

    /// Refuses a liar from now on. True if its whole IP address is now refused.
    pub(super) fn ban(&mut self, addr: SocketAddr, id: PeerId) -> bool {
        self.remove(addr);
        if self.banned.len() >= MAX_BANS {
            return false;
        }
        let new = self.banned.insert(addr) | self.banned_ids.insert((addr.ip(), id.0));
        let bans = self.bans.entry(addr.ip()).or_default();
        *bans += u32::from(new);
        let whole = *bans >= BANS_AN_IP;
        if whole {
            // A call under way still gets its answer.
            let there = |(other, entry): &(&SocketAddr, &Entry)| other.ip() == addr.ip() && entry.usage == Use::Idle;
            let idle: Vec<SocketAddr> = self.entries.iter().filter(there).map(|(other, _)| *other).collect();
            idle.into_iter().for_each(|other| self.remove(other));
        }
        whole
    }

    pub(super) fn is_banned(&self, addr: SocketAddr) -> bool {
        self.banned.contains(&addr) || self.bans.get(&addr.ip()).is_some_and(|bans| *bans >= BANS_AN_IP)
    }

    pub(super) fn is_banned_id(&self, ip: IpAddr, id: PeerId) -> bool {
        self.banned_ids.contains(&(ip, id.0))
    }

    fn remove(&mut self, addr: SocketAddr) {
        if let Some(entry) = self.entries.remove(&addr) {
            self.due.remove(&(entry.after, addr));
            self.calling -= usize::from(entry.usage == Use::Calling);
        }
    }

    pub(super) fn check(&self) {
        assert!(
            self.entries.len() <= MAX_ADDRESSES && self.ours.len() <= MAX_ADDRESSES && self.banned.len() <= MAX_BANS
        );
        assert_eq!(self.calling, self.entries.values().filter(|entry| entry.usage == Use::Calling).count());
        let idle = self.entries.iter().filter(|(_, entry)| entry.usage == Use::Idle);
        assert_eq!(self.due, idle.map(|(addr, entry)| (entry.after, *addr)).collect());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    #[test]
    fn backs_off_and_never_calls_twice_at_once() {
        let mut now = Instant::now();
        let mut book = Addresses::default();
        book.found(now, addr(1));
        book.found(now, addr(1));
        assert_eq!(book.call(now, true), Some(addr(1)));
        assert_eq!(book.call(now, true), None);
        let mut waits = Vec::new();
        for _ in 0..12 {
            book.failed(now, addr(1));
            let due = book.next_due().unwrap();
            waits.push((due - now).as_secs());
            now = due;
            assert_eq!(book.call(now, true), Some(addr(1)));
        }
        assert_eq!(waits[..4], [1, 10, 20, 40]);
        assert_eq!(waits[11], 1_800);
        book.check();
    }

    #[test]
    fn ports_of_one_address_are_different_peers_until_too_many_lie() {
        let now = Instant::now();
        let mut book = Addresses::default();
        (1..=20).for_each(|port| book.found(now, addr(port)));
        for port in 1..=5 {
            assert_eq!(book.ban(addr(port), PeerId([port as u8; 20])), port == 5);
            assert!(book.is_banned(addr(port)) && book.is_banned_id(addr(9).ip(), PeerId([port as u8; 20])));
            assert!(!book.is_banned_id([127, 0, 0, 2].into(), PeerId([port as u8; 20])), "a stolen name");
            assert_eq!(book.is_banned(addr(19)), port == 5);
            if port == 4 {
                // When the last straw comes, two are connected and one is being called.
                let called = [5, 6, 7].map(|_| book.call(now, true));
                assert_eq!(called, [5, 6, 7].map(|port| Some(addr(port))));
                [5, 6].into_iter().for_each(|port| book.connected(addr(port)));
            }
        }
        book.left(now, addr(6), true, true);
        book.failed(now, addr(7));
        assert_eq!(book.next_due(), None, "nobody there is called again");
        assert_eq!(book.calling(), 0);
        book.check();
    }

    #[test]
    fn is_bounded() {
        let now = Instant::now();
        let mut book = Addresses::default();
        (1..=9_000).for_each(|port| book.found(now, addr(port)));
        assert_eq!(book.entries.len(), MAX_ADDRESSES);
        book.check();
    }
}
