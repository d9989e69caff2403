//! Seeding torrents to others until it is enough, and the line that says how that goes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytesize::ByteSize;

use super::progress::Progress;
use super::text::count;
use crate::session::{SeedLimits, Torrent};

/// How often the line changes on a terminal, and comes where there is none.
const CHANGE_EVERY: Duration = Duration::from_secs(1);
const LINE_EVERY: Duration = Duration::from_secs(10);

pub(super) struct Seeding {
    limits: SeedLimits,
    torrents: Vec<Arc<Torrent>>,
    /// Bytes given of those that have been given enough.
    given: u64,
    shown: Progress,
    begun: Instant,
}

impl Seeding {
    pub(super) fn new(limits: SeedLimits, quiet: bool) -> Self {
        let shown = Progress::open(quiet).at_once(LINE_EVERY);
        Self { limits, torrents: Vec::new(), given: 0, shown, begun: Instant::now() }
    }

    pub(super) fn add(&mut self, torrent: Arc<Torrent>) {
        self.torrents.push(torrent);
    }

    /// Ends each torrent once it has reached a limit, and returns when none is left. Without a limit it never does.
    pub(super) async fn until_enough(&mut self) {
        while !self.torrents.is_empty() {
            self.shown.tell(&self.line());
            tokio::time::sleep(CHANGE_EVERY).await;
            let enough = |torrent: &Arc<Torrent>| {
                let (stats, size) = (torrent.stats(), torrent.metainfo().layout.lengths().total());
                self.limits.reached(self.begun.elapsed(), stats.uploaded, stats.downloaded, size)
            };
            let (over, on) = std::mem::take(&mut self.torrents).into_iter().partition(enough);
            self.torrents = on;
            let over: Vec<Arc<Torrent>> = over;
            for torrent in over {
                self.given += torrent.stats().uploaded;
                torrent.stop().await;
            }
        }
    }

    /// Bytes given in all.
    pub(super) fn given(&self) -> u64 {
        self.given + self.torrents.iter().map(|torrent| torrent.stats().uploaded).sum::<u64>()
    }

    fn line(&self) -> String {
        let stats: Vec<_> = self.torrents.iter().map(|torrent| torrent.stats()).collect();
        let rate = stats.iter().map(|stats| stats.up_rate).sum();
        let peers: usize = stats.iter().map(|stats| stats.peers).sum();
        let size: u64 = self.torrents.iter().map(|torrent| torrent.metainfo().layout.lengths().total()).sum();
        let given = self.given();
        let what = match self.torrents.as_slice() {
            [torrent] => torrent.metainfo().name.replace(char::is_control, " "),
            several => format!("{} torrents", several.len()),
        };
        format!(
            "seeding {what}: {}/s to {}, {} given, ratio {:.2}",
            ByteSize(rate),
            count(peers, "peer"),
            ByteSize(given),
            given as f64 / size.max(1) as f64
        )
    }
}
