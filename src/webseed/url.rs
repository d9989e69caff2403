//! Web seed URLs: the URLs of files and pieces, and masking.

use std::fmt::{self, Write};
use std::ops::Range;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use reqwest::Url;

use crate::http::Masked;
use crate::metainfo::{InfoHash, Layout, PieceIndex};

/// Longest URL accepted, in bytes. Real ones are far shorter.
const MAX_URL: usize = 4096;

/// Percent-encoding of everything except the unreserved characters of RFC 3986.
const RAW: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The kind of a web seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeedKind {
    /// Plain files on any HTTP server (BEP 19, `url-list`).
    Files,
    /// A script that serves pieces by number (BEP 17, `httpseeds`).
    Script,
}

/// The URL of a web seed. It may hold a secret, so `Display` and `Debug` are [`Masked`].
#[derive(Clone, PartialEq, Eq)]
pub struct SeedUrl {
    kind: SeedKind,
    /// The parsed URL, without its fragment.
    url: Url,
}

/// The reason why a URL cannot be used as a web seed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SeedUrlError {
    /// Not a URL, or a URL without a host.
    #[error("it is not a URL of a web server")]
    NotAUrl,
    /// A scheme other than `http` and `https`.
    #[error("{0}:// is not supported, only http and https")]
    Scheme(String),
    /// It comes after [`MAX_WEB_SEEDS`](super::MAX_WEB_SEEDS) others.
    #[error("the torrent has too many web seeds")]
    TooMany,
}

impl SeedUrl {
    /// Parses a URL from a torrent.
    pub fn parse(kind: SeedKind, text: &str) -> Result<Self, SeedUrlError> {
        if text.len() > MAX_URL {
            return Err(SeedUrlError::NotAUrl);
        }
        let mut url = Url::parse(text).map_err(|_| SeedUrlError::NotAUrl)?;
        url.set_fragment(None);
        match url.scheme() {
            "http" | "https" if url.has_host() => Ok(Self { kind, url }),
            "http" | "https" => Err(SeedUrlError::NotAUrl),
            scheme => Err(SeedUrlError::Scheme(scheme.chars().take(20).collect())),
        }
    }

    /// Returns the kind.
    pub fn kind(&self) -> SeedKind {
        self.kind
    }

    /// Returns the whole URL, secrets included.
    pub fn as_str(&self) -> &str {
        self.url.as_str()
    }

    /// Returns the server's port, replaced by 80 if it is 0, because it becomes part of a socket address.
    pub(super) fn port(&self) -> u16 {
        self.url.port_or_known_default().filter(|port| *port != 0).unwrap_or(80)
    }

    /// Returns the URL of a file (BEP 19). For a torrent with a single file, the web seed's URL is that file unless it
    /// ends in a slash. Otherwise it is a directory, and the file's path is appended. Some torrents with many files
    /// leave out the slash.
    ///
    /// `path` is the file's path, the torrent's name first.
    pub(super) fn of_file(&self, layout: &Layout, path: &[impl AsRef<[u8]>]) -> Option<Url> {
        let base = self.as_str();
        let alone = matches!(layout.files(), [only] if only.path.len() == 1);
        if alone && !base.ends_with('/') {
            return Some(self.url.clone());
        }
        let mut text = base.strip_suffix('/').unwrap_or(base).to_owned();
        for part in path {
            // Writing to a `String` cannot fail.
            let _ = write!(text, "/{}", percent_encode(part.as_ref(), RAW));
        }
        Url::parse(&text).ok()
    }

    /// Returns the URL of a part of a piece (BEP 17), given as a byte range of the piece; `None` requests the whole
    /// piece.
    pub(super) fn of_piece(&self, info_hash: &InfoHash, piece: PieceIndex, part: Option<&Range<u32>>) -> Url {
        let mut query = match self.url.query() {
            Some(own) if !own.is_empty() => format!("{own}&"),
            _ => String::new(),
        };
        let _ = write!(query, "info_hash={}&piece={piece}", percent_encode(&info_hash.0, RAW));
        if let Some(part) = part {
            let _ = write!(query, "&ranges={}-{}", part.start, part.end.saturating_sub(1));
        }
        let mut url = self.url.clone();
        url.set_query(Some(&query));
        url
    }
}

impl fmt::Display for SeedUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Masked(self.url.as_str()).fmt(f)
    }
}

