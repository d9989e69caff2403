//! Parsing and writing of the UDP protocol's datagrams (BEP 15). Pure.
//!
//! A request may be longer than BEP 15 defines: extensions, such as the URL of BEP 41, follow at the end and are ignored.

use std::net::{IpAddr, SocketAddr};

use super::query::{DEFAULT_WANT, MAX_SCRAPE};
use super::table::{Announce, AnnounceResponse, Event, ScrapeCounts};
use crate::metainfo::InfoHash;

/// Constant at the start of a connect request.
const PROTOCOL_ID: u64 = 0x417_2710_1980;
/// Longest datagram that is received, in bytes. A longer one is truncated; all defined fields are within this length.
pub(super) const MAX_DATAGRAM: usize = 2048;
/// Longest response in bytes: the minimum MTU of IPv6, 1280, without the IPv6 and UDP headers.
pub(super) const MAX_RESPONSE: usize = 1232;

const CONNECT: u32 = 0;
const ANNOUNCE: u32 = 1;
const SCRAPE: u32 = 2;
const ERROR: u32 = 3;

/// Number of a request, chosen by the client and repeated in the response.
pub(super) type TransactionId = [u8; 4];

/// Fields at the start of every request.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Header {
    /// A request for a connection id.
    Connect(TransactionId),
    /// An announce or a scrape. The connection id must be verified first.
    Request { connection: u64, action: u32, transaction: TransactionId },
}

/// A request whose connection id is valid.
#[derive(PartialEq, Debug)]
pub(super) enum Request<'a> {
    Announce(Announce),
    Scrape(&'a [[u8; 20]]),
}

/// Parses the start of a datagram; `None` if it is not a request of this protocol.
pub(super) fn parse_header(datagram: &[u8]) -> Option<Header> {
    let &[a, b, c, d, e, f, g, h, i, j, k, l, ref transaction @ ..] = datagram.first_chunk::<16>()?;
    let (connection, action) = (u64::from_be_bytes([a, b, c, d, e, f, g, h]), u32::from_be_bytes([i, j, k, l]));
    match (connection, action) {
        (PROTOCOL_ID, CONNECT) => Some(Header::Connect(*transaction)),
        (_, ANNOUNCE | SCRAPE) => Some(Header::Request { connection, action, transaction: *transaction }),
        _ => None,
    }
}

/// Parses an announce or a scrape; the error is sent to the client. `from` is the datagram's source address; an address in
/// the request is ignored, since the client could claim any.
pub(super) fn parse_request(datagram: &[u8], action: u32, from: IpAddr) -> Result<Request<'_>, &'static str> {
    let body = datagram.get(16..).unwrap_or_default();
    if action == SCRAPE {
        let (hashes, _) = body.as_chunks();
        return match hashes.len() {
            0 => Err("no info hash"),
            1..=MAX_SCRAPE => Ok(Request::Scrape(hashes)),
            _ => Err("too many info hashes"),
        };
    }
    let body = body.first_chunk::<82>().ok_or("truncated")?;
    let array = |at: usize| [body[at], body[at + 1], body[at + 2], body[at + 3]];
    let mut info_hash = [0; 20];
    info_hash.copy_from_slice(&body[..20]);
    let port = u16::from_be_bytes([body[80], body[81]]);
    let left = body[48..56].iter().any(|byte| *byte != 0);
    let want = u32::from_be_bytes(array(76));
    Ok(Request::Announce(Announce {
        info_hash: InfoHash(info_hash),
        addr: SocketAddr::new(from, port),
        seed: !left,
        event: match u32::from_be_bytes(array(64)) {
            1 => Event::Completed,
            3 => Event::Stopped,
            _ => Event::Present,
        },
        // Negative numbers, usually -1, mean the default.
        want: if want > i32::MAX as u32 { DEFAULT_WANT } else { want as usize }.min(max_peers(from)),
        both_families: false,
    }))
}

