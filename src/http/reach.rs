//! The rule for access to the local network.
//!
//! The author of a torrent chooses URLs that our machine then requests. Without a rule they could reach through us what
//! only we can reach: the router's pages or services on this machine. Therefore addresses that are not global receive
//! only requests of a fixed form: a tracker's announce, or a web seed's file without a query. The rule concerns
//! addresses, not names. It applies to the addresses to which a name resolves, and the connection goes to exactly those
//! ([`GlobalOnly`](super::GlobalOnly)).

use std::net::IpAddr;

use reqwest::Url;

use crate::util::is_local;

/// The purpose of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// An announce to a torrent's tracker.
    Announce,
    /// A scrape of a torrent's tracker. Its URL is derived from the announce URL.
    Scrape,
    /// A file of a torrent's web seed (BEP 19).
    WebSeed,
    /// A piece from a torrent's HTTP seed script (BEP 17).
    HttpSeed,
    /// A request whose URL the user gave.
    User,
}

/// Returns whether a request for `url` may go to this machine or its network.
pub fn may_reach_local(url: &Url, purpose: Purpose) -> bool {
    let last = url.path().rsplit('/').next().unwrap_or_default();
    // A server might decode `announce%2f..%2fadmin` to a path of its own.
    let has_form = |start| last.starts_with(start) && !last.contains(['%', '\\']);
    match purpose {
        // Over UDP, no part of the URL is sent before the other side has answered as a tracker.
        Purpose::Announce => has_form("announce") || (url.scheme() == "udp" && matches!(url.path(), "" | "/")),
        Purpose::Scrape => has_form("scrape"),
        Purpose::WebSeed => url.query().is_none_or(str::is_empty),
        // Only the query that we append ourselves.
        Purpose::HttpSeed => url.query().is_none_or(|query| query.starts_with("info_hash=")),
        Purpose::User => true,
    }
}

/// Returns whether the text of a URL shows that its host is local. For other names, the resolved addresses decide.
pub fn names_local_host(url: &Url) -> bool {
    if let Some(ip) = ip_literal(url) {
        return is_local(ip);
    }
    let host = url.host_str().unwrap_or_default().trim_end_matches('.').to_ascii_lowercase();
    host == "localhost" || host.ends_with(".localhost")
}

/// Returns the host of a URL if it is an IP address.
pub(crate) fn ip_literal(url: &Url) -> Option<IpAddr> {
    url.host_str()?.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        text.parse().unwrap()
    }

    #[test]
    fn local_addresses_receive_only_the_allowed_requests() {
        let may = |purpose, text: &str| may_reach_local(&url(text), purpose);
        for text in [
            "http://10.0.0.1/announce",
            "http://10.0.0.1/announce?passkey=1",
            "https://10.0.0.1/0123abcd/announce",
            "http://10.0.0.1/announce.php?a=b#/x",
            "udp://10.0.0.1:80/announce",
            "udp://10.0.0.1:80",
            "udp://10.0.0.1:80/",
        ] {
            assert!(may(Purpose::Announce, text), "{text}");
        }
        for text in [
            "http://10.0.0.1",
            "http://10.0.0.1/",
            "http://10.0.0.1/admin?announce",
            "http://10.0.0.1/announce/",
            "http://10.0.0.1/announce/../admin",
            "http://10.0.0.1/announce/%2e%2e/admin",
            "http://10.0.0.1/Announce",
            "http://10.0.0.1/announce%2f..%2fadmin",
            "http://10.0.0.1/x-announce",
            "http://10.0.0.1/admin#/announce",
            "http://10.0.0.1/scrape",
            "udp://10.0.0.1:80/admin",
            "http://10.0.0.1/admin?/announce",
        ] {
            assert!(!may(Purpose::Announce, text), "{text}");
        }
        assert!(may(Purpose::Scrape, "http://10.0.0.1/x/scrape.php?a") && !may(Purpose::Scrape, "http://10.0.0.1/x"));
        assert!(may(Purpose::WebSeed, "http://10.0.0.1/film.mkv") && may(Purpose::WebSeed, "http://10.0.0.1/f?"));
        assert!(!may(Purpose::WebSeed, "http://10.0.0.1/reboot?now=1"));
        assert!(may(Purpose::User, "http://10.0.0.1/reboot?now=1"));
    }

    #[test]
    fn local_host_names_are_recognized() {
        for text in [
            "http://localhost/",
            "http://LocalHost.:80/",
            "http://a.localhost/",
            "http://127.0.0.1/",
            "http://0x7f.1/",
            "http://2130706433/",
            "http://[::1]/",
            "http://[::ffff:10.0.0.1]/",
            "udp://[fe80::1]:80",
            "udp://10.1.1.1:1",
        ] {
            assert!(names_local_host(&url(text)), "{text}");
        }
        for text in ["http://example.com/", "http://1.1.1.1/", "udp://[2001:db8::1]:80", "http://notlocalhost/"] {
            assert!(!names_local_host(&url(text)), "{text}");
        }
    }
}
