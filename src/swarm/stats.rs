//! A few numbers about a swarm, for people.

/// Rates and counts of a swarm.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stats {
    /// Connections.
    pub peers: usize,
    /// Connections to peers that have everything.
    pub seeds: usize,
    /// Pieces that we have.
    pub have: u32,
    /// Bytes per second received as wanted blocks, over the last few seconds.
    pub down_rate: u64,
    /// Bytes per second sent as blocks, over the last few seconds.
    pub up_rate: u64,
    /// Wanted bytes received in this session.
    pub downloaded: u64,
    /// Bytes sent in this session.
    pub uploaded: u64,
    /// Bytes received that failed a hash or arrived twice.
    pub wasted: u64,
}
