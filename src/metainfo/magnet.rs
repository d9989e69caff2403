//! Magnet links (BEP 9): the info hash of a torrent, with hints where to find it.

use std::borrow::Cow;
use std::fmt;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::error::MetainfoError;
use super::identity::InfoHash;
use super::legacy::Decoder;
use super::names;
use super::sniff::Kind;
use super::text;
use super::torrent::Metainfo;

/// Limit on trackers, web seeds and peers each; further ones are ignored to bound memory.
const MAX_SOURCES: usize = 128;
/// Length limit of a value in bytes; longer ones are ignored.
const MAX_VALUE_LEN: usize = 4096;
/// Number of times that a value may be percent-encoded beyond the first.
const MAX_ENCODED: usize = 2;

/// The content of a magnet link, or of a bare info hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Magnet {
    /// `xt`: identifies the torrent.
    pub info_hash: InfoHash,
    /// `dn`: name to show until the metadata is known. Made printable.
    pub name: Option<String>,
    /// `tr`: trackers, each a tier of its own.
    pub trackers: Vec<String>,
    /// `ws`: web seeds (BEP 19).
    pub web_seeds: Vec<String>,
    /// `x.pe`: peers as `host:port`, not resolved.
    pub peers: Vec<String>,
}

/// Why a link identifies no torrent. Each message is one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MagnetError {
    /// It does not begin with `magnet:?`.
    #[error("it is not a magnet link")]
    NotAMagnet,
    /// A file that should contain a magnet link contains none.
    #[error("the file contains no magnet link: {0}")]
    NoLink(Kind),
    /// It has no `xt` of BitTorrent.
    #[error("the magnet link names no torrent (no xt=urn:btih:…)")]
    NoTorrent,
    /// The info hash has a wrong length or invalid characters.
    #[error("the magnet link's info hash {0:?} is neither 40 hexadecimal nor 32 base32 digits")]
    BadHash(String),
    /// It has only a v2 hash.
    #[error("BitTorrent v2-only magnet links are not supported yet; use a v1 or hybrid link to the same files")]
    V2Only,
}

/// Characters to percent-encode in a value. The others need no quoting in a shell, though the link's own `&` does.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

impl fmt::Display for Magnet {
    /// Writes the link as [`Magnet::parse`] reads it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "magnet:?xt=urn:btih:{}", self.info_hash)?;
        let named = self.name.iter().map(|name| ("dn", name));
        let trackers = self.trackers.iter().map(|url| ("tr", url));
        let seeds = self.web_seeds.iter().map(|url| ("ws", url));
        let peers = self.peers.iter().map(|peer| ("x.pe", peer));
        named
            .chain(trackers)
            .chain(seeds)
            .chain(peers)
            .try_for_each(|(key, value)| write!(f, "&{key}={}", utf8_percent_encode(value, ESCAPED)))
    }
}

impl From<InfoHash> for Magnet {
    fn from(info_hash: InfoHash) -> Self {
        Self { info_hash, name: None, trackers: Vec::new(), web_seeds: Vec::new(), peers: Vec::new() }
    }
}

impl Magnet {
    /// Parses a link. Unknown and invalid parameters are ignored, and so is what copying a link may add: spaces, quotes, line
    /// breaks, `&amp;` for `&`, parameters or the whole link encoded once more.
    pub fn parse(link: &str) -> Result<Self, MagnetError> {
        let link = text::unquote(link).replace(['\r', '\n', '\t'], "");
        let link = decode_while(&link, |link| starts_with(link, "magnet%"));
        let query = strip_prefix(&link, "magnet:").ok_or(MagnetError::NotAMagnet)?;
        let query = query.trim_start_matches('/');
        let query = query.strip_prefix('?').unwrap_or(query);
        let mut hash = None;
        let mut fault = MagnetError::NoTorrent;
        let (mut name, mut trackers, mut web_seeds, mut peers) = (None, Vec::new(), Vec::new(), Vec::new());
        for (key, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
            let key = unescape_html(key);
            // Some programs number parameters: `tr.1`, `tr.2`. In `x.pe` the dot is part of the name.
            let key = match key.rsplit_once('.') {
                Some((key, number)) if number.bytes().all(|byte| byte.is_ascii_digit()) => key,
                _ => key,
            };
            let key = key.to_ascii_lowercase();
            if key == "dn" {
                name = parse_name(value).or(name);
                continue;
            }
            let Ok(value) = percent_decode_str(value).decode_utf8() else { continue };
            let encoded_again = match key.as_str() {
                "xt" => |value: &str| !starts_with(value, "urn:"),
                "tr" | "ws" => |value: &str| !value.contains("://"),
                _ => |value: &str| !value.contains(':'),
            };
            let value = decode_while(&value, encoded_again);
            let value = value.trim();
            match key.as_str() {
                "xt" => match parse_topic(value) {
                    Ok(found) => hash = hash.or(found),
                    Err(error) => fault = error,
                },
                // Some links have pieces of web pages here.
                "tr" if is_url(value) => add(&mut trackers, value),
                "ws" if is_url(value) => add(&mut web_seeds, value),
                "x.pe" => add(&mut peers, value),
                _ => {}
            }
        }
        let info_hash = hash.ok_or(fault)?;
        Ok(Self { info_hash, name, trackers, web_seeds, peers })
    }

