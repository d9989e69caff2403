//! What a status says, in lines.

use std::time::Duration;

use super::{Align, Table, clip};
use crate::control::status::{
    AwaitedPiece, BlockedRead, CacheStatus, PeerStatus, Priority, ReadStatus, Source, State, Status, TorrentStatus,
    TrackerState, TrackerStatus, Transport,
};

/// Blocked reads and peers shown of one torrent.
const MAX_BLOCKED: usize = 5;
const MAX_PEERS: usize = 20;

/// Three figures and a unit, as in `1.50 GiB`.
pub(in crate::cli) fn size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    // What would round up to a thousand has a unit of its own.
    while value >= 999.5 && unit + 1 < UNITS.len() {
        (value, unit) = (value / 1024.0, unit + 1);
    }
    match (unit, value) {
        (0, _) => format!("{bytes} B"),
        (_, ..9.995) => format!("{value:.2} {}", UNITS[unit]),
        (_, ..99.95) => format!("{value:.1} {}", UNITS[unit]),
        _ => format!("{value:.0} {}", UNITS[unit]),
    }
}

pub(in crate::cli) fn rate(bytes: u64) -> String {
    if bytes == 0 { "-".into() } else { format!("{}/s", size(bytes)) }
}

/// In percent; 100 only when it is all.
pub(in crate::cli) fn share(part: u64, whole: u64) -> String {
    match u128::from(part) * 1000 / u128::from(whole.max(1)) {
        _ if part >= whole => "100 %".into(),
        tenths => format!("{}.{} %", tenths / 10, tenths % 10),
    }
}

/// A time to come or past, in its two largest units.
pub(in crate::cli) fn left(seconds: u64) -> String {
    let text = humantime::format_duration(Duration::from_secs(seconds)).to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

impl State {
    pub(in crate::cli) fn word(self) -> &'static str {
        match self {
            Self::Checking => "checking",
            Self::Fetching => "fetching",
            Self::Seeding => "seeding",
            Self::Idle => "idle",
            Self::Paused => "paused",
            Self::OnDemand => "on demand",
        }
    }
}

/// A mount, in lines of at most `columns`.
pub(super) fn mount(status: &Status, columns: usize) -> String {
    let mut out = String::new();
    let mut line = |text: &str| out += &(clip(text, columns) + "\n");
    let total = &status.total;
    line(&format!("{}  (process {}, for {})", status.mountpoint, status.pid, left(status.uptime)));
    let limit = |limit: Option<u64>| limit.map_or(String::new(), |limit| format!(" (limit {})", rate(limit)));
    line(&format!(
        "  down {}{}, up {}{}, {} peers, ratio {:.2}",
        rate(total.download_rate),
        limit(status.limits.download),
        rate(total.upload_rate),
        limit(status.limits.upload),
        total.peers,
        total.ratio
    ));
    let dht = status.dht_nodes.map_or("no DHT".into(), |nodes| format!("{nodes} DHT nodes"));
    let port = if status.port == 0 { "nobody can call".into() } else { format!("port {}", status.port) };
    line(&format!("  {} given, {} fetched, {port}, {dht}", size(total.uploaded), size(total.downloaded)));
    cache(&status.cache).iter().for_each(|text| line(text));
    for torrent in &status.torrents {
        line("");
        torrent_lines(torrent, columns).iter().for_each(|text| line(text));
    }
    if status.torrents.len() > 1 {
        line("");
        line(&format!("  in all {} of {} ({})", size(total.have), size(total.size), share(total.have, total.size)));
    }
    out
}

fn cache(cache: &CacheStatus) -> Vec<String> {
    let limit = cache.disk_limit.map_or(String::new(), |limit| format!(" of {}", size(limit)));
    let mut lines = vec![
        format!(
            "  cache: {}{limit} on disk, {} of {} in memory",
            size(cache.disk),
            size(cache.memory),
            size(cache.memory_limit)
        ),
        format!("  reads: {}", reads(&cache.reads)),
    ];
    lines.extend(cache.fault.as_ref().map(|fault| format!("  disk fault: {fault}")));
    lines
}

pub(in crate::cli) fn reads(reads: &ReadStatus) -> String {
    let ReadStatus { memory, disk, missed, hit_rate } = reads;
    match hit_rate {
        Some(rate) => {
            format!("{:.0} % at once ({memory} from memory, {disk} from disk), {missed} waited", (rate * 100.0).floor())
        }
        None => "none yet".into(),
    }
}

