//! Fetching a torrent's metadata from peers (BEP 9): which piece is asked of whom, and what is believed.
//!
//! A peer says how long the metadata is, and nothing proves it before the whole is hashed. So there is one attempt for
//! each length that is claimed, served by those who claim it. When an attempt fails its hash and one peer alone has
//! served it, that peer lies; if several have, they serve it again one at a time. So one honest peer is enough.
//!
//! Sans-io, with time as an argument. Bounded: the length, the number of lengths, what is asked of a peer at a time.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::PeerKey;
use crate::metainfo::InfoHash;
use crate::wire::METADATA_PIECE_LEN;

/// The longest metadata fetched, in bytes: a million pieces and more.
pub const MAX_METADATA: u32 = 32 << 20;
/// The most lengths believed in at one time.
const MAX_ATTEMPTS: usize = 3;
/// Pieces asked of one peer at a time.
const PIPELINE: usize = 4;
/// After so long a piece is asked of another peer, too.
const LATE: Duration = Duration::from_secs(3);
/// A peer that owes a piece for so long is asked for nothing more.
const LOST: Duration = Duration::from_secs(20);
/// How long a peer that refuses is left alone.
const PAUSE: Duration = Duration::from_secs(10);
/// An attempt that takes longer makes place for another length that is claimed.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetadataAction {
    /// Ask this peer for that piece.
    Ask(PeerKey, u32),
    /// This peer sent what is not the torrent's: no more of it.
    Ban(PeerKey),
}

#[derive(Debug)]
struct Peer {
    size: u32,
    asked: Vec<(u32, Instant)>,
    paused: Option<Instant>,
}

impl Peer {
    fn is_able(&self, now: Instant) -> bool {
        self.paused.is_none_or(|until| now >= until)
    }
}

#[derive(Debug)]
struct Attempt {
    begun: Instant,
    pieces: Vec<Option<(PeerKey, Bytes)>>,
    /// It failed before: only this peer serves it now.
    solo: Option<PeerKey>,
    /// It failed before: one peer at a time.
    alone: bool,
}

impl Attempt {
    fn new(now: Instant, size: u32, alone: bool) -> Self {
        Self { begun: now, pieces: vec![None; size.div_ceil(METADATA_PIECE_LEN) as usize], solo: None, alone }
    }
}

/// The metadata of one torrent, on its way.
#[derive(Debug)]
pub struct MetadataFetch {
    info_hash: InfoHash,
    peers: BTreeMap<PeerKey, Peer>,
    attempts: BTreeMap<u32, Attempt>,
    actions: VecDeque<MetadataAction>,
}

impl MetadataFetch {
    /// Nothing is known yet but the hash.
    pub fn new(info_hash: InfoHash) -> Self {
        Self { info_hash, peers: BTreeMap::new(), attempts: BTreeMap::new(), actions: VecDeque::new() }
    }

    /// What to do next.
    pub fn poll(&mut self) -> Option<MetadataAction> {
        self.actions.pop_front()
    }

    /// Pieces had and pieces in all, of the attempt that has come furthest.
    pub fn progress(&self) -> (usize, usize) {
        let had = |attempt: &Attempt| attempt.pieces.iter().flatten().count();
        let best = self.attempts.values().max_by_key(|attempt| had(attempt));
        best.map_or((0, 0), |best| (had(best), best.pieces.len()))
    }

    /// A peer has metadata of so many bytes, it says. False: that is of no use.
    pub fn offered(&mut self, now: Instant, key: PeerKey, size: u32) -> bool {
        if size == 0 || size > MAX_METADATA {
            return false;
        }
        self.peers.entry(key).or_insert(Peer { size, asked: Vec::new(), paused: None });
        self.tick(now);
        true
    }

    /// The connection is gone.
    pub fn gone(&mut self, now: Instant, key: PeerKey) {
        let Some(peer) = self.peers.remove(&key) else { return };
        self.forget(now, peer.size, key);
        self.tick(now);
    }

