//! `torrentfs completions` and `torrentfs man`: made from the definition of the command line, so always true.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::Failure;
use super::args::{Cli, Exit};
use super::{helper, mount_args};

const COMPLETIONS_HELP: &str = "\
Examples:
  torrentfs completions bash > \\
      ~/.local/share/bash-completion/completions/torrentfs
  torrentfs completions fish > ~/.config/fish/completions/torrentfs.fish
  torrentfs completions zsh > DIR/_torrentfs    (DIR: one of $fpath)";

/// `torrentfs completions`.
#[derive(Args, Clone, Debug)]
#[command(after_help = COMPLETIONS_HELP)]
pub struct CompletionsArgs {
    /// The shell; put the output where it looks for completions
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// `torrentfs man`.
#[derive(Args, Clone, Debug)]
pub struct ManArgs {
    /// An existing directory
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

pub(super) fn completions(args: &CompletionsArgs) -> Result<(), Failure> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "torrentfs", &mut text);
    match io::stdout().write_all(&text) {
        // A reader that has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(|error| Failure::new(Exit::Failure, format!("cannot write: {error}"))),
    }
}

/// Writes a page for each command, `torrentfs.1`, `torrentfs-mount.1` and so on, and `mount.torrentfs.8`.
pub(super) fn pages(args: &ManArgs) -> Result<(), Failure> {
    let helper = clap_mangen::Man::new(helper::command()).section("8");
    let command = Cli::command().mut_subcommand("mount", mount_args::for_manual);
    let written = clap_mangen::generate_to(command, &args.dir).and_then(|()| helper.generate_to(&args.dir));
    written
        .map(drop)
        .map_err(|error| Failure::new(Exit::Failure, format!("cannot write to {}: {error}", args.dir.display())))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn there_is_a_page_for_each_command() {
        let dir = tempfile::tempdir().unwrap();
        pages(&ManArgs { dir: dir.path().to_owned() }).unwrap();
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        assert!(read("torrentfs.1").contains("torrentfs\\-mount(1)"), "{}", read("torrentfs.1"));
        let mount = read("torrentfs-mount.1");
        assert!(mount.contains("\\-\\-cache\\-size"));
        let (sources, mountpoint) = (mount.find("<\\fISOURCE"), mount.find("<\\fIMOUNTPOINT"));
        assert!(sources.is_some() && sources < mountpoint, "{mount}");
        assert!(read("mount.torrentfs.8").contains("setuid=USER"));
        assert!(!dir.path().join("torrentfs-man.1").exists());
        assert!(pages(&ManArgs { dir: "/nowhere".into() }).is_err());
    }
}
