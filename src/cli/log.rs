//! Where the log goes and how much of it.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::sync::Mutex;

use tracing_subscriber::EnvFilter;

/// How much to tell. `TORRENTFS_LOG` (in the form of tracing's filters) overrules it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Verbosity(&'static str);

impl Verbosity {
    pub(super) fn new(verbose: u8, quiet: bool) -> Self {
        Self(match (quiet, verbose) {
            (true, _) => "error",
            // fuser warns of each operation that is rightly left to the kernel, such as a terminal's ioctl.
            (_, 0) => "warn,fuser=error",
            (_, 1) => "warn,fuser=error,torrentfs=info",
            (_, 2) => "info,fuser=error,torrentfs=debug",
            _ => "trace",
        })
    }

    fn filter(self) -> EnvFilter {
        EnvFilter::try_from_env("TORRENTFS_LOG").unwrap_or_else(|_| EnvFilter::new(self.0))
    }
}

/// The terminal, or whatever standard error is.
pub(super) fn to_stderr(verbosity: Verbosity) {
    tracing_subscriber::fmt()
        .with_env_filter(verbosity.filter())
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr)
        .init();
}

/// A file, for a daemon. Panics are told there, too: its standard error goes nowhere.
pub(super) fn to_file(verbosity: Verbosity, file: File) {
    tracing_subscriber::fmt().with_env_filter(verbosity.filter()).with_ansi(false).with_writer(Mutex::new(file)).init();
    std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
}
