//! The keeper: a small privileged process that mounts and unmounts for the unprivileged process that serves.
//!
//! The server talks to strangers, so a system mount is served without privileges. Such a process can neither attach its
//! mount nor detach it, and would leave a dead mount behind if it were killed. So the command splits in two: the child
//! becomes the server, the parent stays as its keeper. A socket pair connects them:
//!
//! | the server sends | the keeper does this, then answers `+`, or `-` and an error message |
//! |---|---|
//! | nothing | at the start: checks the mount point, and answers with its path |
//! | `a` | attaches the mount; sends the descriptor after the `+` |
//! | `o`, with the FUSE device and a file | registers the file, so that the kernel reads it itself; answers with its number or an `errno` |
//! | `x` and a number, with the FUSE device | removes the file of that number |
//! | `c` | checks that the mount answers, sets the kernel's read-ahead |
//! | `d` | detaches the mount |
//! | end of file | detaches the mount if it is still there, reaps the server, ends |
//!
//! When the mount has left the list of mounts, the keeper ends the server with SIGTERM.
//!
//! A service manager can take the part of the keeper: [`attach_for`] attaches for a process that has opened the device
//! and waits.
//!
//! Invariants:
//! - The keeper takes the mount point and all options from before the split: the server cannot choose them.
//! - The keeper reads a few bytes from the server, and nothing from the network or from a torrent.
//! - The keeper gives the server no access that it lacks: it registers only files that the server owns and has opened for
//!   reading, and only for the mount of this server. (The kernel would take a descriptor that may not be read, too.)
//! - Until the mount answers, keeper and server stay in the process group of the caller
//!   ([`fork`](super::daemon::fork)).
//! - The keeper holds no descriptor of the FUSE device beyond a request: otherwise the kernel would wait for it after the server died.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use super::attach::{Attached, MountError, MountOptions, device_number, prepare};
use super::mountinfo::MountTable;
use super::unmount::UnmountError;
use crate::sys::privileges::{self, KILL, READ_SEARCH, SYS_ADMIN};
use crate::sys::process::{Awaited, Process};
use crate::sys::{descriptors, file, passthrough, process};

/// Time limit for an answer of the keeper; longer than all the waits that it consists of.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// Length of the longest request in bytes: its letter and a number.
const REQUEST_LEN: usize = 5;
/// Maximum length of the text of an answer, in bytes: room for any path or message.
const MAX_TEXT: usize = 64 * 1024;

/// The role of this process after the split.
#[derive(Debug)]
pub enum Role {
    /// The parent, which keeps its privileges.
    Keeper(Keeper),
    /// The child, which will serve; it must still drop its privileges.
    Server(KeeperClient),
}

/// Splits this process into a keeper and a server. The conditions of [`fork`](super::daemon::fork) apply.
pub fn split() -> io::Result<Role> {
    let (ours, theirs) = UnixStream::pair()?;
    Ok(match process::fork_child()? {
        None => Role::Server(KeeperClient { socket: Mutex::new(theirs), path: OnceLock::new() }),
        Some(server) => Role::Keeper(Keeper { server, socket: ours }),
    })
}

/// The keeper before it has checked the mount point.
#[derive(Debug)]
pub struct Keeper {
    server: process::Child,
    socket: UnixStream,
}

impl Keeper {
    /// Drops the privileges that a keeper does not need, and checks the mount point. The server waits for this.
    ///
    /// # Errors
    /// If the mount point cannot be used. The server then gets the end of the file and must end.
    pub fn prepare(self, mountpoint: &Path, options: MountOptions) -> Result<RunningKeeper, MountError> {
        let to_error = |source| MountError::Mount { path: mountpoint.to_owned(), source };
        privileges::clear_bounding_set().map_err(to_error)?;
        // To mount; to reach a mount point of any user; to send SIGTERM to the server, which is another user's process.
        privileges::keep_capabilities(&[SYS_ADMIN, READ_SEARCH, KILL]).map_err(to_error)?;
        let signals = process::block_signals().map_err(to_error)?.into();
        let path = prepare(mountpoint)?;
        process::detach_from_terminal().and_then(|()| process::set_name(c"torrentfs-keep")).map_err(to_error)?;
        Ok(RunningKeeper { keeper: self, path, options, signals, attached: None })
    }
}

