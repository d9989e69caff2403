//! The 768-bit Diffie-Hellman exchange and the hashes of its result.

use std::sync::LazyLock;

use num_bigint::BigUint;
use rand::{Rng, RngExt};
use sha1::{Digest, Sha1};

use super::MseError;
use crate::metainfo::InfoHash;

/// Length of a public key and of the shared secret, in bytes.
pub(super) const KEY_LEN: usize = 96;

/// The prime of the specification, most significant word first.
const PRIME: [u32; KEY_LEN / 4] = [
    0xFFFF_FFFF,
    0xFFFF_FFFF,
    0xC90F_DAA2,
    0x2168_C234,
    0xC4C6_628B,
    0x80DC_1CD1,
    0x2902_4E08,
    0x8A67_CC74,
    0x020B_BEA6,
    0x3B13_9B22,
    0x514A_0879,
    0x8E34_04DD,
    0xEF95_19B3,
    0xCD3A_431B,
    0x302B_0A6D,
    0xF25F_1437,
    0x4FE1_356D,
    0x6D51_C245,
    0xE485_B576,
    0x625E_7EC6,
    0xF44C_42E9,
    0xA63A_3621,
    0x0000_0000,
    0x0009_0563,
];

static P: LazyLock<BigUint> = LazyLock::new(|| BigUint::new(PRIME.iter().rev().copied().collect()));

/// Our private key.
pub(super) struct PrivateKey(BigUint);

impl PrivateKey {
    /// Generates a key of 160 random bits, as the specification recommends.
    pub(super) fn generate(rng: &mut impl Rng) -> Self {
        Self(BigUint::from_bytes_be(&rng.random::<[u8; 20]>()))
    }

    /// Returns another key.
    pub(super) fn next(&self) -> Self {
        Self(&self.0 + 1_u8)
    }

    /// Returns our public key.
    pub(super) fn public(&self) -> [u8; KEY_LEN] {
        padded(&BigUint::from(2_u8).modpow(&self.0, &P))
    }

    /// Returns the shared secret. Rejects public keys that allow only a trivial secret.
    pub(super) fn secret(&self, theirs: &[u8; KEY_LEN]) -> Result<Secret, MseError> {
        let theirs = BigUint::from_bytes_be(theirs);
        let one = BigUint::from(1_u8);
        if theirs <= one || theirs >= &*P - &one {
            return Err(MseError::BadKey);
        }
        Ok(Secret(padded(&theirs.modpow(&self.0, &P))))
    }
}

/// Encodes `number`, which is below the prime, as big-endian bytes with leading zeros.
fn padded(number: &BigUint) -> [u8; KEY_LEN] {
    let bytes = number.to_bytes_be();
    let mut out = [0; KEY_LEN];
    out[KEY_LEN - bytes.len()..].copy_from_slice(&bytes);
    out
}

/// The shared secret S.
pub(super) struct Secret([u8; KEY_LEN]);

impl Secret {
    /// Returns whether it begins with a zero byte, as one in 256 does. rtorrent (libtorrent 0.13) leaves such bytes out, so
    /// that nobody agrees with it on the hashes and keys, and both sides wait.
    pub(super) fn is_short(&self) -> bool {
        self.0[0] == 0
    }

    /// Returns HASH('req1', S), by which the responder finds the end of the initiator's pad.
    pub(super) fn req1(&self) -> [u8; 20] {
        hash(&[b"req1", &self.0])
    }

    /// Returns HASH('req2', SKEY) ^ HASH('req3', S), which identifies the torrent to the responder only.
    pub(super) fn request(&self, skey: &InfoHash) -> [u8; 20] {
        let (req2, req3) = (hash(&[b"req2", &skey.0]), hash(&[b"req3", &self.0]));
        std::array::from_fn(|n| req2[n] ^ req3[n])
    }

    /// Returns the RC4 key of one direction: `keyA` for the initiator's stream, `keyB` for the responder's.
    pub(super) fn cipher_key(&self, label: &[u8; 4], skey: &InfoHash) -> [u8; 20] {
        hash(&[label, &self.0, &skey.0])
    }
}

fn hash(parts: &[&[u8]]) -> [u8; 20] {
    let mut sha1 = Sha1::new();
    parts.iter().for_each(|part| sha1.update(part));
    sha1.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    #[test]
    fn the_prime_follows_the_specification() {
        let hex = "FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74020BBEA63B139B22514A08798E3404DD\
                   EF9519B3CD3A431B302B0A6DF25F14374FE1356D6D51C245E485B576625E7EC6F44C42E9A63A36210000000000090563";
        assert_eq!(*P, BigUint::parse_bytes(hex.as_bytes(), 16).unwrap());
    }

    #[test]
    fn both_sides_get_one_secret() {
        let mut rng = StdRng::seed_from_u64(1);
        for _ in 0..4 {
            let (a, b) = (PrivateKey::generate(&mut rng), PrivateKey::generate(&mut rng));
            let (at_a, at_b) = (a.secret(&b.public()).unwrap(), b.secret(&a.public()).unwrap());
            assert_eq!(at_a.0, at_b.0);
            assert_ne!(at_a.0, a.secret(&a.public()).unwrap().0);
        }
    }

    #[test]
    fn small_numbers_keep_their_leading_zeros() {
        // 2^5 mod P.
        let five = PrivateKey(BigUint::from(5_u8));
        let mut expected = [0; KEY_LEN];
        expected[KEY_LEN - 1] = 32;
        assert_eq!(five.public(), expected);
        // (2^5)^5.
        let mut expected = [0; KEY_LEN];
        expected[KEY_LEN - 4..].copy_from_slice(&(1_u32 << 25).to_be_bytes());
        assert_eq!(five.secret(&five.public()).unwrap().0, expected);
    }

    #[test]
    fn keys_with_a_trivial_secret_are_rejected() {
        let ours = PrivateKey(BigUint::from(77_u8));
        let refused = |theirs: &BigUint| matches!(ours.secret(&padded(theirs)), Err(MseError::BadKey));
        let one = BigUint::from(1_u8);
        assert!(refused(&BigUint::from(0_u8)) && refused(&one) && refused(&(&*P - &one)) && refused(&P));
        assert!(matches!(ours.secret(&[0xFF; KEY_LEN]), Err(MseError::BadKey)));
        assert!(!refused(&BigUint::from(2_u8)) && !refused(&(&*P - &BigUint::from(2_u8))));
    }
}
