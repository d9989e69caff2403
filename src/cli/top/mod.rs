//! `torrentfs top`: a mount, watched in the terminal. It speaks to the control socket alone.
//!
//! It asks once a second, and draws when something changed; of what is drawn only what differs is sent, so that a slow
//! line will do. Whatever ends it (a key, a signal, a panic) leaves the terminal as it was.

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
use model::{Model, Order};

const AFTER_HELP: &str = "\
Keys: up and down choose a torrent, p pauses it or has it go on, q ends; ? shows
all of them.";

/// Between two questions to the mount.
const EVERY: Duration = Duration::from_secs(1);
/// How soon the thread that reads keys notices that nobody listens.
const NOTICE: Duration = Duration::from_millis(250);
/// Keys that wait.
const KEYS: usize = 64;
/// Cells of the piece map asked for.
const CELLS: u32 = 1024;

/// Watch a mount in the terminal: torrents, pieces, peers, reads that wait
#[derive(Args, Clone, Debug, PartialEq)]
#[command(after_help = AFTER_HELP)]
pub(super) struct TopArgs {
    /// A mount, or a path in it [default: every mount of this user, one at a time]
    mountpoint: Option<PathBuf>,
}

/// Watches until `q`.
pub(super) fn run(args: &TopArgs) -> Result<(), Failure> {
    if !io::stdout().is_terminal() {
        return Err(Failure::new(Exit::Usage, "`torrentfs top` needs a terminal; `torrentfs status` does not"));
    }
    runtime()?.block_on(async {
        let mounts = match &args.mountpoint {
            Some(mountpoint) => vec![running_mount::find(mountpoint)?],
            None => running_mount::all().await.into_iter().map(|(reached, _)| reached).collect(),
        };
        let Some(first) = mounts.first() else { return Err(Failure::new(Exit::Mountpoint, "nothing is mounted")) };
        // Before the terminal is taken: whatever is wrong is said on it as it is.
        let (status, mut signals) = (first.status().await?, Signals::listen()?);
        let failure = |error: io::Error| Failure::new(Exit::Failure, format!("cannot use the terminal: {error}"));
        // It also has a panic restore the terminal first.
        let mut terminal = ratatui::try_init().map_err(failure)?;
        let watched = tokio::select! {
            watched = watch(&mut terminal, mounts, status) => watched,
            _ = signals.any() => Ok(None),
        };
        ratatui::restore();
        match watched {
            Ok(Some(farewell)) => println!("{farewell}"),
            Ok(None) => {}
            Err(error) => return Err(failure(error)),
        }
        Ok(())
    })
}

/// Until somebody ends it, or the mount does; then there are words.
async fn watch(
    terminal: &mut DefaultTerminal,
    mounts: Vec<RunningMount>,
    status: Status,
) -> io::Result<Option<String>> {
    let mut keys = keys()?;
    let mut model = Model::new(mounts.len(), status);
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let mut ask = false;
        tokio::select! {
            _ = ticks.tick() => ask = true,
            event = keys.recv() => {
                // All that were pressed meanwhile are one change.
                let mut next = event;
                while let Some(event) = next {
                    if let Event::Key(key) = event
                        && key.kind != KeyEventKind::Release
                    {
                        match model.key(key) {
                            Some(Order::Quit) => return Ok(None),
                            Some(order) => {
                                if let Err(error) = obey(&mounts[model.mount], &order).await {
                                    model.said(&error);
                                }
                                ask = true;
                            }
                            None => {}
                        }
                    }
                    next = keys.try_recv().ok();
                }
            }
        }
        let reached = &mounts[model.mount];
        if ask {
            match look(reached, model.selected().map(|torrent| torrent.info_hash.clone())).await {
                Ok((status, map)) => model.look(status, map),
                Err(ClientError::Connect(_)) => return Ok(Some(format!("{} has ended", reached.shown))),
                Err(error) => model.said(&error.to_string()),
            }
        }
        terminal.draw(|frame| view::draw(&model, frame))?;
    }
}

async fn look(reached: &RunningMount, torrent: Option<String>) -> Result<(Status, Option<PieceMap>), ClientError> {
    let status = reached.client.get("/status").await?;
    let map = match torrent {
        Some(hash) => reached.client.get(&format!("/torrents/{hash}/pieces?cells={CELLS}")).await.ok(),
        None => None,
    };
    Ok((status, map))
}

/// Passes an order on; what is wrong with it, in words.
async fn obey(reached: &RunningMount, order: &Order) -> Result<(), String> {
    let done = match order {
        Order::Quit | Order::Look => return Ok(()),
        Order::Pause(torrent, paused) => {
            let changes = TorrentChanges { paused: Some(*paused), ..TorrentChanges::default() };
            reached.change(torrent, &changes).await.map(drop)
        }
        Order::OnDemand(torrent, on_demand) => {
            let changes = TorrentChanges { on_demand: Some(*on_demand), ..TorrentChanges::default() };
            reached.change(torrent, &changes).await.map(drop)
        }
        Order::Limit { down, text } => {
            let rate = Some(values::rate_limit(text.trim())?.0);
            let changes = match down {
                true => LimitChanges { download: rate, ..LimitChanges::default() },
                false => LimitChanges { upload: rate, ..LimitChanges::default() },
            };
            reached.set_limits(&changes).await.map(drop)
        }
    };
    done.map_err(|failure| failure.to_string())
}

/// What is pressed, read by a thread of its own, for reading waits. The thread ends with the receiver.
fn keys() -> io::Result<mpsc::Receiver<Event>> {
    let (give, take) = mpsc::channel(KEYS);
    thread::Builder::new().name("keys".into()).spawn(move || {
        while !give.is_closed() {
            // An error: the terminal is gone.
            let Ok(pressed) = event::poll(NOTICE) else { break };
            if pressed && !event::read().is_ok_and(|event| give.blocking_send(event).is_ok()) {
                break;
            }
        }
    })?;
    Ok(take)
}
