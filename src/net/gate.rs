//! Who may call: nobody on the blocklist, and not too many at a time, for a flood must not lock out the rest of the
//! world.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use super::blocklist::Blocklist;
use crate::util::lock;

/// Callers of one network in the handshake. Those behind one router or in one house share it.
const OF_ONE_NETWORK: usize = 16;

/// Lets callers in, and counts those in the handshake by network.
#[derive(Debug)]
pub(super) struct Gate {
    blocklist: Arc<Blocklist>,
    inside: Mutex<HashMap<Network, usize>>,
}

/// Why a caller is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    #[error("its address is on the blocklist")]
    Blocked,
    #[error("too many of its network at once")]
    Crowd,
}

/// What one party can call from at will: a /24 of IPv4, a /64 of IPv6.
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

impl Gate {
    pub(super) fn new(blocklist: Arc<Blocklist>) -> Self {
        Self { blocklist, inside: Mutex::default() }
    }

    /// Lets a caller in, until the pass is dropped.
    pub(super) fn enter(self: &Arc<Self>, ip: IpAddr) -> Result<Pass, Refused> {
        if self.blocklist.blocks(ip) {
            return Err(Refused::Blocked);
        }
        let network = Network::of(ip);
        let mut inside = self.inside();
        let count = inside.entry(network).or_default();
        if *count >= OF_ONE_NETWORK {
            return Err(Refused::Crowd);
        }
        *count += 1;
        drop(inside);
        Ok(Pass { gate: self.clone(), network })
    }

    /// Plain data, sound even if a thread died while it held the lock.
    fn inside(&self) -> MutexGuard<'_, HashMap<Network, usize>> {
        lock(&self.inside)
    }
}

/// A caller inside.
#[derive(Debug)]
pub(super) struct Pass {
    gate: Arc<Gate>,
    network: Network,
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut inside = self.gate.inside();
        if let Some(count) = inside.get_mut(&self.network) {
            *count -= 1;
            if *count == 0 {
                inside.remove(&self.network);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_has_its_share_and_no_more() {
        let gate = Arc::new(Gate::new(Arc::default()));
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let passes: Vec<Pass> = (0..OF_ONE_NETWORK).map(|n| gate.enter(ip(&format!("192.0.2.{n}"))).unwrap()).collect();
        assert!(gate.enter(ip("192.0.2.200")).is_err());
        assert!(gate.enter(ip("::ffff:192.0.2.200")).is_err(), "the same network by another name");
        assert!(gate.enter(ip("192.0.3.1")).is_ok());
        drop(passes);
        assert!(gate.enter(ip("192.0.2.200")).is_ok());
        let passes: Vec<Pass> =
            (0..OF_ONE_NETWORK).map(|n| gate.enter(ip(&format!("2001:db8::{n:x}"))).unwrap()).collect();
        assert!(gate.enter(ip("2001:db8::ffff:1:2:3")).is_err());
        assert!(gate.enter(ip("2001:db8:0:1::1")).is_ok());
        drop(passes);
        assert!(gate.inside().is_empty(), "nothing is kept of who has left");
    }
}
