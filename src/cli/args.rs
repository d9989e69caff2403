//! The command line: what can be said and what is said by default. What a subcommand does is in its own file.

use std::ffi::OsString;
use std::fmt::Display;
use std::path::PathBuf;
use std::process::{ExitCode, Termination};
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Args, FromArgMatches, Parser, Subcommand};

use super::check::{self, CheckArgs};
use super::config::ConfigArgs;
use super::create::{self, CreateArgs};
use super::edit::{self, EditArgs};
use super::get::{self, GetArgs};
use super::http::HttpFlags;
use super::log::LogFormat;
use super::manual::{CompletionsArgs, ManArgs};
use super::network::{NetworkArgs, NetworkFlags};
use super::options::{MountOptions, Options};
use super::orders::{AddArgs, PriorityArgs, RemoveArgs, SetArgs, TorrentArgs, VerifyArgs};
use super::seed::{self, SeedArgs};
use super::show::{self, ShowArgs};
use super::status::StatusArgs;
use super::top::TopArgs;
use super::tracker::TrackerArgs;

const MIB: u64 = 1 << 20;
/// How long a read may wait without progress.
const READ_TIMEOUT: Duration = Duration::from_secs(120);
/// Bytes of all cached torrents on disk.
const CACHE_SIZE: u64 = 20 << 30;
/// Bytes of pieces in memory. More makes nothing faster: what was read lately is in the kernel's page cache, too.
const MEMORY: u64 = 32 * MIB;
/// Below, nothing sensible fits.
const LEAST_SIZE: u64 = MIB;

const AFTER_HELP: &str = "\
Examples:
  torrentfs demo
  torrentfs mount film.torrent /mnt/film
  torrentfs mount 'magnet:?xt=urn:btih:...' /mnt/film
  torrentfs mount --on-demand --cache-size 5GiB linux.torrent ~/iso
  torrentfs status --watch
  torrentfs set /mnt/film --download-limit 2MiB
  torrentfs unmount /mnt/film
  torrentfs get -o ~/Videos film.torrent
  torrentfs seed film.torrent ~/Videos/film.mkv
  torrentfs create film -a http://tracker.example.org/announce
  torrentfs show film.torrent
  torrentfs check film.torrent ~/film

Exit codes:
  0  done
  1  failed in a way not named below
  2  the command line makes no sense
  3  the torrent cannot be read or fetched, is malformed or is of a kind not supported
  4  the mountpoint cannot be used, or FUSE is not available
  5  a port, the cache directory, the directory of a download or a tracker's file
     cannot be used, or has no room
  6  what was checked is not all there, or not all right";

const AFTER_MOUNT_HELP: &str = "\
SIZE is a number with a unit: 512MiB, 20GiB, 500MB. RATE is a SIZE for a second.
TIME is a number with a unit: 90s, 2min, 1h.
BOOL is true or false, and true if left out; --on-demand=false switches off what
is configured (`torrentfs config` prints that).

Examples:
  torrentfs mount film.torrent /mnt/film
  torrentfs mount -f film.torrent /mnt/film    (Ctrl-C unmounts)
  torrentfs mount 'magnet:?xt=urn:btih:...' /mnt/film
  torrentfs mount https://example.org/film.torrent /mnt/film
  torrentfs mount a.torrent b.torrent /mnt/films
  torrentfs mount ~/torrents /mnt/all    (all in it, and what comes and goes)
  torrentfs mount --on-demand --cache-size 5GiB linux.torrent ~/iso
  torrentfs mount -o allow_other,cache_size=5GiB film.torrent /mnt/film
  torrentfs mount --peer 192.168.1.5:51413 film.torrent /mnt/film

Options of -o, separated by commas (\\, stands for a comma in a value):
  allow_other    other users may read, too; unless root does it, this needs
                 user_allow_other in /etc/fuse.conf
  uid=N, gid=N   the files' owner and group, by number
  umask=OCTAL    permissions that the files do not have
  noexec         no file may be executed; exec takes it back
  ro             always so
  Every flag above by its name, with _ or -: -o on_demand,read_timeout=5min
  allow_other, noexec and each flag with a BOOL take one: -o allow_other=false";

