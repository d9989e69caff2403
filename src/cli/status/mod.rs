//! `torrentfs status`: prints the status of running mounts.

mod report;

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::failure::{Exit, Failure};
use super::flags::values::duration;
use super::running_mount;
use super::runtime::runtime;
use crate::control::status::Status;

const DESCRIPTION: &str = "\
Without a MOUNTPOINT, every mount of this user is shown; for root, also those of
other users.

If a program hangs while it reads a file, look for the lines that begin with
`waiting`: they name the file, the piece that is missing, and how many peers
have it.

A line that begins with `passthrough` names an open file that the kernel reads
from the cache itself. Its reads are not counted.";

const SECTIONS: &str = "\
Flags of a peer:
  D  we download from it           d  we want data from it, but it chokes us
  U  we upload to it               u  it wants data from us, but we choke it
  I  it connected to us   E  encrypted   P  uTP   S  it stopped answering

JSON:
  The same as /status of the HTTP server. /openapi.json describes the fields,
  which stay the same in later versions; further ones may be added.

Examples:
  torrentfs status
  torrentfs status --watch /mnt/film
  torrentfs status --json /mnt/film | jq .total";

/// Width of the output in columns if it is not a terminal.
const DEFAULT_WIDTH: usize = 80;
/// Shortest interval of `--watch`, to bound the load on the mount.
const MIN_INTERVAL: Duration = Duration::from_millis(100);

/// Show the status of mounts: progress, peers, trackers, cache, waiting reads
#[derive(Args, Clone, Debug, PartialEq)]
#[command(before_help = DESCRIPTION, after_help = SECTIONS)]
pub(super) struct StatusArgs {
    /// Mountpoint, or a path below it [default: every mount of this user]
    mountpoint: Option<PathBuf>,

    /// Print JSON; without a MOUNTPOINT, a list with an entry per mount
    #[arg(long)]
    json: bool,

    /// Repeat at this interval until Ctrl-C; without =TIME, every second
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true, default_missing_value = "1s",
          value_parser = duration)]
    watch: Option<Duration>,
}

/// Prints the status once, or repeatedly with `--watch`.
pub(super) fn run(args: &StatusArgs) -> Result<(), Failure> {
    runtime()?.block_on(async {
        let Some(every) = args.watch else { return print(args, &fetch(args).await?, false) };
        let live = io::stdout().is_terminal() && !args.json;
        loop {
            print(args, &fetch(args).await?, live)?;
            tokio::time::sleep(every.max(MIN_INTERVAL)).await;
        }
    })
}

/// Fetches the status of the selected mounts.
async fn fetch(args: &StatusArgs) -> Result<Vec<Status>, Failure> {
    match &args.mountpoint {
        Some(mountpoint) => {
            let mount = running_mount::find(mountpoint)?;
            Ok(vec![mount.status().await?])
        }
        None => Ok(running_mount::all().await.into_iter().map(|(_, status)| status).collect()),
    }
}

/// Prints the status of mounts. `live` overwrites the previous output on the terminal.
fn print(args: &StatusArgs, all: &[Status], live: bool) -> Result<(), Failure> {
    let text = match (args.json, args.mountpoint.is_some(), all) {
        (true, true, [one]) => to_json(one),
        (true, ..) => to_json(&all),
        (false, _, []) => "nothing is mounted\n".into(),
        (false, ..) => all.iter().map(|status| report::mount(status, columns())).collect::<Vec<_>>().join("\n"),
    };
    // Overwrites line by line from the top, and then clears the rest. Clearing everything first would flicker.
    let text = if live { format!("\x1b[H{}\x1b[J", text.replace('\n', "\x1b[K\n")) } else { text };
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // The reader closed the pipe, as `head` does.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => {
            other.map_err(|error| Failure::new(Exit::Failure, format!("cannot write to standard output: {error}")))
        }
    }
}

fn to_json(value: &impl serde::Serialize) -> String {
    // Fails only for maps whose keys are not strings, and ours are.
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}

/// Returns the width of the output in columns.
fn columns() -> usize {
    let terminal = || ratatui::crossterm::terminal::size().ok().map(|(columns, _)| usize::from(columns));
    let columns = if io::stdout().is_terminal() { terminal() } else { None };
    columns.unwrap_or(DEFAULT_WIDTH).clamp(40, 200)
}
