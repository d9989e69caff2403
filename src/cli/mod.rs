//! The command line of the two programs, `torrentfs` and `mount.torrentfs`.
//!
//! Each subcommand has a file or a directory. Subcommands import what they share, and never one another: `failure`,
//! `runtime`, `flags` and `text` at the bottom, then what opens sources, serves a mount or asks a running one.
//! `args` lists the subcommands, and this file runs them.

mod add;
mod args;
mod blocklist;
mod cache_dir;
mod check;
mod config;
mod create;
mod demo;
mod edit;
mod end_mounts;
mod engine;
mod failure;
mod flags;
mod get;
mod helper;
mod log;
mod make_torrent;
mod manual;
mod mount;
mod mount_args;
mod output;
mod pause;
mod priority;
mod progress;
mod remove;
mod running_mount;
mod runtime;
mod sample;
mod seed;
mod seeding;
mod serve;
mod service;
mod set;
mod settings;
mod show;
mod sources;
mod status;
mod syscalls;
mod system_mount;
mod text;
mod top;
mod tracker;
mod unmount;
mod verify;

use crate::sys::process::{ignore_file_size_signal, tune_allocator};
use args::{Cli, Command};
use failure::Failure;
use log::Verbosity;
use settings::Settings;

pub use failure::Exit;
pub use helper::run as run_mount_helper;

/// Runs `torrentfs` with the arguments of this process, and returns its exit status.
pub fn run() -> Exit {
    tune_allocator();
    ignore_file_size_signal();
    let cli = Cli::parse_words(std::env::args_os()).unwrap_or_else(|error| exit_with_usage(&error));
    dispatch(cli).unwrap_or_else(|failure| {
        eprintln!("torrentfs: {failure}");
        failure.exit
    })
}

fn dispatch(cli: Cli) -> Result<Exit, Failure> {
    let Cli { command, verbose, quiet, config, .. } = cli;
    let verbosity = Verbosity::new(verbose, quiet);
    let settings = || Settings::load(config.as_deref());
    match command {
        Command::Check(args) => return check::run(&args, quiet),
        Command::Mount(command) => mount::run(command.over(settings()?.options()?), verbosity),
        Command::Config(args) => config::run(&settings()?, &args),
        Command::Unmount(args) => {
            log::to_stderr(verbosity);
            unmount::run(&args)
        }
        Command::Status(args) => {
            log::to_stderr(verbosity);
            status::run(&args)
        }
        Command::Top(args) => top::run(&args),
        Command::Add(args) => add::run(&args),
        Command::Remove(args) => remove::run(&args),
        Command::Set(args) => set::run(&args),
        Command::Pause(args) => pause::pause(&args),
        Command::Resume(args) => pause::resume(&args),
        Command::Verify(args) => verify::run(&args, quiet),
        Command::Priority(args) => priority::run(&args),
        Command::Get(args) => get::run(*args, verbosity, quiet),
        Command::Seed(args) => seed::run(*args, verbosity, quiet),
        Command::Demo(args) => demo::run(args, verbosity),
        Command::Tracker(args) => tracker::run(*args, verbosity),
        Command::Create(args) => create::run(*args, quiet),
        Command::Show(args) => show::run(&args),
        Command::Edit(args) => edit::run(&args, quiet),
        Command::Completions(args) => manual::completions(&args, &mut Cli::definition()),
        Command::Man(args) => manual::pages(&args, Cli::for_manual(), helper::definition()),
    }?;
    Ok(Exit::Success)
}

/// Prints clap's message and exits, as clap itself would. A shell cuts a magnet link without quotes at its first `&`,
/// so that the mountpoint behind it seems to be missing: then a hint comes first.
fn exit_with_usage(error: &clap::Error) -> ! {
    let is_magnet = |arg: std::ffi::OsString| arg.to_string_lossy().to_ascii_lowercase().starts_with("magnet:");
    if error.kind() == clap::error::ErrorKind::MissingRequiredArgument && std::env::args_os().any(is_magnet) {
        eprintln!("torrentfs: the shell may have cut the magnet link at a '&'; put the link in quotes");
    }
    error.exit()
}
