//! The query string of an announce.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use percent_encoding::percent_decode_str;

use super::answer::Form;
use super::table::Announce;
use crate::metainfo::InfoHash;
use crate::wire::PeerId;

/// Peers given to one who does not say how many.
const DEFAULT_WANT: usize = 50;

/// A request in full.
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
}

/// Reads a query. The address is that of the connection; `ip` and the like are claims and go unread.
pub(super) fn parse(text: &str, from: IpAddr) -> Result<Query, BadQuery> {
    let get = |name: &str| {
        let mut pairs = text.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        pairs.find_map(|(key, value)| (key == name).then_some(value))
    };
    let twenty = |name: &'static str| -> Result<[u8; 20], BadQuery> {
        let value = get(name).ok_or(BadQuery::Missing(name))?;
        // Forms write a space as a plus.
        let value = value.replace('+', " ");
        let bytes: Cow<[u8]> = percent_decode_str(&value).into();
        bytes.as_ref().try_into().map_err(|_| BadQuery::NotTwentyBytes(name))
    };
    let number =
        |name: &'static str| get(name).map(|n| n.parse::<u64>().map_err(|_| BadQuery::NotANumber(name))).transpose();

    let info_hash = InfoHash(twenty("info_hash")?);
    let id = PeerId(twenty("peer_id")?);
    let port = match number("port")?.ok_or(BadQuery::Missing("port"))? {
        port @ 1..=0xffff => port as u16,
        _ => return Err(BadQuery::NotANumber("port")),
    };
    let left = number("left")?;
    // -1 is a usual way to say "as you like".
    let want = get("numwant").and_then(|n| n.parse().ok()).unwrap_or(DEFAULT_WANT);
    let form = match (get("compact"), get("no_peer_id")) {
        (Some("0"), Some("1")) => Form::Addresses,
        (Some("0"), _) => Form::WithIds,
        _ => Form::Compact,
    };
    let announce = Announce {
        info_hash,
        addr: SocketAddr::new(from.to_canonical(), port),
        id,
        seed: left == Some(0),
        stopped: get("event") == Some("stopped"),
        want,
    };
    Ok(Query { announce, form })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    const FROM: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 9));
    const SOUND: &str = "info_hash=%124Vx%9A%BC%DE%F1%23Eg%89%AB%CD%EF%124Vx%9A&peer_id=-XX0001-+++++aaaaaaa&port=6881";

    #[test]
    fn reads_an_announce() {
        let query = parse(&format!("{SOUND}&left=0&event=stopped&numwant=7&ip=8.8.8.8&compact=1"), FROM);
        assert_eq!(
            query,
            Ok(Query {
                announce: Announce {
                    info_hash: InfoHash(*b"\x12\x34\x56\x78\x9a\xbc\xde\xf1#Eg\x89\xab\xcd\xef\x124Vx\x9a"),
                    addr: (FROM, 6881).into(),
                    id: PeerId(*b"-XX0001-     aaaaaaa"),
                    seed: true,
                    stopped: true,
                    want: 7,
                },
                form: Form::Compact,
            })
        );
    }

    #[test]
    fn what_is_not_said() {
        let query = parse(SOUND, "::ffff:127.0.0.9".parse().unwrap()).unwrap();
        assert_eq!(query.form, Form::Compact);
        assert_eq!(query.announce.addr, (FROM, 6881).into());
        assert_eq!((query.announce.seed, query.announce.stopped, query.announce.want), (false, false, DEFAULT_WANT));
        let form = |rest: &str| parse(&format!("{SOUND}{rest}"), FROM).unwrap().form;
        assert_eq!(form("&compact=0"), Form::WithIds);
        assert_eq!(form("&compact=0&no_peer_id=1"), Form::Addresses);
        assert_eq!(parse(&format!("{SOUND}&numwant=-1"), FROM).unwrap().announce.want, DEFAULT_WANT);
    }

    #[test]
    fn refuses_nonsense() {
        let fault = |text: &str| parse(text, FROM).unwrap_err();
        assert_eq!(fault(""), BadQuery::Missing("info_hash"));
        assert_eq!(fault("info_hash"), BadQuery::NotTwentyBytes("info_hash"));
        assert_eq!(fault("info_hash=%1&peer_id="), BadQuery::NotTwentyBytes("info_hash"));
        assert_eq!(fault(&SOUND.replace("&peer_id", "&x")), BadQuery::Missing("peer_id"));
        assert_eq!(fault(&SOUND.replace("aaaaaaa", "")), BadQuery::NotTwentyBytes("peer_id"));
        assert_eq!(fault(&SOUND.replace("&port", "&x")), BadQuery::Missing("port"));
        for port in ["0", "65536", "-1", "", "x", "99999999999999999999999"] {
            assert_eq!(fault(&SOUND.replace("6881", port)), BadQuery::NotANumber("port"), "{port}");
        }
        assert_eq!(fault(&format!("{SOUND}&left=-5")), BadQuery::NotANumber("left"));
    }
}
