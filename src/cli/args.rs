//! The command line: its subcommands, and what they exit with. What a subcommand is told and does is in its own file.

use std::path::PathBuf;
use std::process::{ExitCode, Termination};
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand};

use super::check::{self, CheckArgs};
use super::config::ConfigArgs;
use super::create::{self, CreateArgs};
use super::edit::{self, EditArgs};
use super::get::{self, GetArgs};
use super::manual::{CompletionsArgs, ManArgs};
use super::mount_args::{self, MountCommand};
use super::orders::{AddArgs, PriorityArgs, RemoveArgs, SetArgs, TorrentArgs, VerifyArgs};
use super::seed::{self, SeedArgs};
use super::show::{self, ShowArgs};
use super::status::StatusArgs;
use super::top::TopArgs;
use super::tracker::TrackerArgs;
use super::values::{duration, some_rate};

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

const AFTER_STATUS_HELP: &str = "\
Flags of a peer:
  D  it gives us what we want       d  it has what we want, and refuses
  U  we give it what it wants       u  it wants what we have, and we refuse
  I  it called us   E  encrypted   P  over uTP   S  it stopped answering

Examples:
  torrentfs status
  torrentfs status --watch /mnt/film
  torrentfs status --json /mnt/film | jq .total";

const AFTER_TOP_HELP: &str = "\
Keys: up and down choose a torrent, p pauses it or has it go on, q ends; ? shows
all of them.";

const AFTER_SET_HELP: &str = "\
RATE is a number with a unit, for a second: 500KB, 2MiB.

Examples:
  torrentfs set /mnt/film --download-limit 2MiB
  torrentfs set /mnt/film --upload-limit 0
  torrentfs set /mnt/all --on-demand on --torrent linux.iso";

const AFTER_PRIORITY_HELP: &str = "\
skip fetches nothing of it but what is read; normal is as all others are; high
comes before all others.

Examples:
  torrentfs priority /mnt/all album/02.flac high
  torrentfs priority /mnt/all /mnt/all/album/extras skip";

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
cache_dir is for all mounts: the first has it, each that comes beside it a
directory below it, mounts/ and the name of its mount point, for good. Named by
--cache-dir or -o, it is that mount's alone. For root mount.torrentfs gives each
mount a directory in cache_dir, named after the mount point.
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
        after_help = mount_args::AFTER_HELP,
        args_override_self = true,
        override_usage = mount_args::USAGE,
        help_template = mount_args::TEMPLATE
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
    #[command(after_help = AFTER_TOP_HELP)]
    Top(TopArgs),

    /// Show more torrents in a running mount
    Add(AddArgs),

    /// Show a torrent no longer; who has a file of it open reads on
    Remove(RemoveArgs),

    /// Change a running mount until it ends: its rate limits, or whether all is fetched
    #[command(after_help = AFTER_SET_HELP)]
    Set(SetArgs),

    /// Stop fetching and giving until `resume` or the mount's end; reads of what is not here wait
    Pause(TorrentArgs),

    /// Go on with what was paused
    Resume(TorrentArgs),

    /// Hash again what is here, while it is used; what is not as it should be is fetched again
    ///
    /// Shows how far it is till it ends; ended by Ctrl-C, the check goes on. If something was not as it should be, the
    /// exit code is 6.
    Verify(VerifyArgs),

    /// Fetch files before all others, or only what is read of them, until the mount ends
    #[command(after_help = AFTER_PRIORITY_HELP)]
    Priority(PriorityArgs),

    /// Download torrents as ordinary files, without a mount
    #[command(after_help = get::AFTER_HELP, args_override_self = true)]
    Get(Box<GetArgs>),

    /// Give others what you have: your own files, as they lie
    #[command(after_help = seed::AFTER_HELP, args_override_self = true)]
    #[command(override_usage = seed::USAGE, mut_arg("no_upload", |arg| arg.hide(true)))]
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

#[cfg(test)]
mod tests;
