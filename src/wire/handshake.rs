//! The handshake (BEP 3): peer id, info hash and supported extensions.

use rand::{Rng, RngExt};

use super::client::PEER_ID_PREFIX;
use super::error::WireError;
use super::message::PeerId;
use crate::metainfo::InfoHash;

/// Length of a handshake in bytes.
pub const HANDSHAKE_LEN: usize = 68;

/// First bytes of a handshake. A connection that begins differently is encrypted or not BitTorrent.
pub const PROTOCOL: &[u8; 20] = b"\x13BitTorrent protocol";

impl PeerId {
    /// Generates a peer id for us. Its random part has only letters and digits, so that logs and trackers can show it.
    pub fn generate(rng: &mut impl Rng) -> Self {
        const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
        let mut id = [0; 20];
        let (prefix, random) = id.split_at_mut(PEER_ID_PREFIX.len());
        prefix.copy_from_slice(&PEER_ID_PREFIX);
        random.fill_with(|| ALPHABET[rng.random_range(0..ALPHABET.len())]);
        Self(id)
    }
}

/// The eight reserved bytes of a handshake, whose bits announce extensions. Unknown bits are preserved and ignored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Reserved(pub [u8; 8]);

impl Reserved {
    /// Our extensions: the extension protocol and the fast extension.
    pub const OURS: Self = Self([0, 0, 0, 0, 0, 0x10, 0, 0x04]);

    /// Returns whether the extension protocol is supported (BEP 10).
    pub fn extended(self) -> bool {
        self.0[5] & 0x10 != 0
    }

    /// Returns whether the fast extension is supported (BEP 6).
    pub fn fast(self) -> bool {
        self.0[7] & 0x04 != 0
    }

    /// Returns whether the DHT is supported (BEP 5).
    pub fn dht(self) -> bool {
        self.0[7] & 0x01 != 0
    }

    /// Returns a copy that also announces the DHT.
    pub fn with_dht(mut self) -> Self {
        self.0[7] |= 0x01;
        self
    }
}

/// The first message of each side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handshake {
    /// Extensions that the sender supports.
    pub reserved: Reserved,
    /// Info hash of the torrent.
    pub info_hash: InfoHash,
    /// Peer id of the sender.
    pub peer_id: PeerId,
}

impl Handshake {
    /// Creates our handshake.
    pub fn new(info_hash: InfoHash, peer_id: PeerId) -> Self {
        Self { reserved: Reserved::OURS, info_hash, peer_id }
    }

    /// Encodes the handshake.
    pub fn encode(&self) -> [u8; HANDSHAKE_LEN] {
        let mut bytes = [0; HANDSHAKE_LEN];
        bytes[..20].copy_from_slice(PROTOCOL);
        bytes[20..28].copy_from_slice(&self.reserved.0);
        bytes[28..48].copy_from_slice(&self.info_hash.0);
        bytes[48..].copy_from_slice(&self.peer_id.0);
        bytes
    }

    /// Decodes a handshake.
    pub fn decode(bytes: &[u8; HANDSHAKE_LEN]) -> Result<Self, WireError> {
        fn part<const N: usize>(bytes: &[u8; HANDSHAKE_LEN], from: usize) -> [u8; N] {
            std::array::from_fn(|n| bytes[from + n])
        }
        if bytes[..20] != PROTOCOL[..] {
            return Err(WireError::NotBitTorrent);
        }
        Ok(Self {
            reserved: Reserved(part(bytes, 20)),
            info_hash: InfoHash(part(bytes, 28)),
            peer_id: PeerId(part(bytes, 48)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    #[test]
    fn our_handshake_follows_the_specifications() {
        let id = PeerId::generate(&mut StdRng::seed_from_u64(1));
        let bytes = Handshake::new(InfoHash([7; 20]), id).encode();
        assert_eq!(bytes[0], 19);
        assert_eq!(&bytes[1..20], b"BitTorrent protocol");
        // BEP 10: reserved_byte[5] & 0x10; BEP 6: reserved[7] |= 0x04.
        assert_eq!(bytes[20..28], [0, 0, 0, 0, 0, 0x10, 0, 0x04]);
        assert_eq!(bytes[28..48], [7; 20]);
        assert_eq!(&bytes[48..56], PEER_ID_PREFIX);
        assert!(bytes[56..].iter().all(u8::is_ascii_alphanumeric));
        assert!(Reserved::OURS.extended() && Reserved::OURS.fast() && !Reserved::OURS.dht());
        assert!(Reserved::OURS.with_dht().dht());
    }

    #[test]
    fn ids_differ() {
        let mut rng = StdRng::seed_from_u64(1);
        assert_ne!(PeerId::generate(&mut rng), PeerId::generate(&mut rng));
    }

    #[test]
    fn another_protocol_is_refused() {
        let mut bytes = Handshake::new(InfoHash([0; 20]), PeerId([0; 20])).encode();
        bytes[5] ^= 1;
        assert_eq!(Handshake::decode(&bytes), Err(WireError::NotBitTorrent));
    }

    proptest! {
        #[test]
        fn a_handshake_decodes_to_itself(reserved: [u8; 8], hash: [u8; 20], id: [u8; 20]) {
            let handshake =
                Handshake { reserved: Reserved(reserved), info_hash: InfoHash(hash), peer_id: PeerId(id) };
            prop_assert_eq!(Handshake::decode(&handshake.encode()), Ok(handshake));
        }
    }
}
