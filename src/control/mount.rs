//! A running mount and its torrents, by the names that the mount shows.

use std::path::PathBuf;
use std::sync::Arc;

use crate::library::Library;
use crate::metainfo::{FileIndex, FileKind, InfoHash};
use crate::session::Torrent;

/// A running mount: where it is and which torrents it has.
pub struct Mount {
    /// Canonical path of the mountpoint.
    pub mountpoint: PathBuf,
    /// Device number of the filesystem, major and minor. Without it the mount has no control socket.
    pub device: Option<(u32, u32)>,
    /// Torrents of the mount.
    pub library: Library,
}

impl Mount {
    /// Returns the torrents of the mount.
    pub(crate) fn torrents(&self) -> Vec<MountedTorrent> {
        self.library.torrents().into_iter().map(|(name, torrent)| MountedTorrent { name, torrent }).collect()
    }
}

/// A torrent and its name in the root of the mount.
#[derive(Clone)]
pub(crate) struct MountedTorrent {
    /// Name of the file or directory. Differs from the torrent's own name if another torrent already uses that one.
    pub name: String,
    /// The torrent.
    pub torrent: Arc<Torrent>,
}

impl MountedTorrent {
    /// Returns the torrent's info hash.
    pub fn info_hash(&self) -> InfoHash {
        self.torrent.metainfo().info_hash
    }

    /// Returns the path from the root of the mount of the file that the torrent knows as `path`.
    pub fn path(&self, path: &[String]) -> String {
        let below = path.iter().skip(1).map(String::as_str);
        std::iter::once(self.name.as_str()).chain(below).collect::<Vec<_>>().join("/")
    }

    /// Returns the index and length of the only file of a single-file torrent.
    pub fn single_file(&self) -> Option<(FileIndex, u64)> {
        let files = (0..).map(FileIndex).zip(self.torrent.metainfo().layout.files());
        let mut files = files.filter(|(_, file)| file.kind != FileKind::Pad);
        let (index, file) = files.next()?;
        (file.path.len() == 1 && files.next().is_none()).then_some((index, file.len))
    }

    /// Returns the regular files at or below a path from the root of the mount.
    pub fn files_below(&self, path: &[&str]) -> Vec<FileIndex> {
        let below = match path {
            [] => path,
            [name, below @ ..] if *name == self.name => below,
            _ => return Vec::new(),
        };
        let layout = &self.torrent.metainfo().layout;
        let files = (0..).map(FileIndex).zip(layout.files());
        files
            .filter(|(_, file)| matches!(file.kind, FileKind::Regular { .. }))
            .filter(|(_, file)| {
                let own = file.path.get(1..).unwrap_or_default();
                own.len() >= below.len() && own.iter().zip(below).all(|(own, wanted)| own == wanted)
            })
            .map(|(index, _)| index)
            .collect()
    }
}
