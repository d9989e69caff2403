//! The head of a server's answer: which bytes of a file its body holds.
//!
//! Servers spell `Content-Range` in many ways, leave it out or contradict themselves. The body is taken for what it most
//! likely is, because a hash decides later whether that was right. Only what cannot be right is refused.

use std::ops::Range;
use std::time::Duration;

use reqwest::header::{CONTENT_ENCODING, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderName};
use reqwest::{Response, StatusCode};

/// Maximum wait that a server may impose, so that a wrong header does not disable it for days.
pub(super) const MAX_WAIT: Duration = Duration::from_secs(3600);
/// Codings of a `Content-Encoding` that change the bytes. Everything else that servers write there (`identity`, `none`,
/// `utf-8`, nothing) does not.
const COMPRESSIONS: [&str; 8] = ["gzip", "x-gzip", "deflate", "compress", "x-compress", "br", "zstd", "bzip2"];
/// Endings of files that are compressed themselves: servers name their compression as if they had added it.
const COMPRESSED_FILES: [&str; 10] = [".gz", ".tgz", ".svgz", ".z", ".bz2", ".tbz2", ".br", ".zst", ".xz", ".txz"];

/// What a head says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Head {
    status: StatusCode,
    /// Length of the body.
    length: Option<u64>,
    range: Option<ContentRange>,
    /// It names a compression.
    compressed: bool,
    kind: String,
}

/// The bytes of a file in a body.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Placed {
    pub(super) bytes: Range<u64>,
    /// Length of the file on the server.
    pub(super) total: Option<u64>,
}

impl Head {
    pub(super) fn of(response: &Response) -> Self {
        let headers = response.headers();
        let encodings = headers.get_all(CONTENT_ENCODING).iter().filter_map(|value| value.to_str().ok());
        let mut encodings =
            encodings.flat_map(|value| value.split(',')).map(|coding| coding.trim().to_ascii_lowercase());
        Self {
            status: response.status(),
            length: response.content_length(),
            range: text(headers, CONTENT_RANGE).and_then(content_range),
            compressed: encodings.any(|coding| COMPRESSIONS.contains(&&*coding)),
            kind: text(headers, CONTENT_TYPE).unwrap_or_default().trim().to_ascii_lowercase(),
        }
    }

    /// Returns the file's length on the server, if the answer is that the range begins after its end.
    pub(super) fn unsatisfied(&self) -> Option<u64> {
        self.range.as_ref().filter(|range| range.bytes.is_none())?.total
    }

    /// Returns which bytes of a file of `len` bytes the body holds, if they include the beginning of `requested`; or why
    /// it cannot be used. The status is 200 or 206.
    pub(super) fn place(&self, requested: &Range<u64>, len: u64, name: &str) -> Result<Placed, String> {
        let partial = self.status == StatusCode::PARTIAL_CONTENT;
        if self.kind.starts_with("multipart/") {
            return Err("it answers with several ranges at once".into());
        }
        let named = self.range.as_ref().and_then(|range| Some((range.bytes.clone()?, range.total)));
        let (bytes, total) = match (named.clone(), self.length) {
            // The length shows that the range is ignored.
            (Some((bytes, total)), Some(length)) if length == len && bytes.end - bytes.start != len => (0..len, total),
            (Some((bytes, total)), length) => {
                let length = length.unwrap_or(bytes.end - bytes.start);
                (bytes.start..bytes.start.saturating_add(length), total)
            }
            (None, length) if partial => match length {
                None => (requested.clone(), None),
                Some(length) if length == requested.end - requested.start => (requested.clone(), None),
                Some(length) if length == len => (0..len, None),
                Some(_) => return Err("it answers with a range but does not say which".into()),
            },
            (None, Some(length)) => (0..length, Some(length)),
            (None, None) if self.is_page(name) => return Err("it answers with a web page".into()),
            (None, None) => (0..len, None),
        };
        let usable = bytes.start <= requested.start
            && (requested.start < bytes.end || total.is_some_and(|total| total <= requested.start));
        if !usable {
            return Err(format!("it answers with another range than requested (from {})", bytes.start));
        }
        // Compressed, it would hardly have just the length that it should have.
        let span = if partial { requested.end - requested.start } else { len };
        let span = named.map_or(span, |(bytes, _)| bytes.end - bytes.start);
        let exact = self.length.is_some_and(|length| length == span || length == len);
        if self.compressed && !exact && !is_compressed_file(name) {
            return Err("it sends the file compressed although that was not allowed".into());
        }
        Ok(Placed { bytes, total })
    }

