//! What a swarm looks like at one moment, for people: costs one walk over peers, blocked reads and what is under way,
//! and is made only when somebody asks.

use std::net::SocketAddr;
use std::ops::Range;
use std::time::{Duration, Instant};

use fixedbitset::FixedBitSet;

use super::event::{Direction, PeerKey, PeerSource};
use super::machine::Swarm;
use super::pieces::{Partial, State};
use super::stats::Stats;
use crate::wire::PeerId;

/// Pieces told of one blocked read.
const MAX_AWAITED: usize = 64;

/// A swarm at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Rates and counts.
    pub stats: Stats,
    /// Fetch only what readers need.
    pub on_demand: bool,
    /// Nothing is fetched or given.
    pub paused: bool,
    /// Others are served.
    pub serving: bool,
    /// Every connection, the oldest first.
    pub peers: Vec<PeerSnapshot>,
    /// The pieces had.
    pub have: FixedBitSet,
    /// The pieces under way.
    pub partial: Vec<PartialSnapshot>,
    /// Pieces that background fetching leaves out.
    pub skipped: FixedBitSet,
    /// Missing pieces that background fetching may begin, or goes on with: 0 when all that is wanted is had.
    pub to_fetch: u32,
    /// Open files that have been read.
    pub readers: Vec<ReaderSnapshot>,
    /// Blocked reads, the longest first.
    pub waits: Vec<WaitSnapshot>,
}

/// One connection.
#[derive(Clone, Debug)]
pub struct PeerSnapshot {
    /// Its name.
    pub key: PeerKey,
    /// Its remote end.
    pub addr: SocketAddr,
    /// Who opened it.
    pub direction: Direction,
    /// Where its address came from.
    pub source: PeerSource,
    /// The id in its handshake.
    pub id: PeerId,
    /// The client and its version as its extension handshake states them, made printable.
    pub client: Option<String>,
    /// Pieces that they have.
    pub has: u32,
    /// They choke us.
    pub choking_us: bool,
    /// We want something of theirs.
    pub we_interested: bool,
    /// We choke them.
    pub we_choke: bool,
    /// They want something of ours.
    pub interested_in_us: bool,
    /// They stopped answering.
    pub snubbed: bool,
    /// Blocks asked for and not yet here.
    pub asked: usize,
    /// Bytes a second from them.
    pub down_rate: u64,
    /// Bytes a second to them.
    pub up_rate: u64,
    /// Wanted bytes from them.
    pub downloaded: u64,
    /// Bytes to them.
    pub uploaded: u64,
    /// For how long it has been connected.
    pub connected: Duration,
}

/// A piece under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PartialSnapshot {
    /// Its number.
    pub piece: u32,
    /// Blocks that are here.
    pub received: u32,
    /// Blocks in it.
    pub blocks: u32,
}

/// An open file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReaderSnapshot {
    /// Where it reads, and what it will need soon, counted in the torrent.
    pub window: Range<u64>,
}

/// A blocked read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WaitSnapshot {
    /// What is read, counted in the torrent.
    pub bytes: Range<u64>,
    /// For how long it has been waiting.
    pub since: Duration,
    /// The pieces that it lacks, the first ones of them.
    pub pieces: Vec<AwaitedPiece>,
}

/// A piece that a read waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AwaitedPiece {
    /// Its number.
    pub piece: u32,
    /// Peers that have it.
    pub peers: u32,
    /// Of them, those that would serve us now.
    pub serving: u32,
    /// Blocks that are here.
    pub received: u32,
    /// Blocks in it.
    pub blocks: u32,
}

impl Swarm {
    /// What it looks like now.
    pub fn snapshot(&self, now: Instant) -> Snapshot {
        let peers = self.peers.iter().map(|(key, peer)| PeerSnapshot {
            key: *key,
            addr: peer.addr,
            direction: peer.direction,
            source: peer.source,
            id: peer.id,
            client: peer.extensions.client.clone(),
            has: peer.has_count,
            choking_us: peer.choking_us,
            we_interested: peer.we_interested,
            we_choke: peer.we_choke,
            interested_in_us: peer.interested_in_us,
            snubbed: peer.pipeline.snubbed,
            asked: peer.asks.len(),
            down_rate: peer.down.rate(now) as u64,
            up_rate: peer.up.rate(now) as u64,
            downloaded: peer.downloaded,
            uploaded: peer.uploaded,
            connected: now.saturating_duration_since(peer.connected),
        });
        let partial = self.pieces.partials().map(|(piece, partial)| PartialSnapshot {
            piece,
            received: partial.received,
            // A piece has at most 8,192 blocks.
            blocks: partial.slots.len() as u32,
        });
        let partial: Vec<PartialSnapshot> = partial.collect();
        Snapshot {
            stats: self.stats(now),
            on_demand: self.config.on_demand,
            paused: self.paused,
            serving: self.config.upload,
            peers: peers.collect(),
            have: self.pieces.bitfield(),
            skipped: self.pieces.skipped().clone(),
            // As many as there are pieces at most.
            to_fetch: self.pieces.to_begin() + partial.len() as u32,
            partial,
            readers: self.readers.windows().map(|window| ReaderSnapshot { window }).collect(),
            waits: self.waits(now),
        }
    }

    fn waits(&self, now: Instant) -> Vec<WaitSnapshot> {
        let mut waits: Vec<WaitSnapshot> = self
            .readers
            .waits(now)
            .map(|(bytes, since)| {
                let missing = self.config.lengths.pieces_in(&bytes).map(|piece| piece.get());
                let missing = missing.filter(|piece| !self.pieces.has(*piece)).take(MAX_AWAITED);
                WaitSnapshot { pieces: missing.map(|piece| self.awaited_piece(now, piece)).collect(), bytes, since }
            })
            .collect();
        waits.sort_by(|a, b| b.since.cmp(&a.since).then(a.bytes.start.cmp(&b.bytes.start)));
        waits
    }

    fn awaited_piece(&self, now: Instant, piece: u32) -> AwaitedPiece {
        let partial = self.pieces.partial(piece);
        let blocks = self.pieces.blocks_in(piece);
        let received = match self.pieces.state(piece) {
            State::Checking => blocks,
            _ => partial.map_or(0, |partial: &Partial| partial.received),
        };
        let serving = self.peers.values().filter(|peer| peer.serves(now, piece)).count();
        let peers = u32::from(self.pieces.availability.of(piece)) + self.pieces.availability.seeds();
        // Connections are counted in 16 bits.
        AwaitedPiece { piece, peers, serving: serving as u32, received, blocks }
    }
}
