//! Swarms as clients see them: the links of the peers, and what the peers do.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use torrentfs::metainfo::Lengths;
use torrentfs::swarm::Policy;

use super::libtorrent::Libtorrent;
use super::link::Link;
use super::script::Script;
use super::{Nature, World};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// Unsteady links are so for this long.
const UNSTEADY: f64 = 300.0;

/// A swarm of seeds, each behind its link.
#[derive(Clone, Debug)]
pub struct Profile {
    pub name: &'static str,
    /// Round trip in milliseconds and rate in kB/s of each peer.
    peers: Cow<'static, [(u64, u32)]>,
    piece: u64,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Kind {
    /// Links do not change.
    Steady,
    /// Now and then a peer stops for seconds, or slows down to a tenth.
    Unsteady,
    /// Peers send blocks out of order more often, as on a busy machine.
    Busy,
    /// Peers grant bandwidth every so many milliseconds.
    Bursts(u64),
    /// The first and the fourth peer never send a block, and the fifth sends wrong ones.
    Hostile,
    /// Links with jitter and slow start, some of them unsteady or with a rate limit of libtorrent's; other settings and clients;
    /// a tracker that answers late.
    Random(u64),
}

const HOME: &[(u64, u32)] = &[
    (20, 2000),
    (40, 1200),
    (35, 800),
    (60, 500),
    (90, 400),
    (120, 300),
    (150, 200),
    (30, 150),
    (200, 100),
    (250, 80),
    (80, 50),
    (300, 30),
];

const FEW: &[(u64, u32)] = &[(45, 1500), (110, 900), (180, 400)];

const FAR: &[(u64, u32)] = &[(180, 1500), (220, 1200), (250, 900), (300, 700), (280, 500), (350, 400)];

const CROWD: &[(u64, u32)] = &[
    (217, 123),
    (88, 57),
    (48, 168),
    (141, 57),
    (140, 202),
    (150, 25),
    (61, 244),
    (185, 201),
    (136, 83),
    (257, 53),
    (36, 91),
    (251, 259),
    (262, 231),
    (152, 143),
    (74, 27),
    (126, 81),
    (205, 249),
    (287, 230),
    (112, 81),
    (42, 202),
    (97, 257),
    (104, 151),
    (91, 42),
    (168, 150),
    (216, 33),
    (213, 91),
    (123, 250),
    (265, 166),
    (77, 31),
    (58, 237),
    (296, 170),
    (26, 153),
    (59, 100),
    (105, 125),
    (290, 146),
    (191, 143),
    (188, 191),
    (66, 167),
    (235, 38),
    (127, 69),
];

const fn profile(name: &'static str, peers: &'static [(u64, u32)], piece: u64, kind: Kind) -> Profile {
    Profile { name, peers: Cow::Borrowed(peers), piece, kind }
}

/// A home line's swarm, few peers, distant peers, many slow peers, as in the lab with real programs, with pieces of 2 MiB
/// and of 256 KiB; then the first with unsteady links, with busy and with hostile peers; and fast peers nearby that send in
/// bursts.
pub const PROFILES: [Profile; 12] = [
    profile("home", HOME, 2 * MIB, Kind::Steady),
    profile("few", FEW, 2 * MIB, Kind::Steady),
    profile("far", FAR, 2 * MIB, Kind::Steady),
    profile("crowd", CROWD, 2 * MIB, Kind::Steady),
    profile("small", HOME, 256 * KIB, Kind::Steady),
    profile("small few", FEW, 256 * KIB, Kind::Steady),
    profile("small far", FAR, 256 * KIB, Kind::Steady),
    profile("small crowd", CROWD, 256 * KIB, Kind::Steady),
    profile("unsteady", HOME, 2 * MIB, Kind::Unsteady),
    profile("busy", HOME, 2 * MIB, Kind::Busy),
    profile("hostile", HOME, 256 * KIB, Kind::Hostile),
    profile("bursts", &[(1, 4000), (1, 4000), (5, 1000)], MIB, Kind::Bursts(20)),
];

const RANDOM: [&str; 10] = [
    "random 0", "random 1", "random 2", "random 3", "random 4", "random 5", "random 6", "random 7", "random 8",
    "random 9",
];

impl Profile {
    /// Returns ten profiles that depend on their numbers alone.
    pub fn random() -> Vec<Self> {
        (0..).zip(RANDOM).map(|(seed, name)| Self::random_of(name, seed)).collect()
    }

    fn random_of(name: &'static str, seed: u64) -> Self {
        /// Least rate of all links together in kB/s: enough to play without stalls.
        const LEAST: f64 = 3_000.0;
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut log = |low: f64, high: f64| (rng.random_range(low.ln()..high.ln())).exp();
        let count = log(3.0, 40.0) as usize;
        let mut peers: Vec<(u64, f64)> = (0..count).map(|_| (log(10.0, 400.0) as u64, log(20.0, 3_000.0))).collect();
        let piece = (64 * KIB) << log(1.0, 64.0).log2().round() as u32;
        let sum: f64 = peers.iter().map(|(_, rate)| rate).sum();
        peers.iter_mut().for_each(|(_, rate)| *rate *= (LEAST / sum).max(1.0));
        let peers = peers.into_iter().map(|(rtt, rate)| (rtt, rate as u32)).collect();
        Self { name, peers: Cow::Owned(peers), piece, kind: Kind::Random(seed) }
    }

