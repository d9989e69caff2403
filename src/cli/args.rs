//! The command line of `torrentfs`: global options and the list of subcommands.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue};
use clap::{ArgAction, CommandFactory, FromArgMatches, Parser, Subcommand};

use super::add::AddArgs;
use super::check::CheckArgs;
use super::config::ConfigArgs;
use super::create::CreateArgs;
use super::demo::DemoArgs;
use super::edit::EditArgs;
use super::flags::HELP_TEMPLATE;
use super::get::GetArgs;
use super::manual::{CompletionsArgs, ManArgs};
use super::mount::{self, MountCommand};
use super::pause::{PauseArgs, ResumeArgs};
use super::priority::PriorityArgs;
use super::remove::RemoveArgs;
use super::seed::SeedArgs;
use super::set::SetArgs;
use super::show::ShowArgs;
use super::status::StatusArgs;
use super::top::TopArgs;
use super::tracker::TrackerArgs;
use super::unmount::UnmountArgs;
use super::verify::VerifyArgs;

const DESCRIPTION: &str = "\
torrentfs mounts .torrent files, magnet links and whole directories of torrents.
Their files are there at once: a program that reads one waits only for the
pieces it needs. Everything that was fetched and checked stays in a cache.";

const SECTIONS: &str = "\
Run `torrentfs help COMMAND` for the options of a command.

Environment:
  TORRENTFS_LOG    log filters, such as warn,torrentfs::discovery=debug
  TORRENTFS_...    options of mount; see `torrentfs help config`
  NO_COLOR         no colours, if it is set and not empty

Exit codes:
  0  success
  1  failed for a reason not listed below
  2  the command line is wrong
  3  the torrent cannot be read or fetched, is malformed, or is not supported
  4  the mountpoint cannot be used, or FUSE is not available
  5  a port, the cache directory, the download directory or a file of the
     tracker cannot be used, or the disk is full
  6  the checked data is incomplete or damaged

Examples:
  torrentfs demo
  torrentfs mount film.torrent /mnt/film
  torrentfs status --watch
  torrentfs unmount /mnt/film
  torrentfs get -o ~/Videos film.torrent
  torrentfs seed film.torrent ~/Videos/film.mkv
  torrentfs create album -a http://tracker.example.org/announce";

// Each subcommand describes itself in three parts: its doc comment is the summary, `before_help` the description, and
// `after_help` the reference sections and examples.
/// Mount torrents as filesystems, and read their files while they are being fetched
#[derive(Parser, Clone, Debug)]
#[command(name = "torrentfs", version, before_help = DESCRIPTION, after_help = SECTIONS, max_term_width = 110)]
#[command(disable_help_flag = true, disable_version_flag = true, subcommand_help_heading = "Commands")]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,

    /// Log more; -vv and -vvv log even more
    #[arg(short, long, action = ArgAction::Count, global = true, help_heading = "Global options", display_order = 100)]
    #[arg(conflicts_with = "quiet")]
    pub(super) verbose: u8,

    /// Log only errors, and show no progress
    #[arg(short, long, global = true, help_heading = "Global options", display_order = 101)]
    pub(super) quiet: bool,

    /// Configuration file, instead of the system's and the user's
    #[arg(long, value_name = "FILE", global = true, help_heading = "Global options", display_order = 102)]
    pub(super) config: Option<PathBuf>,

    /// Print help
    #[arg(short, long, action = ArgAction::Help, global = true, help_heading = "Global options", display_order = 103)]
    help: Option<bool>,

    /// Print the version
    #[arg(short = 'V', long, action = ArgAction::Version, help_heading = "Global options", display_order = 104)]
    version: Option<bool>,
}

/// The subcommands. Each has its help in its own file.
#[derive(Subcommand, Clone, Debug)]
pub(super) enum Command {
    Mount(Box<MountCommand>),
    #[command(visible_alias = "umount")]
    Unmount(UnmountArgs),
    Status(StatusArgs),
    Top(TopArgs),
    Add(AddArgs),
    Remove(RemoveArgs),
    Set(SetArgs),
    Pause(PauseArgs),
    Resume(ResumeArgs),
    Verify(VerifyArgs),
    Priority(PriorityArgs),
    Get(Box<GetArgs>),
    Seed(Box<SeedArgs>),
    Demo(DemoArgs),
    Tracker(Box<TrackerArgs>),
    Create(Box<CreateArgs>),
    Show(ShowArgs),
    Check(CheckArgs),
    Edit(Box<EditArgs>),
    Config(ConfigArgs),
    Completions(CompletionsArgs),
    #[command(hide = true)]
    Man(ManArgs),
}

impl Cli {
    /// Parses a command line, the name of the program included.
    pub(super) fn parse_words(words: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let matches = Self::definition().try_get_matches_from(words).map_err(with_suggestion)?;
        Self::from_arg_matches(&matches).map_err(|error| error.format(&mut Self::definition()))
    }

    /// Returns the definition of the command line, with the layout of its help.
    pub(super) fn definition() -> clap::Command {
        let command = Self::command().help_template(HELP_TEMPLATE);
        let command = command.mut_subcommands(|subcommand| subcommand.help_template(HELP_TEMPLATE));
        command.mut_subcommand("mount", |mount| mount.help_template(mount::TEMPLATE))
    }

    /// Returns the definition for manual pages.
    pub(super) fn for_manual() -> clap::Command {
        Self::definition().mut_subcommand("mount", mount::for_manual)
    }
}

/// Commands by the words that people try, because other programs have them.
const SYNONYMS: [(&str, &[&str]); 8] = [
    ("status", &["list", "ls", "ps", "stat", "stats", "info"]),
    ("get", &["download", "dl", "fetch", "wget", "pull"]),
    ("mount", &["open", "start", "play", "stream"]),
    ("unmount", &["stop", "close", "quit", "exit", "eject"]),
    ("remove", &["rm", "delete", "del"]),
    ("seed", &["upload", "share"]),
    ("create", &["make", "new", "mktorrent"]),
    ("set", &["limit", "limits", "speed"]),
];

/// Suggests the command that an unknown word most likely means, if clap has not found a similar one.
fn with_suggestion(mut error: clap::Error) -> clap::Error {
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidSubcommand) else { return error };
    let meant = SYNONYMS.iter().find(|(_, words)| words.contains(&word.to_lowercase().as_str()));
    if let Some((command, _)) = meant {
        error.insert(ContextKind::SuggestedSubcommand, ContextValue::Strings(vec![(*command).to_owned()]));
    }
    error
}

#[cfg(test)]
mod tests;
