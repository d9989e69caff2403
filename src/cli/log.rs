//! The log: its destination, its format and its level.

use std::collections::HashMap;
use std::env;
use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use super::failure::{Exit, Failure};
use super::flags::LogFormat;
use super::progress::Stderr;

/// Lines that one place in the code may log in each [`WINDOW`]: more than anyone reads, and too few for a peer to fill a
/// disk.
const MAX_LINES: u32 = 50;
/// Time over which lines are counted.
const WINDOW: Duration = Duration::from_secs(60);

/// How much to log. The environment variable `TORRENTFS_LOG`, in the syntax of tracing's filters, overrides it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Verbosity {
    filter: &'static str,
    quiet: bool,
}

impl Verbosity {
    pub(super) fn new(verbose: u8, quiet: bool) -> Self {
        let filter = match (quiet, verbose) {
            (true, _) => "error,fuser::reply=off",
            // fuser warns about each operation that is rightly left to the kernel, such as an ioctl for terminals, and about
            // each reply to a request that is gone because its process was killed or the mount has ended.
            (_, 0) => "warn,fuser=error,fuser::reply=off",
            (_, 1) => "warn,fuser=error,fuser::reply=off,torrentfs=info",
            (_, 2) => "info,fuser=error,fuser::reply=off,torrentfs=debug",
            _ => "trace",
        };
        Self { filter, quiet }
    }

    /// Returns whether only errors are logged, and no progress is shown.
    pub(super) fn is_quiet(self) -> bool {
        self.quiet
    }

    fn filter(self) -> EnvFilter {
        EnvFilter::try_from_env("TORRENTFS_LOG").unwrap_or_else(|_| EnvFilter::new(self.filter))
    }
}

/// Logs to standard error, in lines of text.
pub(super) fn to_stderr(verbosity: Verbosity) {
    human(verbosity, || Stderr, io::stderr().is_terminal());
}

/// Logs for a mount in the foreground: to standard error, or to the journal if standard error is connected to it.
pub(super) fn in_foreground(verbosity: Verbosity, format: Option<LogFormat>) -> Result<(), Failure> {
    match format.unwrap_or_else(default_format) {
        LogFormat::Human => to_stderr(verbosity),
        LogFormat::Json => json(verbosity, || Stderr),
        LogFormat::Journald => journald(verbosity)?,
    }
    Ok(())
}

/// Logs for a daemon, which has no standard error: to a file, or to the journal. Panics are logged, too.
pub(super) fn to_file(verbosity: Verbosity, format: Option<LogFormat>, file: File) -> Result<(), Failure> {
    match format.unwrap_or_else(default_format) {
        LogFormat::Human => human(verbosity, Mutex::new(file), false),
        LogFormat::Json => json(verbosity, Mutex::new(file)),
        LogFormat::Journald => journald(verbosity)?,
    }
    std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
    Ok(())
}

/// Returns the journal under systemd, because a line of text would lose its level there; else text.
fn default_format() -> LogFormat {
    if stderr_is_journal() { LogFormat::Journald } else { LogFormat::Human }
}

/// Returns whether standard error is connected to the journal: systemd passes its device and inode in `JOURNAL_STREAM`.
fn stderr_is_journal() -> bool {
    let Ok(stream) = env::var("JOURNAL_STREAM") else { return false };
    let stderr = io::stderr().as_fd().try_clone_to_owned().map(File::from).and_then(|file| file.metadata());
    stderr.is_ok_and(|stderr| stream == format!("{}:{}", stderr.dev(), stderr.ino()))
}

fn human<W>(verbosity: Verbosity, writer: W, colours: bool)
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt::layer().with_ansi(colours).with_writer(writer);
    tracing_subscriber::registry().with(verbosity.filter()).with(RateLimit::default()).with(lines).init();
}

fn json<W>(verbosity: Verbosity, writer: W)
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(writer);
    tracing_subscriber::registry().with(verbosity.filter()).with(RateLimit::default()).with(lines).init();
}

fn journald(verbosity: Verbosity) -> Result<(), Failure> {
    let journal = tracing_journald::layer()
        .map_err(|error| Failure::new(Exit::Resource, format!("cannot reach the journal: {error}")))?
        .with_syslog_identifier("torrentfs".to_owned());
    tracing_subscriber::registry().with(verbosity.filter()).with(RateLimit::default()).with(journal).init();
    Ok(())
}

/// Drops lines that one place in the code logs too often. Debug lines are never dropped: a user who enables them wants all.
#[derive(Default)]
struct RateLimit(Mutex<HashMap<Identifier, Allowance>>);

/// Lines that one place in the code has logged in its current window.
#[derive(Default)]
struct Allowance {
    start: Option<Instant>,
    lines: u32,
    dropped: u32,
}

impl Allowance {
    /// Counts a line. Returns whether it may pass, and how many were dropped in the window before.
    fn take(&mut self, now: Instant) -> (bool, u32) {
        if self.start.is_none_or(|start| now.saturating_duration_since(start) >= WINDOW) {
            let dropped = self.dropped;
            *self = Self { start: Some(now), lines: 1, dropped: 0 };
            return (true, dropped);
        }
        if self.lines < MAX_LINES {
            self.lines += 1;
            return (true, 0);
        }
        self.dropped = self.dropped.saturating_add(1);
        (false, 0)
    }
}

impl<S: Subscriber> Layer<S> for RateLimit {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let about = event.metadata();
        if *about.level() > Level::INFO {
            return true;
        }
        let (passes, dropped) = {
            let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            places.entry(about.callsite()).or_default().take(Instant::now())
        };
        if dropped > 0 {
            tracing::warn!("dropped {dropped} lines like the next one, from {}", about.target());
        }
        passes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_and_counted() {
        let (mut place, begin) = (Allowance::default(), Instant::now());
        let passed = (0..MAX_LINES + 7).filter(|_| place.take(begin).0).count();
        assert_eq!(passed, MAX_LINES as usize);
        assert_eq!(place.take(begin + WINDOW / 2), (false, 0));
        assert_eq!(place.take(begin + WINDOW), (true, 8));
        assert_eq!(place.take(begin + WINDOW), (true, 0));
    }

    #[test]
    fn places_do_not_share_an_allowance_and_debug_lines_have_none() {
        #[derive(Clone, Default)]
        struct Lines(std::sync::Arc<Mutex<Vec<u8>>>);
        impl io::Write for Lines {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.lock().unwrap().extend_from_slice(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let lines = Lines::default();
        let writer = lines.clone();
        let layer = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(move || writer.clone());
        let subscriber = tracing_subscriber::registry().with(RateLimit::default()).with(layer);
        tracing::subscriber::with_default(subscriber, || {
            for n in 0..MAX_LINES * 2 {
                tracing::warn!("flood {n}");
                tracing::debug!("detail {n}");
            }
            tracing::warn!("another place");
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let count = |word: &str| text.matches(word).count();
        assert_eq!(
            (count("flood"), count("detail"), count("another")),
            (MAX_LINES as usize, 2 * MAX_LINES as usize, 1)
        );
    }
}
