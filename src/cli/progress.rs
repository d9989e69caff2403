//! How far a task is that people wait for, on standard error: a bar or a spinner on a terminal, a plain line every few
//! seconds elsewhere, nothing when quiet. May be told from several threads.
//!
//! All bars of the program are drawn together, and whatever else is written there while they stand goes above them
//! ([`Stderr`]).

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::session::CheckProgress;

/// Where there is no terminal, a line so often.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// A spinner turns though nothing is told, so that nobody thinks the program dead.
const TURN_EVERY: Duration = Duration::from_millis(200);

const BAR: &str =
    "{prefix} [{wide_bar}] {percent:>3} % of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left{msg}";
const SPINNER: &str = "{spinner} {wide_msg}";

/// Not before the first bar or line of the log, and so not before a daemon is split off.
static BARS: LazyLock<MultiProgress> = LazyLock::new(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr()));

/// One task: of so many bytes, or one of which nobody knows how long it takes. Nothing is shown before something is
/// told; what it shows goes when it is dropped, but for lines.
pub(super) struct Progress {
    total: AtomicU64,
    done: AtomicU64,
    shown: Shown,
}

enum Shown {
    Nothing,
    Bar(ProgressBar),
    Lines(Mutex<Lines>),
}

struct Lines {
    what: String,
    every: Duration,
    /// What the last line said, and when.
    at: Option<Instant>,
    done: u64,
    said: String,
    note: String,
}

impl Progress {
    /// A task of so many bytes: `what`, as in "hashing film.mkv".
    pub(super) fn start(what: &str, total: u64, quiet: bool) -> Self {
        Self::new(what, total, quiet, BAR)
    }

    /// One of which can only be told how things are: see [`Self::tell`].
    pub(super) fn open(quiet: bool) -> Self {
        let open = Self::new("", 0, quiet, SPINNER);
        if let Shown::Bar(bar) = &open.shown {
            bar.enable_steady_tick(TURN_EVERY);
        }
        open
    }

    /// Where there is no terminal the first line comes at once, and then one so often.
    pub(super) fn at_once(mut self, every: Duration) -> Self {
        if let Shown::Lines(lines) = &mut self.shown {
            let lines = lines.get_mut().unwrap_or_else(PoisonError::into_inner);
            (lines.at, lines.every) = (None, every);
        }
        self
    }

    fn new(what: &str, total: u64, quiet: bool, template: &str) -> Self {
        let shown = if quiet {
            Shown::Nothing
        } else if io::stderr().is_terminal() {
            // The templates are constants, and the fallback is the library's own bar.
            let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden());
            Shown::Bar(BARS.add(bar.with_style(style).with_prefix(what.to_owned())))
        } else {
            Shown::Lines(Mutex::new(Lines::new(what, Some(Instant::now()), LINE_EVERY)))
        };
        Self { total: total.into(), done: AtomicU64::new(0), shown }
    }

    /// There is more to do than was known.
    fn expect(&self, bytes: u64) {
        let total = self.total.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        if let Shown::Bar(bar) = &self.shown {
            bar.set_length(total);
        }
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
            Shown::Lines(lines) => lines.lock().unwrap_or_else(PoisonError::into_inner).done = done,
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
            Shown::Lines(lines) => lines.lock().unwrap_or_else(PoisonError::into_inner).note = format!(", {note}"),
        }
    }

    /// How things are, of a task without numbers. Said again only if it is something else.
    pub(super) fn tell(&self, how: &str) {
        match &self.shown {
            Shown::Nothing => {}
            Shown::Bar(bar) => bar.set_message(how.to_owned()),
            Shown::Lines(lines) => {
                let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
                if lines.said != how && lines.is_due() {
                    how.clone_into(&mut lines.said);
                    say(how);
                }
            }
        }
    }

    /// Says a line that stays, without spoiling the bar.
    pub(super) fn say(&self, line: &str) {
        if !matches!(self.shown, Shown::Nothing) {
            say(line);
        }
    }

    /// To be told of checks, of several torrents at once, for as long as this lives: their bytes are added to what there
    /// is to do as each begins.
    pub(super) fn of_checks(self: &Arc<Self>) -> CheckProgress {
        let progress = Arc::downgrade(self);
        CheckProgress::new(move |more, done| {
            if let Some(progress) = progress.upgrade() {
                if more > 0 {
                    progress.expect(more);
                }
                progress.add(done);
            }
        })
    }

    fn show(&self, done: u64) {
        match &self.shown {
            Shown::Nothing => {}
            Shown::Bar(bar) => bar.set_position(done),
            Shown::Lines(lines) => {
                // Who finds it taken has nothing newer to say.
                let Ok(mut lines) = lines.try_lock() else { return };
                if let Some(line) = lines.next(done, self.total.load(Ordering::Relaxed)) {
                    say(&line);
                }
            }
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Shown::Bar(bar) = &self.shown {
            bar.finish_and_clear();
            BARS.remove(bar);
        }
    }
}

