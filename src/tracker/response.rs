//! Bencoded response bodies for HTTP. The keys of a dictionary must be in order. Pure.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::table::{AnnounceResponse, ScrapeCounts};
use crate::metainfo::InfoHash;

/// Encoding of the peers in a response.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum PeerFormat {
    /// 6 or 18 bytes per peer (BEP 23, 7).
    Compact,
    /// A dictionary per peer (BEP 3). Peer ids are always omitted: storing them would take most of the memory, and a peer
    /// sends its id in the handshake anyway.
    Dictionaries,
}

/// Writes a failure response.
pub(super) fn write_failure(reason: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(b"d");
    string(out, b"failure reason");
    string(out, reason.as_bytes());
    out.push(b'e');
}

/// Writes the response to an announce from the address `from`.
pub(super) fn write_announce(
    found: &AnnounceResponse,
    format: PeerFormat,
    interval: Duration,
    from: IpAddr,
    out: &mut Vec<u8>,
) {
    let seconds = interval.as_secs().max(1);
    out.push(b'd');
    integer(out, "complete", found.seeders as u64);
    string(out, b"external ip");
    match from.to_canonical() {
        IpAddr::V4(ip) => string(out, &ip.octets()),
        IpAddr::V6(ip) => string(out, &ip.octets()),
    }
    integer(out, "incomplete", found.leechers as u64);
    integer(out, "interval", seconds);
    integer(out, "min interval", seconds.div_ceil(2));
    string(out, b"peers");
    match format {
        PeerFormat::Compact => {
            string(out, &found.v4);
            if !found.v6.is_empty() {
                string(out, b"peers6");
                string(out, &found.v6);
            }
        }
        PeerFormat::Dictionaries => {
            out.push(b'l');
            for &[a, b, c, d, high, low] in found.v4.as_chunks().0 {
                write_peer(out, Ipv4Addr::new(a, b, c, d).into(), [high, low]);
            }
            for &[ref ip @ .., high, low] in found.v6.as_chunks::<18>().0 {
                // The pattern leaves 16 of the 18 bytes, so the lengths are equal.
                let mut octets = [0; 16];
                octets.copy_from_slice(ip);
                write_peer(out, Ipv6Addr::from(octets).into(), [high, low]);
            }
            out.push(b'e');
        }
    }
    out.push(b'e');
}

/// Writes a peer as a dictionary.
fn write_peer(out: &mut Vec<u8>, ip: IpAddr, port: [u8; 2]) {
    out.push(b'd');
    string(out, b"ip");
    string(out, ip.to_string().as_bytes());
    integer(out, "port", u16::from_be_bytes(port).into());
    out.push(b'e');
}

/// Writes the response to a scrape. The info hashes must be in ascending order.
pub(super) fn write_scrape(files: impl Iterator<Item = (InfoHash, ScrapeCounts)>, out: &mut Vec<u8>) {
    out.push(b'd');
    string(out, b"files");
    out.push(b'd');
    for (info_hash, counts) in files {
        string(out, &info_hash.0);
        out.push(b'd');
        integer(out, "complete", counts.seeders as u64);
        integer(out, "downloaded", counts.completed.into());
        integer(out, "incomplete", counts.leechers as u64);
        out.push(b'e');
    }
    out.extend_from_slice(b"ee");
}

// Writing to a `Vec` cannot fail.

/// Writes a bencoded byte string.
fn string(out: &mut Vec<u8>, bytes: &[u8]) {
    let _ = write!(out, "{}:", bytes.len());
    out.extend_from_slice(bytes);
}

/// Writes a key with an integer value.
fn integer(out: &mut Vec<u8>, key: &str, n: u64) {
    string(out, key.as_bytes());
    let _ = write!(out, "i{n}e");
}

#[cfg(test)]
mod tests {
    use super::*;

    const FROM: IpAddr = IpAddr::V4(Ipv4Addr::new(9, 8, 7, 6));

    fn text(found: &AnnounceResponse, format: PeerFormat) -> String {
        let mut out = Vec::new();
        write_announce(found, format, Duration::from_secs(60), FROM, &mut out);
        out.escape_ascii().to_string()
    }

    #[test]
    fn peer_formats() {
        let mut v6 = [0; 18];
        (v6[15], v6[17]) = (1, 80);
        let found = AnnounceResponse {
            seeders: 1,
            leechers: 2,
            v4: b"\x7f\0\0\x01\x1a\xe1".to_vec(),
            v6: v6.to_vec(),
            unlisted: false,
        };
        let head =
            r"d8:completei1e11:external ip4:\t\x08\x07\x0610:incompletei2e8:intervali60e12:min intervali30e5:peers";
        let zeros = r"\x00".repeat(15);
        assert_eq!(
            text(&found, PeerFormat::Compact),
            format!(r"{head}6:\x7f\x00\x00\x01\x1a\xe16:peers618:{zeros}\x01\x00Pe")
        );
        assert_eq!(
            text(&found, PeerFormat::Dictionaries),
            format!("{head}ld2:ip9:127.0.0.14:porti6881eed2:ip3:::14:porti80eeee")
        );
        assert!(text(&AnnounceResponse::default(), PeerFormat::Compact).ends_with("5:peers0:e"));
        let mut out = Vec::new();
        write_failure("no", &mut out);
        assert_eq!(out, b"d14:failure reason2:noe");
    }

    #[test]
    fn a_scrape_is_encoded_as_the_specification_shows() {
        let mut out = Vec::new();
        let file = |byte, n| (InfoHash([byte; 20]), ScrapeCounts { seeders: n, leechers: 9, completed: 13772 });
        write_scrape([file(b'x', 11), file(b'y', 21)].into_iter(), &mut out);
        let expected = "d5:filesd20:xxxxxxxxxxxxxxxxxxxxd8:completei11e10:downloadedi13772e10:incompletei9ee\
                        20:yyyyyyyyyyyyyyyyyyyyd8:completei21e10:downloadedi13772e10:incompletei9eeee";
        assert_eq!(out.escape_ascii().to_string(), expected);
    }
}
