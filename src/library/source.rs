//! SOURCE arguments: `.torrent` files, magnet links, info hashes, URLs and directories.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use percent_encoding::percent_decode;

use crate::metainfo::{Document, DocumentError, MAX_TORRENT_LEN, Magnet, MagnetError, Metainfo, unquote};

/// A SOURCE that was read, as far as that needs no network.
#[derive(Clone, Debug)]
pub enum Source {
    /// A `.torrent` file.
    Torrent(Box<Metainfo>),
    /// A magnet link or a bare info hash.
    Magnet(Magnet),
    /// URL of a `.torrent` file or of a magnet link.
    Url(String),
    /// A directory of `.torrent` and `.magnet` files; an absolute path.
    Directory(PathBuf),
}

impl From<Document> for Source {
    fn from(document: Document) -> Self {
        match document {
            Document::Torrent(metainfo) => Self::Torrent(metainfo),
            Document::Magnet(magnet) => Self::Magnet(magnet),
        }
    }
}

/// An error of reading a SOURCE. The message is one line, without the source.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The file or directory cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The file is malformed, of another kind, or not supported.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// The magnet link is malformed.
    #[error(transparent)]
    Magnet(#[from] MagnetError),
    /// A URL of another scheme.
    #[error("URLs of the scheme {0:?} are not supported; give a file, an http(s) URL or a magnet link")]
    Scheme(String),
    /// A `file:` URL of another machine.
    #[error("the file is on another machine ({0})")]
    OtherHost(String),
}

/// The kind of thing that a SOURCE names, by its text and by which files exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Named {
    /// A file or directory, which may not exist.
    Path(PathBuf),
    /// A magnet link or an info hash.
    Magnet(Magnet),
    /// An `http` or `https` URL.
    Url(String),
}

impl Named {
    /// Finds out what a SOURCE names. An existing file takes precedence over anything else of the same text. Spaces and quotes
    /// around a link or a URL are ignored.
    pub fn new(source: &OsStr) -> Result<Self, SourceError> {
        let path = Path::new(source);
        let exists = || path.symlink_metadata().is_ok();
        let Some(text) = source.to_str().map(unquote).filter(|_| !exists()) else {
            return Ok(Self::Path(path.to_owned()));
        };
        if let Some(magnet) = Magnet::from_text(text) {
            return Ok(Self::Magnet(magnet?));
        }
        let Some((scheme, rest)) = scheme(text) else {
            let trimmed = Path::new(text);
            return Ok(Self::Path(if trimmed.exists() { trimmed } else { path }.to_owned()));
        };
        match scheme.as_str() {
            "http" | "https" => Ok(Self::Url(text.to_owned())),
            "file" => file_url(rest).map(Self::Path),
            _ => Err(SourceError::Scheme(scheme)),
        }
    }
}

/// Splits a URL into its scheme in lower case and the rest after the colon. Returns `None` for what may be a path.
fn scheme(text: &str) -> Option<(String, &str)> {
    let (scheme, rest) = text.split_once(':')?;
    let scheme = scheme.to_ascii_lowercase();
    let is_name = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'));
    // `file:/path` has one slash.
    let is_url = rest.starts_with("//") || (scheme == "file" && rest.starts_with('/'));
    (is_name && is_url).then_some((scheme, rest))
}

/// Returns the path of a `file:` URL, given what follows its colon.
fn file_url(rest: &str) -> Result<PathBuf, SourceError> {
    let path = match rest.strip_prefix("//") {
        Some(rest) => {
            let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            if !host.is_empty() && !host.eq_ignore_ascii_case("localhost") {
                return Err(SourceError::OtherHost(host.to_owned()));
            }
            path
        }
        None => rest,
    };
    Ok(OsString::from_vec(percent_decode(path.as_bytes()).collect()).into())
}

/// A SOURCE that was opened but not read. Opening may need privileges, which the process then drops before it parses.
#[derive(Debug)]
pub enum OpenedSource {
    /// An open file.
    File {
        /// The file.
        file: File,
        /// Whether its name says that it contains a magnet link.
        is_magnet: bool,
    },
    /// A directory; an absolute path.
    Directory(PathBuf),
    /// A magnet link or an info hash.
    Magnet(Magnet),
    /// A URL.
    Url(String),
}

impl OpenedSource {
    /// Opens a SOURCE.
    pub fn new(source: &OsStr) -> Result<Self, SourceError> {
        match Named::new(source)? {
            Named::Path(path) if path.is_dir() => Ok(Self::Directory(path.canonicalize()?)),
            Named::Path(path) => Ok(Self::File { is_magnet: is_magnet_file(&path), file: File::open(path)? }),
            Named::Magnet(magnet) => Ok(Self::Magnet(magnet)),
            Named::Url(url) => Ok(Self::Url(url)),
        }
    }

    /// Reads the source, as far as that needs no network.
    pub fn read(self) -> Result<Source, SourceError> {
        match self {
            Self::Magnet(magnet) => Ok(Source::Magnet(magnet)),
            Self::Url(url) => Ok(Source::Url(url)),
            Self::Directory(path) => {
                // Fail now, rather than later, if the directory cannot be listed.
                path.read_dir()?;
                Ok(Source::Directory(path))
            }
            Self::File { file, is_magnet } => Ok(parse(read_torrent(file)?, is_magnet)?.into()),
        }
    }
}

