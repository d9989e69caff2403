//! A seed that sends blocks as libtorrent 2 does (`peer_connection::fill_send_buffer`, `on_disk_read_complete`).
//!
//! - A request waits in a queue until the send buffer, with the blocks that are being read for it, has room: half of the
//!   bytes sent in the last second, and at least 10 KiB. A request that is cancelled in the queue is rejected. Once its block
//!   is being read it is sent whatever comes, so a cancel often has no effect.
//! - Blocks are read by several threads and are sent in the order in which the reads end.
//! - In seed mode (files added without a check) a piece is hashed before its first block is read. Meanwhile the requests
//!   for it are passed over by those for other pieces. At most three pieces are hashed at a time for one peer.
//! - The kernel takes the blocks from the send buffer long before they have left. It holds a short segment back while
//!   another one is not acknowledged (Nagle's algorithm), and the other side delays its acknowledgements.
//!
//! The times are those of a seed on a machine of two cores with its file in the page cache. A trace of a mount's requests and
//! of the seed's blocks showed that 0.3–4 % of the blocks left after blocks that were asked for later: by 2 blocks in the
//! median and 30 at most, and by 40 ms, on slow links by the time of these blocks, up to seconds. Of 100 cancels one was
//! rejected, and the blocks of the others came.

use std::collections::VecDeque;
use std::time::Duration;

use rand::RngExt;
use torrentfs::swarm::PeerKey;
use torrentfs::wire::Request;

use super::script::Turn;
use super::{Next, World};

/// `send_buffer_low_watermark`, in bytes.
const LOW_WATERMARK: u64 = 10 << 10;
/// Pieces hashed at a time for one peer.
const MAX_HASHED: usize = 3;
/// Time that the read of a block takes.
const READ_TIME: Duration = Duration::from_micros(250);
/// Mean time by which a read is delayed, if it is: its thread does not run, or a page is not in memory.
const READ_DELAY: Duration = Duration::from_millis(4);
/// Bytes hashed in a second.
const HASH_RATE: f64 = 1.5e9;
/// The largest segment of the loopback interface, which is also close to the largest that is offloaded to a network card.
const SEGMENT: u64 = 64 << 10;

/// The settings of such a seed.
#[derive(Clone, Debug)]
pub struct Libtorrent {
    /// `send_buffer_watermark`, in bytes.
    pub watermark: u64,
    /// Bytes that the kernel takes before they leave.
    pub socket_buffer: u64,
    pub seed_mode: bool,
    /// Part of the reads that are delayed. All others end in the order in which they began.
    pub delayed_reads: f64,
    /// Time after which the other side acknowledges a short segment if it sends nothing. Zero: Nagle's algorithm is off.
    pub delayed_ack: Duration,
}

impl Libtorrent {
    /// Returns the seeds of the lab: watermark of 8 MiB, seed mode, and a loopback connection to the simulated link.
    pub fn lab() -> Self {
        Self {
            watermark: 8 << 20,
            socket_buffer: 2_500_000,
            seed_mode: true,
            delayed_reads: 0.03,
            delayed_ack: Duration::from_millis(40),
        }
    }
}

/// State of one connection of such a seed.
#[derive(Default)]
pub(super) struct Sending {
    /// Bytes of the blocks that are being read.
    reading: u64,
    /// Pieces that are being hashed for this peer.
    hashing: usize,
    /// Blocks that wait for an acknowledgement, and when it comes.
    held: VecDeque<Request>,
    acked: Duration,
    /// Bytes sent, and those of them that are in the socket.
    total: u64,
    unsent: u64,
    /// Bytes that had left the send buffer at the last full second, and those of the second before it.
    second: u64,
    total_before: u64,
    last_second: u64,
}

impl Sending {
    /// Returns the bytes in the send buffer.
    fn buffered(&self, settings: &Libtorrent) -> u64 {
        let held: u64 = self.held.iter().map(|request| u64::from(request.length)).sum();
        (self.unsent + held).saturating_sub(settings.socket_buffer)
    }

    /// Returns how many bytes may be in the send buffer.
    fn watermark(&mut self, now: Duration, settings: &Libtorrent) -> u64 {
        let left = self.total - self.unsent.saturating_sub(settings.socket_buffer);
        if now.as_secs() > self.second {
            self.last_second = if now.as_secs() == self.second + 1 { left - self.total_before } else { 0 };
            (self.second, self.total_before) = (now.as_secs(), left);
        }
        (self.last_second / 2).clamp(LOW_WATERMARK, settings.watermark)
    }
}

