//! Guesses what a file is that is not a torrent, for errors that people understand.

use std::fmt;

use infer::MatcherType;

use super::bencode::{Field, Limits, decode_prefix, dict};
use super::names;
use super::text;

/// Bytes at the beginning of a file that are examined.
const HEAD: usize = 4096;
/// Length limit of the text of another program in our errors, in bytes.
const MAX_SHOWN: usize = 200;

/// The apparent kind of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// There are no bytes.
    Empty,
    /// A magnet link, or a file that contains one.
    Magnet,
    /// HTML: a login page or a download page.
    WebPage,
    /// The reply of a tracker, or of a site that refuses a download as trackers do, with its reason.
    TrackerReply(Option<String>),
    /// The notes of a BitTorrent client about an unfinished download.
    Resume,
    /// The named kind of file.
    Other(&'static str),
    /// A kind of file that has this extension.
    Extension(&'static str, &'static str),
    /// Text of no special kind.
    Text,
    /// Bytes of no known kind.
    Unknown,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("it is empty"),
            Self::Magnet => f.write_str("it looks like a magnet link"),
            Self::WebPage => f.write_str("it looks like a web page (HTML); give the link of the file itself"),
            Self::TrackerReply(Some(why)) => write!(f, "it is an answer that says {why:?}"),
            Self::TrackerReply(None) => f.write_str("it looks like a tracker's reply"),
            Self::Resume => f.write_str("it looks like the saved state of a BitTorrent client"),
            Self::Other(name) => write!(f, "it looks like {name}"),
            Self::Extension(name, extension) => write!(f, "it looks like {name} (.{extension})"),
            Self::Text => f.write_str("it looks like text"),
            Self::Unknown => f.write_str("its kind is unknown, or its beginning is damaged"),
        }
    }
}

dict! {
    struct Bencoded {
        failure: Vec<u8> = "failure reason",
        peers: Vec<u8> = "peers",
        interval: i64 = "interval",
        file_format: Vec<u8> = "file-format",
        file_guard: Vec<u8> = ".fileguard",
        info_hash: Vec<u8> = "info-hash",
    }
}

/// Returns what a file seems to be that is not a torrent.
pub(super) fn kind(bytes: &[u8]) -> Kind {
    let head = &bytes[..bytes.len().min(HEAD)];
    if bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes).trim_ascii().is_empty() {
        return Kind::Empty;
    }
    // Every text that begins with "de" begins with an empty dictionary.
    if let Ok((Field::Is(fields), 3..)) = decode_prefix::<Field<Bencoded>>(bytes, &Limits::TORRENT) {
        return bencoded(fields);
    }
    let text = text::decode(head);
    let start = text.trim_start().to_ascii_lowercase();
    let begins = |prefixes: &[&str]| prefixes.iter().any(|prefix| start.starts_with(prefix));
    if text::magnet_at(&text).is_some() {
        return Kind::Magnet;
    }
    if begins(&["<!doctype html", "<html", "<head", "<body", "<script", "<!--", "<meta", "<title"]) {
        return Kind::WebPage;
    }
    if begins(&["<"]) {
        return match () {
            () if start.contains("<html") => Kind::WebPage,
            () if start.contains("<rss") || start.contains("<feed") => Kind::Other("an RSS or Atom feed"),
            () if start.contains("<metalink") => Kind::Other("a Metalink"),
            () if start.contains("<nzb") => Kind::Other("an NZB file of Usenet"),
            () => Kind::Other("an XML document"),
        };
    }
    if begins(&["http/1", "http/2"]) {
        return Kind::Other("an HTTP response that was saved with its header");
    }
    if let Some(found) = infer::get(head) {
        return by_magic(found);
    }
    if bytes.get(257..262) == Some(b"ustar") {
        return Kind::Extension("an archive", "tar");
    }
    if is_subtitle(&start) {
        return Kind::Other("a subtitle");
    }
    if begins(&["{", "["]) && text.contains('"') {
        return Kind::Other("JSON");
    }
    let readable = text.chars().filter(|c| !c.is_control() || c.is_whitespace()).count();
    let is_text = !text.contains('\0') && readable * 100 >= text.chars().count() * 99 && !text.contains('\u{fffd}');
    if is_text { Kind::Text } else { Kind::Unknown }
}