    /// Parses a text that may be a magnet link or an info hash: 40 hexadecimal or 32 base32 digits, alone or after
    /// `urn:btih:`. Returns `None` if it is neither.
    pub fn from_text(text: &str) -> Option<Result<Self, MagnetError>> {
        let text = text::unquote(text);
        if starts_with(text, "magnet:") || starts_with(text, "magnet%3a") {
            return Some(Self::parse(text));
        }
        let hash = if starts_with(text, "urn:") { parse_topic(text).transpose() } else { parse_hash(text).map(Ok) };
        hash.map(|hash| hash.map(Self::from))
    }

    /// Builds a `.torrent` file from this link and an `info` value. The caller has checked the value's hash.
    pub fn torrent(&self, info: &[u8]) -> Vec<u8> {
        let string = |text: &str| format!("{}:{text}", text.len());
        let mut out = b"d".to_vec();
        if !self.trackers.is_empty() {
            let tiers: String = self.trackers.iter().map(|url| format!("l{}e", string(url))).collect();
            out.extend_from_slice(format!("13:announce-listl{tiers}e").as_bytes());
        }
        out.extend_from_slice(b"4:info");
        out.extend_from_slice(info);
        if !self.web_seeds.is_empty() {
            let seeds: String = self.web_seeds.iter().map(|url| string(url)).collect();
            out.extend_from_slice(format!("8:url-listl{seeds}e").as_bytes());
        }
        out.push(b'e');
        out
    }

    /// Parses the torrent that this link and an `info` value make.
    pub fn metainfo(&self, info: &[u8]) -> Result<Metainfo, MetainfoError> {
        Metainfo::parse(&self.torrent(info))
    }
}

impl Metainfo {
    /// Returns a magnet link to this torrent.
    pub fn magnet(&self) -> Magnet {
        Magnet {
            info_hash: self.info_hash,
            name: Some(self.name.clone()),
            trackers: self.trackers.iter().flatten().cloned().collect(),
            web_seeds: self.web_seeds.clone(),
            peers: Vec::new(),
        }
    }

    /// Adds the trackers (as further tiers) and web seeds of a link to this torrent, unless they are known.
    pub fn merge(&mut self, magnet: &Magnet) {
        for url in &magnet.trackers {
            if !self.trackers.iter().flatten().any(|known| known == url) {
                self.trackers.push(vec![url.clone()]);
            }
        }
        for url in &magnet.web_seeds {
            add(&mut self.web_seeds, url);
        }
    }
}

fn starts_with(text: &str, prefix: &str) -> bool {
    strip_prefix(text, prefix).is_some()
}

/// Returns whether a value begins as a URL does.
fn is_url(value: &str) -> bool {
    let is_scheme = |scheme: &str| !scheme.is_empty() && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric());
    value.split_once("://").is_some_and(|(scheme, rest)| is_scheme(scheme) && !rest.is_empty())
}

/// Removes a prefix, in upper or lower case.
fn strip_prefix<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let (start, rest) = text.split_at_checked(prefix.len())?;
    start.eq_ignore_ascii_case(prefix).then_some(rest)
}

/// Decodes a value further while it is not what it must be, at most as often as programs are known to encode it.
fn decode_while(value: &str, is_encoded: impl Fn(&str) -> bool) -> Cow<'_, str> {
    let mut value = Cow::Borrowed(value);
    for _ in 0..MAX_ENCODED {
        if !is_encoded(&value) || !value.contains('%') {
            break;
        }
        let Ok(decoded) = percent_decode_str(&value).decode_utf8() else { break };
        value = Cow::Owned(decoded.into_owned());
    }
    value
}

/// Removes what is left of an `&amp;`, split at the `&`, from a key.
fn unescape_html(mut key: &str) -> &str {
    while let Some(rest) = ["amp;", "#38;", "#038;", "#x26;"].iter().find_map(|escape| strip_prefix(key, escape)) {
        key = rest;
    }
    key
}

