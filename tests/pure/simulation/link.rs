//! A peer's access link: a rate, a delay with jitter, and a first-in-first-out queue.

use std::time::Duration;

use rand::RngExt;
use rand::rngs::SmallRng;

/// The longest queue of a link, as in a router. The sender's socket waits for place in it.
const MAX_QUEUE: Duration = Duration::from_millis(250);

/// A link between a peer and everybody else.
#[derive(Clone, Debug)]
pub struct Link {
    /// Bytes a second that the peer can send.
    pub rate: f64,
    /// Time that each message takes in either direction.
    pub delay: Duration,
    /// Time by which a message is late at most. Messages never overtake each other.
    pub jitter: Duration,
    /// Bandwidth is granted this often; zero: continuously.
    pub burst: Duration,
    /// From each of these times on, `rate` counts so many times. In ascending order.
    pub changes: Vec<(Duration, f64)>,
    /// When the last byte in the queue leaves.
    free: Duration,
    /// When the last message arrives, from and at the peer.
    arrived: [Duration; 2],
}

/// When a block makes progress on its way.
pub struct Transfer {
    /// It leaves the sender's socket.
    pub sent: Duration,
    /// It leaves the queue of the link.
    pub left: Duration,
    /// It is completely received.
    pub arrives: Duration,
}

impl Link {
    pub fn new(rate: f64, delay: Duration) -> Self {
        let (jitter, burst, zero) = (delay / 10, Duration::ZERO, Duration::ZERO);
        Self { rate, delay, jitter, burst, changes: Vec::new(), free: zero, arrived: [zero; 2] }
    }

    /// The peer sends a block.
    pub fn send_block(&mut self, now: Duration, len: u32, rng: &mut SmallRng) -> Transfer {
        let begin = now.max(self.free);
        self.free = self.end(begin, f64::from(len));
        let bursts = self.free.as_nanos().checked_div(self.burst.as_nanos()).map(|full| full as u32 + 1);
        let leaves = bursts.map_or(self.free, |bursts| self.burst * bursts);
        Transfer { sent: now.max(begin.saturating_sub(MAX_QUEUE)), left: leaves, arrives: self.arrival(0, leaves, rng) }
    }

    /// The peer sends a small message, behind the blocks in the queue.
    pub fn send(&mut self, now: Duration, rng: &mut SmallRng) -> Duration {
        self.arrival(0, now.max(self.free), rng)
    }

    /// The peer is sent a small message.
    pub fn receive(&mut self, now: Duration, rng: &mut SmallRng) -> Duration {
        self.arrival(1, now, rng)
    }

    fn arrival(&mut self, direction: usize, leaves: Duration, rng: &mut SmallRng) -> Duration {
        let late = self.jitter.mul_f64(rng.random_range(0.0..1.0));
        self.arrived[direction] = self.arrived[direction].max(leaves + self.delay + late);
        self.arrived[direction]
    }

    /// Returns when `bytes` are through that start at `begin`.
    fn end(&self, mut begin: Duration, mut bytes: f64) -> Duration {
        let at = self.changes.partition_point(|(from, _)| *from <= begin);
        let mut factor = if at == 0 { 1.0 } else { self.changes[at - 1].1 };
        for (until, next) in &self.changes[at..] {
            let most = self.rate * factor * (*until - begin).as_secs_f64();
            if most >= bytes {
                break;
            }
            bytes -= most;
            (begin, factor) = (*until, *next);
        }
        begin + Duration::from_secs_f64(bytes / (self.rate * factor).max(1.0))
    }
}
