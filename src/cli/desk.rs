//! What the control side sees of a mount.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::control::{Mount, Shown};
use crate::session::{Session, Torrent};
use crate::store::Cache;

/// A mount with one torrent.
pub(super) struct Desk {
    pub(super) mountpoint: PathBuf,
    pub(super) device: (u32, u32),
    pub(super) session: Arc<Session>,
    pub(super) cache: Arc<Cache>,
    pub(super) torrent: Arc<Torrent>,
}

impl Mount for Desk {
    fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    fn device(&self) -> (u32, u32) {
        self.device
    }

    fn session(&self) -> &Session {
        &self.session
    }

    fn cache(&self) -> &Cache {
        &self.cache
    }

    fn torrents(&self) -> Vec<Shown> {
        vec![Shown { name: self.torrent.metainfo().name.clone(), torrent: self.torrent.clone() }]
    }
}
