//! The state of `torrentfs top` and the effect of keys on it. Does no input or output.

use std::collections::VecDeque;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use crate::control::status::{PieceMap, State, Status, TorrentStatus};

/// Number of rates kept for the graph: more than the columns of the widest terminal.
const MAX_HISTORY: usize = 240;
/// Longest rate that can be typed, in characters.
const MAX_TYPED: usize = 24;

/// An effect of a key outside the model.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum KeyAction {
    Quit,
    /// Fetch the status at once, because another torrent or mount is shown.
    Update,
    /// Pause or resume the torrent.
    Pause(Box<TorrentStatus>, bool),
    /// Switch fetching on demand on or off.
    OnDemand(Box<TorrentStatus>, bool),
    /// Set the download or the upload limit.
    Limit {
        down: bool,
        text: String,
    },
}

/// A limit that is being typed.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Prompt {
    pub(super) down: bool,
    pub(super) text: String,
}

/// State of the screen.
pub(super) struct Model {
    /// Number of mounts.
    mounts: usize,
    /// Index of the shown mount.
    pub(super) mount: usize,
    pub(super) status: Status,
    pub(super) map: Option<PieceMap>,
    /// Index of the selected torrent.
    pub(super) torrent: usize,
    /// Recent download rates in bytes per second, the latest last.
    pub(super) down: VecDeque<u64>,
    /// The same for upload rates.
    pub(super) up: VecDeque<u64>,
    pub(super) prompt: Option<Prompt>,
    pub(super) help: bool,
    /// Error to show until the next key.
    pub(super) message: Option<String>,
}

impl Model {
    pub(super) fn new(mounts: usize, status: Status) -> Self {
        Self {
            mounts,
            mount: 0,
            status,
            map: None,
            torrent: 0,
            down: VecDeque::new(),
            up: VecDeque::new(),
            prompt: None,
            help: false,
            message: None,
        }
    }

    /// Returns the selected torrent.
    pub(super) fn selected(&self) -> Option<&TorrentStatus> {
        self.status.torrents.get(self.torrent)
    }

    /// Returns whether there are several mounts.
    pub(super) fn has_others(&self) -> bool {
        self.mounts > 1
    }

    /// Updates the status. The selected torrent stays selected, even if its position changed.
    pub(super) fn update(&mut self, status: Status, map: Option<PieceMap>) {
        let selected = self.selected().map(|torrent| torrent.info_hash.clone());
        let at = status.torrents.iter().position(|torrent| Some(&torrent.info_hash) == selected.as_ref());
        self.torrent = at.unwrap_or(self.torrent).min(status.torrents.len().saturating_sub(1));
        for (history, rate) in [(&mut self.down, status.total.download_rate), (&mut self.up, status.total.upload_rate)]
        {
            history.push_back(rate);
            if history.len() > MAX_HISTORY {
                history.pop_front();
            }
        }
        self.map = map;
        self.status = status;
    }

    /// Shows an error until the next key.
    pub(super) fn show_error(&mut self, message: &str) {
        self.message = Some(message.to_owned());
    }

