//! Hole punching (BEP 55 `ut_holepunch`): a relay makes two peers behind NATs dial each other at the same time.

use std::net::{IpAddr, SocketAddr};

use bytes::{BufMut, Bytes, BytesMut};

use super::error::WireError;
use crate::metainfo::bencode::BencodeError;

/// The extension's name in the extension handshake.
pub const UT_HOLEPUNCH: &str = "ut_holepunch";

/// A hole punching message. Its address is that of the third peer, never that of sender or receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holepunch {
    /// To a relay: introduce me to the peer at this address.
    Rendezvous(SocketAddr),
    /// From a relay: dial this peer now; it is dialing you.
    Connect(SocketAddr),
    /// From a relay: the rendezvous failed.
    Failed(SocketAddr, PunchError),
}

/// Why a rendezvous failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PunchError {
    /// The address cannot be that of a peer.
    NoSuchPeer,
    /// The relay is not connected to that peer.
    NotConnected,
    /// That peer does not support `ut_holepunch`.
    NoSupport,
    /// The address is that of the relay itself.
    NoSelf,
}

impl PunchError {
    const ALL: [Self; 4] = [Self::NoSuchPeer, Self::NotConnected, Self::NoSupport, Self::NoSelf];
}

impl Holepunch {
    /// Encodes the payload of a `Message::Extended` with the id that the receiver assigned to [`UT_HOLEPUNCH`].
    pub fn encode(&self) -> Bytes {
        let (kind, addr, error) = match *self {
            Self::Rendezvous(addr) => (0, addr, 0),
            Self::Connect(addr) => (1, addr, 0),
            Self::Failed(addr, error) => (2, addr, error as u32 + 1),
        };
        let mut out = BytesMut::with_capacity(24);
        out.put_u8(kind);
        match addr.ip() {
            IpAddr::V4(ip) => {
                out.put_u8(0);
                out.put_slice(&ip.octets());
            }
            IpAddr::V6(ip) => {
                out.put_u8(1);
                out.put_slice(&ip.octets());
            }
        }
        out.put_u16(addr.port());
        out.put_u32(error);
        out.freeze()
    }

    /// Decodes a payload. Some clients omit the error field if there is no error.
    pub fn decode(payload: &[u8]) -> Result<Self, WireError> {
        let wrong = || BencodeError::Kind("the hole punching message is malformed".into());
        let (&[kind, family], rest) = payload.split_first_chunk::<2>().ok_or_else(wrong)?;
        let (ip, rest): (IpAddr, _) = match family {
            0 => rest.split_first_chunk::<4>().map(|(ip, rest)| ((*ip).into(), rest)).ok_or_else(wrong)?,
            1 => rest.split_first_chunk::<16>().map(|(ip, rest)| ((*ip).into(), rest)).ok_or_else(wrong)?,
            _ => return Err(wrong().into()),
        };
        let (port, rest) = rest.split_first_chunk::<2>().ok_or_else(wrong)?;
        let addr = SocketAddr::new(ip, u16::from_be_bytes(*port));
        let error = rest.first_chunk::<4>().map_or(0, |error| u32::from_be_bytes(*error));
        match kind {
            0 => Ok(Self::Rendezvous(addr)),
            1 => Ok(Self::Connect(addr)),
            2 => {
                let known = PunchError::ALL.into_iter().find(|known| *known as u32 + 1 == error);
                Ok(Self::Failed(addr, known.unwrap_or(PunchError::NoSuchPeer)))
            }
            _ => Err(wrong().into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn encodings_are_those_of_the_specification() {
        let addr = "1.2.3.4:258".parse().unwrap();
        assert_eq!(Holepunch::Rendezvous(addr).encode().as_ref(), [0, 0, 1, 2, 3, 4, 1, 2, 0, 0, 0, 0]);
        let failed = Holepunch::Failed(addr, PunchError::NotConnected);
        assert_eq!(failed.encode().as_ref(), [2, 0, 1, 2, 3, 4, 1, 2, 0, 0, 0, 2]);
        assert_eq!(Holepunch::decode(&[1, 0, 1, 2, 3, 4, 1, 2]), Ok(Holepunch::Connect(addr)));
        for wrong in [&[][..], &[0], &[0, 2, 1, 2, 3, 4, 1, 2], &[0, 0, 1, 2, 3], &[3, 0, 1, 2, 3, 4, 1, 2]] {
            assert!(Holepunch::decode(wrong).is_err(), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn a_message_decodes_to_itself(kind in 0usize..6, ip: IpAddr, port: u16) {
            let addr = SocketAddr::new(ip, port);
            let message = match kind {
                0 => Holepunch::Rendezvous(addr),
                1 => Holepunch::Connect(addr),
                n => Holepunch::Failed(addr, PunchError::ALL[n - 2]),
            };
            prop_assert_eq!(Holepunch::decode(&message.encode()), Ok(message));
        }
    }
}
