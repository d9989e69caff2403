//! The progress of a long task, on standard error: a bar or a spinner on a terminal, a line every few seconds elsewhere, and
//! nothing with `--quiet`. Several threads may report progress.
//!
//! All bars of the program are drawn together. Everything else that is written to standard error goes through [`Stderr`],
//! which prints it above the bars.

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::session::CheckProgress;

/// Time between two lines where standard error is not a terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);
/// Time between two frames of a spinner. It turns even without progress, to show that the program is alive.
const SPINNER_INTERVAL: Duration = Duration::from_millis(200);

const BAR: &str =
    "{prefix} [{wide_bar}] {percent:>3} % of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left{msg}";
const SPINNER: &str = "{spinner} {wide_msg}";

/// All bars. Created with the first bar or line of the log, which is after a daemon has forked.
static BARS: LazyLock<MultiProgress> = LazyLock::new(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr()));

/// The progress of one task: a number of bytes, or a text. Nothing is shown before the first report. Dropping it clears the
/// bar or spinner; lines stay.
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
    /// Name of the task, as in "hashing film.mkv".
    task: String,
    interval: Duration,
    /// When the last line was printed; `None`: the next line is due at once.
    last: Option<Instant>,
    /// Bytes done at the last line.
    done: u64,
    /// Text of the last line, for a task without numbers.
    text: String,
    /// Addition to every line.
    note: String,
}

impl Progress {
    /// Starts a task of `total` bytes with a name such as "hashing film.mkv".
    pub(super) fn start(task: &str, total: u64, quiet: bool) -> Self {
        Self::new(task, total, quiet, BAR)
    }

    /// Starts a task without numbers, which [`Self::set_text`] describes.
    pub(super) fn spinner(quiet: bool) -> Self {
        let spinner = Self::new("", 0, quiet, SPINNER);
        if let Shown::Bar(bar) = &spinner.shown {
            bar.enable_steady_tick(SPINNER_INTERVAL);
        }
        spinner
    }

    /// Where standard error is not a terminal, prints the first line at once and then one every `interval`.
    pub(super) fn with_lines_every(mut self, interval: Duration) -> Self {
        if let Shown::Lines(lines) = &mut self.shown {
            let lines = lines.get_mut().unwrap_or_else(PoisonError::into_inner);
            (lines.last, lines.interval) = (None, interval);
        }
        self
    }

