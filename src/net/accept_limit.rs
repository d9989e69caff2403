//! Which incoming connections are accepted: none from the blocklist, and a bounded number per network, so that a flood
//! from one network does not lock out the others.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use super::blocklist::Blocklist;
use crate::util::lock;

/// Concurrent handshakes with peers of one network. Enough for several peers behind one router.
const MAX_PER_NETWORK: usize = 16;

/// Decides which connections to accept, and counts the handshakes in progress by network.
#[derive(Debug)]
pub(super) struct AcceptLimit {
    blocklist: Arc<Blocklist>,
    in_progress: Mutex<HashMap<Network, usize>>,
}

/// The reason why a connection is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("its address is on the blocklist")]
    Blocked,
    #[error("too many handshakes with its network are in progress")]
    TooMany,
}

/// The addresses that one party can use at will: an IPv4 /24 or an IPv6 /64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Network {
    V4([u8; 3]),
    V6([u16; 4]),
}

impl Network {
    fn of(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(ip) => {
                let [a, b, c, _] = ip.octets();
                Self::V4([a, b, c])
            }
            IpAddr::V6(ip) => {
                let [a, b, c, d, ..] = ip.segments();
                Self::V6([a, b, c, d])
            }
        }
    }
}

impl AcceptLimit {
    pub(super) fn new(blocklist: Arc<Blocklist>) -> Self {
        Self { blocklist, in_progress: Mutex::default() }
    }

    /// Reserves a slot for a connection from `ip`. The slot is free again when the result is dropped.
    pub(super) fn admit(self: &Arc<Self>, ip: IpAddr) -> Result<AcceptSlot, Refusal> {
        if self.blocklist.blocks(ip) {
            return Err(Refusal::Blocked);
        }
        let network = Network::of(ip);
        let mut in_progress = self.in_progress();
        let count = in_progress.entry(network).or_default();
        if *count >= MAX_PER_NETWORK {
            return Err(Refusal::TooMany);
        }
        *count += 1;
        drop(in_progress);
        Ok(AcceptSlot { limit: self.clone(), network })
    }

    /// Locks the counts.
    fn in_progress(&self) -> MutexGuard<'_, HashMap<Network, usize>> {
        lock(&self.in_progress)
    }
}

/// A reserved slot.
#[derive(Debug)]
pub(super) struct AcceptSlot {
    limit: Arc<AcceptLimit>,
    network: Network,
}

impl Drop for AcceptSlot {
    fn drop(&mut self) {
        let mut in_progress = self.limit.in_progress();
        if let Some(count) = in_progress.get_mut(&self.network) {
            *count -= 1;
            if *count == 0 {
                in_progress.remove(&self.network);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slots_of_a_network_are_bounded() {
        let limit = Arc::new(AcceptLimit::new(Arc::default()));
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let slots: Vec<AcceptSlot> =
            (0..MAX_PER_NETWORK).map(|n| limit.admit(ip(&format!("192.0.2.{n}"))).unwrap()).collect();
        assert!(limit.admit(ip("192.0.2.200")).is_err());
        assert!(limit.admit(ip("::ffff:192.0.2.200")).is_err(), "the same network in IPv4-mapped form");
        assert!(limit.admit(ip("192.0.3.1")).is_ok());
        drop(slots);
        assert!(limit.admit(ip("192.0.2.200")).is_ok());
        let slots: Vec<AcceptSlot> =
            (0..MAX_PER_NETWORK).map(|n| limit.admit(ip(&format!("2001:db8::{n:x}"))).unwrap()).collect();
        assert!(limit.admit(ip("2001:db8::ffff:1:2:3")).is_err());
        assert!(limit.admit(ip("2001:db8:0:1::1")).is_ok());
        drop(slots);
        assert!(limit.in_progress().is_empty(), "counts of zero are removed");
    }
}
