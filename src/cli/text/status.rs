//! Phrases and tables for the status of a mount, in `torrentfs status` and `torrentfs top`.

use super::table::{Align, Table, clip};
use super::{rate, share, size};
use crate::control::status::{AwaitedPiece, BlockedRead, PeerStatus, Priority, ReadStatus, Source, State, Transport};

/// Largest number of peers shown per torrent.
pub(in crate::cli) const MAX_PEERS: usize = 20;

impl State {
    /// Returns the word for it.
    pub(in crate::cli) fn word(self) -> &'static str {
        match self {
            Self::Checking => "checking",
            Self::Fetching => "fetching",
            Self::Queued => "queued",
            Self::Seeding => "seeding",
            Self::Idle => "idle",
            Self::Paused => "paused",
            Self::OnDemand => "on demand",
        }
    }
}

impl Priority {
    /// Returns the word for it.
    pub(in crate::cli) fn word(self) -> &'static str {
        match self {
            Self::Skip => "skip",
            Self::Normal => "normal",
            Self::High => "high",
        }
    }
}

impl Source {
    /// Returns the word for it.
    pub(in crate::cli) fn word(self) -> &'static str {
        match self {
            Self::Tracker => "tracker",
            Self::Dht => "dht",
            Self::Pex => "pex",
            Self::Lsd => "lsd",
            Self::Incoming => "incoming",
            Self::Manual => "manual",
            Self::Magnet => "magnet",
            Self::WebSeed => "web seed",
            Self::Remembered => "earlier",
        }
    }
}

/// Returns the counts of reads, by the source that answered them.
pub(in crate::cli) fn reads(reads: &ReadStatus) -> String {
    let ReadStatus { memory, disk, missed, hit_rate } = reads;
    match hit_rate {
        Some(rate) => {
            format!("{:.0} % from cache ({memory} memory, {disk} disk), {missed} waited", (rate * 100.0).floor())
        }
        None => "none yet".into(),
    }
}

/// Largest gap in bytes between two waiting reads that are shown as one. The kernel's read-ahead sends several reads for one
/// of a program.
const MAX_GAP: u64 = 2 << 20;

/// Describes waiting reads, the longest first. Returns two lines for each place in a file: what is read, and the piece that
/// is missing.
pub(in crate::cli) fn blocked(reads: &[BlockedRead]) -> Vec<[String; 2]> {
    let mut reads: Vec<&BlockedRead> = reads.iter().collect();
    reads.sort_by(|a, b| (&a.file, a.offset).cmp(&(&b.file, b.offset)));
    let together = |a: &&BlockedRead, b: &&BlockedRead| a.file == b.file && b.offset - a.offset <= MAX_GAP + a.length;
    let mut places: Vec<&[&BlockedRead]> = reads.chunk_by(together).collect();
    let longest = |place: &[&BlockedRead]| place.iter().map(|read| read.waiting).fold(0.0, f64::max);
    places.sort_by(|a, b| longest(b).total_cmp(&longest(a)));
    let lines = |place: &&[&BlockedRead]| {
        let first = place.first()?;
        let more = if place.len() > 1 { format!(" and {} more", place.len() - 1) } else { String::new() };
        let read = format!("waiting {:.1} s: {} at {}{more}", longest(place), first.file, size(first.offset));
        Some([read, first.pieces.first().map_or("all pieces received".into(), awaited)])
    };
    places.iter().filter_map(lines).collect()
}

/// Describes a piece that a read waits for.
fn awaited(piece: &AwaitedPiece) -> String {
    let AwaitedPiece { piece, peers, serving, received, blocks } = piece;
    format!("for piece {piece}: {received} of {blocks} blocks received, {}", owners(*peers, *serving))
}

/// Describes how many peers have a piece, and how many of them serve it now.
fn owners(peers: u32, serving: u32) -> String {
    match (peers, serving) {
        (0, _) => "no peer has it".into(),
        (1, serving) => format!("1 peer has it, {serving} serves it"),
        (peers, serving) => format!("{peers} peers have it, {serving} serve it"),
    }
}

/// Returns the flags of a peer, one letter each. `torrentfs help status` explains them.
fn flags(peer: &PeerStatus) -> String {
    let flags = [
        // As in other clients: a small letter means interested but choked, a capital letter interested and not choked.
        (peer.we_interested && !peer.choking_us, 'D'),
        (peer.we_interested && peer.choking_us, 'd'),
        (peer.interested_in_us && !peer.we_choke, 'U'),
        (peer.interested_in_us && peer.we_choke, 'u'),
        (peer.snubbed, 'S'),
        (peer.incoming, 'I'),
        (peer.encrypted, 'E'),
        (peer.transport == Transport::Utp, 'P'),
    ];
    let text: String = flags.into_iter().filter(|(set, _)| *set).map(|(_, letter)| letter).collect();
    if text.is_empty() { "-".into() } else { text }
}

/// Returns the table of peers, those with the highest rates first.
pub(in crate::cli) fn peers(peers: &[PeerStatus], pieces: u32) -> Table {
    use Align::{Left, Right};
    let headings = [
        ("peer", Left),
        ("from", Left),
        ("client", Left),
        ("flags", Left),
        ("has", Right),
        ("down", Right),
        ("up", Right),
    ];
    let mut table = Table::new(&headings, 2);
    let mut busiest: Vec<&PeerStatus> = peers.iter().collect();
    busiest.sort_by_key(|peer| std::cmp::Reverse(peer.download_rate + peer.upload_rate));
    for peer in busiest.into_iter().take(MAX_PEERS) {
        table.row([
            clip(&peer.address, 28),
            peer.source.word().into(),
            clip(&peer.client, 20),
            flags(peer),
            share(peer.pieces_had.into(), pieces.into()),
            rate(peer.download_rate),
            rate(peer.upload_rate),
        ]);
    }
    table
}
