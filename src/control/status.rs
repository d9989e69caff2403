//! The words of the API. Stable: fields are added, none is renamed or taken away.
//!
//! Sizes are bytes, rates bytes a second, times seconds; what is not known or does not apply is `null`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A mount and all that is in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// The version of torrentfs that serves the mount.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Where it is mounted.
    pub mountpoint: String,
    /// The filesystem's device number, as `MAJOR:MINOR`; empty if it is not known.
    pub device: String,
    /// For how long it has been mounted.
    pub uptime: u64,
    /// The port that peers call; 0: nobody can.
    pub port: u16,
    /// Where all of this is also served over TCP.
    pub http: Option<String>,
    /// Nodes of the DHT known to be good; `null`: no DHT.
    pub dht_nodes: Option<usize>,
    /// What may pass in a second.
    pub limits: RateLimits,
    /// All torrents together.
    pub total: Totals,
    /// The piece cache.
    pub cache: CacheStatus,
    /// The torrents, as the mount shows them.
    pub torrents: Vec<TorrentStatus>,
}

/// What may pass in a second, all torrents together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RateLimits {
    /// From peers; `null`: no limit.
    pub download: Option<u64>,
    /// To peers; `null`: no limit.
    pub upload: Option<u64>,
}

/// All torrents together.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Totals {
    /// Bytes of all torrents.
    pub size: u64,
    /// Bytes that are here.
    pub have: u64,
    /// Wanted bytes a second from peers.
    pub download_rate: u64,
    /// Bytes a second to peers.
    pub upload_rate: u64,
    /// Wanted bytes from peers, since it was mounted.
    pub downloaded: u64,
    /// Bytes to peers, since it was mounted.
    pub uploaded: u64,
    /// Bytes given over bytes fetched, or over what is here where nothing had to be fetched.
    pub ratio: f64,
    /// Connections.
    pub peers: usize,
    /// Reads that wait.
    pub blocked_reads: usize,
}

/// The piece cache, which all torrents share.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CacheStatus {
    /// Its directory.
    pub directory: String,
    /// Bytes of pieces on the disk.
    pub disk: u64,
    /// What they may be; `null`: no limit.
    pub disk_limit: Option<u64>,
    /// Bytes of pieces in memory.
    pub memory: u64,
    /// What they may be.
    pub memory_limit: u64,
    /// What is wrong with the disk, in words.
    pub fault: Option<String>,
    /// How reads of all torrents were answered.
    pub reads: ReadStatus,
}

/// How reads were answered since it was mounted. What the kernel answers from its own cache is not among them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ReadStatus {
    /// From memory alone.
    pub memory: u64,
    /// With the help of the disk.
    pub disk: u64,
    /// Had to wait for the swarm.
    pub missed: u64,
    /// The share that did not wait, 0 to 1; `null`: there were none.
    pub hit_rate: Option<f64>,
}

/// What a torrent does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// What is here is hashed again.
    Checking,
    /// Something is being fetched, or would be if there were peers.
    Fetching,
    /// All is here, and is given to others.
    Seeding,
    /// Nothing is to be done: all is here and nothing is given, or all that is wanted or fits the cache is here.
    Idle,
    /// By the user's order.
    Paused,
    /// Waits for somebody to read.
    OnDemand,
}

/// A torrent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TorrentStatus {
    /// What it is called in the mount.
    pub name: String,
    /// 40 hexadecimal digits.
    pub info_hash: String,
    /// What it does.
    pub state: State,
    /// Fetched only as it is read.
    pub on_demand: bool,
    /// Its peers are its trackers' alone.
    pub private: bool,
    /// Bytes in it.
    pub size: u64,
    /// Bytes of it that are here.
    pub have: u64,
    /// Pieces in it.
    pub pieces: u32,
    /// Pieces of it that are here.
    pub pieces_had: u32,
    /// Bytes in a piece.
    pub piece_length: u32,
    /// Wanted bytes a second from peers.
    pub download_rate: u64,
    /// Bytes a second to peers.
    pub upload_rate: u64,
    /// Wanted bytes from peers, since it was mounted.
    pub downloaded: u64,
    /// Bytes to peers, since it was mounted.
    pub uploaded: u64,
    /// Bytes that failed their hash or came twice.
    pub wasted: u64,
    /// Bytes given over bytes fetched, or over the torrent's size where nothing had to be fetched.
    pub ratio: f64,
    /// Until all is here, at this rate; `null`: it is, or nothing comes.
    pub eta: Option<u64>,
    /// Connections to peers that have everything.
    pub seeds: usize,
    /// Connections.
    pub peers: Vec<PeerStatus>,
    /// Trackers, in the order in which they are asked.
    pub trackers: Vec<TrackerStatus>,
    /// How its reads were answered.
    pub reads: ReadStatus,
    /// Reads that wait, the longest first, up to 256 of them.
    pub blocked_reads: Vec<BlockedRead>,
    /// The check of what is here that goes on, or the last one.
    pub verification: Option<VerificationStatus>,
    /// Files that are fetched first or not at all, up to 256 of them.
    pub priorities: Vec<FilePriority>,
}

