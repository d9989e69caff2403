//! What a stranger's URL may reach.
//!
//! Who writes a torrent chooses URLs that our machine then asks. So that they cannot speak through us to what only we
//! can reach (a router's pages, services on this machine), addresses that are not global take only what looks as it
//! should: a tracker's announce, a web seed without a query. The rule is about addresses, not names: it is applied to
//! what a name resolves to, and the connection goes there and nowhere else ([`GlobalOnly`](super::GlobalOnly)).

use std::net::IpAddr;

use reqwest::Url;

use crate::util::is_local;

/// What a URL is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// A torrent's tracker.
    Announce,
    /// The counts of a torrent's tracker; its URL is made from that of the announce.
    Scrape,
    /// A torrent's web seed (BEP 19).
    WebSeed,
    /// The same as a script that is asked for pieces (BEP 17).
    SeedScript,
    /// What the user asked for; no stranger chose the URL.
    Own,
}

/// Whether `url` may be asked of this machine and its network.
pub fn may_be_local(url: &Url, purpose: Purpose) -> bool {
    let last = url.path().rsplit('/').next().unwrap_or_default();
    // A server may take `announce%2f..%2fadmin` for a path of its own.
    let shaped = |start| last.starts_with(start) && !last.contains(['%', '\\']);
    match purpose {
        // Over UDP nothing of the URL is sent before the far end has answered as a tracker does.
        Purpose::Announce => shaped("announce") || (url.scheme() == "udp" && matches!(url.path(), "" | "/")),
        Purpose::Scrape => shaped("scrape"),
        Purpose::WebSeed => url.query().is_none_or(str::is_empty),
        // What we append ourselves, and nothing before it.
        Purpose::SeedScript => url.query().is_none_or(|query| query.starts_with("info_hash=")),
        Purpose::Own => true,
    }
}

/// Whether the words of a URL alone say that it is local. For other names see what they resolve to.
pub fn says_local(url: &Url) -> bool {
    if let Some(ip) = ip_literal(url) {
        return is_local(ip);
    }
    let host = url.host_str().unwrap_or_default().trim_end_matches('.').to_ascii_lowercase();
    host == "localhost" || host.ends_with(".localhost")
}

/// The host, if it is an address and not a name.
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
    fn what_may_be_asked_of_local_addresses() {
        let may = |purpose, text: &str| may_be_local(&url(text), purpose);
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
        assert!(may(Purpose::Own, "http://10.0.0.1/reboot?now=1"));
    }

    #[test]
    fn what_says_that_it_is_local() {
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
            assert!(says_local(&url(text)), "{text}");
        }
        for text in ["http://example.com/", "http://1.1.1.1/", "udp://[2001:db8::1]:80", "http://notlocalhost/"] {
            assert!(!says_local(&url(text)), "{text}");
        }
    }
}
