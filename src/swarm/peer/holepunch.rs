//! Limits and memory of hole punching (BEP 55).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::swarm::event::PeerKey;

/// The period of a [`PerMinute`] limit.
const PERIOD: Duration = Duration::from_secs(60);
/// Uses per period: of messages of one peer, and of connections that all relays together make us dial. More than any
/// honest relay needs, and too few to make us flood a stranger.
const MAX_PER_PERIOD: u32 = 20;
/// Maximum number of addresses whose introducer is remembered.
const MAX_INTRODUCED: usize = 1000;

/// A limit on uses per minute.
#[derive(Debug)]
pub(in crate::swarm) struct PerMinute {
    since: Instant,
    used: u32,
}

impl PerMinute {
    pub(in crate::swarm) fn new(now: Instant) -> Self {
        Self { since: now, used: 0 }
    }

    /// Counts a use, and returns whether it is within the limit.
    pub(in crate::swarm) fn take(&mut self, now: Instant) -> bool {
        if now.saturating_duration_since(self.since) >= PERIOD {
            *self = Self::new(now);
        }
        self.used = self.used.saturating_add(1);
        self.used <= MAX_PER_PERIOD
    }
}

/// Which peer can relay to which address.
#[derive(Debug)]
pub(in crate::swarm) struct Introductions {
    relays: BTreeMap<SocketAddr, PeerKey>,
    /// Limits the connections that relays make us dial.
    pub(in crate::swarm) dials: PerMinute,
}

impl Introductions {
    pub(in crate::swarm) fn new(now: Instant) -> Self {
        Self { relays: BTreeMap::new(), dials: PerMinute::new(now) }
    }

    /// Records that `relay` is connected to `addr`, and that both support hole punching.
    pub(in crate::swarm) fn add(&mut self, addr: SocketAddr, relay: PeerKey) {
        if self.relays.len() < MAX_INTRODUCED || self.relays.contains_key(&addr) {
            self.relays.insert(addr, relay);
        }
    }

    /// Returns the relay to `addr`, and forgets it: each introduction is used once.
    pub(in crate::swarm) fn take(&mut self, addr: SocketAddr) -> Option<PeerKey> {
        self.relays.remove(&addr)
    }

    /// Forgets a relay that has left.
    pub(in crate::swarm) fn forget(&mut self, relay: PeerKey) {
        self.relays.retain(|_, by| *by != relay);
    }

    pub(in crate::swarm) fn check(&self, is_connected: impl Fn(&PeerKey) -> bool) {
        assert!(self.relays.len() <= MAX_INTRODUCED && self.relays.values().all(is_connected));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floods_are_bounded() {
        let now = Instant::now();
        let mut limit = PerMinute::new(now);
        assert_eq!((0..100).filter(|_| limit.take(now)).count(), MAX_PER_PERIOD as usize);
        assert!(limit.take(now + PERIOD));
        let mut introductions = Introductions::new(now);
        for port in 0..=u16::MAX {
            introductions.add(([1, 2, 3, 4], port).into(), PeerKey(1));
        }
        assert_eq!(introductions.relays.len(), MAX_INTRODUCED);
        introductions.forget(PeerKey(1));
        assert!(introductions.relays.is_empty());
    }
}