/// A keeper that is ready to mount for its server.
#[derive(Debug)]
pub struct RunningKeeper {
    keeper: Keeper,
    path: PathBuf,
    options: MountOptions,
    /// A signalfd of SIGINT, SIGTERM and SIGHUP.
    signals: File,
    /// The mount, and the list of mounts that it is in.
    attached: Option<(Attached, MountTable)>,
}

impl RunningKeeper {
    /// Lets the server start, handles its requests until it ends, and returns its exit code.
    pub fn run(mut self) -> u8 {
        // A server that has ended already is noticed below.
        let _ = answer(&self.keeper.socket, Ok(self.path.as_os_str().as_bytes()));
        while self.handle_next().is_ok() {}
        if let Some((attached, _)) = self.attached {
            // No process is left to report an error to.
            let _: Result<(), UnmountError> = attached.detach();
        }
        // The socket is at its end, so the server has ended or is about to.
        match self.keeper.server.reap() {
            Ok(Ok(code)) => code,
            Ok(Err(signal)) => 128 + signal,
            Err(_) => 1,
        }
    }

    /// Makes the server end: detaches its mount, and sends it SIGTERM. It still contacts its trackers.
    fn end_server(&self) -> io::Result<()> {
        if let Some((attached, _)) = &self.attached {
            // An error changes nothing: the server asks for this once more.
            let _: Result<(), UnmountError> = attached.detach();
        }
        self.keeper.server.terminate()
    }

    /// Attaches the mount. Also returns the list that it is in, and the descriptor of the FUSE device.
    fn attach(&self) -> Result<(Attached, MountTable, OwnedFd), MountError> {
        // Opened before, so that no change is missed.
        let table = MountTable::open().map_err(|source| MountError::Mount { path: self.path.clone(), source })?;
        let (attached, device) = Attached::new(&self.path, &self.options)?;
        Ok((attached, table, device))
    }

    /// Waits for a signal, a request, or the end of the mount, and handles it. An error means that the server has ended.
    fn handle_next(&mut self) -> io::Result<()> {
        let socket = &self.keeper.socket;
        let events = [Awaited::Readable(self.signals.as_fd()), Awaited::Readable(socket.as_fd())];
        let (has_signal, has_request) = match &self.attached {
            Some((attached, table)) => {
                let [has_signal, has_request, has_change] =
                    process::poll([events[0], events[1], Awaited::Changed(table.as_fd())])?;
                // After `umount -l` the kernel keeps the connection while files are open.
                if has_change && !table.contains(attached.device())? {
                    self.end_server()?;
                }
                (has_signal, has_request)
            }
            None => process::poll(events).map(|[has_signal, has_request]| (has_signal, has_request))?,
        };
        if has_signal {
            // A `signalfd_siginfo`, which starts with the signal number.
            let mut info = [0; 128];
            let _ = self.signals.read(&mut info)?;
            let [a, b, c, d, ..] = info;
            // SIGHUP is meant for the server, which reads its blocklist again.
            if u32::from_ne_bytes([a, b, c, d]) != libc::SIGHUP as u32 {
                self.end_server()?;
            }
        }
        if !has_request {
            return Ok(());
        }
        let mut request = [0; REQUEST_LEN];
        let (len, passed) = descriptors::receive(socket, &mut request)?;
        let result = match (&request[..len], &self.attached) {
            ([], _) => return Err(io::ErrorKind::UnexpectedEof.into()),
            (b"a", None) => match self.attach() {
                Ok((attached, table, device)) => {
                    self.attached = Some((attached, table));
                    answer(socket, Ok(b""))?;
                    return descriptors::send_one(socket, device.as_fd());
                }
                Err(error) => Err(error.to_string()),
            },
            (b"c", Some((attached, _))) => attached
                .check(&self.options)
                .map_err(|error| error.to_string())
                .and_then(|()| process::new_session().map_err(|error| error.to_string())),
            (b"d", Some((attached, _))) => attached.detach().map_err(|error| error.to_string()),
            (b"o", Some((attached, _))) => {
                let registered = self.register(attached, passed);
                // Numbers of files are positive.
                let number = registered.unwrap_or_else(|error| -error.raw_os_error().unwrap_or(libc::EINVAL));
                return answer(socket, Ok(&number.to_le_bytes()));
            }
            ([b'x', id @ ..], Some((attached, _))) => {
                unregister(attached, id, passed).map_err(|error| error.to_string())
            }
            _ => Err("the keeper got an invalid request".to_owned()),
        };
        answer(socket, result.as_ref().map(|()| &b""[..]).map_err(String::as_bytes))
    }

