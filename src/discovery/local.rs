//! What a stranger's URL may reach.
//!
//! Who writes a torrent chooses URLs that our machine then asks. So that they cannot speak through us to what only we
//! can reach (a router's pages, services on this machine), addresses that are not global take only what looks as it
//! should: a tracker's announce, a web seed without a query. The rule is about addresses, not names: it is applied to
//! what a name resolves to, and the connection goes there and nowhere else ([`GlobalOnly`](super::GlobalOnly)).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use reqwest::Url;

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

/// Whether an address is of this machine or its network, or of no single machine: all that is not global. An IPv4
/// address inside an IPv6 one counts as itself.
pub fn is_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, ..] = ip.octets();
            let this_host = a == 0 || ip.is_loopback();
            // Shared by a provider's customers (RFC 6598).
            let shared = a == 100 && b & 0xc0 == 64;
            this_host || shared || ip.is_private() || ip.is_link_local() || a >= 224
        }
        IpAddr::V6(ip) => {
            let first = ip.segments()[0];
            // Site-local is what unique local addresses were before.
            let site_local = first & 0xffc0 == 0xfec0;
            ip.is_unique_local()
                || ip.is_unicast_link_local()
                || ip.is_multicast()
                || site_local
                || ip.segments()[..3] == [0x64, 0xff9b, 1]
                || inner(ip).is_some_and(|ip| is_local(ip.into()))
        }
    }
}

/// The IPv4 address that an IPv6 one stands for: mapped or compatible (so `::` and `::1` are in 0.0.0.0/8), NAT64, 6to4.
fn inner(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let last = |high: u16, low: u16| Ipv4Addr::from(u32::from(high) << 16 | u32::from(low));
    match ip.segments() {
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some(last(high, low)),
        [0x2002, high, low, ..] => Some(last(high, low)),
        _ => None,
    }
}

/// Whether the words of a URL alone say that it is local. For other names see what they resolve to.
pub fn says_local(url: &Url) -> bool {
    if let Some(ip) = literal(url) {
        return is_local(ip);
    }
    let host = url.host_str().unwrap_or_default().trim_end_matches('.').to_ascii_lowercase();
    host == "localhost" || host.ends_with(".localhost")
}

/// The host, if it is an address and not a name.
pub(super) fn literal(url: &Url) -> Option<IpAddr> {
    url.host_str()?.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_local() {
        for ip in [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "127.255.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "100.127.255.255",
            "224.0.0.1",
            "239.1.2.3",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:169.254.169.254",
            "fe80::1",
            "febf::1",
            "fec0::1",
            "fc00::1",
            "fd12::1",
            "ff02::1",
            "64:ff9b::10.0.0.1",
            "64:ff9b:1::1",
            "2002:c0a8:101::1",
            "2002:7f00:1::",
        ] {
            assert!(is_local(ip.parse().unwrap()), "{ip}");
        }
        for ip in [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "172.15.0.1",
            "172.32.0.1",
            "192.167.0.1",
            "192.169.0.1",
            "169.253.0.1",
            "223.255.255.255",
            "2001:db8::1",
            "2606:4700::1111",
            "::ffff:1.1.1.1",
            "64:ff9b::1.1.1.1",
            "2002:101:101::1",
        ] {
            assert!(!is_local(ip.parse().unwrap()), "{ip}");
        }
    }

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
