//! Finding liars: records of pieces that failed their hash, kept until the same piece is good.
//!
//! If a failed piece has one contributor, that peer lied. If it has several, the sender and the digest of each block
//! are kept and compared with the good piece: the sender of a block with another digest lied. An honest peer that
//! shared a piece with a liar is never banned, because its digests match. After a failure the piece is requested from
//! one peer only, so that the next attempt is either good or has one contributor, and the search ends however many
//! liars there are.

use std::collections::{BTreeMap, BTreeSet};

use super::pieces::{Contributor, Partial, Slot};
use crate::metainfo::BlockIndex;

/// Maximum number of failed attempts kept of one piece.
const MAX_ATTEMPTS: usize = 4;
/// Maximum number of failed pieces kept.
const MAX_PIECES: usize = 256;

#[derive(Debug)]
struct Attempt {
    contributors: Vec<Contributor>,
    /// The sender of each block, as an index into `contributors`, and the block's digest.
    blocks: Vec<(u16, u64)>,
}

#[derive(Debug, Default)]
pub(super) struct Blame {
    failed: BTreeMap<u32, Vec<Attempt>>,
    /// Pieces whose last attempt failed.
    failing: BTreeSet<u32>,
}

impl Blame {
    /// Returns whether the last attempt at a piece failed.
    pub(super) fn suspects(&self, piece: u32) -> bool {
        self.failing.contains(&piece)
    }

    /// Returns whether no piece has failed since it was last good.
    pub(super) fn is_clear(&self) -> bool {
        self.failing.is_empty()
    }

    /// Records that a piece failed its hash. Returns the peers that are proven to have lied.
    pub(super) fn failed(
        &mut self,
        piece: u32,
        partial: &Partial,
        bad: &[BlockIndex],
        digests: Vec<u64>,
    ) -> Vec<Contributor> {
        let by = |slot: &Slot| match slot {
            Slot::Received(by) => *by,
            Slot::Free | Slot::Asked(..) => 0,
        };
        let mut liars = Vec::new();
        if let [only] = partial.contributors[..] {
            liars.push(only);
        }
        for block in bad {
            let slot = partial.slots.get(block.index()).map(by);
            liars.extend(slot.and_then(|by| partial.contributors.get(usize::from(by))));
        }
        if self.failing.len() < MAX_PIECES {
            self.failing.insert(piece);
        }
        let keep = liars.is_empty() && digests.len() == partial.slots.len();
        if keep && (self.failed.len() < MAX_PIECES || self.failed.contains_key(&piece)) {
            let attempts = self.failed.entry(piece).or_default();
            if attempts.len() < MAX_ATTEMPTS {
                let blocks = partial.slots.iter().map(by).zip(digests).collect();
                attempts.push(Attempt { contributors: partial.contributors.clone(), blocks });
            }
        }
        distinct(liars)
    }

    /// Records that a piece is good and has these digests. Returns the peers whose blocks differed in a failed attempt.
    pub(super) fn good(&mut self, piece: u32, digests: &[u64]) -> Vec<Contributor> {
        self.failing.remove(&piece);
        let mut liars = Vec::new();
        for attempt in self.failed.remove(&piece).unwrap_or_default() {
            if attempt.blocks.len() != digests.len() {
                continue;
            }
            for ((by, digest), good) in attempt.blocks.iter().zip(digests) {
                if digest != good {
                    liars.extend(attempt.contributors.get(usize::from(*by)));
                }
            }
        }
        distinct(liars)
    }

    pub(super) fn check(&self) {
        assert!(self.failed.len() <= MAX_PIECES && self.failing.len() <= MAX_PIECES);
        assert!(self.failed.values().all(|attempts| attempts.len() <= MAX_ATTEMPTS));
    }
}

fn distinct(mut contributors: Vec<Contributor>) -> Vec<Contributor> {
    contributors.sort_unstable_by_key(|contributor| contributor.peer);
    contributors.dedup_by_key(|contributor| contributor.peer);
    contributors
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::swarm::PeerKey;
    use crate::wire::PeerId;

    fn contributor(n: u8) -> Contributor {
        Contributor { peer: PeerKey(n.into()), addr: ([127, 0, 0, 1], n.into()).into(), id: PeerId([n; 20]) }
    }

    fn partial(by: &[u16]) -> Partial {
        let mut pieces = crate::swarm::pieces::Pieces::new(
            crate::metainfo::Lengths::new(65_536, 65_536).unwrap(),
            &fixedbitset::FixedBitSet::with_capacity(1),
        );
        pieces.begin(0, None, false);
        for (block, by) in by.iter().enumerate() {
            let id = crate::swarm::pieces::BlockId { piece: 0, block: block as u32 };
            pieces.receive(id, contributor(*by as u8), false);
        }
        pieces.finish(0).unwrap()
    }

    #[test]
    fn one_contributor_is_the_liar() {
        let mut blame = Blame::default();
        assert_eq!(blame.failed(0, &partial(&[7, 7, 7, 7]), &[], vec![1, 2, 3, 4]), [contributor(7)]);
        assert!(blame.suspects(0));
    }

    #[test]
    fn of_several_only_the_liar_is_found() {
        let mut blame = Blame::default();
        assert_eq!(blame.failed(0, &partial(&[1, 2, 3, 1]), &[], vec![1, 9, 3, 4]), []);
        assert_eq!(blame.good(0, &[1, 2, 3, 4]), [contributor(2)]);
        assert!(!blame.suspects(0));
        assert_eq!(blame.good(0, &[1, 2, 3, 4]), []);
    }
}
