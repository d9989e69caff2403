//! The canonical allowed-fast set of a peer (BEP 6). All peers offer the same set, so a client gains nothing from more
//! connections.

use std::net::Ipv4Addr;

use sha1::{Digest, Sha1};

use crate::metainfo::InfoHash;

/// Returns up to `count` pieces that the peer at `ip` may request while choked, in the order in which to offer them. The
/// specification defines no set for IPv6.
pub fn allowed_fast_set(ip: Ipv4Addr, info_hash: &InfoHash, pieces: u32, count: u8) -> Vec<u32> {
    let count = usize::from(count);
    // The loop below ends only after it has drawn `count` different pieces.
    if pieces as usize <= count {
        return (0..pieces).collect();
    }
    let [a, b, c, _] = ip.octets();
    let mut seed = [0; 24];
    seed[..3].copy_from_slice(&[a, b, c]);
    seed[4..].copy_from_slice(&info_hash.0);
    let mut hash: [u8; 20] = Sha1::digest(seed).into();
    let mut allowed = Vec::with_capacity(count);
    loop {
        for word in hash.as_chunks::<4>().0 {
            if allowed.len() == count {
                return allowed;
            }
            let piece = u32::from_be_bytes(*word) % pieces;
            if !allowed.contains(&piece) {
                allowed.push(piece);
            }
        }
        hash = Sha1::digest(hash).into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vectors_of_bep_6() {
        let set = |count| allowed_fast_set(Ipv4Addr::new(80, 4, 4, 200), &InfoHash([0xaa; 20]), 1313, count);
        assert_eq!(set(7), [1059, 431, 808, 1217, 287, 376, 1188]);
        assert_eq!(set(9), [1059, 431, 808, 1217, 287, 376, 1188, 353, 508]);
    }

    #[test]
    fn neighbours_share_a_set() {
        let set = |last| allowed_fast_set(Ipv4Addr::new(80, 4, 4, last), &InfoHash([1; 20]), 999, 10);
        assert_eq!(set(1), set(254));
    }

    #[test]
    fn small_torrents_have_small_sets() {
        let set = |pieces, count| allowed_fast_set(Ipv4Addr::LOCALHOST, &InfoHash([1; 20]), pieces, count);
        assert_eq!(set(0, 10), [0u32; 0]);
        assert_eq!(set(3, 10), [0, 1, 2]);
        assert_eq!(set(100, 0), [0u32; 0]);
        let mut all_but_one = set(11, 10);
        all_but_one.sort_unstable();
        all_but_one.dedup();
        assert_eq!(all_but_one.len(), 10);
        assert!(all_but_one.iter().all(|piece| *piece < 11));
    }
}