const AFTER_STATUS_HELP: &str = "\
Flags of a peer:
  D  it gives us what we want       d  it has what we want, and refuses
  U  we give it what it wants       u  it wants what we have, and we refuse
  I  it called us   E  encrypted   P  over uTP   S  it stopped answering

Examples:
  torrentfs status
  torrentfs status --watch /mnt/film
  torrentfs status --json /mnt/film | jq .total";

const AFTER_CONFIG_HELP: &str = "\
What `torrentfs mount` takes as a flag or an option of -o can be configured, by
the same name: cache_size = \"5GiB\", no_dht = true, peer = [\"10.0.0.1:6881\"].
What comes first in this list is in force:
  1. flags
  2. -o
  3. the environment: TORRENTFS_CACHE_SIZE=5GiB, TORRENTFS_NO_DHT=true
  4. ~/.config/torrentfs/torrentfs.toml (of $XDG_CONFIG_HOME, if set)
  5. /etc/torrentfs/torrentfs.toml
  6. defaults
What a file switches on, a flag, -o or a variable switches off:
--no-dht=false, -o no_dht=false, TORRENTFS_NO_DHT=false.
--config FILE stands for both files. mount.torrentfs has no part 3, and for root
no part 4.";

/// What the exit status means; the help tells users. Stable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Success = 0,
    /// Failed in a way that has no code of its own.
    Failure = 1,
    /// The command line makes no sense. The parser exits with this by itself.
    Usage = 2,
    /// The torrent cannot be read, is malformed or is of a kind not supported.
    Torrent = 3,
    /// The mountpoint cannot be used, or FUSE is not available.
    Mountpoint = 4,
    /// A port, the cache directory or a tracker's file cannot be used.
    Resource = 5,
    /// What was checked is not all there, or not all right.
    Incomplete = 6,
}

impl Termination for Exit {
    fn report(self) -> ExitCode {
        ExitCode::from(self as u8)
    }
}

/// Mount torrents as filesystems: files can be read at once, while they are still being fetched.
#[derive(Parser, Clone, Debug)]
#[command(name = "torrentfs", version, after_help = AFTER_HELP, max_term_width = 110)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,

    /// Tell more; twice: everything
    #[arg(short, long, action = ArgAction::Count, global = true, display_order = 100, conflicts_with = "quiet")]
    pub verbose: u8,

    /// Tell only of errors
    #[arg(short, long, global = true, display_order = 101)]
    pub quiet: bool,

    /// The configuration, in place of /etc/torrentfs/torrentfs.toml and the user's own
    #[arg(long, value_name = "FILE", global = true, display_order = 102)]
    pub config: Option<PathBuf>,
}

