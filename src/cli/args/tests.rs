//! The meaning of command lines, errors of wrong ones, and the help.

use std::ffi::OsString;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use clap::Arg;
use clap::error::ErrorKind;

use super::*;
use crate::cli::cache_dir::CacheDir;
use crate::cli::failure::Exit;
use crate::cli::flags::{HttpFlags, LogFormat, MountOptions, NetworkArgs, Options};
use crate::cli::mount_args::MountArgs;
use crate::cli::{helper, manual};
use crate::net::PortChoice;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::parse_words(line.split(' ').map(OsString::from))
}

fn mount_args(flags: &str) -> MountArgs {
    match parse(format!("torrentfs mount a.torrent /mnt {flags}").trim_end()) {
        Ok(Cli { command: Command::Mount(command), .. }) => command.over(Options::default()),
        other => panic!("{flags}: {other:?}"),
    }
}

fn usage_error(line: &str) -> String {
    let error = parse(line).unwrap_err();
    assert_eq!(error.exit_code(), Exit::Usage as i32);
    error.to_string()
}

#[test]
fn the_definition_is_valid() {
    Cli::definition().debug_assert();
}

#[test]
fn defaults() {
    let expected = MountArgs {
        sources: vec!["a.torrent".into()],
        mountpoint: "/mnt".into(),
        foreground: false,
        on_demand: false,
        read_timeout: Some(Duration::from_secs(120)),
        passthrough: true,
        cache_dir: CacheDir::Shared(None),
        cache_size: Some(20 << 30),
        memory: 32 << 20,
        verify: false,
        delete_removed: false,
        network: NetworkArgs::default(),
        http: HttpFlags::default(),
        log_format: None,
        options: MountOptions::default(),
    };
    assert_eq!(mount_args(""), expected);
    assert_eq!(mount_args("-o rw,nosuid"), expected);
    let nodes = mount_args("--dht-bootstrap a:1 --dht-bootstrap [::1]:2").network.dht.unwrap();
    assert_eq!(nodes, ["a:1", "[::1]:2"]);
}

#[test]
fn every_flag_and_the_option_of_its_name_mean_the_same() {
    let expected = MountArgs {
        foreground: true,
        on_demand: true,
        read_timeout: Some(Duration::from_secs(300)),
        passthrough: false,
        cache_dir: CacheDir::Exclusive("/var/c".into()),
        cache_size: Some(1 << 30),
        memory: 64 << 20,
        verify: true,
        network: NetworkArgs {
            port: PortChoice::Exactly(0),
            route: crate::route::Route {
                proxy: Some("socks5://me:secret@10.0.0.1:1080".parse().unwrap()),
                bind: crate::route::Bind::Address([127, 0, 0, 1].into()),
            },
            peers: vec![([10, 0, 0, 1], 80).into(), "[::1]:81".parse().unwrap()],
            download_limit: Some(2 << 20),
            upload_limit: Some(500_000),
            active_downloads: Some(3),
            upload: false,
            seed: crate::session::SeedLimits { ratio: Some(1.5), time: Some(Duration::from_secs(3600)) },
            dht: None,
            lsd: false,
            port_mapping: None,
            utp: false,
            encryption: crate::net::Encryption::Require,
            blocklist: Some("/etc/blocked".into()),
            pex: false,
            metadata_timeout: Some(Duration::from_secs(60)),
        },
        http: HttpFlags { http: Some(([127, 0, 0, 1], 8080).into()), http_token: Some("0123456789abcdef".into()) },
        log_format: Some(LogFormat::Json),
        ..mount_args("")
    };
    let flags = "--foreground --on-demand --no-passthrough --read-timeout 5min --cache-dir /var/c --cache-size 1GiB --memory 64MiB \
                 --verify --port 0 --bind 127.0.0.1 --peer 10.0.0.1:80 --peer [::1]:81 --download-limit 2MiB/s --active-downloads 3 \
                 --upload-limit 500KB --no-upload --no-dht --no-lsd --no-utp --no-port-mapping --encryption require --proxy socks5://me:secret@10.0.0.1:1080 --blocklist /etc/blocked --no-pex \
                 --http 127.0.0.1:8080 --http-token 0123456789abcdef --metadata-timeout 1min --seed-ratio 1.5 --seed-time 1h --log-format json";
    assert_eq!(mount_args(flags), expected);
    let options = flags.replace(" --", ",").replace(' ', "=").replacen("--", "", 1);
    assert_eq!(mount_args(&format!("-o {options}")), expected);
    let options = options.replace('-', "_");
    let (first, second) = options.split_at(options.find("verify").unwrap());
    let halves = format!("-o {} -o {}", first.trim_end_matches(','), second);
    assert_eq!(mount_args(&halves), expected);
}

