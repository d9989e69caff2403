//! Which files of a torrent the kernel reads itself, and which are prepared for that.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use crate::metainfo::FileIndex;
use crate::util::lock;

/// The files of a torrent that the kernel reads itself.
#[derive(Debug, Default)]
pub(super) struct LocalFiles {
    open: Mutex<Vec<Arc<Entry>>>,
    /// Files that are being verified, so that they can be read by the kernel.
    verifying: Mutex<BTreeSet<FileIndex>>,
}

/// A file that the kernel reads itself.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) file: FileIndex,
    /// Its bytes turned out not to be the torrent's any more.
    is_lost: AtomicBool,
}

impl Entry {
    pub(super) fn new(file: FileIndex) -> Arc<Self> {
        Arc::new(Self { file, is_lost: AtomicBool::new(false) })
    }

    /// Records that the file is lost.
    pub(super) fn mark_lost(&self) {
        self.is_lost.store(true, Relaxed);
    }
}

impl LocalFiles {
    pub(super) fn add(&self, entry: Arc<Entry>) {
        lock(&self.open).push(entry);
    }

    pub(super) fn remove(&self, entry: &Arc<Entry>) {
        lock(&self.open).retain(|other| !Arc::ptr_eq(other, entry));
    }

    /// Returns the files that are not lost, in the torrent's order.
    pub(super) fn list(&self) -> Vec<FileIndex> {
        let open = lock(&self.open);
        let files = open.iter().filter(|entry| !entry.is_lost.load(Relaxed)).map(|entry| entry.file);
        files.collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Records that a file is being verified. Returns false if it is already.
    pub(super) fn begin_verification(&self, file: FileIndex) -> bool {
        lock(&self.verifying).insert(file)
    }

    pub(super) fn end_verification(&self, file: FileIndex) {
        lock(&self.verifying).remove(&file);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_listed_until_it_is_lost_or_closed() {
        let files = LocalFiles::default();
        let entries = [5, 2, 5, 9].map(|file| Entry::new(FileIndex(file)));
        entries.iter().for_each(|entry| files.add(entry.clone()));
        assert_eq!(files.list(), [2, 5, 9].map(FileIndex));
        files.remove(&entries[0]);
        entries[1].mark_lost();
        assert_eq!(files.list(), [5, 9].map(FileIndex));
        files.remove(&entries[2]);
        assert_eq!(files.list(), [FileIndex(9)]);
        assert!(files.begin_verification(FileIndex(1)) && !files.begin_verification(FileIndex(1)));
        files.end_verification(FileIndex(1));
        assert!(files.begin_verification(FileIndex(1)));
    }
}
