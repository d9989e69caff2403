//! Halves and doubles each constant of the scheduling policy over simulated links, and prints what changes: the table in
//! the documentation of `swarm/policy.rs`. `cargo bench --bench policy -- SEEDS [CONSTANT]…` takes some minutes; more seeds
//! mean less noise. `… -- results SEEDS` prints the median of every result of the default policy instead, as a ratio to
//! what a bare client reaches that knows every link, to compare before and after a change of the scheduler; `!` marks what is
//! not at its goal. `… -- trace PROFILE play|seek|copy|fill SEED` prints the requests of one
//! workload, and when their blocks left and came.

#[path = "../tests/pure/simulation/mod.rs"]
mod simulation;

use simulation::profile::{PROFILES, Profile};
use simulation::ratios::{GOALS, ratios, reaches};
use simulation::swarms;
use simulation::sweep::{row, sweep};
use simulation::workload::Trial;
use torrentfs::swarm::Policy;

fn main() {
    // Cargo adds `--bench`.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let seeds = arguments.iter().find_map(|argument| argument.parse().ok()).unwrap_or(3);
    if let [trace, profile, workload, ..] = &arguments[..]
        && trace == "trace"
    {
        let profiles = profiles();
        let profile = profiles.iter().find(|one| one.name == profile).expect("a profile of that name");
        let policy = Policy::default();
        println!("{:?}", Trial { trace: true, ..Trial::new(profile, &policy, seeds) }.run(workload));
        return;
    }
    if arguments.iter().any(|argument| argument == "results") {
        return results(seeds);
    }
    let names: Vec<&String> = arguments.iter().filter(|argument| argument.parse::<u64>().is_err()).collect();
    let chosen = |name: &str| names.is_empty() || names.iter().any(|chosen| *chosen == name);
    for (name, half, double) in sweep(chosen, &PROFILES, seeds) {
        println!("{}", row(name, &half, &double));
    }
}

/// Returns the profiles of the lab and their variations, and the random ones.
fn profiles() -> Vec<Profile> {
    PROFILES.into_iter().chain(Profile::random()).collect()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn results(seeds: u64) {
    let policy = Policy::default();
    let cell = |name: &str| format!("{name:>11}");
    println!("{:12}{}", "", GOALS.map(|(name, _)| cell(name)).concat());
    println!("{:12}{}", "goal", GOALS.map(|(_, goal)| cell(&goal.to_string())).concat());
    for profile in profiles() {
        let rows: Vec<Vec<f64>> = (0..seeds)
            .map(|seed| ratios(&Trial::new(&profile, &policy, seed)).into_iter().map(|(_, value)| value).collect())
            .collect();
        let cells = GOALS.iter().enumerate().map(|(at, (name, goal))| {
            let value = median(rows.iter().map(|row| row[at]).collect());
            let mark = if reaches(name, value, *goal) { "" } else { "!" };
            cell(&format!("{mark}{value:.3}"))
        });
        println!("{:12}{}", profile.name, cells.collect::<String>());
    }
    let runs: Vec<_> = (0..seeds).map(|seed| swarms::measure(&policy, seed)).collect();
    for (at, (name, _)) in runs.first().into_iter().flatten().enumerate() {
        println!("swarm: {name} {:.3}", median(runs.iter().map(|run| run[at].1).collect()));
    }
}
