//! Web seed URLs: how a file or a piece is asked for, and what may be shown.

use std::fmt::{self, Write};
use std::ops::Range;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use reqwest::Url;

use crate::http::Masked;
use crate::metainfo::{File, InfoHash, Layout, PieceIndex};

/// Longer URLs are refused.
const MAX_URL: usize = 4096;

/// All but the unreserved characters of RFC 3986.
const RAW: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// What a web seed's URL leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeedKind {
    /// The torrent's files, on any HTTP server (BEP 19, `url-list`).
    Files,
    /// A script that gives pieces by number (BEP 17, `httpseeds`).
    Script,
}

/// The URL of a web seed. It may hold a secret, so `Display` and `Debug` are [`Masked`].
#[derive(Clone, PartialEq, Eq)]
pub struct SeedUrl {
    kind: SeedKind,
    /// Parsed, without a fragment.
    url: Url,
}

/// Why a URL is no web seed's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SeedUrlError {
    /// It cannot be read.
    #[error("it is not a URL of a web server")]
    NotAUrl,
    /// Another protocol than HTTP.
    #[error("{0} is not spoken, only http and https")]
    Scheme(String),
}

impl SeedUrl {
    /// Reads what stands in a torrent.
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

    /// What it leads to.
    pub fn kind(&self) -> SeedKind {
        self.kind
    }

    /// The whole, secrets included.
    pub fn as_str(&self) -> &str {
        self.url.as_str()
    }

    /// The server's port; never 0, so that it can stand in an address.
    pub(super) fn port(&self) -> u16 {
        self.url.port_or_known_default().filter(|port| *port != 0).unwrap_or(80)
    }

    /// Where a file is (BEP 19). For a torrent of one file the URL is that file's, unless it ends in a slash: then, as
    /// for a torrent of many, it is the directory, and the path follows. Some leave the slash out with many files.
    ///
    /// A name that was made safe is asked for as it was made; a server may know it by another.
    pub(super) fn of_file(&self, layout: &Layout, file: &File) -> Option<Url> {
        let base = self.as_str();
        let alone = matches!(layout.files(), [only] if only.path.len() == 1);
        if alone && !base.ends_with('/') {
            return Some(self.url.clone());
        }
        let mut text = base.strip_suffix('/').unwrap_or(base).to_owned();
        for part in &file.path {
            // Writing to a `String` cannot fail.
            let _ = write!(text, "/{}", percent_encode(part.as_bytes(), RAW));
        }
        Url::parse(&text).ok()
    }

    /// Where a part of a piece is (BEP 17), given in bytes of the piece; `None`: the whole.
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
    use crate::metainfo::{FileKind, Lengths};

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
        layout.files().iter().map(|file| seed.of_file(&layout, file).unwrap().to_string()).collect()
    }

    #[test]
    fn files_are_where_bep_19_puts_them() {
        // The specification's own example.
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
    fn each_part_of_a_path_is_encoded() {
        let url = urls("http://m/", &["t/100% é/a?b#c&d+e.mkv"]);
        assert_eq!(url, ["http://m/t/100%25%20%C3%A9/a%3Fb%23c%26d%2Be.mkv"]);
    }

    #[test]
    fn pieces_are_asked_for_as_bep_17_says() {
        // The specification's own examples.
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
    fn only_web_servers_are_taken_and_secrets_are_not_shown() {
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
