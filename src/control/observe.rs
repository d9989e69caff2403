//! Builds status reports from the state of a session.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::mount::{Mount, MountedTorrent};
use super::status::{self, Cell, PieceMap, Status, TorrentStatus};
use crate::discovery;
use crate::metainfo::{FileKind, Layout};
use crate::net::Transport;
use crate::session::{self, PeerReport, ReadCounts, Report};
use crate::swarm::{Direction, WaitSnapshot};
use crate::wire::client_of;

/// Largest number of blocked reads in a torrent's report, to bound its size.
const MAX_BLOCKED: usize = 256;
/// Largest number of file priorities in a torrent's report, to bound its size.
const MAX_PRIORITIES: usize = 256;
/// Largest number of files read by passthrough in a torrent's report, to bound its size.
const MAX_PASSTHROUGH: usize = 256;
/// How long a torrent's task may take to report. After that the report has no peers.
const REPORT_TIMEOUT: Duration = Duration::from_secs(2);

/// Reports on a mount and all its torrents.
pub(crate) async fn mount(mount: &Mount, since: Instant, http: Option<SocketAddr>) -> Status {
    let mut torrents = Vec::new();
    for mounted in mount.torrents() {
        torrents.push(torrent(&mounted).await);
    }
    let sum = |of: fn(&TorrentStatus) -> u64| torrents.iter().map(of).fold(0, u64::saturating_add);
    let count = |state| torrents.iter().filter(|t| t.state == state).count();
    let (have, downloaded, uploaded) = (sum(|t| t.have), sum(|t| t.downloaded), sum(|t| t.uploaded));
    let total = status::Totals {
        size: sum(|t| t.size),
        have,
        download_rate: sum(|t| t.download_rate),
        upload_rate: sum(|t| t.upload_rate),
        downloaded,
        uploaded,
        ratio: ratio(uploaded, downloaded, have),
        peers: torrents.iter().map(|t| t.peers.len()).sum(),
        blocked_reads: torrents.iter().map(|t| t.blocked_reads.len()).sum(),
        fetching: count(status::State::Fetching),
        queued: count(status::State::Queued),
    };
    let (session, cache) = (mount.library.session(), mount.library.cache());
    let usage = cache.usage();
    let counts = torrents.iter().map(|t| t.reads).fold(ReadCounts::default(), |sum, reads| ReadCounts {
        memory: sum.memory + reads.memory,
        disk: sum.disk + reads.disk,
        missed: sum.missed + reads.missed,
    });
    Status {
        version: env!("CARGO_PKG_VERSION").into(),
        pid: std::process::id(),
        mountpoint: mount.mountpoint.to_string_lossy().into_owned(),
        device: mount.device.map(|(major, minor)| format!("{major}:{minor}")).unwrap_or_default(),
        uptime: since.elapsed().as_secs(),
        port: session.port(),
        http: http.map(|addr| format!("http://{addr}/")),
        dht_nodes: session.dht().map(|dht| dht.nodes_v4 + dht.nodes_v6),
        limits: limits(session),
        total,
        cache: status::CacheStatus {
            directory: cache.dir().to_string_lossy().into_owned(),
            disk: usage.disk,
            disk_limit: usage.disk_limit,
            memory: usage.memory,
            memory_limit: usage.memory_limit,
            fault: usage.fault,
            reads: reads(counts),
        },
        torrents,
    }
}

/// Returns the limits of a session.
pub(crate) fn limits(session: &session::Session) -> status::RateLimits {
    let rate = |rate: u64| Some(rate).filter(|rate| *rate > 0);
    let limits = session.limits();
    status::RateLimits {
        download: rate(limits.down.rate()),
        upload: rate(limits.up.rate()),
        active_downloads: session.active_downloads(),
    }
}

/// Returns the share ratio: uploaded bytes over downloaded bytes, or over `size` if nothing was downloaded.
fn ratio(uploaded: u64, downloaded: u64, size: u64) -> f64 {
    let over = if downloaded == 0 { size } else { downloaded };
    if over == 0 { 0.0 } else { uploaded as f64 / over as f64 }
}

fn reads(counts: ReadCounts) -> status::ReadStatus {
    let ReadCounts { memory, disk, missed } = counts;
    let all = memory + disk + missed;
    status::ReadStatus { memory, disk, missed, hit_rate: (all > 0).then(|| (memory + disk) as f64 / all as f64) }
}

async fn report(mounted: &MountedTorrent) -> Option<Report> {
    tokio::time::timeout(REPORT_TIMEOUT, mounted.torrent.report()).await.ok().flatten()
}

