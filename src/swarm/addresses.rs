//! The address book: which addresses to dial and when, and which never again.
//!
//! A peer is an address *and port*: many peers share one IP address, and if one of them lies that says nothing about
//! the others. A whole IP address is banned only after several distinct liars came from it, because a liar that
//! connects to us comes from a new port each time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::attempts::{Attempts, Group};
use super::event::PeerSource;
use crate::wire::PeerId;

/// Maximum number of addresses kept.
const MAX_ADDRESSES: usize = 2_000;
/// Maximum number of bans kept.
const MAX_BANS: usize = 10_000;
/// Wait after the first failure: short, because a peer may just have started.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// Wait after the second failure, doubled after each further one.
const RETRY: Duration = Duration::from_secs(10);
/// Maximum wait after a failure.
const MAX_RETRY: Duration = Duration::from_secs(30 * 60);
/// Number of addresses that are dialed before their time at once while a blocked read has no peer: as many as are dialed
/// at a time.
const HURRIED: usize = 16;
/// Time between two such dials of an address, multiplied by its failures up to `MAX_HURRIED`: a peer may be back at any
/// moment, and one packet a second disturbs nobody.
const HURRIED_RETRY: Duration = Duration::from_secs(1);
/// Maximum time between two such dials, in terms of `HURRIED_RETRY`.
const MAX_HURRIED: u32 = 5;
/// Wait before a caller that was refused is dialed. Sooner it would take us for a duplicate of its own connection, which a
/// uTP caller gives up only after a timeout: libtorrent after 2.5 s.
const AFTER_REFUSAL: Duration = Duration::from_secs(4);
/// Number of consecutive failures after which an address may be replaced by a new one.
const HOPELESS: u32 = 3;
/// Number of distinct liars at one IP address after which the whole address is banned.
const BANS_AN_IP: u32 = 5;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Dialed when its time comes.
    Idle,
    /// A connection attempt is under way.
    Dialing,
    /// Connected.
    Connected,
}

#[derive(Debug)]
struct Entry {
    state: State,
    /// When it may be dialed.
    after: Instant,
    /// When it was last dialed.
    dialed: Option<Instant>,
    /// Consecutive failures.
    failures: u32,
    /// It had every piece when last seen: useless while we lack nothing.
    seed: bool,
    source: PeerSource,
    /// The end of its last useful connection.
    useful: Option<Instant>,
    /// Decides between addresses that are equal otherwise.
    chance: u32,
}

impl Entry {
    fn group(&self, addr: SocketAddr) -> Group {
        Group::of(addr, self.source, self.useful.is_some() || self.source == PeerSource::Remembered)
    }

    /// Returns whether it may be dialed before its time.
    fn may_hurry(&self, now: Instant) -> bool {
        let wait = HURRIED_RETRY * self.failures.clamp(1, MAX_HURRIED);
        self.dialed.is_none_or(|dialed| dialed + wait <= now)
    }
}

#[derive(Debug)]
pub(super) struct Addresses {
    entries: BTreeMap<SocketAddr, Entry>,
    /// Number of addresses from each source.
    counts: BTreeMap<PeerSource, usize>,
    /// Idle addresses by the time from which they may be dialed.
    due: BTreeSet<(Instant, SocketAddr)>,
    attempts: Attempts,
    /// An address was found that was not known.
    news: bool,
    rng: SmallRng,
    /// Addresses that turned out to be ourselves.
    ours: BTreeSet<SocketAddr>,
    banned: BTreeSet<SocketAddr>,
    /// The IP address and peer id of each liar, which may come back from another port. A peer id alone proves nothing,
    /// because anybody can copy it from an honest peer.
    banned_ids: BTreeSet<(IpAddr, [u8; 20])>,
    /// Number of liars by IP address.
    bans: BTreeMap<IpAddr, u32>,
}

