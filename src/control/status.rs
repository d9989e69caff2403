//! Data types of the reports. They are a stable interface: fields may be added, but none is renamed or removed.
//!
//! Sizes are in bytes, rates in bytes per second, times in seconds. A value that is unknown or does not apply is `null`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Status of a mount and its torrents.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// Version of torrentfs that serves the mount.
    pub version: String,
    /// Process id of the server.
    pub pid: u32,
    /// Path of the mountpoint.
    pub mountpoint: String,
    /// Device number of the filesystem, as `MAJOR:MINOR`; empty if unknown.
    pub device: String,
    /// Time since the mount started.
    pub uptime: u64,
    /// Port for incoming peer connections; 0 if none are accepted.
    pub port: u16,
    /// URL of the HTTP server; `null` if there is none.
    pub http: Option<String>,
    /// Good nodes in the DHT routing table; `null` without DHT.
    pub dht_nodes: Option<usize>,
    /// Limits.
    pub limits: RateLimits,
    /// Totals over all torrents.
    pub total: Totals,
    /// Piece cache.
    pub cache: CacheStatus,
    /// Torrents of the mount.
    pub torrents: Vec<TorrentStatus>,
}

/// Limits, for all torrents together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RateLimits {
    /// Maximum download rate; `null` for no limit.
    pub download: Option<u64>,
    /// Maximum upload rate; `null` for no limit.
    pub upload: Option<u64>,
    /// Maximum number of torrents that download in the background at the same time; `null` for no limit.
    #[serde(default)]
    pub active_downloads: Option<usize>,
}

/// Totals over all torrents.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Totals {
    /// Size of all torrents.
    pub size: u64,
    /// Bytes available locally.
    pub have: u64,
    /// Download rate of payload.
    pub download_rate: u64,
    /// Upload rate.
    pub upload_rate: u64,
    /// Payload bytes downloaded since the mount started.
    pub downloaded: u64,
    /// Bytes uploaded since the mount started.
    pub uploaded: u64,
    /// Share ratio: bytes uploaded over bytes downloaded, or over the bytes available if nothing was downloaded.
    pub ratio: f64,
    /// Connected peers.
    pub peers: usize,
    /// Reads that wait for data from peers.
    pub blocked_reads: usize,
    /// Torrents that are being fetched.
    #[serde(default)]
    pub fetching: usize,
    /// Torrents that wait for their turn to be fetched in the background.
    #[serde(default)]
    pub queued: usize,
}

/// Status of the piece cache, which all torrents share.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CacheStatus {
    /// Path of the cache directory.
    pub directory: String,
    /// Size of the pieces on disk.
    pub disk: u64,
    /// Maximum size of the pieces on disk; `null` for no limit.
    pub disk_limit: Option<u64>,
    /// Size of the pieces in memory.
    pub memory: u64,
    /// Maximum size of the pieces in memory.
    pub memory_limit: u64,
    /// Why the cache directory cannot be used; `null` if it can.
    pub fault: Option<String>,
    /// Reads of all torrents, by the source that answered them.
    pub reads: ReadStatus,
}

/// Number of reads since the mount started, by the source that answered them. Reads that the kernel answers from its page
/// cache, or by passthrough, are not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ReadStatus {
    /// Answered from memory only.
    pub memory: u64,
    /// Answered at least partly from disk.
    pub disk: u64,
    /// Waited for data from peers.
    pub missed: u64,
    /// Share of reads that did not wait, 0 to 1; `null` if there were no reads.
    pub hit_rate: Option<f64>,
}

/// Activity of a torrent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Local data is being hashed again.
    Checking,
    /// Pieces are being fetched, or would be if a peer had them.
    Fetching,
    /// Older torrents are fetched first. Reads and uploads do not wait.
    Queued,
    /// The torrent is complete and is uploaded to peers.
    Seeding,
    /// There is nothing to do: the torrent is complete and not uploaded, or everything wanted, or everything that fits
    /// the cache, is available.
    Idle,
    /// Paused by the user.
    Paused,
    /// Fetches on demand, and no read is waiting.
    OnDemand,
}