fn torrent_lines(torrent: &TorrentStatus, columns: usize) -> Vec<String> {
    let mut lines = vec![format!("  {}", torrent.name)];
    let eta = torrent.eta.map_or(String::new(), |eta| format!(", {} to go", left(eta)));
    let demand = if torrent.on_demand && torrent.state != State::OnDemand { ", on demand" } else { "" };
    lines.push(format!(
        "    {}{demand}, {} of {} ({}), {} of {} pieces{eta}",
        torrent.state.word(),
        size(torrent.have),
        size(torrent.size),
        share(torrent.have, torrent.size),
        torrent.pieces_had,
        torrent.pieces
    ));
    let wasted = if torrent.wasted > 0 { format!(", {} wasted", size(torrent.wasted)) } else { String::new() };
    lines.push(format!("    down {}, {} so far{wasted}", rate(torrent.download_rate), size(torrent.downloaded)));
    lines.push(format!(
        "    up {}, {} so far, ratio {:.2}",
        rate(torrent.upload_rate),
        size(torrent.uploaded),
        torrent.ratio
    ));
    if let Some(check) = torrent.verification {
        let bad = if check.bad > 0 { format!(", {} not as they should be", check.bad) } else { String::new() };
        let word = if check.running { "checking" } else { "checked" };
        lines.push(format!("    {word} {} of {} pieces{bad}", check.done, check.pieces));
    }
    lines.extend(torrent.priorities.iter().map(|file| format!("    priority {}: {}", file.priority.word(), file.path)));
    let blocked = blocked(&torrent.blocked_reads);
    for [read, awaited] in blocked.iter().take(MAX_BLOCKED) {
        lines.extend([format!("    {read}"), format!("      {awaited}")]);
    }
    if blocked.len() > MAX_BLOCKED {
        lines.push(format!("    ... and at {} places more reads wait", blocked.len() - MAX_BLOCKED));
    }
    lines.extend(torrent.trackers.iter().map(|tracker| format!("    {}", tracker_line(tracker))));
    if !torrent.peers.is_empty() {
        lines.extend(peers(&torrent.peers, torrent.pieces).lines(columns, "    "));
    }
    if torrent.peers.len() > MAX_PEERS {
        lines.push(format!("    ... and {} more", torrent.peers.len() - MAX_PEERS));
    }
    lines
}

impl Priority {
    pub(in crate::cli) fn word(self) -> &'static str {
        match self {
            Self::Skip => "skip",
            Self::Normal => "normal",
            Self::High => "high",
        }
    }
}

/// Reads of one file that lie so close together are one to people: most are the kernel's, sent ahead.
const TOGETHER: u64 = 2 << 20;

/// What reads wait for: the longest of each place in two lines, the first one for what is read.
pub(in crate::cli) fn blocked(reads: &[BlockedRead]) -> Vec<[String; 2]> {
    let mut reads: Vec<&BlockedRead> = reads.iter().collect();
    reads.sort_by(|a, b| (&a.file, a.offset).cmp(&(&b.file, b.offset)));
    let together = |a: &&BlockedRead, b: &&BlockedRead| a.file == b.file && b.offset - a.offset <= TOGETHER + a.length;
    let mut places: Vec<&[&BlockedRead]> = reads.chunk_by(together).collect();
    let longest = |place: &[&BlockedRead]| place.iter().map(|read| read.waiting).fold(0.0, f64::max);
    places.sort_by(|a, b| longest(b).total_cmp(&longest(a)));
    let lines = |place: &&[&BlockedRead]| {
        let first = place.first()?;
        let more = if place.len() > 1 { format!(" and {} more", place.len() - 1) } else { String::new() };
        let what = format!("waits {:.1} s: {} at {}{more}", longest(place), first.file, size(first.offset));
        Some([what, first.pieces.first().map_or("about to be answered".into(), awaited)])
    };
    places.iter().filter_map(lines).collect()
}

fn awaited(piece: &AwaitedPiece) -> String {
    let AwaitedPiece { piece, peers, serving, received, blocks } = piece;
    format!("for piece {piece}: {received} of {blocks} blocks here, {}", owners(*peers, *serving))
}

fn owners(peers: u32, serving: u32) -> String {
    match (peers, serving) {
        (0, _) => "no peer has it".into(),
        (1, serving) => format!("1 peer has it, {serving} gives it"),
        (peers, serving) => format!("{peers} peers have it, {serving} give it"),
    }
}

pub(in crate::cli) fn tracker_line(tracker: &TrackerStatus) -> String {
    let state = match tracker.state {
        TrackerState::Waiting => "not asked yet".into(),
        TrackerState::Announcing => "being asked".into(),
        TrackerState::Failed => tracker.error.clone().unwrap_or_default(),
        TrackerState::Working => {
            let count = |count: Option<u64>| count.map_or("?".into(), |count| count.to_string());
            format!("{} seeders, {} leechers", count(tracker.seeders), count(tracker.leechers))
        }
    };
    let warning = tracker.warning.as_ref().map_or(String::new(), |warning| format!(", warns: {warning}"));
    let next = tracker.next_announce.map_or(String::new(), |next| format!(", next in {}", left(next)));
    format!("tracker {}: {state}{warning}{next}", tracker.url)
}

/// Flags of a peer, a letter each; the help says what they mean.
pub(in crate::cli) fn flags(peer: &PeerStatus) -> String {
    let flags = [
        // As other clients have it: the small letter wants and is refused, the large one wants and gets.
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

impl Source {
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
        }
    }
}

/// The busiest first.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "0.98 KiB"),
            (1536, "1.50 KiB"),
            (10 << 10, "10.0 KiB"),
            (100 << 20, "100 MiB"),
            (1023 << 20, "1.00 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
        assert_eq!((share(0, 0), share(999, 1000), share(1, 1000)), ("100 %".into(), "99.9 %".into(), "0.1 %".into()));
        assert_eq!(left(3 * 3600 + 25 * 60 + 7), "3h 25m");
    }
}
