//! The filesystem: what a mount shows of its torrents, and how reads are answered.
//!
//! | module | owns |
//! |---|---|
//! | [`content`] | the two traits through which everything is read |
//! | [`tree`] | inode numbers, names, directories: pure |
//! | `names` | what each torrent is called in the root |
//! | [`vfs`] | attributes, extended attributes, open files; free of FUSE, so it is tested without a mount |
//! | [`shelf`] | torrents added and removed while they are mounted, and the kernel told |
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
//! - What is shown of a torrent never changes: sizes are full sizes, from the start, so that the kernel may cache for
//!   long. Only the root changes, as torrents come and go, and then the kernel is told.
//! - A torrent that is removed goes on for whoever has a file of it open.
//!
//! It knows nothing of peers, pieces on the wire or where bytes are kept: that is [`Content`]'s.

pub mod attach;
pub mod content;
pub mod fuse;
pub mod keeper;
pub mod mount;
pub mod mountinfo;
mod names;
pub mod shelf;
#[cfg(test)]
mod testing;
pub mod tree;
pub mod unmount;
pub mod vfs;

pub use attach::{MountError, MountOptions, prepare};
pub use content::{Content, ReadError, Reader};
pub use mount::{Attacher, Mounted};
pub use shelf::Shelf;
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
