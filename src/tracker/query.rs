//! Parsing of the query strings of announces and scrapes over HTTP. Pure.

use std::net::{IpAddr, SocketAddr};

use percent_encoding::percent_decode_str;

use super::response::PeerFormat;
use super::table::{Announce, Event};
use crate::metainfo::InfoHash;

/// Number of peers in a response if the client asks for no number, as in other trackers.
pub(super) const DEFAULT_WANT: usize = 50;
/// Largest number of torrents in one scrape, the limit of BEP 15, which applies here to HTTP as well.
pub(super) const MAX_SCRAPE: usize = 74;

/// A parsed announce.
#[derive(Debug, PartialEq)]
pub(super) struct AnnounceQuery {
    pub announce: Announce,
    pub format: PeerFormat,
}

/// Error in a query; its text is sent to the client.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(super) enum QueryError {
    #[error("{0} is missing")]
    Missing(&'static str),
    #[error("{0} is not 20 bytes long")]
    NotTwentyBytes(&'static str),
    #[error("{0} is not a valid number")]
    NotANumber(&'static str),
    #[error("more than {MAX_SCRAPE} torrents in one scrape")]
    TooMany,
}

/// Splits a query string into keys and values.
fn pairs(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

/// Parses an announce. `from` is the address of the connection; the parameters `ip`, `ipv4` and `ipv6` are ignored, since
/// the client could claim any address. `key` and `peer_id` would identify a peer with several addresses; here each address
/// counts as a peer.
pub(super) fn parse(text: &str, from: IpAddr) -> Result<AnnounceQuery, QueryError> {
    let (mut info_hash, mut peer_id, mut port, mut left) = (None, None, None, None);
    let (mut want, mut event, mut compact, mut no_peer_id) = (None, "", "", "");
    for (key, value) in pairs(text) {
        // Of repeated keys, the first counts.
        match key {
            "info_hash" => _ = info_hash.get_or_insert(value),
            "peer_id" => _ = peer_id.get_or_insert(value),
            "port" => _ = port.get_or_insert(value),
            "left" => _ = left.get_or_insert(value),
            "numwant" => _ = want.get_or_insert(value),
            "event" if event.is_empty() => event = value,
            "compact" if compact.is_empty() => compact = value,
            "no_peer_id" if no_peer_id.is_empty() => no_peer_id = value,
            _ => {}
        }
    }
    let number = |name, value: &str| value.parse::<u64>().map_err(|_| QueryError::NotANumber(name));

    let info_hash = InfoHash(parse_20_bytes("info_hash", info_hash)?);
    parse_20_bytes("peer_id", peer_id)?;
    let port = match number("port", port.ok_or(QueryError::Missing("port"))?)? {
        // 0: the client cannot be reached.
        port @ 0..=0xffff => port as u16,
        _ => return Err(QueryError::NotANumber("port")),
    };
    let left = left.map(|left| number("left", left)).transpose()?;
    let announce = Announce {
        info_hash,
        addr: SocketAddr::new(from.to_canonical(), port),
        seed: left == Some(0),
        event: match event {
            "stopped" => Event::Stopped,
            "completed" => Event::Completed,
            _ => Event::Present,
        },
        // Anything else, usually -1, means the default.
        want: want.and_then(|n| n.parse().ok()).unwrap_or(DEFAULT_WANT),
        both_families: true,
    };
    let format = match (compact, no_peer_id) {
        ("0", _) => PeerFormat::Dictionaries,
        _ => PeerFormat::Compact,
    };
    Ok(AnnounceQuery { announce, format })
}

/// Parses a scrape. Returns each info hash once, in the order of a bencoded dictionary's keys.
pub(super) fn parse_scrape(text: &str) -> Result<Vec<InfoHash>, QueryError> {
    let values = pairs(text).filter(|(key, _)| *key == "info_hash").take(MAX_SCRAPE + 1);
    let mut hashes = values
        .map(|(_, value)| parse_20_bytes("info_hash", Some(value)).map(InfoHash))
        .collect::<Result<Vec<_>, _>>()?;
    match hashes.len() {
        // A scrape of all torrents would be long, and would reveal them.
        0 => return Err(QueryError::Missing("info_hash")),
        1..=MAX_SCRAPE => {}
        _ => return Err(QueryError::TooMany),
    }
    hashes.sort_unstable();
    hashes.dedup();
    Ok(hashes)
}

/// Decodes a percent-encoded value of 20 bytes.
fn parse_20_bytes(name: &'static str, value: Option<&str>) -> Result<[u8; 20], QueryError> {
    let value = value.ok_or(QueryError::Missing(name))?;
    let mut out = [0; 20];
    let mut decoded = percent_decode_str(value);
    // HTML forms encode a space as a plus; every client encodes a plus itself.
    let mut raw = value.contains('+').then(|| value.replace('+', " "));
    let mut bytes: &mut dyn Iterator<Item = u8> = &mut decoded;
    let mut spaced;
    if let Some(raw) = &mut raw {
        spaced = percent_decode_str(raw);
        bytes = &mut spaced;
    }
    for byte in &mut out {
        *byte = bytes.next().ok_or(QueryError::NotTwentyBytes(name))?;
    }
    if bytes.next().is_some() { Err(QueryError::NotTwentyBytes(name)) } else { Ok(out) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    const FROM: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 9));
    const VALID: &str = "info_hash=%124Vx%9A%BC%DE%F1%23Eg%89%AB%CD%EF%124Vx%9A&peer_id=-XX0001-+++++aaaaaaa&port=6881";
    const HASH: InfoHash = InfoHash(*b"\x12\x34\x56\x78\x9a\xbc\xde\xf1#Eg\x89\xab\xcd\xef\x124Vx\x9a");

    #[test]
    fn parses_an_announce() {
        let query = parse(&format!("{VALID}&left=0&event=stopped&numwant=7&ip=8.8.8.8&compact=1&left=5"), FROM);
        assert_eq!(
            query,
            Ok(AnnounceQuery {
                announce: Announce {
                    info_hash: HASH,
                    addr: (FROM, 6881).into(),
                    seed: true,
                    event: Event::Stopped,
                    want: 7,
                    both_families: true,
                },
                format: PeerFormat::Compact,
            })
        );
        assert_eq!(parse_20_bytes("x", Some("-XX0001-+++++aaaaa%2b%20")), Ok(*b"-XX0001-     aaaaa+ "));
    }

    #[test]
    fn omitted_parameters_have_defaults() {
        let query = parse(VALID, "::ffff:127.0.0.9".parse().unwrap()).unwrap();
        assert_eq!(query.format, PeerFormat::Compact);
        let announce = query.announce;
        assert_eq!(announce.addr, (FROM, 6881).into());
        assert_eq!((announce.seed, announce.event, announce.want), (false, Event::Present, DEFAULT_WANT));
        let with = |rest: &str| parse(&format!("{VALID}{rest}"), FROM).unwrap();
        assert_eq!(with("&compact=0").format, PeerFormat::Dictionaries);
        assert_eq!(with("&compact=0&no_peer_id=1").format, PeerFormat::Dictionaries);
        assert_eq!(with("&numwant=-1").announce.want, DEFAULT_WANT);
        assert_eq!(with("&event=completed").announce.event, Event::Completed);
        assert_eq!(with("&event=&event=started").announce.event, Event::Present);
    }

    #[test]
    fn refuses_malformed_queries() {
        let error = |text: &str| parse(text, FROM).unwrap_err();
        assert_eq!(error(""), QueryError::Missing("info_hash"));
        assert_eq!(error("info_hash"), QueryError::NotTwentyBytes("info_hash"));
        assert_eq!(error("info_hash=%1&peer_id="), QueryError::NotTwentyBytes("info_hash"));
        assert_eq!(error(&VALID.replace("&peer_id", "&x")), QueryError::Missing("peer_id"));
        assert_eq!(error(&VALID.replace("aaaaaaa", "")), QueryError::NotTwentyBytes("peer_id"));
        assert_eq!(error(&VALID.replace("aaaaaaa", "aaaaaaaa")), QueryError::NotTwentyBytes("peer_id"));
        assert_eq!(error(&VALID.replace("&port", "&x")), QueryError::Missing("port"));
        assert_eq!(parse(&VALID.replace("6881", "0"), FROM).unwrap().announce.addr.port(), 0);
        for port in ["65536", "-1", "", "x", "99999999999999999999999"] {
            assert_eq!(error(&VALID.replace("6881", port)), QueryError::NotANumber("port"), "{port}");
        }
        assert_eq!(error(&format!("{VALID}&left=-5")), QueryError::NotANumber("left"));
    }

    #[test]
    fn scrapes_are_bounded() {
        let one = VALID.split('&').next().unwrap();
        assert_eq!(parse_scrape(one), Ok(vec![HASH]));
        assert_eq!(parse_scrape(&format!("{one}&x=1&{one}")), Ok(vec![HASH]));
        let other = format!("info_hash={}", "%01".repeat(20));
        assert_eq!(parse_scrape(&format!("{one}&{other}")), Ok(vec![InfoHash([1; 20]), HASH]));
        assert_eq!(parse_scrape(""), Err(QueryError::Missing("info_hash")));
        assert_eq!(parse_scrape("info_hash=x"), Err(QueryError::NotTwentyBytes("info_hash")));
        assert_eq!(parse_scrape(&vec![one; MAX_SCRAPE + 1].join("&")), Err(QueryError::TooMany));
    }
}
