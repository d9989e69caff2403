//! `torrentfs create`: a file or a tree to a `.torrent`.

use std::ffi::OsString;
use std::fs;
use std::io::{self, IsTerminal};
use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use bytesize::ByteSize;
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::Failure;
use super::args::Exit;
use super::output::{self, Planned, Replace, STANDARD, shown};
use super::progress::Progress;
use crate::metainfo::{MAX_PIECE_LEN, Metainfo, NewTorrent, is_name, piece_len_for};
use crate::payload::{self, Found, Ignore, LeftOut, Walk};

/// The smallest piece that others take.
const MIN_PIECE_LEN: u64 = 16 << 10;

pub(super) const AFTER_HELP: &str = "\
A tracker tier is one --tracker; trackers within a tier are separated by commas.
GLOB is as in a shell: without a '/' it is of names at any depth, with one of
paths below PATH; '/' at its end is of directories alone; '**' is of any depth.
SIZE is a power of two with a unit: 256KiB, 4MiB.

Links within the tree and owners' x bits are kept (BEP 47). What begins with a
dot is left out. FIFOs, sockets, devices and names that are not UTF-8 are
errors: --ignore leaves them out. SOURCE_DATE_EPOCH is the date, if it is set.

Examples:
  torrentfs create film -a http://tracker.example.org/announce
  torrentfs create album -a http://a.example.org/announce \\
      -a udp://b.example.org:80,udp://c.example.org:80
  torrentfs create photos --ignore '*.xmp' --ignore thumbnails/ --private";

/// `torrentfs create`.
#[derive(Args, Clone, Debug)]
pub struct CreateArgs {
    /// A file, or a directory of files
    path: PathBuf,

    /// Where the torrent is written, or the directory for it; "-": standard output [default: NAME.torrent]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Replace a file that is there already
    #[arg(short, long)]
    force: bool,

    /// A tracker's announce URL, or several of a tier, separated by commas; again: the next tier
    #[arg(short = 'a', long = "tracker", value_name = "URL[,URL]", value_parser = tier)]
    trackers: Vec<Tier>,

    /// The URL of an HTTP server that has the files, too (BEP 19)
    #[arg(short, long = "web-seed", value_name = "URL", value_parser = web_seed)]
    web_seeds: Vec<String>,

    /// Peers may come from the trackers alone (BEP 27)
    #[arg(short, long)]
    private: bool,

    /// A text for those who look into the torrent
    #[arg(short, long, value_name = "TEXT")]
    comment: Option<String>,

    /// Whom it is for; makes another torrent of the same files
    #[arg(short, long, value_name = "TEXT")]
    source: Option<String>,

    /// What it is called [default: the name of PATH]
    #[arg(short, long, value_parser = name)]
    name: Option<String>,

    /// Bytes of a piece [default: such that there are at most 2048, but no more than 4MiB]
    #[arg(short = 'l', long, value_name = "SIZE", value_parser = piece_len)]
    piece_length: Option<u32>,

    /// Leave out the date, so that the same files make the same torrent
    #[arg(long)]
    no_date: bool,

    /// Take what begins with a dot, too
    #[arg(long, help_heading = "Files")]
    hidden: bool,

    /// Leave out what is called so
    #[arg(short, long, value_name = "GLOB", help_heading = "Files")]
    ignore: Vec<String>,

    /// Take what links lead to, in place of the links
    #[arg(short = 'L', long, help_heading = "Files")]
    dereference: bool,

    /// Do not keep which files may be run
    #[arg(long, help_heading = "Files")]
    no_executable: bool,

    /// Of which version of BitTorrent
    #[arg(long, value_enum, default_value_t = Format::V1)]
    format: Format,

    /// Tell the result as JSON: torrent, name, info_hash, magnet, size, files, piece_length, pieces, private, left_out
    #[arg(long)]
    json: bool,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Format {
    /// BitTorrent v1
    V1,
    /// Not yet
    #[value(hide = true)]
    V2,
    /// Not yet
    #[value(hide = true)]
    Hybrid,
}

/// Trackers of one tier.
pub(super) type Tier = Vec<String>;

/// What `--json` gives.
#[derive(Serialize)]
struct Made<'a> {
    /// `null`: standard output.
    torrent: Option<String>,
    name: &'a str,
    info_hash: String,
    magnet: String,
    size: u64,
    files: usize,
    piece_length: u32,
    pieces: u32,
    private: bool,
    left_out: Omitted,
}

