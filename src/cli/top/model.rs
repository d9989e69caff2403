//! What is shown, and what keys do to it. It draws nothing and asks nobody.

use std::collections::VecDeque;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use crate::control::status::{PieceMap, State, Status, TorrentStatus};

/// Rates remembered: more than the widest terminal shows.
const HISTORY: usize = 240;
/// Characters of a rate that somebody types.
const MAX_TYPED: usize = 24;

/// What a key asks of others.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Order {
    Quit,
    /// Look at once: something else is shown now.
    Look,
    Pause(Box<TorrentStatus>, bool),
    OnDemand(Box<TorrentStatus>, bool),
    /// Of what comes from peers, or goes to them.
    Limit {
        down: bool,
        text: String,
    },
}

/// A rate that is being typed.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Prompt {
    pub(super) down: bool,
    pub(super) text: String,
}

/// All that is shown.
pub(super) struct Model {
    mounts: usize,
    /// Which of the mounts.
    pub(super) mount: usize,
    pub(super) status: Status,
    pub(super) map: Option<PieceMap>,
    /// Which of the torrents.
    pub(super) torrent: usize,
    /// Bytes a second, the latest last.
    pub(super) down: VecDeque<u64>,
    pub(super) up: VecDeque<u64>,
    pub(super) prompt: Option<Prompt>,
    pub(super) help: bool,
    /// What went wrong, until the next key.
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

    pub(super) fn selected(&self) -> Option<&TorrentStatus> {
        self.status.torrents.get(self.torrent)
    }

    pub(super) fn has_others(&self) -> bool {
        self.mounts > 1
    }

    /// The mount as it is now. The torrent that was chosen stays so, wherever it is by now.
    pub(super) fn look(&mut self, status: Status, map: Option<PieceMap>) {
        let chosen = self.selected().map(|torrent| torrent.info_hash.clone());
        let at = status.torrents.iter().position(|torrent| Some(&torrent.info_hash) == chosen.as_ref());
        self.torrent = at.unwrap_or(self.torrent).min(status.torrents.len().saturating_sub(1));
        for (history, rate) in [(&mut self.down, status.total.download_rate), (&mut self.up, status.total.upload_rate)]
        {
            history.push_back(rate);
            if history.len() > HISTORY {
                history.pop_front();
            }
        }
        self.map = map;
        self.status = status;
    }

    pub(super) fn said(&mut self, message: &str) {
        self.message = Some(message.to_owned());
    }

    /// A key was pressed.
    pub(super) fn key(&mut self, key: KeyEvent) -> Option<Order> {
        self.message = None;
        if key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL) {
            return Some(Order::Quit);
        }
        if self.prompt.is_some() {
            return self.typed(key.code);
        }
        if std::mem::take(&mut self.help) {
            return None;
        }
        let last = self.status.torrents.len().saturating_sub(1);
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return Some(Order::Quit),
            KeyCode::Char('?' | 'h') | KeyCode::F(1) => self.help = true,
            KeyCode::Up | KeyCode::Char('k') => return self.choose(self.torrent.saturating_sub(1)),
            KeyCode::Down | KeyCode::Char('j') => return self.choose((self.torrent + 1).min(last)),
            KeyCode::Home => return self.choose(0),
            KeyCode::End => return self.choose(last),
            KeyCode::Tab | KeyCode::Right => return self.turn(1),
            KeyCode::BackTab | KeyCode::Left => return self.turn(self.mounts - 1),
            KeyCode::Char('p') => {
                let torrent = self.selected()?;
                return Some(Order::Pause(Box::new(torrent.clone()), torrent.state != State::Paused));
            }
            KeyCode::Char('o') => {
                let torrent = self.selected()?;
                return Some(Order::OnDemand(Box::new(torrent.clone()), !torrent.on_demand));
            }
            KeyCode::Char(key @ ('l' | 'u')) => {
                self.prompt = Some(Prompt { down: key == 'l', text: String::new() });
            }
            _ => {}
        }
        None
    }

    fn choose(&mut self, torrent: usize) -> Option<Order> {
        let moved = std::mem::replace(&mut self.torrent, torrent) != torrent;
        moved.then_some(Order::Look)
    }

    /// To another mount.
    fn turn(&mut self, by: usize) -> Option<Order> {
        if !self.has_others() {
            return None;
        }
        self.mount = (self.mount + by) % self.mounts;
        (self.torrent, self.map) = (0, None);
        self.down.clear();
        self.up.clear();
        Some(Order::Look)
    }

    fn typed(&mut self, key: KeyCode) -> Option<Order> {
        let prompt = self.prompt.as_mut()?;
        match key {
            KeyCode::Char(c) if prompt.text.len() < MAX_TYPED && c.is_ascii_graphic() => prompt.text.push(c),
            KeyCode::Backspace => drop(prompt.text.pop()),
            KeyCode::Esc => self.prompt = None,
            KeyCode::Enter => {
                let Prompt { down, text } = self.prompt.take()?;
                return (!text.is_empty()).then_some(Order::Limit { down, text });
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

    /// A mount with these torrents, each half here.
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

    fn press(model: &mut Model, keys: &str) -> Option<Order> {
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
    fn keys_order_what_they_say() {
        let mut model = Model::new(1, status(&["a", "b"]));
        assert_eq!(press(&mut model, "v"), Some(Order::Look));
        assert_eq!(press(&mut model, "v"), None, "that was the last");
        assert_eq!(model.selected().unwrap().name, "b");
        assert!(matches!(press(&mut model, "p"), Some(Order::Pause(torrent, true)) if torrent.name == "b"));
        assert!(matches!(press(&mut model, "o"), Some(Order::OnDemand(torrent, true)) if torrent.name == "b"));
        assert_eq!(press(&mut model, "l50q<0KB\n"), Some(Order::Limit { down: true, text: "500KB".into() }));
        assert_eq!(press(&mut model, "u0\n"), Some(Order::Limit { down: false, text: "0".into() }));
        assert_eq!(press(&mut model, "l5~"), None);
        assert_eq!(press(&mut model, "l\n"), None);
        assert_eq!(press(&mut model, "?"), None);
        assert!(model.help);
        assert_eq!(press(&mut model, "q"), None, "any key ends the help");
        assert_eq!(press(&mut model, "q"), Some(Order::Quit));
        let ctrl_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        press(&mut model, "l");
        assert_eq!(model.key(ctrl_c), Some(Order::Quit));
    }

    #[test]
    fn the_chosen_torrent_stays_chosen() {
        let mut model = Model::new(1, status(&["a", "b"]));
        press(&mut model, "v");
        model.look(status(&["0", "a", "b"]), None);
        assert_eq!(model.selected().unwrap().name, "b");
        model.look(status(&["0"]), None);
        assert_eq!(model.selected().unwrap().name, "0");
        model.look(status(&[]), None);
        assert!(model.selected().is_none() && press(&mut model, "p").is_none() && press(&mut model, "v").is_none());
    }
}
