//! `torrentfs top` in a real terminal of 80 columns and 24 lines, while a real download runs.

use std::fs;
use std::process::Command;
use std::time::Duration;

use crate::support::terminal::Terminal;
use crate::support::*;
use serde_json::Value;

const LONG: Duration = Duration::from_secs(60);

fn status(mounted: &Mounted) -> Value {
    let output = Command::new(TORRENTFS).args(["status", "--json"]).arg(&mounted.dir).output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn had(mounted: &Mounted) -> u64 {
    status(mounted)["torrents"][0]["pieces_had"].as_u64().unwrap()
}

/// The number of pieces that the screen tells of.
fn shown(screen: &str) -> Option<u64> {
    let line = screen.lines().find(|line| line.starts_with("pieces: "))?;
    line.split(' ').nth(1)?.parse().ok()
}

#[test]
fn the_screen_tells_the_truth_and_keys_are_obeyed() {
    if !can_run(&["mktorrent", "opentracker", "/usr/bin/python3", "tmux"]) {
        return;
    }
    let _turn = turn();
    let mut lab = Lab::new();
    let torrent = lab.publish("film.mkv", &noise(8 << 20, 3), 16);
    let seeder = lab.libtorrent("seed", 2, 300_000, &lab.path("payload"), &torrent);
    let mounted = lab.mount("a", &torrent, &[]);
    let terminal = Terminal::open(lab.dir.path(), 80, 24);
    let top = format!("NO_COLOR=1 '{TORRENTFS}' top '{}'; echo ended $?", mounted.dir.display());
    terminal.line(&top);

    // Running: what is shown was so a moment ago.
    terminal.wait("the download is seen", |screen| shown(screen).is_some_and(|pieces| pieces > 2));
    for _ in 0..3 {
        // A screen is at most a second and a half older than what it is compared with.
        let seen = shown(&terminal.screen()).unwrap();
        assert!(seen <= had(&mounted));
        terminal.wait("the screen follows", |screen| shown(screen).is_some_and(|pieces| pieces > seen));
    }
    let film = mounted.path("film.mkv");
    let reading = std::thread::spawn(move || read_at(&film, 6 << 20, 1 << 20));
    terminal.wait("a blocked read", |screen| {
        // In between, a read whose pieces have come is "about to be answered".
        screen.contains("film.mkv at ") && screen.contains('!') && screen.contains("1 peer has it")
    });

    // Standing still: every figure is as the status has it.
    terminal.keys("p");
    terminal.wait("it is paused", |screen| screen.contains("paused") && screen.contains("0 peers"));
    wait_until("the mount is paused", LONG, || status(&mounted)["torrents"][0]["state"] == "paused");
    let truth = status(&mounted)["torrents"][0].clone();
    let screen = terminal.wait("the figures stand still", |screen| shown(screen) == truth["pieces_had"].as_u64());
    let [have, size] = ["have", "size"].map(|key| truth[key].as_u64().unwrap());
    let tenths = have * 1000 / size;
    for figure in [
        format!("pieces: {} of 128, 64.0 KiB each", truth["pieces_had"]),
        format!("{}.{} %", tenths / 10, tenths % 10),
        "8.00 MiB".to_owned(),
        mounted.dir.to_str().unwrap().to_owned(),
        "> ".to_owned() + " film.mkv",
    ] {
        assert!(screen.contains(&figure), "{figure}: {screen}");
    }
    assert!(screen.lines().all(|line| line.chars().count() <= 80) && screen.lines().count() <= 24, "{screen}");
    let coloured = terminal.coloured_screen();
    // 39 and 49 are the terminal's own colours.
    let codes =
        coloured.split("\x1b[").skip(1).filter_map(|rest| rest.split_once('m')).flat_map(|(codes, _)| codes.split(';'));
    let colours: Vec<&str> = codes.filter(|code| matches!(code.parse(), Ok(30..=38 | 40..=48 | 90..=107))).collect();
    assert!(colours.is_empty(), "{colours:?}: {coloured:?}");

    // The other keys.
    terminal.keys("p");
    terminal.wait("it goes on", |screen| screen.contains("1 peers") && screen.contains(&seeder.addr));
    terminal.keys("o");
    wait_until("it is on demand", LONG, || status(&mounted)["torrents"][0]["on_demand"] == true);
    terminal.keys("o");
    wait_until("all of it is fetched", LONG, || status(&mounted)["torrents"][0]["on_demand"] == false);
    terminal.keys("l");
    terminal.wait("a rate is asked for", |screen| screen.contains("limit of what goes from peers"));
    terminal.line("700KiB");
    wait_until("the limit is set", LONG, || status(&mounted)["limits"]["download"] == 700 << 10);
    terminal.wait("the limit is shown", |screen| screen.contains("(limit 700 KiB/s)"));
    terminal.keys("l");
    terminal.line("much");
    terminal.wait("nonsense is said to be so", |screen| screen.contains("expected a rate"));
    terminal.keys("?");
    terminal.wait("help", |screen| screen.contains("a read waits"));
    terminal.keys("x");
    terminal.wait("help goes", |screen| !screen.contains("a read waits"));
    assert_eq!(reading.join().unwrap().unwrap(), noise(8 << 20, 3)[6 << 20..7 << 20]);

    // Whatever ends it, the terminal is as it was.
    terminal.keys("q");
    let restored = || {
        terminal.wait("it has ended", |screen| screen.contains("ended 0"));
        terminal.line("clear; stty -a | tr ' ' '\\n' | grep -E '^-?(icanon|echo);?$'; echo checked");
        let screen = terminal.wait("the terminal is asked", |screen| screen.lines().any(|line| line == "checked"));
        assert!(screen.contains("\nicanon\n") || screen.starts_with("icanon\n"), "{screen}");
        assert!(!screen.contains("-echo\n") && !screen.contains("-icanon"), "{screen}");
        terminal.line("clear");
        terminal.wait("it is empty", |screen| !screen.contains("checked"));
    };
    restored();
    terminal.line(&top);
    terminal.wait("it runs again", |screen| shown(screen).is_some());
    // The only child of the shell in there.
    let shell = terminal.tmux(&["display-message", "-p", "#{pane_pid}"]);
    let child = fs::read_to_string(format!("/proc/{0}/task/{0}/children", shell.trim())).unwrap();
    let child: u32 = child.trim().parse().unwrap();
    sh(&format!("kill -TERM {child}"));
    restored();

    // When the mount ends, so does it.
    terminal.line(&top);
    terminal.wait("it runs again", |screen| shown(screen).is_some());
    let dir = mounted.dir.display().to_string();
    mounted.stop();
    terminal.wait("it says so", |screen| screen.contains(&format!("{dir} has ended")) && screen.contains("ended 0"));
}

#[test]
fn without_a_terminal_or_a_mount_it_says_so() {
    let output = Command::new(TORRENTFS).args(["top", "/nowhere"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("needs a terminal"), "{output:?}");
}
