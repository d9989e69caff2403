//! Datagrams many at a time, each answered from the very address that it was sent to.
//!
//! A host may have many addresses; a socket bound to all of them would answer from the one that the route prefers, and
//! who asked at another takes the answer for a stranger's.

#![allow(clippy::unnecessary_cast, reason = "the types of lengths differ from one C library to another")]

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::AsRawFd;
use std::{array, mem, ptr};

use super::process::check;

/// Datagrams in one call.
pub const BATCH: usize = 32;
/// More than one control message of either family takes.
const CONTROL: usize = 64;

/// Control messages must be aligned as their header is.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
struct Control([u8; CONTROL]);

struct Slot {
    bytes: Box<[u8]>,
    len: usize,
    peer: libc::sockaddr_storage,
    peer_len: libc::socklen_t,
    control: Control,
    control_len: usize,
    reply: Vec<u8>,
}

/// Room for some datagrams and the replies to them.
pub struct Batch {
    slots: [Slot; BATCH],
    received: usize,
}

/// Has the kernel tell of each datagram to which of our addresses it came. Before the first [`Batch::receive`].
pub fn tell_destination(socket: &UdpSocket) -> io::Result<()> {
    let (level, name) = if socket.local_addr()?.is_ipv4() {
        (libc::IPPROTO_IP, libc::IP_PKTINFO)
    } else {
        (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO)
    };
    let on: libc::c_int = 1;
    let len = mem::size_of_val(&on) as libc::socklen_t;
    // SAFETY: the value is an integer of the length given, and outlives the call.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const on).cast(), len) }).map(drop)
}

impl Batch {
    /// For datagrams of up to `longest` bytes; of longer ones the end is lost.
    pub fn new(longest: usize) -> Self {
        let slot = |_| Slot {
            bytes: vec![0; longest].into(),
            len: 0,
            // SAFETY: all-zero bytes are a valid `sockaddr_storage`, which holds integers only.
            peer: unsafe { mem::zeroed() },
            peer_len: 0,
            control: Control([0; CONTROL]),
            control_len: 0,
            reply: Vec::new(),
        };
        Self { slots: array::from_fn(slot), received: 0 }
    }

    /// `recvmmsg(2)`: waits for one, takes what else is there, and says how many there are.
    pub fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        self.received = 0;
        let mut parts: [libc::iovec; BATCH] = array::from_fn(|nth| {
            let bytes = &mut self.slots[nth].bytes;
            libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }
        });
        let mut messages: [libc::mmsghdr; BATCH] = array::from_fn(|nth| {
            let slot = &mut self.slots[nth];
            let mut message = empty();
            message.msg_hdr.msg_name = (&raw mut slot.peer).cast();
            message.msg_hdr.msg_namelen = mem::size_of_val(&slot.peer) as libc::socklen_t;
            message.msg_hdr.msg_iov = &raw mut parts[nth];
            message.msg_hdr.msg_iovlen = 1;
            message.msg_hdr.msg_control = slot.control.0.as_mut_ptr().cast();
            message.msg_hdr.msg_controllen = CONTROL as _;
            message
        });
        // SAFETY: each message describes buffers of its own slot (address, bytes, control) with their lengths; slots and
        // `parts` outlive the call, and nothing else refers to them meanwhile. No time-out is passed.
        let count = check(unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                messages.as_mut_ptr(),
                BATCH as libc::c_uint,
                libc::MSG_WAITFORONE as _,
                ptr::null_mut(),
            )
        })?;
        self.received = usize::try_from(count).unwrap_or(0).min(BATCH);
        for (slot, message) in self.slots.iter_mut().zip(&messages).take(self.received) {
            slot.len = (message.msg_len as usize).min(slot.bytes.len());
            slot.peer_len = message.msg_hdr.msg_namelen;
            slot.control_len = (message.msg_hdr.msg_controllen as usize).min(CONTROL);
            slot.reply.clear();
            by_any_interface(&message.msg_hdr);
        }
        Ok(self.received)
    }

    /// The datagrams received: bytes, sender, and where the reply goes, which is empty at first. Those of a sender that
    /// is no address are left out.
    pub fn iter(&mut self) -> impl Iterator<Item = (&[u8], SocketAddr, &mut Vec<u8>)> {
        self.slots[..self.received].iter_mut().filter_map(|slot| {
            let from = address(&slot.peer, slot.peer_len)?;
            Some((&slot.bytes[..slot.len], from, &mut slot.reply))
        })
    }

    /// `sendmmsg(2)`: sends the replies that are not empty, and forgets them. What cannot be sent is lost, as datagrams
    /// are.
    pub fn reply(&mut self, socket: &UdpSocket) {
        // SAFETY: all-zero bytes are a valid `iovec`: null and zero.
        let mut parts: [libc::iovec; BATCH] = unsafe { mem::zeroed() };
        let mut messages: [libc::mmsghdr; BATCH] = array::from_fn(|_| empty());
        let answered = self.slots[..self.received].iter_mut().filter(|slot| !slot.reply.is_empty());
        let mut count = 0;
        for (slot, (part, message)) in answered.zip(parts.iter_mut().zip(&mut messages)) {
            *part = libc::iovec { iov_base: slot.reply.as_mut_ptr().cast(), iov_len: slot.reply.len() };
            message.msg_hdr.msg_name = (&raw mut slot.peer).cast();
            message.msg_hdr.msg_namelen = slot.peer_len;
            message.msg_hdr.msg_iov = part;
            message.msg_hdr.msg_iovlen = 1;
            if slot.control_len > 0 {
                message.msg_hdr.msg_control = slot.control.0.as_mut_ptr().cast();
                message.msg_hdr.msg_controllen = slot.control_len as _;
            }
            count += 1;
        }
        let mut rest = &mut messages[..count];
        while !rest.is_empty() {
            // SAFETY: each message describes buffers of its own slot with their lengths; slots and `parts` outlive the
            // call, which only reads them.
            let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), rest.as_mut_ptr(), rest.len() as libc::c_uint, 0) };
            // At an error it is the first that could not be sent.
            let sent = usize::try_from(sent).unwrap_or(0).clamp(1, rest.len());
            rest = &mut rest[sent..];
        }
        self.received = 0;
    }
}