/// The subcommands.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// Show torrents' files in a directory
    #[command(
        after_help = AFTER_MOUNT_HELP,
        args_override_self = true,
        override_usage = "torrentfs mount [OPTIONS] <SOURCE>... <MOUNTPOINT>"
    )]
    Mount(Box<MountCommand>),

    /// End a mount; what was fetched stays in the cache
    #[command(visible_alias = "umount")]
    Unmount {
        /// Where it is mounted
        mountpoint: PathBuf,
    },

    /// Show what mounts do: progress, peers, trackers, the cache, reads that wait
    #[command(after_help = AFTER_STATUS_HELP)]
    Status(StatusArgs),

    /// Watch a mount in the terminal: torrents, pieces, peers, reads that wait
    Top(TopArgs),

    /// Show more torrents in a running mount
    Add(AddArgs),

    /// Show a torrent no longer; who has a file of it open reads on
    Remove(RemoveArgs),

    /// Change a running mount: its rate limits, or whether all is fetched
    Set(SetArgs),

    /// Stop fetching and giving; reads of what is not here wait
    Pause(TorrentArgs),

    /// Go on with what was paused
    Resume(TorrentArgs),

    /// Hash again what is here, while it is used; what is not as it should be is fetched again
    ///
    /// Shows how far it is till it ends; ended by Ctrl-C, the check goes on. If something was not as it should be, the
    /// exit code is 6.
    Verify(VerifyArgs),

    /// Fetch files before all others, or only what is read of them
    Priority(PriorityArgs),

    /// Download torrents as ordinary files, without a mount
    #[command(after_help = get::AFTER_HELP, args_override_self = true)]
    Get(Box<GetArgs>),

    /// Give others what you have: your own files, as they lie
    #[command(after_help = seed::AFTER_HELP, args_override_self = true)]
    #[command(mut_arg("no_upload", |arg| arg.hide(true)))]
    Seed(Box<SeedArgs>),

    /// See it work: a whole swarm on this machine, with sample music and video, mounted
    ///
    /// Makes a sample library and a torrent of it, starts a tracker and throttled seeders on loopback, and mounts the
    /// torrent. Nothing leaves this machine. Ctrl-C takes everything away again.
    #[command(args_override_self = true)]
    Demo(DemoArgs),

    /// Run a BitTorrent tracker, over HTTP and UDP
    ///
    /// Tells the peers of a torrent of each other. Stays in the terminal; Ctrl-C or SIGTERM ends it, SIGHUP reads its
    /// lists again.
    #[command(after_help = super::tracker::AFTER_HELP)]
    Tracker(Box<TrackerArgs>),

    /// Make a .torrent of a file or a directory
    #[command(after_help = create::AFTER_HELP, args_override_self = true)]
    Create(Box<CreateArgs>),

    /// Tell what a torrent or a link says
    #[command(after_help = show::AFTER_HELP)]
    Show(ShowArgs),

    /// Tell whether files are those of a torrent, and which are not
    #[command(after_help = check::AFTER_HELP)]
    Check(CheckArgs),

    /// Change a torrent's trackers, web seeds and texts, and leave the rest as it is
    #[command(after_help = edit::AFTER_HELP, args_override_self = true)]
    Edit(Box<EditArgs>),

    /// Print what is configured, and where
    #[command(after_help = AFTER_CONFIG_HELP)]
    Config(ConfigArgs),

    /// Print what a shell needs to complete command lines of torrentfs
    Completions(CompletionsArgs),

    /// Write the manual pages to a directory
    #[command(hide = true)]
    Man(ManArgs),
}

/// `torrentfs mount`, as given. [`MountArgs`] is what is meant.
#[derive(Args, Clone, Debug)]
pub struct MountCommand {
    #[command(flatten)]
    places: Places,

    #[command(flatten)]
    flags: Flags,

    /// Options as mount(8) and fstab pass them; see below
    #[arg(short = 'o', value_name = "OPTIONS", action = ArgAction::Append, value_parser = Options::from_str)]
    options: Vec<Options>,
}

/// SOURCE... MOUNTPOINT, with flags between them or not: one argument for the parser, which takes what stands before a
/// flag for whole.
#[derive(Clone, Debug)]
struct Places {
    sources: Vec<OsString>,
    mountpoint: PathBuf,
}

