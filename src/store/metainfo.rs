//! `.torrent` files that were fetched from peers, saved for the next mount of the same magnet link.
//!
//! They are small files, one per torrent, beside the torrents' data and outside the cache's limit. The caller checks
//! the info hash of what it reads back.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::PathBuf;

use super::cache::Cache;
use super::dir::make_own_dir;
use super::error::StoreError;
use crate::metainfo::{InfoHash, MAX_TORRENT_LEN};
use crate::sys::file::{create_anew, open_regular};

impl Cache {
    fn metainfo_path(&self, info_hash: &InfoHash) -> PathBuf {
        self.dir.join("metainfo").join(format!("{info_hash}.torrent"))
    }

    /// Saves a torrent file. Blocking.
    pub fn keep_metainfo(&self, info_hash: &InfoHash, torrent: &[u8]) -> Result<(), StoreError> {
        let path = self.metainfo_path(info_hash);
        make_own_dir(&self.dir.join("metainfo"))?;
        let new = path.with_extension("new");
        let write = || -> io::Result<()> {
            let mut file = create_anew(&new)?;
            file.write_all(torrent)?;
            fs::rename(&new, &path)
        };
        write().map_err(|source| {
            let _ = fs::remove_file(&new);
            StoreError::Io { action: "write", path, source }
        })
    }

    /// Removes a saved torrent file. Blocking.
    pub(super) fn remove_metainfo(&self, info_hash: &InfoHash) {
        let _ = fs::remove_file(self.metainfo_path(info_hash));
    }

    /// Returns the saved torrent file, if there is a readable one. Blocking.
    pub fn metainfo(&self, info_hash: &InfoHash) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        let file = open_regular(&self.metainfo_path(info_hash), File::options().read(true)).ok()?;
        file.take(MAX_TORRENT_LEN as u64).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::super::CacheConfig;
    use super::*;

    #[test]
    fn a_saved_torrent_is_there_for_the_next_process() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Cache::open(CacheConfig { dir: dir.path().to_owned(), disk_limit: None, memory: 0 }).unwrap();
        let cache = open();
        let hash = InfoHash([7; 20]);
        assert_eq!(cache.metainfo(&hash), None);
        cache.keep_metainfo(&hash, b"de").unwrap();
        cache.keep_metainfo(&hash, b"d1:ai1ee").unwrap();
        cache.close();
        drop(cache);
        assert_eq!(open().metainfo(&hash).as_deref(), Some(&b"d1:ai1ee"[..]));
        assert_eq!(open().metainfo(&InfoHash([8; 20])), None);
    }
}
