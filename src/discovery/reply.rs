//! Tracker replies over HTTP: from bencode to values.
//!
//! Trackers are scripts of many hands, so a reply is used if it has a usable peer or a usable interval, whatever else is
//! wrong with it: bytes after it, a missing end, a key given twice, a number as a string, a bad entry among good ones.
//! [`Reply::ignored`] says what was wrong. Counts and sizes are bounded.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::{AnnounceError, Answer, Retry};
use crate::metainfo::bencode::{Reader, Value};
use crate::util::printable;
use crate::wire::take_compact;

/// Addresses used from one reply. Far more than we can connect to; the rest is dropped.
pub(super) const MAX_PEERS: usize = 1000;
/// Characters displayed of a tracker's message: enough for one line of a log.
pub(super) const MAX_TEXT: usize = 200;
/// The reason why a reply without anything usable is rejected.
const MALFORMED: &str = "it is malformed or cut off";
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
    /// What was wrong with the reply, in one line.
    pub ignored: Option<String>,
}

/// Parses an announce reply. A `failure reason` makes it an error, unless it is empty or there are peers all the same;
/// then it becomes a warning.
pub(super) fn parse(body: &[u8]) -> Result<Reply, AnnounceError> {
    let mut raw = Raw::default();
    raw.read(body)?;
    let Raw { peers, failure, sound, .. } = raw;
    let reason = failure.filter(|reason| !reason.is_empty());
    if peers.found.is_empty() {
        match (reason, failure) {
            (Some(reason), _) => return Err(refused(reason, raw.retry_in.unwrap_or(Retry::BackOff))),
            (None, Some(_)) if raw.interval.is_none() => {
                return Err(refused(b"", raw.retry_in.unwrap_or(Retry::BackOff)));
            }
            (None, None) if raw.interval.is_none() && !(peers.given && sound) => {
                let why = if sound { "it has neither peers nor an interval" } else { MALFORMED };
                return Err(AnnounceError::Garbage(why.into()));
            }
            _ => {}
        }
    }
    let seconds = |n: Option<i64>| n.and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0).map(Duration::from_secs);
    let count = |n: Option<i64>| n.and_then(|n| u64::try_from(n).ok());
    let warning = [raw.warning, reason].into_iter().flatten().map(|text| printable(text, MAX_TEXT));
    Ok(Reply {
        interval: seconds(raw.interval),
        min_interval: seconds(raw.min_interval),
        tracker_id: raw.tracker_id.filter(|id| !id.is_empty() && id.len() <= MAX_TRACKER_ID).map(<[u8]>::to_vec),
        ignored: ignored(&peers, &raw.ignored, sound, raw.trailing),
        answer: Answer {
            seeders: count(raw.complete),
            leechers: count(raw.incomplete),
            peers: peers.found.len(),
            warning: warning.into_iter().find(|text| !text.is_empty()),
            external_ip: raw.external_ip,
        },
        peers: peers.found,
    })
}

/// Returns whether a body holds a whole dictionary, so that nothing more needs to be waited for.
pub(super) fn is_whole(body: &[u8]) -> bool {
    matches!(Reader::new(start(body)).next(), Some(Value::Dict(dict)) if dict.is_sound())
}

/// Builds the error for a tracker's `failure reason`.
pub(super) fn refused(reason: &[u8], retry: Retry) -> AnnounceError {
    let reason = match printable(reason, MAX_TEXT) {
        empty if empty.is_empty() => "no reason given".to_owned(),
        reason => reason,
    };
    AnnounceError::Refused { reason, retry }
}

/// Returns a body without what some scripts print before it: white space and a byte order mark.
fn start(body: &[u8]) -> &[u8] {
    let body = body.trim_ascii_start();
    body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body).trim_ascii_start()
}

/// Returns the dictionary that a body starts with, and the bytes that follow it.
pub(super) fn dictionary(body: &[u8]) -> Result<(Reader<'_>, &[u8]), AnnounceError> {
    let body = start(body);
    let mut reader = Reader::new(body);
    match reader.next() {
        Some(Value::Dict(dict)) => Ok((dict, reader.rest().trim_ascii_end())),
        _ => Err(AnnounceError::Garbage(match body {
            [] => "it is empty".into(),
            [b'<', ..] => "it is a web page".into(),
            _ => "it is not bencode".into(),
        })),
    }
}

