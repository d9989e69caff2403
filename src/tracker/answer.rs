//! Answers in bencode: a handful of keys, in order.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::table::Swarm;

/// How peers are written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Form {
    /// 6 or 18 bytes each (BEP 23, 7).
    Compact,
    /// Dictionaries (BEP 3) without ids.
    Addresses,
    /// Dictionaries with ids.
    WithIds,
}

pub(super) fn failure(reason: &str) -> Vec<u8> {
    let mut out = b"d14:failure reason".to_vec();
    string(&mut out, reason.as_bytes());
    out.push(b'e');
    out
}

pub(super) fn success(swarm: &Swarm, form: Form, interval: Duration, from: IpAddr) -> Vec<u8> {
    let seconds = interval.as_secs().max(1);
    let mut out = b"d".to_vec();
    integer(&mut out, "complete", swarm.seeders as u64);
    string(&mut out, b"external ip");
    string(&mut out, &octets(from.to_canonical()));
    integer(&mut out, "incomplete", swarm.leechers as u64);
    integer(&mut out, "interval", seconds);
    integer(&mut out, "min interval", seconds.div_ceil(2));
    string(&mut out, b"peers");
    if form == Form::Compact {
        let compact = |v6: bool| -> Vec<u8> {
            let family = swarm.peers.iter().map(|(addr, _)| addr).filter(|addr| addr.is_ipv6() == v6);
            family.flat_map(compact).collect()
        };
        string(&mut out, &compact(false));
        let v6 = compact(true);
        if !v6.is_empty() {
            string(&mut out, b"peers6");
            string(&mut out, &v6);
        }
    } else {
        out.push(b'l');
        for (addr, id) in &swarm.peers {
            out.push(b'd');
            string(&mut out, b"ip");
            string(&mut out, addr.ip().to_string().as_bytes());
            if form == Form::WithIds {
                string(&mut out, b"peer id");
                string(&mut out, &id.0);
            }
            integer(&mut out, "port", addr.port().into());
            out.push(b'e');
        }
        out.push(b'e');
    }
    out.push(b'e');
    out
}

fn compact(addr: &SocketAddr) -> Vec<u8> {
    [octets(addr.ip()).as_slice(), &addr.port().to_be_bytes()].concat()
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

// Writing to a `Vec` cannot fail.

fn string(out: &mut Vec<u8>, bytes: &[u8]) {
    let _ = write!(out, "{}:", bytes.len());
    out.extend_from_slice(bytes);
}

fn integer(out: &mut Vec<u8>, key: &str, n: u64) {
    string(out, key.as_bytes());
    let _ = write!(out, "i{n}e");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::PeerId;

    const FROM: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(9, 8, 7, 6));

    fn text(swarm: &Swarm, form: Form) -> String {
        success(swarm, form, Duration::from_secs(60), FROM).escape_ascii().to_string()
    }

    #[test]
    fn forms() {
        let swarm = Swarm {
            seeders: 1,
            leechers: 2,
            peers: vec![
                (([127, 0, 0, 1], 6881).into(), PeerId([b'a'; 20])),
                ("[::1]:80".parse().unwrap(), PeerId([b'b'; 20])),
            ],
        };
        let head =
            r"d8:completei1e11:external ip4:\t\x08\x07\x0610:incompletei2e8:intervali60e12:min intervali30e5:peers";
        let zeros = r"\x00".repeat(15);
        assert_eq!(
            text(&swarm, Form::Compact),
            format!(r"{head}6:\x7f\x00\x00\x01\x1a\xe16:peers618:{zeros}\x01\x00Pe")
        );
        assert_eq!(
            text(&swarm, Form::Addresses),
            format!("{head}ld2:ip9:127.0.0.14:porti6881eed2:ip3:::14:porti80eeee")
        );
        assert_eq!(
            text(&swarm, Form::WithIds),
            format!(
                "{head}ld2:ip9:127.0.0.17:peer id20:{}4:porti6881eed2:ip3:::17:peer id20:{}4:porti80eeee",
                "a".repeat(20),
                "b".repeat(20)
            )
        );
        assert!(text(&Swarm::default(), Form::Compact).ends_with("5:peers0:e"));
        assert_eq!(failure("no"), b"d14:failure reason2:noe");
    }
}
