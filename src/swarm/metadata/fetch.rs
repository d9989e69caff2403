//! The requests for a torrent's metadata: which piece is requested from which peer, and which bytes are accepted.
//!
//! A peer states the length of the metadata, and nothing proves it before the whole is hashed. So there is one attempt
//! per claimed length, served by the peers that claim it. If an attempt fails its hash and a single peer has served it,
//! that peer lied; if several have, they serve it again one at a time. So one honest peer is enough. A peer that states
//! no length serves alone ([`Probes`]), until a message of its names one.
//!
//! Bounded: the length, the number of attempts at a time and their bytes, the requests to a peer at a time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::FetchAction;
use super::probe::Probes;
use crate::metainfo::InfoHash;
use crate::swarm::event::PeerKey;
use crate::swarm::policy::Policy;
use crate::wire::METADATA_PIECE_LEN;

/// Maximum length of metadata, in bytes: enough for more than a million pieces.
const MAX_METADATA: u32 = 32 << 20;
/// Maximum number of attempts at a time: a few liars must not keep the right length out for long.
const MAX_ATTEMPTS: usize = 3;
/// Length in bytes above which there is one attempt at a time, so that liars cannot fill memory. Few torrents have more.
const LARGE: u32 = 4 << 20;

#[derive(Debug)]
struct Peer {
    /// The length that it claims.
    size: u32,
    /// It has corrected its claim, which it may do once.
    corrected: bool,
    /// Pieces requested from it and not yet received, and when.
    asked: Vec<(u32, Instant)>,
    /// Nothing is requested from it before this.
    paused: Option<Instant>,
}

/// Returns whether metadata can have this length.
fn is_possible(size: &u32) -> bool {
    (1..=MAX_METADATA).contains(size)
}

impl Peer {
    fn is_able(&self, now: Instant) -> bool {
        self.paused.is_none_or(|until| now >= until)
    }
}

#[derive(Debug)]
struct Attempt {
    begun: Instant,
    /// The pieces, and the peers that sent them.
    pieces: Vec<Option<(PeerKey, Bytes)>>,
    /// The attempt failed before, so that one peer at a time serves it.
    one_at_a_time: bool,
    /// With `one_at_a_time`, the peer whose turn it is.
    solo: Option<PeerKey>,
}

impl Attempt {
    fn new(now: Instant, size: u32, one_at_a_time: bool) -> Self {
        Self { begun: now, pieces: vec![None; size.div_ceil(METADATA_PIECE_LEN) as usize], one_at_a_time, solo: None }
    }
}

/// The metadata of one torrent, being fetched.
#[derive(Debug)]
pub(super) struct MetadataFetch {
    info_hash: InfoHash,
    policy: Arc<Policy>,
    peers: BTreeMap<PeerKey, Peer>,
    /// Peers that have not stated a length.
    probes: Probes,
    attempts: BTreeMap<u32, Attempt>,
    actions: VecDeque<FetchAction>,
}

impl MetadataFetch {
    pub(super) fn new(info_hash: InfoHash, policy: Arc<Policy>) -> Self {
        Self {
            info_hash,
            peers: BTreeMap::new(),
            probes: Probes::new(info_hash, policy.clone()),
            policy,
            attempts: BTreeMap::new(),
            actions: VecDeque::new(),
        }
    }

    /// Returns the next thing to do, until `None`.
    pub(super) fn poll(&mut self) -> Option<FetchAction> {
        self.actions.pop_front()
    }

    /// Returns the number of pieces received and of all pieces, of the attempt that has come furthest.
    pub(super) fn progress(&self) -> (usize, usize) {
        let received = |attempt: &Attempt| attempt.pieces.iter().flatten().count();
        let best = self.attempts.values().max_by_key(|attempt| received(attempt));
        best.map_or((0, 0), |best| (received(best), best.pieces.len()))
    }

