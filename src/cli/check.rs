//! `torrentfs check`: compares files with the hashes of a torrent.

use std::ffi::OsString;
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytesize::ByteSize;
use clap::Args;
use serde::Serialize;

use super::failure::{Exit, Failure};
use super::output::{self, GREEN, PLAIN, RED, YELLOW};
use super::progress::Progress;
use super::sources;
use super::text::{count, shown};
use crate::metainfo::{Metainfo, PieceIndex};
use crate::payload::{self, Check, CheckedFile, FileState, PieceState};

/// Largest number of piece ranges in a line, so that it stays short. JSON lists all pieces.
const MAX_RANGES: usize = 8;

const DESCRIPTION: &str = "\
Every piece is hashed. The exit code is 0 if every hash matches and every file
has the right length, and 6 otherwise. Nothing is written. Each file with a
problem is printed on a line that begins with its state.";

const SECTIONS: &str = "\
States:
  missing     the file does not exist
  short       it is shorter than in the torrent
  long        it is longer than in the torrent
  bad         some of its pieces have another hash; a piece may span files
  unchecked   its data exists, but it shares a piece with an incomplete file
  unreadable  it cannot be read
  other       another kind of file has its name, or a link has another target

JSON:
  complete, path, size, good_bytes, pieces and good_pieces (numbers), bad_pieces
  and missing_pieces (lists of indexes), files (list of: path, size, state
  (\"good\" or one of the above), detail, pieces, bad_pieces and missing_pieces
  (numbers))

Examples:
  torrentfs check film.torrent ~/Videos/film.mkv
  torrentfs check album.torrent ~/Music && echo complete";

/// Check files against the hashes of a torrent
#[derive(Args, Clone, Debug)]
#[command(before_help = DESCRIPTION, after_help = SECTIONS)]
pub(super) struct CheckArgs {
    /// .torrent file, or "-" for standard input
    torrent: OsString,

    /// File or directory of the torrent, or the directory that contains it
    path: PathBuf,

    /// Print JSON, on one line
    #[arg(long)]
    json: bool,
}

/// Output of `--json`.
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

/// A file in [`CheckJson`].
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

/// Checks the files. Returns [`Exit::Success`] if everything is correct, or else [`Exit::Incomplete`].
pub(super) fn run(args: &CheckArgs, quiet: bool) -> Result<Exit, Failure> {
    let (metainfo, _) = sources::torrent_file("read", &args.torrent)?;
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

/// Returns the name of a state, and details.
fn describe(file: &CheckedFile, size: u64) -> (&'static str, Option<String>) {
    match &file.state {
        FileState::Good => ("good", None),
        FileState::Missing => ("missing", None),
        FileState::Short(len) => ("short", Some(format!("{len} of {size} bytes"))),
        FileState::Long(len) => ("long", Some(format!("{} more than {size}", count((len - size) as usize, "byte")))),
        FileState::Bad => ("bad", None),
        FileState::Unchecked => ("unchecked", None),
        FileState::Unreadable(why) => ("unreadable", Some(why.clone())),
        FileState::Other(kind) => ("other", Some(format!("found a {kind} instead"))),
        FileState::LeadsElsewhere => ("other", Some("the link has another target".into())),
    }
}

/// Returns the report for people.
fn page(metainfo: &Metainfo, check: &Check) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    for file in &check.files {
        let Some(of) = metainfo.layout.file(file.index).filter(|_| file.state != FileState::Good) else { continue };
        let (state, detail) = describe(file, of.len);
        let colour = if matches!(file.state, FileState::Bad | FileState::Long(_)) { RED } else { YELLOW };
        let _ = write!(text, "{colour}{state:<10}{PLAIN}  {}", of.path.join("/"));
        let mut details: Vec<String> = detail.into_iter().collect();
        let bad: Vec<PieceIndex> = pieces_in_state(check, file, PieceState::Bad).collect();
        if !bad.is_empty() {
            details.push(format!("{} of {} bad: {}", bad.len(), count(file.pieces.len(), "piece"), ranges(&bad)));
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
        let good_files = check.files.iter().filter(|file| file.state == FileState::Good).count();
        writeln!(
            text,
            "{RED}incomplete{PLAIN}  {root}: {good_files} of {} good; of {}, {good} good, {bad} bad, {missing} missing; \
             {} of {} good",
            count(files, "file"),
            count(check.pieces.len(), "piece"),
            ByteSize(good_bytes(metainfo, check)),
            ByteSize(total)
        )
    };
    text
}

/// Formats piece indexes as ranges, such as "3, 7-9, 12", at most [`MAX_RANGES`].
fn ranges(pieces: &[PieceIndex]) -> String {
    let mut ranges = pieces.chunk_by(|a, b| a.get() + 1 == b.get()).map(|range| match range {
        [first, .., last] => format!("{first}-{last}"),
        range => range.iter().map(ToString::to_string).collect(),
    });
    let mut text = ranges.by_ref().take(MAX_RANGES).collect::<Vec<_>>().join(", ");
    if ranges.next().is_some() {
        text.push_str(", …");
    }
    text
}

/// Returns the pieces of a file that have a state.
fn pieces_in_state<'a>(
    check: &'a Check,
    file: &'a CheckedFile,
    state: PieceState,
) -> impl Iterator<Item = PieceIndex> + 'a {
    file.pieces.iter().copied().filter(move |piece| check.piece(*piece) == state)
}

/// Returns the number of bytes in good pieces.
fn good_bytes(metainfo: &Metainfo, check: &Check) -> u64 {
    let lengths = metainfo.layout.lengths();
    let good = lengths.iter().filter(|piece| check.piece(*piece) == PieceState::Good);
    good.map(|piece| u64::from(lengths.len_of(piece))).sum()
}

/// Returns the report for `--json`.
fn to_json(metainfo: &Metainfo, check: &Check) -> CheckJson {
    let lengths = metainfo.layout.lengths();
    let numbers = |state| lengths.iter().filter(|piece| check.piece(*piece) == state).map(PieceIndex::get).collect();
    let files = check.files.iter().filter_map(|file| {
        let of = metainfo.layout.file(file.index)?;
        let (state, detail) = describe(file, of.len);
        Some(FileJson {
            path: of.path.join("/"),
            size: of.len,
            state,
            detail,
            pieces: file.pieces.len(),
            bad_pieces: pieces_in_state(check, file, PieceState::Bad).count(),
            missing_pieces: pieces_in_state(check, file, PieceState::Missing).count(),
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
    fn pieces_are_shown_as_ranges() {
        let lengths = Lengths::new(100, 1).unwrap();
        let ranges =
            |numbers: &[u32]| ranges(&numbers.iter().map(|number| lengths.piece(*number).unwrap()).collect::<Vec<_>>());
        assert_eq!(ranges(&[3, 7, 8, 9, 12]), "3, 7-9, 12");
        assert_eq!(ranges(&[]), "");
        let even: Vec<u32> = (0..9).map(|n| 2 * n).collect();
        assert_eq!(ranges(&even), "0, 2, 4, 6, 8, 10, 12, 14, …");
        assert_eq!(ranges(&even[..8]), "0, 2, 4, 6, 8, 10, 12, 14");
    }
}
