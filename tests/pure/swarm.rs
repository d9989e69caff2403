//! Properties of the scheduling, measured in simulated swarms.

use std::sync::Arc;
use std::time::Duration;

use crate::simulation::swarms::first_copy;
use crate::simulation::{Nature, World, seed};
use fixedbitset::FixedBitSet;
use rand::RngExt;
use torrentfs::metainfo::Lengths;
use torrentfs::swarm::{BackgroundNeed, DisconnectReason, Event, PickOrder, ReaderId};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

fn lengths(total: u64, piece: u64) -> Lengths {
    Lengths::new(total, piece).expect("sizes of a torrent")
}

fn millis(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Simulates one seed and some leechers that upload 1 MiB/s each. Returns the time until all are complete, divided by the
/// time in which the seed sends one copy.
fn flash_crowd(seed: u64, leechers: usize, order: PickOrder) -> f64 {
    let rate = MIB as f64;
    let mut world = World::new(seed, lengths(16 * MIB, 128 * KIB), millis(10));
    world.add_seed(rate);
    for _ in 0..leechers {
        world.add(rate, |_| false, |config| config.order = order);
    }
    world.introduce();
    let done = |world: &World| world.nodes[1..].iter().all(|node| node.completed.is_some());
    world.run_until(Duration::from_secs(1_000), done);
    let last = world.nodes.iter().filter_map(|node| node.completed).max().expect("all completed");
    last.as_secs_f64() / 16.0
}

fn flash_crowds(seeds: std::ops::Range<u64>) {
    // Two at a time, because they take longest of all simulations.
    std::thread::scope(|scope| {
        for half in 0..2 {
            let seeds = seeds.clone();
            scope.spawn(move || {
                for seed in seeds.filter(|seed| seed % 2 == half) {
                    let ratio = flash_crowd(seed, 30, PickOrder::RarestFirst);
                    println!("seed {seed}: {ratio:.2} copies");
                    assert!(ratio <= 1.5, "seed {seed}: {ratio:.2} copies");
                }
            });
        }
    });
}

#[test]
fn a_flash_crowd_completes_in_the_time_of_one_and_a_half_copies() {
    let first = seed(1);
    flash_crowds(first..first + 4);
}

#[test]
#[ignore = "the same over twenty seeds: a minute in a debug build"]
fn twenty_flash_crowds() {
    let first = seed(1);
    flash_crowds(first..first + 20);
}

#[test]
fn rarest_first_beats_in_order() {
    let first = seed(100);
    for seed in first..first + 3 {
        let rarest = flash_crowd(seed, 12, PickOrder::RarestFirst);
        let in_order = flash_crowd(seed, 12, PickOrder::InOrder);
        assert!(rarest * 1.3 < in_order, "seed {seed}: {rarest:.2} and {in_order:.2}");
    }
}

#[test]
fn seeks_wait_behind_few_blocks() {
    let mut world = World::new(seed(2), lengths(1024 * MIB, 256 * KIB), Duration::from_micros(200));
    let seeds = [world.add_seed(4e6), world.add_seed(4e6)];
    let node = world.add(1e6, |_| false, |_| {});
    world.introduce_to(node, &seeds);
    world.run(Duration::from_secs(5));
    let before = world.nodes[node].received;
    assert!(before as f64 > 0.9 * 8e6 * 5.0, "the background does not use the bandwidth: {before}");
    world.open(node, 1, 0..1024 * MIB);
    let mut times = Vec::new();
    while times.len() < 60 {
        let at = world.rng.random_range(0..1024 * MIB / (64 * KIB)) * 64 * KIB;
        let time = world.read_now(node, 1, at..at + 64 * KIB, Duration::from_secs(5));
        if !time.is_zero() {
            times.push(time);
        }
        let pause = millis(world.rng.random_range(20..300));
        world.run(pause);
    }
    times.sort();
    let (p50, p90) = (times[30], times[54]);
    println!("p50 {p50:?}, p90 {p90:?}, most {:?}", times[59]);
    assert!(p50 <= millis(120), "p50 {p50:?}");
    assert!(p90 <= millis(250), "p90 {p90:?}");
}

#[test]
fn a_player_does_not_stall_and_jumps_quickly() {
    let mut world = World::new(seed(3), lengths(512 * MIB, 256 * KIB), millis(1));
    let seeds = [world.add_seed(0.975e6), world.add_seed(0.975e6)];
    let node = world.add(1e6, |_| false, |_| {});
    world.introduce_to(node, &seeds);
    world.open(node, 1, 0..512 * MIB);
    for start in [0, 300 * MIB, 100 * MIB] {
        let mut at = start;
        let jump = world.read_now(node, 1, at..at + 128 * KIB, Duration::from_secs(5));
        println!("jump {jump:?}");
        // Except the first one, before peers are connected.
        assert!(start == 0 || jump <= millis(300), "a jump took {jump:?}");
        // The player buffers for a second, then plays.
        world.run(Duration::from_secs(1));
        let begun = world.now;
        let mut stalled = Duration::ZERO;
        while world.now < begun + Duration::from_secs(30) {
            at += 128 * KIB;
            let due = begun + Duration::from_secs_f64((at - start) as f64 / 1.5e6) + stalled;
            if due > world.now {
                let wait = due - world.now;
                world.run(wait);
            }
            let late = world.read_now(node, 1, at..at + 128 * KIB, Duration::from_secs(5));
            stalled += late;
        }
        println!("stalled {stalled:?}");
        assert!(stalled <= millis(300), "stalled for {stalled:?} in 30 s");
    }
}

/// The kernel splits read-ahead into requests that two threads handle in any order: none cancels blocks of another.
#[test]
fn reads_out_of_order_cancel_nothing() {
    let mut world = World::new(seed(16), lengths(16 * MIB, 64 * KIB), millis(5));
    let seeder = world.add_seed(1e6);
    let node = world.add(1e6, |_| false, |_| {});
    world.check = true;
    // Without background requests, every cancel is for a reader.
    world.event(node, Event::OnDemand(true));
    world.introduce_to(node, &[seeder]);
    world.open(node, 1, 0..16 * MIB);
    world.read_now(node, 1, 0..64 * KIB, Duration::from_secs(5));
    for four in 0..16 {
        let wants: Vec<_> = [4, 3, 2, 1]
            .map(|one| {
                let begin = (4 * four + one) * 64 * KIB;
                let want = world.read(node, 1, begin..begin + 64 * KIB);
                world.run(millis(2));
                want
            })
            .into();
        let all = |world: &World| wants.iter().all(|want| world.nodes[node].answered.contains_key(want));
        world.run_until(Duration::from_secs(5), all);
    }
    assert_eq!(world.nodes[node].swarm.stats(world.clock()).wasted, 0);
    assert_eq!(world.nodes[node].cancelled, 0);
}

#[test]
fn a_copy_uses_all_bandwidth() {
    let mut world = World::new(seed(4), lengths(256 * MIB, MIB), Duration::from_micros(300));
    let seeds = [world.add_seed(40e6), world.add_seed(40e6)];
    let node = world.add(1e6, |_| false, |config| config.on_demand = true);
    world.introduce_to(node, &seeds);
    world.open(node, 1, 0..256 * MIB);
    let mut at = 0;
    while at < 256 * MIB {
        world.read_now(node, 1, at..at + MIB, Duration::from_secs(5));
        at += MIB;
    }
    let rate = 256.0 * MIB as f64 / world.now.as_secs_f64();
    println!("{:.1} MB/s", rate / 1e6);
    assert!(rate > 0.85 * 80e6, "{rate}");
}

#[test]
fn silent_and_dripping_peers_delay_no_read() {
    for nature in [Nature::Silent, Nature::Dripping] {
        let mut world = World::new(seed(5), lengths(32 * MIB, 256 * KIB), millis(5));
        let bad = [world.add_seed(1e6), world.add_seed(1e6)];
        for node in bad {
            world.nodes[node].nature = nature;
        }
        let good = world.add_seed(2e6);
        let node = world.add(1e6, |_| false, |_| {});
        world.check = true;
        world.introduce_to(node, &[bad[0], bad[1], good]);
        world.open(node, 1, 0..32 * MIB);
        for at in [0, 20 * MIB, 10 * MIB, 30 * MIB] {
            let time = world.read_now(node, 1, at..at + 64 * KIB, Duration::from_secs(10));
            assert!(time < Duration::from_secs(3), "{nature:?}: a read took {time:?}");
        }
        world.run_until(Duration::from_secs(90), |world| world.nodes[node].completed.is_some());
    }
}

#[test]
fn a_suspect_piece_is_not_left_to_a_silent_peer() {
    let first = seed(60);
    for seed in first..first + 5 {
        let mut world = World::new(seed, lengths(8 * MIB, 256 * KIB), millis(5));
        let peers = [world.add_seed(1e6), world.add_seed(1e6), world.add_seed(1e6), world.add_seed(1e6)];
        world.nodes[peers[0]].nature = Nature::Silent;
        world.nodes[peers[1]].nature = Nature::Liar;
        let node = world.add(1e6, |_| false, |_| {});
        world.check = true;
        world.introduce_to(node, &peers);
        world.run_until(Duration::from_secs(60), |world| world.nodes[node].completed.is_some());
    }
}

#[test]
fn liars_are_banned_and_honest_peers_are_not() {
    let first = seed(6);
    for seed in first..first + 5 {
        let mut world = World::new(seed, lengths(16 * MIB, 256 * KIB), millis(5));
        let honest: Vec<usize> = (0..3).map(|_| world.add_seed(1e6)).collect();
        let liars: Vec<usize> = (0..3).map(|_| world.add_seed(1e6)).collect();
        for liar in &liars {
            world.nodes[*liar].nature = Nature::Liar;
        }
        let node = world.add(1e6, |_| false, |_| {});
        world.check = true;
        world.introduce_to(node, &[honest.clone(), liars.clone()].concat());
        world.open(node, 1, 0..16 * MIB);
        // Reads spread pieces over all peers, so that liars and honest peers share them.
        for at in [3 * MIB, 9 * MIB, 12 * MIB] {
            world.read_now(node, 1, at..at + 512 * KIB, Duration::from_secs(60));
        }
        world.run_until(Duration::from_secs(120), |world| world.nodes[node].completed.is_some());
        let banned = &world.nodes[node].banned;
        assert!(!banned.is_empty(), "seed {seed}");
        for peer in honest {
            assert!(!banned.contains(&World::addr(peer)), "seed {seed}: an honest peer was banned");
        }
        for peer in liars {
            assert!(banned.contains(&World::addr(peer)), "seed {seed}: a liar was not banned");
        }
    }
}

#[test]
fn a_download_completes_after_peers_are_lost() {
    let mut world = World::new(seed(7), lengths(16 * MIB, 256 * KIB), millis(5));
    let seeds: Vec<usize> = (0..4).map(|_| world.add_seed(1e6)).collect();
    let node = world.add(1e6, |_| false, |_| {});
    world.check = true;
    world.introduce_to(node, &seeds);
    for lost in &seeds[..3] {
        world.run(millis(700));
        world.kill(*lost);
    }
    world.run_until(Duration::from_secs(60), |world| world.nodes[node].completed.is_some());
}

#[test]
fn everything_can_be_read_through_a_tiny_cache() {
    let mut world = World::new(seed(8), lengths(24 * MIB, 256 * KIB), millis(2));
    let seeds = [world.add_seed(4e6), world.add_seed(4e6)];
    let node = world.add(1e6, |_| false, |config| config.max_partial = 4 * MIB);
    world.nodes[node].capacity = Some(20);
    world.check = true;
    world.event(node, torrentfs::swarm::Event::Room(20 * 256 * KIB));
    world.introduce_to(node, &seeds);
    for reader in 1..=2 {
        world.open(node, reader, 0..24 * MIB);
        let mut at = 0;
        while at < 24 * MIB {
            world.read_now(node, reader, at..at + 128 * KIB, Duration::from_secs(10));
            at += 128 * KIB;
        }
    }
    let received = world.nodes[node].received;
    assert!(received < 60 * MIB, "{received} bytes were received for two reads");
}

#[test]
fn two_halves_complete_each_other() {
    let mut world = World::new(seed(9), lengths(16 * MIB, 128 * KIB), millis(10));
    for node in 0..6 {
        world.add(1e6, |piece| piece % 2 == node % 2, |_| {});
    }
    world.check = true;
    world.introduce();
    world.run_until(Duration::from_secs(60), |world| world.nodes.iter().all(|node| node.completed.is_some()));
    world.run(Duration::from_secs(5));
    for node in &world.nodes {
        assert!(node.goodbyes.iter().all(|why| matches!(why, DisconnectReason::Useless | DisconnectReason::Duplicate)));
        assert_eq!(node.swarm.stats(world.clock()).peers, 0, "seeds stay connected to each other");
    }
}

fn some(pieces: std::ops::Range<usize>) -> FixedBitSet {
    let mut set = FixedBitSet::with_capacity(128);
    set.insert_range(pieces);
    set
}

#[test]
fn priorities_order_the_background_and_skip_pieces_without_a_reader() {
    let mut world = World::new(seed(12), lengths(8 * MIB, 64 * KIB), millis(5));
    let seeder = world.add_seed(2e6);
    let node = world.add(1e6, |_| false, |_| {});
    world.check = true;
    world.event(node, Event::Priorities { skip: some(0..64), high: some(60..80) });
    world.introduce_to(node, &[seeder]);
    world.run_until(Duration::from_secs(30), |world| world.nodes[node].stored.len() >= 16);
    // The others were sent while the seeder choked us, as allowed-fast pieces of its choice.
    let high = world.nodes[node].stored.iter().filter(|piece| (64..80).contains(*piece)).count();
    assert!(high >= 12, "{:?}", world.nodes[node].stored);
    world.run(Duration::from_secs(30));
    assert!(world.nodes[node].stored.iter().copied().eq(64..128), "{:?}", world.nodes[node].stored);
    let snapshot = world.nodes[node].swarm.snapshot(world.clock());
    assert_eq!((snapshot.to_fetch, snapshot.skipped.count_ones(..)), (0, 64));

    // A reader gets a skipped piece, too.
    world.open(node, 1, 0..8 * MIB);
    world.read_now(node, 1, 10 * 64 * KIB..11 * 64 * KIB, Duration::from_secs(5));
    world.run(Duration::from_secs(30));
    assert!(world.nodes[node].stored.len() < 100, "more was fetched than the reader needs");

    world.event(node, Event::Priorities { skip: FixedBitSet::new(), high: FixedBitSet::new() });
    world.run_until(Duration::from_secs(30), |world| world.nodes[node].completed.is_some());
}

#[test]
fn a_paused_swarm_fetches_nothing_and_one_on_demand_only_what_is_read() {
    let mut world = World::new(seed(13), lengths(8 * MIB, 64 * KIB), millis(5));
    let seeder = world.add_seed(1e6);
    let node = world.add(1e6, |_| false, |_| {});
    world.check = true;
    world.introduce_to(node, &[seeder]);
    world.run(Duration::from_secs(2));
    world.event(node, Event::Pause(true));
    assert_eq!(world.nodes[node].swarm.stats(world.clock()).peers, 0);
    let before = world.nodes[node].received;
    assert!(before > 0);
    // A pause also blocks readers, and incoming connections are closed.
    world.open(node, 1, 0..8 * MIB);
    let want = world.read(node, 1, 7 * MIB..7 * MIB + 1);
    world.introduce_to(seeder, &[node]);
    world.run(Duration::from_secs(20));
    assert_eq!(world.nodes[node].received, before);
    let snapshot = world.nodes[node].swarm.snapshot(world.clock());
    assert!(snapshot.paused && snapshot.peers.is_empty() && snapshot.waits.len() == 1, "{snapshot:?}");
    assert!(snapshot.waits[0].since >= Duration::from_secs(20) && snapshot.waits[0].pieces[0].peers == 0);

    world.event(node, Event::OnDemand(true));
    world.event(node, Event::Pause(false));
    world.run_until(Duration::from_secs(60), |world| world.nodes[node].answered.contains_key(&want));
    world.run(Duration::from_secs(20));
    let stored = world.nodes[node].stored.len();
    world.run(Duration::from_secs(20));
    assert!(stored < 128 && world.nodes[node].stored.len() == stored, "fetched without a read");
    let snapshot = world.nodes[node].swarm.snapshot(world.clock());
    assert!(snapshot.on_demand && snapshot.waits.is_empty() && snapshot.readers.len() == 1, "{snapshot:?}");
    assert_eq!((snapshot.peers[0].has, snapshot.peers[0].downloaded > 0), (128, true));

    world.event(node, Event::OnDemand(false));
    world.run_until(Duration::from_secs(60), |world| world.nodes[node].completed.is_some());
}

#[test]
fn a_queued_swarm_begins_no_piece_but_serves_and_answers_reads() {
    let mut world = World::new(seed(14), lengths(8 * MIB, 64 * KIB), millis(5));
    let seeder = world.add_seed(1e6);
    let node = world.add(1e6, |piece| piece < 8, |_| {});
    let leecher = world.add(1e6, |_| false, |_| {});
    world.check = true;
    assert_eq!(world.nodes[node].swarm.background_need(), BackgroundNeed::Normal);
    world.event(node, Event::Turn(false));
    world.introduce_to(node, &[seeder, leecher]);
    let leecher_is_served = |world: &World| (0..8).all(|piece| world.nodes[leecher].stored.contains(&piece));
    world.run_until(Duration::from_secs(60), leecher_is_served);
    assert_eq!(world.nodes[node].received, 0, "fetched before its turn");

    world.open(node, 1, 0..8 * MIB);
    let took = world.read_now(node, 1, 7 * MIB..7 * MIB + 1, Duration::from_secs(2));
    assert!(took < millis(500), "a read waited {took:?}");
    world.event(node, Event::Close(ReaderId(1)));
    world.event(node, Event::Turn(true));
    world.run(Duration::from_secs(2));
    world.event(node, Event::Turn(false));
    let snapshot = world.nodes[node].swarm.snapshot(world.clock());
    assert!(snapshot.queued && !snapshot.partial.is_empty(), "{snapshot:?}");
    world.run(Duration::from_secs(10));
    let snapshot = world.nodes[node].swarm.snapshot(world.clock());
    assert!(
        snapshot.partial.is_empty() && snapshot.to_fetch > 0,
        "what was begun is finished, and no more: {snapshot:?}"
    );

    world.event(node, Event::Turn(true));
    world.run_until(Duration::from_secs(60), |world| world.nodes[node].completed.is_some());
    assert_eq!(world.nodes[node].swarm.background_need(), BackgroundNeed::Nothing);
}

#[test]
fn super_seeding_sends_hardly_more_than_one_copy() {
    let first = seed(5);
    for seed in first..first + 3 {
        let (once, plain) = first_copy(&Arc::default(), seed, false);
        let (super_once, super_time) = first_copy(&Arc::default(), seed, true);
        println!("seed {seed}: {once:.2} copies in {plain:.2}, super-seeding {super_once:.2} in {super_time:.2}");
        assert!(super_once <= 1.15, "seed {seed}: {super_once:.2} copies sent before the leechers had one");
        assert!(super_time <= 2.0 * plain, "seed {seed}: {super_time:.2} and {plain:.2}");
    }
}

#[test]
fn a_lone_leecher_of_a_super_seed_is_not_delayed() {
    let (rate, size) = (MIB as f64, 16 * MIB);
    let mut world = World::new(seed(6), lengths(size, 128 * KIB), millis(10));
    world.add(rate, |_| true, |config| config.super_seed = true);
    let leecher = world.add(rate, |_| false, |_| {});
    world.introduce();
    // 16 s at the link's rate. With the usual wait after every two pieces it would take 20 minutes.
    world.run_until(Duration::from_secs(25), |world| world.nodes[leecher].completed.is_some());
}
