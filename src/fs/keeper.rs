//! The keeper: a small process with the rights to mount, which attaches for one that has none, and takes the mount away
//! when that one ends, however it ends.
//!
//! Who serves a torrent talks to strangers, so a mount of the system's is served by a process without privileges. It
//! cannot attach a mount by itself, nor detach it at its end; killed, it would leave a dead mount behind. So it is split
//! off, and the process it came from stays as its keeper. The two have a socket:
//!
//! | the server asks | the keeper does, and answers with `+`, or with `-` and the reason |
//! |---|---|
//! | | says once, by itself, that the mount point can be used, and its path |
//! | `a` | attaches the mount; sends the descriptor after its `+` |
//! | `c` | checks that the mount answers, sets the kernel's read-ahead |
//! | `d` | detaches the mount |
//! | end of file | detaches what is still there, reaps the server, ends |
//!
//! A service manager can be the keeper, too: [`attach_for`] attaches for a process that has opened the device and waits.
//!
//! Invariants:
//! - The mount point and all options are the keeper's own, from before the split: the server chooses nothing.
//! - The keeper reads single bytes from the server, and nothing from the network or from any torrent.
//! - Until the mount answers it stays in the process group of whoever called, as the server does
//!   ([`fork`](super::daemon::fork)).
//! - It holds no descriptor of the FUSE device, else the kernel would wait for its answers when the server has died.

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
use super::unmount::UnmountError;
use crate::sys::privileges::{self, KILL, READ_SEARCH, SYS_ADMIN};
use crate::sys::process::Process;
use crate::sys::{mount, process};

/// How long the keeper may take for an answer: the waits within it are shorter.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// The longest text that an answer has.
const MAX_TEXT: usize = 64 * 1024;

/// Which of the two processes this is.
#[derive(Debug)]
pub enum Side {
    /// The one that keeps its rights.
    Keeper(Keeper),
    /// The one that is to serve; it still has to give its rights up.
    Server(Client),
}

/// Splits off the process that is to serve. On the conditions of [`fork`](super::daemon::fork).
pub fn split() -> io::Result<Side> {
    let (ours, theirs) = UnixStream::pair()?;
    Ok(match process::split()? {
        None => Side::Server(Client { socket: Mutex::new(theirs), path: OnceLock::new() }),
        Some(server) => Side::Keeper(Keeper { server, socket: ours }),
    })
}

/// The keeper's side.
#[derive(Debug)]
pub struct Keeper {
    server: process::Child,
    socket: UnixStream,
}

impl Keeper {
    /// Gives up what a keeper does not need, and checks the mount point. The server begins only after that.
    ///
    /// # Errors
    /// If the mount point cannot be used. Then the server hears nothing, and is to end.
    pub fn begin(self, mountpoint: &Path, options: MountOptions) -> Result<Keeping, MountError> {
        let fault = |source| MountError::Mount { path: mountpoint.to_owned(), source };
        privileges::empty_bounding_set().map_err(fault)?;
        // To mount; to reach the mount point whosever it is; to end the server, which is another user's.
        privileges::keep_capabilities(&[SYS_ADMIN, READ_SEARCH, KILL]).map_err(fault)?;
        let signals = process::block_signals().map_err(fault)?.into();
        let path = prepare(mountpoint)?;
        process::leave_terminal().and_then(|()| process::set_name(c"torrentfs-keep")).map_err(fault)?;
        Ok(Keeping { keeper: self, path, options, signals, attached: None })
    }
}

/// A keeper at work.
#[derive(Debug)]
pub struct Keeping {
    keeper: Keeper,
    path: PathBuf,
    options: MountOptions,
    /// SIGINT, SIGTERM and SIGHUP.
    signals: File,
    attached: Option<Attached>,
}

impl Keeping {
    /// Lets the server begin, and keeps its mount for as long as it lives; gives its exit code.
    pub fn keep(mut self) -> u8 {
        // A server that is gone already is noticed below.
        let _ = answer(&self.keeper.socket, Ok(self.path.as_os_str().as_bytes()));
        while self.serve().is_ok() {}
        if let Some(attached) = self.attached {
            // There is nobody left to tell.
            let _: Result<(), UnmountError> = attached.detach();
        }
        // The socket is at its end, so the server has ended, or is about to.
        match self.keeper.server.reap() {
            Ok(Ok(code)) => code,
            Ok(Err(signal)) => 128 + signal,
            Err(_) => 1,
        }
    }

    /// The server notices either way, says goodbye to its trackers, and ends.
    fn end(&self) -> io::Result<()> {
        let detached = self.attached.as_ref().is_some_and(|attached| attached.detach().is_ok());
        if detached { Ok(()) } else { self.keeper.server.terminate() }
    }

    /// Does one thing. An error is the end.
    fn serve(&mut self) -> io::Result<()> {
        let mut socket = &self.keeper.socket;
        let [told, asked] = process::readable([self.signals.as_fd(), socket.as_fd()])?;
        if told {
            // A `signalfd_siginfo`, which begins with the signal's number.
            let mut about = [0; 128];
            let _ = self.signals.read(&mut about)?;
            let [a, b, c, d, ..] = about;
            // A hangup is for the server, to read its blocklist again.
            if u32::from_ne_bytes([a, b, c, d]) != libc::SIGHUP as u32 {
                self.end()?;
            }
        }
        if !asked {
            return Ok(());
        }
        let mut question = [0];
        socket.read_exact(&mut question)?;
        let done = match (question[0], &self.attached) {
            (b'a', None) => match Attached::new(&self.path, &self.options) {
                Ok((attached, device)) => {
                    self.attached = Some(attached);
                    answer(socket, Ok(b""))?;
                    return mount::send_descriptor(socket, device.as_fd());
                }
                Err(error) => Err(error.to_string()),
            },
            (b'c', Some(attached)) => attached
                .check(&self.options)
                .map_err(|error| error.to_string())
                .and_then(|()| process::new_session().map_err(|error| error.to_string())),
            (b'd', Some(attached)) => attached.detach().map_err(|error| error.to_string()),
            _ => Err("that is no question to ask now".to_owned()),
        };
        answer(socket, done.as_ref().map(|()| &b""[..]).map_err(String::as_bytes))
    }
}

