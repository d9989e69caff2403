//! Compact addresses (BEP 5, 7, 11, 23): 4 or 16 bytes of IP address and 2 of port, big-endian.

use std::net::{IpAddr, SocketAddr};

/// Appends a compact address.
pub fn put_compact(addr: SocketAddr, out: &mut Vec<u8>) {
    match addr.ip() {
        IpAddr::V4(ip) => out.extend_from_slice(&ip.octets()),
        IpAddr::V6(ip) => out.extend_from_slice(&ip.octets()),
    }
    out.extend_from_slice(&addr.port().to_be_bytes());
}

/// Decodes a compact address of 6 or 18 bytes.
pub fn take_compact(bytes: &[u8]) -> Option<SocketAddr> {
    let (ip, port) = bytes.split_last_chunk()?;
    let v4 = <[u8; 4]>::try_from(ip).map(IpAddr::from);
    let ip = v4.or_else(|_| <[u8; 16]>::try_from(ip).map(IpAddr::from)).ok()?;
    Some(SocketAddr::new(ip, u16::from_be_bytes(*port)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn compact_addresses_decode_to_themselves() {
        for text in ["1.2.3.4:5", "[2001:db8::1]:65535"] {
            let mut bytes = Vec::new();
            put_compact(addr(text), &mut bytes);
            assert_eq!(take_compact(&bytes), Some(addr(text)));
            assert_eq!(take_compact(&bytes[1..]), None);
        }
        assert_eq!(take_compact(b"x"), None);
    }
}