impl Lines {
    fn new(what: &str, at: Option<Instant>, every: Duration) -> Self {
        Self { what: what.to_owned(), every, at, done: 0, said: String::new(), note: String::new() }
    }

    /// Whether it is time for another line, which is then taken for said.
    fn is_due(&mut self) -> bool {
        let due = self.at.is_none_or(|at| at.elapsed() >= self.every);
        if due {
            self.at = Some(Instant::now());
        }
        due
    }

    fn next(&mut self, done: u64, total: u64) -> Option<String> {
        let since = self.at.map_or(Duration::ZERO, |at| at.elapsed());
        if !self.is_due() {
            return None;
        }
        let rate = done.saturating_sub(self.done) as f64 / since.as_secs_f64().max(0.001);
        self.done = done;
        Some(line(&self.what, done, total, rate, &self.note))
    }
}

fn line(what: &str, done: u64, total: u64, rate: f64, note: &str) -> String {
    let percent = done as f64 * 100.0 / total.max(1) as f64;
    format!("{what}: {percent:.0} % of {}, {}/s{note}", ByteSize(total), ByteSize(rate as u64))
}

/// Nobody may be listening any more, which is no reason to stop.
fn say(line: &str) {
    let _ = writeln!(Stderr, "{line}");
}

/// Standard error, above the bars.
pub(super) struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes).map(|()| bytes.len())
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        BARS.suspend(|| io::stderr().write_all(bytes))
    }

    fn write_fmt(&mut self, text: std::fmt::Arguments<'_>) -> io::Result<()> {
        self.write_all(text.to_string().as_bytes())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
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
    fn lines_wait_their_turn() {
        let mut lines = Lines::new("checking t", Some(Instant::now()), Duration::from_secs(3600));
        assert_eq!(lines.next(5, 10), None);
        lines.every = Duration::ZERO;
        assert!(lines.next(5, 10).is_some_and(|line| line.starts_with("checking t: 50 % of 10 B, ")));
        assert_eq!(lines.done, 5);
        let mut at_once = Lines::new("", None, Duration::from_secs(3600));
        assert!(at_once.is_due() && !at_once.is_due());
    }

    #[test]
    fn checks_of_several_torrents_are_one_task() {
        let progress = Arc::new(Progress::start("checking", 0, true));
        let checks = progress.of_checks();
        for (more, done) in [(100, 0), (0, 10), (50, 0), (0, 50)] {
            checks.add(more, done);
        }
        assert_eq!((progress.total.load(Ordering::Relaxed), progress.done.load(Ordering::Relaxed)), (150, 60));
        drop(progress);
        checks.add(1, 1);
    }

    #[test]
    fn the_templates_are_sound() {
        assert!(ProgressStyle::with_template(BAR).is_ok() && ProgressStyle::with_template(SPINNER).is_ok());
    }
}
