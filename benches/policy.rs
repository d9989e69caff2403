//! Halves and doubles each constant of the scheduling policy over simulated links, and prints what changes: the table in
//! the documentation of `swarm/policy.rs`. `cargo bench --bench policy -- SEEDS [CONSTANT]…` takes some minutes; more seeds
//! mean less noise. `… -- results SEEDS` prints the median of every result of the default policy instead, to compare
//! before and after a change of the scheduler. `… -- trace PROFILE play|seek|copy|fill SEED` prints the requests of one
//! workload, and when their blocks left and came.

#[path = "../tests/pure/simulation/mod.rs"]
mod simulation;

use simulation::sweep::{row, sample, sweep};
use simulation::workload::{PROFILES, Trial};
use torrentfs::swarm::Policy;

fn main() {
    // Cargo adds `--bench`.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let seeds = arguments.iter().find_map(|argument| argument.parse().ok()).unwrap_or(3);
    if let [trace, profile, workload, ..] = &arguments[..]
        && trace == "trace"
    {
        let profile = PROFILES.iter().find(|one| one.name == profile).expect("a profile of that name");
        let policy = Policy::default();
        println!("{:?}", Trial { trace: true, ..Trial::new(profile, &policy, seeds) }.run(workload));
        return;
    }
    if arguments.iter().any(|argument| argument == "results") {
        for mut sample in sample(&Policy::default(), &PROFILES, seeds) {
            sample.values.sort_by(f64::total_cmp);
            println!("{} {} {:.3}", sample.profile, sample.result, sample.values[sample.values.len() / 2]);
        }
        return;
    }
    let names: Vec<&String> = arguments.iter().filter(|argument| argument.parse::<u64>().is_err()).collect();
    let chosen = |name: &str| names.is_empty() || names.iter().any(|chosen| *chosen == name);
    for (name, half, double) in sweep(chosen, &PROFILES, seeds) {
        println!("{}", row(name, &half, &double));
    }
}
