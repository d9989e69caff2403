//! Peer exchange (BEP 11 `ut_pex`): peers send each other the addresses of their peers.

use std::net::SocketAddr;

use bytes::Bytes;
use serde::Serialize;
use serde_bytes::ByteBuf;

use super::compact::{put_compact, take_compact};
use super::error::WireError;
use crate::metainfo::bencode::{self, BencodeError, Field, Limits, dict};

/// The extension's name in the extension handshake.
pub const UT_PEX: &str = "ut_pex";

/// Limit on the addresses of each kind (added, dropped) in a message, over both families. BEP 11 says 50; some clients send
/// more in the first message.
pub const MAX_PEX: usize = 200;

/// Facts about a peer in a PEX message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct PexFlags {
    /// The peer prefers encryption.
    pub encryption: bool,
    /// The peer downloads nothing: it is a seed or upload-only.
    pub seed: bool,
    /// The peer supports uTP.
    pub utp: bool,
    /// The peer supports `ut_holepunch` (BEP 55).
    pub holepunch: bool,
    /// The sender dialed the peer, so it accepts incoming connections.
    pub reachable: bool,
}

impl PexFlags {
    fn to_byte(self) -> u8 {
        [self.encryption, self.seed, self.utp, self.holepunch, self.reachable]
            .into_iter()
            .enumerate()
            .map(|(bit, set)| u8::from(set) << bit)
            .sum()
    }

    fn from_byte(byte: u8) -> Self {
        let set = |bit: u8| byte >> bit & 1 == 1;
        Self { encryption: set(0), seed: set(1), utp: set(2), holepunch: set(3), reachable: set(4) }
    }
}

/// A PEX message.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Pex {
    /// Peers connected since the last message.
    pub added: Vec<(SocketAddr, PexFlags)>,
    /// Peers disconnected since the last message.
    pub dropped: Vec<SocketAddr>,
}

dict! {
    struct Raw {
        added: Vec<u8> = "added",
        added_flags: Vec<u8> = "added.f",
        added6: Vec<u8> = "added6",
        added6_flags: Vec<u8> = "added6.f",
        dropped: Vec<u8> = "dropped",
        dropped6: Vec<u8> = "dropped6",
    }
}

// The fields may be in any order: the encoder sorts the keys.
#[derive(Serialize, Default)]
struct Encoded {
    added: ByteBuf,
    #[serde(rename = "added.f")]
    added_flags: ByteBuf,
    added6: ByteBuf,
    #[serde(rename = "added6.f")]
    added6_flags: ByteBuf,
    dropped: ByteBuf,
    dropped6: ByteBuf,
}

impl Pex {
    /// Encodes the payload of a `Message::Extended` with the id that the receiver assigned to [`UT_PEX`].
    pub fn encode(&self) -> Bytes {
        let mut encoded = Encoded::default();
        for (addr, flags) in self.added.iter().take(MAX_PEX) {
            let (addrs, all_flags) = match addr {
                SocketAddr::V4(_) => (&mut encoded.added, &mut encoded.added_flags),
                SocketAddr::V6(_) => (&mut encoded.added6, &mut encoded.added6_flags),
            };
            put_compact(*addr, addrs);
            all_flags.push(flags.to_byte());
        }
        for addr in self.dropped.iter().take(MAX_PEX) {
            put_compact(*addr, if addr.is_ipv4() { &mut encoded.dropped } else { &mut encoded.dropped6 });
        }
        // Encoding fails only if a key is not a string. Field names are strings.
        serde_bencode::to_bytes(&encoded).expect("the keys are strings").into()
    }

    /// Decodes a payload: at most [`MAX_PEX`] addresses of each kind, without those that cannot be dialed.
    pub fn decode(payload: &[u8]) -> Result<Self, WireError> {
        let (raw, _) = bencode::decode_prefix::<Field<Raw>>(payload, &Limits::PEER)?;
        let raw = raw.ok().ok_or_else(|| BencodeError::Kind("the peer exchange is not a dictionary".into()))?;
        let flags = |field: Field<Vec<u8>>| field.ok().unwrap_or_default().into_iter().map(PexFlags::from_byte);
        let v4 = addresses(raw.added, 6).zip(flags(raw.added_flags).chain(std::iter::repeat(PexFlags::default())));
        let v6 = addresses(raw.added6, 18).zip(flags(raw.added6_flags).chain(std::iter::repeat(PexFlags::default())));
        Ok(Self {
            added: v4.chain(v6).filter(|(addr, _)| can_be_dialed(addr)).take(MAX_PEX).collect(),
            dropped: addresses(raw.dropped, 6)
                .chain(addresses(raw.dropped6, 18))
                .filter(can_be_dialed)
                .take(MAX_PEX)
                .collect(),
        })
    }
}

/// Splits a string into compact addresses of `len` bytes each. An incomplete last one is ignored.
fn addresses(field: Field<Vec<u8>>, len: usize) -> impl Iterator<Item = SocketAddr> {
    let bytes = field.ok().unwrap_or_default();
    let addrs: Vec<SocketAddr> = bytes.chunks_exact(len).filter_map(take_compact).collect();
    addrs.into_iter()
}

fn can_be_dialed(addr: &SocketAddr) -> bool {
    addr.port() != 0 && !addr.ip().is_unspecified() && !addr.ip().is_multicast()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn messages_of_other_clients_are_read() {
        let payload = b"d5:added12:\x7f\0\0\x02\x1a\xe1\x0a\0\0\x01\0\x507:added.f1:\x026:added60:7:dropped6:\x01\x02\x03\x04\0\0e";
        let read = Pex::decode(payload).unwrap();
        let seed = PexFlags { seed: true, ..PexFlags::default() };
        let expected =
            [("127.0.0.2:6881".parse().unwrap(), seed), ("10.0.0.1:80".parse().unwrap(), PexFlags::default())];
        assert_eq!(read.added, expected, "flags that are missing are none");
        assert!(read.dropped.is_empty(), "port 0 cannot be dialed");
        assert_eq!(Pex::decode(b"de").unwrap(), Pex::default());
        assert!(Pex::decode(b"le").is_err());
    }

    #[test]
    fn the_number_of_addresses_is_bounded() {
        let addr = |n: u16| SocketAddr::from(([10, 0, 0, 1], n + 1));
        let many = Pex {
            added: (0..500).map(|n| (addr(n), PexFlags::default())).collect(),
            dropped: (0..500).map(addr).collect(),
        };
        let read = Pex::decode(&many.encode()).unwrap();
        assert_eq!((read.added.len(), read.dropped.len()), (MAX_PEX, MAX_PEX));
    }

    proptest! {
        #[test]
        fn a_message_decodes_to_itself(
            added in proptest::collection::vec((any::<SocketAddr>(), 0u8..32), 0..50),
            dropped in proptest::collection::vec(any::<SocketAddr>(), 0..50),
        ) {
            let plain = |addr: SocketAddr| SocketAddr::new(addr.ip(), addr.port());
            // IPv4 first, as decoding returns them.
            let mut pex = Pex {
                added: added.into_iter().map(|(addr, byte)| (plain(addr), PexFlags::from_byte(byte))).collect(),
                dropped: dropped.into_iter().map(plain).collect(),
            };
            pex.added.retain(|(addr, _)| can_be_dialed(addr));
            pex.dropped.retain(can_be_dialed);
            pex.added.sort_by_key(|(addr, _)| addr.is_ipv6());
            pex.dropped.sort_by_key(SocketAddr::is_ipv6);
            prop_assert_eq!(Pex::decode(&pex.encode()), Ok(pex));
        }
    }
}