#[derive(Serialize)]
struct Omitted {
    hidden: usize,
    ignored: usize,
    empty_directories: usize,
}

impl CreateArgs {
    /// Everything else by default.
    pub(super) fn plain(path: &Path, trackers: &[Tier], output: Option<&Path>, force: bool) -> Self {
        Self {
            path: path.to_owned(),
            output: output.map(Path::to_owned),
            force,
            trackers: trackers.to_vec(),
            web_seeds: Vec::new(),
            private: false,
            comment: None,
            source: None,
            name: None,
            piece_length: None,
            no_date: false,
            hidden: false,
            ignore: Vec::new(),
            dereference: false,
            no_executable: false,
            format: Format::V1,
            json: false,
        }
    }
}

pub(super) fn run(args: &CreateArgs, quiet: bool) -> Result<(), Failure> {
    make(args, quiet).map(drop)
}

/// Makes it, tells of it, and returns it.
pub(super) fn make(args: &CreateArgs, quiet: bool) -> Result<Metainfo, Failure> {
    if args.format != Format::V1 {
        return Err(Failure::new(Exit::Usage, "torrents of BitTorrent v2 cannot be made yet; leave out --format"));
    }
    let ignore = Ignore::new(&args.ignore).map_err(|error| Failure::new(Exit::Usage, error))?;
    let date = date(args)?;
    let name = match &args.name {
        Some(name) => name.clone(),
        None => name_of(&args.path)?,
    };
    let target = Target::plan(args, &name)?;
    let walk = Walk {
        hidden: args.hidden,
        ignore,
        dereference: args.dereference,
        executable: !args.no_executable,
        except: target.place(),
    };
    let (files, left_out) = payload::walk(&args.path, &walk).map_err(|error| Failure::new(Exit::Failure, error))?;
    let total = files.iter().fold(0u64, |sum, found| sum.saturating_add(found.file.len));
    let torrent = NewTorrent {
        name,
        piece_len: args.piece_length.unwrap_or_else(|| piece_len_for(total)),
        files: files.iter().map(|found| found.file.clone()).collect(),
        trackers: args.trackers.clone(),
        web_seeds: args.web_seeds.clone(),
        private: args.private,
        creation_date: date,
        comment: args.comment.clone(),
        created_by: Some(concat!("torrentfs ", env!("CARGO_PKG_VERSION")).into()),
        source: args.source.clone(),
    };
    // What would be no torrent is told before the hashing, which may take hours.
    let draft = torrent.draft().map_err(|error| failed(&args.path, error))?;
    if !quiet {
        tell_left_out(&left_out);
        tell_renamed(&draft, &files);
    }

    let hashes = hash(&draft, &files, quiet)?;
    let bytes = torrent.build(&hashes).map_err(|error| failed(&args.path, error))?;
    let metainfo = Metainfo::parse(&bytes).map_err(|error| failed(&args.path, error))?;
    let path = target.write(&bytes)?;
    tell(args, quiet, path.as_deref(), &metainfo, left_out)?;
    Ok(metainfo)
}