/// The fields of a reply, as far as they could be read.
#[derive(Default)]
struct Raw<'a> {
    failure: Option<&'a [u8]>,
    retry_in: Option<Retry>,
    warning: Option<&'a [u8]>,
    interval: Option<i64>,
    min_interval: Option<i64>,
    tracker_id: Option<&'a [u8]>,
    complete: Option<i64>,
    incomplete: Option<i64>,
    external_ip: Option<IpAddr>,
    peers: Peers,
    /// Names of fields with an unusable value or given twice.
    ignored: Vec<&'static str>,
    /// The dictionary is well-formed.
    sound: bool,
    /// Other bytes follow the dictionary.
    trailing: bool,
}

impl<'a> Raw<'a> {
    fn read(&mut self, body: &'a [u8]) -> Result<(), AnnounceError> {
        let (dict, rest) = dictionary(body)?;
        let mut pairs = dict.pairs();
        for (key, value) in pairs.by_ref() {
            match key {
                b"failure reason" => self.set("failure reason", value.bytes(), |raw| &mut raw.failure),
                b"retry in" => self.set("retry in", Some(retry(&value)), |raw| &mut raw.retry_in),
                b"warning message" => self.set("warning message", value.bytes(), |raw| &mut raw.warning),
                b"interval" => self.set("interval", value.number(), |raw| &mut raw.interval),
                b"min interval" => self.set("min interval", value.number(), |raw| &mut raw.min_interval),
                b"tracker id" => self.set("tracker id", value.bytes(), |raw| &mut raw.tracker_id),
                b"complete" => self.set("complete", value.number(), |raw| &mut raw.complete),
                b"incomplete" => self.set("incomplete", value.number(), |raw| &mut raw.incomplete),
                b"external ip" => self.set("external ip", value.bytes().and_then(ip), |raw| &mut raw.external_ip),
                b"peers" => self.peers.read(&value, false),
                b"peers6" => self.peers.read(&value, true),
                _ => {}
            }
        }
        (self.sound, self.trailing) = (pairs.is_sound(), !rest.is_empty());
        // Some trackers close the dictionary before they add the last peers.
        for (key, value) in Reader::new(rest).pairs() {
            match key {
                b"peers" => self.peers.read(&value, false),
                b"peers6" => self.peers.read(&value, true),
                _ => {}
            }
        }
        Ok(())
    }

    /// Sets a field, unless the value is unusable or the field has one already.
    fn set<T>(&mut self, name: &'static str, value: Option<T>, field: impl Fn(&mut Self) -> &mut Option<T>) {
        let field = field(self);
        match value {
            Some(value) if field.is_none() => *field = Some(value),
            _ if self.ignored.contains(&name) => {}
            _ => self.ignored.push(name),
        }
    }
}

/// The addresses of a reply: at most `MAX_PEERS`, all dialable.
#[derive(Default)]
struct Peers {
    found: Vec<SocketAddr>,
    /// There was a list, perhaps empty.
    given: bool,
    /// Entries that could not be read.
    unreadable: usize,
}

impl Peers {
    /// Reads compact addresses (BEP 7, BEP 23) or a list of dictionaries (BEP 3). Some scripts write a list as a
    /// dictionary with numbers as keys, and some list compact addresses.
    fn read(&mut self, value: &Value, v6: bool) {
        match *value {
            Value::String(bytes) => {
                self.given = true;
                self.compact(bytes, if v6 { 18 } else { 6 });
            }
            Value::List(items) => {
                self.given = true;
                items.for_each(|item| self.item(&item));
            }
            Value::Dict(items) => {
                self.given = true;
                items.pairs().for_each(|(_, item)| self.item(&item));
            }
            Value::Integer(_) => self.unreadable += 1,
        }
    }

    fn item(&mut self, item: &Value) {
        match *item {
            Value::Dict(entry) => match address(entry) {
                Some(addr) => self.add(addr),
                None => self.unreadable += 1,
            },
            Value::String(bytes) => match (bytes.len(), str::from_utf8(bytes).map(str::parse)) {
                (_, Ok(Ok(addr))) => self.add(addr),
                (len @ (6 | 18), _) => self.compact(bytes, len),
                _ => self.unreadable += 1,
            },
            _ => self.unreadable += 1,
        }
    }

    fn compact(&mut self, bytes: &[u8], len: usize) {
        bytes.chunks_exact(len).filter_map(take_compact).for_each(|addr| self.add(addr));
    }

    fn add(&mut self, addr: SocketAddr) {
        if self.found.len() < MAX_PEERS {
            self.found.extend(dialable(addr));
        }
    }
}