impl fmt::Debug for SeedUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metainfo::{File, FileKind, Lengths};

    fn layout(paths: &[&str]) -> Layout {
        let file = |(path, offset): (&&str, u64)| File {
            path: path.split('/').map(str::to_owned).collect(),
            offset: offset * 5,
            len: 5,
            kind: FileKind::Regular { executable: false },
        };
        let files: Vec<File> = paths.iter().zip(0..).map(file).collect();
        Layout::new(Lengths::new(5 * files.len() as u64, 16384).unwrap(), files)
    }

    fn urls(base: &str, paths: &[&str]) -> Vec<String> {
        let layout = layout(paths);
        let seed = SeedUrl::parse(SeedKind::Files, base).unwrap();
        layout.files().iter().map(|file| seed.of_file(&layout, &file.path).unwrap().to_string()).collect()
    }

    #[test]
    fn file_urls_follow_bep_19() {
        // The example of the specification.
        assert_eq!(
            urls("http://mirror.com/pub/", &["michael/Readme.txt"]),
            ["http://mirror.com/pub/michael/Readme.txt"]
        );
        assert_eq!(urls("http://mirror.com/file.exe", &["t.exe"]), ["http://mirror.com/file.exe"]);
        assert_eq!(urls("http://mirror.com/pub/", &["t.exe"]), ["http://mirror.com/pub/t.exe"]);
        assert_eq!(urls("http://mirror.com", &["t.exe"]), ["http://mirror.com/t.exe"]);
        assert_eq!(urls("http://m/pub", &["t/a", "t/b/c"]), ["http://m/pub/t/a", "http://m/pub/t/b/c"]);
        assert_eq!(urls("http://m/get?at=/pub/", &["t/a"]), ["http://m/get?at=/pub/t/a"]);
        assert_eq!(urls("https://u:p@m:8080/x y/#part", &["t"]), ["https://u:p@m:8080/x%20y/t"]);
    }

    #[test]
    fn path_components_are_encoded() {
        let url = urls("http://m/", &["t/100% é/a?b#c&d+e.mkv"]);
        assert_eq!(url, ["http://m/t/100%25%20%C3%A9/a%3Fb%23c%26d%2Be.mkv"]);
    }

    #[test]
    fn bytes_that_are_no_text_are_encoded() {
        let seed = SeedUrl::parse(SeedKind::Files, "http://m/").unwrap();
        let layout = layout(&["t/a", "t/b"]);
        let url = seed.of_file(&layout, &[b"t".as_slice(), b"\xf4\xe8\n\0/..\\.bin"]).unwrap();
        assert_eq!(url.as_str(), "http://m/t/%F4%E8%0A%00%2F..%5C.bin");
    }

    #[test]
    fn piece_urls_follow_bep_17() {
        // The examples of the specification.
        let hash = b"\x9c\xd9i\x8a\xf5Uu\x1a\x91\x86\xae\x06lW\xea!W#5\xe0";
        let layout = layout(&["t"; 1]);
        let piece = layout.lengths().piece(0).unwrap();
        let seed = SeedUrl::parse(SeedKind::Script, "http://www.whatever.com/seed.php").unwrap();
        let encoded = "info_hash=%9C%D9i%8A%F5Uu%1A%91%86%AE%06lW%EA%21W%235%E0";
        assert_eq!(
            seed.of_piece(&InfoHash(*hash), piece, None).as_str(),
            format!("http://www.whatever.com/seed.php?{encoded}&piece=0")
        );
        assert_eq!(
            seed.of_piece(&InfoHash(*hash), piece, Some(&(49152..131_072))).as_str(),
            format!("http://www.whatever.com/seed.php?{encoded}&piece=0&ranges=49152-131071")
        );
        let with_query = SeedUrl::parse(SeedKind::Script, "http://h/s?key=1").unwrap();
        assert!(with_query.of_piece(&InfoHash(*hash), piece, None).as_str().starts_with("http://h/s?key=1&info_hash="));
    }

    #[test]
    fn only_http_is_accepted_and_secrets_are_masked() {
        let parse = |text: &str| SeedUrl::parse(SeedKind::Files, text);
        assert_eq!(parse("ftp://h/f"), Err(SeedUrlError::Scheme("ftp".into())));
        assert_eq!(parse("file:///etc/passwd"), Err(SeedUrlError::Scheme("file".into())));
        assert_eq!(parse("nonsense"), Err(SeedUrlError::NotAUrl));
        assert_eq!(parse(&format!("http://h/{}", "x".repeat(MAX_URL))), Err(SeedUrlError::NotAUrl));
        let seed = parse("https://user:word@h:81/pub/f?token=1").unwrap();
        assert_eq!(seed.to_string(), "https://***@h:81/pub/f?***");
        assert_eq!(seed.port(), 81);
        assert_eq!(parse("http://h:0/").unwrap().port(), 80);
    }
}