    /// Handles a key.
    pub(super) fn key(&mut self, key: KeyEvent) -> Option<KeyAction> {
        self.message = None;
        if key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL) {
            return Some(KeyAction::Quit);
        }
        if self.prompt.is_some() {
            return self.type_key(key.code);
        }
        if std::mem::take(&mut self.help) {
            return None;
        }
        let last = self.status.torrents.len().saturating_sub(1);
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return Some(KeyAction::Quit),
            KeyCode::Char('?' | 'h') | KeyCode::F(1) => self.help = true,
            KeyCode::Up | KeyCode::Char('k') => return self.select(self.torrent.saturating_sub(1)),
            KeyCode::Down | KeyCode::Char('j') => return self.select((self.torrent + 1).min(last)),
            KeyCode::Home => return self.select(0),
            KeyCode::End => return self.select(last),
            KeyCode::Tab | KeyCode::Right => return self.switch_mount(1),
            KeyCode::BackTab | KeyCode::Left => return self.switch_mount(self.mounts - 1),
            KeyCode::Char('p') => {
                let torrent = self.selected()?;
                return Some(KeyAction::Pause(Box::new(torrent.clone()), torrent.state != State::Paused));
            }
            KeyCode::Char('o') => {
                let torrent = self.selected()?;
                return Some(KeyAction::OnDemand(Box::new(torrent.clone()), !torrent.on_demand));
            }
            KeyCode::Char(key @ ('l' | 'u')) => {
                self.prompt = Some(Prompt { down: key == 'l', text: String::new() });
            }
            _ => {}
        }
        None
    }

    /// Selects a torrent.
    fn select(&mut self, torrent: usize) -> Option<KeyAction> {
        let moved = std::mem::replace(&mut self.torrent, torrent) != torrent;
        moved.then_some(KeyAction::Update)
    }

    /// Shows the mount `by` positions further.
    fn switch_mount(&mut self, by: usize) -> Option<KeyAction> {
        if !self.has_others() {
            return None;
        }
        self.mount = (self.mount + by) % self.mounts;
        (self.torrent, self.map) = (0, None);
        self.down.clear();
        self.up.clear();
        Some(KeyAction::Update)
    }

    /// Handles a key while a limit is being typed.
    fn type_key(&mut self, key: KeyCode) -> Option<KeyAction> {
        let prompt = self.prompt.as_mut()?;
        match key {
            KeyCode::Char(c) if prompt.text.len() < MAX_TYPED && c.is_ascii_graphic() => prompt.text.push(c),
            KeyCode::Backspace => drop(prompt.text.pop()),
            KeyCode::Esc => self.prompt = None,
            KeyCode::Enter => {
                let Prompt { down, text } = self.prompt.take()?;
                return (!text.is_empty()).then_some(KeyAction::Limit { down, text });
            }
            _ => {}
        }
        None
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use serde_json::json;

    /// Returns the status of a mount with these torrents, each half available.
    pub(in super::super) fn status(names: &[&str]) -> Status {
        let torrents: Vec<_> = names
            .iter()
            .map(|name| {
                json!({
                    "name": name, "info_hash": format!("{name:0>40}"), "state": "fetching", "on_demand": false,
                    "private": false, "size": 1000, "have": 500, "pieces": 10, "pieces_had": 5, "piece_length": 100,
                    "download_rate": 10, "upload_rate": 0, "downloaded": 500, "uploaded": 0, "wasted": 0, "ratio": 0.0,
                    "eta": 50, "seeds": 0, "peers": [], "trackers": [], "verification": null, "priorities": [],
                    "reads": { "memory": 1, "disk": 0, "missed": 1, "hit_rate": 0.5 },
                    "blocked_reads": [{ "file": format!("{name}/film"), "offset": 7, "length": 1, "waiting": 1.5,
                        "pieces": [{ "piece": 5, "peers": 0, "serving": 0, "received": 1, "blocks": 2 }] }],
                })
            })
            .collect();
        let status = json!({
            "version": "1", "pid": 7, "mountpoint": "/mnt/a", "device": "0:1", "uptime": 60, "port": 0, "http": null,
            "dht_nodes": null, "limits": { "download": null, "upload": null },
            "total": { "size": 1000, "have": 500, "download_rate": 10, "upload_rate": 0, "downloaded": 500,
                "uploaded": 0, "ratio": 0.0, "peers": 0, "blocked_reads": 0 },
            "cache": { "directory": "/c", "disk": 500, "disk_limit": null, "memory": 500, "memory_limit": 1000,
                "fault": null, "reads": { "memory": 1, "disk": 0, "missed": 1, "hit_rate": 0.5 } },
            "torrents": torrents,
        });
        serde_json::from_value(status).unwrap()
    }

    fn press(model: &mut Model, keys: &str) -> Option<KeyAction> {
        let code = |c: char| match c {
            '\n' => KeyCode::Enter,
            '<' => KeyCode::Backspace,
            '^' => KeyCode::Up,
            'v' => KeyCode::Down,
            '~' => KeyCode::Esc,
            c => KeyCode::Char(c),
        };
        let press = |c| model.key(KeyEvent::new(code(c), KeyModifiers::NONE));
        keys.chars().map(press).last().flatten()
    }

    #[test]
    fn keys_have_their_actions() {
        let mut model = Model::new(1, status(&["a", "b"]));
        assert_eq!(press(&mut model, "v"), Some(KeyAction::Update));
        assert_eq!(press(&mut model, "v"), None, "it is the last torrent");
        assert_eq!(model.selected().unwrap().name, "b");
        assert!(matches!(press(&mut model, "p"), Some(KeyAction::Pause(torrent, true)) if torrent.name == "b"));
        assert!(matches!(press(&mut model, "o"), Some(KeyAction::OnDemand(torrent, true)) if torrent.name == "b"));
        assert_eq!(press(&mut model, "l50q<0KB\n"), Some(KeyAction::Limit { down: true, text: "500KB".into() }));
        assert_eq!(press(&mut model, "u0\n"), Some(KeyAction::Limit { down: false, text: "0".into() }));
        assert_eq!(press(&mut model, "l5~"), None);
        assert_eq!(press(&mut model, "l\n"), None);
        assert_eq!(press(&mut model, "?"), None);
        assert!(model.help);
        assert_eq!(press(&mut model, "q"), None, "any key closes the help");
        assert_eq!(press(&mut model, "q"), Some(KeyAction::Quit));
        let ctrl_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        press(&mut model, "l");
        assert_eq!(model.key(ctrl_c), Some(KeyAction::Quit));
    }

    #[test]
    fn the_selected_torrent_stays_selected() {
        let mut model = Model::new(1, status(&["a", "b"]));
        press(&mut model, "v");
        model.update(status(&["0", "a", "b"]), None);
        assert_eq!(model.selected().unwrap().name, "b");
        model.update(status(&["0"]), None);
        assert_eq!(model.selected().unwrap().name, "0");
        model.update(status(&[]), None);
        assert!(model.selected().is_none() && press(&mut model, "p").is_none() && press(&mut model, "v").is_none());
    }
}
