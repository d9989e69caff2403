//! What `torrentfs mount` is told: by flags, by `-o`, by the configuration, by default. Which of them is in force is
//! decided here; what an option of `-o` looks like, in `options`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Args, FromArgMatches};

use super::cache_dir::CacheDir;
use super::http::HttpFlags;
use super::log::LogFormat;
use super::network::{NetworkArgs, NetworkFlags};
use super::options::{MountOptions, Options};
use super::values::{Bound, cache_size, memory, patience, truth};

/// How long a read may wait without progress.
const READ_TIMEOUT: Duration = Duration::from_secs(120);
/// Bytes of all cached torrents on disk.
const CACHE_SIZE: u64 = 20 << 30;
/// Bytes of pieces in memory, those under way included. More makes nothing faster: what was read lately is in the kernel's
/// page cache, too.
const MEMORY: u64 = 32 << 20;

pub(super) const AFTER_HELP: &str = "\
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

pub(super) const USAGE: &str = "torrentfs mount [OPTIONS] <SOURCE>... <MOUNTPOINT>";

/// clap's own, with [`Places`] told of by hand.
pub(super) const TEMPLATE: &str = "\
{before-help}{about-with-newline}
{usage-heading} {usage}

\u{1b}[1;4mArguments:\u{1b}[0m
  <SOURCE>...   A .torrent file, its http(s) URL, a magnet link (in quotes), an
                info hash, or a directory: of it every .torrent and .magnet file
                is shown, as they come and go
  <MOUNTPOINT>  An existing directory

{all-args}{after-help}";

const PLACES: &str = "places";
const SOURCES: &str = "A .torrent file, its http(s) URL, a magnet link (in quotes), an info hash, or a directory: of it \
                       every .torrent and .magnet file is shown, as they come and go";
const MOUNTPOINT: &str = "An existing directory";

/// The arguments as a page of the manual tells of them.
pub(super) fn for_manual(command: clap::Command) -> clap::Command {
    let mountpoint = Arg::new("MOUNTPOINT").required(true).help(MOUNTPOINT);
    command.mut_arg(PLACES, |places| places.hide(false)).arg(mountpoint)
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
        // The template tells of it, as of the two that it is for users.
        let places = Arg::new(PLACES).value_name("SOURCE").num_args(1..).required(true).help(SOURCES).hide(true);
        command.arg(places.value_parser(clap::value_parser!(OsString)).action(ArgAction::Append))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Places {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut all: Vec<OsString> = matches.get_many(PLACES).into_iter().flatten().cloned().collect();
        match all.pop() {
            Some(mountpoint) if !all.is_empty() => Ok(Self { sources: all, mountpoint: mountpoint.into() }),
            _ => {
                let missing = "the following required arguments were not provided:\n  <MOUNTPOINT>";
                let mut command = clap::Command::new("mount").override_usage(USAGE);
                Err(clap::Error::raw(ErrorKind::MissingRequiredArgument, missing).format(&mut command))
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

    /// Where this mount alone keeps fetched pieces; what is configured, or the default, is shared: see `torrentfs help
    /// config` [default: torrentfs in the user's cache directory]
    #[arg(long, value_name = "DIR", help_heading = "Cache")]
    cache_dir: Option<PathBuf>,

    /// What the cache may take on disk, all torrents together, or "unlimited"; the least recently used goes first
    /// [default: 20GiB]
    #[arg(long, value_name = "SIZE", value_parser = cache_size, help_heading = "Cache")]
    cache_size: Option<Bound<u64>>,

    /// What pieces in memory may take, kept or under way; those under way may take 32MiB even if this is less [default:
    /// 32MiB]
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
    /// Where pieces are kept on disk.
    pub cache_dir: CacheDir,
    /// Bytes on disk, all torrents together; `None`: unlimited.
    pub cache_size: Option<u64>,
    /// Bytes of pieces in memory, those under way included.
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
        let given = self.options.into_iter().fold(Options::default(), |earlier, later| later.over(earlier));
        let given = Options { flags: self.flags.over(given.flags), ..given };
        MountArgs::new(self.places.sources, self.places.mountpoint, given, configured)
    }
}

impl MountArgs {
    /// Fills in what is `configured`, and the defaults.
    pub(super) fn new(sources: Vec<OsString>, mountpoint: PathBuf, given: Options, configured: Options) -> Self {
        // What is said once for all mounts is not said for one.
        let cache_dir = match &given.flags.cache_dir {
            Some(dir) => CacheDir::Exactly(dir.clone()),
            None => CacheDir::Shared(configured.flags.cache_dir.clone()),
        };
        let Options { flags, mount: options } = given.over(configured);
        Self {
            sources,
            mountpoint,
            foreground: flags.foreground.unwrap_or(false),
            on_demand: flags.on_demand.unwrap_or(false),
            read_timeout: flags.read_timeout.map_or(Some(READ_TIMEOUT), |bound| bound.0),
            cache_dir,
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
