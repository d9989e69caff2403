//! What a torrent is named by.

use std::ffi::OsStr;
use std::fmt::Display;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::Failure;
use super::args::Exit;
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

impl Source {
    /// Reads what a SOURCE names. A file of that name comes first.
    pub(super) fn read(source: &OsStr) -> Result<Self, Failure> {
        let shown = source.to_string_lossy();
        let path = Path::new(source);
        if !path.exists() {
            let lower = shown.to_ascii_lowercase();
            if lower.starts_with("magnet:") {
                return Magnet::parse(&shown).map(Self::Magnet).map_err(|error| fault(&shown, error));
            }
            if lower.starts_with("http://") || lower.starts_with("https://") {
                return Ok(Self::Url(shown.into_owned()));
            }
            if let Ok(info_hash) = shown.parse::<InfoHash>() {
                return Ok(Self::Magnet(info_hash.into()));
            }
        }
        if path.is_dir() {
            return Err(fault(&shown, "it is a directory, which is not supported yet; give a .torrent file"));
        }
        let mut bytes = Vec::new();
        // One byte more than allowed tells a file that is too large from one that just fits.
        let limit = MAX_TORRENT_LEN as u64 + 1;
        let read = File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes));
        read.map_err(|error| fault(&shown, error))?;
        Metainfo::parse(&bytes).map(|metainfo| Self::Torrent(Box::new(metainfo))).map_err(|error| fault(&shown, error))
    }
}

/// The failure for a source's sake.
pub(super) fn fault(shown: &str, why: impl Display) -> Failure {
    Failure::new(Exit::Torrent, format!("cannot use {shown}: {why}"))
}
