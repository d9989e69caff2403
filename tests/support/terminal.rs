//! A terminal for full-screen programs: a tmux server of its own, which runs a shell.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::TORRENTFS;

/// A tmux server that ends with its handle.
pub struct Terminal {
    socket: PathBuf,
}

impl Terminal {
    /// Opens a terminal with its socket in `dir`. `torrentfs` is in the `PATH` of its shell.
    pub fn open(dir: &Path, columns: u16, rows: u16) -> Self {
        let number = (0..).find(|number| !dir.join(format!("tmux{number}")).exists()).unwrap();
        let terminal = Self { socket: dir.join(format!("tmux{number}")) };
        let programs = Path::new(TORRENTFS).parent().unwrap().display();
        // A fixed prompt, so that it is not taken for output.
        let shell = format!("env PS1='$ ' LANG=C.UTF-8 PATH='{programs}':\"$PATH\" sh");
        let (columns, rows) = (columns.to_string(), rows.to_string());
        terminal.tmux(&["-u", "-f", "/dev/null", "new-session", "-d", "-x", &columns, "-y", &rows, &shell]);
        terminal
    }

    /// Runs a tmux command, which must succeed. Returns its output.
    pub fn tmux(&self, args: &[&str]) -> String {
        let output = Command::new("tmux").arg("-S").arg(&self.socket).args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Returns the lines of the screen.
    pub fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }

    /// Returns the lines of the screen with escape sequences for colours.
    pub fn coloured_screen(&self) -> String {
        self.tmux(&["capture-pane", "-p", "-e"])
    }

    /// Types text.
    pub fn keys(&self, keys: &str) {
        self.tmux(&["send-keys", "-l", "--", keys]);
    }

    /// Types Enter.
    pub fn enter(&self) {
        self.tmux(&["send-keys", "Enter"]);
    }

    /// Types a line.
    pub fn line(&self, line: &str) {
        self.keys(line);
        self.enter();
    }

    /// Waits until the screen meets a condition, for at most a minute. Returns the screen.
    pub fn wait(&self, what: &str, done: impl Fn(&str) -> bool) -> String {
        const LIMIT: Duration = Duration::from_secs(60);
        let end = Instant::now() + LIMIT;
        loop {
            let screen = self.screen();
            if done(&screen) {
                return screen;
            }
            assert!(Instant::now() < end, "not within {LIMIT:?}: {what}\n{screen}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Ends this server alone, by its socket.
        let _ = Command::new("tmux").arg("-S").arg(&self.socket).arg("kill-server").output();
    }
}
