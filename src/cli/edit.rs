//! `torrentfs edit`: changes the parts of a torrent that do not affect its info hash, and its name, which does.

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use serde::Serialize;

use super::failure::{Exit, Failure};
use super::flags::values::{Tier, name, tier, web_seed};
use super::output::{self, AtomicFile, Replace, STANDARD};
use super::sources;
use super::text::{self, shown};
use crate::library::Named;
use crate::metainfo::{Edit, Metainfo};
use crate::util::is_hidden;

const DESCRIPTION: &str = "\
Each FILE is replaced atomically, and only if something changes. The `info`
dictionary, and with it the info hash, stays the same byte for byte; so does
every key that no option names. The exception is --rename: it changes the info
hash, and the result is another torrent, which peers of the old one do not have.

Options are applied in the order in which they are listed here: those that
replace all trackers first, then those that remove, replace and add single ones.
An empty TEXT removes the text.";

const SECTIONS: &str = "\
Values:
  DATE  now, none, seconds since 1970, or a time such as 2026-11-25T12:00:00Z

JSON, one line per FILE:
  file, output (path; null for standard output, or if nothing was written),
  changes (list of texts), name, info_hash, old_info_hash, trackers (list of
  tiers), web_seeds, written

Examples:
  torrentfs edit film.torrent --replace-tracker \\
      http://old.example.org/announce https://new.example.org/announce
  torrentfs edit *.torrent --dry-run --add-tracker udp://tracker.example.org:80
  torrentfs edit film.torrent --comment 'with subtitles' -o other.torrent";

/// Change the trackers, web seeds and texts of .torrent files
#[derive(Args, Clone, Debug)]
#[command(before_help = DESCRIPTION, after_help = SECTIONS, args_override_self = true)]
pub(super) struct EditArgs {
    /// .torrent files to edit; "-" reads standard input and writes standard output
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,

    /// Write the result to another file, or to standard output with "-"; allowed with one FILE only
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Let --output replace an existing file
    #[arg(short, long, requires = "output")]
    force: bool,

    /// Print what would change, and write nothing
    #[arg(long)]
    dry_run: bool,

    /// Replace all trackers by those of another .torrent file
    #[arg(long, value_name = "TORRENT", help_heading = "Trackers", conflicts_with = "tracker")]
    copy_trackers_from: Option<PathBuf>,

    /// Replace all trackers by this URL, or several URLs of one tier; repeat the option for further tiers
    #[arg(short = 'a', long, value_name = "URL[,URL]", value_parser = tier, help_heading = "Trackers")]
    tracker: Vec<Tier>,

    /// Remove all trackers
    #[arg(long, help_heading = "Trackers", conflicts_with_all = ["tracker", "copy_trackers_from"])]
    no_trackers: bool,

    /// Remove this tracker; may be repeated
    #[arg(long, value_name = "URL", help_heading = "Trackers")]
    remove_tracker: Vec<String>,

    /// Replace one tracker by another; may be repeated
    #[arg(long, num_args = 2, value_names = ["OLD", "NEW"], help_heading = "Trackers")]
    replace_tracker: Vec<String>,

    /// Add a tier at the end; may be repeated
    #[arg(long, value_name = "URL[,URL]", value_parser = tier, help_heading = "Trackers")]
    add_tracker: Vec<Tier>,

    /// Replace all web seeds by this URL; repeat the option for several
    #[arg(short, long, value_name = "URL", value_parser = web_seed, help_heading = "Web seeds")]
    web_seed: Vec<String>,

    /// Remove all web seeds
    #[arg(long, help_heading = "Web seeds", conflicts_with = "web_seed")]
    no_web_seeds: bool,

    /// Remove this web seed; may be repeated
    #[arg(long, value_name = "URL", help_heading = "Web seeds")]
    remove_web_seed: Vec<String>,

    /// Add this web seed; may be repeated
    #[arg(long, value_name = "URL", value_parser = web_seed, help_heading = "Web seeds")]
    add_web_seed: Vec<String>,