/// Attaches a mount for a process that has the FUSE device open and waits ([`Attacher::Other`](super::Attacher::Other));
/// returns once the mount answers. The mount is that process's user's.
pub fn attach_for(pid: u32, mountpoint: &Path, options: MountOptions) -> Result<(), MountError> {
    let fault = |source| MountError::Server { pid, source };
    let server = Process::open(pid).map_err(fault)?;
    let about = fs::metadata(format!("/proc/{pid}")).map_err(fault)?;
    let options = MountOptions { user: Some((about.uid(), about.gid())), ..options };
    let device = device_of(pid, &server).map_err(fault)?;
    let path = prepare(mountpoint)?;
    let attached = Attached::with(device, &path, &options)?;
    attached.check(&options).inspect_err(|_| {
        // The first fault is the one to tell.
        let _: Result<(), UnmountError> = attached.detach();
    })
}

/// The FUSE device of a process that has it open, and serves no mount by it yet.
fn device_of(pid: u32, server: &Process) -> io::Result<OwnedFd> {
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))?.flatten() {
        let is_device = fs::read_link(entry.path()).is_ok_and(|file| file == Path::new("/dev/fuse"));
        let number = entry.file_name().to_str().and_then(|name| name.parse().ok()).filter(|_| is_device);
        if let Some(number) = number {
            let device = process::descriptor_of(server, number)?;
            if process::is_in_error(device.as_fd())? {
                return Ok(device);
            }
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, "it does not wait for a mount"))
}

/// A sign, the length of the text, the text.
fn answer(mut socket: &UnixStream, result: Result<&[u8], &[u8]>) -> io::Result<()> {
    let (sign, text) = match result {
        Ok(text) => (b'+', text),
        Err(text) => (b'-', text),
    };
    let text = &text[..text.len().min(MAX_TEXT)];
    socket.write_all(&[sign])?;
    // Not above `MAX_TEXT`.
    socket.write_all(&(text.len() as u32).to_le_bytes())?;
    socket.write_all(text)
}

/// The server's side.
#[derive(Debug)]
pub struct Client {
    socket: Mutex<UnixStream>,
    path: OnceLock<PathBuf>,
}

impl Client {
    /// Waits until the keeper has checked the mount point. An error if that cannot be used: then the keeper has said why
    /// to whoever is to hear it.
    pub fn wait(&self) -> Result<(), MountError> {
        let path = self.with(heard)?;
        let _ = self.path.set(PathBuf::from(OsString::from_vec(path)));
        Ok(())
    }

    /// Has the mount attached; the descriptor through which the kernel asks. Once.
    pub(super) fn attach(&self) -> Result<OwnedFd, MountError> {
        self.with(|socket| {
            ask(socket, b'a')?;
            mount::receive_descriptor(socket).map_err(MountError::KeeperGone)
        })
    }

    /// The mount point, canonical.
    pub(super) fn path(&self) -> &Path {
        self.path.get().map_or(Path::new("/"), PathBuf::as_path)
    }

    /// As [`Attached::check`].
    pub(super) fn check(&self) -> Result<(), MountError> {
        self.with(|socket| ask(socket, b'c'))
    }

    /// As [`Attached::detach`].
    pub(super) fn detach(&self) -> Result<(), UnmountError> {
        let detached = self.with(|socket| ask(socket, b'd'));
        detached.map_err(|error| UnmountError::Detach { path: self.path().to_owned(), reason: error.to_string() })
    }

    /// One question at a time.
    fn with<T>(&self, talk: impl FnOnce(&UnixStream) -> Result<T, MountError>) -> Result<T, MountError> {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        socket.set_read_timeout(Some(ANSWER_LIMIT)).map_err(MountError::KeeperGone)?;
        talk(&socket)
    }
}

fn ask(mut socket: &UnixStream, question: u8) -> Result<(), MountError> {
    socket.write_all(&[question]).map_err(MountError::KeeperGone)?;
    heard(socket).map(drop)
}

fn heard(mut socket: &UnixStream) -> Result<Vec<u8>, MountError> {
    let mut head = [0; 5];
    socket.read_exact(&mut head).map_err(MountError::KeeperGone)?;
    let [sign, len @ ..] = head;
    let len = (u32::from_le_bytes(len) as usize).min(MAX_TEXT);
    let mut text = vec![0; len];
    socket.read_exact(&mut text).map_err(MountError::KeeperGone)?;
    if sign == b'+' { Ok(text) } else { Err(MountError::Kept(String::from_utf8_lossy(&text).into_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(socket: UnixStream) -> Client {
        Client { socket: Mutex::new(socket), path: OnceLock::new() }
    }

    #[test]
    fn answers_pass_the_socket() {
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
    fn a_keeper_that_is_gone_is_an_error() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let client = client(theirs);
        drop(ours);
        assert!(matches!(client.wait(), Err(MountError::KeeperGone(_))));
        assert!(client.attach().is_err() && client.check().is_err() && client.detach().is_err());
    }
}
