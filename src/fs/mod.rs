//! The filesystem: the inodes of a mount, and the answers to the kernel's requests.
//!
//! | module | owns |
//! |---|---|
//! | [`content`] | the two traits through which the filesystem reads torrents |
//! | [`tree`] | inode numbers, names and directories; pure |
//! | `names` | the name of each torrent in the root directory; pure |
//! | [`vfs`] | attributes, extended attributes and open files; independent of FUSE, so tests need no mount |
//! | [`mounted_torrents`] | adding and removing torrents while they are mounted, and invalidating the kernel's caches |
//! | `callers` | programs that are to end while a read of theirs waits |
//! | [`fuse`] | the thin layer from FUSE requests to [`vfs`]: hits are answered at once, misses become tasks |
//! | `passthrough` | files that the kernel reads itself |
//! | [`mountinfo`] | reading the kernel's list of mounts |
//! | [`attach`] | checking a mount point, attaching a mount to the kernel, detaching it |
//! | [`keeper`] | attaching on behalf of a process without privileges |
//! | [`mount`] | the life of our own mount: start, service, end |
//! | [`unmount`] | ending a mount from outside, by its path |
//!
//! Invariants:
//! - `lookup`, `getattr`, `readdir`, `readlink` and the extended attributes never wait for the network or a disk.
//! - A read returns exactly the requested bytes (clipped at the end of the file) or an error.
//! - The files of a torrent never change: every file has its full size from the start, so the kernel may cache
//!   attributes and pages for long. Only the root changes, when torrents are added or removed, and each change
//!   invalidates the kernel's caches.
//! - A removed torrent keeps serving the file handles that are open.
//!
//! The filesystem knows nothing of peers, of blocks on the wire, or of where bytes are stored: [`Content`] hides that.

pub mod attach;
mod callers;
pub mod content;
pub mod fuse;
pub mod keeper;
pub mod mount;
pub mod mounted_torrents;
pub mod mountinfo;
mod names;
mod passthrough;
#[cfg(test)]
mod testing;
pub mod tree;
pub mod unmount;
pub mod vfs;

pub use attach::{MountError, MountOptions, prepare};
pub use content::{Content, ReadError, Reader};
pub use mount::{Attacher, Mounted};
pub use mounted_torrents::MountedTorrents;
pub use unmount::{UnmountError, unmount_path};

/// Process control for a daemon that serves a mount after the command has ended.
pub mod daemon {
    pub use crate::sys::privileges::{Account, account, become_user, drop_capabilities, enter_mount_namespace};
    pub use crate::sys::process::{Notifier, Side, Waiter, close_inherited, fork_daemon, user};

    /// Whether this process runs as root.
    pub fn is_root() -> bool {
        user() == 0
    }
}
