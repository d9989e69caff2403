//! `torrentfs status`

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

const AFTER_HELP: &str = "\
Flags of a peer:
  D  it gives us what we want       d  it has what we want, and refuses
  U  we give it what it wants       u  it wants what we have, and we refuse
  I  it called us   E  encrypted   P  over uTP   S  it stopped answering

Examples:
  torrentfs status
  torrentfs status --watch /mnt/film
  torrentfs status --json /mnt/film | jq .total";

/// Columns where there is no terminal that says.
const WIDTH: usize = 80;
/// Between two looks, at least.
const SOONEST: Duration = Duration::from_millis(100);

/// Show what mounts do: progress, peers, trackers, the cache, reads that wait
#[derive(Args, Clone, Debug, PartialEq)]
#[command(after_help = AFTER_HELP)]
pub(super) struct StatusArgs {
    /// A mount, or a path in it [default: every mount of this user]
    mountpoint: Option<PathBuf>,

    /// As JSON: the same as the control socket's /status; without a MOUNTPOINT a list of them
    #[arg(long)]
    json: bool,

    /// Show it again every so often, until Ctrl-C [default: 1s]
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true, default_missing_value = "1s",
          value_parser = duration)]
    watch: Option<Duration>,
}

/// Asks and shows.
pub(super) fn run(args: &StatusArgs) -> Result<(), Failure> {
    runtime()?.block_on(async {
        let Some(every) = args.watch else { return show(args, &look(args).await?, false) };
        let live = io::stdout().is_terminal() && !args.json;
        loop {
            show(args, &look(args).await?, live)?;
            tokio::time::sleep(every.max(SOONEST)).await;
        }
    })
}

async fn look(args: &StatusArgs) -> Result<Vec<Status>, Failure> {
    match &args.mountpoint {
        Some(mountpoint) => {
            let mount = running_mount::find(mountpoint)?;
            Ok(vec![mount.status().await?])
        }
        None => Ok(running_mount::all().await.into_iter().map(|(_, status)| status).collect()),
    }
}

fn show(args: &StatusArgs, all: &[Status], live: bool) -> Result<(), Failure> {
    let text = match (args.json, args.mountpoint.is_some(), all) {
        (true, true, [one]) => to_json(one),
        (true, ..) => to_json(&all),
        (false, _, []) => "nothing is mounted\n".into(),
        (false, ..) => all.iter().map(|status| report::mount(status, columns())).collect::<Vec<_>>().join("\n"),
    };
    // To the top, each line anew, and away with what is below: nothing flickers.
    let text = if live { format!("\x1b[H{}\x1b[J", text.replace('\n', "\x1b[K\n")) } else { text };
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // Whoever read it has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => other.map_err(|error| Failure::new(Exit::Failure, format!("cannot write: {error}"))),
    }
}

fn to_json(value: &impl serde::Serialize) -> String {
    // It fails only where a key is no string, and all are.
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}

/// As wide as the terminal is, if there is one.
fn columns() -> usize {
    let terminal = || ratatui::crossterm::terminal::size().ok().map(|(columns, _)| usize::from(columns));
    let columns = if io::stdout().is_terminal() { terminal() } else { None };
    columns.unwrap_or(WIDTH).clamp(40, 200)
}
