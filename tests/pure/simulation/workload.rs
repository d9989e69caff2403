//! Workloads of programs on a mount, over links like those of homes: start, play, jump, seek, copy. Every result is a number
//! in virtual time that depends on the seed alone.

use std::ops::Range;
use std::time::Duration;

use rand::RngExt;
use torrentfs::swarm::Policy;

use super::World;
use super::profile::Profile;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// Size of a file that is played or read at random.
pub const SIZE: u64 = 512 * MIB;
/// Bytes of one read of a program.
const CHUNK: u64 = 64 * KIB;
/// Bytes that the kernel reads ahead by default.
const READ_AHEAD: u64 = 128 * KIB;
/// Bytes a second that a player plays, and the seconds of media with which it starts.
pub const RATE: f64 = 1.5e6;
pub const PREBUFFER: f64 = 2.0;
/// The parts of the file at which the player jumps.
pub const JUMPS: [f64; 4] = [0.5, 0.8, 0.3, 0.6];
/// Longer than any read may take.
const LIMIT: Duration = Duration::from_secs(120);

/// One file handle as the kernel uses it: reads beyond the first of a sequence are read ahead.
pub struct Handle {
    client: usize,
    size: u64,
    /// Where the last read ended, and up to where the kernel has asked.
    position: u64,
    asked: u64,
    /// Bytes that the kernel reads ahead of a sequential reader.
    read_ahead: u64,
}

impl Handle {
    pub fn new(world: &World, client: usize) -> Self {
        Self::with_read_ahead(world, client, READ_AHEAD)
    }

    pub fn with_read_ahead(world: &World, client: usize, read_ahead: u64) -> Self {
        Self { client, size: world.lengths.total(), position: u64::MAX, asked: 0, read_ahead }
    }

    /// Reads and waits. Returns the bytes read.
    pub fn read(&mut self, world: &mut World, at: u64) -> u64 {
        let bytes = at..(at + CHUNK).min(self.size);
        if at != self.position {
            self.asked = at;
            self.ask(world, bytes.end);
        } else {
            self.ask(world, (bytes.end + self.read_ahead).min(self.size));
        }
        let here = |world: &World, bytes: &Range<u64>| {
            world.lengths.pieces_in(bytes).all(|piece| world.nodes[self.client].stored.contains(&piece.get()))
        };
        world.run_until(LIMIT, |world| here(world, &bytes));
        self.position = bytes.end;
        bytes.end - bytes.start
    }

    /// Sends the reads up to `end`. They arrive out of order: several threads send what the kernel reads ahead.
    fn ask(&mut self, world: &mut World, end: u64) {
        let from = self.asked;
        self.asked = from.max(end);
        for chunk in (from..end).step_by(CHUNK as usize).collect::<Vec<_>>().into_iter().rev() {
            world.read(self.client, 1, chunk..(chunk + CHUNK).min(end));
        }
    }
}

/// Results by name. Seconds, except shares of the links' rate where more is better.
pub type Results = Vec<(&'static str, f64)>;

/// One run of a workload.
#[derive(Clone, Copy, Debug)]
pub struct Trial<'a> {
    pub profile: &'a Profile,
    pub policy: &'a Policy,
    pub seed: u64,
    /// Prints every request and block.
    pub trace: bool,
}

impl<'a> Trial<'a> {
    pub fn new(profile: &'a Profile, policy: &'a Policy, seed: u64) -> Self {
        Self { profile, policy, seed, trace: false }
    }

    fn world(&self, size: u64) -> (World, usize) {
        let (mut world, client) = self.profile.world_with_client(self.policy, self.seed, size);
        world.trace = self.trace;
        (world, client)
    }

    /// Runs one workload.
    pub fn run(&self, workload: &str) -> Results {
        match workload {
            "play" => play(self),
            "seek" => seek(self),
            "copy" => copy(self),
            "fill" => fill(self),
            _ => panic!("the workloads are play, seek, copy and fill"),
        }
    }

    /// Runs every workload once.
    pub fn measure(&self) -> Results {
        ["play", "seek", "copy", "fill"].into_iter().flat_map(|workload| self.run(workload)).collect()
    }
}