    /// Returns the bytes a second of all links together.
    pub fn rate(&self) -> f64 {
        self.peers.iter().map(|(_, rate)| f64::from(*rate) * 1e3).sum()
    }

    /// Returns the least seconds in which all links together can deliver so many bytes after one round trip.
    pub fn floor(&self, bytes: u64) -> f64 {
        let (mut low, mut high) = (0.0, 1e4);
        for _ in 0..60 {
            let middle = (low + high) / 2.0;
            let by_then = |(rtt, rate): &(u64, u32)| (middle - *rtt as f64 / 1e3).max(0.0) * f64::from(*rate) * 1e3;
            if self.peers.iter().map(by_then).sum::<f64>() < bytes as f64 { low = middle } else { high = middle }
        }
        high
    }

    /// Returns a world with the profile's peers, and these.
    pub(super) fn world(&self, seed: u64, size: u64) -> (World, Vec<usize>) {
        let lengths = Lengths::new(size, self.piece).expect("sizes of a torrent");
        let mut world = World::new(seed, lengths, Duration::ZERO);
        let mut seeds = Vec::new();
        for (rtt, rate) in self.peers.iter() {
            let mut link = Link::new(f64::from(*rate) * 1e3, Duration::from_micros(rtt * 500));
            let mut client = Some(Libtorrent::lab());
            match self.kind {
                Kind::Busy => client.iter_mut().for_each(|client| client.delayed_reads *= 2.0),
                Kind::Steady | Kind::Hostile => {}
                Kind::Bursts(millis) => link.burst = Duration::from_millis(millis),
                Kind::Unsteady => unsteady(&mut link, &mut world.rng),
                Kind::Random(number) => {
                    // Different for each peer, but the same whatever the seed of the run.
                    let mut rng = SmallRng::seed_from_u64(number * 1_000 + seeds.len() as u64);
                    client = randomize(&mut link, &mut rng);
                }
            }
            seeds.push(world.add_scripted(link, Script { queue: 2_000, libtorrent: client, ..Script::default() }));
        }
        if self.kind == Kind::Hostile {
            world.nodes[seeds[0]].nature = Nature::Silent;
            world.nodes[seeds[3]].nature = Nature::Silent;
            world.nodes[seeds[4]].nature = Nature::Liar;
        }
        if let Kind::Random(number) = self.kind {
            let mut rng = SmallRng::seed_from_u64(number);
            let answers = Duration::from_millis(rng.random_range(0..400));
            world.run(answers);
        }
        (world, seeds)
    }

    /// Returns a world with the profile's peers and a client, which learns of them when the tracker answers.
    pub(super) fn world_with_client(&self, policy: &Policy, seed: u64, size: u64) -> (World, usize) {
        let (mut world, seeds) = self.world(seed, size);
        let policy = Arc::new(policy.clone());
        let client = world.add(
            1e6,
            |_| false,
            |config| {
                config.policy = policy;
                config.max_partial = 32 * MIB;
            },
        );
        world.introduce_to(client, &seeds);
        world.open(client, 1, 0..size);
        (world, client)
    }
}

/// Lets a peer stop for seconds now and then, or slow down to a tenth.
fn unsteady(link: &mut Link, rng: &mut SmallRng) {
    let mut at = 0.0;
    while at < UNSTEADY {
        at += rng.random_range(2.0..25.0);
        let lasts = rng.random_range(1.0..6.0);
        let factor = if rng.random_bool(0.5) { 0.0 } else { 0.1 };
        link.changes.push((Duration::from_secs_f64(at), factor));
        at += lasts;
        link.changes.push((Duration::from_secs_f64(at), 1.0));
    }
}

/// Draws the properties of a link, and how the client behind it sends blocks.
fn randomize(link: &mut Link, rng: &mut SmallRng) -> Option<Libtorrent> {
    link.slow_start = true;
    link.jitter = link.delay.mul_f64(rng.random_range(0.0..0.5));
    if rng.random_bool(0.15) {
        unsteady(link, rng);
    }
    if rng.random_bool(0.2) {
        // libtorrent's `tick_interval` by default.
        link.burst = Duration::from_millis(500);
    }
    let socket_buffer = link.window().max(64 << 10);
    rng.random_bool(0.7).then(|| Libtorrent {
        watermark: 500 << 10,
        socket_buffer,
        seed_mode: rng.random_bool(0.3),
        delayed_reads: rng.random_range(0.0..0.1),
        delayed_ack: Duration::ZERO,
    })
}
