//! The scheduling policy over simulated links, and its table of constants.

use std::collections::BTreeSet;

use torrentfs::swarm::Policy;

use crate::simulation::sweep::{self, THRESHOLD, fields};
use crate::simulation::workload::{PROFILES, Profile, measure};

fn profile(name: &str) -> &'static Profile {
    PROFILES.iter().find(|profile| profile.name == name).expect("a profile of that name")
}

#[test]
fn lab() {
    let seeds = std::env::var("SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    let profiles: Vec<Profile> =
        std::env::var("PROFILES").map_or(PROFILES.to_vec(), |p| p.split(',').map(|n| *profile(n)).collect());
    let only = std::env::var("FIELDS").unwrap_or_default();
    for (name, half, double) in
        sweep::sweep(|name| only.is_empty() || only.split(',').any(|o| o == name), &profiles, seeds)
    {
        println!("{}", sweep::row(name, &half, &double));
    }
}
