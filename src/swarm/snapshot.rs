//! The state of a swarm at one moment, for people. Made on request only, because it costs a walk over peers, blocked
//! reads and unfinished pieces.

use std::net::SocketAddr;
use std::ops::Range;
use std::time::{Duration, Instant};

use fixedbitset::FixedBitSet;

use super::event::{Direction, PeerKey, PeerSource};
use super::machine::Swarm;
use super::pieces::{Partial, State};
use super::stats::Stats;
use crate::wire::PeerId;

/// Maximum number of pieces listed for one blocked read.
const MAX_AWAITED: usize = 64;

/// A swarm at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Rates and counts.
    pub stats: Stats,
    /// Fetch only what readers need.
    pub on_demand: bool,
    /// Nothing is fetched or served.
    pub paused: bool,
    /// Background fetching waits for its turn.
    pub queued: bool,
    /// Others are served.
    pub serving: bool,
    /// Every connection, the oldest first.
    pub peers: Vec<PeerSnapshot>,
    /// The pieces that we have.
    pub have: FixedBitSet,
    /// The unfinished pieces.
    pub partial: Vec<PartialSnapshot>,
    /// Pieces that background fetching skips.
    pub skipped: FixedBitSet,
    /// Number of pieces that background fetching may start or has started; 0 if we have every piece that is not
    /// skipped.
    pub to_fetch: u32,
    /// Open files that have been read.
    pub readers: Vec<ReaderSnapshot>,
    /// Blocked reads, the one that waits longest first.
    pub waits: Vec<WaitSnapshot>,
}

/// One connection.
#[derive(Clone, Debug)]
pub struct PeerSnapshot {
    /// The connection.
    pub key: PeerKey,
    /// Its remote end.
    pub addr: SocketAddr,
    /// The side that opened it.
    pub direction: Direction,
    /// Where its address came from.
    pub source: PeerSource,
    /// The id in its handshake.
    pub id: PeerId,
    /// The client and its version as its extension handshake states them, made printable.
    pub client: Option<String>,
    /// Number of pieces that the peer has.
    pub has: u32,
    /// The peer chokes us.
    pub choking_us: bool,
    /// We want pieces of the peer.
    pub we_interested: bool,
    /// We choke the peer.
    pub we_choke: bool,
    /// The peer wants pieces of ours.
    pub interested_in_us: bool,
    /// The peer has stopped answering requests.
    pub snubbed: bool,
    /// Number of blocks requested and not yet received.
    pub asked: usize,
    /// Bytes per second received from the peer.
    pub down_rate: u64,
    /// Bytes per second sent to the peer.
    pub up_rate: u64,
    /// Wanted bytes received from the peer.
    pub downloaded: u64,
    /// Bytes sent to the peer.
    pub uploaded: u64,
    /// Age of the connection.
    pub connected: Duration,
}

/// An unfinished piece.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PartialSnapshot {
    /// Its number.
    pub piece: u32,
    /// Number of blocks that are here.
    pub received: u32,
    /// Number of blocks in the piece.
    pub blocks: u32,
}

/// An open file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReaderSnapshot {
    /// The bytes that it will need soon, as bytes of the torrent.
    pub window: Range<u64>,
}

/// A blocked read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WaitSnapshot {
    /// The bytes read, as bytes of the torrent.
    pub bytes: Range<u64>,
    /// How long it has been waiting.
    pub since: Duration,
    /// The first of the missing pieces that it waits for.
    pub pieces: Vec<AwaitedPiece>,
}

/// A piece that a blocked read waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AwaitedPiece {
    /// Its number.
    pub piece: u32,
    /// Number of peers that have it.
    pub peers: u32,
    /// Number of those peers that would serve us now.
    pub serving: u32,
    /// Number of blocks that are here.
    pub received: u32,
    /// Number of blocks in the piece.
    pub blocks: u32,
}

impl Swarm {
    /// Returns the state of the swarm at this moment.
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
            queued: self.queued,
            serving: self.config.upload,
            peers: peers.collect(),
            have: self.pieces.bitfield(),
            skipped: self.pieces.skipped().clone(),
            // At most the number of pieces, which has 32 bits.
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
