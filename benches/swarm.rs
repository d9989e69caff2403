//! The swarm's cost: what one block takes, with everything that its coming causes (requests to the peers, the piece
//! checked and had), spread over a whole download from two seeds.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use fixedbitset::FixedBitSet;
use torrentfs::metainfo::{BLOCK_LEN, InfoHash, Lengths};
use torrentfs::swarm::{Action, Config, Direction, Event, NewPeer, PeerKey, PickOrder, ReaderId, Swarm};
use torrentfs::wire::{ExtensionHandshake, Message, PeerId, Request};

const MIB: u64 = 1 << 20;
const PEERS: u64 = 2;
const TOTAL: u64 = 1024 * MIB;
/// Time from one block to the next: 160 MB/s.
const STEP: Duration = Duration::from_micros(100);

fn config(lengths: Lengths) -> Config {
    Config {
        info_hash: InfoHash([7; 20]),
        lengths,
        metadata: Bytes::new().into(),
        seed: 1,
        our_id: PeerId([0; 20]),
        on_demand: false,
        upload: true,
        partial_seed: false,
        pex: true,
        super_seed: false,
        max_peers: 100,
        max_partial: 64 * MIB,
        order: PickOrder::RarestFirst,
        policy: Arc::default(),
    }
}

/// A swarm with its peers, and what they were asked for.
struct Download {
    swarm: Swarm,
    now: Instant,
    asked: VecDeque<(PeerKey, Request)>,
    blocks: u64,
}

impl Download {
    /// With a file of everything open, read from the start, if `reading`.
    fn new(reading: bool) -> Self {
        let lengths = Lengths::new(TOTAL, MIB).expect("sizes of a torrent");
        let now = Instant::now();
        let swarm = Swarm::new(config(lengths), FixedBitSet::new(), now);
        let mut download = Self { swarm, now, asked: VecDeque::new(), blocks: 0 };
        if reading {
            download.tell(Event::Open { reader: ReaderId(1), bytes: 0..TOTAL });
        }
        for n in 1..=PEERS {
            let (peer, addr) = (PeerKey(n), SocketAddr::from((Ipv4Addr::LOCALHOST, n as u16)));
            let id = PeerId([n as u8; 20]);
            let direction = Direction::Outgoing;
            download.tell(Event::Connected(NewPeer::new(peer, addr, direction, id)));
            let theirs = ExtensionHandshake { request_queue: Some(2000), ..ExtensionHandshake::default() };
            download.tell(Event::Message(peer, Message::Extended { id: 0, payload: theirs.encode() }));
            download.tell(Event::Message(peer, Message::HaveAll));
            download.tell(Event::Message(peer, Message::Unchoke));
        }
        download
    }

    fn tell(&mut self, event: Event) {
        self.swarm.handle(self.now, event);
        self.act();
    }

    fn act(&mut self) {
        while let Some(action) = self.swarm.poll() {
            match action {
                Action::Send(peer, Message::Request(request)) => self.asked.push_back((peer, request)),
                Action::Send(peer, Message::Cancel(request)) => {
                    self.asked.retain(|asked| *asked != (peer, request));
                    self.swarm.handle(self.now, Event::Message(peer, Message::Reject(request)));
                }
                Action::Check { piece, .. } => {
                    let (bad_blocks, digests) = (Vec::new(), Vec::new());
                    self.swarm.handle(self.now, Event::Checked { piece, good: true, bad_blocks, digests });
                }
                _ => {}
            }
        }
    }

    /// Until everything is there; gives the number of blocks.
    fn run(mut self, reading: bool) -> u64 {
        while !self.swarm.complete() {
            self.now += STEP;
            if self.swarm.next_wakeup().is_some_and(|due| due <= self.now) {
                self.tell(Event::Tick);
            }
            let Some((peer, request)) = self.asked.pop_front() else { continue };
            if reading && self.blocks.is_multiple_of(MIB / u64::from(BLOCK_LEN)) {
                let begin = self.blocks * u64::from(BLOCK_LEN);
                self.tell(Event::Read { reader: ReaderId(1), bytes: begin..(begin + 128 * 1024).min(TOTAL) });
            }
            let Request { piece, begin, length } = request;
            self.blocks += u64::from(self.swarm.block(self.now, peer, piece, begin, length).is_some());
            self.act();
        }
        self.blocks
    }
}

fn downloads(c: &mut Criterion) {
    let blocks = TOTAL / u64::from(BLOCK_LEN);
    let mut group = c.benchmark_group("swarm");
    group.throughput(Throughput::Elements(blocks));
    for (name, reading) in [("a block, in the background", false), ("a block, for a reader", true)] {
        group.bench_function(name, |b| {
            b.iter_batched(
                || Download::new(reading),
                |download| assert_eq!(download.run(reading), blocks),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(3)).sample_size(10);
    targets = downloads
}
criterion_main!(benches);
