//! The state of a swarm, and its cycle: an event comes in, timers run, derived state is updated, actions go out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::time::Instant;

use fixedbitset::FixedBitSet;
use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::action::Action;
use super::addresses::Addresses;
use super::blame::Blame;
use super::choker::Choker;
use super::config::Config;
use super::event::{Event, PeerKey};
use super::peer::holepunch::Introductions;
use super::peer::{Holding, Peer};
use super::pieces::{BlockId, Pieces, Slot};
use super::policy::{Need, Phase};
use super::rate::Meter;
use super::sched::readers::{Readers, Urgent};
use super::stats::Stats;
use super::super_seed::SuperSeed;
use crate::wire::Message;

/// One torrent's swarm. See the module's documentation.
#[derive(Debug)]
pub struct Swarm {
    pub(super) config: Config,
    pub(super) rng: SmallRng,
    pub(super) pieces: Pieces,
    pub(super) peers: BTreeMap<PeerKey, Peer>,
    pub(super) addresses: Addresses,
    /// Peers that can relay to addresses that we cannot dial (BEP 55).
    pub(super) introductions: Introductions,
    pub(super) blame: Blame,
    pub(super) choker: Choker,
    /// Super-seeding, until the first copy is out.
    pub(super) super_seed: Option<SuperSeed>,
    /// Number of peers that we do not choke.
    pub(super) unchoked: usize,
    pub(super) readers: Readers,
    /// Pieces that readers need, by deadline. Those without a free block are removed when they are found.
    pub(super) urgent: Vec<Urgent>,
    /// The same pieces sorted by number, which background fetching leaves alone.
    pub(super) needed: Vec<u32>,
    /// The pieces of blocked reads, sorted by number.
    pub(super) blocked: Vec<u32>,
    /// These, and the pieces that their readers get to in a moment, sorted by number: late blocks of them are requested
    /// twice.
    pub(super) hedged: Vec<u32>,
    /// Readers or pieces have changed, so that `urgent` must be computed again.
    pub(super) stale: bool,
    /// `Pieces::freed` when `urgent` was computed.
    freed: u64,
    /// Ranges of pieces that readers need, and the pieces just before their positions. Sorted; contains `needed`.
    pub(super) pins: Vec<Range<u32>>,
    pub(super) actions: VecDeque<Action>,
    /// Nothing is fetched or served.
    pub(super) paused: bool,
    /// Background fetching begins no piece, because other torrents come first.
    pub(super) queued: bool,
    /// Bytes that background fetching may still add to the store.
    pub(super) room: u64,
    /// A peer could begin a piece, but there is no room for a single one.
    pub(super) starved: bool,
    /// Maximum number of connections that the other torrents leave to this one.
    pub(super) max_connections: usize,
    /// A read of another torrent is blocked on blocks that are on their way.
    yielding: bool,
    /// The activity of readers, which decides how long the queues at peers may be.
    pub(super) phase: Phase,
    /// There may be new work for some peer.
    pub(super) work: bool,
    next_tick: Instant,
    /// When a blocked read without a peer next has addresses dialed.
    pub(super) next_search: Instant,
    /// When another address may be dialed, although those being dialed have not answered.
    pub(super) next_dial: Option<Instant>,
    down: Meter,
    up: Meter,
    pub(super) downloaded: u64,
    uploaded: u64,
    pub(super) wasted: u64,
    /// `Action::Completed` was sent, or must not be sent.
    pub(super) completed: bool,
}