/// A connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PeerStatus {
    /// Its address and port; of a web seed, its URL.
    pub address: String,
    /// Where it came from.
    pub source: Source,
    /// The client, as it calls itself.
    pub client: String,
    /// What carries it.
    pub transport: Transport,
    /// It called us.
    pub incoming: bool,
    /// Encrypted.
    pub encrypted: bool,
    /// It refuses us.
    pub choking_us: bool,
    /// We want something that it has.
    pub we_interested: bool,
    /// We refuse it.
    pub we_choke: bool,
    /// It wants something that we have.
    pub interested_in_us: bool,
    /// It stopped answering.
    pub snubbed: bool,
    /// Pieces that it has.
    pub pieces_had: u32,
    /// Blocks asked of it and not yet here.
    pub asked: usize,
    /// Bytes a second from it.
    pub download_rate: u64,
    /// Bytes a second to it.
    pub upload_rate: u64,
    /// Bytes from it.
    pub downloaded: u64,
    /// Bytes to it.
    pub uploaded: u64,
    /// For how long it has been connected.
    pub connected: u64,
}

/// Where a peer came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// A tracker named it.
    Tracker,
    /// The DHT named it.
    Dht,
    /// Another peer named it.
    Pex,
    /// It is in the local network.
    Lsd,
    /// It called us.
    Incoming,
    /// The user named it.
    Manual,
    /// It was found while the metadata of the magnet link was fetched.
    Magnet,
    /// A web seed, which the torrent names.
    WebSeed,
}

/// What carries a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// uTP, over UDP.
    Utp,
    /// HTTP, of a web seed.
    Http,
}

/// What is known of a tracker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TrackerStatus {
    /// Its URL, without what may be secret.
    pub url: String,
    /// Its place in the torrent's list, from 0.
    pub tier: usize,
    /// How the last announce went.
    pub state: TrackerState,
    /// Why the last announce failed.
    pub error: Option<String>,
    /// What the tracker warns of.
    pub warning: Option<String>,
    /// Peers with everything, by its count.
    pub seeders: Option<u64>,
    /// Peers without, by its count.
    pub leechers: Option<u64>,
    /// Addresses in its last answer.
    pub peers: Option<usize>,
    /// Until it is asked again; `null`: at once, or never.
    pub next_announce: Option<u64>,
}

/// How a tracker does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TrackerState {
    /// It has not been asked yet.
    Waiting,
    /// It is being asked.
    Announcing,
    /// It answered.
    Working,
    /// It failed.
    Failed,
}

/// A read that waits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BlockedRead {
    /// The file, as the mount shows it.
    pub file: String,
    /// Where in the file it begins.
    pub offset: u64,
    /// Bytes asked for.
    pub length: u64,
    /// For how long it has been waiting.
    pub waiting: f64,
    /// The pieces that it lacks, up to 64 of them.
    pub pieces: Vec<AwaitedPiece>,
}

/// A piece that a read waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AwaitedPiece {
    /// Its number.
    pub piece: u32,
    /// Peers that have it.
    pub peers: u32,
    /// Of them, those that would give it to us now.
    pub serving: u32,
    /// Blocks of it that are here.
    pub received: u32,
    /// Blocks in it.
    pub blocks: u32,
}

/// A check of what is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VerificationStatus {
    /// It goes on.
    pub running: bool,
    /// Pieces looked at.
    pub done: u32,
    /// Pieces to look at.
    pub pieces: u32,
    /// Pieces that were not as they should be; they are fetched again.
    pub bad: u32,
}

/// How much a file is wanted when nobody reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Priority {
    /// Only what is read of it is fetched.
    Skip,
    /// As all others.
    Normal,
    /// Before all others.
    High,
}

/// A file that is fetched first or not at all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FilePriority {
    /// The file or directory, from the mount's root.
    pub path: String,
    /// How much it is wanted.
    pub priority: Priority,
}

/// Where the pieces of a torrent are, in as many cells as were asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PieceMap {
    /// Pieces in the torrent.
    pub pieces: u32,
    /// Stretches of pieces, in their order.
    pub cells: Vec<Cell>,
}

/// A stretch of pieces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Cell {
    /// Pieces in it.
    pub pieces: u32,
    /// Of them, those that are here.
    pub have: u32,
    /// Of them, those of which some blocks are here or asked for.
    pub partial: u32,
    /// Of them, those that the background leaves out.
    pub skipped: u32,
    /// Of them, those that a reader will need soon.
    pub window: u32,
    /// A reader is here.
    pub reader: bool,
    /// A read waits for a piece of it.
    pub blocked: bool,
}