#[test]
fn every_flag_can_be_an_option() {
    let command = Cli::definition();
    let mount = command.find_subcommand("mount").unwrap();
    for name in mount.get_arguments().filter(|arg| !arg.is_global_set()).filter_map(|arg| arg.get_long()) {
        let known = Options::from_str(name).is_ok() || Options::from_str(name).unwrap_err().contains("value");
        assert!(known, "{name}");
    }
}

#[test]
fn a_boolean_flag_can_be_unset_and_takes_no_other_argument() {
    let command = Cli::definition();
    let is_boolean = |arg: &&Arg| arg.get_value_names().is_some_and(|names| names == ["BOOL"]);
    let switches: Vec<_> = command.find_subcommand("mount").unwrap().get_arguments().filter(is_boolean).collect();
    assert_eq!(switches.len(), 11);
    for name in switches.iter().filter_map(|arg| arg.get_long()) {
        let on = mount_args(&format!("-o {name}"));
        assert_ne!(on, mount_args(""), "{name}");
        assert_eq!(mount_args(&format!("-o {name}=yes")), on);
        assert_eq!(mount_args(&format!("-o {name},{name}=false")), mount_args(""), "{name}");
        assert_eq!(mount_args(&format!("--{name}")), on);
        assert_eq!(mount_args(&format!("-o {name} --{name}=no")), mount_args(""), "{name}");
        assert_eq!(mount_args(&format!("-o {name}=off --{name}")), on, "{name}");
    }
    let own = |options: &str| mount_args(options).options;
    let (allow_other, noexec) =
        (|set| MountOptions { allow_other: set, ..own("") }, |set| MountOptions { noexec: set, ..own("") });
    assert_eq!(own("-o allow_other -o allow_other=no"), allow_other(Some(false)));
    assert_eq!(own("-o allow_other=0,allow_other"), allow_other(Some(true)));
    assert_eq!(own("-o noexec -o exec"), noexec(Some(false)));
    for line in ["-f a.torrent /mnt", "--foreground a.torrent /mnt", "-fv a.torrent /mnt", "a.torrent -f /mnt"] {
        match parse(&format!("torrentfs mount {line}")).unwrap() {
            Cli { command: Command::Mount(command), verbose, .. } => {
                let args = command.over(Options::default());
                assert_eq!((args.sources, args.foreground), (vec!["a.torrent".into()], true), "{line}");
                assert_eq!(verbose, u8::from(line.starts_with("-fv")));
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(usage_error("torrentfs mount --on-demand=maybe a.torrent /mnt").contains("expected true or false"));
}

#[test]
fn flags_override_options_and_later_options_earlier_ones() {
    let args = mount_args("--cache-size 2GiB -o cache_size=1GiB,memory=2MiB -o memory=3MiB,uid=5");
    assert_eq!((args.cache_size, args.memory, args.options.uid), (Some(2 << 30), 3 << 20, Some(5)));
    assert_eq!(mount_args("--memory 2MiB --memory 3MiB").memory, 3 << 20);
    let args = mount_args("--peer 1.1.1.1:1 -o peer=2.2.2.2:2,peer=3.3.3.3:3");
    assert_eq!(args.network.peers.len(), 3);
}

/// A cache directory on the command line is exclusive, and a configured one is shared by all mounts.
#[test]
fn a_configured_cache_directory_is_shared() {
    let over = |line: &str| match parse(line).unwrap().command {
        Command::Mount(command) => command.over("cache_dir=/var/all,memory=2MiB".parse().unwrap()),
        other => panic!("{other:?}"),
    };
    let args = over("torrentfs mount a.torrent /mnt");
    assert_eq!((args.cache_dir, args.memory), (CacheDir::Shared(Some("/var/all".into())), 2 << 20));
    for flags in ["--cache-dir /var/c", "-o cache_dir=/var/c", "-o cache_dir=/var/b,cache_dir=/var/c"] {
        let args = over(&format!("torrentfs mount a.torrent /mnt {flags}"));
        assert_eq!(args.cache_dir, CacheDir::Exclusive("/var/c".into()), "{flags}");
    }
}

#[test]
fn limits_can_be_switched_off() {
    let args = mount_args("--cache-size unlimited --read-timeout 0 --download-limit 0 --upload-limit unlimited");
    assert_eq!(args, MountArgs { cache_size: None, read_timeout: None, ..mount_args("") });
    assert_eq!(mount_args("--read-timeout 90").read_timeout, Some(Duration::from_secs(90)));
}

#[test]
fn errors_name_the_value_and_the_expected_form() {
    for (flags, part) in [
        ("--cache-size much", "'much' for '--cache-size <SIZE>': expected a size such as 512MiB"),
        ("--cache-size 5KiB", "at least 1MiB"),
        ("--memory 0", "at least 1MiB"),
        ("--read-timeout soon", "expected a time such as 90s"),
        ("--read-timeout=-1s", "expected a time such as 90s"),
        ("--download-limit fast", "expected a rate such as 500KB"),
        ("--port 65536", "65536 is not in 0..=65535"),
        ("--port x", "invalid value 'x'"),
        ("--dht-bootstrap here", "expected HOST:PORT"),
        ("--encryption maybe", "expected prefer, require or off"),
        ("--proxy ftp://a", "SOCKS5"),
        ("--seed-ratio some", "a number such as 1.5"),
        ("--peer 1.2.3.4", "invalid socket address"),
        ("--on-demnd", "--on-demand"),
        ("-o cache_sise=1GiB", "cache_size"),
    ] {
        let error = usage_error(&format!("torrentfs mount a.torrent /mnt {flags}"));
        assert!(error.contains(part), "{flags}: {error}");
    }
    let missing = usage_error("torrentfs mount a.torrent");
    assert!(missing.contains("  <MOUNTPOINT>\n") && missing.contains("mount [OPTIONS] <SOURCE>... <MOUNTPOINT>"));
    assert!(usage_error("torrentfs unmount").contains("MOUNTPOINT"));
    assert!(usage_error("torrentfs get").contains("SOURCE"));
    assert!(usage_error("torrentfs seed a.torrent").contains("TORRENT"));
    assert!(usage_error("torrentfs seed --create dir a.torrent dir").contains("--create"));
    assert!(parse("torrentfs seed --create dir -a http://t/announce,http://u/announce --seed-ratio 2").is_ok());
    assert!(parse("torrentfs seed --seed-time 1h a.torrent a b.torrent b").is_ok());
    assert!(parse("torrentfs get --seed -o dir a.torrent b.torrent --port 0").is_ok());
    assert!(usage_error("torrentfs frobnicate").contains("frobnicate"));
    assert!(usage_error("torrentfs unmount -v -q /mnt").contains("--quiet"));
}

#[test]
fn all_arguments_but_the_last_are_sources() {
    let several = match parse("torrentfs mount a.torrent --verify b.torrent torrents /mnt -f").unwrap() {
        Cli { command: Command::Mount(command), .. } => command.over(Options::default()),
        other => panic!("{other:?}"),
    };
    assert_eq!(several.sources, ["a.torrent", "b.torrent", "torrents"]);
    assert!(several.mountpoint.as_os_str() == "/mnt" && several.verify && several.foreground);
}

#[test]
fn other_commands() {
    let cli = parse("torrentfs -vv umount /mnt").unwrap();
    assert_eq!(cli.verbose, 2);
    assert!(matches!(cli.command, Command::Unmount(args) if args.mountpoint.as_os_str() == "/mnt"));
    assert!(parse("torrentfs unmount /mnt -q").unwrap().quiet);

    let demo = |flags: &str| match parse(format!("torrentfs demo {flags}").trim_end()).unwrap().command {
        Command::Demo(args) => args,
        other => panic!("{other:?}"),
    };
    assert_eq!(demo(""), DemoArgs { mountpoint: None, rate: 2 << 20, time: None, check: false });
    assert_eq!(
        demo("/mnt --rate 1MB --for 5s"),
        DemoArgs { mountpoint: Some("/mnt".into()), rate: 1_000_000, time: Some(Duration::from_secs(5)), check: false }
    );
    assert!(demo("--check").check);
    assert!(usage_error("torrentfs demo --check --for 5s").contains("--for"));
    assert!(usage_error("torrentfs demo --rate 0").contains("above 0"));
}

/// A terminal of 80 columns does not wrap descriptions and sections, whose lines are broken by hand.
#[test]
fn help_texts_fit_80_columns() {
    let (definition, helper) = (Cli::definition(), helper::definition());
    for command in definition.get_subcommands().chain([&definition, &helper]) {
        for text in [command.get_before_help(), command.get_after_help()] {
            let text = text.map(ToString::to_string).unwrap_or_default();
            assert_eq!(text.lines().find(|line| line.chars().count() > 80), None, "{}", command.get_name());
        }
    }
}

#[test]
fn help_has_examples_and_the_exit_codes() {
    let help = parse("torrentfs --help").unwrap_err();
    assert_eq!((help.kind(), help.exit_code()), (ErrorKind::DisplayHelp, 0));
    let help = help.to_string();
    assert!(help.contains("torrentfs mount film.torrent /mnt/film"));
    for exit in [Exit::Success, Exit::Failure, Exit::Usage, Exit::Torrent, Exit::Mountpoint, Exit::Resource] {
        assert!(help.contains(&format!("\n  {}  ", exit as u8)), "{exit:?}");
    }
    let help = parse("torrentfs mount --help").unwrap_err().to_string();
    assert!(help.contains("allow_other") && !help.contains('\u{1b}'));
    for listed in ["Usage: torrentfs mount [OPTIONS] <SOURCE>... <MOUNTPOINT>", "  <SOURCE>...  ", "  <MOUNTPOINT>  "] {
        assert!(help.contains(listed), "{help}");
    }
}

#[test]
fn there_is_a_page_for_each_command() {
    let dir = tempfile::tempdir().unwrap();
    let pages = |dir: &Path| manual::pages(&ManArgs { dir: dir.to_owned() }, Cli::for_manual(), helper::definition());
    pages(dir.path()).unwrap();
    let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
    assert!(read("torrentfs.1").contains("torrentfs\\-mount(1)"), "{}", read("torrentfs.1"));
    let mount = read("torrentfs-mount.1");
    assert!(mount.contains("\\-\\-cache\\-size"));
    let synopsis = |name: &str| {
        let page = read(name).replace("\\fI", "").replace("\\fB", "").replace("\\fR", "").replace("\\-", "-");
        page.split_once("SYNOPSIS\n").unwrap().1.split_once("\n.").unwrap().0.to_owned()
    };
    assert!(synopsis("torrentfs-set.1").contains("[--download-limit RATE] [--upload-limit RATE] ["));
    assert!(synopsis("torrentfs-set.1").contains(" [--on-demand on|off] "));
    assert!(synopsis("torrentfs-set.1").contains("[-v|--verbose]... [-q|--quiet] [--config FILE]"));
    assert!(synopsis("torrentfs-get.1").contains("[--no-dht[=BOOL]]"));
    assert!(synopsis("torrentfs-get.1").ends_with(" SOURCE..."), "{}", synopsis("torrentfs-get.1"));
    assert!(synopsis("mount.torrentfs.8").contains("[-o OPTIONS]"), "{}", synopsis("mount.torrentfs.8"));
    let (sources, mountpoint) = (mount.find("<\\fISOURCE"), mount.find("<\\fIMOUNTPOINT"));
    assert!(sources.is_some() && sources < mountpoint, "{mount}");
    assert!(read("mount.torrentfs.8").contains("setuid=USER"));
    assert!(!dir.path().join("torrentfs-man.1").exists());
    assert!(pages("/nowhere".as_ref()).is_err());
}

#[test]
fn words_of_other_programs_suggest_a_command() {
    for (line, command) in [
        ("torrentfs list", "status"),
        ("torrentfs ls /mnt", "status"),
        ("torrentfs download film.torrent", "get"),
        ("torrentfs rm /mnt film", "remove"),
        ("torrentfs mont a b", "mount"),
    ] {
        let error = usage_error(line);
        assert!(error.contains(&format!("'{command}'")), "{line}: {error}");
    }
    assert!(!usage_error("torrentfs frobnicate").contains("similar"));
    let error = usage_error("torrentfs set /mnt");
    for option in ["--download-limit", "--upload-limit", "--on-demand"] {
        assert!(error.contains(option), "{error}");
    }
}

#[test]
fn http_takes_a_port_alone() {
    let local = |port| Some(([127, 0, 0, 1], port).into());
    for (value, addr) in [
        ("8080", local(8080)),
        ("localhost:80", local(80)),
        ("127.0.0.1:0", local(0)),
        ("0.0.0.0:8080", Some(([0, 0, 0, 0], 8080).into())),
        ("[::1]:8080", Some("[::1]:8080".parse().unwrap())),
    ] {
        assert_eq!(mount_args(&format!("--http {value}")).http.http, addr, "{value}");
        assert_eq!(mount_args(&format!("-o http={value}")).http.http, addr, "{value}");
    }
    for value in ["70000", ":8080", "a:b", "localhost"] {
        let error = usage_error(&format!("torrentfs mount a b --http {value}"));
        assert!(error.contains("8080 or 127.0.0.1:8080"), "{error}");
    }
}

/// Splits a line as a shell does, up to the first comment, pipe or other operator. Knows quotes and backslashes.
fn shell_words(line: &str) -> Vec<String> {
    let (mut words, mut word) = (Vec::new(), None::<String>);
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            ' ' => words.extend(word.take()),
            '|' | '>' | '<' | '&' | ';' => break,
            '#' if word.is_none() => break,
            '\'' => word.get_or_insert_default().extend(chars.by_ref().take_while(|c| *c != '\'')),
            '"' => word.get_or_insert_default().extend(chars.by_ref().take_while(|c| *c != '"')),
            '\\' => word.get_or_insert_default().extend(chars.next()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// Returns the command lines of `torrentfs` in a help text, continuation lines joined.
fn examples(text: &str) -> Vec<String> {
    let joined = text.replace("\\\n", " ");
    let command = |line: &str| {
        let line = line.trim().trim_start_matches("$ ");
        line.starts_with("torrentfs ").then(|| line.to_owned())
    };
    joined.lines().filter_map(command).collect()
}

#[test]
fn every_example_in_the_help_parses() {
    let mut definition = Cli::definition();
    let mut pages = vec![(String::new(), definition.render_long_help().to_string())];
    let has_page = |subcommand: &&clap::Command| !subcommand.is_hide_set() && subcommand.get_name() != "help";
    for subcommand in definition.get_subcommands().filter(has_page) {
        pages.push((subcommand.get_name().to_owned(), subcommand.clone().render_long_help().to_string()));
    }
    let mut count = 0;
    for (name, page) in pages {
        let (_, examples_section) =
            page.split_once("\nExamples:\n").unwrap_or_else(|| panic!("{name} has no examples"));
        let examples = examples(examples_section);
        assert!(!examples.is_empty(), "{name}: {page}");
        for line in examples {
            let words = shell_words(&line);
            assert!(name.is_empty() || words.contains(&name), "{name}: {line}");
            if let Err(error) = Cli::parse_words(words.into_iter().map(OsString::from)) {
                panic!("{line}: {error}");
            }
            count += 1;
        }
    }
    assert!(count > 40, "{count}");
}

#[test]
fn every_command_line_quoted_in_the_help_names_a_command() {
    let mut definition = Cli::definition();
    let mut pages = vec![definition.render_long_help().to_string()];
    pages.extend(definition.get_subcommands().map(|subcommand| subcommand.clone().render_long_help().to_string()));
    let names: Vec<&str> = definition.get_subcommands().map(clap::Command::get_name).collect();
    for page in pages {
        for quoted in page.split('`').skip(1).step_by(2).filter_map(|quoted| quoted.strip_prefix("torrentfs ")) {
            let words: Vec<&str> = quoted.split_whitespace().filter(|word| *word != "help").collect();
            let named = words.first().is_some_and(|word| names.contains(word) || *word == "COMMAND");
            assert!(named, "`torrentfs {quoted}`");
        }
    }
}

#[test]
fn shell_words_are_split_as_a_shell_does() {
    assert_eq!(shell_words(r#"a 'b c' "d e"f g\ h | i"#), ["a", "b c", "d ef", "g h"]);
    assert_eq!(shell_words("a  b # c"), ["a", "b"]);
    assert_eq!(examples("x\n  torrentfs a \\\n      b\n$ torrentfs c\n"), ["torrentfs a        b", "torrentfs c"]);
}
