//! Reads that never block, holes in files, and opens that follow no symbolic link.

use std::ffi::{CString, OsStr};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::errno::check;

fn c_string(name: &OsStr) -> io::Result<CString> {
    CString::new(name.as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn signed(n: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(n).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// Registers a descriptor with the tokio runtime that this is called in, to await its readiness for reading.
pub fn readiness(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` stays open and keeps its number for as long as it exists, and the result owns it.
    let registered = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) };
    registered.map_err(io::Error::from)
}

/// Registers a descriptor with the tokio runtime that this is called in, to await exceptional conditions (`POLLPRI`), by
/// which files of `/proc` report a change.
pub fn exceptions(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` stays open and keeps its number for as long as it exists, and the result owns it.
    let registered = unsafe { AsyncFd::register_with_interest(descriptor, Interest::PRIORITY) };
    registered.map_err(io::Error::from)
}

/// Reads bytes that are already in the page cache and never waits for the disk (`preadv2(RWF_NOWAIT)`). Returns the number
/// of bytes read, which may be short, or `None` if the first byte is not cached. Fails with `ErrorKind::Unsupported` on a
/// filesystem that lacks the call.
pub fn read_cached(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<Option<usize>> {
    let offset = signed(offset)?;
    let part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: `part` describes `buffer`, which is writable for its whole length and outlives the call.
    let count = unsafe { libc::preadv2(file.as_raw_fd(), &part, 1, offset, libc::RWF_NOWAIT) };
    match usize::try_from(count) {
        Ok(count) => Ok(Some(count)),
        Err(_) => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::EAGAIN) => Ok(None),
            error if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Err(io::ErrorKind::Unsupported.into()),
            error => Err(error),
        },
    }
}

/// Returns whether the file is on a tmpfs, so that a plain read never waits for a disk.
pub fn is_on_tmpfs(file: &File) -> io::Result<bool> {
    Ok(filesystem_type(file)? == i128::from(libc::TMPFS_MAGIC))
}

/// Returns whether the file's filesystem decides by itself who may read: a network filesystem or another FUSE mount. It may refuse
/// to root what it gives to the file's owner.
pub fn is_on_guarded_filesystem(file: &File) -> io::Result<bool> {
    /// As in `linux/magic.h`, and those of SMB: NFS, SMB, CIFS, SMB2, FUSE, 9P, AFS, kAFS, Ceph, Coda.
    const GUARDED: [u32; 10] = [
        0x6969,
        0x517B,
        0xFF53_4D42,
        0xFE53_4D42,
        0x6573_5546,
        0x0102_1997,
        0x5346_414F,
        0x6B41_4653,
        0x00C3_6400,
        0x7375_7245,
    ];
    // Magic numbers have 32 bits; some platforms extend their sign.
    filesystem_type(file).map(|magic| GUARDED.contains(&(magic as u32)))
}

fn filesystem_type(file: &File) -> io::Result<i128> {
    // SAFETY: all-zero bytes are a valid `statfs`, which holds integers only.
    let mut about: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: `about` is writable and outlives the call; the descriptor is open.
    check(unsafe { libc::fstatfs(file.as_raw_fd(), &mut about) })?;
    // Its integer type differs between platforms.
    Ok(i128::from(about.f_type))
}

/// Returns whether a descriptor may be read from. One that was opened with `O_PATH` may not.
pub fn is_readable(file: &File) -> io::Result<bool> {
    // SAFETY: the call takes integers; the descriptor is open.
    let flags = check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) })?;
    Ok(flags & libc::O_PATH == 0 && matches!(flags & libc::O_ACCMODE, libc::O_RDONLY | libc::O_RDWR))
}

/// Replaces a range of a file by a hole (`fallocate(PUNCH_HOLE | KEEP_SIZE)`): exactly these bytes read as zeros afterwards,
/// and the whole filesystem blocks among them are freed. The file's size stays.
pub fn punch_hole(file: &File, offset: u64, len: u64) -> io::Result<()> {
    if len == 0 {
        return Ok(());
    }
    let (offset, len) = (signed(offset)?, signed(len)?);
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: the call takes integers; the descriptor is open.
    check(unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, len) }).map(drop)
}