/// Parses a `dn`, which may be in a legacy encoding.
fn parse_name(value: &str) -> Option<String> {
    let value = value.replace('+', " ");
    let raw: Cow<[u8]> = percent_decode_str(&value).into();
    let name = Decoder::new(None, std::iter::once(&*raw)).decode(&raw).trim().to_owned();
    (!name.is_empty()).then(|| names::clean_text(name.as_bytes(), 255))
}

/// Parses an `xt`. Returns its info hash, or `None` if it is not of BitTorrent.
fn parse_topic(urn: &str) -> Result<Option<InfoHash>, MagnetError> {
    if starts_with(urn, "urn:btmh:") {
        return Err(MagnetError::V2Only);
    }
    let Some(digits) = strip_prefix(urn, "urn:btih:") else { return Ok(None) };
    let digits = digits.trim_matches(|c: char| !c.is_alphanumeric());
    let hash = parse_hash(digits);
    hash.map(Some).ok_or_else(|| MagnetError::BadHash(names::clean_text(digits.as_bytes(), 64)))
}

/// Parses an info hash in hexadecimal or base32.
fn parse_hash(digits: &str) -> Option<InfoHash> {
    let base32 = || {
        let bytes = data_encoding::BASE32.decode(digits.to_ascii_uppercase().as_bytes()).ok()?;
        <[u8; 20]>::try_from(bytes).ok().map(InfoHash)
    };
    digits.parse().ok().or_else(base32)
}

