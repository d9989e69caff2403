//! Ports that no other test gets, be it in this process or in another one on this machine.

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{self, UnixListener};
use std::sync::{Mutex, PoisonError};

use socket2::{Domain, Socket, Type};

/// Below those that the kernel gives to outgoing connections and to sockets that ask for any port.
const PORTS: Range<u16> = 10_000..32_000;
/// Ports that a process claims at a time. A test of many programs needs some dozens.
const BLOCK: u16 = 200;

/// The ports of this process: those of its block that were not given away in this round.
struct Claim {
    next: u16,
    end: u16,
    /// Its name marks the block as claimed for as long as this process lives, in this network namespace.
    _mark: UnixListener,
}

/// Returns a port that is free for TCP and UDP. No other test gets it before all others of the block were given away.
pub fn free_port() -> u16 {
    static CLAIM: Mutex<Option<Claim>> = Mutex::new(None);
    let mut claim = CLAIM.lock().unwrap_or_else(PoisonError::into_inner);
    let claim = claim.get_or_insert_with(|| claim_block().expect("more than a hundred processes run tests"));
    for _ in 0..BLOCK {
        let port = claim.next;
        claim.next = if port + 1 < claim.end { port + 1 } else { claim.end - BLOCK };
        if is_free(port) {
            return port;
        }
    }
    panic!("no port of {}..{} is free", claim.end - BLOCK, claim.end);
}

fn claim_block() -> Option<Claim> {
    PORTS.step_by(BLOCK.into()).find_map(|next| {
        let name = net::SocketAddr::from_abstract_name(format!("torrentfs-test-ports-{next}")).unwrap();
        let mark = UnixListener::bind_addr(&name).ok()?;
        Some(Claim { next, end: next + BLOCK, _mark: mark })
    })
}

/// Not so while connections of the last program there linger: without `SO_REUSEADDR` the next one could not listen.
fn is_free(port: u16) -> bool {
    let addr = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into();
    [Type::STREAM, Type::DGRAM]
        .iter()
        .all(|kind| Socket::new(Domain::IPV4, *kind, None).is_ok_and(|socket| socket.bind(&addr).is_ok()))
}
