//! Peer exchange with one peer (BEP 11): which addresses we send it and when, and how often it may send us some.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::util::is_local;
use crate::wire::{Pex, PexFlags};

/// Interval between two of our messages to a peer (BEP 11: no more than one a minute).
const INTERVAL: Duration = Duration::from_secs(60);
/// Minimum time between two messages of a peer that we use: half of BEP 11's minute, because delays on the network may
/// bring two messages closer together.
const MIN_INTERVAL: Duration = Duration::from_secs(30);
/// Delay of our first message: by then the handshakes of other new connections have told us more about them.
const FIRST_DELAY: Duration = Duration::from_secs(2);
/// Maximum number of addresses of each kind (added, dropped) in one of our messages (BEP 11).
const MAX_ADDRESSES: usize = 50;

/// The peer exchange with one peer.
#[derive(Debug)]
pub(in crate::swarm) struct PeerExchange {
    /// When the peer's last message came that we used.
    received: Option<Instant>,
    /// Addresses that we have sent, less those that we have reported as dropped.
    sent: BTreeSet<SocketAddr>,
    /// When our next message is due.
    due: Instant,
}

impl PeerExchange {
    pub(in crate::swarm) fn new(now: Instant) -> Self {
        Self { received: None, sent: BTreeSet::new(), due: now + FIRST_DELAY }
    }

    /// Returns whether a message that has just arrived may be used, and starts the wait for the next one if so.
    pub(in crate::swarm) fn may_receive(&mut self, now: Instant) -> bool {
        if self.received.is_some_and(|at| now.saturating_duration_since(at) < MIN_INTERVAL) {
            return false;
        }
        self.received = Some(now);
        true
    }

    /// Returns whether it is time for our next message.
    pub(in crate::swarm) fn is_due(&self, now: Instant) -> bool {
        now >= self.due
    }

    /// Returns our next message to the peer at `to`, which others reach at `own`; `None` if there is nothing to report.
    /// `contacts` are the addresses of all peers that we are connected to.
    pub(in crate::swarm) fn next_message(
        &mut self,
        now: Instant,
        to: IpAddr,
        own: Option<SocketAddr>,
        contacts: &BTreeMap<SocketAddr, PexFlags>,
    ) -> Option<Pex> {
        self.due = now + INTERVAL;
        let others = contacts.iter().filter(|(addr, _)| Some(**addr) != own && may_share(to, addr.ip()));
        let added = others.filter(|(addr, _)| !self.sent.contains(addr)).map(|(addr, flags)| (*addr, *flags));
        let dropped = self.sent.iter().filter(|addr| !contacts.contains_key(addr)).copied();
        let pex = Pex { added: added.take(MAX_ADDRESSES).collect(), dropped: dropped.take(MAX_ADDRESSES).collect() };
        if pex == Pex::default() {
            return None;
        }
        self.sent.extend(pex.added.iter().map(|(addr, _)| *addr));
        for addr in &pex.dropped {
            self.sent.remove(addr);
        }
        Some(pex)
    }
}

/// Returns whether a peer at `peer` and we may tell each other about `addr`: addresses of the local network are not
/// shared with peers outside of it.
pub(in crate::swarm) fn may_share(peer: IpAddr, addr: IpAddr) -> bool {
    !is_local(addr) || is_local(peer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_do_not_name_our_neighbours() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        for (from, addr, may) in [
            ("1.2.3.4", "5.6.7.8", true),
            ("1.2.3.4", "127.0.0.1", false),
            ("1.2.3.4", "192.168.0.1", false),
            ("1.2.3.4", "::ffff:10.0.0.1", false),
            ("2001:db8::1", "fe80::1", false),
            ("10.0.0.2", "10.0.0.3", true),
            ("127.0.0.1", "5.6.7.8", true),
        ] {
            assert_eq!(may_share(ip(from), ip(addr)), may, "{from} names {addr}");
        }
    }

    #[test]
    fn messages_report_changes_only_and_are_bounded() {
        let addr = |n: u16| SocketAddr::from(([1, 2, 3, 4], n));
        let mut now = Instant::now();
        let mut exchange = PeerExchange::new(now);
        assert!(!exchange.is_due(now));
        now += FIRST_DELAY;
        assert!(exchange.is_due(now));
        let mut contacts: BTreeMap<_, _> = (1..=70).map(|n| (addr(n), PexFlags::default())).collect();
        let mut next = |now, contacts: &_| exchange.next_message(now, addr(1).ip(), Some(addr(1)), contacts);
        let first = next(now, &contacts).unwrap();
        assert_eq!((first.added.len(), first.dropped.len()), (MAX_ADDRESSES, 0));
        assert!(first.added.iter().all(|(named, _)| *named != addr(1)), "the peer itself");
        let second = next(now, &contacts).unwrap();
        assert_eq!((second.added.len(), second.dropped.len()), (19, 0));
        assert_eq!(next(now, &contacts), None);
        contacts.clear();
        assert_eq!(next(now, &contacts).unwrap().dropped.len(), MAX_ADDRESSES);
        assert!(!exchange.is_due(now + INTERVAL - Duration::from_secs(1)) && exchange.is_due(now + INTERVAL));
    }

    #[test]
    fn messages_that_come_too_fast_are_ignored() {
        let now = Instant::now();
        let mut exchange = PeerExchange::new(now);
        assert!(exchange.may_receive(now));
        assert!(!exchange.may_receive(now + MIN_INTERVAL / 2));
        assert!(exchange.may_receive(now + MIN_INTERVAL));
    }
}
