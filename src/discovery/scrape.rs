//! Scrapes: a tracker's counts for a swarm, without announcing (BEP 48).

use std::collections::HashMap;

use percent_encoding::percent_encode;
use reqwest::Url;
use serde::de::MapAccess;
use serde_bytes::ByteBuf;

use super::reply::{self, MAX_TEXT};
use super::url::RAW;
use super::{AnnounceError, Retry, Scrape};
use crate::metainfo::InfoHash;
use crate::metainfo::bencode::{self, Field, Limits, Shape, dict};
use crate::util::printable;

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

dict! {
    struct Raw {
        failure: Vec<u8> = "failure reason",
        // The spelling in BEP 48.
        failure48: Vec<u8> = "failure_reason",
        files: Files = "files",
    }
}

dict! {
    struct Counts {
        seeders: i64 = "complete",
        downloads: i64 = "downloaded",
        leechers: i64 = "incomplete",
    }
}

/// Counts by info hash. Some trackers return every torrent they know; the limits of the reply bound their number.
struct Files(HashMap<Vec<u8>, Counts>);

impl Shape for Files {
    const KIND: &'static str = "a dictionary";

    fn dict<'de, A: MapAccess<'de>>(mut dict: A) -> Result<Option<Self>, A::Error> {
        let mut files = HashMap::new();
        while let Some((key, counts)) = dict.next_entry::<ByteBuf, Field<Counts>>()? {
            if let Some(counts) = counts.ok() {
                files.insert(key.into_vec(), counts);
            }
        }
        Ok(Some(Self(files)))
    }
}

/// Parses the reply to a scrape of one torrent.
pub(super) fn parse(body: &[u8], info_hash: InfoHash) -> Result<Scrape, AnnounceError> {
    let garbage = |why: String| AnnounceError::Garbage(why);
    let raw: Field<Raw> = bencode::decode(body.trim_ascii_end(), &Limits::TRACKER)
        .map_err(|error| garbage(printable(error.to_string().as_bytes(), MAX_TEXT)))?;
    let raw = raw.ok().ok_or_else(|| garbage("it is not a dictionary".into()))?;
    if let Some(reason) = raw.failure.ok().or(raw.failure48.ok()) {
        return Err(reply::refused(&reason, Retry::BackOff));
    }
    let mut files = raw.files.ok().ok_or_else(|| garbage("it has no files".into()))?.0;
    let counts = files.remove(info_hash.0.as_slice()).ok_or_else(|| garbage("it does not list this torrent".into()))?;
    let count = |field: Field<i64>| field.ok().and_then(|n| u64::try_from(n).ok());
    Ok(Scrape { seeders: count(counts.seeders), leechers: count(counts.leechers), downloads: count(counts.downloads) })
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