impl Source {
    /// Opens and reads a SOURCE.
    pub fn read(source: &OsStr) -> Result<Self, SourceError> {
        OpenedSource::new(source)?.read()
    }

    /// Reads a `.torrent` or `.magnet` file. Its content decides which it is, its name only how an error speaks of it.
    pub(super) fn read_file(path: &Path) -> Result<Self, SourceError> {
        Ok(parse(read_torrent(File::open(path)?)?, is_magnet_file(path))?.into())
    }
}

fn parse(bytes: Vec<u8>, is_magnet: bool) -> Result<Document, DocumentError> {
    if is_magnet { Document::parse_link_file(bytes) } else { Document::parse(bytes) }
}

/// Returns whether the name of a file says that it contains a magnet link.
pub(super) fn is_magnet_file(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("magnet"))
}

/// Reads a `.torrent` file, up to one byte more than the maximum size: the parser then rejects it as too large.
pub fn read_torrent(from: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(MAX_TORRENT_LEN as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_magnet_file_contains_one_link() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.magnet");
        let hash = "0123456789012345678901234567890123456789";
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Source::read_file(&path).map(|source| match source {
                Source::Magnet(magnet) => magnet.info_hash.to_string(),
                other => panic!("{other:?}"),
            })
        };
        for text in [hash.to_owned(), format!("\n# mine\n magnet:?xt=urn:btih:{hash}&dn=x \r\n\n")] {
            assert_eq!(read(&text).unwrap(), hash);
        }
        assert!(read("").unwrap_err().to_string().contains("no magnet link"));
        assert!(
            read(&format!("{hash}\n{}\n", hash.replace('0', "f"))).unwrap_err().to_string().contains("more than one")
        );
        assert!(read("magnet:?dn=x").unwrap_err().to_string().contains("names no torrent"));
    }

    #[test]
    fn the_content_of_a_file_decides_what_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let hash = "0123456789012345678901234567890123456789";
        let torrent = b"d4:infod6:lengthi5e4:name1:t12:piece lengthi16384e6:pieces20:hhhhhhhhhhhhhhhhhhhheeerr";
        for (name, content) in [("a.magnet", &torrent[..]), ("b.torrent", hash.as_bytes())] {
            let path = dir.path().join(name);
            std::fs::write(&path, content).unwrap();
            for source in [Source::read(path.as_os_str()), Source::read_file(&path)] {
                let source = source.unwrap();
                let same = if name == "a.magnet" {
                    matches!(source, Source::Torrent(_))
                } else {
                    matches!(source, Source::Magnet(_))
                };
                assert!(same, "{name}: {source:?}");
            }
        }
    }

    #[test]
    fn a_source_is_named_by_a_path_a_url_or_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a b\u{e9}.torrent");
        std::fs::write(&path, "x").unwrap();
        let shown = path.to_str().unwrap().to_owned();
        let named = |source: &str| Named::new(source.as_ref()).map_err(|error| error.to_string());
        let encoded = shown.replace(' ', "%20").replace('\u{e9}', "%C3%A9");
        for source in [
            shown.clone(),
            format!("  {shown}\n"),
            format!("'{shown}'"),
            format!("file://{encoded}"),
            format!("file:{encoded}"),
            format!("FILE://localhost{encoded}"),
            format!(" file://{shown} "),
        ] {
            assert_eq!(named(&source), Ok(Named::Path(path.clone())), "{source}");
        }
        assert_eq!(named("file:///no/%FFsuch"), Ok(Named::Path(OsString::from_vec(b"/no/\xffsuch".to_vec()).into())));
        assert_eq!(named(" http://a/b "), Ok(Named::Url("http://a/b".into())));
        assert_eq!(named("\"HTTPS://a\""), Ok(Named::Url("HTTPS://a".into())));
        let hash = "c12fe1c06bba254a9dc9f519b335aa7c1367a88a";
        let magnet = Named::Magnet(hash.parse::<crate::metainfo::InfoHash>().unwrap().into());
        for source in [format!(" magnet:?xt=urn:btih:{hash} "), hash.to_uppercase(), format!("{hash}\n")] {
            assert_eq!(named(&source), Ok(magnet.clone()), "{source}");
        }
        assert!(named("ftp://a/b.torrent").unwrap_err().contains("\"ftp\""));
        assert!(named("file://nas/b.torrent").unwrap_err().contains("another machine (nas)"));
        for source in ["none.torrent", "C:none.torrent", "a:b", "", " "] {
            assert_eq!(named(source), Ok(Named::Path(source.into())), "{source}");
        }
        // A file of that name comes first.
        let odd = dir.path().join(format!(" {hash}"));
        std::fs::write(&odd, "x").unwrap();
        assert_eq!(Named::new(odd.as_os_str()).unwrap(), Named::Path(odd));
    }

    #[test]
    fn a_directory_is_a_source() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Source::read(dir.path().as_os_str()), Ok(Source::Directory(path)) if path.is_absolute()));
        assert!(Source::read(dir.path().join("none").as_os_str()).is_err());
    }
}