/// A player of 1.5 MB/s with a buffer of 10 s starts once it has 2 s of media, plays, and jumps. `play` is the time that
/// media of one second takes to play, without the start: 1 without stalls.
pub fn play(trial: &Trial) -> Results {
    let size = SIZE;
    let (mut world, client) = trial.world(size);
    let mut handle = Handle::new(&world, client);
    let (mut first, mut four) = (None, None);
    let (mut stalled, mut played_in_sum) = (0.0, 0.0);
    let mut run = |world: &mut World, offset: u64, length: f64| -> f64 {
        let begin = world.now.as_secs_f64();
        let (mut got, mut base, mut playing, mut dry, mut started) = (0, 0.0, None, begin, None);
        loop {
            let now = world.now.as_secs_f64();
            let media = got as f64 / RATE;
            if let Some(since) = playing {
                let played = base + now - since;
                if played >= length {
                    break;
                }
                if media < played {
                    (base, playing, dry) = (media, None, now);
                }
            }
            if playing.is_none() && media - base >= PREBUFFER {
                playing = Some(now);
                match started {
                    None => started = Some(now - begin),
                    Some(_) => stalled += now - dry,
                }
            }
            let played = playing.map_or(base, |since| base + now - since);
            if media - played < 10.0 {
                got += handle.read(world, (offset + got) % (size - CHUNK));
                first = first.or(Some(world.now.as_secs_f64()));
                if got >= 4 * MIB {
                    four = four.or(Some(world.now.as_secs_f64()));
                }
            } else {
                world.run(Duration::from_millis(20));
            }
        }
        played_in_sum += length;
        started.unwrap_or(f64::NAN)
    };
    let start = run(&mut world, 0, 10.0);
    let jumps: Vec<f64> = JUMPS.iter().map(|part| run(&mut world, (size as f64 * part) as u64 & !4095, 4.0)).collect();
    vec![
        ("first", first.unwrap_or(f64::NAN)),
        ("4MiB", four.unwrap_or(f64::NAN)),
        ("start", start),
        ("play", 1.0 + stalled / played_in_sum),
        ("jump", jumps.iter().sum::<f64>() / jumps.len() as f64),
        ("worst jump", jumps.iter().copied().fold(0.0, f64::max)),
        ("waste", waste(&world, client)),
    ]
}

/// 64 KiB at random places, one every half second, while the background fills.
fn seek(trial: &Trial) -> Results {
    let size = SIZE;
    let (mut world, client) = trial.world(size);
    let mut handle = Handle::new(&world, client);
    handle.read(&mut world, 0);
    world.run(Duration::from_secs(8));
    let mut waits = Vec::new();
    for _ in 0..20 {
        let at = world.rng.random_range(0..size - CHUNK) & !4095;
        let begin = world.now;
        handle.read(&mut world, at);
        waits.push((world.now - begin).as_secs_f64());
        world.run(Duration::from_millis(500));
    }
    waits.sort_by(f64::total_cmp);
    vec![("seek p50", (waits[9] + waits[10]) / 2.0), ("seek p90", waits[18]), ("seek waste", waste(&world, client))]
}

/// A file copied in order by one program: its share of the links' rate.
fn copy(trial: &Trial) -> Results {
    let size = 192 * MIB;
    let (mut world, client) = trial.world(size);
    let mut handle = Handle::new(&world, client);
    let mut at = 0;
    while at < size {
        at += handle.read(&mut world, at);
    }
    vec![("copy", size as f64 / world.now.as_secs_f64() / trial.profile.rate())]
}

/// A torrent fetched without readers: its share of the links' rate.
fn fill(trial: &Trial) -> Results {
    let size = 64 * MIB;
    let (mut world, client) = trial.world(size);
    world.run_until(LIMIT, |world| world.nodes[client].completed.is_some());
    let share = size as f64 / world.now.as_secs_f64() / trial.profile.rate();
    vec![("fill", share), ("fill waste", waste(&world, client))]
}

/// Returns the part of the bytes received that came twice, plus one.
fn waste(world: &World, client: usize) -> f64 {
    let stats = world.nodes[client].swarm.stats(world.clock());
    1.0 + stats.wasted as f64 / stats.downloaded as f64
}