    /// Set the comment
    #[arg(short, long, value_name = "TEXT", help_heading = "Texts")]
    comment: Option<String>,

    /// Set the name of the program that made the torrent
    #[arg(long, value_name = "TEXT", help_heading = "Texts")]
    created_by: Option<String>,

    /// Set the creation date
    #[arg(long, value_name = "DATE", value_parser = date, help_heading = "Texts")]
    date: Option<Date>,

    /// Change the name; this changes the info hash, so the result is another torrent
    #[arg(long, value_name = "NAME", value_parser = name)]
    rename: Option<String>,

    /// Print JSON, one line per FILE
    #[arg(long)]
    json: bool,
}

/// Value of `--date`; `None` removes the date.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Date(Option<i64>);

/// Output of `--json`.
#[derive(Serialize)]
struct Edited {
    file: String,
    output: Option<String>,
    changes: Vec<String>,
    name: String,
    info_hash: String,
    old_info_hash: String,
    trackers: Vec<Vec<String>>,
    web_seeds: Vec<String>,
    written: bool,
}

/// Edits all files.
pub(super) fn run(args: &EditArgs, quiet: bool) -> Result<(), Failure> {
    if args.output.is_some() && args.files.len() > 1 {
        return Err(Failure::new(Exit::Usage, "--output takes a single FILE: several would overwrite each other"));
    }
    if !args.has_changes() {
        return Err(Failure::new(
            Exit::Usage,
            "nothing to change: give at least one change, such as --add-tracker URL",
        ));
    }
    let copied = match &args.copy_trackers_from {
        Some(path) => Some(open(path)?.0.trackers()),
        None => None,
    };
    // A file that fails does not stop the others. The first failure decides the exit code.
    let mut first_failure = None;
    for path in &args.files {
        if let Err(failure) = edit_file(args, path, copied.as_deref(), quiet) {
            match first_failure {
                None => first_failure = Some(failure),
                Some(_) => output::print_error(&format!("torrentfs: {failure}\n")),
            }
        }
    }
    first_failure.map_or(Ok(()), Err)
}

/// Reads a torrent from a file or standard input.
fn open(path: &Path) -> Result<(Edit, Metainfo, Vec<u8>), Failure> {
    let (metainfo, bytes) = sources::torrent_file("edit", path.as_os_str())?;
    let edit = Edit::new(&bytes).map_err(|error| Failure::of_torrent("edit", &path.to_string_lossy(), error))?;
    Ok((edit, metainfo, bytes))
}

