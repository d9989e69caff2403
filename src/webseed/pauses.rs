//! Files that a server fails to deliver for now, while it delivers others.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use crate::metainfo::FileIndex;

/// Wait after the second consecutive failure; it doubles with each further one. The first failure is retried at once.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// Maximum to which the wait doubles, so that a server which is back is used again within minutes.
const LONGEST_WAIT: Duration = Duration::from_secs(300);
/// Files that fail in a row, with no file delivered in between, after which the server itself has failed: a server that
/// is down is not asked for every file of a torrent, and a directory of broken files does not count as one.
const MAX_IN_A_ROW: usize = 8;

/// Returns the wait after a number of consecutive failures; `None`: try again at once.
pub(super) fn wait_after(failures: u32) -> Option<Duration> {
    let doublings = failures.checked_sub(2)?.min(10);
    Some((FIRST_WAIT * (1 << doublings)).min(LONGEST_WAIT).mul_f64(rand::random_range(0.75..1.25)))
}

/// The consequence of a file's failure.
#[derive(Debug, PartialEq)]
pub(super) enum Consequence {
    /// It may be chance, because servers close connections as they like: try again at once.
    Again,
    /// The file is not requested for this time.
    Pause(Duration),
    /// It is not about the file: the server has failed.
    Whole,
}

#[derive(Debug)]
struct Pause {
    /// Consecutive failures.
    failures: u32,
    until: Option<Instant>,
    why: String,
}

/// The failing files of one server.
#[derive(Debug, Default)]
pub(super) struct Pauses {
    files: HashMap<FileIndex, Pause>,
    /// Files that have failed since one was delivered.
    in_a_row: HashSet<FileIndex>,
}

impl Pauses {
    /// Records that a file failed. `total` is the number of files that the server should deliver.
    pub(super) fn failed(&mut self, now: Instant, file: FileIndex, total: usize, why: &str) -> Consequence {
        self.in_a_row.insert(file);
        if self.in_a_row.len() >= total.min(MAX_IN_A_ROW) {
            self.files.remove(&file);
            return Consequence::Whole;
        }
        let pause = self.files.entry(file).or_insert(Pause { failures: 0, until: None, why: String::new() });
        if let Some(left) = pause.until.map(|until| until.saturating_duration_since(now)).filter(|left| !left.is_zero())
        {
            // Another request for the file, made before the pause.
            return Consequence::Pause(left);
        }
        pause.failures = pause.failures.saturating_add(1);
        why.clone_into(&mut pause.why);
        let Some(wait) = wait_after(pause.failures) else { return Consequence::Again };
        pause.until = Some(now + wait);
        Consequence::Pause(wait)
    }

    /// Records that bytes of a file came as they should. Returns whether it was failing.
    pub(super) fn delivered(&mut self, file: FileIndex) -> bool {
        self.in_a_row.clear();
        self.files.remove(&file).is_some_and(|pause| pause.until.is_some())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    pub(super) fn is_paused(&self, now: Instant, file: FileIndex) -> bool {
        self.files.get(&file).and_then(|pause| pause.until).is_some_and(|until| now < until)
    }

    /// Returns the first file that was paused and has not come since, with the reason.
    pub(super) fn fault(&self) -> Option<(FileIndex, &str)> {
        let failing = self.files.iter().filter(|(_, pause)| pause.until.is_some());
        failing.min_by_key(|(file, _)| file.0).map(|(file, pause)| (*file, pause.why.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn seconds(consequence: &Consequence) -> f64 {
        let Consequence::Pause(wait) = consequence else { panic!("{consequence:?}") };
        wait.as_secs_f64()
    }

    #[test]
    fn a_failing_file_pauses_alone_and_for_longer_each_time() {
        let (mut pauses, mut now) = (Pauses::default(), Instant::now());
        assert_eq!(pauses.failed(now, FileIndex(1), 3, "500"), Consequence::Again);
        assert!(!pauses.is_paused(now, FileIndex(1)) && pauses.fault().is_none());
        for expected in [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 300.0, 300.0] {
            let wait = seconds(&pauses.failed(now, FileIndex(1), 3, "500"));
            assert!((expected * 0.75..expected * 1.25).contains(&wait), "{wait} of {expected}");
            assert!(pauses.is_paused(now, FileIndex(1)) && !pauses.is_paused(now, FileIndex(0)));
            assert_eq!(pauses.fault(), Some((FileIndex(1), "500")));
            // Requests that were under way count once.
            assert!(seconds(&pauses.failed(now + SECOND / 2, FileIndex(1), 3, "500")) < wait);
            // A little more, because the wait was rounded.
            now += Duration::from_secs_f64(wait) + SECOND / 1_000;
            assert!(!pauses.is_paused(now, FileIndex(1)));
            assert!(!pauses.delivered(FileIndex(0)), "another file");
        }
        assert!(pauses.delivered(FileIndex(1)) && pauses.is_empty());
        assert_eq!(pauses.failed(now, FileIndex(1), 3, "500"), Consequence::Again);
    }

    #[test]
    fn the_server_has_failed_when_all_its_files_or_many_in_a_row_have() {
        let now = Instant::now();
        assert_eq!(Pauses::default().failed(now, FileIndex(0), 1, "500"), Consequence::Whole, "its only file");
        let mut pauses = Pauses::default();
        for file in 0..7 {
            assert_eq!(pauses.failed(now, FileIndex(file), 1000, "500"), Consequence::Again);
        }
        assert_eq!(pauses.failed(now, FileIndex(7), 1000, "500"), Consequence::Whole);
        pauses.delivered(FileIndex(20));
        assert!(matches!(pauses.failed(now, FileIndex(6), 1000, "500"), Consequence::Pause(_)));
    }
}
