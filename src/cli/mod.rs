//! The command line: arguments to calls, errors to words. One file a subcommand.

mod adding;
pub mod args;
pub mod cache_dir;
mod check;
mod config;
mod create;
mod demo;
mod edit;
mod engine;
mod get;
mod giving;
pub mod helper;
mod http;
mod kept;
pub mod log;
mod manual;
mod mount;
pub mod mount_args;
pub mod network;
pub mod options;
mod orders;
mod output;
mod progress;
mod reach;
mod sample;
mod seed;
mod service;
mod show;
mod status;
mod top;
mod tracker;
mod values;

use std::fmt;

use clap::Parser;

use crate::fs::unmount_path;
use crate::sys::process::tune_allocator;
use args::{Cli, Command, Exit};
use config::Config;
use log::Verbosity;

/// Runs the program; what it returns is the exit status.
pub fn run() -> Exit {
    tune_allocator();
    let cli = Cli::try_parse().unwrap_or_else(|error| refuse(&error));
    let verbosity = Verbosity::new(cli.verbose, cli.quiet);
    let config = || Config::load(cli.config.as_deref());
    let outcome = match cli.command {
        Command::Mount(command) => config().and_then(|config| mount::run(command.over(config.options()?), verbosity)),
        Command::Config(args) => config().and_then(|config| config.show(&args)),
        Command::Unmount { mountpoint } => {
            log::to_stderr(verbosity);
            unmount_path(&mountpoint).map_err(|error| Failure::new(Exit::Mountpoint, error))
        }
        Command::Status(args) => {
            log::to_stderr(verbosity);
            status::run(&args)
        }
        Command::Add(args) => orders::add(&args),
        Command::Remove(args) => orders::remove(&args),
        Command::Top(args) => top::run(&args),
        Command::Set(args) => orders::set(&args),
        Command::Pause(args) => orders::pause(&args, true),
        Command::Resume(args) => orders::pause(&args, false),
        Command::Verify(args) => orders::verify(&args, cli.quiet),
        Command::Priority(args) => orders::prioritize(&args),
        Command::Get(args) => get::run(*args, verbosity, cli.quiet),
        Command::Seed(args) => seed::run(*args, verbosity, cli.quiet),
        Command::Demo(args) => demo::run(args, verbosity),
        Command::Tracker(args) => tracker::run(*args, verbosity),
        Command::Create(args) => create::run(&args, cli.quiet),
        Command::Show(args) => show::run(&args),
        Command::Check(args) => match check::run(&args, cli.quiet) {
            Ok(exit) => return exit,
            Err(failure) => Err(failure),
        },
        Command::Edit(args) => edit::run(&args, cli.quiet),
        Command::Completions(args) => manual::completions(&args),
        Command::Man(args) => manual::pages(&args),
    };
    match outcome {
        Ok(()) => Exit::Success,
        Err(failure) => {
            eprintln!("torrentfs: {failure}");
            failure.exit
        }
    }
}

/// Shows the parser's message and ends, as [`Cli::parse`] would. A magnet link without quotes is cut by the shell at its
/// first `&`, and what follows is gone: then the missing mountpoint is not the fault to speak of.
fn refuse(error: &clap::Error) -> ! {
    let unquoted = |arg: std::ffi::OsString| arg.to_string_lossy().to_ascii_lowercase().starts_with("magnet:");
    if error.kind() == clap::error::ErrorKind::MissingRequiredArgument && std::env::args_os().any(unquoted) {
        eprintln!("torrentfs: the magnet link may be cut short: put it in quotes, for the shell ends it at each '&'");
    }
    error.exit()
}

/// Why the program fails: a line for people and a code for scripts.
#[derive(Debug)]
struct Failure {
    exit: Exit,
    message: String,
}

impl Failure {
    fn new(exit: Exit, message: impl fmt::Display) -> Self {
        // One line, whatever a file name or a server put into it.
        let message = message.to_string().replace(|c: char| c.is_control(), " ");
        Self { exit, message }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// The failure of anything but a mount for a torrent's sake, as in "cannot show x".
fn fault_to(verb: &str, shown: &str, why: impl fmt::Display) -> Failure {
    Failure::new(Exit::Torrent, format!("cannot {verb} {shown}: {why}"))
}