    /// Records that a peer has metadata, of `size` bytes if it states that. An impossible length counts as none.
    pub(super) fn offered(&mut self, now: Instant, key: PeerKey, size: Option<u32>) {
        match size.filter(is_possible) {
            Some(size) => {
                self.probes.remove(key);
                self.peers.entry(key).or_insert(Peer { size, corrected: false, asked: Vec::new(), paused: None });
            }
            None if !self.peers.contains_key(&key) => self.probes.add(key),
            None => {}
        }
        self.request(now);
    }

    /// Forgets a peer whose connection is gone.
    pub(super) fn gone(&mut self, now: Instant, key: PeerKey) {
        self.probes.remove(key);
        if let Some(peer) = self.peers.remove(&key) {
            self.end_turn(now, peer.size, key);
        }
        self.request(now);
    }

    /// Records that a peer refused a piece. Returns the metadata if it turns out to have ended before that piece.
    pub(super) fn rejected(&mut self, now: Instant, key: PeerKey, piece: u32) -> Option<Bytes> {
        let whole = self.probes.rejected(now, key, piece);
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.asked.retain(|(asked, _)| *asked != piece);
            peer.paused = Some(now + self.policy.silence_timeout);
            let size = peer.size;
            self.end_turn(now, size, key);
        }
        self.request(now);
        whole
    }

    /// Takes a piece that arrived, and the length of the whole if the message names one. Returns the metadata if it is
    /// complete and its hash is right.
    pub(super) fn data(
        &mut self,
        now: Instant,
        key: PeerKey,
        piece: u32,
        total: Option<u32>,
        data: Bytes,
    ) -> Option<Bytes> {
        let total = total.filter(is_possible);
        if self.probes.contains(key) {
            match total {
                None => {
                    let whole = self.probes.data(key, piece, &data);
                    self.request(now);
                    return whole;
                }
                // Now its length is known, and it is a peer like any other.
                Some(size) => {
                    self.probes.remove(key);
                    let asked = vec![(piece, now)];
                    self.peers.insert(key, Peer { size, corrected: false, asked, paused: None });
                    self.choose(now);
                }
            }
        }
        self.correct(now, key, piece, total);
        let peer = self.peers.get_mut(&key)?;
        let asked = peer.asked.len();
        peer.asked.retain(|(number, _)| *number != piece);
        let size = peer.size;
        let begin = piece.checked_mul(METADATA_PIECE_LEN).filter(|begin| *begin < size);
        let len = begin.map(|begin| (size - begin).min(METADATA_PIECE_LEN) as usize);
        // Data that was not requested may be an answer to an earlier attempt.
        if asked == peer.asked.len() || total.is_some_and(|total| total != size) || len != Some(data.len()) {
            peer.paused = Some(now + self.policy.silence_timeout);
            self.end_turn(now, size, key);
            self.request(now);
            return None;
        }
        let attempt = self.attempts.get_mut(&size)?;
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
        self.request(now);
        None
    }

    /// Moves a peer whose answer names another length than its handshake did to the attempt for that length, once.
    fn correct(&mut self, now: Instant, key: PeerKey, piece: u32, total: Option<u32>) {
        let Some(total) = total else { return };
        let Some(peer) = self.peers.get_mut(&key) else { return };
        if peer.size == total || peer.corrected || !peer.asked.iter().any(|(asked, _)| *asked == piece) {
            return;
        }
        let before = std::mem::replace(&mut peer.size, total);
        peer.corrected = true;
        self.end_turn(now, before, key);
        self.choose(now);
    }

    /// Starts the attempt again with another peer, if it was this peer's turn.
    fn end_turn(&mut self, now: Instant, size: u32, key: PeerKey) {
        if let Some(attempt) = self.attempts.get_mut(&size).filter(|attempt| attempt.solo == Some(key)) {
            *attempt = Attempt::new(now, size, true);
        }
    }

    /// Starts attempts for the lengths that most peers claim. An attempt that no peer serves, or that takes too long,
    /// is replaced.
    fn choose(&mut self, now: Instant) {
        let useless_timeout = self.policy.useless_timeout();
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
            let crowded = size > LARGE && self.attempts.keys().any(|size| *size > LARGE);
            if crowded || self.attempts.len() == MAX_ATTEMPTS {
                let spent = |(size, attempt): &(&u32, &Attempt)| {
                    (**size > LARGE || !crowded)
                        && (!claims.contains_key(size)
                            || now.saturating_duration_since(attempt.begun) > useless_timeout)
                };
                let Some(spent) = self.attempts.iter().find(spent).map(|(size, _)| *size) else { continue };
                self.attempts.remove(&spent);
                for peer in self.peers.values_mut().filter(|peer| peer.size == spent) {
                    peer.asked.clear();
                    peer.paused = Some(now + useless_timeout);
                }
            }
            self.attempts.insert(size, Attempt::new(now, size, false));
        }
    }

    /// Checks the hash of an attempt that has all its pieces. If it is wrong, finds the liar or starts again.
    fn check(&mut self, now: Instant, size: u32) -> Option<Bytes> {
        let attempt = self.attempts.remove(&size)?;
        let mut whole = Vec::with_capacity(size as usize);
        let mut senders = BTreeSet::new();
        // Frees each piece once it is copied.
        for (key, data) in attempt.pieces.into_iter().flatten() {
            whole.extend_from_slice(&data);
            senders.insert(key);
        }
        if InfoHash::of(&whole) == self.info_hash {
            return Some(whole.into());
        }
        if let Some(liar) = senders.pop_first().filter(|_| senders.is_empty()) {
            self.peers.remove(&liar);
            self.actions.push_back(FetchAction::Ban(liar));
        }
        for peer in self.peers.values_mut().filter(|peer| peer.size == size) {
            peer.asked.clear();
        }
        if self.peers.values().any(|peer| peer.size == size) {
            self.attempts.insert(size, Attempt::new(now, size, true));
        }
        None
    }

    /// Does what time brings, about once a second. Returns the metadata if a silent peer has sent all of it.
    pub(super) fn tick(&mut self, now: Instant) -> Option<Bytes> {
        let whole = self.probes.silent(now);
        self.request(now);
        whole
    }

    /// Requests the missing pieces.
    fn request(&mut self, now: Instant) {
        let (lost_after, late_after) = (self.policy.snub_timeout(), self.policy.metadata_late);
        let pipeline = self.policy.metadata_pipeline as usize;
        let lost = |peer: &Peer| peer.asked.iter().any(|(_, at)| now.saturating_duration_since(*at) > lost_after);
        let silent: Vec<PeerKey> = self.peers.iter().filter(|(_, peer)| lost(peer)).map(|(key, _)| *key).collect();
        for key in silent {
            if let Some(peer) = self.peers.get_mut(&key) {
                peer.asked.clear();
                peer.paused = Some(now + self.policy.silence_timeout);
                let size = peer.size;
                self.end_turn(now, size, key);
            }
        }
        self.choose(now);
        self.actions.extend(self.probes.tick(now));
        for (size, attempt) in &mut self.attempts {
            let able = |peer: &Peer| peer.size == *size && peer.is_able(now);
            if attempt.one_at_a_time && attempt.solo.is_none() {
                attempt.solo = self.peers.iter().find(|(_, peer)| able(peer)).map(|(key, _)| *key);
            }
            let may_serve = |key: &PeerKey| if attempt.one_at_a_time { attempt.solo == Some(*key) } else { true };
            for piece in 0..attempt.pieces.len() as u32 {
                if attempt.pieces[piece as usize].is_some() {
                    continue;
                }
                let requests = self.peers.values().flat_map(|peer| &peer.asked).filter(|(asked, _)| *asked == piece);
                if requests
                    .map(|(_, at)| now.saturating_duration_since(*at))
                    .min()
                    .is_some_and(|youngest| youngest < late_after)
                {
                    continue;
                }
                let free =
                    |peer: &Peer| peer.asked.len() < pipeline && !peer.asked.iter().any(|(asked, _)| *asked == piece);
                let choice = self
                    .peers
                    .iter_mut()
                    .filter(|(key, peer)| may_serve(key) && able(peer) && free(peer))
                    .min_by_key(|(_, peer)| peer.asked.len());
                if let Some((key, peer)) = choice {
                    peer.asked.push((piece, now));
                    self.actions.push_back(FetchAction::Request(*key, piece));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    fn metadata(len: usize) -> Bytes {
        (0..len).map(|n| (n * 7 + n / 251) as u8).collect::<Vec<u8>>().into()
    }

    /// How a peer answers requests.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Manner {
        Honest,
        Liar,
        Refuses,
        Silent,
        /// Claims another length, and sends bytes that fit it.
        Longer,
    }

    /// Runs peers of these manners until the metadata is complete or the time is over; returns it and the banned peers.
    fn run(len: usize, manners: &[Manner], seconds: u32) -> (Option<Bytes>, Vec<usize>) {
        let truth = metadata(len);
        let mut fetch = MetadataFetch::new(InfoHash::of(&truth), Arc::default());
        let mut now = Instant::now();
        let mut banned = Vec::new();
        let claim = |manner: Manner| len + if manner == Manner::Longer { 5 } else { 0 };
        for (n, manner) in manners.iter().enumerate() {
            fetch.offered(now, PeerKey(n as u64), Some(claim(*manner) as u32));
        }
        for _ in 0..seconds {
            let mut asked = Vec::new();
            while let Some(action) = fetch.poll() {
                match action {
                    FetchAction::Request(key, piece) => asked.push((key, piece)),
                    FetchAction::Ban(key) => banned.push(key.0 as usize),
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
                if let Some(whole) = fetch.data(now, key, piece, Some(claim(manner) as u32), data.into()) {
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
    fn pieces_are_requested_from_all_peers_at_once_and_a_few_from_each() {
        let mut fetch = MetadataFetch::new(InfoHash([0; 20]), Arc::default());
        let now = Instant::now();
        for n in 0..2 {
            fetch.offered(now, PeerKey(n), Some(40 * METADATA_PIECE_LEN));
        }
        let asked: Vec<FetchAction> = std::iter::from_fn(|| fetch.poll()).collect();
        assert_eq!(asked.len(), 2 * Policy::default().metadata_pipeline as usize);
        for n in 0..2 {
            let of = asked.iter().filter(|ask| matches!(ask, FetchAction::Request(key, _) if key.0 == n));
            assert_eq!(of.count(), Policy::default().metadata_pipeline as usize);
        }
        assert_eq!(fetch.progress(), (0, 40));
    }

    #[test]
    fn an_impossible_length_counts_as_none() {
        let truth = metadata(30_000);
        for claim in [None, Some(0), Some(MAX_METADATA + 1)] {
            for total in [None, Some(0), Some(30_000)] {
                let (now, key) = (Instant::now(), PeerKey(7));
                let mut fetch = MetadataFetch::new(InfoHash::of(&truth), Arc::default());
                fetch.offered(now, key, claim);
                let (mut got, mut requests) = (None, 0);
                while let Some(FetchAction::Request(_, piece)) = fetch.poll() {
                    let begin = piece as usize * METADATA_PIECE_LEN as usize;
                    let data = truth.slice(begin..truth.len().min(begin + METADATA_PIECE_LEN as usize));
                    got = fetch.data(now, key, piece, total, data);
                    requests += 1;
                }
                assert_eq!((got.as_ref(), requests), (Some(&truth), 2), "{claim:?} in the handshake, {total:?} later");
            }
        }
    }

    #[test]
    fn a_wrong_length_in_the_handshake_is_corrected_once() {
        let truth = metadata(30_000);
        let (now, key) = (Instant::now(), PeerKey(7));
        let mut fetch = MetadataFetch::new(InfoHash::of(&truth), Arc::default());
        fetch.offered(now, key, Some(20_000));
        let mut got = None;
        while let Some(FetchAction::Request(_, piece)) = fetch.poll() {
            let begin = piece as usize * METADATA_PIECE_LEN as usize;
            let data = truth.slice(begin..truth.len().min(begin + METADATA_PIECE_LEN as usize));
            got = got.or(fetch.data(now, key, piece, Some(30_000), data));
        }
        assert_eq!(got, Some(truth));
        // A peer that changes its mind all the time is paused.
        let mut fetch = MetadataFetch::new(InfoHash([0; 20]), Arc::default());
        fetch.offered(now, key, Some(20_000));
        let mut answers = 0;
        while let Some(FetchAction::Request(_, piece)) = fetch.poll() {
            answers += 1;
            fetch.data(now, key, piece, Some(20_001 + answers), metadata(16_384));
        }
        assert!(answers < 10, "{answers} answers");
    }

    #[test]
    fn large_lengths_are_tried_one_at_a_time() {
        let mut fetch = MetadataFetch::new(InfoHash([0; 20]), Arc::default());
        let now = Instant::now();
        for n in 0..8 {
            fetch.offered(now, PeerKey(n), Some(MAX_METADATA - n as u32));
        }
        fetch.offered(now, PeerKey(99), Some(1000));
        let sizes: Vec<u32> = fetch.attempts.keys().copied().collect();
        assert!(sizes.len() == 2 && sizes[0] == 1000 && sizes[1] > LARGE, "{sizes:?}");
    }

    #[test]
    fn attempts_that_lead_nowhere_are_replaced() {
        use Manner::{Honest, Silent};
        let truth = metadata(1000);
        let mut fetch = MetadataFetch::new(InfoHash::of(&truth), Arc::default());
        let mut now = Instant::now();
        for n in 0..2 * MAX_ATTEMPTS as u64 {
            fetch.offered(now, PeerKey(n), Some(2000 + n as u32));
        }
        fetch.offered(now, PeerKey(99), Some(1000));
        assert_eq!(fetch.attempts.len(), MAX_ATTEMPTS);
        for _ in 0..300 {
            while let Some(action) = fetch.poll() {
                if action == FetchAction::Request(PeerKey(99), 0) {
                    assert_eq!(fetch.data(now, PeerKey(99), 0, Some(1000), truth.clone()), Some(truth));
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
        fn only_the_right_metadata_is_ever_accepted(
            steps in proptest::collection::vec((0u64..4, 0u32..6, 0usize..40_000, 0u8..5), 0..60),
        ) {
            let truth = metadata(20_000);
            let mut fetch = MetadataFetch::new(InfoHash::of(&truth), Arc::default());
            let mut now = Instant::now();
            for (key, piece, len, kind) in steps {
                now += Duration::from_millis(len as u64);
                let key = PeerKey(key);
                match kind {
                    0 => fetch.offered(now, key, [Some(20_000), Some(len as u32), None][len % 3]),
                    1 => fetch.gone(now, key),
                    2 => prop_assert!(fetch.rejected(now, key, piece).is_none_or(|whole| whole == truth)),
                    3 => prop_assert!(fetch.tick(now).is_none_or(|whole| whole == truth)),
                    _ => {
                        let begin = (piece as usize * METADATA_PIECE_LEN as usize).min(truth.len());
                        let data = truth.slice(begin..truth.len().min(begin + METADATA_PIECE_LEN as usize));
                        if let Some(whole) = fetch.data(now, key, piece, Some(20_000).filter(|_| len % 5 > 0), data) {
                            prop_assert_eq!(&whole, &truth);
                        }
                    }
                }
                while fetch.poll().is_some() {}
            }
        }
    }
}
