//! One line on standard error that says how things are: it changes in place on a terminal, elsewhere it is said again
//! every so often, and when quiet not at all.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

/// Where there is no terminal.
pub(super) const LINE_EVERY: Duration = Duration::from_secs(10);

pub(super) struct Live {
    place: Place,
    said: String,
}

enum Place {
    Nowhere,
    Terminal,
    Lines(Option<Instant>),
}

impl Live {
    pub(super) fn new(quiet: bool) -> Self {
        let place = match (quiet, io::stderr().is_terminal()) {
            (true, _) => Place::Nowhere,
            (_, true) => Place::Terminal,
            _ => Place::Lines(None),
        };
        Self { place, said: String::new() }
    }

    /// For what is mostly over soon: the first line waits its turn, too, where there is no terminal.
    pub(super) fn later() -> Self {
        let mut live = Self::new(false);
        if let Place::Lines(last) = &mut live.place {
            *last = Some(Instant::now());
        }
        live
    }

    /// Nobody may be listening any more, which is no reason to stop.
    pub(super) fn show(&mut self, line: &str) {
        match &mut self.place {
            Place::Terminal => {
                let _ = write!(io::stderr(), "\r\x1b[K{line}");
            }
            Place::Lines(last) if line != self.said && last.is_none_or(|last| last.elapsed() >= LINE_EVERY) => {
                *last = Some(Instant::now());
                line.clone_into(&mut self.said);
                let _ = writeln!(io::stderr(), "{line}");
            }
            _ => {}
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        if let Place::Terminal = self.place {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}
