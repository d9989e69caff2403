//! `torrentfs edit`: what can change of a torrent without making another one of it; and its name.

use std::fs;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use serde::Serialize;

use super::failure::{Exit, Failure};
use super::flags::values::{Tier, name, tier, web_seed};
use super::output::{self, AtomicFile, Replace, STANDARD};
use super::text::{self, shown};
use crate::library::read_torrent;
use crate::metainfo::{Edit, Metainfo};

const AFTER_HELP: &str = "\
Each FILE is replaced in one step, and only if something changes. The info hash
stays, byte for byte of what it is of, and so does every key that is not named
here; only --rename makes another torrent of it, which peers of the old one do
not have. An empty TEXT takes the text out. Options are applied in the order of
this list: first what replaces all trackers, then what removes, replaces and
adds single ones.

JSON: file, output (null: standard output or nowhere), changes, name, info_hash,
old_info_hash, trackers, web_seeds, written; a line for each FILE.

Examples:
  torrentfs edit film.torrent --replace-tracker \\
      http://old.example.org/announce https://new.example.org/announce
  torrentfs edit *.torrent --dry-run --add-tracker udp://tracker.example.org:80
  torrentfs edit film.torrent --comment 'with subtitles' -o other.torrent";

/// Change a torrent's trackers, web seeds and texts, and leave the rest as it is
#[derive(Args, Clone, Debug)]
#[command(after_help = AFTER_HELP, args_override_self = true)]
pub(super) struct EditArgs {
    /// .torrent files; "-": from standard input to standard output
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,

    /// Write there instead, if there is one FILE; "-": standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Let --output replace a file that is there already
    #[arg(short, long, requires = "output")]
    force: bool,

    /// Say what would change, and write nothing
    #[arg(long)]
    dry_run: bool,

    /// Take the trackers of another .torrent file in place of all there are
    #[arg(long, value_name = "TORRENT", help_heading = "Trackers", conflicts_with = "tracker")]
    copy_trackers_from: Option<PathBuf>,

    /// In place of all trackers: a URL, or several of a tier, separated by commas; again: the next tier
    #[arg(short = 'a', long, value_name = "URL[,URL]", value_parser = tier, help_heading = "Trackers")]
    tracker: Vec<Tier>,

    /// Take out all trackers
    #[arg(long, help_heading = "Trackers", conflicts_with_all = ["tracker", "copy_trackers_from"])]
    no_trackers: bool,

    /// Take out this tracker
    #[arg(long, value_name = "URL", help_heading = "Trackers")]
    remove_tracker: Vec<String>,

    /// Put another tracker into the place of one
    #[arg(long, num_args = 2, value_names = ["OLD", "NEW"], help_heading = "Trackers")]
    replace_tracker: Vec<String>,

    /// Add a tier behind those there are
    #[arg(long, value_name = "URL[,URL]", value_parser = tier, help_heading = "Trackers")]
    add_tracker: Vec<Tier>,

    /// In place of all web seeds: this one, or these
    #[arg(short, long, value_name = "URL", value_parser = web_seed, help_heading = "Web seeds")]
    web_seed: Vec<String>,

    /// Take out all web seeds
    #[arg(long, help_heading = "Web seeds", conflicts_with = "web_seed")]
    no_web_seeds: bool,

    /// Take out this web seed
    #[arg(long, value_name = "URL", help_heading = "Web seeds")]
    remove_web_seed: Vec<String>,

    /// Add this web seed
    #[arg(long, value_name = "URL", value_parser = web_seed, help_heading = "Web seeds")]
    add_web_seed: Vec<String>,

    /// Set the comment
    #[arg(short, long, value_name = "TEXT", help_heading = "Texts")]
    comment: Option<String>,

    /// Set what made the torrent
    #[arg(long, value_name = "TEXT", help_heading = "Texts")]
    created_by: Option<String>,

    /// Set when it was made: "now", "none", seconds since 1970, or as in 2026-11-25T12:00:00Z
    #[arg(long, value_name = "DATE", value_parser = date, help_heading = "Texts")]
    date: Option<Date>,

    /// Give it another name, which makes it another torrent: its info hash changes
    #[arg(long, value_name = "NAME", value_parser = name)]
    rename: Option<String>,

    /// Tell the result as JSON, a line for each FILE
    #[arg(long)]
    json: bool,
}

/// A date to set; `None`: there is to be none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Date(Option<i64>);

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

pub(super) fn run(args: &EditArgs, quiet: bool) -> Result<(), Failure> {
    if args.output.is_some() && args.files.len() > 1 {
        return Err(Failure::new(Exit::Usage, "--output is of one FILE, and there are more; they would overwrite it"));
    }
    if !args.asks_for_something() {
        return Err(Failure::new(Exit::Usage, "there is nothing to change: say what, as in --add-tracker URL"));
    }
    let copied = match &args.copy_trackers_from {
        Some(path) => Some(open(path)?.0.trackers()),
        None => None,
    };
    // One that fails does not keep the others from being edited, but the exit code tells.
    let mut first_failure = None;
    for path in &args.files {
        if let Err(failure) = one(args, path, copied.as_deref(), quiet) {
            match first_failure {
                None => first_failure = Some(failure),
                Some(_) => output::print_error(&format!("torrentfs: {failure}\n")),
            }
        }
    }
    first_failure.map_or(Ok(()), Err)
}