    /// Registers a file for the kernel to read, given the FUSE device and the file.
    fn register(&self, attached: &Attached, passed: Vec<OwnedFd>) -> io::Result<i32> {
        let refused = |errno| Err(io::Error::from_raw_os_error(errno));
        if !self.options.passthrough {
            return refused(libc::EPERM);
        }
        let Ok([device, opened]) = <[OwnedFd; 2]>::try_from(passed) else { return refused(libc::EINVAL) };
        let opened = File::from(opened);
        let server = self.options.user.map_or_else(process::user, |(user, _)| user);
        if device_number(&device) != Some(attached.device()) {
            return refused(libc::EINVAL);
        }
        check_file(&opened, server)?;
        let id = passthrough::register(device.as_fd(), opened.as_fd())?;
        i32::try_from(id).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
    }
}

/// Fails unless a file is one that the server has itself opened for reading: the kernel will open it again for each reader, with our
/// credentials, whatever the descriptor is for.
fn check_file(opened: &File, server: u32) -> io::Result<()> {
    let about = opened.metadata()?;
    let own = about.is_file() && about.uid() == server && file::is_readable(opened)?;
    // There our credentials may be worth less than those of the server.
    if own && !file::is_on_guarded_filesystem(opened)? {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::EACCES))
    }
}