/// Returns where data begins at or after `offset`, or `None` if only a hole is left (`lseek(SEEK_DATA)`). On a filesystem
/// without holes everything is data. Moves the file position.
pub fn next_data(file: &File, offset: u64) -> io::Result<Option<u64>> {
    match seek(file, offset, libc::SEEK_DATA) {
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        at => at.map(Some),
    }
}

/// Returns where a hole begins at or after `offset`, which must be within the file (`lseek(SEEK_HOLE)`). The end of the file
/// counts as a hole. Moves the file position.
pub fn next_hole(file: &File, offset: u64) -> io::Result<u64> {
    seek(file, offset, libc::SEEK_HOLE)
}

fn seek(file: &File, offset: u64, whence: libc::c_int) -> io::Result<u64> {
    // SAFETY: the call takes integers; the descriptor is open.
    let at = unsafe { libc::lseek(file.as_raw_fd(), signed(offset)?, whence) };
    u64::try_from(at).map_err(|_| io::Error::last_os_error())
}

/// Starts writing dirty pages to the disk, without waiting and without any promise of durability
/// (`sync_file_range(WRITE)`).
pub fn start_writeback(file: &File) -> io::Result<()> {
    // SAFETY: the call takes integers; the descriptor is open.
    check(unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) }).map(drop)
}

/// Returns the error of a write that the kernel could not bring to the disk since the last call, without starting or awaiting
/// one beyond the file's first page. Only the first call after an error reports it.
pub fn check_writeback(file: &File) -> io::Result<()> {
    // SAFETY: the call takes integers; the descriptor is open.
    let checked = check(unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 1, libc::SYNC_FILE_RANGE_WAIT_BEFORE) });
    match checked {
        // Anything else is about the call, which some filesystems lack.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EIO | libc::ENOSPC | libc::EDQUOT)) => Err(error),
        _ => Ok(()),
    }
}

/// Waits until everything written to the file's filesystem is on the disk (`syncfs(2)`).
pub fn sync_filesystem(file: &File) -> io::Result<()> {
    // SAFETY: the call takes integers; the descriptor is open.
    check(unsafe { libc::syncfs(file.as_raw_fd()) }).map(drop)
}

fn open_at(dir: BorrowedFd<'_>, name: &OsStr, flags: libc::c_int, mode: u32) -> io::Result<OwnedFd> {
    let name = c_string(name)?;
    let flags = flags | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    // SAFETY: `name` is NUL-terminated and outlives the call; the descriptor is open.
    let fd = check(unsafe { libc::openat(dir.as_raw_fd(), name.as_ptr(), flags, mode) })?;
    // SAFETY: the kernel just opened this descriptor, so nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Opens the directory `name` in `dir` without following a symbolic link. `name` must be a single component.
pub fn open_dir_at(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
    open_at(dir, name, libc::O_PATH | libc::O_DIRECTORY, 0)
}

/// Opens the file `name` in `dir` for reading and writing without following a symbolic link. With `create`, a missing file
/// is created with that mode. `name` must be a single component.
pub fn open_file_at(dir: BorrowedFd<'_>, name: &OsStr, create: Option<u32>) -> io::Result<File> {
    // With O_NONBLOCK the open of a FIFO in the file's place does not wait for a peer; regular files ignore the flag.
    let flags = libc::O_RDWR | libc::O_NONBLOCK | if create.is_some() { libc::O_CREAT } else { 0 };
    open_at(dir, name, flags, create.unwrap_or(0)).map(File::from)
}

/// Opens the file `name` in `dir` read-only, as above.
pub fn open_file_to_read_at(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<File> {
    open_at(dir, name, libc::O_RDONLY | libc::O_NONBLOCK, 0).map(File::from)
}

/// Opens a file read-only, following links. As above, the open of a FIFO does not wait.
pub fn open_to_read(path: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)
}

/// Opens a file of this program's, which must be a regular one: follows no symbolic link in its last component, and does not
/// wait at a FIFO. Whoever may write to the directory could have planted either. Nor may `options` truncate the file.
pub fn open_regular(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let opened = options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY).open(path);
    let file = opened.map_err(|error| match error.raw_os_error() {
        Some(libc::ELOOP) => io::Error::other("it is a symbolic link"),
        // The error of a FIFO without a reader, or of a socket.
        Some(libc::ENXIO) => not_regular(),
        _ => error,
    })?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(not_regular()) }
}

