//! The kernel's list of mounts, `/proc/self/mountinfo` (see proc_pid_mountinfo(5)).
//!
//! Reading the list touches none of the mounted filesystems, so a dead or hanging mount cannot block it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::Interest;
use tokio::time::sleep;

use crate::sys;

/// The filesystem type of our mounts.
pub const FSTYPE: &str = "fuse.torrentfs";

/// The file with the list.
const MOUNTINFO: &str = "/proc/self/mountinfo";
/// Shortest time between two readings of the list. A container that starts changes it dozens of times at once.
const READ_INTERVAL: Duration = Duration::from_millis(50);

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Mount id, unique while the mount exists.
    pub id: u64,
    /// Id of the mount below it.
    pub parent: u64,
    /// Device number of the filesystem, major and minor.
    pub device: (u32, u32),
    /// Mount point.
    pub path: PathBuf,
    /// Filesystem type, with its subtype.
    pub fstype: String,
    /// Source, as named by the process that mounted it.
    pub source: String,
    /// Filesystem options, separated by commas.
    pub options: String,
}

impl Mount {
    /// Whether this is a torrentfs mount.
    pub fn is_torrentfs(&self) -> bool {
        self.fstype == FSTYPE
    }

    /// Returns the user who mounted it, according to FUSE.
    pub fn owner(&self) -> Option<u32> {
        self.options.split(',').find_map(|option| option.strip_prefix("user_id="))?.parse().ok()
    }
}

/// Returns every mount in the namespace of this process.
pub fn mounts() -> io::Result<Vec<Mount>> {
    Ok(parse_all(&fs::read(MOUNTINFO)?))
}

fn parse_all(text: &[u8]) -> Vec<Mount> {
    text.split(|byte| *byte == b'\n').filter_map(parse).collect()
}

/// The list, kept open. The kernel reports its changes as exceptional conditions of the file.
#[derive(Debug)]
pub struct MountTable(File);

impl MountTable {
    /// Opens the list of the namespace that this process is in now.
    pub fn open() -> io::Result<Self> {
        File::open(MOUNTINFO).map(Self)
    }

    /// Whether a filesystem is mounted anywhere in the namespace, once or more often.
    pub fn contains(&self, device: (u32, u32)) -> io::Result<bool> {
        let (mut file, mut text) = (&self.0, Vec::new());
        file.seek(SeekFrom::Start(0))?;
        file.read_to_end(&mut text)?;
        Ok(parse_all(&text).iter().any(|mount| mount.device == device))
    }

    /// Waits until a filesystem is mounted nowhere in the namespace any more. Needs a tokio runtime.
    pub async fn left(&self, device: (u32, u32)) -> io::Result<()> {
        // A change after the descriptor was opened is reported even if nobody waits yet.
        let changes = sys::file::exceptions(OwnedFd::from(self.0.try_clone()?))?;
        while self.contains(device)? {
            changes.ready(Interest::PRIORITY).await?.clear_ready();
            sleep(READ_INTERVAL).await;
        }
        Ok(())
    }
}

impl AsFd for MountTable {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Returns the topmost mount at exactly this path, which is the one that programs see there.
pub fn mount_at(path: &Path) -> io::Result<Option<Mount>> {
    Ok(topmost(mounts()?, path))
}

fn topmost(mounts: Vec<Mount>, path: &Path) -> Option<Mount> {
    let here: Vec<_> = mounts.into_iter().filter(|mount| mount.path == path).collect();
    here.iter().find(|mount| here.iter().all(|other| other.parent != mount.id)).cloned()
}

/// Parses a line: id, parent, device, root, path, mount options, optional fields, `-`, type, source, filesystem
/// options.
fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let mut text = || fields.next().and_then(|field| std::str::from_utf8(field).ok());
    let (id, parent) = (text()?.parse().ok()?, text()?.parse().ok()?);
    let (major, minor) = text()?.split_once(':')?;
    let device = (major.parse().ok()?, minor.parse().ok()?);
    let path = PathBuf::from(OsString::from_vec(unescape(fields.nth(1)?)));
    fields.find(|field| *field == b"-")?;
    let fstype = String::from_utf8_lossy(fields.next()?).into_owned();
    let source = String::from_utf8_lossy(&unescape(fields.next()?)).into_owned();
    let options = String::from_utf8_lossy(fields.next()?).into_owned();
    Some(Mount { id, parent, device, path, fstype, source, options })
}

/// Decodes a field: the kernel writes space, tab, newline and backslash as `\` and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let (mut plain, mut rest) = (Vec::with_capacity(field.len()), field);
    while let [first, tail @ ..] = rest {
        let octal = match rest {
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..] => {
                Some(((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'), tail))
            }
            _ => None,
        };
        let (byte, tail) = octal.unwrap_or((*first, tail));
        plain.push(byte);
        rest = tail;
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: &str = r"22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
40 22 0:41 / /mnt/a\040b\134c ro,nosuid,nodev,noatime shared:7 master:2 - fuse.torrentfs /my\040film\0431 ro,user_id=1000,group_id=100
41 40 0:42 / /mnt/a\040b\134c rw - tmpfs none rw
not a mount
";

    fn all() -> Vec<Mount> {
        LINES.lines().filter_map(|line| parse(line.as_bytes())).collect()
    }

    #[test]
    fn lines_of_the_kernel_are_parsed() {
        let mounts = all();
        assert_eq!(mounts.len(), 3);
        assert_eq!(
            mounts[1],
            Mount {
                id: 40,
                parent: 22,
                device: (0, 41),
                path: r"/mnt/a b\c".into(),
                fstype: FSTYPE.to_owned(),
                source: "/my film#1".to_owned(),
                options: "ro,user_id=1000,group_id=100".to_owned(),
            }
        );
        assert!(mounts[1].is_torrentfs() && !mounts[2].is_torrentfs());
        assert_eq!((mounts[1].owner(), mounts[2].owner()), (Some(1000), None));
    }

    #[test]
    fn the_topmost_mount_is_found() {
        let mut mounts = all();
        assert_eq!(topmost(mounts.clone(), Path::new(r"/mnt/a b\c")).unwrap().id, 41);
        mounts.reverse();
        assert_eq!(topmost(mounts.clone(), Path::new(r"/mnt/a b\c")).unwrap().id, 41);
        assert_eq!(topmost(mounts, Path::new("/mnt")), None);
        assert_eq!(mount_at(Path::new("/")).unwrap().unwrap().path, Path::new("/"));
    }
}
