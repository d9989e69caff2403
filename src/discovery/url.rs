//! Tracker URLs: validation, masking, and the announce query.

use std::fmt::{self, Write};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use reqwest::Url;

use super::{Announce, AnnounceError};
use crate::http::{self, Masked, Purpose, RequestError};
use crate::util::printable;

/// Longest URL accepted, in bytes. Real ones are far shorter.
const MAX_URL: usize = 4096;
/// Port of a UDP tracker whose URL names none, as other clients read it.
pub(super) const UDP_PORT: u16 = 80;
/// Peers requested in one announce: enough to fill a swarm at start, and a common value among clients.
pub(super) const NUM_WANT: u32 = 100;

/// Percent-encoding of raw bytes: everything except the unreserved characters of RFC 3986.
pub(super) const RAW: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The URL of a tracker. It may hold a passkey, so `Display` and `Debug` show it [`Masked`]. [`TrackerUrl::as_str`]
/// returns all of it.
#[derive(Clone, PartialEq, Eq)]
pub struct TrackerUrl {
    text: String,
    parsed: Result<Url, AnnounceError>,
}

impl TrackerUrl {
    /// Parses a URL from the metainfo. An unusable URL is kept, so that it can be displayed with the reason.
    pub(super) fn new(text: &str) -> Self {
        Self { text: text.to_owned(), parsed: parse(text) }
    }

    /// Returns the URL as in the metainfo, secrets included.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the parsed URL, or why it cannot be used.
    pub(super) fn usable(&self) -> Result<&Url, &AnnounceError> {
        self.parsed.as_ref()
    }
}

fn parse(text: &str) -> Result<Url, AnnounceError> {
    if text.len() > MAX_URL {
        return Err(AnnounceError::NotAUrl);
    }
    let mut url = Url::parse(text).map_err(|_| AnnounceError::NotAUrl)?;
    url.set_fragment(None);
    match url.scheme() {
        _ if url.host_str().is_none_or(str::is_empty) => Err(AnnounceError::NotAUrl),
        "udp" if url.port() == Some(0) => Err(AnnounceError::NoPort),
        "http" | "https" | "udp" if http::names_local_host(&url) && !http::may_reach_local(&url, Purpose::Announce) => {
            Err(AnnounceError::Request(RequestError::Local))
        }
        "http" | "https" | "udp" => Ok(url),
        scheme => Err(AnnounceError::Scheme(printable(scheme.as_bytes(), 20))),
    }
}

impl fmt::Display for TrackerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Masked(&self.text).fmt(f)
    }
}

impl fmt::Debug for TrackerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The `event` of an announce. A periodic announce has none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Event {
    Started,
    Completed,
    Stopped,
}

/// The parameters that vary from one announce to the next.
pub(super) struct Query<'a> {
    pub event: Option<Event>,
    pub uploaded: u64,
    pub downloaded: u64,
    pub left: u64,
    pub tracker_id: Option<&'a [u8]>,
}

