//! Tracker replies over HTTP: from bencode to values.
//!
//! Lenient where trackers differ (compact or not, unusable addresses in the list), strict about bounds.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::Deserialize;
use serde::de::{Deserializer, Error, SeqAccess, Visitor};
use serde_bytes::ByteBuf;

use super::{AnnounceError, Answer, Retry};
use crate::metainfo::bencode::{self, Limits};
use crate::util::printable;
use crate::wire::take_compact;

/// Addresses used from one reply. Far more than we can connect to; the rest is dropped.
pub(super) const MAX_PEERS: usize = 1000;
/// Characters displayed of a tracker's message: enough for one line of a log.
pub(super) const MAX_TEXT: usize = 200;
/// Bytes of a `tracker id`. A longer one is not sent back.
const MAX_TRACKER_ID: usize = 256;

/// A decoded announce reply.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Reply {
    pub peers: Vec<SocketAddr>,
    /// As sent by the tracker, not yet clamped. `None` for zero or negative values.
    pub interval: Option<Duration>,
    pub min_interval: Option<Duration>,
    /// Sent back as `trackerid` in later announces.
    pub tracker_id: Option<Vec<u8>>,
    pub answer: Answer,
}

/// Parses an announce reply. A `failure reason` makes it an error, whatever else the reply contains.
pub(super) fn parse(body: &[u8]) -> Result<Reply, AnnounceError> {
    let raw = decode(body)?;
    if let Some(reason) = raw.failure_reason {
        return Err(refused(&reason, raw.retry_in.unwrap_or(Retry::BackOff)));
    }
    if raw.peers.is_none() && raw.peers6.is_none() && raw.interval.is_none() {
        return Err(AnnounceError::Garbage("it has neither peers nor an interval".into()));
    }
    let mut peers = raw.peers.unwrap_or_default().0;
    peers.extend(raw.peers6.iter().flat_map(|bytes| compact6(bytes)).take(MAX_PEERS - peers.len()));
    let seconds = |n: Option<i64>| n.and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0).map(Duration::from_secs);
    let count = |n: Option<i64>| n.and_then(|n| u64::try_from(n).ok());
    Ok(Reply {
        interval: seconds(raw.interval),
        min_interval: seconds(raw.min_interval),
        tracker_id: raw.tracker_id.map(ByteBuf::into_vec).filter(|id| !id.is_empty() && id.len() <= MAX_TRACKER_ID),
        answer: Answer {
            seeders: count(raw.complete),
            leechers: count(raw.incomplete),
            peers: peers.len(),
            warning: raw.warning_message.map(|text| printable(&text, MAX_TEXT)).filter(|text| !text.is_empty()),
            external_ip: raw.external_ip.and_then(|bytes| ip(&bytes)),
        },
        peers,
    })
}

/// Builds the error for a tracker's `failure reason`.
pub(super) fn refused(reason: &[u8], retry: Retry) -> AnnounceError {
    let reason = match printable(reason, MAX_TEXT) {
        empty if empty.is_empty() => "no reason given".to_owned(),
        reason => reason,
    };
    AnnounceError::Refused { reason, retry }
}

fn decode(body: &[u8]) -> Result<Raw, AnnounceError> {
    if body.first() != Some(&b'd') {
        return Err(AnnounceError::Garbage(match body.trim_ascii_start() {
            [] => "it is empty".into(),
            [b'<', ..] => "it is a web page".into(),
            _ => "it is not bencode".into(),
        }));
    }
    // Some replies end with a line break, because a script printed them.
    bencode::decode(body.trim_ascii_end(), &Limits::TRACKER)
        .map_err(|error| AnnounceError::Garbage(printable(error.to_string().as_bytes(), MAX_TEXT)))
}

#[derive(Deserialize)]
struct Raw {
    #[serde(rename = "failure reason")]
    failure_reason: Option<ByteBuf>,
    #[serde(rename = "retry in")]
    retry_in: Option<Retry>,
    #[serde(rename = "warning message")]
    warning_message: Option<ByteBuf>,
    interval: Option<i64>,
    #[serde(rename = "min interval")]
    min_interval: Option<i64>,
    #[serde(rename = "tracker id")]
    tracker_id: Option<ByteBuf>,
    complete: Option<i64>,
    incomplete: Option<i64>,
    #[serde(rename = "external ip")]
    external_ip: Option<ByteBuf>,
    peers: Option<Peers>,
    peers6: Option<ByteBuf>,
}

/// The `peers` value: 6 bytes each (BEP 23) or a list of dictionaries (BEP 3). Holds at most `MAX_PEERS` dialable
/// addresses.
#[derive(Default)]
struct Peers(Vec<SocketAddr>);

