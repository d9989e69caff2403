//! `torrentfs seed`: seeds existing files in place.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytesize::ByteSize;
use clap::Args;
use fixedbitset::FixedBitSet;

use super::engine::Engine;
use super::failure::{Exit, Failure};
use super::flags::values::{Tier, tier};
use super::flags::{NetworkArgs, NetworkFlags};
use super::log::{self, Verbosity};
use super::make_torrent::{self, Recipe};
use super::progress::Progress;
use super::runtime::{Signals, runtime};
use super::seeding::Seeding;
use super::sources;
use super::text::count;
use crate::library::Source;
use crate::metainfo::{File, FileKind, Layout, PieceIndex};
use crate::session::{SessionError, TorrentOptions};
use crate::store::Place;

/// Files compared at most to find where the data is: enough to tell two directories apart, fast on a slow disk.
const MAX_COMPARED: usize = 1000;
/// Incomplete files that an error names at most, so that it stays readable.
const MAX_NAMED: usize = 3;

const DESCRIPTION: &str = "\
PATH is the file or directory of the torrent, under any name, or the directory
that contains it. It is only ever read, so it may be on a read-only disk.

All data is hashed first. If some is missing or damaged, the command says what
and stops; --partial seeds the rest. A file that changes later is checked again
before its data is sent.

Seeding continues until Ctrl-C, or until --seed-ratio or --seed-time is
reached.";

const SECTIONS: &str = "\
The network options are described in `torrentfs help mount`.

Values:
  RATE  bytes per second with a unit: 500KB, 2MiB
  TIME  a number with a unit: 90s, 2min, 1h
  BOOL  true or false; the option alone means true

Examples:
  torrentfs seed film.torrent ~/Videos/film.mkv
  torrentfs seed a.torrent /srv/a b.torrent /srv/b
  torrentfs seed --create album -a http://tracker.example.org/announce
  torrentfs seed --seed-ratio 2 --upload-limit 1MiB film.torrent ~/Videos";

const USAGE: &str = "torrentfs seed [OPTIONS] <TORRENT> <PATH> [<TORRENT> <PATH>]...
       torrentfs seed [OPTIONS] --create <PATH>";

/// Seed existing files, without copying them
#[derive(Args, Clone, Debug)]
#[command(before_help = DESCRIPTION, after_help = SECTIONS, args_override_self = true, override_usage = USAGE)]
#[command(mut_arg("no_upload", |arg| arg.hide(true)), mut_arg("active_downloads", |arg| arg.hide(true)))]
pub(super) struct SeedArgs {
    /// .torrent or .magnet file, URL, magnet link or info hash, and the path of its data; may be repeated
    #[arg(value_names = ["TORRENT", "PATH"], num_args = 2.., required_unless_present = "create")]
    pairs: Vec<OsString>,

    /// Seed without hashing all data first; each piece is hashed before it is first sent
    #[arg(long)]
    no_check: bool,

    /// Seed what exists if some data is missing or damaged
    #[arg(long)]
    partial: bool,

    /// Upload each piece once until peers have them all (BEP 16); for the first seeder, on a slow line
    #[arg(long)]
    super_seed: bool,

    /// Directory for DHT nodes and metadata [default: ~/.cache/torrentfs]
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,

    /// Create a torrent of this file or directory first, as `torrentfs create` does, and seed it
    #[arg(long, value_name = "PATH", conflicts_with = "pairs", help_heading = "Creating a torrent")]
    create: Option<PathBuf>,

    /// Tracker tier: one announce URL, or several separated by commas; repeat for the next tier
    #[arg(short = 'a', long = "tracker", value_name = "URL[,URL]", value_parser = tier, requires = "create")]
    #[arg(help_heading = "Creating a torrent")]
    trackers: Vec<Tier>,

    /// Torrent file to write, or the directory for it [default: NAME.torrent]
    #[arg(short, long, value_name = "FILE", requires = "create", help_heading = "Creating a torrent")]
    output: Option<PathBuf>,

    /// Overwrite an existing torrent file
    #[arg(short, long, requires = "create", help_heading = "Creating a torrent")]
    force: bool,

    #[command(flatten)]
    network: NetworkFlags,
}

/// A torrent to seed.
struct Offer {
    /// SOURCE as the user gave it.
    named: OsString,
    source: Source,
    /// PATH of its data.
    path: PathBuf,
    /// Whether to hash all data first.
    check: bool,
}

