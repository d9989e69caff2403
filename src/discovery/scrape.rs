//! Scrapes: a tracker's counts for a swarm, without announcing (BEP 48).

use percent_encoding::percent_encode;
use reqwest::Url;

use super::reply;
use super::url::RAW;
use super::{AnnounceError, Retry, Scrape};
use crate::metainfo::InfoHash;
use crate::metainfo::bencode::Value;

/// Returns the scrape URL of an HTTP tracker. By convention the last path segment of the announce URL starts with
/// `announce`, which is replaced by `scrape`.
pub(super) fn scrape_url(announce: &Url, info_hash: InfoHash) -> Option<Url> {
    let (dir, last) = announce.path().rsplit_once('/')?;
    let path = format!("{dir}/scrape{}", last.strip_prefix("announce")?);
    let own = announce.query().filter(|own| !own.is_empty()).map(|own| format!("{own}&")).unwrap_or_default();
    let mut url = announce.clone();
    url.set_path(&path);
    url.set_query(Some(&format!("{own}info_hash={}", percent_encode(&info_hash.0, RAW))));
    Some(url)
}

/// Parses the reply to a scrape of one torrent, as leniently as that to an announce. Some trackers return every torrent
/// that they know.
pub(super) fn parse(body: &[u8], info_hash: InfoHash) -> Result<Scrape, AnnounceError> {
    let garbage = |why: &str| AnnounceError::Garbage(why.into());
    let (dict, _) = reply::dictionary(body)?;
    let (mut files, mut failure) = (None, None);
    for (key, value) in dict.pairs() {
        match (key, value) {
            (b"files", Value::Dict(given)) => files = files.or(Some(given)),
            // The second spelling is that of BEP 48.
            (b"failure reason" | b"failure_reason", value) => failure = failure.or(value.bytes()),
            _ => {}
        }
    }
    if let Some(reason) = failure.filter(|reason| files.is_none() || !reason.is_empty()) {
        return Err(reply::refused(reason, Retry::BackOff));
    }
    let mut files = files.ok_or_else(|| garbage("it has no files"))?.pairs();
    let counts = files.find_map(|(key, value)| match value {
        Value::Dict(counts) if key == info_hash.0 => Some(counts),
        _ => None,
    });
    let mut scrape = Scrape::default();
    for (key, value) in counts.ok_or_else(|| garbage("it does not list this torrent"))?.pairs() {
        let count = value.number().and_then(|n| u64::try_from(n).ok());
        match key {
            b"complete" => scrape.seeders = scrape.seeders.or(count),
            b"incomplete" => scrape.leechers = scrape.leechers.or(count),
            b"downloaded" => scrape.downloads = scrape.downloads.or(count),
            _ => {}
        }
    }
    Ok(scrape)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HASH: InfoHash = InfoHash(*b"yyyyyyyyyyyyyyyyyyyy");

    #[test]
    fn scrape_urls_follow_the_specification() {
        let scrape = |text: &str| scrape_url(&text.parse().unwrap(), HASH).map(|url| url.to_string());
        let hash = "info_hash=yyyyyyyyyyyyyyyyyyyy";
        for (announce, expected) in [
            ("http://t/announce", "http://t/scrape"),
            ("http://t/x/announce", "http://t/x/scrape"),
            ("http://t/announce.php", "http://t/scrape.php"),
            ("http://t/announce?x2%0644", "http://t/scrape?x2%0644"),
        ] {
            let joint = if expected.contains('?') { "&" } else { "?" };
            assert_eq!(scrape(announce), Some(format!("{expected}{joint}{hash}")));
        }
        for none in
            ["http://t/a", "http://t/", "http://t/a?x=/announce", "http://t/x%064announce", "http://t/announce/"]
        {
            assert_eq!(scrape(none), None, "{none}");
        }
    }

    #[test]
    fn replies_are_parsed() {
        // The example of BEP 48, with a key that is not UTF-8.
        let body = b"d5:filesd20:xxxxxxxxxxxxxxxxxxxxd8:completei11e10:downloadedi13772e10:incompletei19ee\
            20:yyyyyyyyyyyyyyyyyyyyd8:completei21e10:downloadedi206e10:incompletei20ee\
            20:\xff\xfe\xfdzzzzzzzzzzzzzzzzzd8:completei14e10:downloadedi12191e10:incompletei9eee\
            5:flagsd20:min_request_intervali900eee";
        let expected = Scrape { seeders: Some(21), leechers: Some(20), downloads: Some(206) };
        assert_eq!(parse(body, HASH), Ok(expected));
        assert_eq!(parse(b"d5:filesd20:yyyyyyyyyyyyyyyyyyyyd8:completei-1eeee", HASH), Ok(Scrape::default()));
        let odd =
            b"d14:failure reason0:5:filesd3:abci1e20:yyyyyyyyyyyyyyyyyyyyd8:complete2:218:completele10:incompletei020e";
        assert_eq!(parse(odd, HASH), Ok(Scrape { downloads: None, ..expected }));
        for body in [
            b"".as_slice(),
            b"<html>",
            b"de",
            b"le",
            b"d5:filesi1ee",
            b"d5:filesdee",
            b"d5:filesd20:yyyyyyyyyyyyyyyyyyyyi1eee",
        ] {
            assert!(matches!(parse(body, HASH), Err(AnnounceError::Garbage(_))), "{body:?}");
        }
        for key in ["14:failure reason", "14:failure_reason"] {
            let error = parse(format!("d{key}4:no\r\ne").as_bytes(), HASH).unwrap_err();
            assert_eq!(error.to_string(), "refused: no");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_not_panic(body: Vec<u8>) {
            let _ = parse(&body, HASH);
        }
    }
}