    /// Returns whether the body is a web page although the file is not.
    fn is_page(&self, name: &str) -> bool {
        let name = name.to_ascii_lowercase();
        self.kind.starts_with("text/html") && !name.ends_with(".html") && !name.ends_with(".htm")
    }
}

fn is_compressed_file(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    COMPRESSED_FILES.iter().any(|ending| name.ends_with(ending))
}

/// Returns the text of a header.
pub(super) fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

#[derive(Debug, PartialEq, Eq)]
struct ContentRange {
    /// `None` for `*`: the requested range is not there.
    bytes: Option<Range<u64>>,
    total: Option<u64>,
}

/// Parses `bytes 0-499/1234` (RFC 9110) and what servers write instead: without the unit, with `=` or `:` after it,
/// without the length, with spaces.
fn content_range(text: &str) -> Option<ContentRange> {
    let text = text.trim().trim_start_matches(|c: char| c.is_ascii_alphabetic());
    let text = text.trim_start_matches(|c: char| c.is_whitespace() || matches!(c, '=' | ':'));
    let (range, total) = text.split_once('/').map_or((text, "*"), |(range, total)| (range.trim(), total.trim()));
    let total = if total == "*" || total.is_empty() { None } else { Some(total.parse().ok()?) };
    if range == "*" {
        return Some(ContentRange { bytes: None, total });
    }
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    let bytes = Some(first..last.checked_add(1)?).filter(|bytes| !bytes.is_empty())?;
    Some(ContentRange { bytes: Some(bytes), total })
}

