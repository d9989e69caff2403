//! Addresses as datagrams carry them, and which of them are believed.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::util::is_local;

/// IPv4 and IPv6 nodes live in two networks that do not mix (BEP 32).
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

/// Whether `addr`, as `teller` gives it, may be called: it can be called at all, and a stranger from the internet does
/// not send us to this machine or into its network.
pub(super) fn is_believable(addr: SocketAddr, teller: SocketAddr) -> bool {
    let nowhere = match addr.ip() {
        IpAddr::V4(ip) => ip.octets()[0] == 0 || ip.is_broadcast() || ip.is_multicast(),
        // The mapped form hides an IPv4 address from every rule about those.
        IpAddr::V6(ip) => ip.is_unspecified() || ip.is_multicast() || ip.to_ipv4_mapped().is_some(),
    };
    addr.port() != 0 && !nowhere && (!is_local(addr.ip()) || is_local(teller.ip()))
}

/// Who counts as one: an IPv4 address, or the /64 that is given to one subscriber.
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
    fn strangers_do_not_send_us_home() {
        let (stranger, neighbour) = (addr("8.8.8.8:1"), addr("192.168.1.2:1"));
        for local in ["127.0.0.1:1", "10.0.0.1:1", "169.254.1.1:1", "100.64.0.1:1", "[::1]:1", "[fd00::1]:1"] {
            assert!(!is_believable(addr(local), stranger), "{local}");
            assert!(is_believable(addr(local), neighbour), "{local}");
        }
        for never in ["0.1.2.3:1", "8.8.8.8:0", "255.255.255.255:1", "239.0.0.1:1", "[ff02::1]:1", "[::ffff:1.2.3.4]:1"]
        {
            assert!(!is_believable(addr(never), neighbour), "{never}");
        }
        assert!(is_believable(addr("1.1.1.1:1"), stranger));
    }
}