/// Removes a file that was registered, given its number and the FUSE device.
fn unregister(attached: &Attached, id: &[u8], passed: Vec<OwnedFd>) -> io::Result<()> {
    let id = id.try_into().map(u32::from_le_bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
    match passed.as_slice() {
        [device] if device_number(device) == Some(attached.device()) => passthrough::unregister(device.as_fd(), id),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// Attaches a mount for a process that has the FUSE device open and waits
/// ([`Attacher::External`](super::Attacher::External)), and returns once the mount answers. The mount belongs to the
/// user of that process.
pub fn attach_for(pid: u32, mountpoint: &Path, options: MountOptions) -> Result<(), MountError> {
    let to_error = |source| MountError::Server { pid, source };
    let server = Process::open(pid).map_err(to_error)?;
    let metadata = fs::metadata(format!("/proc/{pid}")).map_err(to_error)?;
    let options = MountOptions { user: Some((metadata.uid(), metadata.gid())), ..options };
    let device = device_of(pid, &server).map_err(to_error)?;
    let path = prepare(mountpoint)?;
    let attached = Attached::with(device, &path, &options)?;
    attached.check(&options).inspect_err(|_| {
        // The first error is the one to report.
        let _: Result<(), UnmountError> = attached.detach();
    })
}

/// Duplicates the FUSE device of a process that has it open and serves no mount with it yet.
fn device_of(pid: u32, server: &Process) -> io::Result<OwnedFd> {
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))?.flatten() {
        let is_device = fs::read_link(entry.path()).is_ok_and(|file| file == Path::new("/dev/fuse"));
        let number = entry.file_name().to_str().and_then(|name| name.parse().ok()).filter(|_| is_device);
        if let Some(number) = number {
            let device = process::descriptor_of(server, number)?;
            if process::has_poll_error(device.as_fd())? {
                return Ok(device);
            }
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, "the process does not wait for a mount"))
}

/// Sends an answer: a sign, the length of the text (`u32`, little-endian), the text.
fn answer(mut socket: &UnixStream, result: Result<&[u8], &[u8]>) -> io::Result<()> {
    let (sign, text) = match result {
        Ok(text) => (b'+', text),
        Err(text) => (b'-', text),
    };
    let text = &text[..text.len().min(MAX_TEXT)];
    socket.write_all(&[sign])?;
    // Cannot truncate: the length is at most `MAX_TEXT`.
    socket.write_all(&(text.len() as u32).to_le_bytes())?;
    socket.write_all(text)
}

/// The server's connection to its keeper.
#[derive(Debug)]
pub struct KeeperClient {
    socket: Mutex<UnixStream>,
    path: OnceLock<PathBuf>,
}

impl KeeperClient {
    /// Waits until the keeper has checked the mount point.
    ///
    /// # Errors
    /// If the mount point cannot be used. The keeper has reported why.
    pub fn wait(&self) -> Result<(), MountError> {
        let path = self.with_socket(receive)?;
        let _ = self.path.set(PathBuf::from(OsString::from_vec(path)));
        Ok(())
    }

    /// Makes the keeper attach the mount, and returns the descriptor of the FUSE device. Works once.
    pub(super) fn attach(&self) -> Result<OwnedFd, MountError> {
        self.with_socket(|socket| {
            request(socket, b'a')?;
            descriptors::receive_one(socket).map_err(MountError::KeeperGone)
        })
    }

    /// Returns the mount point, canonical.
    pub(super) fn path(&self) -> &Path {
        self.path.get().map_or(Path::new("/"), PathBuf::as_path)
    }

    /// Makes the keeper check the mount, as [`Attached::check`] does.
    pub(super) fn check(&self) -> Result<(), MountError> {
        self.with_socket(|socket| request(socket, b'c'))
    }

    /// Makes the keeper detach the mount, as [`Attached::detach`] does.
    pub(super) fn detach(&self) -> Result<(), UnmountError> {
        let detached = self.with_socket(|socket| request(socket, b'd'));
        detached.map_err(|error| UnmountError::Detach { path: self.path().to_owned(), reason: error.to_string() })
    }

    /// Makes the keeper register a file, so that the kernel reads it itself. Returns its number.
    pub(super) fn register(&self, device: BorrowedFd<'_>, file: BorrowedFd<'_>) -> io::Result<u32> {
        let number = self.with_socket(|socket| {
            descriptors::send(socket, b"o", &[device, file]).map_err(MountError::KeeperGone)?;
            receive(socket)
        });
        // A keeper that has ended, or that refuses the request, will register no other file, either.
        let number = number.ok().and_then(|number| number.try_into().ok()).map_or(-libc::EPERM, i32::from_le_bytes);
        u32::try_from(number).map_err(|_| io::Error::from_raw_os_error(number.saturating_neg()))
    }

    /// Makes the keeper remove a file that it has registered.
    pub(super) fn unregister(&self, device: BorrowedFd<'_>, id: u32) -> Result<(), MountError> {
        let [a, b, c, d] = id.to_le_bytes();
        self.with_socket(|socket| {
            descriptors::send(socket, &[b'x', a, b, c, d], &[device]).map_err(MountError::KeeperGone)?;
            receive(socket).map(drop)
        })
    }

    /// Locks the socket, so that there is one request at a time.
    fn with_socket<T>(&self, talk: impl FnOnce(&UnixStream) -> Result<T, MountError>) -> Result<T, MountError> {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        socket.set_read_timeout(Some(ANSWER_LIMIT)).map_err(MountError::KeeperGone)?;
        talk(&socket)
    }
}

/// Sends a request and waits for its answer.
fn request(mut socket: &UnixStream, request: u8) -> Result<(), MountError> {
    socket.write_all(&[request]).map_err(MountError::KeeperGone)?;
    receive(socket).map(drop)
}

/// Waits for an answer, and returns its text.
fn receive(mut socket: &UnixStream) -> Result<Vec<u8>, MountError> {
    let mut head = [0; 5];
    socket.read_exact(&mut head).map_err(MountError::KeeperGone)?;
    let [sign, len @ ..] = head;
    let len = (u32::from_le_bytes(len) as usize).min(MAX_TEXT);
    let mut text = vec![0; len];
    socket.read_exact(&mut text).map_err(MountError::KeeperGone)?;
    if sign == b'+' { Ok(text) } else { Err(MountError::Keeper(String::from_utf8_lossy(&text).into_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(socket: UnixStream) -> KeeperClient {
        KeeperClient { socket: Mutex::new(socket), path: OnceLock::new() }
    }

    #[test]
    fn answers_arrive_through_the_socket() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let client = client(theirs);
        answer(&ours, Ok(b"/mnt/\xff")).unwrap();
        client.wait().unwrap();
        assert_eq!(client.path().as_os_str().as_bytes(), b"/mnt/\xff");
        answer(&ours, Err(b"it is taken")).unwrap();
        assert_eq!(client.attach().unwrap_err().to_string(), "it is taken");
        answer(&ours, Ok(b"")).unwrap();
        descriptors::send_one(&ours, ours.as_fd()).unwrap();
        client.attach().unwrap();
        let file = tempfile::tempfile().unwrap();
        for (number, expected) in [(7, Ok(7)), (-libc::EACCES, Err(libc::EACCES)), (i32::MIN, Err(i32::MAX))] {
            answer(&ours, Ok(&number.to_le_bytes())).unwrap();
            let registered = client.register(file.as_fd(), file.as_fd());
            assert_eq!(registered.map_err(|error| error.raw_os_error().unwrap()), expected);
        }
        answer(&ours, Err(b"no")).unwrap();
        assert_eq!(client.register(file.as_fd(), file.as_fd()).unwrap_err().raw_os_error(), Some(libc::EPERM));
        answer(&ours, Err(&vec![b'x'; 2 * MAX_TEXT])).unwrap();
        assert_eq!(client.detach().unwrap_err().to_string().len(), "cannot unmount /mnt/\u{fffd}: ".len() + MAX_TEXT);
    }

    #[test]
    fn a_keeper_that_has_ended_is_an_error() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let client = client(theirs);
        drop(ours);
        assert!(matches!(client.wait(), Err(MountError::KeeperGone(_))));
        assert!(client.attach().is_err() && client.check().is_err() && client.detach().is_err());
        let file = tempfile::tempfile().unwrap();
        assert!(client.register(file.as_fd(), file.as_fd()).is_err() && client.unregister(file.as_fd(), 1).is_err());
    }

    #[test]
    fn only_files_that_the_server_may_read_are_registered() {
        use std::os::unix::fs::OpenOptionsExt;

        let file = tempfile::NamedTempFile::new().unwrap();
        let me = process::user();
        let check =
            |options: &mut fs::OpenOptions, server| check_file(&options.open(file.path()).unwrap(), server).is_ok();
        assert!(check(File::options().read(true), me) && check(File::options().read(true).write(true), me));
        // With O_PATH a server could open files that it may not read.
        assert!(!check(File::options().read(true).custom_flags(libc::O_PATH), me));
        assert!(!check(File::options().write(true), me) && !check(File::options().read(true), me + 1));
        for other in ["/", "/dev/null"] {
            assert!(check_file(&File::open(other).unwrap(), me).is_err(), "{other}");
        }
    }
}
