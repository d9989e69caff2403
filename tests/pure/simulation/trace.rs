//! Prints what passes between the peers behind links and the others: requests and cancels when they arrive at the peer (`s`),
//! blocks when they leave its socket (`S`) and when they arrive (`C`), as `TIME PEER SIDE req|can|rej|blk PIECE BLOCK`.

use torrentfs::metainfo::BLOCK_LEN;
use torrentfs::wire::{Message, Request};

use super::World;

impl World {
    /// Prints a message that arrived: `TIME PEER s` at a peer with a link, `C` from one.
    pub(super) fn trace(&self, at: usize, from: usize, message: &Message) {
        let (what, request) = match message {
            Message::Request(request) => ("req", request),
            Message::Cancel(request) => ("can", request),
            Message::Reject(request) => ("rej", request),
            _ => return,
        };
        if self.trace {
            let (peer, side) = if self.nodes[at].link.is_some() { (at, 's') } else { (from, 'C') };
            let Request { piece, begin, .. } = request;
            println!("{:.5} {peer} {side} {what} {piece} {}", self.now.as_secs_f64(), begin / BLOCK_LEN);
        }
    }

    /// Prints a block that left the socket of a peer with a link (`S`), or arrived from one (`C`).
    pub(super) fn trace_block(&self, peer: usize, side: char, request: Request) {
        if self.trace && self.nodes[peer].link.is_some() {
            println!("{:.5} {peer} {side} blk {} {}", self.now.as_secs_f64(), request.piece, request.begin / BLOCK_LEN);
        }
    }
}
