//! Datagrams of the UDP tracker protocol (BEP 15, 41): encoding of requests, decoding of replies.
//!
//! Replies may be longer than the fields that we know; the rest is ignored.

use std::time::Duration;

use super::reply::{self, MAX_PEERS, Reply};
use super::url::{Event, NUM_WANT, Query};
use super::{Announce, AnnounceError, Answer, Retry, Scrape};
use crate::metainfo::InfoHash;

/// Magic number at the start of a connect request (BEP 15).
const PROTOCOL: u64 = 0x417_2710_1980;
/// Option type that carries the path and query of the tracker's URL (BEP 41).
const URL_DATA: u8 = 2;

/// Connection id: issued by the tracker as proof that we can receive at our source address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct ConnectionId(pub u64);

/// Transaction id: matches a reply to its request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct TransactionId(pub u32);

/// The action of a request and of its reply. Error replies have an action of their own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Action {
    Connect = 0,
    Announce = 1,
    Scrape = 2,
}

/// Action of an error reply.
const ERROR: u32 = 3;

/// A request without its connection id and transaction id, which change when it is sent again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Request {
    action: Action,
    rest: Vec<u8>,
}

impl Request {
    /// Encodes an announce. `path` is the path and query of the tracker's URL. The IP field stays 0, so the tracker
    /// uses the source address of the datagram.
    pub fn announce(announce: &Announce, query: &Query, path: &str) -> Self {
        let (event, num_want) = match query.event {
            None => (0u32, NUM_WANT),
            Some(Event::Completed) => (1, NUM_WANT),
            Some(Event::Started) => (2, NUM_WANT),
            Some(Event::Stopped) => (3, 0),
        };
        let mut rest = Vec::with_capacity(82 + 2 + path.len());
        rest.extend(announce.info_hash.0);
        rest.extend(announce.peer_id.0);
        for bytes in [query.downloaded, query.left, query.uploaded] {
            rest.extend(bytes.to_be_bytes());
        }
        for number in [event, 0, announce.key, num_want] {
            rest.extend(number.to_be_bytes());
        }
        rest.extend(announce.port.get().to_be_bytes());
        for part in path.as_bytes().chunks(255) {
            rest.extend([URL_DATA, part.len() as u8]);
            rest.extend(part);
        }
        Self { action: Action::Announce, rest }
    }

    /// Encodes a scrape of one torrent.
    pub fn scrape(info_hash: InfoHash) -> Self {
        Self { action: Action::Scrape, rest: info_hash.0.to_vec() }
    }

    pub fn action(&self) -> Action {
        self.action
    }

    pub fn encode(&self, connection: ConnectionId, transaction: TransactionId) -> Vec<u8> {
        [head(connection.0, self.action, transaction).as_slice(), &self.rest].concat()
    }
}

/// Encodes a connect request, which asks for a connection id.
pub(super) fn connect(transaction: TransactionId) -> [u8; 16] {
    head(PROTOCOL, Action::Connect, transaction)
}

fn head(first: u64, action: Action, transaction: TransactionId) -> [u8; 16] {
    (u128::from(first) << 64 | u128::from(action as u32) << 32 | u128::from(transaction.0)).to_be_bytes()
}

/// A received datagram, judged against the request that is waiting.
#[derive(PartialEq, Debug)]
pub(super) enum Received<'a> {
    /// Not a reply to this request.
    Stray,
    /// The reply: the bytes after the action and the transaction id.
    Reply(&'a [u8]),
    /// An error reply, or a reply with the wrong action.
    Error(AnnounceError),
}

/// Parses the action and transaction id of a datagram.
pub(super) fn parse(datagram: &[u8], action: Action, transaction: TransactionId) -> Received<'_> {
    let Some((&[a, b, c, d, ids @ ..], body)) = datagram.split_first_chunk::<8>() else { return Received::Stray };
    if ids != transaction.0.to_be_bytes() {
        return Received::Stray;
    }
    match u32::from_be_bytes([a, b, c, d]) {
        theirs if theirs == action as u32 => Received::Reply(body),
        ERROR => Received::Error(reply::refused(body, Retry::BackOff)),
        theirs => Received::Error(AnnounceError::Garbage(format!("it replied with action {theirs}"))),
    }
}

/// Parses the reply to a connect request.
pub(super) fn parse_connect(body: &[u8]) -> Result<ConnectionId, AnnounceError> {
    let id = body.first_chunk().ok_or_else(too_short)?;
    Ok(ConnectionId(u64::from_be_bytes(*id)))
}

