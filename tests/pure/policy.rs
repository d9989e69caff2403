//! The scheduling policy over simulated links, and the table of its constants.

use std::sync::Arc;

use torrentfs::swarm::Policy;

use crate::simulation::swarms::dead_addresses;
use crate::simulation::sweep::{THRESHOLD, fields, row, sweep};
use crate::simulation::workload::{PROFILES, Profile, Results, Trial, play};

fn profile(name: &str) -> Profile {
    *PROFILES.iter().find(|profile| profile.name == name).expect("a profile of that name")
}

fn get(results: &Results, name: &str) -> f64 {
    results.iter().find(|(result, _)| *result == name).expect("a result of that name").1
}

#[test]
fn results_depend_on_the_seed_alone() {
    let run = |seed| play(&Trial::new(&profile("few"), &Policy::default(), seed));
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

#[test]
fn starts_seeks_and_copies_over_links_stay_fast() {
    let policy = Policy::default();
    for (name, start, jump, p50, p90, copy) in
        [("home", 1.2, 1.5, 0.6, 1.0, 0.9), ("few", 2.2, 2.8, 1.3, 1.5, 0.85), ("far", 2.4, 1.8, 0.9, 1.1, 0.9)]
    {
        let results = Trial::new(&profile(name), &policy, 1).measure();
        println!("{name}: {results:?}");
        assert!(get(&results, "start") <= start && get(&results, "jump") <= jump, "{name}: {results:?}");
        assert!(get(&results, "seek p50") <= p50 && get(&results, "seek p90") <= p90, "{name}: {results:?}");
        assert!(get(&results, "copy") >= copy && get(&results, "fill") >= 0.85, "{name}: {results:?}");
        assert!(get(&results, "play") <= 1.0 && get(&results, "waste") <= 1.2, "{name}: {results:?}");
    }
}

#[test]
fn many_slow_peers_start_and_jump_soon() {
    let results = play(&Trial::new(&profile("crowd"), &Policy::default(), 1));
    println!("{results:?}");
    assert!(get(&results, "start") <= 2.4 && get(&results, "jump") <= 2.4, "{results:?}");
    assert!(get(&results, "play") <= 1.05 && get(&results, "waste") <= 1.05, "{results:?}");
}

#[test]
fn dead_addresses_listed_first_delay_a_start_by_little() {
    let policy = Arc::new(Policy::default());
    let times: Vec<f64> = (1..=20).map(|seed| dead_addresses(&policy, seed)).collect();
    println!("{times:.2?}");
    assert!(times.iter().sum::<f64>() / 20.0 < 1.5 && times.iter().all(|time| *time < 4.0), "{times:?}");
}

/// Two of the best peers are silent, and one lies in the first piece, which is then left to one peer alone.
#[test]
fn silent_peers_and_a_liar_delay_no_start_however_unknown_peers_are_trusted() {
    let fields = fields();
    let unknown_rate = fields.iter().find(|field| field.name == "unknown_rate").expect("a constant of that name");
    for by in [0.5, 1.0, 2.0] {
        let mut policy = Policy::default();
        (unknown_rate.scale)(&mut policy, by);
        for seed in 1..4 {
            let results = play(&Trial::new(&profile("hostile"), &policy, seed));
            let (first, start) = (get(&results, "first"), get(&results, "start"));
            assert!(first <= 1.2 && start <= 3.0, "{by} times the rate, seed {seed}: {results:?}");
        }
    }
}

/// The whole sweep is `cargo bench --bench policy`.
#[test]
fn a_sweep_finds_what_a_constant_changes() {
    let rows = sweep(|name| name == "reading_queue", &[profile("bursts")], 2);
    let [(name, half, double)] = &rows[..] else { panic!("one constant: {rows:?}") };
    println!("{}", row(name, half, double));
    let seeks = half.iter().chain(double).filter(|change| change.result.starts_with("seek"));
    assert!(seeks.into_iter().any(|change| change.by.abs() > THRESHOLD), "{rows:?}");
}

#[test]
fn the_table_lists_every_constant() {
    let rows = include_str!("../../src/swarm/policy.rs").lines().filter_map(|line| line.strip_prefix("//! | `"));
    let listed: Vec<&str> = rows.filter_map(|row| row.split('`').next()).collect();
    let constants: Vec<&str> = fields().iter().map(|field| field.name).collect();
    assert_eq!(
        listed, constants,
        "the table in the documentation of swarm/policy.rs: run `cargo bench --bench policy`"
    );
}