/// Edits one file and prints the changes.
fn edit_file(args: &EditArgs, path: &Path, copied: Option<&[Vec<Vec<u8>>]>, quiet: bool) -> Result<(), Failure> {
    // A `file:` URL is a path, to which the result is written.
    let path = &match Named::new(path.as_os_str()) {
        Ok(Named::Path(path)) => path,
        _ => path.to_owned(),
    };
    let (before, old, bytes) = open(path)?;
    let mut edit = before.clone();
    args.apply(&mut edit, copied);
    if let Some(name) = &args.rename {
        edit.rename(name).map_err(|error| Failure::of_torrent("edit", &path.to_string_lossy(), error))?;
    }
    let changed = edit != before;
    // Without changes the original bytes are kept, even if the order of their keys is not canonical.
    let edited = if changed { edit.build() } else { bytes };
    let new = Metainfo::parse(&edited).map_err(|error| Failure::of_torrent("edit", &path.to_string_lossy(), error))?;
    if args.rename.is_none() && new.info != old.info {
        return Err(Failure::of_torrent(
            "edit",
            &path.to_string_lossy(),
            "its info hash would change, which is a bug in torrentfs; the file stays as it is",
        ));
    }

    let output = args.output.as_deref().unwrap_or(path);
    let to_standard = output.as_os_str() == STANDARD;
    let mut written = false;
    if !args.dry_run && to_standard {
        if io::stdout().is_terminal() {
            let why =
                "a torrent is binary and would garble the terminal; redirect standard output, or use --output FILE";
            return Err(Failure::new(Exit::Usage, why));
        }
        output::print_bytes(&edited)?;
        written = true;
    } else if !args.dry_run && (changed || args.output.is_some()) {
        let replace = if args.output.is_some() && !args.force { Replace::Never } else { Replace::Always };
        AtomicFile::plan(output, replace)?.write(&edited)?;
        written = true;
    }

    let changes = changes(&before, &old, &edit, &new);
    let text = if args.json {
        output::json(&Edited {
            file: path.to_string_lossy().into_owned(),
            output: (written && !to_standard).then(|| output.to_string_lossy().into_owned()),
            changes,
            name: new.name.clone(),
            info_hash: new.info_hash.to_string(),
            old_info_hash: old.info_hash.to_string(),
            trackers: new.trackers.clone(),
            web_seeds: new.web_seeds.clone(),
            written,
        })?
    } else if quiet {
        return Ok(());
    } else {
        let summary = if changes.is_empty() { "no changes".to_owned() } else { changes.join("; ") };
        let prefix = if args.dry_run && changed { "would change: " } else { "" };
        format!("{}: {prefix}{summary}\n", shown(path))
    };
    if to_standard && !args.dry_run {
        output::print_error(&text);
        Ok(())
    } else {
        output::print(&text)
    }
}

impl EditArgs {
    /// Returns whether any option changes something.
    fn has_changes(&self) -> bool {
        self.copy_trackers_from.is_some()
            || self.no_trackers
            || self.no_web_seeds
            || [&self.tracker, &self.add_tracker].iter().any(|tiers| !tiers.is_empty())
            || [&self.remove_tracker, &self.replace_tracker, &self.web_seed, &self.remove_web_seed, &self.add_web_seed]
                .iter()
                .any(|urls| !urls.is_empty())
            || [&self.comment, &self.created_by, &self.rename].iter().any(|text| text.is_some())
            || self.date.is_some()
    }

    /// Applies the options to a torrent. `copied` are the tiers of `--copy-trackers-from`.
    fn apply(&self, edit: &mut Edit, copied: Option<&[Vec<Vec<u8>>]>) {
        let raw = |urls: &[String]| -> Vec<Vec<u8>> { urls.iter().map(|url| url.clone().into_bytes()).collect() };
        let mut tiers = match copied {
            Some(copied) => copied.to_vec(),
            None if self.no_trackers => Vec::new(),
            None if !self.tracker.is_empty() => self.tracker.iter().map(|tier| raw(tier)).collect(),
            None => edit.trackers(),
        };
        for url in &self.remove_tracker {
            tiers.iter_mut().for_each(|tier| tier.retain(|known| known != url.as_bytes()));
        }
        for (old, new) in self.replace_tracker.as_chunks::<2>().0.iter().map(|[old, new]| (old, new)) {
            let replaced = tiers.iter_mut().flatten().filter(|known| *known == old.as_bytes());
            replaced.for_each(|known| *known = new.clone().into_bytes());
        }
        for tier in &self.add_tracker {
            let known: Vec<Vec<u8>> = tiers.concat();
            tiers.push(raw(tier).into_iter().filter(|url| !known.contains(url)).collect());
        }
        edit.set_trackers(&tiers);

        let mut seeds = match () {
            () if self.no_web_seeds => Vec::new(),
            () if !self.web_seed.is_empty() => raw(&self.web_seed),
            () => edit.web_seeds(),
        };
        seeds.retain(|known| !self.remove_web_seed.iter().any(|url| known == url.as_bytes()));
        for url in raw(&self.add_web_seed) {
            if !seeds.contains(&url) {
                seeds.push(url);
            }
        }
        edit.set_web_seeds(&seeds);

        let text = |text: &'_ String| if text.is_empty() { None } else { Some(text.clone()) };
        if let Some(comment) = &self.comment {
            edit.set_comment(text(comment).as_deref());
        }
        if let Some(program) = &self.created_by {
            edit.set_created_by(text(program).as_deref());
        }
        if let Some(Date(date)) = self.date {
            edit.set_creation_date(date);
        }
    }
}