/// Hashes the files, and makes sure that they are still what they were when the last one is done.
fn hash(draft: &Metainfo, files: &[Found], quiet: bool) -> Result<Vec<[u8; 20]>, Failure> {
    let lengths = draft.layout.lengths();
    let progress = Progress::start(&format!("hashing {}", draft.name), lengths.total(), quiet);
    let hashes = Mutex::new(vec![[0; 20]; lengths.pieces() as usize]);
    let fault = Mutex::new(None);
    payload::hash(&draft.layout, lengths.iter(), files, &|piece, result| match result {
        Ok(digest) => {
            hashes.lock().unwrap_or_else(PoisonError::into_inner)[piece.index()] = digest;
            progress.add(lengths.len_of(piece).into());
            ControlFlow::Continue(())
        }
        Err(unread) => {
            fault.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(unread);
            ControlFlow::Break(())
        }
    });
    drop(progress);
    let cannot_read = |found: &Found, why: io::Error| {
        Failure::new(Exit::Failure, format!("cannot read {}: {why}", found.path.display()))
    };
    if let Some(unread) = fault.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(cannot_read(&files[unread.file.0 as usize], unread.why));
    }
    for found in files {
        found.check_unchanged().map_err(|why| cannot_read(found, why))?;
    }
    Ok(hashes.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Where the torrent goes.
enum Target {
    Standard,
    File(PathBuf, Planned),
}

impl Target {
    /// Makes sure of it before the work is done.
    fn plan(args: &CreateArgs, name: &str) -> Result<Self, Failure> {
        let path = match &args.output {
            Some(path) if path.as_os_str() == STANDARD => {
                if io::stdout().is_terminal() && !args.force {
                    let why = "a torrent is no text for a terminal: send it to a file, or see it with --force";
                    return Err(Failure::new(Exit::Usage, why));
                }
                return Ok(Self::Standard);
            }
            Some(dir) if dir.is_dir() => dir.join(format!("{name}.torrent")),
            Some(path) => path.clone(),
            None => PathBuf::from(format!("{name}.torrent")),
        };
        let replace = if args.force { Replace::Always } else { Replace::Never };
        let file = Planned::plan(&path, replace)?;
        Ok(Self::File(path, file))
    }

    /// Device and inode of what is there now and will be replaced.
    fn place(&self) -> Option<(u64, u64)> {
        let Self::File(path, _) = self else { return None };
        fs::metadata(path).ok().map(|about| (about.dev(), about.ino()))
    }

    fn write(self, bytes: &[u8]) -> Result<Option<PathBuf>, Failure> {
        match self {
            Self::Standard => output::print_bytes(bytes).map(|()| None),
            Self::File(path, file) => file.write(bytes).map(|()| Some(path)),
        }
    }
}

fn tell(
    args: &CreateArgs,
    quiet: bool,
    path: Option<&Path>,
    metainfo: &Metainfo,
    left_out: LeftOut,
) -> Result<(), Failure> {
    let lengths = metainfo.layout.lengths();
    let text = if args.json {
        output::json(&Made {
            torrent: path.map(|path| path.to_string_lossy().into_owned()),
            name: &metainfo.name,
            info_hash: metainfo.info_hash.to_string(),
            magnet: metainfo.magnet().to_string(),
            size: lengths.total(),
            files: metainfo.layout.files().len(),
            piece_length: lengths.piece_len(),
            pieces: lengths.pieces(),
            private: metainfo.private,
            left_out: Omitted { hidden: left_out.hidden, ignored: left_out.ignored, empty_directories: left_out.empty },
        })?
    } else if quiet {
        return Ok(());
    } else {
        let place = path.map_or_else(|| metainfo.name.clone(), shown);
        format!(
            "{place}: {}, {} in {} of {}\ninfo hash: {}\nmagnet link: {}\n",
            count(metainfo.layout.files().len(), "file"),
            ByteSize(lengths.total()),
            count(lengths.pieces() as usize, "piece"),
            ByteSize(lengths.piece_len().into()),
            metainfo.info_hash,
            metainfo.magnet(),
        )
    };
    match path {
        Some(_) => output::print(&text),
        None => {
            output::tell(&text);
            Ok(())
        }
    }
}

/// As in "1 file", "2 files".
pub(super) fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

fn tell_left_out(left_out: &LeftOut) {
    let LeftOut { hidden, ignored, empty } = *left_out;
    let parts = [
        (hidden, format!("{hidden} hidden (--hidden takes them)")),
        (ignored, format!("{ignored} by --ignore")),
        (empty, format!("{empty} empty director{}", if empty == 1 { "y" } else { "ies" })),
    ];
    let parts: Vec<String> = parts.into_iter().filter(|(count, _)| *count > 0).map(|(_, text)| text).collect();
    if !parts.is_empty() {
        output::tell(&format!("left out: {}\n", parts.join(", ")));
    }
}

/// Some names are legal on a disk but not shown as they are by any careful program.
fn tell_renamed(draft: &Metainfo, files: &[Found]) {
    let below = |file: &crate::metainfo::File| file.path[1..].join("/");
    let renamed = |(shown, found): &(&crate::metainfo::File, &Found)| below(shown) != found.file.path.join("/");
    let mut renamed = draft.layout.files().iter().zip(files).filter(renamed);
    if let Some((first, _)) = renamed.next() {
        let more = renamed.count();
        let others = if more == 0 { String::new() } else { format!(" and {more} more") };
        output::tell(&format!(
            "note: {}{others} will be called so elsewhere: its own name holds what is not safe to show\n",
            below(first)
        ));
    }
}

fn failed(path: &Path, error: impl std::fmt::Display) -> Failure {
    let error = error.to_string();
    let error = error.strip_prefix("cannot create the torrent: ").unwrap_or(&error);
    Failure::new(Exit::Failure, format!("cannot make a torrent of {}: {error}", path.display()))
}

/// What a path is called, even `.`.
fn name_of(path: &Path) -> Result<String, Failure> {
    let path = match path.file_name() {
        Some(_) => path.to_owned(),
        None => fs::canonicalize(path).map_err(|error| failed(path, error))?,
    };
    let name: OsString = path.file_name().ok_or_else(|| failed(&path, "it has no name: give one with --name"))?.into();
    name.into_string().map_err(|_| failed(&path, "its name is not UTF-8: give another with --name"))
}

/// Seconds since 1970.
fn date(args: &CreateArgs) -> Result<Option<i64>, Failure> {
    if args.no_date {
        return Ok(None);
    }
    if let Some(epoch) = std::env::var_os("SOURCE_DATE_EPOCH").filter(|epoch| !epoch.is_empty()) {
        let seconds = epoch.to_str().and_then(|epoch| epoch.parse().ok()).filter(|seconds| *seconds >= 0);
        let seconds = seconds.ok_or_else(|| {
            Failure::new(Exit::Usage, format!("SOURCE_DATE_EPOCH is not a number of seconds: {}", epoch.display()))
        })?;
        return Ok(Some(seconds));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(i64::try_from(now.as_secs()).ok())
}

pub(super) fn name(text: &str) -> Result<String, String> {
    if is_name(text) { Ok(text.to_owned()) } else { Err("expected the name of a file or directory".into()) }
}

fn piece_len(text: &str) -> Result<u32, String> {
    let size = text.parse::<ByteSize>().ok().map(|size| size.as_u64());
    size.filter(|size| size.is_power_of_two() && (MIN_PIECE_LEN..=MAX_PIECE_LEN.into()).contains(size))
        .and_then(|size| u32::try_from(size).ok())
        .ok_or_else(|| "expected a power of two from 16KiB to 128MiB, such as 256KiB or 4MiB".to_owned())
}

/// One or more URLs of trackers, separated by commas.
pub(super) fn tier(text: &str) -> Result<Tier, String> {
    text.split(',').map(|url| checked(url, &["http", "https", "udp", "ws", "wss"])).collect()
}

/// The URL of a web seed.
pub(super) fn web_seed(text: &str) -> Result<String, String> {
    checked(text, &["http", "https", "ftp"])
}

/// A URL with one of these schemes, as it was given.
fn checked(text: &str, schemes: &[&str]) -> Result<String, String> {
    let text = text.trim();
    let url = reqwest::Url::parse(text).ok().filter(|url| url.has_host() && !text.contains(char::is_control));
    match url {
        Some(url) if schemes.contains(&url.scheme()) => Ok(text.to_owned()),
        _ => Err(format!("{text:?} is not a URL of {}", schemes.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiers_are_lists_of_urls() {
        assert_eq!(tier("http://a/announce"), Ok(vec!["http://a/announce".into()]));
        assert_eq!(tier("udp://a:1, https://b/?x=%20"), Ok(vec!["udp://a:1".into(), "https://b/?x=%20".into()]));
        for nonsense in ["", "http://a,", "a", "ftp://a", "http://", "magnet:?xt=x"] {
            assert!(tier(nonsense).is_err(), "{nonsense}");
        }
        assert!(web_seed("ftp://a/").is_ok() && web_seed("udp://a:1").is_err());
    }

    #[test]
    fn pieces_are_powers_of_two() {
        assert_eq!((piece_len("16KiB"), piece_len("4MiB"), piece_len("32768")), (Ok(16384), Ok(4 << 20), Ok(32768)));
        for nonsense in ["", "8KiB", "17KiB", "1MB", "256MiB", "0", "-1"] {
            assert!(piece_len(nonsense).is_err(), "{nonsense}");
        }
    }
}
