//! The names of BitTorrent clients: our own, and those that peer ids carry by the convention of BEP 20.

use super::message::PeerId;

/// Name and version of our client, as sent to peers.
pub const CLIENT_NAME: &str = concat!("torrentfs ", env!("CARGO_PKG_VERSION"));

/// First bytes of our peer ids (BEP 20): `TF`, the three numbers of our version and a 0.
pub(super) const PEER_ID_PREFIX: [u8; 8] = [
    b'-',
    b'T',
    b'F',
    digit(env!("CARGO_PKG_VERSION_MAJOR")),
    digit(env!("CARGO_PKG_VERSION_MINOR")),
    digit(env!("CARGO_PKG_VERSION_PATCH")),
    b'0',
    b'-',
];

/// Returns a number below 36 as one digit.
const fn digit(decimal: &str) -> u8 {
    let (decimal, mut number, mut at) = (decimal.as_bytes(), 0, 0);
    while at < decimal.len() {
        number = number * 10 + (decimal[at] - b'0') as usize;
        at += 1;
    }
    b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"[number]
}

/// Client codes, as in `-XX1234-`, and client names.
const CLIENTS: [(&[u8; 2], &str); 30] = [
    (b"7T", "aTorrent"),
    (b"A2", "aria2"),
    (b"AG", "Ares"),
    (b"AZ", "Vuze"),
    (b"BC", "BitComet"),
    (b"BI", "BiglyBT"),
    (b"BT", "BitTorrent"),
    (b"BW", "BitWombat"),
    (b"DE", "Deluge"),
    (b"FD", "Free Download Manager"),
    (b"KT", "KTorrent"),
    (b"LT", "libtorrent"),
    (b"MG", "MediaGet"),
    (b"PI", "PicoTorrent"),
    (b"QD", "QQDownload"),
    (b"SD", "Thunder"),
    (b"TF", "torrentfs"),
    (b"TL", "Tribler"),
    (b"TR", "Transmission"),
    (b"TX", "Tixati"),
    (b"UM", "µTorrent Mac"),
    (b"UT", "µTorrent"),
    (b"UW", "µTorrent Web"),
    (b"WD", "WebTorrent Desktop"),
    (b"WW", "WebTorrent"),
    (b"XL", "Xunlei"),
    (b"lt", "rTorrent"),
    (b"qB", "qBittorrent"),
    (b"rQ", "rqbit"),
    (b"st", "SharkTorrent"),
];

/// Returns the name and version of a peer's client, or `None` if the id has another form or an unknown code.
pub fn client_of(id: &PeerId) -> Option<String> {
    let [b'-', a, b, version @ .., b'-'] = id.0.first_chunk::<8>()? else { return None };
    let name = CLIENTS.iter().find(|(code, _)| **code == [*a, *b]).map(|(_, name)| *name)?;
    // One base-36 digit per part of the version.
    let mut digits = Vec::new();
    for digit in version {
        digits.push(char::from(*digit).to_digit(36)?);
    }
    while digits.len() > 2 && digits.last() == Some(&0) {
        digits.pop();
    }
    let version: Vec<String> = digits.iter().map(u32::to_string).collect();
    Some(format!("{name} {}", version.join(".")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_clients_have_names() {
        let named = |text: &[u8; 20]| client_of(&PeerId(*text));
        assert_eq!(named(b"-qB4650-abcdefghijkl").as_deref(), Some("qBittorrent 4.6.5"));
        assert_eq!(named(b"-LT20B0-abcdefghijkl").as_deref(), Some("libtorrent 2.0.11"));
        assert_eq!(named(b"-TR4000-abcdefghijkl").as_deref(), Some("Transmission 4.0"));
        for strange in [b"-??0000-abcdefghijkl", b"-TR40!0-abcdefghijkl", b"M7-9-2--abcdefghijkl", &[0; 20]] {
            assert_eq!(named(strange), None);
        }
        assert!(CLIENTS.iter().map(|(code, _)| code).is_sorted());
    }

    #[test]
    fn our_own_id_names_our_version() {
        let mut id = [b'x'; 20];
        id[..8].copy_from_slice(&PEER_ID_PREFIX);
        assert!(CLIENT_NAME.starts_with(&client_of(&PeerId(id)).unwrap()));
        assert_eq!([digit("0"), digit("9"), digit("10"), digit("35")], *b"09AZ");
    }

    proptest! {
        #[test]
        fn any_id_is_accepted(id: [u8; 20]) {
            let _ = client_of(&PeerId(id));
        }
    }
}
