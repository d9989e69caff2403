//! What a torrent is named by.

use std::ffi::OsStr;
use std::fmt::Display;
use std::fs::File;
use std::io::{self, Read};
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
        Self::read_to("mount", source)
    }

    /// The same; a failure says that it cannot be, as in "cannot show x".
    pub(super) fn read_to(verb: &str, source: &OsStr) -> Result<Self, Failure> {
        let shown = source.to_string_lossy();
        let fault = |why: &dyn Display| fault_to(verb, &shown, why);
        let path = Path::new(source);
        if !path.exists() {
            let lower = shown.to_ascii_lowercase();
            if lower.starts_with("magnet:") {
                return Magnet::parse(&shown).map(Self::Magnet).map_err(|error| fault(&error));
            }
            if lower.starts_with("http://") || lower.starts_with("https://") {
                return Ok(Self::Url(shown.into_owned()));
            }
            if let Ok(info_hash) = shown.parse::<InfoHash>() {
                return Ok(Self::Magnet(info_hash.into()));
            }
        }
        if path.is_dir() {
            return Err(fault(&"it is a directory, which is not supported yet; give a .torrent file"));
        }
        let bytes = File::open(path).and_then(read_torrent).map_err(|error| fault(&error))?;
        Metainfo::parse(&bytes).map(|metainfo| Self::Torrent(Box::new(metainfo))).map_err(|error| fault(&error))
    }
}

/// Reads what may be a `.torrent` file, to its end or a byte past the most that one may have: which tells a file that
/// is too large from one that just fits.
pub(super) fn read_torrent(from: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(MAX_TORRENT_LEN as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The failure of a mount or download for its source's sake.
pub(super) fn fault(shown: &str, why: impl Display) -> Failure {
    fault_to("use", shown, why)
}

/// The failure of anything else for a torrent's sake.
pub(super) fn fault_to(verb: &str, shown: &str, why: impl Display) -> Failure {
    Failure::new(Exit::Torrent, format!("cannot {verb} {shown}: {why}"))
}
