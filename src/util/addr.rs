//! Classes of IP addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Returns whether an address is not globally routable: loopback, private, shared, link-local, multicast or reserved.
/// An IPv4 address embedded in an IPv6 address is judged by the IPv4 rules.
pub(crate) fn is_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, ..] = ip.octets();
            let this_host = a == 0 || ip.is_loopback();
            // Carrier-grade NAT (RFC 6598).
            let shared = a == 100 && b & 0xc0 == 64;
            this_host || shared || ip.is_private() || ip.is_link_local() || a >= 224
        }
        IpAddr::V6(ip) => {
            let first = ip.segments()[0];
            // Site-local: the deprecated predecessor of unique local addresses (RFC 3879).
            let site_local = first & 0xffc0 == 0xfec0;
            ip.is_unique_local()
                || ip.is_unicast_link_local()
                || ip.is_multicast()
                || site_local
                || ip.segments()[..3] == [0x64, 0xff9b, 1]
                || embedded_v4(ip).is_some_and(|ip| is_local(ip.into()))
        }
    }
}

/// Returns the IPv4 address embedded in an IPv6 address: mapped or compatible (which puts `::` and `::1` into
/// 0.0.0.0/8), NAT64 or 6to4.
fn embedded_v4(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let last = |high: u16, low: u16| Ipv4Addr::from(u32::from(high) << 16 | u32::from(low));
    match ip.segments() {
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some(last(high, low)),
        [0x2002, high, low, ..] => Some(last(high, low)),
        _ => None,
    }
}

/// Returns whether an address belongs to a host of our own LAN, or to this machine. Narrower than [`is_local`]: no
/// multicast, reserved or carrier-grade NAT addresses.
pub(crate) fn is_lan(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_private() || ip.is_link_local() || ip.is_loopback(),
        IpAddr::V6(ip) => ip.is_unique_local() || ip.is_unicast_link_local() || ip.is_loopback(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_global_addresses_are_not_local() {
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
}