impl<'de> Deserialize<'de> for Peers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = Peers;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("peers as a string or a list")
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Peers, E> {
                Ok(Peers(compact4(bytes).take(MAX_PEERS).collect()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Peers, A::Error> {
                let mut peers = Vec::new();
                // Read to the end even when there are enough peers, so that the decoder continues after the list.
                while let Some(peer) = list.next_element::<RawPeer>()? {
                    let text = str::from_utf8(&peer.ip).unwrap_or_default();
                    // Host names, which BEP 3 allows, are not resolved: a stranger would choose what we look up.
                    let address = text.parse::<IpAddr>().ok().zip(u16::try_from(peer.port).ok());
                    if peers.len() < MAX_PEERS {
                        peers.extend(address.map(SocketAddr::from).and_then(dialable));
                    }
                }
                Ok(Peers(peers))
            }
        }

        deserializer.deserialize_any(Either)
    }
}

#[derive(Deserialize)]
struct RawPeer {
    ip: ByteBuf,
    port: i64,
}

impl<'de> Deserialize<'de> for Retry {
    /// Reads minutes, as a number or in digits, or `never` (BEP 31). Any other value counts as unspecified.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Minutes;

        impl Visitor<'_> for Minutes {
            type Value = Retry;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("minutes or `never`")
            }

            fn visit_i64<E: Error>(self, minutes: i64) -> Result<Retry, E> {
                Ok(match u64::try_from(minutes) {
                    Ok(minutes @ 1..) => Retry::After(Duration::from_secs(minutes.saturating_mul(60))),
                    _ => Retry::BackOff,
                })
            }

            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Retry, E> {
                match str::from_utf8(bytes).unwrap_or_default() {
                    "never" => Ok(Retry::Never),
                    digits => self.visit_i64(digits.parse().unwrap_or(0)),
                }
            }
        }

        deserializer.deserialize_any(Minutes)
    }
}

/// Decodes addresses of 6 bytes each (BEP 23) and drops unusable ones and a truncated last one.
pub(super) fn compact4(bytes: &[u8]) -> impl Iterator<Item = SocketAddr> {
    bytes.chunks_exact(6).filter_map(take_compact).filter_map(dialable)
}

/// Decodes addresses of 18 bytes each (BEP 7) in the same way.
pub(super) fn compact6(bytes: &[u8]) -> impl Iterator<Item = SocketAddr> {
    bytes.chunks_exact(18).filter_map(take_compact).filter_map(dialable)
}

/// Decodes an address of 4 or 16 bytes (BEP 24).
fn ip(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok().map(|ip| ip.to_canonical())
}