/// Reads the address of a peer from its dictionary. Host names, which BEP 3 allows, are not resolved: a stranger would
/// choose what we look up.
fn address(entry: Reader) -> Option<SocketAddr> {
    let (mut host, mut port) = (None, None);
    for (key, value) in entry.pairs() {
        match key {
            b"ip" => host = host.or(value.bytes().and_then(ip)),
            b"port" => port = port.or(value.number().and_then(|port| u16::try_from(port).ok())),
            _ => {}
        }
    }
    Some(SocketAddr::new(host?, port?))
}

/// Reads minutes, as a number or in digits, or `never` (BEP 31). Any other value counts as unspecified.
fn retry(value: &Value) -> Retry {
    match value.number().map(u64::try_from) {
        Some(Ok(minutes @ 1..)) => Retry::After(Duration::from_secs(minutes.saturating_mul(60))),
        _ if value.bytes() == Some(b"never") => Retry::Never,
        _ => Retry::BackOff,
    }
}

/// Describes what was ignored, in one line.
fn ignored(peers: &Peers, fields: &[&str], sound: bool, trailing: bool) -> Option<String> {
    let mut notes: Vec<String> = fields.iter().map(|name| format!("a value of `{name}`")).collect();
    notes.extend((peers.unreadable > 0).then(|| format!("{} unreadable peers", peers.unreadable)));
    notes.extend((!sound).then(|| "what follows where it is malformed or cut off".to_owned()));
    notes.extend((sound && trailing).then(|| "bytes after the dictionary".to_owned()));
    (!notes.is_empty()).then(|| notes.join(", "))
}

/// Decodes addresses of 6 bytes each (BEP 23) and drops unusable ones and a truncated last one.
pub(super) fn compact4(bytes: &[u8]) -> impl Iterator<Item = SocketAddr> {
    bytes.chunks_exact(6).filter_map(take_compact).filter_map(dialable)
}

/// Decodes addresses of 18 bytes each (BEP 7) in the same way.
pub(super) fn compact6(bytes: &[u8]) -> impl Iterator<Item = SocketAddr> {
    bytes.chunks_exact(18).filter_map(take_compact).filter_map(dialable)
}

