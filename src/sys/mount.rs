//! Mounting and unmounting a FUSE filesystem, extended attributes.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

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
    use super::*;

    #[test]
    fn a_path_with_nul_is_refused() {
        let path = Path::new("a\0b");
        assert_eq!(detach_and_abort(path).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(extended_attribute(path, "user.x").unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