/// Parses a wait time in seconds.
pub(super) fn seconds(text: &str) -> Option<Duration> {
    text.trim().parse().ok().map(|seconds| Duration::from_secs(seconds).clamp(Duration::from_secs(1), MAX_WAIT))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn content_ranges_and_wait_times_are_parsed() {
        let range = |text: &str| content_range(text).map(|range| (range.bytes, range.total));
        for text in [
            "bytes 0-499/1234",
            "0-499/1234",
            "bytes=0-499/1234",
            "bytes: 0-499/1234",
            "Bytes  0 - 499 / 1234 ",
            "octets 0-499/1234",
        ] {
            assert_eq!(range(text), Some((Some(0..500), Some(1234))), "{text}");
        }
        for text in ["bytes 0-499/*", "bytes 0-499", "0-499/"] {
            assert_eq!(range(text), Some((Some(0..500), None)), "{text}");
        }
        assert_eq!(range("bytes */1234"), Some((None, Some(1234))));
        let huge = format!("bytes 0-{}/9", u64::MAX);
        for wrong in ["bytes 9-1/20", "bytes 0-x/2", "bytes 0-1/-2", "bytes -1/2", "0", "", &huge] {
            assert_eq!(range(wrong), None, "{wrong}");
        }
        assert_eq!(seconds(" 30\n"), Some(Duration::from_secs(30)));
        assert_eq!(seconds("0"), Some(Duration::from_secs(1)));
        assert_eq!(seconds("99999999"), Some(MAX_WAIT));
        assert_eq!(seconds("Fri, 31 Dec 1999 23:59:59 GMT"), None);
        assert_eq!(seconds("-5"), None);
    }

    fn head(status: u16, length: impl Into<Option<u64>>, range: &str) -> Head {
        Head {
            status: StatusCode::from_u16(status).unwrap(),
            length: length.into(),
            range: content_range(range),
            compressed: false,
            kind: String::new(),
        }
    }

    #[test]
    fn bodies_are_taken_for_what_they_most_likely_are() {
        // Bytes 100 to 199 of a file of 1,000 bytes were requested.
        for (head, bytes, total) in [
            (head(206, 100, "bytes 100-199/1000"), 100..200, Some(1000)),
            (head(206, 100, "100-199/1000"), 100..200, Some(1000)),
            (head(206, None, "bytes 100-199/*"), 100..200, None),
            (head(206, 40, "bytes 100-139/1000"), 100..140, Some(1000)),
            // An end that is off by one.
            (head(206, 100, "bytes 100-200/1000"), 100..200, Some(1000)),
            (head(206, 100, ""), 100..200, None),
            (head(206, 100, "nonsense"), 100..200, None),
            (head(206, None, ""), 100..200, None),
            // The whole file, or more than was requested.
            (head(206, 1000, "bytes 0-999/1000"), 0..1000, Some(1000)),
            (head(206, 1000, "bytes 100-199/1000"), 0..1000, Some(1000)),
            (head(206, 1000, ""), 0..1000, None),
            (head(206, 300, "bytes 0-299/1000"), 0..300, Some(1000)),
            (head(200, 1000, ""), 0..1000, Some(1000)),
            (head(200, None, ""), 0..1000, None),
            (head(200, 100, "bytes 100-199/1000"), 100..200, Some(1000)),
            (head(200, 1000, "bytes 0-999/1000"), 0..1000, Some(1000)),
            (head(200, 1000, "bytes 100-199/1000"), 0..1000, Some(1000)),
            // A file of another length.
            (head(206, 50, "bytes 100-149/150"), 100..150, Some(150)),
            (head(200, 77, ""), 0..77, Some(77)),
            (head(200, 2000, ""), 0..2000, Some(2000)),
        ] {
            assert_eq!(head.place(&(100..200), 1000, "f"), Ok(Placed { bytes, total }), "{head:?}");
        }
        for (head, why) in [
            (head(206, 100, "bytes 101-200/1000"), "another range"),
            (head(206, 100, "bytes 0-99/1000"), "another range"),
            (head(206, 99, ""), "does not say which"),
            (Head { kind: "multipart/byteranges; boundary=x".into(), ..head(206, 300, "") }, "several ranges"),
            (Head { kind: "text/html".into(), ..head(200, None, "") }, "web page"),
        ] {
            let error = head.place(&(100..200), 1000, "f").unwrap_err();
            assert!(error.contains(why), "{head:?}: {error}");
        }
        assert_eq!(head(416, 0, "bytes */150").unsatisfied(), Some(150));
        assert_eq!(head(416, 0, "").unsatisfied(), None);
    }

    #[test]
    fn compression_is_refused_unless_the_length_shows_that_there_is_none() {
        let place = |head: Head, name: &str| Head { compressed: true, ..head }.place(&(100..200), 1000, name).is_ok();
        assert!(place(head(206, 100, "bytes 100-199/1000"), "f"));
        assert!(place(head(200, 1000, ""), "f"));
        assert!(!place(head(206, None, "bytes 100-199/1000"), "f"));
        assert!(!place(head(206, 60, "bytes 100-199/1000"), "f"));
        assert!(!place(head(200, 600, ""), "f"));
        assert!(!place(head(200, None, ""), "f.tar"));
        assert!(place(head(200, None, ""), "f.TGZ"));
    }

    proptest! {
        #[test]
        fn places_include_what_was_requested(
            status in prop::sample::select(vec![200, 206]), length: Option<u64>, range in "[a-z]{0,3}[ =]?[0-9]{0,20}-[0-9]{0,20}/?[0-9]{0,20}",
            start in 0u64..1000, count in 1u64..1000,
        ) {
            let requested = start..start + count;
            if let Ok(placed) = head(status, length, &range).place(&requested, 2000, "f") {
                prop_assert!(placed.bytes.start <= start);
                prop_assert!(placed.bytes.end > start || placed.total.is_some_and(|total| total <= start));
            }
        }
    }
}
