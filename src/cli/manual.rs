//! `torrentfs completions` and `torrentfs man`, which are made from the definition of the command line.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, Args, Command};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, italic, roman};

use super::failure::{Exit, Failure};
use super::output;

const DESCRIPTION: &str = "\
Save the output where the shell looks for completions; zsh looks in the
directories of $fpath.";

const EXAMPLES: &str = "\
Examples:
  torrentfs completions bash > \\
      ~/.local/share/bash-completion/completions/torrentfs
  torrentfs completions fish > ~/.config/fish/completions/torrentfs.fish
  torrentfs completions zsh > ~/.zfunc/_torrentfs";

/// Print shell completions
#[derive(Args, Clone, Debug)]
#[command(before_help = DESCRIPTION, after_help = EXAMPLES)]
pub(super) struct CompletionsArgs {
    /// Shell that the completions are for
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// Write the manual pages to a directory
#[derive(Args, Clone, Debug)]
pub(super) struct ManArgs {
    /// Existing directory
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
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let subcommands = command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set()).cloned();
    let mut pages: Vec<(Command, &str)> = subcommands.map(|subcommand| (subcommand, "1")).collect();
    pages.extend([(command.clone(), "1"), (helper, "8")]);
    pages.into_iter().try_for_each(|(command, section)| page(command, section, &args.dir)).map_err(|error| {
        Failure::new(Exit::Failure, format!("cannot write manual pages to {}: {error}", args.dir.display()))
    })
}

/// Writes one page. clap_mangen renders what clap knows; the description (`before_help`) and the sections (`after_help`)
/// are rendered here, because clap_mangen leaves out the former and reflows the latter.
fn page(command: Command, section: &str, dir: &Path) -> io::Result<()> {
    let description = command.get_before_help().map(ToString::to_string);
    let sections = command.get_after_help().map(ToString::to_string);
    let has_subcommands = command.has_subcommands();
    let synopsis = synopsis(&command);
    let man = Man::new(command).section(section).source(concat!("torrentfs ", env!("CARGO_PKG_VERSION")));
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    match synopsis {
        Some(synopsis) => page.extend(synopsis.into_bytes()),
        None => man.render_synopsis_section(&mut page)?,
    }
    man.render_description_section(&mut page)?;
    page.extend(description.map(|text| format!(".PP\n{}", roff(&text))).unwrap_or_default().into_bytes());
    man.render_options_section(&mut page)?;
    if has_subcommands {
        man.render_subcommands_section(&mut page)?;
    }
    page.extend(sections.map(|text| roff(&text)).unwrap_or_default().into_bytes());
    fs::write(dir.join(man.get_filename()), page)
}

/// Returns the synopsis: every option with its value, then the arguments. clap_mangen leaves out the values. Returns `None` if
/// the command says itself how it is used, or has subcommands.
fn synopsis(command: &Command) -> Option<String> {
    if command.get_overridden_usage().is_some() || command.has_subcommands() {
        return None;
    }
    let mut line = vec![bold(command.get_bin_name().unwrap_or_else(|| command.get_name()))];
    let shown = |arg: &&Arg| !arg.is_hide_set();
    let is_required = |arg: &&Arg| arg.is_required_set();
    let (required, options): (Vec<_>, Vec<_>) =
        command.get_arguments().filter(|arg| !arg.is_positional()).filter(shown).partition(is_required);
    for arg in options.into_iter().chain(required) {
        let (open, close) = if arg.is_required_set() { (" ", "") } else { (" [", "]") };
        line.push(roman(open));
        let names = [arg.get_short().map(|short| format!("-{short}")), arg.get_long().map(|long| format!("--{long}"))];
        for (number, name) in names.into_iter().flatten().enumerate() {
            line.extend((number > 0).then(|| roman("|")));
            line.push(bold(name));
        }
        if arg.get_action().takes_values() {
            let is_optional = arg.get_num_args().is_some_and(|values| values.min_values() == 0);
            let (before, after) = if is_optional { ("[=", "]") } else { (" ", "") };
            line.extend([roman(before), italic(value_of(arg)), roman(after)]);
        }
        line.push(roman(close));
        let is_repeated = matches!(arg.get_action(), ArgAction::Append | ArgAction::Count);
        line.extend(is_repeated.then(|| roman("...")));
    }
    for arg in command.get_positionals().filter(shown) {
        let (open, close) = if arg.is_required_set() { (" ", "") } else { (" [", "]") };
        let is_repeated = arg.get_num_args().is_some_and(|values| values.max_values() > 1);
        let dots = if is_repeated { "..." } else { "" };
        line.extend([roman(open), italic(value_of(arg)), roman(dots), roman(close)]);
    }
    let mut page = Roff::new();
    page.control("SH", ["SYNOPSIS"]).text(line);
    Some(page.render())
}

/// Returns the name of an argument's value.
fn value_of(arg: &Arg) -> String {
    match arg.get_value_names() {
        Some(names) => names.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
        None => arg.get_id().as_str().to_uppercase(),
    }
}

/// Converts help text to roff. An unindented line that ends with a colon starts a section; text at the margin of a section
/// is filled, and a deeper or aligned line stays a line of its own.
fn roff(text: &str) -> String {
    let mut page = Roff::new();
    let mut verbatim = false;
    for paragraph in text.split("\n\n") {
        let mut lines: Vec<&str> = paragraph.lines().collect();
        if let Some(heading) =
            lines.first().and_then(|line| line.strip_suffix(':')).filter(|line| !line.starts_with(' '))
        {
            let heading = heading.split(" (").next().unwrap_or(heading).to_uppercase();
            page.control("SH", [heading.as_str()]);
            lines.remove(0);
        } else {
            page.control("PP", []);
        }
        // Columns and commands are verbatim; sentences are not.
        let is_verbatim = is_table(&lines);
        if is_verbatim != verbatim {
            page.control(if is_verbatim { "nf" } else { "fi" }, []);
            verbatim = is_verbatim;
        }
        for line in lines {
            page.text([roman(line.strip_prefix("  ").unwrap_or(line))]);
        }
        if verbatim {
            page.control("fi", []);
            verbatim = false;
        }
    }
    page.render()
}

/// Returns whether lines are a table, a list or commands, whose line breaks matter, rather than sentences.
fn is_table(lines: &[&str]) -> bool {
    lines.iter().any(|line| line.trim_start().contains("  "))
        || lines.iter().all(|line| line.starts_with("  ") && !line.trim_end().ends_with('.'))
}
