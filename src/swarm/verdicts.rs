//! Checked and evicted pieces, and the consequences: announcing them, banning liars.

use std::net::SocketAddr;
use std::time::Instant;

use super::action::{Action, DisconnectReason};
use super::event::{PeerKey, PeerSource};
use super::machine::Swarm;
use super::pieces::{Contributor, State};
use crate::metainfo::BlockIndex;
use crate::wire::{Message, PeerId};

impl Swarm {
    /// Handles the result of checking a piece.
    pub(super) fn checked(&mut self, now: Instant, piece: u32, good: bool, bad: &[BlockIndex], digests: Vec<u64>) {
        if piece >= self.pieces.count() || self.pieces.state(piece) != State::Checking {
            return;
        }
        self.stale |= self.needed.binary_search(&piece).is_ok();
        let len = u64::from(self.pieces.len_of(piece));
        if !good {
            self.wasted += len;
            let Some(partial) = self.pieces.abandon(piece, &mut self.rng) else { return };
            let liars = self.blame.failed(piece, &partial, bad, digests);
            return self.condemn(now, piece, liars);
        }
        self.pieces.finish(piece);
        self.room = self.room.saturating_sub(len);
        self.announce_have(now, piece);
        if self.blame.suspects(piece) {
            let liars = self.blame.good(piece, &digests);
            self.condemn(now, piece, liars);
        }
        if self.pieces.complete() {
            if !std::mem::replace(&mut self.completed, true) {
                self.actions.push_back(Action::Completed);
            }
            let peers: Vec<PeerKey> = self.peers.keys().copied().collect();
            for key in peers {
                self.disconnect_if_useless(now, key);
            }
        }
        // There is room for another partial piece.
        self.work = true;
    }

    /// Announces that we have a piece to every peer but seeds; also to those that have it, so that they notice when we
    /// become a seed.
    fn announce_have(&mut self, now: Instant, piece: u32) {
        let peers: Vec<PeerKey> = self.peers.keys().copied().collect();
        for key in peers {
            let Some(peer) = self.peers.get_mut(&key) else { continue };
            let (has, seed) = (peer.has(piece), peer.is_seed());
            peer.wanted -= u32::from(has);
            if has {
                self.update_interest(now, key);
            }
            if !seed {
                self.send(now, key, Message::Have(piece));
            }
        }
    }

    /// Handles a piece that the store dropped.
    pub(super) fn evicted(&mut self, now: Instant, piece: u32) {
        if piece >= self.pieces.count() || !self.pieces.evict(piece, &mut self.rng) {
            return;
        }
        self.stale = true;
        let peers: Vec<PeerKey> = self.peers.iter().filter(|(_, peer)| peer.has(piece)).map(|(key, _)| *key).collect();
        for key in peers {
            if let Some(peer) = self.peers.get_mut(&key) {
                peer.wanted += 1;
                self.update_interest(now, key);
            }
        }
    }

    /// Draws the consequences for those who sent a bad piece.
    fn condemn(&mut self, now: Instant, piece: u32, liars: Vec<Contributor>) {
        let is_web_seed = |liar: &Contributor| self.addresses.source(liar.addr) == PeerSource::WebSeed;
        let (web_seeds, liars): (Vec<_>, Vec<_>) = liars.into_iter().partition(is_web_seed);
        if let Some(piece) = self.pieces.lengths.piece(piece) {
            let refuse = |liar: Contributor| Action::RefuseWebSeed(liar.addr, piece);
            self.actions.extend(web_seeds.into_iter().map(refuse));
        }
        self.ban(now, &liars);
    }

    /// Bans liars, and drops everything else that they sent and that has not been checked.
    fn ban(&mut self, now: Instant, liars: &[Contributor]) {
        // Anybody can copy the id of an honest peer, so it counts only together with the IP address.
        let same = |liar: &Contributor, addr: SocketAddr, id: PeerId| {
            addr == liar.addr || id == liar.id && addr.ip() == liar.addr.ip()
        };
        for liar in liars {
            let whole = self.addresses.ban(liar.addr, liar.id);
            let refused = if whole { SocketAddr::new(liar.addr.ip(), 0) } else { liar.addr };
            self.actions.push_back(Action::Ban(refused));
            let refused: Vec<PeerKey> = self
                .peers
                .iter()
                .filter(|(_, peer)| same(liar, peer.addr, peer.id) || whole && peer.addr.ip() == liar.addr.ip())
                .map(|(key, _)| *key)
                .collect();
            for key in refused {
                self.disconnect(now, key, DisconnectReason::Liar);
            }
        }
        if !liars.is_empty() {
            self.wasted += self.pieces.distrust(|by| liars.iter().any(|liar| same(liar, by.addr, by.id)));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use fixedbitset::FixedBitSet;

    use super::*;
    use crate::metainfo::{InfoHash, Lengths, PieceIndex};
    use crate::swarm::{Config, Direction, Event, NewPeer};

    /// Lets the only peer send pieces that all fail their hash. Returns what the swarm does about it.
    fn consequences(addr: SocketAddr, source: PeerSource) -> (Vec<Action>, PieceIndex) {
        let (mut now, key) = (Instant::now(), PeerKey(1));
        let lengths = Lengths::new(65_536, 16_384).unwrap();
        let config = Config::new(InfoHash([1; 20]), lengths, PeerId([2; 20]), 1);
        let mut swarm = Swarm::new(config, FixedBitSet::new(), now);
        swarm.handle(now, Event::PeersFound { addrs: vec![addr], source });
        swarm.handle(now, Event::Room(u64::MAX));
        swarm.handle(now, Event::Connected(NewPeer::new(key, addr, Direction::Outgoing, PeerId([3; 20]))));
        swarm.handle(now, Event::Message(key, Message::HaveAll));
        swarm.handle(now, Event::Message(key, Message::Unchoke));
        for _ in 0..100 {
            while let Some(action) = swarm.poll() {
                match action {
                    Action::Send(_, Message::Request(request)) => {
                        swarm.block(now, key, request.piece, request.begin, request.length);
                    }
                    Action::Check { piece, .. } => {
                        let (good, bad_blocks, digests) = (false, Vec::new(), vec![7]);
                        swarm.handle(now, Event::Checked { piece, good, bad_blocks, digests });
                        return (std::iter::from_fn(|| swarm.poll()).collect(), piece);
                    }
                    _ => {}
                }
            }
            now += Duration::from_millis(100);
            swarm.handle(now, Event::Tick);
        }
        panic!("no piece was requested");
    }

    #[test]
    fn a_peer_that_sends_a_bad_piece_is_banned() {
        let addr = SocketAddr::from(([10, 0, 0, 1], 5));
        let (actions, _) = consequences(addr, PeerSource::Tracker);
        assert!(actions.contains(&Action::Ban(addr)), "{actions:?}");
        assert!(actions.contains(&Action::Disconnect(PeerKey(1), DisconnectReason::Liar)), "{actions:?}");
    }

    #[test]
    fn of_a_web_seed_only_the_bad_piece_is_refused() {
        let addr = SocketAddr::from(([240, 0, 0, 1], 80));
        let (actions, piece) = consequences(addr, PeerSource::WebSeed);
        assert!(actions.contains(&Action::RefuseWebSeed(addr, piece)), "{actions:?}");
        let lost = |action: &Action| matches!(action, Action::Ban(_) | Action::Disconnect(..));
        assert!(!actions.iter().any(lost), "{actions:?}");
    }
}