/// Seeds until a limit is reached, or a signal arrives.
pub(super) fn run(args: SeedArgs, verbosity: Verbosity, quiet: bool) -> Result<(), Failure> {
    log::to_stderr(verbosity);
    if !args.pairs.len().is_multiple_of(2) {
        return Err(Failure::new(Exit::Usage, "each TORRENT must be followed by the PATH of its data"));
    }
    // clap does not check this: it waives `requires = "create"` where `create` conflicts with what is given.
    if args.create.is_none() && (!args.trackers.is_empty() || args.output.is_some() || args.force) {
        return Err(Failure::new(Exit::Usage, "--tracker, --output and --force only apply to --create"));
    }
    let read = |pair: &[OsString]| {
        let (torrent, path) = (&pair[0], &pair[1]);
        Ok(Offer {
            named: torrent.clone(),
            source: sources::single("seed", torrent)?,
            path: path.into(),
            check: !args.no_check,
        })
    };
    let mut offers = args.pairs.chunks_exact(2).map(read).collect::<Result<Vec<_>, Failure>>()?;
    let network = NetworkArgs::from(args.network.clone());
    if !network.upload {
        return Err(Failure::new(Exit::Usage, "cannot seed with --no-upload"));
    }
    if let Some(path) = &args.create {
        let recipe = Recipe {
            path: path.clone(),
            output: args.output.clone(),
            force: args.force,
            trackers: args.trackers.clone(),
            ..Recipe::default()
        };
        let source = Source::Torrent(Box::new(make_torrent::make(&recipe, quiet)?));
        // It was just hashed, and each piece is hashed again before it is first sent.
        offers.push(Offer { named: path.into(), source, path: path.clone(), check: false });
    }
    let runtime = runtime()?;
    let outcome = runtime.block_on(async {
        let mut signals = Signals::listen()?;
        let engine = Engine::start(&network, args.cache_dir.as_deref())?;
        let mut seeding = Seeding::new(network.seed, quiet);
        let outcome = tokio::select! {
            outcome = seed(&engine, offers, &args, &network, &mut seeding, quiet) => outcome,
            () = engine.until_signal(&mut signals) => Ok(()),
        };
        let uploaded = seeding.uploaded();
        drop(seeding);
        engine.stop().await;
        if outcome.is_ok() && !quiet {
            println!("{} uploaded", ByteSize(uploaded));
        }
        outcome
    });
    // Do not wait for checks that are still hashing.
    runtime.shutdown_background();
    outcome
}

async fn seed(
    engine: &Engine,
    offers: Vec<Offer>,
    args: &SeedArgs,
    network: &NetworkArgs,
    seeding: &mut Seeding,
    quiet: bool,
) -> Result<(), Failure> {
    for Offer { named, source, path, check } in offers {
        let (metainfo, found) = sources::resolve("seed", source, &named, engine.resolver(network), quiet).await?;
        let layout = metainfo.layout.clone();
        let root = tokio::task::spawn_blocking(move || locate(&layout, &path)).await;
        let root = root.map_err(|error| Failure::new(Exit::Failure, error))??;
        let checking = Arc::new(Progress::start(&format!("checking {}", metainfo.name), 0, quiet));
        let options = TorrentOptions {
            place: Place::Seed(root.clone()),
            whole: !args.partial,
            peers: [network.peers.clone(), found].concat(),
            super_seed: args.super_seed,
            verify: check,
            progress: Some(checking.check_progress()),
            ..TorrentOptions::default()
        };
        let (metainfo, layout) = (metainfo.clone(), metainfo.layout);
        let added = engine.add(metainfo, options).await;
        drop(checking);
        let torrent = added.map_err(|error| match error {
            SessionError::Incomplete(have) => incomplete(&layout, &root, &have),
            error => error.into(),
        })?;
        let have = torrent.store().have();
        // A torrent of empty files has no data.
        if have.is_clear() && layout.lengths().pieces() > 0 {
            return Err(Failure::new(Exit::Failure, format!("{} has no valid data of the torrent", root.display())));
        }
        if !quiet {
            let part = format!("{} of {} pieces of ", have.count_ones(..), have.len());
            let (part, root) = (if have.is_full() { "" } else { &part }, root.display());
            println!("seeding {part}{root}, info hash {}", torrent.metainfo().info_hash);
        }
        seeding.add(torrent);
    }
    seeding.until_limit().await;
    Ok(())
}

