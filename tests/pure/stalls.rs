//! Reads beside peers that stop, drip, choke, close, and drop or reject requests: with one healthy peer none waits long.

use std::ops::Range;
use std::time::Duration;

use rand::RngExt;
use torrentfs::metainfo::Lengths;

use crate::simulation::link::Link;
use crate::simulation::script::Script;
use crate::simulation::workload::Handle;
use crate::simulation::{World, seed};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const PIECE: u64 = 256 * KIB;
const SIZE: u64 = 512 * MIB;
/// The longest wait for data that one peer can deliver within half of it.
const LONGEST: Duration = Duration::from_secs(2);

fn millis(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn secs(s: u64) -> Duration {
    Duration::from_secs(s)
}

/// Returns the seeds that a test runs over.
fn seeds(count: u64) -> Range<u64> {
    let first = seed(1);
    first..first + count
}

fn world(seed: u64) -> World {
    World::new(seed, Lengths::new(SIZE, PIECE).expect("sizes of a torrent"), Duration::ZERO)
}

fn link(world: &mut World, rtt: Range<u64>, rate: Range<f64>) -> Link {
    let (rtt, rate) = (world.rng.random_range(rtt), world.rng.random_range(rate));
    Link::new(rate, millis(rtt) / 2)
}

/// Adds the peer that every read can rely on: 1 MB/s, a round trip of 40 ms.
fn add_healthy(world: &mut World) -> usize {
    world.add_scripted(Link::new(1e6, millis(20)), Script::default())
}

fn add_client(world: &mut World, peers: &[usize], on_demand: bool) -> usize {
    let client = world.add(
        1e6,
        |_| false,
        |config| {
            config.on_demand = on_demand;
            config.max_partial = 32 * MIB;
        },
    );
    world.introduce_to(client, peers);
    world.open(client, 1, 0..SIZE);
    client
}

/// Reads 64 KiB at random places. Returns how long each read waited.
fn random_reads(world: &mut World, client: usize, count: usize) -> Vec<Duration> {
    let mut waits = Vec::new();
    while waits.len() < count {
        let at = world.rng.random_range(0..SIZE / (64 * KIB)) * 64 * KIB;
        let wait = world.read_now(client, 1, at..at + 64 * KIB, secs(120));
        if !wait.is_zero() {
            waits.push(wait);
        }
        let pause = millis(world.rng.random_range(0..400));
        world.run(pause);
    }
    waits
}

/// Returns the part of the bytes received that came twice.
fn waste(world: &World, client: usize) -> f64 {
    let stats = world.nodes[client].swarm.stats(world.clock());
    stats.wasted as f64 / stats.downloaded.max(1) as f64
}

/// The longest waits of all seeds, to see more than the first that fails.
#[derive(Default)]
struct Longest(Vec<(Duration, u64)>);

impl Longest {
    fn add(&mut self, seed: u64, waits: &[Duration]) {
        self.0.extend(waits.iter().max().map(|wait| (*wait, seed)));
    }

    fn check(mut self, most: Duration) {
        self.0.sort();
        let over = self.0.iter().filter(|(wait, _)| *wait > most).count();
        let (wait, seed) = self.0.last().expect("a seed");
        println!("median {:?}, longest {wait:?}", self.0[self.0.len() / 2].0);
        assert!(over == 0, "over {most:?} with {over} of {} seeds; seed {seed}: {wait:?}", self.0.len());
    }
}

#[test]
fn peers_that_stop_delay_no_read() {
    let mut longest = Longest::default();
    for seed in seeds(100) {
        let mut world = world(seed);
        let stopping: Vec<usize> = (0..world.rng.random_range(1..6))
            .map(|_| {
                let link = link(&mut world, 2..120, 0.2e6..3e6);
                world.add_scripted(link, Script { fast: seed % 2 == 0, ..Script::default() })
            })
            .collect();
        let healthy = add_healthy(&mut world);
        let client = add_client(&mut world, &[&stopping[..], &[healthy]].concat(), seed % 4 != 0);
        let mut waits = random_reads(&mut world, client, 8);
        for node in &stopping {
            world.stop(*node, true);
        }
        waits.extend(random_reads(&mut world, client, 12));
        longest.add(seed, &waits);
        assert!(waste(&world, client) < 0.05, "seed {seed}: {}", waste(&world, client));
    }
    longest.check(LONGEST);
}

#[test]
fn a_peer_that_drops_what_is_over_its_queue_is_read_without_a_pause() {
    let mut longest = Longest::default();
    for seed in seeds(100) {
        let mut world = world(seed);
        let script = Script {
            fast: seed % 2 == 0,
            rejects: seed % 4 == 0,
            queue: (seed / 4 % 3) as usize,
            hello: Some(millis(world.rng.random_range(0..1_000))),
            ..Script::default()
        };
        let peer = world.add_scripted(Link::new(2e6, millis(5)), script);
        let client = add_client(&mut world, &[peer], seed % 4 != 0);
        let waits = random_reads(&mut world, client, 12);
        longest.add(seed, &waits);
    }
    longest.check(LONGEST);
}

#[test]
fn requests_that_are_dropped_now_and_then_are_asked_for_again() {
    let mut longest = Longest::default();
    for seed in seeds(100) {
        let mut world = world(seed);
        let drops = world.rng.random_range(0.05..0.2);
        let script = Script { fast: seed % 2 == 0, rejects: seed % 4 == 0, drops, ..Script::default() };
        let peer = world.add_scripted(Link::new(2e6, millis(10)), script);
        let client = add_client(&mut world, &[peer], seed % 4 != 0);
        longest.add(seed, &random_reads(&mut world, client, 12));
    }
    // Repeated requests are dropped as well. A peer that has promised to reject what it drops (BEP 6) is trusted for a second.
    longest.check(LONGEST + secs(1));
}

/// A peer that chokes for a second in four and forgets its queue is used for almost all of the rest of the time.
#[test]
fn a_peer_that_chokes_and_forgets_is_asked_again_after_the_unchoke() {
    let size = 24 * MIB;
    let rate = 4e6;
    let mut longest = Longest::default();
    for seed in seeds(30) {
        for (fast, rejects) in [(false, false), (true, true), (true, false)] {
            let lengths = Lengths::new(size, PIECE).expect("sizes of a torrent");
            let mut world = World::new(seed, lengths, Duration::ZERO);
            let script = Script { fast, rejects, chokes: Some((secs(3), secs(1))), ..Script::default() };
            let peer = world.add_scripted(Link::new(rate, millis(10)), script);
            let client = add_client(&mut world, &[peer], false);
            world.run_until(secs(300), |world| world.nodes[client].completed.is_some());
            longest.add(seed, &[world.time_unchoked(peer)]);
        }
    }
    longest.check(Duration::from_secs_f64(1.25 * size as f64 / rate));
}

#[test]
fn what_is_cancelled_is_asked_for_again_within_a_round_trip() {
    let mut longest = Longest::default();
    for seed in seeds(100) {
        let mut world = world(seed);
        let script = Script { fast: seed % 2 == 0, queue: if seed % 3 == 0 { 20 } else { 500 }, ..Script::default() };
        let peer = world.add_scripted(Link::new(2e6, millis(10)), script);
        let client = add_client(&mut world, &[peer], false);
        // Every read cancels background requests, and the next ones come upon what was cancelled.
        let mut waits = Vec::new();
        for _ in 0..40 {
            let at = world.rng.random_range(0..SIZE / (64 * KIB)) * 64 * KIB;
            waits.push(world.read_now(client, 1, at..at + 64 * KIB, secs(60)));
        }
        longest.add(seed, &waits);
        assert!(waste(&world, client) < 0.05, "seed {seed}: {}", waste(&world, client));
    }
    // Two pieces take 0.26 s, and 0.2 s may be on their way before them.
    longest.check(millis(800));
}

#[test]
fn one_healthy_peer_is_enough_whatever_the_others_do() {
    let mut longest = Longest::default();
    let mut most = 0.0_f64;
    for seed in seeds(100) {
        let mut world = world(seed);
        let mut peers = vec![add_healthy(&mut world)];
        for _ in 0..world.rng.random_range(1..6) {
            let mut link = link(&mut world, 2..200, 0.1e6..4e6);
            let mut script = Script { fast: world.rng.random(), rejects: world.rng.random(), ..Script::default() };
            match world.rng.random_range(0..6) {
                0 => script.stops = Some((secs(4), secs(20))),
                1 => link.rate = 3e3,
                2 => script.chokes = Some((secs(2), secs(1))),
                3 => script.closes = Some(secs(3)),
                4 => script.drops = world.rng.random_range(0.1..1.0),
                _ => {
                    script.queue = world.rng.random_range(0..3);
                    script.hello = world.rng.random_bool(0.7).then_some(millis(world.rng.random_range(0..2_000)));
                }
            }
            peers.push(world.add_scripted(link, script));
        }
        let client = add_client(&mut world, &peers, seed % 4 != 0);
        longest.add(seed, &random_reads(&mut world, client, 15));
        most = most.max(waste(&world, client));
    }
    println!("waste {most}");
    longest.check(LONGEST);
}

/// A player with one peer at half more than its bit rate jumps while it fills its buffer: what the kernel had read ahead at
/// the old place comes last.
#[test]
fn a_jump_leaves_the_line_to_the_new_place() {
    const RATE: f64 = 1e6;
    for seed in seeds(10) {
        for (piece, on_demand) in [(256 * KIB, false), (MIB, false), (4 * MIB, false), (MIB, true)] {
            let mut world = World::new(seed, Lengths::new(SIZE, piece).expect("sizes of a torrent"), Duration::ZERO);
            let fast = seed % 2 == 0;
            let peer = world.add_scripted(Link::new(1.5 * RATE, millis(15)), Script { fast, ..Script::default() });
            let client = add_client(&mut world, &[peer], on_demand);
            let mut handle = Handle::with_read_ahead(&world, client, MIB);
            let mut read = |world: &mut World, from: u64, length: Duration| {
                let (mut at, end) = (from, world.now + length);
                while world.now < end {
                    at += handle.read(world, at);
                }
            };
            let first = millis(world.rng.random_range(3_000..12_000));
            read(&mut world, 0, first);
            let old =
                |world: &World| world.nodes[client].stored.range(..(256 * MIB / piece) as u32).count() as u64 * piece;
            let before = (old(&world), world.nodes[client].received);
            read(&mut world, 256 * MIB, secs(6));
            let (old, received) = (old(&world) - before.0, world.nodes[client].received - before.1);
            let share = old as f64 / received as f64;
            assert!(share < 0.03, "seed {seed}, {} KiB, on demand {on_demand}: {share:.2} of {received}", piece / KIB);
        }
    }
}
