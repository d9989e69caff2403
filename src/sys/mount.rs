//! Mounting and unmounting a FUSE filesystem, passing its descriptor between processes, extended attributes.

use std::ffi::CString;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::ptr;

use super::errno::check;

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// Mounts a FUSE filesystem (`mount(2)`): read-only, without devices, set-user-id programs and access times, and with
/// `noexec` without execution.
///
/// `fstype` is `fuse` or `fuse.SUBTYPE`. `data` holds the kernel's comma-separated options and must give the descriptor of
/// an open `/dev/fuse` as `fd=N`.
pub fn mount_fuse(source: &str, target: &Path, fstype: &str, data: &str, noexec: bool) -> io::Result<()> {
    let (source, target) = (CString::new(source)?, c_path(target)?);
    let (fstype, data) = (CString::new(fstype)?, CString::new(data)?);
    let exec = if noexec { libc::MS_NOEXEC } else { 0 };
    let flags = libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOATIME | exec;
    // SAFETY: all four pointers are NUL-terminated strings that outlive the call; the kernel copies what it keeps.
    check(unsafe { libc::mount(source.as_ptr(), target.as_ptr(), fstype.as_ptr(), flags, data.as_ptr().cast()) })?;
    Ok(())
}

/// Detaches a mount at once and aborts its FUSE connection (`umount2(2)`). The next use of a file that is still open in it
/// fails. Needs `CAP_SYS_ADMIN` (`EPERM`).
pub fn detach_and_abort(target: &Path) -> io::Result<()> {
    let target = c_path(target)?;
    let flags = libc::MNT_FORCE | libc::MNT_DETACH | libc::UMOUNT_NOFOLLOW;
    // SAFETY: the path is NUL-terminated and outlives the call.
    check(unsafe { libc::umount2(target.as_ptr(), flags) })?;
    Ok(())
}

/// Sends a descriptor with one byte of data (`SCM_RIGHTS`). The descriptor stays open in this process too.
pub fn send_descriptor(socket: &UnixStream, descriptor: BorrowedFd<'_>) -> io::Result<()> {
    let mut control = [0u64; 8];
    let mut byte = 0u8;
    let mut vector = libc::iovec { iov_base: ptr::from_mut(&mut byte).cast(), iov_len: 1 };
    let len = mem::size_of::<libc::c_int>() as libc::c_uint;
    // SAFETY: `msghdr` is plain data for which all zeros is valid.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut vector;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    // SAFETY: the macro only calculates.
    message.msg_controllen = unsafe { libc::CMSG_SPACE(len) } as _;
    // SAFETY: the control buffer is longer than `msg_controllen` and aligned, so the header and its data are within it.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(len) as _;
        libc::CMSG_DATA(header).cast::<libc::c_int>().write_unaligned(descriptor.as_raw_fd());
    }
    loop {
        // SAFETY: `message` points to one valid vector and to a control buffer of the stated length; both outlive the call.
        match check(unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) }) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other.map(drop),
        }
    }
}

/// Receives a descriptor that the other side sent with one byte of data (`SCM_RIGHTS`). It is closed on exec.
///
/// Fails with `WouldBlock` after the socket's read time-out, and with `UnexpectedEof` if the other side closes first.
pub fn receive_descriptor(socket: &UnixStream) -> io::Result<OwnedFd> {
    // Room for one descriptor; `u64` gives the alignment that a `cmsghdr` needs.
    let mut control = [0u64; 8];
    let mut byte = 0u8;
    let mut vector = libc::iovec { iov_base: ptr::from_mut(&mut byte).cast(), iov_len: 1 };
    // SAFETY: `msghdr` is plain data for which all zeros is valid.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut vector;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = mem::size_of_val(&control) as _;
    let received = loop {
        // SAFETY: `message` points to one valid vector and to a control buffer of the stated length; both outlive the call.
        let result = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
        match check(result) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => break other?,
        }
    };
    // SAFETY: `recvmsg` filled `message` and its control buffer; the macro stays within `msg_controllen`.
    let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message).as_ref() };
    let Some(header) = header.filter(|h| h.cmsg_level == libc::SOL_SOCKET && h.cmsg_type == libc::SCM_RIGHTS) else {
        let kind = if received == 0 { io::ErrorKind::UnexpectedEof } else { io::ErrorKind::InvalidData };
        return Err(io::Error::new(kind, "the other process sent no descriptor"));
    };
    // SAFETY: an SCM_RIGHTS message carries at least one descriptor, possibly unaligned. The kernel just opened it for this
    // process, so nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(libc::CMSG_DATA(header).cast::<libc::c_int>().read_unaligned()) })
}

/// Returns the value of an extended attribute (`getxattr(2)`); `ERANGE` if it is longer than 4 KiB.
pub fn extended_attribute(path: &Path, name: &str) -> io::Result<Vec<u8>> {
    let (path, name) = (c_path(path)?, CString::new(name)?);
    let mut value = vec![0u8; 4096];
    // SAFETY: both strings are NUL-terminated; the kernel writes at most `value.len()` bytes to `value`.
    let len = check(unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) })?;
    value.truncate(usize::try_from(len).unwrap_or(0));
    Ok(value)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_peer_that_sends_no_descriptor_is_an_error() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        io::Write::write_all(&mut &theirs, b"x").unwrap();
        assert_eq!(receive_descriptor(&ours).unwrap_err().kind(), io::ErrorKind::InvalidData);
        drop(theirs);
        assert_eq!(receive_descriptor(&ours).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_descriptor_arrives() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut read, write) = io::pipe().unwrap();
        send_descriptor(&theirs, write.as_fd()).unwrap();
        drop(write);
        let arrived = std::fs::File::from(receive_descriptor(&ours).unwrap());
        io::Write::write_all(&mut &arrived, b"through").unwrap();
        drop(arrived);
        let mut text = String::new();
        io::Read::read_to_string(&mut read, &mut text).unwrap();
        assert_eq!(text, "through");
        drop(ours);
        assert!(send_descriptor(&theirs, theirs.as_fd()).is_err());
    }

    #[test]
    fn a_path_with_nul_is_refused() {
        let path = Path::new("a\0b");
        assert_eq!(detach_and_abort(path).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(extended_attribute(path, "user.x").unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