fn not_regular() -> io::Error {
    io::Error::other("it is not a regular file")
}

/// Creates a new empty file for this user alone, in place of whatever has its name. A symbolic link is not followed.
pub fn create_anew(path: &Path) -> io::Result<File> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    File::options().write(true).create_new(true).mode(0o600).open(path)
}

/// Creates a file for this user alone that has no name in `dir`, and ends with its last descriptor.
pub fn create_unnamed(dir: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.read(true).write(true).mode(0o600);
    match options.clone().custom_flags(libc::O_TMPFILE).open(dir) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR | libc::EINVAL)) => {}
        opened => return opened,
    }
    // As some network filesystems need it.
    let path = dir.join(format!("unnamed-{}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let file = options.create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

/// Opens a directory without following a symbolic link in its last component.
pub fn open_dir(path: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_DIRECTORY).open(path)
}

/// Creates the directory `name` in `dir`.
pub fn make_dir_at(dir: BorrowedFd<'_>, name: &OsStr, mode: u32) -> io::Result<()> {
    let name = c_string(name)?;
    // SAFETY: `name` is NUL-terminated and outlives the call; the descriptor is open.
    check(unsafe { libc::mkdirat(dir.as_raw_fd(), name.as_ptr(), mode) }).map(drop)
}

/// Creates the symbolic link `name` in `dir`.
pub fn make_link_at(dir: BorrowedFd<'_>, name: &OsStr, target: &OsStr) -> io::Result<()> {
    let (name, target) = (c_string(name)?, c_string(target)?);
    // SAFETY: both strings are NUL-terminated and outlive the call; the descriptor is open.
    check(unsafe { libc::symlinkat(target.as_ptr(), dir.as_raw_fd(), name.as_ptr()) }).map(drop)
}

/// Removes `name`, which must not be a directory, from `dir`.
pub fn remove_at(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    let name = c_string(name)?;
    // SAFETY: `name` is NUL-terminated and outlives the call; the descriptor is open.
    check(unsafe { libc::unlinkat(dir.as_raw_fd(), name.as_ptr(), 0) }).map(drop)
}

/// Lets everyone execute a file who may read it.
pub fn make_executable(file: &File) -> io::Result<()> {
    let mode = file.metadata()?.permissions().mode();
    file.set_permissions(PermissionsExt::from_mode(mode | (mode & 0o444) >> 2))
}

/// Returns the free bytes of the file's filesystem that this user may allocate.
pub fn available_bytes(file: &File) -> io::Result<u64> {
    // SAFETY: all-zero bytes are a valid `statvfs`, which holds integers only.
    let mut about: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: `about` is writable and outlives the call; the descriptor is open.
    check(unsafe { libc::fstatvfs(file.as_raw_fd(), &mut about) })?;
    // The integer types of the two differ between platforms.
    #[allow(clippy::unnecessary_cast)]
    Ok((about.f_bavail as u64).saturating_mul(about.f_frsize as u64))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::fs::{FileExt, MetadataExt, symlink};

    use super::*;

    #[test]
    fn a_hole_is_zeros_and_frees_blocks() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&vec![7; 1 << 20], 0).unwrap();
        file.sync_all().unwrap();
        let before = file.metadata().unwrap().blocks();
        punch_hole(&file, 100, 1 << 19).unwrap();
        let mut bytes = vec![1; 1 << 20];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes[..100].iter().all(|b| *b == 7));
        assert!(bytes[100..100 + (1 << 19)].iter().all(|b| *b == 0));
        assert!(bytes[100 + (1 << 19)..].iter().all(|b| *b == 7));
        assert!(file.metadata().unwrap().blocks() + 900 < before);
        assert!(punch_hole(&file, u64::MAX, 1).is_err());
    }

    #[test]
    fn holes_are_found() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(64 << 20).unwrap();
        assert_eq!(next_data(&file, 0).unwrap(), None);
        assert_eq!(next_hole(&file, 5).unwrap(), 5);
        file.write_all_at(&[7; 10], 32 << 20).unwrap();
        let data = next_data(&file, 0).unwrap().unwrap();
        assert!((1..=32 << 20).contains(&data), "{data}");
        let hole = next_hole(&file, 32 << 20).unwrap();
        assert!(((32 << 20) + 10..64 << 20).contains(&hole), "{hole}");
        assert_eq!(next_data(&file, 64 << 20).unwrap(), None);
        assert!(next_hole(&file, u64::MAX).is_err());
        assert!(available_bytes(&file).unwrap() > 0);
    }

    #[test]
    fn fresh_pages_are_read_without_waiting() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"hello", 0).unwrap();
        let mut bytes = [0; 10];
        match read_cached(&file, &mut bytes, 0) {
            Ok(count) => assert_eq!(&bytes[..count.unwrap()], b"hello"),
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::Unsupported);
                assert!(is_on_tmpfs(&file).unwrap());
            }
        }
    }

    #[test]
    fn only_a_descriptor_opened_for_reading_is_readable() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = |options: &mut OpenOptions| is_readable(&options.open(file.path()).unwrap()).unwrap();
        assert!(open(File::options().read(true)) && open(File::options().read(true).write(true)));
        assert!(!open(File::options().write(true)) && !open(File::options().append(true)));
        assert!(!open(File::options().read(true).custom_flags(libc::O_PATH)));
        assert!(!is_on_guarded_filesystem(&File::open("/proc/version").unwrap()).unwrap());
    }

    #[test]
    fn symbolic_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("real")).unwrap();
        std::fs::write(dir.path().join("file"), b"x").unwrap();
        symlink("real", dir.path().join("dir-link")).unwrap();
        symlink("file", dir.path().join("file-link")).unwrap();
        let root = File::open(dir.path()).unwrap();
        let name = OsStr::new;
        assert!(open_dir_at(root.as_fd(), name("real")).is_ok());
        assert!(open_dir_at(root.as_fd(), name("dir-link")).is_err());
        assert!(open_file_at(root.as_fd(), name("file"), None).is_ok());
        assert!(open_file_at(root.as_fd(), name("file-link"), Some(0o600)).is_err());
        assert!(open_file_at(root.as_fd(), name("new"), None).is_err());
        assert!(open_dir(&dir.path().join("real")).is_ok() && open_dir(&dir.path().join("dir-link")).is_err());
        make_dir_at(root.as_fd(), name("made"), 0o700).unwrap();
        let made = open_dir_at(root.as_fd(), name("made")).unwrap();
        assert!(open_file_at(made.as_fd(), name("new"), Some(0o600)).is_ok());
    }

    #[test]
    fn a_planted_link_or_fifo_is_neither_followed_nor_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let (victim, link, fifo) = (dir.path().join("victim"), dir.path().join("link"), dir.path().join("fifo"));
        std::fs::write(&victim, b"precious").unwrap();
        symlink(&victim, &link).unwrap();
        let name = CString::new(fifo.as_os_str().as_bytes()).unwrap();
        // SAFETY: `name` is NUL-terminated and outlives the call.
        check(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }).unwrap();
        let all = [File::options().read(true).clone(), File::options().write(true).create(true).clone()];
        for mut options in all.into_iter().chain([File::options().read(true).write(true).clone()]) {
            for path in [&link, &fifo] {
                let error = open_regular(path, &mut options).unwrap_err().to_string();
                assert!(error.starts_with("it is "), "{error}");
            }
            assert!(open_regular(&victim, &mut options).is_ok());
        }
        for path in [&link, &fifo, &dir.path().join("new")] {
            create_anew(path).unwrap().write_all_at(b"ours", 0).unwrap();
            assert_eq!(std::fs::read(path).unwrap(), b"ours");
            assert_eq!(path.symlink_metadata().unwrap().mode() & 0o777, 0o600);
        }
        assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
        assert!(create_anew(dir.path()).is_err());
    }
}
