//! The `info` values of idle torrents, outside memory: nearly all of them are piece hashes.
//!
//! They are in one file without a name, in the cache directory, as long as the process runs. So no other program can
//! remove or replace it, and nothing is left after a kill. The torrent's own file would be no substitute: its owner may
//! remove it at any time. What is read back counts only if it has the info hash ([`RawInfo`]).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use crate::metainfo::{InfoSource, RawInfo};
use crate::sys::file::{create_unnamed, punch_hole};
use crate::util::lock;

/// Length from which a value is worth a block of the disk and a read.
const MIN_LEN: usize = 4096;

/// Alignment of values in the file, so that the blocks of one can be freed.
const ALIGNMENT: u64 = 4096;

/// The file, created for the first value.
#[derive(Default)]
pub(super) struct SpillFile(Mutex<Option<Open>>);

struct Open {
    file: Arc<File>,
    /// Where the next value goes.
    end: u64,
}

/// One value in the file.
struct Spilled {
    file: Arc<File>,
    at: u64,
    len: usize,
}

impl SpillFile {
    /// Stores a value, and frees its memory until it is needed. Does nothing to one that is short, or stored already.
    pub fn store(&self, dir: &Path, info: &RawInfo) -> io::Result<()> {
        let Some(bytes) = info.resident().filter(|bytes| bytes.len() >= MIN_LEN && !info.is_stored()) else {
            return Ok(());
        };
        let (file, at) = {
            let mut place = lock(&self.0);
            let open = match &mut *place {
                Some(open) => open,
                None => place.insert(Open { file: create_unnamed(dir)?.into(), end: 0 }),
            };
            let at = open.end;
            open.end += (bytes.len() as u64).next_multiple_of(ALIGNMENT);
            (open.file.clone(), at)
        };
        // Made first: its end frees what was written, if that was not all.
        let spilled = Spilled { file, at, len: bytes.len() };
        spilled.file.write_all_at(&bytes, at)?;
        drop(bytes);
        info.store_in(Arc::new(spilled));
        info.release();
        Ok(())
    }
}

impl InfoSource for Spilled {
    fn read(&self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; self.len];
        self.file.read_exact_at(&mut bytes, self.at)?;
        Ok(bytes)
    }
}

impl Drop for Spilled {
    fn drop(&mut self) {
        // On a filesystem that cannot punch holes, the space is free when the process ends.
        let _ = punch_hole(&self.file, self.at, (self.len as u64).next_multiple_of(ALIGNMENT));
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use bytes::Bytes;

    use super::*;

    fn info(byte: u8, len: usize) -> RawInfo {
        RawInfo::new(Bytes::from(vec![byte; len]))
    }

    #[test]
    fn a_value_is_read_back_as_long_as_somebody_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let spill = SpillFile::default();
        let (short, long, other) = (info(1, MIN_LEN - 1), info(2, 3 * MIN_LEN + 1), info(3, 8 * MIN_LEN));
        for info in [&short, &long, &other, &long] {
            spill.store(dir.path(), info).unwrap();
        }
        assert!(short.resident().is_some() && long.resident().is_none() && other.resident().is_none());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "the file has no name");
        assert_eq!(long.load().unwrap(), vec![2; 3 * MIN_LEN + 1]);
        assert_eq!(other.load().unwrap(), vec![3; 8 * MIN_LEN]);

        let file = lock(&spill.0).as_ref().unwrap().file.clone();
        let before = file.metadata().unwrap().blocks();
        drop(other);
        let freed = before - file.metadata().unwrap().blocks();
        // Not every filesystem has holes.
        assert!(freed == 0 || freed * 512 >= 8 * MIN_LEN as u64, "{freed} blocks");
        long.release();
        assert_eq!(long.load().unwrap(), vec![2; 3 * MIN_LEN + 1]);
    }

    #[test]
    fn wrong_bytes_are_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let spill = SpillFile::default();
        let info = info(7, 2 * MIN_LEN);
        spill.store(dir.path(), &info).unwrap();
        let file = lock(&spill.0).as_ref().unwrap().file.clone();
        file.write_all_at(b"x", 5000).unwrap();
        assert_eq!(info.load().unwrap_err().kind(), io::ErrorKind::InvalidData);
        file.set_len(5000).unwrap();
        assert_eq!(info.load().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(info.resident(), None);
    }
}
