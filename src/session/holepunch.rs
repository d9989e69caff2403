//! Hole punching (BEP 55), as relay and as user: two peers behind routers call each other at one time, on the word of
//! a third that both are connected to.
//!
//! A peer that cannot be called is asked for at the peer that named it. A call that a relay asks for is made once; what
//! comes of it is a connection like any other, or nothing.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::driver::Driver;
use super::extensions::may_name;
use crate::swarm::PeerKey;
use crate::wire::{Holepunch, Message, PunchError};

/// Messages of this kind taken from one peer in a minute, and calls made for all relays together.
const A_MINUTE: u32 = 20;
/// Addresses whose introducer is remembered.
const MAX_INTRODUCED: usize = 1000;

/// At most so many in a minute.
#[derive(Debug)]
pub(super) struct Allowance {
    since: Instant,
    used: u32,
}

impl Allowance {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, used: 0 }
    }

    fn take(&mut self, now: Instant) -> bool {
        if now.saturating_duration_since(self.since) >= Duration::from_secs(60) {
            *self = Self::new(now);
        }
        self.used += 1;
        self.used <= A_MINUTE
    }
}

/// Who named an address that a relay could reach.
#[derive(Debug)]
pub(super) struct Introductions {
    by: HashMap<SocketAddr, PeerKey>,
    calls: Allowance,
}

impl Introductions {
    pub(super) fn new(now: Instant) -> Self {
        Self { by: HashMap::new(), calls: Allowance::new(now) }
    }

    /// `relay` is connected to `addr`, and both speak this extension.
    pub(super) fn add(&mut self, addr: SocketAddr, relay: PeerKey) {
        if self.by.len() < MAX_INTRODUCED || self.by.contains_key(&addr) {
            self.by.insert(addr, relay);
        }
    }

    /// A relay is gone.
    pub(super) fn forget(&mut self, relay: PeerKey) {
        self.by.retain(|_, by| *by != relay);
    }
}

impl Driver {
    /// A call came to nothing: whoever named the address may help.
    pub(super) fn ask_for_rendezvous(&mut self, addr: SocketAddr) {
        let Some(relay) = self.introductions.by.remove(&addr) else { return };
        let Some(peer) = self.peers.get_mut(&relay).filter(|peer| peer.extensions.holepunch != 0) else { return };
        tracing::debug!(%addr, relay = %peer.addr, "asking for a rendezvous");
        let payload = Holepunch::Rendezvous(addr).encode();
        peer.outgoing.push(Message::Extended { id: peer.extensions.holepunch, payload });
    }

    pub(super) fn holepunch(&mut self, key: PeerKey, message: Holepunch) {
        let now = Instant::now();
        let Some(peer) = self.peers.get_mut(&key) else { return };
        if peer.extensions.holepunch == 0 || !peer.extensions.punches.take(now) {
            return;
        }
        let from = peer.addr;
        match message {
            Holepunch::Rendezvous(target) => self.relay(key, target),
            Holepunch::Connect(addr) => {
                let known = self.peers.values().any(|peer| peer.addr == addr);
                if !known && may_name(from.ip(), addr.ip()) && self.introductions.calls.take(now) {
                    tracing::debug!(%addr, relay = %from, "calling for a rendezvous");
                    self.punch(addr);
                }
            }
            Holepunch::Failed(addr, why) => tracing::debug!(%addr, relay = %from, ?why, "no rendezvous"),
        }
    }

    /// `key` wants to be called by `target`, whom we may know.
    fn relay(&mut self, key: PeerKey, target: SocketAddr) {
        let Some(asker) = self.peers.get(&key) else { return };
        let (asker_addr, asker_number) = (asker.addr, asker.extensions.holepunch);
        let other = self.peers.iter().find(|(_, peer)| peer.extensions.contact(peer.addr) == Some(target));
        let verdict = match other {
            _ if target.port() == 0 => Err(PunchError::NoSuchPeer),
            Some((other, _)) if *other == key => Err(PunchError::NoSelf),
            Some((_, peer)) if peer.extensions.holepunch == 0 => Err(PunchError::NoSupport),
            Some((other, peer)) if may_name(peer.addr.ip(), asker_addr.ip()) => Ok(*other),
            _ => Err(PunchError::NotConnected),
        };
        let answer = match verdict {
            Ok(other) => {
                if let Some(peer) = self.peers.get_mut(&other) {
                    let payload = Holepunch::Connect(asker_addr).encode();
                    peer.outgoing.push(Message::Extended { id: peer.extensions.holepunch, payload });
                }
                Holepunch::Connect(target)
            }
            Err(why) => Holepunch::Failed(target, why),
        };
        if let Some(asker) = self.peers.get_mut(&key) {
            asker.outgoing.push(Message::Extended { id: asker_number, payload: answer.encode() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floods_are_bounded() {
        let now = Instant::now();
        let mut allowance = Allowance::new(now);
        assert_eq!((0..100).filter(|_| allowance.take(now)).count(), A_MINUTE as usize);
        assert!(allowance.take(now + Duration::from_secs(60)));
        let mut introductions = Introductions::new(now);
        for port in 0..=u16::MAX {
            introductions.add(([1, 2, 3, 4], port).into(), PeerKey(1));
        }
        assert_eq!(introductions.by.len(), MAX_INTRODUCED);
        introductions.forget(PeerKey(1));
        assert!(introductions.by.is_empty());
    }
}
