//! Address families, and which addresses from other nodes are plausible.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::util::is_local;

/// The address family. IPv4 and IPv6 nodes form two separate networks (BEP 32).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    pub fn of(addr: SocketAddr) -> Self {
        if addr.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// Returns whether `addr`, received from `source`, may be contacted: it must be a unicast address, and a node on the
/// internet must not send us into our local network.
pub(super) fn is_plausible(addr: SocketAddr, source: SocketAddr) -> bool {
    let not_unicast = match addr.ip() {
        IpAddr::V4(ip) => ip.octets()[0] == 0 || ip.is_broadcast() || ip.is_multicast(),
        // The IPv4-mapped form would evade every rule about IPv4 addresses.
        IpAddr::V6(ip) => ip.is_unspecified() || ip.is_multicast() || ip.to_ipv4_mapped().is_some(),
    };
    addr.port() != 0 && !not_unicast && (!is_local(addr.ip()) || is_local(source.ip()))
}

/// Returns the address that counts as one party: an IPv4 address, or the /64 prefix that one IPv6 subscriber gets.
pub(super) fn subscriber(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn local_addresses_from_the_internet_are_rejected() {
        let (stranger, neighbour) = (addr("8.8.8.8:1"), addr("192.168.1.2:1"));
        for local in ["127.0.0.1:1", "10.0.0.1:1", "169.254.1.1:1", "100.64.0.1:1", "[::1]:1", "[fd00::1]:1"] {
            assert!(!is_plausible(addr(local), stranger), "{local}");
            assert!(is_plausible(addr(local), neighbour), "{local}");
        }
        for never in ["0.1.2.3:1", "8.8.8.8:0", "255.255.255.255:1", "239.0.0.1:1", "[ff02::1]:1", "[::ffff:1.2.3.4]:1"]
        {
            assert!(!is_plausible(addr(never), neighbour), "{never}");
        }
        assert!(is_plausible(addr("1.1.1.1:1"), stranger));
    }
}
