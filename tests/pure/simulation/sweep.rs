//! Varies each constant of the policy and measures what changes.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use torrentfs::swarm::Policy;

use super::profile::Profile;
use super::swarms;
use super::workload::Trial;

/// Results that a constant must change by more than this, halved or doubled, to be worth having.
pub const THRESHOLD: f64 = 0.03;

/// A value of a policy that can be multiplied.
trait Scale {
    fn scaled(self, by: f64) -> Self;
}

impl Scale for f64 {
    fn scaled(self, by: f64) -> Self {
        self * by
    }
}

impl Scale for Duration {
    fn scaled(self, by: f64) -> Self {
        self.mul_f64(by)
    }
}

impl Scale for u64 {
    fn scaled(self, by: f64) -> Self {
        (self as f64 * by) as Self
    }
}

impl Scale for u32 {
    fn scaled(self, by: f64) -> Self {
        (f64::from(self) * by) as Self
    }
}

/// One constant.
pub struct Field {
    pub name: &'static str,
    pub scale: fn(&mut Policy, f64),
}

/// Lists the constants. It does not compile if one is missing.
macro_rules! fields {
    ($($field:ident),* $(,)?) => {
        pub fn fields() -> Vec<Field> {
            let Policy { $($field: _),* } = Policy::default();
            vec![$(Field {
                name: stringify!($field),
                scale: |policy, by| policy.$field = policy.$field.scaled(by),
            }),*]
        }
    };
}

fields!(
    filling_queue,
    reading_queue,
    due_queue,
    first_window,
    rate_headroom,
    refill_level,
    rate_span,
    min_rate_span,
    unknown_rate,
    unknown_latency,
    hedge_advantage,
    silence_timeout,
    near_distance,
    blocked_moment,
    random_first,
    blocked_tick,
    upload_slots,
    open_offers,
    dial_limit,
    metadata_pipeline,
    metadata_late,
);

/// One result of one policy: each seed's value.
#[derive(Clone, Debug)]
pub struct Sample {
    pub profile: &'static str,
    pub result: &'static str,
    pub values: Vec<f64>,
}

/// A result that a change of a constant changed.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    pub profile: &'static str,
    pub result: &'static str,
    /// Relative: 0.1 is a tenth more.
    pub by: f64,
}

/// Runs every workload over `profiles`, and those of whole swarms, with each of `seeds`.
pub fn sample(policy: &Policy, profiles: &[Profile], seeds: u64) -> Vec<Sample> {
    let mut samples: Vec<Sample> = Vec::new();
    let mut add = |profile, result, value| match samples.iter_mut().find(|s| (s.profile, s.result) == (profile, result))
    {
        Some(sample) => sample.values.push(value),
        None => samples.push(Sample { profile, result, values: vec![value] }),
    };
    for seed in 0..seeds {
        for profile in profiles {
            Trial::new(profile, policy, seed)
                .measure()
                .into_iter()
                .for_each(|(result, value)| add(profile.name, result, value));
        }
        swarms::measure(policy, seed).into_iter().for_each(|(result, value)| add("swarm", result, value));
    }
    samples
}

/// Compares two policies, seed by seed. Returns the changes that stand out of the noise, the largest first.
pub fn compare(before: &[Sample], after: &[Sample]) -> Vec<Change> {
    let mut changes: Vec<Change> = before
        .iter()
        .zip(after)
        .filter_map(|(before, after)| {
            let count = before.values.len() as f64;
            let mean = before.values.iter().sum::<f64>() / count;
            let changes: Vec<f64> = before.values.iter().zip(&after.values).map(|(a, b)| (b - a) / mean).collect();
            let by = changes.iter().sum::<f64>() / count;
            let variance = changes.iter().map(|change| (change - by).powi(2)).sum::<f64>() / (count - 1.0).max(1.0);
            let stands_out = by.abs() > 2.5 * (variance / count).sqrt();
            stands_out.then_some(Change { profile: before.profile, result: before.result, by })
        })
        .collect();
    changes.sort_by(|a, b| b.by.abs().total_cmp(&a.by.abs()));
    changes
}

/// Halves and doubles the constants for which `chosen` holds. Returns for each its name, and the changes of both.
pub fn sweep(
    chosen: impl Fn(&str) -> bool,
    profiles: &[Profile],
    seeds: u64,
) -> Vec<(&'static str, Vec<Change>, Vec<Change>)> {
    let default = sample(&Policy::default(), profiles, seeds);
    let fields: Vec<Field> = fields().into_iter().filter(|field| chosen(field.name)).collect();
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let work = || {
        let mut rows = Vec::new();
        while let Some(field) = fields.get(next.fetch_add(1, Ordering::Relaxed)) {
            let [half, double] = [0.5, 2.0].map(|by| {
                let mut policy = Policy::default();
                (field.scale)(&mut policy, by);
                compare(&default, &sample(&policy, profiles, seeds))
            });
            eprintln!("{}", row(field.name, &half, &double));
            rows.push((field.name, half, double));
        }
        rows
    };
    let mut rows: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("no simulation fails")).collect()
    });
    rows.sort_by_key(|(name, ..)| fields.iter().position(|field| field.name == *name));
    rows
}

/// Returns a row of the table in the documentation of `swarm/policy.rs`: the largest change and two more.
pub fn row(name: &str, half: &[Change], double: &[Change]) -> String {
    let cell = |changes: &[Change]| {
        let large = changes.iter().filter(|change| change.by.abs() > THRESHOLD).take(3);
        let cells: Vec<String> =
            large.map(|change| format!("{} {} {:+.0} %", change.profile, change.result, change.by * 100.0)).collect();
        if cells.is_empty() { "–".to_owned() } else { cells.join(", ") }
    };
    format!("| `{name}` | {} | {} |", cell(half), cell(double))
}
