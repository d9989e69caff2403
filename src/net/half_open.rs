//! The handshakes in progress on one listening socket. Their number is bounded, in total and by network, and a new
//! caller is never kept out: the oldest handshake gives way to it. An honest one takes a few round trips, so only those
//! that will never end grow old.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::oneshot;

use crate::util::lock;

/// Handshakes in progress: enough for a busy swarm, bounded against floods.
const MAX_HALF_OPEN: usize = 64;

/// Handshakes in progress with peers of one network, so that a flood from one network ends only handshakes of its own.
/// Enough for several peers behind one router.
const MAX_PER_NETWORK: usize = 16;

/// The handshakes in progress, the oldest first.
#[derive(Debug, Default)]
pub(super) struct HalfOpen(Mutex<Handshakes>);

#[derive(Debug, Default)]
struct Handshakes {
    next: u64,
    in_progress: VecDeque<InProgress>,
}

#[derive(Debug)]
struct InProgress {
    number: u64,
    network: Network,
    /// Dropped to end the handshake.
    _end: oneshot::Sender<()>,
}

/// The addresses that one party can use at will: an IPv4 /24 or an IPv6 /64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

impl HalfOpen {
    /// Admits a caller. If there are too many, ends the oldest handshake: of the caller's network if that has its
    /// maximum, else of all.
    pub(super) fn admit(self: &Arc<Self>, ip: IpAddr) -> Slot {
        let network = Network::of(ip);
        let (end, ended) = oneshot::channel();
        let mut handshakes = self.lock();
        let of_network = |handshake: &InProgress| handshake.network == network;
        let in_progress = &handshakes.in_progress;
        let gives_way = if in_progress.iter().filter(|other| of_network(other)).count() >= MAX_PER_NETWORK {
            in_progress.iter().position(of_network)
        } else {
            (in_progress.len() >= MAX_HALF_OPEN).then_some(0)
        };
        gives_way.and_then(|oldest| handshakes.in_progress.remove(oldest));
        let number = handshakes.next;
        handshakes.next += 1;
        handshakes.in_progress.push_back(InProgress { number, network, _end: end });
        drop(handshakes);
        Slot { half_open: self.clone(), number, ended }
    }

    fn lock(&self) -> MutexGuard<'_, Handshakes> {
        lock(&self.0)
    }
}

/// A handshake in progress, until it is dropped.
#[derive(Debug)]
pub(super) struct Slot {
    half_open: Arc<HalfOpen>,
    number: u64,
    ended: oneshot::Receiver<()>,
}

impl Slot {
    /// Waits until the handshake has to give way to a newer one.
    pub(super) async fn gives_way(&mut self) {
        // An error: the other end, which never sends, was dropped.
        let _ = (&mut self.ended).await;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.half_open.lock().in_progress.retain(|handshake| handshake.number != self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admit(half_open: &Arc<HalfOpen>, ip: &str) -> Slot {
        half_open.admit(ip.parse().unwrap())
    }

    fn has_given_way(slot: &mut Slot) -> bool {
        !matches!(slot.ended.try_recv(), Err(oneshot::error::TryRecvError::Empty))
    }

    #[test]
    fn the_oldest_handshake_gives_way() {
        let half_open = Arc::new(HalfOpen::default());
        let mut slots: Vec<Slot> = (0..MAX_HALF_OPEN).map(|n| admit(&half_open, &format!("192.0.{n}.1"))).collect();
        assert!(!slots.iter_mut().any(has_given_way));
        drop(slots.remove(5));
        let mut new = vec![admit(&half_open, "198.51.100.1")];
        assert!(!slots.iter_mut().any(has_given_way), "a slot was free");
        new.extend((0..3).map(|n| admit(&half_open, &format!("198.51.{n}.1"))));
        let given_way: Vec<bool> = slots.iter_mut().map(has_given_way).collect();
        assert_eq!(given_way, (0..MAX_HALF_OPEN - 1).map(|n| n < 3).collect::<Vec<_>>());
        assert!(!new.iter_mut().any(has_given_way));
        drop((slots, new));
        assert!(half_open.lock().in_progress.is_empty());
    }

    #[test]
    fn a_flood_from_one_network_ends_only_handshakes_of_its_own() {
        for (others, flood) in [("192.0.2.1", "198.51.100."), ("2001:db8::1", "2001:db8:0:1::")] {
            let half_open = Arc::new(HalfOpen::default());
            let mut honest: Vec<Slot> = (0..MAX_PER_NETWORK).map(|_| admit(&half_open, others)).collect();
            let mut flood: Vec<Slot> = (1..200).map(|n| admit(&half_open, &format!("{flood}{n}"))).collect();
            assert!(!honest.iter_mut().any(has_given_way));
            assert_eq!(
                flood.iter_mut().filter_map(|slot| (!has_given_way(slot)).then_some(())).count(),
                MAX_PER_NETWORK
            );
            assert!(!has_given_way(flood.last_mut().unwrap()), "the newest stay");
        }
        let half_open = Arc::new(HalfOpen::default());
        let mut slots: Vec<Slot> = (0..MAX_PER_NETWORK).map(|_| admit(&half_open, "192.0.2.1")).collect();
        let _mapped = admit(&half_open, "::ffff:192.0.2.200");
        assert!(has_given_way(&mut slots[0]), "the same network in IPv4-mapped form");
    }
}