    /// A peer refuses a piece.
    pub fn rejected(&mut self, now: Instant, key: PeerKey, piece: u32) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        peer.asked.retain(|(asked, _)| *asked != piece);
        peer.paused = Some(now + PAUSE);
        let size = peer.size;
        self.forget(now, size, key);
        self.tick(now);
    }

    /// A piece came. `Some`: the metadata is whole, and its hash is right.
    pub fn data(&mut self, now: Instant, key: PeerKey, piece: u32, total: u32, data: Bytes) -> Option<Bytes> {
        let peer = self.peers.get_mut(&key)?;
        let asked = peer.asked.len();
        peer.asked.retain(|(number, _)| *number != piece);
        let size = peer.size;
        let attempt = self.attempts.get_mut(&size)?;
        let begin = piece.checked_mul(METADATA_PIECE_LEN).filter(|begin| *begin < size);
        let len = begin.map(|begin| (size - begin).min(METADATA_PIECE_LEN) as usize);
        // What was not asked for may be an answer to an earlier attempt.
        if asked == peer.asked.len() || total != size || len != Some(data.len()) {
            peer.paused = Some(now + PAUSE);
            self.forget(now, size, key);
            self.tick(now);
            return None;
        }
        if attempt.solo.is_none_or(|solo| solo == key)
            && let Some(slot) = attempt.pieces.get_mut(piece as usize)
        {
            slot.get_or_insert((key, data));
        }
        if attempt.pieces.iter().all(Option::is_some)
            && let Some(whole) = self.check(now, size)
        {
            return Some(whole);
        }
        self.tick(now);
        None
    }

    /// A peer that serves alone and cannot go on makes place for the next.
    fn forget(&mut self, now: Instant, size: u32, key: PeerKey) {
        if let Some(attempt) = self.attempts.get_mut(&size).filter(|attempt| attempt.solo == Some(key)) {
            *attempt = Attempt::new(now, size, true);
        }
    }

    /// Which lengths are tried: those that most peers claim. One that nobody serves, or not to its end, makes place.
    fn choose(&mut self, now: Instant) {
        let mut claims: BTreeMap<u32, usize> = BTreeMap::new();
        for peer in self.peers.values().filter(|peer| peer.is_able(now)) {
            *claims.entry(peer.size).or_default() += 1;
        }
        let mut waiting: Vec<(usize, u32)> = claims
            .iter()
            .filter(|(size, _)| !self.attempts.contains_key(size))
            .map(|(size, count)| (*count, *size))
            .collect();
        waiting.sort_unstable();
        while let Some((_, size)) = waiting.pop() {
            if self.attempts.len() == MAX_ATTEMPTS {
                let spent = |(size, attempt): &(&u32, &Attempt)| {
                    !claims.contains_key(size) || now.saturating_duration_since(attempt.begun) > PATIENCE
                };
                let Some(spent) = self.attempts.iter().find(spent).map(|(size, _)| *size) else { return };
                self.attempts.remove(&spent);
                for peer in self.peers.values_mut().filter(|peer| peer.size == spent) {
                    peer.asked.clear();
                    peer.paused = Some(now + PATIENCE);
                }
            }
            self.attempts.insert(size, Attempt::new(now, size, false));
        }
    }

    fn check(&mut self, now: Instant, size: u32) -> Option<Bytes> {
        let attempt = self.attempts.remove(&size)?;
        let parts: Vec<(PeerKey, Bytes)> = attempt.pieces.into_iter().flatten().collect();
        let whole: Bytes = parts.iter().flat_map(|(_, data)| data.iter().copied()).collect::<Vec<u8>>().into();
        if InfoHash::of(&whole) == self.info_hash {
            return Some(whole);
        }
        let first = parts.first().map(|(key, _)| *key)?;
        if parts.iter().all(|(key, _)| *key == first) {
            self.peers.remove(&first);
            self.actions.push_back(MetadataAction::Ban(first));
        }
        for peer in self.peers.values_mut().filter(|peer| peer.size == size) {
            peer.asked.clear();
        }
        if self.peers.values().any(|peer| peer.size == size) {
            self.attempts.insert(size, Attempt::new(now, size, true));
        }
        None
    }

    /// Asks for what is missing. Call it about once a second, too, for silence is no event.
    pub fn tick(&mut self, now: Instant) {
        let lost = |peer: &Peer| peer.asked.iter().any(|(_, at)| now.saturating_duration_since(*at) > LOST);
        let silent: Vec<PeerKey> = self.peers.iter().filter(|(_, peer)| lost(peer)).map(|(key, _)| *key).collect();
        for key in silent {
            if let Some(peer) = self.peers.get_mut(&key) {
                peer.asked.clear();
                peer.paused = Some(now + PAUSE);
                let size = peer.size;
                self.forget(now, size, key);
            }
        }
        self.choose(now);
        for (size, attempt) in &mut self.attempts {
            let able = |peer: &Peer| peer.size == *size && peer.is_able(now);
            if attempt.alone && attempt.solo.is_none() {
                attempt.solo = self.peers.iter().find(|(_, peer)| able(peer)).map(|(key, _)| *key);
            }
            let may_serve = |key: &PeerKey| if attempt.alone { attempt.solo == Some(*key) } else { true };
            for piece in 0..attempt.pieces.len() as u32 {
                if attempt.pieces[piece as usize].is_some() {
                    continue;
                }
                let asks = self.peers.values().flat_map(|peer| &peer.asked).filter(|(asked, _)| *asked == piece);
                if asks.map(|(_, at)| now.saturating_duration_since(*at)).min().is_some_and(|youngest| youngest < LATE)
                {
                    continue;
                }
                let free =
                    |peer: &Peer| peer.asked.len() < PIPELINE && !peer.asked.iter().any(|(asked, _)| *asked == piece);
                let choice = self
                    .peers
                    .iter_mut()
                    .filter(|(key, peer)| may_serve(key) && able(peer) && free(peer))
                    .min_by_key(|(_, peer)| peer.asked.len());
                if let Some((key, peer)) = choice {
                    peer.asked.push((piece, now));
                    self.actions.push_back(MetadataAction::Ask(*key, piece));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn metadata(len: usize) -> Bytes {
        (0..len).map(|n| (n * 7 + n / 251) as u8).collect::<Vec<u8>>().into()
    }

    /// What a peer does when asked.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Manner {
        Honest,
        Liar,
        Refuses,
        Silent,
        /// Claims another length, with bytes to match.
        Longer,
    }

    /// Runs peers of these manners until the metadata is had or the time is over; the banned.
    fn run(len: usize, manners: &[Manner], seconds: u32) -> (Option<Bytes>, Vec<usize>) {
        let truth = metadata(len);
        let mut fetch = MetadataFetch::new(InfoHash::of(&truth));
        let mut now = Instant::now();
        let mut banned = Vec::new();
        let claim = |manner: Manner| len + if manner == Manner::Longer { 5 } else { 0 };
        for (n, manner) in manners.iter().enumerate() {
            assert!(fetch.offered(now, PeerKey(n as u64), claim(*manner) as u32));
        }
        for _ in 0..seconds {
            let mut asked = Vec::new();
            while let Some(action) = fetch.poll() {
                match action {
                    MetadataAction::Ask(key, piece) => asked.push((key, piece)),
                    MetadataAction::Ban(key) => banned.push(key.0 as usize),
                }
            }
            for (key, piece) in asked {
                let manner = manners[key.0 as usize];
                let whole = if manner == Manner::Longer { metadata(claim(manner)) } else { truth.clone() };
                let begin = piece as usize * METADATA_PIECE_LEN as usize;
                let mut data = whole[begin..whole.len().min(begin + METADATA_PIECE_LEN as usize)].to_vec();
                match manner {
                    Manner::Silent => continue,
                    Manner::Refuses => {
                        fetch.rejected(now, key, piece);
                        continue;
                    }
                    Manner::Liar => data[0] ^= 1,
                    Manner::Honest | Manner::Longer => {}
                }
                if let Some(whole) = fetch.data(now, key, piece, claim(manner) as u32, data.into()) {
                    return (Some(whole), banned);
                }
            }
            now += Duration::from_secs(1);
            fetch.tick(now);
        }
        (None, banned)
    }

    #[test]
    fn one_honest_peer_is_enough() {
        use Manner::{Honest, Liar, Longer, Refuses, Silent};
        for manners in [
            vec![Honest],
            vec![Liar, Honest],
            vec![Liar, Liar, Honest, Liar],
            vec![Refuses, Silent, Honest],
            vec![Longer, Longer, Silent, Liar, Refuses, Honest],
        ] {
            let (got, banned) = run(100_000, &manners, 600);
            assert_eq!(got, Some(metadata(100_000)), "{manners:?}");
            assert!(banned.iter().all(|n| matches!(manners[*n], Liar | Longer)), "{manners:?}: {banned:?}");
        }
        assert_eq!(run(100_000, &[Liar, Silent], 100), (None, vec![0]));
    }

    #[test]
    fn pieces_are_asked_of_all_at_once_and_of_each_a_few() {
        let mut fetch = MetadataFetch::new(InfoHash([0; 20]));
        let now = Instant::now();
        for n in 0..2 {
            fetch.offered(now, PeerKey(n), 40 * METADATA_PIECE_LEN);
        }
        let asked: Vec<MetadataAction> = std::iter::from_fn(|| fetch.poll()).collect();
        assert_eq!(asked.len(), 2 * PIPELINE);
        for n in 0..2 {
            let of = asked.iter().filter(|ask| matches!(ask, MetadataAction::Ask(key, _) if key.0 == n));
            assert_eq!(of.count(), PIPELINE);
        }
        assert_eq!(fetch.progress(), (0, 40));
    }

    #[test]
    fn absurd_lengths_are_refused() {
        let mut fetch = MetadataFetch::new(InfoHash([0; 20]));
        let now = Instant::now();
        assert!(!fetch.offered(now, PeerKey(0), 0) && !fetch.offered(now, PeerKey(0), MAX_METADATA + 1));
    }

    #[test]
    fn lengths_that_lead_nowhere_make_place() {
        use Manner::{Honest, Silent};
        let truth = metadata(1000);
        let mut fetch = MetadataFetch::new(InfoHash::of(&truth));
        let mut now = Instant::now();
        for n in 0..2 * MAX_ATTEMPTS as u64 {
            fetch.offered(now, PeerKey(n), 2000 + n as u32);
        }
        fetch.offered(now, PeerKey(99), 1000);
        assert_eq!(fetch.attempts.len(), MAX_ATTEMPTS);
        for _ in 0..300 {
            while let Some(action) = fetch.poll() {
                if action == MetadataAction::Ask(PeerKey(99), 0) {
                    assert_eq!(fetch.data(now, PeerKey(99), 0, 1000, truth.clone()), Some(truth));
                    return assert!(run(50_000, &[Silent, Honest], 60).0.is_some());
                }
            }
            now += Duration::from_secs(1);
            fetch.tick(now);
        }
        panic!("the honest peer was never asked");
    }

    proptest! {
        #[test]
        fn whatever_comes_nothing_but_the_truth_is_believed(
            steps in proptest::collection::vec((0u64..4, 0u32..6, 0usize..40_000, 0u8..5), 0..60),
        ) {
            let truth = metadata(20_000);
            let mut fetch = MetadataFetch::new(InfoHash::of(&truth));
            let mut now = Instant::now();
            for (key, piece, len, kind) in steps {
                now += Duration::from_millis(len as u64);
                let key = PeerKey(key);
                match kind {
                    0 => { fetch.offered(now, key, if len % 2 == 0 { 20_000 } else { len as u32 }); }
                    1 => fetch.gone(now, key),
                    2 => fetch.rejected(now, key, piece),
                    3 => fetch.tick(now),
                    _ => {
                        let begin = (piece as usize * METADATA_PIECE_LEN as usize).min(truth.len());
                        let data = truth.slice(begin..truth.len().min(begin + METADATA_PIECE_LEN as usize));
                        if let Some(whole) = fetch.data(now, key, piece, 20_000, data) {
                            prop_assert_eq!(&whole, &truth);
                        }
                    }
                }
                while fetch.poll().is_some() {}
            }
        }
    }
}