/// Returns the address in the form to dial, or `None` if it cannot be dialed. IPv4-mapped IPv6 addresses become IPv4.
fn dialable(addr: SocketAddr) -> Option<SocketAddr> {
    let ip = addr.ip().to_canonical();
    let unusable = match ip {
        IpAddr::V4(ip) => ip.octets()[0] == 0 || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unspecified(),
    };
    (addr.port() != 0 && !unusable && !ip.is_multicast()).then(|| SocketAddr::new(ip, addr.port()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn peers(body: &[u8]) -> Vec<String> {
        parse(body).unwrap().peers.iter().map(SocketAddr::to_string).collect()
    }

    fn string(text: &[u8]) -> Vec<u8> {
        [text.len().to_string().as_bytes(), b":", text].concat()
    }

    #[test]
    fn compact_peers() {
        assert_eq!(
            peers(b"d8:intervali1800e5:peers12:\x7f\0\0\x01\x1a\xe1\x0a\x01\x02\x03\0\x50e"),
            ["127.0.0.1:6881", "10.1.2.3:80"]
        );
        assert!(peers(b"d8:intervali1800e5:peers0:e").is_empty());
        // A truncated last entry does not affect the others.
        assert_eq!(peers(b"d5:peers8:\x7f\0\0\x01\x1a\xe1\x0a\x01e"), ["127.0.0.1:6881"]);
    }

    #[test]
    fn dictionary_peers() {
        let body = b"d8:intervali60e5:peersl\
            d2:ip9:127.0.0.17:peer id20:aaaaaaaaaaaaaaaaaaaa4:porti6881ee\
            d2:ip3:::14:porti1ee\
            d2:ip9:localhost4:porti80ee\
            d2:ip7:1.2.3.44:porti70000ee\
            ee";
        assert_eq!(peers(body), ["127.0.0.1:6881", "[::1]:1"]);
        assert!(peers(b"d5:peerslee").is_empty());
    }

    #[test]
    fn peers6_beside_peers() {
        let body = [
            b"d5:peers6:\x01\x02\x03\x04\0\x056:peers636:".as_slice(),
            &[0x20; 16],
            b"\0\x07",
            &[0; 10],
            b"\xff\xff\x09\x08\x07\x06\0\x09e",
        ]
        .concat();
        assert_eq!(peers(&body), ["1.2.3.4:5", "[2020:2020:2020:2020:2020:2020:2020:2020]:7", "9.8.7.6:9"]);
    }

    #[test]
    fn addresses_that_cannot_be_dialed_are_dropped() {
        for bytes in [
            *b"\x01\x02\x03\x04\0\0",
            *b"\0\0\0\0\0\x01",
            *b"\0\x01\x02\x03\0\x01",
            *b"\xe0\0\0\x01\0\x01",
            *b"\xff\xff\xff\xff\0\x01",
        ] {
            assert_eq!(take_compact(&bytes).and_then(dialable), None, "{bytes:?}");
        }
        for ip in ["::", "ff02::1", "::ffff:224.0.0.1", "::ffff:0.0.0.0"] {
            assert_eq!(dialable(SocketAddr::new(ip.parse().unwrap(), 1)), None, "{ip}");
        }
    }

    #[test]
    fn peers_are_bounded() {
        let compact = string(&[1, 2, 3, 4, 0, 5].repeat(5000));
        let compact6 = string(&[32; 18].repeat(5000));
        let body = [b"d5:peers".as_slice(), &compact, b"6:peers6", &compact6, b"e"].concat();
        assert_eq!(peers(&body).len(), MAX_PEERS);
        let list = b"d2:ip7:1.2.3.44:porti5ee".repeat(5000);
        assert_eq!(peers(&[b"d5:peersl".as_slice(), &list, b"ee"].concat()).len(), MAX_PEERS);
    }

    #[test]
    fn every_field_is_decoded() {
        let reply = parse(
            b"d8:completei7e11:external ip4:\x09\x08\x07\x0610:incompletei-1e8:intervali1800e12:min intervali0e\
              5:peers0:10:tracker id3:a\0b7:unknownld1:a1:bee15:warning message5:old\r\ne",
        );
        assert_eq!(
            reply.unwrap(),
            Reply {
                peers: Vec::new(),
                interval: Some(Duration::from_secs(1800)),
                min_interval: None,
                tracker_id: Some(b"a\0b".to_vec()),
                answer: Answer {
                    seeders: Some(7),
                    leechers: None,
                    peers: 0,
                    warning: Some("old".into()),
                    external_ip: Some([9, 8, 7, 6].into()),
                },
            }
        );
    }

    #[test]
    fn rejections_carry_a_reason_and_a_retry_time() {
        let refused = |body: &[u8]| match parse(body) {
            Err(AnnounceError::Refused { reason, retry }) => (reason, retry),
            other => panic!("{other:?}"),
        };
        let minutes = |n: u64| Retry::After(Duration::from_secs(n * 60));
        assert_eq!(refused(b"d14:failure reason7:no\r\nway5:peers0:e"), ("no way".into(), Retry::BackOff));
        assert_eq!(refused(b"d14:failure reason0:e").0, "no reason given");
        assert_eq!(refused(b"d14:failure reason1:x8:retry in5:nevere").1, Retry::Never);
        assert_eq!(refused(b"d14:failure reason1:x8:retry ini5ee").1, minutes(5));
        assert_eq!(refused(b"d14:failure reason1:x8:retry in2:15e").1, minutes(15));
        assert_eq!(refused(b"d14:failure reason1:x8:retry ini-5ee").1, Retry::BackOff);
        let long = [b"d14:failure reason".as_slice(), &string(&[b'x'; 100_000]), b"e"].concat();
        assert_eq!(refused(&long).0.chars().count(), MAX_TEXT);
    }

    #[test]
    fn other_bodies_are_rejected() {
        let nested = [b"d1:a".as_slice(), &b"l".repeat(1_000_000)].concat();
        for body in [
            b"".as_slice(),
            b"<html>d</html>",
            b"Not Found",
            b"de",
            b"d8:interval",
            b"d8:intervali1800e5:peers",
            b"d8:intervali1800e5:peers99999999999:x",
            b"d8:interval5:helloe",
            b"d8:intervali1ee and more",
            b"i3e",
            &nested,
        ] {
            let error = parse(body).unwrap_err();
            assert!(matches!(error, AnnounceError::Garbage(_)), "{error:?}");
            assert!(!error.to_string().contains('\n'));
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_not_panic(body: Vec<u8>) {
            let _ = parse(&body);
        }

        #[test]
        fn compact_peers_round_trip(addrs in prop::collection::vec((any::<[u8; 4]>(), any::<u16>()), 0..100)) {
            let bytes: Vec<u8> = addrs.iter().flat_map(|(ip, port)| [ip.as_slice(), &port.to_be_bytes()].concat()).collect();
            let body = [b"d5:peers".as_slice(), &string(&bytes), b"e"].concat();
            let expected: Vec<SocketAddr> = addrs.into_iter().map(SocketAddr::from).filter_map(dialable).collect();
            prop_assert_eq!(parse(&body).unwrap().peers, expected);
        }
    }
}