    fn new(task: &str, total: u64, quiet: bool, template: &str) -> Self {
        let shown = if quiet {
            Shown::Nothing
        } else if io::stderr().is_terminal() {
            // A test checks that the templates are valid.
            let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden());
            Shown::Bar(BARS.add(bar.with_style(style).with_prefix(task.to_owned())))
        } else {
            Shown::Lines(Mutex::new(Lines::new(task, Some(Instant::now()), LINE_INTERVAL)))
        };
        Self { total: total.into(), done: AtomicU64::new(0), shown }
    }

    /// Adds bytes to the total.
    fn add_total(&self, bytes: u64) {
        let total = self.total.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        if let Shown::Bar(bar) = &self.shown {
            bar.set_length(total);
        }
    }

    /// Sets the bytes that an earlier run did. They do not count for the rate and the time left.
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

    /// Adds bytes that are done.
    pub(super) fn add(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        self.show(done);
    }

    /// Sets the bytes that are done.
    pub(super) fn set(&self, done: u64) {
        self.done.store(done, Ordering::Relaxed);
        self.show(done);
    }

    /// Sets the text behind the numbers, as in "3 peers".
    pub(super) fn set_note(&self, note: &str) {
        match &self.shown {
            Shown::Nothing => {}
            Shown::Bar(bar) => bar.set_message(format!(", {note}")),
            Shown::Lines(lines) => lines.lock().unwrap_or_else(PoisonError::into_inner).note = format!(", {note}"),
        }
    }

    /// Sets the text of a task without numbers. Where standard error is not a terminal, only a changed text is printed.
    pub(super) fn set_text(&self, text: &str) {
        match &self.shown {
            Shown::Nothing => {}
            Shown::Bar(bar) => bar.set_message(text.to_owned()),
            Shown::Lines(lines) => {
                let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
                if lines.text != text && lines.is_due() {
                    text.clone_into(&mut lines.text);
                    print_line(text);
                }
            }
        }
    }

    /// Prints a line above the bar, unless quiet.
    pub(super) fn print(&self, line: &str) {
        if !matches!(self.shown, Shown::Nothing) {
            print_line(line);
        }
    }

    /// Returns a receiver for the progress of checks. Each check adds its bytes to the total when it begins. It does nothing
    /// after this task has been dropped.
    pub(super) fn check_progress(self: &Arc<Self>) -> CheckProgress {
        let progress = Arc::downgrade(self);
        CheckProgress::new(move |more, done| {
            if let Some(progress) = progress.upgrade() {
                if more > 0 {
                    progress.add_total(more);
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
                // Another thread is printing, with numbers as recent as these.
                let Ok(mut lines) = lines.try_lock() else { return };
                if let Some(line) = lines.next(done, self.total.load(Ordering::Relaxed)) {
                    print_line(&line);
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
    fn new(task: &str, last: Option<Instant>, interval: Duration) -> Self {
        Self { task: task.to_owned(), interval, last, done: 0, text: String::new(), note: String::new() }
    }

    /// Returns whether the next line is due. If so, the caller must print it.
    fn is_due(&mut self) -> bool {
        let due = self.last.is_none_or(|last| last.elapsed() >= self.interval);
        if due {
            self.last = Some(Instant::now());
        }
        due
    }

    fn next(&mut self, done: u64, total: u64) -> Option<String> {
        let since = self.last.map_or(Duration::ZERO, |last| last.elapsed());
        if !self.is_due() {
            return None;
        }
        let rate = done.saturating_sub(self.done) as f64 / since.as_secs_f64().max(0.001);
        self.done = done;
        Some(line(&self.task, done, total, rate, &self.note))
    }
}

fn line(task: &str, done: u64, total: u64, rate: f64, note: &str) -> String {
    let percent = done as f64 * 100.0 / total.max(1) as f64;
    format!("{task}: {percent:.0} % of {}, {}/s{note}", ByteSize(total), ByteSize(rate as u64))
}

/// Prints a line to standard error. An error is ignored: a closed standard error is no reason to stop.
fn print_line(line: &str) {
    let _ = writeln!(Stderr, "{line}");
}

/// Standard error. Writes appear above the bars.
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
    fn a_line_has_task_percentage_and_rate() {
        let text = line("hashing film.mkv", 1 << 30, 4 << 30, 200.0 * f64::from(1 << 20), ", 3 peers");
        assert_eq!(text, "hashing film.mkv: 25 % of 4.0 GiB, 200.0 MiB/s, 3 peers");
        assert_eq!(line("checking t", 0, 0, 0.0, ""), "checking t: 0 % of 0 B, 0 B/s");
    }

    #[test]
    fn lines_are_printed_once_an_interval() {
        let mut lines = Lines::new("checking t", Some(Instant::now()), Duration::from_secs(3600));
        assert_eq!(lines.next(5, 10), None);
        lines.interval = Duration::ZERO;
        assert!(lines.next(5, 10).is_some_and(|line| line.starts_with("checking t: 50 % of 10 B, ")));
        assert_eq!(lines.done, 5);
        let mut at_once = Lines::new("", None, Duration::from_secs(3600));
        assert!(at_once.is_due() && !at_once.is_due());
    }

    #[test]
    fn checks_of_several_torrents_share_one_bar() {
        let progress = Arc::new(Progress::start("checking", 0, true));
        let checks = progress.check_progress();
        for (more, done) in [(100, 0), (0, 10), (50, 0), (0, 50)] {
            checks.add(more, done);
        }
        assert_eq!((progress.total.load(Ordering::Relaxed), progress.done.load(Ordering::Relaxed)), (150, 60));
        drop(progress);
        checks.add(1, 1);
    }

    #[test]
    fn the_templates_are_valid() {
        assert!(ProgressStyle::with_template(BAR).is_ok() && ProgressStyle::with_template(SPINNER).is_ok());
    }
}
