//! `torrentfs check`: whether files are those of a torrent.

use std::ffi::OsString;
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytesize::ByteSize;
use clap::Args;
use serde::Serialize;

use super::failure::{Exit, Failure};
use super::output::{self, GREEN, PLAIN, RED, STANDARD, YELLOW};
use super::progress::Progress;
use super::text::{count, shown};
use crate::library::read_torrent;
use crate::metainfo::{Metainfo, PieceIndex};
use crate::payload::{self, Check, CheckedFile, FileState, PieceState};

/// Runs of pieces named on a line; JSON has all of them.
const RUNS: usize = 8;

const AFTER_HELP: &str = "\
The exit code is 0 only if every piece is good and every file is as long as it
should be; 6 if not. Nothing is written. Each file that is not as it should be
has a line:

  missing     it is not there
  short       it has fewer bytes than it should have
  long        it has more
  bad         some of its pieces do not have the torrent's hash; a piece may lie
              in several files
  unchecked   it is all there, but shares a piece with a file that is not
  unreadable  it cannot be read
  other       something else is there, or a link leads elsewhere

JSON: complete, path, size, good_bytes, pieces, good_pieces, bad_pieces and
missing_pieces (their numbers), files: path, size, state (\"good\" or one of the
above), detail, pieces, bad_pieces, missing_pieces (how many).

Examples:
  torrentfs check film.torrent ~/Videos/film.mkv
  torrentfs check album.torrent ~/Music && echo all right";

/// Tell whether files are those of a torrent, and which are not
#[derive(Args, Clone, Debug)]
#[command(after_help = AFTER_HELP)]
pub(super) struct CheckArgs {
    /// A .torrent file, or "-" for standard input
    torrent: OsString,

    /// The torrent's file or directory, or the directory that holds it
    path: PathBuf,

    /// As JSON, on one line
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct CheckJson {
    complete: bool,
    path: String,
    size: u64,
    good_bytes: u64,
    pieces: usize,
    good_pieces: usize,
    bad_pieces: Vec<u32>,
    missing_pieces: Vec<u32>,
    files: Vec<FileJson>,
}

#[derive(Serialize)]
struct FileJson {
    path: String,
    size: u64,
    state: &'static str,
    detail: Option<String>,
    pieces: usize,
    bad_pieces: usize,
    missing_pieces: usize,
}

/// Whether all is there: [`Exit::Success`] or [`Exit::Incomplete`].
pub(super) fn run(args: &CheckArgs, quiet: bool) -> Result<Exit, Failure> {
    let metainfo = read(&args.torrent)?;
    let progress = Progress::start(&format!("checking {}", metainfo.name), metainfo.layout.lengths().total(), quiet);
    let wrong = [AtomicUsize::new(0), AtomicUsize::new(0)];
    let check = payload::check(&metainfo, &args.path, &|len, state| {
        progress.add(len.into());
        let counter = match state {
            PieceState::Good => return,
            PieceState::Bad => &wrong[0],
            PieceState::Missing => &wrong[1],
        };
        counter.fetch_add(1, Ordering::Relaxed);
        let [bad, missing] = wrong.each_ref().map(|counter| counter.load(Ordering::Relaxed));
        progress.set_note(&format!("{bad} bad, {missing} missing"));
    });
    drop(progress);
    let check = check.map_err(|error| Failure::new(Exit::Failure, error))?;
    if args.json {
        output::print(&output::json(&to_json(&metainfo, &check))?)?;
    } else if !quiet {
        output::print(&page(&metainfo, &check))?;
    }
    Ok(if check.is_complete() { Exit::Success } else { Exit::Incomplete })
}

fn read(torrent: &OsString) -> Result<Metainfo, Failure> {
    let standard = torrent == STANDARD;
    let shown = if standard { "standard input".into() } else { torrent.to_string_lossy() };
    let bytes = match standard {
        true => read_torrent(std::io::stdin().lock()),
        false => std::fs::File::open(torrent).and_then(read_torrent),
    };
    let bytes = bytes.map_err(|error| Failure::of_torrent("read", &shown, error))?;
    Metainfo::parse(&bytes).map_err(|error| Failure::of_torrent("read", &shown, error))
}

/// The word for a state, and what more there is to say.
fn words(file: &CheckedFile, size: u64) -> (&'static str, Option<String>) {
    match &file.state {
        FileState::Good => ("good", None),
        FileState::Missing => ("missing", None),
        FileState::Short(len) => ("short", Some(format!("{len} of {size} bytes"))),
        FileState::Long(len) => ("long", Some(format!("{} more than {size}", count_bytes(len - size)))),
        FileState::Bad => ("bad", None),
        FileState::Unchecked => ("unchecked", None),
        FileState::Unreadable(why) => ("unreadable", Some(why.clone())),
        FileState::Other(kind) => ("other", Some(format!("there is a {kind} in its place"))),
        FileState::LeadsElsewhere => ("other", Some("the link leads elsewhere".into())),
    }
}

fn count_bytes(number: u64) -> String {
    format!("{number} byte{}", if number == 1 { "" } else { "s" })
}

fn page(metainfo: &Metainfo, check: &Check) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    for file in &check.files {
        let Some(of) = metainfo.layout.file(file.index).filter(|_| file.state != FileState::Good) else { continue };
        let (state, detail) = words(file, of.len);
        let colour = if matches!(file.state, FileState::Bad | FileState::Long(_)) { RED } else { YELLOW };
        let _ = write!(text, "{colour}{state:<10}{PLAIN}  {}", of.path.join("/"));
        let mut details: Vec<String> = detail.into_iter().collect();
        let bad: Vec<PieceIndex> = with(check, file, PieceState::Bad).collect();
        if !bad.is_empty() {
            details.push(format!("{} of {} bad: {}", bad.len(), count(file.pieces.len(), "piece"), runs(&bad)));
        }
        let _ = writeln!(text, "{}{}", if details.is_empty() { "" } else { ": " }, details.join("; "));
    }
    let [good, bad, missing] = [PieceState::Good, PieceState::Bad, PieceState::Missing].map(|state| check.count(state));
    let total = metainfo.layout.lengths().total();
    let files = check.files.len();
    let root = shown(&check.root);
    let _ = if check.is_complete() {
        writeln!(
            text,
            "{GREEN}complete{PLAIN}    {root}: {}, {} in {}",
            count(files, "file"),
            ByteSize(total),
            count(check.pieces.len(), "piece")
        )
    } else {
        let well = check.files.iter().filter(|file| file.state == FileState::Good).count();
        writeln!(
            text,
            "{RED}incomplete{PLAIN}  {root}: {well} of {} good; of {}, {good} good, {bad} bad, {missing} missing; \
             {} of {} good",
            count(files, "file"),
            count(check.pieces.len(), "piece"),
            ByteSize(good_bytes(metainfo, check)),
            ByteSize(total)
        )
    };
    text
}

