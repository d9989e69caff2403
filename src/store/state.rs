//! The state file: what a torrent had when it was last seen.
//!
//! ```text
//! 8  "tfstate1"
//! 8  "closed\r\n", or anything else: not closed cleanly. Outside the checksum, so that it can be taken away in place
//! 20 SHA-1 of all that follows
//! 20 info hash   8 total   4 piece length   8 clock of uses   8 last use   8 bytes had
//!    had: one bit a piece    proven: one bit a piece
//! 4  a piece had, in order: clock of uses less last use, clipped
//! 24 a file, or nothing at all: its stamp
//! ```
//!
//! Integers are big-endian, bits most significant first. Whatever does not read exactly so is no state file.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use fixedbitset::FixedBitSet;
use sha1::{Digest, Sha1};

use super::files::Stamp;
use crate::metainfo::{InfoHash, Lengths};

const MAGIC: &[u8; 8] = b"tfstate1";
const CLOSED: &[u8; 8] = b"closed\r\n";
const CLOSED_AT: u64 = 8;
const SUM_AT: usize = 16;
const BODY_AT: usize = 36;
/// A larger file is none of ours: the most pieces there can be, and some millions of files.
const MAX_LEN: u64 = 256 << 20;

/// What a state file says.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Saved {
    /// Written at a clean close, after everything was synced, and nothing was changed since.
    pub closed: bool,
    pub info_hash: InfoHash,
    pub lengths: Lengths,
    /// The cache's clock of uses at the time.
    pub clock: u64,
    /// The latest use of any piece.
    pub last_use: u64,
    /// Bytes of the pieces had.
    pub bytes: u64,
    pub have: FixedBitSet,
    /// Of those had, the ones whose hash had been checked.
    pub verified: FixedBitSet,
    /// When each piece had was last used, in order.
    pub uses: Vec<u64>,
    /// Of each file, or empty.
    pub stamps: Vec<Stamp>,
}

fn put_bits(bits: &FixedBitSet, out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(start + bits.len().div_ceil(8), 0);
    for one in bits.ones() {
        out[start + one / 8] |= 0x80 >> (one % 8);
    }
}

fn take_bits(from: &[u8], len: usize) -> FixedBitSet {
    let mut bits = FixedBitSet::with_capacity(len);
    for one in (0..len).filter(|one| from[one / 8] & (0x80 >> (one % 8)) != 0) {
        bits.insert(one);
    }
    bits
}

/// Cuts integers and slices off the front.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }
}

impl Saved {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(if self.closed { CLOSED } else { &[0; 8] });
        out.extend_from_slice(&[0; BODY_AT - SUM_AT]);
        out.extend_from_slice(&self.info_hash.0);
        out.extend_from_slice(&self.lengths.total().to_be_bytes());
        out.extend_from_slice(&self.lengths.piece_len().to_be_bytes());
        for number in [self.clock, self.last_use, self.bytes] {
            out.extend_from_slice(&number.to_be_bytes());
        }
        put_bits(&self.have, &mut out);
        put_bits(&self.verified, &mut out);
        for used in &self.uses {
            let age = u32::try_from(self.clock.saturating_sub(*used)).unwrap_or(u32::MAX);
            out.extend_from_slice(&age.to_be_bytes());
        }
        for stamp in &self.stamps {
            out.extend_from_slice(&stamp.size.to_be_bytes());
            out.extend_from_slice(&stamp.modified.to_be_bytes());
            out.extend_from_slice(&stamp.changed.to_be_bytes());
        }
        let sum = Sha1::digest(&out[BODY_AT..]);
        out[SUM_AT..BODY_AT].copy_from_slice(&sum);
        out
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let body = bytes.get(BODY_AT..)?;
        if &bytes[..8] != MAGIC || bytes[SUM_AT..BODY_AT] != Sha1::digest(body)[..] {
            return None;
        }
        let mut cursor = Cursor(body);
        let info_hash = InfoHash(cursor.array()?);
        let lengths = Lengths::new(cursor.u64()?, cursor.u32()?.into()).ok()?;
        let (clock, last_use, total) = (cursor.u64()?, cursor.u64()?, cursor.u64()?);
        let pieces = lengths.pieces() as usize;
        let have = take_bits(cursor.take(pieces.div_ceil(8))?, pieces);
        let mut verified = take_bits(cursor.take(pieces.div_ceil(8))?, pieces);
        verified.intersect_with(&have);
        let uses = have.ones().map(|_| cursor.u32().map(|age| clock.saturating_sub(age.into())));
        let uses = uses.collect::<Option<_>>()?;
        let mut stamps = Vec::new();
        while !cursor.0.is_empty() {
            let size = cursor.u64()?;
            let [modified, changed] = [cursor.u64()?.cast_signed(), cursor.u64()?.cast_signed()];
            stamps.push(Stamp { size, modified, changed });
        }
        let closed = &bytes[8..SUM_AT] == CLOSED;
        Some(Self { closed, info_hash, lengths, clock, last_use, bytes: total, have, verified, uses, stamps })
    }

    /// Reads a state file. `Ok(None)`: there is one, and it makes no sense.
    pub fn load(path: &Path) -> io::Result<Option<Self>> {
        let file = File::open(path)?;
        let mut bytes = Vec::new();
        file.take(MAX_LEN + 1).read_to_end(&mut bytes)?;
        Ok(if bytes.len() as u64 > MAX_LEN { None } else { Self::decode(&bytes) })
    }

    /// Replaces a state file in one step; `sync`: and has the disk keep it.
    pub fn save(&self, path: &Path, sync: bool) -> io::Result<()> {
        let new = path.with_extension("new");
        let mut file = File::create(&new)?;
        file.write_all(&self.encode())?;
        if sync {
            file.sync_all()?;
        }
        fs::rename(&new, path)?;
        if sync { sync_parent(path) } else { Ok(()) }
    }
}