/// Status of a torrent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TorrentStatus {
    /// Name in the root of the mount.
    pub name: String,
    /// Info hash, 40 hexadecimal digits.
    pub info_hash: String,
    /// Activity.
    pub state: State,
    /// Whether only data that is read is fetched.
    pub on_demand: bool,
    /// Whether the torrent is private (BEP 27): its peers come from its trackers only.
    pub private: bool,
    /// Size of the torrent.
    pub size: u64,
    /// Bytes available locally.
    pub have: u64,
    /// Number of pieces.
    pub pieces: u32,
    /// Number of pieces available locally.
    pub pieces_had: u32,
    /// Piece length.
    pub piece_length: u32,
    /// Download rate of payload.
    pub download_rate: u64,
    /// Upload rate.
    pub upload_rate: u64,
    /// Payload bytes downloaded since the mount started.
    pub downloaded: u64,
    /// Bytes uploaded since the mount started.
    pub uploaded: u64,
    /// Bytes that failed the hash check or were received twice.
    pub wasted: u64,
    /// Share ratio: bytes uploaded over bytes downloaded, or over the torrent's size if nothing was downloaded.
    pub ratio: f64,
    /// Time until the torrent is complete, at the current rate; `null` if it is complete or nothing is being received.
    pub eta: Option<u64>,
    /// Connected peers that have the whole torrent.
    pub seeds: usize,
    /// Connected peers.
    pub peers: Vec<PeerStatus>,
    /// Trackers, in the order in which they are tried.
    pub trackers: Vec<TrackerStatus>,
    /// Number of further trackers that are not used, because the torrent has too many.
    #[serde(default)]
    pub excess_trackers: usize,
    /// Web seeds in the torrent's list, first those that can be used.
    #[serde(default)]
    pub web_seeds: Vec<WebSeedStatus>,
    /// Reads of the torrent, by the source that answered them.
    pub reads: ReadStatus,
    /// Reads that wait for data from peers, the longest-waiting first, at most 256.
    pub blocked_reads: Vec<BlockedRead>,
    /// Verification in progress, or the last one; `null` if there was none.
    pub verification: Option<VerificationStatus>,
    /// Files whose priority is not normal, at most 256.
    pub priorities: Vec<FilePriority>,
    /// Paths, from the root of the mount, of the open files that the kernel reads from the cache itself (FUSE passthrough),
    /// at most 256.
    #[serde(default)]
    pub passthrough: Vec<String>,
}

/// Status of a connected peer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PeerStatus {
    /// IP address and port; for a web seed, its URL.
    pub address: String,
    /// How the peer was found.
    pub source: Source,
    /// Name and version of the client, as the peer reports them.
    pub client: String,
    /// Transport protocol.
    pub transport: Transport,
    /// Whether the peer connected to us.
    pub incoming: bool,
    /// Whether the connection is encrypted.
    pub encrypted: bool,
    /// Whether the peer chokes us.
    pub choking_us: bool,
    /// Whether we are interested in the peer.
    pub we_interested: bool,
    /// Whether we choke the peer.
    pub we_choke: bool,
    /// Whether the peer is interested in us.
    pub interested_in_us: bool,
    /// Whether the peer has stopped answering requests.
    pub snubbed: bool,
    /// Number of pieces that the peer has.
    pub pieces_had: u32,
    /// Number of blocks requested and not yet received.
    pub asked: usize,
    /// Download rate from the peer.
    pub download_rate: u64,
    /// Upload rate to the peer.
    pub upload_rate: u64,
    /// Bytes downloaded from the peer.
    pub downloaded: u64,
    /// Bytes uploaded to the peer.
    pub uploaded: u64,
    /// Time since the connection was made.
    pub connected: u64,
}