impl Addresses {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            entries: BTreeMap::new(),
            counts: BTreeMap::new(),
            due: BTreeSet::new(),
            attempts: Attempts::default(),
            news: false,
            rng: SmallRng::seed_from_u64(seed),
            ours: BTreeSet::new(),
            banned: BTreeSet::new(),
            banned_ids: BTreeSet::new(),
            bans: BTreeMap::new(),
        }
    }

    /// Adds an address, unless it is known, banned, ourselves or cannot be dialed.
    pub(super) fn found(&mut self, now: Instant, addr: SocketAddr, source: PeerSource) {
        let addr = SocketAddr::new(addr.ip().to_canonical(), addr.port());
        if addr.port() == 0 || addr.ip().is_unspecified() || addr.ip().is_multicast() || self.ours.contains(&addr) {
            return;
        }
        if self.is_banned(addr) || self.entries.contains_key(&addr) {
            return;
        }
        if self.entries.len() >= MAX_ADDRESSES {
            let Some(replaced) = self.hopeless().or_else(|| self.excessive(source)) else { return };
            self.remove(replaced);
        }
        let entry = Entry {
            state: State::Idle,
            after: now,
            dialed: None,
            failures: 0,
            seed: false,
            source,
            useful: None,
            chance: self.rng.random(),
        };
        self.entries.insert(addr, entry);
        *self.counts.entry(source).or_default() += 1;
        self.due.insert((now, addr));
        self.news = true;
    }

    /// Returns an address that is not worth keeping.
    fn hopeless(&self) -> Option<SocketAddr> {
        // The one with the longest wait; only after failures is a wait long.
        let is_hopeless = |entry: &Entry| entry.state == State::Idle && entry.failures >= HOPELESS;
        self.due.iter().rev().map(|(_, addr)| *addr).find(|addr| self.entries.get(addr).is_some_and(is_hopeless))
    }

    /// Returns an address of the source that has most addresses, if `source` has fewer: no source may keep others out of
    /// the book.
    fn excessive(&self, source: PeerSource) -> Option<SocketAddr> {
        let (largest, most) = self.counts.iter().max_by_key(|(_, count)| **count)?;
        if self.counts.get(&source).is_some_and(|count| count + 1 >= *most) {
            return None;
        }
        let is_spare = |entry: &Entry| entry.state == State::Idle && entry.source == *largest && entry.useful.is_none();
        let spare = self.entries.iter().filter(|(_, entry)| is_spare(entry));
        spare.max_by_key(|(_, entry)| (entry.failures, entry.chance)).map(|(addr, _)| *addr)
    }

    /// Records that somebody at this IP address called us, was refused and is there: adds the address, if the port is
    /// known, and has all that wait there dialed after [`AFTER_REFUSAL`].
    pub(super) fn refused(&mut self, now: Instant, addr: SocketAddr) {
        let (ip, soon) = (addr.ip().to_canonical(), now + AFTER_REFUSAL);
        self.found(now, SocketAddr::new(ip, addr.port()), PeerSource::Incoming);
        let there = self.entries.range(SocketAddr::new(ip, 0)..=SocketAddr::new(ip, u16::MAX));
        let moved = there.filter(|(_, entry)| {
            let new = entry.dialed.is_none();
            entry.state == State::Idle && (new || entry.after > soon && entry.may_hurry(now))
        });
        let moved: Vec<(Instant, SocketAddr)> = moved.map(|(addr, entry)| (entry.after, *addr)).take(HURRIED).collect();
        for place in moved {
            self.due.remove(&place);
            self.set_idle(place.1, soon);
        }
    }

    /// Brings forward the dialing of addresses that wait after a failure, the most promising first, because a blocked
    /// read has no peer to wait for.
    pub(super) fn hurry(&mut self, now: Instant) {
        let mut waiting: Vec<(u32, Instant, SocketAddr)> = Vec::new();
        for (after, addr) in self.due.iter().rev().take_while(|(after, _)| *after > now) {
            let Some(entry) = self.entries.get(addr) else { continue };
            if entry.may_hurry(now) {
                waiting.push((entry.failures, *after, *addr));
            }
        }
        waiting.sort_unstable();
        for (_, after, addr) in waiting.into_iter().take(HURRIED) {
            self.due.remove(&(after, addr));
            self.set_idle(addr, now);
        }
    }

    /// Returns the source of an address that was dialed. One that is not in the book was dialed for a rendezvous.
    pub(super) fn source(&self, addr: SocketAddr) -> PeerSource {
        self.entries.get(&addr).map_or(PeerSource::Pex, |entry| entry.source)
    }

    /// Returns the next address to dial; see [`Attempts`] for the order. It counts as being dialed until `failed` or
    /// `connected`.
    pub(super) fn next_to_dial(&mut self, now: Instant, want_seeds: bool) -> Option<SocketAddr> {
        let ready = self.due.iter().take_while(|(after, _)| *after <= now);
        let ranked = ready.filter_map(|place| {
            let entry = self.entries.get(&place.1).filter(|entry| want_seeds || !entry.seed)?;
            Some((self.attempts.rank(place.1, entry.group(place.1), entry.failures, entry.chance), *place))
        });
        let (_, place) = ranked.min()?;
        self.begin(now, place)
    }

    /// Returns an address of a group with no attempt under way, if any was found since the last call: the first of a new
    /// source does not wait for others that do not answer.
    pub(super) fn next_of_new_group(&mut self, now: Instant, want_seeds: bool) -> Option<SocketAddr> {
        if !std::mem::take(&mut self.news) {
            return None;
        }
        let ready = self.due.iter().take_while(|(after, _)| *after <= now).copied();
        let is_new = |(_, addr): &(Instant, SocketAddr)| {
            self.entries.get(addr).is_some_and(|entry| {
                entry.dialed.is_none() && (want_seeds || !entry.seed) && !self.attempts.has(entry.group(*addr))
            })
        };
        let place = ready.filter(is_new).min_by_key(|(_, addr)| self.entries.get(addr).map(|entry| entry.chance))?;
        self.begin(now, place)
    }

    /// Begins an attempt.
    fn begin(&mut self, now: Instant, place: (Instant, SocketAddr)) -> Option<SocketAddr> {
        self.due.remove(&place);
        let entry = self.entries.get_mut(&place.1)?;
        (entry.state, entry.dialed) = (State::Dialing, Some(now));
        self.attempts.begin(now, place.1, entry.group(place.1));
        Some(place.1)
    }

    /// Returns the connection attempts under way.
    pub(super) fn attempts(&self) -> &Attempts {
        &self.attempts
    }

    /// Returns the number of addresses.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = SocketAddr> {
        self.entries.keys().copied()
    }

    /// Returns when the next address may be dialed.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(after, _)| *after)
    }

    /// Returns the addresses from which blocks have come over connections that are no more, the latest first.
    pub(super) fn proven(&self) -> Vec<SocketAddr> {
        let peers = self.entries.iter().filter(|(_, entry)| entry.source != PeerSource::WebSeed);
        let useful = peers.filter_map(|(addr, entry)| Some((entry.useful?, entry.chance, *addr)));
        let mut proven: Vec<(Instant, u32, SocketAddr)> = useful.collect();
        proven.sort_unstable_by(|a, b| b.cmp(a));
        proven.into_iter().map(|(_, _, addr)| addr).collect()
    }

    /// Ends the attempt at an address that is being dialed.
    fn end_attempt(&mut self, addr: SocketAddr) {
        if let Some(entry) = self.entries.get(&addr).filter(|entry| entry.state == State::Dialing)
            && let Some(dialed) = entry.dialed
        {
            self.attempts.end(dialed, addr, entry.group(addr));
        }
    }

    /// Records that a connection attempt failed.
    pub(super) fn failed(&mut self, now: Instant, addr: SocketAddr) {
        self.end_attempt(addr);
        let Some(entry) = self.entries.get_mut(&addr).filter(|entry| entry.state == State::Dialing) else { return };
        entry.failures = entry.failures.saturating_add(1);
        let wait = match entry.failures {
            1 => FIRST_RETRY,
            failures => (RETRY * (1 << (failures - 2).min(10))).min(MAX_RETRY),
        };
        self.set_idle(addr, now + wait);
    }

    /// Records that a connection to this address was made.
    pub(super) fn connected(&mut self, addr: SocketAddr) {
        self.end_attempt(addr);
        if let Some(entry) = self.entries.get_mut(&addr) {
            self.due.remove(&(entry.after, addr));
            entry.state = State::Connected;
        }
    }

    /// Records that the connection ended. If it was `useful`, because blocks came through it, it is dialed again soon.
    pub(super) fn disconnected(&mut self, now: Instant, addr: SocketAddr, useful: bool, seed: bool) {
        let Some(entry) = self.entries.get_mut(&addr).filter(|entry| entry.state == State::Connected) else { return };
        entry.failures = if useful { 0 } else { entry.failures.saturating_add(1) };
        entry.seed = seed;
        if useful {
            entry.useful = Some(now);
        }
        let wait = if useful { FIRST_RETRY * 2 } else { (RETRY * (1 << entry.failures.min(10))).min(MAX_RETRY) };
        self.set_idle(addr, now + wait);
    }

    /// Records the address at which a peer that connected to us, and is gone, can be dialed.
    pub(super) fn left(&mut self, now: Instant, addr: SocketAddr, useful: bool, seed: bool) {
        if self.entries.contains_key(&addr) {
            return;
        }
        self.found(now, addr, PeerSource::Incoming);
        self.connected(addr);
        self.disconnected(now, addr, useful, seed);
    }

    /// Makes an address wait until `after`, or removes it if its IP address was banned meanwhile.
    fn set_idle(&mut self, addr: SocketAddr, after: Instant) {
        let banned = self.is_banned(addr);
        let Some(entry) = self.entries.get_mut(&addr) else { return };
        (entry.state, entry.after) = (State::Idle, after);
        self.due.insert((after, addr));
        if banned {
            self.remove(addr);
        }
    }

    /// Records that the address is ourselves.
    pub(super) fn mark_as_ours(&mut self, addr: SocketAddr) {
        self.remove(addr);
        if self.ours.len() < MAX_ADDRESSES {
            self.ours.insert(addr);
        }
    }

    /// Bans a liar. Returns whether its whole IP address is now banned.
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
            // Those being dialed are removed when their attempt ends.
            let there = |(other, entry): &(&SocketAddr, &Entry)| other.ip() == addr.ip() && entry.state == State::Idle;
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
        self.end_attempt(addr);
        if let Some(entry) = self.entries.remove(&addr) {
            self.due.remove(&(entry.after, addr));
            if let Some(count) = self.counts.get_mut(&entry.source) {
                *count -= 1;
            }
        }
    }

    pub(super) fn check(&self) {
        assert!(
            self.entries.len() <= MAX_ADDRESSES && self.ours.len() <= MAX_ADDRESSES && self.banned.len() <= MAX_BANS
        );
        let dialing = self.entries.iter().filter(|(_, entry)| entry.state == State::Dialing);
        self.attempts.check(dialing.filter_map(|(addr, entry)| Some((entry.dialed?, *addr, entry.group(*addr)))));
        let idle = self.entries.iter().filter(|(_, entry)| entry.state == State::Idle);
        assert_eq!(self.due, idle.map(|(addr, entry)| (entry.after, *addr)).collect());
        assert_eq!(self.counts.values().sum::<usize>(), self.entries.len());
    }
}

#[cfg(test)]
mod tests;