/// Returns the number of peers that fit in a response.
fn max_peers(from: IpAddr) -> usize {
    (MAX_RESPONSE - 20) / if from.is_ipv4() { 6 } else { 18 }
}

/// Replaces the contents of `out` with the start of a response.
fn begin(action: u32, transaction: TransactionId, out: &mut Vec<u8>) {
    out.clear();
    out.extend(action.to_be_bytes());
    out.extend(transaction);
}

/// Writes the response to a connect request.
pub(super) fn write_connect(transaction: TransactionId, connection: u64, out: &mut Vec<u8>) {
    begin(CONNECT, transaction, out);
    out.extend(connection.to_be_bytes());
}

/// Writes the response to an announce. `peers` are compact addresses of the client's address family.
pub(super) fn write_announce(
    transaction: TransactionId,
    interval: u32,
    found: &AnnounceResponse,
    peers: &[u8],
    out: &mut Vec<u8>,
) {
    begin(ANNOUNCE, transaction, out);
    for number in [interval, clamp(found.leechers), clamp(found.seeders)] {
        out.extend(number.to_be_bytes());
    }
    out.extend_from_slice(peers);
}

/// Writes the response to a scrape.
pub(super) fn write_scrape(transaction: TransactionId, all: impl Iterator<Item = ScrapeCounts>, out: &mut Vec<u8>) {
    begin(SCRAPE, transaction, out);
    for counts in all {
        for number in [clamp(counts.seeders), counts.completed, clamp(counts.leechers)] {
            out.extend(number.to_be_bytes());
        }
    }
}

/// Writes an error response. It is truncated to the length of the request, `max_len`.
pub(super) fn write_error(transaction: TransactionId, reason: &str, max_len: usize, out: &mut Vec<u8>) {
    begin(ERROR, transaction, out);
    out.extend_from_slice(reason.as_bytes());
    out.truncate(max_len);
}

