//! `torrentfs top`: shows the status of a mount in the terminal and takes commands by key. It communicates only with the
//! control socket.
//!
//! It fetches the status once a second. Only the characters that change are sent to the terminal, so a slow connection
//! suffices. The terminal is restored however the command ends: by a key, a signal or a panic.

mod model;
mod view;

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use clap::Args;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use super::failure::{Exit, Failure};
use super::flags::values;
use super::running_mount::{self, RunningMount};
use super::runtime::{Signals, runtime};
use crate::control::orders::{LimitChanges, TorrentChanges};
use crate::control::status::{PieceMap, Status};
use crate::web::client::ClientError;
use model::{KeyAction, Model};

const DESCRIPTION: &str = "\
The screen shows the torrents, a map of the pieces of the selected one, its
peers, the transfer rates, and the reads that wait for data. It needs 80 columns
and 24 lines. Set NO_COLOR to switch colours off.";

const SECTIONS: &str = "\
Keys:
  up, down  select a torrent
  tab       switch to the next mount
  p         pause or resume the torrent
  o         fetch the torrent on demand, or all of it
  l, u      set the download limit, the upload limit
  ?         show all keys and symbols
  q         quit

Examples:
  torrentfs top
  torrentfs top /mnt/film";

/// Interval between two updates.
const UPDATE_INTERVAL: Duration = Duration::from_secs(1);
/// Interval at which the thread that reads keys checks whether the receiver is gone.
const KEY_POLL: Duration = Duration::from_millis(250);
/// Capacity of the queue of keys.
const MAX_QUEUED_KEYS: usize = 64;
/// Number of cells requested for the piece map, enough for three rows of a wide terminal.
const MAP_CELLS: u32 = 1024;

/// Watch a mount in the terminal: torrents, pieces, peers, waiting reads
#[derive(Args, Clone, Debug, PartialEq)]
#[command(before_help = DESCRIPTION, after_help = SECTIONS)]
pub(super) struct TopArgs {
    /// Mountpoint, or a path below it [default: every mount of this user, one at a time]
    mountpoint: Option<PathBuf>,
}

/// Runs until a key or a signal ends it.
pub(super) fn run(args: &TopArgs) -> Result<(), Failure> {
    if !io::stdout().is_terminal() {
        return Err(Failure::new(
            Exit::Usage,
            "`torrentfs top` needs a terminal; use `torrentfs status --watch` instead",
        ));
    }
    runtime()?.block_on(async {
        let mounts = match &args.mountpoint {
            Some(mountpoint) => vec![running_mount::find(mountpoint)?],
            None => running_mount::all().await.into_iter().map(|(reached, _)| reached).collect(),
        };
        let Some(first) = mounts.first() else { return Err(Failure::new(Exit::Mountpoint, "nothing is mounted")) };
        // Errors up to here are printed normally, before the terminal switches to the full screen.
        let (status, mut signals) = (first.status().await?, Signals::listen()?);
        let failure = |error: io::Error| Failure::new(Exit::Failure, format!("cannot use the terminal: {error}"));
        // This also sets a panic hook that restores the terminal.
        let mut terminal = ratatui::try_init().map_err(failure)?;
        let watched = tokio::select! {
            watched = watch(&mut terminal, mounts, status) => watched,
            _ = signals.any() => Ok(None),
        };
        ratatui::restore();
        match watched {
            Ok(Some(message)) => println!("{message}"),
            Ok(None) => {}
            Err(error) => return Err(failure(error)),
        }
        Ok(())
    })
}

/// Shows the mounts until the user quits. Returns a message if the mount ends before.
async fn watch(
    terminal: &mut DefaultTerminal,
    mounts: Vec<RunningMount>,
    status: Status,
) -> io::Result<Option<String>> {
    let mut keys = keys()?;
    let mut model = Model::new(mounts.len(), status);
    let mut ticks = interval(UPDATE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let mut update = false;
        tokio::select! {
            _ = ticks.tick() => update = true,
            event = keys.recv() => {
                // Handle all queued keys before the screen is drawn again.
                let mut next = event;
                while let Some(event) = next {
                    if let Event::Key(key) = event
                        && key.kind != KeyEventKind::Release
                    {
                        match model.key(key) {
                            Some(KeyAction::Quit) => return Ok(None),
                            Some(action) => {
                                if let Err(error) = execute(&mounts[model.mount], &action).await {
                                    model.show_error(&error);
                                }
                                update = true;
                            }
                            None => {}
                        }
                    }
                    next = keys.try_recv().ok();
                }
            }
        }
        let mount = &mounts[model.mount];
        if update {
            match fetch(mount, model.selected().map(|torrent| torrent.info_hash.clone())).await {
                Ok((status, map)) => model.update(status, map),
                Err(ClientError::Connect(_)) => return Ok(Some(format!("{} has ended", mount.shown))),
                Err(error) => model.show_error(&error.to_string()),
            }
        }
        terminal.draw(|frame| view::draw(&model, frame))?;
    }
}

/// Fetches the status of a mount and the piece map of one of its torrents.
async fn fetch(mount: &RunningMount, torrent: Option<String>) -> Result<(Status, Option<PieceMap>), ClientError> {
    let status = mount.client.get("/status").await?;
    let map = match torrent {
        Some(hash) => mount.client.get(&format!("/torrents/{hash}/pieces?cells={MAP_CELLS}")).await.ok(),
        None => None,
    };
    Ok((status, map))
}

/// Executes the action of a key. The error is a text for the user.
async fn execute(mount: &RunningMount, action: &KeyAction) -> Result<(), String> {
    let done = match action {
        KeyAction::Quit | KeyAction::Update => return Ok(()),
        KeyAction::Pause(torrent, paused) => {
            let changes = TorrentChanges { paused: Some(*paused), ..TorrentChanges::default() };
            mount.change(torrent, &changes).await.map(drop)
        }
        KeyAction::OnDemand(torrent, on_demand) => {
            let changes = TorrentChanges { on_demand: Some(*on_demand), ..TorrentChanges::default() };
            mount.change(torrent, &changes).await.map(drop)
        }
        KeyAction::Limit { down, text } => {
            let rate = Some(values::rate_limit(text.trim())?.0);
            let changes = match down {
                true => LimitChanges { download: rate, ..LimitChanges::default() },
                false => LimitChanges { upload: rate, ..LimitChanges::default() },
            };
            mount.set_limits(&changes).await.map(drop)
        }
    };
    done.map_err(|failure| failure.to_string())
}

/// Reads keys in a separate thread, because reading blocks. The thread ends when the receiver is dropped.
fn keys() -> io::Result<mpsc::Receiver<Event>> {
    let (sender, receiver) = mpsc::channel(MAX_QUEUED_KEYS);
    thread::Builder::new().name("keys".into()).spawn(move || {
        while !sender.is_closed() {
            // An error means that the terminal is closed.
            let Ok(pressed) = event::poll(KEY_POLL) else { break };
            if pressed && !event::read().is_ok_and(|event| sender.blocking_send(event).is_ok()) {
                break;
            }
        }
    })?;
    Ok(receiver)
}
