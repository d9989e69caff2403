//! Passing descriptors from one process to another, through a Unix socket.

#![allow(clippy::unnecessary_cast, reason = "the types of lengths differ from one C library to another")]

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use super::errno::check;

/// Largest number of descriptors in one message.
pub const MOST: usize = 2;

/// A buffer for the control message with the descriptors; `u64` gives the alignment that a `cmsghdr` needs.
type Control = [u64; 8];

/// Sends bytes, at least one, together with up to [`MOST`] descriptors (`SCM_RIGHTS`). These stay open in this process, too.
pub fn send(socket: &UnixStream, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    if bytes.is_empty() || descriptors.is_empty() || descriptors.len() > MOST {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut control: Control = [0; 8];
    let mut vector = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let len = mem::size_of_val(descriptors) as libc::c_uint;
    // SAFETY: `msghdr` is plain data for which all zeros is valid.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut vector;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    // SAFETY: the macro only calculates.
    message.msg_controllen = unsafe { libc::CMSG_SPACE(len) } as _;
    // SAFETY: the control buffer is aligned, and longer than `msg_controllen`, so the header and its data are within it.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(len) as _;
        let data = libc::CMSG_DATA(header).cast::<RawFd>();
        for (n, descriptor) in descriptors.iter().enumerate() {
            data.add(n).write_unaligned(descriptor.as_raw_fd());
        }
    }
    loop {
        // SAFETY: `message` points to one vector of readable bytes, which the call does not change, and to a control buffer of
        // the stated length; all outlive the call.
        match check(unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) }) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(sent) if sent as usize != bytes.len() => return Err(io::ErrorKind::WriteZero.into()),
            other => return other.map(drop),
        }
    }
}

/// Receives bytes up to the end of the first message that has descriptors, and these, which are closed on exec. Returns the number
/// of bytes: 0 if the other side has closed the socket.
///
/// Fails with `WouldBlock` after the socket's read time-out.
pub fn receive(socket: &UnixStream, bytes: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut control: Control = [0; 8];
    let mut vector = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: `msghdr` is plain data for which all zeros is valid.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut vector;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = mem::size_of_val(&control) as _;
    let received = loop {
        // SAFETY: `message` points to one vector of writable bytes and to a control buffer of the stated length, which outlive
        // the call.
        let result = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
        match check(result) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => break other?,
        }
    };
    let mut descriptors = Vec::new();
    // SAFETY: `recvmsg` filled `message` and its control buffer; the macro stays within `msg_controllen`.
    let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message).as_ref() };
    if let Some(header) = header.filter(|h| h.cmsg_level == libc::SOL_SOCKET && h.cmsg_type == libc::SCM_RIGHTS) {
        // SAFETY: the macro only calculates.
        let head = unsafe { libc::CMSG_LEN(0) } as usize;
        let count = (header.cmsg_len as usize).saturating_sub(head) / mem::size_of::<RawFd>();
        for n in 0..count {
            // SAFETY: the message carries `count` descriptors, possibly unaligned. The kernel just opened them for this process,
            // so nothing else owns them.
            descriptors
                .push(unsafe { OwnedFd::from_raw_fd(libc::CMSG_DATA(header).cast::<RawFd>().add(n).read_unaligned()) });
        }
    }
    Ok((usize::try_from(received).unwrap_or(0), descriptors))
}

/// Sends one descriptor with one byte.
pub fn send_one(socket: &UnixStream, descriptor: BorrowedFd<'_>) -> io::Result<()> {
    send(socket, &[0], &[descriptor])
}

/// Receives one descriptor that came with one byte. Fails with `UnexpectedEof` if the other side closes first.
pub fn receive_one(socket: &UnixStream) -> io::Result<OwnedFd> {
    let (received, descriptors) = receive(socket, &mut [0])?;
    descriptors.into_iter().next().ok_or_else(|| {
        let kind = if received == 0 { io::ErrorKind::UnexpectedEof } else { io::ErrorKind::InvalidData };
        io::Error::new(kind, "the other process sent no descriptor")
    })
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_peer_that_sends_no_descriptor_is_an_error() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (&theirs).write_all(b"x").unwrap();
        assert_eq!(receive_one(&ours).unwrap_err().kind(), io::ErrorKind::InvalidData);
        drop(theirs);
        assert_eq!(receive_one(&ours).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_descriptor_arrives() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut read, write) = io::pipe().unwrap();
        send_one(&theirs, write.as_fd()).unwrap();
        drop(write);
        let arrived = File::from(receive_one(&ours).unwrap());
        (&arrived).write_all(b"through").unwrap();
        drop(arrived);
        let mut text = String::new();
        read.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
        drop(ours);
        assert!(send_one(&theirs, theirs.as_fd()).is_err());
    }

    #[test]
    fn descriptors_arrive_with_the_bytes_of_their_message() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (read, write) = io::pipe().unwrap();
        let mut bytes = [0; 5];
        let mut next = || {
            let (len, descriptors) = receive(&ours, &mut bytes).unwrap();
            (bytes[..len].to_owned(), descriptors)
        };
        (&theirs).write_all(b"1").unwrap();
        let (first, none) = next();
        assert_eq!((first.as_slice(), none.len()), (&b"1"[..], 0));
        send(&theirs, b"two", &[write.as_fd(), read.as_fd()]).unwrap();
        send(&theirs, b"three", &[read.as_fd()]).unwrap();
        let (second, pipe) = next();
        assert_eq!((second.as_slice(), pipe.len()), (&b"two"[..], 2));
        let [write, read]: [File; 2] = pipe.into_iter().map(File::from).collect::<Vec<_>>().try_into().unwrap();
        (&write).write_all(b"x").unwrap();
        assert_eq!((&read).read(&mut [0; 8]).unwrap(), 1);
        let (third, pipe) = next();
        assert_eq!((third.as_slice(), pipe.len()), (&b"three"[..], 1));
        assert!(send(&theirs, b"", &[write.as_fd()]).is_err() && send(&theirs, b"x", &[write.as_fd(); 3]).is_err());
    }
}
