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
//! - The keeper reads single bytes from the server, and nothing from the network or from a torrent.
//! - Until the mount answers, keeper and server stay in the process group of the caller
//!   ([`fork`](super::daemon::fork)).
//! - The keeper holds no descriptor of the FUSE device: otherwise the kernel would wait for it after the server died.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use super::attach::{Attached, MountError, MountOptions, prepare};
use super::mountinfo::MountTable;
use super::unmount::UnmountError;
use crate::sys::privileges::{self, KILL, READ_SEARCH, SYS_ADMIN};
use crate::sys::process::{Awaited, Process};
use crate::sys::{mount, process};

/// Time limit for an answer of the keeper; longer than all the waits that it consists of.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
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
        let mut socket = &self.keeper.socket;
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
        let mut request = [0];
        socket.read_exact(&mut request)?;
        let result = match (request[0], &self.attached) {
            (b'a', None) => match self.attach() {
                Ok((attached, table, device)) => {
                    self.attached = Some((attached, table));
                    answer(socket, Ok(b""))?;
                    return mount::send_descriptor(socket, device.as_fd());
                }
                Err(error) => Err(error.to_string()),
            },
            (b'c', Some((attached, _))) => attached
                .check(&self.options)
                .map_err(|error| error.to_string())
                .and_then(|()| process::new_session().map_err(|error| error.to_string())),
            (b'd', Some((attached, _))) => attached.detach().map_err(|error| error.to_string()),
            _ => Err("the keeper got an invalid request".to_owned()),
        };
        answer(socket, result.as_ref().map(|()| &b""[..]).map_err(String::as_bytes))
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
            mount::receive_descriptor(socket).map_err(MountError::KeeperGone)
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
        mount::send_descriptor(&ours, ours.as_fd()).unwrap();
        client.attach().unwrap();
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
    }
}