impl Args for Places {
    fn augment_args(command: clap::Command) -> clap::Command {
        let help = "Of each SOURCE, a .torrent file, its http(s) URL, a magnet link (in quotes), an info hash, or a \
                    directory: of it every .torrent and .magnet file is shown, as they come and go. The MOUNTPOINT is \
                    an existing directory";
        let places = Arg::new("places").value_names(["SOURCE", "MOUNTPOINT"]).num_args(1..).required(true).help(help);
        command.arg(places.value_parser(clap::value_parser!(OsString)).action(ArgAction::Append))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Places {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut all: Vec<OsString> = matches.get_many("places").into_iter().flatten().cloned().collect();
        match all.pop() {
            Some(mountpoint) if !all.is_empty() => Ok(Self { sources: all, mountpoint: mountpoint.into() }),
            _ => {
                let missing = "the following required arguments were not provided:\n  <MOUNTPOINT>\n";
                Err(clap::Error::raw(ErrorKind::MissingRequiredArgument, missing))
            }
        }
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// What can be said as a flag and as an option of `-o` alike. `None`: not said.
#[derive(Args, Clone, Debug, Default, PartialEq)]
pub(super) struct Flags {
    /// Stay in the terminal instead of going to the background
    #[arg(short, long, value_name = "BOOL", value_parser = truth)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(super) foreground: Option<bool>,

    /// Fetch only what is read and what will be next; without it, all that fits the cache
    #[arg(long, value_name = "BOOL", value_parser = truth)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    on_demand: Option<bool>,

    /// A read that gets no data for so long fails with an I/O error; 0: waits for ever [default: 120s]
    #[arg(long, value_name = "TIME", value_parser = patience)]
    read_timeout: Option<Bound<Duration>>,

    /// Where fetched pieces are kept [default: torrentfs in the user's cache directory]
    #[arg(long, value_name = "DIR", help_heading = "Cache")]
    cache_dir: Option<PathBuf>,

    /// What the cache may take on disk, all torrents together, or "unlimited"; the least recently used goes first
    /// [default: 20GiB]
    #[arg(long, value_name = "SIZE", value_parser = cache_size, help_heading = "Cache")]
    cache_size: Option<Bound<u64>>,

    /// What pieces kept in memory may take [default: 32MiB]
    #[arg(long, value_name = "SIZE", value_parser = memory, help_heading = "Cache")]
    memory: Option<u64>,

    /// Check the hash of every piece found in the cache before it is used
    #[arg(long, value_name = "BOOL", value_parser = truth, help_heading = "Cache")]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    verify: Option<bool>,

    /// When a file is removed from a directory SOURCE, delete what is cached of its torrent, too
    #[arg(long, value_name = "BOOL", value_parser = truth, help_heading = "Cache")]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    delete_removed: Option<bool>,

    #[command(flatten)]
    network: NetworkFlags,

    #[command(flatten)]
    http: HttpFlags,

    /// The form of the log [default: journald where systemd leads it there, else human]
    #[arg(long, value_name = "human|json|journald", value_parser = LogFormat::parse)]
    log_format: Option<LogFormat>,
}

impl Flags {
    /// These, and what they leave open from `under`.
    pub(super) fn over(self, under: Self) -> Self {
        Self {
            foreground: self.foreground.or(under.foreground),
            on_demand: self.on_demand.or(under.on_demand),
            read_timeout: self.read_timeout.or(under.read_timeout),
            cache_dir: self.cache_dir.or(under.cache_dir),
            cache_size: self.cache_size.or(under.cache_size),
            memory: self.memory.or(under.memory),
            verify: self.verify.or(under.verify),
            delete_removed: self.delete_removed.or(under.delete_removed),
            network: self.network.over(under.network),
            http: self.http.over(under.http),
            log_format: self.log_format.or(under.log_format),
        }
    }
}

/// What `torrentfs mount` is to do: flags and `-o` in one, defaults filled in.
#[derive(Clone, Debug, PartialEq)]
pub struct MountArgs {
    /// `.torrent` files, URLs, magnet links, info hashes, directories; not yet looked at.
    pub sources: Vec<OsString>,
    /// Where to mount.
    pub mountpoint: PathBuf,
    /// Do not become a daemon.
    pub foreground: bool,
    /// No background filling.
    pub on_demand: bool,
    /// How long a read may wait without progress; `None`: for ever.
    pub read_timeout: Option<Duration>,
    /// `None`: the user's cache directory.
    pub cache_dir: Option<PathBuf>,
    /// Bytes on disk, all torrents together; `None`: unlimited.
    pub cache_size: Option<u64>,
    /// Bytes of pieces in memory.
    pub memory: u64,
    /// Check every cached piece.
    pub verify: bool,
    /// Delete what is cached of a torrent whose file is removed from a watched directory.
    pub delete_removed: bool,
    /// How peers are found and reached.
    pub network: NetworkArgs,
    /// Whether and where it is served over HTTP.
    pub(super) http: HttpFlags,
    /// The form of the log; `None`: whatever fits.
    pub log_format: Option<LogFormat>,
    /// Permissions and owner of the files.
    pub options: MountOptions,
}

impl MountCommand {
    /// Flags beat `-o`, a later `-o` beats an earlier one, and all beat what is configured.
    pub(super) fn over(self, mut configured: Options) -> MountArgs {
        // Who serves is a question of mount(8) alone.
        configured.mount.setuid = None;
        let given = self.options.into_iter().fold(configured, |earlier, later| later.over(earlier));
        MountArgs::new(self.places.sources, self.places.mountpoint, self.flags.over(given.flags), given.mount)
    }
}

impl MountArgs {
    /// Fills the defaults in.
    pub(super) fn new(sources: Vec<OsString>, mountpoint: PathBuf, flags: Flags, options: MountOptions) -> Self {
        Self {
            sources,
            mountpoint,
            foreground: flags.foreground.unwrap_or(false),
            on_demand: flags.on_demand.unwrap_or(false),
            read_timeout: flags.read_timeout.map_or(Some(READ_TIMEOUT), |bound| bound.0),
            cache_dir: flags.cache_dir,
            cache_size: flags.cache_size.map_or(Some(CACHE_SIZE), |bound| bound.0),
            memory: flags.memory.unwrap_or(MEMORY),
            verify: flags.verify.unwrap_or(false),
            delete_removed: flags.delete_removed.unwrap_or(false),
            network: flags.network.into(),
            http: flags.http,
            log_format: flags.log_format,
            options,
        }
    }
}

/// `torrentfs demo`.
#[derive(Args, Clone, Debug, PartialEq)]
pub struct DemoArgs {
    /// Where to mount [default: a new temporary directory]
    pub mountpoint: Option<PathBuf>,

    /// What each of the seeders gives in a second at most
    #[arg(long, value_name = "RATE", default_value = "2MiB", value_parser = some_rate)]
    pub rate: u64,

    /// End by itself after so long [default: on Ctrl-C]
    #[arg(long = "for", value_name = "TIME", value_parser = duration)]
    pub time: Option<Duration>,

    /// Read every file through the mount, compare it with the original, and end: 0 if all is the same, else 1
    #[arg(long, conflicts_with = "time")]
    pub check: bool,
}

/// A limit; `None`: there is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Bound<T>(pub Option<T>);

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse() {
        return Ok(Duration::from_secs(seconds));
    }
    humantime::parse_duration(text).map_err(|_| "expected a time such as 90s, 2min or 1h".to_owned())
}

pub(super) fn patience(text: &str) -> Result<Bound<Duration>, String> {
    duration(text).map(|time| Bound(Some(time).filter(|time| !time.is_zero())))
}

/// Yes or no, as a file, a variable or a flag may say it.
pub(super) fn truth(text: &str) -> Result<bool, String> {
    match text {
        "true" | "yes" | "on" | "1" => Ok(true),
        "false" | "no" | "off" | "0" => Ok(false),
        _ => Err("expected true or false".to_owned()),
    }
}

fn bytes(text: &str, example: impl Display) -> Result<u64, String> {
    text.parse::<ByteSize>().map(|size| size.as_u64()).map_err(|_| format!("expected a {example}"))
}

fn memory(text: &str) -> Result<u64, String> {
    match bytes(text, "size such as 512MiB or 20GiB")? {
        size @ LEAST_SIZE.. => Ok(size),
        _ => Err("expected at least 1MiB".into()),
    }
}

fn cache_size(text: &str) -> Result<Bound<u64>, String> {
    match text {
        "unlimited" => Ok(Bound(None)),
        _ => memory(text).map(|size| Bound(Some(size))),
    }
}

pub(super) fn rate(text: &str) -> Result<Bound<u64>, String> {
    if text == "unlimited" {
        return Ok(Bound(None));
    }
    let size = bytes(text.strip_suffix("/s").unwrap_or(text), "rate such as 500KB or 2MiB, for a second")?;
    Ok(Bound(Some(size).filter(|size| *size > 0)))
}

fn some_rate(text: &str) -> Result<u64, String> {
    rate(text)?.0.ok_or_else(|| "expected a rate above 0, such as 2MiB".to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::network::ListenPort;
    use super::*;
    use clap::CommandFactory;
    use clap::error::ErrorKind;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    fn mount(flags: &str) -> MountArgs {
        match parse(format!("torrentfs mount a.torrent /mnt {flags}").trim_end()) {
            Ok(Cli { command: Command::Mount(command), .. }) => command.over(Options::default()),
            other => panic!("{flags}: {other:?}"),
        }
    }

    fn fault(line: &str) -> String {
        let error = parse(line).unwrap_err();
        assert_eq!(error.exit_code(), Exit::Usage as i32);
        error.to_string()
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn defaults() {
        let expected = MountArgs {
            sources: vec!["a.torrent".into()],
            mountpoint: "/mnt".into(),
            foreground: false,
            on_demand: false,
            read_timeout: Some(Duration::from_secs(120)),
            cache_dir: None,
            cache_size: Some(20 << 30),
            memory: 32 << 20,
            verify: false,
            delete_removed: false,
            network: NetworkArgs::default(),
            http: HttpFlags::default(),
            log_format: None,
            options: MountOptions::default(),
        };
        assert_eq!(mount(""), expected);
        assert_eq!(mount("-o rw,nosuid"), expected);
        let nodes = mount("--dht-bootstrap a:1 --dht-bootstrap [::1]:2").network.dht.unwrap();
        assert_eq!(nodes, ["a:1", "[::1]:2"]);
    }

    #[test]
    fn every_flag_has_its_meaning_and_so_has_the_option_of_its_name() {
        let expected = MountArgs {
            foreground: true,
            on_demand: true,
            read_timeout: Some(Duration::from_secs(300)),
            cache_dir: Some("/var/c".into()),
            cache_size: Some(1 << 30),
            memory: 64 << 20,
            verify: true,
            network: NetworkArgs {
                port: ListenPort::Exactly(0),
                route: crate::route::Route {
                    proxy: Some("socks5://me:secret@10.0.0.1:1080".parse().unwrap()),
                    bind: crate::route::Bind::Address([127, 0, 0, 1].into()),
                },
                peers: vec![([10, 0, 0, 1], 80).into(), "[::1]:81".parse().unwrap()],
                download_limit: Some(2 << 20),
                upload_limit: Some(500_000),
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
            ..mount("")
        };
        let flags = "--foreground --on-demand --read-timeout 5min --cache-dir /var/c --cache-size 1GiB --memory 64MiB \
                     --verify --port 0 --bind 127.0.0.1 --peer 10.0.0.1:80 --peer [::1]:81 --download-limit 2MiB/s \
                     --upload-limit 500KB --no-upload --no-dht --no-lsd --no-utp --no-port-mapping --encryption require --proxy socks5://me:secret@10.0.0.1:1080 --blocklist /etc/blocked --no-pex \
                     --http 127.0.0.1:8080 --http-token 0123456789abcdef --metadata-timeout 1min --seed-ratio 1.5 --seed-time 1h --log-format json";
        assert_eq!(mount(flags), expected);
        let options = flags.replace(" --", ",").replace(' ', "=").replacen("--", "", 1);
        assert_eq!(mount(&format!("-o {options}")), expected);
        let options = options.replace('-', "_");
        let (first, second) = options.split_at(options.find("verify").unwrap());
        let halves = format!("-o {} -o {}", first.trim_end_matches(','), second);
        assert_eq!(mount(&halves), expected);
    }

    #[test]
    fn every_flag_can_be_an_option() {
        let command = Cli::command();
        let mount = command.find_subcommand("mount").unwrap();
        for name in mount.get_arguments().filter(|arg| !arg.is_global_set()).filter_map(|arg| arg.get_long()) {
            let known = Options::from_str(name).is_ok() || Options::from_str(name).unwrap_err().contains("value");
            assert!(known, "{name}");
        }
    }

    #[test]
    fn a_switch_switches_off_what_is_on_and_takes_nothing_that_is_not_its_own() {
        let command = Cli::command();
        let is_switch = |arg: &&Arg| arg.get_value_names().is_some_and(|names| names == ["BOOL"]);
        let switches: Vec<_> = command.find_subcommand("mount").unwrap().get_arguments().filter(is_switch).collect();
        assert_eq!(switches.len(), 10);
        for name in switches.iter().filter_map(|arg| arg.get_long()) {
            let on = mount(&format!("-o {name}"));
            assert_ne!(on, mount(""), "{name}");
            assert_eq!(mount(&format!("-o {name}=yes")), on);
            assert_eq!(mount(&format!("-o {name},{name}=false")), mount(""), "{name}");
            assert_eq!(mount(&format!("--{name}")), on);
            assert_eq!(mount(&format!("-o {name} --{name}=no")), mount(""), "{name}");
            assert_eq!(mount(&format!("-o {name}=off --{name}")), on, "{name}");
        }
        let own = |options: &str| mount(options).options;
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
        assert!(fault("torrentfs mount --on-demand=maybe a.torrent /mnt").contains("expected true or false"));
    }

    #[test]
    fn flags_beat_options_and_later_ones_earlier_ones() {
        let args = mount("--cache-size 2GiB -o cache_size=1GiB,memory=2MiB -o memory=3MiB,uid=5");
        assert_eq!((args.cache_size, args.memory, args.options.uid), (Some(2 << 30), 3 << 20, Some(5)));
        assert_eq!(mount("--memory 2MiB --memory 3MiB").memory, 3 << 20);
        let args = mount("--peer 1.1.1.1:1 -o peer=2.2.2.2:2,peer=3.3.3.3:3");
        assert_eq!(args.network.peers.len(), 3);
    }

    #[test]
    fn no_limit_can_be_said() {
        let args = mount("--cache-size unlimited --read-timeout 0 --download-limit 0 --upload-limit unlimited");
        assert_eq!(args, MountArgs { cache_size: None, read_timeout: None, ..mount("") });
        assert_eq!(mount("--read-timeout 90").read_timeout, Some(Duration::from_secs(90)));
    }

    #[test]
    fn nonsense_is_refused_with_its_name_and_an_example() {
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
            let error = fault(&format!("torrentfs mount a.torrent /mnt {flags}"));
            assert!(error.contains(part), "{flags}: {error}");
        }
        assert!(fault("torrentfs mount a.torrent").contains("MOUNTPOINT"));
        assert!(fault("torrentfs unmount").contains("MOUNTPOINT"));
        assert!(fault("torrentfs get").contains("SOURCE"));
        assert!(fault("torrentfs seed a.torrent").contains("TORRENT"));
        assert!(fault("torrentfs seed --create dir a.torrent dir").contains("--create"));
        assert!(parse("torrentfs seed --create dir -a http://t/announce,http://u/announce --seed-ratio 2").is_ok());
        assert!(parse("torrentfs seed --seed-time 1h a.torrent a b.torrent b").is_ok());
        assert!(parse("torrentfs get --seed -o dir a.torrent b.torrent --port 0").is_ok());
        assert!(fault("torrentfs frobnicate").contains("frobnicate"));
        assert!(fault("torrentfs unmount -v -q /mnt").contains("--quiet"));
    }

    #[test]
    fn all_but_the_last_are_sources() {
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
        assert!(matches!(cli.command, Command::Unmount { mountpoint } if mountpoint.as_os_str() == "/mnt"));
        assert!(parse("torrentfs unmount /mnt -q").unwrap().quiet);

        let demo = |flags: &str| match parse(format!("torrentfs demo {flags}").trim_end()).unwrap().command {
            Command::Demo(args) => args,
            other => panic!("{other:?}"),
        };
        assert_eq!(demo(""), DemoArgs { mountpoint: None, rate: 2 << 20, time: None, check: false });
        assert_eq!(
            demo("/mnt --rate 1MB --for 5s"),
            DemoArgs {
                mountpoint: Some("/mnt".into()),
                rate: 1_000_000,
                time: Some(Duration::from_secs(5)),
                check: false
            }
        );
        assert!(demo("--check").check);
        assert!(fault("torrentfs demo --check --for 5s").contains("--for"));
        assert!(fault("torrentfs demo --rate 0").contains("above 0"));
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
        assert!(parse("torrentfs mount --help").unwrap_err().to_string().contains("allow_other"));
    }
}
