//! Results as ratios to the floor: what a bare client reaches that knows every link, on the same links.
//!
//! | result | ratio of | to the floor | goal |
//! |---|---|---|---|
//! | `first` | launch to 64 KiB | the first piece | ≤ 1.3 |
//! | `4MiB` | launch to 4 MiB | the first piece, and the rest at the sum of the rates | ≤ 1.6 |
//! | `seek p50` | 64 KiB at random places, median | one piece, median | ≤ 1.25 |
//! | `seek p90` | the same, ninth decile | one piece, median | ≤ 1.8 |
//! | `start` | launch to two seconds of media | the first piece, and the rest at the sum of the rates | ≤ 1.6 |
//! | `worst jump` | a jump to two seconds of media, the worst of four | the pieces there, the most of four | ≤ 1.6 |
//! | `stalls` | seconds of a second of media that a player stands still | | 0 |
//! | `copy`, `fill` | bytes a second | the sum of the rates | ≥ 0.95 |
//! | `waste` | bytes that came twice, of all while a player plays | | ≤ 0.03 |
//! | `seek waste` | the same while a program reads at random places | | ≤ 0.03 |
//! | `fill waste` | the same while nobody reads | | 0 |

use std::time::Duration;

use rand::RngExt;

use super::workload::{JUMPS, PREBUFFER, RATE, Results, SIZE, Trial};
use super::{profile::Profile, seconds};

const MIB: u64 = 1 << 20;
/// Pieces that the bare client fetches at random places.
const READS: usize = 15;

/// The goals by result. The shares of the rates are least values, all others are most.
pub const GOALS: [(&str, f64); 12] = [
    ("first", 1.3),
    ("4MiB", 1.6),
    ("seek p50", 1.25),
    ("seek p90", 1.8),
    ("start", 1.6),
    ("worst jump", 1.6),
    ("stalls", 0.0),
    ("copy", 0.95),
    ("fill", 0.95),
    ("waste", 0.03),
    ("seek waste", 0.03),
    ("fill waste", 0.0),
];

/// Returns whether more of a result is better.
pub fn is_share(result: &str) -> bool {
    matches!(result, "copy" | "fill")
}

/// Returns whether a result reaches a limit or goal.
pub fn reaches(result: &str, value: f64, limit: f64) -> bool {
    if is_share(result) { value >= limit } else { value <= limit + 1e-9 }
}

/// Results of the bare client, in seconds.
#[derive(Clone, Copy, Debug)]
pub struct Floor {
    pub first: f64,
    pub four: f64,
    pub start: f64,
    pub piece: f64,
    pub jump: f64,
}

impl Floor {
    pub fn new(profile: &Profile, seed: u64) -> Self {
        let media = (PREBUFFER * RATE) as u64;
        let (mut world, peers) = profile.world(seed, SIZE);
        let bare = world.add_bare(&peers);
        let piece_len = u64::from(world.lengths.piece_len());
        world.fetch_bare(bare, 0..1);
        let first = seconds(world.now);
        let rest =
            |bytes: u64| first + bytes.next_multiple_of(piece_len).saturating_sub(piece_len) as f64 / profile.rate();
        // Until the slowest peer is there.
        world.run(Duration::from_secs(5));
        let mut pieces = Vec::new();
        for _ in 0..READS {
            world.run(Duration::from_millis(500));
            let at = world.rng.random_range(piece_len..SIZE - piece_len);
            pieces.push(seconds(world.fetch_bare(bare, at..at + 1)));
        }
        pieces.sort_by(f64::total_cmp);
        let mut jump: f64 = 0.0;
        for part in JUMPS {
            world.run(Duration::from_millis(500));
            let at = (SIZE as f64 * part) as u64 & !4095;
            jump = jump.max(seconds(world.fetch_bare(bare, at..at + media)));
        }
        Self { first, four: rest(4 * MIB), start: rest(media), piece: pieces[READS / 2], jump }
    }
}

/// Runs every workload, and returns the results of [`GOALS`] in that order.
pub fn ratios(trial: &Trial) -> Results {
    let (floor, results) = (Floor::new(trial.profile, trial.seed), trial.measure());
    let get = |name: &str| results.iter().find(|(result, _)| *result == name).expect("a result of that name").1;
    let ratio = |name: &'static str| {
        let value = get(if name == "stalls" { "play" } else { name });
        let value = match name {
            "first" => value / floor.first,
            "4MiB" => value / floor.four,
            "start" => value / floor.start,
            "seek p50" | "seek p90" => value / floor.piece,
            "worst jump" => value / floor.jump,
            "copy" | "fill" => value,
            _ => value - 1.0,
        };
        (name, value)
    };
    GOALS.iter().map(|(name, _)| ratio(name)).collect()
}