/// As in "3, 7-9, 12"; not more than a few.
fn runs(pieces: &[PieceIndex]) -> String {
    let mut runs = pieces.chunk_by(|a, b| a.get() + 1 == b.get()).map(|run| match run {
        [first, .., last] => format!("{first}-{last}"),
        run => run.iter().map(ToString::to_string).collect(),
    });
    let mut text = runs.by_ref().take(RUNS).collect::<Vec<_>>().join(", ");
    if runs.next().is_some() {
        text.push_str(", …");
    }
    text
}

fn with<'a>(check: &'a Check, file: &'a CheckedFile, state: PieceState) -> impl Iterator<Item = PieceIndex> + 'a {
    file.pieces.iter().copied().filter(move |piece| check.piece(*piece) == state)
}

fn good_bytes(metainfo: &Metainfo, check: &Check) -> u64 {
    let lengths = metainfo.layout.lengths();
    let good = lengths.iter().filter(|piece| check.piece(*piece) == PieceState::Good);
    good.map(|piece| u64::from(lengths.len_of(piece))).sum()
}

fn to_json(metainfo: &Metainfo, check: &Check) -> CheckJson {
    let lengths = metainfo.layout.lengths();
    let numbers = |state| lengths.iter().filter(|piece| check.piece(*piece) == state).map(PieceIndex::get).collect();
    let files = check.files.iter().filter_map(|file| {
        let of = metainfo.layout.file(file.index)?;
        let (state, detail) = words(file, of.len);
        Some(FileJson {
            path: of.path.join("/"),
            size: of.len,
            state,
            detail,
            pieces: file.pieces.len(),
            bad_pieces: with(check, file, PieceState::Bad).count(),
            missing_pieces: with(check, file, PieceState::Missing).count(),
        })
    });
    CheckJson {
        complete: check.is_complete(),
        path: check.root.to_string_lossy().into_owned(),
        size: lengths.total(),
        good_bytes: good_bytes(metainfo, check),
        pieces: check.pieces.len(),
        good_pieces: check.count(PieceState::Good),
        bad_pieces: numbers(PieceState::Bad),
        missing_pieces: numbers(PieceState::Missing),
        files: files.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metainfo::Lengths;

    #[test]
    fn pieces_are_told_in_runs() {
        let lengths = Lengths::new(100, 1).unwrap();
        let runs =
            |numbers: &[u32]| runs(&numbers.iter().map(|number| lengths.piece(*number).unwrap()).collect::<Vec<_>>());
        assert_eq!(runs(&[3, 7, 8, 9, 12]), "3, 7-9, 12");
        assert_eq!(runs(&[]), "");
        let even: Vec<u32> = (0..9).map(|n| 2 * n).collect();
        assert_eq!(runs(&even), "0, 2, 4, 6, 8, 10, 12, 14, …");
        assert_eq!(runs(&even[..8]), "0, 2, 4, 6, 8, 10, 12, 14");
    }
}