impl World {
    /// Begins to read what the send buffer has room for.
    pub(super) fn fill_send_buffer(&mut self, node: usize, key: PeerKey) {
        let (now, lengths) = (self.now, self.lengths);
        let (mut reads, mut hashes) = (Vec::new(), Vec::new());
        let Some((settings, seed, connection)) = self.scripted(node).libtorrent(key) else { return };
        let delayed_reads = settings.delayed_reads;
        let mut at = 0;
        while let Some(request) = connection.queue.get(at).copied() {
            let sending = &mut connection.sending;
            if sending.buffered(settings) + sending.reading >= sending.watermark(now, settings) {
                break;
            }
            if settings.seed_mode && !seed.verified.contains(&request.piece) {
                if sending.hashing < MAX_HASHED && seed.verifying.insert(request.piece) {
                    sending.hashing += 1;
                    hashes.push(request.piece);
                }
                at += 1;
                continue;
            }
            connection.queue.remove(at);
            sending.reading += u64::from(request.length);
            reads.push(request);
        }
        for piece in hashes {
            let len = lengths.piece(piece).map_or(0, |piece| lengths.len_of(piece));
            let takes = self.read_time(delayed_reads) + Duration::from_secs_f64(f64::from(len) / HASH_RATE);
            self.at(now + takes, node, Next::Turn(Turn::Hashed(key, piece)));
        }
        for request in reads {
            let takes = self.read_time(delayed_reads);
            self.at(now + takes, node, Next::Turn(Turn::ReadDone(key, request)));
        }
    }

    fn read_time(&mut self, delayed: f64) -> Duration {
        if self.rng.random_bool(delayed) {
            return READ_TIME + READ_DELAY.mul_f64(-self.rng.random_range(1e-6..1.0f64).ln());
        }
        READ_TIME
    }

    pub(super) fn hashed(&mut self, node: usize, key: PeerKey, piece: u32) {
        if let Some((_, seed, connection)) = self.scripted(node).libtorrent(key) {
            seed.verifying.remove(&piece);
            seed.verified.insert(piece);
            connection.sending.hashing -= 1;
        }
        self.fill_send_buffer(node, key);
    }

    pub(super) fn read_done(&mut self, node: usize, key: PeerKey, request: Request) {
        let now = self.now;
        let Some((settings, _, connection)) = self.scripted(node).libtorrent(key) else { return };
        let sending = &mut connection.sending;
        sending.reading -= u64::from(request.length);
        sending.held.push_back(request);
        let full = sending.held.iter().map(|request| u64::from(request.length)).sum::<u64>() >= SEGMENT;
        if now >= sending.acked || full || settings.delayed_ack.is_zero() {
            self.acknowledged(node, key);
        }
        self.fill_send_buffer(node, key);
    }

    /// The other side acknowledges late what was sent.
    pub(super) fn acknowledged_late(&mut self, node: usize, key: PeerKey) {
        let now = self.now;
        if self.scripted(node).libtorrent(key).is_some_and(|(_, _, connection)| now >= connection.sending.acked) {
            self.acknowledged(node, key);
        }
    }

    /// The other side has acknowledged what was sent: what was held back goes out.
    pub(super) fn acknowledged(&mut self, node: usize, key: PeerKey) {
        let now = self.now;
        let Some((settings, _, connection)) = self.scripted(node).libtorrent(key) else { return };
        let sending = &mut connection.sending;
        sending.acked = now;
        let held = std::mem::take(&mut sending.held);
        if held.is_empty() {
            return;
        }
        let bytes: u64 = held.iter().map(|request| u64::from(request.length)).sum();
        sending.total += bytes;
        sending.unsent += bytes;
        sending.acked = now + settings.delayed_ack;
        let acked = sending.acked;
        if acked > now {
            self.at(acked, node, Next::Turn(Turn::Acked(key)));
        }
        for request in held {
            let sent = self.send_through_link(node, key, request).sent;
            self.at(sent, node, Next::Sent(key, request));
        }
    }

    /// A block has left the socket.
    pub(super) fn left_socket(&mut self, node: usize, key: PeerKey, request: Request) {
        if let Some((_, _, connection)) = self.scripted(node).libtorrent(key) {
            connection.sending.unsent -= u64::from(request.length);
        }
        self.fill_send_buffer(node, key);
    }
}
