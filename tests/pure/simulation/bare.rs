//! A bare client that knows every link: the floor of what a client can reach. It requests whole pieces, and each block at once
//! from the peer that will deliver it first, with nothing else on the links.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

use torrentfs::metainfo::{BLOCK_LEN, PieceIndex};
use torrentfs::swarm::{Event, PeerKey};
use torrentfs::wire::{Message, Request};

use super::{Nature, Next, World};

/// The bare client waits for the unchokes of peers for so long, or for so many of the shortest round trip, before its first
/// piece: more than a round trip of the slower peers is not worth waiting for.
const PATIENCE: Duration = Duration::from_millis(350);
const ROUND_TRIPS: f64 = 4.5;
/// Longer than any piece takes.
const LIMIT: Duration = Duration::from_secs(600);

/// The state of a bare client.
#[derive(Debug, Default)]
pub struct Bare {
    /// Peers that do not choke it, and their nodes.
    unchoked: BTreeMap<PeerKey, usize>,
    owed: BTreeSet<(u32, u32)>,
}

impl World {
    /// Adds a bare client, connects it, and waits for the unchokes of the peers that it begins with.
    pub fn add_bare(&mut self, peers: &[usize]) -> usize {
        let node = self.add(f64::INFINITY, |_| false, |_| {});
        self.nodes[node].bare = Some(Bare::default());
        let mut shortest = Duration::MAX;
        for peer in peers {
            let delay = self.nodes[*peer].link.as_ref().expect("a link").delay;
            shortest = shortest.min(2 * delay);
            self.at(self.now + 3 * delay, *peer, Next::Call(node, Self::addr(node)));
        }
        let end = self.now + PATIENCE.max(shortest.mul_f64(ROUND_TRIPS));
        let honest = peers.iter().filter(|peer| self.nodes[**peer].nature == Nature::Honest).count();
        while self.bare(node).unchoked.len() < honest && self.now < end {
            self.run(Duration::from_millis(1));
        }
        node
    }

    fn bare(&mut self, node: usize) -> &mut Bare {
        self.nodes[node].bare.as_mut().expect("a bare client")
    }

    pub(super) fn bare_event(&mut self, node: usize, event: Event) {
        if let Event::Message(key, Message::Unchoke) = event
            && let Some((peer, _)) = self.nodes[node].links.get(&key).copied()
            && self.nodes[peer].nature == Nature::Honest
        {
            self.bare(node).unchoked.insert(key, peer);
        }
    }

    pub(super) fn bare_block(&mut self, node: usize, request: Request) {
        self.bare(node).owed.remove(&(request.piece, request.begin));
    }

    /// Fetches the pieces that hold `bytes`. Returns how long it took.
    pub fn fetch_bare(&mut self, node: usize, bytes: Range<u64>) -> Duration {
        let (begin, lengths) = (self.now, self.lengths);
        let link = |peer: usize| self.nodes[peer].link.as_ref().expect("a link");
        let unchoked = &self.nodes[node].bare.as_ref().expect("a bare client").unchoked;
        let mut peers: Vec<(PeerKey, f64, f64)> = unchoked
            .iter()
            .map(|(key, peer)| (*key, 2.0 * link(*peer).delay.as_secs_f64(), 1.0 / link(*peer).rate))
            .collect();
        let mut asks = Vec::new();
        for piece in lengths.pieces_in(&bytes) {
            for request in blocks(piece, lengths.len_of(piece)) {
                let len = f64::from(request.length);
                let best = peers.iter_mut().min_by(|a, b| (a.1 + len * a.2).total_cmp(&(b.1 + len * b.2)));
                let Some((key, free, pace)) = best else { panic!("no peer has unchoked the bare client") };
                *free += len * *pace;
                asks.push((*key, request));
            }
        }
        for (key, request) in asks {
            self.bare(node).owed.insert((request.piece, request.begin));
            self.post(node, key, Message::Request(request));
        }
        let is_done = |world: &Self| world.nodes[node].bare.as_ref().is_some_and(|bare| bare.owed.is_empty());
        self.run_until(LIMIT, is_done) - begin
    }
}

fn blocks(piece: PieceIndex, len: u32) -> impl Iterator<Item = Request> {
    let piece = piece.get();
    (0..len).step_by(BLOCK_LEN as usize).map(move |begin| Request { piece, begin, length: BLOCK_LEN.min(len - begin) })
}