/// Reports on one torrent.
pub(crate) async fn torrent(mounted: &MountedTorrent) -> TorrentStatus {
    let (torrent, report) = (&mounted.torrent, report(mounted).await);
    let metainfo = torrent.metainfo();
    let lengths = metainfo.layout.lengths();
    let stats = report.as_ref().map_or_else(|| torrent.stats(), |report| report.swarm.stats.clone());
    let have =
        report.as_ref().map_or_else(|| lengths.full_pieces(stats.have), |report| lengths.bytes_in(&report.swarm.have));
    let left = lengths.total() - have;
    let on_demand = report.as_ref().is_some_and(|report| report.swarm.on_demand);
    let eta = (left > 0 && stats.down_rate > 0 && !on_demand).then(|| left / stats.down_rate.max(1));
    let verification = torrent.verification();
    let checking = verification.is_some_and(|verification| verification.running);
    let passthrough = torrent.local_files().into_iter().filter_map(|file| metainfo.layout.file(file));
    let priorities = torrent.priorities().into_iter().filter_map(|(file, priority)| {
        let priority = priority.into();
        Some(status::FilePriority { path: mounted.path(&metainfo.layout.file(file)?.path), priority })
    });
    TorrentStatus {
        name: mounted.name.clone(),
        info_hash: metainfo.info_hash.to_string(),
        state: state(report.as_ref(), checking, left, lengths.full_pieces(1).min(left)),
        on_demand,
        private: metainfo.private,
        size: lengths.total(),
        have,
        pieces: lengths.pieces(),
        pieces_had: stats.have,
        piece_length: lengths.piece_len(),
        download_rate: stats.down_rate,
        upload_rate: stats.up_rate,
        downloaded: stats.downloaded,
        uploaded: stats.uploaded,
        wasted: stats.wasted,
        ratio: ratio(stats.uploaded, stats.downloaded, lengths.total()),
        eta,
        seeds: stats.seeds,
        peers: report.iter().flat_map(|report| &report.peers).map(peer).collect(),
        trackers: torrent.trackers().into_iter().map(tracker).collect(),
        excess_trackers: torrent.excess_trackers(),
        web_seeds: torrent
            .web_seeds()
            .into_iter()
            .map(|seed| status::WebSeedStatus { url: seed.url, error: seed.fault })
            .collect(),
        reads: reads(torrent.reads()),
        blocked_reads: report
            .iter()
            .flat_map(|report| &report.swarm.waits)
            .filter_map(|wait| blocked(mounted, &metainfo.layout, wait))
            .take(MAX_BLOCKED)
            .collect(),
        verification: verification.map(|session::Verification { running, done, pieces, bad }| {
            status::VerificationStatus { running, done, pieces, bad }
        }),
        priorities: priorities.take(MAX_PRIORITIES).collect(),
        passthrough: passthrough.map(|file| mounted.path(&file.path)).take(MAX_PASSTHROUGH).collect(),
    }
}

fn state(report: Option<&Report>, checking: bool, left: u64, piece: u64) -> status::State {
    let Some(Report { swarm, room, peers }) = report else { return status::State::Idle };
    // Background fetching starts no piece for which the cache has no room.
    let full = *room < piece;
    match swarm {
        swarm if swarm.paused => status::State::Paused,
        _ if checking => status::State::Checking,
        swarm if left == 0 && swarm.serving => status::State::Seeding,
        _ if left == 0 => status::State::Idle,
        swarm if !swarm.waits.is_empty() => status::State::Fetching,
        _ if peers.iter().any(|peer| peer.swarm.asked > 0) => status::State::Fetching,
        swarm if swarm.on_demand => status::State::OnDemand,
        swarm if swarm.to_fetch == 0 || full => status::State::Idle,
        swarm if swarm.queued => status::State::Queued,
        _ => status::State::Fetching,
    }
}

fn peer(report: &PeerReport) -> status::PeerStatus {
    let peer = &report.swarm;
    let client = peer.client.clone().or_else(|| client_of(&peer.id)).unwrap_or_else(|| "unknown".into());
    status::PeerStatus {
        address: report.url.clone().unwrap_or_else(|| peer.addr.to_string()),
        source: peer.source.into(),
        client: if report.url.is_some() { "web seed".into() } else { client },
        transport: match (&report.url, report.transport) {
            (Some(_), _) => status::Transport::Http,
            (None, Transport::Tcp) => status::Transport::Tcp,
            (None, Transport::Utp) => status::Transport::Utp,
        },
        incoming: peer.direction == Direction::Incoming,
        encrypted: report.encrypted,
        choking_us: peer.choking_us,
        we_interested: peer.we_interested,
        we_choke: peer.we_choke,
        interested_in_us: peer.interested_in_us,
        snubbed: peer.snubbed,
        pieces_had: peer.has,
        asked: peer.asked,
        download_rate: peer.down_rate,
        upload_rate: peer.up_rate,
        downloaded: peer.downloaded,
        uploaded: peer.uploaded,
        connected: peer.connected.as_secs(),
    }
}

