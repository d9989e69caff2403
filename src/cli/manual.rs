//! `torrentfs completions` and `torrentfs man`: made from the definition of the command line, so always true.

use std::path::PathBuf;

use clap::{Args, Command};
use clap_complete::Shell;

use super::failure::{Exit, Failure};
use super::output;

const COMPLETIONS_HELP: &str = "\
Examples:
  torrentfs completions bash > \\
      ~/.local/share/bash-completion/completions/torrentfs
  torrentfs completions fish > ~/.config/fish/completions/torrentfs.fish
  torrentfs completions zsh > DIR/_torrentfs    (DIR: one of $fpath)";

/// Print what a shell needs to complete command lines of torrentfs
#[derive(Args, Clone, Debug)]
#[command(after_help = COMPLETIONS_HELP)]
pub(super) struct CompletionsArgs {
    /// The shell; put the output where it looks for completions
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// Write the manual pages to a directory
#[derive(Args, Clone, Debug)]
pub(super) struct ManArgs {
    /// An existing directory
    #[arg(value_name = "DIR")]
    pub(super) dir: PathBuf,
}

/// Prints the completions of a command line.
pub(super) fn completions(args: &CompletionsArgs, command: &mut Command) -> Result<(), Failure> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, command, "torrentfs", &mut text);
    output::print_bytes(&text)
}

/// Writes a page for each subcommand, `torrentfs.1`, `torrentfs-mount.1` and so on, and `mount.torrentfs.8`.
pub(super) fn pages(args: &ManArgs, command: Command, helper: Command) -> Result<(), Failure> {
    let helper = clap_mangen::Man::new(helper).section("8");
    let written = clap_mangen::generate_to(command, &args.dir).and_then(|()| helper.generate_to(&args.dir));
    written
        .map(drop)
        .map_err(|error| Failure::new(Exit::Failure, format!("cannot write to {}: {error}", args.dir.display())))
}