/// Adds a value unless it is present, invalid or too long, or the list is full.
fn add(list: &mut Vec<String>, value: &str) {
    let sound = !value.is_empty() && value.len() <= MAX_VALUE_LEN && !value.contains(char::is_control);
    if sound && list.len() < MAX_SOURCES && !list.iter().any(|known| known == value) {
        list.push(value.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEX: &str = "c12fe1c06bba254a9dc9f519b335aa7c1367a88a";

    #[test]
    fn every_parameter_is_parsed() {
        let link = format!(
            "magnet:?xt=urn:btih:{HEX}&dn=A+film%20%5B1%5D&tr=udp%3A%2F%2Fa%3A1%2Fannounce&tr.2=http://b/announce\
             &tr=http://b/announce&ws=http%3A%2F%2Fc%2F&x.pe=10.0.0.1:6881&x.pe=%5B::1%5D:1&xl=5&so=0-2&bad"
        );
        let expected = Magnet {
            info_hash: HEX.parse().unwrap(),
            name: Some("A film [1]".into()),
            trackers: vec!["udp://a:1/announce".into(), "http://b/announce".into()],
            web_seeds: vec!["http://c/".into()],
            peers: vec!["10.0.0.1:6881".into(), "[::1]:1".into()],
        };
        assert_eq!(Magnet::parse(&link), Ok(expected));
    }

    #[test]
    fn hashes_may_be_hexadecimal_or_base32() {
        let hash: InfoHash = HEX.parse().unwrap();
        let base32 = data_encoding::BASE32.encode(&hash.0);
        for digits in [HEX.to_owned(), HEX.to_ascii_uppercase(), base32.clone(), base32.to_ascii_lowercase()] {
            let link = format!("MAGNET:?XT=URN:BTIH:{digits}");
            assert_eq!(Magnet::parse(&link), Ok(Magnet::from(hash)), "{link}");
        }
        let both = format!("magnet:?xt=urn:btmh:1220abcd&xt.1=urn:btih:{HEX}");
        assert_eq!(Magnet::parse(&both).unwrap().info_hash, hash, "a hybrid by its v1 half");
    }

    #[test]
    fn what_copying_a_link_adds_is_ignored() {
        let tracker = "http://a.example/announce?k=1";
        let expected = Magnet {
            name: Some("film".into()),
            trackers: vec![tracker.into()],
            ..HEX.parse::<InfoHash>().unwrap().into()
        };
        let once = "http%3A%2F%2Fa.example%2Fannounce%3Fk%3D1";
        let (twice, thrice) = (once.replace('%', "%25"), once.replace('%', "%2525"));
        let plain = format!("magnet:?xt=urn:btih:{HEX}&dn=film&tr={once}");
        let whole: String = utf8_percent_encode(&plain, NON_ALPHANUMERIC).collect();
        for link in [
            plain.clone(),
            plain.replace('&', "&amp;"),
            plain.replace('&', "&amp;amp;"),
            plain.replace('&', "&#38;"),
            plain.replace('&', "&#x26;"),
            plain.replace(once, &twice),
            plain.replace(once, &thrice),
            plain.replace(once, tracker),
            plain.replace("urn:btih:", "urn%3Abtih%3A"),
            plain.replace("urn:btih:", "urn%253Abtih%253A"),
            plain.replace("magnet:?", "magnet://?"),
            plain.replace("magnet:?", "Magnet:"),
            format!("\u{feff}  \"{plain}\"\r\n"),
            format!("<{plain}>"),
            plain.replace("&dn", "\r\n&dn"),
            whole.replace("%3A", "%3a"),
            plain.replace(HEX, &format!("{HEX}/")),
        ] {
            assert_eq!(Magnet::parse(&link).as_ref(), Ok(&expected), "{link}");
        }
        // "фильм" in CP1251.
        let link = format!("magnet:?xt=urn:btih:{HEX}&dn=%F4%E8%EB%FC%EC");
        assert_eq!(Magnet::parse(&link).unwrap().name.as_deref(), Some("фильм"));
        let garbage = Magnet::parse(&format!(
            "magnet:?xt=urn:btih:{HEX}&tr=%25&ws=%ff&x.pe=%2&tr=%3C!DOCTYPE%20html%3E&tr=http://&tr=a b://c&tr=udp://t:1"
        ));
        assert_eq!(garbage.unwrap().trackers, ["udp://t:1"]);
    }

    #[test]
    fn a_text_may_be_a_link_or_a_hash() {
        let hash: InfoHash = HEX.parse().unwrap();
        let base32 = data_encoding::BASE32.encode(&hash.0);
        for text in [
            HEX.to_owned(),
            format!(" {HEX}\n"),
            base32,
            format!("urn:btih:{HEX}"),
            format!("magnet:?xt=urn:btih:{HEX}"),
        ] {
            assert_eq!(Magnet::from_text(&text), Some(Ok(hash.into())), "{text}");
        }
        for text in ["", "film.torrent", "http://a", "urn:isbn:1", &HEX[1..]] {
            assert_eq!(Magnet::from_text(text), None, "{text}");
        }
        assert_eq!(Magnet::from_text("magnet:?"), Some(Err(MagnetError::NoTorrent)));
    }

    #[test]
    fn errors_name_the_fault() {
        for (link, fault) in [
            ("http://a", MagnetError::NotAMagnet),
            ("magnet", MagnetError::NotAMagnet),
            ("magnet:?", MagnetError::NoTorrent),
            ("magnet:?dn=x", MagnetError::NoTorrent),
            ("magnet:?xt=urn:sha1:abc", MagnetError::NoTorrent),
            ("magnet:?xt=urn:btih:123", MagnetError::BadHash("123".into())),
            ("magnet:?xt=urn:btmh:1220caf1", MagnetError::V2Only),
        ] {
            assert_eq!(Magnet::parse(link), Err(fault), "{link}");
        }
    }

    #[test]
    fn a_link_and_its_metadata_make_the_torrent() {
        let info = format!("d6:lengthi5e4:name1:t12:piece lengthi16384e6:pieces20:{}e", "h".repeat(20));
        let mut magnet = Magnet::from(InfoHash::of(info.as_bytes()));
        magnet.trackers = vec!["http://a/announce".into(), "udp://b:1".into()];
        magnet.web_seeds = vec!["http://c/".into()];
        let mut read = magnet.metainfo(info.as_bytes()).unwrap();
        assert_eq!(read.info_hash, magnet.info_hash);
        assert_eq!(read.trackers, [["http://a/announce"], ["udp://b:1"]]);
        assert_eq!(read.web_seeds, ["http://c/"]);
        let before = read.trackers.clone();
        read.merge(&magnet);
        assert_eq!(read.trackers, before);
        magnet.trackers.push("http://d/announce".into());
        read.merge(&magnet);
        assert_eq!(read.trackers.last().unwrap(), &["http://d/announce"]);
    }

    proptest! {
        #[test]
        fn a_link_parses_its_own_text(
            name in proptest::option::of("[^\\p{C}\\s+][^\\p{C}+]{0,20}[^\\p{C}\\s+]"),
            urls in proptest::collection::vec("http://[!-~é]{1,30}", 0..4),
        ) {
            let urls: Vec<String> = urls.into_iter().collect::<std::collections::BTreeSet<_>>().into_iter().collect();
            let magnet = Magnet {
                name, trackers: urls.clone(), web_seeds: urls, peers: vec!["[::1]:1".into()],
                ..Magnet::from(InfoHash([7; 20]))
            };
            let link = magnet.to_string();
            prop_assert!(link.is_ascii());
            prop_assert_eq!(Magnet::parse(&link), Ok(magnet));
        }

        #[test]
        fn random_links_do_not_panic(link in "(magnet:\\?|magnet%)?([a-z.%]{1,4}=[!-~é%]{0,50}&?(amp;)?){0,5}") {
            let _ = (Magnet::parse(&link), Magnet::from_text(&link));
        }
    }
}
