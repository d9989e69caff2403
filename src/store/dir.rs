//! Cache directories: created, and counted at start.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::error::{StoreError, io_error};
use super::ledger::InactiveTorrent;
use super::state::Saved;
use crate::metainfo::InfoHash;
use crate::sys::process::user;

/// Limit on the files examined to size a directory without a readable state file, to bound the time of a start.
const MAX_SIZED: usize = 1 << 20;

/// Creates the cache directory, which the user may have given as a symbolic link. Root refuses one of another user, who
/// could redirect what root writes there.
pub(super) fn make_cache_dir(dir: &Path) -> Result<(), StoreError> {
    create(dir)?;
    check_owner(dir, &dir.metadata().map_err(io_error("examine", dir))?)
}

/// Creates a directory in the cache directory. Refuses a symbolic link in its place, and for root a directory of another
/// user.
pub(super) fn make_own_dir(dir: &Path) -> Result<(), StoreError> {
    create(dir)?;
    let about = dir.symlink_metadata().map_err(io_error("examine", dir))?;
    if !about.is_dir() {
        return Err(io_error("use", dir)(io::Error::other("it is a symbolic link")));
    }
    check_owner(dir, &about)
}

fn create(dir: &Path) -> Result<(), StoreError> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io_error("make directory", dir))
}

fn check_owner(dir: &Path, about: &Metadata) -> Result<(), StoreError> {
    if user() == 0 && about.uid() != 0 {
        return Err(StoreError::Owner { dir: dir.to_owned(), user: about.uid() });
    }
    Ok(())
}

/// Returns what every torrent in the directory has, and the latest use of any piece.
pub(super) fn scan(dir: &Path) -> Result<(HashMap<InfoHash, InactiveTorrent>, u64), StoreError> {
    let mut inactive = HashMap::new();
    let mut clock = 0;
    for entry in fs::read_dir(dir).map_err(io_error("read directory", dir))? {
        let entry = entry.map_err(io_error("read directory", dir))?;
        let Some(info_hash) = entry.file_name().to_str().and_then(|name| name.parse::<InfoHash>().ok()) else {
            continue;
        };
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let torrent_dir = entry.path();
        let found = match Saved::load(&torrent_dir.join("state")) {
            Ok(Some(saved)) if saved.info_hash == info_hash => {
                clock = clock.max(saved.clock);
                // After a kill there may be more than the state knows.
                let bytes = if saved.closed { saved.bytes } else { saved.bytes.max(size_of(torrent_dir)) };
                InactiveTorrent { bytes, last_use: saved.last_use }
            }
            _ => InactiveTorrent { bytes: size_of(torrent_dir), last_use: 0 },
        };
        inactive.insert(info_hash, found);
    }
    Ok((inactive, clock))
}

/// Returns the bytes that the files below a directory occupy.
fn size_of(dir: PathBuf) -> u64 {
    let (mut dirs, mut bytes, mut seen) = (vec![dir], 0, 0);
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            seen += 1;
            match entry.metadata() {
                Ok(about) if about.is_dir() && seen < MAX_SIZED => dirs.push(entry.path()),
                Ok(about) if about.is_file() => bytes += about.blocks() * 512,
                _ => {}
            }
        }
    }
    bytes
}