/// Parses the reply to an announce. Peers have the address family of the tracker's own address (`v6`).
pub(super) fn parse_announce(body: &[u8], v6: bool) -> Result<Reply, AnnounceError> {
    // opentracker answers with an empty body if the torrent is not on its allow-list.
    if body.is_empty() {
        return Err(reply::refused(body, Retry::BackOff));
    }
    let ([interval, leechers, seeders], addresses) = numbers(body)?;
    let mut peers = Vec::new();
    if v6 {
        peers.extend(reply::compact6(addresses).take(MAX_PEERS));
    } else {
        peers.extend(reply::compact4(addresses).take(MAX_PEERS));
    }
    Ok(Reply {
        interval: (interval as i32 > 0).then(|| Duration::from_secs(interval.into())),
        answer: Answer {
            seeders: Some(seeders.into()),
            leechers: Some(leechers.into()),
            peers: peers.len(),
            ..Answer::default()
        },
        peers,
        ..Reply::default()
    })
}

/// Parses the reply to a scrape of one torrent.
pub(super) fn parse_scrape(body: &[u8]) -> Result<Scrape, AnnounceError> {
    let ([seeders, downloads, leechers], _) = numbers(body)?;
    let [seeders, downloads, leechers] = [seeders, downloads, leechers].map(|count| Some(count.into()));
    Ok(Scrape { seeders, leechers, downloads })
}

fn numbers(body: &[u8]) -> Result<([u32; 3], &[u8]), AnnounceError> {
    let (numbers, rest) = body.split_first_chunk::<12>().ok_or_else(too_short)?;
    let &[a, b, c, d, e, f, g, h, i, j, k, l] = numbers;
    Ok(([[a, b, c, d], [e, f, g, h], [i, j, k, l]].map(u32::from_be_bytes), rest))
}

