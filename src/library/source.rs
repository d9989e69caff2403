//! What a torrent is named by.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::metainfo::{InfoHash, MAX_TORRENT_LEN, Magnet, MagnetError, Metainfo, MetainfoError};

/// A SOURCE, as far as it is known without the network.
#[derive(Clone, Debug)]
pub enum Source {
    /// A `.torrent` file, read.
    Torrent(Box<Metainfo>),
    /// A magnet link or a bare info hash.
    Magnet(Magnet),
    /// Where a `.torrent` file is to be fetched from.
    Url(String),
    /// A directory of `.torrent` and `.magnet` files; absolute.
    Directory(PathBuf),
}

/// Why something names no torrent. One line, without what it is.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The file or directory.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// What is in the file.
    #[error(transparent)]
    Metainfo(#[from] MetainfoError),
    /// The link.
    #[error(transparent)]
    Magnet(#[from] MagnetError),
}

/// A SOURCE that is not looked into yet. Opening it may take rights that reading it must not have.
#[derive(Debug)]
pub enum Opened {
    /// A file.
    File(File),
    /// A directory; absolute.
    Directory(PathBuf),
    /// No file of that name, so it says itself what it is.
    Text(String),
}

impl Opened {
    /// Opens what a SOURCE names. A file of that name comes first.
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

    /// Reads it, as far as it is known without the network.
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
                // Whether it can be listed is better known now than later.
                path.read_dir()?;
                Ok(Source::Directory(path))
            }
            Self::File(file) => Ok(Source::Torrent(Box::new(Metainfo::parse(&read_torrent(file)?)?))),
        }
    }
}

impl Source {
    /// Reads what a SOURCE names. A file of that name comes first.
    pub fn read(source: &OsStr) -> Result<Self, SourceError> {
        Opened::new(source)?.read()
    }

    /// Reads a `.torrent` file.
    pub(super) fn of_torrent(path: &Path) -> Result<Self, SourceError> {
        let metainfo = Metainfo::parse(&read(path, MAX_TORRENT_LEN)?)?;
        Ok(Self::Torrent(Box::new(metainfo)))
    }

    /// Reads a file with one link, or info hash, in it; empty lines and those that begin with `#` are passed over.
    pub(super) fn of_magnet(path: &Path) -> Result<Self, SourceError> {
        let bytes = read(path, MAX_LINK_FILE)?;
        let text = String::from_utf8_lossy(&bytes);
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let line = lines.next().ok_or_else(|| io::Error::other("there is no link in it"))?;
        if lines.next().is_some() {
            return Err(io::Error::other("there is more than one link in it").into());
        }
        match line.parse::<InfoHash>() {
            Ok(info_hash) => Ok(Self::Magnet(info_hash.into())),
            Err(_) => Ok(Self::Magnet(Magnet::parse(line)?)),
        }
    }
}

/// A file with one link in it is not longer.
const MAX_LINK_FILE: usize = 64 << 10;

fn read(path: &Path, limit: usize) -> io::Result<Vec<u8>> {
    bounded(File::open(path)?, limit)
}

/// Reads what may be a `.torrent` file, to its end or a byte past the most that one may have.
pub fn read_torrent(from: impl Read) -> io::Result<Vec<u8>> {
    bounded(from, MAX_TORRENT_LEN)
}

/// One byte more than allowed tells a file that is too large from one that just fits.
fn bounded(from: impl Read, limit: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(limit as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_holds_one_link() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.magnet");
        let hash = "0123456789012345678901234567890123456789";
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Source::of_magnet(&path).map(|source| match source {
                Source::Magnet(magnet) => magnet.info_hash.to_string(),
                other => panic!("{other:?}"),
            })
        };
        for text in [hash.to_owned(), format!("\n# mine\n magnet:?xt=urn:btih:{hash}&dn=x \r\n\n")] {
            assert_eq!(read(&text).unwrap(), hash);
        }
        assert!(read("").unwrap_err().to_string().contains("no link"));
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