/// Returns the URL of an announce: the tracker's own query, followed by ours.
pub(super) fn announce_url(tracker: &Url, announce: &Announce, query: &Query) -> Url {
    let mut text = match tracker.query() {
        Some(own) if !own.is_empty() => format!("{own}&"),
        _ => String::new(),
    };
    let num_want = if query.event == Some(Event::Stopped) { 0 } else { NUM_WANT };
    // Writing to a `String` cannot fail.
    let _ = write!(
        text,
        "info_hash={}&peer_id={}&port={}&uploaded={}&downloaded={}&left={}&compact=1&no_peer_id=1&numwant={num_want}&key={:08x}",
        percent_encode(&announce.info_hash.0, RAW),
        percent_encode(&announce.peer_id.0, RAW),
        announce.port.get(),
        query.uploaded,
        query.downloaded,
        query.left,
        announce.key,
    );
    if let Some(event) = query.event {
        text.push_str(match event {
            Event::Started => "&event=started",
            Event::Completed => "&event=completed",
            Event::Stopped => "&event=stopped",
        });
    }
    if let Some(id) = query.tracker_id {
        let _ = write!(text, "&trackerid={}", percent_encode(id, RAW));
    }
    let mut url = tracker.clone();
    url.set_query(Some(&text));
    url
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metainfo::InfoHash;
    use crate::wire::PeerId;
    use proptest::prelude::*;

    fn announce(info_hash: [u8; 20]) -> Announce {
        Announce {
            info_hash: InfoHash(info_hash),
            peer_id: PeerId(*b"-TF0100-abc ~\x00\xff&=%+#"),
            port: 6881.into(),
            tiers: Vec::new(),
            key: 0xbeef,
        }
    }

    fn url(tracker: &str, event: Option<Event>, tracker_id: Option<&[u8]>) -> String {
        let query = Query { event, uploaded: 1, downloaded: 2, left: 3, tracker_id };
        let tracker = TrackerUrl::new(tracker);
        announce_url(
            tracker.usable().unwrap(),
            &announce(*b"\x12\x34\x56\x78\x9a\xbc\xde\xf1#Eg\x89\xab\xcd\xef\x124Vx\x9a"),
            &query,
        )
        .into()
    }

    #[test]
    fn query_is_written_in_full() {
        assert_eq!(
            url("http://t.example/announce", Some(Event::Started), None),
            "http://t.example/announce?info_hash=%124Vx%9A%BC%DE%F1%23Eg%89%AB%CD%EF%124Vx%9A\
             &peer_id=-TF0100-abc%20~%00%FF%26%3D%25%2B%23&port=6881&uploaded=1&downloaded=2&left=3\
             &compact=1&no_peer_id=1&numwant=100&key=0000beef&event=started"
        );
    }

    #[test]
    fn the_trackers_query_is_kept_and_its_fragment_dropped() {
        let text = url("https://t.example:8443/a.php?passkey=s%26c&x=%20#frag", None, Some(b"a b\xff"));
        assert!(text.starts_with("https://t.example:8443/a.php?passkey=s%26c&x=%20&info_hash=%124Vx"), "{text}");
        assert!(text.ends_with("&key=0000beef&trackerid=a%20b%FF"), "{text}");
        assert!(url("http://t/?", None, None).starts_with("http://t/?info_hash="));
    }

    #[test]
    fn stopped_wants_no_peers() {
        assert!(url("http://t/", Some(Event::Stopped), None).contains("&numwant=0&"));
    }

    #[test]
    fn only_http_and_udp_urls_are_usable() {
        for sound in [
            "http://t.example/",
            "udp://t.example:80/announce",
            "udp://t.example:80",
            "udp://[::1]:80/",
            "udp://t.example",
            "udp://t.example:/announce",
            " UDP://t.example/a ",
        ] {
            assert!(TrackerUrl::new(sound).usable().is_ok(), "{sound}");
        }
        let error = |text: &str| TrackerUrl::new(text).usable().unwrap_err().clone();
        assert_eq!(error("udp://t.example:0/"), AnnounceError::NoPort);
        for local in
            ["http://127.0.0.1/admin", "https://localhost/", "udp://[fe80::1]:80/x", "http://10.1.1.1/?announce"]
        {
            assert_eq!(error(local), AnnounceError::Request(RequestError::Local), "{local}");
        }
        assert_eq!(error("wss://t.example"), AnnounceError::Scheme("wss".into()));
        for nonsense in ["", "tracker", "http://", "file:///etc/passwd", "dht:", "http://[::1", "udp://:80"] {
            assert_eq!(error(nonsense), AnnounceError::NotAUrl, "{nonsense}");
        }
        assert_eq!(error(&format!("http://t/{}", "a".repeat(MAX_URL))), AnnounceError::NotAUrl);
    }

    #[test]
    fn secrets_are_masked() {
        for (text, shown) in [
            ("http://t.example/announce", "http://t.example/announce"),
            ("https://u:p@t.example:8443/0123456789abcdef/announce?k=1", "https://***@t.example:8443/***/announce?***"),
            ("udp://t.example:1337", "udp://t.example:1337"),
            ("nonsense-with-a-secret", "nonsense-wi…"),
        ] {
            let url = TrackerUrl::new(text);
            assert_eq!(url.to_string(), shown);
            assert_eq!(format!("{url:?}"), shown);
            assert_eq!(url.as_str(), text);
        }
    }

    proptest! {
        #[test]
        fn any_info_hash_round_trips(hash: [u8; 20]) {
            let query = Query { event: None, uploaded: 0, downloaded: 0, left: 0, tracker_id: None };
            let url = announce_url(&Url::parse("http://t/").unwrap(), &announce(hash), &query);
            let text = url.query().unwrap();
            let value = text.strip_prefix("info_hash=").unwrap().split('&').next().unwrap();
            prop_assert_eq!(percent_encoding::percent_decode_str(value).collect::<Vec<_>>(), hash);
        }
    }
}