/// Reads an address as text, or as 4 or 16 bytes (BEP 24).
fn ip(bytes: &[u8]) -> Option<IpAddr> {
    let text = str::from_utf8(bytes).unwrap_or_default().trim().trim_start_matches('[').trim_end_matches(']');
    let raw = || {
        let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
        v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
    };
    text.parse().ok().or_else(raw).map(|ip: IpAddr| ip.to_canonical())
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
                ignored: None,
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
            b"d5:peers5:\x7f\0\0\x01\x1a",
            b"d5:peersi1ee",
            b"d8:interval5:helloe",
            b"i3e",
            b"\xef\xbb\xbf\r\n",
            &nested,
        ] {
            let error = parse(body).unwrap_err();
            assert!(matches!(error, AnnounceError::Garbage(_)), "{error:?}");
            assert!(!error.to_string().contains('\n'));
        }
    }

    /// Bodies that trackers send although they are wrong. Each has one good peer.
    const ODD: [(&[u8], &str); 25] = [
        (b"d8:intervali1800ee5:peers6:\x7f\0\0\x01\x1a\xe1", "bytes after"),
        (b"d8:intervali1800e5:peers6:\x7f\0\0\x01\x1a\xe1e6:peers60:", "bytes after"),
        (b"d8:intervali1800e5:peers6:\x7f\0\0\x01\x1a\xe1e\n<!-- 0.01 s -->", "bytes after"),
        (b"d5:peersld4:porti1eed2:ip9:127.0.0.14:porti6881eeee", "1 unreadable"),
        (b"d5:peersld2:ip7:1.2.3.44:port3:abced2:ip9:127.0.0.14:port4:6881eee", "1 unreadable"),
        (b"d5:peersld2:ip7:1.2.3.44:porti70000eed2:ip9:127.0.0.14:porti6881eeee", "1 unreadable"),
        (b"d5:peersld2:ip9:localhost4:porti1eed2:ip4:\x7f\0\0\x014:porti6881eeee", "1 unreadable"),
        (b"d5:peersli7e3:abcled2:ip9:127.0.0.14:porti6881eeee", "3 unreadable"),
        (b"d8:interval4:18005:peers6:\x7f\0\0\x01\x1a\xe1e", ""),
        (
            b"d8:completele10:incomplete0:5:peers6:\x7f\0\0\x01\x1a\xe1e",
            "a value of `complete`, a value of `incomplete`",
        ),
        (b"d8:intervali99999999999999999999e5:peers6:\x7f\0\0\x01\x1a\xe1e", ""),
        (b"d8:intervali-1e12:min intervali-99999999999999999999e5:peers6:\x7f\0\0\x01\x1a\xe1e", ""),
        (b"d8:intervali01800e5:peers06:\x7f\0\0\x01\x1a\xe1e", ""),
        (b"d8:interval6:1800.55:peers6:\x7f\0\0\x01\x1a\xe1e", ""),
        (b"d8:intervali1800e8:intervali1800e5:peers6:\x7f\0\0\x01\x1a\xe1e", "a value of `interval`"),
        (b"d5:peers0:5:peers6:\x7f\0\0\x01\x1a\xe1e", ""),
        (b"d14:failure reason0:8:intervali1800e5:peers6:\x7f\0\0\x01\x1a\xe1e", ""),
        (b"d14:failure reasonle8:intervali1800e5:peers6:\x7f\0\0\x01\x1a\xe1e", "a value of `failure reason`"),
        (b"d8:intervali1800e5:peers6:\x7f\0\0\x01\x1a\xe1", "cut off"),
        (b"d8:intervali1800e5:peers60:\x7f\0\0\x01\x1a\xe1e", "cut off"),
        (b"d8:intervali1800e5:peers6:\x7f\0\0\x01\x1a\xe1?e", "malformed"),
        (b"\xef\xbb\xbf\r\nd5:peers6:\x7f\0\0\x01\x1a\xe1e\0", "bytes after"),
        (b"d5:peersd1:0d2:ip9:127.0.0.14:porti6881eeee", ""),
        (b"d5:peersl6:\x7f\0\0\x01\x1a\xe1ee", ""),
        (b"d5:peersl14:127.0.0.1:6881ee", ""),
    ];

    #[test]
    fn a_reply_with_a_usable_peer_is_used() {
        for (body, note) in ODD {
            let shown = body.escape_ascii();
            let reply = parse(body).unwrap_or_else(|error| panic!("{shown}: {error}"));
            assert_eq!(reply.peers, ["127.0.0.1:6881".parse().unwrap()], "{shown}");
            let ignored = reply.ignored.unwrap_or_default();
            assert!(ignored.contains(note) && ignored.is_empty() == note.is_empty(), "{shown}: {ignored}");
            assert!(reply.interval.is_none_or(|interval| interval >= Duration::from_secs(1800)), "{shown}");
        }
    }

    #[test]
    fn a_reply_with_a_usable_interval_is_used() {
        for body in [
            b"d8:intervali1800ee".as_slice(),
            b"d8:intervali1800e5:peers",
            b"d8:intervali1800e5:peers99999999999:x",
            b"d8:intervali1800e5:peersi3ee and more",
            b"d14:failure reason0:8:intervali1800ee",
        ] {
            let reply = parse(body).unwrap();
            assert_eq!((reply.interval, reply.peers), (Some(Duration::from_secs(1800)), vec![]));
        }
        assert!(parse(b"d5:peers0:e<!-- -->").unwrap().peers.is_empty());
    }

    #[test]
    fn peers_beside_a_reason_are_used() {
        let reply = parse(b"d14:failure reason9:slow down5:peers6:\x7f\0\0\x01\x1a\xe1e").unwrap();
        assert_eq!((reply.peers.len(), reply.answer.warning.as_deref()), (1, Some("slow down")));
    }

    #[test]
    fn only_a_whole_dictionary_ends_a_reply() {
        for (body, whole) in [
            (b"d5:peers0:e".as_slice(), true),
            (b" d5:peers0:e, and more", true),
            (b"d5:peers0:", false),
            (b"d5:peers2:ee", false),
            (b"", false),
            (b"<html>", false),
        ] {
            assert_eq!(is_whole(body), whole, "{}", body.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_not_panic(body: Vec<u8>) {
            let _ = parse(&body);
        }

        #[test]
        fn damaged_replies_do_not_panic(
            which in 0..ODD.len(), at: prop::sample::Index, byte in prop::sample::select(b"dlei0:9\xff".to_vec()),
        ) {
            let mut body = ODD[which].0.to_vec();
            let at = at.index(body.len());
            body[at] = byte;
            let _ = parse(&body);
            let _ = parse(&body[..at]);
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
