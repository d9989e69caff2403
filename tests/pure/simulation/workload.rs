//! Workloads of programs on a mount, over links like those of homes: start, play, jump, seek, copy. Every result is a number
//! in virtual time that depends on the seed alone.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use torrentfs::metainfo::Lengths;
use torrentfs::swarm::Policy;

use super::libtorrent::Libtorrent;
use super::link::Link;
use super::script::Script;
use super::{Nature, World};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// Bytes of one read of a program.
const CHUNK: u64 = 64 * KIB;
/// Bytes that the kernel reads ahead by default.
const READ_AHEAD: u64 = 128 * KIB;
/// Longer than any read may take.
const LIMIT: Duration = Duration::from_secs(120);

/// The peers of a swarm, as a client sees them.
#[derive(Clone, Copy, Debug)]
pub struct Profile {
    pub name: &'static str,
    /// Round trip in milliseconds and rate in kB/s of each peer.
    peers: &'static [(u64, u32)],
    piece: u64,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Kind {
    /// Links do not change.
    Steady,
    /// Now and then a peer stops for seconds, or slows down to a tenth.
    Unsteady,
    /// Peers send blocks out of order more often, as on a busy machine.
    Busy,
    /// Peers grant bandwidth every so many milliseconds.
    Bursts(u64),
    /// The first and the fourth peer never send a block, and the fifth sends wrong ones.
    Hostile,
}

const HOME: &[(u64, u32)] = &[
    (20, 2000),
    (40, 1200),
    (35, 800),
    (60, 500),
    (90, 400),
    (120, 300),
    (150, 200),
    (30, 150),
    (200, 100),
    (250, 80),
    (80, 50),
    (300, 30),
];

const CROWD: &[(u64, u32)] = &[
    (217, 123),
    (88, 57),
    (48, 168),
    (141, 57),
    (140, 202),
    (150, 25),
    (61, 244),
    (185, 201),
    (136, 83),
    (257, 53),
    (36, 91),
    (251, 259),
    (262, 231),
    (152, 143),
    (74, 27),
    (126, 81),
    (205, 249),
    (287, 230),
    (112, 81),
    (42, 202),
    (97, 257),
    (104, 151),
    (91, 42),
    (168, 150),
    (216, 33),
    (213, 91),
    (123, 250),
    (265, 166),
    (77, 31),
    (58, 237),
    (296, 170),
    (26, 153),
    (59, 100),
    (105, 125),
    (290, 146),
    (191, 143),
    (188, 191),
    (66, 167),
    (235, 38),
    (127, 69),
];

/// The profiles: a home line's swarm, few peers, distant peers, many slow peers; then the first with small pieces, with
/// unsteady links, with busy and with hostile peers; and fast peers nearby that send in bursts.
pub const PROFILES: [Profile; 9] = [
    Profile { name: "home", peers: HOME, piece: 2 * MIB, kind: Kind::Steady },
    Profile { name: "few", peers: &[(45, 1500), (110, 900), (180, 400)], piece: 2 * MIB, kind: Kind::Steady },
    Profile {
        name: "far",
        peers: &[(180, 1500), (220, 1200), (250, 900), (300, 700), (280, 500), (350, 400)],
        piece: 2 * MIB,
        kind: Kind::Steady,
    },
    Profile { name: "crowd", peers: CROWD, piece: 2 * MIB, kind: Kind::Steady },
    Profile { name: "small", peers: HOME, piece: 256 * KIB, kind: Kind::Steady },
    Profile { name: "unsteady", peers: HOME, piece: 2 * MIB, kind: Kind::Unsteady },
    Profile { name: "busy", peers: HOME, piece: 2 * MIB, kind: Kind::Busy },
    Profile { name: "hostile", peers: HOME, piece: 256 * KIB, kind: Kind::Hostile },
    Profile { name: "bursts", peers: &[(1, 4000), (1, 4000), (5, 1000)], piece: MIB, kind: Kind::Bursts(20) },
];

impl Profile {
    /// Returns the bytes a second of all links together.
    pub fn rate(&self) -> f64 {
        self.peers.iter().map(|(_, rate)| f64::from(*rate) * 1e3).sum()
    }