fn empty() -> libc::mmsghdr {
    // SAFETY: all-zero bytes are a valid `mmsghdr`: null pointers and zeros.
    unsafe { mem::zeroed() }
}

/// What came with a datagram goes back with its reply, and so names the address to send from. Not so the interface: the
/// way back may be another. (A link-local address means nothing without its interface.)
fn by_any_interface(message: &libc::msghdr) {
    // SAFETY: the kernel has filled the control buffer as `message` says; the macros stay within it.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(message) };
    // SAFETY: `header` is null or one in the control buffer; so is the next.
    while let Some(control) = unsafe { header.as_ref() } {
        // SAFETY: the data follows its header.
        let data = unsafe { libc::CMSG_DATA(header) };
        let len = control.cmsg_len as usize;
        match (control.cmsg_level, control.cmsg_type) {
            (libc::IPPROTO_IP, libc::IP_PKTINFO) if len >= mem::size_of::<libc::in_pktinfo>() => {
                let info = data.cast::<libc::in_pktinfo>();
                // SAFETY: it is of this type (level and type) and whole (length); it may not be aligned.
                unsafe {
                    let mut read = info.read_unaligned();
                    read.ipi_ifindex = 0;
                    info.write_unaligned(read);
                }
            }
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) if len >= mem::size_of::<libc::in6_pktinfo>() => {
                let info = data.cast::<libc::in6_pktinfo>();
                // SAFETY: as above.
                unsafe {
                    let mut read = info.read_unaligned();
                    if !Ipv6Addr::from(read.ipi6_addr.s6_addr).is_unicast_link_local() {
                        read.ipi6_ifindex = 0;
                        info.write_unaligned(read);
                    }
                }
            }
            _ => {}
        }
        // SAFETY: as for the first.
        header = unsafe { libc::CMSG_NXTHDR(message, header) };
    }
}

fn address(storage: &libc::sockaddr_storage, len: libc::socklen_t) -> Option<SocketAddr> {
    let len = len as usize;
    match libc::c_int::from(storage.ss_family) {
        libc::AF_INET if len >= mem::size_of::<libc::sockaddr_in>() => {
            // SAFETY: the family says that it is one, and it was filled; the storage has room and alignment for any.
            let addr = unsafe { &*ptr::from_ref(storage).cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(u32::from_be(addr.sin_addr.s_addr));
            Some((ip, u16::from_be(addr.sin_port)).into())
        }
        libc::AF_INET6 if len >= mem::size_of::<libc::sockaddr_in6>() => {
            // SAFETY: as above.
            let addr = unsafe { &*ptr::from_ref(storage).cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(addr.sin6_addr.s6_addr);
            Some(SocketAddrV6::new(ip, u16::from_be(addr.sin6_port), addr.sin6_flowinfo, addr.sin6_scope_id).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// A socket on every address of a family, and where one of them is.
    fn everywhere(bind: &str, at: &str) -> Option<(UdpSocket, SocketAddr)> {
        let socket = UdpSocket::bind((bind, 0)).ok()?;
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        tell_destination(&socket).unwrap();
        let port = socket.local_addr().unwrap().port();
        Some((socket, SocketAddr::new(at.parse().unwrap(), port)))
    }

    #[test]
    fn replies_come_from_where_it_was_asked() {
        for (bind, at, from) in [("0.0.0.0", "127.0.0.7", "127.0.0.9"), ("::", "::1", "::1")] {
            let Some((socket, at)) = everywhere(bind, at) else {
                eprintln!("left out: no {bind} on this machine");
                continue;
            };
            let asker = UdpSocket::bind((from, 0)).unwrap();
            asker.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            // So it hears only from there.
            asker.connect(at).unwrap();
            let mut batch = Batch::new(4);
            let mut heard = 0;
            for n in 0..100u8 {
                asker.send(&vec![n; usize::from(n % 6)]).unwrap();
            }
            while heard < 100 {
                let count = batch.receive(&socket).unwrap();
                for (bytes, sender, reply) in batch.iter() {
                    assert_eq!(sender, asker.local_addr().unwrap());
                    assert!(bytes.len() <= 4 && reply.is_empty());
                    // Every other one is answered.
                    if bytes.len() % 2 == 1 {
                        reply.extend_from_slice(bytes);
                    }
                }
                batch.reply(&socket);
                heard += count;
            }
            let mut got = [0; 8];
            for n in (0..100u8).filter(|n| (n % 6).min(4) % 2 == 1) {
                let len = asker.recv(&mut got).unwrap();
                assert_eq!(got[..len], vec![n; usize::from(n % 6).min(4)]);
            }
        }
    }

    #[test]
    fn a_wait_ends() {
        let socket = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        let mut batch = Batch::new(8);
        assert_eq!(batch.receive(&socket).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(batch.iter().count(), 0);
    }
}