/// Returns descriptions of the changes.
fn changes(before: &Edit, old: &Metainfo, after: &Edit, new: &Metainfo) -> Vec<String> {
    let mut changes = Vec::new();
    let urls = |name: &str, old: &[Vec<u8>], new: &[Vec<u8>]| {
        let only = |these: &[Vec<u8>], those: &[Vec<u8>], sign: char| -> Vec<String> {
            let only = these.iter().filter(|url| !those.contains(url));
            only.map(|url| format!("{sign}{}", String::from_utf8_lossy(url).replace(is_hidden, "\u{fffd}"))).collect()
        };
        let mut all = only(old, new, '-');
        all.extend(only(new, old, '+'));
        let order = if all.is_empty() { "order or tiers changed".to_owned() } else { all.join(" ") };
        format!("{name} {order}")
    };
    let (old_tiers, new_tiers) = (before.trackers(), after.trackers());
    if old_tiers != new_tiers {
        changes.push(urls("trackers", &old_tiers.concat(), &new_tiers.concat()));
    }
    let (old_seeds, new_seeds) = (before.web_seeds(), after.web_seeds());
    if old_seeds != new_seeds {
        changes.push(urls("web seeds", &old_seeds, &new_seeds));
    }
    for (name, old, new) in [("comment", &old.comment, &new.comment), ("created by", &old.created_by, &new.created_by)]
    {
        if old != new {
            changes.push(new.as_ref().map_or_else(|| format!("{name}: none"), |text| format!("{name} {text:?}")));
        }
    }
    if old.creation_date != new.creation_date {
        changes.push(
            new.creation_date.map_or_else(|| "date: none".to_owned(), |date| format!("date {}", text::date(date))),
        );
    }
    if old.info_hash != new.info_hash {
        changes.push(format!(
            "name {:?}: this is ANOTHER TORRENT, with the info hash {} instead of {}",
            new.name, new.info_hash, old.info_hash
        ));
    }
    // For example, a comment in another encoding.
    if changes.is_empty() && before != after {
        changes.push("only the encoding changes".to_owned());
    }
    changes
}

/// Parses the value of `--date`.
fn date(text: &str) -> Result<Date, String> {
    let since =
        |time: SystemTime| time.duration_since(UNIX_EPOCH).ok().and_then(|time| i64::try_from(time.as_secs()).ok());
    let seconds = match text {
        "none" => return Ok(Date(None)),
        "now" => since(SystemTime::now()),
        text => match text.parse() {
            // A small number is more likely a year than a time.
            Ok(seconds) if seconds > 9999 => Some(seconds),
            Ok(_) => None,
            Err(_) => humantime::parse_rfc3339_weak(text).ok().and_then(since),
        },
    };
    let seconds = seconds.filter(|seconds| (0..=crate::metainfo::MAX_DATE).contains(seconds));
    seconds
        .map(|seconds| Date(Some(seconds)))
        .ok_or_else(|| "expected now, none, seconds since 1970, or a time such as 2026-11-25T12:00:00Z".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_have_several_formats() {
        assert_eq!(date("1600000000"), Ok(Date(Some(1_600_000_000))));
        assert_eq!(date("2020-09-13T12:26:40Z"), Ok(Date(Some(1_600_000_000))));
        assert_eq!(date("2020-09-13 12:26:40"), Ok(Date(Some(1_600_000_000))));
        assert_eq!(date("none"), Ok(Date(None)));
        assert!(date("now").unwrap().0.unwrap() > 1_600_000_000);
        for nonsense in ["", "-1", "yesterday", "2020", "99999999999999"] {
            assert!(date(nonsense).is_err(), "{nonsense}");
        }
    }
}
