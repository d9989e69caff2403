//! Where the log goes, in which form, and how much of it.

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

/// One place in the code may log so many lines within [`WINDOW`]: what a peer can cause must not fill a disk.
const LINES: u32 = 50;
const WINDOW: Duration = Duration::from_secs(60);

/// How much to tell. `TORRENTFS_LOG` (in the form of tracing's filters) overrules it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Verbosity {
    filter: &'static str,
    quiet: bool,
}

impl Verbosity {
    pub(super) fn new(verbose: u8, quiet: bool) -> Self {
        let filter = match (quiet, verbose) {
            (true, _) => "error,fuser::reply=off",
            // fuser warns of each operation that is rightly left to the kernel, such as a terminal's ioctl, and of each
            // reply to a request that is gone: who asked was killed, or the mount has ended.
            (_, 0) => "warn,fuser=error,fuser::reply=off",
            (_, 1) => "warn,fuser=error,fuser::reply=off,torrentfs=info",
            (_, 2) => "info,fuser=error,fuser::reply=off,torrentfs=debug",
            _ => "trace",
        };
        Self { filter, quiet }
    }

    /// Whether only errors are to be told.
    pub(super) fn is_quiet(self) -> bool {
        self.quiet
    }

    fn filter(self) -> EnvFilter {
        EnvFilter::try_from_env("TORRENTFS_LOG").unwrap_or_else(|_| EnvFilter::new(self.filter))
    }
}

/// To the terminal, or whatever standard error is, in lines for people.
pub(super) fn to_stderr(verbosity: Verbosity) {
    human(verbosity, || Stderr, io::stderr().is_terminal());
}

/// For a mount that stays in the foreground: to standard error, or to the journal where standard error leads there.
pub(super) fn in_foreground(verbosity: Verbosity, format: Option<LogFormat>) -> Result<(), Failure> {
    match format.unwrap_or_else(usual) {
        LogFormat::Human => to_stderr(verbosity),
        LogFormat::Json => json(verbosity, || Stderr),
        LogFormat::Journald => journald(verbosity)?,
    }
    Ok(())
}

/// For a daemon, whose standard error goes nowhere: to a file, or to the journal. Panics are told there, too.
pub(super) fn of_daemon(verbosity: Verbosity, format: Option<LogFormat>, file: File) -> Result<(), Failure> {
    match format.unwrap_or_else(usual) {
        LogFormat::Human => human(verbosity, Mutex::new(file), false),
        LogFormat::Json => json(verbosity, Mutex::new(file)),
        LogFormat::Journald => journald(verbosity)?,
    }
    std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
    Ok(())
}

/// Under systemd the journal: a line of text there would lose its level.
fn usual() -> LogFormat {
    if leads_to_journal() { LogFormat::Journald } else { LogFormat::Human }
}

/// systemd names in `JOURNAL_STREAM` the device and inode that standard error had at the start.
fn leads_to_journal() -> bool {
    let Ok(stream) = env::var("JOURNAL_STREAM") else { return false };
    let stderr = io::stderr().as_fd().try_clone_to_owned().map(File::from).and_then(|file| file.metadata());
    stderr.is_ok_and(|stderr| stream == format!("{}:{}", stderr.dev(), stderr.ino()))
}

fn human<W>(verbosity: Verbosity, writer: W, colours: bool)
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt::layer().with_ansi(colours).with_writer(writer);
    tracing_subscriber::registry().with(verbosity.filter()).with(Calm::default()).with(lines).init();
}

fn json<W>(verbosity: Verbosity, writer: W)
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(writer);
    tracing_subscriber::registry().with(verbosity.filter()).with(Calm::default()).with(lines).init();
}

fn journald(verbosity: Verbosity) -> Result<(), Failure> {
    let journal = tracing_journald::layer()
        .map_err(|error| Failure::new(Exit::Resource, format!("cannot reach the journal: {error}")))?
        .with_syslog_identifier("torrentfs".to_owned());
    tracing_subscriber::registry().with(verbosity.filter()).with(Calm::default()).with(journal).init();
    Ok(())
}

/// Leaves out what one place in the code logs too often. What is for debugging is left alone: who asks for it wants all.
#[derive(Default)]
struct Calm(Mutex<HashMap<Identifier, Allowance>>);

/// What one place has logged in its current window.
#[derive(Default)]
struct Allowance {
    begin: Option<Instant>,
    lines: u32,
    left_out: u32,
}

impl Allowance {
    /// Whether a line may pass now, and how many were left out before it.
    fn take(&mut self, now: Instant) -> (bool, u32) {
        if self.begin.is_none_or(|begin| now.saturating_duration_since(begin) >= WINDOW) {
            let left_out = self.left_out;
            *self = Self { begin: Some(now), lines: 1, left_out: 0 };
            return (true, left_out);
        }
        if self.lines < LINES {
            self.lines += 1;
            return (true, 0);
        }
        self.left_out = self.left_out.saturating_add(1);
        (false, 0)
    }
}

impl<S: Subscriber> Layer<S> for Calm {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let about = event.metadata();
        if *about.level() > Level::INFO {
            return true;
        }
        let (passes, left_out) = {
            let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            places.entry(about.callsite()).or_default().take(Instant::now())
        };
        if left_out > 0 {
            tracing::warn!("{left_out} lines like the next one, of {}, were left out", about.target());
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
        let passed = (0..LINES + 7).filter(|_| place.take(begin).0).count();
        assert_eq!(passed, LINES as usize);
        assert_eq!(place.take(begin + WINDOW / 2), (false, 0));
        assert_eq!(place.take(begin + WINDOW), (true, 8));
        assert_eq!(place.take(begin + WINDOW), (true, 0));
    }

    #[test]
    fn places_do_not_share_an_allowance_and_debugging_has_none() {
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
        let subscriber = tracing_subscriber::registry().with(Calm::default()).with(layer);
        tracing::subscriber::with_default(subscriber, || {
            for n in 0..LINES * 2 {
                tracing::warn!("flood {n}");
                tracing::debug!("detail {n}");
            }
            tracing::warn!("another place");
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let count = |word: &str| text.matches(word).count();
        assert_eq!((count("flood"), count("detail"), count("another")), (LINES as usize, 2 * LINES as usize, 1));
    }
}