fn too_short() -> AnnounceError {
    AnnounceError::Garbage("the reply is truncated".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::PeerId;
    use proptest::prelude::*;
    use std::net::SocketAddr;

    const ID: ConnectionId = ConnectionId(0x0102_0304_0506_0708);
    const TRANSACTION: TransactionId = TransactionId(0xdead_beef);

    fn sample() -> Announce {
        Announce {
            info_hash: InfoHash([0xaa; 20]),
            peer_id: PeerId([0xbb; 20]),
            port: 6881.into(),
            tiers: Vec::new(),
            key: 0x1122_3344,
        }
    }

    fn announce(event: Option<Event>, path: &str) -> Vec<u8> {
        let query = Query { event, uploaded: 1, downloaded: 2, left: 3, tracker_id: None };
        Request::announce(&sample(), &query, path).encode(ID, TRANSACTION)
    }

    #[test]
    fn connect_follows_the_specification() {
        assert_eq!(connect(TRANSACTION), *b"\x00\x00\x04\x17\x27\x10\x19\x80\0\0\0\0\xde\xad\xbe\xef");
        let reply = b"\0\0\0\0\xde\xad\xbe\xef\x01\x02\x03\x04\x05\x06\x07\x08 and more";
        let Received::Reply(body) = parse(reply, Action::Connect, TRANSACTION) else { panic!() };
        assert_eq!(parse_connect(body), Ok(ID));
    }

    #[test]
    fn announce_follows_the_specification() {
        let expected = [
            b"\x01\x02\x03\x04\x05\x06\x07\x08".as_slice(),
            b"\0\0\0\x01\xde\xad\xbe\xef",
            &[0xaa; 20],
            &[0xbb; 20],
            b"\0\0\0\0\0\0\0\x02",
            b"\0\0\0\0\0\0\0\x03",
            b"\0\0\0\0\0\0\0\x01",
            b"\0\0\0\x02",
            b"\0\0\0\0",
            b"\x11\x22\x33\x44",
            b"\0\0\0\x64",
            b"\x1a\xe1",
        ]
        .concat();
        assert_eq!(expected.len(), 98);
        assert_eq!(announce(Some(Event::Started), ""), expected);
        let events = [None, Some(Event::Completed), Some(Event::Started), Some(Event::Stopped)];
        assert_eq!(events.map(|event| announce(event, "")[83]), [0, 1, 2, 3]);
        assert_eq!(announce(Some(Event::Stopped), "")[92..96], [0; 4]);
    }

    #[test]
    fn the_url_is_sent_in_options() {
        // The example of BEP 41.
        assert_eq!(announce(None, "/dir?a=b&c=d")[98..], *b"\x02\x0c/dir?a=b&c=d");
        let long = "/".repeat(256);
        let options = announce(None, &long)[98..].to_vec();
        assert_eq!((options.len(), &options[..2]), (260, b"\x02\xff".as_slice()));
        assert_eq!(options[257..], *b"\x02\x01/");
    }

    #[test]
    fn announce_replies_of_both_families_are_parsed() {
        let head = b"\0\0\x07\x08\0\0\0\x05\0\0\0\x09".as_slice();
        let reply = parse_announce(&[head, b"\x7f\0\0\x01\x1a\xe1\0\0\0\0\0\x01torn"].concat(), false).unwrap();
        assert_eq!(reply.peers, ["127.0.0.1:6881".parse::<SocketAddr>().unwrap()]);
        assert_eq!(reply.interval, Some(Duration::from_secs(1800)));
        let expected = Answer { seeders: Some(9), leechers: Some(5), peers: 1, ..Answer::default() };
        assert_eq!(reply.answer, expected);
        let reply = parse_announce(&[head, &[0x20; 16], b"\0\x07"].concat(), true).unwrap();
        assert_eq!(reply.peers, ["[2020:2020:2020:2020:2020:2020:2020:2020]:7".parse::<SocketAddr>().unwrap()]);
        assert_eq!(parse_announce(&[0; 12], false).unwrap().interval, None);
        assert_eq!(parse_announce(&[0xff; 12], false).unwrap().interval, None);
        assert!(matches!(parse_announce(&[0; 11], false), Err(AnnounceError::Garbage(_))));
        assert!(matches!(parse_announce(&[], false), Err(AnnounceError::Refused { .. })));
    }

    #[test]
    fn a_scrape_is_encoded_and_its_reply_parsed() {
        let request = Request::scrape(InfoHash([0xaa; 20])).encode(ID, TRANSACTION);
        assert_eq!(request[8..], [b"\0\0\0\x02\xde\xad\xbe\xef".as_slice(), &[0xaa; 20]].concat());
        let counts = Scrape { seeders: Some(1), downloads: Some(2), leechers: Some(3) };
        assert_eq!(parse_scrape(b"\0\0\0\x01\0\0\0\x02\0\0\0\x03more"), Ok(counts));
        assert!(parse_scrape(b"\0\0\0\x01").is_err());
    }

    #[test]
    fn unrelated_and_wrong_replies_are_told_apart() {
        for (datagram, expected) in [
            (b"".as_slice(), Received::Stray),
            (b"\0\0\0\x01\xde\xad\xbe", Received::Stray),
            (b"\0\0\0\x01\xde\xad\xbe\xee", Received::Stray),
            (b"\0\0\0\x03\xde\xad\xbe\xee no", Received::Stray),
            (b"\0\0\0\x02\xde\xad\xbe\xef", Received::Error(AnnounceError::Garbage("it replied with action 2".into()))),
            (
                b"\0\0\0\x03\xde\xad\xbe\xefnot\r\nhere\0",
                Received::Error(AnnounceError::Refused { reason: "not here".into(), retry: Retry::BackOff }),
            ),
            (
                b"\0\0\0\x03\xde\xad\xbe\xef",
                Received::Error(AnnounceError::Refused { reason: "no reason given".into(), retry: Retry::BackOff }),
            ),
        ] {
            assert_eq!(parse(datagram, Action::Announce, TRANSACTION), expected);
        }
    }

    proptest! {
        #[test]
        fn arbitrary_datagrams_do_not_panic(datagram: Vec<u8>, v6: bool) {
            let _ = parse(&datagram, Action::Announce, TRANSACTION);
            let _ = parse_connect(&datagram);
            let _ = parse_scrape(&datagram);
            if let Ok(reply) = parse_announce(&datagram, v6) {
                let each = if v6 { 18 } else { 6 };
                prop_assert!(reply.peers.len() <= datagram.len() / each);
                prop_assert!(reply.peers.iter().all(|peer| peer.port() != 0));
            }
        }

        /// A tracker that implements BEP 41 gets the whole URL back.
        #[test]
        fn any_url_round_trips(path in "/[a-z0-9?&=%]{0,1000}") {
            let datagram = announce(None, &path);
            let (mut rest, mut received) = (&datagram[98..], Vec::<u8>::new());
            while let [URL_DATA, len, data @ ..] = rest {
                let (part, next) = data.split_at(usize::from(*len));
                received.extend(part);
                rest = next;
            }
            prop_assert!(rest.is_empty());
            prop_assert_eq!(received, path.as_bytes());
        }
    }
}
