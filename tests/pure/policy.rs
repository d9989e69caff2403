//! The policy over simulated links.

use torrentfs::swarm::Policy;

use crate::simulation::workload::{PROFILES, measure};

#[test]
#[ignore = "x"]
fn lab_baseline() {
    let seeds: u64 = std::env::var("SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(4);
    let only = std::env::var("PROFILES").unwrap_or_default();
    let policy = Policy::default();
    for profile in PROFILES.iter().filter(|p| only.is_empty() || only.split(',').any(|o| o == p.name)) {
        let begin = std::time::Instant::now();
        let mut sums: Vec<(&str, Vec<f64>)> = Vec::new();
        for seed in 0..seeds {
            for (name, value) in measure(profile, &policy, seed) {
                match sums.iter_mut().find(|(n, _)| *n == name) {
                    Some((_, v)) => v.push(value),
                    None => sums.push((name, vec![value])),
                }
            }
        }
        print!("{:9}", profile.name);
        for (name, values) in &sums {
            let n = values.len() as f64;
            let mean = values.iter().sum::<f64>() / n;
            let var = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
            print!(" {name} {mean:.3}±{:.3}", (var / n).sqrt());
        }
        println!("  [{:.2}s floor {:.2}]", begin.elapsed().as_secs_f64(), profile.floor(3_000_000));
    }
}

trait Scale {
    fn scaled(self, by: f64) -> Self;
}
impl Scale for f64 {
    fn scaled(self, by: f64) -> Self {
        self * by
    }
}
impl Scale for std::time::Duration {
    fn scaled(self, by: f64) -> Self {
        self.mul_f64(by)
    }
}
impl Scale for u64 {
    fn scaled(self, by: f64) -> Self {
        ((self as f64 * by) as Self).max(1)
    }
}
impl Scale for u32 {
    fn scaled(self, by: f64) -> Self {
        ((self as f64 * by) as Self).max(1)
    }
}
impl Scale for usize {
    fn scaled(self, by: f64) -> Self {
        ((self as f64 * by) as Self).max(1)
    }
}

type Change = fn(&mut Policy, f64);

macro_rules! fields {
    ($($field:ident),* $(,)?) => {
        fn fields() -> Vec<(&'static str, Change)> {
            let Policy { $($field: _),* } = Policy::default();
            vec![$((stringify!($field), |policy: &mut Policy, by: f64| policy.$field = policy.$field.scaled(by))),*]
        }
    };
}
fields!(
    filling_queue,
    reading_queue,
    due_queue,
    first_window,
    min_window,
    speculative_window,
    rate_headroom,
    refill_level,
    rate_span,
    min_rate_span,
    unknown_rate,
    unknown_latency,
    probe_interval,
    probe_latencies,
    first_probe_interval,
    probe_retry,
    late_deviations,
    min_late,
    hedge_advantage,
    stall_factor,
    snub_timeout,
    solo_timeout,
    choke_grace,
    cancel_grace,
    stray_grace,
    reject_pause,
    min_read_ahead,
    max_read_ahead,
    slow_read_ahead,
    read_ahead_time,
    reorder_distance,
    min_read_rate,
    reader_timeout,
    abandoned_delay,
    next_distance,
    blocked_moment,
    random_first,
    end_game_blocks,
    blocked_tick,
    busy_tick,
    idle_tick,
);

#[test]
#[ignore = "x"]
fn lab_sweep() {
    let seeds: u64 = std::env::var("SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(4);
    let only = std::env::var("PROFILES").unwrap_or_default();
    let fields_only = std::env::var("FIELDS").unwrap_or_default();
    let mut jobs: Vec<(String, Policy)> = vec![("default".into(), Policy::default())];
    for (name, change) in fields() {
        if !fields_only.is_empty() && !fields_only.split(',').any(|f| f == name) {
            continue;
        }
        for by in [0.5, 2.0] {
            let mut policy = Policy::default();
            change(&mut policy, by);
            jobs.push((format!("{name}*{by}"), policy));
        }
    }
    let next = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    let Some((name, policy)) = jobs.get(at) else { return };
                    for profile in PROFILES.iter().filter(|p| only.is_empty() || only.split(',').any(|o| o == p.name)) {
                        for seed in 0..seeds {
                            let results = std::panic::catch_unwind(|| measure(profile, policy, seed));
                            match results {
                                Ok(results) => {
                                    for (metric, value) in results {
                                        println!(
                                            "DATA {name} {} {seed} {} {value}",
                                            profile.name,
                                            metric.replace(' ', "_")
                                        );
                                    }
                                }
                                Err(_) => println!("DATA {name} {} {seed} PANIC 1", profile.name),
                            }
                        }
                    }
                }
            });
        }
    });
}
