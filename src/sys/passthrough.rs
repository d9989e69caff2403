//! Backing files of a FUSE mount: files that the kernel reads itself, instead of asking the server (Linux 6.9).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::errno::check;

/// Type of the requests to the FUSE device.
const MAGIC: u32 = 229;

/// `struct fuse_backing_map`
#[repr(C)]
struct Map {
    descriptor: i32,
    flags: u32,
    padding: u64,
}

/// Registers an open file as a backing file (`FUSE_DEV_IOC_BACKING_OPEN`). Returns its number in the connection of the device. Needs
/// `CAP_SYS_ADMIN` (`EPERM`).
///
/// The kernel opens the file again for each reader, with the credentials of this process, and whatever the descriptor was opened
/// for.
pub fn register(device: BorrowedFd<'_>, file: BorrowedFd<'_>) -> io::Result<u32> {
    let map = Map { descriptor: file.as_raw_fd(), flags: 0, padding: 0 };
    let request = libc::_IOW::<Map>(MAGIC, 1);
    // SAFETY: the request reads a `fuse_backing_map`, which outlives the call. Both descriptors are open.
    let id = check(unsafe { libc::ioctl(device.as_raw_fd(), request, &raw const map) })?;
    // Not negative.
    Ok(id as u32)
}

/// Removes a backing file by its number (`FUSE_DEV_IOC_BACKING_CLOSE`). Readers that have it open can go on. Needs `CAP_SYS_ADMIN`.
pub fn unregister(device: BorrowedFd<'_>, id: u32) -> io::Result<()> {
    let request = libc::_IOW::<u32>(MAGIC, 2);
    // SAFETY: the request reads an integer, which outlives the call. The descriptor is open.
    check(unsafe { libc::ioctl(device.as_raw_fd(), request, &raw const id) }).map(drop)
}

/// Answers the opening of a file with a registered backing file, which the kernel reads from then on.
#[cfg(feature = "fs")]
pub fn reply(reply: fuser::ReplyOpen, handle: fuser::FileHandle, flags: fuser::FopenFlags, id: u32) {
    // SAFETY: this is about the owner of the number, which unregisters it. The value here does not: it gives it back below.
    let backing = unsafe { reply.wrap_backing(id) };
    reply.opened_passthrough(handle, flags, &backing);
    let _ = backing.into_raw();
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn only_a_device_that_is_mounted_takes_files() {
        let file = tempfile::tempfile().unwrap();
        assert!(register(file.as_fd(), file.as_fd()).is_err() && unregister(file.as_fd(), 1).is_err());
        if let Ok(device) = File::options().read(true).write(true).open("/dev/fuse") {
            assert!(register(device.as_fd(), file.as_fd()).is_err() && unregister(device.as_fd(), 1).is_err());
        }
    }
}
