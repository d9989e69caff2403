//! Metadata from peers that do not state its length: no `metadata_size` in the extension handshake (BEP 9 wants it), and
//! no `total_size` in the answers.
//!
//! Each is asked for the first piece, because its answer may name the length after all, or be the whole. If it does not,
//! one peer at a time goes on: piece after piece, until one is short or refused. Then the hash decides.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::FetchAction;
use crate::metainfo::InfoHash;
use crate::swarm::event::PeerKey;
use crate::swarm::policy::Policy;
use crate::wire::METADATA_PIECE_LEN;

/// Maximum length of metadata fetched in this way, in bytes: enough for every torrent but a few, and little memory.
const MAX_LEN: usize = 4 << 20;

#[derive(Debug, Default)]
struct Peer {
    /// The pieces that it has sent, from the first on.
    received: Vec<u8>,
    /// The piece requested from it, and when.
    asked: Option<(u32, Instant)>,
    /// Nothing is requested from it before this.
    paused: Option<Instant>,
}

impl Peer {
    /// Returns the next piece to request.
    fn next(&self) -> u32 {
        // Bounded by `MAX_LEN`.
        (self.received.len() / METADATA_PIECE_LEN as usize) as u32
    }

    /// Starts over, after a pause.
    fn pause(&mut self, until: Instant) {
        *self = Self { paused: Some(until), ..Self::default() };
    }
}

/// The peers that have not stated a length.
#[derive(Debug)]
pub(super) struct Probes {
    info_hash: InfoHash,
    policy: Arc<Policy>,
    peers: BTreeMap<PeerKey, Peer>,
    /// The peer that is asked for more than the first piece.
    turn: Option<PeerKey>,
    /// Peers that sent something else than the metadata.
    liars: Vec<PeerKey>,
}

impl Probes {
    pub(super) fn new(info_hash: InfoHash, policy: Arc<Policy>) -> Self {
        Self { info_hash, policy, peers: BTreeMap::new(), turn: None, liars: Vec::new() }
    }

    pub(super) fn contains(&self, key: PeerKey) -> bool {
        self.peers.contains_key(&key)
    }

    pub(super) fn add(&mut self, key: PeerKey) {
        self.peers.entry(key).or_default();
    }

    pub(super) fn remove(&mut self, key: PeerKey) {
        self.peers.remove(&key);
        self.end_turn(key);
    }

    fn end_turn(&mut self, key: PeerKey) {
        self.turn = self.turn.filter(|turn| *turn != key);
    }

    /// Takes a piece that arrived. Returns the metadata if it is complete.
    pub(super) fn data(&mut self, key: PeerKey, piece: u32, data: &Bytes) -> Option<Bytes> {
        let peer = self.peers.get_mut(&key)?;
        // Data that was not requested may be an answer to an earlier request.
        peer.asked.take_if(|(asked, _)| *asked == piece)?;
        peer.received.extend_from_slice(data);
        if data.len() == METADATA_PIECE_LEN as usize && peer.received.len() < MAX_LEN {
            return None;
        }
        let whole = self.check(key);
        if whole.is_none() {
            self.liars.push(key);
        }
        self.remove(key);
        whole
    }

    /// Records that a peer refused a piece. Returns the metadata if it ended with the piece before.
    pub(super) fn rejected(&mut self, now: Instant, key: PeerKey, piece: u32) -> Option<Bytes> {
        self.peers.get_mut(&key)?.asked.take_if(|(asked, _)| *asked == piece)?;
        let whole = self.check(key);
        self.pause(now, key);
        whole
    }

