//! The scheduling policy over simulated links, and the table of its constants.

use std::sync::Arc;

use torrentfs::swarm::Policy;

use crate::simulation::profile::{PROFILES, Profile};
use crate::simulation::ratios::{Floor, GOALS, ratios, reaches};
use crate::simulation::swarms::dead_addresses;
use crate::simulation::sweep::{THRESHOLD, fields, row, sweep};
use crate::simulation::workload::{Results, Trial, play};

fn profile(name: &str) -> Profile {
    let all = PROFILES.into_iter().chain(Profile::random());
    all.into_iter().find(|profile| profile.name == name).expect("a profile of that name")
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

/// Results of the first seed, with a margin: they may not get worse. The columns are those of
/// [`GOALS`](crate::simulation::ratios), where the goals are as well.
const LIMITS: [(&str, [f64; GOALS.len()]); 12] = [
    ("home", [0.98, 1.05, 1.29, 1.32, 1.05, 1.27, 0.0, 0.93, 0.93, 0.027, 0.019, 0.012]),
    ("few", [1.07, 1.1, 1.21, 1.38, 1.1, 1.2, 0.0, 0.92, 0.94, 0.01, 0.01, 0.011]),
    ("far", [1.41, 1.47, 1.21, 1.26, 1.47, 1.25, 0.0, 0.92, 0.85, 0.011, 0.011, 0.011]),
    ("crowd", [1.36, 1.28, 1.54, 2.2, 1.28, 1.62, 0.0, 0.93, 0.89, 0.023, 0.056, 0.016]),
    ("small", [0.57, 1.34, 1.12, 1.7, 1.16, 1.33, 0.0, 0.93, 0.92, 0.014, 0.012, 0.011]),
    ("small few", [0.88, 1.16, 1.35, 2.1, 1.18, 1.24, 0.0, 0.93, 0.94, 0.01, 0.01, 0.011]),
    ("small far", [1.2, 1.63, 1.24, 1.55, 1.7, 1.54, 0.0, 0.91, 0.86, 0.011, 0.01, 0.011]),
    ("small crowd", [1.63, 1.76, 1.75, 1.99, 1.82, 2.07, 0.0, 0.93, 0.88, 0.018, 0.011, 0.017]),
    ("unsteady", [0.97, 1.03, 0.38, 0.78, 1.03, 0.4, 0.0, 0.78, 0.81, 0.039, 0.034, 0.013]),
    ("busy", [1.0, 1.07, 1.29, 1.43, 1.07, 1.26, 0.0, 0.92, 0.93, 0.026, 0.017, 0.011]),
    ("hostile", [1.41, 2.24, 1.33, 2.21, 2.17, 1.31, 0.0, 0.46, 0.47, 0.035, 0.018, 0.016]),
    ("bursts", [1.27, 1.19, 1.26, 1.3, 1.2, 1.31, 0.0, 0.95, 0.95, 0.01, 0.022, 0.01]),
];

fn check_limits(names: &[&str]) {
    let policy = Policy::default();
    let mut over = Vec::new();
    for (name, limits) in LIMITS.iter().filter(|(name, _)| names.contains(name)) {
        let results = ratios(&Trial::new(&profile(name), &policy, 0));
        println!("{name}, seed 0: {results:?}");
        for ((result, value), limit) in results.into_iter().zip(limits) {
            if !reaches(result, value, *limit) {
                over.push(format!("{name} {result}: {value:.3}, limit {limit}"));
            }
        }
    }
    assert!(over.is_empty(), "`cargo bench --bench policy -- results` shows all: {over:#?}");
}

#[test]
fn starts_seeks_and_copies_stay_near_what_a_bare_client_reaches() {
    check_limits(&["home", "few", "far"]);
}

#[test]
#[ignore = "takes a minute without optimization"]
fn results_over_all_links_stay_near_what_a_bare_client_reaches() {
    let names: Vec<&str> =
        LIMITS.iter().map(|(name, _)| *name).filter(|name| !["home", "few", "far"].contains(name)).collect();
    check_limits(&names);
}

/// Links that nobody has tuned for: no read hangs, and a player hardly stands still.
#[test]
#[ignore = "takes minutes without optimization"]
fn random_links_play() {
    for profile in Profile::random() {
        for seed in 0..2 {
            let results = play(&Trial::new(&profile, &Policy::default(), seed));
            println!("{}, seed {seed}: {results:?}", profile.name);
            assert!(get(&results, "play") <= 1.5, "{}, seed {seed}: {results:?}", profile.name);
            assert!(get(&results, "waste") <= 1.2, "{}, seed {seed}: {results:?}", profile.name);
        }
    }
}

/// The time of the bare client is what arithmetic says, and a little more.
#[test]
fn the_bare_client_reaches_the_arithmetic_floor() {
    for name in ["home", "few", "far", "crowd"] {
        let profile = profile(name);
        let (floor, least) = (Floor::new(&profile, 0), profile.floor(2 << 20));
        println!("{name}: {floor:?}, arithmetic {least:.3}");
        assert!(floor.piece >= least && floor.piece <= 1.3 * least, "{name}: {floor:?}, arithmetic {least:.3}");
        assert!(floor.first > floor.piece && floor.jump >= floor.piece, "{name}: {floor:?}");
    }
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
    assert!(half.iter().chain(double).any(|change| change.by.abs() > THRESHOLD), "{rows:?}");
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
