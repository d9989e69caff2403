//! Text from files and the command line: Unicode in any form, and the magnet link or info hash in it.

use encoding_rs::{Encoding, UTF_8, UTF_16BE, UTF_16LE};

/// Decodes text in UTF-8 or UTF-16, with or without a byte order mark. Invalid sequences become U+FFFD.
pub(super) fn decode(bytes: &[u8]) -> String {
    let (encoding, mark) = Encoding::for_bom(bytes).unwrap_or_else(|| (utf16_without_mark(bytes), 0));
    encoding.decode_without_bom_handling(&bytes[mark..]).0.into_owned()
}

/// Returns the encoding of text without a byte order mark: ASCII in UTF-16 has a zero in every other byte.
fn utf16_without_mark(bytes: &[u8]) -> &'static Encoding {
    let pairs = bytes.chunks_exact(2).take(32);
    let count = pairs.len();
    let zeros = |at: usize| pairs.clone().filter(|pair| pair[at] == 0 && pair[1 - at] != 0).count();
    match () {
        () if count >= 4 && zeros(1) * 10 >= count * 9 => UTF_16LE,
        () if count >= 4 && zeros(0) * 10 >= count * 9 => UTF_16BE,
        () => UTF_8,
    }
}

/// Removes what surrounds a link that somebody has copied: spaces, quotes, angle brackets, invisible characters.
pub fn unquote(text: &str) -> &str {
    const PAIRS: [(char, char); 7] =
        [('"', '"'), ('\'', '\''), ('<', '>'), ('`', '`'), ('(', ')'), ('\u{201c}', '\u{201d}'), ('\u{ab}', '\u{bb}')];
    let blank = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '\u{feff}' | '\u{200b}'..='\u{200f}');
    let mut text = text.trim_matches(blank);
    while let Some(inner) =
        PAIRS.iter().find_map(|(open, close)| text.strip_prefix(*open).and_then(|rest| rest.strip_suffix(*close)))
    {
        text = inner.trim_matches(blank);
    }
    text
}

/// Returns the magnet link with which text begins, without what surrounds it.
pub(super) fn magnet_at(text: &str) -> Option<&str> {
    let link = unquote(text).trim_start_matches(['"', '\'', '<']);
    let scheme = link.get(.."magnet:".len())?;
    scheme.eq_ignore_ascii_case("magnet:").then_some(link)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_decoded_with_and_without_a_mark() {
        let utf16 = |order: fn(u16) -> [u8; 2]| "magnet:é".encode_utf16().flat_map(order).collect::<Vec<u8>>();
        let (little, big) = (utf16(u16::to_le_bytes), utf16(u16::to_be_bytes));
        for bytes in [
            b"magnet:\xc3\xa9".to_vec(),
            b"\xef\xbb\xbfmagnet:\xc3\xa9".to_vec(),
            [b"\xff\xfe".to_vec(), little.clone()].concat(),
            [b"\xfe\xff".to_vec(), big.clone()].concat(),
        ] {
            assert_eq!(decode(&bytes), "magnet:é", "{}", bytes.escape_ascii());
        }
        assert_eq!(decode(&"magnet:?xt".encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>()), "magnet:?xt");
        assert_eq!(decode(&"magnet:?xt".encode_utf16().flat_map(u16::to_be_bytes).collect::<Vec<_>>()), "magnet:?xt");
        assert_eq!(decode(b"\xff"), "\u{fffd}");
        assert_eq!(decode(b""), "");
    }

    #[test]
    fn quotes_and_spaces_around_a_link_are_removed() {
        for text in ["a b", " a b\r\n", "\"a b\"", "' <a b> '", "\u{feff}a b", "\u{201c}a b\u{201d}", "(a b)"] {
            assert_eq!(unquote(text), "a b", "{text:?}");
        }
        assert_eq!(unquote("\"a"), "\"a");
        assert_eq!(unquote("\""), "\"");
        assert_eq!(magnet_at(" \"MAGNET:?x\""), Some("MAGNET:?x"));
        assert_eq!(magnet_at("é"), None);
    }
}