/// Makes the disk know that the torrent is in use: what is had is a hint from now on, not to be believed unhashed.
/// Done in place, so that it works on a full disk; where even that fails the file goes.
pub(super) fn reopen(path: &Path) -> io::Result<()> {
    let in_place = || {
        let file = File::options().write(true).open(path)?;
        file.write_all_at(&[0; CLOSED.len()], CLOSED_AT)?;
        file.sync_data()
    };
    match in_place() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(_) => fs::remove_file(path).and_then(|()| sync_parent(path)),
        done => done,
    }
}

fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

/// For `fuzz/` alone: a file with a right mark and checksum makes no sense, or reads the same once it is written.
#[cfg(fuzzing)]
pub fn fuzz_state(bytes: &[u8]) {
    let mut bytes = bytes.to_vec();
    if bytes.len() >= BODY_AT {
        bytes[..CLOSED_AT as usize].copy_from_slice(MAGIC);
        let sum = Sha1::digest(&bytes[BODY_AT..]);
        bytes[SUM_AT..BODY_AT].copy_from_slice(&sum);
    }
    let Some(saved) = Saved::decode(&bytes) else { return };
    assert_eq!(Saved::decode(&saved.encode()), Some(saved));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn saved(pieces: u64, had: &[usize]) -> Saved {
        let lengths = Lengths::new(pieces * 10 - 3, 10).unwrap();
        let mut bits = FixedBitSet::with_capacity(pieces as usize);
        had.iter().for_each(|one| bits.insert(one % pieces as usize));
        Saved {
            closed: true,
            info_hash: InfoHash([7; 20]),
            lengths,
            clock: 1000,
            last_use: 999,
            bytes: 55,
            verified: bits.clone(),
            uses: bits.ones().map(|one| 1000 - one as u64 % 900).collect(),
            have: bits,
            stamps: vec![Stamp { size: 1, modified: -2, changed: i64::MAX }; 3],
        }
    }

    proptest! {
        #[test]
        fn reads_what_it_wrote(pieces in 1u64..200, had in prop::collection::vec(0usize..200, 0..50)) {
            let saved = saved(pieces, &had);
            prop_assert_eq!(Saved::decode(&saved.encode()), Some(saved));
        }

        #[test]
        fn damage_is_seen(at in 0usize..200, with in 1u8..=255, cut in 0usize..200) {
            let whole = saved(77, &[1, 5, 9]);
            let mut bytes = whole.encode();
            let at = at % bytes.len();
            bytes[at] ^= with;
            let unclean = Saved { closed: false, ..whole.clone() };
            let expected = (8..SUM_AT).contains(&at).then_some(unclean);
            prop_assert_eq!(Saved::decode(&bytes), expected);
            bytes[at] ^= with;
            bytes.truncate(cut.min(bytes.len() - 1));
            prop_assert_eq!(Saved::decode(&bytes), None);
        }

        #[test]
        fn garbage_is_none(mut bytes in prop::collection::vec(any::<u8>(), 0..300), sign in any::<bool>()) {
            if sign && bytes.len() >= BODY_AT {
                // Even with a right checksum.
                bytes[..8].copy_from_slice(MAGIC);
                let sum = Sha1::digest(&bytes[BODY_AT..]);
                bytes[SUM_AT..BODY_AT].copy_from_slice(&sum);
            }
            let _ = Saved::decode(&bytes);
        }
    }

    #[test]
    fn the_clean_mark_is_taken_away_in_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        reopen(&path).unwrap();
        let saved = saved(9, &[1]);
        saved.save(&path, true).unwrap();
        assert_eq!(Saved::load(&path).unwrap(), Some(saved.clone()));
        reopen(&path).unwrap();
        assert_eq!(Saved::load(&path).unwrap(), Some(Saved { closed: false, ..saved }));
    }
}
