//! `torrentfs mount`

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;

use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Args, FromArgMatches};

use super::failure::{Exit, Failure};
use super::flags::{MountFlags, Options};
use super::log::Verbosity;
use super::mount_args::MountArgs;
use super::{serve, sources};
use crate::fs::Attacher;

const AFTER_HELP: &str = "\
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

const USAGE: &str = "torrentfs mount [OPTIONS] <SOURCE>... <MOUNTPOINT>";

/// clap's own, with [`Places`] told of by hand.
const TEMPLATE: &str = "\
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

/// Show torrents' files in a directory
#[derive(Args, Clone, Debug)]
#[command(after_help = AFTER_HELP, args_override_self = true, override_usage = USAGE, help_template = TEMPLATE)]
pub(super) struct MountCommand {
    #[command(flatten)]
    places: Places,

    #[command(flatten)]
    flags: MountFlags,

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

/// Mounts; in the background, returns once the mount answers.
pub(super) fn run(args: MountArgs, verbosity: Verbosity) -> Result<(), Failure> {
    if args.options.setuid.is_some() {
        return Err(Failure::new(Exit::Usage, "option setuid is for `mount -t torrentfs`"));
    }
    let sources = sources::read(&args, sources::open(&args)?)?;
    if args.foreground {
        return serve::in_foreground(&args, sources, verbosity, Attacher::ThisProcess);
    }
    println!("{}", serve::in_background(&args, sources, verbosity)?);
    Ok(())
}
