//! The blocklist of a command, which SIGHUP reloads.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::failure::{Exit, Failure};
use crate::net::{Blocklist, Ranges, Unread};

/// A blocklist that was loaded from a file, and can be loaded again.
pub(super) struct BlocklistFile {
    path: PathBuf,
    list: Arc<Blocklist>,
}

impl BlocklistFile {
    /// Loads a blocklist file.
    pub(super) fn load(path: &Path) -> Result<Self, Failure> {
        // Absolute, because a daemon leaves its working directory.
        let absolute = std::path::absolute(path).map_err(|error| Failure::new(Exit::Resource, error))?;
        let list = Arc::new(Blocklist::default());
        list.replace(read(path)?);
        Ok(Self { path: absolute, list })
    }

    /// Returns the list, which stays current when the file is reloaded.
    pub(super) fn list(&self) -> Arc<Blocklist> {
        self.list.clone()
    }

    /// Loads the file again. If that fails, the old list stays in force.
    pub(super) fn reload(&self) {
        match read(&self.path) {
            Ok(ranges) => self.list.replace(ranges),
            Err(failure) => tracing::error!("{failure}; the old list stays in force"),
        }
    }
}

fn read(path: &Path) -> Result<Ranges, Failure> {
    let ranges = Ranges::load(path).map_err(|error| {
        Failure::new(Exit::Resource, format!("cannot read the blocklist {}: {error}", path.display()))
    })?;
    let Unread { lines, first } = ranges.unread();
    if lines > 0 {
        tracing::warn!(
            "skipped {lines} malformed lines of the blocklist {}, the first at line {first}",
            path.display()
        );
    }
    tracing::info!("loaded {} ranges from the blocklist {}", ranges.len(), path.display());
    Ok(ranges)
}
