//! Seeding torrents until their limits are reached, with a status line.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytesize::ByteSize;

use super::progress::Progress;
use super::text::count;
use crate::session::{SeedLimits, Torrent};
use crate::util::is_hidden;

/// How often limits are checked, and the line on a terminal is updated.
const UPDATE_INTERVAL: Duration = Duration::from_secs(1);
/// Time between two lines where standard error is not a terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Torrents that are being seeded.
pub(super) struct Seeding {
    limits: SeedLimits,
    torrents: Vec<Arc<Torrent>>,
    /// Bytes uploaded of the torrents that have reached a limit.
    uploaded_before: u64,
    progress: Progress,
    started: Instant,
}

impl Seeding {
    pub(super) fn new(limits: SeedLimits, quiet: bool) -> Self {
        let progress = Progress::spinner(quiet).with_lines_every(LINE_INTERVAL);
        Self { limits, torrents: Vec::new(), uploaded_before: 0, progress, started: Instant::now() }
    }

    pub(super) fn add(&mut self, torrent: Arc<Torrent>) {
        self.torrents.push(torrent);
    }

    /// Stops each torrent when it reaches a limit, and returns when none is left. Without limits it never returns.
    pub(super) async fn until_limit(&mut self) {
        while !self.torrents.is_empty() {
            self.progress.set_text(&self.line());
            tokio::time::sleep(UPDATE_INTERVAL).await;
            let is_done = |torrent: &Arc<Torrent>| {
                let (stats, size) = (torrent.stats(), torrent.metainfo().layout.lengths().total());
                self.limits.reached(self.started.elapsed(), stats.uploaded, stats.downloaded, size)
            };
            let (done, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut self.torrents).into_iter().partition(is_done);
            self.torrents = rest;
            for torrent in done {
                self.uploaded_before += torrent.stats().uploaded;
                torrent.stop().await;
            }
        }
    }

    /// Returns the bytes uploaded of all torrents.
    pub(super) fn uploaded(&self) -> u64 {
        self.uploaded_before + self.torrents.iter().map(|torrent| torrent.stats().uploaded).sum::<u64>()
    }

    fn line(&self) -> String {
        let stats: Vec<_> = self.torrents.iter().map(|torrent| torrent.stats()).collect();
        let rate = stats.iter().map(|stats| stats.up_rate).sum();
        let peers = stats.iter().map(|stats| stats.peers).sum();
        let size: u64 = self.torrents.iter().map(|torrent| torrent.metainfo().layout.lengths().total()).sum();
        let uploaded = self.uploaded();
        let name = match self.torrents.as_slice() {
            [torrent] => torrent.metainfo().name.replace(is_hidden, " "),
            several => count(several.len(), "torrent"),
        };
        format!(
            "seeding {name}: {}/s to {}, {} uploaded, ratio {:.2}",
            ByteSize(rate),
            count(peers, "peer"),
            ByteSize(uploaded),
            uploaded as f64 / size.max(1) as f64
        )
    }
}