fn tracker(tracker: discovery::TrackerStatus) -> status::TrackerStatus {
    let (answer, error) = match &tracker.last {
        None => (None, None),
        Some(Ok(answer)) => (Some(answer), None),
        Some(Err(error)) => (None, Some(error.to_string())),
    };
    status::TrackerStatus {
        url: tracker.url.to_string(),
        tier: tracker.tier,
        state: match (tracker.announcing, &tracker.last) {
            (true, _) => status::TrackerState::Announcing,
            (false, None) => status::TrackerState::Waiting,
            (false, Some(Ok(_))) => status::TrackerState::Working,
            (false, Some(Err(_))) => status::TrackerState::Failed,
        },
        error,
        warning: answer.and_then(|answer| answer.warning.clone()),
        seeders: answer.and_then(|answer| answer.seeders),
        leechers: answer.and_then(|answer| answer.leechers),
        peers: answer.map(|answer| answer.peers),
        next_announce: tracker.next_announce.map(|at| at.saturating_duration_since(Instant::now()).as_secs()),
    }
}

fn blocked(mounted: &MountedTorrent, layout: &Layout, wait: &WaitSnapshot) -> Option<status::BlockedRead> {
    let (index, bytes) = layout.extents(wait.bytes.clone()).next()?;
    let file = layout.file(index).filter(|file| file.kind != FileKind::Pad)?;
    let pieces = wait.pieces.iter().map(|awaited| status::AwaitedPiece {
        piece: awaited.piece,
        peers: awaited.peers,
        serving: awaited.serving,
        received: awaited.received,
        blocks: awaited.blocks,
    });
    Some(status::BlockedRead {
        file: mounted.path(&file.path),
        offset: bytes.start,
        length: wait.bytes.end - wait.bytes.start,
        waiting: wait.since.as_secs_f64(),
        pieces: pieces.collect(),
    })
}

/// Returns the piece map of a torrent, in up to `cells` cells.
pub(crate) async fn pieces(mounted: &MountedTorrent, cells: u32) -> PieceMap {
    let lengths = mounted.torrent.metainfo().layout.lengths();
    let pieces = lengths.pieces();
    let Some(Report { swarm, .. }) = report(mounted).await else { return PieceMap { pieces, cells: Vec::new() } };
    let count = cells.min(pieces);
    let first = |cell: u32| (u64::from(cell) * u64::from(pieces) / u64::from(count.max(1))) as u32;
    let cell_of = |piece: u32| ((u64::from(piece) + 1) * u64::from(count)).saturating_sub(1) / u64::from(pieces.max(1));
    let mut map: Vec<Cell> = (0..count)
        .map(|cell| {
            let range = first(cell) as usize..first(cell + 1) as usize;
            let of = |bits: &fixedbitset::FixedBitSet| {
                let range = range.start.min(bits.len())..range.end.min(bits.len());
                bits.count_ones(range) as u32
            };
            Cell { pieces: range.len() as u32, have: of(&swarm.have), skipped: of(&swarm.skipped), ..Cell::default() }
        })
        .collect();
    let mut at = |piece: u32, change: &dyn Fn(&mut Cell)| {
        if let Some(cell) = map.get_mut(cell_of(piece) as usize) {
            change(cell);
        }
    };
    swarm.partial.iter().for_each(|partial| at(partial.piece, &|cell| cell.partial += 1));
    for reader in &swarm.readers {
        let position = reader.window.start.min(lengths.total().saturating_sub(1));
        if let Some(piece) = lengths.piece_at(position) {
            at(piece.get(), &|cell| cell.reader = true);
        }
        lengths.pieces_in(&reader.window).for_each(|piece| at(piece.get(), &|cell| cell.window += 1));
    }
    for awaited in swarm.waits.iter().flat_map(|wait| &wait.pieces) {
        at(awaited.piece, &|cell| cell.blocked = true);
    }
    PieceMap { pieces, cells: map }
}

impl From<session::PeerSource> for status::Source {
    fn from(source: session::PeerSource) -> Self {
        match source {
            session::PeerSource::Tracker => Self::Tracker,
            session::PeerSource::Dht => Self::Dht,
            session::PeerSource::Pex => Self::Pex,
            session::PeerSource::Lsd => Self::Lsd,
            session::PeerSource::Incoming => Self::Incoming,
            session::PeerSource::Manual => Self::Manual,
            session::PeerSource::Magnet => Self::Magnet,
            session::PeerSource::WebSeed => Self::WebSeed,
            session::PeerSource::Remembered => Self::Remembered,
        }
    }
}

impl From<session::Priority> for status::Priority {
    fn from(priority: session::Priority) -> Self {
        match priority {
            session::Priority::Skip => Self::Skip,
            session::Priority::Normal => Self::Normal,
            session::Priority::High => Self::High,
        }
    }
}

impl From<status::Priority> for session::Priority {
    fn from(priority: status::Priority) -> Self {
        match priority {
            status::Priority::Skip => Self::Skip,
            status::Priority::Normal => Self::Normal,
            status::Priority::High => Self::High,
        }
    }
}
