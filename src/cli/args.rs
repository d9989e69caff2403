//! The command line: global options and the list of subcommands.

use std::path::PathBuf;

use clap::{ArgAction, Parser, Subcommand};

use super::add::AddArgs;
use super::check::CheckArgs;
use super::config::ConfigArgs;
use super::create::CreateArgs;
use super::demo::DemoArgs;
use super::edit::EditArgs;
use super::get::GetArgs;
use super::manual::{CompletionsArgs, ManArgs};
use super::mount::MountCommand;
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

/// Mount torrents as filesystems: files can be read at once, while they are still being fetched.
#[derive(Parser, Clone, Debug)]
#[command(name = "torrentfs", version, after_help = AFTER_HELP, max_term_width = 110)]
pub(super) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(super) command: Command,

    /// Tell more; twice: everything
    #[arg(short, long, action = ArgAction::Count, global = true, display_order = 100, conflicts_with = "quiet")]
    pub(super) verbose: u8,

    /// Tell only of errors
    #[arg(short, long, global = true, display_order = 101)]
    pub(super) quiet: bool,

    /// The configuration, in place of /etc/torrentfs/torrentfs.toml and the user's own
    #[arg(long, value_name = "FILE", global = true, display_order = 102)]
    pub(super) config: Option<PathBuf>,
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

#[cfg(test)]
mod tests;