impl Swarm {
    /// Returns a swarm that has the pieces `have`. Bits beyond the torrent are ignored.
    pub fn new(config: Config, have: FixedBitSet, now: Instant) -> Self {
        let rng = SmallRng::seed_from_u64(config.seed);
        let mut config = config;
        // Peers are counted in 16 bits.
        config.max_peers = config.max_peers.min(usize::from(u16::MAX));
        let pieces = Pieces::new(config.lengths, &have);
        Self {
            rng,
            peers: BTreeMap::new(),
            addresses: Addresses::new(config.seed),
            introductions: Introductions::new(now),
            blame: Blame::default(),
            choker: Choker::new(now, config.policy.clone()),
            super_seed: (config.super_seed && config.upload && pieces.complete())
                .then(|| SuperSeed::new(pieces.count(), config.policy.clone())),
            unchoked: 0,
            readers: Readers::new(config.lengths, config.max_partial, config.policy.clone()),
            urgent: Vec::new(),
            needed: Vec::new(),
            blocked: Vec::new(),
            hedged: Vec::new(),
            stale: false,
            freed: 0,
            pins: Vec::new(),
            actions: VecDeque::new(),
            paused: false,
            queued: false,
            room: u64::MAX,
            starved: false,
            max_connections: usize::MAX,
            yielding: false,
            phase: Phase::Filling,
            work: false,
            next_tick: now,
            next_search: now,
            next_dial: None,
            down: Meter::new(now),
            up: Meter::new(now),
            downloaded: 0,
            uploaded: 0,
            wasted: 0,
            completed: pieces.complete(),
            pieces,
            config,
        }
    }

    /// Handles an event.
    pub fn handle(&mut self, now: Instant, event: Event) {
        match event {
            Event::Tick => {}
            Event::PeersFound { addrs, source } => {
                addrs.into_iter().for_each(|addr| self.addresses.found(now, addr, source));
            }
            Event::Refused(addr) => self.addresses.refused(now, addr),
            Event::ConnectFailed(addr) => self.connect_failed(now, addr),
            Event::Connected(peer) => self.connected(now, &peer),
            Event::Disconnected(peer) => self.remove(now, peer),
            Event::Message(peer, message) => self.message(now, peer, message),
            Event::Serve(serve) => self.serve(now, serve),
            Event::OnDemand(on_demand) => self.set_on_demand(on_demand),
            Event::Turn(turn) => self.set_turn(turn),
            Event::Pause(paused) => self.pause(now, paused),
            Event::Priorities { skip, high } => self.prioritize(skip, &high),
            Event::Uploaded { peer, request, sent } => self.uploaded(now, peer, request, sent),
            Event::ExtensionsSent { peer, count } => self.extensions_sent(now, peer, count),
            Event::Checked { piece, good, bad_blocks, digests } => {
                self.checked(now, piece.get(), good, &bad_blocks, digests);
            }
            Event::MetadataLoaded => self.metadata_loaded(now),
            Event::Evicted(piece) => self.evicted(now, piece.get()),
            Event::Room(bytes) => {
                self.work |= bytes > self.room;
                self.room = bytes;
            }
            Event::Share { peers, shed, max_partial, yielding } => {
                self.share(now, peers, shed, max_partial);
                self.work |= self.yielding && !yielding;
                self.yielding = yielding;
                self.set_phase(now);
            }
            Event::Open { reader, bytes } => self.readers.open(now, reader, bytes),
            Event::Read { reader, bytes } => {
                self.readers.read(now, reader, &bytes);
                self.stale = true;
            }
            Event::Want { want, reader, bytes } => {
                self.readers.want(now, want, reader, bytes);
                self.blocked_read(now);
            }
            Event::Unwant(want) => self.stale |= self.readers.unwant(want),
            Event::Close(reader) => {
                self.readers.close(reader);
                self.stale = true;
            }
        }
        if now >= self.next_tick || self.readers.any_blocked() && now + self.config.policy.blocked_tick < self.next_tick
        {
            self.tick(now);
        }
        self.settle(now);
    }

