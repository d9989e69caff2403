//! What a torrent is named by.

use std::ffi::OsStr;
use std::fmt::Display;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::Failure;
use super::args::Exit;
use crate::discovery::Masked;
use crate::metainfo::{InfoHash, MAX_TORRENT_LEN, Magnet, Metainfo};

/// A SOURCE, as far as it is known without the network.
pub(super) enum Source {
    /// A `.torrent` file, read.
    Torrent(Box<Metainfo>),
    /// A magnet link or a bare info hash.
    Magnet(Magnet),
    /// Where a `.torrent` file is to be fetched from.
    Url(String),
}

/// A SOURCE that is not looked into yet. Opening it may take rights that reading it must not have.
pub(super) enum Opened {
    /// A file, and what to call it.
    File(File, String),
    /// No file of that name, so it says itself what it is.
    Text(String),
}

impl Opened {
    /// Opens what a SOURCE names. A file of that name comes first.
    pub(super) fn new(source: &OsStr) -> Result<Self, Failure> {
        let shown = source.to_string_lossy().into_owned();
        let path = Path::new(source);
        if path.is_dir() {
            return Err(fault(&shown, "it is a directory, which is not supported yet; give a .torrent file"));
        }
        let is_text = !path.exists() && {
            let lower = shown.to_ascii_lowercase();
            ["magnet:", "http://", "https://"].iter().any(|scheme| lower.starts_with(scheme))
                || shown.parse::<InfoHash>().is_ok()
        };
        if is_text {
            return Ok(Self::Text(shown));
        }
        let file = File::open(path).map_err(|error| fault(&shown, error))?;
        Ok(Self::File(file, shown))
    }

    /// Reads it, as far as it is known without the network.
    pub(super) fn read(self) -> Result<Source, Failure> {
        match self {
            Self::Text(text) => {
                let lower = text.to_ascii_lowercase();
                if lower.starts_with("magnet:") {
                    Magnet::parse(&text).map(Source::Magnet).map_err(|error| fault(&text, error))
                } else if let Ok(info_hash) = text.parse::<InfoHash>() {
                    Ok(Source::Magnet(info_hash.into()))
                } else {
                    Ok(Source::Url(text))
                }
            }
            Self::File(file, shown) => {
                let mut bytes = Vec::new();
                // One byte more than allowed tells a file that is too large from one that just fits.
                let read = file.take(MAX_TORRENT_LEN as u64 + 1).read_to_end(&mut bytes);
                read.map_err(|error| fault(&shown, error))?;
                let metainfo = Metainfo::parse(&bytes).map_err(|error| fault(&shown, error))?;
                Ok(Source::Torrent(Box::new(metainfo)))
            }
        }
    }
}

/// A SOURCE as it may be shown: what is no file's name may hold a secret.
pub(super) fn shown(source: &str) -> String {
    if source.contains("://") || source.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case("magnet:")) {
        Masked(source).to_string()
    } else {
        source.to_owned()
    }
}

/// The failure of a mount for its source's sake.
pub(super) fn fault(source: &str, why: impl Display) -> Failure {
    Failure::new(Exit::Torrent, format!("cannot mount {}: {why}", shown(source)))
}
