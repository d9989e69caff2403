//! Creating a torrent of files, for `torrentfs create` and `torrentfs seed --create`.

use std::ffi::OsString;
use std::fs;
use std::io::{self, IsTerminal};
use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use bytesize::ByteSize;
use serde::Serialize;

use super::failure::{Exit, Failure};
use super::flags::values::Tier;
use super::output::{self, AtomicFile, Replace, STANDARD};
use super::progress::Progress;
use super::text::{count, shown};
use crate::metainfo::{Metainfo, NewTorrent, piece_len_for};
use crate::payload::{self, Found, Ignore, LeftOut, Walk};

/// The torrent to create, and how to report it.
#[derive(Default)]
pub(super) struct Recipe {
    /// File or directory that the torrent is made of.
    pub(super) path: PathBuf,
    /// Torrent file to write, or the directory for it; "-" for standard output, `None` for NAME.torrent.
    pub(super) output: Option<PathBuf>,
    /// Whether an existing torrent file is replaced.
    pub(super) force: bool,
    pub(super) trackers: Vec<Tier>,
    pub(super) web_seeds: Vec<String>,
    pub(super) private: bool,
    pub(super) comment: Option<String>,
    pub(super) source: Option<String>,
    /// Name of the torrent; `None` for the name of `path`.
    pub(super) name: Option<String>,
    /// Bytes of a piece; `None` for one that suits the size.
    pub(super) piece_length: Option<u32>,
    pub(super) no_date: bool,
    /// Whether names that begin with a dot are included.
    pub(super) hidden: bool,
    /// Glob patterns of names to leave out.
    pub(super) ignore: Vec<String>,
    /// Whether symbolic links are followed instead of stored.
    pub(super) dereference: bool,
    /// Whether executable bits are dropped.
    pub(super) no_executable: bool,
    /// Whether the result is printed as JSON.
    pub(super) json: bool,
}

/// The output of `--json`.
#[derive(Serialize)]
struct Created<'a> {
    /// Path of the torrent file; `null` for standard output.
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

/// Creates the torrent, prints a summary, and returns its metainfo.
pub(super) fn make(recipe: &Recipe, quiet: bool) -> Result<Metainfo, Failure> {
    let ignore = Ignore::new(&recipe.ignore).map_err(|error| Failure::new(Exit::Usage, error))?;
    let date = date(recipe)?;
    let name = match &recipe.name {
        Some(name) => name.clone(),
        None => name_of(&recipe.path)?,
    };
    let target = Target::plan(recipe, &name)?;
    let walk = Walk {
        hidden: recipe.hidden,
        ignore,
        dereference: recipe.dereference,
        executable: !recipe.no_executable,
        except: target.replaced(),
    };
    let (files, left_out) = payload::walk(&recipe.path, &walk).map_err(|error| Failure::new(Exit::Failure, error))?;
    let total = files.iter().fold(0u64, |sum, found| sum.saturating_add(found.file.len));
    let torrent = NewTorrent {
        name,
        piece_len: recipe.piece_length.unwrap_or_else(|| piece_len_for(total)),
        files: files.iter().map(|found| found.file.clone()).collect(),
        trackers: recipe.trackers.clone(),
        web_seeds: recipe.web_seeds.clone(),
        private: recipe.private,
        creation_date: date,
        comment: recipe.comment.clone(),
        created_by: Some(concat!("torrentfs ", env!("CARGO_PKG_VERSION")).into()),
        source: recipe.source.clone(),
    };
    // Report an invalid torrent before hashing, which may take hours.
    let draft = torrent.draft().map_err(|error| failed(&recipe.path, error))?;
    if !quiet {
        report_left_out(&left_out);
        report_renamed(&draft, &files);
    }

    let hashes = hash(&draft, &files, quiet)?;
    let bytes = torrent.build(&hashes).map_err(|error| failed(&recipe.path, error))?;
    let metainfo = Metainfo::parse(&bytes).map_err(|error| failed(&recipe.path, error))?;
    let path = target.write(&bytes)?;
    report(recipe, quiet, path.as_deref(), &metainfo, left_out)?;
    Ok(metainfo)
}