    /// Returns the next thing to do, until `None`.
    pub fn poll(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Returns when `Event::Tick` is due unless another event comes first; `None`: never.
    pub fn next_wakeup(&self) -> Option<Instant> {
        if self.peers.is_empty() && self.addresses.attempts().len() == 0 {
            return self.addresses.next_due().map(|due| due.max(self.next_tick));
        }
        Some(self.next_dial.map_or(self.next_tick, |dial| dial.min(self.next_tick)))
    }

    /// Returns whether we have every piece.
    pub fn complete(&self) -> bool {
        self.pieces.complete()
    }

    /// Returns whether there was a read in the last few seconds.
    pub fn is_read(&self, now: Instant) -> bool {
        self.readers.is_active(now)
    }

    /// Returns whether a read is blocked.
    pub fn is_blocked(&self) -> bool {
        self.readers.any_blocked()
    }

    /// Returns the number of connections, including those being made.
    pub fn connections(&self) -> usize {
        self.peers.len() + self.addresses.attempts().len()
    }

    /// Returns what counts against the limit of [`Event::Share`]: the connections, and those being made that began a moment
    /// ago. Older ones rarely succeed.
    pub fn slots_taken(&self, now: Instant) -> usize {
        self.peers.len() + self.addresses.attempts().fresh(now, self.config.policy.dial_moment())
    }

    /// Returns the bytes that background fetching may still add: those of the last `Event::Room`, less the pieces that
    /// have arrived since.
    pub fn room(&self) -> u64 {
        self.room
    }

    /// Returns whether, since the last call, a peer could have begun a piece but for the room, of which there is less than
    /// one piece.
    pub fn take_starved(&mut self) -> bool {
        std::mem::take(&mut self.starved)
    }

    /// Returns the bytes of unfinished pieces.
    pub fn partial_bytes(&self) -> u64 {
        self.pieces.partial_bytes()
    }

    /// Returns the wanted bytes received so far.
    pub fn downloaded(&self) -> u64 {
        self.downloaded
    }

    /// Returns rates and counts, for people.
    pub fn stats(&self, now: Instant) -> Stats {
        Stats {
            peers: self.peers.len(),
            seeds: self.peers.values().filter(|peer| peer.is_seed()).count(),
            have: self.pieces.have_count(),
            down_rate: self.down.rate(now) as u64,
            up_rate: self.up.rate(now) as u64,
            downloaded: self.downloaded,
            uploaded: self.uploaded,
            wasted: self.wasted,
        }
    }

    /// Returns the rate of all blocks sent, in bytes per second.
    pub(super) fn up_rate(&self, now: Instant) -> f64 {
        self.up.rate(now)
    }

    /// Counts a wanted block that arrived.
    pub(super) fn count_download(&mut self, now: Instant, bytes: u32) {
        self.down.add(now, bytes.into());
        self.downloaded += u64::from(bytes);
    }

    /// Counts a block that was sent.
    pub(super) fn count_upload(&mut self, now: Instant, bytes: u64) {
        self.up.add(now, bytes);
        self.uploaded += bytes;
    }

    pub(super) fn send(&mut self, now: Instant, key: PeerKey, message: Message) {
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.last_sent = now;
            peer.extensions.unsent += usize::from(matches!(message, Message::Extended { .. }));
            self.actions.push_back(Action::Send(key, message));
        }
    }

    /// Does the work that no event triggers, and sets the next time for it.
    fn tick(&mut self, now: Instant) {
        self.tick_connections(now);
        self.tick_exchange(now);
        self.tick_choker(now);
        self.tick_super_seed(now);
        self.tick_requests(now);
        self.work = true;
        let busy = self.peers.values().any(|peer| !peer.asks.is_empty());
        let policy = &self.config.policy;
        self.next_tick = now
            + match (self.readers.any_blocked(), busy) {
                (true, _) if !self.peers.is_empty() => policy.blocked_tick,
                (_, true) => policy.busy_tick(),
                _ => policy.idle_tick(),
            };
    }

    /// Updates derived state after an event, and gives work to peers with room for it.
    pub(super) fn settle(&mut self, now: Instant) {
        if self.stale || self.freed != self.pieces.freed {
            self.refresh(now);
            self.work = true;
        }
        if std::mem::take(&mut self.work) {
            self.refill_all(now);
        }
        self.find_peers_for_readers(now);
        self.dial_more(now);
    }