    fn pause(&mut self, now: Instant, key: PeerKey) {
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.pause(now + self.policy.silence_timeout);
        }
        self.end_turn(key);
    }

    /// Returns what a peer has sent if that is the metadata.
    fn check(&mut self, key: PeerKey) -> Option<Bytes> {
        let received = &mut self.peers.get_mut(&key)?.received;
        (InfoHash::of(received) == self.info_hash).then(|| std::mem::take(received).into())
    }

    /// Returns the metadata if a peer has sent all of it and is silent since it was asked for more.
    pub(super) fn silent(&mut self, now: Instant) -> Option<Bytes> {
        let lost_after = self.policy.snub_timeout();
        let lost = |peer: &Peer| peer.asked.is_some_and(|(_, at)| now.saturating_duration_since(at) > lost_after);
        let silent: Vec<PeerKey> = self.peers.iter().filter(|(_, peer)| lost(peer)).map(|(key, _)| *key).collect();
        let mut whole = None;
        for key in silent {
            whole = whole.or(self.check(key));
            self.pause(now, key);
        }
        whole
    }

    /// Returns what is due: the next request to each peer, and the peers that lied.
    pub(super) fn tick(&mut self, now: Instant) -> Vec<FetchAction> {
        let mut due: Vec<FetchAction> = self.liars.drain(..).map(FetchAction::Ban).collect();
        for (key, peer) in &mut self.peers {
            if peer.asked.is_some() || peer.paused.is_some_and(|until| now < until) {
                continue;
            }
            let piece = peer.next();
            if piece > 0 && *self.turn.get_or_insert(*key) != *key {
                continue;
            }
            peer.asked = Some((piece, now));
            due.push(FetchAction::Request(*key, piece));
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const PIECE: usize = METADATA_PIECE_LEN as usize;

    fn metadata(len: usize) -> Bytes {
        (0..len).map(|n| (n * 7 + n / 251) as u8).collect::<Vec<u8>>().into()
    }

    /// Behaviour of a peer that states no length.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Manner {
        Honest,
        /// It does not answer requests beyond the end, instead of refusing them.
        Curt,
        Liar,
        /// It sends whole pieces without end.
        Endless,
        Refuses,
        Silent,
    }

    /// Runs peers of these manners for some time. Returns the metadata and the banned peers.
    fn run(len: usize, manners: &[Manner], seconds: u32) -> (Option<Bytes>, Vec<usize>) {
        let truth = metadata(len);
        let mut probes = Probes::new(InfoHash::of(&truth), Arc::default());
        let (mut now, mut banned) = (Instant::now(), Vec::new());
        (0..manners.len()).for_each(|n| probes.add(PeerKey(n as u64)));
        for _ in 0..seconds * 10 {
            if let Some(whole) = probes.silent(now) {
                return (Some(whole), banned);
            }
            for action in probes.tick(now) {
                let (key, piece) = match action {
                    FetchAction::Request(key, piece) => (key, piece),
                    FetchAction::Ban(key) => {
                        banned.push(key.0 as usize);
                        continue;
                    }
                };
                let manner = manners[key.0 as usize];
                let begin = piece as usize * PIECE;
                let data = match manner {
                    Manner::Silent => continue,
                    Manner::Curt if begin >= len => continue,
                    Manner::Endless => Bytes::from(vec![0; PIECE]),
                    _ if manner == Manner::Refuses || begin >= len => {
                        if let Some(whole) = probes.rejected(now, key, piece) {
                            return (Some(whole), banned);
                        }
                        continue;
                    }
                    Manner::Liar => Bytes::from(vec![0; (len - begin).min(PIECE)]),
                    _ => truth.slice(begin..len.min(begin + PIECE)),
                };
                if let Some(whole) = probes.data(key, piece, &data) {
                    return (Some(whole), banned);
                }
            }
            let held: usize = probes.peers.values().map(|peer| peer.received.len()).sum();
            assert!(held <= MAX_LEN + manners.len() * PIECE, "{held} bytes are held");
            now += Duration::from_millis(100);
        }
        (None, banned)
    }

    #[test]
    fn one_honest_peer_is_enough() {
        use Manner::{Curt, Endless, Honest, Liar, Refuses, Silent};
        for len in [1, 500, PIECE - 1, PIECE, PIECE + 1, 5 * PIECE, 9 * PIECE + 77] {
            for manners in [
                vec![Honest],
                vec![Liar, Honest],
                vec![Endless, Silent, Refuses, Honest],
                vec![Liar, Endless, Liar, Silent, Honest],
            ] {
                let (got, banned) = run(len, &manners, 300);
                assert_eq!(got.as_ref().map(Bytes::len), Some(len), "{manners:?}");
                assert!(banned.iter().all(|n| matches!(manners[*n], Liar | Endless)), "{manners:?}: {banned:?}");
            }
            assert!(run(len, &[Curt], 60).0.is_some(), "{len} bytes of a peer that is silent beyond the end");
        }
        assert_eq!(run(PIECE + 1, &[Liar, Endless], 60), (None, vec![0, 1]));
    }

    #[test]
    fn a_peer_that_gets_the_metadata_later_is_asked_again() {
        let truth = metadata(3 * PIECE + 5);
        let mut probes = Probes::new(InfoHash::of(&truth), Arc::default());
        let (mut now, key) = (Instant::now(), PeerKey(1));
        probes.add(key);
        assert_eq!(probes.tick(now), [FetchAction::Request(key, 0)]);
        assert_eq!(probes.tick(now), []);
        assert_eq!(probes.rejected(now, key, 0), None);
        assert_eq!(probes.tick(now), []);
        now += Policy::default().silence_timeout;
        for piece in 0..3 {
            assert_eq!(probes.tick(now), [FetchAction::Request(key, piece)]);
            let begin = piece as usize * PIECE;
            assert_eq!(probes.data(key, piece, &truth.slice(begin..begin + PIECE)), None);
        }
        assert_eq!(probes.tick(now), [FetchAction::Request(key, 3)]);
        assert_eq!(probes.data(key, 3, &truth.slice(3 * PIECE..)), Some(truth));
    }
}
