//! The datagrams of the UDP protocol (BEP 15), as the tracker reads and writes them. Pure.
//!
//! Longer ones than we know are fine: extensions, such as the URL of BEP 41, follow what is known, and nothing here
//! depends on them.

use std::net::{IpAddr, SocketAddr};

use super::query::{DEFAULT_WANT, MAX_SCRAPE};
use super::table::{Announce, Answer, Event, Scraped};
use crate::metainfo::InfoHash;

/// What a connect request starts with.
const PROTOCOL: u64 = 0x417_2710_1980;
/// The longest that we read; the rest of a longer one is lost, and with it nothing that is known.
pub(super) const MAX_DATAGRAM: usize = 2048;
/// The longest answer: it passes every link of IPv6 whole.
pub(super) const MAX_ANSWER: usize = 1232;

const CONNECT: u32 = 0;
const ANNOUNCE: u32 = 1;
const SCRAPE: u32 = 2;
const ERROR: u32 = 3;

/// Comes back in the answer.
pub(super) type Transaction = [u8; 4];

/// What every request begins with.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Head {
    /// It wants a connection id.
    Connect(Transaction),
    /// It shows one, to be checked before anything else is done.
    Request { connection: u64, action: u32, transaction: Transaction },
}

/// A request by one who may ask.
#[derive(PartialEq, Debug)]
pub(super) enum Request<'a> {
    Announce(Announce),
    Scrape(&'a [[u8; 20]]),
}

/// `None`: not of this protocol.
pub(super) fn head(datagram: &[u8]) -> Option<Head> {
    let &[a, b, c, d, e, f, g, h, i, j, k, l, ref transaction @ ..] = datagram.first_chunk::<16>()?;
    let (connection, action) = (u64::from_be_bytes([a, b, c, d, e, f, g, h]), u32::from_be_bytes([i, j, k, l]));
    match (connection, action) {
        (PROTOCOL, CONNECT) => Some(Head::Connect(*transaction)),
        (_, ANNOUNCE | SCRAPE) => Some(Head::Request { connection, action, transaction: *transaction }),
        _ => None,
    }
}

/// Reads what follows the head; the error is told to who asks. The address is that of the datagram; one in the request
/// is a claim and goes unread.
pub(super) fn request(datagram: &[u8], action: u32, from: IpAddr) -> Result<Request<'_>, &'static str> {
    let body = datagram.get(16..).unwrap_or_default();
    if action == SCRAPE {
        let (hashes, _) = body.as_chunks();
        return match hashes.len() {
            0 => Err("no info hash"),
            1..=MAX_SCRAPE => Ok(Request::Scrape(hashes)),
            _ => Err("too many info hashes"),
        };
    }
    let body = body.first_chunk::<82>().ok_or("cut short")?;
    let array = |at: usize| [body[at], body[at + 1], body[at + 2], body[at + 3]];
    let mut info_hash = [0; 20];
    info_hash.copy_from_slice(&body[..20]);
    let port = u16::from_be_bytes([body[80], body[81]]);
    if port == 0 {
        return Err("port is 0");
    }
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
        // -1, and whatever is less than nothing, says "as you like".
        want: if want > i32::MAX as u32 { DEFAULT_WANT } else { want as usize }.min(most_peers(from)),
        both_families: false,
    }))
}

/// Peers that an answer has room for.
fn most_peers(from: IpAddr) -> usize {
    (MAX_ANSWER - 20) / if from.is_ipv4() { 6 } else { 18 }
}

fn begin(action: u32, transaction: Transaction, out: &mut Vec<u8>) {
    out.clear();
    out.extend(action.to_be_bytes());
    out.extend(transaction);
}

pub(super) fn connected(transaction: Transaction, connection: u64, out: &mut Vec<u8>) {
    begin(CONNECT, transaction, out);
    out.extend(connection.to_be_bytes());
}

/// `peers` are in compact form, of the family of who asked.
pub(super) fn announced(transaction: Transaction, interval: u32, answer: &Answer, peers: &[u8], out: &mut Vec<u8>) {
    begin(ANNOUNCE, transaction, out);
    for number in [interval, clip(answer.leechers), clip(answer.seeders)] {
        out.extend(number.to_be_bytes());
    }
    out.extend_from_slice(peers);
}

pub(super) fn scraped(transaction: Transaction, all: impl Iterator<Item = Scraped>, out: &mut Vec<u8>) {
    begin(SCRAPE, transaction, out);
    for scraped in all {
        for number in [clip(scraped.seeders), scraped.completed, clip(scraped.leechers)] {
            out.extend(number.to_be_bytes());
        }
    }
}

/// Never longer than the request, which is `asked` bytes long.
pub(super) fn refused(transaction: Transaction, reason: &str, asked: usize, out: &mut Vec<u8>) {
    begin(ERROR, transaction, out);
    out.extend_from_slice(reason.as_bytes());
    out.truncate(asked);
}

