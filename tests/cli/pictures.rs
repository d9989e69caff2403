//! The pictures in the README are screens of the program as it is.
//!
//! `TORRENTFS_PICTURES=write cargo test --test cli pictures` draws them anew.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::support::picture::{Screen, mask, text_of};
use crate::support::terminal::Terminal;
use crate::support::*;

/// Size of a picture, in characters: the smallest screen for `torrentfs top`.
const COLUMNS: u16 = 80;
const ROWS: u16 = 24;
/// Width of the demo's terminal, in which the temporary path does not wrap its lines.
const WIDE: u16 = 120;
/// Time limit for a screen to look like its picture.
const LIMIT: Duration = Duration::from_secs(180);

fn is_writing() -> bool {
    std::env::var_os("TORRENTFS_PICTURES").is_some_and(|value| value == "write")
}

/// Draws a picture, or waits until the screen has the words of the committed one.
fn compare(name: &str, title: &str, dir: &Path, terminal: &Terminal) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/pictures").join(name);
    let capture = || {
        let mut screen = Screen::parse(&terminal.coloured_screen());
        // A path that a user might have chosen.
        screen.replace(dir.to_str().unwrap(), "/mnt");
        screen
    };
    if is_writing() {
        return fs::write(path, capture().to_svg(title, COLUMNS.into())).unwrap();
    }
    let expected = mask(&text_of(&fs::read_to_string(&path).unwrap()));
    let end = Instant::now() + LIMIT;
    loop {
        let now = capture().text();
        if mask(&now) == expected {
            return;
        }
        assert!(
            Instant::now() < end,
            "{name} is stale; draw it anew with TORRENTFS_PICTURES=write.\nThe picture:\n{expected}\n\nThe screen:\n{}\n\n{now}",
            mask(&now)
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn the_pictures_show_the_screens_of_today() {
    if !can_run(&["tmux"]) {
        return;
    }
    let _turn = turn();
    let dir = TestDir::new();
    let demo = Terminal::open(dir.path(), WIDE, ROWS);
    let mountpoint = dir.path().join("demo");
    demo.wait("the prompt", |screen| screen.trim() == "$");
    // A picture shows half a download. To compare, its start will do, and a slow one leaves time to find a waiting
    // read.
    let (rate, percent) = if is_writing() { ("", 45) } else { ("--rate 256KiB ", 2) };
    demo.line(&format!("torrentfs demo {rate}{}", mountpoint.display()));
    let has_reached = |screen: &str| {
        let share = screen.lines().rev().find_map(|line| line.split_once(" % of"))?.0.trim().parse::<u64>().ok()?;
        Some(share >= percent)
    };

    let top = Terminal::open(dir.path(), COLUMNS, ROWS);
    demo.wait("the mount", |screen| screen.contains(" % of"));
    top.line(&format!("torrentfs top {}", mountpoint.display()));
    top.wait("the first screen", |screen| screen.contains("waves.y4m") || screen.contains("torrentfs-demo"));
    demo.wait("a part of the download", |screen| has_reached(screen) == Some(true));
    let film = mountpoint.join("torrentfs-demo/video/waves.y4m");
    let reading = std::thread::spawn(move || read_at(&film, 8 << 20, 12 << 20));
    top.wait("a read that waits", |screen| screen.contains("waves.y4m at "));

    compare("top.svg", "torrentfs top /mnt/demo", dir.path(), &top);
    compare("demo.svg", "torrentfs demo /mnt/demo", dir.path(), &demo);

    top.keys("q");
    demo.tmux(&["send-keys", "C-c"]);
    demo.wait("the end of the demo", |screen| screen.trim_end().ends_with('$'));
    // The demo may have ended before the read.
    let _ = reading.join().unwrap();
}
