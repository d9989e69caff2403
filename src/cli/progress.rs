//! How far a long task is, on standard error: a bar on a terminal, a plain line every few seconds elsewhere, nothing
//! when quiet. Counts bytes; may be told from several threads.

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Where there is no terminal, a line so often.
const LINE_EVERY: Duration = Duration::from_secs(5);

const TEMPLATE: &str =
    "{prefix} [{wide_bar}] {percent:>3} % of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left{msg}";

/// One task. What it shows goes when it is dropped; lines stay.
pub(super) struct Progress {
    total: u64,
    done: AtomicU64,
    shown: Shown,
}

enum Shown {
    Nothing,
    Bar(ProgressBar),
    Lines { what: String, last: Mutex<Line> },
}

/// What the last line said, and when.
struct Line {
    at: Instant,
    done: u64,
    note: String,
}

impl Progress {
    /// Begins to show `what`, as in "hashing film.mkv", of so many bytes.
    pub(super) fn start(what: &str, total: u64, quiet: bool) -> Self {
        let shown = if quiet {
            Shown::Nothing
        } else if io::stderr().is_terminal() {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            // The template is a constant, and the fallback is the library's own bar.
            bar.set_style(ProgressStyle::with_template(TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_prefix(what.to_owned());
            Shown::Bar(bar)
        } else {
            let last = Mutex::new(Line { at: Instant::now(), done: 0, note: String::new() });
            Shown::Lines { what: what.to_owned(), last }
        };
        Self { total, done: AtomicU64::new(0), shown }
    }

    /// So many bytes were done before: they count for neither rate nor time left.
    pub(super) fn resume(&self, done: u64) {
        self.done.store(done, Ordering::Relaxed);
        match &self.shown {
            Shown::Nothing => {}
            Shown::Bar(bar) => {
                bar.set_position(done);
                bar.reset_eta();
            }
            Shown::Lines { last, .. } => last.lock().unwrap_or_else(PoisonError::into_inner).done = done,
        }
    }

    /// So many bytes more are done.
    pub(super) fn add(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        self.show(done);
    }

    /// So many bytes are done in all.
    pub(super) fn set(&self, done: u64) {
        self.done.store(done, Ordering::Relaxed);
        self.show(done);
    }

    /// What is told behind the numbers from now on, as in "3 peers".
    pub(super) fn note(&self, note: &str) {
        match &self.shown {
            Shown::Nothing => {}
            Shown::Bar(bar) => bar.set_message(format!(", {note}")),
            Shown::Lines { last, .. } => {
                last.lock().unwrap_or_else(PoisonError::into_inner).note = format!(", {note}");
            }
        }
    }

    /// Says a line that stays, without spoiling the bar.
    pub(super) fn say(&self, line: &str) {
        match &self.shown {
            Shown::Nothing => {}
            Shown::Bar(bar) => bar.suspend(|| to_stderr(line)),
            Shown::Lines { .. } => to_stderr(line),
        }
    }

    fn show(&self, done: u64) {
        match &self.shown {
            Shown::Nothing => {}
            Shown::Bar(bar) => bar.set_position(done),
            Shown::Lines { what, last } => {
                // Who finds it taken has nothing newer to say.
                let Ok(mut last) = last.try_lock() else { return };
                let since = last.at.elapsed();
                if since >= LINE_EVERY {
                    let rate = done.saturating_sub(last.done) as f64 / since.as_secs_f64();
                    to_stderr(&line(what, done, self.total, rate, &last.note));
                    (last.at, last.done) = (Instant::now(), done);
                }
            }
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Shown::Bar(bar) = &self.shown {
            bar.finish_and_clear();
        }
    }
}

/// Nobody may be listening any more, which is no reason to stop.
fn to_stderr(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

fn line(what: &str, done: u64, total: u64, rate: f64, note: &str) -> String {
    let percent = done as f64 * 100.0 / total.max(1) as f64;
    format!("{what}: {percent:.0} % of {}, {}/s{note}", ByteSize(total), ByteSize(rate as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_how_far_and_how_fast() {
        let said = line("hashing film.mkv", 1 << 30, 4 << 30, 200.0 * f64::from(1 << 20), ", 3 peers");
        assert_eq!(said, "hashing film.mkv: 25 % of 4.0 GiB, 200.0 MiB/s, 3 peers");
        assert_eq!(line("checking t", 0, 0, 0.0, ""), "checking t: 0 % of 0 B, 0 B/s");
    }

    #[test]
    fn the_template_is_one() {
        assert!(ProgressStyle::with_template(TEMPLATE).is_ok());
    }
}