/// Returns the path of a file of the torrent, if `root` stands for the first component of its path.
fn below(root: &Path, file: &File) -> PathBuf {
    let rest: PathBuf = file.path.iter().skip(1).collect();
    if rest.as_os_str().is_empty() { root.to_owned() } else { root.join(rest) }
}

/// Finds the file or directory of the torrent: PATH itself, or the entry of PATH that has the torrent's name. Chooses the
/// one that has more of the files.
fn locate(layout: &Layout, path: &Path) -> Result<PathBuf, Failure> {
    let failure = |error: io::Error| Failure::new(Exit::Resource, format!("cannot use {}: {error}", path.display()));
    let path = fs::canonicalize(path).map_err(failure)?;
    let with_bytes = |file: &&File| file.kind != FileKind::Pad && file.len > 0;
    let complete_files = |root: &Path| {
        let files = layout.files().iter().filter(with_bytes).take(MAX_COMPARED);
        files
            .filter(|file| below(root, file).metadata().is_ok_and(|about| about.is_file() && about.len() >= file.len))
            .count()
    };
    let name = layout.files().first().and_then(|file| file.path.first());
    let Some(inside) = name.map(|name| path.join(name)) else { return Ok(path) };
    // A directory cannot be the data of a single-file torrent.
    let is_file = layout.files().iter().all(|file| file.path.len() == 1);
    Ok(if complete_files(&inside) > complete_files(&path) || is_file && path.is_dir() { inside } else { path })
}

/// Describes which pieces are missing or bad, and in which files.
fn incomplete(layout: &Layout, root: &Path, have: &FixedBitSet) -> Failure {
    let lengths = layout.lengths();
    let files = || layout.files().iter().filter(|file| file.kind != FileKind::Pad && file.len > 0);
    let looked: Vec<Result<u64, io::Error>> = files().map(|file| readable(&below(root, file))).collect();
    let mut missing = FixedBitSet::with_capacity(have.len());
    for (file, there) in files().zip(&looked) {
        let range = file.range();
        let there = *there.as_ref().unwrap_or(&0);
        if there < file.len {
            missing.extend(lengths.pieces_in(&(range.start + there..range.end)).map(PieceIndex::index));
        }
    }
    missing.difference_with(have);
    let is_bad = |piece: &PieceIndex| !have.contains(piece.index()) && !missing.contains(piece.index());
    let mut faults = Vec::new();
    for (file, there) in files().zip(&looked) {
        let bad = lengths.pieces_in(&file.range()).filter(is_bad).count();
        let why = match there {
            Err(error) if error.kind() == io::ErrorKind::NotFound => "is missing".to_owned(),
            Err(error) => format!("cannot be read: {error}"),
            Ok(there) if *there < file.len && bad == 0 => format!("has {there} of {} bytes", file.len),
            Ok(there) if *there < file.len => {
                format!("has {there} of {} bytes, {} of them bad", file.len, count(bad, "piece"))
            }
            Ok(_) if bad > 0 => format!("has {bad} of {} pieces bad", lengths.pieces_in(&file.range()).count()),
            // If one of its pieces is bad, the cause is another file.
            Ok(_) => continue,
        };
        faults.push(format!("{} {why}", below(root, file).display()));
    }
    let more = faults.len().saturating_sub(MAX_NAMED);
    faults.truncate(MAX_NAMED);
    let more = if more == 0 {
        String::new()
    } else {
        format!("; and {more} more {}", if more == 1 { "file" } else { "files" })
    };
    let (of, missing) = (have.len(), missing.count_ones(..));
    let bad = of - have.count_ones(..) - missing;
    let are = |count: usize| if count == 1 { "is" } else { "are" };
    let what = match (missing, bad) {
        (_, 0) => format!("{missing} of {of} pieces {} missing", are(missing)),
        (0, _) => format!("{bad} of {of} pieces {} bad", are(bad)),
        _ => format!("of {of} pieces, {missing} {} missing and {bad} {} bad", are(missing), are(bad)),
    };
    Failure::new(Exit::Failure, format!("{what}: {}{more}; --partial seeds the rest", faults.join("; ")))
}

