//! `torrentfs top` in a real terminal of 80 columns and 24 lines, while a real download runs.

use std::fs;
use std::process::Command;
use std::time::Duration;

use crate::support::terminal::Terminal;
use crate::support::*;
use serde_json::Value;

const LONG: Duration = Duration::from_secs(180);

fn status(mounted: &Mounted) -> Value {
    let output = Command::new(TORRENTFS).args(["status", "--json"]).arg(&mounted.dir).output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn have_count(mounted: &Mounted) -> u64 {
    status(mounted)["torrents"][0]["pieces_had"].as_u64().unwrap()
}

/// Returns the number of pieces on the screen.
fn shown(screen: &str) -> Option<u64> {
    let line = screen.lines().find(|line| line.starts_with("pieces: "))?;
    line.split(' ').nth(1)?.parse().ok()
}

#[test]
fn the_screen_follows_the_status_and_keys_work() {
    if !can_run(&["mktorrent", "opentracker", "libtorrent", "tmux"]) {
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

    // During the download, the screen shows a recent state.
    terminal.wait("the download is seen", |screen| shown(screen).is_some_and(|pieces| pieces > 2));
    for _ in 0..3 {
        let seen = shown(&terminal.screen()).unwrap();
        assert!(seen <= have_count(&mounted));
        terminal.wait("the screen follows", |screen| shown(screen).is_some_and(|pieces| pieces > seen));
    }
    let film = mounted.path("film.mkv");
    let reading = std::thread::spawn(move || read_at(&film, 6 << 20, 1 << 20));
    terminal.wait("a blocked read", |screen| {
        // A read whose pieces have arrived is shown as "all pieces received" for a moment.
        screen.contains("film.mkv at ") && screen.contains('!') && screen.contains("1 peer has it")
    });

    // While paused, every figure equals the status.
    terminal.keys("p");
    terminal.wait("the pause is shown", |screen| screen.contains("paused") && screen.contains("0 peers"));
    wait_until("the mount is paused", LONG, || status(&mounted)["torrents"][0]["state"] == "paused");
    let truth = status(&mounted)["torrents"][0].clone();
    let screen = terminal.wait("the figures are current", |screen| shown(screen) == truth["pieces_had"].as_u64());
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
    // 39 and 49 are the terminal's default colours.
    let codes =
        coloured.split("\x1b[").skip(1).filter_map(|rest| rest.split_once('m')).flat_map(|(codes, _)| codes.split(';'));
    let colours: Vec<&str> = codes.filter(|code| matches!(code.parse(), Ok(30..=38 | 40..=48 | 90..=107))).collect();
    assert!(colours.is_empty(), "{colours:?}: {coloured:?}");

    // The other keys.
    terminal.keys("p");
    terminal.wait("the download continues", |screen| screen.contains("1 peer, ") && screen.contains(&seeder.addr));
    terminal.keys("o");
    wait_until("the torrent is on demand", LONG, || status(&mounted)["torrents"][0]["on_demand"] == true);
    terminal.keys("o");
    wait_until("the torrent is fetched in the background", LONG, || {
        status(&mounted)["torrents"][0]["on_demand"] == false
    });
    terminal.keys("l");
    terminal.wait("a rate is prompted for", |screen| screen.contains("maximum download rate"));
    terminal.line("700KiB");
    wait_until("the limit is set", LONG, || status(&mounted)["limits"]["download"] == 700 << 10);
    terminal.wait("the limit is shown", |screen| screen.contains("(limit 700 KiB/s)"));
    terminal.keys("l");
    terminal.line("much");
    terminal.wait("an invalid rate is reported", |screen| screen.contains("expected a rate"));
    terminal.keys("?");
    terminal.wait("help", |screen| screen.contains("a read waits"));
    terminal.keys("x");
    terminal.wait("help is hidden", |screen| !screen.contains("a read waits"));
    assert_eq!(reading.join().unwrap().unwrap(), noise(8 << 20, 3)[6 << 20..7 << 20]);

    // The terminal is restored, whether a key or a signal ends the program.
    terminal.keys("q");
    let restored = || {
        terminal.wait("the program has ended", |screen| screen.contains("ended 0"));
        terminal.line("clear; stty -a | tr ' ' '\\n' | grep -E '^-?(icanon|echo);?$'; echo checked");
        let screen = terminal
            .wait("the settings of the terminal are printed", |screen| screen.lines().any(|line| line == "checked"));
        assert!(screen.contains("\nicanon\n") || screen.starts_with("icanon\n"), "{screen}");
        assert!(!screen.contains("-echo\n") && !screen.contains("-icanon"), "{screen}");
        terminal.line("clear");
        terminal.wait("the screen is empty", |screen| !screen.contains("checked"));
    };
    restored();
    terminal.line(&top);
    terminal.wait("the program runs again", |screen| shown(screen).is_some());
    // The program is the shell's only child.
    let shell = terminal.tmux(&["display-message", "-p", "#{pane_pid}"]);
    let child = fs::read_to_string(format!("/proc/{0}/task/{0}/children", shell.trim())).unwrap();
    let child: u32 = child.trim().parse().unwrap();
    sh(&format!("kill -TERM {child}"));
    restored();

    // The program ends with the mount.
    terminal.line(&top);
    terminal.wait("the program runs again", |screen| shown(screen).is_some());
    let dir = mounted.dir.display().to_string();
    mounted.stop();
    terminal.wait("the end is reported", |screen| {
        screen.contains(&format!("{dir} has ended")) && screen.contains("ended 0")
    });
}

#[test]
fn a_missing_terminal_is_reported() {
    let output = Command::new(TORRENTFS).args(["top", "/nowhere"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("needs a terminal"), "{output:?}");
}
