//! The filesystem: what a mount shows of its torrents, and how reads are answered.
//!
//! | module | owns |
//! |---|---|
//! | [`content`] | the two traits through which everything is read |
//! | [`tree`] | inode numbers, names, directories: pure, built once from the metainfo |
//! | [`vfs`] | attributes, extended attributes, open files; free of FUSE, so it is tested without a mount |
//! | [`fuse`] | the thin layer from FUSE requests to [`vfs`]; hits at once, misses as tasks |
//! | [`mountinfo`] | the kernel's list of mounts, read |
//! | [`attach`] | checking a mount point, attaching to the kernel, detaching |
//! | [`keeper`] | attaching on behalf of a process without privileges |
//! | [`mount`] | the life of our own mount: start, serving, end |
//! | [`unmount`] | ending a mount from outside, by its path |
//!
//! Invariants:
//! - `lookup`, `getattr`, `readdir`, `readlink` and the extended attributes never wait for the network or a disk.
//! - A read is answered with exactly the bytes asked for (clipped at the end of the file) or with an error.
//! - What was shown never changes: sizes are full sizes, from the start, so that the kernel may cache for long.
//!
//! It knows nothing of peers, pieces on the wire or where bytes are kept: that is [`Content`]'s.

pub mod attach;
pub mod content;
pub mod fuse;
pub mod keeper;
pub mod mount;
pub mod mountinfo;
#[cfg(test)]
mod testing;
pub mod tree;
pub mod unmount;
pub mod vfs;

pub use attach::{MountError, MountOptions};
pub use content::{Content, ReadError, Reader};
pub use mount::{Attacher, Mounted};
pub use unmount::{UnmountError, unmount_path};

/// Becoming a daemon that serves a mount after the command has ended.
pub mod daemon {
    pub use crate::sys::privileges::{Account, account, become_user, enter_mount_namespace};
    pub use crate::sys::process::{Notifier, Side, Waiter, close_inherited, fork, user};

    /// Whether this process may do what only root may.
    pub fn is_root() -> bool {
        user() == 0
    }
}