/// Hashes the files, and checks at the end that none has changed meanwhile.
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
    let cannot_read = |found: &Found, error: io::Error| {
        Failure::new(Exit::Failure, format!("cannot read {}: {error}", found.path.display()))
    };
    if let Some(unread) = fault.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(cannot_read(&files[unread.file.0 as usize], unread.why));
    }
    for found in files {
        found.check_unchanged().map_err(|error| cannot_read(found, error))?;
    }
    Ok(hashes.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Destination of the torrent.
enum Target {
    Standard,
    File(PathBuf, AtomicFile),
}

impl Target {
    /// Checks that the destination can be written, before the work is done.
    fn plan(recipe: &Recipe, name: &str) -> Result<Self, Failure> {
        let path = match &recipe.output {
            Some(path) if path.as_os_str() == STANDARD => {
                if io::stdout().is_terminal() && !recipe.force {
                    let why = "a torrent is binary data; write it to a file with -o, or to the terminal with --force";
                    return Err(Failure::new(Exit::Usage, why));
                }
                return Ok(Self::Standard);
            }
            Some(dir) if dir.is_dir() => dir.join(format!("{name}.torrent")),
            Some(path) => path.clone(),
            None => PathBuf::from(format!("{name}.torrent")),
        };
        let replace = if recipe.force { Replace::Always } else { Replace::Never };
        let file = AtomicFile::plan(&path, replace)?;
        Ok(Self::File(path, file))
    }

    /// Returns device and inode of the file that will be replaced, so that it is left out of the torrent.
    fn replaced(&self) -> Option<(u64, u64)> {
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

fn report(
    recipe: &Recipe,
    quiet: bool,
    path: Option<&Path>,
    metainfo: &Metainfo,
    left_out: LeftOut,
) -> Result<(), Failure> {
    let lengths = metainfo.layout.lengths();
    let text = if recipe.json {
        output::json(&Created {
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
            output::print_error(&text);
            Ok(())
        }
    }
}

fn report_left_out(left_out: &LeftOut) {
    let LeftOut { hidden, ignored, empty } = *left_out;
    let parts = [
        (hidden, format!("{hidden} hidden (use --hidden to include them)")),
        (ignored, format!("{ignored} by --ignore")),
        (empty, format!("{} without files, which a torrent cannot contain", directories(empty))),
    ];
    let parts: Vec<String> = parts.into_iter().filter(|(count, _)| *count > 0).map(|(_, text)| text).collect();
    if !parts.is_empty() {
        output::print_error(&format!("left out: {}\n", parts.join(", ")));
    }
}

fn directories(number: usize) -> String {
    format!("{number} director{}", if number == 1 { "y" } else { "ies" })
}

/// Reports names that are legal on disk but that other programs change, because they are unsafe to display.
fn report_renamed(draft: &Metainfo, files: &[Found]) {
    let below = |file: &crate::metainfo::File| file.path[1..].join("/");
    let renamed = |(shown, found): &(&crate::metainfo::File, &Found)| below(shown) != found.file.path.join("/");
    let mut renamed = draft.layout.files().iter().zip(files).filter(renamed);
    if let Some((first, _)) = renamed.next() {
        let more = renamed.count();
        let others = if more == 0 { String::new() } else { format!(" and {more} more") };
        output::print_error(&format!(
            "note: other programs will show {}{others}, because the real name contains unsafe characters\n",
            below(first)
        ));
    }
}

fn failed(path: &Path, error: impl std::fmt::Display) -> Failure {
    let error = error.to_string();
    let error = error.strip_prefix("cannot make a torrent: ").unwrap_or(&error);
    Failure::new(Exit::Failure, format!("cannot create a torrent of {}: {error}", path.display()))
}

/// Returns the last component of a path, even for `.`.
fn name_of(path: &Path) -> Result<String, Failure> {
    let path = match path.file_name() {
        Some(_) => path.to_owned(),
        None => fs::canonicalize(path).map_err(|error| failed(path, error))?,
    };
    let name: OsString = path.file_name().ok_or_else(|| failed(&path, "it has no name; give one with --name"))?.into();
    name.into_string().map_err(|_| failed(&path, "its name is not UTF-8; give another name with --name"))
}

/// Returns the creation date, in seconds since 1970.
fn date(recipe: &Recipe) -> Result<Option<i64>, Failure> {
    if recipe.no_date {
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