/// Returns the length of a file that can be opened.
fn readable(path: &Path) -> io::Result<u64> {
    let about = path.metadata()?;
    // Opening something else, such as a FIFO, may block.
    if !about.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    fs::File::open(path).map(|_| about.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metainfo::Lengths;

    fn layout(files: &[(&str, u64)]) -> Layout {
        let mut offset = 0;
        let files: Vec<File> = files
            .iter()
            .map(|(path, len)| {
                let kind = FileKind::Regular { executable: false };
                let path = path.split('/').map(str::to_owned).collect();
                let file = File { path, offset, len: *len, kind };
                offset += len;
                file
            })
            .collect();
        Layout::new(Lengths::new(offset, 16).unwrap(), files)
    }

    #[test]
    fn the_data_is_found_by_its_own_name_by_another_and_in_its_directory() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        for path in ["mine/t/a", "mine/t/b", "other/a", "other/b", "nested/t/t/a", "nested/t/a", "nested/t/b"] {
            fs::create_dir_all(base.join(path).parent().unwrap()).unwrap();
            fs::write(base.join(path), [0; 20]).unwrap();
        }
        let many = layout(&[("t/a", 20), ("t/b", 20)]);
        let found = |layout: &Layout, path: &str| locate(layout, &base.join(path)).unwrap();
        for (path, root) in [
            ("mine/t", "mine/t"),
            ("mine", "mine/t"),
            ("other", "other"),
            ("nested/t", "nested/t"),
            ("nested", "nested/t"),
        ] {
            assert_eq!(found(&many, path), base.join(root), "{path}");
        }
        let single = layout(&[("a", 20)]);
        assert_eq!(found(&single, "other/b"), base.join("other/b"), "by another name");
        assert_eq!(found(&single, "other"), base.join("other/a"));
        assert_eq!(found(&single, "mine"), base.join("mine/a"), "where it should be");
        assert!(locate(&single, &base.join("nowhere")).unwrap_err().to_string().contains("nowhere"));
    }

    /// Returns what [`incomplete`] says if only these pieces are valid.
    fn described(layout: &Layout, root: &Path, good: &[usize]) -> String {
        let mut have = FixedBitSet::with_capacity(layout.lengths().pieces() as usize);
        have.extend(good.iter().copied());
        incomplete(layout, root, &have).to_string().replace(&format!("{}/", root.display()), "")
    }

    #[test]
    fn what_is_missing_and_what_is_bad_is_named_up_to_a_few_files() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a"), [0; 32]).unwrap();
        fs::write(dir.path().join("b"), [0; 5]).unwrap();
        let many = layout(&[("t/a", 32), ("t/b", 32), ("t/c", 32), ("t/d", 32)]);
        assert_eq!(
            described(&many, dir.path(), &[1]),
            "of 8 pieces, 6 are missing and 1 is bad: a has 1 of 2 pieces bad; b has 5 of 32 bytes; c is missing; \
             and 1 more file; --partial seeds the rest"
        );
        fs::write(dir.path().join("b"), [0; 31]).unwrap();
        let two = layout(&[("t/a", 32), ("t/b", 32)]);
        let rest = "--partial seeds the rest";
        assert_eq!(
            described(&two, dir.path(), &[0, 1, 2]),
            format!("1 of 4 pieces is missing: b has 31 of 32 bytes; {rest}")
        );
        assert_eq!(
            described(&two, dir.path(), &[0, 1]),
            format!("of 4 pieces, 1 is missing and 1 is bad: b has 31 of 32 bytes, 1 piece of them bad; {rest}")
        );
        fs::write(dir.path().join("b"), [0; 32]).unwrap();
        assert_eq!(
            described(&two, dir.path(), &[0]),
            format!("3 of 4 pieces are bad: a has 1 of 2 pieces bad; b has 2 of 2 pieces bad; {rest}")
        );
    }

    /// A piece that spans two files counts as missing, not as bad, if one of the files is missing.
    #[test]
    fn a_piece_of_a_missing_file_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a"), [0; 20]).unwrap();
        fs::create_dir(dir.path().join("c")).unwrap();
        let layout = layout(&[("t/a", 20), ("t/b", 20), ("t/c", 24)]);
        assert_eq!(
            described(&layout, dir.path(), &[0]),
            "3 of 4 pieces are missing: b is missing; c cannot be read: it is not a regular file; --partial seeds the rest"
        );
    }
}