fn clamp(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FROM: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const TRANSACTION: TransactionId = *b"\xde\xad\xbe\xef";

    fn announce(event: u8, left: u8, want: i32, port: u16) -> Vec<u8> {
        [
            b"\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\x01\xde\xad\xbe\xef".as_slice(),
            &[0xaa; 20],
            &[0xbb; 20],
            b"\0\0\0\0\0\0\0\x02",
            &[0, 0, 0, 0, 0, 0, 0, left],
            b"\0\0\0\0\0\0\0\x01",
            &[0, 0, 0, event],
            b"\x08\x08\x08\x08key!",
            &want.to_be_bytes(),
            &port.to_be_bytes(),
        ]
        .concat()
    }

    #[test]
    fn headers() {
        let connect = b"\x00\x00\x04\x17\x27\x10\x19\x80\0\0\0\0\xde\xad\xbe\xef";
        assert_eq!(parse_header(connect), Some(Header::Connect(TRANSACTION)));
        assert_eq!(parse_header(&[connect.as_slice(), b"more"].concat()), Some(Header::Connect(TRANSACTION)));
        assert_eq!(parse_header(&connect[..15]), None);
        assert_eq!(parse_header(&[0; 16]), None);
        let expected = Header::Request { connection: 0x0102_0304_0506_0708, action: 1, transaction: TRANSACTION };
        assert_eq!(parse_header(&announce(2, 1, -1, 1)), Some(expected));
        let mut unknown = announce(2, 1, -1, 1);
        unknown[11] = 3;
        assert_eq!(parse_header(&unknown), None);
    }

    #[test]
    fn announces() {
        let expected = Announce {
            info_hash: InfoHash([0xaa; 20]),
            addr: (FROM, 6881).into(),
            seed: false,
            event: Event::Present,
            want: 50,
            both_families: false,
        };
        assert_eq!(parse_request(&announce(2, 3, -1, 6881), 1, FROM), Ok(Request::Announce(expected.clone())));
        // The URL of BEP 41 follows.
        let with_url = [announce(1, 0, 7, 6881).as_slice(), b"\x02\x0c/dir?a=b&c=d"].concat();
        let done = Announce { seed: true, event: Event::Completed, want: 7, ..expected.clone() };
        assert_eq!(parse_request(&with_url, 1, FROM), Ok(Request::Announce(done)));
        let gone = Announce { event: Event::Stopped, want: 0, ..expected };
        assert_eq!(parse_request(&announce(3, 3, 0, 6881), 1, FROM), Ok(Request::Announce(gone)));
        let Ok(Request::Announce(unreachable)) = parse_request(&announce(2, 3, -1, 0), 1, FROM) else { panic!() };
        assert_eq!(unreachable.addr.port(), 0);
        assert_eq!(parse_request(&announce(2, 3, -1, 1)[..97], 1, FROM), Err("truncated"));
    }

    #[test]
    fn responses_fit_the_minimum_mtu() {
        for (from, size) in [(FROM, 6), (IpAddr::from([0x2001, 0, 0, 0, 0, 0, 0, 1]), 18)] {
            let datagram = announce(2, 1, i32::MAX, 1);
            let Ok(Request::Announce(announce)) = parse_request(&datagram, 1, from) else { panic!() };
            let (mut out, peers) = (Vec::new(), vec![0; announce.want * size]);
            write_announce(TRANSACTION, 60, &AnnounceResponse::default(), &peers, &mut out);
            assert!(out.len() <= MAX_RESPONSE && out.len() > MAX_RESPONSE - size);
        }
    }

    #[test]
    fn responses_are_encoded() {
        let mut out = b"left over".to_vec();
        write_connect(TRANSACTION, 7, &mut out);
        assert_eq!(out, b"\0\0\0\0\xde\xad\xbe\xef\0\0\0\0\0\0\0\x07");
        let found = AnnounceResponse { seeders: 2, leechers: 3, ..AnnounceResponse::default() };
        write_announce(TRANSACTION, 1800, &found, b"\x7f\0\0\x01\x1a\xe1", &mut out);
        assert_eq!(out, b"\0\0\0\x01\xde\xad\xbe\xef\0\0\x07\x08\0\0\0\x03\0\0\0\x02\x7f\0\0\x01\x1a\xe1");
        write_scrape(TRANSACTION, [ScrapeCounts { seeders: 1, leechers: 3, completed: 2 }].into_iter(), &mut out);
        assert_eq!(out, b"\0\0\0\x02\xde\xad\xbe\xef\0\0\0\x01\0\0\0\x02\0\0\0\x03");
        write_error(TRANSACTION, "not here", 98, &mut out);
        assert_eq!(out, b"\0\0\0\x03\xde\xad\xbe\xefnot here");
        write_error(TRANSACTION, "not here", 11, &mut out);
        assert_eq!(out, b"\0\0\0\x03\xde\xad\xbe\xefnot");
    }

    #[test]
    fn scrapes_are_bounded() {
        let scrape = |n: usize| [b"\0\0\0\0\0\0\0\0\0\0\0\x02\xde\xad\xbe\xef".as_slice(), &vec![1; 20 * n]].concat();
        assert_eq!(parse_request(&scrape(2), 2, FROM), Ok(Request::Scrape(&[[1; 20]; 2])));
        assert!(parse_request(&scrape(MAX_SCRAPE), 2, FROM).is_ok());
        assert!(parse_request(&scrape(MAX_SCRAPE + 1), 2, FROM).is_err());
        assert!(parse_request(&scrape(0), 2, FROM).is_err());
    }

    proptest! {
        #[test]
        fn any_datagram_is_handled(datagram: Vec<u8>, action in 0u32..4) {
            let _ = parse_header(&datagram);
            let _ = parse_request(&datagram, action, FROM);
        }

        #[test]
        fn an_error_is_never_longer_than_its_request(asked in 16usize..200, reason in "[a-z ]{0,100}") {
            let mut out = Vec::new();
            write_error(TRANSACTION, &reason, asked, &mut out);
            prop_assert!(out.len() <= asked);
        }
    }
}
