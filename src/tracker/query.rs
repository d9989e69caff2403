//! The query strings of announces and scrapes over HTTP. Pure.

use std::net::{IpAddr, SocketAddr};

use percent_encoding::percent_decode_str;

use super::answer::Form;
use super::table::{Announce, Event};
use crate::metainfo::InfoHash;

/// Peers given to one who does not say how many.
pub(super) const DEFAULT_WANT: usize = 50;
/// Torrents in one scrape, as over UDP.
pub(super) const MAX_SCRAPE: usize = 74;

/// An announce in full.
#[derive(Debug, PartialEq)]
pub(super) struct Query {
    pub announce: Announce,
    pub form: Form,
}

/// Why a request is refused; the client is told.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(super) enum BadQuery {
    #[error("{0} is missing")]
    Missing(&'static str),
    #[error("{0} is not 20 bytes long")]
    NotTwentyBytes(&'static str),
    #[error("{0} is not a number in range")]
    NotANumber(&'static str),
    #[error("more than {MAX_SCRAPE} torrents in one scrape")]
    TooMany,
}

fn pairs(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

/// Reads an announce. The address is that of the connection; `ip` and the like are claims and go unread. So do `key`
/// and the id, which tell one peer's addresses from many peers': here each address is a peer.
pub(super) fn parse(text: &str, from: IpAddr) -> Result<Query, BadQuery> {
    let (mut info_hash, mut peer_id, mut port, mut left) = (None, None, None, None);
    let (mut want, mut event, mut compact, mut no_peer_id) = (None, "", "", "");
    for (key, value) in pairs(text) {
        // The first of several counts.
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
    let number = |name, value: &str| value.parse::<u64>().map_err(|_| BadQuery::NotANumber(name));

    let info_hash = InfoHash(twenty("info_hash", info_hash)?);
    twenty("peer_id", peer_id)?;
    let port = match number("port", port.ok_or(BadQuery::Missing("port"))?)? {
        port @ 1..=0xffff => port as u16,
        _ => return Err(BadQuery::NotANumber("port")),
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
        // -1 is a usual way to say "as you like".
        want: want.and_then(|n| n.parse().ok()).unwrap_or(DEFAULT_WANT),
        both_families: true,
    };
    let form = match (compact, no_peer_id) {
        ("0", _) => Form::Dictionaries,
        _ => Form::Compact,
    };
    Ok(Query { announce, form })
}

/// Reads a scrape: each torrent once, in the order in which a dictionary has them.
pub(super) fn parse_scrape(text: &str) -> Result<Vec<InfoHash>, BadQuery> {
    let named = pairs(text).filter(|(key, _)| *key == "info_hash").take(MAX_SCRAPE + 1);
    let mut hashes =
        named.map(|(_, value)| twenty("info_hash", Some(value)).map(InfoHash)).collect::<Result<Vec<_>, _>>()?;
    match hashes.len() {
        // The list of all is nobody's business, and long.
        0 => return Err(BadQuery::Missing("info_hash")),
        1..=MAX_SCRAPE => {}
        _ => return Err(BadQuery::TooMany),
    }
    hashes.sort_unstable();
    hashes.dedup();
    Ok(hashes)
}

fn twenty(name: &'static str, value: Option<&str>) -> Result<[u8; 20], BadQuery> {
    let value = value.ok_or(BadQuery::Missing(name))?;
    let mut out = [0; 20];
    let mut decoded = percent_decode_str(value);
    // Forms write a space as a plus; a plus itself is escaped by everybody.
    let mut raw = value.contains('+').then(|| value.replace('+', " "));
    let mut bytes: &mut dyn Iterator<Item = u8> = &mut decoded;
    let mut spaced;
    if let Some(raw) = &mut raw {
        spaced = percent_decode_str(raw);
        bytes = &mut spaced;
    }
    for byte in &mut out {
        *byte = bytes.next().ok_or(BadQuery::NotTwentyBytes(name))?;
    }
    if bytes.next().is_some() { Err(BadQuery::NotTwentyBytes(name)) } else { Ok(out) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    const FROM: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 9));
    const SOUND: &str = "info_hash=%124Vx%9A%BC%DE%F1%23Eg%89%AB%CD%EF%124Vx%9A&peer_id=-XX0001-+++++aaaaaaa&port=6881";
    const HASH: InfoHash = InfoHash(*b"\x12\x34\x56\x78\x9a\xbc\xde\xf1#Eg\x89\xab\xcd\xef\x124Vx\x9a");

    #[test]
    fn reads_an_announce() {
        let query = parse(&format!("{SOUND}&left=0&event=stopped&numwant=7&ip=8.8.8.8&compact=1&left=5"), FROM);
        assert_eq!(
            query,
            Ok(Query {
                announce: Announce {
                    info_hash: HASH,
                    addr: (FROM, 6881).into(),
                    seed: true,
                    event: Event::Stopped,
                    want: 7,
                    both_families: true,
                },
                form: Form::Compact,
            })
        );
        assert_eq!(twenty("x", Some("-XX0001-+++++aaaaa%2b%20")), Ok(*b"-XX0001-     aaaaa+ "));
    }

    #[test]
    fn what_is_not_said() {
        let query = parse(SOUND, "::ffff:127.0.0.9".parse().unwrap()).unwrap();
        assert_eq!(query.form, Form::Compact);
        let announce = query.announce;
        assert_eq!(announce.addr, (FROM, 6881).into());
        assert_eq!((announce.seed, announce.event, announce.want), (false, Event::Present, DEFAULT_WANT));
        let with = |rest: &str| parse(&format!("{SOUND}{rest}"), FROM).unwrap();
        assert_eq!(with("&compact=0").form, Form::Dictionaries);
        assert_eq!(with("&compact=0&no_peer_id=1").form, Form::Dictionaries);
        assert_eq!(with("&numwant=-1").announce.want, DEFAULT_WANT);
        assert_eq!(with("&event=completed").announce.event, Event::Completed);
        assert_eq!(with("&event=&event=started").announce.event, Event::Present);
    }

    #[test]
    fn refuses_nonsense() {
        let fault = |text: &str| parse(text, FROM).unwrap_err();
        assert_eq!(fault(""), BadQuery::Missing("info_hash"));
        assert_eq!(fault("info_hash"), BadQuery::NotTwentyBytes("info_hash"));
        assert_eq!(fault("info_hash=%1&peer_id="), BadQuery::NotTwentyBytes("info_hash"));
        assert_eq!(fault(&SOUND.replace("&peer_id", "&x")), BadQuery::Missing("peer_id"));
        assert_eq!(fault(&SOUND.replace("aaaaaaa", "")), BadQuery::NotTwentyBytes("peer_id"));
        assert_eq!(fault(&SOUND.replace("aaaaaaa", "aaaaaaaa")), BadQuery::NotTwentyBytes("peer_id"));
        assert_eq!(fault(&SOUND.replace("&port", "&x")), BadQuery::Missing("port"));
        for port in ["0", "65536", "-1", "", "x", "99999999999999999999999"] {
            assert_eq!(fault(&SOUND.replace("6881", port)), BadQuery::NotANumber("port"), "{port}");
        }
        assert_eq!(fault(&format!("{SOUND}&left=-5")), BadQuery::NotANumber("left"));
    }

    #[test]
    fn scrapes_are_bounded() {
        let one = SOUND.split('&').next().unwrap();
        assert_eq!(parse_scrape(one), Ok(vec![HASH]));
        assert_eq!(parse_scrape(&format!("{one}&x=1&{one}")), Ok(vec![HASH]));
        let other = format!("info_hash={}", "%01".repeat(20));
        assert_eq!(parse_scrape(&format!("{one}&{other}")), Ok(vec![InfoHash([1; 20]), HASH]));
        assert_eq!(parse_scrape(""), Err(BadQuery::Missing("info_hash")));
        assert_eq!(parse_scrape("info_hash=x"), Err(BadQuery::NotTwentyBytes("info_hash")));
        assert_eq!(parse_scrape(&vec![one; MAX_SCRAPE + 1].join("&")), Err(BadQuery::TooMany));
    }
}