    /// Computes the urgent pieces again, and sends the pins if they have changed.
    pub(super) fn refresh(&mut self, now: Instant) {
        self.stale = false;
        self.freed = self.pieces.freed;
        let pieces = &self.pieces;
        self.urgent = self.readers.urgent(now, |piece| !pieces.has(piece));
        self.blocked =
            self.urgent.iter().filter(|urgent| urgent.need.is_blocked()).map(|urgent| urgent.piece).collect();
        self.blocked.sort_unstable();
        let ahead = self.readers.ahead_of_blocked();
        let is_hedged = |urgent: &Urgent| {
            let begins_in = |range: &Range<u64>| {
                let piece = self.config.lengths.piece(urgent.piece);
                piece.is_some_and(|piece| range.contains(&self.config.lengths.offset_of(piece)))
            };
            urgent.need.is_blocked() || urgent.need == Need::Soon && ahead.iter().any(begins_in)
        };
        self.hedged = self.urgent.iter().filter(|urgent| is_hedged(urgent)).map(|urgent| urgent.piece).collect();
        self.hedged.sort_unstable();
        self.needed = self.urgent.iter().map(|urgent| urgent.piece).collect();
        self.needed.sort_unstable();
        self.set_phase(now);
        let pins = self.readers.pins();
        if pins != self.pins {
            self.pins.clone_from(&pins);
            self.actions.push_back(Action::Pin(pins));
        }
    }

    /// Derives the phase from the readers. Done on each tick, because silence is no event.
    pub(super) fn set_phase(&mut self, now: Instant) {
        self.phase = match self.readers.phase(now) {
            Phase::Filling if !self.urgent.is_empty() => Phase::Reading,
            Phase::Filling if self.yielding => Phase::Yielding,
            phase => phase,
        };
    }

    /// Checks every structure against the others, which costs a walk over everything. For tests.
    ///
    /// # Panics
    ///
    /// If an invariant is broken.
    #[doc(hidden)]
    pub fn check_invariants(&self) {
        self.pieces.check();
        self.addresses.check();
        self.blame.check();
        self.introductions.check(|relay| self.peers.contains_key(relay));
        let count_of = |piece| self.peers.values().filter(|peer| !peer.is_seed() && peer.has(piece)).count();
        assert_eq!(self.pieces.availability.sleeps(), self.peers.is_empty());
        let enrolled = |piece| !self.peers.is_empty() && self.pieces.is_to_begin(piece);
        self.pieces.availability.check(enrolled, count_of);
        assert_eq!(
            self.pieces.availability.seeds() as usize,
            self.peers.values().filter(|peer| peer.is_seed()).count()
        );
        assert_eq!(self.unchoked, self.peers.values().filter(|peer| !peer.we_choke).count());
        assert!(self.peers.len() <= self.config.max_peers);
        let mut asked = BTreeMap::new();
        for (key, peer) in &self.peers {
            peer.check();
            let has = |piece: u32| peer.has(piece);
            let all = 0..self.pieces.count();
            assert_eq!(peer.has_count as usize, all.clone().filter(|piece| has(*piece)).count());
            assert_eq!(peer.wanted as usize, all.filter(|piece| has(*piece) && !self.pieces.has(*piece)).count());
            assert_eq!(matches!(peer.holding, Holding::All), peer.has_count == self.pieces.count());
            assert_eq!(peer.we_interested, peer.wanted > 0, "interest was sent");
            let bytes: u64 = peer.asks.iter().map(|ask| u64::from(self.pieces.block_len(ask.id))).sum();
            assert_eq!(peer.pipeline.outstanding(), bytes);
            for ask in peer.asks.iter() {
                let slot = self.pieces.partial(ask.id.piece).map(|partial| partial.slots[ask.id.block as usize]);
                let is_asked = matches!(slot, Some(Slot::Asked(_)));
                assert!(is_asked, "{key:?} was asked for {:?}, which is {slot:?}", ask.id);
                *asked.entry(ask.id).or_insert(0_u16) += 1;
            }
            let distinct: BTreeSet<BlockId> = peer.asks.iter().map(|ask| ask.id).collect();
            assert_eq!(distinct.len(), peer.asks.len(), "asked twice");
        }
        for (piece, partial) in self.pieces.partials() {
            for (slot, block) in partial.slots.iter().zip(0..) {
                let peers = if let Slot::Asked(peers) = slot { *peers } else { 0 };
                assert_eq!(asked.get(&BlockId { piece, block }).copied().unwrap_or(0), peers);
            }
        }
    }
}
