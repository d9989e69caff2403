//! Text from the network, made safe to display.

/// Returns untrusted text as one line for a terminal: invalid UTF-8 is replaced, control and bidirectional formatting
/// characters become spaces, runs of white space collapse, and the result has at most `max` characters.
pub(crate) fn printable(bytes: &[u8], max: usize) -> String {
    // Cut first, because the input may be megabytes long. A character takes at most four bytes.
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(max * 4)]);
    let hidden = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
    };
    let clean: String = text.chars().map(|c| if hidden(c) { ' ' } else { c }).collect();
    let line = clean.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() <= max {
        return line;
    }
    line.chars().take(max.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_from_outside_stay_on_one_line() {
        assert_eq!(printable(b"  un\x1b[31mregistered\r\ntorrent\0 ", 100), "un [31mregistered torrent");
        assert_eq!(printable("a\u{202e}b".as_bytes(), 100), "a b");
        assert_eq!(printable(b"abcdef", 4), "abc…");
        assert_eq!(printable(&[b'x'; 1 << 20], 200).chars().count(), 200);
        assert_eq!(printable(b"\xff\xfe", 10), "\u{fffd}\u{fffd}");
    }
}
