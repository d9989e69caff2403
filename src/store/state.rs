//! The state file: which pieces a torrent had when it was last saved.
//!
//! ```text
//! 8  "tfstate1"
//! 8  "closed\r\n" after a clean close, else anything. Not part of the checksum, so that it can be cleared in place
//! 20 SHA-1 of everything that follows
//! 20 info hash   8 total   4 piece length   8 counter of uses   8 latest use   8 bytes of the pieces
//!    present: one bit per piece    verified: one bit per piece
//! 4  per present piece, in order: counter of uses minus last use, saturated
//! 24 per file, or nothing at all: its stamp
//! ```
//!
//! Integers are big-endian, bits most significant first. A file that deviates from this form is invalid.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use fixedbitset::FixedBitSet;
use sha1::{Digest, Sha1};

use super::stamps::Stamp;
use crate::metainfo::{InfoHash, Lengths};
use crate::sys::file::{create_anew, open_regular};

/// Identifies a state file and its version.
const MAGIC: &[u8; 8] = b"tfstate1";
/// Mark of a clean close.
const CLOSED: &[u8; 8] = b"closed\r\n";
/// Offset of that mark.
const CLOSED_AT: u64 = 8;
/// Offset of the checksum.
const SUM_AT: usize = 16;
/// Offset of the part that the checksum covers.
const BODY_AT: usize = 36;
/// Length limit of a state file in bytes: the largest number of pieces and some millions of files fit.
const MAX_LEN: u64 = 256 << 20;

/// The content of a state file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Saved {
    /// Whether it was written at a clean close, after everything was synced, and nothing changed since.
    pub closed: bool,
    pub info_hash: InfoHash,
    pub lengths: Lengths,
    /// The cache's counter of uses at that time.
    pub clock: u64,
    /// Latest use of any piece.
    pub last_use: u64,
    /// Bytes of the pieces.
    pub bytes: u64,
    pub have: FixedBitSet,
    /// The pieces whose hash was checked.
    pub verified: FixedBitSet,
    /// Last use of each present piece, in order.
    pub uses: Vec<u64>,
    /// Stamp of each file, or empty.
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

/// Reads integers and slices off the front.
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

    /// Reads a state file. Returns `None` if its content is invalid.
    pub fn load(path: &Path) -> io::Result<Option<Self>> {
        let file = open_regular(path, File::options().read(true))?;
        let mut bytes = Vec::new();
        file.take(MAX_LEN + 1).read_to_end(&mut bytes)?;
        Ok(if bytes.len() as u64 > MAX_LEN { None } else { Self::decode(&bytes) })
    }

    /// Replaces a state file atomically; with `sync`, waits until it is on the disk.
    pub fn save(&self, path: &Path, sync: bool) -> io::Result<()> {
        let new = path.with_extension("new");
        let mut file = create_anew(&new)?;
        file.write_all(&self.encode())?;
        if sync {
            file.sync_all()?;
        }
        fs::rename(&new, path)?;
        if sync { sync_parent(path) } else { Ok(()) }
    }
}

/// Marks a state file as not cleanly closed, on the disk: from now on its pieces must be hashed before they are served.
/// Writes in place, which works on a full disk; if even that fails, removes the file.
pub(super) fn clear_closed_mark(path: &Path) -> io::Result<()> {
    let in_place = || {
        let file = open_regular(path, File::options().write(true))?;
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

/// For `fuzz/` only: with a valid magic and checksum, any content is invalid or decodes to itself after encoding.
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

    fn saved(pieces: u64, have: &[usize]) -> Saved {
        let lengths = Lengths::new(pieces * 10 - 3, 10).unwrap();
        let mut bits = FixedBitSet::with_capacity(pieces as usize);
        have.iter().for_each(|one| bits.insert(one % pieces as usize));
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
        fn a_state_decodes_to_itself(pieces in 1u64..200, have in prop::collection::vec(0usize..200, 0..50)) {
            let saved = saved(pieces, &have);
            prop_assert_eq!(Saved::decode(&saved.encode()), Some(saved));
        }

        #[test]
        fn damage_is_detected(at in 0usize..200, with in 1u8..=255, cut in 0usize..200) {
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
        fn random_bytes_are_invalid(mut bytes in prop::collection::vec(any::<u8>(), 0..300), sign in any::<bool>()) {
            if sign && bytes.len() >= BODY_AT {
                // Even with a valid checksum.
                bytes[..8].copy_from_slice(MAGIC);
                let sum = Sha1::digest(&bytes[BODY_AT..]);
                bytes[SUM_AT..BODY_AT].copy_from_slice(&sum);
            }
            let _ = Saved::decode(&bytes);
        }
    }

    #[test]
    fn the_mark_of_a_clean_close_is_cleared_in_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        clear_closed_mark(&path).unwrap();
        let saved = saved(9, &[1]);
        saved.save(&path, true).unwrap();
        assert_eq!(Saved::load(&path).unwrap(), Some(saved.clone()));
        clear_closed_mark(&path).unwrap();
        assert_eq!(Saved::load(&path).unwrap(), Some(Saved { closed: false, ..saved }));
    }
}
