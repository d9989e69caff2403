//! Text from the network, made safe to display.

use std::borrow::Cow;

/// Returns whether a character is invisible or changes the display of others: control characters, zero-width and
/// bidirectional formatting characters, line separators, tags. Joiners are not among them: Persian words and many emoji
/// need them.
pub(crate) fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{61c}'
                | '\u{200b}'
                | '\u{200e}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{2069}'
                | '\u{feff}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

/// Decodes the beginning of untrusted text, which may be megabytes long. A character takes at most four bytes.
fn decode(bytes: &[u8], max: usize) -> Cow<'_, str> {
    String::from_utf8_lossy(&bytes[..bytes.len().min(max * 4)])
}

/// Returns untrusted text as one line for a terminal: invalid UTF-8 is replaced, hidden characters become spaces, runs
/// of white space collapse, and the result has at most `max` characters, the last of which is `…` if text was cut off.
pub(crate) fn printable(bytes: &[u8], max: usize) -> String {
    let clean: String = decode(bytes, max).chars().map(|c| if is_hidden(c) { ' ' } else { c }).collect();
    let line = clean.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() <= max {
        return line;
    }
    line.chars().take(max.saturating_sub(1)).chain(['…']).collect()
}

/// Returns an untrusted name without hidden characters, cut to `max` characters. Unlike [`printable`], it keeps spaces.
pub(crate) fn printable_name(bytes: &[u8], max: usize) -> String {
    decode(bytes, max).chars().filter(|c| !is_hidden(*c)).take(max).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn untrusted_text_becomes_one_bounded_line() {
        assert_eq!(printable(b"  un\x1b[31mregistered\r\ntorrent\0 ", 100), "un [31mregistered torrent");
        assert_eq!(printable("a\u{202e}b".as_bytes(), 100), "a b");
        assert_eq!(printable("می\u{200c}خواهم".as_bytes(), 100), "می\u{200c}خواهم", "a joiner between letters");
        assert_eq!(printable(b"abcdef", 4), "abc…");
        assert_eq!(printable(&[b'x'; 1 << 20], 200).chars().count(), 200);
        assert_eq!(printable(b"\xff\xfe", 10), "\u{fffd}\u{fffd}");
    }
    #[test]
    fn names_lose_hidden_characters_and_keep_spaces() {
        assert_eq!(printable_name(b"evil\x1b[31m\n", 100), "evil[31m");
        assert_eq!(printable_name("a \u{202e}b ".as_bytes(), 100), "a b ");
        assert_eq!(printable_name("é".repeat(1000).as_bytes(), 20), "é".repeat(20));
    }
}
