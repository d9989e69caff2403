//! The addresses of good peers, kept with a torrent's state for its next start: one a line, the best first.
//!
//! They are a hint, and hostile like everything that is read back. Their number is bounded, and what is no address is
//! skipped.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::path::Path;

use super::handle::TorrentStore;
use crate::sys::file::{create_anew, open_regular};

/// Maximum number of addresses kept: as many as are dialed at once.
pub const MAX_KEPT_PEERS: usize = 30;
/// Length limit of the file in bytes.
const MAX_LEN: u64 = 4 << 10;

fn load(path: &Path) -> io::Result<Vec<SocketAddr>> {
    let mut text = Vec::new();
    open_regular(path, File::options().read(true))?.take(MAX_LEN).read_to_end(&mut text)?;
    let text = String::from_utf8_lossy(&text);
    Ok(text.lines().filter_map(|line| line.parse().ok()).take(MAX_KEPT_PEERS).collect())
}

fn save(path: &Path, peers: &[SocketAddr]) -> io::Result<()> {
    let new = path.with_extension("new");
    let lines: String = peers.iter().take(MAX_KEPT_PEERS).map(|peer| format!("{peer}\n")).collect();
    let written = create_anew(&new).and_then(|mut file| file.write_all(lines.as_bytes()));
    written.and_then(|()| fs::rename(&new, path)).inspect_err(|_| drop(fs::remove_file(&new)))
}

impl TorrentStore {
    /// Returns the addresses that were kept. Blocking.
    pub fn kept_peers(&self) -> Vec<SocketAddr> {
        self.torrent_dir().and_then(|dir| load(&dir.join("peers")).ok()).unwrap_or_default()
    }

    /// Keeps addresses for the next start, if the torrent has a place for its state. Blocking.
    pub fn keep_peers(&self, peers: &[SocketAddr]) {
        let Some(path) = self.torrent_dir().map(|dir| dir.join("peers")) else { return };
        if let Err(error) = save(&path, peers) {
            tracing::debug!("cannot write {}: {error}", path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_back_in_order_and_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("peers");
        assert!(load(&path).is_err());
        let peers: Vec<SocketAddr> = (1..=50).map(|port| ([0x20, 1, 0xdb8, 0, 0, 0, 0, 9], port).into()).collect();
        save(&path, &peers).unwrap();
        assert_eq!(load(&path).unwrap(), peers[..MAX_KEPT_PEERS]);
        save(&path, &["192.0.2.1:1".parse().unwrap()]).unwrap();
        assert_eq!(load(&path).unwrap(), ["192.0.2.1:1".parse().unwrap()]);
    }

    #[test]
    fn what_is_no_address_is_skipped_and_nothing_planted_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("peers");
        fs::write(&path, b"\xff\xfe\n192.0.2.1:6881\nexample.org:1\n[2001:db8::1]:2\r\n192.0.2.2\n").unwrap();
        assert_eq!(load(&path).unwrap(), ["192.0.2.1:6881".parse().unwrap(), "[2001:db8::1]:2".parse().unwrap()]);
        fs::write(&path, "192.0.2.1:6881\n".repeat(100_000)).unwrap();
        assert_eq!(load(&path).unwrap().len(), MAX_KEPT_PEERS);
        let elsewhere = dir.path().join("elsewhere");
        fs::write(&elsewhere, "192.0.2.1:6881\n").unwrap();
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
        assert!(load(&path).is_err());
        save(&path, &[]).unwrap();
        assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "192.0.2.1:6881\n");
    }
}