fn bencoded(fields: Bencoded) -> Kind {
    let why = fields.failure.ok().map(|why| names::clean_text(&why, MAX_SHOWN));
    if why.is_some() || fields.peers != Field::Absent || fields.interval != Field::Absent {
        return Kind::TrackerReply(why);
    }
    let saved = [fields.file_format, fields.file_guard, fields.info_hash];
    match saved.iter().any(|field| *field != Field::Absent) {
        true => Kind::Resume,
        false => Kind::Other("bencoded data of another kind"),
    }
}

fn by_magic(found: infer::Type) -> Kind {
    let extension = found.extension();
    match found.matcher_type() {
        MatcherType::App => Kind::Other("a program"),
        MatcherType::Archive if extension == "pdf" => Kind::Extension("a document", extension),
        MatcherType::Archive => Kind::Extension("an archive", extension),
        MatcherType::Audio => Kind::Extension("music", extension),
        MatcherType::Book | MatcherType::Doc => Kind::Extension("a document", extension),
        MatcherType::Font => Kind::Extension("a font", extension),
        MatcherType::Image => Kind::Extension("an image", extension),
        MatcherType::Video => Kind::Extension("a video", extension),
        MatcherType::Text if matches!(extension, "html" | "htm") => Kind::WebPage,
        MatcherType::Text | MatcherType::Custom => Kind::Extension("a file", extension),
    }
}

/// Returns whether text begins as SubRip, WebVTT, SubStation Alpha, MicroDVD or SAMI does.
fn is_subtitle(start: &str) -> bool {
    let mut lines = start.lines().map(str::trim).filter(|line| !line.is_empty());
    let (first, second) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let counted = first.parse::<u32>().is_ok() && second.contains("-->");
    counted
        || first.starts_with("webvtt")
        || first.starts_with("[script info]")
        || first.contains("-->")
        || (first.starts_with('{') && first.split("}{").next().is_some_and(|n| n[1..].parse::<u32>().is_ok()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn files_are_recognized() {
        let utf16 = [
            &b"\xff\xfe"[..],
            &"1\r\n00:00:01,000 --> x".encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>(),
        ];
        let mut tar = vec![0; 512];
        tar[0] = b'd';
        tar[257..262].copy_from_slice(b"ustar");
        let cases: [(&[u8], &str); 26] = [
            (b"", "it is empty"),
            (b"\xef\xbb\xbf\n", "it is empty"),
            (b" \r\n", "it is empty"),
            (b"\n<!DOCTYPE html><title>x", "a web page"),
            (b"<?xml version='1.0'?><html>", "a web page"),
            (b"<?xml version='1.0'?><rss>", "feed"),
            (b"<?xml version='1.0'?><a>", "an XML document"),
            (b"<?xml version='1.0'?><metalink>", "a Metalink"),
            (b"1\n00:00:01,600 --> 00:00:04,200\nHello", "a subtitle"),
            (&utf16.concat(), "a subtitle"),
            (b"\xef\xbb\xbfWEBVTT\n\n00:01.000 --> 00:04.000", "a subtitle"),
            (b"[Script Info]\nTitle: x", "a subtitle"),
            (b"{100}{200}Hello|there", "a subtitle"),
            (b"\n magnet:?xt=urn:btih:x", "a magnet link"),
            (b"{\"error\": \"no such torrent\"}", "JSON"),
            (b"HTTP/1.1 200 OK\r\n\r\nd4:info", "HTTP response"),
            (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "an image (.png)"),
            (b"PK\x03\x04\x14\0\0\0\x08\0", "an archive (.zip)"),
            (b"Rar!\x1a\x07\x01\0", "an archive (.rar)"),
            (b"%PDF-1.7\n", "a document (.pdf)"),
            (&tar, "an archive (.tar)"),
            (b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0>\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", "a program"),
            (b"d14:failure reason15:invalid passkeye", "says \"invalid passkey\""),
            (b"d11:file-format22:libtorrent resume filee", "saved state"),
            (b"dear diary", "text"),
            (b"\x01\x02\x03", "its kind is unknown"),
        ];
        for (bytes, text) in cases {
            let found = kind(bytes).to_string();
            assert!(found.contains(text), "{}: {found}", bytes.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn random_files_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), text in "\\PC{0,80}") {
            let shown = [kind(&bytes), kind(text.as_bytes())].map(|kind| kind.to_string());
            prop_assert!(shown.iter().all(|text| !text.contains('\n')));
        }
    }
}