/// How a peer was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// A tracker returned its address.
    Tracker,
    /// The DHT returned its address.
    Dht,
    /// Another peer sent its address (peer exchange).
    Pex,
    /// Local service discovery found it.
    Lsd,
    /// The peer connected to us.
    Incoming,
    /// The user gave its address.
    Manual,
    /// It was found while the metadata of a magnet link was fetched.
    Magnet,
    /// A web seed listed in the torrent.
    WebSeed,
    /// Blocks came from it in an earlier run.
    Remembered,
}

/// Transport protocol of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// uTP, over UDP.
    Utp,
    /// HTTP, to a web seed.
    Http,
}

/// Status of a web seed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WebSeedStatus {
    /// URL, without the parts that may be secret.
    pub url: String,
    /// Why it is not used, or not for all of the torrent; `null` if nothing is known against it.
    pub error: Option<String>,
}

/// Status of a tracker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TrackerStatus {
    /// URL, without the parts that may be secret.
    pub url: String,
    /// Tier in the torrent's list, from 0.
    pub tier: usize,
    /// State of the announces.
    pub state: TrackerState,
    /// Error of the last announce; `null` if it succeeded.
    pub error: Option<String>,
    /// Warning in the last response.
    pub warning: Option<String>,
    /// Number of seeders that the tracker reports.
    pub seeders: Option<u64>,
    /// Number of leechers that the tracker reports.
    pub leechers: Option<u64>,
    /// Number of peer addresses in the last response.
    pub peers: Option<usize>,
    /// Time until the next announce; `null` if it is due now or none is planned.
    pub next_announce: Option<u64>,
}

/// State of the announces to a tracker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TrackerState {
    /// No announce has been sent yet.
    Waiting,
    /// An announce is in progress.
    Announcing,
    /// The last announce succeeded.
    Working,
    /// The last announce failed.
    Failed,
}

/// A read that waits for data from peers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BlockedRead {
    /// Path of the file, from the root of the mount.
    pub file: String,
    /// Offset of the read in the file.
    pub offset: u64,
    /// Length of the read.
    pub length: u64,
    /// Time since the read started to wait.
    pub waiting: f64,
    /// Missing pieces, at most 64.
    pub pieces: Vec<AwaitedPiece>,
}

/// A piece that a read waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AwaitedPiece {
    /// Index of the piece.
    pub piece: u32,
    /// Number of connected peers that have it.
    pub peers: u32,
    /// Number of these peers that accept requests for it now.
    pub serving: u32,
    /// Number of blocks received.
    pub received: u32,
    /// Number of blocks in the piece.
    pub blocks: u32,
}

/// Status of a verification of local data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VerificationStatus {
    /// Whether it is in progress.
    pub running: bool,
    /// Number of pieces checked so far.
    pub done: u32,
    /// Number of pieces to check.
    pub pieces: u32,
    /// Number of pieces that failed the hash check. They are fetched again.
    pub bad: u32,
}

/// Priority of a file in background fetching.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Priority {
    /// Not fetched in the background, only when read.
    Skip,
    /// Fetched in the normal order.
    Normal,
    /// Fetched before all other files.
    High,
}

/// A file whose priority is not normal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FilePriority {
    /// Path of the file, from the root of the mount.
    pub path: String,
    /// Priority.
    pub priority: Priority,
}

/// Map of a torrent's pieces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PieceMap {
    /// Number of pieces in the torrent.
    pub pieces: u32,
    /// Ranges of consecutive pieces, in order.
    pub cells: Vec<Cell>,
}

/// A range of consecutive pieces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Cell {
    /// Number of pieces in the cell.
    pub pieces: u32,
    /// Number of these pieces that are available locally.
    pub have: u32,
    /// Number of these pieces of which some blocks are received or requested.
    pub partial: u32,
    /// Number of these pieces that are not fetched in the background.
    pub skipped: u32,
    /// Number of these pieces that are in the read-ahead window of a reader.
    pub window: u32,
    /// Whether the position of a reader is in the cell.
    pub reader: bool,
    /// Whether a read waits for one of these pieces.
    pub blocked: bool,
}
