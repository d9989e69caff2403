//! Halves and doubles each constant of the scheduling policy over simulated links, and prints what changes: the table in
//! the documentation of `swarm/policy.rs`. `cargo bench --bench policy -- SEEDS` takes some minutes; more seeds mean less
//! noise.

#[path = "../tests/pure/simulation/mod.rs"]
mod simulation;

use simulation::sweep::{row, sweep};
use simulation::workload::PROFILES;

fn main() {
    // Cargo adds `--bench`.
    let seeds = std::env::args().find_map(|argument| argument.parse().ok()).unwrap_or(3);
    for (name, half, double) in sweep(|_| true, &PROFILES, seeds) {
        println!("{}", row(name, &half, &double));
    }
}
