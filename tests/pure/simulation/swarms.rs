//! Workloads of whole swarms: flash crowds, the first copy of a super-seed, addresses that do not answer, and metadata.
//! Every result is a number in virtual time that depends on the seed alone.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use torrentfs::metainfo::{InfoHash, Lengths};
use torrentfs::swarm::{Event, PeerSource, Policy};
use torrentfs::wire::METADATA_PIECE_LEN;

use super::overlay::Overlay;
use super::workload::Results;
use super::{World, seconds};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_secs(1_000);

/// Runs every workload once.
pub fn measure(policy: &Policy, seed: u64) -> Results {
    let policy = Arc::new(policy.clone());
    let (copies, spread) = first_copy(&policy, seed, true);
    vec![
        ("crowd", flash_crowd(&policy, seed, 500e3, 500e3, 8 * MIB)),
        ("slow crowd", flash_crowd(&policy, seed, 60e3, 60e3, MIB)),
        ("fast seed", flash_crowd(&policy, seed, 3e6, 100e3, 8 * MIB)),
        ("super-seed copies", copies),
        ("super-seed time", spread),
        ("dead addresses", dead_addresses(&policy, seed)),
        ("metadata", metadata(&policy, seed, 0)),
        ("metadata, silent peers", metadata(&policy, seed, 3)),
    ]
}

/// Fifteen leechers fetch from each other and from one seed, able to send so many bytes a second: the time until all are
/// complete, in copies that the seed could send in that time.
fn flash_crowd(policy: &Arc<Policy>, seed: u64, seed_rate: f64, rate: f64, size: u64) -> f64 {
    let lengths = Lengths::new(size, size / 64).expect("sizes of a torrent");
    let mut world = World::new(seed, lengths, Duration::from_millis(10));
    world.add(seed_rate, |_| true, |config| config.policy = policy.clone());
    for _ in 0..15 {
        world.add(rate, |_| false, |config| config.policy = policy.clone());
    }
    world.introduce();
    let done = |world: &World| world.nodes[1..].iter().all(|node| node.completed.is_some());
    seconds(world.run_until(LIMIT, done)) * seed_rate / size as f64
}

/// A first seed and twelve leechers with the same bandwidth: the copies that the seed has sent when the leechers together
/// have every piece, and the time until all are complete divided by that of one copy.
pub fn first_copy(policy: &Arc<Policy>, seed: u64, super_seed: bool) -> (f64, f64) {
    let (rate, size, piece) = (MIB as f64, 16 * MIB, 128 * KIB);
    let lengths = Lengths::new(size, piece).expect("sizes of a torrent");
    let mut world = World::new(seed, lengths, Duration::from_millis(10));
    let first = world.add(
        rate,
        |_| true,
        |config| {
            config.policy = policy.clone();
            config.super_seed = super_seed;
        },
    );
    for _ in 0..12 {
        world.add(rate, |_| false, |config| config.policy = policy.clone());
    }
    world.introduce();
    let spread = |world: &World| {
        (0..lengths.pieces()).all(|piece| world.nodes[1..].iter().any(|node| node.stored.contains(&piece)))
    };
    world.run_until(LIMIT, spread);
    let copies = world.nodes[first].swarm.stats(world.clock()).uploaded as f64 / size as f64;
    let all = |world: &World| world.nodes[1..].iter().all(|node| node.completed.is_some());
    (copies, seconds(world.run_until(LIMIT, all)) / 16.0)
}

/// Two hundred addresses that do not answer, listed before those of ten seeds: the time to the first 64 KiB.
pub fn dead_addresses(policy: &Arc<Policy>, seed: u64) -> f64 {
    let lengths = Lengths::new(16 * MIB, 256 * KIB).expect("sizes of a torrent");
    let mut world = World::new(seed, lengths, Duration::from_millis(30));
    world.dial_timeout = Duration::from_secs(8);
    let seeds: Vec<usize> = (0..10).map(|_| world.add_seed(1e6)).collect();
    let client = world.add(1e6, |_| false, |config| config.policy = policy.clone());
    let dead = (1..=200).map(|port| ([127, 0, 0, 1], port).into());
    let listed = dead.chain(seeds.into_iter().map(World::addr)).collect();
    world.open(client, 1, 0..16 * MIB);
    world.event(client, Event::PeersFound { addrs: listed, source: PeerSource::Tracker });
    seconds(world.read_now(client, 1, 0..64 * KIB, LIMIT))
}

/// Metadata of 40 pieces from one peer, beside some that never answer a request.
fn metadata(policy: &Policy, seed: u64, silent: usize) -> f64 {
    let truth: Bytes = (0..40 * METADATA_PIECE_LEN).map(|n| (n / 7) as u8).collect::<Vec<u8>>().into();
    let mut overlay = Overlay::new(seed);
    let resolver = overlay.add_resolver(Overlay::public(0), InfoHash::of(&truth), policy.clone());
    for host in 1..=1 + silent {
        let added = overlay.add_swarm(Overlay::public(host), |config| config.metadata = truth.clone().into());
        if host > 1 {
            overlay.silence(added);
        }
    }
    overlay.introduce(resolver, (1..=1 + silent).map(Overlay::public).collect());
    seconds(overlay.run_until(LIMIT, |overlay| overlay.hosts[resolver].resolved.is_some()))
}