    /// Returns the least seconds in which all links together can deliver so many bytes after one round trip.
    pub fn floor(&self, bytes: u64) -> f64 {
        let (mut low, mut high) = (0.0, 1e4);
        for _ in 0..60 {
            let middle = (low + high) / 2.0;
            let by_then = |(rtt, rate): &(u64, u32)| (middle - *rtt as f64 / 1e3).max(0.0) * f64::from(*rate) * 1e3;
            if self.peers.iter().map(by_then).sum::<f64>() < bytes as f64 { low = middle } else { high = middle }
        }
        high
    }

    /// Returns a world with the profile's peers and a client, which is told of them at once.
    fn world(&self, policy: &Policy, seed: u64, size: u64) -> (World, usize) {
        let lengths = Lengths::new(size, self.piece).expect("sizes of a torrent");
        let mut world = World::new(seed, lengths, Duration::ZERO);
        let mut seeds = Vec::new();
        for (rtt, rate) in self.peers {
            let mut link = Link::new(f64::from(*rate) * 1e3, Duration::from_micros(rtt * 500));
            let mut client = Libtorrent::lab();
            match self.kind {
                Kind::Busy => client.delayed_reads *= 2.0,
                Kind::Steady | Kind::Hostile => {}
                Kind::Bursts(millis) => link.burst = Duration::from_millis(millis),
                Kind::Unsteady => {
                    let mut at = 0.0;
                    while at < 300.0 {
                        at += world.rng.random_range(2.0..25.0);
                        let lasts = world.rng.random_range(1.0..6.0);
                        let factor = if world.rng.random_bool(0.5) { 0.0 } else { 0.1 };
                        link.changes.push((Duration::from_secs_f64(at), factor));
                        at += lasts;
                        link.changes.push((Duration::from_secs_f64(at), 1.0));
                    }
                }
            }
            seeds.push(world.add_scripted(link, Script::libtorrent(client)));
        }
        if self.kind == Kind::Hostile {
            world.nodes[seeds[0]].nature = Nature::Silent;
            world.nodes[seeds[3]].nature = Nature::Silent;
            world.nodes[seeds[4]].nature = Nature::Liar;
        }
        let policy = Arc::new(policy.clone());
        let client = world.add(
            1e6,
            |_| false,
            |config| {
                config.policy = policy;
                config.max_partial = 32 * MIB;
            },
        );
        world.introduce_to(client, &seeds);
        world.open(client, 1, 0..size);
        (world, client)
    }
}

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
        let (mut world, client) = self.profile.world(self.policy, self.seed, size);
        world.trace = self.trace;
        (world, client)
    }

    /// Runs one workload.
    pub fn run(&self, workload: &str) -> Results {
        match workload {
            "play" => play(self),
            "seek" => seek(self),
            "copy" => vec![("copy", copy(self))],
            "fill" => vec![("fill", fill(self))],
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
    const RATE: f64 = 1.5e6;
    const PREBUFFER: f64 = 2.0;
    let size = 512 * MIB;
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
    let parts = [0.5, 0.8, 0.3, 0.6];
    let jumps: Vec<f64> = parts.iter().map(|part| run(&mut world, (size as f64 * part) as u64 & !4095, 4.0)).collect();
    vec![
        ("first", first.unwrap_or(f64::NAN)),
        ("4MiB", four.unwrap_or(f64::NAN)),
        ("start", start),
        ("play", 1.0 + stalled / played_in_sum),
        ("jump", jumps.iter().sum::<f64>() / jumps.len() as f64),
        ("waste", waste(&world, client)),
    ]
}

/// 64 KiB at random places, one every half second, while the background fills.
pub fn seek(trial: &Trial) -> Results {
    let size = 512 * MIB;
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
pub fn copy(trial: &Trial) -> f64 {
    let size = 96 * MIB;
    let (mut world, client) = trial.world(size);
    let mut handle = Handle::new(&world, client);
    let mut at = 0;
    while at < size {
        at += handle.read(&mut world, at);
    }
    size as f64 / world.now.as_secs_f64() / trial.profile.rate()
}

/// A torrent fetched without readers: its share of the links' rate.
pub fn fill(trial: &Trial) -> f64 {
    let size = 64 * MIB;
    let (mut world, client) = trial.world(size);
    world.run_until(LIMIT, |world| world.nodes[client].completed.is_some());
    size as f64 / world.now.as_secs_f64() / trial.profile.rate()
}

/// Returns the part of the bytes received that came twice, plus one.
fn waste(world: &World, client: usize) -> f64 {
    let stats = world.nodes[client].swarm.stats(world.clock());
    1.0 + stats.wasted as f64 / stats.downloaded as f64
}