fn clip(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FROM: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const TRANSACTION: Transaction = *b"\xde\xad\xbe\xef";

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
    fn heads() {
        let connect = b"\x00\x00\x04\x17\x27\x10\x19\x80\0\0\0\0\xde\xad\xbe\xef";
        assert_eq!(head(connect), Some(Head::Connect(TRANSACTION)));
        assert_eq!(head(&[connect.as_slice(), b"more"].concat()), Some(Head::Connect(TRANSACTION)));
        assert_eq!(head(&connect[..15]), None);
        assert_eq!(head(&[0; 16]), None);
        let asked = Head::Request { connection: 0x0102_0304_0506_0708, action: 1, transaction: TRANSACTION };
        assert_eq!(head(&announce(2, 1, -1, 1)), Some(asked));
        let mut unknown = announce(2, 1, -1, 1);
        unknown[11] = 3;
        assert_eq!(head(&unknown), None);
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
        assert_eq!(request(&announce(2, 3, -1, 6881), 1, FROM), Ok(Request::Announce(expected.clone())));
        // The URL of BEP 41 follows.
        let with_url = [announce(1, 0, 7, 6881).as_slice(), b"\x02\x0c/dir?a=b&c=d"].concat();
        let done = Announce { seed: true, event: Event::Completed, want: 7, ..expected.clone() };
        assert_eq!(request(&with_url, 1, FROM), Ok(Request::Announce(done)));
        let gone = Announce { event: Event::Stopped, want: 0, ..expected };
        assert_eq!(request(&announce(3, 3, 0, 6881), 1, FROM), Ok(Request::Announce(gone)));
        assert_eq!(request(&announce(2, 3, -1, 0), 1, FROM), Err("port is 0"));
        assert_eq!(request(&announce(2, 3, -1, 1)[..97], 1, FROM), Err("cut short"));
    }

    #[test]
    fn answers_fit_the_smallest_link() {
        for (from, size) in [(FROM, 6), (IpAddr::from([0x2001, 0, 0, 0, 0, 0, 0, 1]), 18)] {
            let datagram = announce(2, 1, i32::MAX, 1);
            let Ok(Request::Announce(announce)) = request(&datagram, 1, from) else { panic!() };
            let (mut out, peers) = (Vec::new(), vec![0; announce.want * size]);
            announced(TRANSACTION, 60, &Answer::default(), &peers, &mut out);
            assert!(out.len() <= MAX_ANSWER && out.len() > MAX_ANSWER - size);
        }
    }

    #[test]
    fn answers() {
        let mut out = b"left over".to_vec();
        connected(TRANSACTION, 7, &mut out);
        assert_eq!(out, b"\0\0\0\0\xde\xad\xbe\xef\0\0\0\0\0\0\0\x07");
        let answer = Answer { seeders: 2, leechers: 3, ..Answer::default() };
        announced(TRANSACTION, 1800, &answer, b"\x7f\0\0\x01\x1a\xe1", &mut out);
        assert_eq!(out, b"\0\0\0\x01\xde\xad\xbe\xef\0\0\x07\x08\0\0\0\x03\0\0\0\x02\x7f\0\0\x01\x1a\xe1");
        scraped(TRANSACTION, [Scraped { seeders: 1, leechers: 3, completed: 2 }].into_iter(), &mut out);
        assert_eq!(out, b"\0\0\0\x02\xde\xad\xbe\xef\0\0\0\x01\0\0\0\x02\0\0\0\x03");
        refused(TRANSACTION, "not here", 98, &mut out);
        assert_eq!(out, b"\0\0\0\x03\xde\xad\xbe\xefnot here");
        refused(TRANSACTION, "not here", 11, &mut out);
        assert_eq!(out, b"\0\0\0\x03\xde\xad\xbe\xefnot");
    }

    #[test]
    fn scrapes_are_bounded() {
        let asked = |n: usize| [b"\0\0\0\0\0\0\0\0\0\0\0\x02\xde\xad\xbe\xef".as_slice(), &vec![1; 20 * n]].concat();
        assert_eq!(request(&asked(2), 2, FROM), Ok(Request::Scrape(&[[1; 20]; 2])));
        assert!(request(&asked(MAX_SCRAPE), 2, FROM).is_ok());
        assert!(request(&asked(MAX_SCRAPE + 1), 2, FROM).is_err());
        assert!(request(&asked(0), 2, FROM).is_err());
    }

    proptest! {
        #[test]
        fn any_datagram_is_survived(datagram: Vec<u8>, action in 0u32..4) {
            let _ = head(&datagram);
            let _ = request(&datagram, action, FROM);
        }

        #[test]
        fn no_answer_to_a_request_refused_is_longer_than_it(asked in 16usize..200, reason in "[a-z ]{0,100}") {
            let mut out = Vec::new();
            refused(TRANSACTION, &reason, asked, &mut out);
            prop_assert!(out.len() <= asked);
        }
    }
}
