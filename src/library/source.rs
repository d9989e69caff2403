//! SOURCE arguments: `.torrent` files, magnet links, info hashes, URLs and directories.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::metainfo::{InfoHash, MAX_TORRENT_LEN, Magnet, MagnetError, Metainfo, MetainfoError};

/// A SOURCE that was read, as far as that needs no network.
#[derive(Clone, Debug)]
pub enum Source {
    /// A `.torrent` file.
    Torrent(Box<Metainfo>),
    /// A magnet link or a bare info hash.
    Magnet(Magnet),
    /// URL of a `.torrent` file.
    Url(String),
    /// A directory of `.torrent` and `.magnet` files; an absolute path.
    Directory(PathBuf),
}

/// An error of reading a SOURCE. The message is one line, without the source.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The file or directory cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The metainfo is malformed or not supported.
    #[error(transparent)]
    Metainfo(#[from] MetainfoError),
    /// The magnet link is malformed.
    #[error(transparent)]
    Magnet(#[from] MagnetError),
}

/// A SOURCE that was opened but not read. Opening may need privileges, which the process then drops before it parses.
#[derive(Debug)]
pub enum OpenedSource {
    /// An open file.
    File(File),
    /// A directory; an absolute path.
    Directory(PathBuf),
    /// A magnet link, an info hash or a URL.
    Text(String),
}

impl OpenedSource {
    /// Opens a SOURCE. An existing file takes precedence over an info hash or a URL of the same text.
    pub fn new(source: &OsStr) -> Result<Self, SourceError> {
        let path = Path::new(source);
        if path.is_dir() {
            return Ok(Self::Directory(path.canonicalize()?));
        }
        let text = source.to_string_lossy();
        let is_text = !path.exists() && {
            let lower = text.to_ascii_lowercase();
            ["magnet:", "http://", "https://"].iter().any(|scheme| lower.starts_with(scheme))
                || text.parse::<InfoHash>().is_ok()
        };
        if is_text { Ok(Self::Text(text.into_owned())) } else { Ok(Self::File(File::open(path)?)) }
    }

    /// Reads the source, as far as that needs no network.
    pub fn read(self) -> Result<Source, SourceError> {
        match self {
            Self::Text(text) => {
                if text.to_ascii_lowercase().starts_with("magnet:") {
                    Ok(Source::Magnet(Magnet::parse(&text)?))
                } else if let Ok(info_hash) = text.parse::<InfoHash>() {
                    Ok(Source::Magnet(info_hash.into()))
                } else {
                    Ok(Source::Url(text))
                }
            }
            Self::Directory(path) => {
                // Fail now, rather than later, if the directory cannot be listed.
                path.read_dir()?;
                Ok(Source::Directory(path))
            }
            Self::File(file) => Ok(Source::Torrent(Box::new(Metainfo::parse(&read_torrent(file)?)?))),
        }
    }
}

impl Source {
    /// Opens and reads a SOURCE.
    pub fn read(source: &OsStr) -> Result<Self, SourceError> {
        OpenedSource::new(source)?.read()
    }

    /// Reads a `.torrent` file.
    pub(super) fn read_torrent_file(path: &Path) -> Result<Self, SourceError> {
        let metainfo = Metainfo::parse(&read_file(path, MAX_TORRENT_LEN)?)?;
        Ok(Self::Torrent(Box::new(metainfo)))
    }

    /// Reads a file that contains one magnet link or info hash. Empty lines and lines that start with `#` are ignored.
    pub(super) fn read_magnet_file(path: &Path) -> Result<Self, SourceError> {
        let bytes = read_file(path, MAX_MAGNET_FILE)?;
        let text = String::from_utf8_lossy(&bytes);
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let line = lines.next().ok_or_else(|| io::Error::other("the file contains no magnet link"))?;
        if lines.next().is_some() {
            return Err(io::Error::other("the file contains more than one magnet link").into());
        }
        match line.parse::<InfoHash>() {
            Ok(info_hash) => Ok(Self::Magnet(info_hash.into())),
            Err(_) => Ok(Self::Magnet(Magnet::parse(line)?)),
        }
    }
}

/// Maximum size of a `.magnet` file, in bytes: ample for one link with many trackers and some comments.
const MAX_MAGNET_FILE: usize = 64 << 10;

fn read_file(path: &Path, limit: usize) -> io::Result<Vec<u8>> {
    read_bounded(File::open(path)?, limit)
}

/// Reads a `.torrent` file, up to one byte more than the maximum size: the parser then rejects it as too large.
pub fn read_torrent(from: impl Read) -> io::Result<Vec<u8>> {
    read_bounded(from, MAX_TORRENT_LEN)
}

/// Reads up to `limit` bytes and one more, which tells a file that is too large from one that just fits.
fn read_bounded(from: impl Read, limit: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(limit as u64 + 1).read_to_end(&mut bytes)?;
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
            Source::read_magnet_file(&path).map(|source| match source {
                Source::Magnet(magnet) => magnet.info_hash.to_string(),
                other => panic!("{other:?}"),
            })
        };
        for text in [hash.to_owned(), format!("\n# mine\n magnet:?xt=urn:btih:{hash}&dn=x \r\n\n")] {
            assert_eq!(read(&text).unwrap(), hash);
        }
        assert!(read("").unwrap_err().to_string().contains("no magnet link"));
        assert!(read(&format!("{hash}\n{hash}\n")).unwrap_err().to_string().contains("more than one"));
        assert!(read("magnet:?dn=x").unwrap_err().to_string().contains("names no torrent"));
    }

    #[test]
    fn a_directory_is_a_source() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Source::read(dir.path().as_os_str()), Ok(Source::Directory(path)) if path.is_absolute()));
        assert!(Source::read(dir.path().join("none").as_os_str()).is_err());
    }
}
