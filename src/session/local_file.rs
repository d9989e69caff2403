//! Complete files that the kernel reads itself (FUSE passthrough), and the watch over them: nobody sees their reads, so what
//! other programs do to them is looked for once a second.

use std::fs::File;
use std::sync::Arc;
use std::time::Instant;

use tokio::task::JoinHandle;

use super::local_files::Entry;
use super::torrent::Torrent;
use crate::metainfo::FileIndex;
use crate::store::{HeldFile, LossSink, TorrentStore};
use crate::util::TICK;

/// How often a file is looked through for unverified pieces. While another program changes it, a hash is not enough.
const PASSES: u32 = 3;

/// A complete file on the disk. Its pieces are not evicted while this exists.
pub struct LocalFile {
    torrent: Arc<Torrent>,
    entry: Arc<Entry>,
    held: Arc<HeldFile>,
    watch: JoinHandle<()>,
}

impl Torrent {
    /// Returns whether every piece of a file is on the disk and verified. Never waits.
    pub(crate) fn is_file_on_disk(&self, file: FileIndex) -> bool {
        self.store.is_file_on_disk(file)
    }

    /// Returns a file for the kernel to read, if it is complete, and its descriptor. Calls `lost` once it turns out that its
    /// bytes are not the torrent's any more. Blocking.
    pub(crate) fn local_file(self: &Arc<Self>, file: FileIndex, lost: LossSink) -> Option<(LocalFile, Arc<File>)> {
        let entry = Entry::new(file);
        let marked = entry.clone();
        let lost: Arc<LossSink> = Arc::new(Box::new(move || {
            marked.mark_lost();
            lost();
        }));
        let on_loss = lost.clone();
        let (held, opened) = self.store.hold(file, Box::new(move || on_loss()))?;
        let held = Arc::new(held);
        self.local_files.add(entry.clone());
        let watch = self.runtime.spawn(watch(self.store.clone(), held.clone(), lost));
        Some((LocalFile { torrent: self.clone(), entry, held, watch }, opened))
    }

    /// Starts to hash the unverified pieces of a complete file, with a pause after each as long as the work: later the kernel can
    /// read the file. Its readers alone would not do: those who read it from the kernel's cache do not get here. Never waits.
    pub(crate) fn verify_file(self: &Arc<Self>, file: FileIndex) {
        if self.store.unverified_of(file).is_empty() || !self.local_files.begin_verification(file) {
            return;
        }
        let (torrent, store) = (Arc::downgrade(self), self.store.clone());
        self.runtime.spawn(async move {
            for _ in 0..PASSES {
                tokio::time::sleep(TICK).await;
                for piece in store.unverified_of(file) {
                    let (store, begun) = (store.clone(), Instant::now());
                    let _ = tokio::task::spawn_blocking(move || store.recheck(piece)).await;
                    tokio::time::sleep(begun.elapsed()).await;
                }
            }
            if let Some(torrent) = torrent.upgrade() {
                torrent.local_files.end_verification(file);
            }
        });
    }

    /// Returns the files that the kernel reads itself, in the torrent's order.
    pub fn local_files(&self) -> Vec<FileIndex> {
        self.local_files.list()
    }
}

impl LocalFile {
    /// Returns whether the file still has the torrent's bytes, and is the one whose descriptor was returned. Hashes it if another
    /// program has touched it. Blocking.
    pub(crate) fn is_intact(&self) -> bool {
        self.held.is_intact()
    }
}

impl Drop for LocalFile {
    fn drop(&mut self) {
        self.watch.abort();
        self.torrent.local_files.remove(&self.entry);
    }
}

impl std::fmt::Debug for LocalFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LocalFile({})", self.entry.file.0)
    }
}

/// Looks for changes by other programs until the file is lost or the torrent is closed.
async fn watch(store: Arc<TorrentStore>, held: Arc<HeldFile>, lost: Arc<LossSink>) {
    loop {
        tokio::time::sleep(TICK).await;
        let examined = held.clone();
        match tokio::task::spawn_blocking(move || examined.is_intact()).await {
            Ok(true) => {}
            _ if store.is_closed() => return,
            Ok(false) => return lost(),
            // The runtime ends.
            Err(_) => return,
        }
    }
}
