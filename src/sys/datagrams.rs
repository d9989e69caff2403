//! Batches of datagrams, each answered from the address that it was sent to.
//!
//! A host may have several addresses. A socket bound to all of them would answer from the address that the route prefers,
//! and a client that asked at another one would discard the answer.

#![allow(clippy::unnecessary_cast, reason = "the types of lengths differ from one C library to another")]

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::AsRawFd;
use std::{array, mem, ptr};

use super::errno::check;

/// Largest number of datagrams in one system call.
pub const BATCH: usize = 32;
/// Length of a control buffer in bytes: one packet-info message of either address family fits.
const CONTROL: usize = 64;

/// A buffer for control messages, aligned as `cmsghdr` requires.
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

/// Buffers for a batch of datagrams and the replies to them.
pub struct Batch {
    slots: [Slot; BATCH],
    received: usize,
}

/// Makes the kernel report the destination address of each datagram (`IP_PKTINFO`). Call it before [`Batch::receive`].
pub fn enable_packet_info(socket: &UdpSocket) -> io::Result<()> {
    let (level, name) = if socket.local_addr()?.is_ipv4() {
        (libc::IPPROTO_IP, libc::IP_PKTINFO)
    } else {
        (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO)
    };
    let on: libc::c_int = 1;
    let len = mem::size_of_val(&on) as libc::socklen_t;
    // SAFETY: the value is an integer of length `len` that outlives the call.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const on).cast(), len) }).map(drop)
}

impl Batch {
    /// Allocates buffers for datagrams of up to `longest` bytes; longer ones are truncated.
    pub fn new(longest: usize) -> Self {
        let slot = |_| Slot {
            bytes: vec![0; longest].into(),
            len: 0,
            // SAFETY: all-zero bytes are a valid `sockaddr_storage`, which consists of integers.
            peer: unsafe { mem::zeroed() },
            peer_len: 0,
            control: Control([0; CONTROL]),
            control_len: 0,
            reply: Vec::new(),
        };
        Self { slots: array::from_fn(slot), received: 0 }
    }

    /// Waits for a datagram and receives it with those that are already queued (`recvmmsg(2)`). Returns their number.
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
        // SAFETY: each message points to the buffers of its own slot (address, bytes, control) with their lengths. The
        // slots and `parts` outlive the call, and nothing else refers to them during it. The time-out may be null.
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
            clear_interface(&message.msg_hdr);
        }
        Ok(self.received)
    }

    /// Returns the received datagrams: bytes, sender, and an empty buffer for the reply. Datagrams whose sender address has
    /// an unknown family are skipped.
    pub fn iter(&mut self) -> impl Iterator<Item = (&[u8], SocketAddr, &mut Vec<u8>)> {
        self.slots[..self.received].iter_mut().filter_map(|slot| {
            let from = address(&slot.peer, slot.peer_len)?;
            Some((&slot.bytes[..slot.len], from, &mut slot.reply))
        })
    }

    /// Sends the replies that are not empty, and clears the batch (`sendmmsg(2)`). A reply that cannot be sent is lost, as
    /// any datagram may be.
    pub fn reply(&mut self, socket: &UdpSocket) {
        // SAFETY: all-zero bytes are a valid `iovec`: a null pointer and a length of 0.
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
            // SAFETY: each message points to the buffers of its own slot with their lengths. The slots and `parts` outlive
            // the call, which only reads them.
            let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), rest.as_mut_ptr(), rest.len() as libc::c_uint, 0) };
            // On an error the first message is the one that cannot be sent: skip it.
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

/// Clears the interface in the packet info of a received datagram. The reply carries the same packet info, which fixes its
/// source address; its route may use another interface. (A link-local address keeps its interface, being meaningless
/// without it.)
fn clear_interface(message: &libc::msghdr) {
    // SAFETY: the kernel has filled the control buffer that `message` describes; the macro stays within it.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(message) };
    // SAFETY: `header` is null or points to a header within the control buffer.
    while let Some(control) = unsafe { header.as_ref() } {
        // SAFETY: `header` is valid, and the data follows it in the control buffer.
        let data = unsafe { libc::CMSG_DATA(header) };
        let len = control.cmsg_len as usize;
        match (control.cmsg_level, control.cmsg_type) {
            (libc::IPPROTO_IP, libc::IP_PKTINFO) if len >= mem::size_of::<libc::in_pktinfo>() => {
                let info = data.cast::<libc::in_pktinfo>();
                // SAFETY: level and type say that the data is an `in_pktinfo`, and the length that it is complete. It may be
                // unaligned, so it is read and written as such.
                unsafe {
                    let mut read = info.read_unaligned();
                    read.ipi_ifindex = 0;
                    info.write_unaligned(read);
                }
            }
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) if len >= mem::size_of::<libc::in6_pktinfo>() => {
                let info = data.cast::<libc::in6_pktinfo>();
                // SAFETY: as above, for an `in6_pktinfo`.
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
        // SAFETY: `header` is within the control buffer of `message`; the macro returns the next one or null.
        header = unsafe { libc::CMSG_NXTHDR(message, header) };
    }
}

fn address(storage: &libc::sockaddr_storage, len: libc::socklen_t) -> Option<SocketAddr> {
    let len = len as usize;
    match libc::c_int::from(storage.ss_family) {
        libc::AF_INET if len >= mem::size_of::<libc::sockaddr_in>() => {
            // SAFETY: the family and the length say that the kernel wrote a `sockaddr_in`; the storage is aligned for any
            // address type.
            let addr = unsafe { &*ptr::from_ref(storage).cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(u32::from_be(addr.sin_addr.s_addr));
            Some((ip, u16::from_be(addr.sin_port)).into())
        }
        libc::AF_INET6 if len >= mem::size_of::<libc::sockaddr_in6>() => {
            // SAFETY: as above, for a `sockaddr_in6`.
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

    /// A socket on every address of a family, and its address at `at`.
    fn everywhere(bind: &str, at: &str) -> Option<(UdpSocket, SocketAddr)> {
        let socket = UdpSocket::bind((bind, 0)).ok()?;
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        enable_packet_info(&socket).unwrap();
        let port = socket.local_addr().unwrap().port();
        Some((socket, SocketAddr::new(at.parse().unwrap(), port)))
    }

    #[test]
    fn replies_come_from_the_address_that_was_asked() {
        for (bind, at, from) in [("0.0.0.0", "127.0.0.7", "127.0.0.9"), ("::", "::1", "::1")] {
            let Some((socket, at)) = everywhere(bind, at) else {
                eprintln!("skipped: this machine has no {bind}");
                continue;
            };
            let asker = UdpSocket::bind((from, 0)).unwrap();
            asker.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            // A connected socket receives only from that address.
            asker.connect(at).unwrap();
            let mut batch = Batch::new(4);
            let mut received = 0;
            for n in 0..100u8 {
                asker.send(&vec![n; usize::from(n % 6)]).unwrap();
            }
            while received < 100 {
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
                received += count;
            }
            let mut got = [0; 8];
            for n in (0..100u8).filter(|n| (n % 6).min(4) % 2 == 1) {
                let len = asker.recv(&mut got).unwrap();
                assert_eq!(got[..len], vec![n; usize::from(n % 6).min(4)]);
            }
        }
    }

    #[test]
    fn receive_obeys_the_read_timeout() {
        let socket = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        let mut batch = Batch::new(8);
        assert_eq!(batch.receive(&socket).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(batch.iter().count(), 0);
    }
}