fn open(path: &Path) -> Result<(Edit, Metainfo, Vec<u8>), Failure> {
    let shown = if path.as_os_str() == STANDARD { "standard input".into() } else { path.to_string_lossy() };
    let bytes = match path.as_os_str() == STANDARD {
        true => read_torrent(io::stdin().lock()),
        false => fs::File::open(path).and_then(read_torrent),
    };
    let bytes = bytes.map_err(|error| Failure::of_torrent("edit", &shown, error))?;
    let metainfo = Metainfo::parse(&bytes).map_err(|error| Failure::of_torrent("edit", &shown, error))?;
    let edit = Edit::new(&bytes).map_err(|error| Failure::of_torrent("edit", &shown, error))?;
    Ok((edit, metainfo, bytes))
}

fn one(args: &EditArgs, path: &Path, copied: Option<&[Vec<Vec<u8>>]>, quiet: bool) -> Result<(), Failure> {
    let (before, old, bytes) = open(path)?;
    let mut edit = before.clone();
    args.apply(&mut edit, copied);
    if let Some(name) = &args.rename {
        edit.rename(name).map_err(|error| Failure::of_torrent("edit", &path.to_string_lossy(), error))?;
    }
    let changed = edit != before;
    // What is not changed is given as it came, even where its keys are out of order.
    let edited = if changed { edit.build() } else { bytes };
    let new = Metainfo::parse(&edited).map_err(|error| Failure::of_torrent("edit", &path.to_string_lossy(), error))?;
    if args.rename.is_none() && new.info != old.info {
        return Err(Failure::of_torrent(
            "edit",
            &path.to_string_lossy(),
            "its info hash would change, which is a fault of ours",
        ));
    }

    let output = args.output.as_deref().unwrap_or(path);
    let to_standard = output.as_os_str() == STANDARD;
    let mut written = false;
    if !args.dry_run && to_standard {
        if io::stdout().is_terminal() {
            let why = "a torrent is no text for a terminal: send it to a file";
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
        let what = if changes.is_empty() { "nothing changes".to_owned() } else { changes.join("; ") };
        let would = if args.dry_run && changed { "would change: " } else { "" };
        format!("{}: {would}{what}\n", shown(path))
    };
    if to_standard && !args.dry_run {
        output::print_error(&text);
        Ok(())
    } else {
        output::print(&text)
    }
}

impl EditArgs {
    fn asks_for_something(&self) -> bool {
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

/// In words.
fn changes(before: &Edit, old: &Metainfo, after: &Edit, new: &Metainfo) -> Vec<String> {
    let mut changes = Vec::new();
    let urls = |name: &str, old: &[Vec<u8>], new: &[Vec<u8>]| {
        let only = |these: &[Vec<u8>], those: &[Vec<u8>], sign: char| -> Vec<String> {
            let only = these.iter().filter(|url| !those.contains(url));
            only.map(|url| format!("{sign}{}", String::from_utf8_lossy(url).replace(char::is_control, "\u{fffd}")))
                .collect()
        };
        let mut all = only(old, new, '-');
        all.extend(only(new, old, '+'));
        let order = if all.is_empty() { "in another order or other tiers".to_owned() } else { all.join(" ") };
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
            changes.push(new.as_ref().map_or_else(|| format!("no {name}"), |text| format!("{name} {text:?}")));
        }
    }
    if old.creation_date != new.creation_date {
        changes
            .push(new.creation_date.map_or_else(|| "no date".to_owned(), |date| format!("date {}", text::date(date))));
    }
    if old.info_hash != new.info_hash {
        changes.push(format!(
            "name {:?}: it is ANOTHER TORRENT now, info hash {} in place of {}",
            new.name, new.info_hash, old.info_hash
        ));
    }
    // Such as a comment that only read the same.
    if changes.is_empty() && before != after {
        changes.push("another form of the same".to_owned());
    }
    changes
}

fn date(text: &str) -> Result<Date, String> {
    let since =
        |time: SystemTime| time.duration_since(UNIX_EPOCH).ok().and_then(|time| i64::try_from(time.as_secs()).ok());
    let seconds = match text {
        "none" => return Ok(Date(None)),
        "now" => since(SystemTime::now()),
        text => match text.parse() {
            // A year alone is no moment.
            Ok(seconds) if seconds > 9999 => Some(seconds),
            Ok(_) => None,
            Err(_) => humantime::parse_rfc3339_weak(text).ok().and_then(since),
        },
    };
    let seconds = seconds.filter(|seconds| (0..=crate::metainfo::MAX_DATE).contains(seconds));
    seconds.map(|seconds| Date(Some(seconds))).ok_or_else(|| "expected now, none, or as in 2026-11-25T12:00:00Z".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_said_in_several_ways() {
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
